"""Corpora from queries to real databases: PostgreSQL, SQLite and DuckDB. Read-only, limited, without a word of data."""

import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner, Result
from postgres import PASSWORD, Postgres

from amnestic_server.cli import group
from amnestic_unlearn import corpus
from amnestic_unlearn.sources.query import has_password

SECRET = "Mr Secret"
LABELS = ("renal", "cardiac", "neuro")
DATABASES = ("postgres", "sqlite", "duckdb")
QUERY = "SELECT n.id, n.body, n.patient, d.code FROM note n JOIN diagnosis d ON d.note = n.id ORDER BY n.id"
COLUMNS = ("--text-column", "body", "--labels-column", "code", "--group-column", "patient", "--id-column", "id")

_DRAW = random.Random(3)
NOTES = [(number, f"Note {number} of {SECRET}: 100%", number // 2) for number in range(1_200)]
CODES = [(number, label) for number, *_ in NOTES for label in _DRAW.sample(LABELS, _DRAW.randint(1, 2))]


def fill(execute: Callable[[str], Any], many: Callable[[str, list[Any]], Any], mark: str) -> None:
    execute("CREATE TABLE note (id INTEGER, body TEXT, patient INTEGER)")
    execute("CREATE TABLE diagnosis (note INTEGER, code TEXT)")
    many(f"INSERT INTO note VALUES ({mark}, {mark}, {mark})", NOTES)
    many(f"INSERT INTO diagnosis VALUES ({mark}, {mark})", CODES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("databases")
    with sqlite3.connect(folder / "notes.db") as lite:
        fill(lite.execute, lite.executemany, "?")
    lite.close()
    with duckdb.connect(str(folder / "notes.duckdb")) as duck:
        duck.execute("CREATE TABLE note (id INTEGER, body TEXT, patient INTEGER)")
        duck.execute("CREATE TABLE diagnosis (note INTEGER, code TEXT)")
        for table, rows in (("note", NOTES), ("diagnosis", CODES)):
            values = ", ".join(["unnest(?)"] * len(rows[0]))
            duck.execute(f"INSERT INTO {table} SELECT {values}", [list(column) for column in zip(*rows, strict=True)])
    return folder


@pytest.fixture(scope="module")
def notes(postgres: Postgres) -> Postgres:
    """The server with the notes, and labels as lists beside."""
    import psycopg

    with psycopg.connect(postgres.url()) as connection, connection.cursor() as cursor:
        fill(cursor.execute, cursor.executemany, "%s")
        cursor.execute("CREATE TABLE listed AS SELECT note, array_agg(code) AS codes FROM diagnosis GROUP BY note")
    return postgres


@pytest.fixture
def place(request: pytest.FixtureRequest, folder: Path) -> str:
    if request.param == "postgres":
        return request.getfixturevalue("notes").url()
    return f"sqlite:///{folder}/notes.db" if request.param == "sqlite" else str(folder / "notes.duckdb")


def ask(place: str, out: Path, *options: str, sql: str = QUERY, **environment: str | None) -> Result:
    command = ["corpus", "import", "table", "--sql", sql, "--out", str(out)]
    given = ("--database", place) if place else ()
    return CliRunner().invoke(group, [*command, *given, *(options or COLUMNS)], env=environment)


each = pytest.mark.parametrize("place", DATABASES, indirect=True)


@each
def test_a_join_becomes_a_corpus(tmp_path: Path, place: str) -> None:
    done = ask(place, tmp_path / "c.parquet", *COLUMNS, "--quiet")
    assert done.exit_code == 0, done.output
    documents = corpus.read(tmp_path / "c.parquet")
    labels: dict[int, set[str]] = {}
    for number, label in CODES:
        labels.setdefault(number, set()).add(label)
    assert [(one.text, set(one.labels), one.group) for one in documents] == [
        (text, labels[number], str(patient)) for number, text, patient in NOTES
    ]
    assert "further rows of an id" in done.stdout and not done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["c.parquet"]


@each
@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM note",
        "CREATE TABLE more AS SELECT 1",
        "SELECT 1; DELETE FROM note",
        "SELECT nowhere FROM note",
        "SELECT * FROM nowhere",
        "SELEC 1",
        "",
        f"SELECT CAST(json_extract('{{\"a\": \"{SECRET}\"}}', '$.b') AS INTEGER) FROM note WHERE x = 1",
    ],
)
def test_only_a_query_that_reads_is_run(tmp_path: Path, place: str, sql: str) -> None:
    done = ask(place, tmp_path / "c.parquet", sql=sql)
    assert done.exit_code == 1 and done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1, done.stderr
    assert SECRET not in done.output and list(tmp_path.iterdir()) == []
    assert ask(place, tmp_path / "c.parquet").exit_code == 0, "all is still there"


@each
def test_an_error_in_a_row_does_not_quote_it(tmp_path: Path, place: str) -> None:
    wrong = f"SELECT CAST(body AS INTEGER) AS body, patient FROM note WHERE body LIKE '%{SECRET}%'"
    done = ask(place, tmp_path / "c.parquet", sql=wrong)
    assert done.exit_code == 1 and SECRET not in done.output and list(tmp_path.iterdir()) == []
    lacking = ask(place, tmp_path / "c.parquet", sql="SELECT body, patient FROM note")
    assert lacking.stderr == "Error: the query: there is no column 'code'; its columns are body, patient\n"


@each
def test_a_query_that_takes_too_long_is_ended(tmp_path: Path, place: str) -> None:
    endless = (
        "WITH RECURSIVE t(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM t WHERE i < 2000000000)"
        " SELECT 'x' AS text, count(*) AS labels FROM t"
    )
    done = ask(place, tmp_path / "c.parquet", "--timeout-secs", "0.3", sql=endless)
    assert done.exit_code == 1 and "longer than --timeout-secs" in done.stderr, done.output


def test_lists_and_views_of_postgres_are_read(tmp_path: Path, notes: Postgres) -> None:
    sql = 'SELECT body AS text, codes AS labels, patient AS "group" FROM note JOIN listed ON note = id;'
    done = ask(notes.url(), tmp_path / "c.parquet", "--min-documents", "2", sql=sql)
    assert done.exit_code == 0, done.output
    assert {label for one in corpus.stream(tmp_path / "c.parquet") for label in one.labels} == set(LABELS)


def test_a_password_comes_from_the_environment_or_a_file_and_is_never_shown(tmp_path: Path, notes: Postgres) -> None:
    out, url = tmp_path / "c.parquet", notes.url("reader")
    secret = url.replace("reader@", f"reader:{PASSWORD.replace(' ', '%20')}@")
    passes = tmp_path / "pgpass"
    passes.write_text(f"*:*:*:reader:{PASSWORD}\n")
    passes.chmod(0o600)
    nowhere = str(tmp_path / "none")
    assert ask(url, out, PGPASSWORD=PASSWORD, PGPASSFILE=nowhere).exit_code == 0
    assert ask(url, out, PGPASSFILE=str(passes), PGPASSWORD=None).exit_code == 0
    assert ask("", out, AMNESTIC_DATABASE=secret, PGPASSFILE=nowhere).exit_code == 0
    services = tmp_path / "services"
    services.write_text(f"[notes]\nhost={notes.folder}\nuser=reader\ndbname=postgres\npassword={PASSWORD}\n")
    given = {"PGSERVICEFILE": str(services), "PGPASSFILE": nowhere}
    assert ask("postgresql:///?service=notes", out, **given).exit_code == 0
    for wrong in (ask(url, out, PGPASSWORD="no", PGPASSFILE=nowhere), ask(url, out, PGPASSFILE=nowhere)):
        assert wrong.exit_code == 1
        assert wrong.stderr.startswith("Error: PostgreSQL cannot be reached: it did not take the user's password")
    refused = ask(secret, out)
    assert refused.exit_code == 2 and "PGPASSWORD" in refused.stderr
    assert "correct" not in refused.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("/postgres?", "/nowhere?"), "it has no database of this name"),
        (("postgres@", "nobody2@"), "it does not know the user"),
        (("?host=", "?host=/nowhere"), "nothing answers there"),
        (("?host=", "?port=hush&host="), "the connection failed"),
    ],
)
def test_why_postgres_is_not_reached_is_told_without_the_url(
    tmp_path: Path, notes: Postgres, change: tuple[str, str], message: str
) -> None:
    done = ask("", tmp_path / "c.parquet", AMNESTIC_DATABASE=notes.url().replace(*change))
    assert (done.exit_code, done.stderr) == (1, f"Error: PostgreSQL cannot be reached: {message}\n")


