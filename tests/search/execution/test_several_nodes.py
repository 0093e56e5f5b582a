"""A search on a Ray cluster of several nodes, which this machine pretends to be; and results at a URL.

Each node has a cache of its own, as another machine would, and the cluster wants a token.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from search.experiment.journal import read_history
from spaces import load_space
from tests.conftest import TINY, set_options
from tests.search.test_end_to_end import assert_trained_as_alone, wait_for_results
from tests.support.processes import listen_to_ctrl_c

pytestmark = [pytest.mark.cluster, pytest.mark.long]

Run = Callable[..., subprocess.CompletedProcess[str]]

# Long enough that trials still run when the loss of a node is noticed.
LONGER = (
    *TINY[:3],
    "dataset.train_limit=200",
    "training.max_epochs=9",
    "search.grace_epochs=3",
    "search.trials=12",
    "confirm.top=0",
)


class Nodes:
    """A head without CPUs, and nodes with one each; see `pretended_cluster`."""

    def __init__(self, folder: Path, caches: Path) -> None:
        self._folder = folder
        self._caches = caches
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.pretended_cluster", str(folder), str(caches)],
            cwd=Path(__file__).parents[3],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        assert self.address, "the cluster did not start"

    def add(self, name: str) -> None:
        self._do(f"add {name}")

    def kill(self, name: str) -> None:
        self._do(f"kill {name}")

    def kill_programs(self, name: str) -> None:
        """Kill all of the cluster's processes of one of Ray's programs, such as `gcs_server`."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (process / "cmdline").read_bytes()
                if command.split(b"\0")[0].endswith(f"/{name}".encode()) and os.fsencode(self._folder) in command:
                    os.kill(int(process.name), signal.SIGKILL)

    def cache(self, name: str) -> Path:
        return self._caches / name

    def shutdown(self) -> None:
        self._process.communicate(timeout=60)

    def _do(self, command: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    # Short, as the paths of sockets must be; and Ray's note of the latest cluster goes there too.
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    try:
        made = Nodes(folder, tmp_path / "caches")
        made.add("first")
        made.add("second")
        yield made
        made.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "search.run", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=listen_to_ctrl_c,
    )


