"""`amnestic train`: a checkpoint from a corpus."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from amnestic_server.cli.progress import Bar, quiet_option
from amnestic_server.cli.reading import reading_given, reading_options
from amnestic_server.cli.render import print_json, show
from amnestic_server.cli.tables import Column, Fitted
from amnestic_unlearn.architecture import CheckpointError
from amnestic_unlearn.corpus import SHIPPED, CorpusError
from amnestic_unlearn.manifest import ProblemType
from amnestic_unlearn.train_settings import CHECKPOINT_RATE, SCRATCH_RATE, TrainError, TrainSettings

if TYPE_CHECKING:
    from amnestic_unlearn.train import TrainReport

_DEFAULT = TrainSettings()


@click.command(name="train")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Directory to write the checkpoint to, new or empty.",
)
@click.option(
    "--corpus",
    "corpus_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Labelled documents; by default the eICU demo that is shipped.",
)
@click.option(
    "--checkpoint",
    help="Directory or hub id of a pretrained encoder to start from; by default a small BERT from scratch.",
)
@click.option("--revision", help="Branch, tag or commit of a hub id; by default main.")
@click.option(
    "--problem-type",
    type=click.Choice(["multi-label", "single-label"]),
    default="multi-label",
    show_default=True,
    help="Each label by itself, or exactly one label a document: the likeliest.",
)
@click.option("--epochs", type=int, default=_DEFAULT.epochs, show_default=True, help="Passes over the train split.")
@click.option("--batch-size", type=int, default=_DEFAULT.batch_size, show_default=True, help="Documents in a step.")
@click.option(
    "--learning-rate",
    type=float,
    help=f"Highest rate of AdamW; by default {SCRATCH_RATE:g} from scratch and {CHECKPOINT_RATE:g} from a checkpoint.",
)
@click.option(
    "--max-tokens",
    type=int,
    default=_DEFAULT.max_tokens,
    show_default=True,
    help="Longest input.",
)
@reading_options
@click.option("--seed", type=int, default=_DEFAULT.seed, show_default=True, help="Seed of weights, order and dropout.")
@click.option("--threads", type=int, default=_DEFAULT.threads, help="Threads of torch; 0 leaves the choice to it.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default=_DEFAULT.device, show_default=True, help="Where."
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default=_DEFAULT.precision,
    show_default=True,
    help="bf16: mixed precision, faster where the processor has it.",
)
@quiet_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def command(
    out: Path,
    corpus_file: Path | None,
    checkpoint: str | None,
    revision: str | None,
    problem_type: str,
    epochs: int,
    batch_size: int,
    learning_rate: float | None,
    max_tokens: int,
    seed: int,
    threads: int,
    device: str,
    precision: str,
    quiet: bool,
    as_json: bool,
    **reading: Any,
) -> None:
    """Train a classifier on a corpus and save it as a Hugging Face checkpoint.

    Learns on the train split, chooses each label's threshold on the gate split and freezes it into the
    checkpoint (a single-label classifier has none), then prints F1 on the test split. `amnestic export` makes a
    bundle of the result.

    \b
    Examples:
      amnestic train --out checkpoint
      amnestic train --checkpoint distilbert-base-uncased --corpus notes.parquet \\
        --epochs 3 --out checkpoint
      amnestic train --corpus notes.parquet --long-documents window --out checkpoint
    """
    from amnestic_unlearn.train import train  # torch and transformers: not for --help

    settings = TrainSettings(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        max_tokens=max_tokens,
        seed=seed,
        threads=threads,
        device=device,
        precision=precision,
        **reading_given(reading),
    )
    try:
        kind = ProblemType(problem_type.replace("-", "_"))
        with Bar("reading the corpus", quiet=quiet) as bar:
            report = train(
                corpus_file or SHIPPED,
                out,
                checkpoint=checkpoint,
                revision=revision,
                settings=settings,
                problem_type=kind,
                progress=bar.update,
            )
    except (CheckpointError, TrainError, CorpusError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        print_json(report)
    else:
        _print(report)


def _print(report: "TrainReport") -> None:
    thresholds = [f"{threshold:.3f}" for threshold in report.thresholds] or ["likeliest"] * len(report.labels)
    columns = (Column("label", words=True), Column("threshold", right=True, drop=1), Column("F1 on test", right=True))
    rows = [
        *(
            (label, threshold, f"{report.f1[label]:.3f}")
            for label, threshold in zip(report.labels, thresholds, strict=True)
        ),
        None,
        ("macro", "", f"{report.macro_f1:.3f}"),
    ]
    cut = report.truncated["train"]
    show(
        Fitted(columns, rows),
        f"{report.parameters:,} parameters, {report.documents['train']:,} training documents, {report.seconds:.0f} s",
        *([f"{cut:,} training documents are longer than was read, and were cut: see --long-documents"] if cut else []),
        f"saved to {report.out}",
    )
