"""`amnestic bench versions`: what many versions cost."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from amnestic_server.cli.bench_options import Common, common_options, measure_models

if TYPE_CHECKING:
    from amnestic_server.bench.tell import Result

COUNTS = (1, 16, 100, 1000)
EXAMPLE = """\b
Examples:
  amnestic bench versions
  amnestic bench versions --shape demo --count 1 --count 200 --rounds 5
"""


@click.command(epilog=EXAMPLE)
@common_options
@click.option(
    "--count",
    "counts",
    type=click.IntRange(1),
    multiple=True,
    default=COUNTS,
    show_default=True,
    help="Versions beside the base; the most that is given is called, too. Repeatable.",
)
def versions(common: Common, counts: tuple[int, ...]) -> None:
    """Memory, time to start and throughput of a server that holds many versions.

    Each has a patch of its own, of the size that a job's is. 64 clients without a pause call one version, then mix
    calls to more and more of them. Without a model, MiniLM's shape.
    """
    from amnestic_server.bench import many

    def measure(bundle: Path, texts: list[str], told: Callable[[str], None]) -> "Result":
        return many.run(
            bundle,
            texts,
            rounds=common.rounds,
            seconds=common.seconds,
            counts=counts,
            threads=common.threads,
            told=told,
        )

    measure_models("versions", common, ("minilm",), many.steps(counts, common.rounds), measure)
