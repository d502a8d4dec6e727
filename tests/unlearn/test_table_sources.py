"""Files, folders, patterns and saved `datasets` as sources of a corpus, and what is said of unreadable ones."""

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest

from amnestic_unlearn import corpus
from amnestic_unlearn.corpus import SHIPPED, CorpusError
from amnestic_unlearn.import_table import Choice, import_table
from amnestic_unlearn.sources import Source, files, saved
from amnestic_unlearn.table_rows import Columns

SECRET = "Mr Secret"
ROWS = [('one, "two"\nthree', ["a", "b"]), ("vier ü", []), ("five", ["b"])]


def read(source: Source, *columns: str) -> list[tuple[str | None, tuple[Any, ...]]]:
    told: list[tuple[int, int]] = []
    rows = [(part, tuple(values)) for part, values in source.rows(columns, lambda *step: told.append(step))]
    assert told == sorted(told) and told[-1][0] == told[-1][1] > 0
    return rows


def table(path: Path, sql: str) -> Path:
    duckdb.connect().sql(sql).write_parquet(str(path))
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "t.jsonl", "t.jsonl.gz", "t.parquet"])
def test_every_form_gives_its_rows_in_order(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".parquet"):
        values = ", ".join(f"($${text}$$, {labels or '[]::VARCHAR[]'}, {n})" for n, (text, labels) in enumerate(ROWS))
        table(path, f'SELECT * FROM (VALUES {values}) AS t(text, labels, "n\'""")')
    else:
        separator = "\t" if ".tsv" in name else ","
        lines = [separator.join(("text", "labels", 'n\'""' if "json" in name else '"n\'"""'))]
        for number, (text, labels) in enumerate(ROWS):
            quoted = '"' + text.replace('"', '""') + '"'
            lines.append(separator.join((quoted, ";".join(labels), str(number))))
        if "jsonl" in name:
            lines = [json.dumps({"text": t, "labels": labels, "n'\"": n}) for n, (t, labels) in enumerate(ROWS)]
        data = ("\n".join(lines) + "\n").encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    source = files.opened(str(path))
    assert (source.name, source.columns) == (name, ("text", "labels", "n'\""))
    number = str if "sv" in name else int
    forms = [";".join(labels) if "sv" in name else labels for _, labels in ROWS]
    assert read(source, "n'\"", "text", "labels") == [
        (None, (number(n), text, labels)) for n, ((text, _), labels) in enumerate(zip(ROWS, forms, strict=True))
    ]


def test_folders_and_patterns_are_read_by_name_and_hidden_files_are_not(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for number, name in enumerate(("part-1.parquet", "part-2.parquet", "deep/part-3.parquet")):
        table(tmp_path / name, f"SELECT {number} AS n, 'x' AS extra_{number}")
    for name in ("_metadata.parquet", ".part-0.parquet.crc", "_SUCCESS"):
        (tmp_path / name).write_text("of the writer")
    assert [values for _, values in read(files.opened(str(tmp_path)), "n")] == [(2,), (0,), (1,)]
    pattern = files.opened(str(tmp_path / "part-?.parquet"))
    assert pattern.name == "2 files" and [values for _, values in read(pattern, "n")] == [(0,), (1,)]
    with pytest.raises(CorpusError, match=r"part-2\.parquet: there is no column 'extra_0'; its columns are n, extra_1"):
        read(pattern, "extra_0")
    (tmp_path / "part-4.csv").write_text("n\n3\n")
    with pytest.raises(CorpusError, match="several forms"):
        files.opened(str(tmp_path / "part-*"))
    odd = tmp_path / "[n]*"
    odd.mkdir()
    table(odd / "part-1.parquet", "SELECT 9 AS n")
    assert read(files.opened(str(odd)), "n") == [(None, (9,))], "what exists is never a pattern"


def test_names_of_files_say_the_split_if_there_are_two(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002"):
        table(tmp_path / f"{name}.parquet", "SELECT 1 AS n")
    assert {part for part, _ in read(files.opened(str(tmp_path)), "n")} == {None}
    table(tmp_path / "Validation.parquet", "SELECT 2 AS n")
    assert read(files.opened(str(tmp_path)), "n") == [("validation", (2,)), ("train", (1,)), ("train", (1,))]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", f"text,labels\n{SECRET}\n", "t.csv, line 2: 1 values, not 2"),
        (
            "t.csv",
            f"{SECRET} came in with a fever and a cough that would not go away,1\n",
            "does not look like a header",
        ),
        ("t.csv", "text,labels,text\na,b,c\n", "t.csv: there are several columns 'text'"),
        ("t.csv", "", "t.csv: there is no column 'text'; its first row does not look like a header"),
        ("t.jsonl", f'{{"text": "{SECRET}"}}\n{{"text": "{SECRET}\n', "t.jsonl, line 2: malformed"),
        ("t.jsonl", f'{{"text": "{SECRET}", "labels": {"[" * 100_000}\n', "t.jsonl, line 1: malformed"),
        ("t.jsonl", f'{{"text": "{SECRET}", "group": {"7" * 5_000}}}\n', "t.jsonl, line 1: malformed"),
        ("t.jsonl", f'["{SECRET}"]\n', "t.jsonl, line 1: not an object"),
        ("t.parquet", SECRET, "t.parquet: malformed, cannot be read as parquet"),
        ("t.jsonl.gz", SECRET, "t.jsonl.gz, after line 0: cannot be read to its end"),
        ("t.csv", b"text\n\xff\n", "t.csv, after line 0: not UTF-8"),
        ("t.xlsx", SECRET, "t.xlsx: a table ends in .parquet, .csv"),
    ],
)
def test_what_cannot_be_read_is_told_without_its_text(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CorpusError) as error:
        source = files.opened(str(tmp_path / name))
        source.require("text")
        read(source, "text")
    assert message in str(error.value) and SECRET not in str(error.value)


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    for place, message in (("no.csv", "no such file"), ("no-*.csv", "no such file"), ("", "no file ends in .parquet")):
        with pytest.raises(CorpusError, match=message):
            files.opened(str(tmp_path / place))


