"""The server under load, on loopback with the demonstration RM: right answers, throughput, overload, memory.

    python -m benchmarks.load [--seconds 300] [--quick] [--out FILE]

64 clients ask for one short text a request each, one request after another, and every answer is compared with the score
that the model gives offline. Then the same with batching off (batches of one text), with a single client, and with a
queue so small that most requests are refused. Writes `benchmarks/load.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.servers import resident_bytes, serving
from ebrm.utils.files import write_json

RESULTS = Path(__file__).with_name("load.json")
CLIENTS = 64
#: Batching must give this many times the throughput of batches of one text.
REQUIRED = 3.0
#: What an answer may differ from the offline score.
TOLERANCE = 1e-5
#: Seconds after which an answer is lost.
PATIENCE = 60.0

_WORDS = (
    "the", "a", "to", "of", "and", "in", "is", "that", "for", "you", "with", "this", "be", "are", "not", "can", "or",
    "as", "if", "your", "will", "how", "why", "what", "when",
)  # fmt: skip


@dataclass(frozen=True)
class Text:
    """A request to `/v1/score` with one text, and what the model gives for it offline."""

    prompt: str
    response: str
    reward: float

    @property
    def body(self) -> bytes:
        """The request's body."""
        return json.dumps({"prompts": [self.prompt], "responses": [self.response]}).encode()


