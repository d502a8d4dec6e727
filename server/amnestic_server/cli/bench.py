"""`amnestic bench`: what serving reaches, beside what it could reach at best, and what forgetting does."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from amnestic_server.cli import bench_impact, bench_swap, bench_unlearn, bench_versions
from amnestic_server.cli.bench_options import Common, common_options, measure_models, phase_line

if TYPE_CHECKING:
    from amnestic_server.bench.tell import Result

SHAPES = ("minilm", "demo", "tiny")
EXAMPLE = """\b
Examples:
  amnestic bench serve
  amnestic bench serve --bundle out/demo/bundle --rounds 5 --json
  amnestic bench serve --encoder minilm --corpus notes.parquet --seconds 30 --report docs/benchmarks
"""


@click.group()
def command() -> None:
    """Measure serving beside its ceiling, and forgetting beside retraining."""


command.add_command(bench_unlearn.unlearn)
command.add_command(bench_swap.swap)
command.add_command(bench_versions.versions)
command.add_command(bench_impact.unlearn_impact)


@command.command(epilog=EXAMPLE)
@common_options
@click.option(
    "--p99-limit",
    "limit_ms",
    type=click.FloatRange(min=0, min_open=True),
    default=100.0,
    show_default=True,
    help="Look for the highest rate whose p99 stays within so many milliseconds.",
)
def serve(common: Common, limit_ms: float) -> None:
    """Throughput and latency of closed and open loops, beside the engine alone and a bare gRPC echo.

    Everything is measured in turn, round by round, on the same documents; medians stand with their spread. On a
    shared machine trust the ratios, not the rates. Without a model, MiniLM's shape, the demo's and a tiny one.
    """
    from amnestic_server.bench import serving  # torch and ONNX Runtime: not for --help

    def measure(bundle: Path, texts: list[str], told: Callable[[str], None]) -> "Result":
        return serving.run(
            bundle,
            texts,
            rounds=common.rounds,
            seconds=common.seconds,
            limit_ms=limit_ms,
            threads=common.threads,
            on_phase=lambda phase: told(phase_line(phase)),
        )

    measure_models("serve", common, SHAPES, common.rounds * serving.PHASES, measure)
