"""Stores learning curves of random configurations: `python -m benchmarks.replay.measure_curves SPACE --name NAME`.

`benchmarks.replay` replays searches on these tables. The curves are measured by `search.run`, as the experiment
`results/curves-NAME-SEED`, with random proposals and without stopping. The same command resumes after an interruption.
A run with another `search.seed` adds its configurations to the table, so that it can be measured in parts.
"""

import argparse
import csv
import gzip
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.replay.tables import FOLDER, table_from_text
from benchmarks.speed.images import images_facts
from benchmarks.speed.report import machine
from search.experiment.command_lines import DEFAULT_RESULTS
from search.experiment.folder import is_experiment, open_experiment
from search.experiment.history import Trial
from spaces import InputError, Space, load_space
from spaces.command import DEFAULT_SPACE, CommandParser, add_space_arguments, run_command
from spaces.errors import RunError
from trainable.compute import choose_precision
from trainable.files import replacing, write_json

MEASURED = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
QUANTILES = (0, 0.25, 0.5, 0.75, 1)


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m benchmarks.replay.measure_curves",
        description="Train the baseline and random configurations of a space to the end, and store their curves.",
        epilog="example: python -m benchmarks.replay.measure_curves quickstart --set training.max_epochs=27 "
        "--set dataset.images_per_epoch=384 --name digits",
    )
    add_space_arguments(parser)
    parser.add_argument("--name", required=True, help=f"of the table: NAME.csv.gz and NAME.json in {FOLDER.name}/")
    parser.add_argument("--configs", type=int, default=160, help="default: 160")
    return run_command(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    if options.configs < 1:
        raise InputError("--configs must be at least 1.")
    name = options.space or DEFAULT_SPACE
    space = load_space(name, options.set)
    precision, reason = choose_precision(space.training.precision, "cpu")
    experiment = f"curves-{options.name}-{space.search.seed}"
    _search([name, *search_settings(options.set, options.configs)], experiment)
    trials = open_experiment(experiment, DEFAULT_RESULTS).history().trials.values()
    file = FOLDER / f"{options.name}.csv.gz"
    others = gzip.decompress(file.read_bytes()).decode() if file.exists() else ""
    text = table_text(space, list(trials), others)
    with replacing(file) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), mtime=0))
    images = images_facts(space.dataset)
    curves = table_from_text(options.name, space, text, images["n_validation"]).curves
    facts = {
        "space": space_facts(space),
        "configs": len(curves),
        "precision": f"{precision}: {reason}",
        "images": images,
        "machine": machine(),
        "last_accuracy_quantiles": {str(q): round(float(np.quantile(curves[:, -1], q)), 4) for q in QUANTILES},
    }
    write_json(FOLDER / f"{options.name}.json", facts)
    return 0


def search_settings(overrides: list[str], n_configs: int) -> list[str]:
    """Arguments of `search.run` with which it trains `n_configs` configurations to the end."""
    limits = ("search.epoch_budget=null", "search.time_budget=null", "confirm.top=0")
    random = (f"search.trials={n_configs}", "search.sampler=random", "search.memory=none", "search.asha=off")
    return [word for setting in (*overrides, *random, *limits) for word in ("--set", setting)]


def _search(arguments: list[str], experiment: str) -> None:
    how = "--resume" if is_experiment(DEFAULT_RESULTS / experiment) else "--name"
    done = subprocess.run([sys.executable, "-m", "search.run", *arguments, how, experiment], check=False)
    if done.returncode != 0:
        raise RunError(f"search.run ended with code {done.returncode}. The same command resumes.")


def space_facts(space: Space) -> dict[str, Any]:
    """The space as a dict, with the name of its image folder instead of the path."""
    content = space.as_dict()
    if space.dataset.root is not None:
        content["dataset"]["root"] = Path(space.dataset.root).name
    return content


def table_text(space: Space, trials: list[Trial], others: str = "") -> str:
    """The table as CSV: a row for each epoch before divergence, or a row without an epoch.

    Args:
        space: space of the trials, with the seed of their search.
        trials: of a search; those that have not ended are left out.
        others: a table to which the trials are added, in place of earlier rows of the same seed.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["config", *space.searched, "epoch", *MEASURED])
    seed = space.search.seed
    stored = list(csv.reader(io.StringIO(others)))[1:]
    # A table from before seeds were added has numbers of trials only, those of seed 0.
    writer.writerows(row for row in stored if (row[0].rpartition(".")[0] or "0") != str(seed))
    for trial in trials:
        if trial.status not in ("completed", "diverged"):
            continue
        values = [format(getattr(trial.config, parameter), ".9g") for parameter in space.searched]
        epochs = [epoch for epoch in trial.epochs if not epoch.diverged]
        for epoch in epochs:
            writer.writerow(
                [f"{seed}.{trial.number}", *values, epoch.epoch, *(round(getattr(epoch, key), 6) for key in MEASURED)]
            )
        if not epochs:
            writer.writerow([f"{seed}.{trial.number}", *values, "", *[""] * len(MEASURED)])
    return text.getvalue()


if __name__ == "__main__":
    sys.exit(main())
