"""What a search will do, before it does it."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

from search.analysis.cost import Expected, disk_bytes, expected_search, of_trials, seconds_left
from search.execution.cluster import count_cores
from search.execution.gpu_sharing import Sharing, choose_share, measure_sharing, wait_for
from search.experiment.manifest import Device
from search.policy import budget, confirmation
from spaces.counted import counted, duration_text, size_text
from spaces.parameters import Fixed, Hyperparameters
from spaces.printable import printable
from spaces.schema import Dataset, Space
from trainable.compute import Compute, choose_compute
from trainable.data.datasets import ImageSet, TrainingData, open_training_data
from trainable.devices import describe_device
from trainable.environment import cache_root
from trainable.fit_evaluate import FitEvaluate
from trainable.network.model import DepthwiseSeparableNet, count_parameters
from trainable.seeding import RunSeed

# Ray rounds fractions of a resource to so many parts; rounded up, the last trial would find no place.
RAY_PARTS = 10_000
TOKEN_CPU = 1 / RAY_PARTS
N_TIMED_STEPS = 5
# A GPU is waited for this seldom, as training waits for it once an epoch.
STEPS_PER_WAIT = 20
N_TIMED_IMAGES = 128
# What the plan gives the price of, where exploring is off.
USUAL_AUDIT_FRACTION = 0.1
# Running statistics, names and settings.
CHECKPOINT_EXTRA_BYTES = 50_000
# The forward pass alone, without gradients.
IMAGES_EVALUATED_PER_TRAINED = 4


@dataclass(frozen=True, slots=True)
class ResourcePlan:
    """Where trials run.

    Attributes:
        compute: device and precision.
        precision_reason: why that one, in words.
        description: the device's own name.
        n_cpus, n_gpus: cores and GPUs that trials share.
        trials_at_once: how many share them.
        measured: what so many trials did on one GPU at once, where that was timed.
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
            # A trial lies on one GPU: the fullest one decides how large a share can be.
            share = math.ceil(self.trials_at_once / self.n_gpus)
            # The GPU is what limits; Ray's count of CPUs must only not forbid it.
            return {"cpu": TOKEN_CPU, "gpu": math.floor(RAY_PARTS / share) / RAY_PARTS}
        return {"cpu": 1}

    @property
    def trials_side_by_side(self) -> int:
        """How many do not slow each other down."""
        return self.trials_at_once if self.n_gpus else min(self.trials_at_once, self.n_cpus)

    @property
    def places(self) -> str:
        """What the trials share, in words."""
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
    """Decide where trials run: one a core on a CPU, `trials_per_gpu` a GPU on CUDA.

    Args:
        space: what is searched.
        data: what trials are timed on, where a GPU's share is to be found out.
        began: of a search that is gone on with. Its precision is kept, so that its trials compare.

    Raises:
        InputError: CUDA is asked for and not there.
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
    # Each trial keeps a core busy, and more trials than there are cannot share.
    most = max(1, min(count_cores() // n_gpus, math.ceil(space.search.most_trials / n_gpus)))
    if most == 1:
        return 1, ()
    make_training = partial(baseline_training, data.decoded.folder, space.dataset, space.baseline, compute)
    share, measured = choose_share(partial(measure_sharing, make_training=make_training, device=compute.device), most)
    return share, tuple(measured)


def baseline_training(
    decoded_folder: Path, dataset: Dataset, hyperparameters: Hyperparameters, compute: Compute
) -> Callable[[], int]:
    """Build a run of its own in this process, to be timed.

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


def experiment_bytes(space: Space, data: TrainingData, resource_plan: ResourcePlan, expected: Expected) -> int:
    """What the experiment's folder may take at most; where time alone limits the search, with half as many more."""
    network = DepthwiseSeparableNet(len(data.decoded.class_names))
    # Weights and their momentum in fp32, whatever they are computed in; the rest is small.
    checkpoint = 2 * 4 * count_parameters(network) + CHECKPOINT_EXTRA_BYTES
    trials, epochs = _most(space, resource_plan, expected)
    # Each keeps two checkpoints while it runs, and writes a third; one that waits at a rung keeps one.
    n_checkpoints = 3 * resource_plan.trials_at_once + (trials if space.search.asha == "promote" else 0)
    return disk_bytes(trials, epochs, n_checkpoints, checkpoint)


