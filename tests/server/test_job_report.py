"""The report of a job, of receipts signed here: what it says, what it escapes, and what it refuses."""

import copy
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from amnestic import dsse
from amnestic_client import CallsInSecond, SignatureError
from amnestic_server.cli import group
from amnestic_server.job_report import benchmark, calls_figure, intervals
from amnestic_server.job_report.page import Source, render
from amnestic_server.receipt import CLAIM, STATEMENT

HOSTILE = "<script>alert('1')</script>\"><img src=x onerror=alert(1)>{{ 7 * 7 }} https://example.org/"
LIMIT = 200_000
KEY = Ed25519PrivateKey.generate()
PEM = dsse.public_pem(KEY.public_key()).encode()
F1 = {"cardiovascular": 0.87, "endocrine": 0.9, "renal": 0.667}
PARTS = (
    *("What was asked", "What this means", "Before and after", "What an attacker could still find"),
    *("Checks before it could serve", "What was changed", "How long it took", "What is claimed and what is not"),
    *("Evidence, and how to verify it", "Settings and environment"),
)


def statement(forgotten: str = "endocrine") -> dict:
    """Of a job that succeeded; counts give the F1 that stand beside them."""
    digests = [character * 64 for character in "abcdef"]
    others = [label for label in F1 if label != "endocrine"]
    return {
        "_type": STATEMENT,
        "subject": [{"name": "patch", "digest": {"sha256": digests[0]}}],
        "predicateType": dsse.RECEIPT,
        "predicate": {
            "job": {"id": "job-1", "outcome": "SUCCEEDED", "version": 2, "attempts": 1},
            "request": {
                "id": "request-1",
                "by": "token:anna",
                "labels": [forgotten],
                "reason": "policy 12",
                "dry_run": False,
                "stage": False,
                "preset": "amnestic",
                "limits": {},
                "relaxed_gates": ["forget_auroc_max"],
            },
            "forgotten": [forgotten],
            "method": {"preset": "amnestic", "seed": 0},
            "inputs": {"bundle": {"manifest.json": digests[1]}, "corpus": digests[2]},
            "change": {
                "patch_digest": digests[0],
                "row_ids": [5, 6, 7],
                "rows_changed": 3,
                "parameters_changed": 27994,
                "parameters_changed_ratio": 0.0312,
                "tokens": ["insulin", "insulin", "##emia"],
                "forget_documents": 120,
                "retain_documents": 1480,
                "training_seconds": 3.2,
            },
            "gates": [
                {"name": "forget_f1", "label": forgotten, "value": 0.0, "limit": 0.01, "passed": True},
                {"name": "forget_auroc", "label": forgotten, "value": 0.5, "limit": 0.8, "passed": True},
                {"name": "probe_ratio", "label": forgotten, "value": 0.71, "limit": 0.95, "passed": True},
                {"name": "retain_f1_drop", "label": "", "value": -0.01, "limit": 0.02, "passed": True},
            ],
            "measured": {
                "base_f1": {forgotten: F1["endocrine"], **{label: F1[label] for label in others}},
                "f1": {forgotten: 0.0, **{label: F1[label] for label in others}},
                "forget_auroc": {forgotten: 0.5},
                "probe_ratio": {forgotten: 0.71},
            },
            "counts": {
                "base": {forgotten: [45, 5, 5, 250], "cardiovascular": [87, 13, 13, 192], "renal": [2, 1, 1, 301]},
                "candidate": {forgotten: [0, 0, 50, 255], "cardiovascular": [87, 13, 13, 192], "renal": [2, 1, 1, 301]},
            },
            "environment": {"provider": "CPUExecutionProvider"},
            "times": {
                "requested": "2026-11-26T13:38:15.000+00:00",
                "begun": "2026-11-26T13:38:16.000+00:00",
                "ended": "2026-11-26T13:38:28.500+00:00",
                "swap_seconds": 0.00042,
            },
            "audit": {
                "requested": {"seq": 3, "action": "job requested", "digest": digests[3]},
                "ended": {"seq": 5, "action": "job succeeded", "digest": digests[4]},
            },
            "claim": CLAIM,
        },
    }


