"""TLS, roles and ports of a real server: who is admitted to what, with credentials of every kind, good and bad."""

import base64
import hashlib
import hmac
import itertools
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from e2e.harness import GATES, JOB_SECONDS, METHOD, Server, infer_request
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tls import SERVER_NAME, Certificate, issue

from amnestic.oip import open_inference_pb2
from amnestic.v1 import prediction_pb2, unlearning_pb2
from amnestic_client import AmnesticError, Client, Tls
from amnestic_server import audit

PREDICT, OPERATE, ADMIN = "predict", "operate", "admin"
NAMES = {PREDICT: "spiffe://hospital.test/ehr", OPERATE: "ops.hospital.test", ADMIN: "officer.hospital.test"}
NOBODY = "nobody.hospital.test"
ISSUER, AUDIENCE = "https://login.hospital.test", "amnestic"
CHANGES = {"Unlearn", "CancelJob", "Rollback", "PromoteVersion", "SetRollout", "Purge"}
READS_OF_JOBS = {"WatchJob", "GetJob", "GetReceipt", "ListJobs", "ListVersions", "GetRollout"}
SECONDS = 20
POLICY = """
[certificates]
predict = ["spiffe://hospital.test/ehr"]
operate = ["ops.hospital.test"]
admin = ["officer.hospital.test"]

[tokens]
issuer = "https://login.hospital.test"
audience = "amnestic"
jwks = "jwks.json"
algorithms = ["ES256", "RS256"]
predict = ["reader"]
operate = ["operator"]
admin = ["officer"]
"""


@dataclass(frozen=True)
class Method:
    """One method of the server, called with an empty request or none: whoever is admitted gets another error."""

    path: str
    client_streaming: bool
    server_streaming: bool

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def code(self, channel: grpc.Channel, *metadata: tuple[str, str]) -> str:
        options = {"metadata": metadata, "timeout": SECONDS, "wait_for_ready": True}
        try:
            if self.client_streaming:
                list(channel.stream_stream(self.path)(iter(()), **options))
            elif self.server_streaming:
                list(channel.unary_stream(self.path)(b"", **options))
            else:
                channel.unary_unary(self.path)(b"", **options)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"


