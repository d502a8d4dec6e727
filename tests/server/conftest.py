"""Fixtures of the server's tests."""

from scripted import started

__all__ = ["started"]
