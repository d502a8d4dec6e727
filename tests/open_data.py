"""Where the open clinical collections lie that are not shipped: in a folder `shared/data` here or above."""

from pathlib import Path

import pytest

_FOUND = [place / "shared" / "data" for place in Path(__file__).parents if (place / "shared" / "data").is_dir()]
DATA = _FOUND[0] if _FOUND else Path(__file__).parents[1] / "shared" / "data"


def needs(name: str) -> pytest.MarkDecorator:
    """Skips a test without the collection of that name."""
    return pytest.mark.skipif(not (DATA / name).exists(), reason=f"shared/data/{name} is not at hand")
