"""Write the pages of reference from what they are about, or check that they are up to date.

`metrics.md` comes from the server's metrics, `api.md` from the proto files and the roles of their methods,
`python-client.md` from the client's signatures and docstrings.
"""

import argparse
import dataclasses
import enum
import inspect
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)
from grpc_tools import protoc
from prometheus_client import Metric
from prometheus_client.metrics import Histogram, MetricWrapperBase

import amnestic_client
from amnestic_server.guard import CHANGES, ROLES
from amnestic_server.metrics import Metrics

DOCS = Path(__file__).resolve().parent
PROTO = DOCS.parent / "proto"

# What each label of a metric may be. A metric with another one has no page until it is explained here.
LABELS = {
    "certificate": "`server`, or `client-ca` for the authorities of the clients",
    "code": "the gRPC status code, such as `OK`",
    "forgotten": "`true` or `false`",
    "label": "a label of the model",
    "method": "a method of the services, such as `Predict`; `ModelStreamInfer.request` is one request of a stream",
    "reason": "the reason of the [error](grpc.md#errors)",
    "stage": "`tokenizer`, `queue` or `engine`",
    "state": "a state of a job, such as `SUCCEEDED`",
}
# By the end of a metric's name, the longest first.
UNITS = {
    "certificate_expiry_seconds": "seconds since the epoch",
    "_seconds": "seconds",
    "_ratio": "ratio",
    "_share": "0 to 1",
    "_f1": "0 to 1",
    "_auroc": "0 to 1",
    "_tokens": "tokens",
    "_tokens_limit": "tokens",
    "_documents": "documents",
    "_documents_limit": "documents",
    "_shadow_dropped": "documents",
    "_shadow_decisions_differ": "documents",
    "_windows": "windows",
    "_rows": "windows",
    "_requests": "calls",
    "_calls": "calls",
    "_swaps": "swaps",
    "_jobs": "jobs",
    "_version": "number of a version",
    "_intact": "0 or 1",
    "_ready": "0 or 1",
}
# How Prometheus shows a metric of each type.
SHOWN_AS = {"counter": "{0}_total", "gauge": "{0}", "histogram": "{0}", "info": "{0}_info"}

METRICS_PAGE = """\
# Metrics

<!-- Written by `make docs-reference` from server/amnestic_server/metrics.py. -->

What `/metrics` on `--metrics-port` (8002) tells, in Prometheus's text format. Alerts and dashboards made of them are in
[deploy](deploy.md#alerts). No metric holds anything of a document, and the values of labels are bounded: names that
callers make up make no series.

A histogram has `_bucket`, `_sum` and `_count`. Beside these are the standard `process_`, `python_info` and `python_gc_`
of Prometheus's Python client, and `_created` of each counter and histogram, the time at which its series began.

{metrics}

`amnestic_model_info` is always 1; what it tells is in its labels: `name`, `architecture`, `precision`, `device` (asked
for), `provider` (in use) and `bundle`, the digest of its manifest.

## Labels

{labels}

## Buckets

Upper bounds, in the metric's unit; the last one is infinite.

{buckets}
"""

API_PAGE = """\
# API

<!-- Written by `make docs-reference` from proto/amnestic/v1. -->

Every service, method, message and field of `amnestic.v1`. What is kept from release to release, and code for other
languages, is in [the wire contract](../proto/README.md); errors, deadlines and retries are in [gRPC](grpc.md). A role
is what a caller needs where there is [access control](security.md#who-may-do-what); where there is none, everybody may
call. What gives back a forgotten label, a rollback or an answer of a version that knows it, is an administrator's,
whatever the method. One marked as a change is answered at `--operations-port` alone, if there is one.
"""

CLIENT_PAGE = """\
# Python client

<!-- Written by `make docs-reference` from clients/python/amnestic_client. -->

Every public name of `amnestic_client`. Examples, and how to use it well, are in [clients](../clients/README.md#python).
`AsyncClient` has the methods of `Client` with the same arguments, as coroutines; `predict_many` and `watch_job` are
asynchronous iterators there.
"""

SCALARS = {
    FieldDescriptorProto.TYPE_DOUBLE: "double",
    FieldDescriptorProto.TYPE_FLOAT: "float",
    FieldDescriptorProto.TYPE_INT64: "int64",
    FieldDescriptorProto.TYPE_UINT64: "uint64",
    FieldDescriptorProto.TYPE_INT32: "int32",
    FieldDescriptorProto.TYPE_BOOL: "bool",
    FieldDescriptorProto.TYPE_STRING: "string",
    FieldDescriptorProto.TYPE_BYTES: "bytes",
    FieldDescriptorProto.TYPE_UINT32: "uint32",
}

Comments = dict[tuple[int, ...], str]


