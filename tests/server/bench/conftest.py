"""What tests of benchmarks share."""

import pytest
from transformers import BertConfig, BertModel

from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.checkpoint import learn_tokenizer


@pytest.fixture
def pretrained(tmp_path):
    """A BERT without a head, as a hub has them."""
    texts = [document.text for document in corpora.read(corpora.SHIPPED, splits=("gate",))]
    tokenizer = learn_tokenizer(texts, 400, 512)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path / "own")
    tokenizer.save_pretrained(tmp_path / "own")
    return tmp_path / "own"
