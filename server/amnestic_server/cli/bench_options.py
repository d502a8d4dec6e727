"""What the commands that measure a server have in common: their options, their models, and how they tell results."""

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from amnestic_client import AmnesticError
from amnestic_server.bench.errors import BenchError
from amnestic_server.bench.shapes import SHAPES, random_bundle
from amnestic_server.cli.progress import Bar, quiet_option
from amnestic_server.cli.render import print_json, show
from amnestic_server.cli.tables import Column, Fitted, facts
from amnestic_server.demo.settings import DemoError
from amnestic_server.settings import available_cpus
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.architecture import CheckpointError
from amnestic_unlearn.bench.page import ReportError
from amnestic_unlearn.corpus import CorpusError
from amnestic_unlearn.manifest import BundleError
from amnestic_unlearn.train_settings import TrainError

if TYPE_CHECKING:
    from amnestic_server.bench.rounds import Phase
    from amnestic_server.bench.tell import Result

F = TypeVar("F", bound=Callable[..., Any])
_FORESEEN = (
    *(AmnesticError, BenchError, BundleError, CheckpointError, CorpusError),
    *(DemoError, ReportError, TrainError, OSError),
)
# By module: the package that has it, of the extra `bench`.
EXTRAS = {"hdrh": "hdrhistogram", "matplotlib": "matplotlib"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """The options that all of these commands have."""

    shapes: tuple[str, ...]
    encoders: tuple[str, ...]
    bundle: Path | None
    corpus: Path | None
    documents: int
    rounds: int
    seconds: float
    threads: int
    cache: Path
    report: Path | None
    quiet: bool
    as_json: bool

    def texts(self) -> list[str]:
        """Documents of the corpus in random order, the same each time. Raises CorpusError."""
        texts = [document.text for document in corpora.stream(self.corpus or corpora.SHIPPED)]
        random.Random(0).shuffle(texts)  # noqa: S311  (an order, not a secret)
        return texts[: self.documents]


_OPTIONS = (
    click.option(
        "--shape",
        "shapes",
        type=click.Choice(list(SHAPES)),
        multiple=True,
        help="Encoder of this shape with random weights, and a vocabulary of 3,250 word pieces. Repeatable.",
    ),
    click.option(
        "--encoder",
        "encoders",
        multiple=True,
        help="Pretrained encoder with a fresh head: minilm (of amnestic[minilm]), or a checkpoint. Repeatable.",
    ),
    click.option("--bundle", type=click.Path(path_type=Path, exists=True), help="Serve this bundle instead."),
    click.option(
        "--corpus",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Documents; the shipped intensive-care stays by default.",
    ),
    click.option(
        "--documents", type=click.IntRange(8), default=768, show_default=True, help="Most documents to send, in turn."
    ),
    click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Times that all is measured."),
    click.option(
        "--seconds",
        type=click.FloatRange(min=0, min_open=True),
        default=5.0,
        show_default=True,
        help="Length of each load. A p99.9 wants a thousand calls.",
    ),
    click.option("--threads", type=click.IntRange(0), default=0, help="Encoder threads; 0 takes what the CPU allows."),
    click.option(
        "--cache",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("out/bench"),
        show_default=True,
        help="Where bundles are kept.",
    ),
    click.option(
        "--report",
        type=click.Path(path_type=Path, file_okay=False),
        help="Write rows, tables and a plot to a folder; the tables into its serving.md.",
    ),
    quiet_option,
    click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object."),
)


load_option = click.option(
    "--load",
    "share",
    type=click.FloatRange(min=0, min_open=True),
    default=0.5,
    show_default=True,
    help="Rate of the open loop, of what 64 clients without a pause get.",
)


def common_options(function: F) -> F:
    """These options, as `common`. Refuses to begin where the packages for it are not there."""

    @functools.wraps(function)
    def command(**values: Any) -> None:
        common = Common(**{field.name: values.pop(field.name) for field in fields(Common)})
        for module in EXTRAS if common.report else ("hdrh",):
            if find_spec(module) is None:
                raise click.ClickException(f"this needs {EXTRAS[module]}: install amnestic[bench]")
        function(common=common, **values)

    decorated: Any = command
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return cast(F, decorated)


def measure_models(
    name: str,
    common: Common,
    shapes: Sequence[str],
    total: int,
    measure: Callable[[Path, list[str], Callable[[str], None]], "Result"],
) -> None:
    """Measure each model that was asked for, or these shapes, and tell what came of it.

    `measure` is given a bundle, the documents, and a function to tell each of its `total` steps when it is done.
    """
    with measuring(name, common) as bar:
        measure_each(name, common, models(common, shapes, bar), total, measure, bar)


def measure_each(
    name: str,
    common: Common,
    bundles: Sequence[tuple[str, Path]],
    total: int,
    measure: Callable[[Path, list[str], Callable[[str], None]], "Result"],
    bar: Bar,
) -> None:
    """The same, of bundles by the names of their models."""
    texts, results = common.texts(), dict[str, "Result"]()
    for model, folder in bundles:
        bar.update(model, 0, total)
        results[model] = measure(folder, texts, _Steps(model, total, bar).told)
    _tell(name, results, common)


class _Steps:
    """Tells a bar of the steps of one model."""

    def __init__(self, model: str, total: int, bar: Bar) -> None:
        self._model, self._total, self._bar, self._done = model, total, bar, 0

    def told(self, step: str) -> None:
        self._done += 1
        self._bar.line(f"{self._model}: {step}")
        self._bar.update(self._model, min(self._done, self._total), self._total)


def models(common: Common, shapes: Sequence[str], bar: Bar) -> list[tuple[str, Path]]:
    """The bundles to measure by name: the one that was given, or those of the cache, made if need be."""
    from amnestic_server.bench.encoders import encoder_named, pretrained_bundle

    if common.bundle is not None:
        return [(str(common.bundle), common.bundle)]
    found = []
    for encoder in map(encoder_named, common.encoders):
        name = f"{encoder.name}, pretrained"
        make = functools.partial(pretrained_bundle, encoder)
        found.append((name, _cached(common.cache / "pretrained" / encoder.name, name, make, bar)))
    for shape in common.shapes or (() if common.encoders else shapes):
        found.append(
            (shape, _cached(common.cache / shape, shape, functools.partial(random_bundle, SHAPES[shape]), bar))
        )
    return found


def _cached(folder: Path, name: str, make: Callable[[Path], None], bar: Bar) -> Path:
    if not folder.exists():
        bar.update(f"making a bundle of {name}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        make(folder)
    return folder


@contextmanager
def measuring(name: str, common: Common) -> Iterator[Bar]:
    """A bar for all of it. What may go wrong is told as one line on standard error, and first of all what will."""
    try:
        if common.report is not None:
            from amnestic_server.bench import report

            report.check(name, common.report)
        with Bar(quiet=common.quiet) as bar:
            yield bar
    except _FORESEEN as error:
        raise click.ClickException(str(error)) from error


def phase_line(phase: "Phase") -> str:
    """A phase as it is told when it has ended."""
    failed = f"   {phase.failed:,} failed" if phase.failed else ""
    return f"{phase.name:36} {phase.rate:9.1f}/s   p50 {phase.p50_ms:8.2f} ms   p99 {phase.p99_ms:8.2f} ms{failed}"


def _tell(name: str, results: "dict[str, Result]", common: Common) -> None:
    if common.report is not None:
        from amnestic_server.bench import report

        page = report.write(name, results, common.threads or available_cpus(), common.report)
        click.echo(f"report in {page}", err=common.as_json)
    if common.as_json:
        print_json(results)
        return
    for model, result in results.items():
        _show(f"{model}, {common.rounds} round{'s' * (common.rounds > 1)}", result)


def _show(title: str, result: "Result") -> None:
    from amnestic_server.bench.tell import told

    what = told(result)
    show(title)
    for table in what.tables:
        show(Fitted([_column(index, name) for index, name in enumerate(table.header)], table.body), "")
    show(facts(what.facts), "")


def _column(index: int, name: str) -> Column:
    # Of the figures, those further right go first where there's no room.
    return Column(name, right=True, drop=index - 1) if index else Column(name, words=True)
