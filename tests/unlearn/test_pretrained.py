"""What a checkpoint's folder may hold: weights of every form, old tokenizers, and what is refused, with the reason."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from toys import LABELS, toy_checkpoint, toy_model, toy_tokenizer
from transformers import AutoModel

from amnestic_unlearn import pretrained
from amnestic_unlearn.architecture import CheckpointError
from amnestic_unlearn.checkpoint import load_pretrained

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "In", "in", "##sul", "##in", "given", "Given"]
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory, corpus_path: Path) -> Callable[[str], Path]:
    """Checkpoints with random weights; made once, so a test works on copies."""
    folder, made = tmp_path_factory.mktemp("toys"), {}

    def toy(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = toy_checkpoint(folder / architecture, corpus_path, architecture, trained=False)
        return made[architecture]

    return toy


@pytest.fixture
def source(toys: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(toys("bert"), tmp_path / "source"))


def take_weights(folder: Path) -> Weights:
    weights: Weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return weights


def write_parts(folder: Path, weights: Weights, suffix: str) -> list[Path]:
    """In two files and an index, as large checkpoints are."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    paths = [folder / f"{stem}-0000{number}-of-00002.{suffix}" for number in (1, 2)]
    placed = {name: paths[position % 2] for position, name in enumerate(weights)}
    for path in paths:
        part = {name: tensor for name, tensor in weights.items() if placed[name] == path}
        save_file(part, path) if suffix == "safetensors" else torch.save(part, path)
    index = {"metadata": {}, "weight_map": {name: path.name for name, path in placed.items()}}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return paths


def edit(path: Path, **settings: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    fields = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


def refusal(source: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        pretrained.classifier(pretrained.read(str(source)))
    assert "\n" not in str(refused.value)
    return str(refused.value).removeprefix(f"the checkpoint {source} cannot be loaded: ")


@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["safetensors", "bin", "one bin"])
def test_weights_of_every_form_and_precision_are_read_in_single(
    source: Path, form: str, precision: torch.dtype
) -> None:
    weights = {name: tensor.to(precision) for name, tensor in take_weights(source).items()}
    edit(source / "config.json", dtype=str(precision).removeprefix("torch."))
    if form == "one bin":
        torch.save(weights, source / "pytorch_model.bin")
    else:
        write_parts(source, weights, form)
    loaded = pretrained.classifier(pretrained.read(str(source)))
    assert loaded.absent == ()
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    state = loaded.model.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in weights.items())


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_a_part_that_runs_code_is_refused_and_not_run(source: Path, tmp_path: Path) -> None:
    _, second = write_parts(source, take_weights(source), "bin")
    torch.save({"bert.extra": Malicious(tmp_path / "trap")}, second)
    assert refusal(source) == f"{second.name} is damaged, or holds more than weights"
    assert not (tmp_path / "trap").exists()


def missing_part(source: Path) -> None:
    write_parts(source, take_weights(source), "safetensors")[1].unlink()


def damaged_part(source: Path) -> None:
    write_parts(source, take_weights(source), "safetensors")[1].write_bytes(b"damaged")


def outside(source: Path) -> None:
    write_parts(source, take_weights(source), "bin")
    edit(source / "pytorch_model.bin.index.json", weight_map={"bert.x": "../elsewhere.bin"})


def index_without_a_map(source: Path) -> None:
    write_parts(source, take_weights(source), "bin")
    (source / "pytorch_model.bin.index.json").write_text('{"weight_map": [1]}')


def no_configuration(source: Path) -> None:
    (source / "config.json").unlink()


def no_type(source: Path) -> None:
    edit(source / "config.json", model_type=None)
    save_file({"some.weight": torch.zeros(1)}, source / "model.safetensors")


def no_tokenizer(source: Path) -> None:
    (source / "tokenizer.json").unlink()


def sentencepiece_alone(source: Path) -> None:
    (source / "tokenizer.json").unlink()
    (source / "sentencepiece.bpe.model").write_bytes(b"a model")


def python_tokenizer(source: Path) -> None:
    (source / "tokenizer.json").unlink()
    (source / "vocab.txt").write_text("a 1\nb 2\n")
    (source / "bpe.codes").write_text("a b 3\n")
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "BertweetTokenizer"}')


