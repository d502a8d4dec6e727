"""Every setting of the server with its default and a sentence of documentation.

Each field is a flag of `amnestic serve` (`grpc_port` is `--grpc-port`) with an environment twin
(`AMNESTIC_GRPC_PORT`).
"""

import dataclasses
import ipaddress
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEVICES = ("auto", "cpu", "cuda")
# What the address of a Unix domain socket holds on Linux.
MAX_SOCKET_PATH_BYTES = 107
MAX_INTERVAL_SECS = 86_400.0


def _setting(help_text: str, default: Any = dataclasses.MISSING) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one serving process."""

    bundle: Path = _setting("Directory made by `amnestic export`.")
    store: Path = _setting("Directory for versions, patches, jobs and the audit record; made if it is missing.")
    require_store: bool = _setting(
        "Refuse to start without a store of before: on an empty volume all that was forgotten would be back.",
        False,
    )
    signing_key: Path | None = _setting(
        "Ed25519 private key in PEM that signs receipts and the audit record; unless given, the store has its own.",
        None,
    )
    corpus: Path | None = _setting(
        "Labelled documents that unlearning trains on and gates measure with; without it nothing can be forgotten.",
        None,
    )
    host: str = _setting("Address to listen on for gRPC.", "127.0.0.1")
    grpc_port: int = _setting("Port of gRPC; 0 takes a free one.", 8001)
    operations_port: int | None = _setting(
        "Port of gRPC for what changes something, such as unlearning; the other port then answers only the rest. 0"
        " takes a free one.",
        None,
    )
    tls_cert: Path | None = _setting(
        "The server's certificate and its chain, PEM; read again when it changes. With it gRPC's ports speak TLS.", None
    )
    tls_key: Path | None = _setting("Key of the certificate, PEM, not encrypted.", None)
    tls_client_ca: Path | None = _setting(
        "Authorities, PEM, of which every client must show a certificate: mutual TLS.", None
    )
    allow_plaintext_network: bool = _setting(
        "Listen beyond loopback without TLS: whoever is on the way can read documents and change answers.", False
    )
    access: Path | None = _setting(
        "Who may call what, TOML: roles by client certificates and tokens. Without it everybody may call everything.",
        None,
    )
    max_connection_age_secs: float = _setting(
        "Age at which a connection by TLS is ended, in seconds, so that its certificate is looked at again; calls in"
        " flight have as long again. 0 for no limit.",
        3600.0,
    )
    tcp: bool = _setting("Listen on the port of gRPC; without it on the Unix domain socket alone.", True)
    uds: Path | None = _setting("Unix domain socket to listen on for gRPC; clients name it unix:PATH.", None)
    uds_mode: str = _setting("Permissions of the Unix domain socket, in octal.", "0660")
    reflection: bool = _setting("Answer gRPC server reflection, by which grpcurl and others find the services.", True)
    keepalive_secs: float = _setting(
        "Silence after which a client is pinged, in seconds; one that does not answer within 20 s is gone.", 120.0
    )
    client_ping_secs: float = _setting(
        "Shortest interval at which clients may ping, with or without calls, in seconds; one that pings more often is"
        " disconnected.",
        10.0,
    )
    monitoring_host: str | None = _setting(
        "Address to listen on for metrics and health alone, which are plain text; that of --host unless given.", None
    )
    metrics_port: int = _setting("Port of the Prometheus metrics; 0 takes a free one.", 8002)
    health_port: int | None = _setting(
        "Port of plain gRPC with the standard health service alone, for probes; 0 takes a free one.", None
    )
    device: str = _setting(
        "auto, cpu or cuda. cuda is a refusal to start where CUDA is absent, never a fall-back.", "auto"
    )
    threads: int = _setting("Threads of the encoder; 0 takes what affinity and the cgroup's quota allow.", 0)
    instances: int = _setting(
        "Passes of the encoder that may run at once on a CPU, on one thread each; 0 takes as many as threads. More than"
        " one keeps the encoder in memory twice.",
        0,
    )
    spinning: bool = _setting("Let idle encoder threads spin: a little faster alone, much slower in company.", False)
    gpu_memory_mb: int = _setting("Memory that ONNX Runtime may take on a GPU, in MiB; 0 for no limit.", 0)
    max_batch_tokens: int = _setting(
        "Most tokens, padding included, in one pass of the encoder; 0 takes 512 on a CPU, 16384 on a GPU.", 0
    )
    max_padding: float = _setting("Largest share of a row in a batch that may be padding, 0 to 1.", 0.25)
    max_concurrent_requests: int = _setting("Most documents admitted and not yet answered.", 1024)
    max_queue_tokens: int = _setting("Most tokens waiting for the encoder.", 262_144)
    max_documents: int = _setting("Most documents in one call.", 128)
    max_document_bytes: int = _setting("Largest document, in bytes of UTF-8.", 262_144)
    otel: bool = _setting(
        "Export spans by OpenTelemetry; on too where OTEL_EXPORTER_OTLP_ENDPOINT is set. Needs amnestic[otel].", False
    )
    exit_timeout_secs: float = _setting("Longest wait for accepted calls when shutting down, in seconds.", 30.0)
    exit_notice_secs: float = _setting(
        "Time from the health service's NOT_SERVING to the first call refused when shutting down, in seconds.", 0.2
    )
    worker_threads: int = _setting("Threads of an unlearning worker.", 1)
    worker_memory_mb: int = _setting("Memory that an unlearning worker may allocate, in MiB; 0 for no limit.", 16_384)
    worker_timeout_secs: float = _setting("Longest run of an unlearning worker, in seconds.", 6 * 3600.0)
    max_job_attempts: int = _setting(
        "Times that a job is begun before it is given up; one that a stop in good order ends does not count.", 3
    )

    def __post_init__(self) -> None:
        """Raise ValueError, naming the flag, unless every setting is in range."""
        _require(self.device in DEVICES, "device", f"one of {', '.join(DEVICES)}")
        for name in ("grpc_port", "metrics_port", "operations_port", "health_port"):
            _require(0 <= (getattr(self, name) or 0) <= 65_535, name, "from 0 to 65535")
        _require((self.tls_cert is None) == (self.tls_key is None), "tls_key", "given together with --tls-cert")
        _require(self.tls_client_ca is None or self.tls_cert is not None, "tls_cert", "given with --tls-client-ca")
        _require(self.tcp or self.operations_port is None, "tcp", "on with --operations-port")
        if not self.allow_plaintext_network and self.tls_cert is None and self.tcp and not _is_loopback(self.host):
            raise ValueError(
                f"--host {self.host} is beyond this machine: give --tls-cert and --tls-key, or"
                " --allow-plaintext-network if the network itself keeps others from reading along"
            )
        for name in ("threads", "instances"):
            _require(0 <= getattr(self, name) <= 1024, name, "from 0 to 1024")
        _require(0 <= self.max_padding < 1, "max_padding", "from 0 to below 1")
        for name in (
            "max_concurrent_requests",
            "max_queue_tokens",
            "max_documents",
            "max_document_bytes",
            "worker_threads",
            "max_job_attempts",
        ):
            _require(getattr(self, name) >= 1, name, "at least 1")
        _require(self.tcp or self.uds is not None, "uds", "given with --no-tcp")
        if self.uds is not None:
            size = len(os.fsencode(self.uds.absolute()))
            _require(size <= MAX_SOCKET_PATH_BYTES, "uds", f"at most {MAX_SOCKET_PATH_BYTES} bytes as an absolute path")
        _require(re.fullmatch("0?[0-7]{3}", self.uds_mode) is not None, "uds_mode", "three octal digits, such as 0660")
        for name in ("keepalive_secs", "client_ping_secs"):
            _require(0 < getattr(self, name) <= MAX_INTERVAL_SECS, name, f"above 0 to {MAX_INTERVAL_SECS:g}")
        for name in (
            "max_connection_age_secs",
            "exit_timeout_secs",
            "exit_notice_secs",
            "worker_timeout_secs",
            "worker_memory_mb",
            "gpu_memory_mb",
            "max_batch_tokens",
        ):
            _require(getattr(self, name) >= 0, name, "at least 0")

    @property
    def documents_a_call(self) -> int:
        """Most documents of one call: with more than are ever admitted it would find the queue full for ever."""
        return min(self.max_documents, self.max_concurrent_requests)

    @property
    def max_message_bytes(self) -> int:
        """Largest gRPC message: a full call of the largest documents, bounded by 64 MiB, and room for framing."""
        return min(self.max_documents * self.max_document_bytes, 64 * 2**20) + 2**16


def available_cpus() -> int:
    """CPUs that this process may use: its affinity, cut by the cgroup's quota, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(affinity, _cgroup_quota())))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # A name may mean anything, but for this one.
        return host == "localhost"


def _cgroup_quota() -> float:
    for path, period_path in (
        (Path("/sys/fs/cgroup/cpu.max"), None),
        (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
    ):
        try:
            quota, _, period = path.read_text().strip().partition(" ")
            if period_path is not None:
                period = period_path.read_text()
            return float(quota) / float(period) if quota not in ("max", "-1") else math.inf
        except (OSError, ValueError):
            continue
    return math.inf


def _require(condition: bool, name: str, allowed: str) -> None:
    if not condition:
        raise ValueError(f"--{name.replace('_', '-')} must be {allowed}")
