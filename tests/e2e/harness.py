"""The server as an operator runs it: a process of its own on a store of its own, asked over real gRPC.

`Reference` says what a version must answer, by Hugging Face's own classes alone; `Traffic` are client processes that
predict without pause and keep every answer.
"""

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
import numpy as np
import psutil
import torch
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file

from amnestic.oip import open_inference_pb2, open_inference_pb2_grpc
from amnestic.v1.unlearning_pb2 import UnlearnRequest
from amnestic_client import Client, Job
from amnestic_server.records import JobRecord
from amnestic_server.records import JobState as StoredState
from amnestic_server.rollout import RolloutRecord, Shares
from amnestic_server.store import Store
from amnestic_unlearn.architecture import ARCHITECTURES
from amnestic_unlearn.manifest import MANIFEST, Manifest, file_digest
from amnestic_unlearn.patch import Patch

READY = re.compile(
    r"ready: grpc=(?P<grpc>\S+) metrics=(?P<metrics>\S+) version=(?P<version>\d+) provider=\S+(?: uds=(?P<uds>\S+))?"
    r"(?: operations=(?P<operations>\S+))?(?: health=(?P<health>\S+))?\n"
)
# Enough to forget a label of the toy, and quickly: its rows are as large as 0.1, and must move as far for a probe to
# find less.
METHOD = {"preset": "paper", "k": 24, "epochs": 12, "embedding_lr": 0.1, "head_lr": 2e-2, "distil_weight": 1.0}
# Wide where 90 documents in the toy's gate split make a figure uncertain. The probe's share keeps its default.
GATES = {"forget_f1_max": 0.05, "forget_auroc_max": 0.75, "retain_f1_drop_max": 0.3, "retain_label_drop_max": 0.3}
# Where it does not matter what was forgotten and what was kept.
ANYTHING = {
    "forget_f1_max": 1.0,
    "forget_auroc_max": 1.0,
    "probe_ratio_max": 10.0,
    "retain_f1_drop_max": 1.0,
    "retain_label_drop_max": 1.0,
}
LONG_JOB = METHOD | {"epochs": 1000}
SCRIPT = Path(__file__).with_name("traffic.py")
FLOOD = Path(__file__).with_name("flood.py")
JOB_SECONDS = 120
ROWS = 48
# A word of no language, to be looked for wherever text must not be.
CANARY = "Xylqvornik4711"


class Server:
    """One `amnestic serve` on free ports, which can be stopped, killed and started again on the same store."""

    def __init__(self, folder: Path, bundle: Path, corpus: Path | None, flags: Sequence[str] = ()) -> None:
        self.store = folder / "store"
        self.corpus = corpus
        self.log_file = folder / "stderr"
        self.environment: dict[str, str] = {}
        self.program = amnestic()
        self.cwd: Path | None = None
        self.arguments = ["--bundle", str(bundle), "--store", str(self.store), "--threads", "1"]
        self.arguments += ["--grpc-port", "0", "--metrics-port", "0", *flags]
        if corpus is not None:
            self.arguments += ["--corpus", str(corpus)]
        self.target = self.metrics_target = self.uds = self.operations = self.health = ""
        # What its clients need beside the address.
        self.client_options: dict[str, Any] = {}
        self.ready_version = 0
        self.restarts = -1
        self._process: subprocess.Popen[str] | None = None
        self._clients: list[Client] = []

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def client(self) -> Client:
        """A client of the process that runs now."""
        return self._clients[-1]

    def set_flag(self, flag: str, value: Path) -> None:
        """Of the next start; it has the flag already."""
        self.arguments[self.arguments.index(flag) + 1] = str(value)

    def start(self) -> Self:
        with self.log_file.open("a") as log:
            self._process = subprocess.Popen(
                [*self.program, "serve", *self.arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment() | self.environment,
                cwd=self.cwd,
            )
        assert self._process.stdout is not None
        ready = READY.fullmatch(self._process.stdout.readline())
        assert ready, f"the server did not start:\n{self.log}"
        self.target, self.metrics_target, self.uds = ready["grpc"], ready["metrics"], ready["uds"] or ""
        self.operations, self.health = ready["operations"] or "", ready["health"] or ""
        self.ready_version = int(ready["version"])
        self.restarts += 1
        self._clients.append(Client(self.target, **self.client_options))
        return self

    def terminate(self) -> int:
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        return self._end(signal.SIGKILL)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 30) -> int:
        assert self._process is not None
        code = self._process.wait(seconds)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return code

    def close(self) -> None:
        """Leave nothing behind, whatever happened."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        for client in self._clients:
            client.close()

    def metrics_text(self) -> str:
        with urllib.request.urlopen(f"http://{self.metrics_target}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def metric(self, name: str, /, **labels: str) -> float | None:
        """One sample's value; None if there is no such sample."""
        for family in text_string_to_metric_families(self.metrics_text()):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        return None

    def metric_series(self) -> set[tuple[str, frozenset[tuple[str, str]]]]:
        """Every sample by its name and labels."""
        families = text_string_to_metric_families(self.metrics_text())
        return {(one.name, frozenset(one.labels.items())) for family in families for one in family.samples}

    def workers(self) -> list[psutil.Process]:
        """The unlearning processes of this server."""
        found = []
        for process in psutil.Process(self.pid).children(recursive=True):
            with suppress(psutil.Error):
                if "amnestic_unlearn" in process.cmdline():
                    found.append(process)
        return found

    def patch_of(self, version: int) -> Path | None:
        """A version's patch file, None for the base."""
        (record,) = (record for record in self.client.list_versions() if record.version == version)
        return record.patch_digest and self.store / "patches" / f"{record.patch_digest}.safetensors"

    def forget(self, *labels: str, **options: Any) -> Job:
        """Ask for labels to be forgotten, with settings that suit the toy."""
        return self.client.unlearn(labels, **({"method": METHOD, "gates": GATES} | options))

    def ended(self, job: Job) -> Job:
        return self.client.wait_for_job(job.job_id, timeout=JOB_SECONDS)

    def _end(self, number: signal.Signals) -> int:
        self.send(number)
        return self.wait()


