"""The servers that are compared: how each is started, called, read, and given another model.

Each is set up as its own documentation advises for speed on a CPU; the sentence beside it says how.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from amnestic.oip import open_inference_pb2 as oip
from amnestic.v1 import prediction_pb2 as prediction
from amnestic_client import Client
from amnestic_server.bench import chains
from amnestic_server.bench.callers import write_messages
from amnestic_server.bundle import Bundle
from amnestic_server.settings import available_cpus

HERE = Path(__file__).parent
# Not on the path of modules, where a folder named as a package would stand in for it.
SERVERS = HERE / "servers"
# Most documents that a peer computes at once, and how long it may wait for them: what its examples have.
BATCH = 32
WAIT_MS = 5
MODEL = "notes"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer runs: its environment's folder, a folder of its own, and a free port with two behind it.

    `models` are two folders, each with a `bundle` of Amnestic's and the Hugging Face `checkpoint` that it was made of:
    the same encoder under two heads.
    """

    environment: Path
    folder: Path
    port: int
    models: tuple[Path, Path]

    @property
    def python(self) -> str:
        return str(self.environment / "bin" / "python")

    @property
    def current(self) -> Path:
        """A link to the model that is served, or is to be served from the next load on."""
        return self.folder / "current"

    def choose(self, model: int) -> None:
        link = self.folder / "next"
        link.symlink_to(self.models[model])
        link.replace(self.current)


