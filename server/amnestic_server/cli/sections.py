"""Help in sections: options that belong together stand together, under a heading of their own."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

OTHERS = "Options"


def section(title: str, options: Callable[[F], F]) -> Callable[[F], F]:
    """Put what a decorator adds to a command under a heading."""

    def decorate(function: F) -> F:
        before = tuple(parameters(function))
        decorated = options(function)
        place(title, (one for one in parameters(decorated) if one not in before))
        return decorated

    return decorate


def place(title: str, parameters: Iterable[click.Parameter]) -> None:
    """Put options under a heading."""
    for one in parameters:
        one.section = title  # type: ignore[attr-defined]


class DefaultGroup(click.Group):
    """A group that alone, or with options only, is its default subcommand."""

    def __init__(self, *args: Any, default: str, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        asks_help = bool(args) and args[0] in ctx.help_option_names
        completes = not args and ctx.resilient_parsing
        if not asks_help and not completes and (not args or args[0].startswith("-")):
            args = [self._default, *args]
        return super().parse_args(ctx, args)


class Sectioned(click.Command):
    """A command that shows its options by section: those without one first, then the sections as they come."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        by_section: dict[str, list[tuple[str, str]]] = {OTHERS: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                by_section.setdefault(getattr(parameter, "section", OTHERS), []).append(record)
        if len(by_section) > 1 and len(by_section[OTHERS]) == 1:
            # `--help` alone is not what a page should begin with.
            by_section[OTHERS] = by_section.pop(OTHERS)
        _write(formatter, by_section)


def _write(formatter: click.HelpFormatter, by_section: Mapping[str, list[tuple[str, str]]]) -> None:
    for title, records in by_section.items():
        if records:
            with formatter.section(title):
                formatter.write_dl(records)


def parameters(function: Callable[..., Any]) -> list[click.Parameter]:
    """What click's decorators have added to a function so far."""
    return getattr(function, "__click_params__", [])
