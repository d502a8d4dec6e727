"""`amnestic demo`: the main job from end to end, on the shipped corpus."""

import asyncio
import dataclasses
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from amnestic_client import AmnesticError
from amnestic_server.cli import exits, render
from amnestic_server.cli.options import gate_options
from amnestic_server.cli.progress import quiet_option
from amnestic_server.cli.sections import Sectioned
from amnestic_server.demo.settings import GATES, LABEL, OUT, TRAINING, DemoError, DemoSettings
from amnestic_unlearn.corpus import SHIPPED, CorpusError
from amnestic_unlearn.train_settings import TrainError

if TYPE_CHECKING:
    from amnestic_server.demo.report import Figures, Narrator

_DEFAULT = DemoSettings()

EXAMPLE = """\b
Exit codes: 0 it forgot, 1 error, 2 usage, 3 a gate rejected the result,
4 the job failed, 130 stopped with Ctrl-C.

\b
Examples:
  amnestic demo
  amnestic demo --json | tail -1
"""


@click.command(cls=Sectioned, epilog=EXAMPLE)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=OUT,
    show_default=True,
    help="Directory for model, store and server's log; the model is kept for the next run, the store is made anew.",
)
@click.option(
    "--corpus",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Labelled documents; by default the intensive-care stays that are shipped.",
)
@click.option("--label", default=LABEL, show_default=True, help="Label to forget.")
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    default=TRAINING.epochs,
    show_default=True,
    help="Passes of training over the train split. Fewer are faster, and give a worse model.",
)
@click.option(
    "--window",
    type=click.FloatRange(min=0),
    default=_DEFAULT.window,
    show_default=True,
    help="Seconds that predictions are timed before and after forgetting.",
)
@click.option(
    "--clients",
    type=click.IntRange(min=1),
    default=_DEFAULT.clients,
    show_default=True,
    help="Clients that keep predicting.",
)
@gate_options
@quiet_option
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object, all else to stderr.")
def command(
    out: Path,
    corpus: Path | None,
    label: str,
    epochs: int,
    window: float,
    clients: int,
    quiet: bool,
    as_json: bool,
    **limits: float | None,
) -> None:
    """Train, serve, and forget a label while serving; then show what was measured.

    A small BERT learns the organ systems of the shipped intensive-care stays, is exported and served by a
    process of its own, and is asked to forget one label while clients keep predicting. All of it takes about
    two minutes on two cores; later runs keep the model.

    Limits of gates left out are the server's defaults.
    """
    from amnestic_server.demo.report import Narrator, console_for

    training = dataclasses.replace(TRAINING, epochs=epochs)
    given = {name: limit for name, limit in limits.items() if limit is not None}
    settings = DemoSettings(
        out=out,
        corpus=corpus or SHIPPED,
        label=label,
        training=training,
        gates=dataclasses.replace(GATES, **given),
        window=window,
        clients=clients,
        quiet=quiet,
    )
    try:
        training.validate()
        result = asyncio.run(_stoppable(settings, Narrator(console_for(as_json))))
    except (DemoError, TrainError, CorpusError, AmnesticError, OSError) as error:
        raise click.ClickException(str(error)) from error
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo("Stopped; the server and everything else that the demo started have ended.", err=True)
        raise click.exceptions.Exit(exits.INTERRUPTED) from None
    if as_json:
        render.print_json(result)


async def _stoppable(settings: DemoSettings, say: "Narrator") -> "Figures":
    """The story, which SIGTERM and a closed terminal end as Ctrl-C does: with its processes."""
    from amnestic_server.demo.story import NotForgottenError, run

    this = asyncio.current_task()
    assert this is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    try:
        return await run(settings, say)
    except NotForgottenError as ended:
        click.echo(f"The server did not forget {settings.label}, and goes on as it was.", err=True)
        render.print_job(ended.job)
        raise click.exceptions.Exit(exits.OF_JOB[ended.job.state]) from None
