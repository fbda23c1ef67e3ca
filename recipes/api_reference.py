"""API reference: docs/api/, one page a package, from signatures and docstrings.

python recipes/api_reference.py          # write the pages
python recipes/api_reference.py --check  # exit with 1 if a page is not what the code says
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from docstring_parser import DocstringMeta, DocstringStyle, parse

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "api"
#: Packages in the order of the data flow, and what each is for.
PACKAGES = {
    "ebrm": "what most users need",
    "ebrm.data": "preferences in",
    "ebrm.backbone": "the frozen reward model",
    "ebrm.features": "embeddings and rewards on disk",
    "ebrm.logprobs": "rewards from log-probabilities of language models",
    "ebrm.references": "rewards by comparison with reference texts",
    "ebrm.judges": "language models as judges",
    "ebrm.curate": "which pairs to train on",
    "ebrm.heads": "the residual head, the energy model and other heads",
    "ebrm.calibration": "calibrated probabilities of preferences, and abstention at a stated risk",
    "ebrm.scoring": "scores of files",
    "ebrm.aggregate": "several rewards into one",
    "ebrm.shape": "rewards into a training signal",
    "ebrm.optimize": "selection, advantages, overoptimization",
    "ebrm.benchmarks": "public reward-model benchmarks",
    "ebrm.metrics": "accuracy, calibration, uncertainty, with intervals",
    "ebrm.evaluation": "comparing reward models and heads",
    "ebrm.report": "result files, tables and pages",
    "ebrm.integrations": "transformers, TRL, OpenRLHF, verl",
    "ebrm.serve": "the HTTP server",
}


def stub_of(package: str) -> dict[str, str]:
    """Public name -> where its package takes it from."""
    path = ROOT / "src" / package.replace(".", "/") / "__init__.pyi"
    found = re.findall(r"^from \.([\w.]+) import (\w+) as \2$", path.read_text("utf-8"), re.M)
    return {name: home for home, name in found}


def page(package: str) -> str:
    """The Markdown page of a package."""
    module = importlib.import_module(package)
    lines = [f"# {package}", "", "Made by `recipes/api_reference.py` from the code; edits here are lost.", ""]
    lines += [escaped(inspect.getdoc(module) or ""), ""]
    for name, home in sorted(stub_of(package).items()):
        if package == "ebrm" and "." not in home and (ROOT / "src" / "ebrm" / home / "__init__.py").exists():
            lines += [f"- [`ebrm.{name}`]({home}.md#{name.lower()}): {summary(getattr(module, name))}"]
    lines += [""] if lines[-1] else []
    for name, home in sorted(stub_of(package).items()):
        if package != "ebrm" or not (ROOT / "src" / "ebrm" / home / "__init__.py").exists():
            lines += entry(package, name, getattr(module, name))
    return "\n".join(lines).rstrip() + "\n"


def entry(package: str, name: str, value: Any) -> list[str]:
    """Heading, signature and docstring of one public name."""
    lines = [f"## {name}", ""]
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        text = repr(value)
        shown = text if len(text) <= 200 and " at 0x" not in text and "<class" not in text else type(value).__name__
        return [*lines, f"`{package}.{name}`: `{shown}`", ""]
    lines += ["```text", signature(name, value), "```", ""]
    more = inherited(value) if dataclasses.is_dataclass(value) else ()
    lines += docstring(inspect.cleandoc(value.__doc__ or ""), more)
    if inspect.isclass(value):
        for method, function in sorted(vars(value).items()):
            plain = getattr(function, "__func__", function)
            if method.startswith("_") or not (inspect.isfunction(plain) or isinstance(function, property)):
                continue
            plain = function.fget if isinstance(function, property) else plain
            called = f".{method}" if isinstance(function, property) else signature(method, plain)
            lines += [f"- `{' '.join(called.split())}`: {summary(plain)}"]
        lines += [""] if lines[-1] else []
    return lines


def signature(name: str, value: Any) -> str:
    """`name(arguments) -> result`, one argument a line where it is long."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return name
    parameters, shown = [p for p in found.parameters.values() if p.name not in ("self", "cls")], []
    starred = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
    for p in parameters:
        if p.kind is inspect.Parameter.KEYWORD_ONLY and not starred and not dataclasses.is_dataclass(value):
            shown.append("*")
            starred = True
        shown.append(argument(p))
    nothing = inspect.isclass(value) or found.return_annotation is inspect.Signature.empty
    result = "" if nothing else f" -> {annotation(found.return_annotation)}"
    line = f"{name}({', '.join(shown)}){result}"
    return line if len(line) <= 110 else f"{name}(\n" + "".join(f"    {part},\n" for part in shown) + f"){result}"


