"""Check what is deployed against published schemas: `schemas.py KIND FILE`, run by the Python of .venv-deploy.

Prints one line for each fault. KIND is `kubernetes`, for rendered manifests of Kubernetes, the Prometheus operator and
KServe, or `grafana`, for a dashboard. Fields that a schema does not know are faults too.
"""

import ast
import json
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

# The first in which sidecars that are init containers are stable, and the newest there is.
VERSIONS = ("1.33", "1.37")
KSERVE = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}


def kubernetes(file: Path) -> Iterator[str]:
    for manifest in yaml.safe_load_all(file.read_text()):
        group, name = manifest["apiVersion"].partition("/")[0], f"{manifest['kind']} {manifest['metadata']['name']}"
        if group == "monitoring.coreos.com":
            faults = prometheus_operator(manifest)
        elif group == "serving.kserve.io":
            faults = kserve(manifest)
        else:
            faults = core(manifest)
        yield from (f"{name}: {fault}" for fault in faults)


def core(manifest: dict[str, Any]) -> Iterator[str]:
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{version}: {'.'.join(map(str, error.path))}: {error.message}"


def prometheus_operator(manifest: dict[str, Any]) -> Iterator[str]:
    from cloudcoil.models.prometheus_operator import v1

    model = getattr(v1, manifest["kind"]).model_validate(manifest)
    yield from lost(manifest, model.model_dump(mode="json", by_alias=True, exclude_none=True))


def kserve(manifest: dict[str, Any]) -> Iterator[str]:
    """By the generated classes of KServe's SDK; the parts that Kubernetes defines are checked as a pod."""
    yield from _fields(manifest, KSERVE[manifest["kind"]], _kserve_classes())
    spec = manifest["spec"]
    if manifest["kind"] == "ServingRuntime":
        pod = {name: spec[name] for name in ("containers", "volumes")}
    else:
        own = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "model"}
        pod = {name: value for name, value in spec["predictor"].items() if name not in own}
        pod["containers"] = [{"name": "any"}]
    yield from core({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, "spec": pod})


def _kserve_classes() -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """By class the types of its attributes and their names in JSON, read without importing the SDK and all it needs."""
    classes = {}
    for file in metadata.files("kserve") or ():
        if file.match("kserve/models/v1*.py"):
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.ClassDef):
                    tables = [ast.literal_eval(part.value) for part in node.body if isinstance(part, ast.Assign)]
                    classes[node.name] = (tables[0], tables[1])
    return classes


def _fields(value: Any, kind: str, classes: dict[str, Any], path: str = "") -> Iterator[str]:
    if kind.startswith("list["):
        for index, one in enumerate(value):
            yield from _fields(one, kind.removeprefix("list[").removesuffix("]"), classes, f"{path}[{index}]")
    elif kind in classes:
        types, names = classes[kind]
        attributes = {json_name: attribute for attribute, json_name in names.items()}
        for name, one in value.items():
            if name not in attributes:
                yield f"{path}.{name}: no field of {kind}"
            else:
                yield from _fields(one, types[attributes[name]], classes, f"{path}.{name}")
    elif kind in ("str", "int", "bool") and type(value).__name__ != kind:
        yield f"{path}: {value!r} is no {kind}"


def grafana(file: Path) -> Iterator[str]:
    """By the SDK that is generated from Grafana's own schema. What only the kind of data source defines is left out."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    dashboard = json.loads(file.read_text())
    for annotation in dashboard["annotations"]["list"]:
        for name in ("step", "titleFormat", "textFormat", "tagKeys"):
            del annotation[name]
    for variable in dashboard["templating"]["list"]:
        variable.pop("definition", None)
    yield from lost(dashboard, json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard))))


def lost(given: Any, known: Any, path: str = "") -> Iterator[str]:
    """What a model does not give back as it was given."""
    if isinstance(given, dict) and isinstance(known, dict):
        for name, value in given.items():
            if name in known:
                yield from lost(value, known[name], f"{path}.{name}")
            else:
                yield f"{path}.{name}: unknown"
    elif isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        for index, (one, other) in enumerate(zip(given, known, strict=True)):
            yield from lost(one, other, f"{path}[{index}]")
    elif given != known:
        yield f"{path}: {given!r} became {known!r}"


if __name__ == "__main__":
    check = {"kubernetes": kubernetes, "grafana": grafana}[sys.argv[1]]
    for fault in check(Path(sys.argv[2])):
        print(fault)
