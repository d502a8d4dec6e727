"""The end of the ports: no method of a call outlives it."""

import asyncio
import contextlib

import grpc
import grpc.aio

from amnestic_server.listening import Ports

METHOD = "/test.Service/Wait"


async def test_a_stop_waits_for_what_methods_still_do_when_their_calls_have_ended():
    begun, steps = asyncio.Event(), []

    async def method(request, context):
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.2)
            steps.append("last")

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(method)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", {"Wait": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    ports = Ports([server], [], {})
    await ports.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(METHOD)(b"")
        await begun.wait()
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        await ports.stop(grace=1.0)
    assert steps == ["last"]
