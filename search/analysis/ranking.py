"""The order of trials, and the sentences about it. Pure functions of the history."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from search.analysis.columns import LEADERBOARD, OF_METRIC, forecast_text, parameter_column, replicate_text
from search.experiment.events import ProposedBy
from search.experiment.history import History, Status, Trial
from search.policy.forecasts import Forecast, best_first, forecasts, search_order
from search.policy.replicate_statistics import Lead, ReplicateSummary, lead, replicate_results
from spaces.counted import counted
from spaces.parameters import Hyperparameters
from trainable.metric import ACCURACY, Metric

RESULT_COLUMNS = tuple(column.name for column in LEADERBOARD)  # keys of a trial's results in CSV and JSON


@dataclass(frozen=True, slots=True)
class Ranked:
    """A row of the leaderboard.

    Attributes:
        rank: from 1.
        trial: number of the trial.
        status: `completed`, `stopped` by ASHA, `failed`, `diverged`, or `running` (not ended yet).
        epochs: number of trained epochs.
        validation_accuracy: after the last epoch, 0 to 1; None before the first epoch, or where the trial diverged.
        validation_balanced_accuracy, validation_macro_f1, validation_loss: after the last epoch; None as above, and
            where the journal is too old to have them.
        search_score: score after the last epoch, by the metric of the search; None as above.
        seconds: wall-clock time of training and validation.
        baseline: whether it is the hand-picked configuration.
        config: all hyperparameters.
        reason: why the trial stopped, failed, diverged or is excluded; empty otherwise.
        excluded: whether the trial lies outside the space as it was changed later.
        audit: whether the trial is an audit trial, which no rung stops.
        proposed_by: origin of the configuration; None in old journals.
        forecast: of the score after the last epoch; None for trials that cannot win (`Trial.can_win`).
        replicates: None without replicates, or before the best trial of the search has some.
        at_chance: whether the mean of its replicates, or else `search_score`, is at most that of guessing.
        metric: of the search.
    """

    rank: int
    trial: int
    status: Status
    epochs: int
    validation_accuracy: float | None
    validation_balanced_accuracy: float | None
    validation_macro_f1: float | None
    validation_loss: float | None
    search_score: float | None
    seconds: float
    baseline: bool
    config: Hyperparameters
    reason: str
    excluded: bool = False
    audit: bool = False
    proposed_by: ProposedBy | None = None
    forecast: Forecast | None = None
    replicates: ReplicateSummary | None = None
    at_chance: bool = False
    metric: Metric = ACCURACY

    @property
    def score(self) -> float | None:
        """The score that decides its rank: the mean of its replicates, or else its forecast or last result."""
        if self.replicates:
            return self.replicates.mean
        return self.forecast.mean if self.forecast else self.search_score

    @property
    def search_text(self) -> str:
        """The metric's value in the search, with the epoch for a trial that has not completed; `–` without one."""
        if self.search_score is None:
            return "–"
        return f"{self.metric.text(self.search_score)}{self.after_text}"

    @property
    def after_text(self) -> str:
        """` after 3 epochs` for a trial that has not completed; empty otherwise."""
        return "" if self.status == "completed" else f" after {counted(self.epochs, 'epoch')}"

    @property
    def result_text(self) -> str:
        """What decides its rank, and what kind of result that is."""
        if self.replicates:
            return f"{replicate_text(self.replicates)} ({counted(self.n_replicates, 'replicate')})"
        return f"{forecast_text(self)} (forecast)" if self.forecast else self.search_text

    @property
    def forecast_mean(self) -> float | None:
        """Value of the metric that the curve model expects after the last epoch."""
        return self.metric.value(self.forecast.mean) if self.forecast else None

    @property
    def forecast_half_width(self) -> float | None:
        return self.forecast.half_width if self.forecast else None

    @property
    def replicate_mean(self) -> float | None:
        """Mean value of the metric over its replicates."""
        return self.metric.value(self.replicates.mean) if self.replicates else None

    @property
    def replicate_accuracy(self) -> float | None:
        """`replicate_mean` of a search by accuracy; None for another metric."""
        return self.replicate_mean if self.metric is ACCURACY else None

    @property
    def replicate_half_width(self) -> float | None:
        return self.replicates.half_width if self.replicates else None

    @property
    def n_replicates(self) -> int:
        return self.replicates.n_runs if self.replicates else 0

    @property
    def tied(self) -> bool:
        """Whether its replicates cannot be distinguished from those of the best trial."""
        return self.replicates is not None and self.replicates.is_tied

    def as_dict(self) -> dict[str, Any]:
        return {**{column.name: column.value_of(self) for column in LEADERBOARD}, "config": self.config.as_dict()}


