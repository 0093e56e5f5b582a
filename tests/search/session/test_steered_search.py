"""`search.steer` and `--on-end`: what a user does around a search that runs."""

import json
from pathlib import Path

import pytest

from search.experiment.events import ConfigurationAdded, FinishRequested, TrialEnded, TrialStarted
from search.experiment.folder import Experiment
from search.experiment.history import History
from search.experiment.journal import event_line, read_history
from search.policy.state import SearchState
from search.session import steering
from search.session.on_end import on_end
from spaces import Hyperparameters, Space, load_space
from spaces.errors import RunError
from spaces.loader import dump_space, space_from_text
from tests.conftest import TINY, set_options
from tests.search.test_end_to_end import start, wait_for_results
from tests.support.foreign import Call, make_experiment
from tests.support.processes import wait_until
from tests.support.simulation import result, simulate


@pytest.fixture
def experiment(tmp_path: Path, tiny_space: Space) -> Experiment:
    """A search that was broken off: two trials, of which the second runs."""
    return make_experiment(tmp_path / "results", "mine", tiny_space)


@pytest.fixture
def live(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.setattr(Experiment, "is_live", lambda self: True)
    return experiment


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["stop"], "stop is given nothing, but needs the number of one running trial: "),
        (["stop", "99"], "stop is given 99, but needs the number of one running trial: "),
        (["add"], "A configuration needs at least one name=value, such as lr=0.1."),
        (["add", "lr"], "lr must have the form name=value, such as lr=0.1."),
        (["add", "lr=7"], "`add.lr` is 7, but must lie in the searched loguniform [0.002, 0.5]. Change one of them."),
        (["add", "batch_size=9"], "`add.batch_size` is 9, but must lie in the searched value 8. Change one of them."),
        (["add", "lr=0.01"], "A trial has lr=0.01 and the baseline's other values already. Change a value."),
        (["finish", "now"], "finish takes no value, but now was given."),
    ],
)
def test_a_wrong_request_is_one_line_and_changes_nothing(
    words: list[str], sentence: str, live: Experiment, call: Call
) -> None:
    code, output, errors = call("steer", str(live.folder), *words)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith(sentence)
    assert not (live.folder / "requests").exists()


def test_a_search_that_does_not_run_cannot_be_steered(experiment: Experiment, call: Call) -> None:
    code, _, errors = call("steer", str(experiment.folder), "finish")
    assert code == 2
    assert "no search runs there now. Resume it with: python -m search.run --resume mine" in errors


def test_an_unanswered_request_is_withdrawn(live: Experiment) -> None:
    with pytest.raises(RunError, match="did not answer within 0 s, and the request is withdrawn"):
        steering.send(live, FinishRequested(1.0), within_s=0.3)
    assert list(steering.received(live, pytest.fail)) == []


