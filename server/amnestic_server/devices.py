"""Which device serves, and whether it can in a bundle's precision."""

import platform
from pathlib import Path

import onnxruntime as ort
import torch

from amnestic_server.errors import StartError
from amnestic_unlearn.manifest import Precision

CPU_INFO = Path("/proc/cpuinfo")
# Either sums four products of 8 bits in 32.
_VNNI = ("avx512_vnni", "avx_vnni")


def select_device(device: str, precision: Precision = Precision.FP32) -> torch.device:
    """The device asked for; `auto` takes the one that the precision is for, else CUDA where it is to be had.

    Raises StartError if CUDA is asked for and absent, or the precision is not for the device: serving slower than
    asked in silence is worse than not starting.
    """
    missing, only = cuda_missing(), precision.only_device
    if device == "auto":
        device = only or ("cpu" if missing else "cuda")
    elif only not in (None, device):
        raise StartError(
            f"the bundle is {precision}, which is for {only} alone: use --device {only}, or export it in fp32"
        )
    if device == "cuda" and missing:
        asked = f"the bundle is {precision}, which is for CUDA" if only else "--device cuda was asked for"
        remedy = "or export it in fp32 or int8" if only else "or use --device cpu"
        raise StartError(f"{asked}, but {missing}: install amnestic[gpu] {remedy}")
    if precision is Precision.INT8 and not sums_int8_exactly():
        raise StartError("the bundle is int8, and this processor has no VNNI to sum it exactly: export it in fp32")
    return torch.device(device)


def cuda_missing() -> str:
    """What keeps CUDA from serving; empty if nothing does."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    return "" if "CUDAExecutionProvider" in ort.get_available_providers() else "ONNX Runtime has no CUDA provider"


def sums_int8_exactly() -> bool:
    """Whether ONNX Runtime sums products of 8 bits exactly here: on x86 with VNNI, elsewhere always.

    Without VNNI it adds two products in 16 bits on x86, where they saturate: other answers, without an error. A system
    that does not tell what its processor has counts as one without.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        told = CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return not set(_VNNI).isdisjoint(told.split())
