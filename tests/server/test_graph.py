"""The encoder's graph against the Hugging Face model that it was written from, under padding and odd sizes."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from toys import toy_model

from amnestic_server.devices import sums_int8_exactly
from amnestic_server.graph import build_encoder, count_fused
from amnestic_unlearn.architecture import ACTIVATIONS, ARCHITECTURES, CheckpointError, architecture_of, positions
from amnestic_unlearn.manifest import Precision

VOCAB = 50
needs_exact_sums = pytest.mark.skipif(not sums_int8_exactly(), reason="this processor does not sum int8 exactly")
BERT_SIZES = {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 50}
DISTILBERT_SIZES = {"dim": 36, "n_heads": 3, "hidden_dim": 50}
MODELS = [
    pytest.param("bert", {**BERT_SIZES, "num_hidden_layers": 3, "layer_norm_eps": 1e-3}, id="bert"),
    pytest.param("bert", {**BERT_SIZES, "num_hidden_layers": 1}, id="bert of one layer"),
    pytest.param("bert", {"num_attention_heads": 1, "type_vocab_size": 1}, id="bert of one head and one type"),
    pytest.param("distilbert", {**DISTILBERT_SIZES, "n_layers": 3}, id="distilbert"),
    pytest.param("distilbert", {"n_layers": 1, "sinusoidal_pos_embds": True}, id="distilbert of sinusoids"),
    pytest.param("roberta", {**BERT_SIZES, "num_hidden_layers": 3, "layer_norm_eps": 1e-5}, id="roberta"),
    pytest.param("roberta", {"pad_token_id": 4, "type_vocab_size": 1}, id="roberta that pads with 4"),
    pytest.param("xlm-roberta", {"type_vocab_size": 1}, id="xlm-roberta"),
    pytest.param("camembert", {**BERT_SIZES, "num_hidden_layers": 3, "type_vocab_size": 1}, id="camembert"),
    pytest.param("electra", {**BERT_SIZES, "embedding_size": 20, "num_hidden_layers": 3}, id="electra"),
    pytest.param("electra", {"embedding_size": 32, "hidden_act": "relu"}, id="electra without a projection"),
    *(
        pytest.param(architecture, {setting: name}, id=f"{architecture} with {name}")
        for architecture, setting in (("bert", "hidden_act"), ("distilbert", "activation"))
        for name in ACTIVATIONS
        if name != "gelu"
    ),
]


def model_of(architecture: str, settings: dict[str, Any]) -> Any:
    """Weights large enough that a wrong epsilon, position or mask shows; biases and layer norms not at their start."""
    torch.manual_seed(1)
    model = toy_model(architecture, VOCAB, **settings)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def build(model: Any, precision: Precision = Precision.FP32) -> onnx.ModelProto:
    return build_encoder(architecture_of(model.config.model_type), model.config, model.state_dict(), precision)


def session_of(graph: onnx.ModelProto, options: ort.SessionOptions | None = None) -> ort.InferenceSession:
    return ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def logits_of(session: ort.InferenceSession, model: Any, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """Table, graph and head, put together as serving does."""
    head = model.get_submodule(architecture_of(model.config.model_type).head)
    embeds = model.get_input_embeddings().weight[ids].detach().numpy()
    (features,) = session.run(None, {"inputs_embeds": embeds, "attention_mask": mask.numpy()})
    return features @ head.weight.detach().numpy().T + head.bias.detach().numpy()


def batch_of(lengths: list[int], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    # From behind every padding id used here: RoBERTa would take such a token for padding.
    ids = torch.randint(6, VOCAB, mask.shape, generator=torch.Generator().manual_seed(2))
    return torch.where(mask.bool(), ids, pad), mask


@pytest.mark.parametrize(("architecture", "settings"), MODELS)
def test_the_graph_computes_what_the_model_does(architecture: str, settings: dict[str, Any]) -> None:
    model = model_of(architecture, settings)
    session = session_of(build(model))
    capacity = positions(architecture_of(model.config.model_type), model.config)
    for lengths in ([1], [7], [9, 2, 5, 1], [capacity, 1], [capacity] * 3):
        ids, mask = batch_of(lengths, model.config.pad_token_id)
        with torch.inference_mode():
            expected = model(input_ids=ids, attention_mask=mask).logits.numpy()
        np.testing.assert_allclose(logits_of(session, model, ids, mask), expected, atol=2e-5)


@needs_exact_sums
@pytest.mark.parametrize(("architecture", "settings"), MODELS)
def test_int8_computes_it_within_its_steps(architecture: str, settings: dict[str, Any]) -> None:
    model = model_of(architecture, settings)
    session, full = session_of(build(model, Precision.INT8)), session_of(build(model))
    for lengths in ([1], [9, 2, 5, 1], [40] * 3):
        ids, mask = batch_of(lengths, model.config.pad_token_id)
        found, wanted = (logits_of(one, model, ids, mask) for one in (session, full))
        assert 0 < np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


@needs_exact_sums
def test_in_int8_nobody_who_shares_a_batch_matters() -> None:
    model = model_of("bert", {"hidden_act": "gelu_new"})
    session = session_of(build(model, Precision.INT8))
    ids, mask = batch_of([3, 40, 17, 64], model.config.pad_token_id)
    together = logits_of(session, model, ids, mask)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        alone = logits_of(session, model, ids[row : row + 1, :length], mask[row : row + 1, :length])
        np.testing.assert_allclose(alone[0], together[row], atol=1e-5)


@needs_exact_sums
def test_in_int8_a_token_of_zeros_is_answered() -> None:
    model = model_of("electra", {"hidden_act": "relu"})
    for name, parameter in model.named_parameters():
        if "intermediate" in name:
            torch.nn.init.constant_(parameter, -1.0 if name.endswith("bias") else 0.0)
    ids, mask = batch_of([5], model.config.pad_token_id)
    found = logits_of(session_of(build(model, Precision.INT8)), model, ids, mask)
    np.testing.assert_allclose(found, logits_of(session_of(build(model)), model, ids, mask), rtol=0.05, atol=0.05)


def test_in_int8_every_product_of_every_layer_is_in_bytes_with_a_scale_a_column(tmp_path: Any) -> None:
    model = model_of("electra", {})
    graph = build(model, Precision.INT8)
    # Three of attention, its output, up and down in either layer, and the projection of the embeddings.
    expected = {"MultiHeadAttention": 2, "MatMulIntegerToFloat": 13, "SkipLayerNormalization": 5, "BiasGelu": 2}
    assert count_fused(graph) == expected
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    session_of(graph, options)
    loaded = onnx.load(tmp_path / "optimised.onnx")
    assert count_fused(loaded) == expected
    assert "MatMul" not in {node.op_type for node in loaded.graph.node}
    weights = {item.name: item for item in graph.graph.initializer}
    for name in (name for name in weights if name.endswith(".int8")):
        values, scales = (numpy_helper.to_array(weights[key]) for key in (name, f"{name[:-5]}.scales"))
        assert values.dtype == np.int8 and scales.shape == values.shape[1:]
        assert (np.abs(values).max(axis=0) == 127).all()
        original = model.state_dict()[name.removesuffix(".int8")].numpy()
        np.testing.assert_allclose((values * scales).T, original, atol=scales.max() / 2 * 1.001)


@pytest.mark.parametrize(("architecture", "settings"), MODELS[::4])
def test_fp16_has_the_rounded_weights(architecture: str, settings: dict[str, Any]) -> None:
    model = model_of(architecture, settings)
    graph = build(model, Precision.FP16)
    ids, mask = batch_of([9, 2, 5, 1], model.config.pad_token_id)
    found, wanted = (logits_of(session_of(one), model, ids, mask) for one in (graph, build(model)))
    assert 0 < np.abs(found - wanted).max() < 0.01 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("precision", "stored"),
    [(Precision.FP16, onnx.TensorProto.FLOAT16), (Precision.BF16, onnx.TensorProto.BFLOAT16)],
)
def test_in_16_bits_every_weight_is_and_the_signature_stays(precision: Precision, stored: int) -> None:
    model = model_of("bert", {})
    graph = build(model, precision)
    kinds = {item.data_type for item in graph.graph.initializer}
    assert kinds == {stored, onnx.TensorProto.INT64}
    weight = next(item for item in graph.graph.initializer if item.name.endswith("pooler.dense.weight.T"))
    in_torch = torch.float16 if precision is Precision.FP16 else torch.bfloat16
    rounded = model.bert.pooler.dense.weight.detach().T.to(in_torch).contiguous()
    assert weight.raw_data == rounded.view(torch.int16).numpy().tobytes()
    onnx.checker.check_model(graph, full_check=True)
    ends = [*graph.graph.input, *graph.graph.output]
    float32, int64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    assert [value.type.tensor_type.elem_type for value in ends] == [float32, int64, float32]


def test_padding_changes_nothing() -> None:
    model = model_of("bert", {})
    session = session_of(build(model))
    ids, mask = batch_of([6, 30], 0)
    padded = logits_of(session, model, ids, mask)[0]
    alone = logits_of(session, model, ids[:1, :6], mask[:1, :6])[0]
    other_padding = logits_of(session, model, torch.where(mask.bool(), ids, 17), mask)[0]
    np.testing.assert_allclose(padded, alone, atol=1e-5)
    np.testing.assert_array_equal(padded, other_padding)


def test_more_tokens_than_positions_fail() -> None:
    model = model_of("bert", {"max_position_embeddings": 8})
    ids, mask = batch_of([9], 0)
    with pytest.raises(Exception, match="SkipLayerNorm"):
        logits_of(session_of(build(model)), model, ids, mask)


@pytest.mark.parametrize(
    ("architecture", "settings", "gelu"),
    [*((name, {}, {"BiasGelu": 2}) for name in ARCHITECTURES), ("bert", {"hidden_act": "gelu_new"}, {"FastGelu": 2})],
)
def test_every_layer_is_fused_as_written_and_as_loaded(
    architecture: str, settings: dict[str, Any], gelu: dict[str, int], tmp_path: Any
) -> None:
    graph = build(model_of(architecture, settings))
    expected = {"Attention": 2, "SkipLayerNormalization": 5, **gelu}
    assert count_fused(graph) == expected
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    session_of(graph, options)
    assert count_fused(onnx.load(tmp_path / "optimised.onnx")) == expected


def test_the_signature_is_that_of_the_manifest() -> None:
    session = session_of(build(model_of("bert", {})))
    inputs = {value.name: (value.type, value.shape) for value in session.get_inputs()}
    assert inputs == {
        "inputs_embeds": ("tensor(float)", ["batch", "tokens", 32]),
        "attention_mask": ("tensor(int64)", ["batch", "tokens"]),
    }
    (features,) = session.get_outputs()
    assert (features.name, features.type, features.shape) == ("features", "tensor(float)", ["batch", 32])


def test_neither_word_embeddings_nor_head_are_in_the_graph() -> None:
    model = model_of("bert", {})
    shapes = {tuple(tensor.dims) for tensor in build(model).graph.initializer}
    assert (VOCAB, 32) not in shapes
    assert not {(4, 32), (32, 4)} & shapes


def test_the_same_weights_give_the_same_file() -> None:
    assert build(model_of("roberta", {})).SerializeToString() == build(model_of("roberta", {})).SerializeToString()


@pytest.mark.parametrize(
    ("architecture", "settings", "message"),
    [
        ("bert", {"hidden_act": "silu"}, "activation silu is not supported; supported: gelu, "),
        ("roberta", {"hidden_act": "quick_gelu"}, "activation quick_gelu is not supported"),
        ("distilbert", {"activation": "silu"}, "activation silu is not supported"),
        ("roberta", {"pad_token_id": None}, "no pad_token_id, from which positions are counted"),
        ("bert", {"is_decoder": True}, "is_decoder is set"),
        ("bert", {"position_embedding_type": "relative_key"}, "position embeddings of type relative_key"),
    ],
)
def test_what_the_graph_cannot_reproduce_is_refused(architecture: str, settings: dict[str, Any], message: str) -> None:
    model = toy_model(architecture, VOCAB)
    for name, value in settings.items():
        setattr(model.config, name, value)
    with pytest.raises(CheckpointError, match=message):
        build(model)


def test_an_activation_that_is_a_function_is_refused() -> None:
    model = toy_model("bert", VOCAB)
    object.__setattr__(model.config, "hidden_act", torch.nn.functional.silu)
    with pytest.raises(CheckpointError, match="activation a custom function"):
        build(model)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deberta-v2", "(attention reads relative positions in every layer)"),
        ("modernbert", "(positions are rotations in every layer, and the layer norms stand before it)"),
        ("gpt2", ""),
    ],
)
def test_another_architecture_is_refused_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        architecture_of(name)
    assert str(refused.value) == (
        f"architecture {name} is not supported{message and ' ' + message}; supported: bert, distilbert, roberta,"
        " xlm-roberta, camembert, electra"
    )


def test_a_missing_weight_is_named() -> None:
    model = toy_model("bert", VOCAB)
    state = model.state_dict()
    del state["bert.encoder.layer.1.output.dense.bias"]
    with pytest.raises(CheckpointError, match=r"lacks the weight bert\.encoder\.layer\.1\.output\.dense\.bias"):
        build_encoder(architecture_of(model.config.model_type), model.config, state)
