"""The public surface of the client: what it exports, and that both clients offer the same."""

import dataclasses
import inspect
import subprocess
import sys

import amnestic_client
from amnestic.v1 import prediction_pb2, unlearning_pb2
from amnestic_client import AsyncClient, Client, settings
from amnestic_client.pandas import predict_frame

EXPORTED = (
    "AlreadyExists",
    "AmnesticError",
    "Answer",
    "AsyncClient",
    "CallsInSecond",
    "Cancelled",
    "ChangeReport",
    "Client",
    "DeadlineExceeded",
    "DecisionDifference",
    "FailedPrecondition",
    "FieldViolation",
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
    "PermissionDenied",
    "PredictResult",
    "Prediction",
    "Progress",
    "Receipt",
    "ResourceExhausted",
    "Rollout",
    "ServerState",
    "SignatureError",
    "Status",
    "Tls",
    "TlsError",
    "Unauthenticated",
    "Unavailable",
    "Version",
    "verify_receipt",
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
    "predict_many",
    "promote",
    "purge",
    "receipt",
    "rollback",
    "rollout",
    "set_rollout",
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
    one, other = public_methods(Client), public_methods(AsyncClient)
    assert sorted(one) == sorted(METHODS)
    # asyncio takes streams of documents too.
    documents = one["predict_many"][1]
    other["predict_many"][1] = other["predict_many"][1].replace(annotation=documents.annotation)
    assert one == other


def test_both_clients_connect_alike() -> None:
    assert inspect.signature(Client) == inspect.signature(AsyncClient)


def test_the_table_has_the_options_of_many() -> None:
    many = inspect.signature(Client.predict_many).parameters
    table = inspect.signature(predict_frame).parameters
    assert list(table) == ["client", "frame", "column", *(name for name in many if name in table)]
    assert set(many) - set(table) == {"self", "documents", "include_features", "routing_key"}


def test_settings_of_a_job_are_those_of_the_wire() -> None:
    for kind, message in (
        (amnestic_client.Method, unlearning_pb2.Method),
        (amnestic_client.GateLimits, unlearning_pb2.GateLimits),
        (amnestic_client.Job, unlearning_pb2.Job),
        (amnestic_client.Gate, unlearning_pb2.Gate),
        (amnestic_client.Progress, unlearning_pb2.Progress),
        (amnestic_client.ChangeReport, unlearning_pb2.ChangeReport),
        (amnestic_client.CallsInSecond, unlearning_pb2.CallsInSecond),
        (amnestic_client.Version, unlearning_pb2.Version),
        (amnestic_client.Rollout, unlearning_pb2.Rollout),
        (amnestic_client.DecisionDifference, unlearning_pb2.DecisionDifference),
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


def test_the_published_policy_tells_of_every_method_once() -> None:
    names = [name for config in settings.SERVICE_CONFIG["methodConfig"] for name in config["name"]]
    told = sorted(f"{name['service']}/{name['method']}" for name in names if name["service"].startswith("amnestic."))
    there = [
        f"{service.full_name}/{method}"
        for module in (prediction_pb2, unlearning_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods_by_name
    ]
    assert told == sorted(there)


def test_the_published_policy_retries_only_what_is_safe_to_repeat() -> None:
    unsafe = {
        name["method"]
        for config in settings.SERVICE_CONFIG["methodConfig"]
        for name in config["name"]
        if "retryPolicy" not in config
    }
    assert unsafe == {"CancelJob", "Rollback", "PromoteVersion", "SetRollout", "Purge"}


def test_results_are_frozen_and_slotted() -> None:
    for name in EXPORTED:
        kind = getattr(amnestic_client, name)
        if dataclasses.is_dataclass(kind):
            assert kind.__dataclass_params__.frozen, name
            assert hasattr(kind, "__slots__"), name


def test_importing_the_client_is_light() -> None:
    heavy = {
        "torch",
        "numpy",
        "pandas",
        "onnxruntime",
        "transformers",
        "tokenizers",
        "amnestic_server",
        "amnestic_unlearn",
    }
    code = f"import sys, amnestic_client; print(sorted({heavy!r} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert output.stdout.strip() == "[]"
