"""`ebrm serve` in processes of their own, on loopback: started, watched, killed and put behind a balancer."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parent.parent
#: Seconds until a server that was told to end has ended.
_PATIENCE = 60.0


class Server:
    """A server process: its `url` and `pid`; `start` returns when it scores."""

    def __init__(self, model: Path, *options: str) -> None:
        self._model, self._options, self.port = model, options, 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, on the port that it had before; RuntimeError if it does not."""
        command = [sys.executable, "-u", "-m", "ebrm", "serve", str(self._model), "--port", str(self.port)]
        process = subprocess.Popen(
            [*command, *self._options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._process = process
        assert process.stdout is not None
        said: list[str] = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("ready: "):
                break
        found = re.search(r"listening on \S+:(\d+)", "".join(said))
        if found is None or not said[-1].startswith("ready: "):
            self.kill()
            raise RuntimeError(f"the server did not start: {''.join(said)}")
        self.port = int(found.group(1))
        # What else it says is read, or it would wait for that one day.
        threading.Thread(target=process.stdout.read, daemon=True).start()

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit code, negative for the signal that ended it."""
        assert self._process is not None
        self._process.send_signal(how)
        return self._process.wait(timeout=_PATIENCE)

    def kill(self) -> None:
        """End it at once, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextmanager
def serving(model: Path, *options: str) -> Iterator[tuple[str, int]]:
    """`ebrm serve` in a process of its own: (URL, process id); ended by SIGTERM, which must give exit code 0."""
    server = Server(model, *options)
    server.start()
    try:
        yield server.url, server.pid
        code = server.end()
        if code:
            raise RuntimeError(f"the server ended with code {code}")
    finally:
        server.kill()


def resident_bytes(pid: int) -> int:
    """Memory that a process holds now, in bytes (Linux)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Listener:
    """A TCP server in a thread, on a free port: `talk` has each connection."""

    def __init__(self) -> None:
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, to be closed by it."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        server = self._loop.run_until_complete(asyncio.start_server(self.talk, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        talks = asyncio.all_tasks() - {asyncio.current_task()}
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
        await asyncio.sleep(0.01)  # transports are closed one turn later


class Balancer(Listener):
    """A TCP proxy: a connection goes to the next server that takes one, and ends when that one does."""

    def __init__(self, ports: Sequence[int]) -> None:
        super().__init__()
        self._ports, self._turn = list(ports), 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect to the first server, from the next in turn on, that takes a connection."""
        for _ in self._ports:
            port = self._ports[self._turn % len(self._ports)]
            self._turn += 1
            with suppress(OSError):
                there, back = await asyncio.open_connection("127.0.0.1", port)
                break
        else:
            writer.transport.abort()
            return
        both = [asyncio.ensure_future(_pipe(reader, back)), asyncio.ensure_future(_pipe(there, writer))]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in both:
                one.cancel()
            for stream in (writer, back):
                stream.close()


async def _pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(2**16):
            sink.write(data)
            await sink.drain()
