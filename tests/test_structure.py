"""The direction in which data flows: spaces → trainable ← search."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def imported_packages(path: Path) -> set[str]:
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            packages.add(node.module.split(".")[0])
    return packages


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


@pytest.mark.parametrize("path", sorted((ROOT / "spaces").glob("*.py")), ids=lambda path: path.name)
def test_spaces_know_nothing_of_torch_ray_or_the_rest(path: Path) -> None:
    assert not imported_packages(path) & {"torch", "ray", "trainable", "search"}


@pytest.mark.parametrize("folder", ["spaces", "trainable", "search"])
def test_nothing_that_is_installed_imports_benchmarks_or_tests(folder: str) -> None:
    for path in (ROOT / folder).glob("*.py"):
        assert not imported_packages(path) & {"benchmarks", "tests"}


@pytest.mark.parametrize("path", sorted((ROOT / "trainable").glob("*.py")), ids=lambda path: path.name)
def test_trainable_never_imports_search_and_one_file_imports_ray(path: Path) -> None:
    packages = imported_packages(path)
    assert "search" not in packages
    assert ("ray" in packages) == (path.name == "ray_trainable.py")


def test_only_retraining_imports_the_test_set() -> None:
    importers = [
        path.name
        for folder in ("spaces", "trainable", "search")
        for path in (ROOT / folder).glob("*.py")
        if "trainable.data.test_set" in imported_modules(path)
    ]
    assert importers == ["retraining.py"]


def test_every_file_is_in_the_installed_packages() -> None:
    for folder in ("spaces", "trainable", "search"):
        assert (ROOT / folder / "__init__.py").is_file()
    folders = {
        path.relative_to(ROOT).as_posix(): path
        for folder in ("spaces", "trainable", "search")
        for path in (ROOT / folder).iterdir()
        if path.is_dir() and path.name != "__pycache__"
    }
    assert set(folders) == {"search/report_assets"}, "folders hold what pyproject.toml's package-data names"
    assert not list(folders["search/report_assets"].glob("*.py"))
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "report_assets/*" in data["search"]
