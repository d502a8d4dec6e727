"""Signed statements: DSSE envelopes (Dead Simple Signing Envelope 1.0, secure-systems-lab/dsse) under Ed25519 keys.

The form in which receipts and heads of the audit record travel, so that a signer and whoever verifies share one page.
It signs bytes as they are: what they say is read only once their signature is known to be good.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

# Of a receipt: the type of in-toto statements, and that of the predicate, which is ours.
IN_TOTO = "application/vnd.in-toto+json"
RECEIPT = "urn:amnestic:receipt:v1"
_PEM_END = b"-----END PUBLIC KEY-----"


class SignatureError(ValueError):
    """The envelope is none, or nobody trusted signed it. The text says which."""


def sign(payload_type: str, payload: bytes, key: Ed25519PrivateKey) -> str:
    """The envelope of a payload as a line of JSON; the same payload and key always give the same line."""
    signature = key.sign(_signed_bytes(payload_type, payload))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": key_id(key.public_key()), "sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(envelope)


def verify(envelope: str | bytes, payload_type: str, keys: Iterable[Ed25519PublicKey]) -> bytes:
    """The payload, if one of the keys signed it as this type; raises SignatureError."""
    try:
        fields = json.loads(envelope)
        payload = base64.b64decode(fields["payload"], validate=True)
        signatures = [base64.b64decode(one["sig"], validate=True) for one in fields["signatures"]]
        named = fields["payloadType"]
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise SignatureError("it is no signed envelope") from error
    if named != payload_type:
        raise SignatureError("it is an envelope of something else")
    signed = _signed_bytes(payload_type, payload)
    # By the signature and not by the key's id, which is not signed.
    if not any(_signed_by(key, signature, signed) for key in keys for signature in signatures):
        raise SignatureError("it is not signed by a key that is trusted, or was changed since")
    return payload


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 of a public key in DER (SubjectPublicKeyInfo), lower-case hexadecimal."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def public_pem(key: Ed25519PublicKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def read_public_keys(pem: bytes) -> list[Ed25519PublicKey]:
    """One or more Ed25519 public keys in PEM, one behind the other. Raises SignatureError for anything else."""
    return [_read_public_key(one + _PEM_END) for one in pem.strip().removesuffix(_PEM_END).split(_PEM_END)]


def _read_public_key(pem: bytes) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(pem)
    except ValueError as error:
        raise SignatureError("it is no public key in PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError("it is a public key of another kind than Ed25519")
    return key


def _signed_bytes(payload_type: str, payload: bytes) -> bytes:
    """The specification's pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _signed_by(key: Ed25519PublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        key.verify(signature, signed)
    except InvalidSignature:
        return False
    return True
