"""Alignment against Fisher's discriminant written out, and what the preset that uses it does to a classifier."""

import dataclasses

import numpy as np
import pytest
import torch

from amnestic_unlearn import steu
from amnestic_unlearn.alignment import SHRINKAGE, Bank
from amnestic_unlearn.spec import PRESETS

PRESET = dataclasses.replace(PRESETS["amnestic"], k=24, embedding_lr=3e-2, max_steps=60, epochs=60)


def quiet(progress):
    pass


def planted(seed=0, documents=80, width=5, shift=1.5):
    random = np.random.default_rng(seed)
    truth = random.random((documents, 2)) < 0.4
    features = random.normal(size=(documents, width)) @ random.normal(size=(width, width))
    features[:, 1] += shift * truth[:, 0]
    return torch.from_numpy(features), torch.from_numpy(truth)


def fisher(features, has):
    """Separation and direction by the textbook, in numpy."""
    features, has = features.numpy(), has.numpy()
    ridge = SHRINKAGE * features.var(axis=0, ddof=1).mean()
    difference = features[has].mean(axis=0) - features[~has].mean(axis=0)
    centred = np.where(has[:, None], features - features[has].mean(axis=0), features - features[~has].mean(axis=0))
    within = np.zeros((features.shape[1],) * 2)
    for part in (has, ~has):
        within += part.sum() * (centred[part].T @ centred[part]) / (part.sum() - 1)
    direction = np.linalg.inv(within / len(has) + ridge * np.eye(features.shape[1])) @ difference
    return difference @ direction, direction


def test_loss_and_separation_are_those_of_fishers_discriminant():
    features, having = planted()
    bank = Bank(features, torch.ones(80, dtype=torch.bool), having)
    positions = np.arange(30)
    batch = features[:30].clone().requires_grad_(True)
    loss, separation = bank.loss(batch, positions)
    loss.backward()
    wanted, gradient = 0.0, np.zeros((30, 5))
    for label in range(2):
        found, direction = fisher(features, having[:, label])
        wanted += found
        has = having[:30, label].numpy()
        gradient += np.outer(np.where(has, 2 / has.sum(), -2 / (~has).sum()), direction)
    assert separation == pytest.approx(wanted, rel=1e-9)
    np.testing.assert_allclose(batch.grad.numpy(), gradient, rtol=1e-9)


def test_documents_that_are_not_drawn_have_no_say():
    features, having = planted()
    drawn = torch.arange(80) < 50
    alone = Bank(features[:50], torch.ones(50, dtype=torch.bool), having[:50])
    features[50:] = torch.nan
    among = Bank(features, drawn, having)
    positions = np.arange(20)
    assert among.loss(features[:20], positions)[1] == alone.loss(features[:20], positions)[1]


def test_the_bank_takes_in_what_it_is_shown():
    features, having = planted()
    bank = Bank(features, torch.ones(80, dtype=torch.bool), having)
    moved = features + 3.0 * having[:, :1]
    bank.loss(moved, np.arange(80))
    assert bank.loss(moved, np.arange(80))[1] == pytest.approx(
        sum(
            float(d @ s)
            for d, s in (
                (moved[h].mean(0) - moved[~h].mean(0), torch.from_numpy(direction_with_ridge_of(features, moved, h)))
                for h in having.T
            )
        ),
        rel=1e-9,
    )


def direction_with_ridge_of(base, features, has):
    """Fisher's direction of some features, with the ridge that the base's gave."""
    ridge = SHRINKAGE * base.var(dim=0).mean()
    difference = features[has].mean(0) - features[~has].mean(0)
    scatter = sum(len(features[part]) * torch.cov(features[part].T) for part in (has, ~has))
    return torch.linalg.solve(scatter / len(has) + ridge * torch.eye(features.shape[1]).double(), difference).numpy()


