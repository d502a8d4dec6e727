"""Baselines that fine-tune the whole encoder and the head towards other answers on the forget documents.

All were made for classes that exclude each other; what each became for labels that do not is said with it. A
document has a forgotten label beside others, so that only the forgotten labels' answers are to change.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from amnestic_unlearn import steu
from amnestic_unlearn.baselines import training
from amnestic_unlearn.baselines.layers import having_loss
from amnestic_unlearn.baselines.training import Batch, Loss, Schedule, Student, Terms
from amnestic_unlearn.forgetting import Outcome, Report, TrainingData
from amnestic_unlearn.spec import Progress
from amnestic_unlearn.twin import Twin


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomLabel:
    """Settings of random labels, and of SalUn, which adds a mask to them."""

    schedule: Schedule = Schedule()
    """Its rates may be tuned."""
    utility_weight: float = 1.0
    """Of the loss of retain documents against their own labels; alpha in SalUn's paper."""
    sparsity: float = 0.5
    """Share of the weights that SalUn holds; the paper's threshold is the median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrub:
    """Settings of SCRUB."""

    schedule: Schedule = Schedule()
    """Its rates may be tuned."""
    max_epochs: int = 2
    """Epochs with steps away from the teacher; the later ones repair."""
    divergence_weight: float = 1.0
    """Of staying with the teacher on retain documents; alpha in the paper."""
    task_weight: float = 1.0
    """Of the retain documents' loss against their own labels; gamma in the paper."""
    nudge: float = 0.1
    """How far below the teacher's a forgotten label's bias starts, in logits; see `scrub`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Settings of DELETE."""

    schedule: Schedule = Schedule()
    """Its rates may be tuned."""


def random_label(
    twin: Twin, data: TrainingData, seed: int, report: Report, settings: RandomLabel | None = None
) -> Outcome:
    """Fine-tune on forget documents with random labels in place of the forgotten, and on retain documents with theirs.

    The baseline of Golatkar et al. (CVPR 2020, arXiv 1911.04933), in SalUn's form; labels from `relabelled`. Raises
    NoRetainDocumentsError and LossNotFiniteError.
    """
    settings = settings or RandomLabel()
    epochs = training.plan(data, settings.schedule, seed)
    student = training.start(twin, training.all_layers(twin))
    losses = [_random_label_loss(twin, data, seed, settings)]
    return training.train(student, data, settings.schedule, epochs, losses, report)


def salun(twin: Twin, data: TrainingData, seed: int, report: Report, settings: RandomLabel | None = None) -> Outcome:
    """Random labels, of which only the salient half of the weights learns.

    Fan et al., "SalUn" (ICLR 2024, arXiv 2310.12508): a weight is salient if the gradient of the forget documents'
    loss at the original model is above the median in size, over all weights together. Here that loss is of
    their forgotten labels alone. Raises NoRetainDocumentsError and LossNotFiniteError.
    """
    settings = settings or RandomLabel()
    epochs = training.plan(data, settings.schedule, seed)
    student = training.start(twin, training.all_layers(twin))
    report(Progress("selecting", epochs=settings.schedule.epochs))
    mask = saliency(student, data, settings)
    losses = [_random_label_loss(twin, data, seed, settings)]
    return training.train(student, data, settings.schedule, epochs, losses, report, mask)


def scrub(twin: Twin, data: TrainingData, seed: int, report: Report, settings: Scrub | None = None) -> Outcome:
    """Steps away from the teacher on forget documents, in turn with steps towards it on retain documents.

    Kurmanji et al., "Towards Unbounded Machine Unlearning" (NeurIPS 2023, arXiv 2302.09880): the student maximises
    KL(teacher || student) on what is forgotten, and minimises alpha KL(teacher || student) + gamma L_task on the rest.
    Here KL is Bernoulli's, a mean over documents and labels: over the forgotten labels in the steps away, over all in
    the steps towards; L_task is BCE. The steps take turns batch by batch where the paper's do epoch by epoch.

    Where student and teacher agree KL has no gradient, and a probability may leave its teacher's upwards too,
    which would be no forgetting. So the student starts with the forgotten labels' biases lowered a little: a
    probability below its teacher's is only ever pushed further down. Raises NoRetainDocumentsError and
    LossNotFiniteError.
    """
    settings = settings or Scrub()
    epochs = training.plan(data, settings.schedule, seed)
    taught, truth = training.teacher(twin, data, epochs), training.truth(data, twin.table)
    student = training.start(twin, training.all_layers(twin))
    targets = list(data.targets)
    with torch.no_grad():
        student.weights.head_bias[targets] -= settings.nudge

    def away(batch: Batch) -> Terms:
        if batch.epoch > settings.max_epochs:
            return Terms()
        wanted = taught[batch.step.forget][:, targets]
        return Terms(forget=-bernoulli_kl(wanted, batch.forgotten()[:, targets]))

    def towards(batch: Batch) -> Terms:
        kept = batch.kept()
        divergence = bernoulli_kl(taught[batch.step.retain], kept)
        task = functional.binary_cross_entropy_with_logits(kept, truth[batch.step.retain])
        return Terms(utility=settings.divergence_weight * divergence + settings.task_weight * task)

    return training.train(student, data, settings.schedule, epochs, [away, towards], report)


