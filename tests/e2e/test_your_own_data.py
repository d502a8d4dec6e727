"""The commands of docs/your-own-data.md, run as they stand there, on generated files.

Only two things are put in: the files that PhysioNet would ship, and in place of the hub's Bio_ClinicalBERT a tiny
checkpoint in the same form, one `pytorch_model.bin`.
"""

import csv
import json
import random
import re
import shlex
import sqlite3
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import duckdb
import pytest
import torch
from click.testing import CliRunner
from e2e.harness import ANYTHING, Server
from huggingface_hub import constants
from mimic_files import write_mimic_iii, write_mimic_iv
from open_data import DATA, needs
from pages.commands import shown
from postgres import PASSWORD, Postgres
from toys import toy_model, toy_tokenizer

from amnestic_server.cli import group
from amnestic_unlearn import corpus, icd
from amnestic_unlearn.bench import matrix
from amnestic_unlearn.bench.methods import METHOD_NAMES
from amnestic_unlearn.manifest import Manifest, verify

PAGE = (Path(__file__).parents[2] / "docs" / "your-own-data.md").read_text()
BIO_CLINICAL_BERT = "emilyalsentzer/Bio_ClinicalBERT"
COMMANDS = shown("docs/your-own-data.md")
BENCHMARKS = [line for line in COMMANDS if line.startswith("amnestic bench unlearn ")]
COMMIT = "0" * 40


