"""`search.predict` on files and folders, and the same model as a Python object."""

import csv
import io
import json
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search import Experiment as NotebookExperiment
from search.experiment.folder import Experiment
from spaces import InputError
from tests.support.foreign import Call, model

CLASSES = ("Vögel", "große Hunde", "猫")
NFC, NFD = (unicodedata.normalize(form, "größer") for form in ("NFC", "NFD"))
# In the order of the output: the order of Python's strings, level by level.
IMAGES = ("1.png", "B.JPG", "sub/ein Bild.jpeg", f"sub/{NFD}.png", f"sub/{NFC}.png", "зима/снег 1.png", "猫.png")
OTHERS = ("notes.txt", ".hidden.png", "sub/.thumbnails/1.png", "sub/._1.png")


@pytest.fixture
def images(foreign: Experiment, tmp_path: Path) -> Path:
    """A folder of images of any size, beside an experiment whose model names the classes above."""
    weights = [-0.1, -3.0, -3.5]
    (foreign.final_folder / "model.onnx").write_bytes(model(CLASSES, class_weights=weights))
    folder = tmp_path / "meine Bilder"
    for number, name in enumerate((*IMAGES, *OTHERS)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 30), (number, 0, 0)).save(path, format="PNG")
    (folder / "link.png").symlink_to(folder / "1.png")
    (folder / "around").symlink_to(folder)
    return folder


def expected(*names: str) -> list[str]:
    return [f"meine Bilder/{name}" for name in names]


WITH_LINK = (*IMAGES[:2], "link.png", *IMAGES[2:])


def test_all_images_of_a_folder_are_named_as_they_are_on_disk(
    on_folder: Call, foreign: Experiment, images: Path
) -> None:
    code, output, errors = on_folder("predict", foreign.folder, images.name)
    assert (code, errors) == (0, "")
    lines = output.splitlines()[1:]  # the first is of `image.png`
    assert [line.partition(": ")[0] for line in lines] == expected(*WITH_LINK)
    assert lines[0] == "meine Bilder/1.png: Vögel 90.5%  große Hunde 5.0%  猫 3.0%"

    _, output, _ = on_folder("predict", foreign.folder, images.name, "--format", "json", "--top", "2")
    rows = json.loads(output)[1:]
    assert [row["image"] for row in rows] == expected(*WITH_LINK)
    assert [[one["class"] for one in row["classes"]] for row in rows] == [["Vögel", "große Hunde"]] * len(rows)
    assert "猫.png" in output

    _, output, _ = on_folder("predict", foreign.folder, images.name, "--format", "csv", "--top", "2")
    table = list(csv.DictReader(io.StringIO(output)))[2:]
    assert [row["image"] for row in table] == [name for name in expected(*WITH_LINK) for _ in range(2)]
    assert [(row["rank"], row["class"]) for row in table[:2]] == [("1", "Vögel"), ("2", "große Hunde")]
    assert float(table[0]["probability"]) == pytest.approx(np.exp(-0.1), abs=1e-5)


@pytest.mark.parametrize("output_format", ["table", "csv", "json"])
def test_images_that_cannot_be_read_are_a_line_each_and_the_others_are_answered(
    output_format: str, on_folder: Call, foreign: Experiment, images: Path
) -> None:
    (images / "sub" / "kaputt ä.png").write_bytes(b"no image")
    os.truncate(images / "B.JPG", 60)
    (images / "empty").mkdir()
    too_long = f"{'x' * 300}.png"
    folders = (images.name, "meine Bilder/empty", "missing.png", too_long)
    code, output, errors = on_folder("predict", foreign.folder, *folders, "--format", output_format)
    assert code == 2
    assert output.count("猫.png") == 1 if output_format != "csv" else 3
    assert "B.JPG" not in output
    empty, cut, bad, missing, long = errors.splitlines()
    assert empty == "meine Bilder/empty: holds no .png or .jpg file, but a folder must hold images."
    assert cut.startswith("meine Bilder/B.JPG: cannot be decoded")
    assert bad == "meine Bilder/sub/kaputt ä.png: is not an image."
    assert missing.startswith("missing.png: cannot be decoded")
    assert long == f"{too_long}: cannot be decoded (File name too long)."


def test_a_folder_that_cannot_be_listed_is_a_line(
    on_folder: Call, foreign: Experiment, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: str | int) -> object:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    code, output, errors = on_folder("predict", foreign.folder, images.name)
    assert (code, errors) == (2, "meine Bilder/sub: cannot be read: Permission denied.\n")
    assert "猫.png" in output


def test_a_folder_of_nothing_but_damage_leaves_only_lines(call: Call, foreign: Experiment, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.png").touch()
    code, output, errors = call("predict", str(foreign.folder), "x")
    assert (code, output, errors) == (2, "", "x/a.png: is not an image.\n")
    assert call("predict", str(foreign.folder), "x", "--format", "csv") == (code, output, errors)


def test_the_predictor_of_a_notebook_says_what_the_command_says(
    on_folder: Call, foreign: Experiment, images: Path
) -> None:
    predictor = NotebookExperiment(foreign.folder).predictor()
    assert predictor.class_names == list(CLASSES)
    files = [images / name for name in WITH_LINK]
    pictures = [np.asarray(Image.open(file)) for file in files]
    _, output, _ = on_folder("predict", foreign.folder, images.name, "--format", "json")
    for picture, row in zip(pictures, json.loads(output)[1:], strict=True):
        label, probabilities = predictor(picture)
        assert label == row["classes"][0]["class"]
        assert isinstance(label, str)
        said = [one["probability"] for one in row["classes"]]
        assert sorted(probabilities, reverse=True) == pytest.approx(said, abs=1e-6)
    labels, probabilities = predictor(np.stack([pictures[0]] * 600))
    assert labels.tolist() == ["Vögel"] * 600
    assert (probabilities.shape, probabilities.dtype) == ((600, 3), np.float32)
    labels, probabilities = predictor(np.zeros((0, 20, 20, 3), np.uint8))
    assert (len(labels), probabilities.shape) == (0, (0, 3))


@pytest.mark.parametrize("shape, dtype", [((20, 20), "uint8"), ((20, 20, 4), "uint8"), ((1, 20, 20, 3), "float32")])
def test_the_predictor_refuses_other_arrays(
    shape: tuple[int, ...], dtype: str, foreign: Experiment, images: Path
) -> None:
    with pytest.raises(ValueError, match=r"but must be \(N, H, W, 3\) or \(H, W, 3\) uint8"):
        NotebookExperiment(foreign.folder).predictor()(np.zeros(shape, dtype))


def test_an_experiment_that_was_not_retrained_has_no_predictor(foreign: Experiment) -> None:
    shutil.rmtree(foreign.final_folder)
    with pytest.raises(InputError, match=r"Make it first: python -m search\.retrain foreign"):
        NotebookExperiment(foreign.folder).predictor()
