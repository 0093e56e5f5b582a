"""`search.dashboard` in this process: what it serves, to whom, and what it leaves alone."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from search import dashboard
from search.experiment import Experiment
from search.records import TrialEnded
from spaces import InputError, Space
from tests.search.foreign import contents, make_experiment, plant
from tests.search.simulation import result

needs_dashboard = pytest.mark.usefixtures("_dashboard_is_installed")


@pytest.fixture
def _dashboard_is_installed() -> None:
    pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed (extra `dashboard`)")


@pytest.fixture
def experiment(tiny_space: Space, tmp_path: Path) -> Experiment:
    return make_experiment(tmp_path / "results", "mine", tiny_space)


@contextlib.contextmanager
def served(experiment: Experiment) -> Iterator[int]:
    from search.dashboard_server import dashboard_server

    with dashboard_server(experiment, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def ask(port: int, path: str, method: str = "GET", host: str | None = None) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, headers={"Host": host or f"127.0.0.1:{port}"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def study(port: int) -> Any:
    status, body = ask(port, "/api/studies/0")
    assert status == 200, body
    return json.loads(body)


@needs_dashboard
def test_it_shows_the_trials_and_those_that_come(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.dashboard_server.BUILD_EVERY_S", 0.0)
    monkeypatch.setattr("search.dashboard_server.LARGEST_SHARE", 1e9)
    with served(experiment) as port:
        assert b"<!DOCTYPE html>" in ask(port, "/dashboard/studies/0")[1]
        trials = study(port)["trials"]
        assert [trial["state"] for trial in trials] == ["Complete", "Running"]
        assert [point["value"] for point in trials[0]["intermediate_values"]] == [0.5, 0.6, 0.7]
        journal = experiment.journal()
        journal.append(result(1, 2, 0.2))
        journal.append(TrialEnded(1, "stopped", "20.00% at rung 2", 3.0))
        assert [trial["state"] for trial in study(port)["trials"]] == ["Complete", "Pruned"]


@needs_dashboard
def test_a_study_is_not_built_at_every_request(experiment: Experiment) -> None:
    with served(experiment) as port:
        study(port)
        experiment.journal().append(result(1, 2, 0.2))
        assert len(study(port)["trials"][1]["intermediate_values"]) == 1, "built 2 s ago at most"
        time.sleep(2.1)
        assert len(study(port)["trials"][1]["intermediate_values"]) == 2


@needs_dashboard
def test_results_at_a_url_are_fetched_again_and_shown_while_they_cannot_be(
    tiny_space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from search.dashboard_server import _Follower
    from search.remote_results import RemoteExperiment, RemoteResults, open_remote_experiment, working_folder

    url, clock_s = f"file://{tmp_path}/bucket", [0.0]
    monkeypatch.setenv("DEPTHWISE_SEARCH_CACHE", str(tmp_path / "first"))
    make_experiment(working_folder(url), "mine", tiny_space)
    writer = RemoteExperiment(RemoteResults(url), "mine")
    with writer.exclusive():
        pass
    monkeypatch.setenv("DEPTHWISE_SEARCH_CACHE", str(tmp_path / "second"))
    follow = _Follower(open_remote_experiment(url, "mine"), now=lambda: clock_s[0])
    monkeypatch.setenv("DEPTHWISE_SEARCH_CACHE", str(tmp_path / "first"))
    with writer.exclusive():
        writer.journal().append(result(1, 2, 0.2))
    monkeypatch.setenv("DEPTHWISE_SEARCH_CACHE", str(tmp_path / "second"))
    before = follow._up_to_date()
    clock_s[0] = 9.0
    assert follow._up_to_date() is before, "the URL is not asked at each request"
    clock_s[0] = 12.0
    after = follow._up_to_date()
    assert after is not before

    def refuse(self: RemoteResults, name: str, only: tuple[str, ...] = ()) -> list[str]:
        raise InputError(f"{url}: cannot be read (no route to host).")

    monkeypatch.setattr(RemoteResults, "fetch", refuse)
    clock_s[0] = 40.0
    assert follow._up_to_date() is after
    assert capsys.readouterr().err == f"{url}: cannot be read (no route to host).\n"


@needs_dashboard
def test_nothing_of_a_folder_from_elsewhere_is_opened_or_changed(experiment: Experiment, tmp_path: Path) -> None:
    plant(experiment.folder, tmp_path / "marker")
    before = contents(experiment.folder)
    with served(experiment) as port:
        assert len(study(port)["trials"]) == 2
        assert ask(port, "/api/studies/0", "DELETE")[0] == 405
        assert ask(port, "/api/studies", "POST")[0] == 405
        assert len(study(port)["trials"]) == 2
    assert contents(experiment.folder) == before
    assert not (tmp_path / "marker").exists()


@needs_dashboard
def test_it_answers_to_this_machine_s_names_only(experiment: Experiment) -> None:
    with served(experiment) as port:
        assert ask(port, "/api/studies", host="rebound.example.org")[0] == 403
        assert ask(port, "/api/studies", host=f"localhost:{port}")[0] == 200


@needs_dashboard
def test_the_port_of_another_is_refused_in_one_line(
    experiment: Experiment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert dashboard.main(["mine", "--port", str(port)]) == 2
    assert capsys.readouterr().err == f"--port is {port}, which is taken. Give another one, or 0 for a free one.\n"


@needs_dashboard
def test_the_command_ends_with_ctrl_c(experiment: Experiment, tmp_path: Path) -> None:
    import signal

    command = [sys.executable, "-m", "search.dashboard", "mine", "--port", "0"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("mine is at http://127.0.0.1:")
    port = int(line.split(":")[2].split("/")[0])
    assert len(study(port)["trials"]) == 2
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output.strip(), errors) == (0, "", "")


def test_what_is_not_installed_is_said_with_its_command(
    experiment: Experiment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert dashboard.main(["mine"]) == 2
    assert capsys.readouterr().err == (
        "optuna-dashboard is not installed. Install it: python -m pip install optuna-dashboard\n"
    )


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert dashboard.main(["mine", "--port", port]) == 2
    assert "must be between 0 and 65535" in capsys.readouterr().err


@needs_dashboard
def test_a_damaged_journal_is_refused(experiment: Experiment) -> None:
    from search.dashboard_server import dashboard_server

    (experiment.folder / "journal.jsonl").write_text("garbage\n")
    with pytest.raises(InputError, match="is not an event of a search"):
        dashboard_server(experiment, 0)
