"""Training images per second of the whole machine: `python -m benchmarks.speed.trial_throughput`.

The textbook loop against the project's trials, then the project's with one thing left out at a time, then
evaluation. Variants take turns; each measurement starts fresh processes, warms them up, and counts images only
while all of them are busy.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.speed.images import (
    VALIDATION_FRACTION,
    Images,
    SpaceChoice,
    add_images_argument,
    folder_settings,
    settings_of,
)
from benchmarks.speed.report import (
    best_ratio,
    busy_warning,
    cores_busy,
    factors,
    machine,
    medians,
    number_text,
    print_json,
    progress,
    table_text,
)
from benchmarks.speed.side_by_side import Setup, measure
from search.processes.helper_pool import count_cores
from spaces import Hyperparameters, InputError
from spaces.command import CommandParser, run_command
from trainable.compute import Compute, choose_precision

TEXTBOOK = "textbook"
RECIPE = "full recipe"
TEXTBOOK_EVALUATION = "evaluate: textbook"
RECIPE_EVALUATION = "evaluate: full recipe"


@dataclass(frozen=True, slots=True)
class Variant:
    """A row of the table."""

    name: str
    setup: Setup


@dataclass(frozen=True, slots=True)
class Measured:
    """All runs of each variant, in images per second, and how busy the machine was just before each."""

    runs: dict[str, list[float]]
    cores_busy_before: dict[str, list[float]]


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


def variants(n_cores: int, recipe: Compute) -> list[Variant]:
    """All variants, in the table's order.

    Args:
        n_cores: as many trials at once, one thread each.
        recipe: what the project computes with by default; what it leaves out itself is not listed again.
    """
    full = Setup("train", "ours", n_cores, 1, recipe)
    textbook = Setup("train", "textbook", 1, None, recipe, keep_memory=False)
    plain = replace(recipe, precision="fp32", channels_last=False, fused=False, folded_evaluation=False)
    listed = [
        Variant(TEXTBOOK, textbook),
        Variant("textbook, one trial a core", replace(textbook, n_processes=n_cores, n_threads=1)),
        Variant("one trial alone, 1 thread", replace(full, n_processes=1)),
        Variant(RECIPE, full),
        Variant("fp32", replace(full, compute=replace(recipe, precision="fp32"))),
        Variant("no channels_last", replace(full, compute=replace(recipe, channels_last=False))),
        Variant("torch's own layers", replace(full, compute=replace(recipe, fused=False))),
        Variant("no allocator settings", replace(full, keep_memory=False)),
        Variant("one trial, all threads", replace(full, n_processes=1, n_threads=n_cores)),
        Variant("no augmentation (bound)", replace(full, augmented=False)),
        Variant("all of it off", replace(full, compute=plain, keep_memory=False)),
        *_evaluations(full, textbook, plain),
    ]
    return [v for v in listed if recipe.precision == "bf16" or v.name not in ("fp32", "evaluate: fp32, folded")]


def _evaluations(full: Setup, textbook: Setup, plain: Compute) -> list[Variant]:
    recipe = full.compute
    computes = {
        RECIPE_EVALUATION: recipe,
        "evaluate: not folded": replace(recipe, folded_evaluation=False),
        "evaluate: fp32, folded": replace(recipe, precision="fp32"),
        "evaluate: plain fp32": plain,
    }
    ours = [Variant(name, replace(full, work="evaluate", compute=compute)) for name, compute in computes.items()]
    return [Variant(TEXTBOOK_EVALUATION, replace(textbook, work="evaluate")), *ours]


def table(listed: Sequence[Variant], runs: dict[str, list[float]]) -> str:
    """Images per second and how they compare, a line a variant that was measured."""
    middle = medians(runs)
    rows = []
    for variant in listed:
        if variant.name not in middle:
            continue
        evaluates = variant.setup.work == "evaluate"
        of_textbook = factors(middle, TEXTBOOK_EVALUATION if evaluates else TEXTBOOK)
        of_recipe = factors(middle, RECIPE_EVALUATION if evaluates else RECIPE)
        rows.append(
            (
                variant.name,
                f"{variant.setup.n_processes} x {variant.setup.n_threads or 'default'}",
                number_text(middle[variant.name]),
                number_text(of_textbook.get(variant.name), 2, "x"),
                number_text(of_recipe.get(variant.name), 2, "x"),
                " ".join(number_text(value) for value in runs[variant.name]),
            )
        )
    return table_text(("variant", "trials x threads", "images/s", "textbook", "full recipe", "runs"), rows)


def _run(options: argparse.Namespace) -> int:
    if options.images_count < 64 or options.rounds < 1 or options.seconds <= 0:
        raise InputError("--images-count must be at least 64, --rounds at least 1, and --seconds more than 0.")
    precision, reason = choose_precision(options.precision, "cpu")
    listed = _chosen(variants(count_cores(), Compute(precision=precision)), options.only)
    facts = machine()
    progress(f"{len(listed)} variants, {options.rounds} rounds of {options.seconds:g} s; {precision}: {reason}")
    measured = _measure_all(listed, options)
    print(table(listed, measured.runs))
    settings = {**settings_of(options), "precision": precision, "precision_reason": reason}
    print_json(_content(listed, measured, settings, facts))
    return 0


def _measure_all(listed: Sequence[Variant], options: argparse.Namespace) -> Measured:
    hyperparameters, images = _images(options)
    names = [variant.name for variant in listed]
    measured = Measured({name: [] for name in names}, {name: [] for name in names})
    for round_number in range(1, options.rounds + 1):
        for variant in listed:
            busy = cores_busy()
            value = measure(variant.setup, images, hyperparameters, options.seconds)
            measured.runs[variant.name].append(value)
            measured.cores_busy_before[variant.name].append(busy)
            progress(f"round {round_number}: {variant.name}: {value:,.0f} images/s{busy_warning(busy)}")
    return measured


def _content(
    listed: Sequence[Variant], measured: Measured, settings: dict[str, Any], facts: dict[str, Any]
) -> dict[str, Any]:
    middle = medians(measured.runs)
    return {
        "benchmark": "trial_throughput",
        "images_per_s": {name: {"median": middle[name], "runs": runs} for name, runs in measured.runs.items()},
        "ratio": factors(middle, TEXTBOOK).get(RECIPE),
        "ratio_of_best_runs": best_ratio(measured.runs, RECIPE, TEXTBOOK),
        "cores_busy_before": measured.cores_busy_before,
        "setups": {variant.name: asdict(variant.setup) for variant in listed},
        "settings": settings,
        "machine": facts,
    }


def _chosen(listed: list[Variant], names: Sequence[str] | None) -> list[Variant]:
    known = [variant.name for variant in listed]
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise InputError(f"--only is {unknown[0]!r}, but must be one of: {'; '.join(known)}.")
    return [variant for variant in listed if names is None or variant.name in names]


def _images(options: argparse.Namespace) -> tuple[Hyperparameters, Images]:
    n_images = round(options.images_count / (1 - VALIDATION_FRACTION))
    if options.images is None:
        space = SpaceChoice("cifar10", (f"dataset.validation_fraction={VALIDATION_FRACTION}",)).load()
        return space.baseline, Images(space.dataset, n_images)
    space = SpaceChoice("cifar10", folder_settings(options.images, n_images)).load()
    images = Images(space.dataset, None)
    images.open()  # decodes, once, before anything is timed
    return space.baseline, images


if __name__ == "__main__":
    sys.exit(main())
