"""Settings: ranges, the flag and the environment twin of each, and how many CPUs there are to use."""

import dataclasses
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from amnestic_server import app
from amnestic_server import settings as settings_module
from amnestic_server.cli import serve as serve_command
from amnestic_server.settings import Settings, available_cpus

PATHS = {"bundle": Path("b"), "store": Path("s")}
FIELDS = {field.name: field for field in dataclasses.fields(Settings)}


@pytest.fixture
def taken(monkeypatch):
    """The settings that `amnestic serve` would serve with."""
    runner = CliRunner()

    async def keep(settings, *, as_json):
        assert not as_json
        found.append(settings)

    def run(*arguments, **variables):
        monkeypatch.setattr(app, "serve", keep)
        outcome = runner.invoke(serve_command.command, arguments, env=variables)
        assert outcome.exit_code == 0, outcome.output
        return found.pop()

    found = []
    return run


def test_the_defaults_of_the_flags_are_those_of_the_settings(taken):
    assert taken("--bundle", "b", "--store", "s") == Settings(**PATHS)


def test_the_settings_of_tls_go_together(taken):
    files = {"tls_cert": Path("c"), "tls_key": Path("k"), "tls_client_ca": Path("a")}
    flags = [text for name, path in files.items() for text in (f"--{name.replace('_', '-')}", str(path))]
    variables = {f"AMNESTIC_{name.upper()}": str(path) for name, path in files.items()}
    paths = ("--bundle", "b", "--store", "s")
    assert taken(*paths, *flags) == taken(*paths, **variables) == Settings(**PATHS, **files)
    for alone in (("tls_cert",), ("tls_key",), ("tls_client_ca",), ("tls_cert", "tls_client_ca")):
        with pytest.raises(ValueError, match=r"--tls-(key|cert) must be given"):
            Settings(**PATHS, **{name: files[name] for name in alone})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.test", ""])
def test_beyond_loopback_there_must_be_tls_or_a_flag_that_says_so(host):
    with pytest.raises(ValueError, match="is beyond this machine"):
        Settings(**PATHS, host=host)
    assert Settings(**PATHS, host=host, allow_plaintext_network=True).host == host
    assert Settings(**PATHS, host=host, tls_cert=Path("c"), tls_key=Path("k")).host == host
    assert Settings(**PATHS, host=host, tcp=False, uds=Path("u")).host == host
    assert Settings(**PATHS, monitoring_host=host).monitoring_host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_on_loopback_plain_text_is_fine(host):
    assert Settings(**PATHS, host=host).host == host


ALONE = [name for name in FIELDS if name not in ("bundle", "store", "tls_cert", "tls_key", "tls_client_ca")]


@pytest.mark.parametrize("name", ALONE)
def test_every_setting_has_a_flag_an_environment_twin_and_a_sentence(taken, name):
    values = {
        "corpus": Path("c"),
        "uds": Path("u"),
        "signing_key": Path("k"),
        "host": "::1",
        "device": "cpu",
        "spinning": True,
        "otel": True,
        "monitoring_host": "::1",
        "allow_plaintext_network": True,
        "access": Path("a"),
        "require_store": True,
    }
    value = (values | {"max_padding": 0.5, "uds_mode": "0600", "tcp": True, "reflection": False}).get(name, 7)
    flag = f"--{name.replace('_', '-')}"
    arguments = ["--bundle", "b", "--store", "s"]
    switches = {True: (flag,), False: (f"--no-{flag[2:]}",)}
    by_flag = taken(*arguments, *(switches[value] if isinstance(value, bool) else (flag, str(value))))
    by_variable = taken(*arguments, **{f"AMNESTIC_{name.upper()}": str(value)})
    assert by_flag == by_variable == Settings(**PATHS | {name: value})
    assert FIELDS[name].metadata["help"].endswith(".")


