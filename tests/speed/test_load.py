from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from contextlib import contextmanager, suppress

import pytest
from benchmarks import load
from benchmarks.load import Asker, Load, Text, judge, make_texts, put_load
from benchmarks.servers import resident_bytes


async def serve(answers):
    """A server that gives each body's answer by `answers(body)`: (status, reward), or None to hang up."""

    async def talk(reader, writer):
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            found = answers(await reader.readexactly(length))
            if found is None:
                return
            content = b'{"results": [{"reward": %r}]}' % found[1]
            writer.write(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n" % (found[0], len(content)) + content)
        writer.close()

    talks = []

    async def quietly(reader, writer):
        talks.append(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await talk(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(quietly, "127.0.0.1", 0)

    async def end():
        server.close()
        await asyncio.gather(*talks)

    return end, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def seen(answers, texts, **more):
    """What clients see of a server that answers so."""
    count = Counter()

    def counted(body):
        count["asked"] += 1
        return answers(count["asked"], body)

    async def main():
        end, url = await serve(counted)
        found = await put_load(url, texts, clients=4, seconds=0.2, **more)
        await end()
        return found

    return asyncio.run(main())


TEXTS = [Text("a", "b", 1.0), Text("c", "d", 2.0)]


def right(body):
    return 1.0 if b'"a"' in body else 2.0


def test_right_answers_are_counted():
    found = seen(lambda _, body: (200, right(body)), TEXTS, pid=os.getpid())
    summary = found.summary()
    assert summary["right"] == summary["requests"] > 0
    assert (summary["wrong"], summary["lost"], summary["mixed_up"]) == (0, 0, 0)
    assert summary["p50_ms"] <= summary["p99_ms"] and summary["memory_mib"]["first"] > 1


def test_wrong_mixed_up_lost_and_refused_answers_are_seen():
    def answers(count, body):
        if count == 1:
            return 200, 3.0 - right(body)  # the other text's
        if count == 2:
            return 200, right(body) + 1e-3
        if count == 3:
            return None
        return (503, 0.0) if count == 4 else (200, right(body))

    found = seen(answers, TEXTS)
    assert (found.wrong, found.mixed_up, found.lost, found.statuses[503]) == (2, 1, 1, 1)
    assert found.statuses[200] - 2 == len(found.latencies)


def test_the_last_quarter_of_memory_stands_beside_the_second():
    grown = Load(seconds=1.0, memory=[k * 2**20 for k in (10, 20, 20, 20, 30, 30, 90, 90)]).summary()
    assert grown["memory_mib"] == {"first": 10.0, "early": 20.0, "late": 90.0}


def test_texts_have_scores_of_their_own():
    texts = make_texts(
        lambda prompts, responses: [float(len(p + r)) for p, r in zip(prompts, responses, strict=True)], 50
    )
    assert len({text.reward for text in texts}) == len(texts) > 5
    assert all(text.reward == len(text.prompt + text.response) for text in texts)


def phases(**changes):
    good = {"seconds": 5.0, "wrong": 0, "lost": 0, "right": 500, "per_second": 100.0, "statuses": {"200": 500}}
    found = {
        "batched": {**good, "memory_mib": {"first": 90.0, "early": 100.0, "late": 101.0}},
        "alone": {**good, "per_second": 25.0},
        "single": {**good, "per_second": 20.0},
        "overload": {**good, "statuses": {"200": 5, "503": 50}},
    }
    for phase, values in changes.items():
        found[phase] = {**found[phase], **values}
    return judge(found)


def test_what_must_hold():
    judged = phases()
    assert all(judged["met"].values()) and judged["times_one_by_one"] == 4.0 and judged["times_a_single_client"] == 5.0
    assert judged["memory_growth_mib"] == 1.0


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"alone": {"wrong": 1}}, "no answer wrong"),
        ({"overload": {"lost": 1}}, "no answer wrong"),
        ({"alone": {"per_second": 40.0}}, "batching gives"),
        ({"overload": {"statuses": {"200": 5}}}, "overload is answered"),
        ({"overload": {"statuses": {"500": 5, "503": 5}}}, "no other status"),
        ({"batched": {"statuses": {"200": 5, "503": 5}}}, "no other status"),
        ({"batched": {"memory_mib": {"first": 1.0, "early": 100.0, "late": 120.0}}}, "memory is flat"),
    ],
)
def test_what_does_not_hold_is_said(changes, broken):
    failed = [what for what, met in phases(**changes)["met"].items() if not met]
    assert len(failed) == 1 and failed[0].startswith(broken)


def test_all_phases_are_measured_and_written(tmp_path, monkeypatch, capsys):
    """The whole benchmark but the model and its processes."""

    options = []

    @contextmanager
    def serving(model, *given):
        options.append(given)
        yield "http://127.0.0.1:9", os.getpid()

    async def found(url, texts, clients, seconds, pid=None, pause=0.0):
        return Load(seconds=1.0, latencies=[0.1] * clients, statuses=Counter({200: clients}))

    monkeypatch.setattr(load, "serving", serving)
    monkeypatch.setattr(load, "put_load", found)
    monkeypatch.setattr(load, "prepare", lambda folder, count: (folder, TEXTS, 14.0))
    load.main(["--quick", "--out", str(tmp_path / "load.json")])
    written = json.loads((tmp_path / "load.json").read_text(encoding="utf-8"))
    assert set(written["phases"]) == {"batched", "alone", "single", "overload"} and written["tokens"] == 14.0
    assert ("--token-budget", "1") in options and any("--queue" in given for given in options)
    assert "NO   batching gives 3 times" in capsys.readouterr().out


def test_memory_is_the_process_s():
    before = resident_bytes(os.getpid())
    held = bytearray(os.urandom(1) * 64 * 2**20)
    assert resident_bytes(os.getpid()) - before > 32 * 2**20 and held


def test_a_connection_that_the_server_closes_is_opened_again():
    async def main():
        end, url = await serve(lambda body: (200, 1.0))
        asker = Asker("127.0.0.1", int(url.rsplit(":", 1)[1]))
        assert await asker.ask(TEXTS[0].body) == (200, {"results": [{"reward": 1.0}]})
        asker.close()
        assert (await asker.ask(TEXTS[0].body))[0] == 200
        asker.close()
        await end()

    asyncio.run(main())
