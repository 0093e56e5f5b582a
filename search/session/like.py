"""Starts a search from the best configurations of an earlier one (`search.run --like NAME`)."""

from dataclasses import replace

from search.analysis.ranking import Ranked, rank
from search.experiment.folder import Experiment
from search.experiment.manifest import Like
from spaces.errors import InputError
from spaces.parameters import Choice, Fixed, Hyperparameters, Number, Parameter
from spaces.printable import printable
from spaces.schema import Space

N_TAKEN = 3


def like(space: Space, earlier: Experiment) -> tuple[Space, Like]:
    """`space` with the best configurations of `earlier` at the end of `try_first`; and what was taken and changed.

    These are the first three completed trials of its leaderboard, without the baseline: by replicates, and then by
    forecasts. Values are fitted to the new space, and the schedule to its epochs.

    Raises:
        InputError: no trial of `earlier` has completed above chance.
    """
    ranked = rank(earlier.history())
    sound = [row for row in ranked if row.status == "completed" and not (row.excluded or row.at_chance or row.baseline)]
    best = sound[:N_TAKEN]
    if not best:
        raise InputError(
            f"--like is {earlier.name}, but none of its searched configurations has completed above chance. Finish it, "
            f"or leave --like out."
        )
    stretched = space.training.max_epochs / earlier.space.training.max_epochs
    fitted = [_fitted(row, space, stretched) for row in best]
    listed = dict.fromkeys((*space.try_first, *(config for config, _ in fitted)))
    listed.pop(space.baseline, None)
    found = Like(
        experiment=earlier.name,
        trials=[row.trial for row in best],
        changes=[change for _, changes in fitted for change in changes],
    )
    return replace(space, try_first=tuple(listed)), found


def like_lines(found: Like) -> list[str]:
    """What was taken, and each changed value, for the plan and the start of a search."""
    trials = ", ".join(map(str, found.trials))
    return [f"tried first: trials {trials} of {printable(found.experiment)}, its best", *found.changes]


def _fitted(row: Ranked, space: Space, stretched: float) -> tuple[Hyperparameters, list[str]]:
    """The configuration of a trial in `space`, and a sentence about each value that is another there."""
    values: dict[str, Number] = {}
    changes = []
    for name, value in row.config.as_dict().items():
        parameter = space.searched.get(name, Fixed(getattr(space.baseline, name)))
        there: Number = max(1, round(value * stretched)) if name == "step_size" else value
        values[name] = _nearest(there, parameter)
        if values[name] == value:
            continue
        why = "it is not searched here" if isinstance(parameter, Fixed) else "the range here ends there"
        if values[name] == there:
            why = f"a trial has {stretched:.3g} times as many epochs here"
        changes.append(f"`{name}` of trial {row.trial} is {values[name]:.4g} instead of {value:.4g}: {why}")
    return Hyperparameters.from_mapping(values), changes


def _nearest(value: Number, parameter: Parameter) -> Number:
    """The value of `parameter` that is nearest to `value`."""
    match parameter:
        case Fixed(fixed):
            return fixed
        case Choice(options):
            return min(options, key=lambda option: abs(option - value))
        case _:
            return min(max(value, parameter.low), parameter.high)
