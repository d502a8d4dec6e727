"""The encoder of the tiny matrix, and rows as they would be measured."""

from amnestic_unlearn.bench.matrix import BenchEncoder
from amnestic_unlearn.train_settings import Shape, TrainSettings

SHAPE = Shape(vocab_size=300, layers=1, hidden=16, heads=2, intermediate=32)
TINY = BenchEncoder("tiny", TrainSettings(epochs=1, max_tokens=48, threads=1, device="cpu", shape=SHAPE))
KEY = ("corpus", "encoder", "seed", "target", "method")


def key(row):
    return tuple(row[name] for name in KEY)


def measured(corpus, encoder, seed, target, method, **figures):
    """A row of made-up figures."""
    usual = {
        "settings": "0" * 12,
        "error": "",
        "seconds": 1.0,
        "forget_f1": 0.0,
        "retain_f1": 0.7,
        "retain_f1_delta": 0.0,
        "probe_auroc": 0.7,
        "probe_auroc_original": 0.9,
        "probe_auroc_retrained": 0.6,
        "cpu": "a processor",
        "threads": 1,
        "precision": "fp32",
        "torch": "2",
        "transformers": "5",
        "amnestic": "0.1",
        "date": "2026-11-24T00:00:00+00:00",
    }
    return dict(zip(KEY, (corpus, encoder, seed, target, method), strict=True)) | usual | figures
