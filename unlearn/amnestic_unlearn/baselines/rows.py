"""STEU (arXiv 2603.19302) with one part taken away: without the head, or without the choice of tokens."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from amnestic_unlearn import steu
from amnestic_unlearn.baselines import training
from amnestic_unlearn.forgetting import Outcome, Report, TrainingData
from amnestic_unlearn.selection import select
from amnestic_unlearn.spec import Method, Progress
from amnestic_unlearn.twin import Twin


def embedding_only(
    twin: Twin, data: TrainingData, seed: int, report: Report, settings: Method | None = None
) -> Outcome:
    """STEU with the head held: what the embedding rows forget by themselves.

    The seed and the head's rate of `settings` play no part. Raises NoRetainDocumentsError and LossNotFiniteError.
    """
    method = dataclasses.replace(settings or Method(), seed=seed, head_lr=0.0, erase_head=False)
    return training.outcome(twin, twin, steu.run(twin, data, method, report).weights)


def random_tokens(twin: Twin, data: TrainingData, seed: int, report: Report, settings: Method | None = None) -> Outcome:
    """STEU with as many random tokens as it would choose, from those that forget documents hold.

    It tells how much the choice of tokens matters. A token that no forget document holds would get no gradient from
    the forget loss, and fewer tokens than STEU's would be a weaker model, so either would prove too much. The seed
    of `settings` plays no part. Raises NoRetainDocumentsError and LossNotFiniteError.
    """
    method = dataclasses.replace(settings or Method(), seed=seed)
    report(Progress("selecting"))
    weights, _ = steu.edit(twin, data, method, draw_tokens(twin, data, method), report)
    return training.outcome(twin, twin, weights)


def draw_tokens(twin: Twin, data: TrainingData, method: Method) -> NDArray[np.int64]:
    """Ids int64 [k], ascending, drawn without replacement among the tokens of forget documents, none special."""
    special, vocab_size = twin.manifest.special_token_ids, twin.manifest.vocab_size
    chosen = select(data.documents, data.truth[:, data.targets], special, vocab_size, method.k)
    windows = [window for document in data.batch(data.forget) for window in document]
    held = np.setdiff1d(np.concatenate(windows), special).astype(np.int64)
    return np.sort(np.random.default_rng(method.seed).choice(held, len(chosen.token_ids), replace=False))
