"""Every family beside BERT from its checkpoint to answers after a label was forgotten, beside Hugging Face's own.

The two that differ most from BERT, by a SentencePiece tokenizer and by embeddings narrower than the layers, go over the
wire: a real server and a real job with its gates. For the others the worker and the engine are called by themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from e2e.harness import METHOD, Reference
from safetensors.torch import load_file
from toys import KEYWORDS, LABELS, MAX_TOKENS, toy_checkpoint

from amnestic_client import JobState
from amnestic_server import bundle as bundles
from amnestic_server.engine import Engine
from amnestic_server.export import export
from amnestic_server.snapshot import Snapshot, base_snapshot, patched_snapshot
from amnestic_server.tokenizer import DocumentTokenizer
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.manifest import Manifest
from amnestic_unlearn.measures import f1_by_label
from amnestic_unlearn.patch import Patch
from amnestic_unlearn.spec import PATCH_FILE, JobSpec, Method
from amnestic_unlearn.worker import work

FORGET = "beta"
PLACE = LABELS.index(FORGET)
CPU = torch.device("cpu")


@pytest.fixture
def made(request, tmp_path, corpus_path):
    """A family's toy: its checkpoint and its bundle."""
    torch.set_num_threads(1)
    toy_checkpoint(tmp_path / "checkpoint", corpus_path, request.param)
    export(tmp_path / "checkpoint", tmp_path / "bundle", corpus=corpus_path)
    return tmp_path


@pytest.mark.parametrize(("made", "width"), [("xlm-roberta", 32), ("electra", 24)], indirect=["made"])
def test_a_job_on_a_server_forgets(made: Path, width: int, texts, serve, until) -> None:
    server = serve(bundle=made / "bundle")
    assert until(lambda: server.client.list_versions()[0].f1)[FORGET] > 0.8
    before = server.client.predict(texts)
    job = server.ended(server.forget(FORGET, reason="a test"))
    after = server.client.predict(texts)
    # Every gate, on the served path; that of the probe at its default.
    assert job.state is JobState.SUCCEEDED, job.gates or job.error
    assert until(lambda: server.client.list_versions()[-1].f1)[FORGET] < 0.1

    reference = Reference(made / "checkpoint")
    for answer in (before, after):
        wanted = reference.probabilities(texts, server.patch_of(answer.version))
        found = [[score.probability for score in one.scores] for one in answer.predictions]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert [answer.version for answer in (before, after)] == [1, 2]
    assert any(one.truncated and one.tokens == MAX_TOKENS for one in before.predictions)

    # The rows are those before a projection, and the report shows words as they are written, or how they begin.
    manifest = Manifest.read(made / "bundle")
    assert (manifest.embedding_size, manifest.hidden_size) == (width, 32)
    assert load_file(server.patch_of(2))["rows"].shape == (job.change.rows_changed, width)
    shown = [piece for piece in job.change.tokens if len(piece) > 2]
    assert not any("▁" in piece for piece in shown)
    assert sum(any(word.startswith(piece) for word in KEYWORDS[FORGET]) for piece in shown) >= 3


@dataclass(frozen=True, slots=True)
class Row:
    ids: Any
    snapshot: Snapshot


def served(engine: Engine, snapshot: Snapshot, tokenizer: DocumentTokenizer, texts: Sequence[str]) -> Any:
    """Logits [text, label] in one padded batch."""
    rows = [Row(encoded.windows[0], snapshot) for encoded in tokenizer.encode(texts)]
    return engine.run(engine.prepare(rows)).logits


@pytest.mark.parametrize("made", ["distilbert", "roberta", "camembert"], indirect=True)
def test_the_worker_forgets_and_the_engine_answers_as_hugging_face(made: Path, corpus_path: Path) -> None:
    method = {name: value for name, value in METHOD.items() if name != "preset"}
    spec = JobSpec("job", str(made / "bundle"), str(corpus_path), (FORGET,), Method(**method))
    (made / "out").mkdir()
    work(spec, made / "out", lambda progress: None)

    bundle, path = bundles.load(made / "bundle"), made / "out" / PATCH_FILE
    engine, tokenizer = Engine(bundle), DocumentTokenizer(bundle.tokenizer, bundle.manifest.reading)
    patched = patched_snapshot(bundle, Patch.from_bytes(path.read_bytes()), 2, CPU)
    documents = corpora.read(corpus_path, splits=("test",))
    texts, reference = [document.text for document in documents], Reference(made / "checkpoint")
    f1 = []
    for snapshot, patch in ((base_snapshot(bundle, CPU), None), (patched, path)):
        logits = served(engine, snapshot, tokenizer, texts)
        np.testing.assert_allclose(logits, reference.logits(texts, patch).numpy(), rtol=0, atol=1e-4)
        f1.append(f1_by_label(corpora.truth(documents, LABELS), logits > 0))
    assert f1[0][PLACE] > 0.8 and f1[0].mean() > 0.8
    assert f1[1][PLACE] < 0.1 and np.delete(f1[1], PLACE).mean() > 0.6
