"""The lexical bypass: the same document in words whose tokens were not edited.

STEU changes the rows of a few hundred tokens, so whoever writes `DM` or `diabtees` for `diabetes` may reach an
encoder that was left as it is. Each word that holds an edited token becomes a term of the same meaning from a small
clinical lexicon, else a misspelling, if its pieces avoid the edited tokens; else it stays. No other word is changed.
Misspellings are those of typists: two neighbouring letters exchanged, one left out, one doubled (the slips that
Damerau 1964, doi 10.1145/363958.363994, found to be most of all, less the substitutions).
"""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

LEXICON = Path(__file__).parent / "data" / "clinical_lexicon.txt"
# A slip in a shorter word leaves too little to read.
SHORTEST_MISSPELT = 3
# A word in capitals up to this length is taken for an abbreviation.
LONGEST_ABBREVIATION = 5

_WORD = re.compile(r"[^\W_]+")
_GAP = re.compile(r"[\s\-]+")

# A term in small letters, or an abbreviation of two letters as it is, to the terms that may stand for it.
Lexicon = Mapping[str, tuple[str, ...]]
Span = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Rewritten:
    """`before` and `after` int64 [N] count the edited tokens of each text, beyond the model's maximum too."""

    texts: tuple[str, ...]
    before: NDArray[np.int64]
    after: NDArray[np.int64]

    @property
    def avoided(self) -> float:
        """The share of all occurrences of edited tokens that is gone; nan if there was none."""
        return 1 - float(self.after.sum() / self.before.sum()) if self.before.any() else float("nan")


def rewrite(
    texts: Sequence[str], tokenizer: Any, edited_ids: NDArray[np.int64], seed: int = 0, lexicon: Lexicon | None = None
) -> Rewritten:
    """Rewrite each text by itself. `tokenizer` is the twin's, a `tokenizers.Tokenizer`, and stays as it is.

    A word is a run of letters and digits. A term of several words is replaced only if each of them holds an edited
    token. The same word is always misspelt alike for the same seed. The lexicon is `read_lexicon()` if not given.
    """
    reader = Tokenizer.from_str(tokenizer.to_str())
    reader.no_truncation()
    reader.no_padding()
    edited = frozenset(int(token) for token in edited_ids)
    # What the tokenizer does not know would say nothing to the model either.
    special = {index for index, token in reader.get_added_tokens_decoder().items() if token.special}
    terms = read_lexicon() if lexicon is None else lexicon
    longest = max((term.count(" ") + 1 for term in terms), default=1)
    writer = _Writer(reader, edited, edited | special, terms, longest, seed)
    rewritten = tuple(writer.rewrite(text) for text in texts)
    return Rewritten(rewritten, writer.count(texts), writer.count(rewritten))


def read_lexicon(path: Path = LEXICON) -> dict[str, tuple[str, ...]]:
    """Each term to those that may replace it, in the order of the file."""
    lexicon: dict[str, tuple[str, ...]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        terms = [] if line.startswith("#") else [term.strip() for term in line.split("|")]
        for term in terms:
            others = tuple(other for other in terms if other != term)
            if others:
                lexicon[_key(term)] = lexicon.get(_key(term), ()) + others
    return lexicon


def misspellings(word: str) -> list[str]:
    """Every slip: neighbours exchanged, a letter left out, a letter doubled. Words with digits have none."""
    if len(word) < SHORTEST_MISSPELT or not word.isalpha():
        return []
    places = range(len(word))
    exchanged = [word[:at] + word[at + 1] + word[at] + word[at + 2 :] for at in places[:-1]]
    dropped = [word[:at] + word[at + 1 :] for at in places]
    doubled = [word[: at + 1] + word[at:] for at in places]
    return [slip for slip in dict.fromkeys(exchanged + dropped + doubled) if slip != word]


@dataclass(frozen=True, slots=True, eq=False)
class _Writer:
    reader: Any
    edited: frozenset[int]
    avoid: frozenset[int]
    lexicon: Lexicon
    # Words in the longest term.
    longest: int
    seed: int
    # Misspellings found so far, by what stands before the word and the word.
    misspelt: dict[tuple[str, str], str | None] = field(default_factory=dict)

    def count(self, texts: Sequence[str]) -> NDArray[np.int64]:
        encodings = self.reader.encode_batch(list(texts))
        counts = [sum(token in self.edited for token in encoding.ids) for encoding in encodings]
        return np.array(counts, dtype=np.int64)

    def rewrite(self, text: str) -> str:
        words = [match.span() for match in _WORD.finditer(text)]
        held = self._holding(text, words)
        parts, copied, at = [], 0, 0
        while at < len(words):
            length, replacement = self._replacement(text, words, held, at)
            if replacement is not None:
                parts += [text[copied : words[at][0]], replacement]
                copied = words[at + length - 1][1]
            at += length
        return "".join([*parts, text[copied:]])

    def _holding(self, text: str, words: Sequence[Span]) -> set[int]:
        """Which words hold an edited token, or a part of one."""
        encoding = self.reader.encode(text, add_special_tokens=False)
        ends = [end for _, end in words]
        held: set[int] = set()
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token in self.edited:
                word = bisect_right(ends, start)
                while word < len(words) and words[word][0] < end:
                    held.add(word)
                    word += 1
        return held

    def _replacement(self, text: str, words: Sequence[Span], held: set[int], at: int) -> tuple[int, str | None]:
        """How many words from `at` on become what; None leaves one word as it is."""
        if at not in held:
            return 1, None
        start = words[at][0]
        # A token of byte-level BPE takes the blank before the word along.
        lead = " " if text[start - 1 : start].isspace() else ""
        for length in range(self._reach(text, words, held, at), 0, -1):
            term = text[start : words[at + length - 1][1]]
            for other in self.lexicon.get(_key(_GAP.sub(" ", term)), ()):
                candidate = _in_case_of(term, other)
                if self._avoids(lead, candidate):
                    return length, candidate
        return 1, self._misspelling(lead, text[start : words[at][1]])

    def _reach(self, text: str, words: Sequence[Span], held: set[int], at: int) -> int:
        """How many words in a row, with nothing but blanks and hyphens between, hold edited tokens."""
        end, last = at, at + self.longest - 1
        while end < last and end + 1 in held and _GAP.fullmatch(text[words[end][1] : words[end + 1][0]]):
            end += 1
        return end + 1 - at

    def _misspelling(self, lead: str, word: str) -> str | None:
        key = lead, word
        if key not in self.misspelt:
            slips = misspellings(word)
            order = np.random.default_rng([self.seed, *word.encode()]).permutation(len(slips))
            avoiding = (slips[index] for index in order if self._avoids(lead, slips[index]))
            self.misspelt[key] = next(avoiding, None)
        return self.misspelt[key]

    def _avoids(self, lead: str, candidate: str) -> bool:
        return self.avoid.isdisjoint(self.reader.encode(lead + candidate, add_special_tokens=False).ids)


def _key(term: str) -> str:
    # `AS`, `US` and `DO` in small letters are words.
    return term if len(term) == 2 and term.isupper() else term.lower()


def _in_case_of(term: str, other: str) -> str:
    """`other` with the capitals of `term`; an abbreviation keeps its own, and does not pass them on."""
    if not other.islower():
        return other
    if term.isupper():
        return other.upper() if len(term) > LONGEST_ABBREVIATION else other
    return other[:1].upper() + other[1:] if term[:1].isupper() else other
