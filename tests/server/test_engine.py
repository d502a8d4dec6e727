"""The engine beside Hugging Face's own classes: padding, mixed versions, and which rows a version changes."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from amnestic_server import bundle as bundles
from amnestic_server.devices import cuda_missing
from amnestic_server.engine import Engine
from amnestic_server.export import export
from amnestic_server.parity import Limits
from amnestic_server.snapshot import Snapshot, base_snapshot, patched_snapshot
from amnestic_unlearn.manifest import Precision
from amnestic_unlearn.patch import Patch

CPU = torch.device("cpu")
EXACT = {"rtol": 0, "atol": 1e-5}


@dataclass(frozen=True, slots=True)
class Row:
    ids: Any
    snapshot: Snapshot


@pytest.fixture(scope="module")
def loaded(bundle):
    return bundles.load(bundle)


@pytest.fixture(scope="module")
def engine(loaded):
    return Engine(loaded)


@pytest.fixture(scope="module")
def patches(loaded):
    """Patches of different rows, some shared, and different heads."""

    def make(seed: int) -> Patch:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randperm(len(loaded.table), generator=generator)[:60].sort().values
        rows = loaded.table[ids] + torch.randn(60, loaded.table.shape[1], generator=generator)
        head = loaded.head_weight + 0.3 * torch.randn(loaded.head_weight.shape, generator=generator)
        return Patch(loaded.digest, ("alpha",), ids, rows, head, loaded.head_bias + seed)

    return [make(seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def snapshots(loaded, patches):
    patched = [patched_snapshot(loaded, patch, 2 + index, CPU) for index, patch in enumerate(patches)]
    return [base_snapshot(loaded, CPU), *patched]


@pytest.fixture(scope="module")
def documents(loaded):
    """Token ids of many lengths, from two tokens to the most there may be; every token occurs somewhere."""
    draw = np.random.default_rng(0)
    lengths = [2, 3, 5, 8, 8, 13, 21, 34, 55, loaded.manifest.max_tokens]
    return [draw.integers(5, loaded.manifest.vocab_size, length).astype(np.int64) for length in lengths]


@pytest.fixture(scope="module")
def expected(checkpoint, patches, documents):
    """Logits [version, document, label] by Hugging Face's classes, each document by itself."""
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def logits(patch: Patch | None) -> Any:
        weights = {name: tensor.clone() for name, tensor in original.items()}
        if patch is not None:
            weights["bert.embeddings.word_embeddings.weight"][patch.row_ids] = patch.rows
            weights |= {"classifier.weight": patch.head_weight, "classifier.bias": patch.head_bias}
        model.load_state_dict(weights)
        with torch.no_grad():
            return np.concatenate([model(torch.from_numpy(ids)[None]).logits.numpy() for ids in documents])

    return np.stack([logits(patch) for patch in (None, *patches)])


def run(engine, rows):
    return engine.run(engine.prepare(rows))


def test_each_version_alone_is_what_torch_says(engine, snapshots, documents, expected):
    for snapshot, wanted in zip(snapshots, expected, strict=True):
        for ids, logits in zip(documents, wanted, strict=True):
            np.testing.assert_allclose(run(engine, [Row(ids, snapshot)]).logits[0], logits, **EXACT)


def test_versions_do_differ(expected):
    assert all(np.abs(expected[one] - expected[other]).max() > 0.1 for one in range(4) for other in range(one + 1, 4))


def test_padding_does_not_matter(engine, snapshots, documents, expected):
    for snapshot, wanted in zip(snapshots, expected, strict=True):
        output = run(engine, [Row(ids, snapshot) for ids in documents])
        np.testing.assert_allclose(output.logits, wanted, **EXACT)


@pytest.mark.parametrize("seed", range(8))
def test_a_batch_of_mixed_versions_equals_each_by_itself(engine, snapshots, documents, expected, seed):
    draw = np.random.default_rng(seed)
    chosen = [(draw.integers(len(snapshots)), draw.integers(len(documents))) for _ in range(draw.integers(2, 24))]
    output = run(engine, [Row(documents[document], snapshots[version]) for version, document in chosen])
    np.testing.assert_allclose(output.logits, [expected[version, document] for version, document in chosen], **EXACT)


def test_features_depend_on_the_rows_and_not_on_the_head(engine, loaded, snapshots, documents):
    base = snapshots[0]
    other_head = replace(base, version=9, head_bias=base.head_bias + 5)
    alone = run(engine, [Row(documents[4], base)])
    mixed = run(engine, [Row(documents[4], other_head), Row(documents[8], base), Row(documents[4], snapshots[1])])
    assert alone.features.shape == (1, loaded.manifest.feature_size)
    np.testing.assert_allclose(mixed.features[0], alone.features[0], **EXACT)
    np.testing.assert_allclose(mixed.logits[0], alone.logits[0] + 5, **EXACT)
    assert np.abs(mixed.features[2] - alone.features[0]).max() > 1e-3


