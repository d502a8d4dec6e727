"""One row of the benchmark: what is measured of one outcome of forgetting, beside the original and the gold standard.

The gold standard is a model retrained without the label. What depends on these two alone is computed once, as a
`Reference`. Measures are taken on the test split unless the table says otherwise, at the thresholds of the original;
the thresholds are never fitted again.

| key | what |
| --- | --- |
| forget_f1 | F1 of the forgotten label at its threshold |
| forget_best_f1 | its largest F1 over all thresholds |
| forget_best_f1_excess | that less the F1 of calling every document positive; about 0 if nothing is known |
| forget_auroc | AUROC of its logit |
| forget_auroc_two_sided | the same, turned round where it is below 0.5 |
| retain_f1 | mean F1 of the other labels that occur |
| retain_f1_delta, _low, _high | its change from the original, with the paired 95 % interval by patient |
| retain_worst_delta | the change of the label among them that lost most |
| retain_worst_label | that label's column |
| probe_auroc, _low, _high | AUROC of cross-fitted fresh probes on probe and test split, with its 95 % interval |
| probe_auroc_original, probe_auroc_retrained | the same of the two others |
| probe_recovery | where that lies between retrained (0) and original (1) |
| prototype_auroc | AUROC of prototypes of 5 examples from the probe split |
| prototype_auroc_original, prototype_auroc_retrained | the same of the two others |
| prototype_recovery | as probe_recovery |
| relearn_examples, _reached | positive examples until 90 % of the original's excess AUROC, and share of draws |
| relearn_examples_original, relearn_examples_retrained | the effort with the two others |
| relearn_steps, _reached | Adam steps of a fresh head row until the same, and share of draws |
| relearn_steps_original, relearn_steps_retrained | the effort with the two others |
| kl_forget | KL(retrained, candidate) on documents with the label, nats a label; all labels |
| kl_retain_edited | KL(original, candidate) on documents without it that hold an edited token; the other labels |
| bypass_avoided | share of edited tokens that rewriting removed from the documents with the label |
| bypass_recall | share of the rewritten documents that are still decided positive |
| bypass_probe_auroc | a probe from the probe split tells them from unchanged documents without the label |
| membership_auroc | its loss tells train from test documents with the label; two-sided |

A figure that is not defined, for instance because no test document has the label, is nan; no key is ever missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from amnestic_unlearn import attacks, bootstrap, corpus, lexical, measures
from amnestic_unlearn.attacks import Relearned
from amnestic_unlearn.bootstrap import Interval
from amnestic_unlearn.corpus import Document
from amnestic_unlearn.forgetting import Outcome
from amnestic_unlearn.measures import Bools
from amnestic_unlearn.probe import PENALTIES, assign_folds, cross_fitted, probe_auc
from amnestic_unlearn.twin import Twin
from amnestic_unlearn.windows import Windows

NAN = float("nan")

RETAINED = (
    "retain_f1",
    "retain_f1_delta",
    "retain_f1_delta_low",
    "retain_f1_delta_high",
    "retain_worst_delta",
    "retain_worst_label",
)
BYPASSED = ("bypass_avoided", "bypass_recall", "bypass_probe_auroc")


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A corpus as the original model sees it, in corpus order; every model measured shares its tokenizer.

    `truth` bool [N, C], `split` strings [N], `thresholds` probabilities [C].
    """

    texts: Sequence[str]
    tokens: Sequence[Windows]
    truth: Bools
    groups: Sequence[str]
    split: NDArray[np.str_]
    thresholds: NDArray[np.float64]
    labels: tuple[str, ...]

    def at(self, *splits: str) -> Bools:
        """Which documents lie in any of the splits."""
        return np.isin(self.split, splits)

    def groups_at(self, chosen: Bools) -> list[str]:
        """The groups of the chosen documents."""
        return list(compress(self.groups, chosen))


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What a model makes of documents: `features` float32 [N, h] and `logits` float32 [N, C]."""

    features: NDArray[np.float32]
    logits: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Bypass:
    """The answers for the test documents with the label, in corpus order, rewritten; and `Rewritten.avoided`."""

    answers: Answers
    avoided: float


@dataclass(frozen=True, slots=True)
class Attacked:
    """What an attacker finds in one model's features."""

    probe: Interval
    prototype: float
    examples: Relearned
    steps: Relearned


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What every candidate for one label is compared with.

    `weights` are the bootstrap's of the test split, float64 [R, documents], `audit_weights` those of probe and test;
    `wanted` the AUROC that counts as relearned.
    """

    target: int
    seed: int
    original: Answers
    retrained: Answers
    weights: NDArray[np.float64]
    audit_weights: NDArray[np.float64]
    wanted: float
    original_attacked: Attacked
    retrained_attacked: Attacked


def hold(documents: Sequence[Document], twin: Twin, tokens: Sequence[Windows] | None = None) -> Held:
    """A corpus through the tokenizer, labels and thresholds of the original model; `tokens` if it was tokenized."""
    labels, texts = twin.manifest.labels, [document.text for document in documents]
    return Held(
        texts,
        twin.tokenize(texts) if tokens is None else tokens,
        corpus.truth(documents, labels),
        [document.group for document in documents],
        np.array([document.split for document in documents]),
        np.array(twin.manifest.thresholds),
        labels,
    )


def answers(outcome: Outcome, held: Held, target: int | None = None) -> Answers:
    """A model's answers in one pass of its encoder: for every document, or nan for those that `assess` does not need.

    For a target it needs the probe and test split, and of the train split the documents with the label.
    """
    if target is None:
        return _answer(outcome, held.tokens)
    needed = asked(held, target)
    some = _answer(outcome, list(compress(held.tokens, needed)))
    tables = []
    for part in (some.features, some.logits):
        table = np.full((len(needed), part.shape[1]), NAN, dtype=part.dtype)
        table[needed] = part
        tables.append(table)
    return Answers(*tables)


def asked(held: Held, target: int) -> Bools:
    """Which documents a candidate that forgot a target is asked about."""
    return held.at("probe", "test") | (held.at("train") & held.truth[:, target])


def bypassed(outcome: Outcome, held: Held, target: int, edited_ids: NDArray[np.int64], seed: int = 0) -> Bypass:
    """Rewrite the test documents with the label so that they avoid the edited tokens, and have them answered."""
    texts = list(compress(held.texts, held.at("test") & held.truth[:, target]))
    rewritten = lexical.rewrite(texts, outcome.twin.tokenizer, edited_ids, seed)
    return Bypass(_answer(outcome, outcome.twin.tokenize(rewritten.texts)), rewritten.avoided)


def refer(original: Answers, retrained: Answers, held: Held, target: int, seed: int = 0) -> Reference:
    """Measure the original and the retrained model, once for a corpus, a seed and a label."""
    test, audit = held.at("test"), held.at("probe", "test")
    wanted = attacks.bar(measures.auroc(held.truth[test, target], original.logits[test, target]))
    weights = bootstrap.resample(held.groups_at(test), seed=seed)
    audit_weights = bootstrap.resample(held.groups_at(audit), seed=seed)
    attacked = [_attack(model, held, target, wanted, audit_weights, seed) for model in (original, retrained)]
    return Reference(target, seed, original, retrained, weights, audit_weights, wanted, *attacked)


def assess(
    candidate: Answers, reference: Reference, held: Held, edited_ids: NDArray[np.int64], bypass: Bypass | None = None
) -> dict[str, float]:
    """The row of one candidate, by the keys of the table above.

    `edited_ids` are the tokens whose rows were changed; for a method that has none, those that a token method would
    choose, so that both are measured on the same documents. Without `bypass` its figures are nan.
    """
    return {
        **_forgotten(candidate, reference, held),
        **retained(candidate, reference, held),
        **_recovered(candidate, reference, held),
        **_divergence(candidate, reference, held, edited_ids),
        **_bypass(candidate, reference, held, bypass),
        "membership_auroc": _membership(candidate, reference, held),
    }


def _answer(outcome: Outcome, documents: Sequence[Windows]) -> Answers:
    found = outcome.twin.ask(documents, outcome.weights)
    return Answers(found.features.numpy(), found.logits.numpy())


def _forgotten(candidate: Answers, reference: Reference, held: Held) -> dict[str, float]:
    test, target = held.at("test"), reference.target
    truth, logit = held.truth[test, target], candidate.logits[test, target]
    area = measures.auroc(truth, logit)
    f1 = best = excess = NAN
    if truth.any():
        decided = measures.decide(logit[:, None], held.thresholds[[target]])
        f1 = float(measures.f1_by_label(truth[:, None], decided)[0])
        best = measures.best_f1(truth, logit)
        excess = best - measures.trivial_f1(truth)
    return {
        "forget_f1": f1,
        "forget_best_f1": best,
        "forget_best_f1_excess": excess,
        "forget_auroc": area,
        "forget_auroc_two_sided": measures.two_sided(area),
    }


def retained(candidate: Answers, reference: Reference, held: Held) -> dict[str, float]:
    """The figures named in `RETAINED`: the other labels, at the thresholds of the original."""
    test = held.at("test")
    kept = np.flatnonzero(held.truth[test].any(axis=0) & (np.arange(len(held.labels)) != reference.target))
    if not len(kept):
        return dict.fromkeys(RETAINED, NAN)
    truth = held.truth[test][:, kept]
    before, after = (
        measures.decide(model.logits[test], held.thresholds)[:, kept] for model in (reference.original, candidate)
    )
    pair = bootstrap.paired(
        bootstrap.macro_f1_of(truth, before), bootstrap.macro_f1_of(truth, after), reference.weights
    )
    delta = measures.f1_by_label(truth, after) - measures.f1_by_label(truth, before)
    worst, change = int(np.argmin(delta)), pair.difference
    figures = (pair.second.value, change.value, change.low, change.high, float(delta[worst]), float(kept[worst]))
    return dict(zip(RETAINED, figures, strict=True))


def _recovered(candidate: Answers, reference: Reference, held: Held) -> dict[str, float]:
    found = _attack(candidate, held, reference.target, reference.wanted, reference.audit_weights, reference.seed)
    original, retrained = reference.original_attacked, reference.retrained_attacked
    return {
        "probe_auroc": found.probe.value,
        "probe_auroc_low": found.probe.low,
        "probe_auroc_high": found.probe.high,
        "probe_auroc_original": original.probe.value,
        "probe_auroc_retrained": retrained.probe.value,
        "probe_recovery": attacks.recovery(found.probe.value, retrained.probe.value, original.probe.value),
        "prototype_auroc": found.prototype,
        "prototype_auroc_original": original.prototype,
        "prototype_auroc_retrained": retrained.prototype,
        "prototype_recovery": attacks.recovery(found.prototype, retrained.prototype, original.prototype),
        "relearn_examples": found.examples.effort,
        "relearn_examples_reached": found.examples.reached,
        "relearn_examples_original": original.examples.effort,
        "relearn_examples_retrained": retrained.examples.effort,
        "relearn_steps": found.steps.effort,
        "relearn_steps_reached": found.steps.reached,
        "relearn_steps_original": original.steps.effort,
        "relearn_steps_retrained": retrained.steps.effort,
    }


def _attack(
    model: Answers, held: Held, target: int, wanted: float, audit_weights: NDArray[np.float64], seed: int
) -> Attacked:
    audit, probe, test = held.at("probe", "test"), held.at("probe"), held.at("test")
    truth = held.truth[:, target]
    scores = cross_fitted(model.features[audit], truth[audit], assign_folds(held.groups_at(audit)))
    given = attacks.material(model.features[probe], truth[probe], model.features[test], truth[test])
    return Attacked(
        bootstrap.interval(bootstrap.auroc_of(truth[audit], scores), audit_weights),
        attacks.prototype_auroc(given, seed),
        attacks.relearn_examples(given, wanted, seed),
        attacks.relearn_steps(given, wanted, seed),
    )


def _divergence(
    candidate: Answers, reference: Reference, held: Held, edited_ids: NDArray[np.int64]
) -> dict[str, float]:
    test, having = held.at("test"), held.truth[:, reference.target]
    edited = np.array([bool(np.isin(np.concatenate(windows), edited_ids).any()) for windows in held.tokens], dtype=bool)
    others = np.arange(len(held.labels)) != reference.target
    everything = np.ones(len(held.labels), dtype=bool)
    return {
        "kl_forget": _mean_kl(reference.retrained, candidate, test & having, everything),
        "kl_retain_edited": _mean_kl(reference.original, candidate, test & ~having & edited, others),
    }


def _mean_kl(one: Answers, other: Answers, documents: Bools, labels: Bools) -> float:
    if not documents.any() or not labels.any():
        return NAN
    chosen = np.ix_(documents, labels)
    return float(measures.bernoulli_kl(one.logits[chosen], other.logits[chosen]).mean())


def _bypass(candidate: Answers, reference: Reference, held: Held, bypass: Bypass | None) -> dict[str, float]:
    if bypass is None or not len(bypass.answers.logits):
        return dict.fromkeys(BYPASSED, NAN)
    target = reference.target
    decided = measures.decide(bypass.answers.logits, held.thresholds)[:, target]
    probe, negative = held.at("probe"), held.at("test") & ~held.truth[:, target]
    features = np.concatenate([bypass.answers.features, candidate.features[negative]])
    truth = np.arange(len(features)) < len(decided)
    # As for the cross-fitted probe, the best of what an auditor would try.
    found = [probe_auc(candidate.features[probe], held.truth[probe, target], features, truth, l2) for l2 in PENALTIES]
    return dict(zip(BYPASSED, (bypass.avoided, float(decided.mean()), max(found)), strict=True))


def _membership(candidate: Answers, reference: Reference, held: Held) -> float:
    having, logit = held.truth[:, reference.target], candidate.logits[:, reference.target]
    return attacks.membership_auroc(logit[having & held.at("train")], logit[having & held.at("test")])
