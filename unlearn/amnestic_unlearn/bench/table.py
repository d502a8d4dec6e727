"""The tables of a report in Markdown: what each way of forgetting gives, what an attacker recovers, what is missing."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from amnestic_unlearn.bench.ledger import Row
from amnestic_unlearn.bench.page import markdown
from amnestic_unlearn.bench.summary import Estimate, Key, Results, chosen, mean, recovery

Measure = Callable[[Sequence[Row], Results], Estimate]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of figures; `places` after the point."""

    title: str
    measure: Measure
    places: int = 3


def mean_of(name: str) -> Measure:
    return lambda rows, results: mean(rows, name)


def recovery_of(name: str) -> Measure:
    return lambda rows, results: recovery(rows, results, name)


FORGETTING = (
    Column("forget F1", mean_of("forget_f1")),
    Column("best F1 over chance", mean_of("forget_best_f1_excess")),
    Column("forget AUROC, two-sided", mean_of("forget_auroc_two_sided")),
    Column("retain F1", mean_of("retain_f1")),
    Column("change of retain F1", mean_of("retain_f1_delta")),
    Column("worst label's change", mean_of("retain_worst_delta")),
    Column("processor s", mean_of("seconds"), 1),
    Column("weights changed", mean_of("parameters_changed"), 0),
)
ATTACKS = (
    Column("probe AUROC", mean_of("probe_auroc")),
    Column("probe recovery", recovery_of("probe_auroc"), 2),
    Column("prototype recovery", recovery_of("prototype_auroc"), 2),
    Column("examples to relearn", mean_of("relearn_examples"), 0),
    Column("steps to relearn", mean_of("relearn_steps"), 0),
    Column("bypass recall", mean_of("bypass_recall")),
    Column("bypass probe AUROC", mean_of("bypass_probe_auroc")),
    Column("membership AUROC", mean_of("membership_auroc")),
)
BY_CORPUS = (
    Column("forget F1", mean_of("forget_f1")),
    Column("change of retain F1", mean_of("retain_f1_delta")),
    Column("probe AUROC", mean_of("probe_auroc")),
    Column("probe recovery", recovery_of("probe_auroc"), 2),
    Column("bypass recall", mean_of("bypass_recall")),
    Column("processor s", mean_of("seconds"), 1),
)


ATTACKED = """What an attacker recovers. Efforts that were not enough count as one more than was tried. Bypass recall
and membership are of the label's own logit: where a method erases the head's row it is constant, and they say nothing;
read the probes.
"""


def tables(results: Results, cells: Sequence[Key]) -> str:
    """All tables of a plan's cells, encoder by encoder, ending in a line break."""
    parts = [_coverage(results, cells)]
    for encoder in dict.fromkeys(cell[1] for cell in cells):
        methods = list(dict.fromkeys(cell[4] for cell in cells if cell[1] == encoder))
        if not chosen(results, encoder=encoder):
            continue
        parts.append(f"### Encoder `{encoder}`\n")
        parts.append("What forgetting gives and costs; for `retrained`, the seconds are its training's.\n")
        parts.append(_table(results, FORGETTING, methods, encoder=encoder))
        parts.append(ATTACKED)
        parts.append(_table(results, ATTACKS, methods, encoder=encoder))
        for corpus in dict.fromkeys(cell[0] for cell in cells if cell[1] == encoder):
            if chosen(results, encoder=encoder, corpus=corpus):
                parts.append(f"On `{corpus}`.\n")
                parts.append(_table(results, BY_CORPUS, methods, plain=True, encoder=encoder, corpus=corpus))
    return "\n".join(parts)


def figure(estimate: Estimate, places: int, plain: bool = False) -> str:
    """A value with its interval; `n/a` where nothing is known."""
    if not math.isfinite(estimate.value):
        return "n/a"
    if plain or not math.isfinite(estimate.low):
        return number(estimate.value, places)
    low, high = number(estimate.low, places), number(estimate.high, places)
    return f"{number(estimate.value, places)} ({low} to {high})"


def number(value: float, places: int) -> str:
    """With thousands set apart, and no minus before a zero."""
    text = f"{value:,.{places}f}"
    return text.removeprefix("-") if not text.strip("-0.,") else text


def _table(results: Results, columns: Sequence[Column], methods: Sequence[str], plain: bool = False, **of: str) -> str:
    body = []
    for method in methods:
        rows = chosen(results, method=method, **of)
        if rows:
            figures = (figure(column.measure(rows, results), column.places, plain) for column in columns)
            body.append([f"`{method}`", str(len(rows)), *figures])
    return markdown(["", "cells", *(column.title for column in columns)], body)


def _coverage(results: Results, cells: Sequence[Key]) -> str:
    done = [cell for cell in cells if cell in results and not results[cell]["error"]]
    failed = [cell for cell in cells if cell in results and results[cell]["error"]]
    missing = [cell for cell in cells if cell not in results]
    lines = [f"{len(done)} of {len(cells)} cells were measured, {len(failed)} failed, {len(missing)} were not run.\n"]
    lines += (f"- failed: {_cell(cell)}: {results[cell]['error']}\n" for cell in failed)
    lines += (f"- not run: {text}\n" for text in _gathered(missing, cells))
    return "".join(lines)


def _gathered(missing: Sequence[Key], cells: Sequence[Key]) -> Iterator[str]:
    """The cells that were not run: those of a corpus and an encoder that lack the same methods in one piece."""
    # By corpus, encoder and methods: the labels of each seed.
    lacking: dict[tuple[str, str, tuple[str, ...]], dict[int, list[str]]] = {}
    for (corpus, encoder, seed, label), group in itertools.groupby(missing, key=lambda cell: cell[:4]):
        methods = tuple(cell[4] for cell in group)
        lacking.setdefault((corpus, encoder, methods), {}).setdefault(seed, []).append(label)
    for (corpus, encoder, methods), labels_of in lacking.items():
        every_label = {cell[3] for cell in cells if cell[:2] == (corpus, encoder)}
        every_method = {cell[4] for cell in cells if cell[:2] == (corpus, encoder)}
        seeds_of: dict[str, list[str]] = {}
        for seed, labels in labels_of.items():
            named = "all labels" if every_label.issubset(labels) else ", ".join(labels)
            seeds_of.setdefault(named, []).append(str(seed))
        where = "; ".join(
            f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)} of {labels}" for labels, seeds in seeds_of.items()
        )
        what = "all methods" if every_method.issubset(methods) else ", ".join(methods)
        yield f"{corpus}, {encoder}, {where}: {what}"


def _cell(cell: Key) -> str:
    corpus, encoder, seed, target, method = cell
    return f"{method}, {corpus}, {encoder}, seed {seed}, {target}"
