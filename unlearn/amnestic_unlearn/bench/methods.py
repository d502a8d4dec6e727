"""Every way of forgetting that the benchmark runs, by name, and what tells one setting of it from another."""

import dataclasses
import functools
import hashlib
import inspect
import json
import typing
from collections.abc import Callable
from typing import Any, cast

import torch

from amnestic_unlearn import steu
from amnestic_unlearn.baselines import BASELINES
from amnestic_unlearn.bench.cells import ORIGINAL, RETRAINED
from amnestic_unlearn.bench.matrix import BenchEncoder
from amnestic_unlearn.forgetting import Forget, Outcome, Report, TrainingData
from amnestic_unlearn.spec import PRESETS, Method
from amnestic_unlearn.train_settings import CHECKPOINT_RATE, SCRATCH_RATE
from amnestic_unlearn.twin import Twin
from amnestic_unlearn.worker import changed_only


def unchanged(twin: Twin, data: TrainingData, seed: int, report: Report) -> Outcome:
    """Forgets nothing: what every other way is measured against."""
    return Outcome(twin, twin.base(torch.empty(0, dtype=torch.int64)), 0)


@dataclasses.dataclass(frozen=True, slots=True)
class Steu:
    """STEU under some settings; the seed of a run replaces that of the settings."""

    method: Method

    def __call__(self, twin: Twin, data: TrainingData, seed: int, report: Report) -> Outcome:
        weights = steu.run(twin, data, dataclasses.replace(self.method, seed=seed), report).weights
        written = changed_only(weights, twin.table)
        head = (weights.head_weight != twin.head_weight).sum() + (weights.head_bias != twin.head_bias).sum()
        return Outcome(twin, written, written.rows.numel() + int(head))


# Settings that the first rows were measured without.
LATER = frozenset({"refit_head"})
METHODS: dict[str, Forget] = {
    ORIGINAL: unchanged,
    **{name: Steu(method) for name, method in PRESETS.items()},
    # What the two parts of the preset do alone: the paper with its other labels held on forget documents too, and the
    # preset without alignment.
    "paper-distil": Steu(dataclasses.replace(PRESETS["paper"], distil_weight=1.0)),
    "no-alignment": Steu(dataclasses.replace(PRESETS["amnestic"], align_weight=0.0)),
    **BASELINES,
}
METHOD_NAMES = (ORIGINAL, RETRAINED, *(name for name in METHODS if name != ORIGINAL))


def for_encoder(method: Forget, encoder: BenchEncoder) -> Forget:
    """The method with rates that suit an encoder: where one trains the encoder, in proportion to how it was trained.

    Its own rates are for an encoder that was fine-tuned at the usual rate for pretrained ones.
    """
    settings = _settings_of(method)
    if settings is None or not hasattr(settings, "schedule"):
        return method
    rate = encoder.training.learning_rate or (CHECKPOINT_RATE if encoder.package or encoder.path else SCRATCH_RATE)
    schedule = dataclasses.replace(
        settings.schedule, encoder_lr=settings.schedule.encoder_lr * (rate / CHECKPOINT_RATE)
    )
    function: Any = method
    return cast(Forget, functools.partial(function, settings=dataclasses.replace(settings, schedule=schedule)))


def _settings_of(method: Forget) -> Any:
    """The settings that a baseline takes when it is given none; None where it has none."""
    if not inspect.isfunction(method):
        return None
    kinds = typing.get_args(typing.get_type_hints(method).get("settings"))
    return next((kind() for kind in kinds if dataclasses.is_dataclass(kind) and isinstance(kind, type)), None)


def digest(*parts: Any) -> str:
    """Twelve hexadecimal digits of the SHA-256 over settings; equal settings give equal digits in any process.

    A function counts by its name, the values it is bound to and its defaults, not by its code. Where a parameter may
    be None or settings that have defaults, it counts by these.
    """
    return hashlib.sha256(json.dumps([_plain(part) for part in parts], sort_keys=True).encode()).hexdigest()[:12]


def _plain(value: Any) -> Any:
    if isinstance(value, functools.partial):
        return ["partial", _plain(value.func), _plain(value.args), _plain(value.keywords)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            # What came later counts where it is used: rows that were measured before it stay.
            if field.name not in LATER or getattr(value, field.name) != field.default
        }
        return [type(value).__qualname__, fields]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if inspect.isfunction(value):
        return _function(value)
    return value if value is None or isinstance(value, bool | int | float | str) else type(value).__qualname__


def _function(function: Callable[..., Any]) -> Any:
    bound = inspect.getclosurevars(function).nonlocals
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty
    }
    hints = typing.get_type_hints(function)
    usual = [
        kind()
        for name, default in defaults.items()
        for kind in typing.get_args(hints.get(name))
        if default is None and isinstance(kind, type) and dataclasses.is_dataclass(kind)
    ]
    return [f"{function.__module__}.{function.__qualname__}", _plain(bound), _plain(defaults), _plain(usual)]
