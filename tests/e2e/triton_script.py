"""Triton's own client against a server: `triton_script.py WHAT [TARGET MODEL TEXTS]`.

Run by the interpreter that has that client; it knows nothing of ours. Prints one JSON object. `descriptors`: what
Triton's stubs declare. `sync`, `aio`, `stream`: what the server answers to the texts, a JSON list of strings in a file;
a tensor is told by the hexadecimal of its bytes.
"""

import asyncio
import json
import queue
import sys
from pathlib import Path
from typing import Any

DEFAULTS = ("probabilities", "decisions", "labels")


def declared(*files: Any) -> dict[str, Any]:
    """Everything on which the wire depends in descriptors of proto files, by full name."""
    found: dict[str, Any] = {}
    for file in files:
        for message in file.message_types_by_name.values():
            _message(message, found)
        for enum in file.enum_types_by_name.values():
            found[enum.full_name] = {value.name: value.number for value in enum.values}
        for service in file.services_by_name.values():
            methods = _proto(service).method
            for method in methods:
                found[f"{service.full_name}/{method.name}"] = {
                    "request": method.input_type,
                    "response": method.output_type,
                    "streams": [method.client_streaming, method.server_streaming],
                }
    return found


def _message(message: Any, found: dict[str, Any]) -> None:
    proto = _proto(message)
    oneofs = [oneof.name for oneof in proto.oneof_decl]
    found[message.full_name] = {
        field.name: {
            "number": field.number,
            "type": field.type,
            "label": field.label,
            "of": field.type_name,
            "oneof": oneofs[field.oneof_index] if field.HasField("oneof_index") else "",
        }
        for field in proto.field
    }
    for nested in message.nested_types:
        _message(nested, found)
    for enum in message.enum_types:
        found[enum.full_name] = {value.name: value.number for value in enum.values}


def _proto(descriptor: Any) -> Any:
    from google.protobuf import descriptor_pb2

    kinds = {"fields": descriptor_pb2.DescriptorProto, "methods": descriptor_pb2.ServiceDescriptorProto}
    proto = next(kind for name, kind in kinds.items() if hasattr(descriptor, name))()
    descriptor.CopyToProto(proto)
    return proto


def inputs(grpc: Any, texts: list[str]) -> list[Any]:
    import numpy as np

    tensor = grpc.InferInput("text", [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=object))
    return [tensor]


def told(result: Any, names: tuple[str, ...] = DEFAULTS) -> dict[str, Any]:
    response = result.get_response()
    tensors = {name: result.as_numpy(name) for name in names}
    return {
        "id": response.id,
        "version": response.model_version,
        **{
            name: [[element.decode() for element in row] for row in tensor.tolist()]
            if tensor.dtype == object
            else {"shape": list(tensor.shape), "hex": tensor.tobytes().hex()}
            for name, tensor in tensors.items()
        },
    }


def sync(target: str, model: str, texts: list[str]) -> dict[str, Any]:
    """Every method that an ordinary user of the client calls."""
    import tritonclient.grpc as grpc
    from tritonclient.utils import InferenceServerException

    def refused(call: Any, *arguments: Any, **options: Any) -> list[str]:
        try:
            call(*arguments, **options)
        except InferenceServerException as error:
            return [error.status(), error.message()]
        return []

    with grpc.InferenceServerClient(target) as client:
        asked = [grpc.InferRequestedOutput("features"), grpc.InferRequestedOutput("probabilities", class_count=2)]
        waiting: queue.Queue[Any] = queue.Queue()
        client.async_infer(model, inputs(grpc, texts), lambda result, error: waiting.put((result, error)))
        plain = client.infer(model, inputs(grpc, texts), request_id="one", model_version="1", timeout=30_000_000)
        callback, error = waiting.get(timeout=30)
        assert error is None, error
        return {
            "live": client.is_server_live(),
            "ready": [client.is_server_ready(), client.is_model_ready(model), client.is_model_ready(model, "99")],
            "server": client.get_server_metadata(as_json=True),
            "metadata": client.get_model_metadata(model, as_json=True),
            "config": client.get_model_config(model, as_json=True)["config"],
            "infer": told(plain),
            "async_infer": told(callback),
            "asked": told(client.infer(model, inputs(grpc, texts), outputs=asked), ("features", "probabilities")),
            "statistics": client.get_inference_statistics(model, as_json=True)["model_stats"],
            "index": client.get_model_repository_index(as_json=True)["models"],
            "refused": {
                "model": refused(client.infer, "another", inputs(grpc, texts)),
                "empty": refused(client.infer, model, inputs(grpc, ["fine", ""])),
                "load": refused(client.load_model, model),
                "unload": refused(client.unload_model, model),
                "system_memory": refused(client.get_system_shared_memory_status),
                "cuda_memory": refused(client.get_cuda_shared_memory_status),
                "trace": refused(client.get_trace_settings),
                "log": refused(client.get_log_settings),
            },
        }


def aio(target: str, model: str, texts: list[str]) -> dict[str, Any]:
    """A document a call, all at once; then the same by the client's own asyncio stream."""
    import tritonclient.grpc.aio as grpc

    async def calls() -> dict[str, Any]:
        async with grpc.InferenceServerClient(target) as client:
            answers = await asyncio.gather(*(client.infer(model, inputs(grpc, [text])) for text in texts))

            async def requests() -> Any:
                for number, text in enumerate(texts):
                    yield {"model_name": model, "inputs": inputs(grpc, [text]), "request_id": str(number)}

            streamed = [told(result) async for result, error in client.stream_infer(requests()) if error is None]
            return {"infer": [told(answer) for answer in answers], "stream": streamed}

    return asyncio.run(calls())


def stream(target: str, model: str, texts: list[str]) -> dict[str, Any]:
    """The synchronous client's stream, every third request a bad one."""
    import tritonclient.grpc as grpc

    answers: queue.Queue[Any] = queue.Queue()
    with grpc.InferenceServerClient(target) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number, text in enumerate(texts):
            client.async_stream_infer(model, inputs(grpc, [" " if number % 3 == 0 else text]), request_id=str(number))
        client.stop_stream()
    pairs = [answers.get(timeout=30) for _ in texts]
    return {"answers": [error.message() if result is None else told(result) for result, error in pairs]}


def descriptors() -> dict[str, Any]:
    from tritonclient.grpc import model_config_pb2, service_pb2

    return declared(service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR)


def main(what: str, *arguments: str) -> None:
    if what == "descriptors":
        print(json.dumps(descriptors()))
        return
    target, model, texts = arguments
    calls = {"sync": sync, "aio": aio, "stream": stream}[what]
    print(json.dumps(calls(target, model, json.loads(Path(texts).read_text()))))


if __name__ == "__main__":
    main(*sys.argv[1:])
