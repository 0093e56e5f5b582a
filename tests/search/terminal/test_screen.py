"""The screen of a running search fits whatever terminal there is, and says what happened. No terminal needed."""

import itertools
import random
import re
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from search.analysis.cost import recent_epoch_s, remaining
from search.analysis.ranking import rank
from search.analysis.rung_statistics import rung_survival
from search.experiment.events import ReplicateEnded, SpaceSet, TrialEnded
from search.experiment.history import History, Trial
from search.policy.asha import waits_at_rung
from search.policy.state import SearchState
from search.terminal.screen import ASCII, N_BEST, UNICODE, Glyphs, LogLine, ScreenState, screen, sparkline
from spaces import Space, load_space
from tests.support.simulation import result, simulate

SIZES = [(1, 1), (7, 2), (20, 5), (39, 10), (80, 24), (109, 24), (110, 24), (120, 40), (300, 100)]


@pytest.fixture(scope="module")
def space() -> Space:
    return load_space("quickstart", ["search.trials=12"])


def history_after(space: Space, n_results: int | None) -> History:
    history = History()
    simulate(SearchState(space, history), seed=0, max_results=n_results)
    return history


def scene_of(
    space: Space,
    history: History,
    trials_at_once: int = 2,
    notes: tuple[LogLine, ...] = (),
    budget_left_s: float | None = None,
) -> ScreenState:
    left = remaining(history, space)
    left_s = left.seconds(recent_epoch_s(history, 0.0), trials_at_once, budget_left_s)
    return ScreenState("mine", space, history, left, left_s, trials_at_once, 1150, 200.0, 65.0, notes, "q leaves")


def text_of(scene: ScreenState, width: int = 80, height: int = 24, glyphs: Glyphs = UNICODE) -> str:
    return "\n".join(line.plain for line in screen(scene, width, height, glyphs))


def lines_of_the_best(text: str) -> list[str]:
    _, *lines = text.split("── best ")[1].split("── workers")[0].splitlines()[1:]
    return lines


def numbers_of_the_best(text: str) -> list[int]:
    return [int(line[3:].split()[0]) for line in lines_of_the_best(text)]


@pytest.mark.parametrize("n_results", [0, 1, 5, 30, 60, None])
def test_it_fits_every_size_at_every_stage(space: Space, n_results: int | None) -> None:
    scene = scene_of(space, history_after(space, n_results))
    for (width, height), glyphs in itertools.product(SIZES, (UNICODE, ASCII)):
        lines = screen(scene, width, height, glyphs)
        assert len(lines) <= height
        assert all(line.cell_len <= width and "\n" not in line.plain for line in lines)


@pytest.mark.parametrize(("max_epochs", "curve_width"), [(9, 9), (27, 15)])
def test_every_section_is_there_at_80_by_24_with_replicates_too(max_epochs: int, curve_width: int) -> None:
    space = load_space("quickstart", ["search.trials=12", f"training.max_epochs={max_epochs}"])
    history = history_after(space, history_after(space, None).n_epochs + 2 * max_epochs + 2)
    assert history.unfinished_replicates
    text = text_of(scene_of(space, history))
    assert headings_of(text) == ["best", "workers", "rungs", "events"]
    assert "replicates of the best" in text
    heading = text.splitlines()[5]
    assert heading.endswith("replicates          curve")
    for line in lines_of_the_best(text):
        curve = line[heading.index("curve") :]
        assert len(curve) == curve_width, "all of these trials completed"
        assert set(curve) <= set(UNICODE.levels)


def headings_of(text: str) -> list[str]:
    return [line.split()[1] for line in text.splitlines() if line.startswith("──")]


def test_every_section_is_there_at_80_by_24(space: Space) -> None:
    lines = text_of(scene_of(space, history_after(space, 30))).splitlines()
    assert lines[0].startswith("mine  searching ")
    assert lines[0].rstrip().endswith("left")
    assert "1:05 gone" in lines[0]
    assert "of 12" in lines[1]
    assert "30 of about" in lines[2]
    assert headings_of("\n".join(lines)) == ["best", "workers", "rungs", "events"]
    # 1,150 images in the 0.5 s that training takes in the simulation.
    assert sum("2,300 images/s" in line for line in lines) == 2
    assert "4,600 images/s together" in text_of(scene_of(space, history_after(space, 30)))


