"""The demo from its first step to its last: train, export, serve, predict, forget while predicting, measure."""

import asyncio
import time
from collections.abc import Sequence

from amnestic_client import AsyncClient, Job, JobState, Prediction
from amnestic_server.cli.progress import Bar
from amnestic_server.cli.watch import JobProgress
from amnestic_server.demo import model as models
from amnestic_server.demo import quality, report
from amnestic_server.demo.process import serving
from amnestic_server.demo.report import INDENT, Figures, Narrator
from amnestic_server.demo.settings import DemoError, DemoSettings
from amnestic_server.demo.stream import Phase, Stream
from amnestic_server.job_report.page import Source, render
from amnestic_server.signing import PUBLIC_KEY_FILE
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.corpus import Document
from amnestic_unlearn.manifest import Manifest

# Documents of the test split among which those to show are looked for: no more than one call may hold.
MOST_CANDIDATES = 100


class NotForgottenError(Exception):
    """The job ended otherwise than in success; it is the argument."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"the job ended as {job.state}")
        self.job = job


async def run(settings: DemoSettings, say: Narrator) -> Figures:
    """Tell the whole story and return its figures.

    Raises NotForgottenError if the job does not succeed, DemoError if the demo cannot go on, CorpusError for a
    corpus that cannot be used, and AmnesticError if a call outside the stream fails.
    """
    say.title(f"Amnestic: a clinical text classifier forgets {settings.label} while it serves")
    probe = corpora.read(settings.corpus, splits=("probe",))
    test = corpora.read(settings.corpus, splits=("test",))
    with models.workspace(settings):
        manifest = await _model(settings, say)
        _check_label(settings, manifest)
        say.step("Start a server of the bundle, as a process of its own")
        async with serving(settings) as (target, provider), AsyncClient(target) as client:
            say.detail(f"gRPC on {target}, {provider}")
            return await _forget_while_serving(settings, say, client, manifest, probe, test)


async def _model(settings: DemoSettings, say: Narrator) -> Manifest:
    models.forget_if_outdated(settings)
    if manifest := models.kept_bundle(settings):
        say.step("Take the bundle of an earlier run")
        say.detail(f"{settings.bundle}: {_model_facts(manifest)}")
        return manifest
    if not settings.checkpoint.exists():
        say.step("Train a small BERT from scratch; about a minute")
        trained = await models.train(settings)
        say.detail(f"macro F1 {trained['macro_f1']:.3f} on the test split; {trained['seconds']:.0f} s")
    say.step("Export it: encoder to ONNX; word embeddings and head apart, to be patched")
    begun = time.monotonic()
    manifest = await models.export(settings)
    say.detail(f"{settings.bundle}: {_model_facts(manifest)}; {time.monotonic() - begun:.0f} s")
    return manifest


def _check_label(settings: DemoSettings, manifest: Manifest) -> None:
    if settings.label not in manifest.labels:
        raise DemoError(f"the model has no such label to forget: it has {', '.join(manifest.labels)}")


def _model_facts(manifest: Manifest) -> str:
    return f"{manifest.parameters:,} parameters, {len(manifest.labels)} labels"


async def _forget_while_serving(
    settings: DemoSettings,
    say: Narrator,
    client: AsyncClient,
    manifest: Manifest,
    probe: Sequence[Document],
    test: Sequence[Document],
) -> Figures:
    say.step(f"Predict held-out documents: some where it finds {settings.label}, some of others")
    shown = await _shown(client, test, settings.label, settings.shown)
    first = await _ask(client, shown)
    say.documents(shown, first, version=1)

    say.step("Measure it over gRPC: F1, and a fresh probe on its features")
    before = await _measure(settings, client, manifest, probe, test)
    say.detail(_quality_facts(settings.label, before))

    say.step(f"Start {settings.clients} clients that keep predicting")
    async with Stream(client, [document.text for document in test], settings.clients, settings.pause) as stream:
        await _wait(settings)
        say.detail(f"{stream.answered:,} answered in {settings.window:g} s, {len(stream.failures)} failed")
        say.step(f"Ask it to forget {settings.label}; the clients go on")
        job, seconds = await _forget(settings, say, client, stream)
        await _wait(settings)

    say.step("Measure it again")
    after = await _measure(settings, client, manifest, probe, test)
    say.detail(_quality_facts(settings.label, after))
    say.step("Predict the same documents again")
    assert job.version is not None, "a job that succeeded has made a version"
    say.changes(shown, first, await _ask(client, shown), job.version)
    result = report.figures(before, after, job, seconds, stream)
    say.table(settings.label, len(manifest.labels) - 1, result)
    await _report(settings, say, client, job)
    say.commands(settings, job.version, next(label for label in manifest.labels[::-1] if label != settings.label))
    return result


async def _forget(settings: DemoSettings, say: Narrator, client: AsyncClient, stream: Stream) -> tuple[Job, float]:
    """The job that succeeded, and the seconds from the request to the news of it."""
    stream.phase = Phase.DURING
    begun = time.monotonic()
    job = await client.unlearn(settings.label, method=settings.method, gates=settings.gates, reason="amnestic demo")
    watch = client.watch_job(job.job_id)

    def meanwhile() -> str:
        failed = len(stream.failures)
        return f"meanwhile {stream.answered:,} answered" + (f", {failed:,} failed" if failed else "")

    with JobProgress(quiet=settings.quiet, indent=len(INDENT), below=meanwhile) as view:
        async for job in watch:
            view.update(job)
    seconds = time.monotonic() - begun
    if job.state is JobState.REJECTED:
        await _report(settings, say, client, job)
    if job.state is not JobState.SUCCEEDED or job.change is None:
        raise NotForgottenError(job)
    stream.phase = Phase.AFTER
    say.detail(f"every gate passed, version {job.version} is served; {seconds:.1f} s")
    say.gates(job)
    say.detail(report.change_facts(job.change))
    return job, seconds


async def _report(settings: DemoSettings, say: Narrator, client: AsyncClient, job: Job) -> None:
    """Write the receipt of a job that succeeded or was rejected, and its report beside it."""
    receipt = await client.receipt(job.job_id)
    settings.receipt.write_text(receipt.envelope + "\n")
    key = settings.store / PUBLIC_KEY_FILE
    source = Source(receipt=str(settings.receipt), key=str(key))
    calls = (await client.get_job(job.job_id)).calls_around_swap
    settings.report.write_text(render(receipt.envelope, key.read_bytes(), source, calls), encoding="utf-8")
    say.report(settings.report)


async def _measure(
    settings: DemoSettings,
    client: AsyncClient,
    manifest: Manifest,
    probe: Sequence[Document],
    test: Sequence[Document],
) -> quality.Quality:
    with Bar(quiet=settings.quiet, indent=len(INDENT)) as bar:
        return await quality.measure(
            client,
            settings.label,
            manifest.labels,
            probe,
            test,
            lambda done, total: bar.update("documents", done, total),
        )


async def _wait(settings: DemoSettings) -> None:
    """For the window in which predictions are timed."""
    begun = time.monotonic()
    with Bar(quiet=settings.quiet, indent=len(INDENT)) as bar:
        while (passed := time.monotonic() - begun) < settings.window:
            bar.update("timing predictions", passed, settings.window, left=settings.window - passed)
            await asyncio.sleep(min(1.0, settings.window - passed))


async def _ask(client: AsyncClient, documents: Sequence[Document]) -> tuple[Prediction, ...]:
    return (await client.predict([document.text for document in documents])).predictions


async def _shown(client: AsyncClient, test: Sequence[Document], label: str, count: int) -> list[Document]:
    """The first of the test split where the model rightly finds the label, and as many with only others on record."""
    candidates = test[:MOST_CANDIDATES]
    answers = await _ask(client, candidates)
    found = [
        document
        for document, answer in zip(candidates, answers, strict=True)
        if label in document.labels and label in answer.decided
    ]
    others = [document for document in candidates if document.labels and label not in document.labels]
    return found[: count // 2] + others[: count // 2]


def _quality_facts(label: str, measured: quality.Quality) -> str:
    return (
        f"F1 of {label} {measured.forget_f1:.3f}, of the others {measured.retain_f1:.3f};"
        f" the probe's AUROC {measured.probe_auc:.3f}"
    )
