"""The fixtures of the end-to-end tests, for runs that take minutes: `make soak`."""

from e2e.conftest import (
    check_active,
    check_answers,
    kept,
    reference,
    serve,
    serve_for_module,
    start_crashing,
    texts,
    traffic,
    until,
)

__all__ = [
    "check_active",
    "check_answers",
    "kept",
    "reference",
    "serve",
    "serve_for_module",
    "start_crashing",
    "texts",
    "traffic",
    "until",
]
