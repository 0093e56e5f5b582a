"""One search replayed: workers, time and what the search would hand back; the deciding is done by the real objects."""

import heapq
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import optuna
from optuna.samplers import RandomSampler

from benchmarks.replay.arms import Arm, OwnArm, space_of
from benchmarks.replay.surrogate import Surrogate
from benchmarks.replay.tables import N_CLASSES, Array, Table, in_unit_cube
from search.experiment.events import EpochDone
from search.experiment.history import History
from search.policy.rungs import RungRule, chance_accuracy
from search.policy.state import SearchState
from search.policy.study import distributions
from spaces import Space
from spaces.parameters import Number

# Of an epoch's length, either way.
JITTER = 0.1
METRIC = "validation_accuracy"


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """What a replayed search did.

    Attributes:
        regret: (budget,) after each epoch, in points.
        n_trials: started.
        n_completed: trained to the end.
    """

    regret: Array
    n_trials: int
    n_completed: int


class Searcher(Protocol):
    """Proposes trials and judges their results."""

    def next_trial(self) -> tuple[int, Mapping[str, Number], int] | None:
        """Number, searched values and epochs trained of what a free worker is to train; None for nothing now."""

    def record(self, trial: int, epoch: int, accuracy: float) -> bool:
        """Take in a result; whether the trial goes on with its worker."""


class OwnSearch:
    """The project's own: the state of a real search, as `search.run` drives it through Ray.

    Args:
        state: of the search.
    """

    def __init__(self, state: SearchState) -> None:
        self.state = state

    @classmethod
    def of(cls, arm: OwnArm, surrogate: Surrogate, seed: int) -> "OwnSearch":
        table = surrogate.table
        space = space_of(arm, table.space, table.epochs, seed)
        rule = RungRule.RAYS if arm.rule == "rays" else RungRule.OURS
        return cls(SearchState(space, History(), now=lambda: 0.0, chance=chance_of(table), rule=rule))

    def next_trial(self) -> tuple[int, Mapping[str, Number], int] | None:
        assignment = self.state.next_assignment()
        if assignment is None:
            return None
        trial = self.state.history.trials[assignment.number]
        return trial.number, trial.suggested, trial.n_epochs

    def record(self, trial: int, epoch: int, accuracy: float) -> bool:
        # The loss orders trials of equal accuracy only, and no table says more of it than the accuracy does.
        loss = 1 - accuracy
        return self.state.record(EpochDone(trial, epoch, 0.0, loss, accuracy, loss, accuracy, 1.0, 0.0, 0.0))


def chance_of(table: Table) -> float:
    """What a real search takes for the highest accuracy of a run that only guesses: classes are equally frequent."""
    return chance_accuracy(np.arange(table.n_images) % N_CLASSES)


@dataclass(frozen=True, slots=True)
class RayTrial:
    """As much of a trial as Ray's scheduler looks at."""

    trial_id: str


class RaySearch:
    """`OptunaSearch` and `ASHAScheduler`, called in the order in which Ray's controller calls them.

    Args:
        space: what is searched.
        epochs: of a trial that nothing stops.
        seed: of Optuna's sampler.
        random: whether that is the random one instead of the default.
        baseline: whether the baseline is the first point to evaluate.
    """

    def __init__(self, space: Space, epochs: int, seed: int, random: bool, baseline: bool) -> None:
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.searcher = OptunaSearch(
            distributions(space),
            metric=METRIC,
            mode="max",
            points_to_evaluate=[space.baseline_suggestion()] if baseline else None,
            sampler=RandomSampler(seed=seed) if random else None,
            seed=None if random else seed,
        )
        self.scheduler = ASHAScheduler(metric=METRIC, mode="max", max_t=epochs)
        self._n_asked = 0
        # Ray proposes one trial ahead: before those that run have said more.
        self._ahead = self._ask()

    def _ask(self) -> tuple[int, Mapping[str, Number], int]:
        number = self._n_asked
        self._n_asked += 1
        values = self.searcher.suggest(str(number))
        assert values is not None
        self.scheduler.on_trial_add(None, RayTrial(str(number)))  # type: ignore[arg-type]
        return number, values, 0

    def next_trial(self) -> tuple[int, Mapping[str, Number], int]:
        found, self._ahead = self._ahead, self._ask()
        return found

    def record(self, trial: int, epoch: int, accuracy: float) -> bool:
        result = {METRIC: accuracy, "training_iteration": epoch, "trial_id": str(trial)}
        stand_in = RayTrial(str(trial))
        decision = self.scheduler.on_trial_result(None, stand_in, result)  # type: ignore[arg-type]
        if decision != self.scheduler.STOP:
            self.searcher.on_trial_result(str(trial), result)
            return True
        self.scheduler.on_trial_complete(None, stand_in, result)  # type: ignore[arg-type]
        self.searcher.on_trial_complete(str(trial), result)
        return False


