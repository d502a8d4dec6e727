"""Which cells there are, in what order, and what tells one setting of a way of forgetting from another."""

import dataclasses
import functools
import json

import pytest
from huggingface_hub import constants
from tiny import TINY
from toys import toy_model, toy_tokenizer

from amnestic_unlearn.architecture import CheckpointError
from amnestic_unlearn.baselines.relabel import RandomLabel
from amnestic_unlearn.bench import matrix
from amnestic_unlearn.bench.cells import Plan, Source
from amnestic_unlearn.bench.methods import METHOD_NAMES, METHODS, Steu, digest, for_encoder
from amnestic_unlearn.checkpoint import save
from amnestic_unlearn.spec import PRESETS, Method
from amnestic_unlearn.train_settings import CHECKPOINT_RATE, SCRATCH_RATE, TrainError
from amnestic_unlearn.windows import Reading

OTHER = dataclasses.replace(TINY, name="other", path="/somewhere")
PLAN = Plan(
    out="out",
    sources=(Source("one", "one.csv", ("a", "b")), Source("two", "two.csv", ("c",))),
    encoders=(TINY, OTHER),
    seeds=(0, 1),
    methods=("original", "paper"),
)


@dataclasses.dataclass(frozen=True)
class Rate:
    value: float = 0.1


@dataclasses.dataclass(frozen=True)
class OtherRate:
    value: float = 0.2


def usual(twin, rate: Rate | None = None):
    pass


def unusual(twin, rate: OtherRate | None = None):
    pass


def test_a_seed_is_whole_before_the_next_begins():
    cases = [case.key for case in PLAN.cases()]
    assert cases[:3] == [("one", "tiny", 0, "a"), ("one", "tiny", 0, "b"), ("two", "tiny", 0, "c")]
    assert [seed for _, _, seed, _ in cases] == [0] * 6 + [1] * 6
    assert len(set(cases)) == 12
    assert PLAN.cells()[:2] == [("one", "tiny", 0, "a", "original"), ("one", "tiny", 0, "a", "paper")]
    assert len(PLAN.cells()) == 24


def test_a_sequence_has_one_case_a_classifier():
    cases = [case.key for case in dataclasses.replace(PLAN, sequence=True).cases()]
    assert cases[:3] == [("one", "tiny", 0, ""), ("two", "tiny", 0, ""), ("one", "other", 0, "")]
    assert len(cases) == 8


def test_a_plan_comes_back_from_its_file(tmp_path):
    PLAN.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == PLAN


def test_settings_are_told_apart_and_equal_ones_are_not():
    settings = [
        Steu(Method()),
        Steu(Method(k=255)),
        METHODS["bias-edit"],
        METHODS["zero-row"],
        functools.partial(METHODS["bias-edit"], settings=Rate()),
        functools.partial(METHODS["bias-edit"], settings=Rate(0.3)),
        usual,
        unusual,
    ]
    assert len({digest(each) for each in settings}) == len(settings)
    assert digest(Steu(Method()), TINY.training) == digest(Steu(Method(k=256)), dataclasses.replace(TINY.training))
    assert digest(Steu(Method())) != digest(Steu(Method()), 1)


def test_rows_from_before_a_setting_came_are_those_of_its_default():
    method = PRESETS["amnestic"]
    assert digest(METHODS["amnestic"]) == "eaa0914fcb6f", "the rows that docs/benchmarks holds would be measured anew"
    assert digest(Steu(dataclasses.replace(method, refit_head=True))) != digest(Steu(method))


def test_settings_that_a_function_makes_itself_count(monkeypatch):
    before = digest(usual)
    monkeypatch.setattr(Rate, "__init__", lambda self, value=0.5: object.__setattr__(self, "value", value))
    assert digest(usual) != before


def test_every_way_of_forgetting_has_settings_of_its_own():
    digests = {digest(METHODS[name]) for name in METHOD_NAMES if name != "retrained"}
    assert len(digests) == len(METHOD_NAMES) - 1
    assert set(matrix.QUICK_METHODS) <= set(METHOD_NAMES)


@pytest.mark.parametrize("thresholds", [(0.5,) * 4, ()], ids=["multi-label", "single-label"])
def test_a_classifier_that_was_trained_is_no_encoder(tmp_path, thresholds):
    tokenizer = toy_tokenizer(["a note"])
    save(toy_model("bert", len(tokenizer)), tokenizer, thresholds, Reading(48), tmp_path / "trained")
    with pytest.raises(TrainError, match="trained classifier"):
        matrix.pretrained(str(tmp_path / "trained"))


def test_only_a_checkpoint_is_taken_as_an_encoder(tmp_path):
    with pytest.raises(TrainError, match="not a checkpoint"):
        matrix.pretrained(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    encoder = matrix.pretrained(str(tmp_path))
    assert encoder.checkpoint() == str(tmp_path)
    assert encoder.name == f"{tmp_path.name}-{matrix.weights_digest(tmp_path)[:6]}"


def test_an_encoder_of_ones_own_is_another_when_its_weights_change(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    names = {matrix.pretrained(str(tmp_path)).name}
    for name in ("model.safetensors", "pytorch_model.bin", "vocab.txt"):
        (tmp_path / name).write_bytes(b"content")
        names.add(matrix.pretrained(str(tmp_path)).name)
    assert len(names) == 4


def test_an_id_of_the_hub_is_found_in_its_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"^the checkpoint someone/bert cannot be loaded: [^\n]+$"):
        matrix.pretrained("someone/bert")
    place = tmp_path / "models--someone--bert"
    snapshot = place / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text("{}")
    for fetch in (True, False):
        with pytest.raises(CheckpointError, match=r"no weights in safetensors, and no pytorch_model\.bin"):
            matrix.pretrained("someone/bert", fetch)
    (snapshot / "pytorch_model.bin").write_bytes(b"weights")
    for fetch in (True, False):
        encoder = matrix.pretrained("someone/bert", fetch)
        assert encoder.name == f"bert-{matrix.weights_digest(snapshot)[:6]}"
        assert encoder.checkpoint() == str(snapshot)
    assert encoder.training == matrix.ENCODERS["minilm"].training


def test_encoder_rates_are_in_proportion_to_those_of_training():
    scratch, pretrained = matrix.ENCODERS["small"], matrix.ENCODERS["minilm"]
    salun = METHODS["salun"]
    rates = [for_encoder(salun, encoder).keywords["settings"].schedule for encoder in (scratch, pretrained)]
    assert rates[1] == RandomLabel().schedule
    assert rates[0].encoder_lr == pytest.approx(rates[1].encoder_lr * SCRATCH_RATE / CHECKPOINT_RATE)
    assert rates[0].head_lr == rates[1].head_lr
    for name in ("paper", "bias-edit", "leace", "original"):
        assert for_encoder(METHODS[name], scratch) is METHODS[name]
