"""`python -m amnestic_server.cli` is the `amnestic` command."""

from amnestic_server.cli import main

main()
