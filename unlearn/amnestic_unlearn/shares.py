"""Divides groups of documents among the splits by shares: at random by a seed, and stratified by label.

A group goes whole. Its stratum is its rarest label, so that what is rare, and would by chance be missing from a small
split, is dealt out by itself; labels that come along are near their shares, no more. Within a stratum, in an order that
a hash of the seed gives, each group goes to the split that is furthest below its share of the documents so far. What
one stratum leaves over or owes, the next makes good. Groups stream through, so memory does not depend on their number.
"""

import math
from collections.abc import Iterable, Iterator, Mapping

from amnestic_unlearn.corpus import SPLITS, CorpusError

# As `corpus.assign_split` has them.
SHARES = {"train": 0.55, "gate": 0.15, "probe": 0.15, "test": 0.15}


def check(shares: Mapping[str, float]) -> None:
    """Raise CorpusError unless these are shares of known splits, and one together."""
    for split, share in shares.items():
        if split not in SPLITS:
            raise CorpusError(f"unknown split {split!r}: the splits are {', '.join(SPLITS)}")
        if not 0 < share <= 1:
            raise CorpusError(f"the share of {split} is not above 0 and up to 1")
    if not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
        raise CorpusError("the shares do not add up to 1")


def divide(groups: Iterable[tuple[str, int]], shares: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Group and split, for groups and their numbers of documents, stratum by stratum, each in random order."""
    owed = dict.fromkeys(shares, 0.0)
    for group, documents in groups:
        for split, share in shares.items():
            owed[split] += share * documents
        # Of equal ones the first, as the splits are ordered.
        furthest = max(owed, key=lambda split: owed[split])
        owed[furthest] -= documents
        yield group, furthest
