"""The page itself: a receipt that verifies, and how it was verified, put into the template."""

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

import amnestic
from amnestic import dsse
from amnestic_client import CallsInSecond, SignatureError, verify_receipt
from amnestic_server.job_report import around_swap, benchmark, calls_figure
from amnestic_server.job_report.figure import draw
from amnestic_server.job_report.view import view

# Of the command that verifies, where nobody named a file.
KEY_FILE = "signing-key.pub.pem"
RECEIPT_FILE = "receipt.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a receipt and its key came from: files, or None for what the server gave."""

    receipt: str | None = None
    key: str | None = None
    server: str | None = None


@dataclass(frozen=True, slots=True)
class Signature:
    """What the signature was verified with; `independent` unless the key came with the receipt."""

    key_id: str
    statement_digest: str
    independent: bool


def render(
    envelope: str | bytes, public_key: bytes, source: Source, calls: Sequence[CallsInSecond] | None = None
) -> str:
    """The report of a receipt as HTML. Raises SignatureError unless the key signed it.

    `calls` are those around the job's swap, as the server tells of them; None where it was not asked.
    There is no report of a receipt that does not verify: printed or sent on, it would look as good as a true one.
    """
    statement = verify_receipt(envelope, public_key)
    shown = view(statement)
    return _template().render(
        view=shown,
        figure=draw(shown.labels),
        around_swap=around_swap.tell(calls, swapped=shown.served),
        calls_figure=calls_figure.draw(calls or ()),
        benchmark=benchmark.MEASURED,
        signature=_signature(envelope, public_key, source),
        commands=_commands(shown.job_id, source),
        program=amnestic.__version__,
    )


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader(__package__, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _signature(envelope: str | bytes, public_key: bytes, source: Source) -> Signature:
    for key in dsse.read_public_keys(public_key):
        try:
            payload = dsse.verify(envelope, dsse.IN_TOTO, [key])
        except SignatureError:
            continue
        return Signature(dsse.key_id(key), hashlib.sha256(payload).hexdigest(), source.key is not None)
    raise SignatureError("it is not signed by a key that is trusted, or was changed since")


def _commands(job_id: str, source: Source) -> list[str]:
    """What to type, to verify the receipt once more."""
    receipt, key = source.receipt or RECEIPT_FILE, source.key or KEY_FILE
    get = ["amnestic", "receipt", "get", job_id, "--out", receipt]
    if source.server is not None:
        get += ["--server", source.server]
    verify = ["amnestic", "receipt", "verify", receipt, "--key", key]
    return [shlex.join(command) for command in ([verify] if source.receipt else [get, verify])]
