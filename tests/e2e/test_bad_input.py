"""Every bad request gets the right code and a sentence, and the sentence never repeats what was sent."""

from collections import Counter

import grpc
import pytest
from e2e.harness import CANARY, ask_by_random_names

from amnestic.v1 import prediction_pb2, prediction_pb2_grpc, unlearning_pb2, unlearning_pb2_grpc
from amnestic_client.errors import from_rpc
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.corpus import Document

LIMITS = ("--max-documents", "8", "--max-document-bytes", "2000")


@pytest.fixture(scope="module")
def scarce_corpus(corpus_path, tmp_path_factory):
    """The toy's, but with 9 training documents of gamma, and 5 gate documents of delta."""

    def kept(document: Document) -> bool:
        kinds = {("train", "gamma"): 9, ("gate", "delta"): 5}
        mine = [kind for kind in kinds if kind[0] == document.split and kind[1] in document.labels]
        seen.update(mine)
        return all(seen[kind] <= kinds[kind] for kind in mine)

    seen: Counter[tuple[str, str]] = Counter()
    path = tmp_path_factory.mktemp("corpus") / "scarce.jsonl"
    corpora.write([document for document in corpora.read(corpus_path) if kept(document)], path)
    return path


@pytest.fixture(scope="module")
def server(serve_for_module, scarce_corpus):
    return serve_for_module(*LIMITS, corpus=scarce_corpus)


@pytest.fixture(scope="module")
def without_corpus(serve_for_module):
    return serve_for_module(corpus=None)


@pytest.fixture(scope="module")
def call():
    """Send a request without the client's own checks; returns the error's code, its text, and its cause for programs:
    the reason, and a colon and the field if one is at fault.
    """

    def send(server, name, **fields):
        service = "Prediction" if name in ("Predict", "GetModel") else "Unlearning"
        messages = prediction_pb2 if service == "Prediction" else unlearning_pb2
        stubs = prediction_pb2_grpc if service == "Prediction" else unlearning_pb2_grpc
        with grpc.insecure_channel(server.target, options=[("grpc.enable_retries", 0)]) as channel:
            stub = getattr(stubs, f"{service}ServiceStub")(channel)
            request = getattr(messages, f"{name}Request")(**fields)
            with pytest.raises(grpc.RpcError) as failure:
                answer = getattr(stub, name)(request, timeout=20)
                list(answer if name == "WatchJob" else ())
        error = from_rpc(failure.value)
        assert CANARY.lower() not in f"{error} {failure.value.trailing_metadata()}".lower()
        cause = ":".join([error.reason, *(violation.field for violation in error.field_violations)])
        return error.code.name, error.detail, cause

    return send


BAD_PREDICTIONS = {
    "no document": ({}, "INVALID_ARGUMENT", "the call has no document", "INVALID_REQUEST:documents"),
    "empty": ({"documents": [CANARY, ""]}, "INVALID_ARGUMENT", "document 2 is empty", "INVALID_REQUEST:documents[1]"),
    "white space": (
        {"documents": [" \n\t\u2003"]},
        "INVALID_ARGUMENT",
        "document 1 is empty",
        "INVALID_REQUEST:documents[0]",
    ),
    "oversized": (
        {"documents": [CANARY * 200]},
        "INVALID_ARGUMENT",
        "document 1 is larger than 2000 bytes",
        "INVALID_REQUEST:documents[0]",
    ),
    "oversized in bytes alone": (
        {"documents": ["ü" * 1001]},
        "INVALID_ARGUMENT",
        "larger than 2000 bytes",
        "INVALID_REQUEST:documents[0]",
    ),
    "too many": (
        {"documents": [CANARY] * 9},
        "INVALID_ARGUMENT",
        "the call has more than 8 documents",
        "INVALID_REQUEST:documents",
    ),
    "unknown version": (
        {"documents": [CANARY], "version": 7},
        "NOT_FOUND",
        "there is no such version",
        "VERSION_NOT_FOUND:version",
    ),
    "negative version": (
        {"documents": [CANARY], "version": -1},
        "NOT_FOUND",
        "there is no such version",
        "VERSION_NOT_FOUND:version",
    ),
    "long routing key": (
        {"documents": [CANARY], "routing_key": CANARY * 30},
        "INVALID_ARGUMENT",
        "the routing key is longer than 256 characters",
        "INVALID_REQUEST:routing_key",
    ),
}


