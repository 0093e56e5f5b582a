"""Whether what makes training faster changes what is learned: `python -m benchmarks.speed.same_learning`.

One configuration is trained in four variants with the same seeds. A seed fixes weights, order and augmentation, so
differences are paired by seed. Every network of the whole recipe is also evaluated with its measures on and off.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.speed.images import SpaceChoice, add_images_argument, folder_settings, images_facts, settings_of
from benchmarks.speed.report import machine, number_text, print_json, progress, table_text
from benchmarks.stats import difference
from search.processes.helper_pool import count_cores
from search.retraining.answers import interval_95
from spaces import Dataset, Hyperparameters, InputError
from spaces.command import CommandParser, run_command
from trainable.compute import Compute, choose_precision
from trainable.environment import ALLOCATOR_ENVIRONMENT

ALL_OFF = "everything off"
RECIPE = "whole recipe"


@dataclass(frozen=True, slots=True)
class Training:
    """Instructions for one run.

    Attributes:
        variant: name of `compute`.
        seed: number of the run in its `RunSeed`.
        dataset, hyperparameters, epochs: images, configuration and length of the training.
        compute: choices for the training.
        evaluations: choices for further evaluations of the trained network, by name.
    """

    variant: str
    seed: int
    dataset: Dataset
    hyperparameters: Hyperparameters
    epochs: int
    compute: Compute
    evaluations: Mapping[str, Compute]


@dataclass(frozen=True, slots=True)
class Trained:
    """Result of a run.

    Attributes:
        variant, seed: values of the `Training`.
        validation_accuracy: accuracy after the last epoch, 0 to 1.
        train_loss: training loss of the last epoch.
        diverged: whether the loss was not finite, which ended the run.
        evaluations: accuracies of the further evaluations, by name.
        seconds: wall-clock time of training and validation.
    """

    variant: str
    seed: int
    validation_accuracy: float
    train_loss: float
    diverged: bool
    evaluations: Mapping[str, float]
    seconds: float


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m benchmarks.speed.same_learning",
        description="Final validation accuracy over several seeds with and without what makes training faster.",
        epilog="example: python -m benchmarks.speed.same_learning --images ~/images --train-limit 5120 --seeds 5",
    )
    add_images_argument(parser, "the embedded digits and the quickstart's baseline, with lr 0.02 and momentum 0.9")
    parser.add_argument("--train-limit", type=int, metavar="N", help="training and validation images (default: all)")
    parser.add_argument("--seeds", type=int, default=5, help="default: 5")
    parser.add_argument("--epochs", type=int, default=9, help="default: 9")
    parser.add_argument("--lr", type=float, help="default: 0.02 for digits, the baseline's for --images")
    parser.add_argument("--precision", choices=("auto", "bf16"), default="auto", help="of the whole recipe")
    parser.add_argument("--at-once", type=int, metavar="N", help="runs at once, a thread each (default: one a core)")
    return run_command(parser, _run, arguments)


def variants(recipe: Compute) -> dict[str, Compute]:
    """Choices for training, by name. The last is the reference."""
    return {
        RECIPE: recipe,
        "fp32": replace(recipe, precision="fp32"),
        "torch's own layers": replace(recipe, fused=False),
        ALL_OFF: replace(recipe, precision="fp32", channels_last=False, fused=False, folded_evaluation=False),
    }


def evaluations(recipe: Compute) -> dict[str, Compute]:
    """Choices for evaluating each trained network, by name. The last is the reference."""
    return {RECIPE: recipe, ALL_OFF: variants(recipe)[ALL_OFF]}


def compare(accuracies: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Mean, interval and difference to `ALL_OFF` of each variant, whose values are in the order of the seeds."""
    compared = {}
    for name, values in accuracies.items():
        to_reference = difference(values, accuracies[ALL_OFF])
        compared[name] = {
            "mean": statistics.fmean(values),
            "interval_95": interval_95(values),
            "difference": None if name == ALL_OFF else to_reference.mean,
            "difference_interval_95": None if name == ALL_OFF else to_reference.interval,
            "difference_includes_0": None if name == ALL_OFF else to_reference.includes_zero,
            "runs": list(values),
        }
    return compared


def table(title: str, compared: Mapping[str, Mapping[str, Any]]) -> str:
    """Table of accuracies in percent and differences in percentage points."""
    words = {None: "-", True: "yes", False: "NO"}
    rows = [
        (
            name,
            number_text(100 * row["mean"], 2),
            _interval_text(row["interval_95"]),
            _signed(row["difference"]),
            _interval_text(row["difference_interval_95"]),
            words[row["difference_includes_0"]],
        )
        for name, row in compared.items()
    ]
    header = (title, "accuracy %", "95 %", f"less {ALL_OFF}", "95 %", "includes 0")
    return table_text(header, rows)