def signed(stated: dict) -> str:
    return dsse.sign(dsse.IN_TOTO, json.dumps(stated).encode(), KEY)


def report(stated: dict, calls: Sequence[CallsInSecond] | None = None) -> str:
    return render(signed(stated), PEM, Source(receipt="receipt.json", key="key.pem"), calls)


def second(offset: int, calls: int = 100, failed: int = 0, cancelled: int = 0, p99: float | None = 0.02):
    p50, longest = (None, None) if p99 is None else (p99 / 2, p99 * 2)
    return CallsInSecond(offset, calls, failed, cancelled, p50, p99, longest)


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and the text outside of the style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._texts: list[str] = []
        self._in_style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if not self._in_style:
            self._texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self._texts).split())


def loads_nothing(html: str) -> bool:
    """Whether no tag or style names a place outside the page."""
    tags = Page(html).tags
    forbidden = {"script", "link", "img", "iframe", "object", "embed", "form", "base", "use", "image"}
    places = [
        attributes[name] or "" for _, attributes in tags for name in ("src", "href", "action") if name in attributes
    ]
    style = "".join(re.findall(r"<style>(.*?)</style>", html, re.DOTALL))
    return (
        not forbidden & {tag for tag, _ in tags}
        and all(place.startswith("#") for place in places)
        and not any(name.startswith("on") for _, attributes in tags for name in attributes)
        and not any(part in style for part in ("url(", "@import", "http"))
    )


def test_it_has_every_part_in_order_and_loads_nothing() -> None:
    html = report(statement())
    places = [html.index(f">{part}</h2>") for part in PARTS]
    assert places == sorted(places)
    assert loads_nothing(html)
    assert len(html.encode()) < LIMIT


def test_it_says_what_was_asked_changed_and_measured() -> None:
    text = Page(report(statement())).text
    for told in (
        "Forgotten: endocrine",
        "Version 2 was made, which has forgotten endocrine.",
        "Signature verified. The receipt behind this report is as the holder of the key signed it.",
        "token:anna",
        "policy 12",
        "26 November 2026, 13:38:28 UTC",
        "endocrine (forgotten) 50 documents 0.900 0.82 to 0.95 0.000 0.00 to 0.13 -0.900",
        "Kept (2) 0.768 0.768 +0.000",
        "27,994",
        "3.12%",
        "Whole words: 1, parts of words: 1 insulin (2 times) ##emia",
        "0.42 ms",
        "0.8 loosened passed",
        "certified or provable deletion of what the model learned",
        "amnestic receipt verify receipt.json --key key.pem",
        dsse.key_id(KEY.public_key()),
    ):
        assert told in text, told


def test_hostile_text_is_shown_and_never_run() -> None:
    stated = statement(HOSTILE)
    stated["predicate"]["request"] |= {"reason": HOSTILE, "by": HOSTILE}
    stated["predicate"]["change"]["tokens"] = [HOSTILE, "</style>", "<b>"]
    stated["predicate"]["environment"]["provider"] = HOSTILE
    stated["predicate"]["claim"] = {"level": HOSTILE, "claimed": [HOSTILE], "not_claimed": [HOSTILE]}
    stated["predicate"]["job"]["id"] = HOSTILE
    html = report(stated)
    assert loads_nothing(html)
    assert Page(html).tags.count(("b", {})) == 0
    assert HOSTILE in Page(html).text


def test_a_rejected_job_says_that_nothing_was_changed() -> None:
    stated = statement()
    stated["predicate"]["job"] |= {"outcome": "REJECTED", "version": None}
    stated["predicate"]["gates"][2] |= {"value": None, "passed": False}
    stated["predicate"]["measured"]["probe_ratio"]["endocrine"] = None
    stated["predicate"]["times"]["swap_seconds"] = None
    text = Page(report(stated)).text
    assert "Rejected: nothing was changed The request was refused: 1 of 4 checks failed." in text
    assert "no number 0.95 failed" in text
    assert "It was not kept" in text
    assert "The swap itself no swap" in text
    assert "No version became active, so there was no swap." in text