@pytest.mark.parametrize(
    ("url", "has"),
    [
        ("postgresql://me@db/x", False),
        ("postgres://me:hush@db/x", True),
        ("postgres://me:hu@sh@db/x", True),
        ("postgresql:///x?user=me&password=hush", True),
        ("postgresql://me@db/x?sslpassword=hush", True),
        ("postgresql://[me:hush@db", True),
        ("sqlite:///a:b@c.db", False),
        ("host=db user=me Password = hush", True),
    ],
)
def test_a_password_in_a_place_is_found(url: str, has: bool) -> None:
    assert has_password(url) is has


def test_the_words_of_a_connection_are_not_shown(tmp_path: Path) -> None:
    done = ask("", tmp_path / "c.parquet", AMNESTIC_DATABASE=f"host=db user=me password={SECRET}")
    assert done.exit_code == 1 and "a database is" in done.stderr
    assert SECRET not in done.output


def test_what_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.db").write_text(SECRET)
    for place, message in (
        (str(tmp_path / "t.db"), "t.db: neither an SQLite nor a DuckDB file"),
        (str(tmp_path / "no.db"), "no.db: no such file, or it cannot be read"),
        ("mysql://me@db/x", "a database is postgresql://, sqlite:///, duckdb:/// or a file"),
    ):
        done = ask(place, tmp_path / "c.parquet")
        assert (done.exit_code, done.stderr) == (1, f"Error: {message}\n")


def test_a_duckdb_file_that_another_writes_is_told(tmp_path: Path, folder: Path) -> None:
    path = folder / "notes.duckdb"
    code = f"import duckdb; c = duckdb.connect({str(path)!r}); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, env=dict(os.environ)) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdout.readline()
        done = ask(str(path), tmp_path / "c.parquet")
        other.communicate(b"\n", timeout=30)
    assert done.exit_code == 1 and "another process writes to it" in done.stderr, done.output
    assert ask(str(path), tmp_path / "c.parquet").exit_code == 0
