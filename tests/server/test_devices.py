"""Which device serves which precision, and what is refused."""

import platform

import pytest
import torch

from amnestic_server import devices
from amnestic_server.devices import cuda_missing, select_device, sums_int8_exactly
from amnestic_server.errors import StartError
from amnestic_unlearn.manifest import Precision

CPU = torch.device("cpu")
needs_no_cuda = pytest.mark.skipif(not cuda_missing(), reason="there is CUDA here")
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="another kind of processor")


@needs_no_cuda
def test_cuda_asked_for_and_absent_is_a_refusal():
    assert select_device("auto") == select_device("cpu") == CPU
    with pytest.raises(StartError, match="--device cuda was asked for, but no CUDA device: install amnestic"):
        select_device("cuda")


@needs_no_cuda
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_a_bundle_for_cuda_is_not_served_without(precision):
    with pytest.raises(StartError, match=f"the bundle is {precision}, which is for cuda alone: use --device cuda"):
        select_device("cpu", precision)
    for device in ("auto", "cuda"):
        with pytest.raises(StartError, match=f"the bundle is {precision}, which is for CUDA, but no CUDA device"):
            select_device(device, precision)


def test_int8_is_for_the_cpu_wherever_cuda_is(monkeypatch):
    monkeypatch.setattr(devices, "cuda_missing", lambda: "")
    monkeypatch.setattr(devices, "sums_int8_exactly", lambda: True)
    assert select_device("auto", Precision.INT8) == select_device("cpu", Precision.INT8) == CPU
    assert select_device("auto", Precision.FP16) == select_device("auto") == torch.device("cuda")
    with pytest.raises(
        StartError, match="the bundle is int8, which is for cpu alone: use --device cpu, or export it in fp32"
    ):
        select_device("cuda", Precision.INT8)


@needs_x86
@pytest.mark.parametrize(
    ("flags", "exact"),
    [
        ("fpu avx2 avx512f avx512bw", False),
        ("fpu avx2 avx512f avx512_vnni", True),
        ("fpu avx2 avx_vnni", True),
        ("fpu avx512_vnni_of_another_name", False),
    ],
)
def test_without_vnni_int8_is_refused(tmp_path, monkeypatch, flags, exact):
    told = tmp_path / "cpuinfo"
    told.write_text(f"model name\t: a processor\nflags\t\t: {flags}\n")
    monkeypatch.setattr(devices, "CPU_INFO", told)
    assert sums_int8_exactly() is exact
    if not exact:
        with pytest.raises(StartError, match="no VNNI"):
            select_device("auto", Precision.INT8)


@needs_x86
def test_a_system_that_does_not_tell_counts_as_one_without(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "CPU_INFO", tmp_path / "absent")
    assert not sums_int8_exactly()
