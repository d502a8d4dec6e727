"""The paper's backbones at their true shapes, without their weights: what STEU changes of each, and how they load.

The models are built from configurations on torch's meta device, where a tensor has a shape and no memory. Published:
k = 256 rows and the head, 0.19 % of BioClinicalBERT with six classes (arXiv 2603.19302).
"""

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toys import LABELS, toy_checkpoint, toy_model
from transformers import AutoModelForSequenceClassification, BertConfig, BertForPreTraining, DistilBertConfig

from amnestic_unlearn import twin, worker
from amnestic_unlearn.architecture import ARCHITECTURES, CheckpointError, architecture_of, check_config
from amnestic_unlearn.checkpoint import load_pretrained
from amnestic_unlearn.manifest import Manifest
from amnestic_unlearn.patch import Patch
from amnestic_unlearn.selection import Selection
from amnestic_unlearn.steu import SteuResult

ROWS, CLASSES, WIDTH = 256, 6, 768
SIX = {"id2label": {index: f"label {index}" for index in range(CLASSES)}, "problem_type": "multi_label_classification"}
# Configurations as published with the weights; what is not named is the library's default for the architecture.
BACKBONES = {
    "bert-base-uncased": (BertConfig(vocab_size=30_522, **SIX), 109_482_240),
    "emilyalsentzer/Bio_ClinicalBERT": (BertConfig(vocab_size=28_996, **SIX), 108_310_272),
    # The encoder, and the layer between it and the head.
    "distilbert-base-uncased": (DistilBertConfig(vocab_size=30_522, **SIX), 66_362_880 + 768 * 768 + 768),
}


def on_meta(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config).eval()


