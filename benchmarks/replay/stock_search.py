"""The project's trials under stock Ray Tune, until a number of epochs is used.

Run: `python -m benchmarks.replay.stock_search`.

`OptunaSearch` and `ASHAScheduler` with their defaults propose and judge; `FitEvaluate` trains, in workers that are used
again, which is not Ray's default. What differs from `search.run` is who chooses, not what is trained. The last line is
one JSON object.
"""

import argparse
import os
import sys
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.speed.report import print_json
from benchmarks.speed.textbook_search import METRIC, domain, start_ray, temporary_folder
from search.processes.helper_pool import count_cores
from spaces import Dataset, InputError, Space, load_space
from spaces.command import DEFAULT_SPACE, CommandParser, add_space_arguments, run_command
from spaces.errors import RunError
from spaces.parameters import Hyperparameters
from trainable.compute import Compute, choose_precision


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m benchmarks.replay.stock_search",
        description="Search a space with stock OptunaSearch and ASHAScheduler until the epochs are used.",
        epilog="example: python -m benchmarks.replay.stock_search quickstart --epochs 60",
    )
    add_space_arguments(parser)
    parser.add_argument("--epochs", type=int, required=True, metavar="N", help="of all trials together")
    return run_command(parser, _search, arguments)


def train_trial(
    config: dict[str, Any], dataset: Dataset, fixed: Mapping[str, Any], max_epochs: int, precision: Any, seed: int
) -> None:
    """The trainable: one configuration, reported after each epoch."""
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


def _search(options: argparse.Namespace) -> int:
    if options.epochs < 1:
        raise InputError(f"--epochs is {options.epochs}, but must be at least 1.")
    space = load_space(options.space or DEFAULT_SPACE, options.set)
    with temporary_folder() as folder:
        results = _fit(space, options.epochs, folder)
    if results.num_errors:
        raise RunError(f"{results.num_errors} of {len(results)} trials failed: {results.errors[0]}")
    best = results.get_best_result(METRIC, "max")
    frames = [result.metrics_dataframe for result in results]
    winner = Hyperparameters.from_mapping({**space.baseline.as_dict(), **best.config})
    content = {
        "trials": len(results),
        "epochs": sum(len(frame) for frame in frames if frame is not None),
        "epochs_of_winner": best.metrics["training_iteration"],
        METRIC: best.metrics[METRIC],
        "winner": asdict(winner),
    }
    print_json(content)
    return 0


def _fit(space: Space, epochs: int, folder: Path) -> Any:
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    from trainable.data.datasets import prepare_training_data

    class UntilUsed(tune.Stopper):
        n_epochs = 0

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            self.n_epochs += 1
            return False

        def stop_all(self) -> bool:
            return self.n_epochs >= epochs

    prepare_training_data(space.dataset)
    start_ray(folder)
    trainable = tune.with_parameters(
        train_trial,
        dataset=space.dataset,
        fixed=space.baseline.as_dict(),
        max_epochs=space.training.max_epochs,
        precision=choose_precision(space.training.precision, "cpu")[0],
        seed=space.search.seed,
    )
    tuner = tune.Tuner(
        trainable,
        param_space={name: domain(parameter) for name, parameter in space.searched.items()},
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=epochs,
            max_concurrent_trials=count_cores(),
            search_alg=OptunaSearch(seed=space.search.seed),
            scheduler=ASHAScheduler(max_t=space.training.max_epochs),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(folder / "results"), name="search", verbose=0, stop=UntilUsed()),
    )
    try:
        return tuner.fit()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    # Set before Ray is imported: no reports to anybody, one plain output.
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AIR_NEW_OUTPUT="0", NO_ALBUMENTATIONS_UPDATE="1")
    sys.exit(main())