@pytest.fixture(scope="module")
def library() -> Any:
    """The library `datasets` itself."""
    return pytest.importorskip("datasets")


def documents(library: Any, start: int, count: int, column: str = "label") -> Any:
    """Notes with the number of a class, or with a list of such numbers."""
    names = library.ClassLabel(names=["no", "renal", "cardiac"])
    rows = range(start, start + count)
    classes: list[Any] = [number % 3 for number in rows]
    features = {"text": library.Value("string"), column: names}
    if column == "labels":
        classes, features[column] = [[number % 3, 1] for number in rows], library.List(names)
    columns = {"text": [f"Note {number}" for number in rows], column: classes}
    return library.Dataset.from_dict(columns, features=library.Features(features))


def test_a_saved_dict_has_its_splits_and_the_names_of_its_classes(library: Any, tmp_path: Path) -> None:
    parts = {
        "train": documents(library, 0, 90),
        "validation": documents(library, 90, 60),
        "test": documents(library, 150, 30),
    }
    library.DatasetDict(parts).save_to_disk(tmp_path / "d", num_shards={"train": 3, "validation": 1, "test": 1})
    assert saved.is_saved(tmp_path / "d")
    source = saved.opened(tmp_path / "d")
    assert source.columns == ("text", "label") and len(read(source, "text")) == 180
    result = import_table(source, Columns(), Choice(), tmp_path / "c.parquet")
    assert result.splits == {"train": 90, "gate": 60, "probe": 0, "test": 30}
    assert result.labels["renal"] == {"train": 30, "gate": 20, "probe": 0, "test": 10}
    read_back = corpus.read(tmp_path / "c.parquet")
    assert [(one.text, one.labels) for one in read_back[:3]] == [
        ("Note 0", ("no",)), ("Note 1", ("renal",)), ("Note 2", ("cardiac",)),
    ]  # fmt: skip


def test_a_saved_set_is_divided_and_lists_of_classes_have_names(library: Any, tmp_path: Path) -> None:
    documents(library, 0, 120, "labels").shuffle(seed=1).save_to_disk(tmp_path / "one")
    library.DatasetDict(train=documents(library, 0, 120, "labels")).save_to_disk(tmp_path / "two")
    for name in ("one", "two"):
        result = import_table(saved.opened(tmp_path / name), Columns(), Choice(), tmp_path / "c.parquet")
        assert result.splits == {"train": 66, "gate": 18, "probe": 18, "test": 18}
        labels = Counter(label for one in corpus.stream(tmp_path / "c.parquet") for label in one.labels)
        assert labels == {"renal": 120, "no": 40, "cardiac": 40}


def test_parquet_of_the_library_keeps_the_names_of_its_classes(library: Any, tmp_path: Path) -> None:
    documents(library, 0, 9).to_parquet(tmp_path / "t.parquet")
    assert files.opened(str(tmp_path / "t.parquet")).classes == {"label": ("no", "renal", "cardiac")}


def test_a_file_of_arrow_is_read_as_its_stream_is(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import ipc

    rows = arrow.table({"text": ["one", "two"], "labels": [["a"], None]})
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}, {"filename": "b.arrow"}]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))
    for name, writer in (("a.arrow", ipc.new_file), ("b.arrow", ipc.new_stream)):
        with writer(str(folder / name), rows.schema) as file:
            file.write_table(rows)
    assert read(saved.opened(folder), "labels", "text") == [(None, (["a"], "one")), (None, (None, "two"))] * 2
    (folder / "b.arrow").write_bytes((folder / "b.arrow").read_bytes()[:300])
    with pytest.raises(CorpusError, match=r"d/b\.arrow: cannot be read as Arrow"):
        read(saved.opened(folder), "text")
    (folder / "a.arrow").unlink()
    with pytest.raises(CorpusError, match=r"d/a\.arrow: cannot be read as Arrow"):
        saved.opened(folder)
    (folder / "state.json").write_text("{}")
    with pytest.raises(CorpusError, match=r"d/state\.json: cannot be read"):
        saved.opened(folder)


@pytest.mark.parametrize(
    ("module", "call", "extra"),
    [
        ("pyarrow", "sources.saved.opened(Path('.'))", "datasets"),
        ("psycopg", "sources.query.opened('postgresql://x', 'SELECT 1', 1, Path('.')).__enter__()", "sql"),
    ],
)
def test_what_needs_an_extra_says_which(module: str, call: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules['{module}'] = None\n"
        "from pathlib import Path\nimport amnestic_unlearn.sources.saved, amnestic_unlearn.sources.query\n"
        f"from amnestic_unlearn import sources\n{call}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert f"needs {module}: install amnestic[{extra}]" in done.stderr.splitlines()[-1]


def test_the_shipped_corpus_is_a_table_too(tmp_path: Path) -> None:
    result = import_table(files.opened(str(SHIPPED)), Columns(), Choice(), tmp_path / "c.parquet")
    described = corpus.describe(SHIPPED)
    assert result.documents + result.duplicates == described.documents and result.rows == described.documents
