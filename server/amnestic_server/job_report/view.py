"""What a receipt states, in the words and figures of the report. It takes the statement, already verified, and makes no
claim beyond it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from amnestic_server.job_report import intervals

ABSENT = "not recorded"
NO_NUMBER = "no number"
MEANINGS = {
    "forget_f1": "How well the model still finds the forgotten label: its F1",
    "forget_auroc": "Whether the label's own score still ranks documents: 0.5 is chance",
    "probe_ratio": "What a fresh attacker model finds in the features, as a share of before",
    "retain_f1_drop": "How much the other labels lost on the mean, in F1",
    "retain_label_drop": "How much the worst hit of the other labels lost, in F1",
    "encoder_unchanged": "Files of the frozen encoder that changed",
    "only_declared_changed": "Changes beyond those declared",
    "logit_difference": "Difference of the trained from the served figures",
}


@dataclass(frozen=True, slots=True)
class Scored:
    """An F1 with its 95 % interval, where the counts for one were recorded."""

    value: float | None
    interval: tuple[float, float] | None

    @property
    def told(self) -> str:
        return number(self.value)

    @property
    def interval_told(self) -> str:
        return "" if self.interval is None else f"{self.interval[0]:.2f} to {self.interval[1]:.2f}"


@dataclass(frozen=True, slots=True)
class Label:
    """A label before and after. `positives` are the documents measured on that have it, None if not recorded."""

    name: str
    forgotten: bool
    base: Scored
    after: Scored
    positives: int | None

    @property
    def change(self) -> str:
        return signed(difference(self.base.value, self.after.value))


@dataclass(frozen=True, slots=True)
class Gate:
    name: str
    label: str
    meaning: str
    value: str
    limit: str
    passed: bool
    relaxed: bool


@dataclass(frozen=True, slots=True)
class Attack:
    """What still tells a forgotten label."""

    label: str
    auroc: str
    probe_ratio: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome in a heading and a sentence; `kind` is good, bad or neutral."""

    kind: str
    heading: str
    sentence: str


@dataclass(frozen=True, slots=True)
class View:
    """All that the template shows of a statement; facts are names with values."""

    verdict: Verdict
    request: list[tuple[str, str]]
    labels: list[Label]
    kept: list[tuple[str, str, str, str]]
    attacks: list[Attack]
    times: list[tuple[str, str]]
    gates: list[Gate]
    change: list[tuple[str, str]]
    words: list[str]
    pieces: list[str]
    claim: dict[str, Any]
    digests: list[tuple[str, str]]
    settings: list[tuple[str, str]]
    forgotten: str
    job_id: str
    served: bool
    intervals: bool


def view(statement: Mapping[str, Any]) -> View:
    """The view of a verified statement whose predicate is `urn:amnestic:receipt:v1`."""
    said = statement["predicate"]
    job, change, labels = said["job"], said["change"], _labels(said)
    words, pieces = _words(change["tokens"])
    return View(
        verdict=_verdict(said),
        request=_request(said),
        labels=labels,
        kept=_kept(labels),
        attacks=[
            Attack(label, number(auroc), number(said["measured"]["probe_ratio"][label]))
            for label, auroc in said["measured"]["forget_auroc"].items()
        ],
        times=_times(said),
        gates=_gates(said),
        change=_change(change),
        words=words,
        pieces=pieces,
        claim=said["claim"],
        digests=_digests(said),
        settings=_settings(said),
        forgotten=listed(said["forgotten"]),
        job_id=job["id"],
        served=job["version"] is not None,
        intervals=any(label.base.interval or label.after.interval for label in labels),
    )


def number(value: float | None, digits: int = 3) -> str:
    return NO_NUMBER if value is None else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    # Not -0.000.
    return NO_NUMBER if value is None else f"{round(value, 3) + 0.0:+.3f}"


def difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def moment(text: str | None) -> str:
    """A time of a receipt as people write it, in UTC."""
    if text is None:
        return ABSENT
    at = datetime.fromisoformat(text)
    return f"{at.day} {at:%B %Y, %H:%M:%S} UTC"


def seconds(value: float | None) -> str:
    if value is None:
        return ABSENT
    return f"{value * 1000:.2f} ms" if value < 1 else f"{value:.1f} s"


def _verdict(said: Mapping[str, Any]) -> Verdict:
    names, job = listed(said["forgotten"]), said["job"]
    failed = [gate for gate in said["gates"] if not gate["passed"]]
    if job["outcome"] == "REJECTED":
        checks = f"{len(failed)} of {len(said['gates'])} checks failed"
        sentence = f"The request was refused: {checks}. Nothing that answers callers was changed."
        return Verdict("bad", "Rejected: nothing was changed", sentence)
    if job["version"] is None:
        sentence = f"A trial run. Every check passed for {names}, and nothing that answers callers was changed."
        return Verdict("neutral", "Trial run: nothing was changed", sentence)
    sentence = (
        f"Version {job['version']} was made, which has forgotten {names}. Every check passed before it could serve."
    )
    return Verdict("good", f"Forgotten: {names}", sentence)


