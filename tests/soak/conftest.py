"""The fixtures of the end-to-end tests, for runs that take minutes: `make soak`."""

from e2e.conftest import check_answers, reference, serve, serve_for_module, texts, traffic, until

__all__ = ["check_answers", "reference", "serve", "serve_for_module", "texts", "traffic", "until"]