def methods() -> list[Method]:
    described = [
        prediction_pb2.DESCRIPTOR.services_by_name["PredictionService"],
        unlearning_pb2.DESCRIPTOR.services_by_name["UnlearningService"],
        open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
    ]
    found = [
        Method(f"/{service.full_name}/{method.name}", method.client_streaming, method.server_streaming)
        for service in described
        for method in service.methods
    ]
    reflection = [
        Method(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo", True, True)
        for version in ("v1", "v1alpha")
    ]
    return found + reflection


METHODS = methods()


class Hospital:
    """An authority, certificates and keys of tokens, and a server that knows them; every file can be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = issue("authority")
        self.own = {name: issue(name, self.authority) for name in (*NAMES.values(), NOBODY)}
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.rsa_key = rsa.generate_private_key(65537, 2048)
        self.ca, _ = self.authority.write(folder, "ca")
        self.certify()
        self.publish({"elliptic": self.key, "rsa": self.rsa_key})
        self.policy = folder / "access.toml"
        self.policy.write_text(POLICY)

    def certify(self, days: float = 1) -> Certificate:
        certificate = issue(SERVER_NAME, self.authority, days=days)
        self.certificate, self.certificate_key = certificate.write(self.folder, "server")
        return certificate

    def publish(self, keys: dict[str, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey]) -> None:
        """Write the public keys as a set."""
        algorithms = {
            ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm,
            rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm,
        }
        found = []
        for key_id, key in keys.items():
            algorithm = next(known for kind, known in algorithms.items() if isinstance(key, kind))
            found.append({**json.loads(algorithm.to_jwk(key.public_key())), "kid": key_id, "use": "sig"})
        (self.folder / "jwks.json").write_text(json.dumps({"keys": found}))

    def flags(self) -> tuple[str, ...]:
        files = {
            "--tls-cert": self.certificate,
            "--tls-key": self.certificate_key,
            "--tls-client-ca": self.ca,
            "--access": self.policy,
            "--uds": self.folder / "socket",
        }
        ports = ("--operations-port", "0", "--health-port", "0", "--max-connection-age-secs", "4")
        return (*itertools.chain.from_iterable((flag, str(path)) for flag, path in files.items()), *ports)

    def tls(self, name: str) -> Tls:
        return Tls(
            ca=self.authority.pem, certificate=self.own[name].pem, key=self.own[name].key, server_name=SERVER_NAME
        )

    def channel(self, target: str, own: Certificate | None) -> grpc.Channel:
        pair = (None, None) if own is None else (own.key, own.pem)
        credentials = grpc.ssl_channel_credentials(self.authority.pem, *pair)
        return grpc.secure_channel(target, credentials, [("grpc.ssl_target_name_override", SERVER_NAME)])

    def claims(self, *roles: str, **changes: object) -> dict[str, object]:
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "somebody", "iat": now, "exp": now + 600, "roles": [*roles]}
        return {name: value for name, value in (claims | changes).items() if value is not None}

    def token(self, *roles: str, **changes: object) -> str:
        return jwt.encode(self.claims(*roles, **changes), self.key, "ES256", headers={"kid": "elliptic"})


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return Hospital(tmp_path_factory.mktemp("hospital"))


@pytest.fixture(scope="module")
def server(serve_for_module: Callable[..., Server], hospital: Hospital) -> Server:
    server = serve_for_module(*hospital.flags(), start=False)
    server.client_options = {"tls": hospital.tls(NAMES[ADMIN])}
    return server.start()


@pytest.fixture(scope="module")
def channels(server: Server, hospital: Hospital) -> Iterator[Callable[[str, str], grpc.Channel]]:
    """A channel to a port with a certificate of a name, made once."""
    made: dict[tuple[str, str], grpc.Channel] = {}

    def channel(target: str, name: str) -> grpc.Channel:
        if (target, name) not in made:
            made[target, name] = hospital.channel(target, hospital.own[name])
        return made[target, name]

    yield channel
    for one in made.values():
        one.close()


def bearer(token: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {token}")


def expected(method: Method, role: str | None, *, operations: bool) -> str | None:
    """What a call that is not admitted must say; None for one that is."""
    if not operations and method.name in CHANGES:
        return "PERMISSION_DENIED"
    needed = OPERATE if method.name in CHANGES | READS_OF_JOBS else PREDICT
    needed = ADMIN if method.name == "Purge" else needed
    order = [PREDICT, OPERATE, ADMIN]
    return None if role is not None and order.index(role) >= order.index(needed) else "PERMISSION_DENIED"


def by_certificate_or_token(role: str | None, hospital: Hospital) -> Iterator[tuple[str, tuple[tuple[str, str], ...]]]:
    """Names of certificates, and the metadata to send, that come to this role."""
    yield NAMES[role] if role else NOBODY, ()
    claims = {PREDICT: "reader", OPERATE: "operator", ADMIN: "officer", None: "stranger"}
    yield NOBODY, (bearer(hospital.token(claims[role], "unheard of")),)


@pytest.mark.parametrize("role", [None, PREDICT, OPERATE, ADMIN])
def test_every_method_admits_the_roles_that_it_should_and_no_other(server, hospital, channels, role):
    for name, metadata in by_certificate_or_token(role, hospital):
        for method, operations in itertools.product(METHODS, (False, True)):
            channel = channels(server.operations if operations else server.target, name)
            code, refusal = method.code(channel, *metadata), expected(method, role, operations=operations)
            if refusal is None:
                assert code not in ("PERMISSION_DENIED", "UNAUTHENTICATED", "INTERNAL", "UNKNOWN"), (
                    method,
                    name,
                    operations,
                )
            else:
                assert code == refusal, (method, name, operations)


def test_nobody_is_admitted_without_credentials(server):
    """At the Unix domain socket, where there are no certificates."""
    with grpc.insecure_channel(server.uds) as channel:
        for method in METHODS:
            assert method.code(channel) == ("PERMISSION_DENIED" if method.name in CHANGES else "UNAUTHENTICATED")


def test_a_token_alone_is_enough_where_there_are_no_certificates(server, hospital):
    with Client(server.uds, token=lambda: hospital.token("reader")) as client:
        assert client.get_model().active_version == 1
        with pytest.raises(AmnesticError) as refused:
            client.list_jobs()
    assert (refused.value.code.name, refused.value.reason) == ("PERMISSION_DENIED", "ROLE_MISSING")
    assert str(refused.value) == "this needs the role operate"


def forged(hospital: Hospital) -> dict[str, str]:
    """Tokens that claim to be an officer's."""
    claims = hospital.claims("officer")
    header, payload, signature = hospital.token("officer").split(".")
    public = hospital.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    stranger = ec.generate_private_key(ec.SECP256R1())
    now = int(time.time())
    return {
        "alg none": f"{part({'alg': 'none', 'typ': 'JWT'})}.{payload}.",
        "alg none, of a known key": f"{part({'alg': 'none', 'kid': 'elliptic'})}.{payload}.{signature}",
        "the public key as a secret": by_secret({"alg": "HS256", "kid": "elliptic"}, claims, public),
        "another key by a known name": jwt.encode(claims, stranger, "ES256", headers={"kid": "elliptic"}),
        "another key by its own name": jwt.encode(claims, stranger, "ES256", headers={"kid": "stranger"}),
        "a key that the token brings": jwt.encode(
            claims,
            stranger,
            "ES256",
            headers={"jwk": json.loads(jwt.algorithms.ECAlgorithm.to_jwk(stranger.public_key()))},
        ),
        "no name of a key": jwt.encode(claims, hospital.key, "ES256"),
        "an algorithm that is not pinned": jwt.encode(claims, hospital.rsa_key, "PS256", headers={"kid": "rsa"}),
        "another key's algorithm": jwt.encode(claims, hospital.rsa_key, "RS256", headers={"kid": "elliptic"}),
        "other claims": f"{header}.{part(hospital.claims('officer', sub='another'))}.{signature}",
        "no signature": f"{header}.{payload}.",
        "cut off": f"{header}.{payload}",
        "no token": "officer",
        "expired": hospital.token("officer", exp=now - 60),
        "no end": hospital.token("officer", exp=None),
        "not yet valid": hospital.token("officer", nbf=now + 600),
        "another issuer": hospital.token("officer", iss="https://login.elsewhere.test"),
        "no issuer": hospital.token("officer", iss=None),
        "another audience": hospital.token("officer", aud="billing"),
        "no audience": hospital.token("officer", aud=None),
        "nobody's": hospital.token("officer", sub=None),
    }


def part(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def by_secret(header: object, claims: object, secret: bytes) -> str:
    """What a library that took the algorithm from the token would verify; PyJWT refuses to sign so."""
    signed = f"{part(header)}.{part(claims)}"
    digest = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def test_no_forged_token_is_taken(server, hospital, channels):
    get_model = next(method for method in METHODS if method.name == "GetModel")
    # A good certificate does not make up for it.
    for name in (NOBODY, NAMES[ADMIN]):
        channel = channels(server.target, name)
        for what, token in forged(hospital).items():
            assert get_model.code(channel, bearer(token)) == "UNAUTHENTICATED", what
            assert token not in server.log
        good = bearer(hospital.token("officer"))
        assert get_model.code(channel, good) == "OK"
        assert get_model.code(channel, good, good) == "UNAUTHENTICATED"
        assert get_model.code(channel, ("authorization", "Basic b2ZmaWNlcjo=")) == "UNAUTHENTICATED"
        rsa_token = jwt.encode(hospital.claims("officer"), hospital.rsa_key, "RS256", headers={"kid": "rsa"})
        assert get_model.code(channel, bearer(rsa_token)) == "OK"
    assert server.metric("amnestic_denied_calls_total", reason="TOKEN_INVALID") >= 40
    assert server.metric("amnestic_denied_calls_total", reason="TOKEN_EXPIRED") == 2


@pytest.mark.parametrize("which", ["none", "foreign", "expired"])
def test_another_certificate_does_not_even_connect(server, hospital, which):
    given = {
        "none": None,
        "foreign": issue(NAMES[ADMIN], issue("authority")),
        "expired": issue(NAMES[ADMIN], hospital.authority, days=-1),
    }[which]
    for target in (server.target, server.operations):
        with hospital.channel(target, given) as channel, pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/amnestic.v1.PredictionService/GetModel")(b"", timeout=30)
        assert refused.value.code().name == "UNAVAILABLE"


def test_a_certificate_that_ends_while_connected_is_refused_from_then_on(server, hospital):
    get_model = next(method for method in METHODS if method.name == "GetModel")
    own = issue(NAMES[PREDICT], hospital.authority, days=3 / 86_400)
    with hospital.channel(server.target, own) as channel:
        assert get_model.code(channel) == "OK"
        time.sleep(max(0, own.certificate.not_valid_after_utc.timestamp() + 0.1 - time.time()))
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(get_model.path)(b"", timeout=30)
    # The connection may have reached its age, and none is made anew by an ended certificate.
    assert refused.value.code().name in ("UNAUTHENTICATED", "UNAVAILABLE")


def test_a_connection_is_ended_at_its_age_and_calls_go_on(server, hospital, until):
    states = []
    with hospital.channel(server.target, hospital.own[NAMES[PREDICT]]) as channel:
        channel.subscribe(states.append, try_to_connect=True)
        get_model = next(method for method in METHODS if method.name == "GetModel")
        until(lambda: get_model.code(channel) == "OK" and states.count(grpc.ChannelConnectivity.READY) > 1, SECONDS)


def handshake(target: str, hospital: Hospital, version: ssl.TLSVersion) -> x509.Certificate:
    """The certificate that the server shows to who speaks this version of TLS alone."""
    host, _, port = target.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # What this machine's own library would refuse is left to the server.
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    context.load_verify_locations(cadata=hospital.authority.pem.decode())
    context.load_cert_chain(*hospital.own[NOBODY].write(hospital.folder, "nobody"))
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=SERVER_NAME) as secure,
    ):
        certificate = secure.getpeercert(binary_form=True)
    assert certificate is not None
    return x509.load_der_x509_certificate(certificate)


