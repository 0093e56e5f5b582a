"""Name what image files show, with onnxruntime alone: `python -m search.predict`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.options import add_results_argument
from spaces.command import CommandParser, run_command
from spaces.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Images are decoded and classified this many at a time, so that a large folder does not fill the memory.
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

    import numpy as np

    from search.experiment import open_experiment

    if options.top < 1:
        raise InputError(f"--top is {options.top}, but must be at least 1.")
    experiment = open_experiment(options.experiment, options.results)
    session, image_size, class_names = _load(experiment.final_folder / "model.onnx")
    images = _read_all(options.images, image_size)
    rows: list[tuple[str, list[dict[str, Any]]]] = []
    for start in range(0, len(images), BATCH):
        log_probabilities = session.run(None, {"images": images[start : start + BATCH]})[0]
        for path, probabilities in zip(options.images[start:], np.exp(log_probabilities), strict=False):
            best = probabilities.argsort()[::-1][: options.top]
            classes = [{"class": class_names[i], "probability": round(float(probabilities[i]), 6)} for i in best]
            rows.append((str(path), classes))
    if options.format == "json":
        print(json.dumps([{"image": image, "classes": classes} for image, classes in rows], indent=2))
        return 0
    for image, classes in rows:
        print(f"{image}: " + "  ".join(f"{entry['class']} {entry['probability']:.1%}" for entry in classes))
    return 0


def _load(path: Path) -> tuple[Any, int, list[str]]:
    import json

    import onnxruntime

    if not path.is_file():
        raise InputError(f"{path}: is not there. Make it first: python -m search.retrain {path.parent.parent.name}")
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        image_size = int(session.get_inputs()[0].shape[1])
        class_names = [str(name) for name in json.loads(session.get_modelmeta().custom_metadata_map["class_names"])]
    except Exception as error:  # onnxruntime raises classes of its own for each way to be damaged
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: is not a model of ours ({reason}). Retrain to make it anew.") from error
    return session, image_size, class_names


def _read_all(paths: list[Path], image_size: int) -> NDArray[np.uint8]:
    import numpy as np

    from trainable.images import UnreadableImageError, read_image

    images, problems = [], []
    for path in paths:
        try:
            images.append(read_image(path, image_size))
        except UnreadableImageError as error:
            problems.append(f"{path}: {error}.")
    if problems:
        raise InputError(problems)
    return np.stack(images)


if __name__ == "__main__":
    sys.exit(main())
