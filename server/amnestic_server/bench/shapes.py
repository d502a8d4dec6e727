"""Bundles to benchmark with: encoders of a known shape with random weights, whose speed is that of trained ones."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from amnestic_unlearn import corpus as corpora


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a BERT encoder, and of its word-embedding table."""

    layers: int
    hidden_size: int
    heads: int
    intermediate_size: int
    vocab_size: int


SHAPES = {
    # So small that the front is all that counts.
    "tiny": Shape(layers=1, hidden_size=32, heads=2, intermediate_size=64, vocab_size=3_250),
    "demo": Shape(layers=2, hidden_size=128, heads=2, intermediate_size=512, vocab_size=3_250),
    "minilm": Shape(layers=6, hidden_size=384, heads=12, intermediate_size=1_536, vocab_size=30_522),
    "bert-base": Shape(layers=12, hidden_size=768, heads=12, intermediate_size=3_072, vocab_size=30_522),
}
LABELS = ("cardiovascular", "endocrine", "gastrointestinal", "neurologic", "pulmonary", "renal")
WORD_PIECES = 3_250


def random_bundle(shape: Shape, out: Path) -> None:
    """Export a BERT of this shape with random weights, and a vocabulary learned on the shipped corpus, to `out`."""
    from transformers import BertConfig, BertForSequenceClassification  # not for --help

    from amnestic_server.export import export
    from amnestic_unlearn.checkpoint import learn_tokenizer, transformers_silent

    texts = [document.text for document in corpora.read(corpora.SHIPPED, splits=("train",))]
    tokenizer = learn_tokenizer(texts, WORD_PIECES, 512)
    config = BertConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate_size,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        problem_type="multi_label_classification",
    )
    with tempfile.TemporaryDirectory() as folder, transformers_silent():
        BertForSequenceClassification(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        export(folder, out, name=out.name, warn=lambda assumed: None)