@pytest.mark.filterwarnings("ignore:.*TLSv1:DeprecationWarning")
def test_nothing_older_than_tls_1_2_is_spoken(server, hospital):
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        handshake(server.target, hospital, version)
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        with pytest.raises(ssl.SSLError, match=r"PROTOCOL_VERSION|EOF"):
            handshake(server.target, hospital, version)


def test_the_health_port_says_whether_it_serves_and_nothing_else(server, hospital):
    with grpc.insecure_channel(server.health) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        for service in ("", "amnestic.v1.PredictionService", "inference.GRPCInferenceService"):
            assert check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS).status == 1
        assert {method.code(channel) for method in METHODS} == {"UNIMPLEMENTED"}
    with hospital.channel(server.target, hospital.own[NOBODY]) as channel:
        assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=SECONDS).status == 1


def test_a_renewed_certificate_is_shown_without_a_restart_and_one_that_is_no_good_is_not(server, hospital, until):
    before = handshake(server.target, hospital, ssl.TLSVersion.TLSv1_3)
    renewed = hospital.certify(days=5).certificate
    for target in (server.target, server.operations):
        until(lambda: handshake(target, hospital, ssl.TLSVersion.TLSv1_3) == renewed != before, SECONDS)  # noqa: B023
    ends = renewed.not_valid_after_utc.timestamp()
    assert server.metric("amnestic_certificate_expiry_seconds", certificate="server") == ends
    authority_ends = hospital.authority.certificate.not_valid_after_utc.timestamp()
    assert server.metric("amnestic_certificate_expiry_seconds", certificate="client_ca") == authority_ends

    whole = hospital.certificate.read_bytes()
    for spoilt in (b"", whole[:100], issue(SERVER_NAME, hospital.authority).pem):
        hospital.certificate.write_bytes(spoilt)
        assert handshake(server.target, hospital, ssl.TLSVersion.TLSv1_3) == renewed
    hospital.certificate.write_bytes(whole)
    assert server.log.count("the changed certificates are not used") == 3
    assert handshake(server.target, hospital, ssl.TLSVersion.TLSv1_3) == renewed


