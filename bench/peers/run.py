"""Amnestic beside the servers that people use: the same encoder, documents, machine and load, one after the other.

    python bench/peers/run.py --rounds 3 --seconds 10 --report docs/benchmarks

Every round starts each server anew, checks that it answers as the checkpoint does, and measures it alone on the
machine: a lone client, 64 clients, the highest rate of an open loop within a p99, memory, and what callers see while
the model is replaced by another. Environments are made under out/peers on first use.
"""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from peers import PEERS, Amnestic, Peer, Place
from running import Running, make_environment, running

from amnestic_server.bench.encoders import encoder_named
from amnestic_server.bench.errors import BenchError
from amnestic_server.bench.load import Closed, Measured, Open, Search
from amnestic_server.bench.processes import CLIENTS, Caller
from amnestic_server.bench.rounds import Summary
from amnestic_server.bench.shapes import LABELS
from amnestic_server.bench.tell import ratio, spread
from amnestic_unlearn import corpus as corpora
from amnestic_unlearn.bench.ledger import line
from amnestic_unlearn.bench.page import markdown, write_between

HERE = Path(__file__).parent
MAX_TOKENS = 512
CHECKED = 8
# Of a probability. Threads and batches add up in other orders.
TOLERANCE = 1e-3
# Before a replacement, and after it.
QUIET_SECONDS = 3.0
REPLACE_SECONDS = 120.0
BEGIN, END = "<!-- peers: written by `bench/peers/run.py --report` -->", "<!-- end of peers -->"


@dataclass(frozen=True, slots=True)
class Row:
    """One server in one round. Rates in calls a second, latencies in milliseconds, memory in MB of all its processes.

    `replaced_seconds` from the request for another model to its first answer; `failed` and `worst_ms` of the calls of
    an open loop at half of `rate` in that time and three seconds before and behind it.
    """

    peer: str
    version: str
    round: int
    start_seconds: float
    idle_megabytes: float
    lone_p50_ms: float
    lone_p99_ms: float
    rate: float
    p50_ms: float
    p99_ms: float
    failed_in_closed_loop: int
    at_limit: float
    resolution: float
    loaded_megabytes: float
    replaced_seconds: float
    calls: int
    failed: int
    worst_ms: float


def make_models(encoder: str, folder: Path) -> tuple[Path, Path]:
    """Two classifiers with one encoder: as checkpoints, and as bundles."""
    import torch

    from amnestic_server.export import export
    from amnestic_unlearn.checkpoint import load_pretrained, save, transformers_silent
    from amnestic_unlearn.windows import Reading

    source = encoder_named(encoder).checkpoint()
    made = (folder / "0", folder / "1")
    for seed, model in enumerate(made):
        if (model / "bundle").exists():
            continue
        with torch.random.fork_rng(), transformers_silent():
            torch.manual_seed(seed)
            tokenizer, network = load_pretrained(source, LABELS, MAX_TOKENS)
            # Far enough apart to be told from each other, and from other labels' order.
            torch.nn.init.normal_(network.classifier.weight, std=0.5)
            save(network, tokenizer, [0.5] * len(LABELS), Reading.of(MAX_TOKENS), model / "checkpoint")
            export(model / "checkpoint", model / "bundle", name=encoder, warn=lambda assumed: None)
    return made


