"""Receipts, read without a server: who signed what a job did, and what it says."""

import json
from typing import Any

from amnestic import dsse
from amnestic.dsse import SignatureError

__all__ = ["SignatureError", "verify_receipt"]


def verify_receipt(envelope: str | bytes, public_key: bytes) -> dict[str, Any]:
    """The in-toto statement of a receipt, if the key signed it.

    `public_key` is Ed25519 in PEM, from whoever runs the server and not from who shows the receipt; several, one behind
    the other, where the key has changed. Raises SignatureError.
    """
    statement: dict[str, Any] = json.loads(dsse.verify(envelope, dsse.IN_TOTO, dsse.read_public_keys(public_key)))
    if statement.get("predicateType") != dsse.RECEIPT:
        raise SignatureError("it is a statement of something else than a receipt")
    return statement
