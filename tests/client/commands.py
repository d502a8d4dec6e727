"""What the tests of the commands share: jobs in any state, and answers that are errors."""

import threading
from collections.abc import Callable
from typing import Any

import grpc
from click.testing import Result

from amnestic.v1 import unlearning_pb2

Run = Callable[..., Result]


def job_at(state: str, job: Any, **fields: Any) -> unlearning_pb2.Job:
    changed = unlearning_pb2.Job()
    changed.CopyFrom(job)
    changed.MergeFrom(unlearning_pb2.Job(state=unlearning_pb2.JobState.Value(f"JOB_STATE_{state}"), **fields))
    return changed


def script_job(server: Any, *jobs: unlearning_pb2.Job) -> None:
    server.script("Unlearn", unlearning_pb2.UnlearnResponse(job=jobs[0]))
    server.script("WatchJob", [unlearning_pb2.WatchJobResponse(job=job) for job in jobs])


def abort(code: str, detail: str) -> Callable[[Any, grpc.ServicerContext], None]:
    return lambda request, context: context.abort(grpc.StatusCode[code], detail)


def hang(request: Any, context: grpc.ServicerContext) -> None:
    """Say nothing until the client has gone."""
    gone = threading.Event()
    if context.add_callback(gone.set):
        gone.wait(60)
    context.abort(grpc.StatusCode.ABORTED, "the client has gone")


def fits(output: str) -> bool:
    return all(len(line) <= 80 for line in output.splitlines())
