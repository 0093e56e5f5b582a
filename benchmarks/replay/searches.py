"""Replays one search: workers, time and the current best trial. The product's and Ray's own objects decide."""

import heapq
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

import numpy as np
import optuna
from optuna.samplers import RandomSampler

from benchmarks.replay import published
from benchmarks.replay.arms import Arm, OwnArm, space_of
from benchmarks.replay.surrogate import Surrogate
from benchmarks.replay.tables import N_CLASSES, Array, Table, in_unit_cube, read_table, stored_tables
from search.analysis.ranking import leader, rank
from search.experiment.events import EpochDone, MemoryRecalled, SpaceSet, TrialEnded, TrialStarted
from search.experiment.history import History
from search.policy.memory import EarlierSearch, starts
from search.policy.rungs import chance_accuracy
from search.policy.state import SearchState
from search.policy.study import distributions
from search.session.memory import shipped_searches
from spaces import Space
from spaces.parameters import Number
from spaces.schema import SHIPPED

# Epochs of a completed trial.
EPOCHS = 27
# Number of trials at once, unless a command says otherwise.
N_WORKERS = 4
# Largest deviation of an epoch's length, as a share of it.
JITTER = 0.1
# Budget of a search, in trials that are trained to the end, unless a command says otherwise.
N_TRIALS = 40
# Epochs between two rankings, which decide what a search would hand back.
RANKED_EVERY = 27
METRIC = "validation_accuracy"


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """Result of a replayed search.

    Attributes:
        regret: (budget,) regret after each epoch, in points, of the trial that the last ranking hands back.
        n_trials: number of trials that were started.
        n_completed: number of trials that were trained to the end.
    """

    regret: Array
    n_trials: int
    n_completed: int


class Searcher(Protocol):
    """Proposes trials and judges their results.

    Attributes:
        history: of the search, with its space.
    """

    history: History

    def next_trial(self) -> tuple[int, Mapping[str, Number], int] | None:
        """Number, searched values and trained epochs of the next trial for a free worker; None to wait."""

    def record(self, trial: int, epoch: int, accuracy: float) -> bool:
        """Record a result. Returns whether the worker continues the trial."""


class OwnSearch:
    """A search of the project, decided by the same `SearchState` as in `search.run`."""

    def __init__(self, state: SearchState) -> None:
        self.state, self.history = state, state.history

    @classmethod
    def of(cls, arm: OwnArm, surrogate: Surrogate, seed: int) -> "OwnSearch":
        table = surrogate.table
        space = space_of(arm, table.space, table.epochs, seed)
        history = _empty_history(space, table)
        if arm.memory != "none":
            memory = other_searches(table.name, sign=-1 if arm.memory == "wrong" else 1)
            sources = [one.name for one in memory]
            history.apply(MemoryRecalled(sources, starts(space, memory), 0.0))
        return cls(SearchState(space, history, now=lambda: 0.0))

    def next_trial(self) -> tuple[int, Mapping[str, Number], int] | None:
        assignment = self.state.next_assignment()
        if assignment is None:
            return None
        trial = self.state.history.trials[assignment.number]
        return trial.number, trial.suggested, trial.n_epochs

    def record(self, trial: int, epoch: int, accuracy: float) -> bool:
        return self.state.record(_epoch_done(trial, epoch, accuracy))


def other_searches(table: str, sign: int) -> list[EarlierSearch]:
    """The shipped searches on other images than a table's, with their scores times `sign`."""
    images = table.split("-")[0]
    found = [one for one in shipped_searches() if not one.name.startswith(f"{SHIPPED}:{images}")]
    return [replace(one, scores=sign * one.scores) for one in found]


def _epoch_done(trial: int, epoch: int, accuracy: float) -> EpochDone:
    # The loss only orders trials of equal accuracy, and the tables hold accuracies only.
    loss = 1 - accuracy
    return EpochDone(trial, epoch, 0.0, loss, accuracy, loss, accuracy, 1.0, 0.0, 0.0)


def _empty_history(space: Space, table: Table) -> History:
    return History([SpaceSet(space.as_dict(), [], 0.0)], chances_of(table))


def chances_of(table: Table) -> dict[str, float]:
    """Highest accuracy by chance in a real search, for equally frequent classes."""
    return {"accuracy": chance_accuracy(np.arange(table.n_images) % N_CLASSES)}


@dataclass(frozen=True, slots=True)
class RayTrial:
    """The attributes of a trial that Ray's scheduler reads."""

    trial_id: str