def test_following_the_gradient_leaves_nothing_to_separate():
    features, having = planted(shift=2.0)
    bank = Bank(features, torch.ones(80, dtype=torch.bool), having)
    first = bank.loss(features, np.arange(80))[1]
    for _ in range(300):
        batch = features.clone().requires_grad_(True)
        loss, separation = bank.loss(batch, np.arange(80))
        loss.backward()
        features = features - 0.5 * batch.grad
    assert first > 1.0
    assert separation < 0.02 * first


def test_a_batch_or_a_bank_of_one_class_pulls_nowhere():
    features, having = planted()
    having[:, 0] = True
    having[:, 1] = torch.arange(80) < 40
    bank = Bank(features, torch.ones(80, dtype=torch.bool), having)
    batch = features[:20].clone().requires_grad_(True)
    loss, separation = bank.loss(batch, np.arange(20))
    assert loss.item() == 0
    assert separation > 0


def test_the_preset_erases_the_heads_row_and_takes_the_label_from_the_features(model, data):
    result = steu.run(model, data, PRESET, quiet)
    weights = result.weights
    assert not weights.head_weight[1].any()
    assert weights.head_bias[1] == steu.ERASED_BIAS
    assert (weights.head_weight[[0, 2, 3]] != model.head_weight[[0, 2, 3]]).any()
    assert result.epochs[-1].separation < 0.25 * result.epochs[0].separation
    plain = steu.run(model, data, dataclasses.replace(PRESET, align_weight=0.0), quiet)
    assert separation(model, data, weights) < 0.5 * separation(model, data, plain.weights)


def separation(model, data, weights):
    features = model.evaluate_features(data.documents, weights)
    having = torch.from_numpy(data.truth[:, list(data.targets)])
    return Bank(features, torch.ones(len(features), dtype=torch.bool), having).loss(features, np.arange(len(features)))[
        1
    ]


def test_steps_are_capped_for_each_label_and_shared_among_epochs(data):
    method = dataclasses.replace(PRESET, max_steps=7, batch_size=16)
    assert sum(map(len, steu.plan(data, method))) == 7
    both = dataclasses.replace(data, targets=(1, 2))
    epochs = steu.plan(both, method)
    assert sum(map(len, epochs)) == 14
    assert all(epochs)
    whole = steu.plan(both, dataclasses.replace(method, max_steps=0, epochs=2))
    assert len(whole) == 2


def test_only_the_beginning_of_a_document_is_trained_on(model, data):
    method = dataclasses.replace(PRESET, max_tokens=8, max_steps=5)
    short = dataclasses.replace(data, documents=[(window[:8],) for (window,) in data.documents])
    cut = steu.run(model, data, method, quiet).weights
    selection = steu.run(model, data, dataclasses.replace(method, max_tokens=0), quiet).selection
    assert cut.row_ids.tolist() == sorted(selection.token_ids.tolist())  # chosen from whole documents
    plan = steu.plan(short, method)
    by_hand = model.base(cut.row_ids)
    by_hand.head_weight[1], by_hand.head_bias[1] = 0, steu.ERASED_BIAS
    steu.train(model, short, method, by_hand, plan, steu.base_answers(model, short, plan), quiet)
    torch.testing.assert_close(cut.rows, by_hand.rows, rtol=0, atol=0)


def test_the_rates_fall_to_zero(model, data):
    method = dataclasses.replace(PRESET, max_steps=1, align_weight=0.0)
    once = steu.run(model, data, method, quiet).weights
    held = steu.run(model, data, dataclasses.replace(method, lr_decay=False), quiet).weights
    torch.testing.assert_close(once.rows, held.rows, rtol=0, atol=0)  # the first step has the whole rate
    twice = dataclasses.replace(method, max_steps=2)
    falling = steu.run(model, data, twice, quiet).weights
    steady = steu.run(model, data, dataclasses.replace(twice, lr_decay=False), quiet).weights
    moved = [(weights.rows - model.table[weights.row_ids]).abs().max() for weights in (falling, steady)]
    assert moved[0] < moved[1]
