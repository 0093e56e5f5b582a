"""Wall-clock time of a whole search, from launch to exit: `python -m benchmarks.speed.whole_search`.

The textbook script (`benchmarks.replay.stock_search --textbook`) and `python -m search.run` take turns at searching
the same space, with the same images and the same number of trials and epochs. Images are decoded before the first.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.images import add_images_argument, folder_settings, images_facts, settings_of
from benchmarks.speed.report import busy_warning, cores_busy, machine, number_text, print_json, progress, table_text
from benchmarks.stats import medians
from spaces import InputError, load_space
from spaces.command import CommandParser, run_command
from spaces.errors import RunError

TEXTBOOK = "textbook"
OURS = "search.run"
ROOT = Path(__file__).parents[2]
NAME = "measured"


@dataclass(frozen=True, slots=True)
class SearchRun:
    """Result of one command.

    Attributes:
        wall_s: wall-clock time from launch to exit.
        cores_busy_before: number of busy cores just before the launch.
        trials, epochs: total numbers of trials and epochs.
        best_validation_accuracy: best accuracy of any epoch of any trial, 0 to 1.
        overhead_share, idle_share: values of the experiment's manifest; None if it has none.
    """

    wall_s: float
    cores_busy_before: float
    trials: int
    epochs: int
    best_validation_accuracy: float | None
    overhead_share: float | None = None
    idle_share: float | None = None

    @property
    def wall_s_per_epoch(self) -> float:
        return self.wall_s / self.epochs


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m benchmarks.speed.whole_search",
        description="Wall-clock seconds of the same search by a plain Ray Tune script and by search.run.",
        epilog="example: python -m benchmarks.speed.whole_search --images ~/cifar10-images --rounds 3",
    )
    add_images_argument(parser, "the embedded digits and the quickstart's space")
    parser.add_argument("--train-limit", type=int, default=2560, metavar="N", help="of --images (default: 2560)")
    parser.add_argument("--trials", type=int, default=12, help="default: 12")
    parser.add_argument("--max-epochs", type=int, default=9, help="of a trial, 3^k (default: 9)")
    parser.add_argument("--rounds", type=int, default=3, help="searches of each kind (default: 3)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for both searches")
    return run_command(parser, _run, arguments)


def choice(options: argparse.Namespace, seed: int) -> tuple[str, tuple[str, ...]]:
    """Name and settings of the space of both commands in one round; the seed is the number of the round."""
    settings = (
        f"training.max_epochs={options.max_epochs}",
        f"search.trials={options.trials}",
        "confirm.top=0",  # the script trains no replicates
        "search.grace_epochs=1",
        "search.reduction_factor=3",
        f"search.seed={seed}",
    )
    if options.images is None:
        return "quickstart", (*settings, *options.set)
    # The shipped range of step_size is for 27 epochs; the new range still includes the baseline's 5.
    shorter = (f"space.step_size={{randint: [1, {max(5, options.max_epochs)}]}}", "training.batch_size=64")
    alike = ("search.asha=stop", "search.memory=none")  # as the script's search
    return "cifar10", (*folder_settings(options.images, options.train_limit), *settings, *shorter, *alike, *options.set)


def summary(runs: dict[str, list[SearchRun]]) -> dict[str, Any]:
    """Medians over the rounds, and the ratio of the textbook's to ours."""
    found: dict[str, Any] = {
        key: medians({name: [getattr(run, key) for run in several] for name, several in runs.items()})
        for key in ("wall_s", "wall_s_per_epoch", "epochs")
    }
    for key, ratio in (("wall_s", "ratio"), ("wall_s_per_epoch", "ratio_per_epoch")):
        found[ratio] = found[key][TEXTBOOK] / found[key][OURS]
    return found


def table(runs: dict[str, list[SearchRun]]) -> str:
    """One line per command and round."""
    rows = [
        (
            name,
            str(number),
            number_text(run.wall_s, 1),
            str(run.trials),
            str(run.epochs),
            number_text(run.wall_s_per_epoch, 2),
            _percent(run.best_validation_accuracy, 2),
            _percent(run.overhead_share, 1),
            _percent(run.idle_share, 1),
        )
        for name, several in runs.items()
        for number, run in enumerate(several, 1)
    ]
    header = ("search", "round", "wall s", "trials", "epochs", "wall s/epoch", "best accuracy", "overhead", "idle")
    return table_text(header, rows)


