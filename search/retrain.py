"""Retrain the winner, test it once, export it: `python -m search.retrain`."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from search.cli.options import add_experiment_arguments, chosen_experiment
from search.experiment.command_lines import command_on, resume_line
from spaces.command import CommandParser, run_command
from spaces.counted import counted
from spaces.errors import InputError
from spaces.printable import printable, shell_word

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.progress import Progress as RichProgress

    from search.experiment.folder import Experiment
    from search.experiment.history import History, Trial
    from search.retraining.retraining import Retraining
    from search.retraining.training_runs import Progress as EpochProgress


_BAR_COLUMNS = 10


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m search.retrain",
        description=(
            "Train the winning configuration on training and validation images together, with several seeds; "
            "evaluate each seed once on the test images; export the first to EXPERIMENT/final/. Each epoch is saved: "
            "after Ctrl-C, kill -9 or a full disk, the same command resumes."
        ),
        epilog="example: python -m search.retrain --trial 7 --seeds 5",
    )
    add_experiment_arguments(parser)
    parser.add_argument("--trial", type=int, metavar="ID", help="another configuration than the winner's")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs (default: 3)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, metavar="E", help="of each (default: the search's max_epochs)")
    length.add_argument(
        "--passes",
        type=int,
        metavar="N",
        help="instead, N full passes over the training images, the learning rate falling at the same shares of them",
    )
    parser.add_argument("--again", metavar="REASON", help="open the test set once more; the reason is recorded")
    return run_command(parser, _retrain, arguments)


def _retrain(options: argparse.Namespace) -> int:
    from search.processes.guarded_folder import guarded_folder

    # Before torch is imported, which makes a folder for its compiler.
    with guarded_folder():
        return _retrain_guarded(options)


def _retrain_guarded(options: argparse.Namespace) -> int:
    from rich.console import Console

    from search.retraining.retraining import must_be_allowed

    for name in ("seeds", "epochs", "passes"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} is {value}, but must be at least 1.")
    experiment = chosen_experiment(options, options.experiment)
    experiment.must_be_plain()
    experiment.must_be_free()
    errors = Console(stderr=True, highlight=False)
    plan = _planned(experiment, _chosen_trial(experiment, options), options, errors.is_terminal)
    must_be_allowed(plan)
    _tell_plan(plan, errors)
    with experiment.exclusive():
        try:
            metrics = _with_progress(errors, plan)
        except KeyboardInterrupt:
            print(f"Go on with: {_same_command(plan, options)}", flush=True)
            raise
    _print_result(experiment, metrics)
    return 0


def _planned(experiment: Experiment, trial: Trial, options: argparse.Namespace, show_progress: bool) -> Retraining:
    from search.execution.cluster import count_cores
    from search.retraining.passes import Passes
    from search.retraining.retraining import Retraining
    from trainable.compute import choose_compute
    from trainable.data.datasets import prepare_training_data

    space, passes = experiment.space, None
    data = prepare_training_data(space.dataset, show_progress)
    if options.passes is not None:
        passes = Passes.of(space, data, options.passes)
        dataset = space.dataset.model_copy(update={"images_per_epoch": None})
        space = replace(space, dataset=dataset)
        data = prepare_training_data(dataset)
    # In the search's precision, wherever this runs: the winner won in it.
    compute, _ = choose_compute(space.resources.device, experiment.manifest.device.precision)
    return Retraining(
        experiment=experiment,
        space=space,
        trial=trial,
        data=data,
        n_seeds=options.seeds,
        epochs=options.passes or options.epochs or space.training.max_epochs,
        compute=compute,
        n_cores=count_cores(),
        again=options.again,
        passes=passes,
    )


def _tell_plan(plan: Retraining, errors: Console) -> None:
    from search.retraining.retraining import unfinished_use_of_test_set
    from trainable.devices import describe_device

    if plan.experiment.manifest.data.content_sha256 != plan.data.decoded.content_sha256:
        errors.print(
            "The training images have changed since the search; its accuracies are of the old ones.",
            style="yellow",
        )
    images = plan.data.everything
    print(
        f"{printable(plan.experiment.name)}: retraining trial {plan.trial.number} on {len(images):,} images, "
        f"{counted(plan.n_seeds, 'seed')} of {counted(plan.epochs, 'epoch')} of {images.epoch_images:,} images on "
        f"{describe_device(plan.compute.device)} in {plan.compute.precision} (the search's), {plan.n_workers} at once"
    )
    if plan.schedule:
        print(plan.schedule)
    if plan.n_epochs_saved:
        print(f"Resumes: {plan.n_epochs_saved} of {plan.n_seeds * plan.epochs} epochs were trained before.")
    else:
        print("Each epoch is saved: after whatever ends this, the same command resumes.")
    opening = unfinished_use_of_test_set(plan)
    if opening:
        print(f"The test set was opened {printable(opening.at)} for these checkpoints; that look is finished now.")
    sys.stdout.flush()
    if plan.epochs * images.epoch_images < len(images):
        errors.print("So few epochs do not see all images: `dataset.images_per_epoch` is small.", style="yellow")


def _same_command(plan: Retraining, options: argparse.Namespace) -> str:
    """What to type to resume, also when another trial has become the winner meanwhile."""
    more = f" --trial {plan.trial.number}"
    for name in ("seeds", "epochs", "passes", "again"):
        value = getattr(options, name)
        if value is not None:
            more += f" --{name} {shell_word(value)}"
    return command_on("retrain", plan.experiment, more)


def _chosen_trial(experiment: Experiment, options: argparse.Namespace) -> Trial:
    history = experiment.history()
    number: int = _winner(experiment, history) if options.trial is None else options.trial
    if number not in history.trials:
        raise InputError(f"--trial is {number}, but must be between 0 and {len(history.trials) - 1}.")
    return history.trials[number]


def _winner(experiment: Experiment, history: History) -> int:
    from search.analysis.ranking import lead_sentence, rank, winner

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
    from search.retraining.retraining import retrain

    if not console.is_terminal:
        return retrain(plan, lambda progress: print("  ".join(progress_parts(progress, plan.epochs)), flush=True))
    total = plan.n_seeds * plan.epochs
    with progress_bar(console) as bar:
        task = bar.add_task("retraining", total=total, completed=plan.n_epochs_saved, latest="")

        def show(progress: EpochProgress) -> None:
            # The name, the bar, `3/27 epochs, ` and `0:01:23`, with a space between each.
            room = console.width - len("retraining") - _BAR_COLUMNS - 2 * len(str(total)) - len("/epochs,0:00:00") - 5
            bar.update(task, advance=1, latest=parts_that_fit(progress_parts(progress, plan.epochs), room))

        return retrain(plan, show)


def progress_bar(console: Console) -> RichProgress:
    """A bar on one line that fits 60 columns; a task's field `latest` is what else it says."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("retraining"),
        BarColumn(bar_width=_BAR_COLUMNS),
        MofNCompleteColumn(),
        TextColumn("epochs,"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[latest]}"),
        console=console,
        transient=True,
    )