def test_a_request_that_a_search_did_not_take_up_before_its_end_is_withdrawn(
    live: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end_search(seconds: float) -> None:
        steering.close(live)
        monkeypatch.setattr(Experiment, "is_live", lambda self: False)

    monkeypatch.setattr(steering.time, "sleep", end_search)
    with pytest.raises(RunError, match="the request is withdrawn"):
        steering.send(live, FinishRequested(1.0))
    steering.close(live)
    assert not (live.folder / "requests").exists()


def test_requests_come_in_order_and_other_files_are_noted(live: Experiment) -> None:
    folder = live.folder / "requests"
    folder.mkdir()
    stop = TrialEnded(1, "stopped", "by hand", 2.0)
    (folder / "2.json").write_bytes(event_line(FinishRequested(1.0)))
    (folder / "1.json").write_bytes(event_line(stop))
    (folder / "3.json").write_text("{}")
    (folder / "4.json").write_bytes(event_line(TrialStarted(2, {}, Hyperparameters(), False, 0.0)))
    notes: list[str] = []
    assert list(steering.received(live, notes.append)) == [stop, FinishRequested(1.0)]
    assert [note.split(" ")[0] for note in notes] == ["3.json", "4.json"]
    assert list(folder.iterdir()) == []


def space_with(*overrides: str) -> Space:
    return load_space("quickstart", ["search.sampler=random", "confirm.top=0", "search.trials=4", *overrides])


def test_an_added_configuration_is_the_next_trial_and_raises_the_limit() -> None:
    space = space_with()
    state = SearchState(space, History())
    state.next_assignment()
    added = space.complete({**space.searched_values(space.baseline), "lr": 0.123})
    for _ in range(2):  # the second one came before the search had taken up the first
        state.steer(ConfigurationAdded(added, 1.0))
    simulate(state)
    trials = list(state.history.trials.values())
    assert [trial.proposed_by for trial in trials] == ["baseline", "steer", "prior", "prior", "prior"]
    assert trials[1].config == added


def test_a_stopped_trial_ends_at_once_and_its_last_epoch_is_ignored() -> None:
    state = SearchState(space_with("search.trials=2"), History())
    running = [state.next_assignment() for _ in range(2)]
    for number in (1, 9):
        state.steer(TrialEnded(number, "stopped", "by hand", 1.0))
    assert running[1]
    assert state.has_ended(running[1])
    assert not state.record(result(1, 1, 0.5))
    state.put_back(running[1])  # its worker was lost meanwhile
    assert state.next_assignment() is None
    stopped = state.history.trials[1]
    assert (stopped.status, stopped.end.reason if stopped.end else "", stopped.epochs) == ("stopped", "by hand", [])
    assert state.n_running == 1


def test_a_finished_search_starts_nothing_until_trials_are_added() -> None:
    space = space_with("search.trials=30")
    state = SearchState(space, History())
    simulate(state, max_results=20)
    n_before = len(state.history.trials)
    state.steer(FinishRequested(1.0))
    resumed = SearchState(space, state.history)
    simulate(resumed)
    assert len(state.history.trials) == n_before < 30
    assert all(trial.end for trial in state.history.trials.values())


def test_try_first_comes_after_the_baseline_and_a_resumed_search_does_not_repeat_it() -> None:
    listed = "[{lr: 0.1}, {lr: 0.2, gamma: 0.5}, {lr: 0.1}]"
    space = space_from_text(f"{dump_space(space_with('search.trials=5'))}try_first: {listed}", "mine.yaml", "mine")
    state = SearchState(space, History())
    simulate(state, max_results=4)
    simulate(SearchState(space, state.history))
    trials = list(state.history.trials.values())
    assert [trial.proposed_by for trial in trials] == ["baseline", "try_first", "try_first", "prior", "prior"]
    assert [trial.config for trial in trials[1:3]] == list(space.try_first)
    assert [(config.lr, config.gamma) for config in space.try_first] == [(0.1, 0.6), (0.2, 0.5)]


def earlier_search(tmp_path: Path, *overrides: str) -> Experiment:
    space = load_space("quickstart", ["search.trials=12", "search.sampler=random", *overrides])
    made = make_experiment(tmp_path / "results", "earlier", space)
    (made.folder / "journal.jsonl").unlink()
    state = SearchState(space, History(), made.journal())
    simulate(state)
    return made


@pytest.mark.parametrize(
    "error, status", [(None, "finished"), (RunError("full"), "failed"), (KeyboardInterrupt(), "failed")]
)
def test_the_user_s_command_runs_after_any_end(
    error: BaseException | None, status: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    earlier = earlier_search(tmp_path)
    try:
        with on_end('echo "$SEARCH_NAME|$SEARCH_STATUS|$SEARCH_BEST|$SEARCH_INTERVAL"; exit 3') as ended:
            ended.experiment = earlier
            if error:
                raise error
            ended.status = "finished"
    except (RunError, KeyboardInterrupt) as raised:
        assert raised is error
    output, errors = capfd.readouterr()
    name, said, best, interval = output.strip().split("|")
    assert (name, said) == ("earlier", status)
    assert 0 < float(best) < 1
    assert 0 < float(interval) < 1
    assert errors.endswith("ended with exit code 3.\n")


@pytest.mark.cluster
@pytest.mark.long
def test_a_running_search_is_steered_from_another_terminal(call: Call, tmp_path: Path, temporary: Path) -> None:
    long_trials = (*TINY, "training.max_epochs=300", "search.asha=off", "search.trials=2")
    on_end = 'echo "$SEARCH_STATUS" > on_end.txt'
    process = start(
        "run", "--name", "tiny", "--on-end", on_end, *set_options(*long_trials), cwd=tmp_path, temporary=temporary
    )
    journal = tmp_path / "results" / "tiny" / "journal.jsonl"
    wait_for_results(journal, 2, process)
    assert call("steer", "tiny", "add", "lr=0.123")[1].startswith("Added, and tried next: lr=0.123 ")
    assert call("steer", "tiny", "stop", "1")[1].startswith("Trial 1 is stopped after ")
    wait_until(
        lambda: bool(read_history(journal).trials[2].epochs) if len(read_history(journal).trials) > 2 else False, 60
    )
    assert (
        call("steer", "tiny", "finish")[1] == "No more trials are started: 2 trials still running, then replicates.\n"
    )
    for number in ("0", "2"):
        assert call("steer", "tiny", "stop", number)[0] == 0
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    history = read_history(journal)
    assert [trial.proposed_by for trial in history.trials.values()] == ["baseline", "prior", "steer"]
    assert {trial.status for trial in history.trials.values()} == {"stopped"}
    assert history.trials[2].config.lr == 0.123
    assert (tmp_path / "on_end.txt").read_text() == "finished\n"
    assert not (tmp_path / "results" / "tiny" / "requests").exists()
    assert json.loads((tmp_path / "results" / "tiny" / "manifest.json").read_text())["state"] == "finished"