def metrics_page() -> str:
    """Every metric by its name in the code's order."""
    metrics = [one for one in vars(Metrics()).values() if isinstance(one, MetricWrapperBase)]
    rows = [_metric_row(metric) for metric in metrics]
    used = sorted({label for metric in metrics for label in metric._labelnames})
    histograms = [metric for metric in metrics if isinstance(metric, Histogram)]
    return METRICS_PAGE.format(
        metrics=_table(("name", "type", "labels", "unit", "meaning"), rows),
        labels=_table(("label", "values"), [(f"`{label}`", LABELS[label]) for label in used]),
        buckets=_table(
            ("name", "buckets"),
            [(f"`{_family(one).name}`", ", ".join(map("{:g}".format, one._kwargs["buckets"]))) for one in histograms],
        ),
    )


def api_page() -> str:
    """Services first, then the messages and enums of both files by name."""
    files = [(file, _comments(file)) for file in _descriptors()]
    parts = [API_PAGE]
    for file, comments in files:
        for index, service in enumerate(file.service):
            parts += _service(file, service, (6, index), comments)
    named: list[tuple[str, list[str]]] = []
    for file, comments in files:
        named += [(one.name, _message(one, (4, index), comments)) for index, one in enumerate(file.message_type)]
        named += [(one.name, _enum(one, (5, index), comments)) for index, one in enumerate(file.enum_type)]
    parts.append("## Messages\n")
    for _, lines in sorted(named, key=lambda pair: pair[0]):
        parts += lines
    return "\n".join(parts)


def client_page() -> str:
    """Clients, functions, what they answer with, and errors."""
    public = {name: getattr(amnestic_client, name) for name in sorted(amnestic_client.__all__)}
    errors = {name: one for name, one in public.items() if inspect.isclass(one) and issubclass(one, Exception)}
    clients = ("Client", "AsyncClient")
    parts = [CLIENT_PAGE, "## Clients\n", *_client_class("Client", methods=True)]
    parts += _client_class("AsyncClient", methods=False)
    parts.append("## Functions\n")
    for name, one in public.items():
        if inspect.isfunction(one):
            parts += _callable(name, one, "###")
    parts.append("## Values\n")
    for name, one in public.items():
        if inspect.isclass(one) and name not in errors and name not in clients:
            parts += _value_class(name, one)
    parts.append("## Errors\n")
    parts.append(_table(("error", "meaning"), [(f"`{name}`", _error_text(one)) for name, one in errors.items()]))
    return "\n".join(parts) + "\n"


def _metric_row(metric: MetricWrapperBase) -> tuple[str, ...]:
    family = _family(metric)
    name = SHOWN_AS[family.type].format(family.name)
    unit = next((unit for end, unit in UNITS.items() if family.name.endswith(end)), "")
    labels = ", ".join(f"`{label}`" for label in metric._labelnames)
    return f"`{name}`", family.type, labels, unit, family.documentation


def _family(metric: MetricWrapperBase) -> Metric:
    """Its name, type and documentation; there is one family a metric."""
    (family,) = metric.describe()
    return family


def _bounds(histogram: Histogram) -> str:
    return ", ".join(f"{bound:g}" for bound in histogram._kwargs["buckets"])


