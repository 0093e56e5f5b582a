"""One search under `kill -9`: seeded faults at random moments, and the checks of its files after each."""

import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.files import (
    DRIVER_KINDS,
    SERVICE_KINDS,
    Kind,
    Launch,
    copy_files,
    file_problems,
    proposal_problems,
    read_or_empty,
)
from benchmarks.faults.invariants import events_of
from benchmarks.faults.search_processes import SearchProcess, short_temporary_folder, trained_epochs, wait_until_none
from search.experiment.folder import Experiment
from search.experiment.history import History
from spaces.errors import InputError, RunError

# The quickstart with fewer and smaller images: a search of one to two minutes, enough for about 30 faults.
SPACE = "quickstart"
OVERRIDES = (
    "dataset.image_size=17",
    "dataset.train_limit=400",
    "training.batch_size=8",
    "training.max_epochs=9",
    "search.grace_epochs=1",
    "search.trials=40",
)

START_UP_SHARE = 0.2
START_UP_S = 6.0
LONGEST_DELAY_S = 1.0
LONGEST_DELAY_AFTER_LINE_S = 0.02
MOST_WORKERS_KILLED = 2  # in one launch; a trial that loses its worker three times fails
POLL_S = 0.002
LOGS_POLL_S = 0.05
LONGEST_SILENCE_S = 240.0
LONGEST_REST_S = 1200.0  # from the last fault to the end of the search
LONGEST_CLEAN_UP_S = 30.0
LONGEST_END_S = 40.0  # of a driver that lost a service; the product needs 15 s on an idle machine