_OUTSIDE = "outside the space as it was changed later"

WHAT_TO_TRY = (
    "Try other learning rates (`space.lr`), more epochs (`training.max_epochs`) or more images, and look whether the "
    "labels fit the images."
)


def rank(history: History) -> list[Ranked]:
    """All trials, best first.

    1. Trials that were chosen for replicates, by the mean of their replicates.
    2. All others by their forecast, whether they have completed or not, those at chance last (`best_first`); then
       failed and diverged trials; then excluded trials.

    The baseline always gets replicates, as a reference. It stands before the first trial of 1 whose mean is below the
    baseline's mean; without such a trial, before the first trial of 2 whose forecast is at most the baseline's mean.
    """
    ordered, foreseen = best_first(history), forecasts(history)
    replicates = _usable_replicate_results(history, ordered)
    numbers = [*replicates, *(trial.number for trial in ordered if trial.number not in replicates)]
    baseline = _last_baseline(history)
    if baseline in replicates and baseline == numbers[len(replicates) - 1]:
        _move_down(numbers, len(replicates) - 1, replicates[baseline].mean, history)
    chance = history.chance
    return [
        _row(rank, history.trials[number], foreseen.get(number), replicates.get(number), chance)
        for rank, number in enumerate(numbers, 1)
    ]


def leader(ranked: Sequence[Ranked]) -> Ranked | None:
    """The first trial that has completed or was stopped, even at chance; None before one has completed."""
    ended = [row for row in ranked if row.status in ("completed", "stopped") and not row.excluded]
    return ended[0] if any(row.status == "completed" for row in ended) else None


def winner(ranked: Sequence[Ranked]) -> Ranked | None:
    """The leader; None where it is at chance."""
    best = leader(ranked)
    return None if best is None or best.at_chance else best


def n_by_replicates(ranked: Sequence[Ranked]) -> int:
    """Number of rows at the top that are ranked by replicates; 0 where the rows are sorted otherwise."""
    if any(row.rank != position for position, row in enumerate(ranked, 1)):
        return 0
    return next((i for i, row in enumerate(ranked) if row.replicates is None), len(ranked))


@dataclass(frozen=True, slots=True)
class OverBaseline:
    """The winner compared with the baseline.

    Attributes:
        lead: lead of the winner; None where it cannot be told.
        doubt: what limits the lead, or why it is missing; empty for a lead that is clear of 0.
        baseline: row of the baseline; None without a baseline.
    """

    lead: Lead | None
    doubt: str
    baseline: Ranked | None


