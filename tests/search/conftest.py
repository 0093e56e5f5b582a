"""Fixtures that run a command in this process, and an experiment's folder that came from elsewhere."""

import shutil
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from search.experiment.folder import Experiment
from spaces import Space
from spaces.printable import warn_once
from tests.support.foreign import Call, make_experiment, model


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of `warn_once`."""
    lines: list[str] = []
    monkeypatch.setattr("spaces.printable.warn", lines.append)
    warn_once.cache_clear()
    return lines


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run a command, such as `leaderboard`, in `tmp_path`: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call_command(command: str, *arguments: str) -> tuple[int, str, str]:
        try:
            code = import_module(f"search.{command}").main(list(arguments))
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call_command


@pytest.fixture
def on_folder(call: Call) -> Call:
    """Run a command on an experiment's folder; `resume` and `repeat` are two uses of `run`."""

    def call_command(command: str, folder: Path, *more: str) -> tuple[int, str, str]:
        match command:
            case "resume":
                return call("run", "--resume", str(folder), *more)
            case "repeat":
                return call("run", str(folder), "--dry-run", *more)
            case "predict":
                return call("predict", str(folder), "image.png", *more)
        return call(command, str(folder), *more)

    return call_command


@pytest.fixture(scope="session")
def made_elsewhere(tiny_space: Space, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `foreign` copies."""
    place = tmp_path_factory.mktemp("elsewhere")
    (place / "victim").mkdir()
    (place / "victim" / "precious.txt").write_text("precious\n")
    for session in ("session_1", "session_2"):
        for trial in range(2):
            (place / "victim" / session / f"trial_{trial:04d}" / "checkpoint_000000").mkdir(parents=True)
    made = make_experiment(place / "results", "foreign", tiny_space)
    made.final_folder.mkdir()
    (made.final_folder / "model.onnx").write_bytes(model())
    Image.new("RGB", (20, 20)).save(place / "image.png")
    return place


@pytest.fixture
def foreign(made_elsewhere: Path, tmp_path: Path) -> Experiment:
    """A search that was broken off, with a model; beside it a file and a folder that are none of its business."""
    shutil.copytree(made_elsewhere, tmp_path, dirs_exist_ok=True)
    return Experiment(tmp_path / "results" / "foreign")


@pytest.fixture
def temporary() -> Iterator[Path]:
    """TMPDIR of a command; a short path, because sockets lie in it."""
    path = Path(tempfile.mkdtemp(prefix="t"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