def _most(space: Space, resource_plan: ResourcePlan, expected: Expected) -> tuple[int, int]:
    """Trials and epochs that a search can come to at most."""
    search, max_epochs = space.search, space.training.max_epochs
    if search.epoch_budget is not None:
        epochs = search.epoch_budget + budget.most_epochs_over(space, resource_plan.trials_at_once)
        return search.most_trials, min(epochs, search.most_trials * max_epochs)
    if search.trials is not None:
        return search.trials, search.trials * max_epochs
    return math.ceil(1.5 * expected.trials), math.ceil(1.5 * expected.epochs)


def limits_text(space: Space, expected: Expected | None) -> str:
    """How many trials there will be, in words: `32 trials`, `about 57 trials`, or `trials`."""
    if expected is None:
        return "trials until the time is up"
    if space.search.trials == expected.trials:
        return f"{expected.trials} trials"
    return f"about {expected.trials} trials"


def epochs_text(space: Space, expected: Expected) -> str:
    """How many epochs trials and replicates are expected to train together."""
    replicate_epochs = confirmation.expected_epochs(expected.epochs, space)
    n_runs = round(replicate_epochs / space.training.max_epochs)
    of_runs = f" ({replicate_epochs:.0f} of them in {counted(n_runs, 'replicate')} of the best and the baseline)"
    if not replicate_epochs:
        return f"about {expected.epochs:.0f} epochs in all"
    return f"about {expected.epochs + replicate_epochs:.0f} epochs in all{of_runs}"


def _budget_lines(space: Space, resource_plan: ResourcePlan) -> list[str]:
    search = space.search
    lines = []
    if search.epoch_budget is not None:
        over = budget.most_epochs_over(space, resource_plan.trials_at_once)
        lines.append(
            f"epochs      {search.epoch_budget}: no trial is started when so many are trained; those that run then "
            f"go on, at most {over} epochs more"
        )
    if search.time_budget:
        lines.append(f"time budget {search.time_budget}")
    return lines


def _asha_line(space: Space) -> str:
    rungs = ", ".join(str(epoch) for epoch in space.rung_epochs[:-1]) or "none"
    match space.search.asha:
        case "off":
            return "rungs       none: every trial is trained to the end"
        case "promote":
            return f"rungs       {rungs}: each trial waits there; the best in {space.search.reduction_factor} go on"
        case _:
            return f"rungs       {rungs}: about one trial in {space.search.reduction_factor} goes on at each"


def _sampler_line(space: Space) -> str:
    search = space.search
    if search.startup_trials < 2 or search.sampler == "random":
        return f"proposals   {search.sampler}"
    return f"proposals   random up to trial {search.startup_trials - 1}, then {search.sampler}"


def _audit_lines(space: Space, expected: Expected) -> list[str]:
    if not space.search.audit_fraction:
        more = _epochs_of_audits(_with_audit_fraction(space, USUAL_AUDIT_FRACTION), expected.trials)
        # None where no rung stops a trial, or so few trials leave none to chance.
        text = f"off; search.audit_fraction={USUAL_AUDIT_FRACTION:g} would take about {more:.0f} epochs more"
        return [f"audits      {text}"] if round(more) else []
    n, n_searched = expected.n_audits, expected.trials - 1
    if not n:
        text = f"no trial of {n_searched}, as the seed has it: raise it, or search.trials"
    else:
        more = _epochs_of_audits(space, expected.trials)
        text = f"{n} of {n_searched} trials are trained to the end whatever a rung says: about {more:.0f} epochs more"
    return [f"audits      {space.search.audit_fraction:g}: {text}"]


def _epochs_of_audits(space: Space, trials: int) -> float:
    """How many epochs of so many trials are expected to be trained for `search.audit_fraction` alone."""
    return of_trials(space, trials).epochs - of_trials(_with_audit_fraction(space, 0.0), trials).epochs


def _with_audit_fraction(space: Space, audit_fraction: float) -> Space:
    return replace(space, search=space.search.model_copy(update={"audit_fraction": audit_fraction}))


