"""Word pieces as a report shows them, of every kind of tokenizer."""

import pytest
from toys import toy_tokenizer

from amnestic_unlearn.pieces import readable

TEXTS = ["insulin given for ketones, sucré "] * 20


@pytest.mark.parametrize(
    ("architecture", "pieces", "shown"),
    [
        (
            "bert",
            ["insulin", "##u", "[CLS]"],
            ["insulin", "##u", "[CLS]"],
        ),
        (
            "roberta",
            ["Ġgiven", "insulin", "ones", "ĠsucrÃ©", "Ã", "Ġ", "Ċ", ","],
            ["given", "##insulin", "##ones", "sucré", "Ã", "Ġ", "Ċ", "##,"],
        ),
        (
            "xlm-roberta",
            ["▁given", "▁keto", "nes,", "▁"],
            ["given", "keto", "##nes,", "▁"],
        ),
    ],
)
def test_a_piece_is_shown_as_text_with_a_mark_if_it_does_not_begin_a_word(architecture, pieces, shown):
    tokenizer = toy_tokenizer(TEXTS, architecture).backend_tokenizer
    ids = [tokenizer.token_to_id(piece) for piece in pieces]
    assert None not in ids
    assert readable(tokenizer, ids) == shown


def test_an_id_that_is_no_tokens_has_no_text():
    assert readable(toy_tokenizer(TEXTS).backend_tokenizer, [10**6]) == [""]


@pytest.mark.parametrize("architecture", ["bert", "roberta", "camembert"])
def test_no_two_tokens_are_shown_alike(architecture):
    tokenizer = toy_tokenizer(TEXTS, architecture).backend_tokenizer
    shown = readable(tokenizer, range(tokenizer.get_vocab_size()))
    assert len(set(shown)) == len(shown) > 20
