import errno
import os
import re
import sys
import time
from io import BytesIO, StringIO, TextIOWrapper

import pytest
from rich.console import Console
from rich.text import Text

from search.experiment.history import History
from search.policy.state import SearchState
from search.terminal.display import SearchConsole, SearchDisplay, print_while_read
from search.terminal.live_screen import live_screen
from spaces import Space, load_space
from tests.support.simulation import result, simulate


@pytest.fixture
def space() -> Space:
    return load_space("quickstart", ["search.trials=12"])


@pytest.fixture(autouse=True)
def _a_terminal_that_can_do_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def redraws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each refresh draws."""
    monkeypatch.setattr("search.terminal.display.REFRESH_S", 0.0)


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
    assert ", 1 replicate, " in fresh[0]
    assert "1 replicates" not in "".join(fresh)
    left_s = [float(found[1]) for line in lines if (found := re.search(r"about (\d+) seconds? left", line))]
    assert left_s[0] > left_s[-1]
    assert "left" not in fresh[-1]
    assert all(
        re.match(r"replicate  completed epoch   9 +[\d.]+%  of trial \d+  \[12/12 trials", line) for line in fresh
    )


@pytest.mark.parametrize("trials", ["1000", "null"])
@pytest.mark.usefixtures("redraws")
def test_the_time_left_ends_with_the_time_budget(trials: str) -> None:
    space = load_space("quickstart", [f"search.trials={trials}", "search.time_budget=2h"])
    started_s = time.monotonic() - 3600
    for terminal in (False, True):
        stream = StringIO()
        console = Console(file=stream, force_terminal=terminal, width=100, highlight=False)
        with SearchDisplay(space, console, 2, started_s=started_s, time_left_s=3600 + 80) as display:
            simulate(SearchState(space, History(), observe=display.observe), seed=0, max_results=20)
        left = re.findall(r"about (\d+) (\w+) left", stream.getvalue())
        assert left
        assert all(int(number) <= 80 and unit == "seconds" for number, unit in left)


def test_a_terminal_gets_one_screen_and_is_given_back(space: Space) -> None:
    text = shown(space, terminal=True)
    screen, _, after = text.partition("\x1b[?1049l")
    assert screen.startswith("\x1b[?1049h\x1b[H")
    assert "\x1b[?25h" in text, "the cursor is shown again"
    assert "workers" in screen
    assert "quickstart" in screen
    assert "trial 3 lost its worker" in after, "what went wrong is told when the screen is gone"
    assert "completed" not in after
    assert "stopped" not in after


@pytest.mark.parametrize("why", ["NO_COLOR", "TERM", "plain", "not UTF-8"])
def test_a_terminal_without_a_screen_gets_plain_lines(why: str, space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    if why in ("NO_COLOR", "TERM"):
        monkeypatch.setenv(why, {"NO_COLOR": "1", "TERM": "dumb"}[why])
    stream = TextIOWrapper(BytesIO(), encoding="latin-1" if why == "not UTF-8" else "utf-8", write_through=True)
    console = Console(file=stream, force_terminal=True, width=100)
    with SearchDisplay(space, console, 2, plain=why == "plain") as display:
        simulate(SearchState(space, History(), observe=display.observe), seed=0)
    stream.seek(0)
    text = stream.read()
    assert "\x1b[?1049h" not in text
    assert text.count("trials, ") >= 12
    assert all(line.strip() for line in text.splitlines())


@pytest.mark.usefixtures("redraws")
def test_messages_to_standard_error_are_shown_and_kept(space: Space, capsys: pytest.CaptureFixture[str]) -> None:
    stream = StringIO()
    with SearchDisplay(space, Console(file=stream, force_terminal=True, width=100), 2) as display:
        print("the copy of the journal is used", file=sys.stderr)
        assert capsys.readouterr().err == ""
        display.refresh()
    assert "the copy of the journal is used" in stream.getvalue()
    assert capsys.readouterr().err == "the copy of the journal is used\n"


@pytest.mark.usefixtures("redraws")
def test_a_screen_that_cannot_be_drawn_costs_no_search(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = StringIO()
    with SearchDisplay(space, Console(file=stream, force_terminal=True, width=100), 2) as display:
        monkeypatch.setattr("search.terminal.display.screen", lambda *_: 1 / 0)
        simulate(SearchState(space, History(), observe=display.observe), seed=0)
    after = stream.getvalue().partition("\x1b[?1049l")[2]
    assert "The screen cannot be drawn (ZeroDivisionError: division by zero)" in after
    assert "12/12 trials" in after


class Terminal(StringIO):
    """Fails as a terminal does whose other end was closed, from when it is `gone`."""

    gone = False

    def write(self, text: str) -> int:
        if self.gone:
            raise OSError(errno.EIO, "Input/output error")
        return super().write(text)


@pytest.mark.parametrize("gone_when", ["before", "meanwhile", "at the end"])
@pytest.mark.parametrize("plain", [False, True])
def test_a_terminal_that_goes_away_costs_no_search(
    plain: bool, gone_when: str, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal, history = Terminal(), History()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("search.terminal.display.REFRESH_S", 0.0 if gone_when == "meanwhile" else 1.0)
    terminal.gone = gone_when == "before"
    console = Console(file=terminal, force_terminal=True, width=100)
    with SearchDisplay(space, console, 2, plain=plain) as display:
        terminal.gone = gone_when != "at the end"
        simulate(SearchState(space, history, observe=display.observe), seed=0)
        display.note("trial 3 lost its worker")
        assert (sys.stderr is terminal) == (plain or terminal.gone), "where no screen is, messages go where they did"
        terminal.gone = True
    assert sys.stderr is terminal
    assert history.n_ended == 12


def test_a_screen_is_closed_though_its_terminal_went_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with live_screen(Console(file=terminal, force_terminal=True, width=100), lambda: Text("x"), print) as live:
        print("a message", file=sys.stderr)
        terminal.gone = True
        with pytest.raises(OSError, match="Input/output error"):
            live.refresh()
    assert sys.stderr is terminal
    assert "\x1b[?1049l" not in terminal.getvalue()


def test_the_screen_is_drawn_once_a_second_at_most(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 100.0}
    monkeypatch.setattr("search.terminal.display.REFRESH_S", 1.0)
    monkeypatch.setattr("search.terminal.display.time.monotonic", lambda: clock["now"])
    drawn_s: list[float] = []
    draw = SearchDisplay._draw
    monkeypatch.setattr(SearchDisplay, "_draw", lambda display: drawn_s.append(clock["now"]) or draw(display))
    with SearchDisplay(space, Console(file=StringIO(), force_terminal=True, width=100), 2) as display:
        drawn_s.clear()
        for clock["now"] in (100.99, 101.01, 101.5, 102.0, 102.02):
            display.refresh()
    assert drawn_s == [101.01, 102.02]


def test_a_pipe_without_its_reader_costs_no_search(space: Space) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    history = History()
    with os.fdopen(writer, "w") as pipe:
        console = SearchConsole(file=pipe, width=100)
        print_while_read(console, "the first line")
        with SearchDisplay(space, console, 2) as display:
            simulate(SearchState(space, history, observe=display.observe), seed=0)
        print("the result", file=pipe, flush=True)
    assert history.n_ended == 12


def test_quiet_shows_failures_only(space: Space) -> None:
    assert shown(space, terminal=False, quiet=True) == ""
    stream = StringIO()
    display = SearchDisplay(space, Console(file=stream), 1, quiet=True)
    state = SearchState(space, History(), observe=display.observe)
    state.next_assignment()
    state.record(result(0, 1, 0.1, loss=float("nan")))
    assert "(the loss was not finite in epoch 1)" in stream.getvalue()