def test_a_changed_policy_and_changed_keys_hold_without_a_restart(server, hospital, channels, until):
    get_model = next(method for method in METHODS if method.name == "GetModel")
    channel = channels(server.target, NOBODY)
    token = hospital.token("reader")
    assert get_model.code(channel) == "PERMISSION_DENIED"
    hospital.policy.write_text(POLICY.replace('predict = ["spiffe', f'predict = ["{NOBODY}", "spiffe'))
    until(lambda: get_model.code(channel) == "OK", SECONDS)
    hospital.policy.write_text("[certificates\n")
    spoilt = "the changed file of --access is not used: it is not TOML"
    # A call has it look.
    until(lambda: get_model.code(channel) == "OK" and spoilt in server.log, SECONDS)
    assert get_model.code(channel) == "OK"
    hospital.policy.write_text(POLICY)
    until(lambda: get_model.code(channel) == "PERMISSION_DENIED", SECONDS)

    assert get_model.code(channel, bearer(token)) == "OK"
    hospital.publish({"elliptic": ec.generate_private_key(ec.SECP256R1())})
    until(lambda: get_model.code(channel, bearer(token)) == "UNAUTHENTICATED", SECONDS)
    hospital.publish({"elliptic": hospital.key, "rsa": hospital.rsa_key})
    until(lambda: get_model.code(channel, bearer(token)) == "OK", SECONDS)


