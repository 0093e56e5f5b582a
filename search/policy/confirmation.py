"""Whether the best trial was the best or was lucky: who is trained again with fresh seeds, and when it is enough.

Pure functions. What the runs say is in `replicate_statistics`.
"""

import math
from collections.abc import Sequence

from search.experiment.history import History, Trial
from search.policy.order import search_order
from search.policy.replicate_statistics import diverged, leaders
from spaces.schema import Space

# A trial leaves the race when it is behind with this probability of error, as in irace.
LEVEL = 0.05
# Tied trials get at most so many times the seeds that all get.
MOST_TIMES_SEEDS = 3


def candidates(history: History, space: Space) -> list[Trial]:
    """Who takes part: the baseline, if it completed, and the best completed trials beside it; best first.

    A budget that does not give each of them two runs goes to fewer of them, but to two where there are two.
    """
    n_runs = budget_epochs(history, space) // space.training.max_epochs
    n_others = min(space.confirm.top, max(1, n_runs // 2 - 1))
    if not space.confirm.top:
        return []
    completed = sorted((trial for trial in history.counting if trial.status == "completed"), key=search_order)
    baseline = max((trial for trial in completed if trial.baseline), key=lambda trial: trial.number, default=None)
    others = [trial for trial in completed if trial is not baseline][:n_others]
    if not others:
        return []
    return sorted([*others, baseline] if baseline else others, key=search_order)


def budget_epochs(history: History, space: Space) -> int:
    """Epochs that replicates may take: a share of those that the search trained."""
    return math.floor(space.confirm.budget * history.n_epochs)


def seconds_to_confirm(space: Space) -> float:
    """Of a time budget, how much is kept for replicates: their share of what trials get; 0 without either."""
    time_s, share = space.search.time_budget_s, space.confirm.budget
    return time_s * share / (1 + share) if time_s and space.confirm.top else 0.0


def next_run(history: History, space: Space) -> tuple[int, int] | None:
    """Which trial to train again next, and in which block; None when it is enough, or when runs must end first.

    Block after block, in each the trials that are still in the race, best first. After the blocks that `seeds`
    asks for, trials that are tied for the first place get more, within the budget. Where only one is left in the
    race the order is clear, and nobody gets any more. From the third block on, a block is given out when those before
    it have ended.

    Source: racing as in Maron and Moore, "Hoeffding Races" (NeurIPS 1994), with the t-test for blocks of irace
    (López-Ibáñez et al., Operations Research Perspectives 3, 2016) in place of Hoeffding's bound.
    """
    taking_part = candidates(history, space)
    max_epochs = space.training.max_epochs
    # One that was started may still take all its epochs.
    taken = sum(run.n_epochs if run.end else max_epochs for run in history.replicates.values())
    if taken + max_epochs > budget_epochs(history, space):
        return None
    known = {(run.trial, run.block) for run in history.replicates.values()}
    racing = _in_race(taking_part, history)
    first_unfinished = min((run.block for run in history.unfinished_replicates), default=math.inf)
    for block in range(1, MOST_TIMES_SEEDS * space.confirm.seeds + 1):
        if block > max(2, first_unfinished):
            # Who goes on is decided by what they will say.
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


def most_runs(space: Space) -> int:
    """More replicates than these are never made for one set of trials."""
    return MOST_TIMES_SEEDS * space.confirm.seeds * (space.confirm.top + 1)


def expected_epochs(history_epochs: float, space: Space) -> float:
    """Epochs that replicates are expected to take, if the search trains `history_epochs` and nobody is tied."""
    if not space.confirm.top or space.search.most_trials < 2:
        return 0.0
    n_runs = math.floor(space.confirm.budget * history_epochs / space.training.max_epochs)
    asked_for = space.confirm.seeds * (min(space.confirm.top, space.search.most_trials - 1) + 1)
    return float(min(n_runs, asked_for) * space.training.max_epochs)


def _in_race(taking_part: Sequence[Trial], history: History) -> set[int]:
    """Trials that are not clearly behind the best of them; one that diverged once is."""
    return leaders(history, {trial.number for trial in taking_part} - diverged(history), LEVEL)
