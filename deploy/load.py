"""A steady load for the dashboards to show: documents of a corpus, from 1 to 6 a call, at random times.

    AMNESTIC_SERVER=127.0.0.1:8001 python deploy/load.py corpus.parquet

runs until it is stopped. One call in a hundred has no document, which the server refuses.
"""

import argparse
import os
import random
import time
from pathlib import Path

from amnestic_client import AmnesticError, Client
from amnestic_unlearn import corpus as corpora

MOST_DOCUMENTS = 6
SHARE_REFUSED = 0.01


def call(client: Client, texts: list[str], draw: random.Random) -> None:
    """One call; what goes wrong is the server's to count."""
    count = 0 if draw.random() < SHARE_REFUSED else draw.randint(1, MOST_DOCUMENTS)
    try:
        client.predict(draw.choices(texts, k=count))
    except AmnesticError:
        time.sleep(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--rate", type=float, default=20, help="calls a second at most")
    arguments = parser.parse_args()
    texts = [document.text for document in corpora.read(arguments.corpus)]
    draw = random.Random()  # noqa: S311  a load is no secret
    with Client(os.environ.get("AMNESTIC_SERVER", "127.0.0.1:8001")) as client:
        while True:
            call(client, texts, draw)
            time.sleep(draw.expovariate(arguments.rate))


if __name__ == "__main__":
    main()
