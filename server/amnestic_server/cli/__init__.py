"""The `amnestic` command. Each subcommand lives in a module of its own, imported only when it is called.

So the client's commands start fast and work in the base install, which has neither torch nor ONNX Runtime.
"""

import difflib
import importlib
import sys
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

import amnestic

# Subcommand: the module that holds it, as `command`, and its one line of help.
COMMANDS = {
    "demo": "train, serve, forget a label while serving, and show what was measured",
    "train": "fine-tune a checkpoint on a corpus, or train a small BERT from scratch",
    "export": "make a bundle from a Hugging Face checkpoint",
    "serve": "serve a bundle over gRPC",
    "status": "show a running server on one screen",
    "predict": "ask a running server for predictions",
    "unlearn": "ask a running server to forget labels, and watch it",
    "jobs": "list, show, watch or cancel unlearn jobs",
    "versions": "list the versions of a running server",
    "rollout": "show or set a staged version's part in the traffic",
    "promote": "make a staged version the active one",
    "rollback": "make an earlier version the active one",
    "purge": "make what the active version has forgotten the bundle itself, for good",
    "receipt": "get the signed statement of what a job did, or verify one without a server",
    "report": "write what a job did as one HTML file, for people",
    "audit": "verify or show the record that a store keeps of every change",
    "corpus": "import and describe corpora",
    "bench": "measure serving beside its ceiling, and forgetting beside retraining",
    "completion": "print the script that completes commands in a shell",
}
COLOR = {"auto": None, "always": True, "never": False}
EXAMPLE = """\b
Examples:
  amnestic demo
  amnestic serve --bundle bundle --store store --corpus corpus.parquet
  amnestic status --watch
"""


class LazyGroup(click.Group):
    """Resolves a subcommand by importing `amnestic_server.cli.NAME`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        try:
            command: click.Command = importlib.import_module(f"{__name__}.{cmd_name}").command
        except ModuleNotFoundError as error:
            _lacks(cmd_name, error)
        _name_variables(command, f"AMNESTIC_{cmd_name.upper()}")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            ctx.fail(f"No such command '{name}'." + "".join(f" Did you mean '{one}'?" for one in near))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; Ctrl-C, where nothing else is made of it, ends it in one line."""
        from amnestic_server.cli import exits

        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            _lacks(ctx.invoked_subcommand or "", error)
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            raise click.exceptions.Exit(exits.INTERRUPTED) from None

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """As click does, but without importing every subcommand for its help."""
        names = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from amnestic_server.cli import exits

        for text in (exits.HELP, EXAMPLE):
            formatter.write_paragraph()
            formatter.write_text(text)


def _name_variables(command: click.Command, prefix: str) -> None:
    """Give every option that names no variable of its own one after its flag, as people would guess it."""
    for one in command.params:
        if isinstance(one, click.Option) and one.envvar is None:
            flag = next(name for name in one.opts if name.startswith("--"))
            one.envvar = f"{prefix}_{_as_variable(flag[2:])}"
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            _name_variables(child, f"{prefix}_{_as_variable(name)}")


def _as_variable(name: str) -> str:
    return name.upper().replace("-", "_")


def _lacks(command: str, error: ModuleNotFoundError) -> NoReturn:
    if error.name and error.name.partition(".")[0].startswith("amnestic"):
        raise error
    raise click.ClickException(
        f"`amnestic {command}` needs {error.name}: install amnestic[cpu] or amnestic[gpu]"
    ) from error


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(amnestic.__version__, prog_name="amnestic")
@click.option(
    "--color",
    type=click.Choice(list(COLOR)),
    default="auto",
    envvar="AMNESTIC_COLOR",
    show_default=True,
    show_envvar=True,
    help="Colours: auto leaves them out in a pipe, and where NO_COLOR is set.",
)
@click.pass_context
def group(context: click.Context, color: str) -> None:
    """A model server for clinical text classifiers that can forget a label while it serves.

    Every option may be given in the environment too, as AMNESTIC_COMMAND_OPTION, unless its help names another
    variable.
    """
    context.color = COLOR[color]


def main() -> None:
    """Entry point of the `amnestic` command."""
    sys.exit(group(prog_name="amnestic"))
