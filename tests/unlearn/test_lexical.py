"""Rewriting around edited tokens: it avoids them, is seeded, and leaves every other word as it was."""

import math
import re
import string

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from toys import KEYWORDS, toy_tokenizer

from amnestic_unlearn.lexical import LEXICON, misspellings, read_lexicon, rewrite

WORDS = "patient with diabetes mellitus and kidney failure on insulin renal disease dm the at home".split()  # noqa: SIM905
LETTERS = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
VOCABULARY = {token: index for index, token in enumerate(["[PAD]", "[UNK]", *WORDS, *LETTERS, ".", "-", "1", "##2"])}
TERMS = {
    "diabetes mellitus": ("DM",),
    "kidney": ("renal", "nephric"),
    "renal": ("kidney",),
    "dm": ("diabetes mellitus",),
}


@pytest.fixture(scope="module")
def tokenizer():
    """Whole words of the list, letters for all else; cut to 6 tokens."""
    made = Tokenizer(models.WordPiece(VOCABULARY, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(["[PAD]", "[UNK]"])
    made.enable_truncation(6)
    return made


def ids(*tokens):
    return np.array([VOCABULARY[token] for token in tokens])


def words(text):
    return re.findall(r"[^\W_]+", text)


def test_a_term_of_the_lexicon_comes_before_a_misspelling(tokenizer):
    found = rewrite(["Patient with kidney failure."], tokenizer, ids("kidney"), lexicon=TERMS)
    assert found.texts == ("Patient with renal failure.",)
    assert (found.before.tolist(), found.after.tolist(), found.avoided) == ([1], [0], 1.0)


@pytest.mark.parametrize("architecture", ["roberta", "xlm-roberta"])
def test_a_token_that_holds_the_blank_before_its_word_is_avoided(architecture):
    made = toy_tokenizer(["patient with kidney failure on renal diet, ketones given"] * 20, architecture)
    tokenizer = made.backend_tokenizer
    (kidney,) = tokenizer.encode(" kidney", add_special_tokens=False).ids
    found = rewrite(["patient with kidney failure"], tokenizer, np.array([kidney]), lexicon=TERMS)
    assert found.texts == ("patient with renal failure",)
    assert (found.before.tolist(), found.after.tolist()) == ([1], [0])


def test_a_term_that_is_edited_too_is_passed_over(tokenizer):
    assert rewrite(["kidney failure"], tokenizer, ids("kidney", "renal"), lexicon=TERMS).texts == ("nephric failure",)


def test_capitals_follow_the_word_and_abbreviations_keep_theirs(tokenizer):
    texts = ["Kidney disease", "KIDNEY disease", "Diabetes-Mellitus at home"]
    found = rewrite(texts, tokenizer, ids("kidney", "diabetes", "mellitus"), lexicon=TERMS)
    assert found.texts == ("Renal disease", "RENAL disease", "DM at home")


def test_a_term_of_two_words_is_replaced_only_if_both_are_edited(tokenizer):
    text = "patient with diabetes mellitus at home"
    both = rewrite([text], tokenizer, ids("diabetes", "mellitus"), lexicon=TERMS)
    assert both.texts == ("patient with DM at home",)
    one = rewrite([text], tokenizer, ids("mellitus"), lexicon=TERMS).texts[0]
    assert words(one)[:3] == ["patient", "with", "diabetes"]
    assert words(one)[3] in misspellings("mellitus")
    apart = rewrite(["diabetes. mellitus"], tokenizer, ids("diabetes", "mellitus"), lexicon=TERMS).texts[0]
    assert words(apart)[0] in misspellings("diabetes") and words(apart)[1] in misspellings("mellitus")


def test_only_words_with_an_edited_token_change(tokenizer):
    text = "The patient,  with KIDNEY failure\n(on insulin; renal-disease) at\thome."
    found = rewrite([text, "the patient at home"], tokenizer, ids("insulin", "kidney"), lexicon={})
    before, after = words(text), words(found.texts[0])
    changed = {old for old, new in zip(before, after, strict=True) if old != new}
    assert changed == {"KIDNEY", "insulin"}
    assert re.sub(r"[^\W_]+", "", found.texts[0]) == re.sub(r"[^\W_]+", "", text)
    assert found.texts[1] == "the patient at home"


def test_misspellings_avoid_edited_pieces_and_follow_the_seed(tokenizer):
    # An edited first letter leaves two of all slips.
    edited = ids("insulin", "i")
    found = {seed: rewrite(["on insulin"], tokenizer, edited, seed, {}) for seed in range(12)}
    assert {one.texts[0] for one in found.values()} == {"on nisulin", "on nsulin"}
    assert all(one.after.tolist() == [0] for one in found.values())
    assert rewrite(["on insulin"], tokenizer, edited, 3, {}).texts == found[3].texts


def test_a_word_is_rewritten_alike_in_every_text(tokenizer):
    found = rewrite(["insulin at home", "on insulin", "the insulin"], tokenizer, ids("insulin"), 5, {})
    assert len({word for text in found.texts for word in words(text) if word not in WORDS}) == 1


def test_what_cannot_avoid_them_stays(tokenizer):
    # No slip of insulin is without an i, no number has one, and a full stop is no word.
    edited = ids("insulin", "i", "##i", "1", ".")
    found = rewrite(["on insulin 12."], tokenizer, edited, lexicon={"insulin": ("humulin",)})
    assert found.texts == ("on insulin 12.",)
    assert (found.before.tolist(), found.after.tolist(), found.avoided) == ([3], [3], 0.0)


def test_what_the_tokenizer_does_not_know_is_no_way_round(tokenizer):
    found = rewrite(["insulin"], tokenizer, ids("insulin"), lexicon={"insulin": ("инсулин",)})
    assert found.texts[0] in misspellings("insulin")


def test_text_beyond_the_maximum_is_rewritten_too_and_the_tokenizer_left_alone(tokenizer):
    state = tokenizer.to_str()
    found = rewrite(["the patient at home with disease and kidney failure"], tokenizer, ids("kidney"), lexicon=TERMS)
    assert found.before.tolist() == [1] and "renal failure" in found.texts[0]
    assert tokenizer.to_str() == state


def test_the_share_avoided_is_of_all_occurrences(tokenizer):
    texts = ["kidney kidney kidney", "12"]
    found = rewrite(texts, tokenizer, ids("kidney", "1"), lexicon=TERMS)
    assert (found.before.tolist(), found.after.tolist()) == ([3, 1], [0, 1])
    assert found.avoided == pytest.approx(0.75)
    assert math.isnan(rewrite(["at home"], tokenizer, ids("kidney")).avoided)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_learned_vocabularies(architecture):
    keys = [word for group in KEYWORDS.values() for word in group]
    texts = [f"patient with {word} and ({word}) at home,{word}" for word in keys]
    tokenizer = toy_tokenizer(texts * 3, architecture).backend_tokenizer
    # The first piece of every key word, after a blank: byte-level tokens take the blank along.
    edited = np.array([tokenizer.encode(f" {word}", add_special_tokens=False).ids[0] for word in KEYWORDS["beta"]])
    found = rewrite(texts, tokenizer, edited, lexicon={})
    again = [sum(token in set(edited) for token in tokenizer.encode(text).ids) for text in found.texts]
    assert found.after.tolist() == again
    assert found.before.sum() > 0 and found.avoided > 0.7
    for text, written, before in zip(texts, found.texts, found.before, strict=True):
        assert before or written == text


def test_misspellings_are_every_slip_of_one_letter():
    assert set(misspellings("abb")) == {"bab", "bb", "ab", "aabb", "abbb"}
    assert misspellings("ab") == misspellings("b12") == []
    assert "abb" not in misspellings("abb")


def test_the_lexicon_reads_both_ways():
    lexicon = read_lexicon()
    assert "DM" in lexicon["diabetes mellitus"] and "diabetes mellitus" in lexicon["DM"]
    assert "HTN" in lexicon["hypertension"] and "hypertension" in lexicon["htn"]
    assert "renal" in lexicon["kidney"] and "kidney" in lexicon["renal"]
    # In small letters these are words.
    assert not {"as", "us", "do", "or"} & set(lexicon)


def test_every_line_of_the_lexicon_is_a_group_of_different_terms():
    lines = LEXICON.read_text(encoding="utf-8").splitlines()
    groups = [[term.strip() for term in line.split("|")] for line in lines if line and not line.startswith("#")]
    assert len(groups) >= 150
    for group in groups:
        assert len({term.lower() for term in group}) == len(group) >= 2, group
        for term in group:
            assert re.fullmatch(r"[A-Za-z0-9]+( [A-Za-z0-9]+)*", term), term
    as_sets = [frozenset(term.lower() for term in group) for group in groups]
    assert len(set(as_sets)) == len(as_sets)
