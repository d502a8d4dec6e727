"""When the calls of an open loop are to be sent: drawn beforehand, so that no answer can put off a call."""

import random
from collections.abc import Iterator


def poisson(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Seconds from the start at which calls arrive, ascending and below `seconds`, `rate` a second on average.

    Gaps are exponentially distributed, as those of many independent callers are. The same seed gives the same arrivals.
    """
    draw = random.Random(seed)  # noqa: S311  (a load, not a secret)
    at = draw.expovariate(rate)
    while at < seconds:
        yield at
        at += draw.expovariate(rate)
