"""The figures of a report against plain loops, its pages byte by byte, and labels that can be read."""

import itertools
import math
import random

import pytest
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation, Text
from tiny import key, measured

from amnestic_unlearn.bench import plots, report, summary, table
from amnestic_unlearn.bench.page import ReportError
from amnestic_unlearn.bench.plots import Point
from amnestic_unlearn.bench.sequence_table import sequence_table
from amnestic_unlearn.bench.style import STYLE
from amnestic_unlearn.bench.summary import Estimate

METHODS = ("original", "retrained", "paper", "bias-edit")
CELLS = [
    (corpus, encoder, seed, target, method)
    for seed in (0, 1)
    for encoder in ("small", "minilm")
    for corpus in ("one", "two")
    for target in ("a", "b")
    for method in METHODS
]


def some_rows():
    """Made-up figures for all cells but minilm's second seed."""
    draw = random.Random(3)
    return [
        measured(
            *cell,
            forget_f1=draw.random(),
            forget_best_f1_excess=draw.random(),
            retain_f1_delta=draw.uniform(-0.3, 0.01),
            seconds=draw.uniform(1, 50),
            parameters_changed=draw.randrange(10**6),
            probe_auroc=draw.uniform(0.5, 1),
            probe_auroc_original=draw.uniform(0.85, 1),
            probe_auroc_retrained=draw.uniform(0.5, 0.8),
            prototype_auroc=draw.uniform(0.6, 1) if cell[4] != "retrained" else draw.uniform(0.4, 0.5),
        )
        for cell in CELLS
        if cell[1:3] != ("minilm", 1)
    ]


@pytest.fixture(scope="module")
def rows():
    return some_rows()


@pytest.fixture(scope="module")
def results(rows):
    return summary.latest(rows, CELLS)


def test_a_mean_is_the_mean_and_lies_in_its_interval(results):
    rows = summary.chosen(results, encoder="small", method="paper")
    found = summary.mean(rows, "forget_f1")
    assert found.value == pytest.approx(sum(row["forget_f1"] for row in rows) / 8)
    assert found.low < found.value < found.high
    assert found.count == len(rows) == 8


def test_the_interval_is_that_of_resampled_labels_with_all_their_seeds(results):
    rows = summary.chosen(results, encoder="small", method="paper")
    cases = {}
    for row in rows:
        cases.setdefault((row["corpus"], row["target"]), []).append(row["forget_f1"])
    assert [len(seeds) for seeds in cases.values()] == [2] * 4
    draw, means = random.Random(0), []
    for _ in range(4000):
        drawn = [value for _ in cases for value in draw.choice(list(cases.values()))]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    found = summary.mean(rows, "forget_f1")
    assert found.low == pytest.approx(means[100], abs=0.02)
    assert found.high == pytest.approx(means[3900], abs=0.02)


def test_figures_that_were_not_measured_are_left_out():
    rows = [{"a": 1.0}, {"a": None}, {}, {"a": 3.0}]
    assert (summary.mean(rows, "a").value, summary.mean(rows, "a").count) == (2.0, 2)
    assert math.isnan(summary.mean([], "a").value)


def test_recovery_is_a_ratio_of_summed_differences(results):
    rows = summary.chosen(results, encoder="small", method="paper")
    part = sum(row["probe_auroc"] - row["probe_auroc_retrained"] for row in rows)
    whole = sum(row["probe_auroc_original"] - row["probe_auroc_retrained"] for row in rows)
    found = summary.recovery(rows, results, "probe_auroc")
    assert found.value == pytest.approx(part / whole)
    ratios = [
        (row["probe_auroc"] - row["probe_auroc_retrained"])
        / (row["probe_auroc_original"] - row["probe_auroc_retrained"])
        for row in rows
    ]
    assert found.value != pytest.approx(sum(ratios) / len(ratios), abs=1e-4)


def test_recovery_takes_the_yardsticks_rows_where_a_row_does_not_hold_them(results):
    rows = summary.chosen(results, encoder="small", method="paper")
    pairs = []
    for row in rows:
        original, retrained = (
            results[(*key(row)[:4], method)]["prototype_auroc"] for method in ("original", "retrained")
        )
        pairs.append((row["prototype_auroc"] - retrained, original - retrained))
    found = summary.recovery(rows, results, "prototype_auroc").value
    assert found == pytest.approx(sum(part for part, _ in pairs) / sum(whole for _, whole in pairs))


def test_where_there_is_nothing_to_recover_none_is_told():
    rows = [measured("one", "small", 0, "a", "paper", probe_auroc_original=0.8, probe_auroc_retrained=0.795)]
    assert math.isnan(summary.recovery(rows, {}, "probe_auroc").value)
    rows = [measured("one", "small", 0, "a", "paper", probe_auroc_original=0.7, probe_auroc_retrained=0.8)]
    assert math.isnan(summary.recovery(rows, {}, "probe_auroc").value)


def test_the_last_row_counts_but_a_failure_replaces_no_figure():
    first, second = (measured("one", "small", 0, "a", "paper", forget_f1=value) for value in (0.1, 0.2))
    failed = measured("one", "small", 0, "a", "paper", error="no")
    cells = [key(first)]
    assert summary.latest([first, second], cells)[cells[0]]["forget_f1"] == 0.2
    assert summary.latest([first, failed], cells)[cells[0]]["forget_f1"] == 0.1
    assert summary.latest([failed, second], cells)[cells[0]]["forget_f1"] == 0.2
    assert summary.latest([first, {**failed, "settings": "others"}], cells)[cells[0]]["error"] == "no"
    assert summary.latest([failed], cells)[cells[0]]["error"] == "no"
    assert summary.latest([first], []) == {}


