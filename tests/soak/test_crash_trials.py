"""kill -9 at every named place and at random moments, thousands of times: see `Crashing` for what must hold."""

import random
import time
from collections import Counter

import pytest

from amnestic_server.failpoints import PLACES

from .counts import TRIALS, keep

RANDOM = "at a random moment"
LONGEST = 1.5
# Of the trials; the others go through the named places in turn.
RANDOM_SHARE = 0.25

pytestmark = [pytest.mark.soak, pytest.mark.timeout(0)]


def test_no_kill_leaves_anything_but_a_whole_version_and_a_job_that_goes_on(start_crashing):
    draw = random.Random(3)
    crashing = start_crashing("--log-level", "error", labels=("alpha", "beta", "gamma"))
    trials, named, failures = Counter[str](), Counter[str](), list[str]()
    started = time.monotonic()
    while trials.total() < TRIALS:
        at_random = draw.random() < RANDOM_SHARE
        place = PLACES[named.total() % len(PLACES)]
        name = RANDOM if at_random else place
        named[place] += not at_random
        trials[name] += 1
        try:
            crashing.random_trial(draw.uniform(0, LONGEST)) if at_random else crashing.trial(place)
        except Exception as failure:
            failures.append(f"{name}: {type(failure).__name__} {failure}"[:300])
            crashing.server.close()
            crashing = start_crashing(labels=("alpha", "beta", "gamma"))
        if trials.total() % 10 == 0 or trials.total() == TRIALS:
            figures = {"trials": trials.total(), "failures": failures, "at": dict(trials)}
            keep("crashes", figures | {"seconds": round(time.monotonic() - started)})
    assert not failures
