"""The rows of a query as a source: of PostgreSQL, an SQLite file or a DuckDB file, each through its own driver.

DuckDB could query the others by extensions, but would download these when first used, and no package has them for every
version of it. Nothing is written: the session is read-only, and one statement is run. A database's messages may quote
rows, so of these only such are passed on as speak of the query itself; and no URL is, for it may hold a password.
"""

import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import duckdb

from amnestic_unlearn.corpus import CorpusError
from amnestic_unlearn.sources import Row, Source
from amnestic_unlearn.text_files import Progress

_NAME = "the query"
_BATCH = 500
_CONNECT_SECONDS = 10
_DUCKDB_MEMORY = "400MB"
_POSTGRES = ("postgres://", "postgresql://")
_FILES = ("sqlite:///", "duckdb:///")
_TIMED_OUT = "the database took longer than --timeout-secs allows"

# Why there is no connection: what libpq says, and what may be told of it.
_REFUSALS = {
    r"password authentication failed|no password supplied": "it did not take the user's password, or was given none:"
    " set PGPASSWORD, or keep it in ~/.pgpass",
    r"could not translate host name|Name or service not known": "there is no host of this name",
    r"Connection refused|No such file or directory": "nothing answers there",
    r"timeout expired": f"nothing answered in {_CONNECT_SECONDS} seconds",
    r"database .* does not exist": "it has no database of this name",
    r"role .* does not exist|Peer authentication failed": "it does not know the user",
    r"no pg_hba.conf entry": "it does not admit this user from here",
    r"SSL|certificate": "the encrypted connection failed",
}
# What SQLite says of the query itself.
_SQLITE_PLAIN = re.compile(
    r"no such (?:table|column|function): .*|ambiguous column name: .*|near \".*\": syntax error|incomplete input"
    r"|attempt to write a readonly database|file is not a database|database is locked|not authorized"
)
# A sequence of rows, empty at the end.
_Fetch = Callable[[], Sequence[Sequence[Any]]]


def has_password(database: str) -> bool:
    """Whether a password stands in it, a URL or not, where others could read it on a command line."""
    if not database.startswith(_POSTGRES):
        return re.search(r"\bpassword\s*=", database, re.IGNORECASE) is not None
    try:
        url = urlsplit(database)
        return url.password is not None or any("password" in key for key in parse_qs(url.query))
    except ValueError:
        # Whatever it is, it is not shown.
        return True


@contextmanager
def opened(database: str, sql: str, seconds: float, spill: Path) -> Iterator[Source]:
    """The rows of `sql`, while it is open; they can be read once.

    `database` is a URL `postgresql://...`, `sqlite:///PATH` or `duckdb:///PATH`, or the path of an SQLite or DuckDB
    file. It has `seconds` to answer, and as many again for each further batch of rows. DuckDB spills to `spill`.
    Raises CorpusError for whatever the database refuses.
    """
    if database.startswith(_POSTGRES):
        session = _postgres(database, sql, seconds)
    else:
        session = _file(database, sql, seconds, spill)
    with session as (columns, fetch):
        yield Source(_NAME, columns, partial(_rows, columns, fetch))


def _rows(names: Sequence[str], fetch: _Fetch, columns: Sequence[str], progress: Progress) -> Iterator[Row]:
    places = [names.index(column) for column in columns]
    done = 0
    while batch := fetch():
        for row in batch:
            yield None, [row[place] for place in places]
        done += len(batch)
        progress(done, 0)


def _file(database: str, sql: str, seconds: float, spill: Path) -> Any:
    scheme = next((scheme for scheme in _FILES if database.startswith(scheme)), "")
    # Something else, such as the words of a connection, may hold a password: it is not shown.
    if not scheme and ("://" in database or ("=" in database and not Path(database).exists())):
        raise CorpusError(f"a database is {', '.join((_POSTGRES[1], *_FILES))} or a file")
    path = Path(database.removeprefix(scheme))
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        raise CorpusError(f"{path.name}: no such file, or it cannot be read") from None
    if head.startswith(b"SQLite format 3\0"):
        return _sqlite(path, sql, seconds)
    if head[8:12] == b"DUCK":
        return _duckdb(path, sql, seconds, spill)
    raise CorpusError(f"{path.name}: neither an SQLite nor a DuckDB file")


