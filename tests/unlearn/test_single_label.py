"""Single-label classifiers: what is trained and refused, and STEU's losses for a softmax against plain loops."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from toys import LABELS, single_label_corpus
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from amnestic_server.cli.train import command as train_command
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn import measures, steu, twin
from amnestic_unlearn.corpus import CorpusError, Document
from amnestic_unlearn.errors import InputError
from amnestic_unlearn.forgetting import TrainingData
from amnestic_unlearn.manifest import ProblemType
from amnestic_unlearn.spec import Method
from amnestic_unlearn.train import TrainReport, train
from amnestic_unlearn.train_settings import Shape, TrainError, TrainSettings
from amnestic_unlearn.worker import _documents

SINGLE = ProblemType.SINGLE_LABEL
TINY = Shape(vocab_size=300, layers=2, hidden=32, heads=2, intermediate=64)
FAST = TrainSettings(epochs=16, learning_rate=3e-3, max_tokens=64, threads=1, device="cpu", shape=TINY)


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return single_label_corpus(tmp_path_factory.mktemp("corpus") / "single.jsonl")


@pytest.fixture(scope="module")
def trained(corpus_file: Path) -> tuple[Path, TrainReport]:
    out = corpus_file.parent / "checkpoint"
    return out, train(corpus_file, out, settings=FAST, problem_type=SINGLE)


@pytest.fixture(scope="module")
def data(trained: tuple[Path, TrainReport], corpus_file: Path) -> TrainingData:
    """60 training documents; gamma is to be forgotten."""
    documents = corpora.read(corpus_file, splits=("train",))[:60]
    tokens = twin.from_checkpoint(trained[0]).tokenize([document.text for document in documents])
    return TrainingData(tokens, corpora.truth(documents, sorted(LABELS)), (3,), SINGLE)


def test_it_learns_and_the_checkpoint_decides_by_the_likeliest_label(
    trained: tuple[Path, TrainReport], corpus_file: Path
) -> None:
    out, report = trained
    config = json.loads((out / "config.json").read_text())
    assert config["problem_type"] == "single_label_classification"
    assert "amnestic_thresholds" not in config
    assert (report.thresholds, report.problem_type) == ((), SINGLE)
    assert report.macro_f1 > 0.9
    tests = corpora.read(corpus_file, splits=("test",))
    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    with torch.no_grad():
        answers = [
            model(**tokenizer(document.text, return_tensors="pt", truncation=True)).logits.argmax()
            for document in tests
        ]
    names = [config["id2label"][str(index)] for index in range(4)]
    f1 = measures.f1_by_label(corpora.truth(tests, names), np.eye(4, dtype=bool)[answers])
    assert dict(zip(names, f1, strict=True)) == pytest.approx(report.f1)


def test_the_loss_that_is_reported_is_the_cross_entropy(corpus_file: Path, tmp_path: Path) -> None:
    """One step of one batch at a rate that changes nothing: log 4 would be a model that knows nothing."""
    still = TrainSettings(
        epochs=1, batch_size=4096, learning_rate=1e-30, max_tokens=64, threads=1, device="cpu", shape=TINY
    )
    report = train(corpus_file, tmp_path / "out", settings=still, problem_type=SINGLE)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    losses = []
    for document in corpora.read(corpus_file, splits=("train",)):
        with torch.no_grad():
            logits = model(**tokenizer(document.text, return_tensors="pt", truncation=True)).logits[0].tolist()
        answer = logits[report.labels.index(document.labels[0])]
        losses.append(math.log(sum(map(math.exp, logits))) - answer)
    # Training has dropout, this has not.
    assert report.loss == pytest.approx(np.mean(losses), rel=0.05)


def test_thresholds_of_the_checkpoint_it_starts_from_are_dropped(checkpoint: Path, corpus_file: Path, tmp_path: Path):
    settings = TrainSettings(epochs=1, max_tokens=64, threads=1, device="cpu")
    assert json.loads((checkpoint / "config.json").read_text())["amnestic_thresholds"]
    train(corpus_file, tmp_path / "out", checkpoint=str(checkpoint), settings=settings, problem_type=SINGLE)
    assert "amnestic_thresholds" not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize("labels", [(), ("alpha", "beta")])
@pytest.mark.parametrize("split", ["train", "probe"])
def test_a_document_without_exactly_one_label_is_named_by_its_row(
    corpus_file: Path, tmp_path: Path, labels: tuple[str, ...], split: str
) -> None:
    path = tmp_path / "c.jsonl"
    documents = corpora.read(corpus_file)
    corpora.write([*documents[:2], Document("secret words", labels, split, "another patient"), *documents[2:]], path)
    message = rf"^c\.jsonl, row 3: {len(labels)} labels, where single-label needs one$"
    with pytest.raises(CorpusError, match=message):
        train(path, tmp_path / "out", settings=FAST, problem_type=SINGLE)
    assert not (tmp_path / "out").exists()
    assert len(corpora.read(path)) == len(documents) + 1, "multi-label, it is a corpus"


def test_the_worker_refuses_such_a_corpus_too(trained: tuple[Path, TrainReport], corpus_path: Path) -> None:
    manifest = twin.from_checkpoint(trained[0]).manifest
    with pytest.raises(InputError, match=r"row \d+: \d labels, where single-label needs one"):
        _documents(corpus_path, manifest)


def test_one_label_is_no_choice(corpus_file: Path, tmp_path: Path) -> None:
    only = [document for document in corpora.read(corpus_file) if document.labels == ("alpha",)]
    corpora.write(only, tmp_path / "c.jsonl")
    with pytest.raises(TrainError, match="at least two labels"):
        train(tmp_path / "c.jsonl", tmp_path / "out", settings=FAST, problem_type=SINGLE)


def test_the_command_trains_one_and_shows_no_threshold(corpus_file: Path, tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "out"), "--corpus", str(corpus_file), "--epochs", "1", "--device", "cpu"]
    result = CliRunner().invoke(train_command, [*arguments, "--problem-type", "single-label"])
    assert result.exit_code == 0, result.output
    assert result.stdout.count("likeliest") == 4
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["problem_type"] == "single_label_classification"


def test_losses_follow_the_formulas() -> None:
    random = np.random.default_rng(0)
    logits, base = random.normal(size=(7, 5)) * 3, random.normal(size=(7, 5)) * 3
    targets, others = (1, 3), (0, 2, 4)
    forget, utility, ratios = [], [], []
    soft = np.full_like(base, math.nan)
    for row, (z, z0) in enumerate(zip(np.exp(logits), np.exp(base), strict=True)):
        forget.append(-math.log(1 - sum(z[target] for target in targets) / sum(z)))
        kept, kept0 = sum(z[other] for other in others), sum(z0[other] for other in others)
        utility.append(-sum(z0[other] / kept0 * math.log(z[other] / sum(z)) for other in others))
        ratios.append(-sum(z0[other] / kept0 * math.log(z[other] / kept) for other in others))
        soft[row, others] = z0[list(others)] / kept0
    # The utility loss is the cross-entropy of the other labels' ratios, and the forget loss again.
    assert np.mean(utility) == pytest.approx(np.mean(ratios) + np.mean(forget))
    z = torch.from_numpy(logits)
    assert steu.softmax_forget_loss(z, targets).item() == pytest.approx(np.mean(forget), rel=1e-12)
    found = steu.softmax_utility_loss(z, torch.from_numpy(soft), others)
    assert found.item() == pytest.approx(np.mean(utility), rel=1e-12)


def test_the_forget_loss_is_that_of_a_sigmoid_where_there_are_two_labels() -> None:
    logits = torch.tensor([[0.3, -1.2], [4.0, 4.0]], dtype=torch.float64)
    margin = (logits[:, 1] - logits[:, 0])[:, None]
    torch.testing.assert_close(steu.softmax_forget_loss(logits, (1,)), steu.forget_loss(margin, (0,)))


def test_the_forget_loss_stays_finite_and_pushes_where_the_target_is_certain() -> None:
    logits = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    loss = steu.softmax_forget_loss(logits, (0,))
    loss.backward()
    assert loss.item() == pytest.approx(200.0)
    assert logits.grad is not None and logits.grad[0].tolist() == pytest.approx([1.0, -1.0, 0.0])


def test_the_utility_loss_is_least_at_the_base_without_the_forgotten_label() -> None:
    base = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    soft = base.index_fill(1, torch.tensor([2]), -math.inf).softmax(dim=1)
    others = (0, 1, 3)
    entropy = -(soft[:, others] * soft[:, others].log()).sum(dim=1).mean()
    # A document's logits may all move together; only their differences count.
    best = base + torch.arange(6)[:, None]
    best[:, 2] = -60.0
    best.requires_grad_(True)
    loss = steu.softmax_utility_loss(best, soft, others)
    loss.backward()
    assert best.grad is not None and best.grad.abs().max() < 1e-12
    assert loss.item() == pytest.approx(entropy.item(), rel=1e-12)
    assert steu.softmax_utility_loss(base, soft, others) > loss, "the forgotten label takes a share of the others"


@pytest.mark.parametrize("targets", [(3,), (0, 2)])
def test_the_objective_compares_with_the_base_over_the_labels_to_keep(
    trained: tuple[Path, TrainReport], data: TrainingData, targets: tuple[int, ...]
) -> None:
    model = twin.from_checkpoint(trained[0])
    data = TrainingData(data.documents, data.truth, targets, SINGLE)
    method = Method(epochs=1, batch_size=8, forget_weight=2.0, utility_weight=3.0, distil_weight=0.5)
    epochs = steu.plan(data, method)
    step = epochs[0][0]
    base = steu.base_answers(model, data, epochs)
    soft = steu.soft_targets(data, base.logits)
    logits = model.evaluate(data.documents, model.base(torch.empty(0, dtype=torch.int64)))
    for row in (*step.forget, *step.retain):
        kept = logits[row, list(data.others)].exp()
        expected = torch.zeros(4)
        expected[list(data.others)] = kept / kept.sum()
        torch.testing.assert_close(soft[row], expected, rtol=1e-5, atol=1e-6)
    noisy = base.logits + torch.randn(base.logits.shape, generator=torch.Generator().manual_seed(0))
    forgotten, kept = (noisy[rows] for rows in (step.forget, step.retain))
    answers = (twin.Answers(base.features[rows], noisy[rows]) for rows in (step.forget, step.retain))
    loss, losses = steu.Objective.of(data, method, base)(*answers, step)
    assert losses.forget == pytest.approx(steu.softmax_forget_loss(forgotten, targets).item())
    assert losses.utility == pytest.approx(plain_utility(kept, soft[step.retain], data.others), rel=1e-5)
    assert losses.distil == pytest.approx(plain_utility(forgotten, soft[step.forget], data.others), rel=1e-5)
    assert loss.item() == pytest.approx(2 * losses.forget + 3 * losses.utility + 0.5 * losses.distil)


def plain_utility(logits: torch.Tensor, soft: torch.Tensor, others: tuple[int, ...]) -> float:
    rows = []
    for z, p0 in zip(logits.tolist(), soft.tolist(), strict=True):
        total = sum(map(math.exp, z))
        rows.append(-sum(p0[other] * math.log(math.exp(z[other]) / total) for other in others))
    return sum(rows) / len(rows)


def test_steu_forgets_the_class_and_keeps_the_others(
    trained: tuple[Path, TrainReport], data: TrainingData, corpus_file: Path
) -> None:
    model = twin.from_checkpoint(trained[0])
    assert (model.manifest.problem_type, model.manifest.thresholds) == (SINGLE, ())
    method = Method(k=16, epochs=12, embedding_lr=5e-3, head_lr=2e-2, distil_weight=1.0)
    result = steu.run(model, data, method, lambda progress: None)
    tests = corpora.read(corpus_file, splits=("test",))
    truth = corpora.truth(tests, model.manifest.labels)
    tokens = model.tokenize([document.text for document in tests])
    base = model.base(torch.empty(0, dtype=torch.int64))
    f1 = [
        measures.f1_after_forgetting(
            truth, measures.decide(model.evaluate(tokens, weights).numpy(), np.array([]), SINGLE), [3], SINGLE
        )
        for weights in (base, result.weights)
    ]
    assert f1[0].min() > 0.85
    assert f1[1][3] == 0.0
    assert (f1[0] - f1[1])[:3].max() < 0.1
    assert result.epochs[-1].forget < 0.2 < result.epochs[0].forget