def over_baseline(history: History, ranked: Sequence[Ranked]) -> OverBaseline | None:
    """Compare the winner with the baseline; None without a winner. Every text about the lead comes from here.

    Args:
        history: of the search.
        ranked: rows, as `rank` gives them.
    """
    best = winner(ranked)
    baseline_number = _last_baseline(history)
    baseline = next((row for row in ranked if row.trial == baseline_number), None)
    if best is None or best.search_score is None:
        return None
    if best.baseline:
        said = best.replicates.mean if best.replicates else best.search_score
        others = [row.search_score for row in ranked if not row.excluded and not row.replicates]
        n_better = sum(score is not None and score > said for score in others)
        what = f"{'lower' if best.metric.is_loss else 'higher'} {best.metric.title}"
        higher = f", though {counted(n_better, 'trial')} had a {what} in the search" if n_better else ""
        return OverBaseline(None, f"It is the baseline: no searched configuration ranks above it{higher}", baseline)
    if best.replicates is None:
        if baseline is None or baseline.status != "completed" or baseline.score is None or best.score is None:
            return OverBaseline(None, "The baseline has not completed", baseline)
        one_seed = Lead(best.score - baseline.score, None, best.metric)
        return OverBaseline(one_seed, "one seed each, on the images that chose it", baseline)
    if baseline is None or baseline.replicates is None:
        return OverBaseline(None, "The baseline has no replicate to compare with", baseline)
    if baseline.replicates.n_diverged:
        return OverBaseline(None, "A replicate of the baseline diverged", baseline)
    ahead = lead(history, best.trial, baseline.trial)
    doubt = "which may be luck" if ahead.half_width is not None else "too few replicates to say how surely"
    return OverBaseline(ahead, "" if ahead.is_clear else doubt, baseline)


def lead_sentence(history: History, ranked: Sequence[Ranked]) -> str:
    """Sentences about the winner, its interval and its lead over the baseline, or about a search without a winner.

    Args:
        history: of the search.
        ranked: rows, as `rank` gives them.
    """
    at_chance = chance_sentence(history, ranked)
    best, over = winner(ranked), over_baseline(history, ranked)
    if best is None or over is None or best.search_score is None:
        if leader(ranked):
            return f"{at_chance} {WHAT_TO_TRY}"
        return f"No trial has completed yet. {at_chance}".rstrip()
    metric = best.metric
    by = "" if metric is ACCURACY else f" by validation {metric.title}"
    foreseen = f" (forecast {forecast_text(best)})" if best.forecast else ""
    said = f"{metric.text(best.search_score)} validation {metric.title}{best.after_text}"
    sentences = [f"Trial {best.trial} leads with {said}{foreseen}."]
    if best.replicates:
        say = f"{counted(best.replicates.n_runs, 'replicate')} {'says' if best.n_replicates == 1 else 'say'}"
        said = f"the search said {best.search_text}, {say} {replicate_text(best.replicates)}"
        sentences = [f"Trial {best.trial} wins{by}: {said}."]
    sentences.append(f"{_lead_text(over)}.")
    tied = [str(row.trial) for row in ranked if row.tied and row.trial != best.trial]
    if tied:
        sentences.append(f"Not distinguishable from it: {'trial' if len(tied) == 1 else 'trials'} {', '.join(tied)}.")
    return " ".join([*sentences, at_chance]).rstrip()


def chance_sentence(history: History, ranked: Sequence[Ranked]) -> str:
    """A sentence about the trials that are at chance; empty without such trials.

    Args:
        history: of the search.
        ranked: rows, as `rank` gives them.
    """
    known = [row for row in ranked if not row.excluded and row.score is not None]
    n_at_chance = sum(row.at_chance for row in known)
    metric, chance = history.metric, history.chance
    if chance is None or not n_at_chance:
        return ""
    bound = f"at {'least' if metric.is_loss else 'most'} {metric.text(chance)}"
    how_many = (
        f"{n_at_chance:,} of {counted(len(known), 'trial')} {'is' if n_at_chance == 1 else 'are'} at chance "
        f"({bound}: a run that {metric.guess} may reach that)"
    )
    best = leader(ranked)
    if best is None or not best.at_chance:
        return f"{how_many}."
    return f"No trial wins: {how_many}, also the best one, trial {best.trial}."


def _lead_text(over: OverBaseline) -> str:
    if over.lead is None or over.baseline is None:
        return over.doubt
    replicates, metric = over.baseline.replicates, over.baseline.metric
    forecast = forecast_text(over.baseline) or over.baseline.search_text
    result = replicate_text(replicates) if replicates else forecast
    points = points_text(over.lead).removeprefix("+")
    doubt = f"; {over.doubt}" if over.doubt else ""
    return f"It is {points} {metric.better} the baseline (trial {over.baseline.trial}, {result}){doubt}"


