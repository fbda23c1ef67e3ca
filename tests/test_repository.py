"""The repository as a whole: public names, imports, sizes, words, versions, packaging."""

from __future__ import annotations

import ast
import graphlib
import importlib
import importlib.metadata
import inspect
import json
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ebrm

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "ebrm"
MODULES = sorted(SOURCE.rglob("*.py"))
BENCHMARKS = ROOT / "benchmarks"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HEAVY = [
    "accelerate",
    "datasets",
    "matplotlib",
    "pandas",
    "peft",
    "pyarrow",
    "scipy",
    "sklearn",
    "torch",
    "transformers",
]

PACKAGES = sorted(path.parent for path in SOURCE.glob("*/__init__.pyi"))
#: Words that no reward-model engineer uses for what they stand for here, and admissions that a claim was not checked.
FORBIDDEN = re.compile(
    r"\b(by lot|witness(es)?|rooms?|could not be verified|from memory|not checked against|unverified)\b", re.I
)


def loaded_by(code: str) -> set[str]:
    """The heavy libraries that a fresh interpreter has loaded after running `code`."""
    code += f"\nimport sys, json\nprint('loaded:' + json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout.rpartition("loaded:")[2]))


def tool(*command: str) -> None:
    """Run a tool of this environment on the project and show what it says if it is not content."""
    run = subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:]], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stdout + run.stderr


def text_files() -> list[Path]:
    """The project's own text: everything that a commit would hold, as far as it is UTF-8."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    names = [name for name in listed.stdout.split("\0") if name]
    if listed.returncode:  # an unpacked source archive
        tops = [ROOT / top for top in ("src", "tests", "docs", "recipes", "benchmarks", ".ci")]
        names = [str(path.relative_to(ROOT)) for top in tops for path in top.rglob("*")]
    suffixes = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".cff", ".json", ".html", ".css", ".svg", ""}
    paths = [ROOT / name for name in names]
    return [path for path in paths if path.suffix in suffixes and path.is_file()]


def test_importing_ebrm_loads_nothing_heavy():
    assert loaded_by("import ebrm") == set()


def test_importing_ebrm_leaves_the_interpreter_as_it_was():
    code = """
import os, sys
umask, finders, filters = os.umask(0o027), list(sys.meta_path), list(__import__("warnings").filters)
import ebrm
assert os.umask(umask) == 0o027 and sys.meta_path == finders
assert sys.modules["warnings"].filters == filters
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_configs_and_errors_load_nothing_heavy():
    names = [
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        for path in SOURCE.rglob("config.py")
        if "integrations" not in path.parts
    ]
    assert names
    assert loaded_by("import ebrm.errors, ebrm.utils.files, ebrm.utils.progress_bar, " + ", ".join(names)) == set()