def test_tables_tell_figures_and_what_is_missing(rows):
    failed = [measured(*key(row), error="the loss is not finite") if row is rows[2] else row for row in rows]
    dropped = [row for row in failed if row is not failed[9]]
    results = summary.latest(dropped, CELLS)
    text = table.tables(results, CELLS)
    assert "46 of 64 cells were measured, 1 failed, 17 were not run." in text
    assert "- failed: paper, one, small, seed 0, a: the loss is not finite\n" in text
    assert "- not run: two, small, seed 0 of a: retrained\n" in text
    assert "- not run: one, minilm, seed 1 of all labels: all methods\n" in text
    paper = summary.chosen(results, encoder="small", method="paper")
    mean = summary.mean(paper, "forget_f1")
    assert f"| `paper` | 7 | {mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f}) |" in text
    one = summary.chosen(results, encoder="small", method="paper", corpus="one")
    assert f"| `paper` | 3 | {sum(row['forget_f1'] for row in one) / 3:.3f} |" in text


@pytest.mark.parametrize(
    ("estimate", "places", "text"),
    [
        (Estimate(0.1234, 0.1, 0.2, 5), 2, "0.12 (0.10 to 0.20)"),
        (Estimate(0.1234, math.nan, math.nan, 3), 2, "0.12"),
        (Estimate(-0.0001, -0.0004, 1234.5, 2), 3, "0.000 (0.000 to 1,234.500)"),
        (Estimate(-0.5, -0.6, -0.4, 2), 1, "-0.5 (-0.6 to -0.4)"),
        (summary.UNKNOWN, 3, "n/a"),
    ],
)
def test_figures_are_written_plainly(estimate, places, text):
    assert table.figure(estimate, places) == text


def test_requests_in_turn_are_told_with_the_worst_label():
    rows = [
        measured(
            "one",
            "small",
            0,
            "",
            "paper",
            step=step,
            asked=["a", "b"][:step],
            label=label,
            forget_f1=f1,
            seconds=float(step),
        )
        for step, label, f1 in ((1, "a", 0.0), (2, "a", 0.5), (2, "b", 0.1))
    ]
    failed = [
        measured("one", "small", 0, "", "paper", step=2, asked=["a", "b"], label="", error="internal error"),
        measured("one", "small", 1, "", "paper", step=1, asked=["a"], label="", error="internal error"),
    ]
    text = sequence_table([failed[0], *rows, failed[1]])
    assert "| small: `paper` | 1 | 0.000 | 0.000 | 0.33 | 0.000 | 1.0 |\n" in text
    assert "| small: `paper` | 2 | 0.300 (0.100 to 0.500) | 0.500 | 0.33 (0.33 to 0.33) | 0.000 | 2.0 |\n" in text
    assert text.endswith("\n1 requests failed.\n")


def test_the_same_rows_give_the_same_report_and_the_page_keeps_what_people_wrote(rows, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    report.write(rows, [], CELLS, one)
    report.write(list(rows), [], CELLS, other)
    names = {"unlearning.md", "unlearning.csv", *(f"unlearning-{plot.name}.svg" for plot in plots.PLOTS)}
    assert {path.name for path in one.iterdir()} == names
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes()
    page = one / "unlearning.md"
    page.write_text(page.read_text().replace("# Unlearning\n", "# Ours\n") + "\nWhat it means.\n")
    written = page.read_text()
    report.write(rows, [], CELLS, one)
    assert page.read_text() == written
    report.write(rows[:5], [], CELLS, one)
    assert page.read_text().startswith("# Ours\n") and page.read_text().endswith("\nWhat it means.\n")
    assert page.read_text() != written


def test_a_page_without_a_place_for_tables_is_left_alone(rows, tmp_path):
    (tmp_path / "unlearning.md").write_text("# Ours\n")
    with pytest.raises(ReportError, match=r"unlearning\.md lacks the lines"):
        report.write(rows, [], CELLS, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["unlearning.md"]


def test_points_are_means_and_stand_only_where_both_are_known(results):
    recovery = next(plot for plot in plots.PLOTS if plot.name == "recovery")
    found = {point.name: point for point in plots.points(recovery, results, CELLS, "small")}
    assert set(found) == set(METHODS)
    rows = summary.chosen(results, encoder="small", method="paper")
    assert found["paper"].across == pytest.approx(sum(row["retain_f1_delta"] for row in rows) / 8)
    # The original takes no time, which a logarithmic axis cannot show.
    time = next(plot for plot in plots.PLOTS if plot.name == "time")
    still = {cell: {**row, "seconds": 0.0} if cell[4] == "original" else row for cell, row in results.items()}
    assert "original" not in {point.name for point in plots.points(time, still, CELLS, "small")}


def test_labels_do_not_overlap_even_where_points_crowd():
    draw = random.Random(1)
    names = [*plots.FAMILY_OF, "paper", "amnestic", "embedding-only", "random-tokens"]
    crowd = [Point(name, draw.gauss(-0.01, 0.003), draw.gauss(0.5, 0.01)) for name in names]
    spread = [Point(name, draw.uniform(-0.5, 0), draw.uniform(0, 1)) for name in names]
    with rc_context(STYLE):
        figure = plots._figure(plots.PLOTS[0], {"crowd": crowd, "spread": spread})
    renderer = FigureCanvasAgg(figure).get_renderer()
    for axes in figure.axes:
        labels = [child for child in axes.get_children() if isinstance(child, Annotation)]
        assert sorted(label.get_text() for label in labels) == sorted(names)
        # An annotation's own extent holds the line to its point too.
        boxes = [Text.get_window_extent(label, renderer) for label in labels]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
