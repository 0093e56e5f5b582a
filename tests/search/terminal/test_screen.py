"""The screen of a running search fits every terminal, and says what happened. No terminal needed."""

import re
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console
from rich.screen import Screen

from search.analysis.ranking import rank
from search.analysis.rung_statistics import rung_survival
from search.experiment.events import ReplicateEnded, SpaceSet, TrialEnded
from search.experiment.history import History, Trial
from search.policy.state import SearchState
from search.terminal.screen import LEVELS, N_BEST, LogLine, ScreenState, screen, sparkline
from spaces import Space, load_space
from tests.support.simulation import result, simulate

SIZES = [(1, 1), (7, 2), (20, 5), (39, 10), (60, 20), (80, 24), (110, 24), (300, 100)]
SECTIONS = ["best", "workers", "rungs", "events"]


@pytest.fixture(scope="module")
def space() -> Space:
    return load_space("quickstart", ["search.trials=12"])


@pytest.fixture(scope="module")
def finished(space: Space) -> History:
    """Not to be changed."""
    return history_after(space, None)


def history_after(space: Space, n_results: int | None) -> History:
    history = History()
    simulate(SearchState(space, history), seed=0, max_results=n_results)
    return history


def broken_off_in_replicates(space: Space) -> History:
    history = history_after(space, history_after(space, None).n_epochs + 4)
    assert history.unfinished_replicates
    return history


def dispatched(space: Space, n_trials: int) -> History:
    history = History()
    state = SearchState(space, history)
    for _ in range(n_trials):
        state.next_assignment()
    return history


def state_of(space: Space, history: History, trials_at_once: int = 2) -> ScreenState:
    return ScreenState("mine", space, history, trials_at_once, 1150, 200.0, 135.0, hint="q leaves")


def lines_of(state: ScreenState, width: int = 80, height: int = 24) -> list[str]:
    console = Console(width=width, height=height, file=StringIO())
    lines = console.render_lines(screen(state, width, height), console.options.update(height=None))
    return ["".join(segment.text for segment in line).rstrip() for line in lines]


def text_of(state: ScreenState, width: int = 80, height: int = 24) -> str:
    return "\n".join(lines_of(state, width, height))


def headings_of(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines if line.endswith("──")]


def best_of(lines: list[str]) -> list[str]:
    start, end = (next(i for i, line in enumerate(lines) if line.startswith(name)) for name in ("best ", "workers"))
    return lines[start + 2 : end]


def numbers_of(rows: list[str]) -> list[int]:
    return [int(row.split()[1]) for row in rows]


@pytest.mark.parametrize("n_results", [0, 1, 30, 75, None])
def test_it_fits_every_size_at_every_stage(space: Space, n_results: int | None) -> None:
    state = state_of(space, history_after(space, n_results))
    for width, height in SIZES:
        console = Console(width=width, height=height, file=StringIO())
        console.print(Screen(screen(state, width, height)))
        if height >= 10:
            lines = lines_of(state, width, height)
            assert len(lines) <= height
            assert all(len(line) <= width for line in lines)


def test_every_section_is_there_at_80_by_24(space: Space) -> None:
    lines = lines_of(state_of(space, history_after(space, 30)))
    assert re.fullmatch(r"mine  searching +0:01:05 gone, about \d+ (seconds|minutes) left", lines[0])
    assert re.fullmatch(r"trials [ ━╸]+2 of 12 +2 completed", lines[1])
    assert re.fullmatch(r"epochs [ ━╸]+30 of about \d+", lines[2])
    assert headings_of(lines) == SECTIONS
    # 1,150 images in the 0.5 s that training takes in the simulation.
    assert sum("2,300 images/s" in line for line in lines) == 2
    assert "4,600 images/s together" in "\n".join(lines)
    assert "q leaves" in "\n".join(lines)


@pytest.mark.parametrize(("max_epochs", "curve_width"), [(9, 9), (27, 16)])
def test_every_section_is_there_at_80_by_24_with_replicates_too(max_epochs: int, curve_width: int) -> None:
    space = load_space("quickstart", ["search.trials=12", f"training.max_epochs={max_epochs}"])
    history = history_after(space, history_after(space, None).n_epochs + 2 * max_epochs + 2)
    lines = lines_of(state_of(space, history))
    assert headings_of(lines) == SECTIONS
    assert re.search(r"replicates [ ━╸]+[12] of about \d+ +replicates of the best", lines[3])
    assert lines[5].split()[-1] == "curve"
    curves = [line.split()[-1] for line in best_of(lines)]
    assert all(len(curve) == curve_width and set(curve) <= set(LEVELS) for curve in curves), "all of them completed"
    for run in history.unfinished_replicates:
        assert f"run {run.number}, trial {run.trial}" in "\n".join(lines)
    assert "training replicates of the best" in lines[0]


