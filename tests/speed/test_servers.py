from __future__ import annotations

import asyncio
import os
import socket

from benchmarks.servers import Balancer, Listener, resident_bytes


class Echo(Listener):
    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()


def test_the_balancer_passes_on_what_is_said_and_passes_over_who_does_not_listen() -> None:
    with socket.socket() as nobody, Echo() as echo:
        nobody.bind(("127.0.0.1", 0))
        with Balancer([nobody.getsockname()[1], echo.port]) as balancer:
            for _ in range(2):
                with socket.create_connection(("127.0.0.1", balancer.port), timeout=30) as connection:
                    connection.sendall(b"said\n")
                    with connection.makefile("rb") as answer:
                        assert answer.read() == b"said\n"


def test_memory_of_this_process_is_known() -> None:
    assert resident_bytes(os.getpid()) > 2**20
