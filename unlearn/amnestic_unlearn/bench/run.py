"""Runs the cells of a plan, one process of perhaps several: whatever is done already, or being done, is left.

The documents are tokenized once a tokenizer, a classifier asked once, and the gold standard once a label. A cell that
fails becomes a row with its reason, and the run goes on.
"""

import dataclasses
import datetime
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from amnestic_unlearn import corpus as corpora
from amnestic_unlearn import twin as twins
from amnestic_unlearn.__main__ import reason_of
from amnestic_unlearn.architecture import CheckpointError
from amnestic_unlearn.bench import ledger
from amnestic_unlearn.bench.assess import hold, refer
from amnestic_unlearn.bench.cells import RETRAINED, Case, Plan
from amnestic_unlearn.bench.judge import Gold, Subject, ask, edited_tokens, enough, measure, training_data
from amnestic_unlearn.bench.ledger import Row
from amnestic_unlearn.bench.machine import cpu, package_version
from amnestic_unlearn.bench.matrix import BenchEncoder, weights_digest
from amnestic_unlearn.bench.methods import METHODS, digest, for_encoder, unchanged
from amnestic_unlearn.bench.models import load_retrained, trained
from amnestic_unlearn.checkpoint import transformers_silent
from amnestic_unlearn.corpus import CorpusError, Document
from amnestic_unlearn.errors import OutOfMemoryError
from amnestic_unlearn.forgetting import Forget, Outcome
from amnestic_unlearn.manifest import TOKENIZER, file_digest
from amnestic_unlearn.spec import Progress
from amnestic_unlearn.train_settings import TrainError
from amnestic_unlearn.twin import Twin
from amnestic_unlearn.windows import Reading, Windows
from amnestic_unlearn.worker import changed_only

# Raised when what a row measures changes, so that older rows are measured anew.
FORMAT = 1
SECONDS_BETWEEN_LOOKS = 2.0
UNFORESEEN = "internal error"
# Stands for a method in what is told while both classifiers are made.
TRAINING = "training"

Tell = Callable[[Row], None]


@dataclass(slots=True)
class Workshop:
    """What several cases share. Of classifiers it keeps the last alone: cases come classifier by classifier."""

    plan: Plan
    _documents: dict[str, list[Document]] = field(default_factory=dict)
    _digests: dict[str, str] = field(default_factory=dict)
    _tokens: dict[tuple[str, str, Reading], list[Windows]] = field(default_factory=dict)
    _subject: tuple[Any, Subject] | None = None
    _golds: tuple[Any, dict[str, Gold]] | None = None

    def documents(self, case: Case) -> list[Document]:
        path = case.source.path
        if path not in self._documents:
            self._documents[path] = corpora.read(Path(path))
        return self._documents[path]

    def corpus_digest(self, case: Case) -> str:
        path = case.source.path
        if path not in self._digests:
            self._digests[path] = corpora.digest(Path(path))
        return self._digests[path]

    def weights_digest(self, case: Case) -> str:
        """Of the pretrained weights that lie in a folder; empty if there is none: a package goes by its name."""
        path = case.encoder.path
        if path and path not in self._digests:
            self._digests[path] = weights_digest(Path(path))
        return self._digests[path] if path else ""

    def subject(self, case: Case) -> Subject:
        """The classifier that knows every label. Raises TrainError and CorpusError."""
        key = case.key[:3]
        if self._subject is None or self._subject[0] != key:
            model = trained(self.plan.models, case.source, fitted(case.encoder, self.plan), case.seed)
            set_threads(case.encoder, self.plan)
            with transformers_silent():
                twin = twins.from_checkpoint(model.checkpoint, mixed(case.encoder))
            self._subject = key, self._asked(case, twin, model.checkpoint, model.seconds)
        return self._subject[1]

    def gold(self, case: Case, target: str) -> Gold:
        """The classifier that never saw a label, in the original's order of labels. Raises as `subject` does."""
        key = case.key[:3]
        if self._golds is None or self._golds[0] != key:
            self._golds = key, {}
        golds = self._golds[1]
        if target not in golds:
            original = self.subject(case)
            labels = original.held.labels
            model = trained(self.plan.models, case.source, fitted(case.encoder, self.plan), case.seed, target)
            set_threads(case.encoder, self.plan)
            with transformers_silent():
                twin = load_retrained(model.checkpoint, labels, mixed(case.encoder))
            gold = self._asked(case, twin, model.checkpoint, model.seconds)
            column = labels.index(target)
            golds[target] = Gold(gold, refer(original.answers, gold.answers, original.held, column, case.seed))
        return golds[target]

    def _asked(self, case: Case, twin: Twin, checkpoint: Path, seconds: float) -> Subject:
        key = case.source.path, file_digest(checkpoint / TOKENIZER), twin.manifest.reading
        documents = self.documents(case)
        if key not in self._tokens:
            self._tokens[key] = twin.tokenize([document.text for document in documents])
        held = hold(documents, twin, self._tokens[key])
        return Subject(twin, held, ask(unchanged(twin, training_data(held, ()), 0, _silent), held), seconds)