def train(training: Training) -> Trained:
    """Train and evaluate in this process, with one thread."""
    import torch

    from trainable.data.datasets import prepare_training_data
    from trainable.fit_evaluate import FitEvaluate
    from trainable.seeding import RunSeed

    torch.set_num_threads(1)
    data = prepare_training_data(training.dataset)
    seed = RunSeed(0, training.seed)
    run = FitEvaluate(data.train, data.validation, training.hyperparameters, seed, training.compute)
    results = run.epoch_training(training.epochs)

    def accuracy(compute: Compute) -> float:
        other = FitEvaluate(data.train, data.validation, training.hyperparameters, seed, compute)
        other.network.load_state_dict(run.network.state_dict())
        return other.test(data.validation).accuracy

    found = {name: accuracy(compute) for name, compute in training.evaluations.items()}
    last = results[-1]
    seconds = sum(result.train_s + result.validation_s for result in results)
    return Trained(
        training.variant, training.seed, last.validation_accuracy, last.train_loss, last.diverged, found, seconds
    )


def _run(options: argparse.Namespace) -> int:
    if options.seeds < 1 or options.epochs < 1 or (options.at_once is not None and options.at_once < 1):
        raise InputError("--seeds, --epochs and --at-once must be at least 1.")
    facts = machine()
    dataset, hyperparameters = _task(options)
    precision, reason = choose_precision(options.precision, "cpu")
    recipe = Compute(precision=precision)
    progress(f"{options.seeds} seeds, {options.epochs} epochs, {precision}: {reason}")
    # Seeds in the outer loop, so that changes of the machine affect all variants.
    trainings = [
        Training(name, seed, dataset, hyperparameters, options.epochs, compute, evaluations(recipe))
        for seed in range(options.seeds)
        for name, compute in variants(recipe).items()
    ]
    trained = _train_all(trainings, options.at_once or count_cores())
    chosen = {"precision": precision, "precision_reason": reason, "hyperparameters": hyperparameters.as_dict()}
    _print(trained, {**settings_of(options), **images_facts(dataset), **chosen}, facts)
    return 0


def _task(options: argparse.Namespace) -> tuple[Dataset, Hyperparameters]:
    from trainable.data.datasets import prepare_training_data

    if options.images is None:
        limit = () if options.train_limit is None else (f"dataset.train_limit={options.train_limit}",)
        lr = 0.02 if options.lr is None else options.lr
        chosen = SpaceChoice("quickstart", (*limit, f"baseline.lr={lr!r}", "baseline.momentum=0.9"))
    else:
        lr_setting = () if options.lr is None else (f"baseline.lr={options.lr!r}",)
        chosen = SpaceChoice("cifar10", (*folder_settings(options.images, options.train_limit), *lr_setting))
    space = chosen.load()
    prepare_training_data(space.dataset)  # decode once, before several processes need the images
    return space.dataset, space.baseline


def _train_all(trainings: Sequence[Training], at_once: int) -> list[Trained]:
    # The processes read these when they start.
    os.environ.update(ALLOCATOR_ENVIRONMENT, OMP_NUM_THREADS="1")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(at_once, len(trainings)), context) as pool:
        futures = [pool.submit(train, training) for training in trainings]
        try:
            for n_done, future in enumerate(as_completed(futures), 1):
                progress(f"{n_done} of {len(futures)}: {_sentence(future.result())}")
            return [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _sentence(one: Trained) -> str:
    ended = " (diverged)" if one.diverged else ""
    return f"seed {one.seed}, {one.variant}: {one.validation_accuracy:.2%}{ended}, {one.seconds:.0f} s"


def _print(trained: Sequence[Trained], settings: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    names = list(dict.fromkeys(one.variant for one in trained))
    by_variant = {name: [one.validation_accuracy for one in trained if one.variant == name] for name in names}
    # Further evaluations of the networks that the whole recipe trained.
    own = [one for one in trained if one.variant == RECIPE]
    by_evaluation = {name: [one.evaluations[name] for one in own] for name in own[0].evaluations}
    trainings, evaluated = compare(by_variant), compare(by_evaluation)
    print(table("trained with", trainings))
    print(f"\n{table('evaluated with', evaluated)}")
    print_json(
        {
            "benchmark": "same_learning",
            "trained": trainings,
            "evaluated": evaluated,
            "runs": [asdict(one) for one in trained],
            "settings": settings,
            "machine": facts,
        }
    )


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.2f}"


def _interval_text(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f}"


if __name__ == "__main__":
    sys.exit(main())
