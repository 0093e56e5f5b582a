"""The resource plan of a search: device, precision and slots of its trials; and timing of the baseline."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from search.execution.gpu_sharing import Sharing, choose_share, measure_sharing, wait_for
from search.experiment.manifest import Device
from search.processes.helper_pool import count_cores
from spaces.counted import counted
from spaces.errors import InputError
from spaces.parameters import Hyperparameters
from spaces.schema import Dataset, Precision, Space
from trainable.compute import Compute, choose_compute, describe_device
from trainable.data.datasets import ImageSet, TrainingData, open_training_data
from trainable.fit_evaluate import FitEvaluate
from trainable.network.model import DepthwiseSeparableNet, count_parameters
from trainable.seeding import RunSeed

if TYPE_CHECKING:
    from search.execution.joined_cluster import NodeFacts

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
        if not self.n_gpus:
            return {"cpu": 1}
        # A trial uses one GPU: the fullest GPU decides the share. Ray's count of CPUs must not be a limit too.
        return {"cpu": TOKEN_CPU, "gpu": math.floor(RAY_PARTS / self._trials_per_gpu) / RAY_PARTS}

    @property
    def trials_side_by_side(self) -> int:
        """Number of trials that do not slow each other down."""
        return self.trials_at_once if self.n_gpus else min(self.trials_at_once, self.n_cpus)

    @property
    def slots(self) -> str:
        """The shared resources in words, such as `2 GPUs`."""
        return counted(self.n_gpus, "GPU") if self.n_gpus else counted(self.n_cpus, "core")

    @property
    def for_manifest(self) -> Device:
        return Device(
            device=self.compute.device,
            name=self.description,
            trials_at_once=self.trials_at_once,
            precision=self.compute.precision,
            precision_reason=self.precision_reason,
        )

    @property
    def sharing(self) -> Sharing | None:
        """The measured throughput of as many trials as share a GPU; None if it was not measured."""
        return next((sharing for sharing in self.measured if sharing.n_trials >= self._trials_per_gpu), None)

    @property
    def _trials_per_gpu(self) -> int:
        return math.ceil(self.trials_at_once / max(self.n_gpus, 1))


def plan_resources(space: Space, data: TrainingData, began: Device | None = None) -> ResourcePlan:
    """Plan where trials run: one trial per core on a CPU, `trials_per_gpu` per GPU on CUDA.

    Args:
        data: images on which trials are timed, where the share of a GPU is measured.
        began: device of the first session, for a resumed search. Its precision is kept, so that trials compare.

    Raises:
        InputError: CUDA is requested and not available.
    """
    compute, reason = choose_compute(space.resources.device, began.precision if began else space.training.precision)
    reason = "as the search began" if began else reason
    name, n_cores = describe_device(compute.device), count_cores()
    if compute.device_type == "cpu":
        return ResourcePlan(compute, reason, name, n_cores, 0, _slots(space, n_cores))
    n_gpus = torch.cuda.device_count()
    share, measured = _trials_per_gpu(space, data, compute, n_gpus)
    return ResourcePlan(compute, reason, name, n_cores, n_gpus, _slots(space, n_cores, n_gpus * share), measured)


def plan_resources_on(nodes: Sequence[NodeFacts], space: Space, began: Device | None = None) -> ResourcePlan:
    """Plan where trials run on a cluster: one trial per CPU that Ray assigns, or `trials_per_gpu` (1 for auto) per GPU.

    Nodes that join later are used, but not counted. `began` as for `plan_resources`.

    Raises:
        InputError: CUDA is requested, and no node has a GPU.
    """
    wanted = space.resources
    n_gpus = 0 if wanted.device == "cpu" else sum(node.n_gpus for node in nodes)
    if wanted.device == "cuda" and not n_gpus:
        raise InputError("--device is cuda, but no node of the cluster has a GPU. Use --device cpu or auto.")
    used = [node for node in nodes if (node.n_gpus if n_gpus else node.n_cpus)]
    n_cpus = sum(node.n_cpus for node in used)
    precision, reason = _common_precision(used, space, began)
    devices = " and ".join(sorted({node.device for node in used}))
    slots = counted(n_gpus, "GPU") if n_gpus else counted(n_cpus, "core")
    description = f"{counted(len(used), 'node')}, {slots} ({devices})"
    share = 1 if wanted.trials_per_gpu == "auto" else wanted.trials_per_gpu
    compute = Compute("cuda", precision, resident=True) if n_gpus else Compute("cpu", precision)
    return ResourcePlan(compute, reason, description, n_cpus, n_gpus, _slots(space, n_cpus, n_gpus * share))


def _slots(space: Space, n_cpus: int, on_gpus: int = 0) -> int:
    """Number of trials at once: `on_gpus`, or without GPUs as many as the space says; no more than it has trials."""
    wanted = space.resources.trials_at_once
    on_cpus = n_cpus if wanted == "auto" else wanted
    return min(on_gpus or on_cpus, space.search.most_trials)


def _common_precision(nodes: Sequence[NodeFacts], space: Space, began: Device | None) -> tuple[Precision, str]:
    """The precision of all trials and its reason: `auto` is bf16 only where every node supports it."""
    if began:
        return began.precision, "as the search began"
    if space.training.precision != "auto":
        return space.training.precision, "as the space says"
    without = [node.name for node in nodes if node.bf16_reason is None]
    if without:
        return "fp32", f"node {without[0]}: no bf16 instructions"
    return "bf16", f"on all nodes: {', '.join(sorted({node.bf16_reason or '' for node in nodes}))}"


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
    torch.set_num_threads(1)
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
    if together := resource_plan.sharing:
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