class Peer(ABC):
    """One kind of server. `advice` says how its documentation has it set up, and so it is here."""

    name: str
    distribution: str
    advice: str

    @abstractmethod
    def command(self, place: Place) -> list[str]: ...

    def variables(self, place: Place) -> dict[str, str]:
        return {}

    def prepare(self, place: Place) -> None:  # noqa: B027  (some read nothing)
        """Write what the server reads."""

    @abstractmethod
    def caller(self, place: Place, texts: Sequence[str]) -> tuple[str, dict[str, Any]]:
        """The load's caller and its arguments."""

    @abstractmethod
    def ask(self, place: Place, text: str) -> list[float]:
        """The probabilities of one document, in label order. Raises OSError, ValueError or grpc.RpcError."""

    def ask_checkpoint(self, place: Place, text: str) -> list[float]:
        """The same of the checkpoint's own weights, where others may be served beside them."""
        return self.ask(place, text)

    def replace(self, place: Place, restart: Callable[[], None]) -> None:
        """Have the model of `place.current`, which has just changed, served in place of the one before."""
        restart()

    def version(self, place: Place) -> str:
        code = f"from importlib.metadata import version; print(version({self.distribution!r}))"
        return subprocess.run([place.python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


class _Grpc(Peer, ABC):
    method: str

    @abstractmethod
    def message(self, text: str) -> bytes: ...

    @abstractmethod
    def read(self, answer: bytes) -> list[float]: ...

    def target(self, place: Place) -> str:
        return f"127.0.0.1:{place.port}"

    def caller(self, place: Place, texts: Sequence[str]) -> tuple[str, dict[str, Any]]:
        messages = place.folder / "messages.json"
        write_messages([self.message(text) for text in texts], messages)
        return "amnestic_server.bench.callers:unary", {
            "target": self.target(place),
            "method": self.method,
            "messages": str(messages),
        }

    def ask(self, place: Place, text: str) -> list[float]:
        with grpc.insecure_channel(self.target(place)) as channel:
            call: Any = channel.unary_unary(self.method)
            return self.read(call(self.message(text), timeout=10))


class _OpenInference(_Grpc):
    method = "/inference.GRPCInferenceService/ModelInfer"
    shape: tuple[int, ...]

    def message(self, text: str) -> bytes:
        document = oip.ModelInferRequest.InferInputTensor(
            name="text",
            datatype="BYTES",
            shape=self.shape,
            contents=oip.InferTensorContents(bytes_contents=[text.encode()]),
        )
        return oip.ModelInferRequest(model_name=MODEL, inputs=[document]).SerializeToString()

    def read(self, answer: bytes) -> list[float]:
        response = oip.ModelInferResponse.FromString(answer)
        if response.raw_output_contents:
            return np.frombuffer(response.raw_output_contents[0], dtype=np.float32).tolist()
        contents = response.outputs[0].contents
        return list(contents.fp32_contents or contents.fp64_contents)

    def replace(self, place: Place, restart: Callable[[], None]) -> None:
        _post(f"http://127.0.0.1:{place.port + 1}/v2/repository/models/{MODEL}/load", b"{}")


class _Http(Peer, ABC):
    path: str

    @abstractmethod
    def body(self, text: str) -> dict[str, Any]: ...

    @abstractmethod
    def read(self, answer: Any) -> list[float]: ...

    def url(self, place: Place) -> str:
        return f"http://127.0.0.1:{place.port}{self.path}"

    def caller(self, place: Place, texts: Sequence[str]) -> tuple[str, dict[str, Any]]:
        bodies = place.folder / "bodies.json"
        bodies.write_text(json.dumps([json.dumps(self.body(text)) for text in texts]))
        return "callers:http", {"url": self.url(place), "bodies": str(bodies)}

    def ask(self, place: Place, text: str) -> list[float]:
        return self.read(json.loads(_post(self.url(place), json.dumps(self.body(text)).encode())))


class Amnestic(_Grpc):
    name = distribution = "amnestic"
    advice = "as it comes"
    method = "/amnestic.v1.PredictionService/Predict"

    def prepare(self, place: Place) -> None:
        from amnestic_server import bundle as bundles

        # Its own way to another model is another version: two patches, the second of which is rolled back.
        loaded: Bundle = bundles.load(place.models[0] / "bundle")
        chains.fill(place.folder / "store", loaded, 2)

    def command(self, place: Place) -> list[str]:
        bundle, store = place.models[0] / "bundle", place.folder / "store"
        return [
            *(place.python, "-m", "amnestic_server.cli", "serve", "--bundle", str(bundle), "--store", str(store)),
            *("--grpc-port", str(place.port), "--metrics-port", str(place.port + 1), "--log-level", "error"),
        ]

    def message(self, text: str) -> bytes:
        return prediction.PredictRequest(documents=[text]).SerializeToString()

    def read(self, answer: bytes) -> list[float]:
        (one,) = prediction.PredictResponse.FromString(answer).predictions
        return [score.probability for score in one.scores]

    def ask_checkpoint(self, place: Place, text: str) -> list[float]:
        with Client(self.target(place)) as client:
            (one,) = client.predict(text, version=1).predictions
            return [score.probability for score in one.scores]

    def replace(self, place: Place, restart: Callable[[], None]) -> None:
        with Client(self.target(place)) as client:
            client.rollback(2, "benchmark", restore_forgotten=True)

    def version(self, place: Place) -> str:
        return metadata.version("amnestic")


class MLServer(_OpenInference):
    name = "mlserver"
    distribution = "mlserver"
    advice = (
        "custom runtime, adaptive batching (max_batch_size, max_batch_time), parallel_workers = processors with one"
        " thread each"
    )
    shape = (1, 1)

    def prepare(self, place: Place) -> None:
        model = place.folder / MODEL
        model.mkdir()
        for file in (SERVERS / "mlserver" / "model.py", HERE / "classifier.py"):
            shutil.copy(file, model)
        settings = {"http_port": place.port + 1, "grpc_port": place.port, "metrics_port": place.port + 2}
        settings |= {"host": "127.0.0.1", "parallel_workers": available_cpus(), "debug": False}
        (place.folder / "settings.json").write_text(json.dumps(settings))
        runtime = {"name": MODEL, "implementation": "model.Notes"}
        batching = {"max_batch_size": BATCH, "max_batch_time": WAIT_MS / 1e3}
        (model / "model-settings.json").write_text(json.dumps(runtime | batching))

    def command(self, place: Place) -> list[str]:
        return [str(place.environment / "bin" / "mlserver"), "start", str(place.folder)]

    def variables(self, place: Place) -> dict[str, str]:
        return {
            "MODEL": str(place.current / "bundle"),
            "THREADS": "1",
            "PYTHONPATH": str(place.folder / MODEL),
        }


class Triton(_OpenInference):
    name = "triton"
    distribution = "nvidia-pytriton"
    advice = (
        "Python backend, dynamic batching (largest batch, queue delay), as many instances as processors"
        " with one thread each"
    )
    shape = (1, 1)

    def prepare(self, place: Place) -> None:
        model = place.folder / "repository" / MODEL
        (model / "1").mkdir(parents=True)
        for file in (SERVERS / "triton" / "model.py", HERE / "classifier.py"):
            shutil.copy(file, model / "1")
        (model / "config.pbtxt").write_text(
            f"""backend: "python"
max_batch_size: {BATCH}
input [{{ name: "text" data_type: TYPE_STRING dims: [1] }}]
output [{{ name: "probabilities" data_type: TYPE_FP32 dims: [-1] }}]
dynamic_batching {{ max_queue_delay_microseconds: {WAIT_MS * 1000} }}
instance_group [{{ count: {available_cpus()} kind: KIND_CPU }}]
parameters {{ key: "bundle" value: {{ string_value: "{place.current / "bundle"}" }} }}
parameters {{ key: "threads" value: {{ string_value: "1" }} }}
"""
        )

        # The wheel keeps a stub of the backend for each Python; the server looks for one beside the library.
        shutil.copytree(self._root(place) / "backends" / "python", place.folder / "backends" / "python")
        stubs = self._root(place) / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
        shutil.copy(stubs / "triton_python_backend_stub", place.folder / "backends" / "python")

    def command(self, place: Place) -> list[str]:
        return [
            *(str(self._root(place) / "bin" / "tritonserver"), "--model-repository", str(place.folder / "repository")),
            *("--backend-directory", str(place.folder / "backends"), "--model-control-mode", "explicit"),
            *("--load-model", MODEL, "--grpc-address", "127.0.0.1", "--grpc-port", str(place.port)),
            *("--http-address", "127.0.0.1", "--http-port", str(place.port + 1), "--allow-metrics", "false"),
            *("--log-info", "false", "--disable-auto-complete-config"),
        ]

    def variables(self, place: Place) -> dict[str, str]:
        packages = self._root(place).parents[1]
        model = place.folder / "repository" / MODEL / "1"
        # The stub is linked against the wheel's libraries, by a path that its copy has left, and this Python's.
        libraries = [str(packages / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR") or ""]
        return {"MODEL_PATH": f"{packages}{os.pathsep}{model}", "LD_LIBRARY_PATH": os.pathsep.join(libraries)}

    def _root(self, place: Place) -> Path:
        (root,) = place.environment.glob("lib/python*/site-packages/pytriton/tritonserver")
        return root


class LitServe(_Http):
    name = distribution = "litserve"
    advice = "max_batch_size and batch_timeout, workers_per_device = processors with one thread each"
    path = "/predict"

    def command(self, place: Place) -> list[str]:
        return [place.python, str(SERVERS / "litserve" / "server.py")]

    def variables(self, place: Place) -> dict[str, str]:
        return {
            **{"MODEL": str(place.current / "bundle"), "THREADS": "1", "PYTHONPATH": str(HERE)},
            **{"BATCH": str(BATCH), "WAIT_MS": str(WAIT_MS), "WORKERS": str(available_cpus()), "PORT": str(place.port)},
        }

    def body(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def read(self, answer: Any) -> list[float]:
        return list(answer["probabilities"])


class Infinity(_Http):
    name = "infinity"
    distribution = "infinity-emb"
    advice = "`infinity_emb v2` with the torch engine, its batch size, no warm-up, all threads"
    path = "/classify"

    def command(self, place: Place) -> list[str]:
        return [
            *(str(place.environment / "bin" / "infinity_emb"), "v2", "--model-id", str(place.current / "checkpoint")),
            *("--served-model-name", MODEL, "--engine", "torch", "--device", "cpu", "--dtype", "float32"),
            *("--batch-size", str(BATCH), "--host", "127.0.0.1", "--port", str(place.port), "--no-model-warmup"),
            *("--log-level", "error"),
        ]

    def variables(self, place: Place) -> dict[str, str]:
        return {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}

    def body(self, text: str) -> dict[str, Any]:
        return {"model": MODEL, "input": [text], "raw_scores": True}

    def read(self, answer: Any) -> list[float]:
        scores = {one["label"]: one["score"] for one in answer["data"][0]}
        return [scores[label] for label in sorted(scores)]


class TransformersGrpc(_Grpc):
    name = "transformers and grpc"
    distribution = "transformers"
    advice = "the text-classification pipeline behind grpc's thread pool, no batching, all threads"
    method = "/notes.Notes/Predict"

    def command(self, place: Place) -> list[str]:
        return [place.python, str(SERVERS / "transformers_grpc" / "server.py")]

    def variables(self, place: Place) -> dict[str, str]:
        return {
            **{"CHECKPOINT": str(place.current / "checkpoint"), "PORT": str(place.port)},
            **{"PROCESSORS": str(available_cpus()), "HF_HUB_OFFLINE": "1"},
        }

    def message(self, text: str) -> bytes:
        return json.dumps({"text": text}).encode()

    def read(self, answer: bytes) -> list[float]:
        return list(json.loads(answer))


PEERS: dict[str, Peer] = {
    peer.name.split()[0]: peer
    for peer in (Amnestic(), Triton(), MLServer(), LitServe(), Infinity(), TransformersGrpc())
}


def _post(url: str, body: bytes) -> bytes:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310  (our own address)
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        data: bytes = answer.read()
    return data
