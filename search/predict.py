"""Classify image files with onnxruntime: `python -m search.predict`."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.cli.options import add_results_argument, chosen_experiment, complete_experiments
from search.experiment.command_lines import command_on
from spaces.command import CommandParser, completed, run_command
from spaces.errors import InputError, first_line
from spaces.plain_files import MIB, read_plain
from spaces.printable import printable

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

MAX_MODEL_BYTES = 64 * MIB
TOP_LOG = 0.01  # largest valid log-probability: 0, plus rounding errors
BATCH = 256  # images in memory at the same time


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m search.predict",
        description="Print the classes and probabilities of image files, by the model in EXPERIMENT/final/.",
        epilog="example: python -m search.predict quickstart-20260101-120000 photo.jpg --top 3",
    )
    experiment = parser.add_argument(
        "experiment", metavar="EXPERIMENT", help="a name under the results folder, or a path"
    )
    completed(experiment, complete_experiments)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="PNG or JPEG files")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="classes to show for each image (default: 3)")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    add_results_argument(parser)
    return run_command(parser, _predict, arguments)


def _predict(options: argparse.Namespace) -> int:
    if options.top < 1:
        raise InputError(f"--top is {options.top}, but must be at least 1.")
    experiment = chosen_experiment(options, options.experiment)
    model = experiment.final_folder / "model.onnx"
    if experiment.final_folder.is_symlink():
        raise InputError(f"{experiment.final_folder}: is a symbolic link, but must be a folder of its own. Remove it.")
    if not os.path.lexists(model):
        raise InputError(f"{model}: is not there. Make it first: {command_on('retrain', experiment)}")
    rows = _classify(model, options.images, options.top)
    if options.format == "json":
        print(json.dumps([{"image": image, "classes": classes} for image, classes in rows], indent=2))
        return 0
    for image, classes in rows:
        shown = "  ".join(f"{entry['class']} {entry['probability']:.1%}" for entry in classes)
        print(printable(f"{image}: {shown}"))
    return 0


def _load(path: Path) -> tuple[InferenceSession, int, list[str]]:
    from spaces.schema import LARGEST_IMAGE_PX, SMALLEST_IMAGE_PX

    content = read_plain(path, MAX_MODEL_BYTES)
    try:
        session = _session(content)
        (images,), (log_probabilities,) = session.get_inputs(), session.get_outputs()
        n_channels, image_size = images.shape[3], images.shape[1]
        class_names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
        if not isinstance(class_names, list) or not all(isinstance(name, str) for name in class_names):
            raise ValueError("its class names are not a list of texts")
        if images.name != "images" or n_channels != 3 or log_probabilities.shape[1] != len(class_names):
            raise ValueError("its input or its classes are others")
        if image_size != images.shape[2] or not SMALLEST_IMAGE_PX <= image_size <= LARGEST_IMAGE_PX:
            raise ValueError(f"its images are of {images.shape[1]} x {images.shape[2]} pixels")
    except Exception as error:  # onnxruntime has many exception classes without a common one
        raise _not_ours(path, error) from error
    return session, image_size, class_names


def _session(content: bytes) -> InferenceSession:
    """A session of this model that reads no other file; a foreign model may name any file for its weights."""
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="dws-predict-") as nothing:
        settings = onnxruntime.SessionOptions()
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", nothing)
        settings.add_session_config_entry("session.load_model_format", "ONNX")
        settings.log_severity_level = 4  # messages repeat names of the model unescaped; they are raised as errors too
        return onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])


def _not_ours(model: Path, error: Exception) -> InputError:
    return InputError(f"{model}: is not a model of ours ({first_line(error)}). Retrain to make it again.")


def _classify(model: Path, paths: list[Path], n_shown: int) -> list[tuple[str, list[dict[str, Any]]]]:
    import numpy as np

    from trainable.data.images import UnreadableImageError, read_image

    session, image_size, class_names = _load(model)
    rows: list[tuple[str, list[dict[str, Any]]]] = []
    problems = []
    for start in range(0, len(paths), BATCH):
        batch, images = paths[start : start + BATCH], []
        for path in batch:
            try:
                images.append(read_image(path, image_size))
            except UnreadableImageError as error:
                problems.append(f"{path}: {error}.")
        if problems:
            continue  # nothing will be printed; look for more unreadable files
        try:
            log_probabilities = session.run(None, {"images": np.stack(images)})[0]
            if log_probabilities.shape != (len(images), len(class_names)) or not (log_probabilities <= TOP_LOG).all():
                raise ValueError("it gives something other than log-probabilities")
        except Exception as error:  # as above
            raise _not_ours(model, error) from error
        for path, probabilities in zip(batch, np.exp(log_probabilities), strict=True):
            best = probabilities.argsort()[::-1][:n_shown]
            classes = [{"class": class_names[i], "probability": round(float(probabilities[i]), 6)} for i in best]
            rows.append((str(path), classes))
    if problems:
        raise InputError(problems)
    return rows


if __name__ == "__main__":
    sys.exit(main())
