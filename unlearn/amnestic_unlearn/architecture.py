"""Where each architecture keeps what unlearning may change: the word embeddings and the last linear layer.

The classification head is the last linear layer alone. Whatever stands between the transformer and that layer
(BERT's pooler, DistilBERT's `pre_classifier`, RoBERTa's `classifier.dense`) belongs to the frozen encoder, so
the features that a head sees are the input of its last linear layer.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Architecture:
    """Names of modules in the Hugging Face sequence-classification model."""

    name: str
    word_embeddings: str
    head: str
    head_statement: str


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            "bert",
            "bert.embeddings.word_embeddings",
            "classifier",
            "`classifier`, the last linear layer; the pooler (dense and tanh) belongs to the frozen encoder",
        ),
        Architecture(
            "distilbert",
            "distilbert.embeddings.word_embeddings",
            "classifier",
            "`classifier`, the last linear layer; `pre_classifier` and its ReLU belong to the frozen encoder",
        ),
        Architecture(
            "roberta",
            "roberta.embeddings.word_embeddings",
            "classifier.out_proj",
            "`classifier.out_proj`, the last linear layer; `classifier.dense` and its tanh belong to the"
            " frozen encoder",
        ),
    )
}
