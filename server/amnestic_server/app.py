"""One serving process from start to drain: `serve` tells the whole story."""

import asyncio
import gc
import json
import logging
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial

import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckResponse
from prometheus_client import start_http_server

from amnestic.dsse import SignatureError
from amnestic.oip import open_inference_pb2_grpc
from amnestic.v1 import prediction_pb2_grpc, unlearning_pb2_grpc
from amnestic_server import audit, listening, logs, otel, purge, trace
from amnestic_server import bundle as bundles
from amnestic_server.access import Access
from amnestic_server.admission import LabelCounts
from amnestic_server.attempt import Attempts
from amnestic_server.audit import AuditError
from amnestic_server.batcher import Batcher
from amnestic_server.bundle import Bundle
from amnestic_server.call import BatchStats
from amnestic_server.calls import Decoder, TraceInterceptor
from amnestic_server.certificates import Certificates
from amnestic_server.engine import Engine, limit_library_threads
from amnestic_server.errors import DrainingError, ExitError, StartError
from amnestic_server.evaluation import Evaluator, GateDocuments
from amnestic_server.guard import INFERENCE, PREDICTION, UNLEARNING, Guard
from amnestic_server.inference_stats import InferenceStats
from amnestic_server.jobs import Jobs
from amnestic_server.listening import Ports
from amnestic_server.metrics import Metrics
from amnestic_server.oip.service import InferenceService
from amnestic_server.prediction import Predictor
from amnestic_server.rpc import PredictionService, UnlearningService
from amnestic_server.settings import Settings, available_cpus
from amnestic_server.shadow import Shadow
from amnestic_server.snapshot import Snapshots
from amnestic_server.staging import Staging
from amnestic_server.status import LastMinute, StatusReport
from amnestic_server.store import Store
from amnestic_server.tokenizer import DocumentTokenizer
from amnestic_server.versions import Versions, load_snapshots
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.corpus import CorpusError, Document
from amnestic_unlearn.manifest import BundleError

log = logging.getLogger(__name__)

SERVICES = (PREDICTION, UNLEARNING, INFERENCE)