def run(plan: Plan, tell: Tell, methods: Mapping[str, Forget] = METHODS) -> None:
    """Add a row for every cell of the plan that has none; returns when all are done, here or elsewhere.

    `tell` gets each row as it is written, and before each cell a row with the cell's key and `begun`.
    """
    shop = Workshop(plan)
    for case in claimed(plan):
        names = _left(case, shop, methods)
        if not names:
            continue
        tell({**_named(case, TRAINING), "begun": True})
        unfit = attempt(functools.partial(_prepare, case, shop))
        for name in names:
            tell({**_named(case, name), "begun": True})
            work = functools.partial(_measured, case, name, shop, methods)
            measured = unfit if unfit["error"] else attempt(work)
            settings = {"settings": _settings(case, name, shop, methods)}
            row = {**_named(case, name), **settings, **measured, **provenance(case, shop)}
            ledger.append(plan.results, row)
            tell(row)


def left(plan: Plan, methods: Mapping[str, Forget] = METHODS) -> int:
    """How many cells of the plan have no row yet."""
    shop = Workshop(plan)
    return sum(len(_left(case, shop, methods)) for case in plan.cases())


def claimed(plan: Plan) -> Iterator[Case]:
    """Each case once, while no other process has it. Those that others have come last, to see that they were done."""
    waiting = list(plan.cases())
    while waiting:
        others = []
        for case in waiting:
            with ledger.claim(plan.claims, claim_name(plan, case)) as ours:
                if ours:
                    yield case
                else:
                    others.append(case)
        if len(others) == len(waiting):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        waiting = others


def claim_name(plan: Plan, case: Case) -> str:
    """What a process claims before it measures a case."""
    return f"{plan.results.name} {case.key}"


def finished(rows: Sequence[Row]) -> set[tuple[Any, ...]]:
    """The keys, with the digest of the settings, of cells that need no other run: measured, or failed for good."""
    return {
        (*(row[name] for name in ("corpus", "encoder", "seed", "target", "method")), row["settings"])
        for row in rows
        if not may_pass(row["error"])
    }


def may_pass(error: str) -> bool:
    """Whether a cell that failed is worth another run."""
    return error.startswith(UNFORESEEN) or error == OutOfMemoryError.reason


def attempt(work: Callable[[], Row]) -> Row:
    """What a piece of work measured, with an empty `error`, or why it failed: a text that holds no data."""
    try:
        return {**work(), "error": ""}
    except (CheckpointError, TrainError, CorpusError) as error:
        return {"error": str(error)}
    except Exception as error:
        return {"error": reason_of(error)}


