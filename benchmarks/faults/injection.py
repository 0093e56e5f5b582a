"""Searches under `kill -9`: seeded faults at random moments, and after each the invariants, from the files."""

import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.files import (
    Files,
    asked_of,
    copy_files,
    proposal_problems,
    read_files,
    read_or_empty,
    sessions_in,
)
from benchmarks.faults.invariants import (
    Trained,
    budget_problems,
    checkpoint_problems,
    events_of,
    history_problems,
    leaderboard_problems,
    prefix_problems,
    redone_problems,
    rung_problems,
    session_problems,
    study_problems,
    trained_problems,
    trials_of,
)
from benchmarks.faults.search_processes import (
    POLL_S,
    SearchProcess,
    described,
    short_temporary_folder,
    trained_epochs,
    wait_until_none,
)
from benchmarks.faults.tally import DRIVER_KINDS, SERVICE_KINDS, Kind, Launch
from spaces.errors import RunError

# The quickstart on fewer, smaller images: a search of a minute or two, which lasts for some 30 faults.
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
FIRST_START_UP_S = 12.0
LONGEST_DELAY_S = 1.0
LONGEST_DELAY_AFTER_LINE_S = 0.02
# Ray tries a trial twice more after its worker died.
MOST_WORKERS_KILLED = 2
SILENT_S = 240.0
REST_S = 1200.0
GONE_S = 30.0
# A driver whose raylet or GCS was killed; the product says 15 s, on a machine that is not busy otherwise.
ENDS_WITHIN_S = 40.0
LOGS_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Moment:
    """When a fault is to come, and which.

    Attributes:
        kind: what is killed.
        new_lines: lines that the journal must have gained since the launch, or since the last fault in it.
        delay_s: to wait after the last of them; after the launch where `new_lines` is 0.
    """

    kind: Kind
    new_lines: int
    delay_s: float


def kinds_in_turn(generator: random.Random, kinds: Sequence[Kind]) -> Iterator[Kind]:
    """Kinds of faults in random order, each about as often as the others however few are drawn."""
    while True:
        yield from generator.sample(kinds, len(kinds))


def next_moment(generator: random.Random, kind: Kind, may_be_in_start_up: bool, start_up_s: float) -> Moment:
    """Draw a fault: in start-up, right after a line of the journal, or while trials train.

    Args:
        generator: of all draws.
        kind: of the fault.
        may_be_in_start_up: False keeps a search going that would otherwise never come to train.
        start_up_s: from a launch to its first line.
    """
    if may_be_in_start_up and kind in DRIVER_KINDS and generator.random() < START_UP_SHARE:
        return Moment(kind, 0, generator.uniform(0, start_up_s))
    new_lines = generator.randint(1, 4)
    if generator.random() < 0.5:
        return Moment(kind, new_lines, generator.uniform(0, LONGEST_DELAY_AFTER_LINE_S))
    return Moment(kind, new_lines, generator.uniform(0, LONGEST_DELAY_S))


