"""What a search will do, before it does it."""

import math
import time
from dataclasses import dataclass

import torch

from search.cluster import count_cores
from search.estimates import duration_text, expected_epochs
from search.manifest import Device
from spaces.parameters import Fixed
from spaces.schema import Space
from trainable.compute import Compute, choose_precision
from trainable.datasets import ImageSet, TrainingData
from trainable.devices import choose_device, describe_device
from trainable.fit_evaluate import FitEvaluate
from trainable.seeding import RunSeed

N_TIMED_STEPS = 5
N_TIMED_IMAGES = 128


@dataclass(frozen=True, slots=True)
class Placement:
    """Where trials run.

    Attributes:
        compute: device and precision.
        precision_reason: why that one, in words.
        description: the device's own name.
        n_cpus, n_gpus: that trials share.
        trials_at_once: how many share them.
    """

    compute: Compute
    precision_reason: str
    description: str
    n_cpus: int
    n_gpus: int
    trials_at_once: int

    @property
    def resources_per_trial(self) -> dict[str, float]:
        if self.compute.device_type == "cuda":
            # A trial lies on one GPU: the fullest one decides how large a share can be.
            gpu = 1 / math.ceil(self.trials_at_once / self.n_gpus)
            return {"cpu": min(1, self.n_cpus / self.trials_at_once), "gpu": gpu}
        return {"cpu": 1}

    @property
    def places(self) -> str:
        """What the trials share, in words."""
        if self.n_gpus:
            return f"{self.n_gpus} GPU" if self.n_gpus == 1 else f"{self.n_gpus} GPUs"
        return f"{self.n_cpus} core" if self.n_cpus == 1 else f"{self.n_cpus} cores"

    @property
    def for_manifest(self) -> Device:
        return Device(
            device=self.compute.device,
            name=self.description,
            trials_at_once=self.trials_at_once,
            precision=self.compute.precision,
            precision_reason=self.precision_reason,
        )


def place(space: Space, began: Device | None = None) -> Placement:
    """Decide where trials run: one a core on a CPU, `trials_per_gpu` a GPU on CUDA.

    Args:
        space: what is searched.
        began: of a search that is gone on with. Its precision is kept, so that its trials compare.

    Raises:
        InputError: CUDA is asked for and not there.
    """
    device = choose_device(space.resources.device)
    precision, reason = choose_precision(began.precision if began else space.training.precision, device)
    compute = Compute(device, precision)
    reason = "as the search began" if began else reason
    n_cores = count_cores()
    if device == "cuda":
        n_gpus = torch.cuda.device_count()
        at_once = min(n_gpus * space.resources.trials_per_gpu, space.search.trials)
        return Placement(compute, reason, describe_device(device), n_cores, n_gpus, at_once)
    wanted = space.resources.trials_at_once
    at_once = min(n_cores if wanted == "auto" else wanted, space.search.trials)
    return Placement(compute, reason, describe_device(device), at_once, 0, at_once)


def epochs_expected(space: Space) -> float:
    return expected_epochs(space.search.trials, space.rung_epochs, space.search.reduction_factor)


def seconds_per_epoch(space: Space, data: TrainingData, placement: Placement) -> float:
    """Time a few steps of the baseline, in this process alone, and scale them to an epoch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = FitEvaluate(data.train, None, space.baseline, RunSeed(space.search.seed), placement.compute)
        training_s = run.median_step_s(N_TIMED_STEPS) * run.steps_per_epoch
        sample = ImageSet(data.decoded, data.validation.rows[:N_TIMED_IMAGES])
        return training_s + _evaluation_s(run, sample) * len(data.validation) / len(sample)
    finally:
        torch.set_num_threads(threads)


def _evaluation_s(run: FitEvaluate, images: ImageSet) -> float:
    run.test(images)
    started_s = time.perf_counter()
    run.test(images)
    return time.perf_counter() - started_s


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
        f"precision   {placement.compute.precision}: {placement.precision_reason}",
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
        f"cost        about {duration_text(total_s)} on {placement.places}: {space.search.trials} trials, at most "
        f"{space.training.max_epochs} epochs, about {epochs:.0f} epochs in all"
    )
    lines.append(f"            ({epoch_s:.1f} s an epoch by {N_TIMED_STEPS} steps timed now; start-up comes on top)")
    return "\n".join(lines)