def test_wide_terminals_show_rungs_beside_workers_and_more_hyperparameters(space: Space) -> None:
    scene = scene_of(space, history_after(space, 30))
    wide = text_of(scene, 120, 40)
    assert any("workers" in line and "rungs" in line for line in wide.splitlines())
    assert "momentum=" in wide
    assert "momentum=" not in text_of(scene, 80, 24)


def test_replicates_have_a_bar_and_who_has_them_is_shown_in_the_order_of_ranks(space: Space) -> None:
    history = history_after(space, None)
    runs = [run for run in history.replicates.values() if run.end]
    text = text_of(scene_of(space, history))
    assert f"{len(runs)} of about {len(runs)}  replicates of the best" in text
    assert "replicates  " in text
    assert "mine  finished" in text
    again = {run.trial for run in history.replicates.values()}
    shown = numbers_of_the_best(text)
    assert again <= set(shown)
    assert shown == [row.trial for row in rank(history) if row.trial in shown]
    assert any("baseline" in line for line in lines_of_the_best(text))


def test_trials_set_aside_take_no_place_among_the_best(space: Space) -> None:
    history = history_after(space, None)
    outside = list({run.trial for run in history.replicates.values() if not history.trials[run.trial].baseline})
    assert len(outside) > 1
    history.apply(SpaceSet(space.as_dict(), outside, 1.0))
    shown = numbers_of_the_best(text_of(scene_of(space, history)))
    assert len(shown) == N_BEST
    assert not set(shown) & set(outside)


def test_a_replicate_that_goes_on_is_somebody_s_work(space: Space) -> None:
    full = history_after(space, None)
    n_before = full.n_epochs + 4
    history = history_after(space, n_before)
    working = [run for run in history.unfinished_replicates]
    text = text_of(scene_of(space, history))
    assert working
    assert all(f"run {run.number}, trial {run.trial}" in text for run in working)
    assert "training the best again with fresh seeds" in text


def test_rungs_count_who_entered_and_who_went_on(space: Space) -> None:
    history = history_after(space, None)
    first, second, _ = rung_survival(history.counting, space)
    trials = history.counting
    stopped = {epoch: sum(t.status == "stopped" and t.n_epochs == epoch for t in trials) for epoch in (1, 3)}
    assert (first.epoch, first.entered, first.passed) == (1, 12, 12 - stopped[1])
    assert (second.entered, second.passed) == (first.passed, first.passed - stopped[3])
    assert stopped[1] > 0


def test_reasons_are_shown_and_command_nothing(space: Space) -> None:
    history = history_after(space, 3)
    (number, *_) = [trial.number for trial in history.unfinished]
    history.apply(TrialEnded(number, "failed", "no\x1b[2Jmemory [bold red]left[/]", 1e6))
    note = LogLine(2e6, "trial 1 lost\rits worker")
    scene = scene_of(space, history, notes=(note,))
    text = text_of(scene)
    assert "no\\x1b[2Jmemory [bold red]left[/]" in text
    assert text.index("trial 1 lost\\rits worker") < text.index(f"trial {number}"), "the newest comes first"
    console = Console(width=80, force_terminal=True, record=True, file=StringIO())
    console.print(*screen(scene, 80, 24), sep="\n")
    assert "[bold red]left[/]" in console.export_text()


def test_more_workers_than_lines_are_counted(space: Space) -> None:
    many = load_space("quickstart", ["search.trials=64"])
    history = History()
    state = SearchState(many, history)
    for _ in range(64):
        state.next_assignment()
    lines = text_of(scene_of(many, history, trials_at_once=64)).splitlines()
    shown = [line for line in lines if line.startswith("trial ") and "images/s" in line]
    assert f"and {64 - len(shown)} more" in lines
    assert len(lines) <= 24


