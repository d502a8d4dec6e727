"""Windows and their pooling by themselves: settings, numpy beside torch, passes, and what STEU trains on."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from amnestic_unlearn import corpus, passes, steu, twin
from amnestic_unlearn.baselines import training
from amnestic_unlearn.forgetting import TrainingData
from amnestic_unlearn.manifest import MANIFEST, BundleError, Manifest
from amnestic_unlearn.passes import encode_windows
from amnestic_unlearn.spec import PRESETS, Method
from amnestic_unlearn.train_settings import TrainError, TrainSettings
from amnestic_unlearn.windows import LongDocuments, Pooling, Reading, pool, pool_each

WINDOWS = {"long_documents": "window", "window_overlap": 4, "max_windows": 5, "pooling": "max"}


@pytest.fixture(scope="module")
def model(bundle, tmp_path_factory):
    """The toy's twin, told to read 16 tokens at a time."""
    folder = tmp_path_factory.mktemp("windows") / "bundle"
    shutil.copytree(bundle, folder)
    edit(folder, **WINDOWS, max_tokens=16)
    return twin.load(folder, Manifest.read(folder))


@pytest.fixture(scope="module")
def data(model, corpus_path):
    documents = corpus.read(corpus_path, splits=("train",))[:60]
    truth = corpus.truth(documents, model.manifest.labels)
    return TrainingData(model.tokenize([document.text for document in documents]), truth, targets=(1,))


def edit(bundle, **fields):
    path = bundle / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def quiet(progress):
    pass


@pytest.mark.parametrize("pooling", Pooling)
def test_numpy_and_torch_pool_alike(pooling):
    random = np.random.default_rng(0)
    counts = [1, 3, 1, 7, 2]
    rows = random.normal(size=(sum(counts), 6)).astype(np.float32)
    by_document = np.split(rows, np.cumsum(counts)[:-1])
    found = pool_each(torch.from_numpy(rows), counts, pooling).numpy()
    assert found == pytest.approx(np.stack([pool(part, pooling) for part in by_document]), abs=1e-6)
    reduce = np.max if pooling is Pooling.MAX else np.mean
    assert found == pytest.approx(np.stack([reduce(part, axis=0) for part in by_document]), abs=1e-6)


def test_the_gradient_goes_to_the_window_that_decided_or_to_all_alike():
    rows = torch.tensor([[1.0, 5.0], [3.0, 2.0], [0.0, 0.0]], requires_grad=True)
    for pooling, wanted in (
        (Pooling.MAX, [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]),
        (Pooling.MEAN, [[0.5, 0.5], [0.5, 0.5], [1.0, 1.0]]),
    ):
        (gradient,) = torch.autograd.grad(pool_each(rows, [2, 1], pooling).sum(), rows)
        assert gradient.tolist() == wanted


