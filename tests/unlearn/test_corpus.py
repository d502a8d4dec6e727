"""Corpora: every format reads back as written, and whatever is wrong is refused without its text."""

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amnestic_unlearn import corpus
from amnestic_unlearn.corpus import SHIPPED, SPLITS, CorpusError, Document

SECRET = "Mr Secret has a fever"
DOCUMENTS = [
    Document('one; "quoted",\nnext line', ("renal", "cardiac, other"), "train", "p1"),
    Document("two", (), "train", "p1"),
    Document("drei ü", ("renal",), "gate", "2024-01-01"),
    Document("four", ("renal",), "test", "007"),
]
FORMATS = ["c.parquet", "c.csv", "c.csv.gz", "c.jsonl", "c.jsonl.gz"]


def write_csv(folder: Path, *rows: str, header: str = "text,labels,split,group") -> Path:
    path = folder / "c.csv"
    path.write_text("\n".join((header, *rows)) + "\n")
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_back_the_documents_in_order(tmp_path: Path, name: str) -> None:
    assert corpus.write(DOCUMENTS, tmp_path / name) == len(DOCUMENTS)
    assert corpus.read(tmp_path / name) == DOCUMENTS


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_documents_give_the_same_bytes(tmp_path: Path, name: str) -> None:
    digests = set()
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        corpus.write(DOCUMENTS, folder / name)
        digests.add(corpus.digest(folder / name))
        assert [path.name for path in folder.iterdir()] == [name], "leaves nothing else behind"
    assert len(digests) == 1


def test_no_bar_of_progress_is_drawn_where_results_go() -> None:
    with corpus.connect() as connection:
        assert connection.execute("SELECT current_setting('enable_progress_bar')").fetchone() == (False,)


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="semicolon"):
        corpus.write([Document("a", ("x;y",), "train", "p")], tmp_path / "c.csv")
    assert list(tmp_path.iterdir()) == []


def test_splits_are_filtered_and_order_is_kept(tmp_path: Path) -> None:
    corpus.write(DOCUMENTS, tmp_path / "c.parquet")
    assert corpus.read(tmp_path / "c.parquet", splits=("test", "train")) == [*DOCUMENTS[:2], DOCUMENTS[3]]
    with pytest.raises(CorpusError, match="unknown split 'dev'"):
        corpus.read(tmp_path / "c.parquet", splits=("dev",))


def test_columns_are_found_by_name_whatever_their_order_or_number(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "p1,9,train,a;b,hello", header="group,extra,split,labels,text")
    assert corpus.read(path) == [Document("hello", ("a", "b"), "train", "p1")]


@pytest.mark.parametrize("column", ["text", "labels", "split", "group"])
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_missing_column_is_named(tmp_path: Path, column: str, form: str) -> None:
    record = {"text": SECRET, "labels": ["a"], "split": "train", "group": "p1"}
    del record[column]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(record) + "\n")
    path = tmp_path / f"c.{form}"
    relation = duckdb.connect().read_json(str(rows))
    if form == "csv":
        path.write_text(",".join(record) + "\n" + ",".join(map(str, record.values())) + "\n")
    elif form == "jsonl":
        path = rows
    else:
        relation.write_parquet(str(path))
    with pytest.raises(CorpusError, match=f"{path.name}: the column {column} is missing"):
        corpus.read(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"{SECRET},a,dev,p2", "row 2: unknown split"),
        (" ,a,train,p2", "row 2: the text is empty"),
        (",a,train,p2", "row 2: the text is empty"),
        (f"{SECRET},a,train,", "row 2: the group is empty"),
        (f"{SECRET},a,gate,p1", "row 2: its group is in split train already, and here in gate"),
        (f"{SECRET},zebra,train,p2", "row 2: a label that the model does not have"),
    ],
)
def test_a_bad_row_is_refused_by_its_number_without_its_text(tmp_path: Path, row: str, message: str) -> None:
    path = write_csv(tmp_path, "fine,a,train,p1", row)
    with pytest.raises(CorpusError, match=message) as refused:
        corpus.read(path, labels=["a"])
    assert "Secret" not in str(refused.value)
    assert "zebra" not in str(refused.value)


def test_a_leak_is_found_even_in_splits_that_were_not_asked_for(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "one,a,train,p1", "two,a,probe,p9", "three,a,gate,p1")
    with pytest.raises(CorpusError, match="row 3"):
        corpus.read(path, splits=("probe",))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.jsonl", f'{{"text": "a", "labels": [], "split": "train", "group": "p"}}\n{{"text": "{SECRET}\n'),
        ("c.jsonl", f'{{"text": "{SECRET}", "labels": {{"a": 1}}, "split": "train", "group": "p"}}\n'),
        ("c.csv", f'text,labels,split,group\n"{SECRET},a,train,p1\n'),
        ("c.parquet", SECRET),
        ("c.csv.gz", SECRET),
    ],
)
def test_a_malformed_file_is_refused_without_its_text(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CorpusError, match=name.replace(".", r"\.")) as refused:
        corpus.read(tmp_path / name)
    assert "Secret" not in str(refused.value)
    assert refused.value.__cause__ is None, "a traceback must not show the text either"


