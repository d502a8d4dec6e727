"""A matrix so small that each of its cells takes a second: the toy corpus, an encoder of one layer, one pass."""

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest

from amnestic_unlearn.bench import workers
from amnestic_unlearn.bench.cells import Plan, Source
from amnestic_unlearn.bench.matrix import own_name
from amnestic_unlearn.corpus import digest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def plan(corpus_path, tmp_path_factory):
    from tiny import TINY

    # As the command names a file.
    source = Source(own_name("toy", digest(corpus_path)), str(corpus_path), ("alpha", "beta"))
    methods = ("original", "retrained", "bias-edit", "zero-row")
    return Plan(str(tmp_path_factory.mktemp("bench")), (source,), (TINY,), (0,), methods, threads=1)


@pytest.fixture(scope="session")
def told(plan):
    """What two processes told that ran the whole matrix."""
    return list(workers.run(plan, jobs=2))


@pytest.fixture
def elsewhere(plan, told, tmp_path):
    """The matrix in a folder without a row, but with the models, so that nothing is trained again."""
    shutil.copytree(plan.models, tmp_path / "models")
    return dataclasses.replace(plan, out=str(tmp_path))
