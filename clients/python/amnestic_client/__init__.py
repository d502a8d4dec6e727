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
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from amnestic_client.types import (
    ChangeReport,
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
    ServerState,
    Status,
    Version,
)

__all__ = [
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
]
