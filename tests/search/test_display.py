import re
from io import StringIO

import pytest
from rich.console import Console

from search.display import SearchDisplay
from search.records import History
from search.state import SearchState
from spaces import Space, load_space
from tests.search.simulation import result, simulate


@pytest.fixture
def space() -> Space:
    return load_space("quickstart", ["search.trials=12"])


def shown(space: Space, terminal: bool, quiet: bool = False) -> str:
    stream = StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100, highlight=False)
    with SearchDisplay(space, console, trials_at_once=2, quiet=quiet) as display:
        simulate(SearchState(space, History(), observe=display.observe), seed=0)
        display.note("trial 3 lost its worker")
    return stream.getvalue()


def test_piped_output_is_plain_with_one_line_a_trial_that_ends(space: Space) -> None:
    lines = shown(space, terminal=False).splitlines()
    assert all("\x1b" not in line for line in lines)
    assert sum(line.startswith("baseline ") for line in lines) == 1
    ends, fresh = lines[:12], lines[12:-1]
    assert [line.split("[")[1].split(" ")[0] for line in ends] == [f"{n}/12" for n in range(1, 13)]
    assert all("best " in line for line in ends)
    assert fresh
    assert all(
        re.match(r"fresh run  completed epoch   9 +[\d.]+%  of trial \d+  \[12/12 trials", line) for line in fresh
    )


def test_the_time_left_falls_to_nothing(space: Space) -> None:
    lines = shown(space, terminal=False).splitlines()[:-1]
    seconds = [float(match.group(1)) for line in lines if (match := re.search(r"about (\d+) seconds? left", line))]
    assert seconds[0] > seconds[-1]
    assert "left" not in lines[-1]


def test_a_terminal_gets_a_status_line_and_no_line_is_wider_than_it(space: Space) -> None:
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown(space, terminal=True))
    assert max(len(line) for line in text.replace("\r", "\n").splitlines()) <= 100
    assert re.search(r"\d+/12 trials, \d+ epochs, \d+ running", text)


def test_quiet_shows_failures_only(space: Space) -> None:
    assert shown(space, terminal=False, quiet=True) == ""
    stream = StringIO()
    display = SearchDisplay(space, Console(file=stream), 1, quiet=True)
    state = SearchState(space, History(), observe=display.observe)
    state.next_assignment()
    state.record(result(0, 1, 0.1, loss=float("nan")))
    assert "(the loss was not finite in epoch 1)" in stream.getvalue()
