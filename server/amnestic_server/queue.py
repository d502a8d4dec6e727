"""Which rows wait, and which of them make the next batch. Pure policy: no threads, no clock of its own.

Clients take turns: a batch is made around the oldest row of the one whose turn it is, so nothing waits for longer than
its own client's rows before it and one batch for each other client between. The rest of the batch are the waiting rows
of whichever client whose lengths are nearest to it, as long as the padded batch keeps within the token budget and no
row is padded by more than a set share: on a CPU padding costs what text costs.
"""

from collections import Counter, deque
from collections.abc import Hashable, Iterable
from typing import Generic, Protocol, TypeVar

from amnestic_server.errors import QueueFullError


class QueueRow(Protocol):
    """What the queue needs of a row."""

    @property
    def length(self) -> int:
        """Tokens, at least 1."""
        ...

    @property
    def client(self) -> str:
        """Whom it is charged to."""
        ...

    @property
    def call(self) -> Hashable:
        """What it is answered with, together or not at all."""
        ...

    def expired(self, now: float) -> bool:
        """True once nobody waits for the answer: cancelled, or past its deadline."""
        ...


R = TypeVar("R", bound=QueueRow)


class RowQueue(Generic[R]):
    """Waiting rows in order of arrival, bounded in tokens that clients share."""

    def __init__(self, *, max_tokens: int, batch_tokens: int, max_padding: float) -> None:
        self._max_tokens = max_tokens
        self._batch_tokens = batch_tokens
        self._max_padding = max_padding
        self._rows: deque[R] = deque()
        # By client, in the order of their turns; only of those with rows.
        self._tokens_of: Counter[str] = Counter()
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def tokens(self) -> int:
        """Tokens waiting, without padding."""
        return self._tokens

    def fills_batches(self, count: int) -> bool:
        """True if the waiting rows would fill so many batches, so that more would make none of them better."""
        return self.tokens >= count * self._batch_tokens

    def put(self, rows: list[R]) -> list[R]:
        """Add one client's rows, all or none; raises QueueFullError if their tokens don't fit.

        In a full queue they fit at the expense of the client that has most, if it is left with no less than they make:
        the rows of its newest calls are removed and returned. Rows always fit in an empty queue: a bound below one
        call's size must not make that call impossible. It shuts nobody out: beside it fits whose own rows are within an
        equal share of the bound.
        """
        client, tokens = rows[0].client, sum(row.length for row in rows)
        removed = self._make_room(client, tokens) if self._rows else []
        self._rows.extend(rows)
        self._tokens_of[client] += tokens
        self._tokens += tokens
        return removed

    def take(self, now: float) -> tuple[list[R], list[R]]:
        """Remove and return the next batch, sorted by length, and the rows that expired while they waited.

        The batch is empty only if no live row waits. A single row may exceed the budget.
        """
        expired = [row for row in self._rows if row.expired(now)]
        if expired:
            self._remove(expired)
        if not self._rows:
            return [], expired
        batch = self._around_oldest()
        self._remove(batch)
        return batch, expired

    def _around_oldest(self) -> list[R]:
        """A batch for the client whose turn it is; the next one's is after it."""
        client = next(iter(self._tokens_of))
        self._tokens_of[client] = self._tokens_of.pop(client)
        oldest = next(row for row in self._rows if row.client == client)
        # sorted() is stable: of rows of one length the older come first.
        by_length = sorted(self._rows, key=lambda row: row.length)
        low = next(index for index, row in enumerate(by_length) if row is oldest)
        high = low
        while True:
            shortest, longest = by_length[low].length, by_length[high].length
            grown = []
            if low > 0 and self._fits(high - low + 2, by_length[low - 1].length, longest):
                grown.append((oldest.length - by_length[low - 1].length, low - 1, high))
            if high + 1 < len(by_length) and self._fits(high - low + 2, shortest, by_length[high + 1].length):
                grown.append((by_length[high + 1].length - oldest.length, low, high + 1))
            if not grown:
                return by_length[low : high + 1]
            _, low, high = min(grown)

    def _fits(self, rows: int, shortest: int, longest: int) -> bool:
        within_budget = rows * longest <= self._batch_tokens
        return within_budget and longest - shortest <= self._max_padding * longest

    def _make_room(self, client: str, tokens: int) -> list[R]:
        excess = self.tokens + tokens - self._max_tokens
        if excess <= 0:
            return []
        own = self._tokens_of[client] + tokens
        most, theirs = self._tokens_of.most_common(1)[0]
        clients = len(self._tokens_of.keys() | {client})
        if theirs > self._max_tokens and most != client and own * clients <= self._max_tokens:
            return []
        if theirs - excess < own:
            raise QueueFullError
        removed: list[R] = []
        calls: set[Hashable] = set()
        for row in reversed(self._rows):
            if row.client == most and (excess > 0 or row.call in calls):
                removed.append(row)
                calls.add(row.call)
                excess -= row.length
                theirs -= row.length
        if theirs < own:
            raise QueueFullError
        self._remove(removed)
        return removed

    def _remove(self, rows: Iterable[R]) -> None:
        gone = {id(row) for row in rows}
        for row in self._rows:
            if id(row) in gone:
                self._tokens_of[row.client] -= row.length
                self._tokens -= row.length
        self._tokens_of = +self._tokens_of
        self._rows = deque(row for row in self._rows if id(row) not in gone)