def test_a_batch_prepared_while_another_runs_is_not_disturbed(engine, snapshots, documents, expected):
    first = engine.prepare([Row(documents[5], snapshots[1])])
    second = engine.prepare([Row(ids, snapshots[2]) for ids in documents])
    np.testing.assert_allclose(engine.run(first).logits[0], expected[1, 5], **EXACT)
    np.testing.assert_allclose(engine.run(second).logits, expected[2], **EXACT)


def test_the_base_table_is_never_written(engine, loaded, snapshots, documents):
    before = loaded.table.clone()
    run(engine, [Row(ids, snapshot) for ids in documents for snapshot in snapshots])
    assert torch.equal(loaded.table, before)


def test_outputs_are_not_overwritten_by_the_next_batch(engine, snapshots, documents):
    output = run(engine, [Row(documents[3], snapshots[0])])
    kept = output.logits.copy(), output.features.copy()
    run(engine, [Row(documents[4], snapshots[1])])
    np.testing.assert_array_equal(output.logits, kept[0])
    np.testing.assert_array_equal(output.features, kept[1])


def test_the_rows_that_differ_from_the_base_are_those_of_the_patch(engine, loaded, patches, snapshots):
    assert not engine.changed_rows(snapshots[0]).any()
    for patch, snapshot in zip(patches, snapshots[1:], strict=True):
        changed = engine.changed_rows(snapshot)
        assert changed.nonzero().flatten().tolist() == patch.row_ids.tolist()
    undeclared = snapshots[1].slots.copy()
    undeclared[(undeclared < 0).nonzero()[0][0]] = 0
    assert int(engine.changed_rows(replace(snapshots[1], slots=undeclared)).sum()) == len(patches[0].row_ids) + 1


def test_passes_at_once_on_one_thread_each_answer_as_one_on_all(loaded, snapshots, documents):
    engine = Engine(loaded, threads=2, instances=0)
    assert engine.instances == 2
    rows = [Row(ids, snapshots[index % 4]) for index, ids in enumerate(documents)]
    wanted = engine.run(engine.prepare(rows))
    with ThreadPoolExecutor(2) as pool:
        answers = pool.map(lambda _: engine.run(engine.prepare(rows), wide=False), range(8))
    for output in answers:
        np.testing.assert_allclose(output.logits, wanted.logits, rtol=0, atol=1e-5)
        np.testing.assert_allclose(output.features, wanted.features, rtol=0, atol=1e-5)


def test_warming_up_covers_the_longest_document(engine, loaded, snapshots, monkeypatch):
    lengths = []
    prepare = engine.prepare

    def recorded(rows):
        lengths.extend(len(row.ids) for row in rows)
        return prepare(rows)

    monkeypatch.setattr(engine, "prepare", recorded)
    engine.warm_up(snapshots[0], loaded.manifest.max_tokens)
    assert max(lengths) == loaded.manifest.max_tokens
    assert len(lengths) > 1


def test_an_int8_bundle_answers_to_its_parity_whoever_shares_the_batch(int8_bundle, documents, expected):
    loaded = bundles.load(int8_bundle)
    engine = Engine(loaded)
    snapshot = base_snapshot(loaded, CPU)
    output = run(engine, [Row(ids, snapshot) for ids in documents])
    difference = np.abs(output.logits - expected[0]).max()
    # Random tokens, unlike the documents of the parity check.
    assert 1e-3 < difference < 4 * loaded.manifest.parity["max_abs_logit_difference"]
    for ids, logits in zip(documents, output.logits, strict=True):
        np.testing.assert_allclose(run(engine, [Row(ids, snapshot)]).logits[0], logits, **EXACT)


@pytest.mark.gpu
@pytest.mark.skipif(bool(cuda_missing()), reason="no CUDA here")
def test_mixed_versions_on_cuda(loaded, patches, documents, expected):
    engine = Engine(loaded, device="cuda")
    assert engine.provider == "CUDAExecutionProvider"
    versions = [
        base_snapshot(loaded, engine.device),
        *(patched_snapshot(loaded, patch, 2 + index, engine.device) for index, patch in enumerate(patches)),
    ]
    chosen = [(version, document) for version in range(4) for document in range(len(documents))]
    output = run(engine, [Row(documents[document], versions[version]) for version, document in chosen])
    wanted = [expected[version, document] for version, document in chosen]
    np.testing.assert_allclose(output.logits, wanted, rtol=0, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(bool(cuda_missing()), reason="no CUDA here")
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_a_bundle_in_16_bits_on_cuda(checkpoint, corpus_path, tmp_path, documents, expected, precision):
    limits = Limits(decisions_equal=0.99, macro_f1_difference=0.01)
    manifest = export(checkpoint, tmp_path / "bundle", corpus=corpus_path, precision=precision, limits=limits)
    loaded = bundles.load(tmp_path / "bundle")
    engine = Engine(loaded)
    assert engine.provider == "CUDAExecutionProvider"
    snapshot = base_snapshot(loaded, engine.device)
    output = run(engine, [Row(ids, snapshot) for ids in documents])
    assert output.features.dtype == np.float32
    difference = np.abs(output.logits - expected[0]).max()
    assert difference < 4 * manifest.parity["max_abs_logit_difference"]
