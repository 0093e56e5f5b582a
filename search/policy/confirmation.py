"""Which trials are replicated (trained again with other seeds), and when replication ends. Pure functions.

Replicates separate good configurations from lucky seeds. `replicate_statistics` has the estimates from them.
"""

import math
from collections.abc import Sequence

from search.experiment.history import History, Trial
from search.policy.forecasts import best_first
from search.policy.replicate_statistics import replicate_results
from spaces.schema import Space

# Tied trials get at most so many times `confirm.seeds` replicates.
MOST_TIMES_SEEDS = 3


def candidates(history: History, space: Space) -> list[Trial]:
    """Trials that are replicated, best first: of those that have ended, the best by forecast; the baseline, if it
    completed; and trials whose earlier replicates are tied for the first place.

    If the budget is less than two replicates for each of them, fewer trials take part, but at least two.
    """
    n_runs = budget_epochs(history, space) // space.training.max_epochs
    n_others = min(space.confirm.top, max(1, n_runs // 2 - 1))
    if not space.confirm.top:
        return []
    able = [trial for trial in best_first(history) if trial.can_win and trial.end]
    completed = [trial for trial in able if trial.baseline and trial.status == "completed"]
    baseline = max(completed, key=lambda trial: trial.number, default=None)
    others = [trial for trial in able if trial is not baseline][:n_others]
    chosen = {trial.number for trial in [*others, *([baseline] if baseline else [])]}
    chosen |= {number for number, found in replicate_results(history).items() if found.is_tied}
    return [trial for trial in able if trial.number in chosen] if others else []


def budget_epochs(history: History, space: Space) -> int:
    """Number of epochs that replicates may train: `confirm.budget` times those of the search."""
    return math.floor(space.confirm.budget * history.n_epochs)


def seconds_to_confirm(space: Space) -> float:
    """Seconds of the time budget that are reserved for replicates; 0 without a time budget or replicates."""
    time_s, share = space.search.time_budget_s, space.confirm.budget
    return time_s * share / (1 + share) if time_s and space.confirm.top else 0.0


def next_run(history: History, space: Space) -> tuple[int, int] | None:
    """Trial and block of the next replicate; None if replication is complete, or a running replicate must end first.

    Replicates are dispatched block by block, in each block for the trials that are still in the race, best first. A
    trial stays in the race as long as it is tied for the first place (`ReplicateSummary.is_tied`); after
    `confirm.seeds` blocks, such trials get more blocks within the budget. If one trial is left in the race, replication
    ends. From the third block on, a block starts after all earlier blocks have ended.

    Source: racing as in Maron and Moore, "Hoeffding Races" (NeurIPS 1994), with a t-test for blocks, as in irace
    (López-Ibáñez et al., Operations Research Perspectives 3, 2016), in place of Hoeffding's bound.
    """
    taking_part = candidates(history, space)
    max_epochs = space.training.max_epochs
    # A replicate that was started may still train all its epochs.
    taken = sum(run.n_epochs if run.end else max_epochs for run in history.replicates.values())
    if taken + max_epochs > budget_epochs(history, space):
        return None
    known = {(run.trial, run.block) for run in history.replicates.values()}
    racing = _in_race(taking_part, history)
    first_unfinished = min((run.block for run in history.unfinished_replicates), default=math.inf)
    for block in range(1, MOST_TIMES_SEEDS * space.confirm.seeds + 1):
        if block > max(2, first_unfinished):
            # Their results decide which trials stay in the race.
            return None
        if block > 1 and len(racing) < 2:
            return None
        for trial in taking_part:
            if trial.number in racing and (trial.number, block) not in known:
                return trial.number, block
    return None


def n_replicates_of_tied(history: History, space: Space) -> int:
    """Number of replicates in one more block of the trials that are still tied, as far as the budget allows."""
    racing = _in_race(candidates(history, space), history)
    n_left = budget_epochs(history, space) // space.training.max_epochs - len(history.replicates)
    return max(0, min(len(racing), n_left)) if len(racing) > 1 else 0


def expected_epochs(history_epochs: float, space: Space) -> float:
    """Expected number of epochs of replicates if the search trains `history_epochs` and no trials are tied."""
    if not space.confirm.top or space.search.most_trials < 2:
        return 0.0
    n_runs = math.floor(space.confirm.budget * history_epochs / space.training.max_epochs)
    asked_for = space.confirm.seeds * (min(space.confirm.top, space.search.most_trials - 1) + 1)
    return float(min(n_runs, asked_for) * space.training.max_epochs)


def _in_race(taking_part: Sequence[Trial], history: History) -> set[int]:
    """Numbers of the trials that are tied for the first place, as the leaderboard says it, or have no replicate yet.

    A trial with a diverged replicate is out of the race.
    """
    left = {number for number, found in replicate_results(history).items() if found.n_diverged or not found.is_tied}
    return {trial.number for trial in taking_part} - left
