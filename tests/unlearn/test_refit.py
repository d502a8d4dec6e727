"""The head's closed form against least squares written out, and what it gives the labels that are kept."""

import dataclasses

import numpy as np
import torch

from amnestic_unlearn import steu
from amnestic_unlearn.refit import RIDGE, refit
from amnestic_unlearn.spec import PRESETS
from amnestic_unlearn.twin import Weights, head
from amnestic_unlearn.windows import Pooling

WITHOUT = dataclasses.replace(PRESETS["amnestic"], k=24, embedding_lr=3e-2, max_steps=60, epochs=60)
WITH = dataclasses.replace(WITHOUT, refit_head=True)


def quiet(progress):
    pass


def random_head(generator, labels=4, width=6):
    rows = torch.empty(0, dtype=torch.int64), torch.empty(0, width)
    return Weights(*rows, *(torch.randn(size, generator=generator) for size in ((labels, width), (labels,))))


def test_it_is_the_ridge_regression_that_is_held_to_the_bases_head():
    generator = torch.Generator().manual_seed(0)
    base, trained = random_head(generator), random_head(generator)
    features, logits = torch.randn(40, 6, generator=generator), torch.randn(40, 4, generator=generator)
    columns = (0, 1, 3)
    wanted = dataclasses.replace(trained, head_weight=trained.head_weight.clone(), head_bias=trained.head_bias.clone())
    # Least squares with a row for each weight that the ridge holds.
    ridge = float(RIDGE * features.square().mean())
    inputs = np.column_stack([features.numpy(), np.ones(40)]).astype(np.float64)
    before = np.column_stack([base.head_weight.numpy(), base.head_bias.numpy()]).T
    solved, *_ = np.linalg.lstsq(
        np.vstack([inputs / np.sqrt(40), np.sqrt(ridge) * np.eye(7)]),
        np.vstack([logits.numpy() / np.sqrt(40), np.sqrt(ridge) * before]),
        rcond=None,
    )
    for column in columns:
        wanted.head_weight[column] = torch.from_numpy(solved[:-1, column])
        wanted.head_bias[column] = float(solved[-1, column])
    refit(trained, base, features, logits, columns)
    torch.testing.assert_close(trained.head_weight, wanted.head_weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(trained.head_bias, wanted.head_bias, rtol=1e-5, atol=1e-6)


def test_features_that_did_not_change_leave_the_head_as_it_was():
    generator = torch.Generator().manual_seed(0)
    base, trained = random_head(generator), random_head(generator)
    features = torch.randn(40, 6, generator=generator)
    refit(trained, base, features, head(features, base), range(4))
    torch.testing.assert_close(trained.head_weight, base.head_weight)
    torch.testing.assert_close(trained.head_bias, base.head_bias)


def test_the_labels_that_are_kept_are_answered_more_as_before(model, data):
    without, fitted = (steu.run(model, data, method, quiet).weights for method in (WITHOUT, WITH))
    assert torch.equal(without.rows, fitted.rows)
    assert not fitted.head_weight[1].any()
    assert fitted.head_bias[1] == steu.ERASED_BIAS
    base = model.evaluate(data.documents, model.base(torch.empty(0, dtype=torch.int64)))
    off, left = (
        (model.evaluate(data.documents, weights) - base)[:, list(data.others)].square().mean()
        for weights in (without, fitted)
    )
    assert left < 0.8 * off


def test_where_the_largest_window_answers_documents_of_several_have_no_say(model, data):
    several = dataclasses.replace(data, documents=[(*document, *document) for document in data.documents])
    pooled = dataclasses.replace(model, manifest=dataclasses.replace(model.manifest, pooling=Pooling.MAX))
    method = dataclasses.replace(WITH, max_steps=4)
    fitted = steu.run(pooled, several, method, quiet).weights
    trained = steu.run(pooled, several, dataclasses.replace(method, refit_head=False), quiet).weights
    assert torch.equal(fitted.head_weight, trained.head_weight)
    half = dataclasses.replace(data, documents=[*several.documents[:200], *data.documents[200:]])
    assert not torch.equal(steu.run(pooled, half, method, quiet).weights.head_weight, trained.head_weight)