def seconds_per_epoch(space: Space, data: TrainingData, resource_plan: ResourcePlan) -> float:
    """Time a few steps of the baseline, in this process alone, and scale them to an epoch.

    Trials that share a GPU wait for each other: there, what they did together when it was measured counts.
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


def sharing_text(sharing: Sharing) -> str:
    """What was measured for a number of trials on one GPU."""
    trials = counted(sharing.n_trials, "trial")
    return f"{trials} on one GPU: {sharing.images_per_s:,.0f} images/s together"


def _epoch_lines(data: TrainingData) -> list[str]:
    n_images, epoch_images = len(data.train), data.train.epoch_images
    return (
        []
        if epoch_images == n_images
        else [f"epoch       {epoch_images:,} images, {epoch_images / n_images:.2f} of a pass over the training images"]
    )


def _evaluation_s(run: FitEvaluate, images: ImageSet) -> float:
    run.test(images)
    started_s = time.perf_counter()
    run.test(images)
    return time.perf_counter() - started_s


def plan_text(space: Space, data: TrainingData, resource_plan: ResourcePlan, epoch_s: float) -> str:
    """The plan that `--dry-run` prints."""
    expected = _expected(space, resource_plan, epoch_s)
    max_epochs = space.training.max_epochs
    replicate_epochs = confirmation.expected_epochs(expected.epochs, space)
    n_runs = round(replicate_epochs / max_epochs)
    n_exempt = 1 + expected.n_audits
    trial_epochs = [*[max_epochs] * n_exempt, *[expected.each] * (expected.trials - n_exempt)]
    total_s = seconds_left(trial_epochs, [max_epochs] * n_runs, epoch_s, resource_plan.trials_side_by_side)
    if space.search.time_budget_s is not None:
        total_s = min(total_s, space.search.time_budget_s)
    trials = limits_text(space, expected)
    lines = [
        f"space       {printable(space.name)}",
        f"data set    {space.dataset.name}: {len(data.train):,} training and {len(data.validation):,} validation "
        f"images of {data.decoded.image_size} x {data.decoded.image_size}, {len(data.decoded.class_names)} classes",
        *_epoch_lines(data),
        f"device      {resource_plan.description}, {counted(resource_plan.trials_at_once, 'trial')} at once",
        *(f"            {sharing_text(sharing)}" for sharing in resource_plan.measured),
        f"precision   {resource_plan.compute.precision}: {resource_plan.precision_reason}",
        f"trials      {trials.removesuffix(' trials')}, the baseline first, at most {max_epochs} epochs each",
        _sampler_line(space),
        _asha_line(space),
        *_audit_lines(space, expected),
    ]
    for name, parameter in space.parameters.items():
        kind = "fixed" if isinstance(parameter, Fixed) else type(parameter).__name__.lower()
        yaml = parameter.as_yaml()
        shown = yaml if isinstance(parameter, Fixed) else next(iter(yaml.values()))  # type: ignore[union-attr]
        lines.append(f"  {name:<22}{kind:<12}{shown}   baseline {getattr(space.baseline, name):g}")
    lines += _budget_lines(space, resource_plan)
    lines.append(
        f"cost        about {duration_text(total_s)} on {resource_plan.places}: {trials}, at most "
        f"{max_epochs} epochs, {epochs_text(space, expected)}"
    )
    lines.append(f"            ({epoch_s:.1f} s an epoch by steps timed now; start-up comes on top)")
    most_bytes = experiment_bytes(space, data, resource_plan, expected)
    lines.append(
        f"disk        at most {size_text(most_bytes)} in the experiment's folder, and "
        f"{size_text(data.decoded.images.nbytes)} of decoded images in {cache_root()}, for all experiments"
    )
    return "\n".join(lines)


def _expected(space: Space, resource_plan: ResourcePlan, epoch_s: float) -> Expected:
    """With what a time budget is worth at so many seconds an epoch, start-up left out."""
    time_s = space.search.time_budget_s
    if time_s is not None:
        time_s -= confirmation.seconds_to_confirm(space)
    time_epochs = None if time_s is None else time_s / epoch_s * resource_plan.trials_side_by_side
    expected = expected_search(space, time_epochs)
    assert expected is not None  # the loader asks for a limit
    return expected
