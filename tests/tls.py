"""Certificates for tests, and a TLS port in front of a server that speaks none itself."""

import datetime
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SERVER_NAME = "amnestic.test"


@dataclass(frozen=True, slots=True)
class Certificate:
    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key(self) -> bytes:
        return self.private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def encrypted_key(self, password: bytes) -> bytes:
        return self.private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password),
        )

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """The certificate and the key as files."""
        paths = folder / f"{name}.pem", folder / f"{name}.key"
        for path, data in zip(paths, (self.pem, self.key), strict=True):
            path.write_bytes(data)
        return paths


def issue(name: str, issuer: Certificate | None = None, *, days: float = 1) -> Certificate:
    """A certificate for `name` that ends in `days`; without an issuer it is an authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=3))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_san(name)]), critical=False)
    )
    signed = builder.sign(key if issuer is None else issuer.private_key, hashes.SHA256())
    return Certificate(signed, key)


def _san(name: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(name) if "://" in name else x509.DNSName(name)


@contextmanager
def tls_front(target: str, own: Certificate, client_ca: Certificate | None) -> Iterator[str]:
    """A port that speaks TLS, with `client_ca` mutual TLS, and hands every unary call on to `target`."""

    class Forward(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            send = channel.unary_unary(details.method)
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: send(request, timeout=context.time_remaining())
            )

    ca = client_ca and client_ca.pem
    credentials = grpc.ssl_server_credentials([(own.key, own.pem)], ca, require_client_auth=ca is not None)
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((Forward(),))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    with grpc.insecure_channel(target) as channel:
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(0).wait(10)