class Reference:
    """What a version answers, computed from the checkpoint and a patch file by Hugging Face's classes alone."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self._model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self._original = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        self.labels = [self._model.config.id2label[index] for index in range(self._model.config.num_labels)]

    def probabilities(self, texts: Sequence[str], patch: Path | None) -> np.ndarray[Any, np.dtype[np.float32]]:
        """[texts, labels], each text by itself, so without padding."""
        return self.logits(texts, patch).sigmoid().numpy()

    def logits(self, texts: Sequence[str], patch: Path | None) -> torch.Tensor:
        """The same before they are made probabilities."""
        self._load(patch)
        limit = self._model.config.amnestic_max_tokens
        with torch.no_grad():
            logits = [
                self._model(**self._tokenizer(text, return_tensors="pt", truncation=True, max_length=limit)).logits
                for text in texts
            ]
        return torch.cat(logits)

    def _load(self, patch: Path | None) -> None:
        weights = {name: tensor.clone() for name, tensor in self._original.items()}
        if patch is not None:
            changed = load_file(patch)
            parts = ARCHITECTURES[self._model.config.model_type]
            weights[f"{parts.word_embeddings}.weight"][changed["row_ids"]] = changed["rows"]
            weights[f"{parts.head}.weight"] = changed["head.weight"]
            weights[f"{parts.head}.bias"] = changed["head.bias"]
        self._model.load_state_dict(weights)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One call of a traffic process. Times are of the machine's monotonic clock; `code` is the gRPC status."""

    started: float
    ended: float
    code: str
    pinned: int
    version: int
    documents: list[int]
    probabilities: list[list[float]]
    forgotten: list[str]


