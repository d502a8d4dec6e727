"""Which texts are tokenized next. Pure policy: no threads, no clock of its own.

Tokenizing a long text takes longer than a pass of the encoder. So clients take turns here as they do for the engine,
and no thread takes more at once than is done in some milliseconds: a large call is read in parts, one at a time.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from amnestic_server.call import Call
from amnestic_server.tokenizer import Encoded


@dataclass(slots=True, eq=False)
class PendingTexts:
    """A call on its way through the tokenizer; `encoded` are the first of its `texts`."""

    call: Call
    texts: Sequence[str]
    encoded: list[Encoded] = field(default_factory=list)

    def part(self, characters: int, at_least: int) -> list[str]:
        """The next texts within so many characters, and at least so many whatever their length."""
        texts: list[str] = []
        for text in islice(self.texts, len(self.encoded), None):
            if len(text) > characters and len(texts) >= at_least:
                break
            texts.append(text)
            characters -= len(text)
        return texts

    @property
    def is_done(self) -> bool:
        return len(self.encoded) == len(self.texts)


class TextQueue:
    """Calls whose texts wait, by client in the order of their turns."""

    def __init__(self, part_characters: int) -> None:
        self._part_characters = part_characters
        self._waiting: dict[str, deque[PendingTexts]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, pending: PendingTexts) -> None:
        """Behind the other calls of its client, or before them if a part of it was read already."""
        waiting = self._waiting.setdefault(pending.call.client, deque())
        if pending.encoded:
            waiting.appendleft(pending)
        else:
            waiting.append(pending)

    def take(self) -> list[tuple[PendingTexts, list[str]]]:
        """The next texts of each call that they are of: as many characters as a part has, and one text at least.

        Who takes them puts back each call of which texts are left.
        """
        taken: list[tuple[PendingTexts, list[str]]] = []
        room = self._part_characters
        while self._waiting:
            client, waiting = next(iter(self._waiting.items()))
            texts = waiting[0].part(room, at_least=0 if taken else 1)
            if not texts:
                break
            taken.append((waiting.popleft(), texts))
            room -= sum(map(len, texts))
            # The client's next turn is behind all others.
            del self._waiting[client]
            if waiting:
                self._waiting[client] = waiting
        return taken
