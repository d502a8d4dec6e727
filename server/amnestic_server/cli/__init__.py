"""The `amnestic` command. Each subcommand lives in a module of its own, imported only when it is called.

So the client's commands start fast and work in the base install, which has neither torch nor ONNX Runtime.
"""

import importlib
import sys

import click

import amnestic

# Subcommand: the module that holds it, as `command`, and its one line of help.
COMMANDS = {
    "demo": "train, serve, forget a label while serving, and show what was measured",
    "train": "fine-tune a checkpoint on a corpus, or train a small BERT from scratch",
    "export": "make a bundle from a Hugging Face checkpoint",
    "serve": "serve a bundle over gRPC",
    "predict": "ask a running server for predictions",
    "unlearn": "ask a running server to forget labels, and watch it",
    "jobs": "list, show, watch or cancel unlearn jobs",
    "versions": "list the versions of a running server",
    "rollback": "make an earlier version the active one",
    "corpus": "import and describe corpora",
    "bench": "measure serving beside its ceiling, and forgetting beside retraining",
}


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
            if error.name and error.name.partition(".")[0].startswith("amnestic"):
                raise
            raise click.ClickException(
                f"`amnestic {cmd_name}` needs {error.name}: install amnestic[cpu] or amnestic[gpu]"
            ) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(amnestic.__version__, prog_name="amnestic")
def group() -> None:
    """A model server for clinical text classifiers that can forget a label while it serves."""


def main() -> None:
    """Entry point of the `amnestic` command."""
    sys.exit(group(prog_name="amnestic"))