@pytest.mark.parametrize("trials_at_once", [2, 16])
@pytest.mark.parametrize("height", [3, 8, 9, 12, 14, 15, 17, 21, 24, 40])
def test_beside_rungs_only_workers_that_are_hidden_are_counted(height: int, trials_at_once: int) -> None:
    many_rungs = load_space("quickstart", ["search.trials=64", "training.max_epochs=128", "search.reduction_factor=2"])
    assert len(many_rungs.rung_epochs) == 8
    history = History()
    state = SearchState(many_rungs, history)
    for _ in range(trials_at_once):
        state.next_assignment()
    text = text_of(scene_of(many_rungs, history, trials_at_once), 120, height)
    n_workers = sum(line.startswith("trial ") and "images/s" in line for line in text.splitlines())
    hidden = [int(line.split()[1]) for line in text.splitlines() if line.startswith("and ")]
    assert n_workers + sum(hidden) == (trials_at_once if height >= 9 else 0)
    assert text.count(" entered ") + text.count(" completed") == (8 if height >= 15 else 0), "all of them, or none"


def test_idle_places_are_counted(space: Space) -> None:
    history = history_after(space, 1)
    assert "14 idle" in text_of(scene_of(space, history, trials_at_once=16))


def test_a_diverged_trial_leaves_its_curve_and_no_number(space: Space) -> None:
    history = History()
    state = SearchState(space, history)
    state.next_assignment()
    state.record(result(0, 1, 0.5))
    state.record(result(0, 2, 0.1, loss=float("nan")))
    text = text_of(scene_of(space, history))
    assert "trial 0 (baseline) diverged: the loss was not finite in epoch 2" in text
    assert "nan" not in text.replace("finite", "")


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([], 5, ""),
        ([0.0, 0.5, 1.0], 5, "▁▅█"),
        ([0.5], 5, "▅"),
        ([0.0, 1.0], 0, ""),
        ([-9.0, 9.0], 5, "▁█"),
        ([float(i) / 99 for i in range(100)], 3, "▁▅█"),
        ([0.0, 0.0, 1.0], 1, "█"),
    ],
)
def test_a_sparkline_scales_and_keeps_its_last_value(values: list[float], width: int, expected: str) -> None:
    assert sparkline(values, 0.0, 1.0, width) == expected


@pytest.mark.parametrize("width", [80, 120, 63, 62])
def test_curves_are_as_long_as_what_was_trained(width: int) -> None:
    long = load_space("quickstart", ["training.max_epochs=27", "search.asha=off", "search.trials=12"])
    history = History()
    state = SearchState(long, history)
    n_epochs = (27, 20, 1)
    for trial, n in enumerate(n_epochs):
        state.next_assignment()
        for epoch in range(1, n + 1):
            state.record(result(trial, epoch, epoch / 100))
    lines = lines_of_the_best(text_of(scene_of(long, history), width))
    shown = [sum(character in UNICODE.levels for character in line) for line in lines]
    full = {80: 19, 120: 27, 63: 2, 62: 1}[width]
    assert shown == [max(1, round(full * n / 27)) for n in n_epochs]


def test_a_flat_curve_is_drawn() -> None:
    assert sparkline([0.3, 0.3], 0.3, 0.3, 5) == "██"


def test_what_is_left_falls_to_nothing(space: Space) -> None:
    rng = random.Random(0)
    stages = sorted(rng.sample(range(1, 60), 4))
    totals = [remaining(history_after(space, n), space).trial_epochs or 0.0 for n in stages]
    assert totals == sorted(totals, reverse=True)
    over = remaining(history_after(space, None), space)
    assert over.of_begun == over.of_unstarted == ()
    assert over.trial_epochs == 0


@pytest.mark.parametrize("asha", ["stop", "promote", "off"])
@pytest.mark.parametrize("limit", ["search.epoch_budget=40", "search.time_budget=1h"])
def test_searches_that_are_limited_otherwise_are_shown_too(asha: str, limit: str) -> None:
    limited = load_space("quickstart", ["search.trials=null", limit, f"search.asha={asha}"])
    for n_results in (0, 9, 30):
        scene = scene_of(limited, history_after(limited, n_results), budget_left_s=1800.0 if "time" in limit else None)
        lines = text_of(scene).splitlines()
        assert lines[2].endswith(" of 40") if "epoch" in limit else lines[2] == f"epochs {n_results}"
        if "time" in limit:
            assert lines[0].rstrip().endswith("about 30 minutes left"), "when the time is used is known from the start"
        else:
            assert (scene.left_s is None) == (n_results == 0)


