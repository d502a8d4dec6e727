"""Bundles to benchmark with, made of a pretrained encoder: its weights, its vocabulary, and a fresh head."""

import tempfile
from pathlib import Path

from amnestic_server.bench.errors import BenchError
from amnestic_server.bench.shapes import LABELS
from amnestic_unlearn.bench import matrix
from amnestic_unlearn.bench.matrix import BenchEncoder
from amnestic_unlearn.windows import Reading

MAX_TOKENS = 512


def encoder_named(name: str) -> BenchEncoder:
    """`minilm`, which a package carries, or a checkpoint's directory or hub id. Raises TrainError, CheckpointError."""
    if name in matrix.ENCODERS and matrix.ENCODERS[name].package:
        return matrix.ENCODERS[name]
    return matrix.pretrained(name)


def pretrained_bundle(encoder: BenchEncoder, out: Path) -> None:
    """Export the encoder with a head of random weights to `out`. Raises TrainError, CheckpointError and BenchError."""
    import torch  # not for --help

    from amnestic_server.errors import ExportError
    from amnestic_server.export import export
    from amnestic_unlearn.checkpoint import load_pretrained, save, transformers_silent

    source = encoder.checkpoint()
    assert source is not None, "an encoder of `encoder_named` has weights"
    with torch.random.fork_rng(), transformers_silent(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        tokenizer, model = load_pretrained(source, LABELS, MAX_TOKENS)
        checkpoint = Path(folder) / "checkpoint"
        save(model, tokenizer, [0.5] * len(LABELS), Reading.of(MAX_TOKENS), checkpoint)
        try:
            export(checkpoint, out, name=encoder.name, warn=lambda assumed: None)
        except ExportError as error:
            raise BenchError(f"{encoder.name} cannot be exported: {error}") from error
