"""The Open Inference Protocol's gRPC service. A method converts, calls, converts."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack

import grpc.aio

from amnestic import __version__
from amnestic.oip import open_inference_pb2 as oip
from amnestic.oip import open_inference_pb2_grpc
from amnestic_server.bundle import Bundle
from amnestic_server.calls import WRITE_SECONDS, Context, client, unary, within_stream
from amnestic_server.engine import Engine
from amnestic_server.errors import AmnesticError, DrainingError, InvalidArgumentError, NotFoundError, SlowReaderError
from amnestic_server.inference_stats import InferenceStats
from amnestic_server.metrics import STREAMED, Metrics
from amnestic_server.oip import describe
from amnestic_server.oip.answer import OUTPUTS, answer
from amnestic_server.oip.request import INPUT, read, routing_key, version_number
from amnestic_server.prediction import Predictor
from amnestic_server.records import VersionRecord
from amnestic_server.settings import Settings
from amnestic_server.snapshot import Snapshot, Snapshots
from amnestic_server.versions import Versions

EXTENSIONS = ("classification", "model_configuration", "parameters", "statistics")
# Requests of one stream that may be unanswered; no more are read, so that a stream can't fill the server's memory.
MAX_OPEN_REQUESTS = 64

Hold = Callable[[Callable[[], None]], object]


class InferenceService(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(
        self,
        predictor: Predictor,
        snapshots: Snapshots,
        versions: Versions,
        stats: InferenceStats,
        bundle: Bundle,
        engine: Engine,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        self.metrics = metrics
        self._predictor = predictor
        self._snapshots = snapshots
        self._versions = versions
        self._stats = stats
        self._manifest = bundle.manifest
        self._engine = engine
        self._settings = settings

    @unary
    async def ServerLive(self, request: oip.ServerLiveRequest, context: Context) -> oip.ServerLiveResponse:  # noqa: N802
        # Also while draining: a liveness probe that failed would have the process killed with calls in flight.
        return oip.ServerLiveResponse(live=True)

    @unary
    async def ServerReady(self, request: oip.ServerReadyRequest, context: Context) -> oip.ServerReadyResponse:  # noqa: N802
        return oip.ServerReadyResponse(ready=not self._leaving)

    @unary
    async def ModelReady(self, request: oip.ModelReadyRequest, context: Context) -> oip.ModelReadyResponse:  # noqa: N802
        try:
            self._snapshot(request.name, request.version)
        except NotFoundError:
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=not self._leaving)

    @unary
    async def ServerMetadata(self, request: oip.ServerMetadataRequest, context: Context) -> oip.ServerMetadataResponse:  # noqa: N802
        return oip.ServerMetadataResponse(name="amnestic", version=__version__, extensions=EXTENSIONS)

    @unary
    async def ModelMetadata(self, request: oip.ModelMetadataRequest, context: Context) -> oip.ModelMetadataResponse:  # noqa: N802
        self._snapshot(request.name, request.version)
        return describe.metadata(self._manifest, self._snapshots.versions)

    @unary
    async def ModelConfig(self, request: oip.ModelConfigRequest, context: Context) -> oip.ModelConfigResponse:  # noqa: N802
        snapshot = self._snapshot(request.name, request.version)
        return oip.ModelConfigResponse(
            config=describe.config(self._manifest, snapshot, self._settings.documents_a_call, self._engine.provider)
        )

    @unary
    async def ModelStatistics(  # noqa: N802
        self, request: oip.ModelStatisticsRequest, context: Context
    ) -> oip.ModelStatisticsResponse:
        asked = self._snapshot(request.name or self._manifest.name, request.version)
        versions = [asked.version] if request.version else self._snapshots.versions
        return oip.ModelStatisticsResponse(
            model_stats=[
                describe.statistics(self._manifest.name, version, self._stats.of(version)) for version in versions
            ]
        )

    @unary
    async def RepositoryIndex(  # noqa: N802
        self, request: oip.RepositoryIndexRequest, context: Context
    ) -> oip.RepositoryIndexResponse:
        entries = [
            describe.index_entry(self._manifest.name, record.version, self._why_not_ready(record))
            for record, _ in await self._versions.records()
        ]
        return oip.RepositoryIndexResponse(
            models=[entry for entry in entries if entry.state == describe.READY or not request.ready]
        )

    @unary
    async def ModelInfer(self, request: oip.ModelInferRequest, context: Context) -> oip.ModelInferResponse:  # noqa: N802
        # Held until the answer has left: who sees a job SUCCEEDED gets no older answer afterwards.
        return await self._infer(request, context, lambda let_go: context.add_done_callback(lambda _: let_go()))  # type: ignore[arg-type]

    @unary
    async def ModelStreamInfer(self, requests: AsyncIterator[oip.ModelInferRequest], context: Context) -> None:  # type: ignore[override]  # noqa: N802
        """Answers in the order of the requests, as many at a time as `MAX_OPEN_REQUESTS`.

        A server that drains reads no more, answers what it has begun, and ends the stream with UNAVAILABLE.
        """
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._read(requests, context, group))
                draining = group.create_task(self._predictor.draining.wait())
                await asyncio.wait((reading, draining), return_when=asyncio.FIRST_COMPLETED)
                cut = reading.cancel()
                draining.cancel()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if cut:
            raise DrainingError

    async def _read(
        self, requests: AsyncIterator[oip.ModelInferRequest], context: Context, group: asyncio.TaskGroup
    ) -> None:
        room = asyncio.Semaphore(MAX_OPEN_REQUESTS)
        before = asyncio.Event()
        before.set()
        async for request in requests:
            await room.acquire()
            left = asyncio.Event()
            group.create_task(self._answer_in_turn(request, context, before, left)).add_done_callback(
                lambda _: room.release()
            )
            before = left

    async def _answer_in_turn(
        self, request: oip.ModelInferRequest, context: Context, before: asyncio.Event, left: asyncio.Event
    ) -> None:
        """Answer one request of a stream, once the answer `before` it has left."""
        with ExitStack() as stack:
            stack.callback(left.set)
            infer = self._infer(request, context, stack.callback)
            answered = _streamed(request.id, await within_stream(self.metrics, STREAMED, context, infer))
            # Its texts need not stay in memory until its turn.
            del request, infer
            await before.wait()
            await _write(context, answered)

    async def _infer(self, request: oip.ModelInferRequest, context: Context, hold: Hold) -> oip.ModelInferResponse:
        """Answer a request; `hold` is given what lets go of its version."""
        self._check_name(request.model_name, "model_name")
        version = self._number(request.model_version, "model_version")
        pin = self._snapshots.pin(version, routing_key(request.parameters))
        hold(pin.release)
        asked = read(request, self._settings.documents_a_call, OUTPUTS)
        limits = [seconds for seconds in (context.time_remaining(), asked.seconds) if seconds is not None]
        try:
            scores = await self._predictor.predict(asked.texts, pin, min(limits, default=None), client(context))
        except InvalidArgumentError as error:
            # It speaks of documents by number, which the texts of both services share, and names a native field.
            raise InvalidArgumentError(f"input {INPUT}: {error}", field="inputs[0]") from None
        return answer(request, asked, scores, pin.snapshot.version, self._manifest)

    @property
    def _leaving(self) -> bool:
        return self._predictor.leaving

    def _snapshot(self, name: str, version: str) -> Snapshot:
        """What a request describes by name and version; raises NotFoundError or InvalidArgumentError."""
        self._check_name(name, "name")
        number = self._number(version, "version")
        return self._snapshots.get(number) if number else self._snapshots.active

    def _check_name(self, name: str, field: str) -> None:
        if name != self._manifest.name:
            raise NotFoundError("there is no such model", field=field, resource="model")

    def _number(self, version: str, field: str) -> int:
        number = version_number(version, field)
        if number and not self._snapshots.has(number):
            raise NotFoundError("there is no such version", field=field, resource="version")
        return number

    def _why_not_ready(self, record: VersionRecord) -> str:
        if record.withdrawn:
            return "it was withdrawn"
        if not self._snapshots.has(record.version):
            return "its patch cannot be read"
        return "the server is shutting down" if self._leaving else ""


async def _write(context: Context, answered: oip.ModelStreamInferResponse) -> None:
    """Write an answer to a stream, and to its end even if the stream fails meanwhile.

    gRPC cannot end a stream in the middle of a write: its caller would wait for ever.
    """
    writing = asyncio.ensure_future(context.write(answered))
    # Looked at even where nobody waits for it any more.
    writing.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        async with asyncio.timeout(WRITE_SECONDS):
            await asyncio.shield(writing)
    except TimeoutError:
        raise SlowReaderError from None
    except grpc.aio.BaseError:
        # The caller is gone.
        raise asyncio.CancelledError from None
    except asyncio.CancelledError:
        await asyncio.wait((writing,), timeout=WRITE_SECONDS)
        raise


def _streamed(name: str, answered: oip.ModelInferResponse | AmnesticError) -> oip.ModelStreamInferResponse:
    """What a stream says of the request with the id `name`."""
    # Triton's clients ask which of a request's answers is the last; here each has one.
    final = {"triton_final_response": oip.InferParameter(bool_param=True)}
    if isinstance(answered, AmnesticError):
        parameters = final | {"status": oip.InferParameter(string_param=answered.status)}
        failed = oip.ModelInferResponse(id=name, parameters=parameters)
        return oip.ModelStreamInferResponse(error_message=str(answered), infer_response=failed)
    answered.parameters["triton_final_response"].bool_param = True
    return oip.ModelStreamInferResponse(infer_response=answered)
