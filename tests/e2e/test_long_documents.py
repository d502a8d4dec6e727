"""Documents longer than the model's maximum, from training to the wire: read in windows, pooled, gated and forgotten.

What speaks for `beta` stands late in each document, where a model that cuts would never look. What must be answered is
computed apart: windows cut by hand from the ids of Hugging Face's tokenizer, each run alone, and pooled by hand.
"""

import dataclasses
import json
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from e2e.harness import GATES, Reference
from toys import FILLER, GROUPS, KEYWORDS, LABELS, SPLIT_OF_TWENTY

from amnestic_client import JobState
from amnestic_server.cli.export import command as export_command
from amnestic_server.cli.train import command as train_command
from amnestic_server.export import export
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn import measures
from amnestic_unlearn.manifest import Manifest, ProblemType
from amnestic_unlearn.train import train
from amnestic_unlearn.train_settings import Shape, TrainSettings

FORGET = "beta"
LENGTH, OVERLAP, MOST = 24, 6, 8
# Tokens of text in a window, and how far one begins behind the one before.
BODY, STEP = LENGTH - 2, LENGTH - 2 - OVERLAP
LONGEST = BODY + (MOST - 1) * STEP
# From here on in a document: the first window ends before it.
LATE = 30
TINY = Shape(vocab_size=300, layers=2, hidden=32, heads=2, intermediate=64)
WINDOWS = TrainSettings(
    epochs=16,
    batch_size=8,
    learning_rate=3e-3,
    max_tokens=LENGTH,
    long_documents="window",
    window_overlap=OVERLAP,
    max_windows=MOST,
    threads=1,
    device="cpu",
    shape=TINY,
)
# As the preset has it but for what suits a toy, and for a cut that leaves half of each window.
METHOD = {"preset": "amnestic", "k": 24, "embedding_lr": 3e-2, "max_tokens": LENGTH // 2}


def late_corpus(path: Path, single_label: bool = False) -> Path:
    """450 documents of 3 to 100 words, `beta` by words behind the first window alone, the others by words anywhere."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(GROUPS * 3):
            labels = [draw.choice(LABELS)] if single_label else [label for label in LABELS if draw.random() < 0.35]
            words = draw.choices(FILLER, k=draw.randint(3, 100))
            for label in labels:
                start = LATE if label == FORGET else 0
                words += draw.choices(FILLER, k=max(0, start - len(words)))
                for keyword in draw.sample(KEYWORDS[label], k=2):
                    words.insert(draw.randint(start, max(start, len(words))), keyword)
            group = number // 3
            document = {
                "text": " ".join(words),
                "labels": labels,
                "split": SPLIT_OF_TWENTY[group % 20],
                "group": f"patient-{group}",
            }
            file.write(json.dumps(document) + "\n")
    return path


class ByHand(Reference):
    """What a version must answer: plain slices of token ids, one pass a window, and the pooling written out."""

    def windows(self, text: str) -> list[list[int]]:
        ids = self._tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]
        starts = [0]
        while starts[-1] + BODY < len(ids):
            starts.append(starts[-1] + STEP)
        first, last = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        return [[first, *ids[start : start + BODY], last] for start in starts][:MOST]

    def each(self, text: str, part: str = "logits") -> torch.Tensor:
        """[W, d] of the version loaded last; the features are what goes into the last linear layer."""
        seen: list[torch.Tensor] = []
        hook = self._model.classifier.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
        with torch.no_grad():
            logits = [self._model(input_ids=torch.tensor([ids])).logits for ids in self.windows(text)]
        hook.remove()
        return torch.cat(logits if part == "logits" else seen)

    def logits(self, texts: Sequence[str], patch: Path | None) -> torch.Tensor:
        self._load(patch)
        return torch.stack([self.each(text).max(dim=0).values for text in texts])

    def features(self, texts: Sequence[str], patch: Path | None) -> torch.Tensor:
        self._load(patch)
        return torch.stack([self.each(text, "features").mean(dim=0) for text in texts])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Corpus, checkpoint and bundle of a classifier that reads in windows, made by the commands."""
    folder = tmp_path_factory.mktemp("long")
    corpus = late_corpus(folder / "late.jsonl")
    report = train(corpus, folder / "checkpoint", settings=WINDOWS)
    run = CliRunner().invoke(
        export_command,
        ["--checkpoint", f"{folder / 'checkpoint'}", "--corpus", f"{corpus}", "--out", f"{folder / 'bundle'}"],
    )
    assert run.exit_code == 0, run.output
    return SimpleNamespace(
        corpus=corpus, checkpoint=folder / "checkpoint", bundle=folder / "bundle", report=report, said=run.output
    )


@pytest.fixture(scope="module")
def by_hand(model):
    torch.set_num_threads(1)
    return ByHand(model.checkpoint)


@pytest.fixture(scope="module")
def tests_of(model):
    return corpora.read(model.corpus, splits=("test",))


@pytest.fixture(scope="module")
def story(model, tests_of, serve_for_module, until):
    """The label is forgotten while clients ask; what was answered before and after."""
    server = serve_for_module(bundle=model.bundle, corpus=model.corpus)
    f1_before = until(lambda: server.client.list_versions()[0].f1)
    texts = [document.text for document in tests_of]
    before = server.client.predict(texts, include_features=True)
    asking = asking_meanwhile(server, texts[:24])
    job = server.ended(server.forget(FORGET, reason="a test", method=METHOD, gates=GATES))
    time.sleep(0.3)
    calls = asking.stop()
    after = server.client.predict(texts, include_features=True)
    f1_after = until(lambda: server.client.list_versions()[-1].f1)
    return SimpleNamespace(
        server=server, f1_before=f1_before, f1_after=f1_after, before=before, job=job, after=after, calls=calls
    )


def asking_meanwhile(server, texts: Sequence[str]) -> Any:
    """A client that asks now and then, so that the worker gets its turn too; `stop` gives its answers."""
    done, answers = threading.Event(), []

    def ask() -> None:
        while not done.wait(0.1):
            answers.append(server.client.predict(texts))

    def stop() -> list[Any]:
        done.set()
        thread.join()
        return answers

    thread = threading.Thread(target=ask)
    thread.start()
    return SimpleNamespace(stop=stop)


def probabilities(result) -> Any:
    return np.array([[score.probability for score in one.scores] for one in result.predictions])


def decisions(result) -> Any:
    return np.array([[score.decision for score in one.scores] for one in result.predictions])


def words(count: int, *last: str) -> str:
    """So many tokens: each filler is one."""
    return " ".join([*("patient" for _ in range(count - len(last))), *last])


def test_training_measures_whole_documents_and_the_checkpoint_says_how_it_reads(model, by_hand, tests_of):
    config = json.loads((model.checkpoint / "config.json").read_text())
    assert {name: config[f"amnestic_{name}"] for name in ("long_documents", "window_overlap", "max_windows")} == {
        "long_documents": "window",
        "window_overlap": OVERLAP,
        "max_windows": MOST,
    }
    assert config["amnestic_pooling"] == "max"
    logits = by_hand.logits([document.text for document in tests_of], None).numpy()
    decided = measures.decide(logits, np.array(config["amnestic_thresholds"]))
    f1 = measures.f1_by_label(corpora.truth(tests_of, by_hand.labels), decided)
    assert dict(zip(by_hand.labels, f1, strict=True)) == pytest.approx(model.report.f1)
    assert model.report.f1[FORGET] > 0.85
    assert model.report.truncated == {"train": 0, "gate": 0, "test": 0}


def test_who_cuts_the_same_documents_does_not_see_the_label(model, tmp_path):
    cut = dataclasses.replace(WINDOWS, long_documents="truncate", window_overlap=None, max_windows=None, epochs=4)
    report = train(model.corpus, tmp_path / "cut", settings=cut)
    assert report.f1[FORGET] < 0.7
    assert report.truncated["train"] > 150


def test_the_bundle_says_it_and_so_does_the_server(model, story):
    manifest = Manifest.read(model.bundle)
    assert (manifest.long_documents, manifest.window_overlap, manifest.max_windows) == ("window", OVERLAP, MOST)
    assert manifest.parity["decisions_equal"] == 1.0
    assert f"up to {MOST} windows that share {OVERLAP} tokens" in " ".join(model.said.split())
    told = story.server.client.get_model()
    assert (told.long_documents, told.window_overlap, told.max_windows, told.pooling) == (
        "window",
        OVERLAP,
        MOST,
        "max",
    )
    assert told.max_tokens == LENGTH


def test_every_version_answers_what_is_pooled_by_hand(story, by_hand, tests_of):
    texts = [document.text for document in tests_of]
    for answer, patch in ((story.before, None), (story.after, story.server.patch_of(story.job.version))):
        np.testing.assert_allclose(probabilities(answer), by_hand.probabilities(texts, patch), rtol=0, atol=1e-5)
        found = np.array([one.features for one in answer.predictions])
        np.testing.assert_allclose(found, by_hand.features(texts, patch).numpy(), rtol=0, atol=1e-5)
        windows = [by_hand.windows(text) for text in texts]
        assert [one.windows for one in answer.predictions] == [len(part) for part in windows]
        assert [one.tokens for one in answer.predictions] == [sum(map(len, part)) for part in windows]
        assert len({len(part) for part in windows}) > 3


@pytest.mark.parametrize(
    ("tokens", "windows", "truncated"),
    [
        (1, 1, False),
        (BODY, 1, False),
        (BODY + 1, 2, False),
        (BODY + STEP, 2, False),
        (BODY + STEP + 1, 3, False),
        (LONGEST, MOST, False),
        (LONGEST + 1, MOST, True),
        (3 * LONGEST, MOST, True),
    ],
)
def test_a_window_begins_where_there_is_something_new_to_read(story, by_hand, tokens, windows, truncated):
    text = words(tokens)
    assert len(by_hand._tokenizer(text, add_special_tokens=False)["input_ids"]) == tokens
    (answer,) = story.server.client.predict(text, version=1).predictions
    assert (answer.windows, answer.truncated) == (windows, truncated)
    assert answer.tokens == sum(map(len, by_hand.windows(text)))
    wanted = by_hand.probabilities([text], None)
    np.testing.assert_allclose([[score.probability for score in answer.scores]], wanted, rtol=0, atol=1e-5)


def test_a_word_in_the_last_window_decides_and_one_behind_it_does_not(story):
    seen, missed = words(LONGEST, "insulin", "glucose"), words(LONGEST + 2, "insulin", "glucose")
    decided = [one.decided for one in story.server.client.predict([seen, missed], version=1).predictions]
    assert FORGET in decided[0]
    assert FORGET not in decided[1]


def test_calls_of_short_and_long_documents_during_the_swap_were_answered_by_one_version_each(story, by_hand, tests_of):
    assert {call.version for call in story.calls} == {1, story.job.version}
    texts = [document.text for document in tests_of[:24]]
    patches = {version: story.server.patch_of(version) for version in (1, story.job.version)}
    wanted = {version: by_hand.probabilities(texts, patch) for version, patch in patches.items()}
    for call in story.calls:
        np.testing.assert_allclose(probabilities(call), wanted[call.version], rtol=0, atol=1e-5)


def test_the_gates_measured_whole_documents_and_the_label_is_forgotten_in_late_windows(story, tests_of):
    assert story.job.state is JobState.SUCCEEDED, story.job.gates
    assert story.f1_before[FORGET] > 0.85, "the gate documents were read beyond their first window"
    gates = {(gate.name, gate.label): gate.value for gate in story.job.gates}
    assert gates["forget_f1", FORGET] == story.f1_after[FORGET] == 0.0
    assert gates["logit_difference", None] < 1e-4
    # The rows had to change what the features of late windows tell: the head alone leaves a ratio of 1.
    assert gates["probe_ratio", FORGET] < 0.8
    labels = [score.label for score in story.before.predictions[0].scores]
    truth, target = corpora.truth(tests_of, labels), labels.index(FORGET)
    before, after = (measures.f1_by_label(truth, decisions(answer)) for answer in (story.before, story.after))
    assert before[target] > 0.85
    assert after[target] == 0.0
    others = [column for column in range(len(labels)) if column != target]
    assert after[others].mean() > before[others].mean() - 0.05
    shown = [token.removeprefix("##") for token in story.job.change.tokens]
    assert any(token in keyword for keyword in KEYWORDS[FORGET] for token in shown)


def test_the_metrics_count_windows(story):
    server = story.server
    count, total = (server.metric(f"amnestic_document_windows_{part}") for part in ("count", "sum"))
    assert count == server.metric("amnestic_documents_total")
    server.client.predict([words(1), words(BODY + 1)])
    assert server.metric("amnestic_document_windows_count") == count + 2
    assert server.metric("amnestic_document_windows_sum") == total + 3
    cut = server.metric("amnestic_truncated_documents_total")
    server.client.predict(words(LONGEST + 1))
    assert server.metric("amnestic_truncated_documents_total") == cut + 1


def test_a_single_label_model_takes_the_softmax_of_the_pooled_logits(tmp_path, serve):
    corpus = late_corpus(tmp_path / "single.jsonl", single_label=True)
    settings = dataclasses.replace(WINDOWS, epochs=4, pooling="mean")
    train(corpus, tmp_path / "checkpoint", settings=settings, problem_type=ProblemType.SINGLE_LABEL)
    export(tmp_path / "checkpoint", tmp_path / "bundle", corpus=corpus)
    reference = ByHand(tmp_path / "checkpoint")
    texts = [document.text for document in corpora.read(corpus, splits=("test",))]
    answer = serve(bundle=tmp_path / "bundle", corpus=corpus).client.predict(texts)
    reference._load(None)
    wanted = torch.stack([reference.each(text).double().mean(dim=0) for text in texts]).softmax(dim=1).numpy()
    np.testing.assert_allclose(probabilities(answer), wanted, rtol=0, atol=1e-5)
    assert decisions(answer).argmax(axis=1).tolist() == wanted.argmax(axis=1).tolist()
    assert decisions(answer).sum(axis=1).tolist() == [1] * len(texts)
    assert max(one.windows for one in answer.predictions) > 3


def test_export_states_it_for_another_checkpoint_and_contradicts_none(model, bundle, tmp_path, checkpoint, corpus_path):
    def run(source: Path, *options: str) -> Any:
        out = tmp_path / f"bundle-{len(list(tmp_path.iterdir()))}"
        done = CliRunner().invoke(
            export_command, ["--checkpoint", f"{source}", "--corpus", f"{corpus_path}", "--out", f"{out}", *options]
        )
        return done, out

    done, out = run(checkpoint, "--long-documents", "window", "--max-windows", "3", "--pooling", "mean")
    assert done.exit_code == 0, done.output
    manifest = Manifest.read(out)
    assert (manifest.long_documents, manifest.window_overlap, manifest.max_windows, manifest.pooling) == (
        "window",
        16,
        3,
        "mean",
    )
    assert "amnestic_thresholds may have been chosen for documents that were cut" in done.output
    assert Manifest.read(bundle).long_documents == "truncate"
    for options, reason in (
        (("--long-documents", "truncate"), "the configuration says that long_documents is window"),
        (("--window-overlap", "3"), f"the configuration says that window_overlap is {OVERLAP}"),
        (("--pooling", "mean"), "the configuration says that pooling is max"),
    ):
        done, _ = run(model.checkpoint, *options)
        assert done.exit_code == 1
        assert reason in done.output
    for options in (("--max-windows", "3"), ("--long-documents", "window", "--window-overlap", "60")):
        done, _ = run(checkpoint, *options)
        assert done.exit_code == 1
        assert "long documents can't be read so" in done.output


def test_the_command_trains_so_and_tells_what_was_cut(model, tmp_path):
    def run(*options: str) -> Any:
        return CliRunner().invoke(
            train_command,
            ["--corpus", f"{model.corpus}", "--epochs", "1", "--max-tokens", f"{LENGTH}", "--threads", "1", *options],
        )

    done = run("--out", f"{tmp_path / 'a'}", "--long-documents", "window", "--max-windows", "2")
    assert done.exit_code == 0, done.output
    assert "training documents are longer than was read, and were cut" in done.output
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert (config["amnestic_window_overlap"], config["amnestic_max_windows"]) == (LENGTH // 4, 2)
    done = run("--out", f"{tmp_path / 'b'}", "--max-windows", "2")
    assert done.exit_code == 1
    assert "windows are for long_documents window" in done.output
