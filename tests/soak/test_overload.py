"""10,000 calls at once, three times: what does not fit is refused, and everything else goes on."""

import threading
import time
from contextlib import ExitStack

import grpc
import psutil
import pytest
from e2e.harness import Flood
from grpc_health.v1 import health_pb2, health_pb2_grpc

from amnestic.v1 import unlearning_pb2, unlearning_pb2_grpc

PROCESSES, CALLS = 4, 2_500
ROUNDS = 3
# Of the first flood; those after it find the memory there.
GROWTH_BYTES = 512 * 2**20
LATER_GROWTH_BYTES = 64 * 2**20
HEALTH_SECONDS = 30.0

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


class Asking(threading.Thread):
    """Asks on a connection of its own again and again: how long each answer took, and every error's code."""

    def __init__(self, target, ask):
        super().__init__()
        self.seconds, self.codes = [], set()
        self._target, self._ask = target, ask
        self._ended = threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self._ended.set()
        self.join()

    def run(self):
        with grpc.insecure_channel(self._target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            while not self._ended.is_set():
                started = time.monotonic()
                try:
                    self._ask(channel)
                except grpc.RpcError as error:
                    self.codes.add(error.code().name)
                self.seconds.append(time.monotonic() - started)
                time.sleep(0.02)


def check_health(channel):
    health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_SECONDS)


def ask_for_a_job(channel):
    unlearning_pb2_grpc.UnlearningServiceStub(channel).GetJob(unlearning_pb2.GetJobRequest(job_id="none"), timeout=30)


def ask_to_forget_nothing(channel):
    unlearning_pb2_grpc.UnlearningServiceStub(channel).Unlearn(unlearning_pb2.UnlearnRequest(), timeout=30)


def test_10000_calls_at_once(serve, texts):
    server = serve("--max-concurrent-requests", "64")
    long = max(texts, key=len)
    process = psutil.Process(server.pid)
    for _ in range(50):
        server.client.predict(texts)
    memory = [process.memory_info().rss]
    for _ in range(ROUNDS):
        with ExitStack() as stack:
            asking = [
                stack.enter_context(Asking(server.target, ask))
                for ask in (check_health, ask_for_a_job, ask_to_forget_nothing)
            ]
            flood = Flood(server.target, long, count=CALLS, processes=PROCESSES, channels=4)
            peak = 0
            while flood.running:
                peak = max(peak, process.memory_info().rss)
                time.sleep(0.02)
            codes, longest, without_wait = flood.ended()
        memory.append(peak)
        health, jobs, forgetting = asking
        slowest = [max(one.seconds) for one in asking]
        print(
            f"{codes.total()} calls: {dict(codes)}, the longest answered took {longest:.2f} s; memory at most"
            f" {(peak - memory[0]) / 2**20:.1f} MiB more; of {[len(one.seconds) for one in asking]} checks of health,"
            f" GetJob and Unlearn the slowest took {[round(one, 2) for one in slowest]} s"
        )
        assert codes.keys() == {"OK", "RESOURCE_EXHAUSTED"}
        assert codes.total() == PROCESSES * CALLS
        assert without_wait == 0
        assert (health.codes, jobs.codes, forgetting.codes) == (set(), {"NOT_FOUND"}, {"INVALID_ARGUMENT"})
        assert server.client.predict(texts[:1])
    assert memory[1] - memory[0] < GROWTH_BYTES
    assert max(memory[2:]) - memory[1] < LATER_GROWTH_BYTES
    assert "Traceback" not in server.log