def more_tokens_than_rows(source: Path) -> None:
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.add_tokens([f"added{number}" for number in range(400)])
    tokenizer.save(str(source / "tokenizer.json"))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (missing_part, "model-00002-of-00002.safetensors is missing"),
        (damaged_part, "model-00002-of-00002.safetensors is damaged"),
        (outside, "pytorch_model.bin.index.json names a file outside the checkpoint"),
        (index_without_a_map, "pytorch_model.bin.index.json is damaged"),
        (no_configuration, "it has no config.json"),
        (no_type, "config.json has no model_type"),
        (no_tokenizer, "it has no tokenizer: neither tokenizer.json nor a vocabulary"),
        (sentencepiece_alone, "its tokenizer is a SentencePiece model alone: pip install sentencepiece"),
        (python_tokenizer, "its tokenizer is in Python code alone, without a fast one (tokenizer.json)"),
        (more_tokens_than_rows, "its tokenizer has 700 tokens, the embedding table only 300 rows"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(
    source: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None], reason: str
) -> None:
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    spoil(source)
    assert refusal(source) == reason


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "electra"])
def test_a_configuration_from_before_the_model_type_is_told_by_its_weights(
    toys: Callable[[str], Path], tmp_path: Path, architecture: str
) -> None:
    source = Path(shutil.copytree(toys(architecture), tmp_path / "old"))
    edit(source / "config.json", model_type=None, architectures=None)
    read = pretrained.read(str(source))
    assert read.architecture.name == read.config.model_type == architecture


def test_code_of_a_checkpoint_is_not_run(source: Path, tmp_path: Path) -> None:
    (source / "code.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'trap')!r})\nclass Own: pass\n")
    edit(source / "config.json", auto_map={"AutoConfig": "code.Own", "AutoModelForSequenceClassification": "code.Own"})
    edit(source / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Own", "code.Own"]})
    assert pretrained.classifier(pretrained.read(str(source))).absent == ()
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        (None, ["[CLS]", "in", "##sul", "##in", "given", "[SEP]"]),
        ({"do_lower_case": True}, ["[CLS]", "in", "##sul", "##in", "given", "[SEP]"]),
        (
            {"do_lower_case": False, "tokenizer_class": "BertTokenizer"},
            ["[CLS]", "In", "##sul", "##in", "Given", "[SEP]"],
        ),
    ],
    ids=["unsaid", "uncased", "cased"],
)
def test_a_bare_vocabulary_becomes_a_fast_tokenizer(
    source: Path, settings: dict[str, Any] | None, tokens: list[str]
) -> None:
    for file in source.glob("*token*"):
        file.unlink()
    (source / "vocab.txt").write_text("\n".join(VOCABULARY))
    if settings is not None:
        (source / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = pretrained.read(str(source)).tokenizer
    assert tokenizer("Insulin Given").tokens() == tokens
    tokenizer.save_pretrained(source / "saved")
    assert Tokenizer.from_file(str(source / "saved" / "tokenizer.json")).encode("Insulin Given").tokens == tokens


def test_the_merges_of_a_byte_level_vocabulary_become_a_fast_tokenizer(
    toys: Callable[[str], Path], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(toys("roberta"), tmp_path / "source"))
    fast = Tokenizer.from_file(str(source / "tokenizer.json"))
    for file in source.glob("*token*"):
        file.unlink()
    fast.model.save(str(source))
    tokenizer = pretrained.read(str(source)).tokenizer
    text = "Patient seen, insulin given without ketones"
    assert tokenizer(text).tokens() == fast.encode(text).tokens
    assert tokenizer.pad_token_id == 1


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra"])
def test_an_encoder_that_was_saved_alone_is_trained_from(tmp_path: Path, architecture: str) -> None:
    """Its weights bear no prefix, and it has no head."""
    tokenizer = toy_tokenizer(["a note of the day"], architecture)
    encoder = AutoModel.from_config(toy_model(architecture, len(tokenizer)).config)
    encoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    _, model = load_pretrained(str(tmp_path), LABELS, 64)
    own = encoder.state_dict()
    assert own and all(
        torch.equal(tensor, own[name]) for name, tensor in model.base_model.state_dict().items() if name in own
    )


def test_an_encoder_whose_rows_would_be_random_is_not_trained_from(source: Path) -> None:
    edit(source / "config.json", vocab_size=301)
    with pytest.raises(
        CheckpointError, match=r"lacks the weight bert\.embeddings\.word_embeddings\.weight, or has it in"
    ):
        load_pretrained(str(source), LABELS, 64)
