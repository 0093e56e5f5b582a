"""Whether the best trial was the best or was lucky: fresh runs of the best few, and what they show. Pure functions.

Fresh runs come in blocks. The runs of a block share their random streams (weights, order of the images, dropout,
augmentation), so that trials are compared within blocks, where what luck gives one it gives the others too.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.records import History, Run, Trial
from spaces.schema import Space

# A trial leaves the race when it is behind with this probability of error, as in irace.
LEVEL = 0.05
# Tied trials get at most so many times the seeds that all get.
MOST_TIMES_SEEDS = 3
# Of the matrix for adjusted means: 3,000 runs of 100 trials in 900 blocks. A journal from elsewhere may list millions.
MOST_CELLS = 3_000_000


@dataclass(frozen=True, slots=True)
class Fresh:
    """What fresh runs say of one trial.

    Attributes:
        trial: its number.
        n_runs: finished.
        mean: of their validation accuracies, 0 to 1, a diverged run's being 0. Where trials have different numbers
            of runs, as if all had been in all blocks: a block may be easier than another.
        half_width: of the 95 % confidence interval of `mean`; None where one run a trial says nothing of spread.
        is_tied: whether it cannot be told from the trial with the best mean (which is tied with itself).
    """

    trial: int
    n_runs: int
    mean: float
    half_width: float | None
    is_tied: bool


@dataclass(frozen=True, slots=True)
class Lead:
    """How far one trial is ahead of another, in accuracy (0 to 1), over the blocks that both were in.

    Attributes:
        mean: of the differences.
        half_width: of its 95 % confidence interval; None where there are too few runs for one.
    """

    mean: float
    half_width: float | None

    @property
    def is_clear(self) -> bool:
        return self.half_width is not None and abs(self.mean) > self.half_width


def candidates(history: History, space: Space) -> list[Trial]:
    """Who takes part: the baseline, if it completed, and the best completed trials beside it; best first.

    A budget that does not give each of them two runs goes to fewer of them, but to two where there are two.
    """
    n_runs = budget_epochs(history, space) // space.training.max_epochs
    n_others = min(space.confirm.top, max(1, n_runs // 2 - 1))
    if not space.confirm.top:
        return []
    completed = sorted((trial for trial in history.counting if trial.status == "completed"), key=_search_order)
    baseline = max((trial for trial in completed if trial.baseline), key=lambda trial: trial.number, default=None)
    others = [trial for trial in completed if trial is not baseline][:n_others]
    if not others:
        return []
    return sorted([*others, baseline] if baseline else others, key=_search_order)


def budget_epochs(history: History, space: Space) -> int:
    """Epochs that fresh runs may take: a share of those that the search trained."""
    return math.floor(space.confirm.budget * history.n_epochs)


def next_run(history: History, space: Space) -> tuple[int, int] | None:
    """Which trial to train again next, and in which block; None when it is enough.

    Block after block, in each the trials that are still in the race, best first. After the blocks that `seeds`
    asks for, trials that are tied for the first place get more, within the budget. Where only one is left in the
    race the order is clear, and nobody gets any more.

    Source: racing as in Maron and Moore, "Hoeffding Races" (NeurIPS 1994), with the t-test for blocks of irace
    (López-Ibáñez et al., Operations Research Perspectives 3, 2016) in place of Hoeffding's bound.
    """
    taking_part = candidates(history, space)
    max_epochs = space.training.max_epochs
    # One that was started may still take all its epochs.
    taken = sum(run.n_epochs if run.end else max_epochs for run in history.runs.values())
    if taken + max_epochs > budget_epochs(history, space):
        return None
    known = {(run.trial, run.block) for run in history.runs.values()}
    for block in range(1, MOST_TIMES_SEEDS * space.confirm.seeds + 1):
        racing = _in_race(taking_part, history, space)
        if block > 1 and len(racing) < 2:
            return None
        for trial in taking_part:
            if trial.number in racing and (trial.number, block) not in known:
                return trial.number, block
    return None


def most_runs(space: Space) -> int:
    """More fresh runs than these are never made for one set of trials."""
    return MOST_TIMES_SEEDS * space.confirm.seeds * (space.confirm.top + 1)


def fresh_results(history: History) -> dict[int, Fresh]:
    """What fresh runs say, for every trial that has any; the best mean first, ties in mean by number.

    Intervals use the spread within trials, pooled over all of them, by Student's t.
    """
    values = _values_by_trial(history)
    spread, freedom = _spread_within(values.values())
    means = _adjusted_means(history)
    order = sorted(values, key=lambda number: (-means[number], number))
    return {
        number: Fresh(
            trial=number,
            n_runs=len(values[number]),
            mean=means[number],
            half_width=_half_width(spread, freedom, len(values[number])),
            is_tied=not lead(history, order[0], number).is_clear,
        )
        for number in order
    }


def run_sd(history: History) -> float | None:
    """The standard deviation of one configuration's accuracy over fresh runs, pooled over trials; None if unknown."""
    spread, freedom = _spread_within(_values_by_trial(history).values())
    return spread if freedom else None


def lead(history: History, first: int, second: int) -> Lead:
    """How far `first` is ahead of `second`, both trials' numbers."""
    table = _table(history, (first, second))
    if first == second or not len(table):
        return Lead(0.0, None)
    differences = table[:, 0] - table[:, 1]
    # Blocks of all trials say more of the spread than those of the two.
    spread, freedom = _spread_between_blocks(history)
    half_width = _half_width(math.sqrt(2) * spread, freedom, len(differences))
    return Lead(float(differences.mean()), half_width)