def test_wide_terminals_show_rungs_beside_workers_and_hyperparameters(space: Space) -> None:
    state = state_of(space, history_after(space, 30))
    wide = lines_of(state, 140, 40)
    assert any("workers" in line and "rungs" in line for line in wide)
    assert "momentum" in wide[4]
    assert "momentum" not in lines_of(state)[4]


def test_trials_with_replicates_are_shown_in_the_order_of_ranks(space: Space, finished: History) -> None:
    lines = lines_of(state_of(space, finished))
    n_runs = len(finished.replicates)
    assert f"{n_runs} of about {n_runs}" in lines[3]
    assert lines[0].startswith("mine  finished")
    shown = numbers_of(best_of(lines))
    assert {run.trial for run in finished.replicates.values()} <= set(shown)
    assert shown == [row.trial for row in rank(finished) if row.trial in shown]
    assert any("baseline" in line for line in best_of(lines))
    for n_results in (30, 60, None):
        ranks = [int(row.split()[0]) for row in best_of(lines_of(state_of(space, history_after(space, n_results))))]
        assert ranks == sorted(ranks)


def test_excluded_trials_are_not_among_the_best(space: Space) -> None:
    history = history_after(space, None)
    outside = list({run.trial for run in history.replicates.values() if not history.trials[run.trial].baseline})
    assert len(outside) > 1
    history.apply(SpaceSet(space.as_dict(), outside, 1.0))
    shown = numbers_of(best_of(lines_of(state_of(space, history))))
    assert len(shown) == N_BEST
    assert not set(shown) & set(outside)


def test_rungs_count_the_trials_that_entered_and_went_on(space: Space, finished: History) -> None:
    for rung in rung_survival(finished.counting, space)[:-1]:
        row = rf"epoch {rung.epoch} +{rung.entered} entered +{rung.passed} went on .*{rung.passed / rung.entered:.0%}"
        assert re.search(row, text_of(state_of(space, finished)))


def test_failures_and_notes_are_shown_newest_first_and_command_nothing(space: Space) -> None:
    history = history_after(space, 3)
    (number, *_) = [trial.number for trial in history.unfinished]
    history.apply(TrialEnded(number, "failed", "no\x1b[2Jmemory [bold red]left[/]", 1e6))
    state = replace(state_of(space, history), notes=(LogLine(2e6, "trial 1 lost\rits worker"),))
    console = Console(width=120, height=24, force_terminal=True, record=True, file=StringIO())
    console.print(Screen(screen(state, 120, 24)))
    text = console.export_text()
    assert "(no\\x1b[2Jmemory [bold red]left[/])" in text
    assert text.index("trial 1 lost\\rits worker") < text.index("memory")


def test_ends_of_replicates_are_shown(space: Space) -> None:
    history = history_after(space, None)
    run = next(iter(history.replicates.values()))
    run.end = ReplicateEnded(run.number, "failed", "its machine went away", 1e10)
    row = rf"replicate +failed +epoch +9 +[\d.]+% +\(its machine went away\)  of trial {run.trial}"
    assert re.search(row, text_of(state_of(space, history), 100))


@pytest.mark.parametrize("trials_at_once", [2, 64])
@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("height", [12, 15, 24, 40])
def test_hidden_workers_are_counted(width: int, height: int, trials_at_once: int) -> None:
    many_rungs = load_space("quickstart", ["search.trials=64", "training.max_epochs=128", "search.reduction_factor=2"])
    assert len(many_rungs.rung_epochs) == 8
    lines = lines_of(state_of(many_rungs, dispatched(many_rungs, trials_at_once), trials_at_once), width, height)
    assert len(lines) <= height
    n_workers = sum(line.startswith("trial ") and "images/s" in line for line in lines)
    hidden = [int(found[1]) for line in lines if (found := re.match(r"and (\d+) more", line))]
    assert n_workers + sum(hidden) == trials_at_once


def test_idle_slots_are_counted(space: Space) -> None:
    assert "14 idle" in text_of(state_of(space, history_after(space, 1), trials_at_once=16))


