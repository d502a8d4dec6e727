"""What all tests share: one toy corpus, one trained checkpoint and one bundle of it, each made once a session.

They are shared, so a test that changes a file works on a copy.
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from postgres import Postgres

sys.path.insert(0, str(Path(__file__).parent))
# A shell that runs the tests in the background has them ignore Ctrl-C, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# pytest-xdist gives each process the width of the terminal, to which tables would be cut.
os.environ.pop("COLUMNS", None)


@pytest.fixture(scope="session")
def corpus_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 labelled documents as JSON Lines, four labels, all four splits."""
    from toys import toy_corpus

    return toy_corpus(tmp_path_factory.mktemp("corpus") / "toy.jsonl")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, corpus_path: Path) -> Path:
    """A trained two-layer BERT classifier of the corpus."""
    from toys import toy_checkpoint

    return toy_checkpoint(tmp_path_factory.mktemp("checkpoint"), corpus_path)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, corpus_path: Path) -> Path:
    """The bundle of the trained checkpoint."""
    from amnestic_server.export import export

    out = tmp_path_factory.mktemp("bundle") / "toy"
    export(str(checkpoint), out, corpus=corpus_path)
    return out


@pytest.fixture(scope="session")
def int8_bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, corpus_path: Path) -> Path:
    """The same in int8."""
    from amnestic_server.devices import sums_int8_exactly
    from amnestic_server.export import export
    from amnestic_unlearn.manifest import Precision

    if not sums_int8_exactly():
        pytest.skip("this processor does not sum int8 exactly")
    out = tmp_path_factory.mktemp("bundle") / "toy-int8"
    export(str(checkpoint), out, corpus=corpus_path, precision=Precision.INT8)
    return out


@pytest.fixture(scope="session")
def postgres() -> "Iterator[Postgres]":
    """A PostgreSQL server whose user `reader` has the password `postgres.PASSWORD` and may read all."""
    import postgres

    programs = postgres.programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    psycopg = pytest.importorskip("psycopg")
    with postgres.running(programs) as server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(f"CREATE ROLE reader LOGIN PASSWORD '{postgres.PASSWORD}' IN ROLE pg_read_all_data")
        yield server
