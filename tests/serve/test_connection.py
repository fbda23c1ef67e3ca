from __future__ import annotations

import asyncio

import uvicorn
from uvicorn.server import ServerState

from ebrm.serve.connection import with_patience

REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


async def app(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def talk(*parts, patience=0.05):
    """What the server says to a client that sends these parts and then nothing, until it closes the connection.

    The client waits for the answer to each part but the last.
    """

    async def main():
        config = uvicorn.Config(app, http=with_patience(patience), ws="none", lifespan="off", log_config=None)
        config.load()
        made = []

        def protocol():
            made.append(config.http_protocol_class(config=config, server_state=ServerState(), app_state={}))
            return made[-1]

        server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        said = b""
        for place, part in enumerate(parts):
            writer.write(part)
            if place + 1 < len(parts):
                said += await asyncio.wait_for(reader.readuntil(b"ok"), 60)
        said += await asyncio.wait_for(reader.read(), 60)
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        return said

    return asyncio.run(main())


def test_a_client_that_says_nothing_is_let_go():
    assert talk() == b""


def test_half_a_head_is_let_go():
    assert talk(b"POST / HT") == b""


def test_a_whole_request_is_answered_and_the_next_half_one_let_go():
    said = talk(REQUEST, b"GET / HTTP/1.1\r\n")
    assert said.startswith(b"HTTP/1.1 200") and said.endswith(b"ok") and said.count(b"HTTP/1.1") == 1