def forget(method: Forget, subject: Subject, targets: Sequence[int], case: Case, plan: Plan) -> tuple[Outcome, Row]:
    """The outcome, and what it took: processor seconds, as training is timed, and seconds on the wall."""
    set_threads(case.encoder, plan)
    data = training_data(subject.held, targets)
    begin, busy = time.monotonic(), time.process_time()
    outcome = method(subject.twin, data, case.seed, _silent)
    return outcome, {"seconds": time.process_time() - busy, "wall_seconds": time.monotonic() - begin}


def mixed(encoder: BenchEncoder) -> bool:
    """Forgetting and evaluation run in the precision that the encoder was trained in."""
    return encoder.training.precision == "bf16"


def fitted(encoder: BenchEncoder, plan: Plan) -> BenchEncoder:
    """The same, trained with no more threads than the plan allows."""
    threads = [count for count in (encoder.training.threads, plan.threads) if count]
    return dataclasses.replace(encoder, training=dataclasses.replace(encoder.training, threads=min(threads, default=0)))


def set_threads(encoder: BenchEncoder, plan: Plan) -> None:
    """Those that the encoder is trained with."""
    if threads := fitted(encoder, plan).training.threads:
        torch.set_num_threads(threads)


def provenance(case: Case, shop: Workshop) -> Row:
    """Under what a row was measured."""
    return {
        "precision": case.encoder.training.precision,
        "threads": torch.get_num_threads(),
        "cpu": cpu(),
        "torch": torch.__version__,
        "transformers": package_version("transformers"),
        "amnestic": package_version("amnestic"),
        "corpus_digest": shop.corpus_digest(case),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _left(case: Case, shop: Workshop, methods: Mapping[str, Forget]) -> list[str]:
    done = finished(ledger.read(shop.plan.results))
    return [name for name in shop.plan.methods if (*case.key, name, _settings(case, name, shop, methods)) not in done]


def _prepare(case: Case, shop: Workshop) -> Row:
    """Have both classifiers, before anything is measured."""
    enough(shop.documents(case), [case.target])
    shop.gold(case, case.target)
    return {}


def _measured(case: Case, name: str, shop: Workshop, methods: Mapping[str, Forget]) -> Row:
    subject, gold = shop.subject(case), shop.gold(case, case.target)
    target = subject.held.labels.index(case.target)
    if name == RETRAINED:
        outcome, took = _as_outcome(gold.subject), {"seconds": gold.subject.seconds}
    else:
        outcome, took = forget(for_encoder(methods[name], case.encoder), subject, [target], case, shop.plan)
    edited = edited_tokens(outcome, training_data(subject.held, [target]))
    return {
        **took,
        "train_seconds": subject.seconds,
        "retrain_seconds": gold.subject.seconds,
        "parameters_changed": outcome.parameters_changed,
        "rows_changed": len(changed_only(outcome.weights, outcome.twin.table).row_ids),
        **measure(outcome, ask(outcome, subject.held, target), subject.held, gold.reference, edited),
    }


def _as_outcome(gold: Subject) -> Outcome:
    """The gold standard, whose every weight may be another."""
    return Outcome(gold.twin, gold.twin.base(torch.empty(0, dtype=torch.int64)), gold.twin.manifest.parameters)


def _named(case: Case, name: str) -> Row:
    return dict(zip(("corpus", "encoder", "seed", "target", "method"), (*case.key, name), strict=True))


def _settings(case: Case, name: str, shop: Workshop, methods: Mapping[str, Forget]) -> str:
    """A digest of all that decides a row: the method's settings, how and from what the classifier was trained."""
    encoder = case.encoder
    how = RETRAINED if name == RETRAINED else for_encoder(methods[name], encoder)
    # As of a model's recipe, threads are no part of it.
    training = dataclasses.replace(encoder.training, threads=0)
    return digest(FORMAT, how, training, encoder.package, shop.weights_digest(case), shop.corpus_digest(case))


def _silent(progress: Progress) -> None:
    pass