def test_labels_of_parquet_must_be_a_list(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    duckdb.connect().sql("SELECT 'a' AS text, 'x' AS labels, 'train' AS split, 'p' AS \"group\"").write_parquet(
        str(path)
    )
    with pytest.raises(CorpusError, match="labels is not a list"):
        corpus.read(path)


def test_a_missing_file_and_an_unknown_suffix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such file"):
        corpus.read(tmp_path / "c.csv")
    with pytest.raises(CorpusError, match="ends in"):
        corpus.read(tmp_path / "c.txt")


def test_a_path_is_never_a_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "split=gate" / "[ab]*?"
    folder.mkdir(parents=True)
    for name in ("c.parquet", "c.csv", "c.jsonl"):
        corpus.write(DOCUMENTS[:2], folder / name)
        assert corpus.read(folder / name) == DOCUMENTS[:2]


def test_truth_has_a_column_a_label() -> None:
    table = corpus.truth(DOCUMENTS, ["missing", "renal"])
    assert table.dtype == np.bool_
    assert table.tolist() == [[False, True], [False, False], [False, True], [False, True]]
    assert corpus.truth([], ["renal"]).shape == (0, 1)


@given(st.text(min_size=1), st.integers())
def test_a_group_always_goes_to_the_same_split(group: str, seed: int) -> None:
    assert corpus.assign_split(group, seed) == corpus.assign_split(group, seed) in SPLITS


def test_splits_have_their_shares_and_depend_on_the_seed() -> None:
    groups = [f"patient-{number}" for number in range(20_000)]
    counts = Counter(corpus.assign_split(group) for group in groups)
    for split, share in {"train": 0.55, "gate": 0.15, "probe": 0.15, "test": 0.15}.items():
        assert counts[split] / len(groups) == pytest.approx(share, abs=0.01)
    assert any(corpus.assign_split(group, 0) != corpus.assign_split(group, 1) for group in groups)


def test_a_group_does_not_move_between_releases() -> None:
    assert [corpus.assign_split(group) for group in ("002-10009", "p1", "p2", "p3", "p4", "p5")] == [
        *("train", "test", "train", "probe", "train", "train")
    ]


def test_describe_counts_documents_patients_labels_and_words(tmp_path: Path) -> None:
    corpus.write(DOCUMENTS, tmp_path / "c.jsonl.gz")
    description = corpus.describe(tmp_path / "c.jsonl.gz")
    assert (description.documents, description.unlabelled) == (4, 1)
    assert description.splits == {"train": 2, "gate": 1, "probe": 0, "test": 1}
    assert description.groups == {"train": 1, "gate": 1, "probe": 0, "test": 1}
    assert description.labels["renal"] == {"train": 1, "gate": 1, "probe": 0, "test": 1}
    assert list(description.labels) == ["renal", "cardiac, other"]
    assert description.words[100] == 4
    assert description.digest == corpus.digest(tmp_path / "c.jsonl.gz")


def test_the_shipped_corpus_is_whole() -> None:
    description = corpus.describe(SHIPPED)
    assert description.documents == 2_155
    assert {label: sum(counts.values()) for label, counts in description.labels.items()} == {
        "cardiovascular": 1_257,
        "pulmonary": 772,
        "neurologic": 531,
        "renal": 507,
        "gastrointestinal": 484,
        "endocrine": 482,
    }
    assert min(min(counts.values()) for counts in description.labels.values()) > 50
    assert SHIPPED.stat().st_size < 1_000_000
    assert all(document.split == corpus.assign_split(document.group) for document in corpus.read(SHIPPED))
    for name in ("NOTICE.md", "LICENSE-ODbL.md"):
        assert (SHIPPED.parent / name).is_file()


def test_reading_a_corpus_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, amnestic_unlearn.corpus as c; c.read(c.SHIPPED);"
        "sys.exit(bool({'torch', 'transformers', 'onnxruntime'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def amnestic(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from amnestic_server.cli import main; main()", "corpus", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={"COLUMNS": "80", "PATH": "/bin"})


def test_the_command_describes_the_shipped_corpus_in_80_columns() -> None:
    done = amnestic("describe")
    assert done.returncode == 0, done.stderr
    assert "endocrine" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    described = json.loads(amnestic("describe", "--json").stdout)
    assert described["documents"] == 2_155
    assert described["splits"]["train"] + described["splits"]["test"] > 1_000


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "c.csv.gz"
    path.write_bytes(gzip.compress(f"text,labels,split,group\n{SECRET},a,dev,p\n".encode()))
    done = amnestic("describe", str(path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: c.csv.gz, row 1: unknown split; the splits are train, gate, probe, test\n"
