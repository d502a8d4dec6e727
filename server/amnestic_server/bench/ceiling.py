"""The ceiling of a server: its engine alone, in this process, on the same documents; and how long these are."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np

from amnestic_server import bundle as bundles
from amnestic_server.bench.rounds import Phase
from amnestic_server.engine import Engine, TokenIds, limit_library_threads
from amnestic_server.snapshot import Snapshot, base_snapshot
from amnestic_server.tokenizer import DocumentTokenizer, Encoded


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of the documents as the model reads them; `cut` is the share that goes on behind what it reads."""

    documents: int
    p50: int
    p95: int
    longest: int
    cut: float

    @classmethod
    def of(cls, encoded: Sequence[Encoded]) -> Self:
        tokens = sorted(document.tokens for document in encoded)
        p50, p95 = (int(value) for value in np.percentile(tokens, [50, 95], method="higher"))
        return cls(len(encoded), p50, p95, tokens[-1], sum(document.truncated for document in encoded) / len(encoded))

    def __str__(self) -> str:
        return (
            f"{self.documents:,} documents, p50 {self.p50:,}, p95 {self.p95:,}, longest {self.longest:,} tokens,"
            f" {self.cut:.1%} cut"
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    ids: TokenIds
    snapshot: Snapshot


class Ceiling:
    """The same ONNX Runtime sessions, with documents tokenized before, and neither gRPC nor queue nor client."""

    def __init__(self, folder: Path, texts: Sequence[str], threads: int) -> None:
        """Raises BundleError."""
        limit_library_threads()
        self.bundle = bundles.load(folder)
        self._engine = Engine(self.bundle, device="auto", threads=threads, instances=0)
        snapshot = base_snapshot(self.bundle, self._engine.device)
        encoded = DocumentTokenizer(self.bundle.tokenizer, self.bundle.manifest.reading).encode(texts)
        self.lengths = Lengths.of(encoded)
        self._documents = [[_Row(ids, snapshot) for ids in document.windows] for document in encoded]
        batch_tokens = max(self._engine.batch_tokens, self.bundle.manifest.max_tokens)
        self._batches = list(_full_batches(list(chain.from_iterable(self._documents)), batch_tokens))

    def throughput(self) -> Phase:
        """Every document once, in full batches of like lengths, as many passes at once as the engine does best with.

        Only the sessions and the heads are timed.
        """
        with ThreadPoolExecutor(self._engine.instances) as pool:
            latencies = list(pool.map(self._pass, self._batches))
        return Phase.of("ceiling", latencies, len(self._documents) * self._engine.instances / sum(latencies))

    def alone(self, document: int) -> float:
        """Seconds of the session and the head for one document, alone in its batch, with all its windows."""
        return self._pass(self._documents[document], wide=True)

    def _pass(self, rows: Sequence[_Row], wide: bool = False) -> float:
        prepared = self._engine.prepare(rows)
        started = time.perf_counter()
        self._engine.run(prepared, wide=wide)
        return time.perf_counter() - started


def _full_batches(rows: Sequence[_Row], batch_tokens: int) -> Iterator[list[_Row]]:
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: len(row.ids)):
        if batch and (len(batch) + 1) * len(row.ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    yield batch
