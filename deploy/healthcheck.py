"""Exit 0 if the server in this container is SERVING, by the health service on AMNESTIC_HEALTH_PORT."""

import os
import sys

from amnestic_client import Client

SECONDS = 2

if __name__ == "__main__":
    with Client(f"127.0.0.1:{os.environ['AMNESTIC_HEALTH_PORT']}") as client:
        sys.exit(not client.is_ready(timeout=SECONDS))
