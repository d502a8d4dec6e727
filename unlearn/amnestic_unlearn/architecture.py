"""Where each architecture keeps what unlearning may change: the word embeddings and the last linear layer.

The classification head is the last linear layer alone. Whatever stands between the transformer and that layer
(BERT's pooler, DistilBERT's `pre_classifier`, the `classifier.dense` of RoBERTa and ELECTRA) belongs to the frozen
encoder, so the features that a head sees are the input of its last linear layer. So does ELECTRA's projection of
narrow word embeddings to the width of the layers: the rows that change are those of the table before it.
"""

from dataclasses import dataclass
from typing import Any


class CheckpointError(ValueError):
    """A checkpoint cannot be had, read or used. The text names it, or what about it is at fault."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Names of modules in the Hugging Face sequence-classification model; `name` is its `model_type`.

    `root` is the transformer's. `positions_behind_padding`: its table of positions is counted from behind the id of
    the padding token.
    """

    name: str
    root: str
    head: str
    head_statement: str
    positions_behind_padding: bool = False

    @property
    def word_embeddings(self) -> str:
        return f"{self.root}.embeddings.word_embeddings"


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            "bert",
            "bert",
            "classifier",
            "`classifier`, the last linear layer; the pooler (dense and tanh) belongs to the frozen encoder",
        ),
        Architecture(
            "distilbert",
            "distilbert",
            "classifier",
            "`classifier`, the last linear layer; `pre_classifier` and its ReLU belong to the frozen encoder",
        ),
        *(
            Architecture(
                name,
                "roberta",
                "classifier.out_proj",
                "`classifier.out_proj`, the last linear layer; `classifier.dense` and its tanh belong to the"
                " frozen encoder",
                positions_behind_padding=True,
            )
            for name in ("roberta", "xlm-roberta", "camembert")
        ),
        Architecture(
            "electra",
            "electra",
            "classifier.out_proj",
            "`classifier.out_proj`, the last linear layer; `classifier.dense` and its GELU belong to the"
            " frozen encoder",
        ),
    )
}

# Why the fused graph, absolute positions and full attention and a layer norm behind each block, is not theirs.
_NOT_COVERED = {
    "albert": "one layer's weights stand for all layers, which the graph is not written for",
    "big_bird": "a token attends to some of the others only",
    "deberta": "attention reads relative positions in every layer",
    "deberta-v2": "attention reads relative positions in every layer",
    "longformer": "a token attends to a window of the others only",
    "megatron-bert": "the layer norms stand before attention and feed-forward part, not behind",
    "modernbert": "positions are rotations in every layer, and the layer norms stand before it",
    "mpnet": "attention adds a bias for relative positions in every layer",
}


def architecture_of(model_type: str) -> Architecture:
    """The architecture of a configuration's `model_type`; raises CheckpointError for one that is not supported."""
    if model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    reason = f" ({_NOT_COVERED[model_type]})" if model_type in _NOT_COVERED else ""
    raise CheckpointError(f"architecture {model_type} is not supported{reason}; supported: {', '.join(ARCHITECTURES)}")


# What a configuration may name, and which function it is.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def activation_of(architecture: Architecture, config: Any) -> str:
    """Of the feed-forward parts: gelu, gelu_tanh (its approximation) or relu; raises CheckpointError for another."""
    name = config.activation if architecture.name == "distilbert" else config.hidden_act
    if not isinstance(name, str) or name not in ACTIVATIONS:
        shown = name if isinstance(name, str) else "a custom function"
        raise CheckpointError(f"activation {shown} is not supported; supported: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def check_config(architecture: Architecture, config: Any) -> None:
    """Raise CheckpointError for settings that change the arithmetic of the encoder in a way not covered."""
    activation_of(architecture, config)
    kind = getattr(config, "position_embedding_type", None) or "absolute"
    if kind != "absolute":
        raise CheckpointError(
            f"position embeddings of type {kind} are not supported (attention reads them in every layer);"
            " supported: absolute"
        )
    for setting in ("is_decoder", "add_cross_attention"):
        if getattr(config, setting, False):
            raise CheckpointError(f"{setting} is set: only encoders are supported")
    if int(config.num_hidden_layers) < 1:
        raise CheckpointError("the encoder has no layers")
    if int(config.hidden_size) % int(config.num_attention_heads):
        raise CheckpointError("hidden_size is not a multiple of num_attention_heads")
    if architecture.positions_behind_padding and config.pad_token_id is None:
        raise CheckpointError("the configuration has no pad_token_id, from which positions are counted")


def first_position(architecture: Architecture, config: Any) -> int:
    """The row of the position table that the first token takes."""
    return int(config.pad_token_id) + 1 if architecture.positions_behind_padding else 0


def positions(architecture: Architecture, config: Any) -> int:
    """The longest input in tokens that the position table has rows for."""
    return int(config.max_position_embeddings) - first_position(architecture, config)
