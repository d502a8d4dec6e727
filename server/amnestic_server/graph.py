"""Writes the frozen encoder as an ONNX graph, operator by operator, from the weights of a checkpoint.

The graph is made of ONNX Runtime's fused operators from the start, so nothing depends on what a tracer or a
pattern-matching optimiser happens to recognise, and the numbers are those of the checkpoint. It is not optimised
ahead either: ONNX Runtime finds nothing to fuse at loading but the last Gemm with its activation, and a file saved
after that would be bound to the machine that saved it, to start a BERT-base 0.2 s sooner (0.1 s in int8).

It covers the post-layer-norm transformers with absolute positions of `architecture`. Word embeddings and the last
linear layer stay outside. Products in 8 bits are `int8`'s, checkpoint files and tokenizers `export`'s, and the check
against torch is `parity`'s.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from amnestic_server import int8
from amnestic_server.graph_writer import FUSED_DOMAIN, GraphWriter, Weights
from amnestic_unlearn.architecture import Architecture, activation_of, check_config, first_position
from amnestic_unlearn.manifest import Precision

OPSET = 17
# IR 8 is the one that came with opset 17: every ONNX Runtime that has the fused operators reads it.
IR_VERSION = 8
ATTENTION = ("Attention", "MultiHeadAttention")
FUSED = (*ATTENTION, "MatMulIntegerToFloat", "SkipLayerNormalization", "BiasGelu", "FastGelu")


@dataclass(frozen=True, slots=True)
class _Names:
    """Where one architecture keeps the weights of its encoder, as prefixes of state-dict keys."""

    embeddings: str
    layer: str
    query: str
    key: str
    value: str
    attention_output: str
    attention_norm: str
    up: str
    down: str
    output_norm: str
    features: str
    features_activation: str


def _bert_names(root: str, features: str, features_activation: str = "Tanh") -> _Names:
    return _Names(
        embeddings=f"{root}.embeddings",
        layer=f"{root}.encoder.layer",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        attention_output="attention.output.dense",
        attention_norm="attention.output.LayerNorm",
        up="intermediate.dense",
        down="output.dense",
        output_norm="output.LayerNorm",
        features=features,
        features_activation=features_activation,
    )


# By the root of the transformer.
_NAMES = {
    "bert": _bert_names("bert", "bert.pooler.dense"),
    "roberta": _bert_names("roberta", "classifier.dense"),
    "electra": _bert_names("electra", "classifier.dense", "Gelu"),
    "distilbert": _Names(
        embeddings="distilbert.embeddings",
        layer="distilbert.transformer.layer",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_output="attention.out_lin",
        attention_norm="sa_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
        output_norm="output_layer_norm",
        features="pre_classifier",
        features_activation="Relu",
    ),
}

# No value of these activations is below.
_FLOORS = {"gelu": -0.17, "gelu_tanh": -0.1701, "relu": 0.0}

# The model's code, not its configuration, sets DistilBERT's epsilon.
_DISTILBERT_EPSILON = 1e-12


def build_encoder(
    architecture: Architecture,
    config: Any,
    state_dict: Mapping[str, torch.Tensor],
    precision: Precision = Precision.FP32,
) -> onnx.ModelProto:
    """The encoder of a sequence classifier between its word embeddings and its last linear layer.

    `config` and `state_dict` are those of the Hugging Face model. The graph maps `inputs_embeds` float32
    [batch, tokens, embedding_size] and `attention_mask` int64 [batch, tokens] (ones, then zeros: padding on the
    right only, at least one token) to `features` float32 [batch, feature_size]. Position and type embeddings,
    their layer norm and ELECTRA's projection to the width of the layers are inside; tokens are at most the rows of
    the position table. Inputs and features are float32 whatever the precision between them: the table and the rows
    of a patch are, and a cast costs a GPU less than a second table would.

    Raises CheckpointError for a configuration that the graph cannot reproduce or a weight that is missing.
    """
    check_config(architecture, config)
    names, graph = _NAMES[architecture.root], GraphWriter(Weights(state_dict), precision)
    epsilon = _DISTILBERT_EPSILON if architecture.name == "distilbert" else float(config.layer_norm_eps)

    # Lengths instead of the mask: as fast on a CPU, and the form that the fused kernels of a GPU take.
    graph.node("Cast", ["attention_mask"], "mask_int32", to=TensorProto.INT32)
    graph.node("ReduceSum", ["mask_int32", graph.constant("axis_1", [1])], "lengths", keepdims=0)
    hidden, width = _embeddings(graph, names, first_position(architecture, config), epsilon)
    layers, activation = int(config.num_hidden_layers), activation_of(architecture, config)
    for index in range(layers):
        shape = _LayerShape(int(config.num_attention_heads), epsilon, activation, first_token_only=index == layers - 1)
        hidden = _layer(graph, names, index, shape, hidden)
    dense = [hidden, graph.transposed(f"{names.features}.weight"), graph.weight(f"{names.features}.bias")]
    # This operator set has no GELU of its own.
    domain = FUSED_DOMAIN if names.features_activation == "Gelu" else ""
    features = "features" if graph.float_type == TensorProto.FLOAT else "features_reduced"
    graph.node(names.features_activation, [graph.node("Gemm", dense, "features_dense")], features, domain)
    graph.cast(features, TensorProto.FLOAT, "features")
    return _model(graph, width, graph.weights.rows(f"{names.features}.weight"))


def count_fused(model: onnx.ModelProto) -> dict[str, int]:
    """How many nodes of each fused operator the graph has; one Attention a layer is what export demands."""
    counts = Counter(node.op_type for node in model.graph.node if node.domain == FUSED_DOMAIN)
    return {name: counts[name] for name in FUSED if counts[name]}


@dataclass(frozen=True, slots=True)
class _LayerShape:
    heads: int
    epsilon: float
    activation: str
    first_token_only: bool


def _embeddings(graph: GraphWriter, names: _Names, start: int, epsilon: float) -> tuple[str, int]:
    """Add to each word embedding the position's and type 0's, summed beforehand, and normalise; with their width.

    Embeddings that are not as wide as the layers are projected.
    """
    table = graph.weights.array(f"{names.embeddings}.position_embeddings.weight")[start:]
    types = f"{names.embeddings}.token_type_embeddings.weight"
    if types in graph.weights:
        table = table + graph.weights.array(types)[0]
    words = graph.cast("inputs_embeds", graph.float_type, "words")
    tokens = graph.node("Shape", ["inputs_embeds"], "tokens", start=1, end=2)
    slicing = [
        graph.array("positions", table),
        graph.constant("axis_0", [0]),
        tokens,
        graph.constant("axis_0", [0]),
    ]
    positions = graph.node("Slice", slicing, "position_rows")
    norm = f"{names.embeddings}.LayerNorm"
    embedded = graph.fused(
        "SkipLayerNormalization",
        [words, positions, graph.weight(f"{norm}.weight"), graph.weight(f"{norm}.bias")],
        "embedded",
        epsilon=epsilon,
    )
    projection = f"{names.embeddings}_project"
    if f"{projection}.weight" in graph.weights:
        wide = _matmul(graph, projection, embedded, "embedded_wide")
        embedded = graph.node("Add", [wide, graph.weight(f"{projection}.bias")], "projected")
    return embedded, table.shape[1]


def _layer(graph: GraphWriter, names: _Names, index: int, shape: _LayerShape, hidden: str) -> str:
    """One transformer layer.

    The features are made from the first token alone, so behind the last layer's attention only that token is
    carried on: its residual, projection and feed-forward part then cost 1 / tokens of a full layer's.
    """
    prefix, out = f"{names.layer}.{index}", f"layer_{index}"
    attended = _attention(graph, names, prefix, shape, hidden, f"{out}_attention")
    if shape.first_token_only:
        first = graph.array("first", np.array(0, dtype=np.int64))
        attended = graph.node("Gather", [attended, first], f"{out}_attention_first", axis=1)
        hidden = graph.node("Gather", [hidden, first], f"{out}_residual_first", axis=1)
    projected = _matmul(graph, f"{prefix}.{names.attention_output}", attended, f"{out}_projected")
    hidden = _add_and_normalise(
        graph,
        projected,
        hidden,
        f"{prefix}.{names.attention_norm}",
        graph.weight(f"{prefix}.{names.attention_output}.bias"),
        shape.epsilon,
        f"{out}_attended",
    )
    wide = _matmul(graph, f"{prefix}.{names.up}", hidden, f"{out}_up")
    active = _activation(graph, shape.activation, wide, graph.weight(f"{prefix}.{names.up}.bias"), out)
    narrow, bias = _down(graph, f"{prefix}.{names.down}", active, shape.activation, f"{out}_down")
    return _add_and_normalise(
        graph,
        narrow,
        hidden,
        f"{prefix}.{names.output_norm}",
        bias,
        shape.epsilon,
        f"{out}_hidden",
    )


def _attention(graph: GraphWriter, names: _Names, prefix: str, shape: _LayerShape, hidden: str, output: str) -> str:
    """Self-attention with queries, keys and values computed by one packed product; int8 has no operator for that."""
    parts = [f"{prefix}.{name}" for name in (names.query, names.key, names.value)]
    biases = np.concatenate([graph.weights.array(f"{part}.bias") for part in parts])
    bias = graph.array(f"{prefix}.qkv.bias", biases)
    if graph.precision is Precision.INT8:
        return int8.attention(graph, [f"{part}.weight" for part in parts], bias, hidden, shape.heads, output)
    weight = np.concatenate([graph.weights.array(f"{part}.weight").T for part in parts], axis=1)
    inputs = [hidden, graph.array(f"{prefix}.qkv.weight", weight), bias, "lengths"]
    return graph.fused("Attention", inputs, output, num_heads=shape.heads)


def _activation(graph: GraphWriter, activation: str, hidden: str, bias: str, layer: str) -> str:
    """Add the bias and apply the activation, in one operator where there is one."""
    if activation == "relu":
        return graph.node("Relu", [graph.node("Add", [hidden, bias], f"{layer}_biased")], f"{layer}_relu")
    operator = "BiasGelu" if activation == "gelu" else "FastGelu"
    return graph.fused(operator, [hidden, bias], f"{layer}_gelu")


def _matmul(graph: GraphWriter, layer: str, hidden: str, output: str) -> str:
    """A linear layer without its bias: the operator behind it adds that."""
    if graph.precision is Precision.INT8:
        inputs = int8.quantise(graph, hidden, graph.weights.columns(f"{layer}.weight"))
        return int8.linear(graph, f"{layer}.weight", inputs, output)
    return graph.node("MatMul", [hidden, graph.transposed(f"{layer}.weight")], output)


def _down(graph: GraphWriter, layer: str, active: str, activation: str, output: str) -> tuple[str, str]:
    """The linear layer behind an activation, without its bias; and the name of the bias to add."""
    if graph.precision is not Precision.INT8:
        return _matmul(graph, layer, active, output), graph.weight(f"{layer}.bias")
    inputs = int8.quantise(graph, active, graph.weights.columns(f"{layer}.weight"), _FLOORS[activation])
    return int8.linear(graph, f"{layer}.weight", inputs, output), int8.bias_above(graph, layer, inputs)


def _add_and_normalise(
    graph: GraphWriter, branch: str, residual: str, norm: str, bias: str, epsilon: float, output: str
) -> str:
    inputs = [branch, residual, graph.weight(f"{norm}.weight"), graph.weight(f"{norm}.bias"), bias]
    return graph.fused("SkipLayerNormalization", inputs, output, epsilon=epsilon)


def _model(graph: GraphWriter, width: int, feature_size: int) -> onnx.ModelProto:
    float32, int64 = TensorProto.FLOAT, TensorProto.INT64
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "encoder",
            [
                helper.make_tensor_value_info("inputs_embeds", float32, ["batch", "tokens", width]),
                helper.make_tensor_value_info("attention_mask", int64, ["batch", "tokens"]),
            ],
            [helper.make_tensor_value_info("features", float32, ["batch", feature_size])],
            list(graph.initializers.values()),
        ),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(FUSED_DOMAIN, 1)],
        producer_name="amnestic",
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model)
    return model