@dataclass(frozen=True, slots=True)
class Fault:
    """An injected fault.

    Attributes:
        kind: which processes were killed.
        in_start_up: whether the launch had journaled nothing yet.
        n_trials, n_running: numbers of trials that were started, and that had not ended.
    """

    kind: Kind
    in_start_up: bool
    n_trials: int
    n_running: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Trials of a search at its end.

    Attributes:
        expected: number of trials of the space.
        found: number of trials that ended.
        repeated: number of trials that were trained after their end.
        redone: number of epochs that were trained again.
    """

    expected: int
    found: int
    repeated: int
    redone: int


def kinds_in_turn(generator: random.Random, kinds: Sequence[Kind]) -> Iterator[Kind]:
    """Kinds in random order, each equally often."""
    while True:
        yield from generator.sample(kinds, len(kinds))


def next_moment(generator: random.Random, kind: Kind, may_be_in_start_up: bool) -> tuple[int, float]:
    """Draw the moment of a fault: during start-up, right after a line of the journal, or up to a second later.

    Returns:
        Number of lines that the journal must gain before, and the delay after the last of them in seconds; after the
        launch if the number is 0.
    """
    if may_be_in_start_up and kind in DRIVER_KINDS and generator.random() < START_UP_SHARE:
        return 0, generator.uniform(0, START_UP_S)
    longest_s = LONGEST_DELAY_AFTER_LINE_S if generator.random() < 0.5 else LONGEST_DELAY_S
    return generator.randint(1, 4), generator.uniform(0, longest_s)


class SearchUnderFaults:
    """One search that is killed and resumed, and ends by itself after the last fault.

    Args:
        overrides: `--set` values for `SPACE`.
        n_faults: number of faults; fewer are injected if the search ends before.
        seed: seed of the faults, not of the search.
        kinds: kinds of faults.
        work: an empty folder for results and logs.
        tell: called with a line for each fault.

    Attributes:
        folder: folder of the experiment.
        faults: injected faults.
        launches: launches so far.
        problems: all checks that failed.
    """

    def __init__(
        self,
        overrides: Sequence[str],
        n_faults: int,
        seed: int,
        kinds: Sequence[Kind],
        work: Path,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.folder = work / "results" / "faults"
        self.faults: list[Fault] = []
        self.launches: list[Launch] = []
        self.problems: list[str] = []
        self._journal = self.folder / "journal.jsonl"
        self._overrides = overrides
        self._n_faults = n_faults
        self._generator = random.Random(seed)
        self._kinds = kinds_in_turn(self._generator, kinds)
        self._work = work
        self._tell = tell
        self._unchecked: Path | None = None
        self._n_sessions = 0

    def run(self) -> None:
        """Run the search to its end.

        Raises:
            RunError: a launch failed, or journals nothing for minutes.
        """
        temporary = short_temporary_folder()
        try:
            while not self._launch(temporary):
                pass
            self._check_end(temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def summary(self) -> Summary:
        """The trials at the end of the search."""
        experiment = Experiment(self.folder)
        history = experiment.history()
        repeated = {
            number
            for launch in self.launches
            for number, trial in History(events_of(launch.before)).trials.items()
            if trial.end and launch.trained.get(number)
        }
        expected = experiment.space.search.trials
        return Summary(
            len(history.trials) if expected is None else expected, history.n_ended, len(repeated), history.n_redone
        )

    def _launch(self, temporary: Path) -> bool:
        """Start or resume the search once; returns whether it ended by itself."""
        after_start_up = bool(self.launches) and self.launches[-1].after == self.launches[-1].before
        process = self._start(temporary)
        launch = self.launches[-1]
        try:
            self._check_files()
            while len(self.faults) < self._n_faults and launch.killed is None:
                kind = next(self._kinds)
                if kind == "worker only" and launch.n_workers_killed >= MOST_WORKERS_KILLED:
                    continue
                # After a fault in start-up, the search must come to train before the next one.
                may_be_in_start_up = not launch.n_workers_killed and not after_start_up
                new_lines, delay_s = next_moment(self._generator, kind, may_be_in_start_up)
                if not self._wait_for(new_lines, delay_s, process) or not self._kill(process, kind):
                    break
            if launch.killed is None:
                self._wait_for_the_end(process)
                self._close(process)
            # After half of the kills, the files are checked later: the search is resumed while processes still end.
            if launch.killed is None or self._generator.random() < 0.5:
                self._check_files()
        finally:
            if launch.killed is None:
                process.end_all()
        return launch.killed is None

    def _start(self, temporary: Path) -> SearchProcess:
        if self.folder.exists():
            arguments = ["--resume", self.folder.name]
        else:
            chosen = [word for override in self._overrides for word in ("--set", override)]
            arguments = [SPACE, *chosen, "--name", self.folder.name]
        log = self._work / f"launch_{len(self.launches) + 1:03d}.out"
        process = SearchProcess([*arguments, "--results", str(self.folder.parent)], temporary, log)
        self.launches.append(Launch(process.started_at, self.launches[-1].after if self.launches else b""))
        return process

    def _wait_for(self, new_lines: int, delay_s: float, process: SearchProcess) -> bool:
        """Wait for the moment of a fault; returns False if the search ended by itself before."""
        wanted = read_or_empty(self._journal).count(b"\n") + new_lines
        deadline = time.monotonic() + LONGEST_SILENCE_S
        while new_lines and read_or_empty(self._journal).count(b"\n") < wanted:
            if process.exit_code is not None:
                return False
            if time.monotonic() > deadline:
                raise RunError(f"{self._journal}: has no new line after {LONGEST_SILENCE_S:.0f} s: {process.errors}")
            time.sleep(POLL_S)
        time.sleep(delay_s)
        return process.exit_code is None

    def _kill(self, process: SearchProcess, kind: Kind) -> bool:
        """Inject a fault; returns False if the search ended by itself before."""
        launch = self.launches[-1]
        if kind == "worker only":
            if workers := sorted(process.workers()):
                journal = read_or_empty(self._journal)
                process.kill([self._generator.choice(workers)])
                launch.n_workers_killed += 1
                self._note(kind, journal)
            return True
        was_killed = self._kill_service(process, kind) if kind in SERVICE_KINDS else self._kill_driver(process, kind)
        if was_killed:
            launch.killed = kind
            self._close(process)
            self._note(kind, launch.after)
        return was_killed

    def _kill_driver(self, process: SearchProcess, kind: Kind) -> bool:
        """Kill the driver; returns False if the search ended by itself before."""
        # Frozen first, so that Ray's logs are read as they were at the kill.
        frozen = process.freeze(others=kind == "driver and workers")
        self.launches[-1].trained = self._trained(process)
        process.kill(frozen)
        return process.exit_code == -9

    def _kill_service(self, process: SearchProcess, kind: Kind) -> bool:
        """Kill a process of Ray and wait for the driver's end; returns False if the search finished meanwhile."""
        process.kill(process.services(kind))
        logs: dict[int, Sequence[int]] = {}
        deadline = time.monotonic() + LONGEST_END_S
        while process.exit_code is None and time.monotonic() < deadline:
            # The driver removes some of Ray's logs at its end.
            for number, epochs in self._trained(process).items():
                logs[number] = max(logs.get(number, ()), epochs, key=len)
            time.sleep(LOGS_POLL_S)
        if process.exit_code == 0:
            return False
        self.launches[-1].trained = logs
        code, errors = process.exit_code, process.errors
        process.end_all()
        if code != 1 or errors.count("\n") != 1:
            self._add_problem(f"after the kill of {kind}, the exit code is {code} and the error {errors!r}")
        return True

    def _trained(self, process: SearchProcess) -> dict[int, list[int]]:
        session = self._count_sessions()
        if session == self._n_sessions:
            return {}  # the launch has not started its session yet
        return trained_epochs(session, process.temporary, self.folder / "ray")

    def _count_sessions(self) -> int:
        return len(json.loads(read_or_empty(self.folder / "manifest.json") or b"{}").get("sessions", []))

    def _close(self, process: SearchProcess) -> None:
        """Record the end of a launch, and copy its files for the checks."""
        launch = self.launches[-1]
        launch.ended_at = time.time()
        if launch.killed is None:
            launch.trained = self._trained(process)
        self._n_sessions = self._count_sessions()
        if self.folder.exists():
            self._unchecked = self._work / f"copy_{len(self.launches):03d}"
            copy_files(self.folder, self._unchecked)
            launch.after = read_or_empty(self._unchecked / "journal.jsonl")

    def _check_files(self) -> None:
        """Check the files of the last launch that ended."""
        copy, self._unchecked = self._unchecked, None
        if copy is None or not (copy / "manifest.json").exists():
            return
        launches = [launch for launch in self.launches if launch.ended_at]
        try:
            problems = file_problems(copy, launches)
        except InputError as error:
            problems = [str(error)]
        self.problems += [f"launch {len(launches)}: {problem}" for problem in problems]
        shutil.rmtree(copy)

    def _wait_for_the_end(self, process: SearchProcess) -> None:
        try:
            code = process.wait(LONGEST_REST_S)
        except subprocess.TimeoutExpired:
            raise RunError(f"{self.folder}: has not ended {LONGEST_REST_S:.0f} s after the last fault.") from None
        if code != 0:
            raise RunError(f"{self.folder}: search.run ended with code {code}: {process.errors}")
        if process.errors:
            self._add_problem(f"the error is {process.errors!r}")

    def _check_end(self, temporary: Path) -> None:
        if left := wait_until_none(temporary, LONGEST_CLEAN_UP_S):
            self._add_problem(f"processes still live: {', '.join(left)}")
        if names := sorted(path.name for path in temporary.iterdir()):
            self._add_problem(f"files remain in TMPDIR: {', '.join(names)}")
        if list(self.folder.glob("ray/session_*/trial_*/checkpoint_*")):
            self._add_problem("checkpoints of ended trials remain")
        self.problems += proposal_problems(self.folder)

    def _add_problem(self, text: str) -> None:
        self.problems.append(f"launch {len(self.launches)}: {text}")

    def _note(self, kind: Kind, journal: bytes) -> None:
        history = History(events_of(journal))
        n_trials, n_running = len(history.trials), len(history.unfinished)
        self.faults.append(Fault(kind, journal == self.launches[-1].before, n_trials, n_running))
        self._tell(f"{kind} killed: {n_trials - n_running} trials ended, {n_running} running")
