"""A client process that sends many predictions at once: `flood.py TARGET COUNT CHANNELS SECONDS TEXT`.

Sends all COUNT at once over CHANNELS connections, or without end if COUNT is so many at a time and SECONDS above 0 says
for how long. Prints how many ended with each code, the longest call that was answered, and how many were refused
without a wait to keep to, as JSON.
"""

import asyncio
import json
import sys
import time
from collections import Counter

import grpc
import grpc.aio

from amnestic.v1 import prediction_pb2, prediction_pb2_grpc

TIMEOUT = 300
OPTIONS = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]


async def flood(target: str, count: int, channels: int, seconds: float, text: str) -> dict[str, object]:
    opened = [grpc.aio.insecure_channel(target, options=OPTIONS) for _ in range(channels)]
    await asyncio.gather(*(channel.channel_ready() for channel in opened))
    stubs = [prediction_pb2_grpc.PredictionServiceStub(channel) for channel in opened]
    request = prediction_pb2.PredictRequest(documents=[text])
    codes: Counter[str] = Counter()
    answered_in, without_wait = [0.0], 0
    until = time.monotonic() + seconds

    async def call(index: int) -> None:
        nonlocal without_wait
        while True:
            started = time.monotonic()
            try:
                await stubs[index % channels].Predict(request, timeout=TIMEOUT)
            except grpc.aio.AioRpcError as error:
                code = error.code().name
                without_wait += "grpc-retry-pushback-ms" not in dict(error.trailing_metadata() or ())
            else:
                code = "OK"
                answered_in.append(time.monotonic() - started)
            codes[code] += 1
            if time.monotonic() >= until:
                return

    await asyncio.gather(*(call(index) for index in range(count)))
    for channel in opened:
        await channel.close()
    return {"codes": codes, "longest": max(answered_in), "without_wait": without_wait}


if __name__ == "__main__":
    target_, count_, channels_, seconds_, text_ = sys.argv[1:]
    print(json.dumps(asyncio.run(flood(target_, int(count_), int(channels_), float(seconds_), text_))))
