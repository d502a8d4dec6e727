"""`amnestic` with an engine and workers that fail as a file says: `faulty.py FILE serve ...`.

FILE may be written at any time. It names one fault of the engine or of workers, or is empty:

    lost         every pass raises, as after a CUDA error, which sticks
    poison       a pass with a document of `POISON_TOKENS` tokens raises
    dead         a pass ends its thread
    hung         a pass does not end
    held         a pass waits until the file says otherwise
    slow         a pass takes `SLOW_SECONDS` longer
    worker:CODE  the next worker is this Python code instead
    late:CODE    the same, and its time is over after a second
"""

import asyncio
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FAULT = Path(sys.argv[1]) if __name__ == "__main__" else Path()
POISON_TOKENS = 5
SLOW_SECONDS = 0.05
# What an error holds, and no log may.
SECRET = "Xylqvornik4711"


def main() -> None:
    from amnestic_server import app, cli, worker
    from amnestic_server.engine import Engine

    class FaultyEngine(Engine):
        def prepare(self, rows: Any) -> Any:
            if FAULT.read_text() == "poison" and any(len(row.ids) == POISON_TOKENS and row.ids.any() for row in rows):
                raise RuntimeError(SECRET)
            return super().prepare(rows)

        def run(self, prepared: Any, *, wide: bool = True) -> Any:
            match FAULT.read_text():
                case "lost":
                    raise RuntimeError(f"CUDA failure 700: an illegal memory access was encountered; {SECRET}")
                case "dead":
                    raise SystemExit(SECRET)
                case "hung":
                    time.sleep(3600)
                case "held":
                    while FAULT.read_text() == "held":
                        time.sleep(0.01)
                case "slow":
                    time.sleep(SLOW_SECONDS)
            return super().run(prepared, wide=wide)

    async def start_process(program: str, *arguments: str, **options: Any) -> asyncio.subprocess.Process:
        fault, _, code = FAULT.read_text().partition(":")
        if fault in ("worker", "late"):
            arguments = ("-c", code, *arguments[2:])
        return await asyncio.create_subprocess_exec(program, *arguments, **options)

    def timeout(seconds: float) -> asyncio.Timeout:
        return asyncio.timeout(1.0 if FAULT.read_text().startswith("late:") else seconds)

    app.Engine = FaultyEngine  # type: ignore[misc]
    worker.asyncio = SimpleNamespace(  # type: ignore[attr-defined]
        **{**vars(asyncio), "create_subprocess_exec": start_process, "timeout": timeout}
    )
    sys.argv[:2] = ["amnestic"]
    cli.main()


if __name__ == "__main__":
    main()