class RaySearch:
    """`OptunaSearch` and `ASHAScheduler`, called in the order in which Ray's controller calls them.

    Args:
        table: whose space is searched.
        seed: seed of Optuna's sampler.
        random: whether Optuna's random sampler replaces the default sampler.
    """

    def __init__(self, table: Table, seed: int, random: bool) -> None:
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.searcher = OptunaSearch(
            distributions(table.space),
            metric=METRIC,
            mode="max",
            sampler=RandomSampler(seed=seed) if random else None,
            seed=None if random else seed,
        )
        self.scheduler = ASHAScheduler(metric=METRIC, mode="max", max_t=table.epochs)
        # What is handed back is decided by the project's ranking in all arms.
        self.history = _empty_history(space_of(OwnArm("ray"), table.space, table.epochs, seed), table)
        self._table, self._n_asked = table, 0
        # Ray asks for one trial ahead, before it knows further results of the running trials.
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
        number, values, _ = found
        self.history.apply(TrialStarted(number, dict(values), self._table.space.complete(values), False, 0.0, False))
        return found

    def record(self, trial: int, epoch: int, accuracy: float) -> bool:
        self.history.apply(_epoch_done(trial, epoch, accuracy))
        result = {METRIC: accuracy, "training_iteration": epoch, "trial_id": str(trial)}
        stand_in = RayTrial(str(trial))
        decision = self.scheduler.on_trial_result(None, stand_in, result)  # type: ignore[arg-type]
        if decision != self.scheduler.STOP:
            self.searcher.on_trial_result(str(trial), result)
            return True
        self.history.apply(TrialEnded(trial, "completed" if epoch == self._table.epochs else "stopped", "", 0.0))
        self.scheduler.on_trial_complete(None, stand_in, result)  # type: ignore[arg-type]
        self.searcher.on_trial_complete(str(trial), result)
        return False


def replay(arm: Arm, surrogate: Surrogate, seed: int, budget: int, n_workers: int = N_WORKERS) -> Replay:
    """Replay one search.

    Args:
        arm: kind of search.
        surrogate: source of the learning curves.
        seed: seed of the sampler, of each configuration's noise and of the workers' speed.
        budget: total epochs of all trials, after which the search ends.
        n_workers: number of trials at once.
    """
    if isinstance(arm, OwnArm):
        return drive(OwnSearch.of(arm, surrogate, seed), surrogate, seed, budget, n_workers)
    return drive(RaySearch(surrogate.table, seed, arm.random), surrogate, seed, budget, n_workers)


def drive(searcher: Searcher, surrogate: Surrogate, seed: int, budget: int, n_workers: int) -> Replay:
    """Replay until the budget is used, one epoch of one trial at a time, in the order in which epochs end."""
    speeds = [random.Random(f"{seed}/{worker}") for worker in range(n_workers)]
    runs = {
        number: surrogate.run(in_unit_cube(surrogate.table.space, trial.suggested), seed)
        for number, trial in searcher.history.trials.items()
    }
    # End of the epoch, worker, trial, epoch.
    busy: list[tuple[float, int, int, int]] = []
    idle = list(range(n_workers))
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
        if n_trained % RANKED_EVERY == 0 or n_trained == budget - 1:
            handed_back = handed_back_of(searcher.history)
        regret[n_trained] = 100 * (surrogate.best - runs[handed_back][1])
        if goes_on:
            heapq.heappush(busy, (now + _epoch_length(speeds[worker]), worker, number, epoch + 1))
        else:
            idle.append(worker)
    return Replay(regret, len(runs), n_completed)


def handed_back_of(history: History) -> int:
    """The leader of the project's ranking; before a trial has completed, the first of that ranking."""
    ranked = rank(history)
    return (leader(ranked) or ranked[0]).trial


def _epoch_length(speed: random.Random) -> float:
    return 1 + speed.uniform(-JITTER, JITTER)


def table_names() -> list[str]:
    """Names of the stored tables and of that of the published search."""
    return [*stored_tables(), published.NAME]


def table_of(name: str) -> Table:
    """The table of one of `table_names`."""
    return published.published_table() if name == published.NAME else read_table(name).first_epochs(EPOCHS)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What all searches of a benchmark have in common.

    Attributes:
        model: name of the surrogate's regression, one of `MODELS`.
        n_workers: number of trials at once.
        n_trials: budget, in trials that are trained to the end.
        correlation: correlation of the noise of two epochs of a run, 0 to 1; None for that of the table.
    """

    model: str
    n_workers: int = N_WORKERS
    n_trials: int = N_TRIALS
    correlation: float | None = None


@cache
def surrogate_of(table: str, model: str, correlation: float | None = None) -> Surrogate:
    """The surrogate of a stored table, fitted once in each process; `correlation` as in `Conditions`."""
    return Surrogate(table_of(table), model, correlation)


# Here and not in the command: other processes cannot unpickle functions of `__main__`.
def replay_seeds(table: str, arm: Arm, seeds: Sequence[int], conditions: Conditions) -> list[Replay]:
    """Replay searches of one arm on one stored table, in the order of `seeds`."""
    surrogate = surrogate_of(table, conditions.model, conditions.correlation)
    budget = conditions.n_trials * surrogate.table.epochs
    return [replay(arm, surrogate, seed, budget, conditions.n_workers) for seed in seeds]
