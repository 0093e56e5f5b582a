"""The published search, `results/cifar10`: the commands work on it from a checkout, before anything is trained."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.tested import difference_of, mean_of, read_tested
from search.analysis.csv_files import write_tables
from search.experiment.folder import Experiment
from search.experiment.state_files import yaml_matches
from tests.support.foreign import Call
from trainable.network.model import DepthwiseSeparableNet, Normalise

PUBLISHED = Path(__file__).parents[2] / "results" / "cifar10"
MOST_BYTES = 4_000_000
A_MACHINES_PATH = re.compile(r"/(root|home|Users|work|tmp)/")


@pytest.fixture
def reference(tmp_path: Path) -> Experiment:
    """A copy, because the report is written into the folder."""
    kept = shutil.ignore_patterns("ray", ".*")
    return Experiment(shutil.copytree(PUBLISHED, tmp_path / "results" / "cifar10", ignore=kept))


def test_it_is_read_without_a_complaint(reference: Experiment, told: list[str]) -> None:
    history = reference.history()
    assert reference.space.training.max_epochs == 27
    assert yaml_matches((reference.folder / "experiment.yaml").read_bytes())
    assert reference.manifest.state == "finished"
    assert len(history.trials) == 40
    assert history.n_epochs == 368
    assert {run.trial for run in history.replicates.values()} == {38, 34, 16, 0}
    assert told == []


def test_the_commands_say_what_the_readme_says(reference: Experiment, on_folder: Call) -> None:
    code, board, errors = on_folder("leaderboard", reference.folder)
    assert (code, errors) == (0, "")
    assert board.startswith("cifar10: 40 of 40 trials ended")
    assert "Trial 38 wins: the search said 68.04%, 2 replicates say 67.27% ± 2.18." in board
    assert "Not distinguishable from it: trial 16." in board
    code, output, _ = on_folder("diagnose", reference.folder)
    assert code == 0
    assert "The best 5 of 40 trials crowd at no end of a range" in output
    code, output, _ = on_folder("leaderboard", reference.folder, "--format", "json")
    rows = {row["trial"]: row for row in json.loads(output)["trials"]}
    assert rows[38]["rank"] == 1
    assert rows[34]["forecast_mean"] < rows[34]["validation_accuracy"], "the replicates say that it was lucky"


def test_the_published_weights_and_the_onnx_file_are_one_network() -> None:
    final = PUBLISHED / "final"
    config = json.loads((final / "config.json").read_text())
    network = DepthwiseSeparableNet(len(config["class_names"]), pooling=config["pooling"]).eval()
    network.load_state_dict(load_file(final / "model.safetensors"))
    normalise = Normalise(config["preprocessing"]["mean"], config["preprocessing"]["std"])
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    with torch.inference_mode():
        found = network(normalise(torch.from_numpy(images))).numpy()
    session = onnxruntime.InferenceSession(final / "model.onnx")
    np.testing.assert_allclose(found, session.run(None, {"images": images})[0], atol=1e-3)


def test_it_is_small_and_holds_no_path_of_a_machine(reference: Experiment, on_folder: Call) -> None:
    assert on_folder("report", reference.folder)[0] == 0
    assert sum(path.stat().st_size for path in reference.folder.rglob("*") if path.is_file()) < MOST_BYTES
    for path in reference.folder.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".yaml", ".csv", ".md"):
            assert not A_MACHINES_PATH.search(path.read_text()), path.name


def test_tables_can_be_made_from_it(reference: Experiment) -> None:
    write_tables(reference, reference.history())
    with (reference.folder / "trials.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 40


def test_winner_and_hand_picked_were_tested_once_on_the_same_images_as_the_readme_says(reference: Experiment) -> None:
    winner, hand_picked = (read_tested(reference.folder / name) for name in ("final", "hand-picked"))
    assert len(winner.names) == 2000
    assert winner.names == hand_picked.names
    uses = [(use.trial, use.seeds, use.epochs, use.reason) for use in reference.manifest.test_openings]
    assert sorted(uses) == [(0, 3, 27, None), (38, 3, 27, None)]
    readme = (PUBLISHED.parents[1] / "README.md").read_text()
    for mean, half_width in (mean_of(winner), mean_of(hand_picked), difference_of(winner, hand_picked)):
        assert f"{100 * mean:.2f}" in readme
        assert f"± {100 * half_width:.2f}" in readme


def test_the_exported_model_answers(reference: Experiment, on_folder: Call, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    code, output, errors = on_folder("predict", reference.folder, "--format", "json")
    assert (code, errors) == (0, "")
    answers = json.loads(output)[0]["classes"]
    assert {answer["class"] for answer in answers} <= set(reference.manifest.data.class_names)


def test_no_image_of_the_data_set_is_published() -> None:
    pictures = [path.name for path in PUBLISHED.rglob("*") if path.suffix in (".png", ".jpg")]
    assert sorted(pictures) == ["confusion_matrix.png", "learning_curve.png"]
