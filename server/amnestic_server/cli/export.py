"""`amnestic export`: a bundle from a checkpoint."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from amnestic_server.cli.progress import Bar, quiet_option
from amnestic_server.cli.reading import reading_given, reading_options
from amnestic_server.cli.render import print_json, show
from amnestic_server.cli.tables import facts

if TYPE_CHECKING:
    from amnestic_unlearn.manifest import Manifest


@click.command(name="export")
@click.option("--checkpoint", required=True, help="Directory or hub id of a classifier.")
@click.option("--revision", help="Branch, tag or commit of a hub id; by default main.")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory to write the bundle to, new or empty.",
)
@click.option(
    "--corpus",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Documents for the parity check; by default the eICU demo that is shipped. Needed for a reduced precision.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "int8", "fp16", "bf16"]),
    default="fp32",
    show_default=True,
    help="Of the encoder: int8 for CPUs, fp16 and bf16 for CUDA.",
)
@click.option(
    "--accept-decisions",
    type=click.FloatRange(0, 1),
    help="Share of decisions that a reduced precision must keep, by default 0.999; the manifest tells what it was.",
)
@click.option(
    "--accept-f1",
    type=click.FloatRange(0, 1),
    help="Most that macro F1 may differ in a reduced precision, by default 0.002.",
)
@click.option("--name", help="Name of the model; by default that of the checkpoint.")
@click.option(
    "--problem-type",
    type=click.Choice(["multi-label", "single-label"]),
    help="For a checkpoint whose configuration does not say it: several labels a document, or exactly one.",
)
@click.option(
    "--labels",
    metavar="NAMES",
    help="Names of the model's outputs in their order, separated by commas, or a file with one a line; by default"
    " those of the checkpoint.",
)
@click.option(
    "--thresholds",
    metavar="NUMBERS",
    help="The probability from which each label is decided for, in the same order, separated by commas, or a file"
    " with one a line; one number stands for all. By default those of the checkpoint, else 0.5.",
)
@reading_options
@click.option("--overwrite", is_flag=True, help="Take the place of the bundle at --out.")
@quiet_option
@click.option("--json", "as_json", is_flag=True, help="Print what was made as one JSON object.")
def command(
    checkpoint: str,
    revision: str | None,
    out: Path,
    corpus: Path | None,
    precision: str,
    accept_decisions: float | None,
    accept_f1: float | None,
    name: str | None,
    problem_type: str | None,
    labels: str | None,
    thresholds: str | None,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
    **reading: Any,
) -> None:
    """Make a bundle of a Hugging Face sequence classifier, multi-label or single-label.

    The encoder becomes an ONNX graph with fused attention. The word embeddings and the last linear layer, which
    unlearning may change, stay outside it. The bundle is written only if it answers as the checkpoint does: the
    largest difference of a logit is at most 1e-4 on 64 documents of the corpus. In a reduced precision at least 99.9 %
    of the decisions on its gate and test splits must be the checkpoint's, and macro F1 within 0.002 of its.

    Families: BERT, DistilBERT, RoBERTa, XLM-RoBERTa, CamemBERT and ELECTRA; docs/models.md says what a checkpoint may
    look like. How long documents are read is part of the model, for its thresholds depend on it: a checkpoint of
    `amnestic train` says it itself, and another is told with --long-documents.

    \b
    Examples:
      amnestic export --checkpoint checkpoint --out bundle
      amnestic export --checkpoint checkpoint --out small --corpus notes.parquet --precision int8
      amnestic export --checkpoint someone/notes-roberta --revision v1.2 \\
        --problem-type multi-label --labels cardiac,endocrine,renal --out bundle
    """
    # Torch and transformers: not for --help.
    from amnestic_server.errors import ExportError
    from amnestic_server.export import export, fused_in
    from amnestic_server.parity import Limits
    from amnestic_server.source import Given
    from amnestic_unlearn.architecture import CheckpointError
    from amnestic_unlearn.corpus import CorpusError
    from amnestic_unlearn.manifest import Precision, ProblemType

    kind = None if problem_type is None else ProblemType(problem_type.replace("-", "_"))
    asked = {"decisions_equal": accept_decisions, "macro_f1_difference": accept_f1}
    accepted = {name: value for name, value in asked.items() if value is not None}
    given = Given(kind, _names(labels), _numbers(thresholds), reading_given(reading))
    try:
        with Bar("reading the corpus", quiet=quiet) as bar:
            manifest = export(
                checkpoint,
                out,
                corpus=corpus,
                precision=Precision(precision),
                limits=Limits(**accepted),
                name=name,
                given=given,
                revision=revision,
                overwrite=overwrite,
                warn=lambda text: click.echo(f"Warning: {text}", err=True),
                progress=bar.update,
            )
    except (CheckpointError, ExportError, CorpusError, OSError) as error:
        raise click.ClickException(str(error)) from error
    fused, size = fused_in(out), sum(path.stat().st_size for path in out.iterdir())
    if as_json:
        print_json({**dataclasses.asdict(manifest), "out": str(out), "fused": fused, "bytes": size})
    else:
        _print(manifest, out, fused, size)


def _names(value: str | None) -> tuple[str, ...]:
    """What an option lists, separated by commas, or a file that it names, one a line."""
    if value is None:
        return ()
    # A long list is no path that may be looked for.
    from_file = "," not in value and Path(value).is_file()
    listed = Path(value).read_text(encoding="utf-8").splitlines() if from_file else value.split(",")
    return tuple(item.strip() for item in listed)


def _numbers(value: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(item) for item in _names(value))
    except ValueError:
        raise click.BadParameter("not a list of numbers", param_hint="--thresholds") from None


def _print(manifest: "Manifest", out: Path, fused: dict[str, int], size: int) -> None:
    show(facts([*_rows(manifest, fused, size), ("saved to", str(out))]))


def _long_documents(manifest: "Manifest") -> str:
    if manifest.max_windows == 1:
        return "cut"
    return (
        f"read in up to {manifest.max_windows} windows that share {manifest.window_overlap} tokens;"
        f" of each label's logits the {manifest.pooling}"
    )


def _parity(parity: dict[str, float]) -> str:
    found = f"largest logit difference {parity['max_abs_logit_difference']:.1e} on {parity['documents']:.0f} documents"
    if "decisions" not in parity:
        return f"{found}, {parity['decisions_equal']:.1%} of decisions equal"
    return (
        f"{found}, {parity['decisions_equal']:.3%} of {parity['decisions']:.0f} decisions equal,"
        f" macro F1 {parity['macro_f1']:.4f}, the checkpoint's {parity['checkpoint_macro_f1']:.4f}"
    )


def _rows(manifest: "Manifest", fused: dict[str, int], size: int) -> list[tuple[str, Any]]:
    thresholds = manifest.thresholds or (None,) * len(manifest.labels)
    labels = [
        label if threshold is None else f"{label} (from {threshold:.3f})"
        for label, threshold in zip(manifest.labels, thresholds, strict=True)
    ]
    return [
        ("model", manifest.name),
        ("architecture", f"{manifest.architecture}, {manifest.layers} layers, {manifest.hidden_size} wide"),
        ("parameters", f"{manifest.parameters:,} in {manifest.precision}"),
        ("longest input", f"{manifest.max_tokens} tokens"),
        ("longer documents", _long_documents(manifest)),
        ("labels a document", manifest.problem_type.replace("_", "-")),
        ("labels", ", ".join(labels)),
        ("head", manifest.head),
        ("fused", ", ".join(f"{count} {operator}" for operator, count in fused.items())),
        ("parity", _parity(manifest.parity)),
        ("size", f"{size / 1e6:.1f} MB"),
    ]