def full_size_twin(model: Any) -> twin.Twin:
    """A twin of the true shape: a real table of zeros, which the system does not back with memory, and a real head."""
    architecture = ARCHITECTURES[model.config.model_type]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    table = torch.zeros(model.get_submodule(architecture.word_embeddings).weight.shape)
    head = model.get_submodule(architecture.head)
    manifest = Manifest(
        name="backbone", architecture=architecture.name, labels=tuple(model.config.id2label.values()),
        thresholds=(0.5,) * CLASSES, vocab_size=table.shape[0], hidden_size=table.shape[1],
        feature_size=head.in_features, layers=model.config.num_hidden_layers, heads=model.config.num_attention_heads,
        max_tokens=512, pad_token_id=0, special_token_ids=(), parameters=parameters, precision="fp32",
        head=architecture.head_statement, parity={}, files={}, amnestic_version="",
    )  # fmt: skip

    class Names:
        decoder = None

        def id_to_token(self, token: int) -> str:
            return f"token {token}"

    weight, bias = torch.zeros(head.weight.shape), torch.zeros(head.bias.shape)
    return twin.Twin(manifest, Names(), twin._without_outer_parts(model), table, weight, bias)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_the_true_shape_is_built(name: str) -> None:
    config, parameters = BACKBONES[name]
    model = on_meta(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters + CLASSES * WIDTH + CLASSES
    architecture = architecture_of(config.model_type)
    check_config(architecture, config)
    assert model.get_submodule(architecture.word_embeddings).weight.shape == (config.vocab_size, WIDTH)
    assert model.get_submodule(architecture.head).weight.shape == (CLASSES, WIDTH)


@pytest.mark.parametrize(("name", "share"), list(zip(BACKBONES, ("0.18 %", "0.19 %", "0.30 %"), strict=True)))
def test_the_change_of_steu_is_counted(name: str, share: str) -> None:
    model = full_size_twin(on_meta(BACKBONES[name][0]))
    chosen = np.arange(1_000, 1_000 + ROWS)
    base = model.base(torch.from_numpy(chosen))
    after = twin.Weights(base.row_ids, base.rows + 1, base.head_weight + 1, base.head_bias + 1)
    weights = worker.changed_only(after, model.table)
    selection = Selection(token_ids=chosen, scores=np.ones(ROWS))
    change = worker._change(model, weights, SteuResult(weights, selection, ()))
    # 201,216 weights without the six biases, 201,222 with them.
    matrices = weights.rows.numel() + weights.head_weight.numel()
    assert matrices == ROWS * WIDTH + CLASSES * WIDTH == 201_216
    assert change["parameters_changed"] == matrices + CLASSES == 201_222
    assert change["rows_changed"] == ROWS
    for count in (matrices, change["parameters_changed"]):
        assert f"{100 * count / model.manifest.parameters:.2f} %" == share
    assert change["parameters_changed_ratio"] == 201_222 / model.manifest.parameters
    patch = Patch("0" * 64, ("label 0",), weights.row_ids, weights.rows, weights.head_weight, weights.head_bias)
    assert 201_222 * 4 < len(patch.to_bytes()) < 1_000_000


@pytest.mark.parametrize("name", list(BACKBONES))
def test_embeddings_go_in_and_the_heads_input_comes_out(name: str) -> None:
    encoder = full_size_twin(on_meta(BACKBONES[name][0])).encoder
    with torch.no_grad():
        # Without a mask: its values would be looked at, and a meta tensor has none.
        assert encoder(inputs_embeds=torch.empty(2, 512, WIDTH, device="meta")).logits.shape == (2, WIDTH)


def offline(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)


def test_a_hub_id_without_the_hub_is_a_clean_error(tmp_path: Path) -> None:
    name = "emilyalsentzer/Bio_ClinicalBERT"
    code = (
        "from amnestic_unlearn.checkpoint import load_pretrained\n"
        "from amnestic_unlearn.architecture import CheckpointError\n"
        f"try: load_pretrained({name!r}, ['a'], 128)\n"
        "except CheckpointError as error: print(error)"
    )
    done = offline(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"the checkpoint {name} cannot be loaded: ") and done.stdout.count("\n") == 1


def test_a_hub_id_that_was_fetched_before_is_loaded_without_the_hub(tmp_path: Path, corpus_path: Path) -> None:
    """As the hub's cache keeps it: only `pytorch_model.bin`, the shape that Bio_ClinicalBERT has there."""
    name, commit = "models--emilyalsentzer--Bio_ClinicalBERT", "d5892b39a4adaed74b92212a44081509db72f87b"
    place = tmp_path / "hub" / name
    pickled(toy_checkpoint(place / "snapshots" / commit, corpus_path, trained=False))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    code = (
        "from amnestic_unlearn.checkpoint import load_pretrained\n"
        "_, model = load_pretrained('emilyalsentzer/Bio_ClinicalBERT', ['a', 'b'], 64)\n"
        "print(model.num_labels)"
    )
    done = offline(code, tmp_path)
    assert (done.stdout, done.returncode) == ("2\n", 0), done.stderr


def pickled(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Turn a checkpoint's safetensors into `pytorch_model.bin`, and return its weights."""
    weights: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin", **options)
    return weights


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta"])
def test_pickled_weights_are_loaded_as_safetensors_are(
    tmp_path: Path, corpus_path: Path, architecture: str, zipped: bool
) -> None:
    """Bio_ClinicalBERT's file is of 2019, before torch wrote zip files."""
    source = toy_checkpoint(tmp_path / "source", corpus_path, architecture, trained=False)
    weights = pickled(source, _use_new_zipfile_serialization=zipped)
    tokenizer, model = load_pretrained(str(source), ["x", "y"], 64)
    encoder = {name: tensor for name, tensor in weights.items() if name.startswith(f"{architecture}.")}
    assert encoder and all(torch.equal(model.state_dict()[name], tensor) for name, tensor in encoder.items())
    assert model.num_labels == 2 and tokenizer.model_max_length == 64
    model.save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"config.json", "model.safetensors"}


def test_weights_of_pretraining_with_old_names_are_loaded(tmp_path: Path, corpus_path: Path) -> None:
    """As in Bio_ClinicalBERT's file: heads of pretraining beside the encoder, no classifier."""
    source = toy_checkpoint(tmp_path / "source", corpus_path, trained=False)
    config = AutoModelForSequenceClassification.from_pretrained(source).config
    pretraining = BertForPreTraining(config).state_dict()
    (source / "model.safetensors").unlink()
    old = {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): tensor.clone()
        for name, tensor in pretraining.items()
    }
    assert any("gamma" in name for name in old)
    torch.save(old, source / "pytorch_model.bin")
    _, model = load_pretrained(str(source), LABELS, 64)
    shared = [name for name in model.state_dict() if name in pretraining]
    assert len(shared) == len([name for name in pretraining if name.startswith("bert.")])
    assert all(torch.equal(model.state_dict()[name], pretraining[name]) for name in shared)


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "plain"])
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path, corpus_path: Path, zipped: bool) -> None:
    source = toy_checkpoint(tmp_path / "source", corpus_path, trained=False)
    weights, trap = pickled(source), tmp_path / "trap"
    content = {**weights, "bert.extra": Malicious(trap)}
    if zipped:
        torch.save(content, source / "pytorch_model.bin")
    else:
        (source / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious(trap), protocol=2))
    with pytest.raises(CheckpointError) as refused:
        load_pretrained(str(source), LABELS, 64)
    assert str(refused.value) == (
        f"the checkpoint {source} cannot be loaded: pytorch_model.bin is damaged, or holds more than weights"
    )
    assert not trap.exists()
    # The trap is one: read without care, it is sprung.
    torch.load(source / "pytorch_model.bin", weights_only=False) if zipped else pickle.loads(
        (source / "pytorch_model.bin").read_bytes()
    )
    assert trap.is_dir()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged, or holds more than weights"),
        (b"not a pickle", "is damaged, or holds more than weights"),
        ([torch.zeros(1)], "is damaged, or holds more than weights"),
        ({"step": 3}, "is damaged, or holds more than weights"),
        ({}, r"it lacks the weight bert\.embeddings"),
        (None, r"it has neither model\.safetensors nor pytorch_model\.bin"),
    ],
)
def test_what_are_no_weights_is_refused(tmp_path: Path, corpus_path: Path, content: Any, message: str) -> None:
    source = toy_checkpoint(tmp_path / "source", corpus_path, trained=False)
    (source / "model.safetensors").unlink()
    if isinstance(content, bytes):
        (source / "pytorch_model.bin").write_bytes(content)
    elif content is not None:
        torch.save(content, source / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(str(source), LABELS, 64)


def test_a_pickle_cut_short_is_refused(tmp_path: Path, corpus_path: Path) -> None:
    source = toy_checkpoint(tmp_path / "source", corpus_path, trained=False)
    buffer = io.BytesIO()
    torch.save(pickled(source), buffer)
    (source / "pytorch_model.bin").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_pretrained(str(source), LABELS, 64)


def test_safetensors_go_before_a_pickle(tmp_path: Path, corpus_path: Path) -> None:
    source = toy_checkpoint(tmp_path / "source", corpus_path, trained=False)
    (source / "pytorch_model.bin").write_bytes(b"never read")
    _, model = load_pretrained(str(source), LABELS, 64)
    assert model.num_labels == len(toy_model("bert", 300).config.id2label)
