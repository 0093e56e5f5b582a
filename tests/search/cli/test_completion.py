"""The Tab key in a real bash, `--version` and `--help` of every command."""

import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

COMMANDS = (
    "search.run",
    "search.leaderboard",
    "search.retrain",
    "search.predict",
    "search.diagnose",
    "search.why",
    "search.report",
    "search.compare",
    "trainable.train",
)
# What bash sets when the Tab key is pressed at the end of a line.
PRESS_TAB = """
source {script}
COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}; COMP_TYPE=9; COMP_KEY=9
read -r -a COMP_WORDS <<< "$COMP_LINE"
[[ "$COMP_LINE" == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
compopt() {{ :; }}
_python_argcomplete_global "${{COMP_WORDS[0]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `activate-global-python-argcomplete --dest=-` prints, which users have their shell run."""
    if not shutil.which("bash"):
        pytest.skip("there is no bash here")
    module = "argcomplete.scripts.activate_global_python_argcomplete"
    program = f"import sys; from {module} import main; sys.exit(main())"
    made = subprocess.run(
        [sys.executable, "-c", program, "--dest=-"], capture_output=True, text=True, check=True, timeout=60
    )
    path = tmp_path_factory.mktemp("completion") / "script"
    path.write_text(made.stdout)
    return path


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """With `python` in it: a link to one in a virtual environment would not know that it is in one."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    return tmp_path / "bin"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("python -m search.run --re", {"--results", "--resume"}),
        ("python -m search.run qui", {"quickstart"}),
        ("python -m search.run --set search.gr", {"search.grace_epochs="}),
        ("python -m search.run --device c", {"cpu", "cuda"}),
        ("python -m search.leaderboard s", {"second", "seventh"}),
        ("python -m search.leaderboard --results elsewhere f", {"first"}),
        ("python -m search.compare seventh seco", {"second"}),
        ("python -m trainable.train cif", {"cifar10"}),
    ],
)
def test_the_tab_key_in_bash(
    line: str, expected: set[str], script: Path, bin_folder: Path, tiny_space: object, tmp_path: Path
) -> None:
    for name in ("second", "seventh"):
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / "results" / name / "experiment.yaml").touch()
    (tmp_path / "results" / "s $(touch oops)").mkdir()
    (tmp_path / "results" / "s $(touch oops)" / "experiment.yaml").touch()
    (tmp_path / "elsewhere" / "first").mkdir(parents=True)
    (tmp_path / "elsewhere" / "first" / "experiment.yaml").touch()
    path = f'PATH="{bin_folder}:$PATH"\n'
    pressed = subprocess.run(
        ["bash", "--norc", "-c", path + PRESS_TAB.format(script=script, line=line)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert {word.strip() for word in pressed.stdout.splitlines() if word.strip()} == expected, pressed.stderr
    assert not (tmp_path / "oops").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_be_completed_says_its_version_and_ends_its_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = import_module(command)
    assert module.__file__ is not None
    assert "PYTHON_ARGCOMPLETE_OK" in Path(module.__file__).read_text()[:1024], "argcomplete looks for it there"
    for option in ("--version", "--help"):
        with pytest.raises(SystemExit) as ended:
            module.main([option])
        assert ended.value.code == 0
    output = capsys.readouterr().out
    assert output.startswith("depthwise-search")
    assert output.strip().splitlines()[-1].startswith(f"example: python -m {command} ")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        f"import {', '.join(COMMANDS)}\n"
        "heavy = 'torch ray optuna numpy albumentations rich plotly matplotlib jinja2 PIL'.split()\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == "[]\n"