@dataclass
class Load:
    """What many clients saw.

    Attributes:
        seconds: how long they asked.
        latencies: seconds of each right answer.
        wrong: answers that are not the text's score; `mixed_up` of them are another text's.
        lost: requests without an answer.
        statuses: how many answers had which status.
        memory: resident bytes of the server, each second.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    wrong: int = 0
    mixed_up: int = 0
    lost: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """JSON values; latencies in milliseconds, memory in MiB."""
        ordered = sorted(self.latencies)
        quarter = max(1, len(self.memory) // 4)
        values: dict[str, Any] = {
            "seconds": round(self.seconds, 1),
            "requests": sum(self.statuses.values()) + self.lost,
            "right": len(ordered),
            "wrong": self.wrong,
            "mixed_up": self.mixed_up,
            "lost": self.lost,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "per_second": round(len(ordered) / self.seconds, 1) if self.seconds else 0.0,
        }
        if ordered:
            values["p50_ms"], values["p99_ms"] = (round(1e3 * _quantile(ordered, q), 1) for q in (0.5, 0.99))
        if self.memory:
            # The first quarter holds what is allocated once; growth is from the second to the last.
            early, late = self.memory[quarter : 2 * quarter] or self.memory, self.memory[-quarter:]
            values["memory_mib"] = {
                "first": round(self.memory[0] / 2**20, 1),
                "early": round(median(early) / 2**20, 1),
                "late": round(median(late) / 2**20, 1),
            }
        return values


def make_texts(score: Any, count: int, seed: int = 0) -> list[Text]:
    """Short texts whose scores are all different, so that a mixed-up answer shows; `score(prompts, responses)`."""
    draw = random.Random(seed)
    pairs = [
        (" ".join(draw.choices(_WORDS, k=draw.randint(2, 5))), " ".join(draw.choices(_WORDS, k=draw.randint(1, 8))))
        for _ in range(count)
    ]
    rewards = score([prompt for prompt, _ in pairs], [response for _, response in pairs])
    texts = sorted((Text(*pair, reward) for pair, reward in zip(pairs, rewards, strict=True)), key=lambda t: t.reward)
    apart = [text for before, text in pairwise(texts) if text.reward - before.reward > 4 * TOLERANCE]
    draw.shuffle(apart)
    return apart


class Asker:
    """A client with one connection, as plain as can be: what is measured is the server."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, body: bytes, path: str = "/v1/score") -> tuple[int, dict[str, Any]]:
        """(status, content) of one POST."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        writer.write(head.encode() + b"\r\n\r\n" + body)
        said = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = re.search(r"content-length: (\d+)", said)
        content = await reader.readexactly(int(length.group(1)) if length else 0)
        if "connection: close" in said:
            self.close()
        return int(said.split(" ", 2)[1]), json.loads(content)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


async def put_load(
    url: str, texts: Sequence[Text], clients: int, seconds: float, pid: int | None = None, pause: float = 0.0
) -> Load:
    """Ask for texts from many clients at once and check every answer; a refused client waits `pause` seconds."""
    host, port = url.removeprefix("http://").rsplit(":", 1)
    load, started = Load(), time.perf_counter()
    rewards = [text.reward for text in texts]

    async def one(seed: int) -> None:
        draw, asker = random.Random(seed), Asker(host, int(port))
        while time.perf_counter() - started < seconds:
            text, asked = draw.choice(texts), time.perf_counter()
            try:
                async with asyncio.timeout(PATIENCE):
                    status, content = await asker.ask(text.body)
            except (OSError, asyncio.IncompleteReadError, TimeoutError):
                load.lost += 1
                asker.close()
                continue
            load.statuses[status] += 1
            if status == 200:
                _check(load, content["results"][0]["reward"], text, rewards, time.perf_counter() - asked)
            elif pause:
                await asyncio.sleep(pause)
        asker.close()

    async def watch() -> None:
        while pid is not None:
            load.memory.append(resident_bytes(pid))
            await asyncio.sleep(1.0)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(one(seed) for seed in range(clients)))
    watching.cancel()
    load.seconds = time.perf_counter() - started
    return load


def _check(load: Load, reward: float, text: Text, rewards: Sequence[float], seconds: float) -> None:
    if abs(reward - text.reward) <= TOLERANCE:
        load.latencies.append(seconds)
    else:
        load.wrong += 1
        load.mixed_up += any(abs(reward - other) <= TOLERANCE for other in rewards)


def measure(model: Path, texts: Sequence[Text], seconds: float, short: float) -> dict[str, Any]:
    """All phases; `seconds` for the first, `short` for each of the others."""

    def phase(name: str, clients: int, length: float, *options: str, pause: float = 0.0) -> dict[str, Any]:
        with serving(model, *options) as (url, pid):
            asyncio.run(put_load(url, texts, clients, min(2.0, length)))  # warms up
            found = asyncio.run(put_load(url, texts, clients, length, pid, pause)).summary() | {"clients": clients}
        print(f"{name}: {json.dumps(found)}", flush=True)
        return found

    return {
        "batched": phase("batched", CLIENTS, seconds),
        "alone": phase("batches of one text", CLIENTS, short, "--token-budget", "1"),
        "single": phase("a single client", 1, short),
        "overload": phase("overload", CLIENTS, short, "--queue", "4", "--max-texts", "4", pause=0.05),
    }


def judge(found: dict[str, Any]) -> dict[str, Any]:
    """The figures that must hold, and whether they do."""
    batched, overload = found["batched"], found["overload"]
    times = batched["per_second"] / max(found["alone"]["per_second"], 1e-9)
    broken = sum(phase[what] for phase in found.values() for what in ("wrong", "lost"))
    memory = batched.get("memory_mib", {"early": 0.0, "late": 0.0})
    growth = memory["late"] - memory["early"]
    refused = overload["statuses"].get("503", 0)
    return {
        "times_one_by_one": round(times, 2),
        "times_a_single_client": round(batched["per_second"] / max(found["single"]["per_second"], 1e-9), 2),
        "required": REQUIRED,
        "memory_growth_mib": round(growth, 1),
        "met": {
            "no answer wrong, mixed up or lost": broken == 0,
            f"batching gives {REQUIRED:g} times the throughput": times >= REQUIRED,
            "overload is answered 503, and some are scored": refused > 0 and overload["right"] > 0,
            "no other status": all(set(phase["statuses"]) <= {"200", "503"} for phase in found.values())
            and set(batched["statuses"]) == {"200"},
            "memory is flat (8 MiB)": growth <= 8,
        },
    }


def prepare(folder: Path, count: int) -> tuple[Path, list[Text], float]:
    """The demonstration's model, saved; texts with their offline scores; mean tokens of a text."""
    from ebrm.backbone import adapter_folder
    from ebrm.fitting import fit

    model = fit(adapter_folder().parent / "features", work=folder / "work", device="cpu").model
    model.save_pretrained(folder / "model")
    texts = make_texts(lambda prompts, responses: model.score(prompts, responses).reward.tolist(), count)
    tokens = [model.backbone.tokenize(text.prompt, text.response) for text in texts]
    return folder / "model", texts, mean(len(found.ids) for found in tokens if found is not None)


def _quantile(ordered: Sequence[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="length of the first phase")
    parser.add_argument("--quick", action="store_true", help="5 seconds a phase")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    seconds = 5.0 if given.quick else given.seconds
    with tempfile.TemporaryDirectory(prefix="ebrm-load-") as scratch:
        model, texts, tokens = prepare(Path(scratch), 2000)
        print(f"{len(texts)} texts of {tokens:.1f} tokens on average, {os.cpu_count()} processors", flush=True)
        found = measure(model, texts, seconds, min(seconds, 30.0))
    judged = judge(found)
    write_json(given.out, {"tokens": round(tokens, 1), "processors": os.cpu_count(), "phases": found, **judged})
    for what, met in judged["met"].items():
        print(f"{'yes' if met else 'NO '}  {what}")
    print(f"batching: {judged['times_one_by_one']} times batches of one text")


if __name__ == "__main__":
    main()