def test_a_flag_wins_over_the_environment(taken):
    found = taken("--bundle", "b", "--store", "s", "--grpc-port", "1", AMNESTIC_GRPC_PORT="2", AMNESTIC_STORE="x")
    assert (found.grpc_port, found.store) == (1, Path("s"))


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("grpc_port", (0, 65_535), (-1, 65_536)),
        ("metrics_port", (0, 65_535), (-1, 65_536)),
        ("operations_port", (None, 0, 65_535), (-1, 65_536)),
        ("health_port", (None, 0, 65_535), (-1, 65_536)),
        ("max_connection_age_secs", (0.0, 1.5), (-1.0, float("nan"))),
        ("device", ("auto", "cpu", "cuda"), ("gpu", "")),
        ("threads", (0, 1024), (-1, 1025)),
        ("max_padding", (0.0, 0.99), (-0.1, 1.0, float("nan"))),
        ("max_batch_tokens", (0, 1), (-1,)),
        ("gpu_memory_mb", (0,), (-1,)),
        ("instances", (0, 1024), (-1, 1025)),
        ("max_concurrent_requests", (1,), (0,)),
        ("max_queue_tokens", (1,), (0,)),
        ("max_documents", (1,), (0, -5)),
        ("max_document_bytes", (1,), (0,)),
        ("worker_threads", (1,), (0,)),
        ("max_job_attempts", (1,), (0,)),
        ("exit_timeout_secs", (0.0,), (-1.0, float("nan"))),
        ("worker_timeout_secs", (0.0,), (-1.0,)),
        ("worker_memory_mb", (0,), (-1,)),
        ("exit_notice_secs", (0.0,), (-1.0, float("nan"))),
        ("keepalive_secs", (0.5, 86_400.0), (0.0, -1.0, 86_401.0, float("nan"))),
        ("client_ping_secs", (0.5, 86_400.0), (0.0, -1.0, 86_401.0, float("nan"))),
        ("uds", (None, Path("/" + 106 * "a")), (Path("/" + 107 * "a"), Path("/" + 54 * "é"))),
        ("uds_mode", ("0660", "600"), ("0x10", "9", "0680", "10660", "")),
    ],
)
def test_ranges(name, good, bad):
    for value in good:
        assert getattr(Settings(**PATHS, **{name: value}), name) == value
    for value in bad:
        with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} must be"):
            Settings(**PATHS, **{name: value})


def test_without_tcp_there_must_be_a_socket():
    assert Settings(**PATHS, tcp=False, uds=Path("u")).uds == Path("u")
    with pytest.raises(ValueError, match="--uds must be given with --no-tcp"):
        Settings(**PATHS, tcp=False)


def test_a_full_call_of_the_largest_documents_fits_in_a_message_up_to_a_bound():
    assert Settings(**PATHS, max_documents=2, max_document_bytes=1000).max_message_bytes > 2000
    assert Settings(**PATHS, max_documents=10**6, max_document_bytes=10**6).max_message_bytes < 65 * 2**20


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of eight CPUs whose cgroup files say what the test wants."""

    def pretend(**files):
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        real = Path

        def redirected(path):
            return tmp_path / real(path).name.replace(".", "_") if str(path).startswith("/sys/") else real(path)

        monkeypatch.setattr(settings_module, "Path", redirected)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
        return available_cpus()

    return pretend


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 8),
        ({"cpu_max": "max 100000\n"}, 8),
        ({"cpu_max": "200000 100000\n"}, 2),
        ({"cpu_max": "150000 100000\n"}, 2),
        ({"cpu_max": "10000 100000\n"}, 1),
        ({"cpu_max": "9900000 100000\n"}, 8),
        ({"cpu_max": "nonsense"}, 8),
        ({"cpu_max": ""}, 8),
        ({"cpu_cfs_quota_us": "-1\n", "cpu_cfs_period_us": "100000\n"}, 8),
        ({"cpu_cfs_quota_us": "300000\n", "cpu_cfs_period_us": "100000\n"}, 3),
        ({"cpu_cfs_quota_us": "300000\n"}, 8),
    ],
)
def test_cpus_are_those_of_affinity_and_quota(machine, files, cpus):
    assert machine(**files) == cpus
