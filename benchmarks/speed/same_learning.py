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

from benchmarks.speed.images import add_images_argument, folder_settings, images_facts, settings_of
from benchmarks.speed.report import machine, number_text, print_json, progress, table_text
from benchmarks.stats import difference
from search.processes.helper_pool import count_cores
from search.retraining.answers import interval_95
from spaces import Dataset, Hyperparameters, InputError, Space, load_space
from spaces.command import CommandParser, run_command
from trainable.compute import Compute, choose_precision
from trainable.environment import ALLOCATOR_ENVIRONMENT

ALL_OFF = "everything off"
RECIPE = "whole recipe"


@dataclass(frozen=True, slots=True)
class Trained:
    """Result of a run.

    Attributes:
        variant: name of the variant.
        seed: number of the run in its `RunSeed`.
        validation_accuracy: accuracy after the last epoch, 0 to 1.
        train_loss: training loss of the last epoch.
        diverged: whether the loss was not finite, which ended the run.
        evaluations: accuracies of the trained network by the choices for its evaluation.
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
    return run_command(parser, _run, arguments)


def variants(recipe: Compute) -> dict[str, Compute]:
    """Choices for training, by name. The last is the reference."""
    return {
        RECIPE: recipe,
        "fp32": replace(recipe, precision="fp32"),
        "torch's own layers": replace(recipe, fused=False),
        ALL_OFF: replace(recipe, precision="fp32", channels_last=False, fused=False, folded_evaluation=False),
    }


def compare(accuracies: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Mean, interval and difference to `ALL_OFF` of each variant, whose values are in the order of the seeds."""
    compared = {}
    for name, values in accuracies.items():
        to_reference = None if name == ALL_OFF else difference(values, accuracies[ALL_OFF])
        compared[name] = {
            "mean": statistics.fmean(values),
            "interval_95": interval_95(values),
            "difference": to_reference and to_reference.mean,
            "difference_interval_95": to_reference and to_reference.interval,
            "difference_includes_0": to_reference and to_reference.includes_zero,
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
            "-" if row["difference"] is None else f"{100 * row['difference']:+.2f}",
            _interval_text(row["difference_interval_95"]),
            words[row["difference_includes_0"]],
        )
        for name, row in compared.items()
    ]
    return table_text((title, "accuracy %", "95 %", f"less {ALL_OFF}", "95 %", "includes 0"), rows)


def train(
    dataset: Dataset, hyperparameters: Hyperparameters, epochs: int, seed_number: int, variant: str, recipe: Compute
) -> Trained:
    """Train a configuration in this process with one thread, and evaluate it by all choices."""
    import torch

    from trainable.data.datasets import prepare_training_data
    from trainable.fit_evaluate import FitEvaluate
    from trainable.seeding import RunSeed

    torch.set_num_threads(1)
    data, seed = prepare_training_data(dataset), RunSeed(0, seed_number)
    run = FitEvaluate(data.train, data.validation, hyperparameters, seed, variants(recipe)[variant])
    results = run.epoch_training(epochs)
    evaluations = {}
    for name in (RECIPE, ALL_OFF):
        other = FitEvaluate(data.train, data.validation, hyperparameters, seed, variants(recipe)[name])
        other.network.load_state_dict(run.network.state_dict())
        evaluations[name] = other.test(data.validation).accuracy
    last = results[-1]
    seconds = sum(result.train_s + result.validation_s for result in results)
    return Trained(variant, seed_number, last.validation_accuracy, last.train_loss, last.diverged, evaluations, seconds)


def _run(options: argparse.Namespace) -> int:
    if options.seeds < 1 or options.epochs < 1:
        raise InputError("--seeds and --epochs must be at least 1.")
    facts, space = machine(), _space(options)
    images = images_facts(space.dataset)  # decodes the images, before several processes need them
    precision, reason = choose_precision("auto", "cpu")
    progress(f"{options.seeds} seeds, {options.epochs} epochs, {precision}: {reason}")
    trained = _train_all(space, options, Compute(precision=precision))
    # Further evaluations of the networks that the whole recipe trained.
    own = [one for one in trained if one.variant == RECIPE]
    trainings = compare({name: _accuracies(trained, name) for name in variants(Compute())})
    evaluated = compare({name: [one.evaluations[name] for one in own] for name in own[0].evaluations})
    print(table("trained with", trainings))
    print(f"\n{table('evaluated with', evaluated)}")
    chosen = {"precision": precision, "precision_reason": reason, "hyperparameters": space.baseline.as_dict()}
    print_json(
        {
            "benchmark": "same_learning",
            "trained": trainings,
            "evaluated": evaluated,
            "runs": [asdict(one) for one in trained],
            "settings": {**settings_of(options), **images, **chosen},
            "machine": facts,
        }
    )
    return 0


def _space(options: argparse.Namespace) -> Space:
    if options.images is not None:
        return load_space("cifar10", folder_settings(options.images, options.train_limit))
    limit = () if options.train_limit is None else (f"dataset.train_limit={options.train_limit}",)
    return load_space("quickstart", (*limit, "baseline.lr=0.02", "baseline.momentum=0.9"))


def _train_all(space: Space, options: argparse.Namespace, recipe: Compute) -> list[Trained]:
    # The processes read these when they start.
    os.environ.update(ALLOCATOR_ENVIRONMENT, OMP_NUM_THREADS="1")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count_cores(), context) as pool:
        # Seeds in the outer loop, so that changes of the machine affect all variants.
        futures = [
            pool.submit(train, space.dataset, space.baseline, options.epochs, seed, variant, recipe)
            for seed in range(options.seeds)
            for variant in variants(recipe)
        ]
        try:
            for n_done, future in enumerate(as_completed(futures), 1):
                one = future.result()
                ended = " (diverged)" if one.diverged else ""
                text = f"seed {one.seed}, {one.variant}: {one.validation_accuracy:.2%}{ended}, {one.seconds:.0f} s"
                progress(f"{n_done} of {len(futures)}: {text}")
            return [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _accuracies(trained: Sequence[Trained], variant: str) -> list[float]:
    return [one.validation_accuracy for one in trained if one.variant == variant]


def _interval_text(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f}"


if __name__ == "__main__":
    sys.exit(main())
