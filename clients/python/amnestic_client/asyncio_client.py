# ruff: noqa: ASYNC109 - the timeout travels to the server as the call's deadline
"""The asyncio client, with the methods of the synchronous one. What each call sends and how its answer is read is
in `calls`, how many documents are cut into calls in `many`; this runs them.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from grpc import aio

from amnestic_client import calls, errors, many, metadata, settings
from amnestic_client.tls import Tls, explained, secured
from amnestic_client.types import (
    Answer,
    GateLimits,
    Job,
    Method,
    Model,
    PredictResult,
    Receipt,
    Rollout,
    Status,
    Version,
)

Result = TypeVar("Result")


class AsyncClient:
    """A connection to one Amnestic server, for the event loop it is made in.

    The one channel connects at the first call and stays until `close`. Every call takes `timeout` in seconds,
    None for the default of its kind, and raises an `AmnesticError`. Calls that are safe to repeat are retried
    by gRPC while the server is unavailable, and predictions while it is full, within their timeout.
    """

    def __init__(
        self,
        target: str = settings.TARGET,
        *,
        tls: Tls | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        token: metadata.Token | None = None,
        compression: str | None = None,
    ) -> None:
        """`target` is host:port, or unix:path for a Unix domain socket.

        Without `tls` the connection is plain text, as a sidecar's is; `credentials` are gRPC's own, for what `tls`
        cannot say. `compression` may be gzip, for requests and answers; it pays where the network is slower than the
        two processors. Raises TlsError for certificates that are no good.
        """
        credentials, options = secured(tls, credentials)
        self._secure = credentials is not None
        self._compression = metadata.compression_of(compression)
        self._metadata = partial(metadata.outgoing, self._compression, token)
        self._fork = calls.Fork()
        if credentials is None:
            self._channel = aio.insecure_channel(target, options, self._compression)
        else:
            self._channel = aio.secure_channel(target, credentials, options, self._compression)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection; calls in flight are cancelled."""
        await self._channel.close()

    async def predict(
        self,
        documents: str | Sequence[str],
        *,
        version: int | None = None,
        routing_key: str | None = None,
        include_features: bool = False,
        timeout: float | None = None,
    ) -> PredictResult:
        """Classify one or many documents, all by the same version: the active one, or the one pinned.

        In a rollout, calls with the same `routing_key` are all answered by the active version or all by the staged one.
        """
        return await self._run(calls.predict(documents, version, routing_key, include_features), timeout)

    def predict_many(
        self,
        documents: AsyncIterable[str] | Iterable[str],
        *,
        version: int | None = None,
        pin: bool = False,
        routing_key: str | None = None,
        on_error: many.OnError = "raise",
        include_features: bool = False,
        batch_size: int | None = None,
        concurrency: int = settings.CONCURRENCY,
        timeout: float | None = None,
    ) -> AsyncIterator[Answer]:
        """Classify any number of documents, taken as they are needed, and answer them in their order.

        A plain iterable is read on the event loop, so it should not block; one that does belongs in an async one.
        Each answer names the version that gave it: the active one at that moment, or `version`, or with `pin` the one
        that is active at the start, so that a swap on the way does not mix two. In a rollout the other calls are
        each drawn for themselves, or all go one way by a `routing_key`.

        `on_error`: what a document that cannot be answered does. "raise" raises its error in its turn; "return" gives
        an answer with that `error`, and goes on. Errors that are not a document's own are always raised.

        At most `concurrency` calls of up to `batch_size` documents are in flight, fewer where the server's limits ask
        for it, and a batch more is read ahead. A call that finds the server full or away is repeated, until `timeout`
        seconds after it was first sent. Closing the iterator (`contextlib.aclosing`) cancels the calls in flight.
        """
        options = many.Options(
            version=version,
            pin=pin,
            routing_key=routing_key,
            on_error=on_error,
            include_features=include_features,
            batch_size=batch_size,
            concurrency=concurrency,
            timeout=timeout,
        )
        return self._predict_many(many.checked(documents), options)

    async def get_model(self, *, timeout: float | None = None) -> Model:
        """Describe the model being served, with its labels and limits."""
        return await self._run(calls.get_model(), timeout)

    async def status(self, *, timeout: float | None = None) -> Status:
        """How the server is: what serves and how well, the load of the last minute, and the jobs."""
        return await self._run(calls.status(), timeout)

    async def unlearn(
        self,
        labels: str | Sequence[str],
        *,
        request_id: str | None = None,
        dry_run: bool = False,
        stage: bool = False,
        method: Method | Mapping[str, Any] | None = None,
        gates: GateLimits | Mapping[str, Any] | None = None,
        reason: str = "",
        timeout: float | None = None,
    ) -> Job:
        """Ask for labels to be forgotten; answers at once with the job.

        A repetition with the same `request_id` and content answers with the first one's job; None draws a
        UUID. A `dry_run` trains and measures, but leaves the served version as it is. With `stage` the version
        is kept beside the active one until `promote`, or `cancel_job`. `reason` goes on record and must not hold
        patient data.
        """
        return await self._run(calls.unlearn(labels, request_id, dry_run, stage, method, gates, reason), timeout)

    async def watch_job(self, job_id: str, *, timeout: float | None = None) -> AsyncGenerator[Job, None]:
        """Yield the job as it is and after each change, until it has ended.

        The watch survives a restart of the server. It has no deadline unless `timeout` sets one for the whole.
        """
        watch = calls.JobWatch(job_id, timeout)
        self._fork.check()
        stream_of: aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(watch.call.path)
        while not watch.ended:
            stream = stream_of(
                watch.call.request,
                timeout=watch.seconds_left(),
                metadata=self._metadata(),
            )
            try:
                async for answer in stream:
                    job = watch.news(answer)
                    if job is not None:
                        yield job
                pause = watch.pause_after_end()
            except grpc.RpcError as error:
                pause = watch.pause_after(self._error(error))
            finally:
                stream.cancel()
            await asyncio.sleep(pause)

    async def wait_for_job(self, job_id: str, *, timeout: float | None = None) -> Job:
        """Watch the job until it has ended, whatever the end, or is staged, and return it so."""
        async with aclosing(self.watch_job(job_id, timeout=timeout)) as jobs:
            async for job in jobs:
                if job.state.rests:
                    return job
        raise AssertionError("a watch goes on until the job has ended")

    async def get_job(self, job_id: str, *, timeout: float | None = None) -> Job:
        return await self._run(calls.get_job(job_id), timeout)

    async def receipt(self, job_id: str, *, timeout: float | None = None) -> Receipt:
        """The signed statement of what a job did and what was measured; see `verify_receipt`.

        Raises FailedPrecondition unless the job succeeded or was rejected.
        """
        return await self._run(calls.receipt(job_id), timeout)

    async def list_jobs(self, limit: int | None = None, *, timeout: float | None = None) -> tuple[Job, ...]:
        """The newest jobs first, at most `limit`; None leaves that to the server."""
        return await self._run(calls.list_jobs(limit), timeout)

    async def cancel_job(self, job_id: str, *, timeout: float | None = None) -> Job:
        """Stop a job, or withdraw a staged one's version; raises FailedPrecondition once it has begun to activate."""
        return await self._run(calls.cancel_job(job_id), timeout)

    async def list_versions(self, *, timeout: float | None = None) -> tuple[Version, ...]:
        """Every version, oldest first."""
        return await self._run(calls.list_versions(), timeout)

    async def rollback(
        self, version: int, reason: str, *, restore_forgotten: bool = False, timeout: float | None = None
    ) -> Version:
        """Make an earlier version the active one; answers when no call to the version left is in flight.

        `restore_forgotten` must be true if it knows a label that the active version has forgotten; where access is
        controlled that needs the role admin.
        """
        return await self._run(calls.rollback(version, reason, restore_forgotten), timeout)

    async def purge(self, version: int, reason: str, *, timeout: float | None = None) -> Version:
        """Make the active version the bundle itself, for good, and delete every other; nothing brings them back.

        `version` must be the active one, and no job unfinished. Answers when nothing is left that knows what was
        forgotten; after a timeout the purge goes on. Where access is controlled, it needs the role admin.
        """
        return await self._run(calls.purge(version, reason), timeout)

    async def promote(self, version: int, *, timeout: float | None = None) -> Version:
        """Make a staged version the active one; answers when no call to the version before is in flight."""
        return await self._run(calls.promote(version), timeout)

    async def set_rollout(
        self,
        version: int | None = None,
        *,
        canary_share: float | None = None,
        shadow_share: float | None = None,
        timeout: float | None = None,
    ) -> Rollout:
        """Give a staged version its shares of the traffic, 0 to 1; None leaves one as it is, 0 at first.

        Without `version` it is the one that has a rollout, or else the only one that is staged.
        """
        return await self._run(calls.set_rollout(version, canary_share, shadow_share), timeout)

    async def rollout(self, *, timeout: float | None = None) -> Rollout | None:
        """The staged version that takes part in the traffic, with what it has told; None if none does."""
        return await self._run(calls.rollout(), timeout)

    async def is_ready(self, *, timeout: float | None = None) -> bool:
        """Ask the standard health service once; False if the server is away, warming up or draining."""
        try:
            return await self._run(calls.check_health(), timeout)
        except (errors.Unavailable, errors.DeadlineExceeded):
            return False

    async def wait_until_ready(self, timeout: float = settings.READY_TIMEOUT) -> None:
        """Return once the server is ready; raises DeadlineExceeded if it is not within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            if await self.is_ready(timeout=min(left, settings.PROBE_TIMEOUT)):
                return
            await asyncio.sleep(settings.PROBE_INTERVAL)
        raise errors.DeadlineExceeded(f"the server was not ready within {timeout:g} s")

    async def _run(self, call: calls.Call[Result], timeout: float | None) -> Result:
        self._fork.check()
        send: aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(call.path)
        try:
            answer = await send(
                call.request,
                timeout=call.timeout if timeout is None else timeout,
                metadata=self._metadata(),
            )
        except grpc.RpcError as error:
            raise self._error(error) from None
        return call.parse(answer)

    def _error(self, error: grpc.RpcError) -> errors.AmnesticError:
        return explained(errors.from_rpc(error)) if self._secure else errors.from_rpc(error)

    async def _predict_many(
        self, documents: AsyncIterable[str] | Iterable[str], options: many.Options
    ) -> AsyncIterator[Answer]:
        run = many.Run(options, await self.get_model())
        free = asyncio.Semaphore(options.concurrency)
        waiting: deque[asyncio.Task[list[Answer]]] = deque()
        try:
            async for batch in run.batches_of_stream(documents):
                waiting.append(asyncio.create_task(self._answer(batch, free)))
                if len(waiting) > options.concurrency:
                    for answer in run.outcome(await waiting[0]):
                        yield answer
                    waiting.popleft()
            while waiting:
                for answer in run.outcome(await waiting[0]):
                    yield answer
                waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _answer(self, batch: many.Batch, free: asyncio.Semaphore) -> list[Answer]:
        """Make the calls of one batch, until each of its documents has its outcome."""
        async with free:
            while (call := batch.next_call()) is not None:
                try:
                    batch.answered(await self._run(call, batch.seconds_left()))
                except errors.AmnesticError as error:
                    await asyncio.sleep(batch.failed(error))
        return batch.answers()
