"""`amnestic bench unlearn-impact`: what forgetting does to those who call meanwhile."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from amnestic_client import Method
from amnestic_server.cli.bench_options import Common, common_options, load_option, measure_each, measuring, models
from amnestic_server.cli.options import chosen, method_options
from amnestic_server.cli.progress import Bar
from amnestic_server.cli.sections import Sectioned
from amnestic_server.demo.settings import LABEL, DemoSettings
from amnestic_unlearn.corpus import SHIPPED

if TYPE_CHECKING:
    from amnestic_server.bench.tell import Result

# The ceiling, the clients, the job alone and under load.
STEPS = 4
EXAMPLE = """\b
Examples:
  amnestic bench unlearn-impact
  amnestic bench unlearn-impact --bundle bundle --corpus corpus.parquet --label oncology --rounds 1
"""


@click.command(cls=Sectioned, epilog=EXAMPLE)
@common_options
@click.option("--label", default=LABEL, show_default=True, help="Label to forget.")
@click.option(
    "--window",
    type=click.FloatRange(min=0, min_open=True),
    default=15.0,
    show_default=True,
    help="Seconds of quiet before the job and after it.",
)
@load_option
@method_options
def unlearn_impact(common: Common, label: str, window: float, share: float, **settings: Any) -> None:
    """Latency while a label is forgotten under an open loop, and how long that takes beside without load.

    The job trains on the corpus, with the default preset unless told otherwise, as that of `amnestic demo` does.
    Without a model it is the demo's, which is trained the first time. One of random weights is rejected by its gates.
    """
    from amnestic_server.bench import impact

    def measure(bundle: Path, texts: list[str], told: Callable[[str], None]) -> "Result":
        return impact.run(
            bundle,
            common.corpus or SHIPPED,
            texts,
            label,
            chosen(Method, settings),
            rounds=common.rounds,
            seconds=common.seconds,
            window=window,
            share=share,
            threads=common.threads,
            told=told,
        )

    given = common.bundle or common.shapes or common.encoders
    with measuring("unlearn-impact", common) as bar:
        bundles = models(common, (), bar) if given else [("demo", _demo(common, bar))]
        measure_each("unlearn-impact", common, bundles, common.rounds * STEPS, measure, bar)


def _demo(common: Common, bar: Bar) -> Path:
    """A bundle of the model that `amnestic demo` makes, in the cache. Raises DemoError."""
    from amnestic_server.demo import model

    settings = DemoSettings(out=common.cache / "trained", corpus=common.corpus or SHIPPED, quiet=True)
    settings.out.mkdir(parents=True, exist_ok=True)
    model.forget_if_outdated(settings)
    if model.kept_bundle(settings) is None:
        bar.update("training and exporting the demo's model: about a minute")
        if not settings.checkpoint.exists():
            asyncio.run(model.train(settings))
        asyncio.run(model.export(settings))
    return settings.bundle