def argument(parameter: inspect.Parameter) -> str:
    """`name: type = default`."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = stars + parameter.name
    if parameter.annotation is not inspect.Parameter.empty:
        text += f": {annotation(parameter.annotation)}"
    if parameter.default is not inspect.Parameter.empty:
        text += f" = {default(parameter.default)}"
    return text


def default(value: Any) -> str:
    """A default value; of a config only what differs from the config's own defaults."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        usual = type(value)()
        names = [field.name for field in dataclasses.fields(value)]
        changed = [name for name in names if getattr(value, name) != getattr(usual, name)]
        return f"{type(value).__name__}({', '.join(f'{name}={default(getattr(value, name))}' for name in changed)})"
    return "…" if inspect.isfunction(value) else repr(value)


def annotation(value: Any) -> str:
    """A type as the code writes it."""
    return value if isinstance(value, str) else inspect.formatannotation(value)


def summary(value: Any) -> str:
    """The docstring's first sentence, on one line."""
    text = inspect.getdoc(value) or ""
    return escaped(" ".join(text.split("\n\n")[0].split()))


def inherited(value: type) -> list[DocstringMeta]:
    """Attributes of a dataclass that only the docstrings of its bases describe."""
    known, found = {field.name for field in dataclasses.fields(value)}, []
    for place, kind in enumerate(value.__mro__):
        for meta in parse(inspect.cleandoc(kind.__doc__ or ""), style=DocstringStyle.GOOGLE).meta:
            if meta.args[:1] == ["attribute"] and meta.args[1] in known:
                known -= {meta.args[1]}
                found += [meta] if place else []
    return found


def docstring(text: str | None, more: Sequence[DocstringMeta] = ()) -> list[str]:
    """A Google docstring as Markdown: prose, then lists of arguments, attributes, results and errors."""
    if not text:
        return []
    prose = re.split(r"\n+(?=(?:Args|Attributes|Returns|Yields|Raises):\n)", text)[0]
    lines = [*(line if line.startswith("    ") else escaped(line) for line in prose.split("\n")), ""]
    for meta in [*parse(text, style=DocstringStyle.GOOGLE).meta, *more]:
        what = escaped(" ".join((meta.description or "").split()))
        if meta.args and meta.args[0] in ("param", "attribute"):
            lines.append(f"- `{meta.args[1]}`: {what}")
        elif meta.args and meta.args[0] == "raises":
            lines.append(f"- raises `{getattr(meta, 'type_name', None) or 'an error'}`: {what}")
        elif meta.args and meta.args[0] in ("returns", "yields"):
            lines.append(f"- {meta.args[0]} {what}")
    return [*"\n".join(lines).rstrip().split("\n"), ""]


def escaped(text: str) -> str:
    """Sphinx roles as code, and no accidental HTML."""
    text = re.sub(r":\w+:`~?\.?([^`]+)`", r"`\1`", text)
    return text.replace("<", "&lt;")


def index() -> str:
    """The table of packages."""
    rows = [f"| [`{name}`]({name.rpartition('.')[2]}.md) | {what} |" for name, what in PACKAGES.items()]
    head = ["# API reference", "", "Made by `recipes/api_reference.py` from the code; edits here are lost.", ""]
    return "\n".join([*head, "| package | what is in it |", "| --- | --- |", *rows]) + "\n"


def pages() -> dict[Path, str]:
    """Path -> text of every page."""
    made = {PAGES / f"{name.rpartition('.')[2]}.md": page(name) for name in PACKAGES}
    return made | {PAGES / "README.md": index()}


def main(arguments: list[str]) -> int:
    """Write the pages, or say which differ."""
    made = pages()
    if arguments == ["--check"]:
        stale = [path.name for path, text in made.items() if not path.exists() or path.read_text("utf-8") != text]
        stale += [path.name for path in PAGES.glob("*.md") if path not in made]
        print(f"Run recipes/api_reference.py: {', '.join(stale)}" if stale else "The API reference is up to date.")
        return bool(stale)
    PAGES.mkdir(exist_ok=True)
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
