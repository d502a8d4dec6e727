"""What an exception says reaches the log by no way, and where it was raised by all of them."""

import subprocess
import sys

SECRET = "Xylqvornik4711"
PROGRAM = f"""
import asyncio, logging, threading
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

logs.set_up("debug")
caught()
thread = threading.Thread(target=fail)
thread.start()
thread.join()
Dying()
asyncio.run(never_awaited())
fail()
"""


def test_the_text_of_an_exception_is_in_no_log_whoever_raised_it():
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert SECRET not in ended.stdout + ended.stderr
    # Caught, of a thread, of an object that goes, of a task that nobody awaits, and of the program itself.
    assert ended.stderr.count("builtins.KeyError") == ended.stderr.count("builtins.ValueError") == 5
    assert ended.stderr.count(", in fail\n") == 10
    assert "caught: a message" in ended.stderr
