"""Python client of Amnestic, synchronous (`Client`) and asyncio (`AsyncClient`).

with Client("127.0.0.1:8001") as client:
    print(client.predict("patient in acute renal failure").predictions[0].decided)
"""

from amnestic_client.asyncio_client import AsyncClient
from amnestic_client.client import Client
from amnestic_client.errors import (
    AlreadyExists,
    AmnesticError,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from amnestic_client.receipt import SignatureError, verify_receipt
from amnestic_client.tls import Tls, TlsError
from amnestic_client.types import (
    Answer,
    ChangeReport,
    DecisionDifference,
    Gate,
    GateLimits,
    Job,
    JobState,
    JobSummary,
    Label,
    LabelScore,
    Load,
    Method,
    Model,
    Prediction,
    PredictResult,
    Progress,
    Receipt,
    Rollout,
    ServerState,
    Status,
    Version,
)

__all__ = [
    "AlreadyExists",
    "AmnesticError",
    "Answer",
    "AsyncClient",
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
    "Unavailable",
    "Version",
    "verify_receipt",
]
