"""TLS and mutual TLS against a real gRPC server, with certificates of every kind."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from tls import SERVER_NAME, Certificate, issue, tls_front

from amnestic.v1 import prediction_pb2, unlearning_pb2
from amnestic_client import AsyncClient, Client, Tls, TlsError, Unavailable
from amnestic_server.cli import group

SECRET = b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"


@pytest.fixture(scope="module")
def authority() -> Certificate:
    return issue("authority")


pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture(scope="module")
def own(authority: Certificate) -> Certificate:
    """The client's certificate."""
    return issue("client", authority)


@pytest.fixture
def target(server: Any, authority: Certificate) -> Iterator[str]:
    """A port that asks for a client certificate."""
    server.script("GetModel", prediction_pb2.GetModelResponse(name="toy"))
    server.script("ListVersions", unlearning_pb2.ListVersionsResponse())
    with tls_front(server.target, issue(SERVER_NAME, authority), authority) as front:
        yield front


def model_name(kind: type, target: str, tls: Tls | None) -> str:
    async def ask() -> str:
        async with AsyncClient(target, tls=tls) as client:
            return (await client.get_model()).name

    if kind is AsyncClient:
        return asyncio.run(ask())
    with Client(target, tls=tls) as client:
        return client.get_model().name


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("as_files", [True, False])
def test_the_right_certificate_is_accepted(
    kind: type, target: str, authority: Certificate, own: Certificate, tmp_path: Path, as_files: bool
) -> None:
    if as_files:
        ca, _ = authority.write(tmp_path, "ca")
        certificate, key = own.write(tmp_path, "client")
        tls = Tls(ca=str(ca), certificate=certificate, key=key, server_name=SERVER_NAME)
    else:
        tls = Tls(ca=authority.pem, certificate=own.pem, key=own.key, server_name=SERVER_NAME)
    assert model_name(kind, target, tls) == "toy"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("which", ["none", "foreign", "expired"])
def test_another_certificate_is_refused(kind: type, target: str, authority: Certificate, which: str) -> None:
    given = {
        "none": None,
        "foreign": issue("client", issue("another authority")),
        "expired": issue("client", authority, days=-1),
    }[which]
    client = {} if given is None else {"certificate": given.pem, "key": given.key}
    with pytest.raises(Unavailable, match=r"^the server closed the connection; does it ask for a client certificate"):
        model_name(kind, target, Tls(ca=authority.pem, server_name=SERVER_NAME, **client))


def test_a_server_that_is_not_trusted_is_not_asked(target: str, authority: Certificate, own: Certificate) -> None:
    with pytest.raises(Unavailable, match=r"^the server's certificate is expired, or not from an authority"):
        model_name(Client, target, Tls(ca=issue("another authority").pem, server_name=SERVER_NAME))
    with pytest.raises(Unavailable, match=r"^the server's certificate is expired, or not from an authority"):
        model_name(Client, target, Tls())
    with pytest.raises(Unavailable, match=r"^the server's certificate is for another name; `server_name`"):
        model_name(Client, target, Tls(ca=authority.pem, certificate=own.pem, key=own.key))


def test_a_server_without_tls_is_told(server: Any, authority: Certificate) -> None:
    with pytest.raises(Unavailable, match=r"^the server does not speak TLS at this port"):
        model_name(Client, server.target, Tls(ca=authority.pem))


def test_an_absent_server_is_no_matter_of_tls(server: Any, authority: Certificate) -> None:
    server.stop()
    with pytest.raises(Unavailable, match=r"^failed to connect.*refused"):
        model_name(Client, server.target, Tls(ca=authority.pem))


def test_bytes_that_do_not_fit_are_told_by_the_first_call(target: str, authority: Certificate) -> None:
    pair = {"certificate": issue("client", authority).pem, "key": issue("client", authority).key}
    with pytest.raises(Unavailable, match=r"^the certificates cannot be used; does the key belong"):
        model_name(Client, target, Tls(ca=authority.pem, **pair))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({"ca": "missing.pem"}, "the CA missing.pem cannot be read: No such file or directory"),
        ({"ca": "."}, "the CA . cannot be read: Is a directory"),
        ({"ca": "junk"}, "the CA junk is not PEM"),
        ({"ca": b"junk"}, "the CA is not PEM"),
        ({"ca": "secret"}, "the CA holds no certificate that can be read"),
        ({"certificate": "a.pem"}, "a client certificate and its key go together: one of them is missing"),
        ({"key": "a.key"}, "a client certificate and its key go together: one of them is missing"),
        (
            {"certificate": "a.pem", "key": "missing"},
            "the client key missing cannot be read: No such file or directory",
        ),
        ({"certificate": "a.pem", "key": "b.key"}, "the client key b.key is not that of a.pem"),
        ({"certificate": "a.key", "key": "a.pem"}, "a.key and a.pem hold no certificate and key"),
        ({"certificate": "a.pem", "key": "secret"}, "a.pem and secret hold no certificate and key"),
        ({"certificate": "a.pem", "key": "encrypted"}, "the client key is encrypted, which gRPC cannot read"),
    ],
)
def test_certificates_that_are_no_good_are_told_at_once(
    kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, Any], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    first = issue("a")
    first.write(tmp_path, "a")
    issue("b").write(tmp_path, "b")
    Path("junk").write_text("junk")
    Path("secret").write_bytes(SECRET)
    Path("encrypted").write_bytes(first.encrypted_key(b"password"))
    with pytest.raises(TlsError) as caught:
        kind(tls=Tls(**files))
    assert str(caught.value) == text


def test_a_key_is_not_shown(own: Certificate) -> None:
    assert "PRIVATE" not in repr(Tls(certificate=own.pem, key=own.key))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_tls_or_credentials(kind: type) -> None:
    with pytest.raises(ValueError, match="not both"):
        kind(tls=Tls(), credentials=grpc.ssl_channel_credentials())


@pytest.mark.parametrize("by_environment", [False, True])
def test_the_command_line_speaks_tls(
    target: str, authority: Certificate, own: Certificate, tmp_path: Path, by_environment: bool
) -> None:
    ca, _ = authority.write(tmp_path, "ca")
    certificate, key = own.write(tmp_path, "client")
    options = {"server": target, "tls-ca": ca, "tls-cert": certificate, "tls-key": key, "tls-server-name": SERVER_NAME}
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    twins = {f"AMNESTIC_{name.upper().replace('-', '_')}": str(value) for name, value in options.items()}
    arguments, environment = ([], twins) if by_environment else (flags, {})
    result = CliRunner().invoke(group, ["versions", "--json", *arguments], env=environment)
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == []


def test_the_command_line_tells_of_bad_certificates(target: str, own: Certificate, tmp_path: Path) -> None:
    def error(*arguments: str) -> str:
        result = CliRunner().invoke(group, ["versions", "--server", target, *arguments])
        assert result.exit_code != 0
        return result.stderr.splitlines()[-1]

    certificate, key = map(str, own.write(tmp_path, "client"))
    assert error("--tls-cert", certificate) == (
        "Error: a client certificate and its key go together: one of them is missing"
    )
    assert "does not exist" in error("--tls-ca", str(tmp_path / "missing.pem"))
    assert "the server's certificate is expired, or not from an authority" in error("--tls")
    assert "not from an authority" in error("--tls-cert", certificate, "--tls-key", key)