def test_the_audit_record_says_who_asked(server, hospital):
    slow = {"preset": "paper", "epochs": 1000}
    with Client(server.operations, tls=hospital.tls(NAMES[OPERATE])) as operator:
        job = operator.unlearn(["alpha"], method=slow)
    officer = {"tls": hospital.tls(NOBODY), "token": hospital.token("officer", sub="Jean")}
    with Client(server.operations, **officer) as client:
        client.cancel_job(job.job_id)
    with audit.reading(server.store) as db:
        assert [(record.action, record.caller) for record in audit.records(db, job.job_id)] == [
            ("job requested", "certificate:ops.hospital.test"),
            ("job cancelled", "token:Jean"),
        ]


@pytest.mark.parametrize(
    ("role", "code", "reason"),
    [(OPERATE, "PERMISSION_DENIED", "ROLE_MISSING"), (ADMIN, "FAILED_PRECONDITION", "VERSION_ACTIVE")],
)
def test_only_an_administrator_may_give_back_what_was_forgotten(server, hospital, role, code, reason):
    with Client(server.operations, tls=hospital.tls(NAMES[role])) as client, pytest.raises(AmnesticError) as refused:
        client.rollback(1, "under review", restore_forgotten=True)
    assert (refused.value.code.name, refused.value.reason) == (code, reason)


def test_a_version_that_knows_what_was_forgotten_answers_an_administrator_alone(server, hospital, channels):
    with Client(server.operations, tls=hospital.tls(NAMES[OPERATE])) as client:
        job = client.unlearn("alpha", method=METHOD, gates=GATES)
        assert client.wait_for_job(job.job_id, timeout=JOB_SECONDS).version == 2
    old = infer_request(server.client.get_model().name, "", "ward")
    old.model_version = "1"
    for role, code in ((PREDICT, "PERMISSION_DENIED"), (OPERATE, "PERMISSION_DENIED"), (ADMIN, "OK")):
        with Client(server.target, tls=hospital.tls(NAMES[role])) as client:
            assert client.predict("ward").version == client.predict("ward", version=2).version == 2
            assert code_of(lambda client=client: client.predict("ward", version=1)) == code
        infer = channels(server.target, NAMES[role]).unary_unary("/inference.GRPCInferenceService/ModelInfer")
        assert code_of(lambda infer=infer: infer(old.SerializeToString(), timeout=SECONDS)) == code


def code_of(call: Callable[[], object]) -> str:
    try:
        call()
    except AmnesticError as error:
        return str(error.code.name)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"
