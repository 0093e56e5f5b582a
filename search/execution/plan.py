"""The resource plan of a search: device, precision and slots of its trials; and timing of the baseline."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

from search.execution.gpu_sharing import Sharing, choose_share, measure_sharing, wait_for
from search.experiment.manifest import Device
from search.processes.helper_pool import count_cores
from spaces.counted import counted
from spaces.parameters import Hyperparameters
from spaces.schema import Dataset, Space
from trainable.compute import Compute, choose_compute, describe_device
from trainable.data.datasets import ImageSet, TrainingData, open_training_data
from trainable.fit_evaluate import FitEvaluate
from trainable.network.model import DepthwiseSeparableNet, count_parameters
from trainable.seeding import RunSeed

# Ray rounds fractions of a resource to 1 / RAY_PARTS; rounded up, the last trial would find no slot.
RAY_PARTS = 10_000
TOKEN_CPU = 1 / RAY_PARTS
N_TIMED_STEPS = 5
# Steps between two waits for the GPU; training waits once an epoch.
STEPS_PER_WAIT = 20
N_TIMED_IMAGES = 128
# Running statistics, names and settings.
CHECKPOINT_EXTRA_BYTES = 50_000
# The forward pass alone, without gradients.
IMAGES_EVALUATED_PER_TRAINED = 4


@dataclass(frozen=True, slots=True)
class ResourcePlan:
    """Where trials run.

    Attributes:
        compute: device and precision.
        precision_reason: reason of the choice, in words.
        description: name of the device.
        n_cpus, n_gpus: cores and GPUs that trials share.
        trials_at_once: number of slots.
        measured: throughput of several trials on one GPU, where that was measured.
    """

    compute: Compute
    precision_reason: str
    description: str
    n_cpus: int
    n_gpus: int
    trials_at_once: int
    measured: tuple[Sharing, ...] = ()

    @property
    def resources_per_trial(self) -> dict[str, float]:
        if self.compute.device_type == "cuda":
            # A trial uses one GPU: the fullest GPU decides the share.
            share = math.ceil(self.trials_at_once / self.n_gpus)
            # The GPU is the limit; Ray's count of CPUs must not be one.
            return {"cpu": TOKEN_CPU, "gpu": math.floor(RAY_PARTS / share) / RAY_PARTS}
        return {"cpu": 1}

    @property
    def trials_side_by_side(self) -> int:
        """Number of trials that do not slow each other down."""
        return self.trials_at_once if self.n_gpus else min(self.trials_at_once, self.n_cpus)

    @property
    def slots(self) -> str:
        """The shared resources in words, such as `2 GPUs`."""
        if self.n_gpus:
            return counted(self.n_gpus, "GPU")
        return counted(self.n_cpus, "core")

    @property
    def for_manifest(self) -> Device:
        return Device(
            device=self.compute.device,
            name=self.description,
            trials_at_once=self.trials_at_once,
            precision=self.compute.precision,
            precision_reason=self.precision_reason,
        )


def plan_resources(space: Space, data: TrainingData, began: Device | None = None) -> ResourcePlan:
    """Plan where trials run: one trial per core on a CPU, `trials_per_gpu` per GPU on CUDA.

    Args:
        space: what is searched.
        data: images on which trials are timed, where the share of a GPU is measured.
        began: device of the first session, for a resumed search. Its precision is kept, so that trials compare.

    Raises:
        InputError: CUDA is requested and not available.
    """
    precision = began.precision if began else space.training.precision
    compute, reason = choose_compute(space.resources.device, precision)
    reason = "as the search began" if began else reason
    name, n_cores = describe_device(compute.device), count_cores()
    if compute.device_type == "cuda":
        n_gpus = torch.cuda.device_count()
        share, measured = _trials_per_gpu(space, data, compute, n_gpus)
        at_once = min(n_gpus * share, space.search.most_trials)
        return ResourcePlan(compute, reason, name, n_cores, n_gpus, at_once, measured)
    wanted = space.resources.trials_at_once
    at_once = min(n_cores if wanted == "auto" else wanted, space.search.most_trials)
    return ResourcePlan(compute, reason, name, n_cores, 0, at_once)


def _trials_per_gpu(space: Space, data: TrainingData, compute: Compute, n_gpus: int) -> tuple[int, tuple[Sharing, ...]]:
    if space.resources.trials_per_gpu != "auto":
        return space.resources.trials_per_gpu, ()
    # Each trial keeps a core busy; the number of trials is a limit too.
    most = max(1, min(count_cores() // n_gpus, math.ceil(space.search.most_trials / n_gpus)))
    if most == 1:
        return 1, ()
    make_training = partial(baseline_training, data.decoded.folder, space.dataset, space.baseline, compute)
    share, measured = choose_share(partial(measure_sharing, make_training=make_training, device=compute.device), most)
    return share, tuple(measured)


def baseline_training(
    decoded_folder: Path, dataset: Dataset, hyperparameters: Hyperparameters, compute: Compute
) -> Callable[[], int]:
    """Build a training of the baseline in this process, to be timed.

    Returns:
        Each call trains `STEPS_PER_WAIT` steps and returns the number of their images.
    """
    n_images = STEPS_PER_WAIT * hyperparameters.batch_size
    images = replace(open_training_data(decoded_folder, dataset).train, images_per_epoch=n_images)
    run = FitEvaluate(images, None, hyperparameters, RunSeed(0), compute)

    def train() -> int:
        run.train()
        return n_images

    return train


def checkpoint_bytes(data: TrainingData) -> int:
    """Size of a checkpoint: weights and momentum in fp32, whatever the precision, and a small rest."""
    network = DepthwiseSeparableNet(len(data.decoded.class_names))
    return 2 * 4 * count_parameters(network) + CHECKPOINT_EXTRA_BYTES


def seconds_per_epoch(space: Space, data: TrainingData, resource_plan: ResourcePlan) -> float:
    """Seconds of an epoch of the baseline, from a few timed steps in this process.

    Trials that share a GPU slow each other down: for them, the measured throughput together counts.
    """
    share = math.ceil(resource_plan.trials_at_once / max(resource_plan.n_gpus, 1))
    together = next((sharing for sharing in resource_plan.measured if sharing.n_trials >= share), None)
    if together:
        n_images = data.train.epoch_images + len(data.validation) / IMAGES_EVALUATED_PER_TRAINED
        return together.n_trials * n_images / together.images_per_s
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # The first step warms up.
        images = replace(data.train, images_per_epoch=(1 + N_TIMED_STEPS) * space.baseline.batch_size)
        run = FitEvaluate(images, None, space.baseline, RunSeed(space.search.seed), resource_plan.compute)
        training_s = _median_step_s(run) * data.train.epoch_images / space.baseline.batch_size
        sample = ImageSet(data.decoded, data.validation.rows[:N_TIMED_IMAGES])
        return training_s + _evaluation_s(run, sample) * len(data.validation) / len(sample)
    finally:
        torch.set_num_threads(threads)


def _median_step_s(run: FitEvaluate) -> float:
    """Median seconds of a training step, input included, after the first one of an epoch."""
    ends_s: list[float] = []

    def on_step() -> None:
        wait_for(run.compute.device)
        ends_s.append(time.perf_counter())

    run.train(on_step)
    return statistics.median(later - earlier for earlier, later in pairwise(ends_s))


def _evaluation_s(run: FitEvaluate, images: ImageSet) -> float:
    run.test(images)
    started_s = time.perf_counter()
    run.test(images)
    return time.perf_counter() - started_s