async def serve(settings: Settings, *, as_json: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, or until the engine is lost, then drain.

    Raises StartError if it can't start, and ExitError if accepted calls were not answered at its end.
    Once it takes calls, one line on standard output says where, `as_json` or in words.
    """
    limit_library_threads()
    started = time.monotonic()
    asyncio.get_running_loop().set_exception_handler(logs.of_loop)
    logs.heed_signals(asyncio.get_running_loop())
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        ports = _bind(settings, metrics, stack)
        metrics_target = _serve_metrics(settings, metrics, stack)
        bundle = _load_bundle(settings)
        documents = _load_corpus(settings, bundle)

        store = _open_store(settings, bundle)
        stack.callback(store.close)
        _verify_audit(store, metrics)
        engine = Engine(
            bundle,
            device=settings.device,
            threads=settings.threads or available_cpus(),
            instances=settings.instances,
            spinning=settings.spinning,
            gpu_memory_mb=settings.gpu_memory_mb,
        )
        snapshots = load_snapshots(bundle, store, engine)
        engine.warm_up(snapshots.active, bundle.manifest.max_tokens)
        _show_model(metrics, bundle, engine, settings.device)

        tokenizer = _tokenizer(bundle)
        stats = InferenceStats()
        batcher = Batcher(
            engine,
            tokenizer,
            max_batch_tokens=max(settings.max_batch_tokens or engine.batch_tokens, bundle.manifest.max_tokens),
            max_padding=settings.max_padding,
            max_requests=settings.max_concurrent_requests,
            max_queue_tokens=settings.max_queue_tokens,
            pooling=bundle.manifest.pooling,
            on_batch=_batch_observer(metrics, stats),
        )
        stack.callback(batcher.close)
        metrics.show_queue_limits(settings.max_queue_tokens, settings.max_concurrent_requests)
        metrics.watch_queue(lambda: batcher.queue_rows, lambda: batcher.queue_tokens, lambda: batcher.open_documents)
        evaluator, counts = _evaluation(bundle, batcher, tokenizer, documents, snapshots)
        documents.clear()
        versions = Versions(bundle, store, snapshots, engine, evaluator, metrics)
        shadow = Shadow(batcher, snapshots, bundle.manifest, metrics)
        staging = Staging(store, snapshots, versions, shadow, bundle.manifest.labels, metrics)
        jobs = Jobs(
            bundle=bundle,
            store=store,
            snapshots=snapshots,
            versions=versions,
            staging=staging,
            attempts=Attempts(bundle, store, snapshots, versions, engine, evaluator, settings),
            counts=counts,
            settings=settings,
            metrics=metrics,
        )
        predictor = Predictor(batcher, bundle.manifest, settings, metrics, stats, shadow)
        last_minute = LastMinute(metrics)
        status = StatusReport(
            started=started,
            bundle=bundle,
            engine=engine,
            settings=settings,
            batcher=batcher,
            predictor=predictor,
            snapshots=snapshots,
            versions=versions,
            staging=staging,
            jobs=jobs,
            last_minute=last_minute,
        )
        reading = asyncio.create_task(last_minute.keep_reading())
        stack.callback(reading.cancel)
        prediction = PredictionService(predictor, snapshots, bundle, engine, settings, metrics, status)
        unlearning = UnlearningService(jobs, versions, staging, metrics)
        inference = InferenceService(predictor, snapshots, versions, stats, bundle, engine, settings, metrics)
        for server in ports.services:
            prediction_pb2_grpc.add_PredictionServiceServicer_to_server(prediction, server)
            unlearning_pb2_grpc.add_UnlearningServiceServicer_to_server(unlearning, server)
            open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(inference, server)
            if settings.reflection:
                listening.add_reflection(server, SERVICES)
        health = await listening.add_health(ports.all, SERVICES)

        stopping = _on_signals()
        # What was loaded lives as long as the process. A full collection that looked at it would hold every call for a
        # tenth of a second.
        gc.collect()
        gc.freeze()
        # ONNX Runtime's binding tells of whatever the end of the interpreter does not collect.
        stack.callback(gc.unfreeze)
        await ports.start()
        await jobs.start()
        versions.measure_active()
        await listening.set_health(health, SERVICES, HealthCheckResponse.SERVING)
        metrics.ready.set(1)
        log.info("ready after %.1f s", time.monotonic() - started)
        targets = ports.targets
        ready: dict[str, str | int] = {
            "grpc": targets.get("grpc") or targets["uds"],
            "metrics": metrics_target,
            "version": snapshots.active.version,
            "provider": engine.provider,
            **{name: targets[name] for name in ("uds", "operations", "health") if name in targets},
        }
        line = " ".join(f"{name}={value}" for name, value in ready.items())
        print(json.dumps(ready) if as_json else f"ready: {line}", flush=True)
        await _first_of(stopping, batcher.lost)

        log.info("draining")
        metrics.ready.set(0)
        predictor.leave()
        await health.enter_graceful_shutdown()
        # So that who watches hears of it before a call is refused, and sends no more.
        await asyncio.sleep(settings.exit_notice_secs)
        versions.around_swaps.stop()
        predictor.drain()
        versions.stop_measuring()
        shadow.close()
        unanswered = await _finish(jobs, versions, batcher, settings.exit_timeout_secs)
        health.end_watches()
        await ports.stop(grace=1.0)
        log.info("stopped")
        if batcher.lost.is_set():
            raise ExitError("the engine failed; the log says how. A restart serves again")
        if unanswered:
            raise ExitError(f"stopped with {unanswered} documents unanswered after {settings.exit_timeout_secs:g} s")


async def _first_of(*events: asyncio.Event) -> None:
    """Wait until one of the events is set."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()


async def _finish(jobs: Jobs, versions: Versions, batcher: Batcher, seconds: float) -> int:
    """Stop the job, answer what was accepted, and write down what was felt around a swap, all within so many seconds;
    returns the documents left unanswered.

    A job that activates its version waits for the calls of the version before, so what holds them up holds it up. What
    it has committed by then is found at the next start.
    """
    closing = asyncio.create_task(jobs.close())
    answered = asyncio.create_task(batcher.idle(seconds))
    recorded = asyncio.create_task(versions.around_swaps.recorded())
    await asyncio.wait((closing, answered, recorded), timeout=seconds)
    unanswered = batcher.open_documents
    batcher.fail_open_calls(DrainingError)
    return unanswered


def _tracing(settings: Settings, stack: AsyncExitStack) -> TraceInterceptor:
    """Spans where they are asked for, else the id of a caller's trace alone."""
    if settings.otel or otel.named_by_environment():
        try:
            spans = otel.Spans()
        except StartError:
            if settings.otel:
                raise
            log.warning(
                "the environment names an OpenTelemetry collector, but amnestic[otel] is not installed: no spans"
            )
        else:
            stack.callback(spans.close)
            return TraceInterceptor(spans.of)
    return TraceInterceptor(lambda path, headers: trace.received(headers))


def _bind(settings: Settings, metrics: Metrics, stack: AsyncExitStack) -> Ports:
    """Take gRPC's addresses, with what admits and traces the calls that come in there."""
    certificates = access = None
    if settings.tls_cert is not None and settings.tls_key is not None:
        certificates = Certificates(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        for kind in certificates.kinds:
            metrics.certificate_expiry.labels(kind).set_function(partial(certificates.expiry, kind))
    if settings.access is not None:
        access = Access(settings.access)
        if access.names_certificates and settings.tls_client_ca is None:
            raise StartError("the file of --access gives roles to certificates: --tls-client-ca must verify them")
    tracing, decoder = _tracing(settings, stack), Decoder(metrics)

    def interceptors(port: str) -> list[grpc.aio.ServerInterceptor]:
        if port == "health":
            return [decoder]
        changes = port == "operations" or settings.operations_port is None
        if access is None and changes and settings.tls_client_ca is None:
            return [tracing, decoder]
        return [tracing, Guard(access, metrics, changes=changes), decoder]

    return listening.bind(settings, certificates, interceptors, stack)


def _serve_metrics(settings: Settings, metrics: Metrics, stack: AsyncExitStack) -> str:
    """Returns the address."""
    host = settings.monitoring_host or settings.host
    try:
        server, thread = start_http_server(settings.metrics_port, host, metrics.registry)
    except OSError as error:
        raise StartError(f"cannot listen on {host}:{settings.metrics_port}: is the port in use?") from error

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    stack.callback(close)
    return f"{host}:{server.server_port}"


def _load_bundle(settings: Settings) -> Bundle:
    try:
        purge.complete(settings.bundle)
        return bundles.load(settings.bundle)
    except (BundleError, OSError) as error:
        raise StartError(f"the bundle cannot be used: {error}") from error


def _open_store(settings: Settings, bundle: Bundle) -> Store:
    if settings.require_store and not (settings.store / audit.DATABASE).exists():
        raise StartError("there is no store of before, and --require-store was given: is its volume there?")
    return Store(settings.store, bundle.digest, settings.signing_key, purged=bundle.manifest.purged)


def _verify_audit(store: Store, metrics: Metrics) -> None:
    """Tell of a record that was tampered with; what is served then is still what the store says."""
    try:
        store.verify_audit()
    except (AuditError, SignatureError, OSError) as error:
        log.error("the audit record does not verify: %s", error)
        metrics.audit_intact.set(0)
    else:
        metrics.audit_intact.set(1)


def _tokenizer(bundle: Bundle) -> DocumentTokenizer:
    try:
        return DocumentTokenizer(bundle.tokenizer, bundle.manifest.reading)
    except BundleError as error:
        raise StartError(f"the bundle cannot be used: {error}") from error


def _load_corpus(settings: Settings, bundle: Bundle) -> list[Document]:
    if settings.corpus is None:
        log.warning("no --corpus: this server predicts, and refuses to unlearn")
        return []
    try:
        manifest = bundle.manifest
        return corpora.read(settings.corpus, manifest.labels, ("train", "gate"), manifest.problem_type)
    except CorpusError as error:
        raise StartError(f"the corpus cannot be used: {error}") from error


def _evaluation(
    bundle: Bundle,
    batcher: Batcher,
    tokenizer: DocumentTokenizer,
    documents: Sequence[Document],
    snapshots: Snapshots,
) -> tuple[Evaluator | None, LabelCounts | None]:
    gate = [document for document in documents if document.split == "gate"]
    if not gate:
        return None, None
    gate_documents = GateDocuments.of(gate, bundle.manifest.labels, tokenizer)
    evaluator = Evaluator(batcher, bundle.manifest, gate_documents, snapshots.base)
    counts = {
        split: Counter(label for document in documents if document.split == split for label in document.labels)
        for split in ("train", "gate")
    }
    return evaluator, LabelCounts(**counts)


def _show_model(metrics: Metrics, bundle: Bundle, engine: Engine, device: str) -> None:
    manifest = bundle.manifest
    metrics.show_model(
        {
            "name": manifest.name,
            "architecture": manifest.architecture,
            "precision": manifest.precision,
            "device": device,
            "provider": engine.provider,
            "bundle": bundle.digest,
        }
    )
    log.info("%s (%s, %s) on %s", manifest.name, manifest.architecture, manifest.precision, engine.provider)


def _batch_observer(metrics: Metrics, stats: InferenceStats) -> Callable[[BatchStats], None]:
    def observe(batch: BatchStats) -> None:
        metrics.batch_rows.observe(batch.rows)
        metrics.batch_tokens.observe(batch.padded_tokens)
        metrics.tokens.inc(batch.tokens)
        metrics.padding_tokens.inc(batch.padded_tokens - batch.tokens)
        stats.executed(batch)

    return observe


def _on_signals() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; a second one, of either, ends the process at once."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def stop() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        stopping.set()

    for number in numbers:
        loop.add_signal_handler(number, stop)
    return stopping
