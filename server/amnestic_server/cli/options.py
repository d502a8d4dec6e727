"""An option for each setting of a forget request, made from the settings' own documentation."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from amnestic_client import GateLimits, Method
from amnestic_server.cli.sections import section
from amnestic_unlearn import spec

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T", Method, GateLimits)


def method_options(function: F) -> F:
    """`--preset`, and an option for each setting of the method; left out, the preset's value holds."""
    for one in reversed(dataclasses.fields(spec.Method)):
        function = section("Method", _option(one, one.metadata["help"]))(function)
    presets = ", ".join(f"{name} (the default)" if name == spec.DEFAULT_PRESET else name for name in spec.PRESETS)
    preset = click.option("--preset", metavar="NAME", help=f"Settings of the method by name: {presets}.")
    return section("Method", preset)(function)


def gate_options(function: F) -> F:
    """An option for each limit of the gates; left out, the server's default holds."""
    for one in reversed(dataclasses.fields(spec.GateLimits)):
        function = section("Gates", _option(one, f"{one.metadata['help']} Default {one.default:g}."))(function)
    return function


def chosen(kind: type[T], options: Mapping[str, Any]) -> T:
    """The client's settings from a command's options."""
    names = (one.name for one in dataclasses.fields(kind))
    return kind(**{name: options[name] for name in names})


def _option(one: "dataclasses.Field[Any]", text: str) -> Callable[[F], F]:
    name = one.name.replace("_", "-")
    # Left out, a flag says neither.
    given: dict[str, Any] = {"default": None} if one.type is bool else {"type": one.type}
    return click.option(f"--{name}/--no-{name}" if one.type is bool else f"--{name}", one.name, help=text, **given)
