# ruff: noqa: ASYNC109 - the timeout travels to the server as the call's deadline
"""The asyncio client, with the methods of the synchronous one. What each call sends and how its answer is read is
in `calls`; this runs it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from grpc import aio

from amnestic_client import calls, errors, settings
from amnestic_client.types import GateLimits, Job, Method, Model, PredictResult, Status, Version

Result = TypeVar("Result")


class AsyncClient:
    """A connection to one Amnestic server, for the event loop it is made in.

    The one channel connects at the first call and stays until `close`. Every call takes `timeout` in seconds,
    None for the default of its kind, and raises an `AmnesticError`. Calls that are safe to repeat are retried
    by gRPC while the server is unavailable, within their timeout.
    """

    def __init__(self, target: str = settings.TARGET, *, credentials: grpc.ChannelCredentials | None = None) -> None:
        """`target` is host:port. Without `credentials` the connection is plain text, as a sidecar's is."""
        options = settings.channel_options()
        if credentials is None:
            self._channel = aio.insecure_channel(target, options)
        else:
            self._channel = aio.secure_channel(target, credentials, options)

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
        include_features: bool = False,
        timeout: float | None = None,
    ) -> PredictResult:
        """Classify one or many documents, all by the same version: the active one, or the one pinned."""
        return await self._run(calls.predict(documents, version, include_features), timeout)

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
        method: Method | Mapping[str, Any] | None = None,
        gates: GateLimits | Mapping[str, Any] | None = None,
        reason: str = "",
        timeout: float | None = None,
    ) -> Job:
        """Ask for labels to be forgotten; answers at once with the job.

        A repetition with the same `request_id` and content answers with the first one's job; None draws a
        UUID. A `dry_run` trains and measures, but leaves the served version as it is. `reason` goes on record
        and must not hold patient data.
        """
        return await self._run(calls.unlearn(labels, request_id, dry_run, method, gates, reason), timeout)

    async def watch_job(self, job_id: str, *, timeout: float | None = None) -> AsyncIterator[Job]:
        """Yield the job as it is and after each change, until it has ended.

        The watch survives a restart of the server. It has no deadline unless `timeout` sets one for the whole.
        """
        watch = calls.JobWatch(job_id, timeout)
        stream_of: aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(watch.call.path)
        while not watch.ended:
            stream = stream_of(watch.call.request, timeout=watch.seconds_left())
            try:
                async for answer in stream:
                    job = watch.news(answer)
                    if job is not None:
                        yield job
                pause = watch.pause_after_end()
            except grpc.RpcError as error:
                pause = watch.pause_after(errors.from_rpc(error))
            finally:
                stream.cancel()
            await asyncio.sleep(pause)

    async def wait_for_job(self, job_id: str, *, timeout: float | None = None) -> Job:
        """Watch the job until it has ended, whatever the end, and return it so."""
        jobs = [job async for job in self.watch_job(job_id, timeout=timeout)]
        return jobs[-1]

    async def get_job(self, job_id: str, *, timeout: float | None = None) -> Job:
        return await self._run(calls.get_job(job_id), timeout)

    async def list_jobs(self, limit: int | None = None, *, timeout: float | None = None) -> tuple[Job, ...]:
        """The newest jobs first, at most `limit`; None leaves that to the server."""
        return await self._run(calls.list_jobs(limit), timeout)

    async def cancel_job(self, job_id: str, *, timeout: float | None = None) -> Job:
        """Stop a job; raises FailedPrecondition once it has begun to activate."""
        return await self._run(calls.cancel_job(job_id), timeout)

    async def list_versions(self, *, timeout: float | None = None) -> tuple[Version, ...]:
        """Every version, oldest first."""
        return await self._run(calls.list_versions(), timeout)

    async def rollback(self, version: int, reason: str, *, timeout: float | None = None) -> Version:
        """Make an earlier version the active one; answers when no call to the version left is in flight."""
        return await self._run(calls.rollback(version, reason), timeout)

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
        send: aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(call.path)
        try:
            answer = await send(call.request, timeout=call.timeout if timeout is None else timeout)
        except grpc.RpcError as error:
            raise errors.from_rpc(error) from None
        return call.parse(answer)
