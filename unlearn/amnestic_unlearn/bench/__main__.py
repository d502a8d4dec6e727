"""One process of the benchmark: `python -m amnestic_unlearn.bench PLAN`.

Standard output carries one JSON object a line: a cell's key with `begun`, or the row that was written for it.
Standard input must be a pipe that the parent holds open: at its end the parent is gone, and the process leaves at
once, which costs the cell that it was at.

Exit codes: 0 done; 1 failed; 2 wrong arguments; 3 the parent is gone; 143 told to stop.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import NoReturn

from amnestic_unlearn.__main__ import FAILED, ORPHANED, STOPPED, USAGE, leave_with_parent, reason_of, take_stdout


def main(arguments: list[str]) -> int:
    """Run the plan; returns the exit code."""
    if len(arguments) != 1:
        print("usage: python -m amnestic_unlearn.bench PLAN", file=sys.stderr)
        return USAGE
    out = os.fdopen(take_stdout(), "w", encoding="utf-8")
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, _stop)
    threading.Thread(target=leave_with_parent, daemon=True).start()

    def tell(row: dict[str, object]) -> None:
        try:
            print(json.dumps(row), file=out, flush=True)
        except BrokenPipeError:
            os._exit(ORPHANED)

    from amnestic_unlearn.bench import run, sequence
    from amnestic_unlearn.bench.cells import Plan

    try:
        plan = Plan.read(Path(arguments[0]))
        (sequence.run if plan.sequence else run.run)(plan, tell)
    except Exception as error:
        print(reason_of(error), file=sys.stderr)
        return FAILED
    return 0


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    # At once: a cell is written whole or not at all, and training has no place to stop in good order.
    os._exit(STOPPED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