def _request(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    request, times = said["request"], said["times"]
    return [
        ("Asked to forget", listed(request["labels"])),
        ("Asked by", request["by"] or "somebody whom the server does not know by name"),
        ("Reason given", request["reason"] or "none"),
        ("Asked", moment(times["requested"])),
        ("Ended", moment(times["ended"])),
        ("Kind", "trial run, measured only" if request["dry_run"] else _activation(request)),
        ("Limits loosened", listed(request["relaxed_gates"])),
        ("Job", said["job"]["id"]),
    ]


def _activation(request: Mapping[str, Any]) -> str:
    return (
        "to be staged, and made active by a person" if request["stage"] else "to be made active once every check passes"
    )


def _labels(said: Mapping[str, Any]) -> list[Label]:
    """The forgotten ones first."""
    measured, counts = said["measured"], said.get("counts", {})
    forgotten = set(said["forgotten"])
    labels = []
    for name, base in measured["base_f1"].items():
        of_base, of_candidate = (counts.get(version, {}).get(name) for version in ("base", "candidate"))
        labels.append(
            Label(
                name,
                name in forgotten,
                _scored(base, of_base),
                _scored(measured["f1"][name], of_candidate),
                None if of_base is None else of_base[0] + of_base[2],
            )
        )
    return sorted(labels, key=lambda label: not label.forgotten)


def _scored(value: float | None, counts: Sequence[int] | None) -> Scored:
    return Scored(value, None if counts is None else intervals.of_f1(counts))


def _kept(labels: Sequence[Label]) -> list[tuple[str, str, str, str]]:
    """Mean F1 of the forgotten labels and of the others: name, before, after, change."""
    groups = (("Forgotten", True), ("Kept", False))
    return [_mean(title, [label for label in labels if label.forgotten is which]) for title, which in groups]


def _mean(title: str, labels: Sequence[Label]) -> tuple[str, str, str, str]:
    before = _average([label.base.value for label in labels])
    after = _average([label.after.value for label in labels])
    return f"{title} ({len(labels)})", number(before), number(after), signed(difference(before, after))


def _average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _times(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    times = said["times"]
    asked, begun, ended = (
        times[name] and datetime.fromisoformat(times[name]) for name in ("requested", "begun", "ended")
    )
    return [
        ("Waiting before it began", seconds((begun - asked).total_seconds() if begun else None)),
        ("From its beginning to its end", seconds((ended - begun).total_seconds() if begun and ended else None)),
        ("Training, within that", seconds(said["change"].get("training_seconds"))),
        ("The swap itself", seconds(times["swap_seconds"]) if said["job"]["version"] is not None else "no swap"),
    ]


def _gates(said: Mapping[str, Any]) -> list[Gate]:
    relaxed = set(said["request"]["relaxed_gates"])
    return [
        Gate(
            gate["name"],
            gate["label"],
            MEANINGS.get(gate["name"], ""),
            NO_NUMBER if gate["value"] is None else f"{gate['value']:.3g}",
            f"{gate['limit']:.3g}",
            gate["passed"],
            f"{gate['name']}_max" in relaxed,
        )
        for gate in said["gates"]
    ]


def _change(change: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("Rows of the word table", f"{change['rows_changed']:,}"),
        ("Numbers of the model", f"{change['parameters_changed']:,}"),
        ("Share of the model", f"{change['parameters_changed_ratio']:.2%}"),
        ("Learned from, to forget", f"{change['forget_documents']:,} documents"),
        ("Learned from, to keep", f"{change['retain_documents']:,} documents"),
    ]


def _words(tokens: Sequence[str]) -> tuple[list[str], list[str]]:
    """Whole words, and pieces that go on within one; what reads alike stands once, with its count."""
    alike = Counter(tokens)
    told = {token: token if count == 1 else f"{token} ({count} times)" for token, count in alike.items()}
    pieces = [text for token, text in told.items() if token.startswith("##")]
    return [text for token, text in told.items() if not token.startswith("##")], pieces


def _digests(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    audit, inputs = said["audit"], said["inputs"]
    return [
        ("Patch", said["change"]["patch_digest"]),
        ("Model bundle (manifest)", inputs["bundle"]["manifest.json"]),
        ("Corpus", inputs["corpus"]),
        (f"Audit record {audit['requested']['seq']}, the request", audit["requested"]["digest"]),
        (f"Audit record {audit['ended']['seq']}, the end", audit["ended"]["digest"]),
    ]


def _settings(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, str(value)) for part in ("method", "environment") for name, value in said[part].items()]
