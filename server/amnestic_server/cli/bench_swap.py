"""`amnestic bench swap`: what a swap of versions does to those who call meanwhile."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from amnestic_server.cli.bench_options import Common, common_options, load_option, measure_models, phase_line

if TYPE_CHECKING:
    from amnestic_server.bench.tell import Result

# The ceiling, the clients, the quiet and the swaps.
STEPS = 4
EXAMPLE = """\b
Examples:
  amnestic bench swap
  amnestic bench swap --shape demo --swaps 50 --interval 2 --report docs/benchmarks
"""


@click.command(epilog=EXAMPLE)
@common_options
@click.option("--swaps", type=click.IntRange(1), default=10, show_default=True, help="Swaps a round.")
@click.option(
    "--interval",
    type=click.FloatRange(min=1, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds before, between and after swaps; the half second on each side of one counts as around it.",
)
@load_option
def swap(common: Common, swaps: int, interval: float, share: float) -> None:
    """Latency, failures and memory while versions are swapped under an open loop.

    The store holds a line of versions, two patches in turn, of the size that a job's are; a round rolls back down the
    line. Without a model, MiniLM's shape.
    """
    from amnestic_server.bench import swaps as swapping

    def measure(bundle: Path, texts: list[str], told: Callable[[str], None]) -> "Result":
        return swapping.run(
            bundle,
            texts,
            rounds=common.rounds,
            seconds=common.seconds,
            swaps=swaps,
            interval=interval,
            share=share,
            threads=common.threads,
            told=lambda phase: told(phase_line(phase)),
        )

    measure_models("swap", common, ("minilm",), common.rounds * STEPS, measure)
