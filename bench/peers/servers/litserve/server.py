"""The classifier as a LitServe API, by the pattern of its documentation: a worker batches what waits."""

import os
from pathlib import Path

import litserve
from classifier import Classifier


class Notes(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self._classifier = Classifier(Path(os.environ["MODEL"]), int(os.environ["THREADS"]))

    def decode_request(self, request: dict) -> str:
        return request["text"]

    def predict(self, texts: list[str]) -> list[list[float]]:
        return self._classifier.probabilities(texts).tolist()

    def encode_response(self, output: list[float]) -> dict:
        return {"probabilities": output}


if __name__ == "__main__":
    api = Notes(max_batch_size=int(os.environ["BATCH"]), batch_timeout=float(os.environ["WAIT_MS"]) / 1e3)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=int(os.environ["WORKERS"]), timeout=120, track_requests=False
    )
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="error")