def trainers() -> dict[str, set[str]]:
    """The node of each process that trains here now, by the name of its cache; with the trial's actor's id."""
    found: dict[str, set[str]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for setting in environment:
            if b"Trainable" in command and setting.startswith(b"DEPTHWISE_SEARCH_CACHE="):
                found.setdefault(Path(os.fsdecode(setting)).name, set()).add(process.name)
    return found


@pytest.mark.timeout(600)
def test_a_search_begun_here_goes_on_on_a_cluster_that_loses_a_node(nodes: Nodes, tmp_path: Path) -> None:
    process = start(tmp_path, *set_options(*LONGER), "--name", "wide")
    journal = tmp_path / "results" / "wide" / "journal.jsonl"
    wait_for_results(journal, 2, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    before = read_history(journal)

    process = start(tmp_path, "--resume", "wide", "--address", nodes.address)
    wait_for_results(journal, before.n_epochs + 4, process)
    deadline = time.monotonic() + 60
    while set(trainers()) != {"first", "second"}:
        assert time.monotonic() < deadline, "trials do not run on both nodes"
        time.sleep(0.1)
    running = {trial.number for trial in read_history(journal).unfinished}
    nodes.kill("second")
    nodes.add("third")
    output, errors = process.communicate(timeout=480)
    print(output)
    assert process.returncode == 0, errors
    assert "on 2 nodes, 2 cores (" in output
    assert "lost its worker and is tried again (its machine " in output
    assert "raylet" not in output, "Ray's own words of it"
    history = read_history(journal)
    assert len(history.trials) == 12
    for number, trial in before.trials.items():
        assert history.trials[number].epochs[: trial.n_epochs] == trial.epochs
    assert {trial.status for trial in history.trials.values()} <= {"completed", "stopped"}
    space = load_space(str(tmp_path / "results" / "wide"))
    for number in running:  # one of them lost its node
        assert_trained_as_alone(history, space, number)
    for name in ("first", "second", "third"):
        (images,) = nodes.cache(name).glob("digits-train-*")
        assert (images / "meta.json").is_file(), "each node has the images in its own cache"
    assert not trainers(), "nothing of ours is left on the cluster"
    assert not list((tmp_path / "results" / "wide").glob("ray/session_*/trial_*/checkpoint_*"))


@pytest.mark.parametrize("program", ["gcs_server", "raylet"])
def test_a_search_whose_cluster_is_lost_ends_with_a_line_and_can_be_resumed(
    nodes: Nodes, tmp_path: Path, program: str
) -> None:
    process = start(tmp_path, *set_options(*LONGER), "--address", nodes.address, "--name", "lost")
    folder = tmp_path / "results" / "lost"
    wait_for_results(folder / "journal.jsonl", 3, process)
    nodes.kill_programs(program)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert errors.count("\n") == 1, errors
    assert f"The cluster at {nodes.address} is lost" in errors
    assert f"--resume lost --address {nodes.address}" in errors
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["state"] == "interrupted"
    assert manifest["device"]["name"].startswith("2 nodes, 2 cores")


def test_a_dry_run_shows_the_cluster_and_one_that_cannot_be_joined_is_one_line(
    nodes: Nodes, tmp_path: Path, run: Run
) -> None:
    planned = run("search.run", *set_options(*TINY), "--dry-run", "--address", nodes.address, cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "device      2 nodes, 2 cores (" in planned.stdout
    assert "on 2 cores: 8 trials" in planned.stdout

    def refused(address: str, **environment: str) -> str:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            started_s = time.monotonic()
            result = run("search.run", *set_options(*TINY), "--address", address, cwd=tmp_path)
        assert time.monotonic() - started_s < 90
        assert result.returncode == 2, result.stderr
        assert result.stdout == ""
        print(result.stderr)
        (line,) = result.stderr.splitlines()
        return line

    assert "nothing answers there" in refused("127.0.0.1:1")
    (tmp_path / "other-token").write_text(secrets.token_hex(32))
    assert "token" in refused(nodes.address, RAY_AUTH_TOKEN_PATH=str(tmp_path / "other-token"))
    assert not (tmp_path / "results").exists(), "a dry run leaves nothing"


def test_results_at_a_url_outlive_the_machine(tmp_path: Path, run: Run) -> None:
    # The unit tests of remote results try file:// as well.
    url, bucket = f"fsspec+file://{tmp_path}/bucket", tmp_path / "bucket"

    def on_machine(name: str) -> None:
        os.environ["DEPTHWISE_SEARCH_CACHE"] = str(tmp_path / name)

    before = os.environ["DEPTHWISE_SEARCH_CACHE"]
    try:
        on_machine("first")
        process = start(tmp_path, *set_options(*LONGER, "search.trials=6"), "--name", "far", "--results", url)
        wait_for_results(bucket / "far" / "journal.jsonl", 5, process)
        on_machine("second")
        live = run("search.leaderboard", "--results", url, cwd=tmp_path)
        assert "far: " in live.stdout
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)

        known = read_history(bucket / "far" / "journal.jsonl")
        resumed = run("search.run", "--resume", "far", "--results", url, cwd=tmp_path)
        assert resumed.returncode == 0, resumed.stderr
        history = read_history(bucket / "far" / "journal.jsonl")
        assert len(history.trials) == 6
        assert not history.unfinished
        for number, trial in known.trials.items():
            assert history.trials[number].epochs[: trial.n_epochs] == trial.epochs
        firsts = first_epochs(bucket / "far" / "ray" / "session_2")
        assert [number for number in firsts if firsts[number] > 1], "no trial went on from a checkpoint at the URL"
        assert not list(bucket.glob("far/ray/session_*/trial_*/checkpoint_*"))

        on_machine("first")
        board = run("search.leaderboard", "far", "--results", url, "--format", "json", cwd=tmp_path)
        assert len(json.loads(board.stdout)["trials"]) == 6
        retrained = run("search.retrain", "far", "--seeds", "1", "--epochs", "1", "--results", url, cwd=tmp_path)
        assert retrained.returncode == 0, retrained.stderr
        assert (bucket / "far" / "final" / "model.onnx").is_file()
        assert len(json.loads((bucket / "far" / "manifest.json").read_text())["test_openings"]) == 1
    finally:
        os.environ["DEPTHWISE_SEARCH_CACHE"] = before


def first_epochs(session: Path) -> dict[int, int]:
    first: dict[int, Any] = {}
    for path in session.glob("trial_*/result.json"):
        content = json.loads(path.read_text().splitlines()[0])
        first[int(content["trial"])] = content["epoch"]
    return first
