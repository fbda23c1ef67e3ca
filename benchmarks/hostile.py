"""What the largest and the worst requests cost a server, on loopback with the demonstration RM: stalls, CPU, memory.

    python -m benchmarks.hostile [--out FILE]

Each body is sent once, while another client asks `/health` over and over: its slowest answer is how long the event loop
was held. Written with it: the status, seconds of CPU until the server is at rest, and resident memory then and
afterwards. Takes about a minute; writes `benchmarks/hostile.json`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.load import prepare
from benchmarks.servers import resident_bytes, serving
from ebrm.utils.files import write_json

RESULTS = Path(__file__).with_name("hostile.json")
MEGABYTE = 2**20
#: Longest that the event loop may be held, in seconds.
REQUIRED = 0.2
#: What memory may grow by from the first request to the last, in MiB.
GROWTH = 64.0


@dataclass(frozen=True)
class Cost:
    """What one body cost: seconds (CPU, and the slowest answer to somebody else), MiB, and the status (0: none)."""

    megabytes: float
    status: int
    seconds: float
    stall_ms: float
    cpu_seconds: float
    most_mib: float
    after_mib: float


def bodies(texts: int, size: int, characters: int) -> Iterator[tuple[str, str, bytes]]:
    """(name, route, body): the largest legal requests under a server's limits, and what should be refused."""
    prompt, words = "How do I get there?", "go left at the mill, then right, and ask again " * (size // 47 + 1)

    def score(**fields: Any) -> bytes:
        return json.dumps(fields).encode()

    room = (size - 10_000) // texts
    yield "as many texts as are taken", "/v1/score", score(prompts=[prompt] * texts, responses=["go left"] * texts)
    yield "with as many curves", "/v1/score", score(prompts=["?"] * texts, responses=["ok"] * texts, density=1025)
    yield "ranked", "/v1/rank", score(prompt=prompt, responses=["go left"] * texts)
    yield "as many bytes", "/v1/score", score(rendered=[words[: min(room, characters)]] * texts)
    escaped = "\u4f60" * min(room // 6, characters)
    yield "as many bytes, escaped", "/get_reward", score(query=[escaped] * texts)
    yield "a text that is as long as may be", "/v1/score", score(rendered=[words[:characters]])
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    yield "as many turns", "/v1/score", score(messages=[turns * 20] * texts)

    yield "one text of the whole body", "/v1/score", score(rendered=[words[: size - 100]])
    yield "one prompt for all", "/v1/rank", score(prompt=words[: characters - 10], responses=["a"] * texts)
    yield "numbers for texts", "/v1/score", b'{"prompts": [' + b"1," * (size // 2 - 20) + b"1]}"
    yield "few numbers for texts", "/v1/score", b'{"prompts": [' + b"1," * 200_000 + b"1]}"
    yield "numbers for messages", "/v1/score", b'{"messages": [' + b"[1]," * (size // 4 - 20) + b"[1]]}"
    yield (
        "numbers for vLLM's texts",
        "/classify",
        b'{"use_activation":false,"input":[' + b"1," * (size // 2 - 30) + b"1]}",
    )
    yield "valid texts without end", "/v1/score", b'{"rendered": [' + b'"a",' * (size // 4 - 20) + b'"a"]}'
    fields = b",".join(b'"f%d":1' % i for i in range(size // 14))
    yield "fields without end", "/v1/score", b"{" + fields + b"}"
    yield "lists in lists", "/v1/rank", b"[" * (size - 1)
    yield "spaces", "/v1/score", b" " * size
    yield "quotes that do not end", "/v1/score", b'{"rendered": ["' + b'\\"' * (size // 2 - 20)
    yield "a number of a megabyte", "/v1/score", b'{"density": ' + b"9" * MEGABYTE + b"}"


def measure(url: str, pid: int, send: Callable[[], int], megabytes: float) -> Cost:
    """Send something, and watch the server until it is at rest."""
    host, port = url.removeprefix("http://").rsplit(":", 1)
    done, slowest, most = threading.Event(), 0.0, 0

    def others() -> None:
        nonlocal slowest, most
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        while not done.is_set():
            asked = time.perf_counter()
            connection.request("GET", "/health")
            connection.getresponse().read()
            slowest = max(slowest, time.perf_counter() - asked)
            most = max(most, resident_bytes(pid))
            time.sleep(0.002)
        connection.close()

    asking = threading.Thread(target=others)
    cpu, started = _cpu(pid), time.perf_counter()
    asking.start()
    status = send()
    seconds = time.perf_counter() - started
    done.set()
    asking.join()
    before = _cpu(pid)
    while True:  # what goes on after the answer
        time.sleep(0.3)
        now = _cpu(pid)
        if now - before < 0.1:
            break
        before = now
    mib = (resident / MEGABYTE for resident in (most, resident_bytes(pid)))
    return Cost(round(megabytes, 1), status, *(round(x, 2) for x in (seconds, 1e3 * slowest, now - cpu, *mib)))


def post(url: str, route: str, body: bytes) -> int:
    """The status of a POST, 0 where the connection ends without one."""
    host, port = url.removeprefix("http://").rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=90)
    try:
        connection.request("POST", route, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except OSError:
        return 0
    finally:
        connection.close()


def in_chunks(url: str, body: bytes, chunk: int) -> int:
    """As `post`, in chunks of so many bytes, all sent at once."""
    host, port = url.removeprefix("http://").rsplit(":", 1)
    lines = (
        "POST /v1/score HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        "Transfer-Encoding: chunked",
    )
    head = "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"
    pieces = (body[i : i + chunk] for i in range(0, len(body), chunk))
    sent = head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        with suppress(OSError):
            connection.sendall(sent)
        with suppress(OSError):
            said = connection.recv(100)
            return int(said.split(b" ", 2)[1]) if said else 0
    return 0


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has used (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    found: dict[str, Cost] = {}
    with tempfile.TemporaryDirectory(prefix="ebrm-hostile-") as scratch:
        model, _, _ = prepare(Path(scratch), 20)
        with serving(model, "--deadline", "10") as (url, pid):
            limits = limits_of(url)
            full = list(bodies(limits["max_texts"], limits["max_body"], limits["max_chars"]))
            post(url, *full[0][1:])  # what is allocated once
            first = resident_bytes(pid) / MEGABYTE

            def note(name: str, send: Callable[[], int], size: int) -> None:
                found[name] = measure(url, pid, send, size / MEGABYTE)
                print(f"{name}: {asdict(found[name])}", flush=True)

            for name, route, body in full:
                note(name, lambda route=route, body=body: post(url, route, body), len(body))  # type: ignore[misc]
            spaces = b" " * MEGABYTE
            note("chunks of a byte", lambda: in_chunks(url, spaces, 1), len(spaces))
            last = resident_bytes(pid) / MEGABYTE
    slowest = max(cost.stall_ms for cost in found.values())
    judged = {
        f"nobody waits more than {REQUIRED:g} seconds": slowest <= 1e3 * REQUIRED,
        f"memory comes back ({GROWTH:g} MiB)": last - first <= GROWTH,
        "nothing but 200, 4xx and 503": all(cost.status in (200, 400, 413, 422, 503) for cost in found.values()),
    }
    memory = {"first_mib": round(first, 1), "last_mib": round(last, 1)}
    costs = {name: asdict(cost) for name, cost in found.items()}
    write_json(given.out, {"slowest_ms": slowest, **memory, "met": judged, "bodies": costs})
    for what, met in judged.items():
        print(f"{'yes' if met else 'NO '}  {what}")


def limits_of(url: str) -> dict[str, Any]:
    """The limits that a server says in `/info`."""
    host, port = url.removeprefix("http://").rsplit(":", 1)
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.request("GET", "/info")
    limits: dict[str, Any] = json.loads(connection.getresponse().read())["limits"]
    connection.close()
    return limits


if __name__ == "__main__":
    main()
