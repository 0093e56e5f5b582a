"""The state of a running search, and every decision in it. Pure Python: Ray's part is in `search.ray_adapters`."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from search.journal import Journal
from search.records import EndStatus, EpochDone, Event, History, Trial, TrialEnded, TrialStarted
from search.rungs import Rungs, Verdict
from search.study import Proposer
from spaces.errors import InputError
from spaces.parameters import Hyperparameters
from spaces.schema import Space

Observer = Callable[[Event, History], None]


@dataclass(frozen=True, slots=True)
class Assignment:
    """A trial for a worker to train.

    Attributes:
        trial: its number.
        config: the configuration.
        n_epochs_known: epochs whose results are in the journal already; more than 0 after a resume.
    """

    trial: int
    config: Hyperparameters
    n_epochs_known: int


class SearchState:
    """Proposes trials, takes in results and decides who goes on; everything is journaled as it happens.

    A state made from the history of a search that broke off goes on as that search would have: the study,
    the rungs and the unfinished trials all come from the history.

    Args:
        space: what is searched.
        history: so far; grows with the search.
        journal: where events go; None keeps them in memory only.
        observe: called after each event with the history that includes it.
        now: the clock, in seconds since 1970.
    """

    def __init__(
        self,
        space: Space,
        history: History,
        journal: Journal | None = None,
        observe: Observer | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.space = space
        self.history = history
        self._journal = journal
        self._observe = observe
        self._now = now
        self._rungs = Rungs(space.rung_epochs, space.search.reduction_factor)
        verdicts = _replay(history, self._rungs)
        self._proposer = Proposer(space, history)
        for trial in history.unfinished:
            # The search broke off between a result and what follows from it.
            if trial.last:
                self._end_if_due(trial, trial.last, verdicts.get(trial.number))
        self._to_resume = list(history.unfinished)
        self._given_out: set[int] = set()

    @property
    def n_left(self) -> int:
        """Trials that `next_assignment` has still to give out."""
        return len(self._to_resume) + max(0, self.space.search.trials - len(self.history.trials))

    @property
    def n_running(self) -> int:
        """Trials given out that have not ended."""
        return sum(self.history.trials[number].end is None for number in self._given_out)

    def next_assignment(self) -> Assignment | None:
        """What to train next: first what was left unfinished, then new proposals; None when all are given out."""
        if self._to_resume:
            trial = self._to_resume.pop(0)
            self._given_out.add(trial.number)
            return Assignment(trial.number, trial.config, trial.n_epochs)
        number = len(self.history.trials)
        if number >= self.space.search.trials:
            return None
        suggested = self._proposer.propose(number)
        config = self.space.complete(suggested)
        self._happened(TrialStarted(number, suggested, config, baseline=number == 0, at=self._now()))
        self._given_out.add(number)
        return Assignment(number, config, 0)

    def record(self, result: EpochDone) -> bool:
        """Take in an epoch's result.

        Results that are known already, as after a resume from an older checkpoint, change nothing.

        Returns:
            Whether the trial goes on.
        """
        trial = self.history.trials[result.trial]
        if trial.end is None and result.epoch > trial.n_epochs:
            self._happened(result)
            if not result.diverged:
                self._proposer.report(trial.number, result.epoch, result.validation_accuracy)
            verdict = _arrive(self._rungs, trial, result)
            self._end_if_due(trial, result, verdict)
        return trial.end is None

    def fail(self, number: int, reason: str) -> None:
        """Give up on a trial whose worker cannot train it."""
        trial = self.history.trials[number]
        if trial.end is None:
            self._end(trial, "failed", reason)

    def _end_if_due(self, trial: Trial, result: EpochDone, verdict: Verdict | None) -> None:
        if result.diverged:
            self._end(trial, "failed", f"diverged in epoch {result.epoch}: the loss is not finite")
        elif result.epoch >= self.space.training.max_epochs:
            self._end(trial, "completed", "")
        elif verdict and not verdict.passed:
            reason = f"{result.validation_accuracy:.2%} at rung {result.epoch}, below its cutoff {verdict.cutoff:.2%}"
            self._end(trial, "stopped", reason)

    def _end(self, trial: Trial, status: EndStatus, reason: str) -> None:
        self._happened(TrialEnded(trial.number, status, reason, at=self._now()))
        self._proposer.end(trial)

    def _happened(self, event: Event) -> None:
        # First the history, which refuses what contradicts it: the journal must never hold that.
        self.history.apply(event)
        if self._journal:
            self._journal.append(event)
        if self._observe:
            self._observe(event, self.history)


def _arrive(rungs: Rungs, trial: Trial, result: EpochDone) -> Verdict | None:
    value = 0.0 if result.diverged else result.validation_accuracy
    verdict = rungs.arrive(trial.number, result.epoch, value)
    # The baseline goes to the end whatever happens: it is what the winner is compared with.
    return None if trial.baseline else verdict


def _replay(history: History, rungs: Rungs) -> dict[int, Verdict]:
    """Fill `rungs` from `history`.

    Returns:
        For trials whose last result stands at a rung, that rung's verdict as it was.
    """
    verdicts: dict[int, Verdict] = {}
    for result in history.results_in_order:
        trial = history.trials[result.trial]
        verdict = _arrive(rungs, trial, result)
        verdicts.pop(result.trial, None)
        if verdict:
            verdicts[result.trial] = verdict
    return verdicts


def must_fit(space: Space, history: History) -> None:
    """Raise InputError unless every trial of `history` could have come from `space`."""
    for trial in history.trials.values():
        try:
            fits = space.complete(trial.suggested) == trial.config
        except ValueError:
            fits = False
        if not fits:
            raise InputError(
                f"the space was changed since the search began: trial {trial.number} with {dict(trial.suggested)} "
                f"is not of it. Restore experiment.yaml, or start a new search."
            )
