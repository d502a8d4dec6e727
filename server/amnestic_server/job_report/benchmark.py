"""What a fresh probe found in the models of docs/benchmarks/unlearning.md, where a retrained model stands beside.

A server has no retrained model, so a report has no such figure of its own. A test holds these to that page.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measured:
    """Mean AUROC of a fresh probe for the label to forget: of the model before, retrained without it, and after."""

    model: str
    cells: int
    original: float
    retrained: float
    amnestic: float

    def ratio(self, area: float) -> float:
        """An AUROC as `probe_ratio` counts: its excess over chance, as a share of that of the model before."""
        return (area - 0.5) / (self.original - 0.5)


MEASURED = (
    Measured("small BERT", 27, original=0.691, retrained=0.618, amnestic=0.649),
    Measured("MiniLM", 12, original=0.813, retrained=0.749, amnestic=0.708),
)
