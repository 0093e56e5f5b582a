"""Retrain the winner, test it once, export it: `python -m search.retrain`."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from search.options import add_experiment_arguments, chosen_experiment, command_on, resume_line
from spaces.command import CommandParser, run_command
from spaces.errors import InputError
from spaces.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

    from search.experiment import Experiment
    from search.guarded_folder import GuardedFolder
    from search.records import History, Trial
    from search.retraining import Retraining
    from search.training_runs import Progress as EpochProgress


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m search.retrain",
        description=(
            "Train the winning configuration on training and validation images together, with several seeds; "
            "evaluate each seed once on the test images; export the first to EXPERIMENT/final/."
        ),
        epilog="example: python -m search.retrain --trial 7 --seeds 5",
    )
    add_experiment_arguments(parser)
    parser.add_argument("--trial", type=int, metavar="ID", help="another configuration than the winner's")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs (default: 3)")
    parser.add_argument("--epochs", type=int, metavar="E", help="of each (default: the search's max_epochs)")
    parser.add_argument("--again", metavar="REASON", help="open the test set once more; the reason is recorded")
    return run_command(parser, _retrain, arguments)


def _retrain(options: argparse.Namespace) -> int:
    from search.guarded_folder import guarded_folder

    # Before torch is imported, which makes a folder for its compiler.
    with guarded_folder() as guarded:
        return _retrain_guarded(options, guarded)


def _retrain_guarded(options: argparse.Namespace, guarded: GuardedFolder) -> int:
    from rich.console import Console

    from search.cluster import count_cores
    from search.retraining import Retraining, must_be_allowed
    from trainable.compute import choose_compute
    from trainable.datasets import prepare_training_data
    from trainable.devices import describe_device

    for name in ("seeds", "epochs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} is {value}, but must be at least 1.")
    experiment = chosen_experiment(options, options.experiment)
    experiment.must_be_plain()
    experiment.must_be_free()
    trial = _chosen_trial(experiment, options)
    space = experiment.space
    must_be_allowed(experiment, options.again)
    errors = Console(stderr=True, highlight=False)
    data = prepare_training_data(space.dataset, show_progress=errors.is_terminal)
    if experiment.manifest.data.content_sha256 != data.decoded.content_sha256:
        errors.print(
            "The training images have changed since the search; its accuracies are of the old ones.",
            style="yellow",
        )
    # In the search's precision, wherever this runs: the winner won in it.
    compute, _ = choose_compute(space.resources.device, experiment.manifest.device.precision)
    plan = Retraining(
        experiment=experiment,
        space=space,
        trial=trial,
        data=data,
        n_seeds=options.seeds,
        epochs=options.epochs or space.training.max_epochs,
        compute=compute,
        n_cores=count_cores(),
        again=options.again,
        guarded=guarded,
    )
    print(
        f"{printable(experiment.name)}: retraining trial {trial.number} on {len(data.everything):,} images, "
        f"{plan.n_seeds} seeds of {plan.epochs} epochs of {data.everything.epoch_images:,} images on "
        f"{describe_device(compute.device)} in {compute.precision} (the search's), {plan.n_workers} at once",
        flush=True,
    )
    if plan.epochs * data.everything.epoch_images < len(data.everything):
        errors.print("So few epochs do not see all images: `dataset.images_per_epoch` is small.", style="yellow")
    with experiment.exclusive():
        metrics = _with_progress(errors, plan)
    _print_result(experiment, metrics)
    return 0


def _chosen_trial(experiment: Experiment, options: argparse.Namespace) -> Trial:
    history = experiment.history()
    number: int = _winner(experiment, history) if options.trial is None else options.trial
    if number not in history.trials:
        raise InputError(f"--trial is {number}, but must be between 0 and {len(history.trials) - 1}.")
    return history.trials[number]


def _winner(experiment: Experiment, history: History) -> int:
    from search.ranking import lead_sentence, rank, winner

    if not any(trial.status == "completed" for trial in history.counting):
        raise InputError(
            f"{experiment.folder}: no trial has completed, so that there is no winner. "
            f"Go on with the search ({resume_line(experiment)}), or name one: --trial ID"
        )
    chance = experiment.manifest.data.chance
    ranked = rank(history, chance)
    best = winner(ranked)
    if best is None:
        raise InputError(
            f"{experiment.folder}: {lead_sentence(history, ranked, chance)} To retrain one all the same: --trial ID"
        )
    return best.trial


def _with_progress(console: Console, plan: Retraining) -> dict[str, Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from search.retraining import retrain

    def line(progress: EpochProgress) -> str:
        return (
            f"seed {progress.number}  epoch {progress.epoch:>3}/{plan.epochs}  training loss {progress.train_loss:.4f}"
            f"  accuracy {progress.train_accuracy:.2%}  {progress.seconds:.1f} s"
        )

    if not console.is_terminal:
        return retrain(plan, lambda progress: print(line(progress), flush=True))
    columns = (
        TextColumn("retraining"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs,"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, TextColumn("{task.fields[latest]}"), console=console, transient=True) as bar:
        task = bar.add_task("retraining", total=plan.n_seeds * plan.epochs, latest="")
        return retrain(plan, lambda progress: bar.update(task, advance=1, latest=line(progress)))


def _print_result(experiment: Experiment, metrics: dict[str, Any]) -> None:
    interval = metrics["test_accuracy_interval_95"]
    spread = f", 95 % interval over seeds {interval[0]:.2%} to {interval[1]:.2%}" if interval else ""
    per_seed = ", ".join(f"{score['accuracy']:.2%}" for score in metrics["test_accuracy_per_seed"])
    print(f"\nTest accuracy {metrics['test_accuracy_mean']:.2%}{spread} (by seed: {per_seed})")
    validation = metrics["search_validation_accuracy"]
    if isinstance(validation, float):
        fresh = metrics["fresh_runs"]
        runs = f"; {fresh['n']} fresh runs said {fresh['validation_accuracy_mean']:.2%}" if fresh else ""
        print(f"The search's validation accuracy was {validation:.2%}{runs}.")
    exports = ", ".join(metrics["exports"])
    print(f"Exported to {printable(experiment.final_folder)}: {exports}, each compared with the network")
    print(f"Next: {command_on('predict', experiment, more='IMAGE…')}")


if __name__ == "__main__":
    sys.exit(main())
