"""Every snippet of the README and the guides runs as it stands, in the order it is read."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from tests.conftest import ROOT
from tests.integrations.policies import save_policy
from tests.serve.live import command_serving
from tests.tiny import save_rm

from ebrm.cli.main import main
from ebrm.heads import EnergyConfig
from ebrm.serve.run import bind

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"(?P<not_run><!-- not run: [^\n]+ -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```", re.M | re.S)
WORDS = ("apple", "bread", "cheese", "date", "egg", "fig", "grape", "honey", "ice", "jam")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the guides take as given: a reward model `my-rm`, data files, a fitted `my-ebrm`, a policy."""
    folder = tmp_path_factory.mktemp("desk")
    save_rm(folder / "my-rm", "llama")
    pairs = [
        {"prompt": f"Say {word} {i}.", "chosen": f"{word.title()}!", "rejected": "No" + "." * (i % 4)}
        for i in range(6)
        for word in WORDS
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    new = [{**row, "prompt": f"Please: {row['prompt']}"} for row in pairs]
    (folder / "new-pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in new))
    (folder / "seen.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs[:10]))
    save_policy(folder / "my-policy")
    prompts = [{"prompt": [{"role": "user", "content": f"Say {word}."}]} for word in WORDS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    designed = [{**row, "reference": word, "answer": word.title()} for row, word in zip(prompts, WORDS, strict=True)]
    (folder / "rl-prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in designed))
    responses = [{"prompt": f"Say {word}.", "response": word} for word in WORDS]
    (folder / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in responses))
    anchors = [
        {"prompt": f"Tell me about {word} {i}.", "response": f"{word} " * (i + 1)} for i in range(8) for word in WORDS
    ]
    (folder / "anchors.jsonl").write_text("".join(json.dumps(row) + "\n" for row in anchors))
    graded = [
        {"prompt": f"Say {word}.", "response": text, "gold": gold}
        for word in WORDS
        for text, gold in ((word, 1.0), (f"{word}?", 0.5), ("No", 0.0))
    ]
    (folder / "graded.jsonl").write_text("".join(json.dumps(row) + "\n" for row in graded))
    thumbs = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in pairs[:30] for side in ("chosen", "rejected")
    ]  # fmt: skip
    (folder / "kto.jsonl").write_text("".join(json.dumps(row) + "\n" for row in thumbs))
    return folder


def free_port() -> int:
    with bind("127.0.0.1", 0) as made:
        return made.getsockname()[1]


def blocks(page: Path) -> list[tuple[str, str]]:
    return [(m["language"], m["code"]) for m in _BLOCK.finditer(page.read_text()) if m["not_run"] is None]


def run_command(line: str, servers: ExitStack) -> None:
    words = shlex.split(line)
    if words[0] == "curl":  # asks the server that the page started
        if shutil.which("curl"):
            said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            assert said and '"error"' not in said, said
        return
    assert words[0] == "ebrm", f"a guide's command must be ebrm's own: {line}"
    if words[1] == "serve":  # runs until the page is done
        servers.enter_context(command_serving(words[1:]))
        return
    if words[1] == "fit":  # the guide's own options first; then what makes a tiny fit quick
        energy = "--paper" in words or ("--head" in words and words[words.index("--head") + 1] == "energy")
        words += ["--overwrite", *(["--joint-widths", "12,6", "--epochs", "2", "--batch-rows", "16"] if energy else [])]
    assert main(words[1:]) == 0, line


# transformers 5.23 says that its own arguments, which TRL 1.16 sets, will have other names.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*deprecated:FutureWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_run(
    page: Path, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    paper = EnergyConfig.paper  # trained for minutes
    quick = lambda size="small": replace(paper(size), training=replace(paper(size).training, epochs=1))  # noqa: E731
    monkeypatch.setattr(EnergyConfig, "paper", staticmethod(quick))
    for left in [*desk.glob("scored*"), *desk.glob(".scored*")]:  # made by the model of another page
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    monkeypatch.setenv("EBRM_CACHE", str(desk / "cache"))
    if not (desk / "my-ebrm").exists():
        with ExitStack() as none:
            run_command("ebrm fit --backbone my-rm --data pairs.jsonl --out my-ebrm", none)
    port = str(free_port())
    with ExitStack() as servers:
        for language, code in blocks(page):
            code = code.replace("8080", port)  # which may be taken on this machine
            if language == "bash":
                for line in code.replace("\\\n", " ").splitlines():
                    run_command(line, servers)
            elif language == "python":
                with patch.dict(os.environ):  # what a snippet sets is gone after it
                    exec(compile(code, str(page), "exec"), {})  # noqa: S102 - the project's own documentation


def test_pages_have_snippets_and_links_that_lead_somewhere() -> None:
    assert sum(len(blocks(page)) for page in PAGES) > 8
    for page in [*PAGES, *sorted((ROOT / "docs" / "api").glob("*.md"))]:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_the_api_reference_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "recipes/api_reference.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_tests_that_security_names_are_there():
    named = re.findall(r"`(tests/[\w/]+\.py)`:\s+(`test_\w+`(?:,\s+`test_\w+`)*)", (ROOT / "SECURITY.md").read_text())
    assert len(named) >= 5
    for file, names in named:
        for name in re.findall(r"`(\w+)`", names):
            assert f"def {name}(" in (ROOT / file).read_text(), f"{file} has no {name}"


def test_every_row_of_the_related_systems_names_what_is_there() -> None:
    page = (ROOT / "docs" / "related.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.+)", page, re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 62))
    for number, row in rows:
        for dotted in re.findall(r"`(ebrm(?:\.\w+)+)`", row):
            place, _, name = dotted.rpartition(".")
            assert hasattr(importlib.import_module(place), name), f"row {number} names {dotted}"
        tests = re.findall(r"`(tests/[\w/]+\.py)`", row)
        assert tests or number == "30", f"row {number} names no test"
        tested = "\n".join((ROOT / test).read_text() for test in tests)
        for name in re.findall(r"`ebrm\.\w+\.(\w+)`", row):
            assert re.search(rf"\b{name}\b", tested), f"row {number}: {', '.join(tests)} do not test {name}"
