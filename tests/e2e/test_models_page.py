"""The commands of docs/models.md, run as they stand there, on tiny checkpoints in place of the hub's and the user's."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import constants
from pages.commands import UNRUN, shown
from toys import toy_checkpoint, toy_model, toy_tokenizer

from amnestic_server.cli import group
from amnestic_unlearn.architecture import ARCHITECTURES
from amnestic_unlearn.manifest import Manifest

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
MAIN, PINNED = "f" * 40, "0123456789abcdef0123456789abcdef01234567"
NAMES = ("cardiac", "endocrine", "renal")


def cached(cache: Path, name: str, commit: str, checkpoint: Path) -> None:
    place = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(checkpoint, place / "snapshots" / commit)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / "main").write_text(commit)


@pytest.fixture
def desk(tmp_path: Path, corpus_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what the page supposes, and a cache with the ids that it names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    shutil.copyfile(corpus_path, tmp_path / "notes.jsonl")
    toy_checkpoint(tmp_path / "checkpoint", corpus_path, trained=False)
    (tmp_path / "labels.txt").write_text("\n".join(NAMES) + "\n")
    tokenizer = toy_tokenizer(["a note of the day"], "roberta")
    for name in ("scores", "old"):
        unnamed = {"id2label": {index: f"LABEL_{index}" for index in range(3)}, "label2id": {}, "problem_type": None}
        toy_model("roberta", len(tokenizer), amnestic_thresholds=None, **unnamed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    cached(tmp_path / "cache", "someone/notes-roberta", PINNED, tmp_path / "old")
    cached(tmp_path / "cache", "someone/notes-roberta", MAIN, tmp_path / "scores")
    toy_checkpoint(tmp_path / "electra-source", corpus_path, "electra", trained=False)
    cached(tmp_path / "cache", "google/electra-small-discriminator", MAIN, tmp_path / "electra-source")
    return tmp_path


def test_every_command_of_the_page_runs(desk: Path) -> None:
    for line in shown("docs/models.md"):
        if line in UNRUN:
            continue
        _, *arguments = shlex.split(line)
        done = CliRunner().invoke(group, arguments)
        assert done.exit_code == 0, f"{line}\n{done.output}"
        assert ("names its labels LABEL_0" in done.stderr) == ("--revision" in line)
    made = {
        folder: Manifest.read(desk / folder) for folder in ("bundle", "roberta", "scores-bundle", "pinned", "electra")
    }
    assert (made["roberta"].labels, made["roberta"].thresholds) == (NAMES, (0.4, 0.5, 0.35))
    assert (made["scores-bundle"].labels, made["scores-bundle"].thresholds) == (NAMES, (0.4,) * 3)
    assert made["pinned"].labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert made["pinned"].name == made["roberta"].name == "someone/notes-roberta"
    assert (made["electra"].architecture, made["electra"].embedding_size) == ("electra", 24)
    config = json.loads((desk / "roberta" / "config.json").read_text())
    assert config["id2label"] == {str(index): name for index, name in enumerate(NAMES)}


def test_the_page_names_every_family() -> None:
    assert all(f"(`{name}`)" in PAGE for name in ARCHITECTURES)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--labels a,b", "the head of the checkpoint has 3 outputs, --labels names 2 labels"),
        (f"--labels {','.join(map(str, range(200)))}", "the head of the checkpoint has 3 outputs"),
        ("--labels a,b,b", "--labels must give each label a name of its own"),
        ("--thresholds 0.1,0.2", "--thresholds is not a list of one threshold a label"),
        ("--thresholds 0.1,0.2,3", "--thresholds holds a value that is not a probability"),
        ("--thresholds high", "not a list of numbers"),
        ("--revision main", "is a directory: only a checkpoint of the hub has revisions"),
        ("--problem-type single-label --thresholds 0.5", "decides for the likeliest label: it has no thresholds"),
        ("--checkpoint nowhere/at-all", "the cache does not hold it"),
    ],
)
def test_what_does_not_fit_the_checkpoint_is_refused(desk: Path, flags: str, message: str) -> None:
    given = [] if "--problem-type" in flags else ["--problem-type", "multi-label"]
    arguments = ["export", "--checkpoint", "scores", *given, "--out", "out", *shlex.split(flags)]
    done = CliRunner().invoke(group, arguments)
    assert done.exit_code != 0 and message in done.output
    assert not (desk / "out").exists()