def expected(checkpoint: Path, texts: Sequence[str]) -> list[list[float]]:
    """What transformers itself answers."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    with torch.inference_mode():
        encoded = (tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt") for text in texts)
        return [model(**one).logits.sigmoid()[0].tolist() for one in encoded]


def check(peer: Peer, place: Place, texts: Sequence[str], right: Sequence[Sequence[float]]) -> None:
    """Raises BenchError unless the server computes what the checkpoint says."""
    for text, probabilities in zip(texts, right, strict=True):
        answer = peer.ask_checkpoint(place, text)
        off = max(abs(one - other) for one, other in zip(answer, probabilities, strict=True))
        if off > TOLERANCE:
            raise BenchError(f"{peer.name} answers otherwise than the checkpoint: a probability is {off:.4f} off")


def measure(
    peer: Peer, place: Place, texts: Sequence[str], right: Sequence[Sequence[float]], number: int, settings: "Settings"
) -> Row:
    with running(peer, place, texts[0]) as server:
        check(peer, place, texts[: len(right)], right)
        caller = Caller(*peer.caller(place, texts))
        idle = server.megabytes()
        lone = caller.measure(Closed(clients=1, seconds=settings.seconds))
        closed = caller.measure(Closed(clients=CLIENTS, seconds=settings.seconds))
        high = 1.1 * closed.rate
        found = caller.search(Search(p99_ms=settings.limit_ms, high=high, seconds=settings.seconds, seed=number))
        loaded = server.megabytes()
        seconds, load = replace(peer, place, server, caller, closed.rate / 2)
        return Row(
            peer=peer.name,
            version=peer.version(place),
            round=number,
            start_seconds=server.start_seconds,
            idle_megabytes=idle,
            lone_p50_ms=lone.latency.p50_ms,
            lone_p99_ms=lone.latency.p99_ms,
            rate=closed.rate,
            p50_ms=closed.latency.p50_ms,
            p99_ms=closed.latency.p99_ms,
            failed_in_closed_loop=closed.failed,
            at_limit=found.rate,
            resolution=found.above - found.rate,
            loaded_megabytes=loaded,
            replaced_seconds=seconds,
            calls=load.answered + load.failed,
            failed=load.failed,
            worst_ms=load.latency.max_ms,
        )


def replace(peer: Peer, place: Place, server: Running, caller: Caller, rate: float) -> tuple[float, Measured]:
    """Have the other model served under an open loop: the seconds until it answers, and what the loop's calls saw."""
    before = server.answers()
    with caller.loading(Open(rate=rate, seconds=3600)) as load, ThreadPoolExecutor(1) as pool:
        time.sleep(QUIET_SECONDS)
        place.choose(1)
        asked = time.monotonic()
        asking = pool.submit(peer.replace, place, server.restart)
        while not (now := server.answers()) or max(abs(a - b) for a, b in zip(now, before, strict=True)) < TOLERANCE:
            if asking.done():
                asking.result()
            if time.monotonic() - asked > REPLACE_SECONDS:
                raise BenchError(f"{peer.name} never served the other model")
            time.sleep(0.02)
        seconds = time.monotonic() - asked
        asking.result()
        time.sleep(QUIET_SECONDS)
        return seconds, load.stop()


@dataclass(frozen=True, slots=True)
class Settings:
    seconds: float
    limit_ms: float


def table(rows: Sequence[Row]) -> str:
    """A row a server, medians over the rounds; the rate within the limit also as a share of Amnestic's in its round."""
    names = list(dict.fromkeys(row.peer for row in rows))

    def over(name: str, field: str) -> Summary:
        return Summary.of([getattr(row, field) for row in rows if row.peer == name])

    columns = {
        "64 clients, calls/s": "rate",
        "within the p99, calls/s": "at_limit",
        "lone client, p50 ms": "lone_p50_ms",
        "p99 ms": "lone_p99_ms",
        "memory, idle, MB": "idle_megabytes",
        "after load, MB": "loaded_megabytes",
        "start, s": "start_seconds",
        "replaced in, s": "replaced_seconds",
        "worst call meanwhile, ms": "worst_ms",
    }
    body = []
    ours = {row.round: row.at_limit for row in rows if row.peer == Amnestic.name}
    for name in names:
        version = next(row.version for row in rows if row.peer == name)
        failed = sum(row.failed for row in rows if row.peer == name)
        calls = sum(row.calls for row in rows if row.peer == name)
        figures = [spread(over(name, field)) for field in columns.values()]
        shares = [row.at_limit / ours[row.round] for row in rows if row.peer == name and ours.get(row.round)]
        share = ratio(Summary.of(shares)) if shares else ""
        body.append([f"{name} {version}", *figures, f"{failed:,} of {calls:,}", share])
    return markdown(["server", *columns, "failed meanwhile", "rate within the p99, of Amnestic's"], body)


