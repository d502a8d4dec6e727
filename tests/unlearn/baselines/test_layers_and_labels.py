"""The losses, masks and labels of the fine-tuning baselines, against plain loops and one document at a time."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from amnestic_unlearn.baselines import layers, relabel, training
from amnestic_unlearn.baselines.training import Schedule, Terms
from amnestic_unlearn.forgetting import TrainingData


@pytest.fixture
def random():
    return np.random.default_rng(0)


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def plain_kl(teacher, logit):
    """Of one label; both probabilities strictly between 0 and 1."""
    student = sigmoid(logit)
    return teacher * math.log(teacher / student) + (1 - teacher) * math.log((1 - teacher) / (1 - student))


def some_data(truth, targets):
    return TrainingData([np.array([2, 5, 3], dtype=np.int32)] * len(truth), truth, targets)


def test_the_divergence_is_bernoullis(random):
    teacher, logits = random.uniform(0.01, 0.99, size=(6, 3)), random.normal(size=(6, 3)) * 3
    expected = [plain_kl(p, z) for p, z in zip(teacher.flat, logits.flat, strict=True)]
    measured = relabel.bernoulli_kl(torch.from_numpy(teacher), torch.from_numpy(logits))
    assert measured.item() == pytest.approx(np.mean(expected), rel=1e-12)


def test_the_divergence_is_nothing_where_both_agree_and_finite_at_the_ends():
    teacher = torch.tensor([[0.0, 1.0, 0.3]], dtype=torch.float64)
    logits = torch.tensor([[-50.0, 50.0, math.log(0.3 / 0.7)]], dtype=torch.float64, requires_grad=True)
    divergence = relabel.bernoulli_kl(teacher, logits)
    divergence.backward()
    assert divergence.item() == pytest.approx(0.0, abs=1e-12)
    assert logits.grad.abs().max() < 1e-12


def test_deletes_loss_is_the_divergence_from_the_masked_teacher(random):
    """Bernoulli KL, summed over labels, from a teacher whose forgotten logits are at minus infinity."""
    teacher, logits = random.uniform(0.01, 0.99, size=(5, 4)), random.normal(size=(5, 4)) * 2
    data = some_data(np.ones((5, 4), dtype=bool), (1, 2))
    expected = []
    for chances, row in zip(teacher, logits, strict=True):
        kept = sum(plain_kl(chances[column], row[column]) for column in (0, 3))
        # With a teacher of 0 what remains is the student's own chance of 0.
        expected.append(kept - sum(math.log(1 - sigmoid(row[column])) for column in (1, 2)))
    forget, utility = relabel.delete_loss(torch.from_numpy(teacher), torch.from_numpy(logits), data)
    assert (forget + utility).item() == pytest.approx(np.mean(expected), rel=1e-12)
    assert min(forget.item(), utility.item()) > 0


def test_scrubs_steps_follow_the_formulas(model, data, monkeypatch):
    """The two losses of the first step and the first one of the last epoch, from documents one at a time."""
    taken = []
    monkeypatch.setattr(training, "train", lambda *arguments, **_: taken.extend(arguments))
    settings = relabel.Scrub(max_epochs=1, divergence_weight=0.7, task_weight=0.3, nudge=0.5)
    relabel.scrub(model, data, 0, lambda progress: None, settings)
    student, _, _, epochs, (away, towards), _ = taken
    assert (model.head_bias - student.weights.head_bias)[data.targets[0]].item() == pytest.approx(0.5, abs=1e-6)
    base = model.base(torch.empty(0, dtype=torch.int64))
    step = epochs[0][0]

    truth = data.truth

    def plain(positions, columns, formula):
        teachers, students = (model.evaluate(data.batch(positions), weights) for weights in (base, student.weights))
        return np.mean(
            [
                formula(sigmoid(teachers[row, column].item()), students[row, column].item(), truth[position, column])
                for row, position in enumerate(positions)
                for column in columns
            ]
        )

    def divergence(teacher, logit, truth):
        return plain_kl(teacher, logit)

    def task(teacher, logit, truth):
        return -math.log(sigmoid(logit) if truth else 1 - sigmoid(logit))

    batch = training.Batch(student, data, step, 1)
    assert away(batch).forget.item() == pytest.approx(-plain(step.forget, data.targets, divergence), abs=1e-5)
    expected = 0.7 * plain(step.retain, range(4), divergence) + 0.3 * plain(step.retain, range(4), task)
    assert towards(batch).utility.item() == pytest.approx(expected, abs=1e-5)
    assert not away(training.Batch(student, data, step, 2)).parts


def test_a_nudged_probability_is_pushed_down_by_every_step_away():
    teacher = torch.tensor([[0.02, 0.5, 0.98]])
    logits = (teacher.logit() - 0.1).requires_grad_(True)
    (-relabel.bernoulli_kl(teacher, logits)).backward()
    assert (logits.grad > 0).all()


def test_random_labels_replace_the_forgotten_ones(random):
    truth = random.random((200, 6)) < 0.4
    truth[0] = True
    data = some_data(truth, (1, 4))
    labels, others = relabel.relabelled(data, 7), [0, 2, 3, 5]
    assert not labels[:, [1, 4]].any()
    assert (labels[:, others] >= truth[:, others]).all()
    gained = labels[:, others].sum(axis=1) - truth[:, others].sum(axis=1)
    free = (~truth[:, others]).sum(axis=1)
    assert gained.tolist() == np.minimum(truth[:, [1, 4]].sum(axis=1), free).tolist()
    new = (labels & ~truth)[:, others].sum(axis=0)
    assert new.min() > 10
    assert np.array_equal(labels, relabel.relabelled(data, 7))
    assert not np.array_equal(labels, relabel.relabelled(data, 8))


def test_having_loss_is_of_the_labels_that_a_document_has(random):
    logits = random.normal(size=(4, 3))
    truth = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0], [1, 0, 0]], dtype=bool)
    expected = [-math.log(sigmoid(logits[row, column])) for row in range(4) for column in (0, 1) if truth[row, column]]
    wanted = torch.from_numpy(truth.astype(np.float64))
    measured = layers.having_loss(torch.from_numpy(logits), wanted, some_data(truth, (0, 1)))
    assert measured.item() == pytest.approx(np.mean(expected), rel=1e-12)


def by_document(student, data, positions, loss):
    """Each document's gradient by itself, flat."""
    found = []
    for position in positions:
        value = loss(training.logits(student, [data.documents[position]]), data.truth[position])
        gradients = torch.autograd.grad(value, student.parameters, allow_unused=True, materialize_grads=True)
        found.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(found)


