"""Name what image files show, with onnxruntime alone: `python -m search.predict`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.options import add_results_argument, results_flag
from spaces.command import CommandParser, run_command
from spaces.errors import InputError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# Images are read and classified this many at a time, so that a large folder does not fill the memory.
BATCH = 256


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m search.predict",
        description="Print the classes and probabilities of image files, by the model in EXPERIMENT/final/.",
        epilog="example: python -m search.predict quickstart-20260101-120000 photo.jpg --top 3",
    )
    parser.add_argument("experiment", metavar="EXPERIMENT", help="a name under the results folder, or a path")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="PNG or JPEG files")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="classes to show for each image (default: 3)")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    add_results_argument(parser)
    return run_command(parser, _predict, arguments)


def _predict(options: argparse.Namespace) -> int:
    import json

    from search.experiment import open_experiment

    if options.top < 1:
        raise InputError(f"--top is {options.top}, but must be at least 1.")
    experiment = open_experiment(options.experiment, options.results)
    model = experiment.final_folder / "model.onnx"
    if not model.is_file():
        command = f"python -m search.retrain {experiment.name}{results_flag(options)}"
        raise InputError(f"{model}: is not there. Make it first: {command}")
    rows = _classify(*_load(model), options.images, options.top)
    if options.format == "json":
        print(json.dumps([{"image": image, "classes": classes} for image, classes in rows], indent=2))
        return 0
    for image, classes in rows:
        print(f"{image}: " + "  ".join(f"{entry['class']} {entry['probability']:.1%}" for entry in classes))
    return 0


def _load(path: Path) -> tuple[InferenceSession, int, list[str]]:
    import json

    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (images,), (log_probabilities,) = session.get_inputs(), session.get_outputs()
        image_size = int(images.shape[1])
        class_names = [str(name) for name in json.loads(session.get_modelmeta().custom_metadata_map["class_names"])]
        if images.name != "images" or log_probabilities.shape[1] != len(class_names):
            raise ValueError("its input or its classes are others")
    except Exception as error:  # onnxruntime has a class of its own for each way to be damaged
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: is not a model of ours ({reason}). Retrain to make it anew.") from error
    return session, image_size, class_names


def _classify(
    session: InferenceSession, image_size: int, class_names: list[str], paths: list[Path], n_shown: int
) -> list[tuple[str, list[dict[str, Any]]]]:
    import numpy as np

    from trainable.images import UnreadableImageError, read_image

    rows: list[tuple[str, list[dict[str, Any]]]] = []
    problems = []
    for start in range(0, len(paths), BATCH):
        names, read = [], []
        for path in paths[start : start + BATCH]:
            try:
                read.append(read_image(path, image_size))
                names.append(str(path))
            except UnreadableImageError as error:
                problems.append(f"{path}: {error}.")
        if problems:
            continue  # nothing will be printed; go on for the other unreadable files
        log_probabilities = session.run(None, {"images": np.stack(read)})[0]
        for name, probabilities in zip(names, np.exp(log_probabilities), strict=True):
            best = probabilities.argsort()[::-1][:n_shown]
            classes = [{"class": class_names[i], "probability": round(float(probabilities[i]), 6)} for i in best]
            rows.append((name, classes))
    if problems:
        raise InputError(problems)
    return rows


if __name__ == "__main__":
    sys.exit(main())
