"""The server's TLS: its certificate, the authorities of its clients, and both read anew when their files change.

gRPC asks at each handshake, so a renewed certificate needs neither a restart nor a signal. What cannot be used is told
in the log and left: the certificate before serves on.
"""

import logging
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from amnestic_server.errors import StartError
from amnestic_server.files import state_of, told

log = logging.getLogger(__name__)


class CertificateError(ValueError):
    """The files cannot be used. The text says which, and never repeats their content."""


class Certificates:
    """Certificate, key and, for mutual TLS, the authorities that client certificates must come from; all PEM files."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        """Raise StartError unless they can be used."""
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._files = [path for path in (certificate, key, client_ca) if path is not None]
        self._state = state_of(self._files)
        self._lock = threading.Lock()
        self._expiry: dict[str, float] = {}
        try:
            self._configuration = self._read()
        except (OSError, CertificateError) as error:
            raise StartError(f"TLS cannot be set up: {told(error)}") from error

    def credentials(self) -> grpc.ServerCredentials:
        """For a port; TLS 1.2 or newer, which is what gRPC itself asks for."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration, self._changed, require_client_authentication=self._client_ca is not None
        )

    def expiry(self, which: str) -> float:
        """When `server` or `client_ca` ends, in seconds of the epoch: of several certificates the first to end."""
        self._refresh()
        return self._expiry[which]

    @property
    def kinds(self) -> Sequence[str]:
        return tuple(self._expiry)

    def _changed(self) -> grpc.ServerCertificateConfiguration:
        """What gRPC calls at each handshake, on a thread of its own."""
        self._refresh()
        return self._configuration

    def _refresh(self) -> None:
        with self._lock:
            state = state_of(self._files)
            if state == self._state:
                return
            # Also if what is there is no good: a fault is told once.
            self._state = state
            try:
                self._configuration = self._read()
            except (OSError, CertificateError) as error:
                log.error("the changed certificates are not used: %s", told(error))
            else:
                log.info("certificates read again; the server's ends %s", _day(self._expiry["server"]))

    def _read(self) -> grpc.ServerCertificateConfiguration:
        chain_pem, key_pem = self._certificate.read_bytes(), self._key.read_bytes()
        chain = _certificates(chain_pem, self._certificate)
        _check_pair(chain[0], key_pem, self._key)
        expiry = {"server": _first_end(chain)}
        ca_pem = None
        if self._client_ca is not None:
            ca_pem = self._client_ca.read_bytes()
            expiry["client_ca"] = _first_end(_certificates(ca_pem, self._client_ca))
        self._expiry = expiry
        if expiry["server"] < datetime.now(UTC).timestamp():
            log.error("the server's certificate has ended: clients will refuse it")
        return grpc.ssl_server_certificate_configuration([(key_pem, chain_pem)], ca_pem)


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The names in a certificate's subject alternative name: DNS names, URIs and addresses of mail, in its order."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    kinds = (x509.DNSName, x509.UniformResourceIdentifier, x509.RFC822Name)
    return tuple(name.value for name in names if isinstance(name, kinds))


def _certificates(pem: bytes, path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise CertificateError(f"{path} holds no certificate in PEM") from error


def _check_pair(certificate: x509.Certificate, key_pem: bytes, path: Path) -> None:
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except TypeError as error:
        raise CertificateError(f"{path} is encrypted, which gRPC cannot read") from error
    except ValueError as error:
        raise CertificateError(f"{path} holds no private key in PEM") from error
    if key.public_key() != certificate.public_key():
        raise CertificateError(f"{path} is not the key of the certificate")


def _first_end(certificates: Sequence[x509.Certificate]) -> float:
    return min(certificate.not_valid_after_utc for certificate in certificates).timestamp()


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
