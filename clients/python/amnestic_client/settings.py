"""Every default of the client, and the options of its channel.

Times are in seconds unless the name says otherwise.
"""

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

TARGET = "127.0.0.1:8001"

# The published retry policy and the longest wait for an answer, by method; clients in other languages use the same
# file. A call always has a deadline. Only a watch has none: a job may take hours.
SERVICE_CONFIG: dict[str, Any] = json.loads((resources.files("amnestic") / "service_config.json").read_text())
READY_TIMEOUT = 60.0

# Of a run over many documents: each batch's longest wait for its answers, repetitions and pauses included.
PREDICT_MANY_TIMEOUT = 120.0
# A batch is small enough to be answered in time on a few cores, and in bytes below the 4 MiB that gRPC allows a message
# by default, which a proxy on the way may still hold to.
BATCH_DOCUMENTS = 32
BATCH_BYTES = 3 * 2**20
CONCURRENCY = 4
# Pauses before a batch is sent to a full server again, unless the server says for how long to wait.
FULL_FIRST_PAUSE = 0.1
FULL_LONGEST_PAUSE = 5.0

# A readiness probe is short, so that a server which hangs is asked again.
PROBE_TIMEOUT = 1.0
PROBE_INTERVAL = 0.1

# A broken watch is taken up again this often in a row, 0.25 s to 5 s apart, about two minutes in all: time
# for a server to restart, load its bundle and warm up.
WATCH_RECONNECTS = 30
WATCH_FIRST_PAUSE = 0.25
WATCH_LONGEST_PAUSE = 5.0

MAX_MESSAGE_BYTES = 128 * 2**20

# gRPC keeps what it may have to send again, so that a full call of documents can be; by default only 256 KiB.
MAX_RETRY_BYTES = 8 * 2**20

# While a call is open. The server allows a ping every 10 seconds.
KEEPALIVE_MS = 60_000
KEEPALIVE_TIMEOUT_MS = 20_000


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
        ("grpc.per_rpc_retry_buffer_size", MAX_RETRY_BYTES),
        ("grpc.service_config", _service_config()),
        ("grpc.service_config_disable_resolution", 1),
    )


def timeout_of(path: str) -> float | None:
    """Seconds that a call of /SERVICE/METHOD may take unless told otherwise; None for no limit."""
    for method in SERVICE_CONFIG["methodConfig"]:
        if any(path == f"/{name['service']}/{name['method']}" for name in method["name"]):
            return float(method["timeout"].removesuffix("s")) if "timeout" in method else None
    raise KeyError(path)


def _service_config() -> str:
    """Without the timeouts, which would cut those that callers ask for: every call brings its own."""
    methods = [{key: value for key, value in one.items() if key != "timeout"} for one in SERVICE_CONFIG["methodConfig"]]
    return json.dumps(SERVICE_CONFIG | {"methodConfig": methods})