class HandedBack:
    """The trial that leads by the project's ranking, kept up to date result by result.

    Args:
        epochs: of a completed trial.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        # A completed trial is never overtaken by one that is not, and each trial by its own later results only.
        self._completed: tuple[float, int] | None = None
        self._last: dict[int, tuple[int, float]] = {}

    def take_in(self, trial: int, epoch: int, accuracy: float) -> int:
        """The leader's number after this result."""
        if epoch == self._epochs:
            found = (accuracy, -trial)
            self._completed = found if self._completed is None else max(found, self._completed)
        if self._completed is not None:
            return -self._completed[1]
        self._last[trial] = (epoch, accuracy)
        return -max((*last, -number) for number, last in self._last.items())[2]


def replay(arm: Arm, surrogate: Surrogate, seed: int, budget: int) -> Replay:
    """Replay one search.

    Args:
        arm: how it searches.
        surrogate: what trials do.
        seed: of the sampler, of each configuration's noise and of the workers' speed.
        budget: epochs after which it ends.
    """
    if isinstance(arm, OwnArm):
        return drive(OwnSearch.of(arm, surrogate, seed), surrogate, seed, budget, arm.workers)
    space, epochs = surrogate.table.space, surrogate.table.epochs
    return drive(RaySearch(space, epochs, seed, arm.random, arm.baseline), surrogate, seed, budget, arm.workers)


def drive(searcher: Searcher, surrogate: Surrogate, seed: int, budget: int, n_workers: int) -> Replay:
    """Let workers train until the budget is used, an epoch of any trial at a time."""
    speeds = [random.Random(f"{seed}/{worker}") for worker in range(n_workers)]
    runs: dict[int, tuple[Array, float]] = {}
    # When, whose, which trial, which epoch.
    busy: list[tuple[float, int, int, int]] = []
    idle = list(range(n_workers))
    leader = HandedBack(surrogate.table.epochs)
    regret, now, n_completed = np.empty(budget), 0.0, 0
    for n_trained in range(budget):
        while idle and (found := searcher.next_trial()):
            number, values, known = found
            if number not in runs:
                runs[number] = surrogate.run(in_unit_cube(surrogate.table.space, values), seed)
            worker = idle.pop(0)
            heapq.heappush(busy, (now + _epoch_length(speeds[worker]), worker, number, known + 1))
        now, worker, number, epoch = heapq.heappop(busy)
        accuracy = float(runs[number][0][epoch - 1])
        n_completed += epoch == surrogate.table.epochs
        goes_on = searcher.record(number, epoch, accuracy)
        handed_back = leader.take_in(number, epoch, accuracy)
        regret[n_trained] = 100 * (surrogate.best - runs[handed_back][1])
        if goes_on:
            heapq.heappush(busy, (now + _epoch_length(speeds[worker]), worker, number, epoch + 1))
        else:
            idle.append(worker)
    return Replay(regret, len(runs), n_completed)


def _epoch_length(speed: random.Random) -> float:
    return 1 + speed.uniform(-JITTER, JITTER)
