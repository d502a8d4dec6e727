"""The worker as the server runs it: a process of its own, with files, pipes, signals and limits that are real."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from amnestic_unlearn import corpus, twin
from amnestic_unlearn.__main__ import FAILED, ORPHANED, STOPPED, USAGE
from amnestic_unlearn.errors import (
    InputError,
    NoGateDocumentsError,
    NoRetainDocumentsError,
    NothingToKeepError,
    TooFewForgetDocumentsError,
)
from amnestic_unlearn.manifest import Manifest, file_digest, verify
from amnestic_unlearn.measures import decide, f1_by_label
from amnestic_unlearn.patch import Patch, digest_of
from amnestic_unlearn.spec import (
    EVIDENCE_FILE,
    PATCH_FILE,
    REPORT_FILE,
    Failure,
    JobSpec,
    Method,
    Progress,
    decode_message,
)
from amnestic_unlearn.worker import work

FORGET = "beta"
# Enough to forget on a toy; the defaults are for real models.
METHOD = Method(k=16, epochs=12, embedding_lr=5e-3, head_lr=5e-3)
SECONDS = 120


@pytest.fixture(scope="module")
def manifest(bundle):
    return Manifest.read(bundle)


@pytest.fixture(scope="module")
def job(bundle, corpus_path):
    return JobSpec("job", str(bundle), str(corpus_path), (FORGET,), METHOD)


@pytest.fixture(scope="module")
def done(job, tmp_path_factory):
    """A job that was done: its folder and its messages."""
    out = tmp_path_factory.mktemp("done")
    code, messages = run(job, out)
    assert code == 0, messages
    return out, messages


def start(spec, out):
    spec.write(out / "spec.json")
    arguments = [sys.executable, "-m", "amnestic_unlearn", str(out / "spec.json"), str(out)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def run(spec, out):
    """Exit code and messages; every line of standard output must be a message."""
    with start(spec, out) as process:
        try:
            lines = process.stdout.read().splitlines()
            code = process.wait(SECONDS)
        finally:
            process.kill()
    return code, [decode_message(line) for line in lines]


def until(process, stage):
    """Read messages until the stage has begun."""
    for line in process.stdout:
        message = decode_message(line)
        if isinstance(message, Progress) and message.stage == stage:
            return message
    raise AssertionError("the worker ended first")


def reason(spec, out):
    code, messages = run(spec, out)
    assert code == FAILED
    assert isinstance(messages[-1], Failure)
    assert sum(isinstance(message, Failure) for message in messages) == 1
    assert not (out / PATCH_FILE).exists()
    return messages[-1].reason


def quiet(progress):
    pass


def slow(spec):
    """A job that takes far longer than its test waits."""
    return dataclasses.replace(spec, method=dataclasses.replace(spec.method, epochs=50, batch_size=1))


def gate(corpus_path, manifest):
    documents = corpus.read(corpus_path, splits=("gate",))
    return documents, corpus.truth(documents, manifest.labels)


def test_the_patch_fits_the_bundle_and_declares_what_changed(done, bundle, manifest):
    out, _ = done
    model = twin.load(bundle, manifest)
    patch = Patch.read(out / PATCH_FILE)
    patch.check(verify(bundle, manifest), manifest.labels, model.table, model.head_weight)
    assert patch.forgotten == (FORGET,)
    assert 0 < len(patch.row_ids) <= METHOD.k
    assert not set(patch.row_ids.tolist()) & set(manifest.special_token_ids)


def test_the_toy_forgets_the_label_and_keeps_the_others(done, bundle, corpus_path, manifest):
    out, _ = done
    documents, truth = gate(corpus_path, manifest)
    model = twin.load(bundle, manifest)
    tokens = model.tokenize([document.text for document in documents])
    base = model.evaluate(tokens, model.base(torch.empty(0, dtype=torch.int64))).numpy()
    logits = load_file(out / EVIDENCE_FILE)["gate_logits"].numpy()
    thresholds = np.array(manifest.thresholds)
    before, after = (f1_by_label(truth, decide(scores, thresholds)) for scores in (base, logits))
    target = manifest.labels.index(FORGET)
    others = np.arange(len(manifest.labels)) != target
    assert before[target] > 0.5
    assert after[target] <= 0.01
    assert before[others].mean() - after[others].mean() <= 0.02


def test_the_evidence_is_what_the_patched_model_answers(done, bundle, corpus_path, manifest):
    """With the patch written into the table and the head, and documents one at a time."""
    out, _ = done
    patch = Patch.read(out / PATCH_FILE)
    model = twin.load(bundle, manifest)
    model.table[patch.row_ids] = patch.rows
    documents, _ = gate(corpus_path, manifest)
    ids = model.tokenize([document.text for document in documents])
    rows = [torch.from_numpy(row.astype(np.int64))[None] for (row,) in ids]
    with torch.no_grad():
        features = torch.cat([model.features(model.table[row], torch.ones_like(row)) for row in rows])
    expected = features @ patch.head_weight.T + patch.head_bias
    evidence = load_file(out / EVIDENCE_FILE)
    assert set(evidence) == {"gate_logits"}
    assert evidence["gate_logits"].dtype == torch.float32
    torch.testing.assert_close(evidence["gate_logits"], expected, rtol=0, atol=1e-4)


def test_the_report_counts_what_changed(done, bundle, corpus_path, manifest):
    out, _ = done
    report, patch = json.loads((out / REPORT_FILE).read_text()), Patch.read(out / PATCH_FILE)
    base = twin.load(bundle, manifest)
    head = int((patch.head_weight != base.head_weight).sum() + (patch.head_bias != base.head_bias).sum())
    truth = corpus.truth(corpus.read(corpus_path, splits=("train",)), manifest.labels)
    has = truth[:, manifest.labels.index(FORGET)]
    assert report["rows_changed"] == len(patch.row_ids) == len(report["tokens"])
    assert report["parameters_changed"] == patch.rows.numel() + head
    assert report["parameters_changed_ratio"] == report["parameters_changed"] / manifest.parameters
    assert (report["forget_documents"], report["retain_documents"]) == (has.sum(), (~has).sum())
    assert report["encoder_digest_before"] == report["encoder_digest_after"] == base.encoder_digest()
    assert report["corpus_digest"] == file_digest(corpus_path)
    assert report["method"] == dataclasses.asdict(METHOD)
    assert len(report["epochs"]) == METHOD.epochs
    assert report["epochs"][-1]["forget"] < report["epochs"][0]["forget"]
    assert {base.tokenizer.token_to_id(token) for token in report["tokens"]} == set(patch.row_ids.tolist())


def test_only_the_results_are_left_in_the_folder(done):
    out, _ = done
    assert {path.name for path in out.iterdir()} == {"spec.json", PATCH_FILE, EVIDENCE_FILE, REPORT_FILE}


def test_messages_tell_every_stage_in_order(done):
    _, messages = done
    stages = [message.stage for message in messages]
    assert list(dict.fromkeys(stages)) == ["loading", "selecting", "training", "evaluating"]
    steps = [message.step for message in messages if message.stage == "training"]
    assert steps == sorted(steps)


def test_progress_counts_the_epochs_that_there_are(job, tmp_path):
    cut = dataclasses.replace(METHOD, epochs=30, max_steps=9, batch_size=32)
    messages = []
    work(dataclasses.replace(job, method=cut), tmp_path, messages.append)
    trained = len(json.loads((tmp_path / REPORT_FILE).read_text())["epochs"])
    assert 1 < trained < 9
    by_stage = {message.stage: (message.epoch, message.epochs) for message in messages}
    assert by_stage == {
        "loading": (0, 0),
        "selecting": (0, 0),
        "training": (trained, trained),
        "evaluating": (trained, trained),
    }
    assert {message.epochs for message in messages if message.stage == "training"} == {trained}


def test_the_same_job_gives_the_same_patch(done, job, tmp_path):
    code, _ = run(job, tmp_path)
    assert code == 0
    assert (tmp_path / PATCH_FILE).read_bytes() == (done[0] / PATCH_FILE).read_bytes()


def test_several_labels_are_forgotten_together(job, corpus_path, manifest, tmp_path):
    forget = tuple(manifest.labels[:2])
    work(dataclasses.replace(job, forget=forget), tmp_path, quiet)
    _, truth = gate(corpus_path, manifest)
    logits = load_file(tmp_path / EVIDENCE_FILE)["gate_logits"].numpy()
    f1 = f1_by_label(truth, decide(logits, np.array(manifest.thresholds)))
    assert Patch.read(tmp_path / PATCH_FILE).forgotten == forget
    assert f1[:2].max() <= 0.01
    assert f1[2:].min() > 0.5


def test_rates_of_zero_change_nothing_and_declare_nothing(job, tmp_path):
    method = Method(k=4, epochs=1, embedding_lr=0.0, head_lr=0.0)
    work(dataclasses.replace(job, method=method), tmp_path, quiet)
    assert len(Patch.read(tmp_path / PATCH_FILE).row_ids) == 0
    assert json.loads((tmp_path / REPORT_FILE).read_text())["parameters_changed"] == 0


def test_an_unknown_label_is_refused(job, tmp_path):
    assert "does not have a label" in reason(dataclasses.replace(job, forget=("omega",)), tmp_path)


def test_forgetting_every_label_is_refused(job, manifest, tmp_path):
    with pytest.raises(NothingToKeepError):
        work(dataclasses.replace(job, forget=manifest.labels), tmp_path, quiet)


@pytest.mark.parametrize("name", ["encoder.safetensors", "manifest.json"])
def test_a_corrupt_bundle_is_refused_by_the_file_at_fault(job, bundle, tmp_path, name):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    data = bytearray((copy / name).read_bytes())
    data[0] ^= 0xFF
    (copy / name).write_bytes(data)
    assert name in reason(dataclasses.replace(job, bundle=str(copy)), tmp_path)


def corpus_with(corpus_path, tmp_path, change):
    documents = [changed for document in corpus.read(corpus_path) if (changed := change(document))]
    path = tmp_path / "changed.jsonl"
    corpus.write(documents, path)
    return str(path)


def test_too_few_documents_of_a_label_are_refused(job, corpus_path, tmp_path):
    left = iter(range(9))

    def fewer(document):
        if FORGET in document.labels and document.split == "train" and next(left, None) is None:
            return None
        return document

    path = corpus_with(corpus_path, tmp_path, fewer)
    with pytest.raises(TooFewForgetDocumentsError):
        work(dataclasses.replace(job, corpus=path), tmp_path, quiet)


def test_a_corpus_without_retain_documents_is_refused(job, corpus_path, tmp_path):
    def everywhere(document):
        return dataclasses.replace(document, labels=(*document.labels, FORGET))

    path = corpus_with(corpus_path, tmp_path, everywhere)
    with pytest.raises(NoRetainDocumentsError):
        work(dataclasses.replace(job, corpus=path), tmp_path, quiet)


def test_a_corpus_without_gate_documents_is_refused(job, corpus_path, tmp_path):
    path = corpus_with(corpus_path, tmp_path, lambda document: document if document.split == "train" else None)
    with pytest.raises(NoGateDocumentsError):
        work(dataclasses.replace(job, corpus=path), tmp_path, quiet)


def test_a_corpus_with_a_foreign_label_is_refused_without_its_text(job, corpus_path, tmp_path):
    def foreign(document):
        return dataclasses.replace(document, labels=("omega",), text="Jane Doe, secret")

    with pytest.raises(InputError, match="row 1") as refusal:
        work(dataclasses.replace(job, corpus=corpus_with(corpus_path, tmp_path, foreign)), tmp_path, quiet)
    assert "Jane" not in str(refusal.value) and "secret" not in str(refusal.value)


def test_an_unforeseen_error_is_named_by_type_and_place_alone(job, tmp_path):
    job.write(tmp_path / "spec.json")
    fields = json.loads((tmp_path / "spec.json").read_text()) | {"method": {"surprise": "Jane Doe"}}
    (tmp_path / "spec.json").write_text(json.dumps(fields))
    arguments = [sys.executable, "-m", "amnestic_unlearn", str(tmp_path / "spec.json"), str(tmp_path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        message = decode_message(process.stdout.read())
        assert process.wait(SECONDS) == FAILED
    assert message.reason.startswith("internal error: TypeError at spec.py:")
    assert "Jane" not in message.reason


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts anonymous memory on Linux alone")
def test_the_memory_limit_holds_from_the_first_import_on(job, tmp_path):
    """Memory may end in Python, in C++ or in the dynamic loader, which end the process each in its own way."""
    code, messages = run(dataclasses.replace(job, memory_bytes=160 << 20), tmp_path)
    assert code not in (0, USAGE, ORPHANED, STOPPED)
    assert not any(isinstance(message, Progress) for message in messages)
    assert not (tmp_path / PATCH_FILE).exists()


def test_wrong_arguments_are_told_on_standard_error(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "amnestic_unlearn", str(tmp_path)], capture_output=True, timeout=SECONDS, check=False
    )
    assert process.returncode == USAGE
    assert not process.stdout
    assert process.stderr.startswith(b"usage:")


def test_the_worker_leaves_when_its_parent_is_gone(job, tmp_path):
    with start(slow(job), tmp_path) as process:
        until(process, "training")
        process.stdin.close()
        assert process.wait(10) == ORPHANED
    assert not (tmp_path / PATCH_FILE).exists()


def test_the_worker_leaves_when_nobody_listens(job, tmp_path):
    with start(slow(job), tmp_path) as process:
        until(process, "training")
        process.stdout.close()
        assert process.wait(10) == ORPHANED


def test_the_worker_stops_quietly_when_told(job, tmp_path):
    with start(slow(job), tmp_path) as process:
        until(process, "training")
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read().splitlines()
        assert process.wait(10) == STOPPED
    assert all(isinstance(decode_message(line), Progress) for line in rest)
    assert {path.name for path in tmp_path.iterdir()} == {"spec.json"}


@pytest.mark.parametrize("seed", range(2))
def test_a_kill_leaves_a_whole_patch_or_none(job, done, tmp_path, seed):
    whole = digest_of((done[0] / PATCH_FILE).read_bytes())
    with start(job, tmp_path) as process:
        until(process, "evaluating")
        time.sleep(random.Random(seed).uniform(0.0, 0.15))
        process.kill()
    if (tmp_path / PATCH_FILE).exists():
        assert digest_of((tmp_path / PATCH_FILE).read_bytes()) == whole
        assert {EVIDENCE_FILE, REPORT_FILE} <= {path.name for path in tmp_path.iterdir()}


def restrained(job, tmp_path, show, **options):
    """What a process shows once it has restrained itself."""
    dataclasses.replace(job, threads=3, memory_bytes=1 << 30).write(tmp_path / "spec.json")
    program = f"""
import os, pathlib, resource
from amnestic_unlearn.__main__ import restrain
from amnestic_unlearn.spec import JobSpec
restrain(JobSpec.read(pathlib.Path({str(tmp_path / "spec.json")!r})))
print({show})
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True, **options)
    return done.stdout.split()


def test_the_process_restrains_itself(job, tmp_path):
    limits = "*resource.getrlimit(resource.RLIMIT_DATA)"
    shown = restrained(job, tmp_path, f'os.nice(0), os.environ["OMP_NUM_THREADS"], {limits}')
    assert shown == [str(min(os.nice(0) + 10, 19)), "3", "1073741824", "1073741824"]


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel weighs no sessions")
def test_a_session_of_its_own_is_restrained_as_a_whole(job, tmp_path):
    ours = Path("/proc/self/autogroup").read_text()
    show = 'pathlib.Path("/proc/self/autogroup").read_text()'
    assert restrained(job, tmp_path, show, start_new_session=True)[-2:] == ["nice", "10"]
    restrained(job, tmp_path, show)
    assert Path("/proc/self/autogroup").read_text() == ours
