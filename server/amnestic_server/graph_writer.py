"""Nodes and initialisers of an ONNX graph as they are written, and the weights that they are written from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from amnestic_unlearn.architecture import CheckpointError
from amnestic_unlearn.manifest import Precision

FUSED_DOMAIN = "com.microsoft"

Array = NDArray[np.generic]
Floats = NDArray[np.float32]

# numpy has no bfloat16, so both are made by torch.
_SIXTEEN_BITS = {
    Precision.FP16: (torch.float16, TensorProto.FLOAT16),
    Precision.BF16: (torch.bfloat16, TensorProto.BFLOAT16),
}


@dataclass(frozen=True, slots=True)
class Weights:
    """A state dict read as float32 numpy arrays, with a clear error for a key that is not there."""

    state_dict: Mapping[str, torch.Tensor]

    def __contains__(self, key: str) -> bool:
        return key in self.state_dict

    def array(self, key: str) -> Floats:
        if key not in self.state_dict:
            raise CheckpointError(f"the checkpoint lacks the weight {key}")
        values: Floats = self.state_dict[key].detach().cpu().float().numpy()
        return values

    def rows(self, key: str) -> int:
        return int(self.array(key).shape[0])

    def columns(self, key: str) -> int:
        return int(self.array(key).shape[1])


@dataclass(slots=True)
class GraphWriter:
    """What is written of a graph so far. Floats are stored in 16 bits where the precision says so, else in 32."""

    weights: Weights
    precision: Precision = Precision.FP32
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, onnx.TensorProto] = field(default_factory=dict)

    @property
    def float_type(self) -> int:
        """The ONNX element type of activations."""
        return int(_SIXTEEN_BITS[self.precision][1] if self.precision in _SIXTEEN_BITS else TensorProto.FLOAT)

    def node(self, operator: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def fused(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        return self.node(operator, inputs, output, FUSED_DOMAIN, **attributes)

    def cast(self, values: str, element_type: int, output: str) -> str:
        """Nothing is written where float32 is asked for in a graph of float32."""
        if element_type == TensorProto.FLOAT == self.float_type:
            return values
        return self.node("Cast", [values], output, to=element_type)

    def array(self, name: str, values: Array) -> str:
        if name not in self.initializers:
            self.initializers[name] = self._tensor(name, values)
        return name

    def constant(self, name: str, values: list[int]) -> str:
        return self.array(name, np.array(values, dtype=np.int64))

    def weight(self, key: str) -> str:
        return self.array(key, self.weights.array(key))

    def transposed(self, key: str) -> str:
        """A linear layer's weight as MatMul wants it; torch keeps it [out, in]."""
        return self.array(f"{key}.T", self.weights.array(key).T)

    def _tensor(self, name: str, values: Array) -> onnx.TensorProto:
        if values.dtype != np.float32 or self.precision not in _SIXTEEN_BITS:
            return numpy_helper.from_array(np.asarray(values, order="C"), name)
        in_torch, in_onnx = _SIXTEEN_BITS[self.precision]
        rounded = torch.from_numpy(np.array(values, order="C")).to(in_torch)
        raw = rounded.view(torch.int16).numpy().tobytes()
        return helper.make_tensor(name, in_onnx, values.shape, raw, raw=True)
