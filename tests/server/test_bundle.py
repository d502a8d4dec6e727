"""What of a bundle is trusted: nothing but what its digests cover, and nothing that could run code."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from amnestic_server import bundle as bundles
from amnestic_server.engine import Engine
from amnestic_server.errors import StartError
from amnestic_server.graph_file import stands_alone
from amnestic_unlearn.manifest import MANIFEST, BundleError, file_digest
from amnestic_unlearn.patch import Patch, PatchError


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may change."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def relist(bundle: Path, **files: str | None) -> None:
    """Change digests in a manifest; those of the files that are there already are made true."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    listed = {name: file_digest(bundle / name) for name in manifest["files"]} | files
    manifest["files"] = {name: digest for name, digest in listed.items() if digest is not None}
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def external(name: str = "w") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret.bin")
    return tensor


def model(*nodes: Any, **graph: Any) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])]
    made = helper.make_graph(list(nodes), "graph", inputs, outputs, **graph)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=tensor)


def branch(tensor: TensorProto) -> onnx.NodeProto:
    inner = helper.make_graph([constant(tensor)], "inner", [], [])
    return helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)


def function(tensor: TensorProto) -> onnx.ModelProto:
    made = model()
    made.functions.append(
        helper.make_function("local", "f", ["x"], ["y"], [constant(tensor)], [helper.make_opsetid("", 17)])
    )
    return made


def sparse(tensor: TensorProto) -> onnx.ModelProto:
    indices = numpy_helper.from_array(np.arange(4), "i")
    made = model()
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor, indices, [9]))
    return made


PLACES: dict[str, Callable[[TensorProto], onnx.ModelProto]] = {
    "an initializer": lambda tensor: model(initializer=[tensor]),
    "a constant": lambda tensor: model(constant(tensor)),
    "a constant of a branch": lambda tensor: model(branch(tensor)),
    "a function": function,
    "a sparse initializer": sparse,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_in_another_file_is_found_wherever_it_is(place: str, tmp_path: Path) -> None:
    here = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    for tensor, alone in ((external(), False), (here, True)):
        (tmp_path / "model.onnx").write_bytes(PLACES[place](tensor).SerializeToString())
        assert stands_alone(tmp_path / "model.onnx") is alone


def test_a_tensor_that_only_names_another_file_or_only_says_so_is_found(tmp_path: Path) -> None:
    for field in ("external_data", "data_location"):
        tensor = external()
        tensor.ClearField(field)
        (tmp_path / "model.onnx").write_bytes(model(initializer=[tensor]).SerializeToString())
        assert not stands_alone(tmp_path / "model.onnx")


@pytest.mark.parametrize("data", [b"", b"not a graph", b"\x3a\x7f", b"\x3a" + b"\xff" * 20, b"\x3a\x05\x0a\x7f"])
def test_what_is_no_graph_is_told(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(ValueError):
        stands_alone(tmp_path / "model.onnx")


def test_a_graph_nested_without_end_is_told(tmp_path: Path) -> None:
    data = b""
    for _ in range(200):
        attribute = b"\x32" + length_of(data) + data
        node = b"\x2a" + length_of(attribute) + attribute
        data = b"\x0a" + length_of(node) + node
    (tmp_path / "model.onnx").write_bytes(b"\x3a" + length_of(data) + data)
    with pytest.raises(ValueError, match="nested"):
        stands_alone(tmp_path / "model.onnx")


def length_of(data: bytes) -> bytes:
    size, encoded = len(data), []
    while size > 0x7F:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*encoded, size])


def test_a_graph_with_data_in_another_file_is_refused_though_its_digest_is_right(copied: Path) -> None:
    graph = onnx.load(copied / "encoder.onnx")
    (copied / "encoder.onnx").unlink()
    onnx.save_model(
        graph, copied / "encoder.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    relist(copied)
    with pytest.raises(BundleError, match=r"encoder\.onnx has data in another file"):
        bundles.load(copied)
    # Nor is it enough to list that file, which the graph could leave for another.
    relist(copied, **{"weights.bin": file_digest(copied / "weights.bin")})
    with pytest.raises(BundleError, match=r"encoder\.onnx has data in another file"):
        bundles.load(copied)


def test_a_graph_of_custom_operators_is_not_served(copied: Path) -> None:
    """No library of operators is ever registered: what ONNX Runtime does not bring along does not run."""
    graph = onnx.load(copied / "encoder.onnx")
    graph.graph.node[0].domain = "custom.ops"
    graph.opset_import.append(helper.make_opsetid("custom.ops", 1))
    onnx.save_model(graph, copied / "encoder.onnx")
    relist(copied)
    with pytest.raises(StartError, match=r"encoder\.onnx cannot be loaded"):
        Engine(bundles.load(copied))


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "folder/file", "..", "."])
def test_a_manifest_that_lists_what_is_not_in_the_bundle_is_refused(copied: Path, name: str) -> None:
    (copied.parent / "outside").write_bytes(b"")
    relist(copied, **{name: file_digest(copied.parent / "outside")})
    with pytest.raises(BundleError, match=r"outside the bundle|is missing"):
        bundles.load(copied)


@pytest.mark.parametrize("files", [[], ["encoder.onnx"], {"encoder.onnx": 7}, None, {}])
def test_a_manifest_without_digests_is_refused(copied: Path, files: Any) -> None:
    manifest = json.loads((copied / MANIFEST).read_text())
    (copied / MANIFEST).write_text(json.dumps(manifest | {"files": files}))
    with pytest.raises(BundleError, match=r"lists no files by their digests|does not list"):
        bundles.load(copied)


@pytest.mark.parametrize("name", ["encoder.onnx", "embeddings.safetensors", "head.safetensors", "tokenizer.json"])
def test_a_file_that_is_not_listed_is_refused(copied: Path, name: str) -> None:
    relist(copied, **{name: None})
    with pytest.raises(BundleError, match=f"does not list {name}"):
        bundles.load(copied)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "sprung")


@pytest.mark.parametrize("name", ["embeddings.safetensors", "head.safetensors"])
def test_a_pickle_in_place_of_tensors_is_refused_and_not_run(copied: Path, tmp_path: Path, name: str) -> None:
    trap = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Trap(trap)))
    trap.unlink()
    for write in (lambda path: path.write_bytes(pickle.dumps(Trap(trap))), lambda path: torch.save(Trap(trap), path)):
        write(copied / name)
        relist(copied)
        with pytest.raises(BundleError, match=f"{name} is not a safetensors file"):
            bundles.load(copied)
    assert not trap.exists()


def test_a_pickle_in_place_of_a_patch_is_refused_and_not_run(tmp_path: Path) -> None:
    trap, patch = tmp_path / "sprung", tmp_path / "patch.safetensors"
    patch.write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(PatchError, match="corrupt"):
        Patch.read(patch, file_digest(patch))
    assert not trap.exists()