def test_a_trial_run_says_that_nothing_was_changed() -> None:
    stated = statement()
    stated["predicate"]["job"]["version"] = None
    stated["predicate"]["request"]["dry_run"] = True
    text = Page(report(stated)).text
    assert "Trial run: nothing was changed" in text
    assert "the candidate, which does not serve" in text


def test_a_receipt_of_before_the_counts_has_a_report_without_intervals() -> None:
    stated = statement()
    del stated["predicate"]["counts"]
    text = Page(report(stated)).text
    assert "There are no intervals" in text
    assert "endocrine (forgotten) 0.900 0.000 -0.900" in text


def test_who_asked_is_told() -> None:
    stated = copy.deepcopy(statement())
    for by, told in (("", "somebody whom the server does not know by name"), ("token:Dr. Müller", "token:Dr. Müller")):
        stated["predicate"]["request"]["by"] = by
        assert f"Asked by {told}" in Page(report(stated)).text


def test_a_key_that_came_with_the_receipt_proves_less_and_the_report_says_so() -> None:
    text = Page(render(signed(statement()), PEM, Source(server="host:8001"))).text
    assert "this shows that the receipt is whole, not who signed it" in text
    assert "amnestic receipt get job-1 --out receipt.json --server host:8001" in text


def test_of_several_keys_the_one_that_signed_is_named() -> None:
    older = dsse.public_pem(Ed25519PrivateKey.generate().public_key()).encode()
    text = Page(render(signed(statement()), older + PEM, Source(key="keys.pem"))).text
    assert dsse.key_id(KEY.public_key()) in text


def test_a_receipt_that_does_not_verify_gets_no_report(tmp_path: Path) -> None:
    changed = json.loads(signed(statement()))
    changed["payload"] = signed(statement("renal"))[12:40]
    with pytest.raises(SignatureError):
        render(json.dumps(changed), PEM, Source())
    receipt, key, out = (tmp_path / name for name in ("receipt.json", "key.pem", "report.html"))
    receipt.write_text(signed(statement()))
    key.write_text(dsse.public_pem(Ed25519PrivateKey.generate().public_key()))
    run = CliRunner().invoke(group, ["report", "--receipt", str(receipt), "--key", str(key), "--out", str(out)])
    assert run.exit_code == 1
    assert run.stderr.startswith("Error: the receipt does not verify, so there is no report:")
    assert not out.exists()


@pytest.mark.parametrize("arguments", [[], ["job-1", "--receipt", "FILE"], ["--receipt", "FILE"]])
def test_what_to_report_must_be_said_once_and_a_file_needs_a_key(arguments: list[str], tmp_path: Path) -> None:
    file = tmp_path / "receipt.json"
    file.write_text(signed(statement()))
    run = CliRunner().invoke(group, ["report", *(str(file) if one == "FILE" else one for one in arguments)])
    assert run.exit_code == 2


def test_calls_around_the_swap_are_told_as_the_servers_own_unsigned_measurement() -> None:
    calls = [
        second(-3),
        second(-2, 900, p99=0.03),
        second(-1, p99=0.016),
        second(0, 70, 3, 2, 1.5),
        second(1, 0, p99=None),
    ]
    html = report(statement(), calls)
    text = Page(html).text
    for told in (
        "Measured by the server, and not signed: the receipt was made before these seconds were over",
        "Seconds measured 3 2",
        "Calls 1,100 70 Failed 0 3 Given up by the caller 0 2",
        "Half took at most (p50), middle second 10.0 ms 750.0 ms",
        "99 % took at most (p99), middle second 20.0 ms 1,500.0 ms",
        "99 % took at most (p99), worst second 30.0 ms 1,500.0 ms",
        "Longest call 60.0 ms 3,000.0 ms",
        "\N{MINUS SIGN}1 s 100 0 0 8.0 16.0 32.0 0 s 70 3 2 750.0 1,500.0 3,000.0 +1 s 0 0 0",
        " stands below each second in which calls failed",
    ):
        assert told in text, told
    assert loads_nothing(html)
    titles = [attributes for tag, attributes in Page(html).tags if tag == "title"]
    assert [one.get("id") for one in titles] == [None, "figure-title", "calls-title"]