def points_text(lead: Lead) -> str:
    """`+2.10 ± 0.50 points`, the second figure being half of the 95 % interval, if it is known.

    A lead is positive where the first trial is better, so that a loss which is lower by 0.02 is `+0.0200 nats`.
    """
    metric = lead.metric
    sign = "-" if lead.mean < 0 else "+"
    spread = "" if lead.half_width is None else f" ± {metric.size_text(lead.half_width)}"
    return f"{sign}{metric.size_text(abs(lead.mean))}{spread} {metric.unit}"


def sort_by(ranked: Sequence[Ranked], key: str) -> list[Ranked]:
    """Sort rows by a column or a hyperparameter; rows without a value are last.

    Args:
        ranked: rows.
        key: name of a column or hyperparameter. Columns with `more_is_better` are sorted in descending order.
    """
    column = next((column for column in LEADERBOARD if column.name == key), parameter_column(key))
    known = [row for row in ranked if column.value_of(row) is not None]
    unknown = [row for row in ranked if column.value_of(row) is None]
    is_loss = key in OF_METRIC and any(row.metric.is_loss for row in known)
    return sorted(known, key=column.value_of, reverse=column.more_is_better and not is_loss) + unknown


def _usable_replicate_results(history: History, ordered: Sequence[Trial]) -> dict[int, ReplicateSummary]:
    """Replicate results in their order; empty unless the best of the ended trials has some, by forecast or by result.

    Otherwise, while the first replicates run or after trials were added, a trial would rank first only because better
    trials have no replicates yet. By result, because versions before forecasts chose the best completed trial.
    """
    replicates = replicate_results(history) if history.replicates else {}
    baseline = _last_baseline(history)
    others = [trial for trial in ordered if trial.can_win and trial.end and trial.number != baseline]
    completed = sorted((trial for trial in others if trial.status == "completed"), key=search_order)
    return replicates if any(trial.number in replicates for trial in [*others[:1], *completed[:1]]) else {}


def _last_baseline(history: History) -> int | None:
    """Number of the baseline; of the latest baseline where the space was changed."""
    return max((trial.number for trial in history.trials.values() if trial.baseline), default=None)


def _move_down(numbers: list[int], place: int, score: float, history: History) -> None:
    """Move the number at `place` behind the trials after it that have a higher forecast or, without one, result."""
    foreseen = forecasts(history)

    def is_ahead(trial: Trial) -> bool:
        forecast = foreseen.get(trial.number)
        theirs = forecast.mean if forecast else trial.last_score
        return trial.can_win and theirs is not None and theirs > score

    behind = range(place + 1, len(numbers))
    end = next((i for i in behind if not is_ahead(history.trials[numbers[i]])), len(numbers))
    numbers.insert(end - 1, numbers.pop(place))


def _row(
    position: int,
    trial: Trial,
    forecast: Forecast | None,
    replicates: ReplicateSummary | None,
    chance: float | None,
) -> Ranked:
    last = trial.last if trial.last and not trial.last.diverged else None
    score = replicates.mean if replicates else trial.last_score
    return Ranked(
        rank=position,
        trial=trial.number,
        status=trial.status,
        epochs=trial.n_epochs,
        validation_accuracy=last.validation_accuracy if last else None,
        validation_balanced_accuracy=last.validation_balanced_accuracy if last else None,
        validation_macro_f1=last.validation_macro_f1 if last else None,
        validation_loss=last.validation_loss if last and math.isfinite(last.validation_loss) else None,
        search_score=trial.last_score,
        seconds=trial.seconds,
        baseline=trial.baseline,
        config=trial.config,
        reason=_OUTSIDE if trial.excluded else trial.end.reason if trial.end else "",
        excluded=trial.excluded,
        audit=trial.audit,
        proposed_by=trial.proposed_by,
        forecast=forecast,
        replicates=replicates,
        at_chance=chance is not None and score is not None and score <= chance,
        metric=trial.metric,
    )
