"""STEU against a second implementation: plain loops for the losses, the whole Hugging Face model for training."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toys import in_float64
from transformers import AutoConfig, AutoModelForSequenceClassification

from amnestic_unlearn import corpus, steu, twin
from amnestic_unlearn.architecture import ARCHITECTURES
from amnestic_unlearn.errors import LossNotFiniteError, NoRetainDocumentsError
from amnestic_unlearn.forgetting import TrainingData
from amnestic_unlearn.manifest import BundleError, Manifest
from amnestic_unlearn.spec import Method

# In float64: at the first step the utility loss has no gradient but rounding noise, which Adam scales up.
CLOSE = {"rtol": 0.0, "atol": 1e-7}


@pytest.fixture(scope="module")
def model(bundle):
    return twin.load(bundle, Manifest.read(bundle))


@pytest.fixture(scope="module")
def data(model, corpus_path):
    documents = corpus.read(corpus_path, splits=("train",))[:120]
    truth = corpus.truth(documents, model.manifest.labels)
    return TrainingData(model.tokenize([document.text for document in documents]), truth, targets=(1,))


@pytest.fixture
def reference(bundle, model):
    """The whole classifier, embedding table and head in their places."""
    architecture = ARCHITECTURES[model.manifest.architecture]
    config = AutoConfig.from_pretrained(bundle)
    classifier = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    state = load_file(bundle / "encoder.safetensors")
    state[f"{architecture.word_embeddings}.weight"] = model.table.clone()
    state[f"{architecture.head}.weight"] = model.head_weight.clone()
    state[f"{architecture.head}.bias"] = model.head_bias.clone()
    classifier.load_state_dict(state)
    return SimpleNamespace(
        classifier=classifier,
        table=classifier.get_submodule(architecture.word_embeddings).weight,
        head=classifier.get_submodule(architecture.head),
    )


def quiet(progress):
    pass


def plain_bce(logit, target):
    probability = 1 / (1 + math.exp(-logit))
    return -(target * math.log(probability) + (1 - target) * math.log(1 - probability))


def unpadded(reference, documents):
    """Logits from token ids, one document at a time."""
    ids = [torch.from_numpy(window.astype(np.int64))[None] for (window,) in documents]
    return torch.cat([reference.classifier(input_ids=row).logits for row in ids])


def test_losses_follow_the_formulas():
    random = np.random.default_rng(0)
    logits, base = random.normal(size=(7, 5)) * 3, random.normal(size=(7, 5)) * 3
    targets, others = (1, 3), (0, 2, 4)
    forget = [plain_bce(row[target], 0.0) for row in logits for target in targets]
    utility = [
        plain_bce(row[other], 1 / (1 + math.exp(-base_row[other])))
        for row, base_row in zip(logits, base, strict=True)
        for other in others
    ]
    z, z0 = torch.from_numpy(logits), torch.from_numpy(base)
    assert steu.forget_loss(z, targets).item() == pytest.approx(np.mean(forget), rel=1e-12)
    assert steu.utility_loss(z, z0.sigmoid(), others).item() == pytest.approx(np.mean(utility), rel=1e-12)


def test_the_utility_loss_is_least_at_the_base_model():
    base = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    steu.utility_loss(base, base.detach().sigmoid(), (0, 1, 3)).backward()
    assert base.grad.abs().max() < 1e-12


def test_the_twin_is_the_classifier(model, reference, data):
    documents = data.documents[:40]
    with torch.no_grad():
        expected = unpadded(reference, documents)
    base = model.base(torch.tensor([5, 9, 11]))
    torch.testing.assert_close(model.evaluate(documents, base), expected, rtol=0, atol=1e-5)
    features = model.evaluate_features(documents, base)
    torch.testing.assert_close(features @ model.head_weight.T + model.head_bias, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("distil_weight", [0.0, 0.5])
def test_training_is_that_of_the_whole_model_with_all_else_held(model, reference, data, distil_weight):
    # A label that the words do not tell: retain documents hold the edited tokens too, and their loss has a say.
    truth = data.truth.copy()
    truth[:, data.targets] = (np.arange(len(truth)) % 3 == 0)[:, None]
    data = dataclasses.replace(data, truth=truth)
    method = Method(
        k=12, epochs=2, batch_size=8, embedding_lr=1e-2, head_lr=3e-3, forget_weight=2.0, distil_weight=distil_weight
    )
    result = steu.run(in_float64(model), data, method, quiet)
    reference.classifier.double()
    with torch.no_grad():
        base = unpadded(reference, data.documents).sigmoid()
    losses = train_reference(reference, data, method, result.weights.row_ids, base)
    rows, weight, bias = reference.table[result.weights.row_ids], reference.head.weight, reference.head.bias
    torch.testing.assert_close(result.weights.rows, rows, **CLOSE)
    torch.testing.assert_close(result.weights.head_weight, weight, **CLOSE)
    torch.testing.assert_close(result.weights.head_bias, bias, **CLOSE)
    for mine, other in zip(result.epochs, losses, strict=True):
        assert dataclasses.astuple(mine)[: len(other)] == pytest.approx(other, abs=1e-7)
    edited = set(result.weights.row_ids.tolist())
    assert any(edited & set(window.tolist()) for (window,) in data.batch(data.retain))
    # The embedding rows moved by far more than the tolerance, so the comparison means something.
    assert (result.weights.rows - model.table[result.weights.row_ids]).abs().max() > 1e-2


def train_reference(reference, data, method, row_ids, base):
    """Adam over the whole table, with the gradient of every other row set to nothing."""
    others = [column for column in range(data.truth.shape[1]) if column not in data.targets]
    reference.classifier.requires_grad_(False)
    trained = [reference.table, reference.head.weight, reference.head.bias]
    for tensor in trained:
        tensor.requires_grad_(True)
    rates = (method.embedding_lr, method.head_lr, method.head_lr)
    optimizer = torch.optim.Adam([{"params": [p], "lr": rate} for p, rate in zip(trained, rates, strict=True)])
    frozen = torch.ones(len(reference.table), dtype=torch.bool)
    frozen[row_ids] = False
    history = []
    for epoch in steu.plan(data, method):
        losses = []
        for step in epoch:
            kept = unpadded(reference, data.batch(step.retain)).sigmoid()
            forgotten = unpadded(reference, data.batch(step.forget)).sigmoid()
            forget = -(1 - forgotten[:, data.targets]).log().mean()
            utility = cross_entropy(kept[:, others], base[step.retain][:, others])
            distil = cross_entropy(forgotten[:, others], base[step.forget][:, others])
            loss = method.forget_weight * forget + method.utility_weight * utility + method.distil_weight * distil
            optimizer.zero_grad()
            loss.backward()
            reference.table.grad[frozen] = 0
            optimizer.step()
            losses.append((forget.item(), utility.item(), distil.item()))
        history.append([float(mean) for mean in np.mean(losses, axis=0)][: 3 if method.distil_weight else 2])
    return history


def cross_entropy(probability, target):
    return -(target * probability.log() + (1 - target) * (1 - probability).log()).mean()


def test_only_the_chosen_rows_and_the_head_change(model, data):
    encoder, table = model.encoder_digest(), model.table.clone()
    head = model.head_weight.clone(), model.head_bias.clone()
    result = steu.run(model, data, Method(k=10, epochs=1), quiet)
    assert model.encoder_digest() == encoder
    assert torch.equal(model.table, table)
    assert torch.equal(model.head_weight, head[0]) and torch.equal(model.head_bias, head[1])
    assert len(result.weights.row_ids) == 10
    assert result.weights.row_ids.tolist() == sorted(result.selection.token_ids.tolist())
    assert (result.weights.rows != table[result.weights.row_ids]).any(dim=1).all()
    assert (result.weights.head_weight != head[0]).any()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())


def test_rows_outside_the_selection_play_no_part(model, data):
    """Moving a row to itself leaves every logit; moving it elsewhere changes just the documents that hold it."""
    row_ids = torch.tensor([int(data.documents[0][0][1])])
    base, moved = model.base(row_ids), model.base(row_ids)
    moved.rows.add_(1.0)
    untouched = model.base(torch.empty(0, dtype=torch.int64))
    before, same, after = (model.evaluate(data.documents, weights) for weights in (untouched, base, moved))
    holds = torch.tensor([bool((window == int(row_ids)).any()) for (window,) in data.documents])
    assert torch.equal(before, same)
    assert torch.equal(before[~holds], after[~holds]) and not torch.equal(before[holds], after[holds])


def test_the_seed_decides_everything(model, data):
    method = Method(k=8, epochs=2)
    first, again, other = (steu.run(model, data, dataclasses.replace(method, seed=seed), quiet) for seed in (3, 3, 4))
    assert torch.equal(first.weights.rows, again.weights.rows)
    assert torch.equal(first.weights.head_weight, again.weights.head_weight)
    assert first.epochs == again.epochs
    assert not torch.equal(first.weights.rows, other.weights.rows)


def test_learning_rates_of_zero_leave_rows_or_head(model, data):
    rows_only = steu.run(model, data, Method(k=8, epochs=1, head_lr=0.0), quiet).weights
    head_only = steu.run(model, data, Method(k=8, epochs=1, embedding_lr=0.0), quiet).weights
    assert torch.equal(rows_only.head_weight, model.head_weight)
    assert torch.equal(head_only.rows, model.table[head_only.row_ids])


def test_an_epoch_passes_over_every_forget_document_once(data):
    epochs = steu.plan(data, Method(epochs=3, batch_size=4))
    assert len(epochs) == 3
    for epoch in epochs:
        assert sorted(np.concatenate([step.forget for step in epoch])) == data.forget.tolist()
        assert all(len(step.retain) for step in epoch)
    drawn = np.concatenate([step.retain for epoch in epochs for step in epoch])
    assert set(drawn) <= set(data.retain)
    first_pass = drawn[: len(data.retain)]
    assert len(set(first_pass)) == len(first_pass)


def test_retain_documents_start_again_when_they_run_out(model):
    documents = [(np.array([2, 5, 3], dtype=np.int32),)] * 20
    truth = np.zeros((20, 4), dtype=bool)
    truth[:17, 0] = True
    epochs = steu.plan(TrainingData(documents, truth, (0,)), Method(epochs=1, batch_size=2))
    drawn = np.concatenate([step.retain for step in epochs[0]])
    assert len(epochs[0]) == 9
    assert set(drawn) == {17, 18, 19}


def test_progress_counts_every_step(model, data):
    seen = []
    steu.run(model, data, Method(k=4, epochs=2, batch_size=16), seen.append)
    assert seen[0].stage == "selecting"
    training = [progress for progress in seen if progress.step]
    assert [progress.step for progress in training] == list(range(1, training[-1].steps + 1))
    assert training[-1].epoch == training[-1].epochs == 2
    assert training[-1].seconds_left == 0.0
    assert all(progress.seconds_left >= 0 for progress in training)


def test_a_loss_that_is_not_finite_stops_training(model, data):
    broken = dataclasses.replace(model, head_bias=torch.full_like(model.head_bias, math.nan))
    with pytest.raises(LossNotFiniteError):
        steu.run(broken, data, Method(k=4, epochs=1), quiet)


def test_training_in_mixed_precision_is_near_that_in_full(model, data):
    method = Method(k=8, epochs=4, head_lr=3e-2)
    mixed = steu.run(dataclasses.replace(model, mixed=True), data, method, quiet)
    full = steu.run(model, data, method, quiet)
    assert mixed.epochs[-1].forget < mixed.epochs[0].forget / 3
    assert mixed.epochs[-1].forget == pytest.approx(full.epochs[-1].forget, abs=0.02)


def test_nothing_to_retain_is_an_error(model, data):
    with pytest.raises(NoRetainDocumentsError):
        steu.run(model, dataclasses.replace(data, truth=np.ones_like(data.truth)), Method(k=4), quiet)


@pytest.mark.parametrize(
    "name", ["embeddings.safetensors", "head.safetensors", "encoder.safetensors", "tokenizer.json"]
)
def test_a_file_that_does_not_fit_is_named(bundle, tmp_path, name):
    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")
    with pytest.raises(BundleError, match=name):
        twin.load(tmp_path, Manifest.read(tmp_path))
