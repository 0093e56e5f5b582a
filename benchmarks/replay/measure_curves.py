"""Stores learning curves of random configurations: `python -m benchmarks.replay.measure_curves SPACE --name NAME`.

`benchmarks.replay` replays searches on these tables. No run is stopped early, unless its loss is not finite.
"""

import argparse
import csv
import gzip
import io
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from benchmarks.speed.images import images_facts
from benchmarks.speed.report import machine, progress
from search.policy.study import distributions
from search.processes.helper_pool import count_cores
from spaces import Hyperparameters, InputError, Space, load_space
from spaces.command import DEFAULT_SPACE, CommandParser, add_space_arguments, run_command
from spaces.schema import Dataset
from trainable.compute import Compute, choose_precision
from trainable.environment import ALLOCATOR_ENVIRONMENT
from trainable.files import replacing, write_json

FOLDER = Path(__file__).parent / "curves"
MEASURED = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")


@dataclass(frozen=True, slots=True)
class Job:
    """One configuration to train in another process."""

    number: int
    hyperparameters: Hyperparameters
    seed: int
    epochs: int
    dataset: Dataset
    compute: Compute


@dataclass(frozen=True, slots=True)
class Curve:
    """Learning curve of one configuration.

    Attributes:
        number: number of the configuration.
        epochs: values of `MEASURED` for each epoch; fewer epochs than asked for if the loss was not finite.
        seconds: wall-clock time of training and validation.
    """

    number: int
    epochs: list[list[float]]
    seconds: float


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m benchmarks.replay.measure_curves",
        description="Train random configurations of a space to the end, and store their learning curves.",
        epilog="example: python -m benchmarks.replay.measure_curves quickstart --set training.max_epochs=27 "
        "--set dataset.images_per_epoch=384 --name digits",
    )
    add_space_arguments(parser)
    parser.add_argument("--name", required=True, help=f"of the table: NAME.csv.gz and NAME.json in {FOLDER.name}/")
    parser.add_argument("--configs", type=int, default=160, help="default: 160")
    parser.add_argument("--at-once", type=int, metavar="N", help="runs at once, a thread each (default: one a core)")
    return run_command(parser, _run, arguments)


def random_configs(space: Space, n: int) -> list[Hyperparameters]:
    """Proposals of random search; a larger `n` only appends configurations."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=space.search.seed))
    searched = distributions(space)
    return [space.complete(study.ask(searched).params) for _ in range(n)]


def train(job: Job) -> Curve:
    """Train one configuration in this process, with one thread."""
    import torch

    from trainable.fit_evaluate import FitEvaluate
    from trainable.seeding import RunSeed

    torch.set_num_threads(1)
    data = _data(job.dataset)
    began = time.perf_counter()
    run = FitEvaluate(data.train, data.validation, job.hyperparameters, RunSeed(job.seed, job.number), job.compute)
    epochs: list[list[float]] = []
    while len(epochs) < job.epochs:
        result = run.run_epoch()
        if result.diverged:
            break
        epochs.append([round(getattr(result, name), 6) for name in MEASURED])
    return Curve(job.number, epochs, time.perf_counter() - began)


@cache
def _data(dataset: Dataset) -> Any:
    from trainable.data.datasets import prepare_training_data

    return prepare_training_data(dataset)


def _run(options: argparse.Namespace) -> int:
    if options.configs < 1 or (options.at_once is not None and options.at_once < 1):
        raise InputError("--configs and --at-once must be at least 1.")
    space = load_space(options.space or DEFAULT_SPACE, options.set)
    FOLDER.mkdir(exist_ok=True)
    precision, reason = choose_precision(space.training.precision, "cpu")
    facts = {
        "space": space_facts(space),
        "configs": options.configs,
        "precision": f"{precision}: {reason}",
        "images": images_facts(space.dataset),
        "machine": machine(),
    }
    configs = random_configs(space, options.configs)
    # This takes hours: each curve is saved at once, and a second call continues with the missing curves.
    partial = FOLDER / f".{options.name}.jsonl"
    curves = _read(partial, facts["space"])
    jobs = [
        Job(number, config, space.search.seed, space.training.max_epochs, space.dataset, Compute(precision=precision))
        for number, config in enumerate(configs)
        if number not in curves
    ]
    progress(f"{len(jobs)} of {options.configs} configurations, {space.training.max_epochs} epochs each, {precision}")
    _train_all(jobs, curves, partial, options.at_once or count_cores())
    _write(options.name, space, configs, curves, facts)
    partial.unlink()
    return 0


def space_facts(space: Space) -> dict[str, Any]:
    """The space as a dict, with the name of its image folder instead of the path."""
    content = space.as_dict()
    if space.dataset.root is not None:
        content["dataset"]["root"] = Path(space.dataset.root).name
    return content


def _read(partial: Path, space: dict[str, Any]) -> dict[int, Curve]:
    if not partial.exists():
        partial.write_text(json.dumps(space) + "\n", encoding="utf-8")
        return {}
    first, *lines = partial.read_text(encoding="utf-8").splitlines()
    if json.loads(first) != json.loads(json.dumps(space)):
        raise InputError(f"{partial} was begun with another space: finish that one, or remove the file.")
    return {curve.number: curve for curve in (Curve(**json.loads(line)) for line in lines)}


def _train_all(jobs: list[Job], curves: dict[int, Curve], partial: Path, at_once: int) -> None:
    if not jobs:
        return
    # The processes read these when they start.
    os.environ.update(ALLOCATOR_ENVIRONMENT, OMP_NUM_THREADS="1")
    _data(jobs[0].dataset)  # decode once, before several processes need the images
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(at_once, len(jobs)), context) as pool, partial.open("a", encoding="utf-8") as file:
        futures = [pool.submit(train, job) for job in jobs]
        try:
            for n_done, future in enumerate(as_completed(futures), 1):
                curve = future.result()
                curves[curve.number] = curve
                file.write(json.dumps(asdict(curve)) + "\n")
                file.flush()
                progress(f"{n_done} of {len(jobs)}: {_sentence(curve)}")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _sentence(curve: Curve) -> str:
    last = f"{curve.epochs[-1][-1]:.2%}" if curve.epochs else "-"
    return f"configuration {curve.number}, {len(curve.epochs)} epochs: {last}, {curve.seconds:.0f} s"


def _write(
    name: str, space: Space, configs: list[Hyperparameters], curves: dict[int, Curve], facts: dict[str, Any]
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    parameters = list(space.searched)
    writer.writerow(["config", *parameters, "epoch", *MEASURED])
    for number, config in enumerate(configs):
        values = [format(getattr(config, parameter), ".9g") for parameter in parameters]
        for epoch, measured in enumerate(curves[number].epochs, 1):
            writer.writerow([number, *values, epoch, *measured])
        if not curves[number].epochs:
            writer.writerow([number, *values, "", *[""] * len(MEASURED)])
    with replacing(FOLDER / f"{name}.csv.gz") as temporary:
        temporary.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    last = np.array([curves[number].epochs[-1][-1] if curves[number].epochs else 0.0 for number in range(len(configs))])
    facts["found"] = {
        "diverged": sum(len(curve.epochs) < space.training.max_epochs for curve in curves.values()),
        "last_accuracy_quantiles": {str(q): round(float(np.quantile(last, q)), 4) for q in (0, 0.25, 0.5, 0.75, 1)},
        "seconds_of_all_cores": round(sum(curve.seconds for curve in curves.values())),
    }
    write_json(FOLDER / f"{name}.json", facts)


if __name__ == "__main__":
    sys.exit(main())
