"""`amnestic export`: a bundle from a checkpoint."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from amnestic_server.cli.progress import Bar, quiet_option
from amnestic_server.cli.render import print_json, show
from amnestic_server.cli.tables import facts

if TYPE_CHECKING:
    from amnestic_unlearn.manifest import Manifest


@click.command(name="export")
@click.option("--checkpoint", required=True, help="Directory or hub id of a BERT, DistilBERT or RoBERTa classifier.")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory to write the bundle to, new or empty.",
)
@click.option(
    "--corpus",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Documents for the parity check; by default the eICU demo that is shipped.",
)
@click.option("--name", help="Name of the model; by default that of the checkpoint.")
@click.option(
    "--problem-type",
    type=click.Choice(["multi-label", "single-label"]),
    help="For a checkpoint whose configuration does not say it: several labels a document, or exactly one.",
)
@click.option("--overwrite", is_flag=True, help="Take the place of the bundle at --out.")
@quiet_option
@click.option("--json", "as_json", is_flag=True, help="Print what was made as one JSON object.")
def command(
    checkpoint: str,
    out: Path,
    corpus: Path | None,
    name: str | None,
    problem_type: str | None,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Make a bundle of a Hugging Face sequence classifier, multi-label or single-label.

    The encoder becomes an ONNX graph with fused attention. The word embeddings and the last linear layer, which
    unlearning may change, stay outside it. The bundle is written only if it answers as the checkpoint does: the
    largest difference of a logit is at most 1e-4 on 64 documents of the corpus.

    \b
    Example:
      amnestic export --checkpoint checkpoint --out bundle
    """
    # Torch and transformers: not for --help.
    from amnestic_server.export import export, fused_in
    from amnestic_server.graph import ExportError
    from amnestic_unlearn.corpus import CorpusError
    from amnestic_unlearn.manifest import ProblemType

    kind = None if problem_type is None else ProblemType(problem_type.replace("-", "_"))
    try:
        with Bar("reading the corpus", quiet=quiet) as bar:
            manifest = export(
                checkpoint,
                out,
                corpus=corpus,
                name=name,
                problem_type=kind,
                overwrite=overwrite,
                warn=lambda text: click.echo(f"Warning: {text}", err=True),
                progress=bar.update,
            )
    except (ExportError, CorpusError, OSError) as error:
        raise click.ClickException(str(error)) from error
    fused, size = fused_in(out), sum(path.stat().st_size for path in out.iterdir())
    if as_json:
        print_json({**dataclasses.asdict(manifest), "out": str(out), "fused": fused, "bytes": size})
    else:
        _print(manifest, out, fused, size)


def _print(manifest: "Manifest", out: Path, fused: dict[str, int], size: int) -> None:
    show(facts([*_rows(manifest, fused, size), ("saved to", str(out))]))


def _rows(manifest: "Manifest", fused: dict[str, int], size: int) -> list[tuple[str, Any]]:
    parity = manifest.parity
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
        ("labels a document", manifest.problem_type.replace("_", "-")),
        ("labels", ", ".join(labels)),
        ("head", manifest.head),
        ("fused", ", ".join(f"{count} {operator}" for operator, count in fused.items())),
        (
            "parity",
            f"largest logit difference {parity['max_abs_logit_difference']:.1e} on {parity['documents']:.0f} documents,"
            f" {parity['decisions_equal']:.1%} of decisions equal",
        ),
        ("size", f"{size / 1e6:.1f} MB"),
    ]
