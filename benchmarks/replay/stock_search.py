"""Searches a space with stock Ray Tune: `python -m benchmarks.replay.stock_search`.

`OptunaSearch` and `ASHAScheduler` with their defaults propose and stop. With `--epochs`, `FitEvaluate` trains in
reused workers until so many epochs are used: the same trials as in `search.run`, with another search algorithm. With
`--textbook`, the trials are a plain script: `benchmarks.speed.textbook` trains, each epoch is saved with `torch.save`,
and Ray has its default resources (one core per trial). The last line of output is one JSON object.
"""

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.speed.report import print_json
from search.processes.helper_pool import count_cores
from spaces import Dataset, InputError, Space, load_space
from spaces.command import DEFAULT_SPACE, CommandParser, add_space_arguments, run_command
from spaces.errors import RunError
from spaces.parameters import Choice, Hyperparameters, LogUniform, RandInt, Searched, Uniform
from trainable.compute import Compute, choose_precision

METRIC = "validation_accuracy"
OBJECT_STORE_BYTES = 100 * 1024 * 1024


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m benchmarks.replay.stock_search",
        description="Search a space with stock OptunaSearch and ASHAScheduler.",
        epilog="example: python -m benchmarks.replay.stock_search quickstart --epochs 60",
    )
    add_space_arguments(parser)
    parser.add_argument("--epochs", type=int, metavar="N", help="total of all trials, instead of search.trials")
    parser.add_argument("--textbook", action="store_true", help="train with a plain script instead of FitEvaluate")
    parser.add_argument("--loader-workers", type=int, default=2, metavar="N", help="of --textbook (default: 2)")
    return run_command(parser, _search, arguments)


def train_trial(
    config: dict[str, Any], dataset: Dataset, fixed: Mapping[str, Any], max_epochs: int, precision: Any, seed: int
) -> None:
    """Function trainable of the project's trials: report the accuracy after each epoch."""
    import torch
    from ray import tune

    from trainable.data.datasets import prepare_training_data
    from trainable.fit_evaluate import FitEvaluate
    from trainable.seeding import RunSeed

    torch.set_num_threads(1)
    data = prepare_training_data(dataset)
    number = zlib.crc32(tune.get_context().get_trial_id().encode())
    hyperparameters = Hyperparameters.from_mapping({**fixed, **config})
    run = FitEvaluate(data.train, data.validation, hyperparameters, RunSeed(seed, number), Compute(precision=precision))
    for _ in range(max_epochs):
        tune.report({METRIC: run.run_epoch().validation_accuracy})


def train_textbook(
    config: dict[str, Any], images: Any, fixed: Mapping[str, Any], max_epochs: int, n_loader_workers: int
) -> None:
    """Function trainable of the plain script: report metrics and save a checkpoint after each epoch."""
    import torch
    from ray import tune

    from benchmarks.speed.textbook import TextbookTraining

    training = TextbookTraining(images, Hyperparameters.from_mapping({**fixed, **config}), n_loader_workers)
    for _ in range(max_epochs):
        train_loss = training.train_epoch()
        validation_loss, validation_accuracy = training.evaluate()
        metrics = {"train_loss": train_loss, "validation_loss": validation_loss, METRIC: validation_accuracy}
        with tempfile.TemporaryDirectory() as folder:
            state = {
                "model": training.model.state_dict(),
                "optimizer": training.optimizer.state_dict(),
                "scheduler": training.scheduler.state_dict(),
            }
            torch.save(state, Path(folder) / "checkpoint.pt")
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))


def _search(options: argparse.Namespace) -> int:
    started_s = time.perf_counter()
    space = load_space(options.space or DEFAULT_SPACE, options.set)
    if options.textbook == (options.epochs is not None):
        raise InputError("Give either --epochs or --textbook.")
    if options.epochs is not None and options.epochs < 1:
        raise InputError(f"--epochs is {options.epochs}, but must be at least 1.")
    if options.textbook and space.dataset.images_per_epoch is not None:
        raise InputError("`dataset.images_per_epoch` is set, but a plain script's epoch is all images. Leave it out.")
    with temporary_folder() as folder:
        trainable, images_bytes = _textbook(space, options.loader_workers) if options.textbook else _project(space)
        results = _fit(trainable, images_bytes, space, options.epochs, folder)
    if results.num_errors:
        raise RunError(f"{results.num_errors} of {len(results)} trials failed: {results.errors[0]}")
    print_json({**_outcome(results, space), "wall_s": round(time.perf_counter() - started_s, 3)})
    return 0