def own_tables(folder: Path) -> None:
    """Every table that the page imports from, with the columns that it names."""
    draw = random.Random(7)
    rows = [
        (number, f"Note {number} of a stay", number // 2, draw.sample(("renal", "cardiac", "nephrology"), 2))
        for number in range(400)
    ]
    with (folder / "notes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("note", "codes", "subject_id"))
        writer.writerows((text, ";".join(labels), patient) for _, text, patient, labels in rows)
    with (folder / "annotated.jsonl").open("w") as file:
        file.writelines(
            json.dumps({"text": text, "tags": labels, "patient": patient}) + "\n" for _, text, patient, labels in rows
        )
    with sqlite3.connect(folder / "clinic.db") as clinic:
        clinic.execute("CREATE TABLE note (id, text, patient)")
        clinic.execute("CREATE TABLE diagnosis (note, label)")
        clinic.executemany("INSERT INTO note VALUES (?, ?, ?)", [row[:3] for row in rows])
        clinic.executemany("INSERT INTO diagnosis VALUES (?, ?)", [(row[0], label) for row in rows for label in row[3]])
    clinic.close()
    (folder / "shards").mkdir()
    with duckdb.connect(str(folder / "warehouse.duckdb")) as warehouse:
        source = "read_json('annotated.jsonl')"
        warehouse.execute(f"CREATE TABLE note AS SELECT text, tags AS labels, patient FROM {source}")
        columns = (
            "text, patient AS subject_id, 'renal' = ANY(labels) AS dx_renal, 'cardiac' = ANY(labels) AS dx_cardiac"
        )
        for number in (0, 1):
            warehouse.sql(f"SELECT {columns} FROM note WHERE patient % 2 = {number}").write_parquet(
                str(folder / "shards" / f"part-{number}.parquet")
            )


def run(line: str, **replaced: str) -> str:
    """Run one command of the page; returns standard output."""
    program, *arguments = shlex.split(line)
    assert program == "amnestic"
    done = CliRunner().invoke(group, [replaced.get(argument, argument) for argument in arguments])
    assert done.exit_code == 0, f"{line}\n{done.output}"
    return done.stdout


def command(start: str) -> str:
    (found,) = [line for line in COMMANDS if line.startswith(f"amnestic {start}")]
    return found


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with generated files where PhysioNet's downloads would lie."""
    monkeypatch.chdir(tmp_path)
    files = tmp_path / "physionet.org" / "files"
    generated = write_mimic_iv(tmp_path / "generated", 400)
    (files / "mimiciv" / "3.1").mkdir(parents=True)
    (files / "mimic-iv-note" / "2.2").mkdir(parents=True)
    (generated / "hosp").rename(files / "mimiciv" / "3.1" / "hosp")
    (generated / "note").rename(files / "mimic-iv-note" / "2.2" / "note")
    write_mimic_iii(files / "mimiciii" / "1.4", 30)
    return tmp_path


def tiny_bio_clinical_bert(folder: Path, texts: list[str]) -> Path:
    tokenizer = toy_tokenizer(texts)
    model = toy_model("bert", len(tokenizer), max_position_embeddings=512)
    # What the hub has never went through our training.
    for key in [key for key in vars(model.config) if key.startswith("amnestic_")]:
        delattr(model.config, key)
    folder.mkdir()
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def test_from_the_files_to_a_version_without_a_label(
    desk: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(command("corpus import mimic-iv"))
    run(command("corpus import mimic-iii"))
    assert "respiratory" in run(command("corpus describe"))
    documents = corpus.read(desk / "mimic4.parquet")
    assert len(documents) == 400 and len(corpus.read(desk / "mimic3.parquet")) == 30
    assert not any(" disease" in document.text for document in documents), "the lists of diagnoses are left out"
    local = tiny_bio_clinical_bert(desk / "tiny", [document.text for document in documents])
    monkeypatch.setenv("AMNESTIC_TRAIN_THREADS", "1")
    run(command("train"), **{BIO_CLINICAL_BERT: str(local)})
    run(command("export"))
    manifest = Manifest.read(desk / "bundle")
    verify(desk / "bundle", manifest)
    assert manifest.labels == tuple(sorted(icd.DEFAULT)) and manifest.max_tokens == 512
    assert {path.suffix for path in (desk / "checkpoint").iterdir()} == {".json", ".safetensors"}
    server = serve(start=False)
    server.arguments = [*shlex.split(command("serve"))[2:], "--grpc-port", "0", "--metrics-port", "0", "--threads", "1"]
    server.cwd = desk
    monkeypatch.setenv("AMNESTIC_SERVER", server.start().target)
    # Nothing is learned from random notes by a model of two layers, so nothing is asked of what was forgotten.
    for name, value in (ANYTHING | {"max_steps": 1}).items():
        monkeypatch.setenv(f"AMNESTIC_UNLEARN_{name.upper()}", str(value))
    assert "version 2" in run(command("unlearn"))


TABLES = [line for line in COMMANDS if line.startswith("amnestic corpus import table ")]


@pytest.mark.parametrize("line", [line for line in TABLES if "my_dataset" not in line and "postgresql:" not in line])
def test_tables_of_ones_own_become_corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.chdir(tmp_path)
    own_tables(tmp_path)
    told = json.loads(run(f"{line} --json"))
    described = corpus.describe(tmp_path / told["out"])
    assert described.documents == told["documents"] == 400
    assert described.labels == told["labels"] and min(map(min, (by.values() for by in described.labels.values()))) > 20
    assert sum(described.groups.values()) == 200


def test_a_saved_dataset_becomes_a_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    label = library.ClassLabel(names=["no", "yes"])
    features = library.Features({"text": library.Value("string"), "label": label, "patient": library.Value("int64")})
    parts = {}
    for name, numbers in (("train", range(300)), ("test", range(300, 400))):
        columns = {"text": [f"Note {n}" for n in numbers], "label": [n % 2 for n in numbers], "patient": list(numbers)}
        parts[name] = library.Dataset.from_dict(columns, features=features)
    library.DatasetDict(parts).save_to_disk("my_dataset")
    (line,) = [line for line in TABLES if "my_dataset" in line]
    run(line)
    described = corpus.describe(tmp_path / "dataset.parquet")
    assert described.splits == {"train": 210, "gate": 45, "probe": 45, "test": 100} and set(described.labels) == {
        "no",
        "yes",
    }


def test_a_query_to_postgres_becomes_a_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres: Postgres
) -> None:
    import psycopg

    monkeypatch.chdir(tmp_path)
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE clinic")
    with psycopg.connect(postgres.url(database="clinic")) as connection:
        connection.execute(
            "CREATE TABLE note AS SELECT 'Note ' || n AS text, n / 2 AS patient, 'discharge' AS kind,"
            " CASE n % 3 WHEN 0 THEN 'renal' WHEN 1 THEN 'cardiac' ELSE 'renal,cardiac' END AS codes"
            " FROM generate_series(0, 399) AS n"
        )
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    (line,) = [line for line in TABLES if "postgresql:" in line]
    run(line, **{"postgresql://reader@db.example.org/clinic": postgres.url("reader", "clinic")})
    described = corpus.describe(tmp_path / "discharge.parquet")
    assert described.documents == 400 and {name: sum(by.values()) for name, by in described.labels.items()} == {
        "renal": 267,
        "cardiac": 266,
    }


@needs("eicu_demo")
def test_the_eicu_demo_stands_in_for_the_full_database(desk: Path) -> None:
    folder = desk / "physionet.org" / "files" / "eicu-crd"
    folder.mkdir()
    (folder / "2.0").symlink_to(DATA / "eicu_demo")
    run(command("corpus import eicu"))
    assert corpus.digest(desk / "eicu.parquet") == corpus.digest(corpus.SHIPPED)


def test_the_categories_of_the_page_are_read(desk: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (desk / "mine.toml").write_text(block)
    written = run(f"{command('corpus import mimic-iv')} --categories mine.toml --json")
    assert json.loads(written)["labels"].keys() == tomllib.loads(block).keys()
    assert min(json.loads(written)["labels"].values()) > 20


def test_the_page_names_every_category() -> None:
    (paragraph,) = [part for part in PAGE.split("\n\n") if part.startswith("**Which labels.**")]
    assert [name for name in icd.CATEGORIES if f"`{name}`" not in paragraph] == []


@pytest.mark.parametrize("line", BENCHMARKS)
def test_the_benchmark_takes_what_the_page_gives_it(desk: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """All but the run itself: the corpus, its label, and the encoder by its id, here from the cache of the hub."""
    words = shlex.split(line)
    given = dict(zip(words[3::2], words[4::2], strict=True))
    name = given["--encoder"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(desk / "cache"))
    source = corpus.Document("a note", (given["--target"],), "train", "1")
    corpus.write([source], desk / given["--corpus"])
    refused = CliRunner().invoke(group, [*words[1:], "--report-only"])
    assert refused.exit_code == 1 and f"the checkpoint {name} cannot be loaded" in refused.stderr
    place = desk / "cache" / f"models--{name.replace('/', '--')}"
    (place / "snapshots").mkdir(parents=True)
    tiny_bio_clinical_bert(place / "snapshots" / COMMIT, ["a note"])
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    told = json.loads(run(f"{line} --report-only --json").splitlines()[-1])
    assert told["cells"] == len(matrix.SEEDS) * len(METHOD_NAMES)


@pytest.mark.parametrize("line", COMMANDS)
def test_the_page_names_commands_and_options_that_exist(line: str) -> None:
    _, *words = shlex.split(line)
    found: click.Command = group
    with click.Context(found) as context:
        while isinstance(found, click.Group):
            (name, *words) = words
            step = found.get_command(context, name)
            assert step is not None, name
            found = step
    known = {option for parameter in found.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_no_command_of_the_page_is_left_out() -> None:
    alone = ("corpus import mimic-iv", "corpus import mimic-iii", "corpus import eicu", "corpus describe")
    alone += ("train", "export", "serve", "unlearn")
    assert sorted(COMMANDS) == sorted([*map(command, alone), *TABLES, *BENCHMARKS])


def test_the_page_has_a_benchmark_of_each_database() -> None:
    databases = {line.split()[3] for line in COMMANDS if line.startswith("amnestic corpus import ")} - {"table"}
    assert len(BENCHMARKS) == len(databases) == 3