def having(logits, truth):
    return -torch.nn.functional.logsigmoid(logits[0, 1])


def other(logits, truth):
    wanted = torch.from_numpy(truth).to(logits.dtype)[[0, 2, 3]]
    return torch.nn.functional.binary_cross_entropy_with_logits(logits[0, [0, 2, 3]], wanted)


def test_importance_is_the_forgotten_labels_share_of_squared_gradients(exact, data):
    # In float64: some weights, such as the bias of keys, have no gradient but rounding noise.
    few = dataclasses.replace(data, documents=data.documents[:24], truth=data.truth[:24])
    student = training.start(exact, training.last_layers(exact, 1))
    shares = torch.cat([share.flatten() for share in layers.importance(student, few, 0, 1_000)])
    own = by_document(student, few, few.forget, having).square().mean(dim=0)
    rest = by_document(student, few, few.retain, other).square().mean(dim=0)
    expected = torch.where(own > 0, own / (own + rest), 0.0)
    matters = own + rest > 1e-20
    assert matters.float().mean() > 0.99
    torch.testing.assert_close(shares[matters], expected[matters], rtol=1e-6, atol=1e-6)
    assert 0 <= shares.min() < 0.1 and 0.9 < shares.max() <= 1


def test_the_salient_weights_are_those_above_the_median(model, data):
    student = training.start(model, training.all_layers(model))
    mask = torch.cat([part.flatten() for part in relabel.saliency(student, data, relabel.RandomLabel())])
    sizes = by_document(student, data, data.forget, having).sum(dim=0).abs()
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask.mean().item() == pytest.approx(0.5, abs=1e-3)
    clear = (sizes / sizes.median() - 1).abs() > 1e-2
    assert torch.equal(mask[clear] == 1, (sizes > sizes.median())[clear])


def test_salun_holds_what_is_not_salient(model, data):
    settings = relabel.RandomLabel(schedule=Schedule(epochs=1, encoder_lr=1e-3), sparsity=0.8)
    student = training.start(model, training.all_layers(model))
    mask = relabel.saliency(student, data, settings)
    after = relabel.salun(model, data, 0, lambda progress: None, settings)
    parameters = [*after.twin.encoder.parameters(), after.weights.head_weight, after.weights.head_bias]
    before = [*model.encoder.parameters(), model.head_weight, model.head_bias]
    for share, new, old in zip(mask, parameters, before, strict=True):
        assert torch.equal(new[share == 0], old[share == 0])
    assert 0 < after.parameters_changed <= sum(int(share.sum()) for share in mask)


@pytest.mark.parametrize(("count", "layers_found"), [(1, {1}), (2, {0, 1}), (3, {0, 1})])
def test_the_last_layers_are_found_and_all_where_there_are_no_more(model, count, layers_found):
    names = training.last_layers(model, count)
    assert {int(name.split(".layer.")[1].split(".")[0]) for name in names} == layers_found
    assert len(names) == 16 * len(layers_found)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta"])
def test_layers_are_found_in_every_architecture(architecture, tmp_path, corpus_path):
    from toys import toy_checkpoint

    from amnestic_unlearn import twin

    model = twin.from_checkpoint(toy_checkpoint(tmp_path, corpus_path, architecture, trained=False))
    names = training.last_layers(model, 1)
    assert len(names) == 16 and all(".layer.1." in name for name in names)
    assert set(names) < set(training.all_layers(model))


def test_a_scale_of_half_takes_half_of_each_step(model, data):
    """One step from the same place: Adam's own, half of it, and none."""
    schedule = Schedule(epochs=1, steps=1, encoder_lr=1e-3)
    epochs = training.plan(data, schedule, 0)

    def stepped(share):
        student = training.start(model, training.last_layers(model, 1))
        scale = None if share is None else [torch.full_like(tensor, share) for tensor in student.parameters]

        def loss(batch):
            return Terms(batch.forgotten().square().mean())

        training.train(student, data, schedule, epochs, [loss], lambda progress: None, scale)
        return torch.cat([tensor.flatten() for tensor in student.parameters]).double()

    start = stepped(0.0)
    whole = stepped(None)
    assert torch.equal(whole, stepped(1.0))
    torch.testing.assert_close(stepped(0.5) - start, (whole - start) / 2, rtol=0, atol=1e-7)
    assert (whole - start).abs().max() > 5e-4


def test_gradient_ascent_takes_no_more_steps_than_it_is_given(model, data):
    seen = []
    settings = layers.GradientAscent(schedule=Schedule(epochs=2, steps=3))
    layers.gradient_ascent(model, data, 0, seen.append, settings)
    assert seen[-1].steps == 6
