"""What the baselines on head and rows promise beside forgetting."""

import dataclasses

import numpy as np
import pytest
import torch

from amnestic_unlearn import measures, steu
from amnestic_unlearn.baselines import head, rows
from amnestic_unlearn.baselines.training import Schedule
from amnestic_unlearn.selection import select
from amnestic_unlearn.spec import Method


def quiet(progress):
    pass


def base(model):
    return model.base(torch.empty(0, dtype=torch.int64))


def with_threshold(model, column, threshold):
    thresholds = list(model.manifest.thresholds)
    thresholds[column] = threshold
    return dataclasses.replace(model, manifest=dataclasses.replace(model.manifest, thresholds=tuple(thresholds)))


@pytest.mark.parametrize("threshold", [0.02, 0.5, 0.97])
def test_a_bias_edit_puts_the_highest_training_document_a_margin_below_the_threshold(model, data, threshold):
    model = with_threshold(model, data.targets[0], threshold)
    edited = head.bias_edit(model, data, 0, quiet, head.Margin(logits=0.25))
    column = edited.logits(data.documents)[:, data.targets[0]]
    assert column.max().item() == pytest.approx(np.log(threshold / (1 - threshold)) - 0.25, abs=1e-5)
    assert edited.parameters_changed == 1


def test_a_bias_edit_leaves_features_and_rankings(model, data):
    edited = head.bias_edit(model, data, 0, quiet)
    assert torch.equal(edited.features(data.documents), model.evaluate_features(data.documents, base(model)))
    before, after = model.evaluate(data.documents, base(model)), edited.logits(data.documents)
    others = list(data.others)
    assert torch.equal(before[:, others], after[:, others])
    truth = data.truth[:, data.targets[0]]
    scores = (measures.auroc(truth, logits[:, data.targets[0]].double().numpy()) for logits in (before, after))
    assert next(scores) == pytest.approx(next(scores), abs=1e-3)


def test_a_bias_that_is_low_enough_is_not_raised(model, data):
    low = dataclasses.replace(model, head_bias=torch.full_like(model.head_bias, -100.0))
    assert head.bias_edit(low, data, 0, quiet).parameters_changed == 0


@pytest.mark.parametrize("threshold", [0.01, 0.9])
def test_a_zeroed_row_never_decides_even_where_its_bias_would(model, data, threshold):
    column = data.targets[0]
    eager = dataclasses.replace(with_threshold(model, column, threshold), head_bias=torch.full((4,), 9.0))
    silent = head.zero_row(eager, data, 0, quiet)
    logits = silent.logits(data.documents)[:, column]
    assert (logits == logits[0]).all()
    probability = logits[0].double().sigmoid()
    assert probability < 1e-6


def test_head_only_training_is_that_of_the_encoder_run_anew(exact, data):
    """Features kept from before stand for those of every step; the whole way gives the same forgotten row.

    The other rows start where the utility loss is least. Their gradient is rounding noise, which Adam scales up to
    steps of up to its rate, so they are not compared.
    """
    schedule = Schedule(epochs=2, head_lr=1e-2, clip=1e9)
    mine = head.head_only(exact, data, 3, quiet, head.HeadOnly(schedule=schedule)).weights
    method = Method(k=4, epochs=2, embedding_lr=0.0, head_lr=1e-2, seed=3)
    theirs = steu.run(exact, data, method, quiet).weights
    row = data.targets[0]
    torch.testing.assert_close(mine.head_weight[row], theirs.head_weight[row], rtol=0, atol=1e-9)
    torch.testing.assert_close(mine.head_bias[row], theirs.head_bias[row], rtol=0, atol=1e-9)
    moved = (mine.head_weight - exact.head_weight).abs().amax(dim=1)
    assert moved[row] > 0.05
    assert moved[list(data.others)].max() < 0.03


def test_random_tokens_are_as_many_as_steus_and_from_forget_documents(model, two):
    method = Method(k=10, seed=5)
    drawn = rows.draw_tokens(model, two, method)
    special = model.manifest.special_token_ids
    chosen = select(two.documents, two.truth[:, two.targets], special, model.manifest.vocab_size, method.k).token_ids
    held = set(np.concatenate([window for (window,) in two.batch(two.forget)]).tolist()) - set(special)
    assert len(drawn) == len(set(drawn.tolist())) == len(chosen) > 10
    assert drawn.tolist() == sorted(drawn.tolist())
    assert set(drawn.tolist()) <= held
    assert set(drawn.tolist()) != set(chosen.tolist())
    assert drawn.tolist() != rows.draw_tokens(model, two, dataclasses.replace(method, seed=6)).tolist()
