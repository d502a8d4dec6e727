"""Who may call what, by the file of `--access`: roles by the names in client certificates, and by verified tokens.

Nobody may do anything that the file does not say. It is read again when it changes, as is the file of keys that it
names; what cannot be used is told in the log and left. An example is in docs/security.md.
"""

import json
import logging
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import jwt
from cryptography import x509

from amnestic_server.caller import Caller, Role
from amnestic_server.certificates import names_of
from amnestic_server.errors import StartError, UnauthenticatedError
from amnestic_server.files import state_of, told

log = logging.getLogger(__name__)

# Those that sign by a key which the server does not have: by a shared secret it could make tokens itself.
ALGORITHMS = ("ES256", "ES384", "EdDSA", "RS256", "PS256")
LEEWAY_SECONDS = 30
# A token is verified once: signatures are slow beside a prediction. More tokens than this are verified again.
MOST_KNOWN = 4096
SECONDS_BETWEEN_LOOKS = 1.0
SECTIONS = {
    "certificates": frozenset({"predict", "operate", "admin"}),
    "tokens": frozenset({"issuer", "audience", "jwks", "algorithms", "claim", "predict", "operate", "admin"}),
}


class AccessError(ValueError):
    """The file cannot be used. The text says why."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """How a token is verified, and which values of its claim have which role."""

    issuer: str
    audience: str
    jwks: Path
    algorithms: Sequence[str]
    claim: str
    roles: Mapping[str, Role]
    keys: Mapping[str | None, jwt.PyJWK]

    def verify(self, token: str) -> tuple[Caller, float]:
        """Who a token speaks for, and the time of the epoch at which it ends; raises UnauthenticatedError."""
        try:
            key = self._key(jwt.get_unverified_header(token).get("kid"))
            claims = jwt.decode(
                token,
                key,
                algorithms=list(self.algorithms),
                issuer=self.issuer,
                audience=self.audience,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError as error:
            raise UnauthenticatedError("the token has expired", reason="TOKEN_EXPIRED") from error
        except (jwt.PyJWTError, ValueError) as error:
            raise UnauthenticatedError("the token is not valid", reason="TOKEN_INVALID") from error
        values = claims.get(self.claim, ())
        values = values.split() if isinstance(values, str) else values if isinstance(values, list) else ()
        role = max(
            (self.roles[value] for value in values if isinstance(value, str) and value in self.roles), default=None
        )
        return Caller(f"token:{claims['sub']}", role), float(claims["exp"]) + LEEWAY_SECONDS

    def _key(self, key_id: Any) -> jwt.PyJWK:
        if key_id is None and len(self.keys) == 1:
            return next(iter(self.keys.values()))
        key = self.keys.get(key_id) if isinstance(key_id, str) else None
        if key is None:
            raise ValueError("no such key")
        return key


@dataclass(frozen=True, slots=True)
class Policy:
    """What a file of `--access` says. `tokens` is None if it speaks of none."""

    certificates: Mapping[str, Role]
    tokens: Tokens | None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises AccessError or OSError."""
        try:
            text = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise AccessError("it is not TOML") from error
        for section, fields in text.items():
            if section not in SECTIONS or not isinstance(fields, dict):
                raise AccessError(f"it may hold {' and '.join(f'[{known}]' for known in SECTIONS)} alone")
            if unknown := fields.keys() - SECTIONS[section]:
                raise AccessError(f"[{section}] has no {sorted(unknown)[0]}")
        tokens = text.get("tokens")
        return cls(
            _roles(text.get("certificates", {}), "certificates"),
            None if tokens is None else _tokens(tokens, path.parent),
        )