def _descriptors() -> list[FileDescriptorProto]:
    """The files of amnestic.v1, with their comments."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "descriptors.binpb"
        includes = [f"-I{PROTO}", f"-I{resources.files('grpc_tools') / '_proto'}"]
        sources = [str(path) for path in sorted(PROTO.glob("amnestic/v1/*.proto"))]
        if protoc.main(["protoc", *includes, "--include_source_info", f"--descriptor_set_out={out}", *sources]) != 0:
            sys.exit("protoc failed")
        return sorted(FileDescriptorSet.FromString(out.read_bytes()).file, key=lambda file: file.name)


def _comments(file: FileDescriptorProto) -> Comments:
    """What is written above each thing, by its path in the descriptor."""
    return {tuple(one.path): _plain(one.leading_comments) for one in file.source_code_info.location}


def _service(
    file: FileDescriptorProto, service: ServiceDescriptorProto, path: tuple[int, ...], comments: Comments
) -> Iterator[str]:
    yield f"## {service.name}\n"
    yield f"{comments[path]}\n"
    for index, method in enumerate(service.method):
        yield f"### {method.name}\n"
        yield f"{_signature(method)}\n"
        yield f"{comments[*path, 2, index]}\n"
        full_name = f"/{file.package}.{service.name}/{method.name}"
        yield f"Role: `{ROLES[full_name].name.lower()}`{'; a change' if full_name in CHANGES else ''}.\n"


def _signature(method: MethodDescriptorProto) -> str:
    stream = "a stream of " if method.server_streaming else ""
    return f"{_link(method.input_type)} → {stream}{_link(method.output_type)}"


def _message(message: DescriptorProto, path: tuple[int, ...], comments: Comments) -> list[str]:
    maps = {one.name: one.field for one in message.nested_type if one.options.map_entry}
    rows = [
        (str(field.number), f"`{field.name}`", _field_type(field, maps), comments[*path, 2, index])
        for index, field in enumerate(message.field)
    ]
    table = [_table(("number", "field", "type", "meaning"), rows), ""] if rows else []
    return [f"### {message.name}\n", f"{comments[path]}\n", *table]


def _enum(one: EnumDescriptorProto, path: tuple[int, ...], comments: Comments) -> list[str]:
    rows = [(str(value.number), f"`{value.name}`", comments[*path, 2, index]) for index, value in enumerate(one.value)]
    return [f"### {one.name}\n", f"{comments[path]}\n", _table(("number", "value", "meaning"), rows), ""]


def _field_type(field: FieldDescriptorProto, maps: Mapping[str, Sequence[FieldDescriptorProto]]) -> str:
    entry = maps.get(field.type_name.rpartition(".")[2])
    if entry is not None:
        key, value = (_field_type(one, {}) for one in entry)
        return f"map of {key} to {value}"
    name = SCALARS[field.type] if field.type in SCALARS else _link(field.type_name)
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def _link(type_name: str) -> str:
    """To a message or enum of this page; others, such as timestamps, by their full name."""
    package, _, name = type_name.lstrip(".").rpartition(".")
    return f"[{name}](#{name.lower()})" if package == "amnestic.v1" else f"{package}.{name}"


def _client_class(name: str, *, methods: bool) -> Iterator[str]:
    kind = getattr(amnestic_client, name)
    yield from _callable(name, kind, "###")
    if methods:
        yield f"{_docstring(kind.__init__)}\n"
        for method, function in vars(kind).items():
            if not method.startswith("_") and inspect.isfunction(function):
                yield from _callable(f"{name}.{method}", function, "####")


def _callable(name: str, one: Callable[..., Any], level: str) -> Iterator[str]:
    signature = inspect.signature(one)
    shown = [parameter for parameter in signature.parameters.values() if parameter.name != "self"]
    answer = "" if inspect.isclass(one) else f" -> {_type(signature.return_annotation)}"
    lines = list(_parameters(shown))
    arguments = "\n" + "".join(f"    {line},\n" for line in lines) if lines else ""
    yield f"{level} {name}\n"
    yield f"```python\n{name.rpartition('.')[2]}({arguments}){answer}\n```\n"
    yield f"{_docstring(one)}\n"


def _parameters(parameters: Iterable[inspect.Parameter]) -> Iterator[str]:
    keywords = False
    for one in parameters:
        if one.kind is inspect.Parameter.KEYWORD_ONLY and not keywords:
            keywords = True
            yield "*"
        default = "" if one.default is inspect.Parameter.empty else f" = {one.default!r}"
        yield f"{one.name}: {_type(one.annotation)}{default}"


def _value_class(name: str, kind: type) -> Iterator[str]:
    yield f"### {name}\n"
    yield f"{_docstring(kind)}\n"
    if issubclass(kind, enum.Enum):
        yield f"Values: {', '.join(f'`{member.name}`' for member in kind)}.\n"
    elif dataclasses.is_dataclass(kind):
        rows = [(f"`{field.name}`", f"`{_type(field.type)}`", _default(field)) for field in dataclasses.fields(kind)]
        yield _table(("field", "type", "default"), rows) + "\n"
    properties = [(f"`{key}`", _docstring(one)) for key, one in vars(kind).items() if isinstance(one, property)]
    if properties:
        yield _table(("property", "meaning"), properties) + "\n"


def _default(field: "dataclasses.Field[Any]") -> str:
    return "" if field.default is dataclasses.MISSING else f"`{field.default!r}`"


def _error_text(kind: type[Exception]) -> str:
    """An error's own docstring, or the gRPC status that it stands for."""
    own = kind.__dict__.get("__doc__")
    code = getattr(kind, "code", None)
    return _docstring(kind) if own else f"An `AmnesticError` of status {code.name}." if code else ""


def _type(annotation: Any) -> str:
    """As it is written in code, without the names of modules."""
    if annotation in (None, type(None)):
        return "None"
    text = annotation.__name__ if inspect.isclass(annotation) and not _is_generic(annotation) else str(annotation)
    for module in ("amnestic_client.types.", "amnestic_client.tls.", "amnestic_client.errors.", "collections.abc."):
        text = text.replace(module, "")
    return text.replace("typing.", "").replace("datetime.datetime", "datetime").replace("os.PathLike", "PathLike")


def _is_generic(annotation: Any) -> bool:
    return bool(getattr(annotation, "__args__", ()))


def _docstring(one: object) -> str:
    return inspect.cleandoc(one.__doc__ or "")


def _plain(comment: str) -> str:
    """A comment of a proto file as a text of paragraphs."""
    return textwrap.dedent(comment).strip()


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PAGES = {"metrics.md": metrics_page, "api.md": api_page, "python-client.md": client_page}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page is out of date")
    check = parser.parse_args().check
    pages = {DOCS / name: page() for name, page in PAGES.items()}
    if check:
        stale = [path.name for path, text in pages.items() if not path.exists() or path.read_text() != text]
        sys.exit(f"out of date, run `make docs-reference`: {', '.join(stale)}" if stale else 0)
    for path, text in pages.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
