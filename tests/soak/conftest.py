"""The fixtures of the end-to-end tests, for runs that take minutes: `make soak`."""

from e2e.conftest import *  # noqa: F403
