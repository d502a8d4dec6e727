"""MTSamples and CodiEsp as corpora: rare labels dropped, split document by document, and the files themselves."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from open_data import DATA, needs

from amnestic_server.cli import group
from amnestic_unlearn import corpus, open_corpora
from amnestic_unlearn.corpus import CorpusError
from amnestic_unlearn.open_corpora import CODIESP, MTSAMPLES, Collection

TOY = Collection("toy", "toy.jsonl", 2, "invented")
ROWS = [
    {"id": "d1", "text": "one", "labels": ["b", "a"], "more": 1},
    {"id": "d2", "text": "two", "labels": ["a"]},
    {"id": "d3", "text": "three", "labels": ["b", "rare"]},
    {"id": "d4", "text": "four", "labels": []},
]


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["toy.jsonl", "toy.jsonl.gz"])
def test_labels_with_documents_enough_are_kept(tmp_path: Path, name: str) -> None:
    result = open_corpora.convert(TOY, write_rows(tmp_path / name, ROWS), tmp_path / "c.parquet")
    assert (result.documents, result.labels) == (4, ("a", "b"))
    documents = corpus.read(tmp_path / "c.parquet")
    assert [(document.text, document.labels, document.group) for document in documents] == [
        ("one", ("a", "b"), "d1"),
        ("two", ("a",), "d2"),
        ("three", ("b",), "d3"),
        ("four", (), "d4"),
    ]
    assert all(document.split == corpus.assign_split(document.group) for document in documents)
    open_corpora.convert(TOY, tmp_path / name, tmp_path / "d.parquet")
    assert (tmp_path / "c.parquet").read_bytes() == (tmp_path / "d.parquet").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"id": 1, "text": "Mr Secret"}\n', "toy.jsonl, line 1: not an object with id, text and labels"),
        (b"Mr Secret\n", "toy.jsonl, line 1: not an object with id, text and labels"),
        (b"\xff\n", "toy.jsonl: cannot be read"),
        (b'{"id": 1, "text": "Mr Secret", "labels": ["a"]}\n', "toy.jsonl: no label has 2 documents"),
    ],
)
def test_a_broken_file_is_refused_without_its_text(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "toy.jsonl").write_bytes(content)
    with pytest.raises(CorpusError) as refused:
        open_corpora.convert(TOY, tmp_path / "toy.jsonl", tmp_path / "c.parquet")
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("collection", "documents", "labels"),
    [
        pytest.param(MTSAMPLES, 2_357, 22, marks=needs("mtsamples")),
        pytest.param(CODIESP, 750, 16, marks=needs("codiesp")),
    ],
)
def test_the_command_imports_the_collection(
    tmp_path: Path, collection: Collection, documents: int, labels: int
) -> None:
    src, out = DATA / collection.name / collection.file, tmp_path / "c.parquet"
    arguments = ["corpus", "import", collection.name, "--src", str(src), "--out", str(out)]
    done = CliRunner().invoke(group, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["documents"], len(result["labels"])) == (documents, labels)
    with gzip.open(src, "rt") as file:
        rows = [json.loads(line) for line in file]
    counts = Counter(label for row in rows for label in set(row["labels"]))
    assert result["labels"] == sorted(label for label, count in counts.items() if count >= collection.least)
    assert Counter(label for document in corpus.stream(out) for label in document.labels) == {
        label: counts[label] for label in result["labels"]
    }


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    arguments = ["corpus", "import", "codiesp", "--src", str(tmp_path / "no.jsonl"), "--out", str(tmp_path / "c.csv")]
    done = CliRunner().invoke(group, arguments)
    assert (done.exit_code, done.stderr) == (1, "Error: no.jsonl: cannot be read\n")
