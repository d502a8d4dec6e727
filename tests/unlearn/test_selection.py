"""The scores and the choice of tokens, against the formula written out by hand."""

import math
from collections import Counter

import numpy as np
import pytest

from amnestic_unlearn import selection
from amnestic_unlearn.selection import score, select

VOCAB, SPECIAL = 40, (0, 1, 2)


def corpus(seed, documents=60, labels=2):
    """Documents of random tokens in one to three windows; those with label j hold many tokens near 10 * (j + 1)."""
    random = np.random.default_rng(seed)
    having = random.random((documents, labels)) < 0.3
    having[:labels] = np.eye(labels, dtype=bool)
    texts = []
    for row in having:
        body = list(random.integers(3, VOCAB, size=random.integers(1, 30)))
        for label in np.flatnonzero(row):
            body += list(random.integers(10 * (label + 1), 10 * (label + 1) + 4, size=8))
        windows = np.array_split(np.array(body, dtype=np.int32), random.integers(1, 4))
        texts.append(tuple(np.array([1, *window, 2], dtype=np.int32) for window in windows))
    return texts, having


def reference_scores(texts, having):
    """log2(P(t|forget) / P(t|all)) * log(1 + n_forget(t)), one token at a time."""
    forget, everything = Counter(), Counter()
    for text, has in zip(texts, having, strict=True):
        for token in np.concatenate(text).tolist():
            if token not in SPECIAL:
                everything[token] += 1
                forget[token] += bool(has)
    n_forget, n_all = sum(forget.values()), sum(everything.values())
    return {
        token: math.log2((count / n_forget) / (everything[token] / n_all)) * math.log(1 + count)
        for token, count in forget.items()
        if count
    }


def reference_choice(scores, k):
    positive = [token for token in scores if scores[token] > 0]
    return sorted(positive, key=lambda token: (-scores[token], token))[:k]


@pytest.mark.parametrize("seed", range(5))
def test_scores_and_choice_follow_the_formula(seed):
    texts, having = corpus(seed, labels=1)
    expected = reference_scores(texts, having[:, 0])
    chosen = select(texts, having, SPECIAL, VOCAB, k=6)
    assert chosen.token_ids.tolist() == reference_choice(expected, 6)
    assert chosen.scores == pytest.approx([expected[token] for token in chosen.token_ids], abs=1e-12)


def test_each_label_has_its_own_k_and_the_union_keeps_the_better_score():
    texts, having = corpus(7)
    by_label = [reference_scores(texts, column) for column in having.T]
    best = {}
    for scores in by_label:
        for token in reference_choice(scores, 5):
            best[token] = max(best.get(token, 0.0), scores[token])
    chosen = select(texts, having, SPECIAL, VOCAB, k=5)
    assert chosen.token_ids.tolist() == sorted(best, key=lambda token: (-best[token], token))
    assert chosen.scores == pytest.approx(sorted(best.values(), reverse=True))
    assert 5 < len(chosen.token_ids) <= 10


def test_special_tokens_neither_score_nor_weigh():
    texts, having = corpus(1, labels=1)
    stuffed = [(*text, np.repeat(np.int32(0), 50)) for text in texts]
    plain, padded = (select(documents, having, SPECIAL, VOCAB, k=VOCAB) for documents in (texts, stuffed))
    assert padded.token_ids.tolist() == plain.token_ids.tolist()
    assert padded.scores == pytest.approx(plain.scores)
    assert not set(plain.token_ids.tolist()) & set(SPECIAL)


def test_tokens_of_other_documents_and_scores_not_above_zero_are_left_out():
    having = np.array([[True], [False]])
    texts = [(np.array([5, 5, 6], dtype=np.int32),), (np.array([6, 6, 6, 6, 9], dtype=np.int32),)]
    # 5 stands in forget documents alone; 6 is rarer there than everywhere; 9 is not there at all.
    assert select(texts, having, SPECIAL, VOCAB, k=10).token_ids.tolist() == [5]


def test_a_corpus_that_has_the_label_everywhere_chooses_nothing():
    texts, _ = corpus(3)
    assert len(select(texts, np.ones((len(texts), 1), dtype=bool), SPECIAL, VOCAB, k=9).token_ids) == 0


def test_equal_scores_are_ordered_by_id():
    texts = [(np.array([30, 7, 19], dtype=np.int32),), (np.array([8], dtype=np.int32),)]
    chosen = select(texts, np.array([[True], [False]]), SPECIAL, VOCAB, k=2)
    assert chosen.token_ids.tolist() == [7, 19]


def test_counting_in_pieces_changes_nothing(monkeypatch):
    texts, having = corpus(5)
    whole = select(texts, having, SPECIAL, VOCAB, k=8)
    monkeypatch.setattr(selection, "CHUNK", 7)
    assert select(texts, having, SPECIAL, VOCAB, k=8).scores.tolist() == whole.scores.tolist()


def test_an_unseen_token_scores_zero():
    assert score(np.array([0, 3]), np.array([4, 3])).tolist()[0] == 0.0
