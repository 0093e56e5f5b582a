"""Classify image files with onnxruntime: `python -m search.predict`."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.cli.options import add_experiment_arguments, chosen_experiment
from spaces.command import CommandParser, run_command
from spaces.errors import InputError

if TYPE_CHECKING:
    from search.retraining.predictor import Predictor

_Row = tuple[str, list[dict[str, Any]]]  # an image's path, and its classes, most probable first


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m search.predict",
        description="Print the classes and probabilities of image files, by the model in EXPERIMENT/final/.",
        epilog="example: python -m search.predict quickstart-20260101-120000 photo.jpg ~/photos --format csv",
    )
    add_experiment_arguments(parser, is_optional=False)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="classes to show for each image (default: 3)")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")
    return run_command(parser, _predict, arguments)


def _predict(options: argparse.Namespace) -> int:
    from search.analysis.csv_files import csv_text
    from search.retraining.predictor import Predictor
    from spaces.printable import json_text, printable

    if options.top < 1:
        raise InputError(f"--top is {options.top}, but must be at least 1.")
    predictor = Predictor(chosen_experiment(options, options.experiment))
    images, problems = _image_files(options.images)
    rows = _classify(predictor, images, options.top, problems)
    if not rows:
        raise InputError(problems)
    match options.format:
        case "json":
            print(json_text([{"image": image, "classes": classes} for image, classes in rows]))
        case "csv":
            cells = [[image, i, *one.values()] for image, classes in rows for i, one in enumerate(classes, 1)]
            print(csv_text(("image", "rank", "class", "probability"), cells), end="")
        case _:
            for image, classes in rows:
                shown = "  ".join(f"{one['class']} {one['probability']:.1%}" for one in classes)
                print(printable(f"{image}: {shown}"))
    if problems:
        sys.stdout.flush()  # before the problems, where both go to one file
        raise InputError(problems)
    return 0


def _image_files(given: list[Path]) -> tuple[list[Path], list[str]]:
    """The files that are given, with the images in given folders; and a line for each folder that is not usable.

    Hidden files and folders are skipped, and links to folders are not followed.
    """
    from trainable.data.images import SUFFIXES

    found: list[Path] = []
    problems: list[str] = []

    def unreadable(error: OSError) -> None:
        problems.append(f"{error.filename}: cannot be read: {error.strerror}.")

    for path in given:
        if not os.path.isdir(path):  # noqa: PTH112 -- `Path.is_dir` raises for names that are too long
            found.append(path)
            continue
        files = (Path(folder, name) for folder, _, names in os.walk(path, onerror=unreadable) for name in names)
        inside = [
            file
            for file in files
            if file.suffix.lower() in SUFFIXES and not any(part[0] == "." for part in file.relative_to(path).parts)
        ]
        if not inside:
            problems.append(f"{path}: holds no .png or .jpg file, but a folder must hold images.")
        found += sorted(inside)
    return found, problems


def _classify(predictor: Predictor, paths: list[Path], n_shown: int, problems: list[str]) -> list[_Row]:
    """The most probable classes of each image; a line in `problems` for each that cannot be read."""
    import numpy as np

    from search.retraining.predictor import BATCH
    from trainable.data.images import UnreadableImageError, read_image

    rows: list[_Row] = []
    for start in range(0, len(paths), BATCH):
        read, images = [], []
        for path in paths[start : start + BATCH]:
            try:
                images.append(read_image(path, predictor.image_size))
                read.append(path)
            except UnreadableImageError as error:
                problems.append(f"{path}: {error}.")
        if not images:
            continue
        for path, probabilities in zip(read, predictor(np.stack(images))[1], strict=True):
            best = probabilities.argsort()[::-1][:n_shown]
            classes = [
                {"class": predictor.class_names[i], "probability": round(float(probabilities[i]), 6)} for i in best
            ]
            rows.append((str(path), classes))
    return rows


if __name__ == "__main__":
    sys.exit(main())
