"""A client process that predicts: `traffic.py TARGET TEXTS OUT THREADS PINS MOST PAUSE SEED`.

Prints one line after its first answers, and writes every call to OUT at the end of its standard input. It talks raw
gRPC without retries, so that a call that fails is seen. A call has at most MOST documents, and
PAUSE seconds pass after it.
"""

import json
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc

from amnestic.v1 import prediction_pb2, prediction_pb2_grpc

SECONDS = 30


def predict_forever(
    stub: Any, texts: list[str], pins: int, most: int, pause: float, seed: int, stop: threading.Event, calls: list[Any]
) -> None:
    random_ = random.Random(seed)
    while not stop.is_set():
        documents = [random_.randrange(len(texts)) for _ in range(random_.randint(1, most))]
        pinned = random_.randint(1, pins) if pins and random_.random() < 1 / 3 else 0
        request = prediction_pb2.PredictRequest(documents=[texts[index] for index in documents], version=pinned)
        started = time.monotonic()
        try:
            answer = stub.Predict(request, timeout=SECONDS)
        except grpc.RpcError as error:
            calls.append((started, time.monotonic(), error.code().name, pinned, 0, documents, [], []))
            time.sleep(0.01)
            continue
        probabilities = [[score.probability for score in one.scores] for one in answer.predictions]
        forgotten = [score.label for score in answer.predictions[0].scores if score.forgotten]
        calls.append((started, time.monotonic(), "OK", pinned, answer.version, documents, probabilities, forgotten))
        stop.wait(pause)


def main(target: str, texts_file: str, out: str, threads: str, pins: str, most: str, pause: str, seed: str) -> None:
    texts = json.loads(Path(texts_file).read_text())
    calls: list[Any] = []
    stop = threading.Event()
    with grpc.insecure_channel(target, options=[("grpc.enable_retries", 0)]) as channel:
        stub = prediction_pb2_grpc.PredictionServiceStub(channel)
        workers = [
            threading.Thread(
                target=predict_forever,
                args=(stub, texts, int(pins), int(most), float(pause), 100 * int(seed) + n, stop, calls),
            )
            for n in range(int(threads))
        ]
        for worker in workers:
            worker.start()
        while len(calls) < len(workers):
            time.sleep(0.005)
        print("answered", flush=True)
        sys.stdin.read()
        stop.set()
        for worker in workers:
            worker.join()
    Path(out).write_text(json.dumps(calls))


if __name__ == "__main__":
    main(*sys.argv[1:])
