"""How large the soak runs are, and where their figures go: `AMNESTIC_SOAK_TRIALS=5000 make soak`."""

import json
import os
from pathlib import Path
from typing import Any

TRIALS = int(os.environ.get("AMNESTIC_SOAK_TRIALS", "2000"))
ROWS = int(os.environ.get("AMNESTIC_SOAK_ROWS", "1000000"))
FIGURES = Path(os.environ.get("AMNESTIC_SOAK_FIGURES", "out/soak"))


def keep(name: str, figures: dict[str, Any]) -> None:
    """Print a run's figures, and write them as JSON."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    (FIGURES / f"{name}.json").write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
    print(f"{name}: {json.dumps(figures, sort_keys=True)}")
