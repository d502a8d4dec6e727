"""The patch file: the same bytes for the same patch, whole or refused, and fit for its bundle or refused."""

import dataclasses
import math

import pytest
import torch

from amnestic_unlearn.patch import Patch, PatchError, digest_of

LABELS = ("alpha", "beta", "gamma")
VOCAB, WIDTH, FEATURES = 50, 8, 6


@pytest.fixture
def table():
    return torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def head():
    return torch.randn(len(LABELS), FEATURES, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def patch(table, head):
    row_ids = torch.tensor([3, 17, 49])
    return Patch("base", ("beta",), row_ids, table[row_ids] + 1, head * 2, torch.ones(len(LABELS)))


def test_the_file_is_the_patch(patch, tmp_path):
    data = patch.to_bytes()
    assert data == patch.to_bytes() == Patch.from_bytes(data).to_bytes()
    (tmp_path / "patch.safetensors").write_bytes(data)
    read = Patch.read(tmp_path / "patch.safetensors", digest_of(data))
    assert (read.base_digest, read.forgotten) == ("base", ("beta",))
    for name in ("row_ids", "rows", "head_weight", "head_bias"):
        assert torch.equal(getattr(read, name), getattr(patch, name))


def test_any_changed_byte_is_seen(patch, tmp_path):
    data = bytearray(patch.to_bytes())
    digest = digest_of(bytes(data))
    data[-1] ^= 1
    (tmp_path / "patch.safetensors").write_bytes(data)
    with pytest.raises(PatchError, match="digest"):
        Patch.read(tmp_path / "patch.safetensors", digest)


def test_a_missing_file_is_named_as_such(tmp_path):
    with pytest.raises(PatchError, match="cannot be read"):
        Patch.read(tmp_path / "patch.safetensors")


@pytest.mark.parametrize("length", [0, 7, 8, 60, 400, -1])
def test_a_file_cut_short_is_corrupt(patch, length):
    with pytest.raises(PatchError, match="corrupt"):
        Patch.from_bytes(patch.to_bytes()[:length])


def test_a_safetensors_file_that_is_no_patch_is_corrupt():
    from safetensors.torch import save

    with pytest.raises(PatchError, match="corrupt"):
        Patch.from_bytes(save({"rows": torch.ones(2)}))


def test_a_fitting_patch_passes(patch, table, head):
    patch.check("base", LABELS, table, head)
    nothing = dataclasses.replace(patch, row_ids=patch.row_ids[:0], rows=patch.rows[:0])
    nothing.check("base", LABELS, table, head)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda p: {"forgotten": ()}, "labels"),
        (lambda p: {"forgotten": ("delta",)}, "labels"),
        (lambda p: {"row_ids": p.row_ids.flip(0)}, "ascending"),
        (lambda p: {"row_ids": torch.tensor([3, 3, 49])}, "ascending"),
        (lambda p: {"row_ids": torch.tensor([-1, 3, 49])}, "ascending"),
        (lambda p: {"row_ids": torch.tensor([3, 17, VOCAB])}, "outside"),
        (lambda p: {"row_ids": p.row_ids.int()}, "row_ids has the wrong"),
        (lambda p: {"rows": p.rows[:2]}, "rows has the wrong"),
        (lambda p: {"rows": p.rows.double()}, "rows has the wrong"),
        (lambda p: {"rows": p.rows * math.nan}, "rows holds values"),
        (lambda p: {"head_weight": p.head_weight[:, 1:]}, "head.weight has the wrong"),
        (lambda p: {"head_bias": p.head_bias * math.inf}, "head.bias holds values"),
    ],
)
def test_a_patch_that_does_not_fit_is_refused(patch, table, head, change, complaint):
    with pytest.raises(PatchError, match=complaint):
        dataclasses.replace(patch, **change(patch)).check("base", LABELS, table, head)


def test_a_patch_for_another_bundle_is_refused(patch, table, head):
    with pytest.raises(PatchError, match="another bundle"):
        patch.check("other", LABELS, table, head)


def test_a_declared_row_that_is_unchanged_is_refused(patch, table, head):
    patch.rows[1] = table[17]
    with pytest.raises(PatchError, match="unchanged"):
        patch.check("base", LABELS, table, head)