def test_the_drawing_of_calls_is_to_scale_and_has_a_gap_where_nothing_was_answered() -> None:
    drawn = calls_figure.draw(
        [second(-2, p99=0.01), second(-1, p99=0.04), second(0, p99=None), second(1, 5, 5, p99=0.02)]
    )
    assert drawn is not None
    p99, p50 = drawn.series
    bottom, height = drawn.bottom, drawn.bottom - drawn.top
    assert [text for _, text in drawn.scale] == ["0 ms", "10 ms", "20 ms", "30 ms", "40 ms"]
    assert [(bottom - point.y) / height for point in p99.points] == pytest.approx([0.25, 1.0, 0.5], abs=1e-3)
    assert [(bottom - point.y) / height for point in p50.points] == pytest.approx([0.125, 0.5, 0.25], abs=1e-3)
    assert p99.lines == [(p99.points[0], p99.points[1])]
    assert p99.points[1].x < drawn.swap < p99.points[2].x
    assert drawn.failed == [p99.points[2].x]
    assert calls_figure.draw([second(0, 7, 7, p99=None)]) is None


@pytest.mark.parametrize("longest", [1e-6, 0.00031, 0.0099, 0.05, 0.0501, 0.7, 1.0, 29.0])
def test_the_scale_of_times_is_round_and_reaches_the_longest(longest: float) -> None:
    drawn = calls_figure.draw([second(0, p99=longest)])
    assert drawn is not None
    steps = len(drawn.scale) - 1
    highest = float(drawn.scale[-1][1].removesuffix(" ms")) / 1000
    assert 2 <= steps <= 5
    assert longest <= highest * (1 + 1e-9)
    assert highest < 2 * longest
    assert f"{highest / steps:.6e}"[:8] in ("1.000000", "2.000000", "5.000000")


@pytest.mark.parametrize(
    ("calls", "told"),
    [
        (None, "A saved receipt does not hold it"),
        ((), "The server has recorded nothing of it"),
        ([second(-1, 0, p99=None), second(0, 0, p99=None)], "No calls came in these seconds."),
    ],
)
def test_where_there_are_no_calls_to_show_the_report_says_why(calls: Sequence[CallsInSecond] | None, told: str) -> None:
    html = report(statement(), calls)
    assert told in Page(html).text
    assert "calls-title" not in html


def test_the_interval_of_f1_is_wilsons_carried_over() -> None:
    # 5 of 10: 0.2366 to 0.7634, the textbook's.
    assert intervals.wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    low, high = intervals.of_f1((5, 3, 2, 90)) or (0, 0)
    assert (low, high) == pytest.approx((2 * 0.2366 / 1.2366, 2 * 0.7634 / 1.7634), abs=1e-4)
    assert intervals.of_f1((0, 0, 50, 255)) == pytest.approx((0.0, 2 * 0.0713 / 1.0713), abs=1e-3)
    assert intervals.of_f1((0, 0, 0, 305)) is None


def test_the_figures_of_the_benchmark_are_those_of_its_page() -> None:
    page = Path(__file__).parents[2] / "docs" / "benchmarks" / "unlearning.md"
    rows = page.read_text(encoding="utf-8")
    for one in benchmark.MEASURED:
        for name in ("original", "retrained", "amnestic"):
            assert re.search(rf"^\| `{name}` \| {one.cells} \| {getattr(one, name):.3f} \(", rows, re.MULTILINE), (
                one,
                name,
            )
