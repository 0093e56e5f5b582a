"""The same search as most people would write it with Ray Tune: `python -m benchmarks.speed.textbook_search`.

Stock `OptunaSearch` and `ASHAScheduler`, a function trainable, Ray's default resources (one core a trial), data by
`tune.with_parameters`, a checkpoint with `torch.save` each epoch. What costs nothing to set is set in its favour:
the cores that this process may use, no dashboard, a small object store, no output.
"""

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.speed.report import print_json
from spaces import InputError, Space, load_space
from spaces.command import DEFAULT_SPACE, CommandParser, add_space_arguments, run_command
from spaces.parameters import Choice, Hyperparameters, LogUniform, RandInt, Searched, Uniform

METRIC = "validation_accuracy"
OBJECT_STORE_BYTES = 100 * 1024 * 1024


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m benchmarks.speed.textbook_search",
        description="Search a space with a plain Ray Tune script; the last line is one JSON object.",
        epilog="example: python -m benchmarks.speed.textbook_search quickstart --set search.trials=4",
    )
    add_space_arguments(parser)
    parser.add_argument("--loader-workers", type=int, default=2, metavar="N", help="of each DataLoader (default: 2)")
    return run_command(parser, _search, arguments)


def train_trial(
    config: dict[str, Any], images: Any, fixed: Mapping[str, Any], max_epochs: int, n_loader_workers: int
) -> None:
    """The trainable: one configuration, reported and saved after each epoch."""
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
    if space.dataset.images_per_epoch is not None:
        raise InputError("`dataset.images_per_epoch` is set, but a plain script's epoch is all images. Leave it out.")
    with temporary_folder() as folder:
        content = _outcome(_fit(space, options.loader_workers, folder))
    content["wall_s"] = round(time.perf_counter() - started_s, 3)
    print(
        f"{content['trials']} trials, {content['epochs']} epochs, best validation accuracy "
        f"{content['best_validation_accuracy']}, {content['wall_s']} s"
    )
    print_json(content)
    return 0


def _outcome(results: Any) -> dict[str, Any]:
    frames = [result.metrics_dataframe for result in results]
    accuracies = [frame[METRIC] for frame in frames if frame is not None and METRIC in frame]
    return {
        "trials": len(results),
        "failed_trials": results.num_errors,
        "epochs": sum(map(len, accuracies)),
        "best_validation_accuracy": max((float(column.max()) for column in accuracies), default=None),
    }


def _fit(space: Space, n_loader_workers: int, folder: Path) -> Any:
    import ray
    from ray import tune

    from benchmarks.speed.textbook import TextbookImages
    from trainable.data.datasets import prepare_training_data

    images = TextbookImages.of(prepare_training_data(space.dataset))
    start_ray(folder, 3 * images.train_images.nbytes)
    trainable = tune.with_parameters(
        train_trial,
        images=images,
        fixed=space.baseline.as_dict(),
        max_epochs=space.training.max_epochs,
        n_loader_workers=n_loader_workers,
    )
    tuner = tune.Tuner(
        trainable,
        param_space={name: domain(parameter) for name, parameter in space.searched.items()},
        tune_config=_tune_config(space),
        run_config=tune.RunConfig(storage_path=str(folder / "results"), name="search", verbose=0),
    )
    try:
        return tuner.fit()
    finally:
        ray.shutdown()


def _tune_config(space: Space) -> Any:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    return tune.TuneConfig(
        metric=METRIC,
        mode="max",
        num_samples=space.search.most_trials,
        search_alg=OptunaSearch(points_to_evaluate=[space.baseline_suggestion()], seed=space.search.seed),
        scheduler=ASHAScheduler(
            max_t=space.training.max_epochs,
            grace_period=space.search.grace_epochs,
            reduction_factor=space.search.reduction_factor,
        ),
    )


def start_ray(folder: Path, images_bytes: int = 0) -> None:
    """A cluster of this machine's cores alone, whose files lie in `folder`."""
    import ray

    # What killed trials and their loaders leave behind is removed with the folder.
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


def domain(parameter: Searched) -> Any:
    """The parameter as Ray's users write it."""
    from ray import tune

    match parameter:
        case Uniform(low, high):
            return tune.uniform(low, high)
        case LogUniform(low, high):
            return tune.loguniform(low, high)
        case RandInt(low, high):
            return tune.randint(low, high + 1)  # Ray leaves the upper end out
        case Choice(options):
            return tune.choice(list(options))


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Removed at the end."""
    # Not under a long TMPDIR: a socket's path has at most 107 bytes.
    folder = tempfile.mkdtemp(prefix="txb-", dir=tempfile.gettempdir() if len(tempfile.gettempdir()) <= 30 else "/tmp")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    # Set before Ray is imported: no reports to anybody, one plain output.
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AIR_NEW_OUTPUT="0", NO_ALBUMENTATIONS_UPDATE="1")
    sys.exit(main())
