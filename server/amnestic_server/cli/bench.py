"""`amnestic bench`: what serving reaches, beside what it could reach at best, and what forgetting does."""

import random
from pathlib import Path
from typing import TYPE_CHECKING

import click

from amnestic_server.bench.shapes import SHAPES, random_bundle
from amnestic_server.cli import bench_unlearn
from amnestic_server.cli.progress import Bar, quiet_option
from amnestic_server.cli.render import print_json, show
from amnestic_server.cli.tables import Column, Fitted
from amnestic_unlearn import corpus as corpora

if TYPE_CHECKING:
    from amnestic_server.bench.serving import Phase, ServingResult, Summary

EXAMPLE = """\b
Examples:
  amnestic bench serve
  amnestic bench serve --bundle out/demo/bundle --rounds 5 --json
"""


@click.group()
def command() -> None:
    """Measure serving beside its ceiling, and forgetting beside retraining."""


command.add_command(bench_unlearn.unlearn)


@command.command(epilog=EXAMPLE)
@click.option(
    "--shape",
    "shapes",
    type=click.Choice(list(SHAPES)),
    multiple=True,
    default=("minilm", "demo", "tiny"),
    show_default=True,
    help="Encoder with random weights to serve; may be given again.",
)
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), help="Serve this bundle instead.")
@click.option("--corpus", type=click.Path(path_type=Path, exists=True), help="Documents; the shipped ones by default.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Times that all is measured.")
@click.option("--calls", type=click.IntRange(64), default=768, show_default=True, help="Calls of 64 clients a round.")
@click.option("--threads", type=click.IntRange(0), default=0, help="Encoder threads; 0 takes what the CPU allows.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path("out/bench"), help="Where bundles are kept.")
@quiet_option
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def serve(
    shapes: tuple[str, ...],
    bundle: Path | None,
    corpus: Path | None,
    rounds: int,
    calls: int,
    threads: int,
    cache: Path,
    quiet: bool,
    as_json: bool,
) -> None:
    """Throughput and latency of closed-loop clients, beside the engine alone and a bare gRPC echo.

    Everything is measured in turn, round by round, on the same documents; medians stand with their spread. On a
    shared machine trust the ratios, not the rates.
    """
    from amnestic_server.bench.serving import PHASES, run  # torch and ONNX Runtime: not for --help

    texts = [document.text for document in corpora.read(corpus or corpora.SHIPPED)]
    random.Random(0).shuffle(texts)  # noqa: S311  (an order, not a secret)
    results = {}
    with Bar(quiet=quiet) as bar:
        for name, folder in [(str(bundle), bundle)] if bundle else _bundles(shapes, cache, bar):
            done = 0

            def on_phase(phase: "Phase", name: str = name) -> None:
                nonlocal done
                done += 1
                bar.line(f"{name}: {phase.name:24} {phase.rate:9.1f}/s   p50 {phase.p50_ms:8.2f} ms")
                bar.update(name, done, rounds * PHASES)

            bar.update(name, 0, rounds * PHASES)
            results[name] = run(folder, texts[:calls], rounds=rounds, calls=calls, threads=threads, on_phase=on_phase)
    if as_json:
        print_json(results)
    else:
        for name, result in results.items():
            _show(name, result)


def _bundles(shapes: tuple[str, ...], cache: Path, bar: Bar) -> list[tuple[str, Path]]:
    bundles = []
    for name in shapes:
        folder = cache / name
        if not folder.exists():
            bar.update(f"making a bundle of the shape {name}")
            folder.parent.mkdir(parents=True, exist_ok=True)
            random_bundle(SHAPES[name], folder)
        bundles.append((name, folder))
    return bundles


def _show(name: str, result: "ServingResult") -> None:
    columns = (
        Column("phase", words=True),
        Column("calls/s", right=True),
        Column("p50 ms", right=True),
        Column("p95 ms", right=True, drop=2),
        Column("p99 ms", right=True, drop=1),
    )
    rows = [
        (phases[0].name, *(_spread(phases, field) for field in ("rate", "p50_ms", "p95_ms", "p99_ms")))
        for phases in zip(*result.rounds, strict=True)
    ]
    show(
        f"{name}, {len(result.rounds)} rounds",
        Fitted(columns, rows),
        "",
        f"throughput of 64 clients, of the ceiling   {_summary(result.of_ceiling)}",
        f"added latency of a lone client, p50        {_summary(result.added_ms)} ms",
        f"calls of 64 clients, of the echo's         {_summary(result.of_echo)}",
        f"memory of the idle server                  {result.idle_megabytes:.0f} MB\n",
    )


def _spread(phases: "tuple[Phase, ...]", field: str) -> str:
    from amnestic_server.bench.serving import Summary

    summary = Summary.of([getattr(phase, field) for phase in phases])
    if len(phases) == 1:
        return _number(summary.median)
    return f"{_number(summary.median)} ({_number(summary.low)}-{_number(summary.high)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _summary(summary: "Summary") -> str:
    return f"{summary.median:.3f} ({summary.low:.3f} to {summary.high:.3f})"
