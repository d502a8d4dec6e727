"""TLS of a connection: where certificates come from, and what a handshake that failed says to people."""

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from amnestic_client import settings
from amnestic_client.errors import AmnesticError, Unavailable

Pem: TypeAlias = str | os.PathLike[str] | bytes

# What gRPC says of a handshake, and what that means here. Of a client certificate that a server refuses, TLS 1.3 tells
# the client nothing: the connection is closed.
_MEANINGS = {
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate is expired, or not from an authority that is trusted here",
    "Hostname Verification Check failed": "the server's certificate is for another name; `server_name` says which",
    "WRONG_VERSION_NUMBER": "the server does not speak TLS at this port",
    "Failed to create security handshaker": "the certificates cannot be used; does the key belong to the certificate?",
    "Socket closed": "the server closed the connection; does it ask for a client certificate, or refuse this one?",
    "Connection reset": "the server closed the connection; does it ask for a client certificate, or refuse this one?",
}


class TlsError(ValueError):
    """A certificate or key cannot be read or used. The text names it and never repeats its content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Speak TLS. Each of `ca`, `certificate` and `key` is PEM: the path of a file, or its bytes.

    `ca`: the authorities that the server's certificate may come from; None for those that gRPC carries.
    `certificate`, `key`: the client's own, for a server that asks for one (mTLS). The certificate may be followed by
    its chain; the key is not encrypted.
    `server_name`: the name in the server's certificate, where it is not the host of the target.
    """

    ca: Pem | None = None
    certificate: Pem | None = None
    key: Pem | None = field(default=None, repr=False)
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read what is given; raises TlsError, so that nothing is left for the first call to find out."""
        # gRPC ends the whole process for a certificate without a key.
        if (self.certificate is None) != (self.key is None):
            raise TlsError("a client certificate and its key go together: one of them is missing")
        ca, certificate, key = (
            _read(pem, what)
            for pem, what in ((self.ca, "CA"), (self.certificate, "client certificate"), (self.key, "client key"))
        )
        if ca is not None:
            _check_ca(ca)
        _check_pair(self.certificate, self.key)
        return grpc.ssl_channel_credentials(ca, key, certificate)

    def options(self) -> tuple[tuple[str, str], ...]:
        """Channel arguments that go with the credentials."""
        return () if self.server_name is None else (("grpc.ssl_target_name_override", self.server_name),)


def secured(
    tls: Tls | None, credentials: grpc.ChannelCredentials | None
) -> tuple[grpc.ChannelCredentials | None, list[tuple[str, Any]]]:
    """Credentials and arguments of a channel, of which a caller gives `tls`, gRPC's own credentials, or neither."""
    options = [*settings.channel_options()]
    if tls is None:
        return credentials, options
    if credentials is not None:
        raise ValueError("give tls or credentials, not both")
    return tls.credentials(), [*options, *tls.options()]


def explained(error: AmnesticError) -> AmnesticError:
    """An error of a TLS connection, with what it means in front where the connection was never made."""
    if isinstance(error, Unavailable) and error.detail.startswith("failed to connect"):
        for sign, meaning in _MEANINGS.items():
            if sign in error.detail:
                return Unavailable(f"{meaning} ({error.detail})")
    return error


def _read(pem: Pem | None, what: str) -> bytes | None:
    if pem is None:
        return None
    if isinstance(pem, bytes):
        name, data = "", pem
    else:
        name = f" {os.fspath(pem)}"
        try:
            data = Path(pem).read_bytes()
        except OSError as error:
            raise TlsError(f"the {what}{name} cannot be read: {error.strerror}") from None
    if b"-----BEGIN " not in data:
        raise TlsError(f"the {what}{name} is not PEM")
    return data


def _check_ca(ca: bytes) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=ca.decode("ascii", "replace"))
    except ssl.SSLError:
        raise TlsError("the CA holds no certificate that can be read") from None


def _check_pair(certificate: Pem | None, key: Pem | None) -> None:
    """Check that files fit each other. Bytes are left to gRPC: Python reads a key from files alone."""
    if certificate is None or key is None or isinstance(certificate, bytes) or isinstance(key, bytes):
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(f"the client key {os.fspath(key)} is not that of {os.fspath(certificate)}") from None
        raise TlsError(f"{os.fspath(certificate)} and {os.fspath(key)} hold no certificate and key") from None


def _no_password() -> str:
    """Rather than a question on the terminal."""
    raise TlsError("the client key is encrypted, which gRPC cannot read")
