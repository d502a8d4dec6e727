"""No command of a page is left out: a test runs it, or it stands among those that cannot be run, and reads well."""

import re
import shlex
import tomllib

import click
import pytest
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from pages.commands import ELSEWHERE, PAGES, ROOT, UNRUN, blocks, shown

from amnestic.v1 import prediction_pb2, unlearning_pb2
from amnestic_server.cli import group

PROGRAMS = r"amnestic|buf|cp|docker|go|grpcurl|kubectl|make|npm|pip|podman|protoc|python"
SOAK = r"AMNESTIC_SOAK_\w+"
SERVICES = {
    service.full_name: service
    for module in (health_pb2, prediction_pb2, unlearning_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
}


def click_reads(words):
    """Subcommands and options exist, and each option has as many values as it takes."""
    found = group
    with click.Context(group) as context:
        while isinstance(found, click.Group):
            name, *words = words
            found = found.get_command(context, name)
            assert found is not None, name
        found.make_parser(context).parse_args(list(words))


def make_has(words):
    assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words[0]


def files_exist(words):
    missing = [word for word in words if word.endswith(".proto") and not (ROOT / "proto" / word).exists()]
    assert missing == []


def extras_exist(words):
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extras in re.findall(r"\bamnestic\[([\w,]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= known.keys()


def wire_has(words):
    """The method that is called exists, and the message that it is sent is one of its own."""
    service, _, name = words[-1].partition("/")
    if name:
        method = SERVICES[service].methods_by_name[name]
        data = words[words.index("-d") + 1] if "-d" in words else "{}"
        json_format.Parse(data, GetMessageClass(method.input_type)())


READERS = {"amnestic": click_reads, "make": make_has, "pip": extras_exist, "grpcurl": wire_has, "protoc": files_exist}


@pytest.mark.parametrize("command", UNRUN)
def test_what_cannot_be_run_reads_well(command):
    variables, rest = re.fullmatch(r"((?:[A-Z_]+=\S+ )*)(.*)", command).groups()
    program, *words = shlex.split(rest)
    READERS.get(program, lambda _: None)(words)
    for path in re.findall(r"(?<![\w./])(?:deploy|docs|proto|tests)(?:/[\w.-]+)*", command):
        assert (ROOT / path).exists(), path
    sources = "".join(file.read_text() for file in (ROOT / "tests").rglob("*.py") if file.name != "commands.py")
    assert set(re.findall(SOAK, variables)) <= set(re.findall(SOAK, sources))


def test_what_cannot_be_run_is_on_a_page():
    found = {command for page in PAGES for command in shown(page)}
    assert [command for command in UNRUN if command not in found] == []
    assert len(UNRUN) == len(set(UNRUN))


def test_what_has_a_test_of_its_own_is_there():
    assert [test for (page, _), test in ELSEWHERE.items() if page not in PAGES or not (ROOT / test).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_stand_in_blocks_that_say_so(page):
    """In a block of another language, or of none, no test would find them."""
    assert {"bash", "console", "shell", "zsh"}.isdisjoint(language for language, _ in blocks(page))
    others = [code for language, code in blocks(page) if language not in ("sh", "python")]
    assert re.findall(rf"^(?:\$ )?(?:{PROGRAMS}) .*", "".join(others), re.MULTILINE) == []
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(re.findall(r"^ *(?:```|~~~)", text, re.MULTILINE)) == 2 * len(blocks(page)), "a block in another form"
