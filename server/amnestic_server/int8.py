"""Linear layers and attention in 8 bits, as operators of ONNX Runtime.

Weights are signed, with a scale for each output column. Inputs are measured as they come, with a scale for each token:
dynamic quantisation as ONNX Runtime's own tools write it takes one for the whole batch, so that what a document is
answered would depend on the documents that share its batch. Sums are exact in 32 bits on processors with VNNI and on
Arm; softmax, layer norms, GELU and what stands behind a product are float32.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amnestic_server.graph_writer import Floats, GraphWriter

# The kernels that are fast take signed weights, and unsigned inputs: of those the byte in the middle stands for zero.
WEIGHT_STEPS = 127
MIDDLE = 128
# The smallest scale: a token, or a column, of zeros alone has none of its own.
LEAST = np.float32(1e-12)


@dataclass(frozen=True, slots=True)
class Quantised:
    """Names of an activation's bytes, uint8 [.., width], and of their scales, float32 [.., 1].

    A byte stands for (byte - zero) * scale + floor.
    """

    values: str
    scales: str
    zero: int
    floor: float


def quantise(graph: GraphWriter, hidden: str, width: int, floor: float | None = None) -> Quantised:
    """Each token's own values of `hidden`, float32 [.., width], in 255 steps.

    They lie about zero, from minus to plus the token's largest, or, if none is ever below `floor`, from there up to the
    token's largest. That of an activation is known, and halves the steps.
    """
    if floor is None:
        zero, steps, shifted = MIDDLE, MIDDLE - 1, hidden
        sizes = graph.node("Abs", [hidden], f"{hidden}_sizes")
    else:
        zero, steps = 0, 255
        shifted = sizes = graph.node("Sub", [hidden, _number(graph, floor)], f"{hidden}_above_floor")
    largest = graph.node("ReduceMax", [sizes], f"{hidden}_largest", axes=[-1], keepdims=1)
    bounded = graph.node("Max", [largest, _number(graph, LEAST)], f"{hidden}_bounded")
    scales = graph.node("Mul", [bounded, _number(graph, 1 / steps)], f"{hidden}_scales")
    # The operator takes scales along one axis alone, so tokens are laid out along one.
    along = graph.node("Reshape", [scales, graph.constant("flat", [-1])], f"{hidden}_scales_flat")
    zeros = graph.node("Expand", [_byte(graph, zero), _shape(graph, along)], f"{hidden}_zeros")
    tokens = graph.node("Reshape", [shifted, graph.constant(f"flat_{width}", [-1, width])], f"{hidden}_tokens")
    values = graph.node("QuantizeLinear", [tokens, along, zeros], f"{hidden}_bytes_flat", axis=0)
    values = graph.node("Reshape", [values, _shape(graph, hidden)], f"{hidden}_bytes")
    return Quantised(values, scales, zero, floor or 0.0)


def linear(graph: GraphWriter, name: str, inputs: Quantised, output: str) -> str:
    """The product with torch's weight [out, in] called `name`, without a bias: float32 [.., out].

    What the floor of the inputs adds to it, the same for every token, is left to `bias_above`.
    """
    values, scales = _rounded(graph.weights.array(name))
    product = [
        inputs.values,
        graph.array(f"{name}.int8", values.T),
        # Each token's own comes behind the product.
        _number(graph, 1),
        graph.array(f"{name}.scales", scales),
        _byte(graph, inputs.zero),
    ]
    unscaled = graph.fused("MatMulIntegerToFloat", product, f"{output}_unscaled")
    return graph.node("Mul", [unscaled, inputs.scales], output)


def bias_above(graph: GraphWriter, layer: str, inputs: Quantised) -> str:
    """The bias of a linear layer, with what the floor of its inputs adds: floor * sum of W."""
    values, scales = _rounded(graph.weights.array(f"{layer}.weight"))
    added = np.float32(inputs.floor) * values.sum(axis=1, dtype=np.int64) * scales
    return graph.array(f"{layer}.bias.above", (graph.weights.array(f"{layer}.bias") + added).astype(np.float32))


def attention(graph: GraphWriter, names: list[str], bias: str, hidden: str, heads: int, output: str) -> str:
    """Self-attention over float32 [batch, tokens, width]; `names` are those of the weights of query, key and value."""
    inputs = quantise(graph, hidden, graph.weights.columns(names[0]))
    parts = [
        linear(graph, name, inputs, f"{output}_{part}")
        for part, name in zip(("query", "key", "value"), names, strict=True)
    ]
    return graph.fused("MultiHeadAttention", [*parts, bias, "lengths"], output, num_heads=heads)


def _rounded(weight: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Bytes int8 [out, in] and scales float32 [out] of a weight."""
    scales = np.maximum(np.abs(weight).max(axis=1), LEAST) / np.float32(WEIGHT_STEPS)
    return np.rint(weight / scales[:, None]).astype(np.int8), scales


def _number(graph: GraphWriter, value: float | np.float32) -> str:
    return graph.array(f"number_{value:.9g}", np.array(value, dtype=np.float32))


def _byte(graph: GraphWriter, value: int) -> str:
    return graph.array(f"byte_{value}", np.array(value, dtype=np.uint8))


def _shape(graph: GraphWriter, values: str) -> str:
    return graph.node("Shape", [values], f"{values}_shape")
