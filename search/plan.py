"""What a search will do, before it does it."""

import math
import os
from dataclasses import dataclass

import torch

from search.estimates import duration_text, expected_epochs
from search.manifest import Device
from spaces.parameters import Fixed
from spaces.schema import Space
from trainable.datasets import TrainingData
from trainable.devices import choose_device, describe_device
from trainable.seeding import RunSeed

N_TIMED_STEPS = 5


@dataclass(frozen=True, slots=True)
class Placement:
    """Where trials run.

    Attributes:
        device: `cpu` or `cuda`.
        description: the device's own name.
        n_cpus, n_gpus: that Ray may hand out.
        trials_at_once: how many share them.
    """

    device: str
    description: str
    n_cpus: int
    n_gpus: int
    trials_at_once: int

    @property
    def resources_per_trial(self) -> dict[str, float]:
        if self.device == "cuda":
            # A trial lies on one GPU: the fullest one decides how large a share can be.
            return {"cpu": 1, "gpu": 1 / math.ceil(self.trials_at_once / self.n_gpus)}
        return {"cpu": 1}

    @property
    def for_manifest(self) -> Device:
        return Device(device=self.device, name=self.description, trials_at_once=self.trials_at_once)


def place(space: Space) -> Placement:
    """Decide where trials run: one a core on a CPU, `trials_per_gpu` a GPU on CUDA.

    Raises:
        InputError: CUDA is asked for and not there.
    """
    device = choose_device(space.resources.device)
    n_cores = count_cores()
    if device == "cuda":
        n_gpus = torch.cuda.device_count()
        at_once = min(n_gpus * space.resources.trials_per_gpu, space.search.trials)
        return Placement(device, describe_device(device), max(n_cores, at_once), n_gpus, at_once)
    wanted = space.resources.trials_at_once
    at_once = min(n_cores if wanted == "auto" else wanted, space.search.trials)
    return Placement(device, describe_device(device), at_once, 0, at_once)


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def epochs_expected(space: Space) -> float:
    return expected_epochs(space.search.trials, space.rung_epochs, space.search.reduction_factor)


def seconds_per_epoch(space: Space, data: TrainingData, placement: Placement) -> float:
    """Time a few steps of the baseline, in this process alone, and scale them to an epoch."""
    from trainable.fit_evaluate import FitEvaluate

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = FitEvaluate(data.train, None, space.baseline, RunSeed(space.search.seed), placement.device)
        step_s = run.median_step_s(N_TIMED_STEPS)
        # A validation image costs about a third of a training image: the forward pass alone.
        n_validation_steps = len(data.validation) / space.baseline.batch_size / 3
        return step_s * (run.steps_per_epoch + n_validation_steps)
    finally:
        torch.set_num_threads(threads)


def plan_text(space: Space, data: TrainingData, placement: Placement, epoch_s: float) -> str:
    """The plan that `--dry-run` prints."""
    epochs = epochs_expected(space)
    total_s = epochs * epoch_s / placement.trials_at_once
    if space.search.time_budget_s is not None:
        total_s = min(total_s, space.search.time_budget_s)
    rungs = ", ".join(str(epoch) for epoch in space.rung_epochs[:-1]) or "none"
    lines = [
        f"space       {space.name}",
        f"data set    {space.dataset.name}: {len(data.train):,} training and {len(data.validation):,} validation "
        f"images of {data.decoded.image_size} x {data.decoded.image_size}, {len(data.decoded.class_names)} classes",
        f"device      {placement.description}, {placement.trials_at_once} trials at once",
        f"trials      {space.search.trials}, the baseline first, at most {space.training.max_epochs} epochs each",
        f"rungs       {rungs}: about one trial in {space.search.reduction_factor} goes on at each",
    ]
    for name, parameter in space.parameters.items():
        kind = "fixed" if isinstance(parameter, Fixed) else type(parameter).__name__.lower()
        yaml = parameter.as_yaml()
        shown = yaml if isinstance(parameter, Fixed) else next(iter(yaml.values()))  # type: ignore[union-attr]
        lines.append(f"  {name:<22}{kind:<12}{shown}   baseline {getattr(space.baseline, name):g}")
    if space.search.time_budget:
        lines.append(f"time budget {space.search.time_budget}")
    lines.append(
        f"cost        about {duration_text(total_s)} and start-up: about {epochs:.0f} epochs in all, "
        f"{epoch_s:.1f} s each by {N_TIMED_STEPS} steps timed now"
    )
    return "\n".join(lines)