def test_what_the_time_budget_leaves_is_all_that_is_left() -> None:
    space = load_space("quickstart", ["search.trials=1000", "search.time_budget=1h"])
    history = history_after(space, 9)
    trained_s = scene_of(space, history).left_s
    assert trained_s is not None
    assert trained_s > 60
    assert scene_of(space, history, budget_left_s=60.0).left_s == 60
    assert scene_of(space, history, budget_left_s=-1.0).left_s == 0
    assert scene_of(space, history, budget_left_s=1e6).left_s == trained_s, "a search may be done before its time"


def test_trials_that_wait_at_a_rung_are_nobody_s_work() -> None:
    promoting = load_space("quickstart", ["search.trials=12", "search.asha=promote"])
    history = history_after(promoting, 20)
    waiting = [trial for trial in history.unfinished if waits_at_rung(trial, promoting)]
    assert waiting
    first = rung_survival(history.counting, promoting)[0]
    assert 0 < first.waiting <= len(waiting)
    lines = text_of(scene_of(promoting, history)).splitlines()
    assert sum("images/s" in line and line.startswith("trial ") for line in lines) == 2
    assert any(line.endswith(f"{first.waiting} wait") for line in lines)


def test_runs_that_ended_badly_are_told(space: Space) -> None:
    history = history_after(space, None)
    run = next(iter(history.replicates.values()))
    run.end = ReplicateEnded(run.number, "failed", "its machine went away", 1e10)
    assert f"replicate {run.number} of trial {run.trial} failed: its machine went away" in text_of(
        scene_of(space, history)
    )


def test_long_searches_show_only_the_last_events(space: Space) -> None:
    history = history_after(space, None)
    for number in range(12, 3000):
        trial = Trial(number, {}, space.baseline, False, 0.0)
        trial.end = TrialEnded(number, "stopped", "below", float(number))
        history.trials[number] = trial
    text = text_of(scene_of(space, history), 120, 40)
    assert len(text.splitlines()) == 40
    assert "trial 2999 stopped: below" in text
    assert "trial 12 stopped: below" not in text


def broken_off_in_replicates(space: Space) -> History:
    history = history_after(space, history_after(space, None).n_epochs + 4)
    assert history.unfinished_replicates
    return history


def in_state_after(space: Space, history: History) -> ScreenState:
    return replace(scene_of(space, history), now=20_000.0, elapsed_s=20_000.0)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_time_left_stays_while_replicates_go_on(space: Space, width: int) -> None:
    scene = replace(in_state_after(space, broken_off_in_replicates(space)), name="quickstart-20261124-112652")
    heading = text_of(scene, width, 20).splitlines()[0]
    assert re.search(r"about \d+ (seconds|minutes) left$", heading)
    assert len(heading) <= width


def test_replicates_that_broke_off_are_nobody_s_work_while_added_trials_are_searched(space: Space) -> None:
    history = broken_off_in_replicates(space)
    more = load_space("quickstart", ["search.trials=14"])
    resumed = replace(scene_of(more, history), now=99_999.0, elapsed_s=1.0)
    assert text_of(resumed).startswith("mine  searching ")
    assert "run 0, trial" not in text_of(resumed)
    state = SearchState(more, history)
    state.next_assignment()
    text = text_of(resumed)
    assert text.startswith("mine  searching ")
    assert sum("images/s" in line for line in text.splitlines()) == 1
    assert " s of about " not in text
    assert "1 idle" in text


def test_an_epoch_of_an_earlier_session_is_no_measure_of_this_one_s(space: Space) -> None:
    history = history_after(space, 30)
    assert " s of about " not in text_of(replace(scene_of(space, history), now=2_000.0, elapsed_s=10.0))


@pytest.mark.parametrize("width", [50, 60, 80])
def test_narrow_terminals_leave_out_columns_and_cut_no_figure(space: Space, width: int) -> None:
    history = history_after(space, None)
    for line in text_of(scene_of(space, history), width, 20).splitlines():
        cut = line.split()[-1] if line.endswith(UNICODE.points) else ""
        assert not re.search(r"\d…$", cut), line
    rows = lines_of_the_best(text_of(scene_of(space, history), width, 20))
    assert all(re.search(r"% ± [\d.]+ \(\d\)", row) for row in rows if "(" in row)


def test_ranks_stand_in_their_order(space: Space) -> None:
    for n_results in (30, 60, None):
        rows = lines_of_the_best(text_of(scene_of(space, history_after(space, n_results))))
        ranks = [int(row[:2]) for row in rows]
        assert ranks == sorted(ranks)