def _outcome(results: Any, space: Space) -> dict[str, Any]:
    best = results.get_best_result(METRIC, "max")
    accuracies = [result.metrics_dataframe[METRIC] for result in results if result.metrics_dataframe is not None]
    return {
        "trials": len(results),
        "epochs": sum(map(len, accuracies)),
        "best_validation_accuracy": max(float(column.max()) for column in accuracies),
        METRIC: best.metrics[METRIC],
        "winner": asdict(Hyperparameters.from_mapping({**space.baseline.as_dict(), **best.config})),
    }


def _project(space: Space) -> tuple[tuple[Any, dict[str, Any]], int]:
    from trainable.data.datasets import prepare_training_data

    prepare_training_data(space.dataset)
    precision = choose_precision(space.training.precision, "cpu")[0]
    return (train_trial, {"dataset": space.dataset, "precision": precision, "seed": space.search.seed}), 0


def _textbook(space: Space, n_loader_workers: int) -> tuple[tuple[Any, dict[str, Any]], int]:
    from benchmarks.speed.textbook import TextbookImages
    from trainable.data.datasets import prepare_training_data

    images = TextbookImages.of(prepare_training_data(space.dataset))
    return (train_textbook, {"images": images, "n_loader_workers": n_loader_workers}), 3 * images.train_images.nbytes


def _fit(
    trainable: tuple[Any, dict[str, Any]], images_bytes: int, space: Space, epochs: int | None, folder: Path
) -> Any:
    import ray
    from ray import tune

    class UntilUsed(tune.Stopper):
        n_epochs = 0

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            self.n_epochs += 1
            return False

        def stop_all(self) -> bool:
            return epochs is not None and self.n_epochs >= epochs

    function, parameters = trainable
    fixed = {"fixed": space.baseline.as_dict(), "max_epochs": space.training.max_epochs}
    _start_ray(folder, images_bytes)
    tuner = tune.Tuner(
        tune.with_parameters(function, **fixed, **parameters),
        param_space={name: _domain(parameter) for name, parameter in space.searched.items()},
        tune_config=_tune_config(space, epochs),
        run_config=tune.RunConfig(storage_path=str(folder / "results"), name="search", verbose=0, stop=UntilUsed()),
    )
    try:
        return tuner.fit()
    finally:
        ray.shutdown()


def _tune_config(space: Space, epochs: int | None) -> Any:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    max_epochs, seed = space.training.max_epochs, space.search.seed
    if epochs is not None:
        return tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=epochs,
            max_concurrent_trials=count_cores(),
            search_alg=OptunaSearch(seed=seed),
            scheduler=ASHAScheduler(max_t=max_epochs),
            reuse_actors=True,
        )
    return tune.TuneConfig(
        metric=METRIC,
        mode="max",
        num_samples=space.search.most_trials,
        search_alg=OptunaSearch(points_to_evaluate=[space.searched_values(space.baseline)], seed=seed),
        scheduler=ASHAScheduler(
            max_t=max_epochs, grace_period=space.search.grace_epochs, reduction_factor=space.search.reduction_factor
        ),
    )


def _start_ray(folder: Path, images_bytes: int) -> None:
    """Start a cluster on the cores of this process, with its files in `folder`."""
    import ray

    # Files that killed trials and their loaders leave behind are removed with the folder.
    os.environ["TMPDIR"] = str(folder)
    ray.init(
        address="local",
        num_cpus=len(os.sched_getaffinity(0)),
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=max(OBJECT_STORE_BYTES, images_bytes),
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(folder),
    )
    logging.getLogger("ray.tune").setLevel(logging.ERROR)


def _domain(parameter: Searched) -> Any:
    from ray import tune

    match parameter:
        case Uniform(low, high):
            return tune.uniform(low, high)
        case LogUniform(low, high):
            return tune.loguniform(low, high)
        case RandInt(low, high):
            return tune.randint(low, high + 1)  # Ray excludes the upper end
        case Choice(options):
            return tune.choice(list(options))


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A temporary folder that is removed after the block."""
    # Not under a long TMPDIR: a socket's path has at most 107 bytes.
    folder = tempfile.mkdtemp(prefix="txb-", dir=tempfile.gettempdir() if len(tempfile.gettempdir()) <= 30 else "/tmp")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    # Set before Ray is imported: no usage reports, plain output.
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AIR_NEW_OUTPUT="0", NO_ALBUMENTATIONS_UPDATE="1")
    sys.exit(main())