def test_what_is_left_out_has_a_default():
    assert Reading.of(512) == Reading(512, LongDocuments.TRUNCATE, 0, 1, Pooling.MAX)
    assert Reading.of(512, "window") == Reading(512, LongDocuments.WINDOW, 128, 16, Pooling.MAX)
    settings = TrainSettings(max_tokens=64, long_documents="window", pooling="mean")
    assert settings.reading == Reading(64, LongDocuments.WINDOW, 16, 16, Pooling.MEAN)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"window_overlap": 4}, "windows are for long_documents window"),
        ({"max_windows": 4}, "windows are for long_documents window"),
        ({"long_documents": "window", "window_overlap": 33}, "window_overlap must be from 0 to 32"),
        ({"long_documents": "window", "window_overlap": -1}, "window_overlap must be from 0 to 32"),
        ({"long_documents": "window", "max_windows": 1}, "max_windows must be from 2 to 256"),
        ({"long_documents": "window", "max_windows": 257}, "max_windows must be from 2 to 256"),
        ({"long_documents": "pages"}, "pages"),
        ({"long_documents": "window", "pooling": "sum"}, "sum"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(fields, reason):
    with pytest.raises(TrainError, match=reason):
        TrainSettings(max_tokens=64, **fields).validate()


@pytest.mark.parametrize(
    "fields",
    [
        {"long_documents": "pages"},
        {"long_documents": "window"},
        {"window_overlap": 4},
        {**WINDOWS, "pooling": "sum"},
        {**WINDOWS, "window_overlap": "4"},
        {**WINDOWS, "max_windows": 0},
    ],
)
def test_a_manifest_that_says_it_inconsistently_is_refused(bundle, tmp_path, fields):
    shutil.copy(bundle / MANIFEST, tmp_path / MANIFEST)
    edit(tmp_path, **fields)
    with pytest.raises(BundleError, match=MANIFEST):
        Manifest.read(tmp_path)


def test_a_bundle_from_before_it_was_written_down_cuts(bundle, tmp_path):
    fields = json.loads((bundle / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({name: fields[name] for name in fields if name not in WINDOWS}))
    assert Manifest.read(tmp_path).reading == Reading(fields["max_tokens"])


def test_an_overlap_that_leaves_nothing_new_is_refused(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "bundle")
    edit(tmp_path / "bundle", **{**WINDOWS, "window_overlap": 1}, max_tokens=3)
    with pytest.raises(BundleError, match="does not fit"):
        twin.load(tmp_path / "bundle", Manifest.read(tmp_path / "bundle"))


def test_the_twin_answers_a_document_by_its_windows(model, data):
    weights = model.base(torch.tensor([5, 9]))
    whole = model.ask(data.documents, weights)
    assert len({len(document) for document in data.documents}) > 3
    for number, document in enumerate(data.documents):
        each = model.ask([(window,) for window in document], weights)
        torch.testing.assert_close(whole.logits[number], each.logits.amax(dim=0), rtol=0, atol=1e-5)
        torch.testing.assert_close(whole.features[number], each.features.mean(dim=0), rtol=0, atol=1e-5)


def test_many_windows_take_several_passes_and_give_the_same_gradients(model, data, monkeypatch):
    documents, slots = data.documents[:6], model.slots(torch.arange(20))

    def run():
        weights = model.base(torch.arange(20))
        for tensor in (weights.rows, weights.head_weight):
            tensor.requires_grad_(True)
        answers = model.answer(documents, weights, slots)
        loss = answers.logits.square().sum() + answers.features.square().sum()
        return answers, torch.autograd.grad(loss, (weights.rows, weights.head_weight))

    seen = []
    encode = model.features.__func__
    monkeypatch.setattr(
        type(model), "features", lambda self, embeds, mask: seen.append(len(mask)) or encode(self, embeds, mask)
    )
    one, gradients = run()
    windows = sum(map(len, documents))
    assert seen == [windows]
    monkeypatch.setattr(passes, "PASS_TOKENS", 1)
    several, again = run()
    assert max(seen[1:]) == len(documents) < windows
    for a, b in ((one.logits, several.logits), (one.features, several.features), *zip(gradients, again, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert gradients[0].abs().max() > 0


def test_cut_documents_take_one_pass_whatever_their_size(monkeypatch):
    monkeypatch.setattr(passes, "PASS_TOKENS", 1)
    seen = []
    documents = [(np.ones(9, dtype=np.int32),)] * 5
    encode_windows(documents, lambda rows: seen.append(len(rows)) or torch.zeros(len(rows), 1))
    assert seen == [5]


def test_the_first_tokens_of_every_window_are_trained_on(model, data):
    method = dataclasses.replace(PRESETS["amnestic"], k=12, max_tokens=6, max_steps=4)
    short = [tuple(window[:6] for window in document) for document in data.documents]
    found = steu.run(model, data, method, quiet).weights
    by_hand = dataclasses.replace(data, documents=short)
    expected = steu.edit(model, by_hand, dataclasses.replace(method, max_tokens=0), found.row_ids.numpy(), quiet)[0]
    torch.testing.assert_close(found.rows, expected.rows, rtol=0, atol=0)
    first = dataclasses.replace(data, documents=[document[:1] for document in short])
    other = steu.edit(model, first, dataclasses.replace(method, max_tokens=0), found.row_ids.numpy(), quiet)[0]
    assert (found.rows - other.rows).abs().max() > 1e-3


def test_a_baseline_is_for_models_that_cut(model):
    with pytest.raises(ValueError, match="cut long documents"):
        training.start(model, [])


def test_training_is_that_of_pooled_logits(model, data):
    """The losses of the first step, from each window by itself."""
    method = Method(k=8, epochs=1, batch_size=8, distil_weight=1.0, max_steps=1)
    plan = steu.plan(data, method)
    base = steu.base_answers(model, data, plan)
    weights = model.base(torch.arange(8))
    (losses,) = steu.train(model, data, method, weights, plan, base, quiet)
    logits = torch.stack(
        [
            model.evaluate([(window,) for window in data.documents[position]], model.base(torch.arange(8))).amax(dim=0)
            for position in plan[0][0].forget
        ]
    )
    assert losses.forget == pytest.approx(steu.forget_loss(logits, data.targets).item(), rel=1e-4)
    assert losses.distil == pytest.approx(steu.utility_loss(logits, logits.sigmoid(), data.others).item(), rel=1e-4)
