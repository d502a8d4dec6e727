"""The Ed25519 key that signs receipts and heads of the audit record."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from amnestic import dsse
from amnestic_server import durable
from amnestic_server.errors import StartError

KEY_FILE = "signing-key.pem"
PUBLIC_KEY_FILE = "signing-key.pub.pem"


def load_key(path: Path | None, store: Path) -> Ed25519PrivateKey:
    """The key of `path`, or that of the store, which is made if there is none.

    Its public half is put in the store, behind those of the keys before it, whose signatures are to be read still.

    Raises StartError unless it is an unencrypted Ed25519 private key in PEM (PKCS 8); OSError if it can't be made.
    """
    own = store / KEY_FILE
    if path is None and not own.exists():
        durable.write(own, _pem(Ed25519PrivateKey.generate()), 0o600)
    key = _read(path or own)
    public = dsse.public_pem(key.public_key()).encode()
    published = store / PUBLIC_KEY_FILE
    known = published.read_bytes() if published.exists() else b""
    if public not in known:
        durable.write(published, known + public, 0o644)
    return key


def published_keys(store: Path) -> list[Ed25519PublicKey]:
    """Every key that has signed for a store. Raises OSError or dsse.SignatureError."""
    return dsse.read_public_keys((store / PUBLIC_KEY_FILE).read_bytes())


def _read(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise StartError("the signing key cannot be read: it must be unencrypted PEM") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise StartError("the signing key is of another kind than Ed25519")
    return key


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