def delete(twin: Twin, data: TrainingData, seed: int, report: Report, settings: Delete | None = None) -> Outcome:
    """Distil, on forget documents alone, from the teacher with the forgotten labels masked out.

    Zhou et al., "Decoupled Distillation to Erase" (CVPR 2025, arXiv 2503.23751): the student minimises
    KL(softmax(masked teacher logits) || student), where the mask puts the forgotten class at minus infinity. Under
    a sigmoid such a logit is a probability of 0, and the other labels, which a softmax would scale up, stay as they
    were; KL is Bernoulli's. Retain documents are not seen. Raises NoRetainDocumentsError and LossNotFiniteError.
    """
    settings = settings or Delete()
    epochs = training.plan(data, settings.schedule, seed)
    taught = training.teacher(twin, data, epochs)
    student = training.start(twin, training.all_layers(twin))

    def loss(batch: Batch) -> Terms:
        forget, utility = delete_loss(taught[batch.step.forget], batch.forgotten(), data)
        return Terms(forget, utility)

    return training.train(student, data, settings.schedule, epochs, [loss], report)


def delete_loss(teacher: torch.Tensor, logits: torch.Tensor, data: TrainingData) -> tuple[torch.Tensor, torch.Tensor]:
    """DELETE's two terms, which sum to the Bernoulli KL's sum over labels, each a mean over documents.

    `teacher` probabilities and `logits` [B, C]. The first is of the forgotten labels, of which the masked teacher
    says 0, the second of the others.
    """
    targets, others = list(data.targets), list(data.others)
    forget = len(targets) * steu.forget_loss(logits, targets)
    return forget, len(others) * bernoulli_kl(teacher[:, others], logits[:, others])


def bernoulli_kl(teacher: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of independent labels, a mean over documents and labels.

    `teacher` are probabilities, `logits` the student's, of one shape. Least, and 0, where they agree.
    """
    entropy = -(torch.xlogy(teacher, teacher) + torch.xlogy(1 - teacher, 1 - teacher)).mean()
    return functional.binary_cross_entropy_with_logits(logits, teacher) - entropy


def relabelled(data: TrainingData, seed: int) -> NDArray[np.bool_]:
    """The truth bool [N, C] with each forgotten label of a document replaced by a random one, drawn once.

    The new label is one that is kept and that the document does not have yet; if there is none, the forgotten label
    is taken away only. It is the wrong class that the method assigns where classes exclude each other.
    """
    random = np.random.default_rng(seed)
    labels = data.truth.copy()
    labels[:, data.targets] = False
    others = np.array(data.others, dtype=np.int64)
    for document in data.forget:
        for _ in range(int(data.truth[document, data.targets].sum())):
            free = others[~labels[document, others]]
            if len(free):
                labels[document, random.choice(free)] = True
    return labels


def saliency(student: Student, data: TrainingData, settings: RandomLabel) -> list[torch.Tensor]:
    """SalUn's mask, 1 for weights that may change and 0 for those held, in the order of `student.parameters`."""
    truth = training.truth(data, student.origin.table)
    total = [torch.zeros_like(tensor) for tensor in student.parameters]

    def loss(positions: NDArray[np.int64]) -> torch.Tensor:
        return having_loss(training.logits(student, data.batch(positions)), truth[positions], data)

    for documents, found in training.gradients(student, data.forget, settings.schedule.batch_size, loss):
        for sums, gradient in zip(total, found, strict=True):
            sums.add_(gradient, alpha=documents)
    sizes = torch.cat([sums.abs().flatten() for sums in total])
    held = round(settings.sparsity * len(sizes))
    threshold = sizes.kthvalue(held).values if held else sizes.new_tensor(-1.0)
    return [(sums.abs() > threshold).to(sums.dtype) for sums in total]


def _random_label_loss(twin: Twin, data: TrainingData, seed: int, settings: RandomLabel) -> Loss:
    truth = training.truth(data, twin.table)
    wrong = torch.from_numpy(relabelled(data, seed)).to(truth.dtype)
    bce: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = functional.binary_cross_entropy_with_logits

    def loss(batch: Batch) -> Terms:
        forget = bce(batch.forgotten(), wrong[batch.step.forget])
        return Terms(forget, settings.utility_weight * bce(batch.kept(), truth[batch.step.retain]))

    return loss
