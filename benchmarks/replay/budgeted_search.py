"""Compares the winners of `search.run` and of stock Ray Tune: `python -m benchmarks.replay.budgeted_search`.

Both searches train the same kind of trials (`benchmarks.replay.stock_search`). Stock Ray gets as many epochs as
`search.run` used, which also finishes the trials that it has started when the budget is used. Neither trains
replicates; the winners and the hand-picked baseline are then trained again with the same fresh seeds.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.speed.images import add_images_argument, folder_settings, images_facts, settings_of
from benchmarks.speed.report import machine, number_text, print_json, progress, table_text
from benchmarks.stats import difference
from search.processes.helper_pool import count_cores
from spaces import Dataset, Hyperparameters, InputError, Space, load_space
from spaces.command import CommandParser, run_command
from spaces.errors import RunError
from trainable.compute import Compute, choose_precision
from trainable.environment import ALLOCATOR_ENVIRONMENT

ROOT = Path(__file__).parents[2]
OURS, STOCK, BASELINE = "search.run", "stock Ray", "hand-picked"
NAME = "budgeted"
# Seed of the replicates; no search uses it.
FRESH_SEED = 1_000_003


@dataclass(frozen=True, slots=True)
class Found:
    """Result of a search.

    Attributes:
        winner: best configuration.
        said: what the search said of the winner's validation accuracy, 0 to 1: a forecast, or stock Ray's result.
        trials, epochs: total numbers of trials and epochs.
        wall_s: wall-clock time from launch to exit.
    """

    winner: Hyperparameters
    said: float
    trials: int
    epochs: int
    wall_s: float


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m benchmarks.replay.budgeted_search",
        description="Winners of search.run and of stock Ray Tune after the same epochs, trained from fresh seeds.",
        epilog="example: python -m benchmarks.replay.budgeted_search --images ~/cifar10-images --epochs 540 --rounds 2",
    )
    add_images_argument(parser, "the embedded digits")
    parser.add_argument("--train-limit", type=int, default=5000, metavar="N", help="of --images (default: 5000)")
    parser.add_argument("--epochs", type=int, default=540, metavar="N", help="of each search (default: 540)")
    parser.add_argument("--rounds", type=int, default=1, help="searches of each kind, other seeds (default: 1)")
    parser.add_argument("--replicates", type=int, default=6, metavar="N", help="runs of each winner (default: 6)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for both searches")
    return run_command(parser, _run, arguments)


def settings_for(options: argparse.Namespace, seed: int) -> tuple[str, ...]:
    """Settings with which the table `curves/cifar10.json` was measured."""
    images = () if options.images is None else folder_settings(options.images, options.train_limit)
    shape = (
        "dataset.image_size=18",
        "dataset.images_per_epoch=384",
        "training.batch_size=32",
        "training.max_epochs=27",
        "search.memory=none",
    )
    return (*images, *shape, f"search.seed={seed}", *options.set)


def _run(options: argparse.Namespace) -> int:
    if options.rounds < 1 or options.epochs < 1 or options.replicates < 2:
        raise InputError("--rounds and --epochs must be at least 1, --replicates at least 2.")
    facts, rows, rounds = machine(), [], []
    for seed in range(1, options.rounds + 1):
        settings = settings_for(options, seed)
        name = "quickstart" if options.images is None else "cifar10"
        space = load_space(name, settings)
        arguments = [name, *(word for setting in settings for word in ("--set", setting))]
        progress(f"round {seed} of {options.rounds}: {OURS} starts")
        found = {OURS: _ours(arguments, options.epochs)}
        progress(f"round {seed} of {options.rounds}: {STOCK} starts")
        found[STOCK] = _stock(arguments, found[OURS].epochs)
        progress(f"round {seed} of {options.rounds}: {options.replicates} replicates of each winner and the baseline")
        configs = {OURS: found[OURS].winner, STOCK: found[STOCK].winner, BASELINE: space.baseline}
        replicates = _replicate_accuracies(space, configs, options.replicates, seed)
        for title, values in replicates.items():
            rows.append(_row(seed, title, found.get(title), values, replicates[STOCK]))
        searches = {title: asdict(one) for title, one in found.items()}
        rounds.append({"seed": seed, "searches": searches, "replicates": replicates})
        # Print after each round, because a later round may fail.
        print(table_text(_HEADER, rows), flush=True)
    images = images_facts(space.dataset)
    print_json({"rounds": rounds, "settings": {**settings_of(options), **images}, "machine": facts})
    return 0


_HEADER = ("round", "winner of", "trials", "epochs", "wall s", "it said", "replicates", "less stock Ray's, points")


def _row(seed: int, title: str, found: Found | None, values: list[float], reference: list[float]) -> tuple[str, ...]:
    said = (str(found.trials), str(found.epochs), f"{found.wall_s:.0f}", f"{found.said:.2%}") if found else ("-",) * 4
    to_stock = difference(values, reference)
    low, high = to_stock.interval or (float("nan"),) * 2
    lead = "-" if title == STOCK else f"{100 * to_stock.mean:+.2f} ({100 * low:+.2f} – {100 * high:+.2f})"
    mean = f"{number_text(100 * statistics.fmean(values), 2)} %"
    return (str(seed), title, *said, mean, lead)


def _ours(arguments: list[str], epochs: int) -> Found:
    from search.analysis.ranking import rank, winner
    from search.experiment.folder import open_experiment

    with tempfile.TemporaryDirectory(prefix="dws-benchmark-") as results:
        place = ["--results", results, "--name", NAME, "--quiet"]
        limits = ["--epoch-budget", str(epochs), "--set", "confirm.top=0"]
        wall_s, _ = _timed(["-m", "search.run", *arguments, *place, *limits])
        history = open_experiment(NAME, Path(results)).history()
        best = winner(rank(history))
        if best is None or best.score is None:
            raise RunError("search.run completed no trial.")
        return Found(best.config, best.score, len(history.trials), history.n_epochs, wall_s)


def _stock(arguments: list[str], epochs: int) -> Found:
    wall_s, output = _timed(["-m", "benchmarks.replay.stock_search", *arguments, "--epochs", str(epochs)])
    content = json.loads(output.splitlines()[-1])
    winner = Hyperparameters.from_mapping(content["winner"])
    return Found(winner, content["validation_accuracy"], content["trials"], content["epochs"], wall_s)


def _replicate_accuracies(
    space: Space, configs: dict[str, Hyperparameters], n_seeds: int, seed: int
) -> dict[str, list[float]]:
    """Accuracies after the last epoch. Run `i` has the same seed for all configurations."""
    compute = Compute(precision=choose_precision(space.training.precision, "cpu")[0])
    fixed = (space.dataset, compute, space.training.max_epochs, FRESH_SEED + seed)
    # The processes read these when they start.
    os.environ.update(ALLOCATOR_ENVIRONMENT, OMP_NUM_THREADS="1")
    with ProcessPoolExecutor(count_cores(), multiprocessing.get_context("spawn")) as pool:
        futures = {
            title: [pool.submit(last_accuracy, config, i, *fixed) for i in range(n_seeds)]
            for title, config in configs.items()
        }
        return {title: [future.result() for future in several] for title, several in futures.items()}


def last_accuracy(
    config: Hyperparameters, number: int, dataset: Dataset, compute: Compute, max_epochs: int, seed: int
) -> float:
    """Train in this process, with one thread; the last accuracy, 0 to 1, or 0 after divergence."""
    import torch

    from trainable.data.datasets import prepare_training_data
    from trainable.fit_evaluate import FitEvaluate
    from trainable.seeding import RunSeed

    torch.set_num_threads(1)
    data = prepare_training_data(dataset)
    run = FitEvaluate(data.train, data.validation, config, RunSeed(seed, number), compute)
    for _ in range(max_epochs):
        result = run.run_epoch()
        if result.diverged:
            return 0.0
    return result.validation_accuracy


def _timed(arguments: list[str]) -> tuple[float, str]:
    started_s = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RunError(f"{' '.join(arguments[:2])} ended with code {done.returncode}:\n{done.stderr[-4000:]}")
    return time.perf_counter() - started_s, done.stdout


if __name__ == "__main__":
    sys.exit(main())
