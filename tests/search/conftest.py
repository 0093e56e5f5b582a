"""Fixtures of an experiment's folder that came from elsewhere."""

from pathlib import Path

import pytest
from PIL import Image

from search import diagnose, leaderboard, predict, retrain
from search import run as run_command
from search.experiment.folder import Experiment
from spaces import Space
from tests.support.foreign import Call, make_experiment, model

COMMANDS = {
    "leaderboard": (leaderboard.main, ()),
    "diagnose": (diagnose.main, ()),
    "retrain": (retrain.main, ()),
    "predict": (predict.main, ("image.png",)),
    "resume": (run_command.main, ()),
    "repeat": (run_command.main, ("--dry-run",)),
}


@pytest.fixture
def on_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run a command on an experiment's folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call_command(command: str, folder: Path, *more: str) -> tuple[int, str, str]:
        main, arguments = COMMANDS[command]
        named = ["--resume", str(folder)] if command == "resume" else [str(folder)]
        try:
            code = main([*named, *arguments, *more])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call_command


@pytest.fixture
def foreign(tiny_space: Space, tmp_path: Path) -> Experiment:
    """A search that was broken off, with a model; beside it a file and a folder that are none of its business."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "precious.txt").write_text("precious\n")
    for session in ("session_1", "session_2"):
        for trial in range(2):
            (tmp_path / "victim" / session / f"trial_{trial:04d}" / "checkpoint_000000").mkdir(parents=True)
    made = make_experiment(tmp_path / "results", "foreign", tiny_space)
    made.final_folder.mkdir()
    (made.final_folder / "model.onnx").write_bytes(model())
    Image.new("RGB", (20, 20)).save(tmp_path / "image.png")
    return made
