"""Requests that nobody should send, to every method: random bytes, mutated messages, tensors that lie."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence

import grpc
import grpc.aio
from google.protobuf.message import Message

from amnestic.oip import open_inference_pb2 as oip
from amnestic.v1 import prediction_pb2 as prediction
from amnestic.v1 import unlearning_pb2 as unlearning

# INTERNAL, UNKNOWN and UNAVAILABLE would be faults of the server.
ALLOWED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for messages in (prediction, unlearning, oip)
    for service in messages.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
INTEGERS = (0, 1, -1, 2, 7, 127, 128, 2**31 - 1, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63))
NAMES = (
    "text",
    "",
    "probabilities",
    "classification",
    "timeout",
    "routing_key",
    "shared_memory_region",
    "\u0000",
    "ü" * 99,
)
DATATYPES = ("BYTES", "BYTES", "BYTES", "FP32", "INT64", "BOOL", "", "BYTE\u0000")
AT_ONCE = 64


class Malformed:
    """Draws requests by a seed, and sends them over one connection."""

    def __init__(self, target: str, model: str, texts: Sequence[str], seed: int) -> None:
        self._target = target
        self._model = model
        self._texts = texts
        self._random = random.Random(seed)

    async def send(self, count: int) -> "Counter[str]":
        """How many requests ended with each code."""
        codes: Counter[str] = Counter()
        left = iter(range(count))
        async with grpc.aio.insecure_channel(self._target, options=[("grpc.enable_retries", 0)]) as channel:

            async def work() -> None:
                for _ in left:
                    codes[await self._answer(channel, *self._draw())] += 1

            await asyncio.gather(*(work() for _ in range(AT_ONCE)))
        return codes

    async def _answer(self, channel: grpc.aio.Channel, path: str, request: bytes) -> str:
        try:
            if METHODS[path].server_streaming:
                async for _ in channel.stream_stream(path)(iter([request]), timeout=60):
                    pass
            else:
                await channel.unary_unary(path)(request, timeout=60)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "OK"

    def _draw(self) -> tuple[str, bytes]:
        path = self._random.choice(sorted(METHODS))
        make: Callable[[], bytes] = self._random.choice((self._noise, self._infer, self._infer, self._predict))
        if make == self._infer:
            path = f"/inference.GRPCInferenceService/{self._random.choice(('ModelInfer', 'ModelStreamInfer'))}"
        request = self._mutated(make()) if self._random.random() < 0.5 else make()
        return path, request

    def _noise(self) -> bytes:
        return self._random.randbytes(self._random.choice((0, 1, 2, 3, 5, 8, 64, 1000)))

    def _mutated(self, request: bytes) -> bytes:
        """With bytes changed, left out, repeated or cut."""
        changed = bytearray(request)
        for _ in range(self._random.randint(1, 4)):
            at = self._random.randrange(len(changed) + 1)
            match self._random.randrange(4):
                case 0 if at < len(changed):
                    changed[at] = self._random.randrange(256)
                case 1:
                    del changed[at : at + self._random.randint(1, 8)]
                case 2:
                    changed[at:at] = changed[at : at + self._random.randint(1, 8)]
                case 3 if self._random.random() < 0.2:
                    del changed[at:]
        return bytes(changed)

    def _predict(self) -> bytes:
        message: Message = prediction.PredictRequest(
            documents=self._random.choices((*self._texts[:3], "", " ", "\u0000", "\ufeff", "\U0010ffff" * 9), k=2),
            version=self._random.choice(INTEGERS[:-3]),
            routing_key=self._random.choice(("", "key", "k" * 300)),
        )
        return message.SerializeToString()

    def _infer(self) -> bytes:
        """An inference request whose shape, datatype, contents and parameters need not fit each other."""
        draw = self._random
        inputs = [
            oip.ModelInferRequest.InferInputTensor(
                name=draw.choice(("text", "text", "text", *NAMES)),
                datatype=draw.choice(DATATYPES),
                shape=[draw.choice((1, *INTEGERS)) for _ in range(draw.choice((1, 1, 1, 2, 0, 5, 64)))],
                parameters=self._parameters(),
                contents=self._contents() if draw.random() < 0.5 else None,
            )
            for _ in range(draw.choice((1, 1, 1, 1, 0, 2)))
        ]
        outputs = [
            oip.ModelInferRequest.InferRequestedOutputTensor(name=draw.choice(NAMES), parameters=self._parameters())
            for _ in range(draw.choice((0, 0, 0, 1, 2)))
        ]
        return oip.ModelInferRequest(
            model_name=draw.choice((self._model,) * 5 + NAMES),
            model_version=draw.choice(("", "", "", "1", "0", "-1", "1" * 5000, "²", "\uff11")),
            id=draw.choice(NAMES),
            parameters=self._parameters(),
            inputs=inputs,
            outputs=outputs,
            raw_input_contents=[self._raw() for _ in range(draw.choice((0, 1, 1, 1, 2)))],
        ).SerializeToString()

    def _raw(self) -> bytes:
        """An element whose length may lie."""
        element = self._random.choice((self._texts[0].encode(), b"", b"\xff\xfe", b"\xed\xa0\x80"))
        length = self._random.choice((len(element),) * 3 + (len(element) + 1, 0, 2**31, 2**32 - 1))
        return length.to_bytes(4, "little") + element

    def _contents(self) -> oip.InferTensorContents:
        return oip.InferTensorContents(
            bytes_contents=self._random.choice(([self._texts[0].encode()], [b"\xff"], [], [b"a"] * 200)),
            int_contents=self._random.choice(([], [], [1])),
            fp32_contents=self._random.choice(([], [], [float("nan")])),
        )

    def _parameters(self) -> dict[str, oip.InferParameter]:
        draw = self._random
        if draw.random() < 0.7:
            return {}
        value = draw.choice(
            (
                oip.InferParameter(int64_param=draw.choice(INTEGERS[:5] + INTEGERS[-2:])),
                oip.InferParameter(uint64_param=2**64 - 1),
                oip.InferParameter(double_param=float("nan")),
                oip.InferParameter(string_param="ü" * 300),
                oip.InferParameter(bool_param=True),
                oip.InferParameter(),
            )
        )
        return {draw.choice(NAMES): value}