class SearchUnderFaults:
    """One search that is killed and resumed until so many faults are done, and then ends by itself.

    Args:
        overrides: of `SPACE`, as `--set` takes them.
        n_faults: to be injected; fewer if the search ends before.
        seed: of the faults, not of the search.
        kinds: of faults.
        work: an empty folder for results and logs.
        tell: called with each fault's description.

    Attributes:
        launches: so far.
        problems: every invariant that did not hold; empty is what one hopes for.
    """

    def __init__(
        self,
        overrides: Sequence[str],
        n_faults: int,
        seed: int,
        kinds: Sequence[Kind],
        work: Path,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.launches: list[Launch] = []
        self.problems: list[str] = []
        self.folder = work / "results" / "faults"
        self._overrides = overrides
        self._n_left = n_faults
        self._generator = random.Random(seed)
        self._kinds = kinds_in_turn(self._generator, kinds)
        self._work = work
        self._tell = tell
        self._start_up_s = FIRST_START_UP_S
        self._n_sessions = 0
        self._unchecked: Path | None = None
        self._last = Files()
        self._process: SearchProcess | None = None

    @property
    def n_faults(self) -> int:
        """How many were injected so far."""
        return sum((launch.killed_by is not None) + len(launch.workers_killed) for launch in self.launches)

    def run(self) -> None:
        """Run the search to its end.

        Raises:
            RunError: it cannot be gone on with: a launch failed, or journals nothing for minutes.
        """
        temporary = short_temporary_folder()
        try:
            while not self._one_launch(temporary):
                pass
            self._check_end(temporary)
        finally:
            if self._process:
                self._process.end_all()
            shutil.rmtree(temporary, ignore_errors=True)

    def _one_launch(self, temporary: Path) -> bool:
        """Returns whether the search ended by itself."""
        after_start_up = bool(self.launches) and self.launches[-1].in_start_up
        process = self._start(temporary)
        launch = self.launches[-1]
        self._check_unchecked()
        lines = _LineCount(self.folder / "journal.jsonl", launch)
        while self._n_left:
            # A trial's third loss would be its end.
            kind = next(self._kinds)
            while kind == "worker only" and len(launch.workers_killed) >= MOST_WORKERS_KILLED:
                kind = next(self._kinds)
            fresh = not launch.workers_killed and not after_start_up
            moment = next_moment(self._generator, kind, fresh, self._start_up_s)
            if not self._wait_for(moment, process, lines):
                break
            if moment.kind == "worker only":
                self._kill_worker(process, launch)
            elif moment.kind in SERVICE_KINDS:
                if self._kill_service(process, launch, moment.kind):
                    return False
            elif self._kill_driver(process, launch, moment.kind):
                return False
            else:
                break
        self._wait_for_the_end(process)
        self._close(launch, process)
        self._check_unchecked()
        return True

    def _start(self, temporary: Path) -> SearchProcess:
        if self.folder.exists():
            arguments = ["--resume", self.folder.name]
        else:
            chosen = [word for override in self._overrides for word in ("--set", override)]
            arguments = [SPACE, *chosen, "--name", self.folder.name]
        log = self._work / f"launch_{len(self.launches) + 1:03d}.out"
        self._process = SearchProcess([*arguments, "--results", str(self.folder.parent)], temporary, log)
        before = self.launches[-1].after if self.launches else b""
        self.launches.append(Launch(before, started_at=self._process.started_at))
        return self._process

    def _wait_for(self, moment: Moment, process: SearchProcess, lines: "_LineCount") -> bool:
        """Returns False where the search ended by itself before."""
        wanted = lines.count() + moment.new_lines
        deadline = time.monotonic() + SILENT_S
        while lines.count() < wanted:
            if process.exit_code is not None:
                return False
            if time.monotonic() > deadline:
                raise RunError(f"{self.folder}: journals nothing for {SILENT_S:.0f} s: {process.errors[-2000:]}")
            time.sleep(POLL_S)
        self._start_up_s = lines.first_new_s or self._start_up_s
        waited_s = time.time() - process.started_at if moment.new_lines == 0 else 0.0
        time.sleep(max(0.0, moment.delay_s - waited_s))
        return process.exit_code is None

    def _kill_worker(self, process: SearchProcess, launch: Launch) -> None:
        workers = sorted(process.workers())
        if not workers:
            return
        launch.workers_killed.append(read_or_empty(self.folder / "journal.jsonl"))
        process.kill([self._generator.choice(workers)])
        self._n_left -= 1
        self._describe("worker only", launch.workers_killed[-1])

    def _kill_driver(self, process: SearchProcess, launch: Launch, kind: Kind) -> bool:
        """Returns False where the search ended by itself in the meantime."""
        # First all stand still, so that what is seen is what was there when it was killed.
        frozen = process.freeze(others=kind == "driver and workers")
        trained = self._trained(process)
        process.kill(frozen)
        if process.exit_code != -9:
            return False
        launch.killed_by, launch.trained = kind, trained
        self._after_a_kill(process, launch, kind)
        return True

    def _kill_service(self, process: SearchProcess, launch: Launch, kind: Kind) -> bool:
        """Kill one of Ray's own processes and wait for the driver's end; False where the search finished meanwhile."""
        process.kill(process.services(kind))
        trained: Trained = {}
        until_s = time.monotonic() + ENDS_WITHIN_S
        while process.exit_code is None and time.monotonic() < until_s:
            # Some of Ray's logs go with the driver.
            trained = longest(trained, self._trained(process))
            time.sleep(LOGS_POLL_S)
        if process.exit_code == 0:
            return False
        launch.killed_by, launch.trained = kind, longest(trained, self._trained(process))
        code, said = process.exit_code, process.errors
        process.end_all()
        if code != 1 or said.count("\n") != 1:
            self.problems.append(f"launch {len(self.launches)}, {kind} killed: ended with code {code}, said {said!r}")
        self._after_a_kill(process, launch, kind)
        return True

    def _after_a_kill(self, process: SearchProcess, launch: Launch, kind: Kind) -> None:
        self._n_left -= 1
        self._close(launch, process)
        launch.in_start_up = launch.after == launch.before
        self._describe(kind, launch.after)
        # Half the time the search is resumed at once, while what it left is still about to end.
        if self._generator.random() < 0.5:
            self._check_unchecked()

    def _close(self, launch: Launch, process: SearchProcess) -> None:
        """Take down what a launch left, to be checked."""
        launch.ended_at = time.time()
        if launch.killed_by is None:
            launch.trained = self._trained(process)
        self._unchecked = self._work / f"copy_{len(self.launches):03d}"
        copy_files(self.folder, self._unchecked)
        launch.after = read_or_empty(self._unchecked / "journal.jsonl")
        self._n_sessions = len(sessions_in(self._unchecked / "manifest.json"))

    def _trained(self, process: SearchProcess) -> Trained:
        session = len(sessions_in(self.folder / "manifest.json"))
        if session == self._n_sessions:
            return {}  # the launch has not come so far
        return trained_epochs(process.temporary, self.folder / "ray").get(session, {})

    def _check_unchecked(self) -> None:
        """Check what the last launch that ended left."""
        copy, self._unchecked = self._unchecked, None
        if copy is None or not (copy / "manifest.json").exists():
            return
        launches = [launch for launch in self.launches if launch.ended_at]
        launch, files = launches[-1], read_files(copy)
        asked, events = asked_of(copy), events_of(files.journal)
        finished, lost_ray = launch.killed_by is None, launch.killed_by in SERVICE_KINDS
        times = [(each.started_at, each.ended_at) for each in launches]
        problems = [
            *prefix_problems(launch.before, files.journal),
            *history_problems(events, asked, finished),
            *rung_problems(events, asked),
            *([] if finished else checkpoint_problems(events, files.checkpoints)),
            *trained_problems(events_of(launch.before), launch.trained, len(launch.workers_killed)),
            *redone_problems(launch.before, files.journal, launch.trained, len(launch.workers_killed)),
            *session_problems(self._last.sessions, files.sessions),
            *budget_problems(files.used_s, self._last.used_s, times, events),
            *([] if files.study is None else study_problems(files.study, events, current=finished)),
            *([] if files.table is None else leaderboard_problems(files.table, events, current=finished)),
            *leaderboard_problems(files.leaderboard, events, current=True),
            *([f"the manifest says {files.state}"] if lost_ray and files.state != "interrupted" else []),
        ]
        self.problems += [f"launch {len(launches)}: {problem}" for problem in problems]
        self._last = files
        shutil.rmtree(copy)

    def _wait_for_the_end(self, process: SearchProcess) -> None:
        try:
            code = process.wait(REST_S)
        except subprocess.TimeoutExpired:
            raise RunError(f"{self.folder}: has not ended {REST_S:.0f} s after the last fault.") from None
        if code != 0:
            raise RunError(f"{self.folder}: search.run ended with code {code}: {process.errors[-2000:]}")
        if process.errors:
            self.problems.append(f"launch {len(self.launches)} said: {process.errors}")

    def _check_end(self, temporary: Path) -> None:
        left = wait_until_none(temporary, GONE_S)
        names = sorted(path.name for path in temporary.iterdir())
        n_checkpoints = len(list(self.folder.glob("ray/session_*/trial_*/checkpoint_*")))
        state = self._last.state
        self.problems += [
            *([f"the processes {', '.join(map(described, left))} live on"] if left else []),
            *([f"{', '.join(names)} stayed in TMPDIR"] if names else []),
            *([f"{n_checkpoints} checkpoints of ended trials stayed"] if n_checkpoints else []),
            *([f"the manifest says {state}"] if state != "finished" else []),
            *([] if self._last.study and self._last.table else ["study.db or trials.csv is not there"]),
            *proposal_problems(self.folder),
        ]

    def _describe(self, kind: Kind, journal: bytes) -> None:
        events = events_of(journal)
        trials = trials_of(events).values()
        n_ended = sum(trial.end is not None for trial in trials)
        self._tell(f"{kind} killed at line {len(events)}: {n_ended} trials ended, {len(trials) - n_ended} running")


def longest(one: Trained, other: Trained) -> Trained:
    """Of each trial, the longer list of epochs."""
    return {number: max(one.get(number, ()), other.get(number, ()), key=len) for number in {*one, *other}}


class _LineCount:
    """How many lines a journal has while `launch` writes to it, and how long after its start the first one came."""

    def __init__(self, path: Path, launch: Launch) -> None:
        self._path = path
        self._started_at = launch.started_at
        self._size = -1
        self._lines = self._n_known = launch.before.count(b"\n")
        self.first_new_s: float | None = None

    def count(self) -> int:
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return self._lines
        if size != self._size:
            self._size, self._lines = size, read_or_empty(self._path).count(b"\n")
            if self._lines > self._n_known and self.first_new_s is None:
                self.first_new_s = time.time() - self._started_at
        return self._lines
