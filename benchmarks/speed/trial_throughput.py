"""Training images per second of the whole machine: `python -m benchmarks.speed.trial_throughput`.

Compares the textbook loop with the project's trials, and these with variants that leave one measure out. Variants take
turns. Each measurement starts new processes, warms them up, and counts images only while all of them are busy.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from benchmarks.speed.images import (
    VALIDATION_FRACTION,
    Images,
    SpaceChoice,
    add_images_argument,
    folder_settings,
    settings_of,
)
from benchmarks.speed.report import busy_warning, cores_busy, machine, number_text, print_json, progress, table_text
from benchmarks.speed.side_by_side import Setup, measure
from benchmarks.stats import factors, medians
from search.processes.helper_pool import count_cores
from spaces import Hyperparameters, InputError
from spaces.command import CommandParser, run_command
from trainable.compute import Compute, choose_precision

TEXTBOOK = "textbook"
RECIPE = "full recipe"


Runs = dict[str, list[float]]


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m benchmarks.speed.trial_throughput",
        description="Images per second of the textbook loop and of the project's trials, all cores busy.",
        epilog="example: python -m benchmarks.speed.trial_throughput --rounds 3 --seconds 20",
    )
    add_images_argument(parser, "random pixels of CIFAR-10's shape, which take as long")
    parser.add_argument("--images-count", type=int, default=2048, metavar="N", help="to train on (default: 2048)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each variant (default: 3)")
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement (default: 15)")
    parser.add_argument("--precision", choices=("auto", "bf16"), default="auto", help="of the full recipe")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure the variants of these names only")
    return run_command(parser, _run, arguments)


def variants(n_cores: int, recipe: Compute) -> dict[str, Setup]:
    """Setups by name, in the order of the table.

    Args:
        n_cores: number of trials at once, with one thread each.
        recipe: the project's default choices; a variant that equals them is left out.
    """
    full = Setup("ours", n_cores, 1, recipe)
    textbook = Setup("textbook", 1, None, recipe, keep_memory=False)
    listed = {
        TEXTBOOK: textbook,
        "textbook, one trial a core": replace(textbook, n_processes=n_cores, n_threads=1),
        "one trial alone, 1 thread": replace(full, n_processes=1),
        RECIPE: full,
        "fp32": replace(full, compute=replace(recipe, precision="fp32")),
        "no channels_last": replace(full, compute=replace(recipe, channels_last=False)),
        "torch's own layers": replace(full, compute=replace(recipe, fused=False)),
        "no allocator settings": replace(full, keep_memory=False),
    }
    return {name: setup for name, setup in listed.items() if name == RECIPE or setup != full}


def table(listed: Mapping[str, Setup], runs: Runs) -> str:
    """One line per measured variant, with images per second and their factors."""
    middle = medians(runs)
    of_textbook, of_recipe = factors(middle, TEXTBOOK), factors(middle, RECIPE)
    rows = [
        (
            name,
            f"{setup.n_processes} x {setup.n_threads or 'default'}",
            number_text(middle[name]),
            number_text(of_textbook.get(name), 2, "x"),
            number_text(of_recipe.get(name), 2, "x"),
            " ".join(number_text(value) for value in runs[name]),
        )
        for name, setup in listed.items()
        if name in middle
    ]
    return table_text(("variant", "trials x threads", "images/s", "textbook", "full recipe", "runs"), rows)


def _run(options: argparse.Namespace) -> int:
    if options.images_count < 64 or options.rounds < 1 or options.seconds <= 0:
        raise InputError("--images-count must be at least 64, --rounds at least 1, and --seconds more than 0.")
    precision, reason = choose_precision(options.precision, "cpu")
    listed = _chosen(variants(count_cores(), Compute(precision=precision)), options.only)
    facts = machine()
    progress(f"{len(listed)} variants, {options.rounds} rounds of {options.seconds:g} s; {precision}: {reason}")
    runs, busy = _measure_all(listed, options)
    print(table(listed, runs))
    middle = medians(runs)
    print_json(
        {
            "benchmark": "trial_throughput",
            "images_per_s": {name: {"median": middle[name], "runs": several} for name, several in runs.items()},
            "ratio": factors(middle, TEXTBOOK).get(RECIPE),
            "cores_busy_before": busy,
            "setups": {name: asdict(setup) for name, setup in listed.items()},
            "settings": {**settings_of(options), "precision": precision, "precision_reason": reason},
            "machine": facts,
        }
    )
    return 0


def _measure_all(listed: Mapping[str, Setup], options: argparse.Namespace) -> tuple[Runs, Runs]:
    """Images per second of all runs by variant, and the number of busy cores before each run."""
    hyperparameters, images = _images(options)
    runs: Runs = {name: [] for name in listed}
    busy: Runs = {name: [] for name in listed}
    for round_number in range(1, options.rounds + 1):
        for name, setup in listed.items():
            busy[name].append(cores_busy())
            runs[name].append(measure(setup, images, hyperparameters, options.seconds))
            remark = busy_warning(busy[name][-1])
            progress(f"round {round_number}: {name}: {runs[name][-1]:,.0f} images/s{remark}")
    return runs, busy


def _chosen(listed: dict[str, Setup], names: Sequence[str] | None) -> dict[str, Setup]:
    unknown = [name for name in names or () if name not in listed]
    if unknown:
        raise InputError(f"--only is {unknown[0]!r}, but must be one of: {'; '.join(listed)}.")
    return {name: setup for name, setup in listed.items() if names is None or name in names}


def _images(options: argparse.Namespace) -> tuple[Hyperparameters, Images]:
    n_images = round(options.images_count / (1 - VALIDATION_FRACTION))
    if options.images is None:
        space = SpaceChoice("cifar10", (f"dataset.validation_fraction={VALIDATION_FRACTION}",)).load()
        return space.baseline, Images(space.dataset, n_images)
    space = SpaceChoice("cifar10", folder_settings(options.images, n_images)).load()
    images = Images(space.dataset, None)
    images.open()  # decodes the images before any measurement
    return space.baseline, images


if __name__ == "__main__":
    sys.exit(main())
