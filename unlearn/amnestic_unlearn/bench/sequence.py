"""Requests that follow one another, as a server gets them: each starts from the base with the union of the labels.

After each request every label forgotten so far is measured again, so a request that undoes an earlier one shows, and
so does what each further one costs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from amnestic_unlearn.bench import ledger
from amnestic_unlearn.bench.assess import Answers, Held
from amnestic_unlearn.bench.cells import ORIGINAL, RETRAINED, Case, Plan
from amnestic_unlearn.bench.judge import ask, edited_tokens, enough, measure, training_data
from amnestic_unlearn.bench.ledger import Row
from amnestic_unlearn.bench.methods import METHODS, digest, for_encoder
from amnestic_unlearn.bench.run import FORMAT, Tell, Workshop, attempt, claimed, forget, may_pass, provenance
from amnestic_unlearn.forgetting import Forget
from amnestic_unlearn.measures import decide, f1_by_label

# Of `assess`, what is told of each label after each request.
FIGURES = (
    "forget_f1",
    "forget_auroc",
    "probe_auroc",
    "probe_auroc_original",
    "probe_auroc_retrained",
    "probe_recovery",
)


def run(plan: Plan, tell: Tell, methods: Mapping[str, Forget] = METHODS) -> None:
    """Add a row for every request and every label forgotten by it; what is in the file already is left."""
    shop = Workshop(plan)
    for case in claimed(plan):
        for name, step, settings in _left(case, shop, methods):
            tell({**_key(case, name), "step": step, "begun": True})
            for row in _rows(case, name, step, settings, shop, for_encoder(methods[name], case.encoder)):
                ledger.append(plan.results, row)
                tell(row)


def left(plan: Plan, methods: Mapping[str, Forget] = METHODS) -> int:
    """How many rows of the plan are yet to be measured."""
    shop = Workshop(plan)
    return sum(step for case in plan.cases() for _, step, _ in _left(case, shop, methods))


def _left(case: Case, shop: Workshop, methods: Mapping[str, Forget]) -> list[tuple[str, int, str]]:
    """Way of forgetting, number of the request and digest of the settings, of all that has not been measured."""
    rows = ledger.read(shop.plan.results)
    asked = [
        (name, step, _settings(case, for_encoder(methods[name], case.encoder), shop))
        for name in shop.plan.methods
        if name not in (ORIGINAL, RETRAINED)
        for step in range(1, len(case.source.targets) + 1)
    ]
    return [(name, step, settings) for name, step, settings in asked if not _done(rows, case, name, step, settings)]


def retained(answers: Answers, held: Held, forgotten: Sequence[int]) -> float:
    """Macro F1 on the test split of the labels that were not forgotten."""
    test = held.at("test")
    f1 = f1_by_label(held.truth[test], decide(answers.logits[test], held.thresholds))
    return float(np.delete(f1, list(forgotten)).mean())


def _rows(case: Case, name: str, step: int, settings: str, shop: Workshop, method: Forget) -> list[Row]:
    """A row a label; if the request fails, one row with the reason."""
    asked = case.source.targets[:step]
    head = {**_key(case, name), "step": step, "asked": list(asked), "settings": settings}
    found: list[Row] = []

    def work() -> Row:
        found.extend(_measured(case, asked, shop, method))
        return {}

    failure = attempt(work)
    rows = [{**row, "error": ""} for row in found] if not failure["error"] else [{"label": "", **failure}]
    return [{**head, **row, **provenance(case, shop)} for row in rows]


def _measured(case: Case, asked: Sequence[str], shop: Workshop, method: Forget) -> list[Row]:
    enough(shop.documents(case), asked)
    subject = shop.subject(case)
    golds = [shop.gold(case, label) for label in asked]
    columns = [subject.held.labels.index(label) for label in asked]
    outcome, took = forget(method, subject, columns, case, shop.plan)
    answers = ask(outcome, subject.held)
    edited = edited_tokens(outcome, training_data(subject.held, columns))
    rows = []
    for label, gold in zip(asked, golds, strict=True):
        figures = measure(outcome, answers, subject.held, gold.reference, edited)
        rows.append({"label": label, **{name: figures[name] for name in FIGURES}})
    after, before = (retained(given, subject.held, columns) for given in (answers, subject.answers))
    shared = {**took, "retain_f1": after, "retain_f1_delta": after - before}
    return [{**row, **shared} for row in rows]


def _done(rows: Sequence[Row], case: Case, name: str, step: int, settings: str) -> bool:
    wanted: dict[str, Any] = {**_key(case, name), "step": step, "settings": settings}
    found = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    measured = {row["label"] for row in found if not row["error"]}
    failed = any(row["error"] and not may_pass(row["error"]) for row in found)
    return failed or measured.issuperset(case.source.targets[:step])


def _key(case: Case, name: str) -> Row:
    return {"corpus": case.source.name, "encoder": case.encoder.name, "seed": case.seed, "method": name}


def _settings(case: Case, method: Forget, shop: Workshop) -> str:
    encoder = case.encoder
    how = dataclasses.replace(encoder.training, threads=0), encoder.package, shop.weights_digest(case)
    return digest(FORMAT, method, *how, case.source.targets, shop.corpus_digest(case))