def progress_parts(progress: EpochProgress, epochs: int) -> list[str]:
    """What to say of an epoch, the most important first."""
    return [
        f"seed {progress.number}",
        f"epoch {progress.epoch:>3}/{epochs}",
        f"accuracy {progress.train_accuracy:.2%}",
        f"training loss {progress.train_loss:.4f}",
        f"{progress.seconds:.1f} s",
    ]


def parts_that_fit(parts: Sequence[str], room: int) -> str:
    """As many as have room, whole."""
    while parts and len("  ".join(parts)) > room:
        parts = parts[:-1]
    return "  ".join(parts)


def _print_result(experiment: Experiment, metrics: dict[str, Any]) -> None:
    interval = metrics["test_accuracy_interval_95"]
    spread = f", 95 % interval over seeds {interval[0]:.2%} to {interval[1]:.2%}" if interval else ""
    per_seed = ", ".join(f"{score['accuracy']:.2%}" for score in metrics["test_accuracy_per_seed"])
    print(f"\nTest accuracy {metrics['test_accuracy_mean']:.2%}{spread} (by seed: {per_seed})")
    validation = metrics["search_validation_accuracy"]
    if isinstance(validation, float):
        replicates = metrics["replicates"]
        runs = ""
        if replicates:
            runs = f"; {counted(replicates['n'], 'replicate')} said {replicates['validation_accuracy_mean']:.2%}"
        print(f"The search's validation accuracy was {validation:.2%}{runs}.")
    exports = ", ".join(metrics["exports"])
    print(f"Exported to {printable(experiment.final_folder)}: {exports}, each compared with the network")
    for name, export in metrics["exports"].items():
        if export["n_other_class"]:
            print(
                f"{name} gives {export['n_other_class']} of {export['n_images']} images another class than the "
                f"network: near-ties, {export['max_difference']:.1g} apart at most in log-probability"
            )
    print(f"Next: {command_on('predict', experiment, more='IMAGE…')}")


if __name__ == "__main__":
    sys.exit(main())
