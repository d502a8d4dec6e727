"""Any table as a corpus: forms of labels, what is left out, how splits are named or made, and what is refused."""

import csv
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from amnestic_server.cli import group
from amnestic_unlearn import corpus, shares
from amnestic_unlearn.corpus import SPLITS, CorpusError, Document
from amnestic_unlearn.import_table import Choice, ImportedTable, import_table
from amnestic_unlearn.label_forms import one_column
from amnestic_unlearn.sources import Source, files
from amnestic_unlearn.table_rows import DIVIDE, DROP, Columns

SECRET = "Mr Secret"
Rows = list[dict[str, Any]]


def rows_of(count: int = 200, split: bool = False) -> Rows:
    """Notes of patients with two each, and of labels of which one is rare."""
    draw = random.Random(5)
    rows = []
    for number in range(count):
        labels = [label for label, odds in (("renal", 0.4), ("cardiac", 0.4), ("rare", 0.25)) if draw.random() < odds]
        row = {"text": f"Note {number} tells of {labels}", "labels": labels, "group": f"p{number // 2}"}
        rows.append({**row, "split": SPLITS[number // 2 % 4]} if split else row)
    return rows


def save(path: Path, rows: Rows) -> Path:
    """JSON Lines, or CSV with lists as JSON."""
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(
                {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}
                for row in rows
            )
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def imported(
    tmp_path: Path, rows: Rows, columns: Columns | None = None, **choice: Any
) -> tuple[ImportedTable, list[Document]]:
    source = files.opened(str(save(tmp_path / "table.jsonl", rows)))
    out = tmp_path / "c.parquet"
    result = import_table(source, columns or Columns(), Choice(**choice), out)
    documents = corpus.read(out)
    assert len(documents) == result.documents == sum(result.splits.values())
    assert result.unlabelled == sum(not document.labels for document in documents)
    assert result.splits == {split: sum(document.split == split for document in documents) for split in SPLITS}
    return result, documents


def refused(tmp_path: Path, rows: Rows, columns: Columns | None = None, **choice: Any) -> str:
    """The reason, which never quotes a text; no file is left, nor is one that was there touched."""
    source = files.opened(str(save(tmp_path / "table.jsonl", rows)))
    out = tmp_path / "c.parquet"
    out.write_text("as it was")
    with pytest.raises(CorpusError) as error:
        import_table(source, columns or Columns(), Choice(**choice), out)
    assert out.read_text() == "as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.parquet", "table.jsonl"]
    assert SECRET not in str(error.value)
    return str(error.value)


def test_columns_are_mapped_and_nothing_else_is_changed(tmp_path: Path) -> None:
    rows = rows_of(split=True)
    mapped = [
        {"note": f"  {row['text']}\n", "codes": row["labels"], "part": row["split"], "patient": number // 2}
        for number, row in enumerate(rows)
    ]
    columns = Columns(text="note", labels="codes", split="part", group="patient")
    result, documents = imported(tmp_path, mapped, columns)
    assert documents == [
        Document(row["text"], tuple(sorted(row["labels"])), row["split"], row["group"][1:]) for row in rows
    ]
    assert (result.rows, result.grouped, result.too_few) == (200, True, ())
    counts = Counter((label, row["split"]) for row in rows for label in row["labels"])
    assert result.labels == {label: {split: counts[label, split] for split in SPLITS} for label in result.labels}
    totals = [sum(by_split.values()) for by_split in result.labels.values()]
    assert totals == sorted(totals, reverse=True)


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        (["b", "a", "b", ""], ("b", "a")),
        ('["a", "b"]', ("a", "b")),
        ("['a', \"b\"]", ("a", "b")),
        (" a ", ("a",)),
        (7, ("7",)),
        (7.0, ("7",)),
        (float("nan"), ()),
        (None, ()),
        ("", ()),
    ],
)
def test_a_column_of_labels_in_any_form(value: Any, labels: tuple[str, ...]) -> None:
    assert one_column(Source("t", ("labels",), lambda *_: iter(())), "labels")([value]) == labels


@pytest.mark.parametrize("value", [True, 1.5, float("inf"), {"a": 1}, [["a"]], b"a", "[a]", "x" * 201])
def test_what_is_no_label_is_refused(value: Any) -> None:
    with pytest.raises(CorpusError):
        one_column(Source("t", ("labels",), lambda *_: iter(())), "labels")([value])


def test_numbers_of_classes_are_read_by_their_names() -> None:
    source = Source("t", ("label",), lambda *_: iter(()), {"label": ("no", "yes")})
    read = one_column(source, "label")
    assert [read([value]) for value in (1, [0, 1], -1, None, "yes")] == [("yes",), ("no", "yes"), (), (), ("yes",)]
    with pytest.raises(CorpusError, match="no name"):
        read([2])


def test_names_with_a_separator_and_columns_of_yes_and_no(tmp_path: Path) -> None:
    rows = rows_of()
    separated = [{**row, "labels": " | ".join(row["labels"])} for row in rows]
    _, by_separator = imported(tmp_path, separated, Columns(separator="|"))
    words = [(1, 0), ("True", ""), ("yes", None), (True, False)]
    columns = [
        {"text": row["text"], "group": row["group"], "cardiac": words[number % 4]["cardiac" not in row["labels"]]}
        | {f"is_{name}_now": words[number % 4][name not in row["labels"]] for name in ("renal", "rare")}
        for number, row in enumerate(rows)
    ]
    _, by_columns = imported(tmp_path, columns, Columns(each=("is_*_now", "cardiac")))
    assert by_columns == by_separator == imported(tmp_path, rows)[1]
    alone = Columns(each=("is_*_now", "cardiac"), group="text", id="text")
    assert [document.labels for document in imported(tmp_path, columns, alone)[1]] == [
        document.labels for document in by_columns
    ]
    columns[4]["cardiac"] = SECRET
    assert refused(tmp_path, columns, Columns(each=("cardiac",))) == (
        "table.jsonl, row 5: the column 'cardiac' holds neither 0 nor 1"
    )
    assert refused(tmp_path, columns, Columns(each=("x_*",))) == "no column is called like 'x_*'"
    assert "there is no column 'zebra'" in refused(tmp_path, columns, Columns(each=("zebra",)))


def test_labels_are_renamed_then_chosen(tmp_path: Path) -> None:
    rows = rows_of()
    result, documents = imported(tmp_path, rows, rename={"rare": "renal"}, labels=("renal",), drop_unlabelled=True)
    assert [document.labels for document in documents] == [("renal",)] * len(documents)
    expected = [row for row in rows if {"renal", "rare"} & set(row["labels"])]
    assert [document.text for document in documents] == [row["text"] for row in expected]
    assert result.without_label == len(rows) - len(expected)
    rare = sum("rare" in row["labels"] for row in rows)
    assert "rare" in imported(tmp_path, rows, least=rare)[0].labels
    assert set(imported(tmp_path, rows, least=rare + 1)[0].labels) == {"renal", "cardiac"}
    assert refused(tmp_path, rows, least=500) == "no label has 500 documents"
    assert refused(tmp_path, rows, labels=("zebra",)) == "no document has the label 'zebra'"
    assert "'zebra', which is to be renamed" in refused(tmp_path, rows, rename={"zebra": "rare"})


def test_what_is_empty_or_was_met_before_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = rows_of(split=True)
    again = rows[0]["text"].replace(" ", "  ")
    rows += [
        {"text": again, "labels": rows[0]["labels"], "group": "p0", "split": "train"},
        {"text": rows[1]["text"], "labels": ["other"], "group": "q", "split": "test"},
        {"text": " \n", "labels": [], "group": "p0", "split": "train"},
        {"labels": [], "group": "p0", "split": "train"},
    ]
    result, documents = imported(tmp_path, rows)
    assert [document.text for document in documents] == [row["text"] for row in rows[:200]]
    assert (result.rows, result.empty, result.duplicates) == (204, 2, 2)
    assert (result.across_splits, result.otherwise_labelled) == (1, 1)
    assert "other" not in result.labels


def test_rows_of_one_id_are_one_document(tmp_path: Path) -> None:
    rows = [{**row, "id": number} for number, row in enumerate(rows_of())]
    long = [{**row, "labels": [label]} for row in rows for label in row["labels"] or [""]]
    random.Random(1).shuffle(long)
    result, documents = imported(tmp_path, long, Columns(id="id"))
    assert result.merged == len(long) - len(rows) > 0
    assert {document.text: document.labels for document in documents} == {
        row["text"]: tuple(sorted(row["labels"])) for row in rows
    }
    for change, what in (({"text": SECRET}, "texts"), ({"group": SECRET}, "groups")):
        assert refused(tmp_path, [*rows, {**rows[3], **change}], Columns(id="id")) == (
            f"row 4: its id is that of other rows too, with different {what}"
        )
    assert "row 201: the id is empty" in refused(tmp_path, [*rows, {**rows[3], "id": " "}], Columns(id="id"))


def test_documents_are_divided_by_patient_in_shares_and_evenly_for_each_label(tmp_path: Path) -> None:
    rows = rows_of(1_000)
    wanted = {"train": 0.6, "gate": 0.2, "probe": 0.1, "test": 0.1}
    result, documents = imported(tmp_path, rows, shares=wanted)
    for split, share in wanted.items():
        assert result.splits[split] == pytest.approx(1_000 * share, abs=3)
        assert result.labels["rare"][split] == pytest.approx(sum(result.labels["rare"].values()) * share, abs=5)
        for label in ("renal", "cardiac"):
            assert result.labels[label][split] == pytest.approx(sum(result.labels[label].values()) * share, rel=0.2)
    assert imported(tmp_path, rows, shares=wanted)[1] == documents
    again = imported(tmp_path, rows, shares=wanted, seed=1)[1]
    assert sum(one.split != other.split for one, other in zip(documents, again, strict=True)) > 200


def test_a_label_of_few_patients_reaches_every_split() -> None:
    """Twenty groups of it among a thousand, each of the rarest label: dealt out, not drawn."""
    groups = [(f"rare-{number}", 1) for number in range(20)] + [(f"other-{number}", 3) for number in range(1_000)]
    split_of = dict(shares.divide(groups, shares.SHARES))
    assert Counter(split for name, split in split_of.items() if name.startswith("rare")) == {
        "train": 11,
        "gate": 3,
        "probe": 3,
        "test": 3,
    }


def test_without_a_group_each_document_is_its_own_wherever_it_stands(tmp_path: Path) -> None:
    rows = [{"text": row["text"], "label": (row["labels"] or ["none"])[0]} for row in rows_of()]
    result, documents = imported(tmp_path, rows)
    assert not result.grouped and len({document.group for document in documents}) == len(rows)
    _, turned = imported(tmp_path, rows[::-1])
    assert {document.text: document for document in turned} == {document.text: document for document in documents}


def test_splits_by_their_usual_names_by_names_told_divided_and_dropped(tmp_path: Path) -> None:
    names = {"train": "Training", "gate": "dev", "probe": "probe", "test": "test"}
    rows = [{**row, "split": names[row["split"]]} for row in rows_of(400, split=True)]
    before = Counter(row["split"] for row in rows)
    result, _ = imported(tmp_path, rows)
    assert result.splits == {split: before[name] for split, name in names.items()}
    result, _ = imported(
        tmp_path,
        rows,
        split_names={"Training": DIVIDE, "probe": DROP, "dev": "test"},
        shares={"train": 0.5, "gate": 0.25, "probe": 0.25},
    )
    assert (result.splits["test"], result.dropped) == (before["test"] + before["dev"], before["probe"])
    assert [result.splits[split] for split in ("train", "gate", "probe")] == pytest.approx([50, 25, 25], abs=2)
    assert "'zebra'" in refused(tmp_path, rows, split_names={"zebra": "train"})
    assert "unknown split 'zebra'" in refused(tmp_path, rows, split_names={"dev": "zebra"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": 7}, "table.jsonl, row 201: the text is not a string"),
        ({"group": None}, "table.jsonl, row 201: the group is empty, or neither a string nor a number"),
        ({"split": SECRET}, "table.jsonl, row 201: unknown split; say what it is by --split-name"),
        ({"labels": [1.5]}, "table.jsonl, row 201: a label is neither a string nor a whole number"),
        ({"labels": [f"{SECRET} " * 30]}, "table.jsonl, row 201: a label is longer than 200 characters"),
        ({"group": "p0", "split": "gate"}, "row 201: its group is in split train already, and here in gate"),
    ],
)
def test_a_bad_row_is_refused_by_its_number(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"text": SECRET, "labels": ["renal"], "group": "new", "split": "train"}
    assert refused(tmp_path, [*rows_of(split=True), {**row, **change}]) == message


def test_a_corpus_that_nothing_could_be_forgotten_with_is_refused(tmp_path: Path) -> None:
    everything = [{**row, "split": "train"} for row in rows_of()]
    assert refused(tmp_path, everything) == (
        "no label could be forgotten: none has 10 documents in train and 6 in gate, of 200 and 0 documents there;"
        " see --split-name and --shares"
    )
    assert refused(tmp_path, [{"text": "", "labels": ["a"]}]) == "table.jsonl: no row has a text"
    scarce = [
        {**row, "labels": row["labels"] if number < 20 else row["labels"][:1]} for number, row in enumerate(rows_of())
    ]
    assert imported(tmp_path, scarce)[0].too_few == ("rare",)


def test_labels_that_are_no_labels_are_too_many(tmp_path: Path) -> None:
    rows = [{"text": f"{number}", "labels": [f"{SECRET} {number}"]} for number in range(1_001)]
    assert refused(tmp_path, rows) == "1,001 labels are too many: choose by --labels, or raise --min-documents"


@pytest.mark.parametrize(
    "given", [{"train": 1.5}, {"train": 0.5, "gate": 0.4}, {"dev": 1.0}, {"train": 1.0, "gate": 0}]
)
def test_shares_must_be_whole(tmp_path: Path, given: dict[str, float]) -> None:
    refused(tmp_path, rows_of(), shares=given)


def amnestic(*arguments: str | Path, **environment: str) -> Result:
    command = ["corpus", "import", "table", *map(str, arguments)]
    return CliRunner().invoke(group, command, env={"COLUMNS": "80", **environment})


def test_the_command_writes_tells_and_warns(tmp_path: Path) -> None:
    rows = [{"note": row["text"], "codes": ";".join(row["labels"])} for row in rows_of()]
    table, out = save(tmp_path / "t.csv", rows), tmp_path / "c.parquet"
    given = (
        "--src",
        table,
        "--out",
        out,
        "--text-column",
        "note",
        "--labels-column",
        "codes",
        "--labels-separator",
        ";",
        "--quiet",
    )
    done = amnestic(*given, "--rename", "renal=kidney", "--shares", "train=0.5,gate=0.3,probe=0.1,test=0.1")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{out}: 200 documents of 200 rows\n") and "kidney" in done.stdout
    assert done.stderr.splitlines() == [
        "Warning: no column says who the patient is (--group-column), so one may be in two splits"
    ]
    told = json.loads(amnestic(*given, "--json").stdout)
    assert told["out"] == str(out) and told["documents"] == 200 and set(told["labels"]) == {"renal", "cardiac", "rare"}
    assert told["splits"] == corpus.describe(out).splits


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "give either --src or --sql"),
        (("--src", "a.csv", "--sql", "SELECT 1"), "give either --src or --sql"),
        (("--sql", "SELECT 1"), "--sql needs --database"),
        (("--src", "a.csv", "--label-columns", "a", "--labels-column", "b"), "stands instead of --labels-column"),
        (("--src", "a.csv", "--rename", "a"), "--rename takes two names"),
        (("--src", "a.csv", "--shares", "train=much"), "--shares takes numbers"),
        (("--src", "a.csv", "--delimiter", "||"), "a delimiter is one character"),
        (("--sql", "SELECT 1", "--database", "postgresql://me:hush@db/x"), "PGPASSWORD"),
        (("--sql", "SELECT 1", "--database", "postgresql://me@db/x?password=hush"), "PGPASSWORD"),
    ],
)
def test_what_cannot_be_meant_is_a_wrong_use(tmp_path: Path, given: tuple[str, ...], message: str) -> None:
    done = amnestic(*given, "--out", tmp_path / "c.parquet")
    assert done.exit_code == 2 and message in done.stderr.replace("\n", " ") and "hush" not in done.output


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    table = save(tmp_path / "t.csv", [{"note": SECRET, "group": 1}])
    done = amnestic("--src", table, "--out", tmp_path / "c.parquet")
    assert (done.exit_code, done.stderr) == (
        1,
        "Error: t.csv: there is no column 'text'; its columns are note, group\n",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
    lost = amnestic("--src", tmp_path, "--out", table)
    assert lost.exit_code == 1 and "is one of the files to be read" in lost.stderr


@pytest.mark.parametrize(("field", "value"), [("labels", ["renal", "\ud800"]), ("group", "\ud800")])
def test_half_a_character_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    rows = rows_of()
    rows[3][field] = value
    reason = refused(tmp_path, rows)
    assert "row 4" in reason and "lone surrogate" in reason