def test_a_diverged_trial_keeps_its_curve_and_has_no_accuracy(space: Space) -> None:
    history = History()
    state = SearchState(space, history)
    state.next_assignment()
    state.record(result(0, 1, 0.5))
    state.record(result(0, 2, 0.1, loss=float("nan")))
    text = text_of(state_of(space, history), 100)
    assert re.search(r"baseline +diverged +epoch +2 +-  \(the loss was not finite in epoch 2\)", text)
    assert "nan" not in text.replace("finite", "")


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([], 5, ""),
        ([0.0, 0.5, 1.0], 3, "▁▅█"),
        ([0.0, 1.0], 4, "▁▁██"),
        ([0.0, 1.0], 0, ""),
        ([-9.0, 9.0], 2, "▁█"),
        ([float(i) / 99 for i in range(100)], 3, "▃▆█"),
        ([0.0, 0.0, 1.0], 1, "█"),
    ],
)
def test_a_sparkline_scales_and_keeps_its_last_value(values: list[float], width: int, expected: str) -> None:
    assert sparkline(values, 0.0, 1.0, width) == expected


def test_a_flat_curve_is_drawn() -> None:
    assert sparkline([0.3, 0.3], 0.3, 0.3, 2) == "██"


@pytest.mark.parametrize(("width", "full"), [(80, 16), (120, 24), (160, 27)])
def test_curves_are_as_long_as_their_training(width: int, full: int) -> None:
    long = load_space("quickstart", ["training.max_epochs=27", "search.asha=off", "search.trials=12"])
    history = History()
    state = SearchState(long, history)
    n_epochs = (27, 20, 1)
    for trial, n in enumerate(n_epochs):
        state.next_assignment()
        for epoch in range(1, n + 1):
            state.record(result(trial, epoch, epoch / 100))
    curves = [line.split()[-1] for line in best_of(lines_of(state_of(long, history), width))]
    assert [len(curve) for curve in curves] == [max(1, round(full * n / 27)) for n in n_epochs]


@pytest.mark.parametrize("asha", ["adaptive", "stop", "off"])
@pytest.mark.parametrize("limit", ["search.epoch_budget=40", "search.time_budget=1h"])
def test_searches_with_other_limits_are_shown(asha: str, limit: str) -> None:
    limited = load_space("quickstart", ["search.trials=null", limit, f"search.asha={asha}"])
    for n_results in (0, 9, 30):
        state = state_of(limited, history_after(limited, n_results))
        if "time" in limit:
            lines = lines_of(replace(state, budget_left_s=1800.0))
            assert lines[2].split() == ["epochs", str(n_results)]
            assert lines[0].endswith("about 30 minutes left"), "known from the start"
        else:
            lines = lines_of(state)
            assert lines[2].endswith(" of 40")
            assert lines[0].endswith(" left") == (n_results > 0)


def test_long_searches_show_only_the_last_events(space: Space) -> None:
    history = history_after(space, None)
    for number in range(12, 3000):
        trial = Trial(number, {}, space.baseline, False, 0.0)
        trial.end = TrialEnded(number, "failed", "no memory", float(number))
        history.trials[number] = trial
    lines = lines_of(state_of(space, history), 120, 40)
    assert len(lines) == 40
    assert "trial 2999 failed" in "\n".join(lines)
    assert "trial 12 " not in "\n".join(lines)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_time_left_stays_while_replicates_are_resumed(space: Space, width: int) -> None:
    state = replace(state_of(space, broken_off_in_replicates(space)), now=20_000.0, session_start=0.0)
    heading = lines_of(replace(state, name="quickstart-20261124-112652"), width, 20)[0]
    assert re.search(r"about \d+ (seconds|minutes) left$", heading)


def test_replicates_that_broke_off_have_no_worker_while_added_trials_are_searched(space: Space) -> None:
    history = broken_off_in_replicates(space)
    more = load_space("quickstart", ["search.trials=14"])
    resumed = replace(state_of(more, history), now=99_999.0, session_start=99_998.0)
    for n_workers in (0, 1):
        text = text_of(resumed)
        assert text.startswith("mine  searching ")
        assert "run 0, trial" not in text
        assert sum("images/s" in line for line in text.splitlines()) == n_workers
        assert f"{2 - n_workers} idle" in text
        assert not re.search(r"of about \d+ s$", text, re.MULTILINE)
        SearchState(more, history).next_assignment()


def test_an_epoch_of_an_earlier_session_does_not_tell_the_time_of_this_one(space: Space) -> None:
    state = replace(state_of(space, history_after(space, 30)), now=500.0)
    assert re.search(r"\d+ of about \d+ s$", text_of(replace(state, session_start=0.0)), re.MULTILINE)
    assert not re.search(r"of about \d+ s$", text_of(replace(state, session_start=490.0)), re.MULTILINE)


@pytest.mark.parametrize("width", [60, 80])
def test_narrow_terminals_leave_out_columns_and_cut_no_result(space: Space, finished: History, width: int) -> None:
    rows = best_of(lines_of(state_of(space, finished), width, 24))
    assert all(re.search(r"% ± [\d.]+ \(\d\)|  -  ", row) and "…" not in row for row in rows)
