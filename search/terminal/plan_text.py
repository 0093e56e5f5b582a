"""The text of a dry run, and the limits of a search in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from search.analysis.cost import Expected
from search.analysis.plan_cost import PlanCost, audit_epochs
from search.experiment.events import MemoryRecalled
from search.experiment.manifest import Device
from search.policy import budget, confirmation
from spaces.counted import counted, duration_text, size_text
from spaces.parameters import Fixed
from spaces.printable import printable
from spaces.schema import Space
from trainable.environment import cache_root
from trainable.metric import METRICS

if TYPE_CHECKING:
    from trainable.data.datasets import TrainingData

# Shown with its cost where audits are off.
USUAL_AUDIT_FRACTION = 0.1


def plan_text(
    space: Space,
    data: TrainingData,
    device: Device,
    slots: str,
    cost: PlanCost,
    measured: Sequence[tuple[int, float]] = (),
    recalled: MemoryRecalled | None = None,
) -> str:
    """The plan that `--dry-run` prints.

    Args:
        slots: what the trials share, such as `2 GPUs`.
        measured: numbers of trials on one GPU, and their images per second together.
        recalled: configurations of earlier searches.
    """
    trials = limits_text(space, cost.expected)
    lines = [
        f"space       {printable(space.name)}",
        f"data set    {space.dataset.name}: {len(data.train):,} training and {len(data.validation):,} validation "
        f"images of {data.decoded.image_size} x {data.decoded.image_size}, {len(data.decoded.class_names)} classes",
        *_epoch_lines(data),
        f"device      {device.name}, {counted(device.trials_at_once, 'trial')} at once",
        *(f"            {counted(n, 'trial')} on one GPU: {rate:,.0f} images/s together" for n, rate in measured),
        f"precision   {device.precision}: {device.precision_reason}",
        f"trials      {trials.removesuffix(' trials')}, the baseline first, at most {space.training.max_epochs} "
        f"epochs each",
        f"ranked by   validation {METRICS[space.search.metric].title}",
        *_first_lines(space, recalled),
        _sampler_line(space),
        _asha_line(space),
        *audit_lines(space, cost.expected),
        *_parameter_lines(space),
        *_budget_lines(space, device.trials_at_once),
        f"cost        about {duration_text(cost.total_s)} on {slots}: {trials}, at most "
        f"{space.training.max_epochs} epochs, {epochs_text(space, cost.expected)}",
        f"            ({cost.epoch_s:.1f} s an epoch by steps timed now; start-up comes on top)",
        f"disk        at most {size_text(cost.max_bytes)} in the experiment's folder, and "
        f"{size_text(data.decoded.images.nbytes)} of decoded images in {cache_root()}, for all experiments",
    ]
    return "\n".join(lines)


def limits_text(space: Space, expected: Expected | None) -> str:
    """The number of trials in words: `32 trials`, `about 57 trials`, or `trials until the time is up`."""
    if expected is None:
        return "trials until the time is up"
    if space.search.trials == expected.trials:
        return f"{expected.trials} trials"
    return f"about {expected.trials} trials"


def epochs_text(space: Space, expected: Expected) -> str:
    """The expected number of epochs of trials and replicates together."""
    replicate_epochs = confirmation.expected_epochs(expected.epochs, space)
    n_runs = round(replicate_epochs / space.training.max_epochs)
    of_runs = f" ({replicate_epochs:.0f} of them in {counted(n_runs, 'replicate')} of the best and the baseline)"
    if not replicate_epochs:
        return f"about {expected.epochs:.0f} epochs in all"
    return f"about {expected.epochs + replicate_epochs:.0f} epochs in all{of_runs}"


def audit_lines(space: Space, expected: Expected) -> list[str]:
    """What audit trials cost, or would cost; no line where that is nothing."""
    if not space.search.audit_fraction:
        more = audit_epochs(space, expected.trials, USUAL_AUDIT_FRACTION)
        text = f"off; search.audit_fraction={USUAL_AUDIT_FRACTION:g} would take about {more:.0f} epochs more"
        return [f"audits      {text}"] if round(more) else []
    n, n_searched = expected.n_audits, expected.trials - 1
    if not n:
        text = f"no trial of {n_searched}, as the seed has it: raise it, or search.trials"
    else:
        more = audit_epochs(space, expected.trials, space.search.audit_fraction)
        text = f"{n} of {n_searched} trials are trained to the end whatever a rung says: about {more:.0f} epochs more"
    return [f"audits      {space.search.audit_fraction:g}: {text}"]


def _epoch_lines(data: TrainingData) -> list[str]:
    n_images, epoch_images = len(data.train), data.train.epoch_images
    if epoch_images == n_images:
        return []
    return [f"epoch       {epoch_images:,} images, {epoch_images / n_images:.2f} of a pass over the training images"]


def memory_text(n_configs: int, sources: Sequence[str]) -> str:
    """What is taken from earlier searches, in words."""
    return f"{counted(n_configs, 'configuration')} that did well in {', '.join(map(printable, sources))}"


def _first_lines(space: Space, recalled: MemoryRecalled | None) -> list[str]:
    lines = []
    if space.try_first:
        lines.append(f"try first   {counted(len(space.try_first), 'configuration')}, right after the baseline")
    if recalled:
        then = "after those" if space.try_first else "right after the baseline"
        lines.append(f"memory      {memory_text(len(recalled.configs), recalled.sources)}, {then}")
    return lines


def _sampler_line(space: Space) -> str:
    search = space.search
    if search.startup_trials < 2 or search.sampler == "random":
        return f"proposals   {search.sampler}"
    sampler = "curves and tpe in turn" if search.sampler == "curves" else search.sampler
    return f"proposals   random up to trial {search.startup_trials - 1}, then {sampler}"


def _asha_line(space: Space) -> str:
    rungs = ", ".join(str(epoch) for epoch in space.rung_epochs[:-1]) or "none"
    match space.search.asha:
        case "off":
            return "rungs       none: every trial is trained to the end"
        case "adaptive" if len(space.rung_epochs) > 2:
            early = ", ".join(str(epoch) for epoch in space.rung_epochs[:-2])
            return (
                f"rungs       {space.rung_epochs[-2]}: about one trial in {space.search.reduction_factor} goes on; "
                f"at {early} too, once they order the trials alike"
            )
        case _:
            return f"rungs       {rungs}: about one trial in {space.search.reduction_factor} goes on at each"


def _parameter_lines(space: Space) -> list[str]:
    lines = []
    for name, parameter in space.parameters.items():
        kind = "fixed" if isinstance(parameter, Fixed) else type(parameter).__name__.lower()
        yaml = parameter.as_yaml()
        shown = yaml if isinstance(parameter, Fixed) else next(iter(yaml.values()))  # type: ignore[union-attr]
        lines.append(f"  {name:<22}{kind:<12}{shown}   baseline {getattr(space.baseline, name):g}")
    return lines


def _budget_lines(space: Space, trials_at_once: int) -> list[str]:
    search, lines = space.search, []
    if search.epoch_budget is not None:
        over = budget.most_epochs_over(space, trials_at_once)
        lines.append(
            f"epochs      {search.epoch_budget}: no trial is started when so many are trained; those that run then "
            f"go on, at most {over} epochs more"
        )
    if search.time_budget:
        lines.append(f"time budget {search.time_budget}")
    return lines
