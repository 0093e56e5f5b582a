"""Who may import whom: spaces → trainable ← search, and the folders of each package. `docs/design.md` draws it."""

import ast
import importlib.util
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("spaces", "trainable", "search")
MOST_FILES = 13
MOST_BODY_LINES = 50

# Folder of search/: the folders whose modules it may import. The commands at the top may import all.
MAY_IMPORT = {
    "experiment": set(),
    "cli": {"experiment"},
    "policy": {"experiment"},
    "processes": set(),
    "analysis": {"experiment", "policy"},
    "terminal": {"experiment", "policy", "analysis"},
    "pages": {"experiment", "policy", "analysis"},
    "execution": {"experiment", "policy", "analysis", "processes"},
    "retraining": {"experiment", "policy", "analysis", "processes"},
    "session": {"experiment", "policy", "analysis", "processes", "execution", "terminal"},
}
# Folder of trainable/: likewise. All may import the files at the top of trainable/.
TRAINABLE_MAY_IMPORT = {"augmentation": set(), "network": set(), "data": {"augmentation"}}
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path, nodes: Iterable[ast.AST] | None = None) -> set[str]:
    """Modules that a file, or `nodes` of it, imports; `from a import b` is `a.b` if that is a module."""
    found = set()
    for node in ast.walk(tree_of(path)) if nodes is None else nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}": node.module for alias in node.names}
            found |= {name if is_module(name) else package for name, package in names.items()}
    return found


@cache
def is_module(name: str) -> bool:
    path = ROOT / Path(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def packages(path: Path) -> set[str]:
    return {module.split(".")[0] for module in imports(path)}


def folder_of(module: str) -> str | None:
    """`policy` for `search.policy.asha`; None for a module at the top."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / parts[0] / parts[1]).is_dir() else None


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_packages_import_in_one_direction() -> None:
    forbidden = {"spaces": {"torch", "ray", "trainable", "search"}, "trainable": {"search"}, "search": set()}
    for path in FILES:
        package = path.relative_to(ROOT).parts[0]
        assert not packages(path) & (forbidden[package] | {"benchmarks", "tests"}), named(path)


def test_ray_is_imported_only_where_trials_run() -> None:
    importers = [named(path) for path in FILES if "ray" in packages(path)]
    others = [name for name in importers if not name.startswith("search/execution/")]
    assert others == ["trainable/ray_trainable.py"]


@pytest.mark.parametrize("package, table", [("search", MAY_IMPORT), ("trainable", TRAINABLE_MAY_IMPORT)])
def test_a_folder_imports_those_that_the_table_allows(package: str, table: dict[str, set[str]]) -> None:
    for path in FILES:
        own, folder = path.relative_to(ROOT).parts[0], path.parent.name
        if own == package and folder in table:
            imported = {folder_of(module) for module in imports(path) if module.startswith(f"{package}.")}
            files_at_the_top = {None} if package == "trainable" else set()
            assert imported <= {folder, *table[folder], *files_at_the_top}, named(path)


def test_the_table_names_every_folder_and_has_no_circle() -> None:
    folders = {path.name for path in (ROOT / "search").iterdir() if (path / "__init__.py").is_file()}
    assert set(MAY_IMPORT) == folders
    levels: dict[str, int] = {}
    while len(levels) < len(MAY_IMPORT):
        free = [name for name, below in MAY_IMPORT.items() if name not in levels and below <= set(levels)]
        assert free, f"a circle among {set(MAY_IMPORT) - set(levels)}"
        levels |= dict.fromkeys(free, len(set(levels.values())))


def test_no_two_modules_import_each_other() -> None:
    graph = defaultdict(set)
    for path in FILES:
        module = named(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        # Only imports at the top level; without those for type checkers.
        graph[module] = {name for name in imports(path, tree_of(path).body) if name.split(".")[0] in PACKAGES}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " → ".join([*way[way.index(module) :], module])
        if module not in done:
            for name in graph.get(module, ()):
                visit(name, (*way, module))
            done.add(module)

    for module in list(graph):
        visit(module, ())


def test_only_retraining_imports_the_test_set() -> None:
    importers = [named(path) for path in FILES if "trainable.data.test_set" in imports(path)]
    assert importers == ["search/retraining/retraining.py"]


def test_no_folder_has_too_many_files() -> None:
    for folder in {path.parent for path in FILES}:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= MOST_FILES, named(folder)
        assert (folder / "__init__.py").is_file(), named(folder)


def test_no_function_is_longer_than_a_screen() -> None:
    functions = [
        (path, node) for path in FILES for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef)
    ]
    for path, node in functions:
        first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
        inner = [each for each in node.body if isinstance(each, ast.FunctionDef)]  # counted on their own
        n_lines = (node.end_lineno or 0) - first.lineno + 1
        n_lines -= sum((each.end_lineno or 0) - each.lineno + 1 for each in inner)
        assert n_lines <= MOST_BODY_LINES, f"{named(path)}: {node.name} has {n_lines} lines"


def test_every_folder_is_installed_and_typed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["packages"]["find"]["include"] == [f"{package}*" for package in PACKAGES]
    data = settings["package-data"]
    for folder in ("search.pages", "search.retraining"):
        assert "assets/*" in data[folder]
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").is_file()
        assert "py.typed" in data[package]


@pytest.mark.parametrize("package, command", [("spaces", "search.run"), ("spaces", "trainable.train")])
def test_another_project_s_package_of_our_name_is_one_line(package: str, command: str, tmp_path: Path) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    finder = "import sys, runpy; sys.path[:0] = sys.argv[1:3]; runpy.run_module(sys.argv[3], run_name='__main__')"
    words = [sys.executable, "-S", "-c", finder, str(tmp_path), str(ROOT), command]
    result = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert f"`{package}` is another project's package ({tmp_path / package})" in result.stderr


def test_the_program_runs_the_commands_but_nothing_of_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("raise AssertionError('imported from the current folder')\n")
    program = Path(sys.executable).with_name("depthwise-search")
    if not program.is_file() or importlib.util.find_spec("search") is None:
        pytest.skip("the project is not installed, but run from its files")
    good = subprocess.run([program, "run", "--version"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (good.returncode, good.stdout.split()[0]) == (0, "depthwise-search")
    bad = subprocess.run([program, "runs"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert bad.returncode == 2
    assert "Did you mean `run`?" in bad.stderr
