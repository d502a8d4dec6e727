"""The closed-form erasers: what their theorems promise on the documents that they were fitted on."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from amnestic_unlearn import probe
from amnestic_unlearn.baselines import erasure

LN2 = math.log(2)


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def drawn(random):
    """Correlated features [400, 6] and two labels that shift them."""
    having = random.random((400, 2)) < (0.3, 0.5)
    shift = random.normal(size=(2, 6))
    return random.normal(size=(400, 6)) @ random.normal(size=(6, 6)) + having @ shift * 2 + 5.0, having


def quiet(progress):
    pass


def apply(eraser, features):
    return features - (features - eraser.centre) @ eraser.right.T @ eraser.left.T


def balanced_loss(features, truth):
    """Of the best linear classifier, both classes weighing the same; ln 2 is that of a constant."""
    inputs = (features - features.mean(axis=0)) / features.std(axis=0)
    scores = inputs @ probe.fit(inputs, truth, 1e-3)
    gaps = scores[truth].mean(), scores[~truth].mean()
    middle = sum(gaps) / 2
    losses = np.logaddexp(0.0, np.where(truth, middle - scores, scores - middle))
    return (losses[truth].mean() + losses[~truth].mean()) / 2


def test_after_leace_both_classes_have_the_same_mean(drawn):
    features, having = drawn
    erased = apply(erasure.fit_leace(features, having), features)
    for label in having.T:
        np.testing.assert_allclose(erased[label].mean(axis=0), erased[~label].mean(axis=0), atol=1e-12)
        assert np.abs(features[label].mean(axis=0) - features[~label].mean(axis=0)).max() > 0.5
    np.testing.assert_allclose(erased.mean(axis=0), features.mean(axis=0), atol=1e-12)


def test_leace_moves_features_least(drawn, random):
    """Of all the maps that take out the label's covariance, each in a direction of its own, it costs least."""
    features, having = drawn
    having = having[:, :1]
    centre = features.mean(axis=0)
    covariance = (features - centre).T @ (having - having.mean(axis=0)) / len(features)
    least = np.square(apply(erasure.fit_leace(features, having), features) - features).sum()
    for _ in range(50):
        # x - c q^T (x - m) erases c, the label's covariance, for every q with q^T c = 1.
        direction = random.normal(size=(6, 1))
        direction /= (direction.T @ covariance).item()
        other = erasure.Eraser(covariance, direction.T, centre)
        erased = apply(other, features)
        np.testing.assert_allclose(erased[having[:, 0]].mean(axis=0), erased[~having[:, 0]].mean(axis=0), atol=1e-9)
        assert np.square(erased - features).sum() > least


def test_leace_of_features_that_depend_on_each_other(drawn):
    features, having = drawn
    features = np.hstack([features, features[:, :2] * 3.0, np.ones((len(features), 1))])
    eraser = erasure.fit_leace(features, having)
    erased = apply(eraser, features)
    for label in having.T:
        np.testing.assert_allclose(erased[label].mean(axis=0), erased[~label].mean(axis=0), atol=1e-9)
    assert eraser.left.shape == (9, 2)
    np.testing.assert_allclose(erased[:, 6:8], erased[:, :2] * 3.0, atol=1e-9)


def test_labels_that_are_the_same_share_a_direction(drawn):
    features, having = drawn
    assert erasure.fit_leace(features, having[:, [0, 0]]).left.shape == (6, 1)


def test_leace_leaves_a_linear_probe_nothing(model, data, two):
    for chosen in (data, two):
        outcome = erasure.leace(model, chosen, 0, quiet)
        before = model.evaluate_features(chosen.documents, outcome.weights).double().numpy()
        after = outcome.features(chosen.documents).double().numpy()
        for target in chosen.targets:
            truth = chosen.truth[:, target]
            np.testing.assert_allclose(after[truth].mean(axis=0), after[~truth].mean(axis=0), atol=1e-6)
            assert balanced_loss(before, truth) < 0.2
            assert balanced_loss(after, truth) == pytest.approx(LN2, abs=1e-4)
        for kept in chosen.others:
            assert probe.probe_auc(after, chosen.truth[:, kept], after, chosen.truth[:, kept]) > 0.9


def test_esc_takes_the_largest_directions_of_the_forget_documents(drawn):
    features, having = drawn
    forget = features[having[:, 0]]
    eraser = erasure.fit_esc(forget, 0.3)
    assert eraser.left.shape == (6, 2)
    values = np.linalg.svd(forget, compute_uv=False)
    left = np.linalg.svd(apply(eraser, forget), compute_uv=False)
    np.testing.assert_allclose(left[:4], values[2:], rtol=1e-9)
    np.testing.assert_allclose(left[4:], 0.0, atol=1e-9)
    np.testing.assert_allclose(apply(eraser, apply(eraser, features)), apply(eraser, features), atol=1e-9)


def test_esc_erases_its_directions_from_every_document(model, data):
    outcome = erasure.esc(model, data, 0, quiet, erasure.Esc(pruned=0.05))
    directions = outcome.twin.encoder.left.float()
    assert directions.shape == (32, 2)
    before = model.evaluate_features(data.documents, outcome.weights)
    left = outcome.features(data.documents) @ directions
    torch.testing.assert_close(left, torch.zeros_like(left), rtol=0, atol=1e-5)
    assert (before @ directions).abs().max() > 0.5
    torch.testing.assert_close(outcome.features(data.documents) + before @ directions @ directions.T, before)


def test_the_erased_encoder_is_a_twin_of_its_own(model, data):
    outcome = erasure.leace(model, data, 0, quiet)
    assert outcome.twin.encoder_digest() != model.encoder_digest()
    assert not outcome.twin.encoder.training
    mixed = dataclasses.replace(outcome.twin, mixed=True).evaluate_features(data.documents[:16], outcome.weights)
    torch.testing.assert_close(mixed, outcome.features(data.documents[:16]), rtol=0, atol=0.05)
    assert mixed.dtype == torch.float32
