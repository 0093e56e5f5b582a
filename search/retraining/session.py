"""Retrains a trial's configuration: checks, progress and result, around `search.retraining.retraining`."""

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from search.analysis.ranking import lead_sentence, rank, winner
from search.experiment.command_lines import command_on, resume_line
from search.experiment.folder import Experiment
from search.experiment.history import History, Trial
from search.processes.helper_pool import count_cores
from search.retraining.answers import tested_sentence, validation_sentence
from search.retraining.retraining import Retraining, must_be_allowed, retrain, unfinished_use_of_test_set
from search.retraining.training_runs import Progress
from spaces.counted import counted
from spaces.errors import InputError
from spaces.printable import printable, shell_word
from trainable.compute import choose_compute, describe_device
from trainable.data.datasets import prepare_training_data
from trainable.metric import ACCURACY, METRICS


def planned(
    experiment: Experiment,
    number: int | None = None,
    n_seeds: int = 3,
    epochs: int | None = None,
    n_passes: int | None = None,
    again: str | None = None,
) -> Retraining:
    """Prepare the images and plan the retraining of a trial's configuration.

    Args:
        number: of the trial; None for the winner.
        n_seeds: number of runs, at least 1.
        epochs: of each run; None for the search's `max_epochs`.
        n_passes: instead of `epochs`, full passes over the training images.
        again: reason to use the test set once more; None where it was not used yet.

    Raises:
        InputError: the folder is in use or not plain, no trial has this number, or no trial wins.
    """
    experiment.must_be_plain()
    experiment.must_be_free()
    trial, space = chosen_trial(experiment, number), experiment.space
    dataset = space.dataset if n_passes is None else space.dataset.model_copy(update={"images_per_epoch": None})
    # The search's precision, on any machine, because the winner won in it.
    compute, _ = choose_compute(space.resources.device, experiment.manifest.device.precision)
    return Retraining(
        experiment=experiment,
        space=space,
        trial=trial,
        dataset=dataset,
        data=prepare_training_data(dataset, show_progress=sys.stderr.isatty()),
        n_seeds=n_seeds,
        epochs=n_passes or epochs or space.training.max_epochs,
        n_passes=n_passes,
        compute=compute,
        n_cores=count_cores(),
        again=again,
    )


def chosen_trial(experiment: Experiment, number: int | None) -> Trial:
    """The trial with this number; the winner for None.

    Raises:
        InputError: no trial has this number, or no trial wins.
    """
    history = experiment.history()
    if number is None:
        number = _winner(experiment, history)
    if number not in history.trials:
        raise InputError(f"--trial is {number}, but must be between 0 and {len(history.trials) - 1}.")
    return history.trials[number]


def _winner(experiment: Experiment, history: History) -> int:
    if not any(trial.status == "completed" for trial in history.counting):
        raise InputError(
            f"{experiment.folder}: no trial has completed, so that there is no winner. "
            f"Resume the search ({resume_line(experiment)}), or name one: --trial ID"
        )
    ranked = rank(history)
    best = winner(ranked)
    if best is None:
        raise InputError(
            f"{experiment.folder}: {lead_sentence(history, ranked)} To retrain one all the same: --trial ID"
        )
    return best.trial


def retrain_and_report(plan: Retraining) -> None:
    """Train with several seeds, test each once, export the first, and print the result.

    Raises:
        InputError: the test set is missing, damaged, or was used before.
        RunError: a run failed; the same command resumes.
    """
    must_be_allowed(plan)
    errors = Console(stderr=True, highlight=False)
    _print_plan(plan, errors)
    with plan.experiment.exclusive():
        try:
            metrics = _with_progress(errors, plan)
        except KeyboardInterrupt:
            print(f"Resume with: {same_command(plan)}", flush=True)
            raise
    print_result(plan.experiment, metrics)


def _print_plan(plan: Retraining, errors: Console) -> None:
    if plan.experiment.manifest.data.content_sha256 != plan.data.decoded.content_sha256:
        errors.print(
            "The training images have changed since the search; its accuracies are of the old ones.", style="yellow"
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
    if opening := unfinished_use_of_test_set(plan):
        print(f"The test set was opened {printable(opening.at)} for these checkpoints; that look is finished now.")
    sys.stdout.flush()
    if plan.epochs * images.epoch_images < len(images):
        errors.print("So few epochs do not see all images: `dataset.images_per_epoch` is small.", style="yellow")


def same_command(plan: Retraining) -> str:
    """The command that resumes this retraining, also after another trial has become the winner."""
    length = f"--epochs {plan.epochs}" if plan.n_passes is None else f"--passes {plan.n_passes}"
    again = f" --again {shell_word(plan.again)}" if plan.again else ""
    more = f"--trial {plan.trial.number} --seeds {plan.n_seeds} {length}{again}"
    return command_on("retrain", plan.experiment, more)


def _with_progress(console: Console, plan: Retraining) -> dict[str, Any]:
    if not console.is_terminal:
        return retrain(plan, lambda progress: print(progress_line(progress, plan.epochs), flush=True))
    with progress_bar(console) as bar:
        total = plan.n_seeds * plan.epochs
        task = bar.add_task("retraining", total=total, completed=plan.n_epochs_saved, latest="")

        def show(progress: Progress) -> None:
            latest = f"seed {progress.number}, accuracy {progress.train_accuracy:.2%}"
            bar.update(task, advance=1, latest=latest)

        return retrain(plan, show)


def progress_bar(console: Console) -> ProgressBar:
    """A bar on one line of at most 60 columns; it ends with a task's field `latest`."""
    return ProgressBar(
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("epochs,"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[latest]}"),
        console=console,
        transient=True,
    )


def progress_line(progress: Progress, epochs: int) -> str:
    """The report of an epoch, for a pipe."""
    return (
        f"seed {progress.number}  epoch {progress.epoch:>3}/{epochs}  accuracy {progress.train_accuracy:.2%}  "
        f"training loss {progress.train_loss:.4f}  {progress.seconds:.1f} s"
    )


def print_result(experiment: Experiment, metrics: dict[str, Any]) -> None:
    """Print validation results, exports, the next command and, in the last line, the test result."""
    print()
    if sentence := validation_sentence(metrics):
        print(f"{sentence}.")
    exports = ", ".join(metrics["exports"])
    print(f"Exported to {printable(experiment.final_folder)}: {exports}, each compared with the network")
    for name, export in metrics["exports"].items():
        if export["n_other_class"]:
            print(
                f"{name} gives {export['n_other_class']} of {export['n_images']} images another class than the "
                f"network: near-ties, {export['max_difference']:.1g} apart at most in log-probability"
            )
    print(f"Next: {command_on('predict', experiment, more='IMAGE…')}")
    for metric in dict.fromkeys((ACCURACY, METRICS[metrics["metric"]])):
        print(f"{tested_sentence(metrics, metric)}.")