class Access:
    """The policy of a file as it is now. Its methods are called on the event loop's thread."""

    def __init__(self, path: Path) -> None:
        """Raise StartError unless the file can be used."""
        self._path = path
        self._tokens: dict[str, tuple[Caller, float]] = {}
        self._certificates: dict[bytes, x509.Certificate] = {}
        self._files: tuple[Path, ...] = (path,)
        self._looked = time.monotonic()
        try:
            self._read()
        except (OSError, AccessError) as error:
            raise StartError(f"the file of --access cannot be used: {told(error)}") from error

    @property
    def names_certificates(self) -> bool:
        """Whether a client certificate may have a role."""
        return bool(self._policy.certificates)

    def caller(self, token: str | None, certificate: bytes | None) -> Caller:
        """Who calls, by a bearer token and a client certificate in PEM that TLS has verified, and their higher role.

        Raises UnauthenticatedError if there is neither, or one of them is no good by now.
        """
        self._refresh()
        callers = []
        if certificate is not None:
            callers.append(certificate_holder(certificate, self._certificates, self._policy.certificates))
        if token is not None:
            callers.append(self._token_holder(token))
        if not callers:
            raise UnauthenticatedError("the call says not who makes it", reason="NO_CREDENTIALS")
        return Caller(callers[-1].name, max((one.role for one in callers if one.role is not None), default=None))

    def _token_holder(self, token: str) -> Caller:
        if self._policy.tokens is None:
            raise UnauthenticatedError("the server takes no tokens", reason="TOKEN_INVALID")
        known = self._tokens.get(token)
        if known is None or known[1] <= time.time():
            if len(self._tokens) >= MOST_KNOWN:
                self._tokens.clear()
            known = self._tokens[token] = self._policy.tokens.verify(token)
        return known[0]

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        self._looked = now
        if state_of(self._files) == self._state:
            return
        try:
            self._read()
        except (OSError, AccessError) as error:
            log.error("the changed file of --access is not used: %s", told(error))
        else:
            log.info("the file of --access was read again")

    def _read(self) -> None:
        # Taken first, and kept also if what is there is no good: a change is never missed, a fault told once.
        self._state = state_of(self._files)
        self._policy = Policy.read(self._path)
        tokens = self._policy.tokens
        files = (self._path,) if tokens is None else (self._path, tokens.jwks)
        if files != self._files:
            self._files, self._state = files, state_of(files)
        self._tokens.clear()


def certificate_holder(pem: bytes, known: dict[bytes, x509.Certificate], roles: Mapping[str, Role] | None) -> Caller:
    """Who a verified client certificate speaks for; `known` keeps what was parsed. Without `roles`, of every role.

    A connection outlives what was verified at its start, so the end of the certificate is looked at in each call.
    Raises UnauthenticatedError.
    """
    certificate = known.get(pem)
    if certificate is None:
        if len(known) >= MOST_KNOWN:
            known.clear()
        certificate = known[pem] = x509.load_pem_x509_certificate(pem)
    if certificate.not_valid_after_utc.timestamp() <= time.time():
        raise UnauthenticatedError("the client certificate has expired", reason="CERTIFICATE_EXPIRED")
    names = names_of(certificate)
    if roles is None:
        return Caller(f"certificate:{names[0]}" if names else "")
    name, role = max(
        ((name, roles[name]) for name in names if name in roles),
        key=lambda found: found[1],
        default=(names[0] if names else "", None),
    )
    return Caller(f"certificate:{name}" if name else "", role)


def _roles(section: Mapping[str, Any], where: str) -> dict[str, Role]:
    """The role of each name; the highest where it stands under several."""
    roles = {}
    for role in Role:
        names = section.get(role.name.lower(), [])
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise AccessError(f"{role.name.lower()} of [{where}] must be a list of names")
        roles.update(dict.fromkeys(names, role))
    return roles


def _tokens(section: Mapping[str, Any], folder: Path) -> Tokens:
    texts = {name: section.get(name) for name in ("issuer", "audience", "jwks")} | {
        "claim": section.get("claim", "roles")
    }
    for name, text in texts.items():
        if not isinstance(text, str) or not text:
            raise AccessError(f"[tokens] needs {name}, a text")
    algorithms = section.get("algorithms", ["ES256", "RS256"])
    if not isinstance(algorithms, list) or not algorithms or not set(algorithms) <= set(ALGORITHMS):
        raise AccessError(f"algorithms of [tokens] must be some of {', '.join(ALGORITHMS)}")
    jwks = folder / str(texts["jwks"])
    return Tokens(
        issuer=str(texts["issuer"]),
        audience=str(texts["audience"]),
        jwks=jwks,
        algorithms=tuple(algorithms),
        claim=str(texts["claim"]),
        roles=_roles(section, "tokens"),
        keys=_keys(jwks),
    )


def _keys(path: Path) -> dict[str | None, jwt.PyJWK]:
    try:
        keys = jwt.PyJWKSet.from_dict(json.loads(path.read_bytes())).keys
    except (ValueError, AttributeError, TypeError, jwt.PyJWTError) as error:
        raise AccessError("its jwks holds no set of keys") from error
    found: dict[str | None, jwt.PyJWK] = {}
    for key in keys:
        if key.key_type == "oct":
            raise AccessError("its jwks holds a shared secret: only public keys are taken")
        if key.key_id in found:
            raise AccessError("its jwks has two keys of one kid, or without one")
        found[key.key_id] = key
    return found
