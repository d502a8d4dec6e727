"""The public surface of the client: what it exports, and that both clients offer the same."""

import dataclasses
import inspect
import subprocess
import sys

import amnestic_client
from amnestic.v1 import prediction_pb2, unlearning_pb2
from amnestic_client import AsyncClient, Client, settings

EXPORTED = (
    "AlreadyExists",
    "AmnesticError",
    "AsyncClient",
    "Cancelled",
    "ChangeReport",
    "Client",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Gate",
    "GateLimits",
    "Internal",
    "InvalidArgument",
    "Job",
    "JobState",
    "JobSummary",
    "Label",
    "LabelScore",
    "Load",
    "Method",
    "Model",
    "NotFound",
    "PredictResult",
    "Prediction",
    "Progress",
    "ResourceExhausted",
    "ServerState",
    "Status",
    "Unavailable",
    "Version",
)

METHODS = (
    "cancel_job",
    "close",
    "get_job",
    "get_model",
    "is_ready",
    "list_jobs",
    "list_versions",
    "predict",
    "rollback",
    "status",
    "unlearn",
    "wait_for_job",
    "wait_until_ready",
    "watch_job",
)


def public_methods(kind: type) -> dict[str, list[inspect.Parameter]]:
    return {
        name: list(inspect.signature(function).parameters.values())
        for name, function in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_exports() -> None:
    assert sorted(amnestic_client.__all__) == sorted(EXPORTED)
    assert all(hasattr(amnestic_client, name) for name in EXPORTED)


def test_both_clients_offer_the_same_methods() -> None:
    assert sorted(public_methods(Client)) == sorted(METHODS)
    assert public_methods(Client) == public_methods(AsyncClient)


def test_settings_of_a_job_are_those_of_the_wire() -> None:
    for kind, message in (
        (amnestic_client.Method, unlearning_pb2.Method),
        (amnestic_client.GateLimits, unlearning_pb2.GateLimits),
        (amnestic_client.Job, unlearning_pb2.Job),
        (amnestic_client.Gate, unlearning_pb2.Gate),
        (amnestic_client.Progress, unlearning_pb2.Progress),
        (amnestic_client.ChangeReport, unlearning_pb2.ChangeReport),
        (amnestic_client.Version, unlearning_pb2.Version),
        (amnestic_client.Model, prediction_pb2.GetModelResponse),
        (amnestic_client.Label, prediction_pb2.Label),
        (amnestic_client.Status, prediction_pb2.GetStatusResponse),
        (amnestic_client.Load, prediction_pb2.Load),
        (amnestic_client.JobSummary, prediction_pb2.JobSummary),
        (amnestic_client.Prediction, prediction_pb2.Prediction),
        (amnestic_client.LabelScore, prediction_pb2.LabelScore),
    ):
        fields = [field.name for field in dataclasses.fields(kind)]
        assert fields == list(message.DESCRIPTOR.fields_by_name), kind.__name__


def test_retried_methods_exist() -> None:
    for module in (prediction_pb2, unlearning_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            assert set(settings.REPEATABLE[service.full_name]) <= set(service.methods_by_name)


def test_results_are_frozen_and_slotted() -> None:
    for name in EXPORTED:
        kind = getattr(amnestic_client, name)
        if dataclasses.is_dataclass(kind):
            assert kind.__dataclass_params__.frozen, name
            assert hasattr(kind, "__slots__"), name


def test_importing_the_client_is_light() -> None:
    heavy = {"torch", "numpy", "onnxruntime", "transformers", "tokenizers", "amnestic_server", "amnestic_unlearn"}
    code = f"import sys, amnestic_client; print(sorted({heavy!r} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert output.stdout.strip() == "[]"