def test_help_loads_nothing_heavy():
    code = """
import sys
from ebrm.cli.main import main
sys.argv = ["ebrm", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
    assert loaded_by(code) == set()


def test_heavy_libraries_would_be_seen():
    assert loaded_by("import scipy") == {"scipy"}


def stub_of(package: Path) -> dict[str, str]:
    """Public name -> module or package below `package` that its `__init__.pyi` takes it from."""
    found = re.findall(r"^from \.([\w.]+) import (\w+) as \2$", (package / "__init__.pyi").read_text("utf-8"), re.M)
    return {name: home for home, name in found}


PUBLIC = [(package, name) for package in [SOURCE, *PACKAGES] for name in sorted(stub_of(package))]


@pytest.mark.parametrize(("package", "name"), PUBLIC, ids=[f"{package.name}.{name}" for package, name in PUBLIC])
def test_public_names_are_imported_from_their_package(package, name):
    module = importlib.import_module(".".join(package.relative_to(SOURCE.parent).parts))
    value = getattr(module, name)
    assert not isinstance(value, types.ModuleType), "a module of that name hides it"
    assert name in dir(module) and name in module.__all__


#: Public callables with *args or **kwargs, and who asks for them.
OPEN_ENDED = {
    "EBRMConfig": "transformers' configs pass their common fields on",
    "EBRMForSequenceClassification.forward": "transformers' Trainer passes what the tokenizer made",
    "EBRMForSequenceClassification.from_pretrained": "transformers' loading options",
    "EBRMForSequenceClassification.save_pretrained": "transformers' saving options",
    "EnergyRewardModel.save_pretrained": "huggingface_hub's options of a push",
    "EnergyRewardModel.with_backbone": "fields of BackboneConfig; others are refused",
    "EnergyRewardModel.with_inference": "fields of the head's inference config; others are refused",
    "MeanPooledBert.forward": "transformers passes what the tokenizer made",
    "RewardHead.with_inference": "fields of the head's inference config; others are refused",
    "item_tables": "any number of columns",
}


def own_callables(name, value):
    """A public function, or a class and its public methods, by name."""
    if inspect.isfunction(value):
        yield name, value
    elif inspect.isclass(value) and value.__module__.startswith("ebrm") and not getattr(value, "_is_protocol", False):
        yield name, value
        for method, found in vars(value).items():
            found = getattr(found, "__func__", found)
            if inspect.isfunction(found) and not method.startswith("_"):
                yield f"{name}.{method}", found


def test_every_argument_of_a_public_function_has_a_name():
    found = set()
    for package, name in PUBLIC:
        module = importlib.import_module(".".join(package.relative_to(SOURCE.parent).parts))
        for called, function in own_callables(name, getattr(module, name)):
            try:
                parameters = inspect.signature(function).parameters.values()
            except ValueError:  # an exception's, of C
                continue
            found |= {called for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    assert found == set(OPEN_ENDED)
    assert "head" in inspect.signature(ebrm.fit).parameters


@pytest.mark.parametrize("package", [SOURCE, *PACKAGES], ids=lambda path: path.name)
def test_a_package_holds_its_docstring_and_its_public_names(package):
    text = (package / "__init__.py").read_text("utf-8")
    if package == SOURCE:
        text, _, rest = text.partition('if sys.modules.get("transformers") is not None:')
        assert "register_or_warn()" in rest and len(rest.strip().splitlines()) == 3
        text = text.replace("import sys\n", "")
    assert re.fullmatch(
        r'"""[^"]+"""\s+import lazy_loader as lazy\s+__getattr__, __dir__, __all__ = lazy\.attach_stub.*\s*', text
    )
    said = (package / "__init__.pyi").read_text("utf-8").splitlines()
    assert len(stub_of(package)) == len([line for line in said if line]), "a line that is not `from .x import y as y`"


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="No ebrm attribute nonsense"):
        _ = ebrm.nonsense


def test_modules_have_at_most_800_lines():
    lengths = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n") for path in MODULES}
    assert {name: lines for name, lines in lengths.items() if lines > 800} == {}


def test_sources_use_the_words_of_the_field():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in [*MODULES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if FORBIDDEN.search(line)
    ]
    assert found == []


#: A command to type, up to its end, and options of other programs that errors and docstrings name.
COMMAND = re.compile(r"\b(ebrm|pip install|ray start|vllm serve|python -m) [^`\"]*")
FOREIGN_OPTIONS = {
    "--api-key", "--context-length", "--dtype", "--enable-mis", "--max-model-len",
    "--override-pooler-config", "--pooler-config", "--reward.remote_url", "--served-model-name", "--single_game",
}  # fmt: skip


def test_the_library_names_fields_and_no_options():
    found = []
    for path in MODULES:
        if path.relative_to(SOURCE).parts[0] in ("cli", "demo", "__main__.py"):
            continue
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        pieces = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in nodes:
            if id(node) in pieces:
                continue
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in parts)
            options = set(re.findall(r"(?<![\w-])(?<!var\()--[a-z][\w.-]*\w", COMMAND.sub("", text)))
            found += [f"{path.relative_to(ROOT)}:{node.lineno}: {text}" for _ in options - FOREIGN_OPTIONS]
    assert found == []


