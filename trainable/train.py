"""Train one configuration without Ray: `python -m trainable.train`."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from spaces.command import DEFAULT_SPACE, CommandParser, add_space_arguments, run_command
from spaces.printable import printable

if TYPE_CHECKING:
    from spaces import Space


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m trainable.train",
        description="Train the baseline of a space on its training images and evaluate it on its validation images.",
        epilog="example: python -m trainable.train quickstart --set baseline.lr=0.02 --epochs 3",
    )
    add_space_arguments(parser)
    parser.add_argument("--epochs", type=int, help="epochs to train (default: the space's training.max_epochs)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default: the space's resources.device")
    parser.add_argument(
        "--show-augmentations",
        type=Path,
        metavar="FILE",
        help="do not train, but draw augmented training images as a PNG",
    )
    return run_command(parser, _train, arguments)


def _train(options: argparse.Namespace) -> int:
    from spaces import load_space

    space = load_space(options.space or DEFAULT_SPACE, options.set)
    if options.show_augmentations is not None:
        return _show_augmentations(space, options.show_augmentations)
    from trainable.environment import cache_root, environment_with

    # torch creates an empty compiler cache when it trains. By default it would remain among the temporary files.
    with environment_with({"TORCHINDUCTOR_CACHE_DIR": str(cache_root() / "inductor")}):
        return _train_baseline(options, space)


def _show_augmentations(space: Space, path: Path) -> int:
    from spaces import InputError
    from trainable.data.augmentation_samples import augmentation_samples, draw_grid, sample_images
    from trainable.data.datasets import prepare_training_data

    if path.suffix.lower() != ".png":
        raise InputError(f"--show-augmentations is {path}, but must be the name of a PNG: FILE.png")
    if not path.parent.is_dir():
        raise InputError(f"--show-augmentations is {path}, but {path.parent} is not a folder. Make it first.")
    decoded = prepare_training_data(space.dataset).decoded
    draw_grid(path, augmentation_samples(sample_images(decoded), space.baseline, decoded.mean, space.search.seed))
    print(printable(f"{path}: training images, each transform alone, and {space.name}'s baseline as it trains"))
    return 0


def _train_baseline(options: argparse.Namespace, space: Space) -> int:
    from rich.console import Console

    from spaces import InputError
    from trainable.compute import choose_compute
    from trainable.data.datasets import prepare_training_data
    from trainable.fit_evaluate import EpochResult, FitEvaluate
    from trainable.network.model import summary
    from trainable.seeding import RunSeed

    n_epochs = space.training.max_epochs if options.epochs is None else options.epochs
    if n_epochs < 1:
        raise InputError(f"--epochs is {n_epochs}, but must be at least 1.")
    compute, reason = choose_compute(options.device or space.resources.device, space.training.precision)
    errors = Console(stderr=True)
    data = prepare_training_data(space.dataset, show_progress=errors.is_terminal)
    run = FitEvaluate(
        data.train,
        data.validation,
        space.baseline,
        RunSeed(space.search.seed),
        compute,
        class_weights=space.training.class_weights,
        pooling=space.training.pooling,
    )

    print(summary(run.network, data.decoded.image_size))
    print(
        f"\n{len(data.train):,} training and {len(data.validation):,} validation images, "
        f"on {compute.device} in {compute.precision} ({reason})"
    )
    print(", ".join(f"{name} {value:g}" for name, value in space.baseline.as_dict().items()), flush=True)

    def report(result: EpochResult) -> None:
        print(
            f"epoch {result.epoch:>3}/{n_epochs}  lr {result.lr:<9.4g}"
            f"training loss {result.train_loss:<8.4f}accuracy {result.train_accuracy:7.2%}   "
            f"validation loss {result.validation_loss:<8.4f}accuracy {result.validation_accuracy:7.2%}   "
            f"{result.train_s + result.validation_s:.1f} s",
            flush=True,
        )

    results = run.epoch_training(n_epochs, report, errors if errors.is_terminal else None)
    if results[-1].diverged:
        print(
            f"Training diverged in epoch {results[-1].epoch}: the loss is not finite. Lower lr.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
