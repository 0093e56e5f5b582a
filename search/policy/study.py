"""The Optuna study of a search, made from its history, and its samplers."""

import contextlib
from datetime import datetime
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.experiment.events import ProposedBy
from search.experiment.history import History, Trial
from search.policy.curve_sampler import is_for_tpe, is_random, proposal
from spaces.parameters import Choice, Hyperparameters, LogUniform, Number, RandInt, Searched, Uniform
from spaces.schema import Sampler, Space
from trainable.files import replacing

STUDY_NAME = "search"

_STATES = {
    "completed": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "diverged": TrialState.FAIL,
    "running": TrialState.RUNNING,
}


class Proposer:
    """Asks Optuna for configurations, and reports their results to it.

    Stopped trials are reported as PRUNED with all their values, and failed ones as FAIL. (Ray's `OptunaSearch`
    reports stopped trials as COMPLETE, and loses those with NaN.) The same history gives the same proposal: the
    sampler is seeded for each trial, from the seed of the experiment and the number of the trial.

    Args:
        space: the searched space.
        history: of the search.
    """

    def __init__(self, space: Space, history: History) -> None:
        self._space = space
        self._history = history
        self._distributions = distributions(space)
        self._study = study_of(space, history)
        self._asked = {
            trial.number: optuna.trial.Trial(self._study, trial._trial_id)
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        }

    def source(self, number: int) -> ProposedBy:
        """Whether the next trial is drawn at random (`prior`) or proposed by the sampler, or by TPE in its place."""
        search = self._space.search
        match search.sampler:
            case "random":
                return "prior"
            case "curves":
                is_prior = is_random(self._space, self._history, number)
                if not is_prior and is_for_tpe(number):
                    return "tpe"
            case _:
                # Optuna's samplers count the trials that they learn from.
                states = (TrialState.COMPLETE, TrialState.PRUNED) if search.sampler == "tpe" else (TrialState.COMPLETE,)
                is_prior = len(self._study.get_trials(deepcopy=False, states=states)) < search.startup_trials
        return "prior" if is_prior else "sampler"

    def propose(self, number: int, given: Hyperparameters | None = None) -> dict[str, Number]:
        """Values of the searched parameters for trial `number`.

        Args:
            number: of the next trial.
            given: configuration that is tried instead of the sampler's; None: the sampler proposes.

        Raises:
            ValueError: `number` is not the number of the next trial.
        """
        name = self._space.search.sampler
        if given:
            self._study.enqueue_trial(self._space.searched_values(given))
        elif name == "curves":
            if self.source(number) == "tpe":
                name = "tpe"
            elif values := proposal(self._space, self._history, number):
                self._study.enqueue_trial(values)
        self._study.sampler = sampler_for(self._space, number, name)
        trial = self._study.ask(self._distributions)
        if trial.number != number:
            raise ValueError(f"trial {number} was asked for, but the study is at trial {trial.number}.")
        self._asked[number] = trial
        return dict(trial.params)

    def report(self, number: int, epoch: int, value: float) -> None:
        """Report the value of the metric after an epoch."""
        self._asked[number].report(value, epoch)

    def end(self, trial: Trial) -> None:
        """Report the end of a trial."""
        asked = self._asked.pop(trial.number)
        for key, value in _user_attributes(trial).items():
            asked.set_user_attr(key, value)
        # Optuna takes the value of a pruned trial from the reported ones; a failed trial has none.
        last = trial.last_value if trial.status == "completed" else None
        self._study.tell(asked, last, state=_STATES[trial.status])


def sampler_for(space: Space, number: int, name: Sampler) -> BaseSampler:
    """A sampler of Optuna, seeded for one trial.

    The study that a sampler reads has all trials, with their accuracies after each epoch as intermediate values.
    `gp` ignores stopped trials: Optuna's `GPSampler` fits completed trials only.

    Args:
        space: the searched space.
        number: number of the trial.
        name: value of `search.sampler`; `curves` draws at random, which is its part of that sampler's proposals.
    """
    seed = int(np.random.SeedSequence([space.search.seed, number]).generate_state(1)[0])
    n_startup = space.search.startup_trials
    match name:
        case "random" | "curves":
            return RandomSampler(seed=seed)
        case "tpe":
            return TPESampler(seed=seed, n_startup_trials=n_startup)
        case "gp":
            return GPSampler(seed=seed, n_startup_trials=n_startup)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The searched parameters as Optuna's distributions, by name."""
    return {name: _distribution(parameter) for name, parameter in space.searched.items()}


def study_of(space: Space, history: History, storage: BaseStorage | None = None) -> optuna.Study:
    """A study that has all trials of `history`, under the same numbers."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction = StudyDirection.MINIMIZE if history.metric.is_loss else StudyDirection.MAXIMIZE
    study = optuna.create_study(storage=storage, study_name=STUDY_NAME, direction=direction)
    for trial in history.trials.values():
        study.add_trial(_frozen(trial, space))
    return study


def write_study(path: Path, space: Space, history: History) -> None:
    """Write `history` as an SQLite file that Optuna and optuna-dashboard open, atomically."""
    # In memory: SQLite would write journal files next to the database, and a `?` in the path would start a query.
    storage = RDBStorage("sqlite://")
    try:
        study_of(space, history, storage)
        with contextlib.closing(storage.engine.raw_connection()) as connection:
            assert connection.driver_connection is not None
            content = connection.driver_connection.serialize()
    finally:
        storage.engine.dispose()
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _distribution(parameter: Searched) -> BaseDistribution:
    match parameter:
        case Uniform(low, high):
            return FloatDistribution(low, high)
        case LogUniform(low, high):
            return FloatDistribution(low, high, log=True)
        case RandInt(low, high):
            return IntDistribution(low, high)
        case Choice(options):
            return CategoricalDistribution(options)


def _frozen(trial: Trial, space: Space) -> FrozenTrial:
    # A trial outside the present space keeps its number, but the sampler ignores it. `contains`: `experiment.yaml` may
    # have been edited after the search ended; the next resume journals the excluded trials.
    is_known = not trial.excluded and space.contains(trial.config)
    frozen = optuna.trial.create_trial(
        state=_STATES[trial.status] if is_known else TrialState.FAIL,
        value=trial.last_value if is_known and trial.status in ("completed", "stopped") else None,
        # Not the suggested values: the space may have been changed since.
        params={name: getattr(trial.config, name) for name in space.searched} if is_known else {},
        distributions=distributions(space) if is_known else {},
        user_attrs=_user_attributes(trial),
        intermediate_values={epoch: trial.metric.value(score) for epoch, score in trial.scores.items() if is_known},
    )
    # Optuna stores local times without a time zone.
    frozen.datetime_start = datetime.fromtimestamp(trial.started_at)
    if frozen.state.is_finished():
        frozen.datetime_complete = datetime.fromtimestamp(trial.end.at if trial.end else trial.started_at)
    return frozen


def _user_attributes(trial: Trial) -> dict[str, str | bool | float]:
    attributes: dict[str, str | bool | float] = {"seconds": round(trial.seconds, 3)}
    if trial.baseline:
        attributes["baseline"] = True
    if trial.proposed_by:
        attributes["proposed_by"] = trial.proposed_by
    if trial.end and trial.end.reason:
        attributes["reason"] = trial.end.reason
    return attributes
