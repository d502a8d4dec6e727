"""What may end a benchmark."""


class BenchError(Exception):
    """The benchmark cannot go on. The text says why."""