def _run(options: argparse.Namespace) -> int:
    from trainable.data.datasets import prepare_training_data

    if options.rounds < 1:
        raise InputError(f"--rounds is {options.rounds}, but must be at least 1.")
    facts = machine()
    name, settings = choice(options, 1)
    prepare_training_data(load_space(name, settings).dataset)
    runs: dict[str, list[SearchRun]] = {TEXTBOOK: [], OURS: []}
    try:
        for round_number in range(1, options.rounds + 1):
            for name, several in runs.items():
                progress(f"round {round_number} of {options.rounds}: {name} starts")
                space, settings = choice(options, round_number)
                words = [space, *(word for setting in settings for word in ("--set", setting))]
                several.append(_ours(words) if name == OURS else _textbook(words))
                run = several[-1]
                busy = busy_warning(run.cores_busy_before)
                progress(f"round {round_number}: {name}: {run.wall_s:.1f} s, {run.epochs} epochs{busy}")
    finally:
        # Print also if a later round fails: an earlier round may have taken an hour.
        if runs[OURS]:
            _print(options, runs, facts)
    return 0


def _print(options: argparse.Namespace, runs: dict[str, list[SearchRun]], facts: dict[str, Any]) -> None:
    found, space = summary(runs), load_space(*choice(options, 1))
    print(table(runs))
    print(
        f"\nmedian wall-clock: {found['wall_s'][TEXTBOOK]:.1f} s against {found['wall_s'][OURS]:.1f} s, "
        f"a factor of {found['ratio']:.2f} (by the epoch {found['ratio_per_epoch']:.2f})"
    )
    shown = {key: space.as_dict()[key] for key in ("training", "search", "space", "baseline")}
    print_json(
        {
            "benchmark": "whole_search",
            "medians": found,
            "ratio": found["ratio"],
            "runs": {name: [asdict(run) for run in several] for name, several in runs.items()},
            "settings": {**settings_of(options), **images_facts(space.dataset), "first_round": shown},
            "machine": facts,
        }
    )


def _textbook(words: Sequence[str]) -> SearchRun:
    wall_s, busy, output = _timed(["-m", "benchmarks.replay.stock_search", "--textbook", *words])
    content = json.loads(output.splitlines()[-1])
    return SearchRun(wall_s, busy, content["trials"], content["epochs"], content["best_validation_accuracy"])


def _ours(words: Sequence[str]) -> SearchRun:
    with tempfile.TemporaryDirectory(prefix="dws-benchmark-") as results:
        where = ["--results", results, "--name", NAME, "--quiet"]
        wall_s, busy, _ = _timed(["-m", "search.run", *words, *where])
        return _read_experiment(Path(results), wall_s, busy)


def _read_experiment(results: Path, wall_s: float, busy: float) -> SearchRun:
    from search.experiment.folder import open_experiment

    experiment = open_experiment(NAME, results)
    history, session = experiment.history(), experiment.manifest.sessions[-1]
    best = max((epoch.validation_accuracy for epoch in history.results_in_order), default=None)
    return SearchRun(
        wall_s, busy, len(history.trials), history.n_epochs, best, session.overhead_share, session.idle_share
    )


def _timed(arguments: Sequence[str]) -> tuple[float, float, str]:
    """Run a command: seconds from launch to exit, busy cores before it, and its output."""
    busy = cores_busy()
    started_s = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    wall_s = time.perf_counter() - started_s
    if done.returncode != 0:
        raise RunError(f"{' '.join(arguments[:2])} ended with code {done.returncode}:\n{done.stderr[-4000:]}")
    return wall_s, busy, done.stdout


def _percent(share: float | None, digits: int) -> str:
    return number_text(None if share is None else 100 * share, digits, " %")


if __name__ == "__main__":
    sys.exit(main())
