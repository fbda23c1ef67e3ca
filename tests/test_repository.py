"""What holds for the repository as a whole: imports, sizes, versions, packaging, and a test for every module."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
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

# Modules without a test file of the same name, and where they are tested instead.
TESTED_ELSEWHERE: dict[str, str] = {
    "__main__.py": "tests/cli/test_main.py",
    "cli/demo.py": "tests/demo/test_run.py",
    "cli/features.py": "tests/end_to_end/test_bad_input.py",
    "cli/help.py": "tests/cli/test_main.py",
    "cli/logs.py": "tests/cli/test_main.py",
    "cli/outcome.py": "tests/cli/test_fit.py",
    "cli/scoring.py": "tests/cli/test_score.py",
    "errors.py": "tests/cli/test_main.py",
    "evaluate/report/page.py": "tests/evaluate/report/test_fit.py",
    "evaluate/report/fit_data.py": "tests/evaluate/report/test_fit.py",
    "evaluate/report/fit_results.py": "tests/evaluate/report/test_fit.py",
    "evaluate/report/fit_run.py": "tests/evaluate/report/test_fit.py",
    "evaluate/report/svg.py": "tests/evaluate/report/test_figures.py",
    "evaluate/results.py": "tests/evaluate/comparison/test_compare.py",
    "evaluate/settings.py": "tests/evaluate/test_run.py",
    "preferences/readers.py": "tests/preferences/test_sources.py",
    "preferences/settings.py": "tests/preferences/test_load.py",
}


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


def test_settings_and_errors_load_nothing_heavy():
    names = [".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) for path in SOURCE.rglob("settings.py")]
    assert names
    assert loaded_by("import ebrm.errors, ebrm.files, ebrm.progress, " + ", ".join(names)) == set()


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


@pytest.mark.parametrize("name", sorted(ebrm._HOME))
def test_every_lazy_name_is_there(name):
    value = getattr(ebrm, name)
    assert value.__name__ == name
    assert value.__module__.startswith("ebrm.")
    assert name in dir(ebrm) and name in ebrm.__all__


def test_lazy_names_are_the_ones_type_checkers_see():
    said = re.findall(
        r"^    from ([\w.]+) import (\w+) as \2$", (SOURCE / "__init__.py").read_text(encoding="utf-8"), re.M
    )
    assert {name: home for home, name in said} == ebrm._HOME


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'ebrm' has no attribute 'nonsense'"):
        _ = ebrm.nonsense


def test_modules_stay_short():
    lengths = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n") for path in MODULES}
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}


def test_subpackages_hold_only_a_docstring():
    busy = [
        path
        for path in SOURCE.glob("*/**/__init__.py")
        if not re.fullmatch(r'"""[^"]+"""\s*', path.read_text(encoding="utf-8"))
    ]
    assert busy == []


def test_every_module_has_its_test():
    inside = [path.relative_to(SOURCE) for path in MODULES if path.name != "__init__.py"]
    untested = {str(path) for path in inside if not (ROOT / "tests" / path.parent / f"test_{path.name}").exists()}
    assert untested == set(TESTED_ELSEWHERE)
    assert [place for place in TESTED_ELSEWHERE.values() if not (ROOT / place).exists()] == []


def test_every_benchmark_has_its_test():
    scripts = sorted(path.name for path in BENCHMARKS.glob("*.py") if path.name not in ("__init__.py", "evaluate.py"))
    assert scripts
    assert [name for name in scripts if not (ROOT / "tests" / "benchmarks" / f"test_{name}").exists()] == []
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