@pytest.mark.parametrize("name", BAD_PREDICTIONS)
def test_bad_predictions(server, call, name):
    fields, code, text, cause = BAD_PREDICTIONS[name]
    found = call(server, "Predict", **fields)
    assert (found[0], found[2]) == (code, cause)
    assert text in found[1]


BAD_FORGETTING = {
    "no label": ({}, "INVALID_ARGUMENT", "no label to forget", "INVALID_REQUEST:labels"),
    "unknown label": (
        {"labels": ["alpha", CANARY]},
        "NOT_FOUND",
        "label 2 of the request is not one of the model's",
        "LABEL_NOT_FOUND:labels[1]",
    ),
    "a label twice": (
        {"labels": ["alpha", "alpha"]},
        "INVALID_ARGUMENT",
        "a label is named twice",
        "INVALID_REQUEST:labels",
    ),
    "too few documents": (
        {"labels": ["gamma"]},
        "FAILED_PRECONDITION",
        "fewer than 10 training documents of gamma",
        "TOO_FEW_DOCUMENTS:labels[0]",
    ),
    "too few gate documents": (
        {"labels": ["delta"]},
        "FAILED_PRECONDITION",
        "fewer than 6 gate documents of delta",
        "TOO_FEW_DOCUMENTS:labels[0]",
    ),
    "long reason": (
        {"labels": ["alpha"], "reason": CANARY * 400},
        "INVALID_ARGUMENT",
        "longer than 2000 characters",
        "INVALID_REQUEST:reason",
    ),
}


@pytest.mark.parametrize("name", BAD_FORGETTING)
def test_bad_requests_to_forget(server, call, name):
    fields, code, text, cause = BAD_FORGETTING[name]
    found = call(server, "Unlearn", **fields)
    assert (found[0], found[2]) == (code, cause)
    assert text in found[1]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("k", 0),
        ("k", 65_537),
        ("epochs", 0),
        ("epochs", 1001),
        ("batch_size", 0),
        ("embedding_lr", -1e-3),
        ("head_lr", -1.0),
        ("head_lr", float("nan")),
        ("embedding_lr", float("inf")),
        ("forget_weight", -1.0),
        ("utility_weight", float("nan")),
        ("distil_weight", -0.5),
        ("seed", 2**63),
    ],
)
def test_settings_of_the_method_out_of_range(server, call, setting, value):
    method = unlearning_pb2.Method(**{setting: value})
    code, text, cause = call(server, "Unlearn", labels=["alpha"], method=method)
    assert (code, cause) == ("INVALID_ARGUMENT", f"INVALID_REQUEST:method.{setting}")
    assert text.startswith(f"{setting} must be")


@pytest.mark.parametrize(
    ("limit", "value"),
    [
        ("forget_f1_max", -0.1),
        ("forget_f1_max", 1.1),
        ("forget_auroc_max", 0.4),
        ("probe_ratio_max", float("nan")),
        ("retain_f1_drop_max", -1.5),
        ("retain_label_drop_max", 2.0),
        ("logit_difference_max", 0.0),
    ],
)
def test_gate_limits_out_of_range(server, call, limit, value):
    gates = unlearning_pb2.GateLimits(**{limit: value})
    code, text, cause = call(server, "Unlearn", labels=["alpha"], gates=gates)
    assert (code, cause) == ("INVALID_ARGUMENT", f"INVALID_REQUEST:gates.{limit}")
    assert text.startswith(f"{limit} must be")