@contextmanager
def _postgres(url: str, sql: str, seconds: float) -> Iterator[tuple[tuple[str, ...], _Fetch]]:
    try:
        import psycopg
        from psycopg.conninfo import make_conninfo
    except ModuleNotFoundError as error:
        raise CorpusError(f"PostgreSQL needs {error.name}: install amnestic[sql]") from None
    settings: dict[str, Any] = {"client_encoding": "UTF8", "application_name": "amnestic"}
    if "PGCONNECT_TIMEOUT" not in os.environ:
        settings["connect_timeout"] = _CONNECT_SECONDS
    try:
        connection = psycopg.connect(make_conninfo(url, **settings))
    except psycopg.Error as error:
        raise CorpusError(f"PostgreSQL cannot be reached: {_refusal(str(error))}") from None
    try:
        # A named cursor is the server's: it takes a single query, and hands over its rows batch by batch.
        with closing(connection), connection.cursor(name="corpus") as cursor:
            connection.read_only = True
            connection.execute("SELECT set_config('statement_timeout', %s, true)", [str(int(seconds * 1000))])
            cursor.execute(sql.strip().rstrip(";").encode())
            columns = tuple(column.name for column in cursor.description or ())
            yield columns, partial(cursor.fetchmany, _BATCH)
    except psycopg.errors.QueryCanceled:
        raise CorpusError(_TIMED_OUT) from None
    except psycopg.Error as error:
        raise CorpusError(f"PostgreSQL refused the query: {_postgres_reason(error)}") from None
    except UnicodeDecodeError:
        raise CorpusError("PostgreSQL: a text is not UTF-8") from None


def _refusal(said: str) -> str:
    return next((told for pattern, told in _REFUSALS.items() if re.search(pattern, said)), "the connection failed")


def _postgres_reason(error: Any) -> str:
    # Class 42 is of the query: its syntax, its names, and what it may not read. Others may quote a value.
    if (error.sqlstate or "").startswith("42") and error.diag.message_primary:
        return str(error.diag.message_primary)
    return f"{type(error).__name__} (SQLSTATE {error.sqlstate or 'none'})"


@contextmanager
def _sqlite(path: Path, sql: str, seconds: float) -> Iterator[tuple[tuple[str, ...], _Fetch]]:
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
            until = [time.monotonic() + seconds]
            connection.set_progress_handler(lambda: time.monotonic() > until[0], 100_000)
            connection.execute("PRAGMA query_only = ON")
            cursor = connection.execute(sql)

            def fetch() -> list[Any]:
                until[0] = time.monotonic() + seconds
                return cursor.fetchmany(_BATCH)

            yield tuple(column[0] for column in cursor.description or ()), fetch
    except (sqlite3.Error, sqlite3.Warning) as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
            raise CorpusError(_TIMED_OUT) from None
        said = str(error) if _SQLITE_PLAIN.fullmatch(str(error)) else getattr(error, "sqlite_errorname", "")
        raise CorpusError(f"SQLite refused the query: {said or 'it failed'}") from None


@contextmanager
def _duckdb(path: Path, sql: str, seconds: float, spill: Path) -> Iterator[tuple[tuple[str, ...], _Fetch]]:
    config = {"memory_limit": _DUCKDB_MEMORY, "temp_directory": str(spill), "threads": 1}
    try:
        with duckdb.connect(str(path), read_only=True, config=config) as connection:
            statements = connection.extract_statements(sql)
            if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
                raise CorpusError("DuckDB refused the query: it is not a single SELECT")
            connection.execute("SET enable_progress_bar = false")
            with _limit(connection, seconds):
                rows = connection.execute(sql)

            def fetch() -> Any:
                with _limit(connection, seconds):
                    return rows.fetchmany(_BATCH)

            yield tuple(column[0] for column in rows.description), fetch
    except duckdb.InterruptException:
        raise CorpusError(_TIMED_OUT) from None
    except (duckdb.ParserException, duckdb.CatalogException, duckdb.BinderException) as error:
        # Its first line; the next quote the query.
        raise CorpusError(f"DuckDB refused the query: {str(error).splitlines()[0]}") from None
    except duckdb.IOException:
        raise CorpusError(f"{path.name}: another process writes to it, or it is of another version of DuckDB") from None
    except duckdb.Error as error:
        raise CorpusError(f"DuckDB refused the query: {type(error).__name__}") from None


@contextmanager
def _limit(connection: Any, seconds: float) -> Iterator[None]:
    timer = threading.Timer(seconds, connection.interrupt)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