class Traffic:
    """Client processes that predict until `stop`, each with several threads, and without retries."""

    def __init__(
        self,
        target: str,
        folder: Path,
        texts: Sequence[str],
        *,
        processes: int = 2,
        threads: int = 3,
        pins: int = 0,
        most: int = 6,
        pause: float = 0.0,
    ) -> None:
        """`pins`: a third of the calls ask for a version from 1 to this; 0 for none. `most`: documents a call.

        `pause`: seconds that a thread waits after each of its calls.
        """
        (folder / "texts.json").write_text(json.dumps(list(texts)))
        self._files = [folder / f"calls-{index}.json" for index in range(processes)]
        options = (threads, pins, most, pause)
        self._processes = [
            subprocess.Popen(
                [sys.executable, *map(str, (SCRIPT, target, folder / "texts.json", file, *options, index))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment(),
            )
            for index, file in enumerate(self._files)
        ]
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"answered\n"

    def stop(self) -> list[Recorded]:
        """Every call in the order of its start."""
        for process in self._processes:
            process.communicate(timeout=60)
            assert process.returncode == 0
        calls = [Recorded(*call) for file in self._files for call in json.loads(file.read_text())]
        return sorted(calls, key=lambda call: call.started)

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.communicate(timeout=10)


class Watching(threading.Thread):
    """Reads a stream to its end: what came, and the error that ended it."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.error: grpc.RpcError | None = None
        self._stream = stream
        self.start()

    def run(self) -> None:
        try:
            for answer in self._stream:
                self.seen.append(answer)
        except grpc.RpcError as error:
            self.error = error

    def ended_with(self) -> grpc.StatusCode | None:
        """Wait for the stream's end; None if it was no error."""
        self.join(JOB_SECONDS)
        assert not self.is_alive()
        return self.error and self.error.code()


class Streaming:
    """A stream of the Open Inference Protocol that asks without pause; the ids of its requests, in order."""

    def __init__(self, channel: grpc.Channel, model: str, texts: Sequence[str]) -> None:
        self.sent: list[str] = []
        self._model, self._texts = model, texts
        self._ended = threading.Event()
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._watching = Watching(stub.ModelStreamInfer(self._requests(), timeout=JOB_SECONDS))

    @property
    def answers(self) -> list[Any]:
        return [answer.infer_response for answer in self._watching.seen]

    def ended_with(self) -> grpc.StatusCode | None:
        code = self._watching.ended_with()
        self._ended.set()
        return code

    def check(self) -> int:
        """Every request was answered in turn, until the server read no more; returns how many.

        What it had read and not begun by then has an answer that says so.
        """
        assert [answer.id for answer in self.answers] == self.sent[: len(self.answers)]
        answered = [answer for answer in self.answers if answer.outputs]
        refused = self.answers[len(answered) :]
        assert {answer.parameters["status"].string_param for answer in refused} <= {"UNAVAILABLE"}
        assert self.answers == answered + refused
        return len(answered)

    def _requests(self) -> Iterator[Any]:
        while not self._ended.is_set():
            self.sent.append(str(len(self.sent)))
            yield infer_request(self._model, self.sent[-1], self._texts[len(self.sent) % len(self._texts)])


def make_patch(bundle: Path, seed: int) -> Patch:
    """Random rows and a random head around the base's: seeds that differ answer visibly differently."""
    manifest = Manifest.read(bundle)
    generator = torch.Generator().manual_seed(seed)
    table = load_file(bundle / "embeddings.safetensors")["weight"]
    head = load_file(bundle / "head.safetensors")
    ids = torch.randperm(len(table), generator=generator)[:ROWS].sort().values
    near = [torch.randn(shape, generator=generator) for shape in ((ROWS, table.shape[1]), head["weight"].shape)]
    forgotten = (manifest.labels[seed % len(manifest.labels)],)
    weight = head["weight"] + 0.3 * near[1]
    return Patch(
        file_digest(bundle / MANIFEST), forgotten, ids, table[ids] + near[0], weight, head["bias"] - 0.1 * seed
    )


def infer_request(model: str, name: str, text: str) -> open_inference_pb2.ModelInferRequest:
    """A request of the Open Inference Protocol with one document."""
    contents = open_inference_pb2.InferTensorContents(bytes_contents=[text.encode()])
    tensor = open_inference_pb2.ModelInferRequest.InferInputTensor(
        name="text", datatype="BYTES", shape=[1], contents=contents
    )
    return open_inference_pb2.ModelInferRequest(model_name=model, id=name, inputs=[tensor])


def stage(server: Server, bundle: Path, *seeds: int, shares: Shares | None = None) -> Server:
    """Staged versions as their jobs would leave them in the store of a server that is not started yet: 2, 3, ..."""
    store = Store(server.store, file_digest(bundle / MANIFEST))
    for seed in seeds:
        patch = make_patch(bundle, seed)
        request = {"labels": patch.forgotten, "dry_run": False, "stage": True, "reason": "", "method": {}, "limits": {}}
        store.add_job(JobRecord(f"job-{seed}", None, request, StoredState.QUEUED, created_at=time.time()))
        store.start_job(f"job-{seed}", {"forgotten": patch.forgotten})
        store.stage_patch(f"job-{seed}", patch.forgotten, store.write_patch(patch.to_bytes()), {})
    if shares is not None:
        store.set_rollout(RolloutRecord(2, shares, time.time()))
    store.close()
    return server


def amnestic(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("amnestic")), *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


async def ask_by_random_names(target: str, count: int, seed: int) -> set[str]:
    """Call methods, services, models and labels that there are not, each by a name of its own; the codes of all."""
    draw = random.Random(seed)

    async def ask(kind: int) -> str:
        name = f"{draw.getrandbits(64):016x}"
        path, request = {
            0: (f"/{name}/{name}", b""),
            1: (f"/amnestic.v1.PredictionService/{name}", b""),
            2: ("/inference.GRPCInferenceService/ModelInfer", infer_request(name, name, name).SerializeToString()),
            3: ("/amnestic.v1.UnlearningService/Unlearn", UnlearnRequest(labels=[name]).SerializeToString()),
        }[kind]
        try:
            await channel.unary_unary(path)(request, timeout=60)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "OK"

    codes = set()
    async with grpc.aio.insecure_channel(target) as channel:
        for start in range(0, count, 64):
            codes.update(await asyncio.gather(*(ask(index % 4) for index in range(start, min(count, start + 64)))))
    return codes


class Flood:
    """Client processes that send `count` predictions each at once, or that many at a time for so many seconds."""

    def __init__(
        self, target: str, text: str, *, count: int, processes: int = 1, channels: int = 1, seconds: float = 0
    ) -> None:
        arguments = map(str, (FLOOD, target, count, channels, seconds, text))
        command = [sys.executable, *arguments]
        self._processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) for _ in range(processes)
        ]

    @property
    def running(self) -> bool:
        return any(process.poll() is None for process in self._processes)

    def ended(self) -> tuple[Counter[str], float, int]:
        """How many calls ended with each code, the longest one answered in seconds, and refusals without a wait."""
        found = [json.loads(process.communicate(timeout=JOB_SECONDS)[0]) for process in self._processes]
        codes = sum((Counter(one["codes"]) for one in found), Counter[str]())
        return codes, max(one["longest"] for one in found), sum(one["without_wait"] for one in found)
