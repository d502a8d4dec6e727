"""Linear layers and attention in 8 bits, as operators of ONNX Runtime.

Weights are signed, with a scale for each output column. Inputs are measured as they come, with a scale for each token:
dynamic quantisation as ONNX Runtime's own tools write it takes one for the whole batch, so that what a document is
answered would depend on the documents that share its batch. Sums are exact in 32 bits on processors with VNNI and on
Arm; softmax, layer norms, GELU and what stands behind a product are float32.
"""

from dataclasses import dataclass

import numpy as np

from amnestic_server.graph_writer import Floats, GraphWriter

# Steps to either side of zero.
STEPS = 127
# The byte that stands for zero: the kernels that are fast take unsigned inputs.
ZERO = 128


@dataclass(frozen=True, slots=True)
class Quantised:
    """Names of an activation's bytes uint8 [.., width], of which `ZERO` is 0, and of their scales float32 [.., 1]."""

    values: str
    scales: str


def quantise(graph: GraphWriter, hidden: str, width: int) -> Quantised:
    """Each token's own values in 255 steps, from minus to plus its largest; `hidden` is float32 [.., width]."""
    largest = graph.node(
        "ReduceMax", [graph.node("Abs", [hidden], f"{hidden}_abs")], f"{hidden}_largest", axes=[-1], keepdims=1
    )
    # A token of zeros alone has no scale of its own.
    bounded = graph.node("Max", [largest, graph.array("least", np.array(1e-12, dtype=np.float32))], f"{hidden}_bounded")
    step = graph.array("step", np.array(1 / STEPS, dtype=np.float32))
    scales = graph.node("Mul", [bounded, step], f"{hidden}_scales")
    # The operator takes scales along one axis only, so tokens are laid out along it.
    along = graph.node("Reshape", [scales, graph.constant("flat", [-1])], f"{hidden}_scales_flat")
    zeros = graph.node(
        "Expand", [graph.array("zero", np.array(ZERO, dtype=np.uint8)), _shape(graph, along)], f"{hidden}_zeros"
    )
    tokens = graph.node("Reshape", [hidden, graph.constant(f"flat_{width}", [-1, width])], f"{hidden}_tokens")
    values = graph.node("QuantizeLinear", [tokens, along, zeros], f"{hidden}_bytes_flat", axis=0)
    return Quantised(graph.node("Reshape", [values, _shape(graph, hidden)], f"{hidden}_bytes"), scales)


def linear(graph: GraphWriter, name: str, weight: Floats, inputs: Quantised, output: str) -> str:
    """The product with `weight` [in, out], called `name`, without a bias: float32 [.., out]."""
    scales = np.maximum(np.abs(weight).max(axis=0), np.float32(1e-12)) / np.float32(STEPS)
    product = [
        inputs.values,
        graph.array(f"{name}.int8", np.rint(weight / scales).astype(np.int8)),
        # Each token's own comes behind the product.
        graph.array("one", np.array(1, dtype=np.float32)),
        graph.array(f"{name}.scales", scales),
        graph.array("zero", np.array(ZERO, dtype=np.uint8)),
    ]
    return graph.node("Mul", [graph.fused("MatMulIntegerToFloat", product, f"{output}_unscaled"), inputs.scales], output)


def attention(graph: GraphWriter, names: list[str], bias: str, hidden: str, heads: int, output: str) -> str:
    """Self-attention over float32 [batch, tokens, width]; `names` are those of the weights of query, key and value."""
    weights = [graph.weights.array(name).T for name in names]
    inputs = quantise(graph, hidden, weights[0].shape[0])
    parts = [
        linear(graph, name, weight, inputs, f"{output}_{part}")
        for part, name, weight in zip(("query", "key", "value"), names, weights, strict=True)
    ]
    return graph.fused("MultiHeadAttention", [*parts, bias, "lengths"], output, num_heads=heads)


def _shape(graph: GraphWriter, values: str) -> str:
    return graph.node("Shape", [values], f"{values}_shape")