def expected_epochs(history_epochs: float, space: Space) -> float:
    """Epochs that fresh runs are expected to take, if the search trains `history_epochs` and nobody is tied."""
    if not space.confirm.top or space.search.most_trials < 2:
        return 0.0
    n_runs = math.floor(space.confirm.budget * history_epochs / space.training.max_epochs)
    asked_for = space.confirm.seeds * (min(space.confirm.top, space.search.most_trials - 1) + 1)
    return float(min(n_runs, asked_for) * space.training.max_epochs)


def _in_race(taking_part: Sequence[Trial], history: History, space: Space) -> set[int]:
    """Trials that are not clearly behind the best of them in the blocks that all of them finished."""
    racing = [trial.number for trial in taking_part]
    while len(racing) > 1:
        table = _table(history, racing)
        if len(table) < 2:
            break
        means = table.mean(axis=0)
        spread, freedom = _residual(table)
        behind = means.max() - means
        error = spread * math.sqrt(2 / len(table))
        worst = int(behind.argmax())
        if behind[worst] <= _student(1 - LEVEL, freedom) * error:
            break
        racing.pop(worst)
    return set(racing)


def _search_order(trial: Trial) -> tuple[float, float, int]:
    assert trial.last is not None
    loss = trial.last.validation_loss
    return (-trial.last.validation_accuracy, loss if math.isfinite(loss) else math.inf, trial.number)


def _value(run: Run) -> float | None:
    """A finished run's accuracy; 0 where it diverged, None where it failed for another reason."""
    if run.end is None or run.end.status == "failed" or run.last is None:
        return None
    return 0.0 if run.end.status == "diverged" else run.last.validation_accuracy


def _values_by_trial(history: History) -> dict[int, list[float]]:
    values: dict[int, list[float]] = {}
    for block in _by_block(history).values():
        for number, value in block.items():
            values.setdefault(number, []).append(value)
    return values


def _by_block(history: History) -> Mapping[int, Mapping[int, float]]:
    blocks: dict[int, dict[int, float]] = {}
    for run in history.runs.values():
        value = _value(run)
        if value is not None and not history.trials[run.trial].set_aside:
            blocks.setdefault(run.block, {})[run.trial] = value
    return blocks


def _adjusted_means(history: History) -> dict[int, float]:
    """Each trial's mean as if it had been in all blocks: trial + block, by least squares; else its plain mean."""
    blocks = _by_block(history)
    cells = [(number, block, value) for block, values in blocks.items() for number, value in values.items()]
    if not cells:
        return {}
    numbers, names = sorted({number for number, _, _ in cells}), sorted(blocks)
    if len(cells) * (len(numbers) + len(names)) > MOST_CELLS:
        return {number: sum(values) / len(values) for number, values in _values_by_trial(history).items()}
    design = np.zeros((len(cells), len(numbers) + len(names)))
    for row, (number, block, _) in enumerate(cells):
        design[row, numbers.index(number)] = design[row, len(numbers) + names.index(block)] = 1
    effects = np.linalg.lstsq(design, np.array([value for _, _, value in cells]), rcond=None)[0]
    of_blocks = effects[len(numbers) :].mean()
    return {number: float(effects[i] + of_blocks) for i, number in enumerate(numbers)}


def _table(history: History, numbers: Sequence[int]) -> NDArray[np.float64]:
    """(blocks, trials) accuracies, of the blocks that all of these trials finished."""
    rows = [
        [values[number] for number in numbers]
        for values in _by_block(history).values()
        if all(number in values for number in numbers)
    ]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(numbers))


def _residual(table: NDArray[np.float64]) -> tuple[float, int]:
    """Standard deviation that neither trial nor block explains, and its degrees of freedom."""
    n_blocks, n_trials = table.shape
    freedom = (n_blocks - 1) * (n_trials - 1)
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    return math.sqrt(float(np.square(rest).sum()) / freedom) if freedom else math.inf, freedom


def _spread_between_blocks(history: History) -> tuple[float, int]:
    """Likewise over all trials, group by group of those that were in the same blocks."""
    blocks = _by_block(history)
    groups: dict[frozenset[int], list[int]] = {}
    for block, values in blocks.items():
        groups.setdefault(frozenset(values), []).append(block)
    total, freedom = 0.0, 0
    for numbers in groups:
        table = np.array([[blocks[block][number] for number in sorted(numbers)] for block in groups[numbers]])
        spread, more = _residual(table) if min(table.shape) > 1 else (0.0, 0)
        total, freedom = total + spread**2 * more, freedom + more
    return (math.sqrt(total / freedom) if freedom else math.inf), freedom


def _spread_within(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    several = [np.array(values) for values in groups if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    total = sum(float(np.square(values - values.mean()).sum()) for values in several)
    return (math.sqrt(total / freedom) if freedom else math.inf), freedom


def _half_width(spread: float, freedom: int, n_values: int) -> float | None:
    return _student(0.975, freedom) * spread / math.sqrt(n_values) if freedom else None


def _student(probability: float, freedom: int) -> float:
    # Imported late: the leaderboard must answer at once.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))
