"""Bundles of pretrained encoders, for benchmarks: what is kept of the checkpoint, and what is new."""

import json

import pytest
import torch
from safetensors.torch import load_file

from amnestic_server.bench.encoders import encoder_named, pretrained_bundle
from amnestic_server.bench.shapes import LABELS
from amnestic_unlearn.manifest import Manifest
from amnestic_unlearn.train_settings import TrainError


def test_a_bundle_has_the_encoders_weights_and_the_same_fresh_head_each_time(pretrained, tmp_path):
    encoder = encoder_named(str(pretrained))
    heads = []
    for name in ("one", "two"):
        pretrained_bundle(encoder, tmp_path / name)
        heads.append(load_file(tmp_path / name / "head.safetensors")["weight"])
    table = load_file(tmp_path / "one" / "embeddings.safetensors")["weight"]
    assert torch.equal(table, load_file(pretrained / "model.safetensors")["embeddings.word_embeddings.weight"])
    assert heads[0].shape == (len(LABELS), 16) and torch.equal(*heads)
    manifest = Manifest.read(tmp_path / "one")
    assert (manifest.name, manifest.labels, manifest.max_tokens) == (encoder.name, LABELS, 512)
    assert manifest.thresholds == (0.5,) * len(LABELS)


def test_encoders_are_told_apart_by_their_weights(pretrained):
    before = encoder_named(str(pretrained)).name
    assert before.startswith("own-")
    config = json.loads((pretrained / "config.json").read_text())
    (pretrained / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-5}))
    assert encoder_named(str(pretrained)).name != before


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(TrainError, match=r"has no readable config\.json"):
        encoder_named(str(tmp_path))
