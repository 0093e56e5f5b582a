"""Retrains a trial's configuration: checks, progress and result, around `search.retraining.retraining`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from search.analysis.ranking import lead_sentence, rank, winner
from search.experiment.command_lines import command_on, resume_line
from search.experiment.folder import Experiment
from search.experiment.history import History, Trial
from search.processes.guarded_folder import guarded_folder
from search.processes.helper_pool import count_cores
from spaces.counted import counted
from spaces.errors import InputError
from spaces.printable import printable, shell_word

if TYPE_CHECKING:
    from search.retraining.retraining import Retraining
    from search.retraining.training_runs import Progress

_BAR_COLUMNS = 10


@dataclass(frozen=True, kw_only=True)
class RetrainRequest:
    """What the caller asks of a retraining.

    Attributes:
        experiment: the search whose trial is retrained.
        trial: its number; None for the winner.
        seeds: number of runs, at least 1.
        epochs: of each run; None for the search's `max_epochs`.
        passes: instead of `epochs`, full passes over the training images.
        again: reason to use the test set once more; None where it was not used yet.
    """

    experiment: Experiment
    trial: int | None = None
    seeds: int = 3
    epochs: int | None = None
    passes: int | None = None
    again: str | None = None


def retrain_and_test(request: RetrainRequest) -> None:
    """Train with several seeds, test each once, export the first, and print the result.

    Raises:
        InputError: the request cannot be met.
        RunError: a run failed; the same request resumes.
    """
    with guarded_folder():  # before torch is imported, because torch creates a folder for its compiler
        from search.retraining.retraining import must_be_allowed

        experiment = request.experiment
        experiment.must_be_plain()
        experiment.must_be_free()
        errors = Console(stderr=True, highlight=False)
        plan = planned(request, chosen_trial(request), errors.is_terminal)
        must_be_allowed(plan)
        _print_plan(plan, errors)
        with experiment.exclusive():
            try:
                metrics = _with_progress(errors, plan)
            except KeyboardInterrupt:
                print(f"Resume with: {same_command(plan, request)}", flush=True)
                raise
        print_result(experiment, metrics)


def planned(request: RetrainRequest, trial: Trial, show_progress: bool) -> Retraining:
    """Prepare the images and plan the runs of `trial`'s configuration."""
    from search.retraining.passes import Passes
    from search.retraining.retraining import Retraining
    from trainable.compute import choose_compute
    from trainable.data.datasets import prepare_training_data

    experiment = request.experiment
    space, passes = experiment.space, None
    data = prepare_training_data(space.dataset, show_progress)
    if request.passes is not None:
        passes = Passes.of(space, data, request.passes)
        dataset = space.dataset.model_copy(update={"images_per_epoch": None})
        space = replace(space, dataset=dataset)
        data = prepare_training_data(dataset)
    # The search's precision, on any machine, because the winner won in it.
    compute, _ = choose_compute(space.resources.device, experiment.manifest.device.precision)
    return Retraining(
        experiment=experiment,
        space=space,
        trial=trial,
        data=data,
        n_seeds=request.seeds,
        epochs=request.passes or request.epochs or space.training.max_epochs,
        compute=compute,
        n_cores=count_cores(),
        again=request.again,
        passes=passes,
    )


def _print_plan(plan: Retraining, errors: Console) -> None:
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


def same_command(plan: Retraining, request: RetrainRequest) -> str:
    """The command that resumes this retraining, also after another trial has become the winner."""
    more = f" --trial {plan.trial.number}"
    for name in ("seeds", "epochs", "passes", "again"):
        value = getattr(request, name)
        if value is not None:
            more += f" --{name} {shell_word(value)}"
    return command_on("retrain", plan.experiment, more)


def chosen_trial(request: RetrainRequest) -> Trial:
    """The trial to retrain.

    Raises:
        InputError: no trial has this number, or no trial wins.
    """
    history = request.experiment.history()
    number: int = _winner(request.experiment, history) if request.trial is None else request.trial
    if number not in history.trials:
        raise InputError(f"--trial is {number}, but must be between 0 and {len(history.trials) - 1}.")
    return history.trials[number]


def _winner(experiment: Experiment, history: History) -> int:
    if not any(trial.status == "completed" for trial in history.counting):
        raise InputError(
            f"{experiment.folder}: no trial has completed, so that there is no winner. "
            f"Resume the search ({resume_line(experiment)}), or name one: --trial ID"
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

        def show(progress: Progress) -> None:
            # The name, the bar, `3/27 epochs, ` and `0:01:23`, with a space between each.
            room = console.width - len("retraining") - _BAR_COLUMNS - 2 * len(str(total)) - len("/epochs,0:00:00") - 5
            bar.update(task, advance=1, latest=parts_that_fit(progress_parts(progress, plan.epochs), room))

        return retrain(plan, show)


def progress_bar(console: Console) -> RichProgress:
    """A bar on one line of at most 60 columns; it ends with a task's field `latest`."""
    return RichProgress(
        TextColumn("retraining"),
        BarColumn(bar_width=_BAR_COLUMNS),
        MofNCompleteColumn(),
        TextColumn("epochs,"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[latest]}"),
        console=console,
        transient=True,
    )


def progress_parts(progress: Progress, epochs: int) -> list[str]:
    """The report of an epoch, most important parts first."""
    return [
        f"seed {progress.number}",
        f"epoch {progress.epoch:>3}/{epochs}",
        f"accuracy {progress.train_accuracy:.2%}",
        f"training loss {progress.train_loss:.4f}",
        f"{progress.seconds:.1f} s",
    ]


def parts_that_fit(parts: Sequence[str], room: int) -> str:
    """The first parts that fit into `room` characters, uncut."""
    while parts and len("  ".join(parts)) > room:
        parts = parts[:-1]
    return "  ".join(parts)


def print_result(experiment: Experiment, metrics: dict[str, Any]) -> None:
    """Print test accuracies, exports and the next command."""
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
