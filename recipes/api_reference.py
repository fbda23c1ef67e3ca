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
from pathlib import Path
from typing import Any

from docstring_parser import Docstring, DocstringStyle, parse

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "api"
#: Packages in the order of the data flow, and what each is for.
PACKAGES = {
    "ebrm": "what most users need",
    "ebrm.data": "preferences in",
    "ebrm.backbone": "the frozen reward model",
    "ebrm.features": "embeddings and rewards on disk",
    "ebrm.curate": "which pairs to train on",
    "ebrm.heads": "the energy model and other heads",
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
        shown = text if len(text) <= 200 and " at 0x" not in text else type(value).__name__
        return [*lines, f"`{package}.{name}`: `{shown}`", ""]
    lines += ["```text", signature(name, value), "```", ""]
    lines += docstring(inspect.cleandoc(value.__doc__ or ""))
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
    parameters = [p for p in found.parameters.values() if p.name not in ("self", "cls")]
    if dataclasses.is_dataclass(value):
        shown = [str(p.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)) for p in parameters]
        found = found.replace(return_annotation=inspect.Signature.empty)
    else:
        kinds, shown = inspect.Parameter, []
        for place, p in enumerate(parameters):
            first = place == 0 or parameters[place - 1].kind is not kinds.KEYWORD_ONLY
            if p.kind is kinds.KEYWORD_ONLY and first and not any(q.kind is kinds.VAR_POSITIONAL for q in parameters):
                shown.append("*")
            shown.append(str(p))
    result = "" if found.return_annotation is inspect.Signature.empty else f" -> {found.return_annotation}"
    line = f"{name}({', '.join(shown)}){result}".replace("'", "")
    line = re.sub(r" at 0x[0-9a-f]+", "", line)
    if len(line) <= 110:
        return line
    return (f"{name}(\n" + "".join(f"    {part},\n" for part in shown) + f"){result}").replace("'", "")


def summary(value: Any) -> str:
    """The docstring's first sentence, on one line."""
    text = inspect.getdoc(value) or ""
    return escaped(" ".join(text.split("\n\n")[0].split()))


def docstring(text: str | None) -> list[str]:
    """A Google docstring as Markdown: prose, then lists of arguments, attributes, results and errors."""
    if not text:
        return []
    parsed: Docstring = parse(text, style=DocstringStyle.GOOGLE)
    lines = [escaped(part) + "\n" for part in (parsed.short_description, parsed.long_description) if part]
    for meta in parsed.meta:
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
    return text.replace("<", "&lt;") if "```" not in text else text


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