def test_nothing_is_installed_from_an_index_under_our_name():
    wrong = re.compile(r"pip install [^\n`]*[ '\"]ebrm(\[|['\"` \n])")
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    texts = {path: path.read_text(encoding="utf-8") for path in [*MODULES, *pages]}
    assert [str(path) for path, text in texts.items() if wrong.search(text)] == []


def imported_by(path: Path, known: set[str]) -> set[str]:
    """Modules of ours that `path` imports at any depth (not for type checkers), through package surfaces, too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {home_of(node.module, alias.name, known) for alias in node.names}
    return found & known


def home_of(module: str, name: str, known: set[str]) -> str:
    """The module that defines what `from module import name` gives."""
    if f"{module}.{name}" in known:
        return f"{module}.{name}"
    folder = SOURCE.parent / module.replace(".", "/")
    if (folder / "__init__.pyi").exists() and (home := stub_of(folder).get(name)):
        return home_of(f"{module}.{home}", name, known)
    return module


def test_no_module_imports_itself_through_others():
    names = {".".join(path.relative_to(SOURCE.parent).with_suffix("").parts): path for path in MODULES}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    graph = {name: imported_by(path, set(names)) - {name} for name, path in names.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_benchmark_has_its_test():
    scripts = sorted(path.name for path in BENCHMARKS.glob("*.py") if path.name not in ("__init__.py", "evaluate.py"))
    assert scripts
    assert [name for name in scripts if not (ROOT / "tests" / "speed" / f"test_{name}").exists()] == []
    lengths = {name: (BENCHMARKS / name).read_text(encoding="utf-8").count("\n") for name in scripts}
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}


def test_the_package_does_not_know_its_benchmarks():
    importing = re.compile(r"^\s*(?:from|import) benchmarks\b", re.M)
    assert [str(path) for path in MODULES if importing.search(path.read_text(encoding="utf-8"))] == []


def test_import_contracts_hold():
    tool("lint-imports", "--no-cache")


def test_ruff_is_content():
    tool("ruff", "check", "--no-cache")


def test_code_is_formatted():
    tool("ruff", "format", "--check", "--no-cache")


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    released = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert importlib.metadata.version("ebrm") == ebrm.__version__ == citation["version"] == released[0]


def requirements() -> list[Requirement]:
    project = PROJECT["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_every_requirement_has_a_lower_bound():
    assert [
        str(wanted) for wanted in requirements() if not any(s.operator in (">=", "==") for s in wanted.specifier)
    ] == []


def test_pins_are_exact_and_inside_the_ranges():
    pinned = {canonicalize_name(name): version for name, version in pins().items()}
    # Some packages (opentelemetry's exporters) have never had a release that is not called beta.
    exact = re.compile(r"\d+(\.\d+)*((b|\.?post)\d+)?")
    assert [name for name, version in pinned.items() if not exact.fullmatch(version)] == []
    trackers = {Requirement(text).name for text in PROJECT["project"]["optional-dependencies"]["trackers"]}
    for wanted in requirements():
        if wanted.name not in trackers:
            assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), wanted


def test_every_import_of_ours_is_declared():
    used = set()
    for path in MODULES:
        used |= set(re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(encoding="utf-8"), re.M))
    provided = importlib.metadata.packages_distributions()
    declared = {canonicalize_name(wanted.name) for wanted in requirements()}
    outside = used - sys.stdlib_module_names - {"ebrm"}
    undeclared = {
        name for name in outside if name in provided and not declared & {canonicalize_name(d) for d in provided[name]}
    }
    assert undeclared == set()


def test_package_data_is_installed():
    import importlib.resources

    files = importlib.resources.files("ebrm")
    assert files.joinpath("py.typed").is_file()


def test_console_script_is_installed():
    scripts = importlib.metadata.entry_points(group="console_scripts", name="ebrm")
    assert [script.value for script in scripts] == ["ebrm.cli.main:main"]


def test_no_file_points_at_one_machine():
    absolute = re.compile(r"(?<![\w.~:/>)\]}])/(?:home|root|Users|work)/\w")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in text_files()
        for line in path.read_text(encoding="utf-8", errors="ignore").splitlines()
        if absolute.search(line)
    ]
    assert found == []
