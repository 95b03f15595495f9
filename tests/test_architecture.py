"""The house rules: Ray only in `cluster`, MLflow only in `tracking`, imports upward only, a quick `--help`."""

import ast
import os
import re
import resource
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

PACKAGE = Path(__file__).parents[1] / "tsd"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# A folder of tsd, or a module beside them, may import what stands in a row above its own, and from its own folder.
LAYERS = (
    {"tsd", "errors", "progress", "rng", "series"},
    {"storage"},
    {"tasks", "tracking"},
    {"recipe", "evaluation"},
    {"plots", "generation", "measurements"},
    {"models"},
    {"training", "curation"},
    {"inference", "reporting"},
    {"teachers"},
    {"study", "plugins"},
    {"cluster"},
    {"cli"},
    {"__main__"},
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
MODULE_LINES, CLASS_LINES = 400, 200
HEAVY = ("torch", "ray", "transformers", "polars", "pydantic", "pyarrow", "numpy", "mlflow", "matplotlib", "scipy")


def imported(path: Path) -> set[str]:
    """The absolute names of all modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            # `from tsd.storage import keys` imports a module, `from tsd.storage.keys import digest` a name of it
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else str(node.module))
    return found


def folder(module: str) -> str:
    """The folder of tsd that a module is in, or its own name where it is in none."""
    return module.split(".")[1] if "." in module else module


def test_every_folder_has_its_place_in_the_layers() -> None:
    assert {folder(module) for module in MODULES} - {"recipes"} == set(RANK)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_upward_only(module: str) -> None:
    mine = folder(module)
    for other in imported(MODULES[module]):
        if other.startswith("tsd") and folder(other) != mine:
            assert RANK[folder(other)] < RANK[mine], f"{module} imports {other}, which does not stand above it"


def test_no_modules_import_one_another_in_a_circle() -> None:
    graph = {module: imported(path) & set(MODULES) for module, path in MODULES.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize("module", MODULES)
def test_no_module_and_no_class_is_too_long_to_read(module: str) -> None:
    text = MODULES[module].read_text()
    assert len(text.splitlines()) <= MODULE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) and node.end_lineno:
            assert node.end_lineno - node.lineno < CLASS_LINES, node.name


def test_no_file_of_the_tests_and_benchmarks_is_too_long_to_read() -> None:
    files = [
        file for folder in ("tests", "benchmarks", "jobs") for file in (PACKAGE.parent / folder).rglob("*.py")
    ]
    assert not [file for file in files if len(file.read_text().splitlines()) > MODULE_LINES]


def test_only_tracking_imports_mlflow() -> None:
    users = {m for m, path in MODULES.items() if any(n.split(".")[0] == "mlflow" for n in imported(path))}
    assert users == {"tsd.tracking.mlflow_client"}


def test_only_figures_imports_matplotlib() -> None:
    users = {m for m, path in MODULES.items() if any(n.split(".")[0] == "matplotlib" for n in imported(path))}
    assert users == {"tsd.plots.figures"}


def test_only_the_cluster_package_imports_ray() -> None:
    users = {m for m, path in MODULES.items() if any(n.split(".")[0] == "ray" for n in imported(path))}
    assert users
    assert {folder(user) for user in users} == {"cluster"}


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
    )


def test_every_module_outside_the_cluster_package_loads_without_ray() -> None:
    modules = [module for module in MODULES if folder(module) != "cluster"]
    assert len(modules) > 20
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'ray' not in sys.modules, name + ' loads ray'\n"
    )
    done = python(code, *modules)
    assert done.returncode == 0, done.stderr


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom tsd.cli import main\nsys.argv = ['tsd', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "study" in done.stdout
    loaded = done.stdout.splitlines()[-1].split()
    assert loaded[0] == "LOADED"
    assert not set(loaded) & set(HEAVY)


def test_help_takes_less_than_a_second() -> None:
    def seconds() -> float:
        """Of the processor, which are the clock's where nobody else is at work: it waits for nothing."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "tsd.cli", "--help"],
            capture_output=True,
            check=True,
            timeout=60,
            cwd=PACKAGE.parent,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert median(seconds() for _ in range(3)) < 1.0


def test_workers_that_ask_nobody_and_train_nothing_load_no_library_for_it() -> None:
    done = python("import sys, tsd.cluster.stages; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "ray" in loaded
    assert not loaded & {"torch", "transformers", "openai", "matplotlib", "scipy", "mlflow"}


def test_a_driver_loads_no_library_before_a_stage_needs_it() -> None:
    done = python("import sys, tsd.cluster.studies; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "ray" in loaded
    assert not loaded & {"torch", "transformers", "openai", "matplotlib", "scipy", "mlflow", "pandas"}


def test_who_trains_nothing_itself_loads_no_torch() -> None:
    done = python("import sys, tsd.cluster.study, tsd.cluster.training, tsd.models.tokenizer; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert "ray.tune" in done.stdout.split()
    assert "torch" not in done.stdout.split()


@pytest.mark.parametrize("constraints", ["constraints.txt", "constraints-vllm.txt"])
def test_every_dependency_has_an_exact_version_in_each_environment(constraints: str) -> None:
    root = PACKAGE.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    wanted = {re.match(r"[\w.-]+", line)[0].lower() for line in project["dependencies"]}
    pinned = {line.partition("==")[0].lower() for line in (root / constraints).read_text().splitlines()}
    assert wanted <= pinned, f"{constraints} lacks {sorted(wanted - pinned)}"