BAD_OTHERS = {
    "rollback without a reason": (
        "Rollback",
        {"version": 1},
        "INVALID_ARGUMENT",
        "needs a reason",
        "INVALID_REQUEST:reason",
    ),
    "rollback with a blank one": (
        "Rollback",
        {"version": 1, "reason": " "},
        "INVALID_ARGUMENT",
        "needs a reason",
        "INVALID_REQUEST:reason",
    ),
    "rollback to nothing": (
        "Rollback",
        {"version": 9, "reason": CANARY},
        "NOT_FOUND",
        "no such version",
        "VERSION_NOT_FOUND:version",
    ),
    "rollback to the active": (
        "Rollback",
        {"version": 1, "reason": CANARY},
        "FAILED_PRECONDITION",
        "active already",
        "VERSION_ACTIVE:version",
    ),
    "purge of nothing": (
        "Purge",
        {"version": 9, "reason": CANARY},
        "NOT_FOUND",
        "no such version",
        "VERSION_NOT_FOUND:version",
    ),
    "purge without a reason": (
        "Purge",
        {"version": 1},
        "INVALID_ARGUMENT",
        "needs a reason",
        "INVALID_REQUEST:reason",
    ),
    "purge where nothing was forgotten": (
        "Purge",
        {"version": 1, "reason": CANARY},
        "FAILED_PRECONDITION",
        "forgotten nothing",
        "NOTHING_TO_PURGE",
    ),
    "promotion of nothing": (
        "PromoteVersion",
        {"version": 9},
        "NOT_FOUND",
        "no such version",
        "VERSION_NOT_FOUND:version",
    ),
    "promotion of the active": (
        "PromoteVersion",
        {"version": 1},
        "FAILED_PRECONDITION",
        "active already",
        "VERSION_ACTIVE:version",
    ),
    "a rollout of nothing": (
        "SetRollout",
        {"canary_share": 0.5},
        "FAILED_PRECONDITION",
        "no version is staged",
        "VERSION_NOT_STAGED:version",
    ),
    "a rollout of the active": (
        "SetRollout",
        {"version": 1, "shadow_share": 0.5},
        "FAILED_PRECONDITION",
        "active already",
        "VERSION_ACTIVE:version",
    ),
    "unknown job": ("GetJob", {"job_id": CANARY}, "NOT_FOUND", "there is no such job", "JOB_NOT_FOUND:job_id"),
    "no job": ("GetJob", {}, "NOT_FOUND", "there is no such job", "JOB_NOT_FOUND:job_id"),
    "watch an unknown job": (
        "WatchJob",
        {"job_id": CANARY},
        "NOT_FOUND",
        "there is no such job",
        "JOB_NOT_FOUND:job_id",
    ),
    "cancel an unknown job": (
        "CancelJob",
        {"job_id": CANARY},
        "NOT_FOUND",
        "there is no such job",
        "JOB_NOT_FOUND:job_id",
    ),
}


@pytest.mark.parametrize("name", BAD_OTHERS)
def test_other_bad_requests(server, call, name):
    method, fields, code, text, cause = BAD_OTHERS[name]
    found = call(server, method, **fields)
    assert (found[0], found[2]) == (code, cause)
    assert text in found[1]


def test_without_a_corpus_predictions_are_answered_and_nothing_is_forgotten(without_corpus, call, check_active):
    assert check_active(without_corpus) == 1
    code, text, cause = call(without_corpus, "Unlearn", labels=["alpha"])
    assert (code, cause) == ("FAILED_PRECONDITION", "NO_CORPUS")
    assert "--corpus" in text
    assert without_corpus.client.list_versions()[0].f1 == {}


def test_a_message_beyond_all_limits_is_refused_by_the_transport(server, call):
    code, _, cause = call(server, "Predict", documents=[CANARY * 10_000])
    assert (code, cause) == ("RESOURCE_EXHAUSTED", "")


async def test_names_that_there_are_not_make_no_series_of_metrics(server):
    assert await ask_by_random_names(server.target, 8, seed=0) == {"UNIMPLEMENTED", "NOT_FOUND"}
    before = server.metric_series()
    await ask_by_random_names(server.target, 2000, seed=1)
    assert server.metric_series() == before


def test_refused_calls_are_counted_by_code_and_leave_no_trace(server):
    """The last of the file."""
    assert server.metric("amnestic_requests_total", method="Predict", code="INVALID_ARGUMENT") == 7
    assert server.metric("amnestic_requests_total", method="Predict", code="NOT_FOUND") == 2
    assert server.metric("amnestic_documents_total") == 0
    assert server.client.list_jobs() == ()
    assert CANARY.lower() not in (server.log + server.metrics_text()).lower()
    assert "Traceback" not in server.log
