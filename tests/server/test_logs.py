"""What an exception says reaches the log by no way, and where it was raised by all of them."""

import json
import subprocess
import sys

import pytest

SECRET = "Xylqvornik4711"
PROGRAM = f"""
import asyncio, logging, sys, threading
from amnestic_server import logs

def fail():
    try:
        raise KeyError("{SECRET}")
    except KeyError as error:
        raise ValueError("{SECRET}") from error

def caught():
    try:
        fail()
    except ValueError:
        logging.getLogger("caught").exception("a message")

class Dying:
    def __del__(self):
        fail()

async def never_awaited():
    asyncio.get_running_loop().set_exception_handler(logs.of_loop)
    async def failing():
        fail()
    task = asyncio.create_task(failing())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del task

logs.set_up("debug", sys.argv[1])
caught()
thread = threading.Thread(target=fail)
thread.start()
thread.join()
Dying()
asyncio.run(never_awaited())
fail()
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_text_of_an_exception_is_in_no_log_whoever_raised_it(form):
    ended = subprocess.run([sys.executable, "-c", PROGRAM, form], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert SECRET not in ended.stdout + ended.stderr
    log = ended.stderr
    if form == "json":
        lines = [json.loads(line) for line in log.splitlines()]
        assert {line["level"] for line in lines} == {"error", "critical"}
        log = "".join(f"{line['logger']}: {line['message']}\n{line['exception']}\n" for line in lines)
    # Caught, of a thread, of an object that goes, of a task that nobody awaits, and of the program itself.
    assert log.count("builtins.KeyError") == log.count("builtins.ValueError") == 5
    assert log.count(", in fail\n") == 10
    assert "caught: a message" in log
