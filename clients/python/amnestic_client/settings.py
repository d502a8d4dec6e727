"""Every default of the client, and the options of its channel.

Times are in seconds unless the name says otherwise.
"""

import json
from collections.abc import Sequence
from typing import Any

TARGET = "127.0.0.1:8001"

# Longest wait for an answer; a call always has a deadline. Only a watch has none: a job may take hours.
PREDICT_TIMEOUT = 10.0
QUERY_TIMEOUT = 10.0
UNLEARN_TIMEOUT = 10.0
CANCEL_TIMEOUT = 10.0
# A rollback answers only when no call to the version left is in flight.
ROLLBACK_TIMEOUT = 60.0
READY_TIMEOUT = 60.0

# A readiness probe is short, so that a server which hangs is asked again.
PROBE_TIMEOUT = 1.0
PROBE_INTERVAL = 0.1

# A broken watch is taken up again this often in a row, 0.25 s to 5 s apart, about two minutes in all: time
# for a server to restart, load its bundle and warm up.
WATCH_RECONNECTS = 30
WATCH_FIRST_PAUSE = 0.25
WATCH_LONGEST_PAUSE = 5.0

MAX_MESSAGE_BYTES = 128 * 2**20

# gRPC servers count pings that come more often than every 5 minutes as an attack, unless told otherwise.
KEEPALIVE_MS = 330_000
KEEPALIVE_TIMEOUT_MS = 20_000

# Sending these again changes nothing more. Unlearn is among them because its request id makes a repetition
# answer with the first one's job. Rollback and CancelJob are not: a repetition could undo, or be refused for,
# what the first had done.
REPEATABLE = {
    "amnestic.v1.PredictionService": ("Predict", "GetModel", "GetStatus"),
    "amnestic.v1.UnlearningService": ("Unlearn", "WatchJob", "GetJob", "ListJobs", "ListVersions"),
}
RETRY_POLICY = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def channel_options() -> Sequence[tuple[str, Any]]:
    """Arguments of the gRPC channel, the same for the sync and for the asyncio client."""
    return (
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        # A server that restarts is found again within a second, not after gRPC's usual two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # Clinical text must not take a detour because a proxy happens to be set in the environment.
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config", _service_config()),
        ("grpc.service_config_disable_resolution", 1),
    )


def _service_config() -> str:
    names = [{"service": service, "method": method} for service, methods in REPEATABLE.items() for method in methods]
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": RETRY_POLICY}]})