def write_report(rows: Sequence[Row], folder: Path, said: str) -> None:
    """Raises ReportError if the page has no place for it."""
    (folder / "serving-peers.jsonl").write_text("".join(line(asdict(row)) for row in rows))
    measured = {row.peer for row in rows}
    advice = "".join(f"- {peer.name}: {peer.advice}.\n" for peer in PEERS.values() if peer.name in measured)
    write_between(folder / "serving.md", BEGIN, END, [f"{said}\n", table(rows), advice], "")


@click.command()
@click.option("--peer", "names", type=click.Choice(list(PEERS)), multiple=True, help="Only this one. Repeatable.")
@click.option("--encoder", default="minilm", show_default=True, help="Checkpoint, or minilm of amnestic[minilm].")
@click.option("--corpus", type=click.Path(path_type=Path, exists=True), help="Documents; the shipped stays by default.")
@click.option("--documents", type=click.IntRange(CHECKED), default=512, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.5), default=10.0, show_default=True, help="Length of each load.")
@click.option("--p99-limit", type=click.FloatRange(1), default=1000.0, show_default=True, help="In milliseconds.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/peers"), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print every row as JSON.")
@click.option("--here", is_flag=True, help="Take the packages of this environment, and make none for the peers.")
@click.option("--report", type=click.Path(path_type=Path, exists=True), help="Folder with serving.md.")
def main(
    names: Sequence[str],
    encoder: str,
    corpus: Path | None,
    documents: int,
    rounds: int,
    seconds: float,
    p99_limit: float,
    out: Path,
    here: bool,
    as_json: bool,
    report: Path | None,
) -> None:
    """Measure Amnestic and its peers side by side."""
    # The load's process finds the callers here.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    out, settings = out.absolute(), Settings(seconds, p99_limit)
    texts = [document.text for document in corpora.stream(corpus or corpora.SHIPPED)]
    random.Random(0).shuffle(texts)  # noqa: S311  (an order, not a secret)
    texts = texts[:documents]
    try:
        models = make_models(encoder, out / "models" / Path(encoder).name)
        right = expected(models[0] / "checkpoint", texts[:CHECKED])
        rows, failed = list[Row](), list[str]()
        for number in range(rounds):
            for peer in [PEERS[name] for name in names] or PEERS.values():
                own = here or isinstance(peer, Amnestic)
                environment = Path(sys.prefix) if own else make_environment(peer, out)
                with tempfile.TemporaryDirectory() as folder:
                    place = Place(environment, Path(folder) / "place", _free_port(), models)
                    try:
                        rows.append(measure(peer, place, texts, right, number, settings))
                    except BenchError as error:
                        # The others are measured all the same.
                        failed.append(f"{peer.name}, round {number}: {error}")
                        continue
                click.echo(_line(rows[-1]), err=True)
    except (BenchError, subprocess.CalledProcessError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps([asdict(row) for row in rows]) if as_json else table(rows))
    if report is not None:
        resolution = max(row.resolution for row in rows)
        limit = f"the highest rate with p99 within {p99_limit:g} ms is known to within {resolution:.1f}"
        write_report(rows, report, f"{rounds} rounds, {seconds:g} s a load, {encoder}; {limit}.")
    if failed:
        raise click.ClickException("\n".join(failed))


def _line(row: Row) -> str:
    return (
        f"{row.peer:22} lone {row.lone_p50_ms:7.1f} ms   64 clients {row.rate:7.1f}/s   within the limit"
        f" {row.at_limit:7.1f}/s   {row.loaded_megabytes:6.0f} MB"
        f"   replaced in {row.replaced_seconds:6.2f} s, {row.failed} of {row.calls} failed"
    )


def _free_port() -> int:
    """The first of three that nobody listens on now."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
        if port < 65_000 and all(_is_free(port + one) for one in range(3)):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) != 0


if __name__ == "__main__":
    main()
