"""`final/` as somebody else gets it: the card, its programs, `config.json`, and the answers by file name."""

import csv
import json
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from search import Experiment
from search.retraining import model_card
from spaces import load_space
from tests.conftest import TINY
from tests.support.foreign import Call, make_experiment
from trainable.data.images import read_image

CLASSES = ("Vögel", unicodedata.normalize("NFD", "große Hünde"), "猫")
N_TEST = 4


@dataclass(frozen=True)
class Retrained:
    """A search on an image folder whose baseline was retrained with two seeds, by the command."""

    experiment: Experiment
    images: Path
    output: str

    @property
    def final(self) -> Path:
        return self.experiment.final_folder

    @property
    def metrics(self) -> dict[str, Any]:
        return dict(json.loads((self.final / "metrics.json").read_text()))


@pytest.fixture(scope="module")
def retrained(
    tmp_path_factory: pytest.TempPathFactory, run: Callable[..., subprocess.CompletedProcess[str]]
) -> Retrained:
    parent = tmp_path_factory.mktemp("final")
    images, generator = parent / "meine Bilder", np.random.default_rng(0)
    for split, n_images in (("train", 20), ("test", N_TEST)):
        for label, name in enumerate(CLASSES):
            (images / split / name).mkdir(parents=True)
            for i in range(n_images):
                pixels = generator.integers(0, 100, (24, 30, 3)) + np.eye(3)[label] * 150
                Image.fromarray(pixels.astype(np.uint8)).save(images / split / name / f"Bild {i} é.png")
    space = load_space("quickstart", [*TINY, "dataset.name=folder", f"dataset.root={images}", "dataset.train_limit=60"])
    experiment = make_experiment(parent / "results", "mine", space)
    result = run("search.retrain", "mine", "--trial", "0", "--seeds", "2", "--epochs", "1", cwd=parent)
    assert result.returncode == 0, result.stderr
    return Retrained(Experiment(experiment.folder), images, result.stdout)


def test_the_hub_reads_the_card_and_its_results(retrained: Retrained) -> None:
    card = ModelCard.load(retrained.final / "README.md")
    metrics = retrained.metrics
    assert (card.data.pipeline_tag, card.data.model_name) == ("image-classification", "mine")
    exported, mean = card.data.eval_results
    for result in (exported, mean):
        assert (result.task_type, result.dataset_split, result.metric_type) == (
            "image-classification",
            "test",
            "accuracy",
        )
    assert (exported.metric_name, exported.metric_value) == (
        "accuracy of the exported model",
        pytest.approx(metrics["exported_test_accuracy"], abs=1e-6),
    )
    assert (mean.metric_name, mean.metric_value) == (
        "mean accuracy of 2 seeds",
        pytest.approx(metrics["test_accuracy_mean"], abs=1e-6),
    )
    assert all(f"| {name} |" in card.text for name in CLASSES)


def test_the_exported_seed_stands_beside_the_mean_in_the_card_and_in_the_last_line(retrained: Retrained) -> None:
    metrics = retrained.metrics
    exported, mean = f"{metrics['exported_test_accuracy']:.2%}", f"{metrics['test_accuracy_mean']:.2%}"
    last = retrained.output.splitlines()[-1]
    sentence = f"Test accuracy of the exported model, the first of 2 seeds: {exported}; mean of the seeds {mean}, 95 % "
    assert last.startswith(sentence)
    card = (retrained.final / "README.md").read_text()
    assert last in card.replace("**", "")
    assert f"**Test accuracy of the exported model, the first of 2 seeds: {exported}**; mean" in card


def test_a_search_by_another_metric_is_told_by_its_name() -> None:
    values = {"macro_f1": [0.4, 0.5], "accuracy": [0.6, 0.8], "loss": [1.25, 1.75]}
    metrics = {
        "experiment": "ä😀",
        "metric": "macro_f1",
        "test_accuracy_per_seed": [{name: value[seed] for name, value in values.items()} for seed in range(2)],
        "test_metrics": {
            name: {"mean": sum(value) / 2, "interval_95": [value[0], value[1]]} for name, value in values.items()
        },
        "tested_on": {"n_images": 9},
        "trained_on": {"n_images": 9, "images_per_epoch": 9},
        "class_names": ["a", "b"],
        "per_class_accuracy": {"a": 0.5, "b": None},
        **dict.fromkeys(("trial", "precision", "schedule", "replicates")),
        "epochs": 1,
        **dict.fromkeys(("search_validation_macro_f1", "search_validation_loss")),
    }
    sentences = [
        "Test macro F1 of the exported model, the first of 2 seeds: 40.00%; mean of the seeds 45.00%, ",
        "Test accuracy of the exported model, the first of 2 seeds: 60.00%; mean of the seeds 70.00%, ",
    ]
    card = model_card._tested(metrics).replace("**", "")
    assert re.findall(r"^Test .*?%, ", card, re.MULTILINE) == sentences
    for metric, of_exported, of_mean in (("macro_f1", 0.4, 0.45), ("loss", 1.25, 1.5)):
        data = ModelCard(model_card.model_card(load_space("quickstart"), {**metrics, "metric": metric}, [])).data
        assert data.model_name == "ä😀"
        found = data.eval_results
        kinds = [*["f1" if metric == "macro_f1" else "loss"] * 2, "accuracy", "accuracy"]
        assert [(one.metric_type, one.metric_value) for one in found] == list(
            zip(kinds, [of_exported, of_mean, 0.6, 0.7], strict=True)
        )
        assert found[0].metric_name == f"{metric.replace('macro_f1', 'macro F1')} of the exported model"


def programs_of(card: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number, needs", [(1, "onnxruntime"), (2, "torch.export"), (3, "safetensors")])
def test_the_card_s_programs_run_as_they_are_and_say_what_predict_says(
    number: int, needs: str, retrained: Retrained, call: Call, tmp_path: Path
) -> None:
    folder = shutil.copytree(retrained.final, tmp_path / "downloaded")
    image = next((retrained.images / "test" / CLASSES[2]).iterdir())
    Image.open(image).resize((61, 40)).save(folder / "photo.jpg")
    start, *programs = programs_of((folder / "README.md").read_text())
    assert len(programs) == 3
    assert needs in programs[number - 1]
    command = [sys.executable, "-c", f"{start}\n{programs[number - 1]}"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=True)
    code, output, errors = call(
        "predict", str(retrained.experiment.folder), str(folder / "photo.jpg"), "--format", "json"
    )
    assert (code, errors) == (0, "")
    (expected,) = json.loads(output)
    found = [line.rsplit(" ", 1) for line in result.stdout.splitlines()]
    assert [name for name, _ in found] == [one["class"] for one in expected["classes"]]
    assert [float(value) for _, value in found] == pytest.approx(
        [one["probability"] for one in expected["classes"]], abs=2e-4
    )


def test_config_json_says_how_to_feed_the_model(retrained: Retrained) -> None:
    config = json.loads((retrained.final / "config.json").read_text(encoding="utf-8"))
    predictor = retrained.experiment.predictor()
    assert config["class_names"] == predictor.class_names == sorted(CLASSES)
    assert config["preprocessing"]["image_size"] == predictor.image_size == 17
    assert "BILINEAR" in config["preprocessing"]["resize"]
    (read,) = predictor._session.get_inputs()
    assert (config["input"]["name"], config["input"]["shape"][1:]) == (read.name, read.shape[1:])
    assert (config["input"]["dtype"], read.type) == ("uint8", "tensor(uint8)")
    train = retrained.images / "train"
    pixels = np.stack([read_image(path, 17) for path in sorted(train.rglob("*.png"))]) / 255
    assert config["preprocessing"]["mean"] == pytest.approx(pixels.mean(axis=(0, 1, 2)).tolist())
    assert config["preprocessing"]["std"] == pytest.approx(pixels.std(axis=(0, 1, 2)).tolist())
    assert config["hyperparameters"] == retrained.experiment.space.baseline.as_dict()
    assert "Vögel" in (retrained.final / "config.json").read_text(encoding="utf-8")


def test_nothing_that_is_published_names_a_path_of_this_machine(retrained: Retrained) -> None:
    files = [path for path in retrained.final.rglob("*") if path.is_file()]
    assert len(files) >= 9
    for path in files:
        content = path.read_bytes()
        assert not [place for place in (retrained.images.parent, Path.home()) if f"{place}/".encode() in content], path


def test_each_answer_to_a_test_image_names_its_file_and_predict_agrees(retrained: Retrained, call: Call) -> None:
    text = (retrained.final / "test_predictions.csv").read_text(encoding="utf-8")
    answers = list(csv.DictReader(text.splitlines()))
    files = [path.relative_to(retrained.images) for path in sorted((retrained.images / "test").rglob("*.png"))]
    assert [answer["image"] for answer in answers] == [str(path) for path in files]
    assert [answer["true"] for answer in answers] == [path.parts[1] for path in files]
    _, output, _ = call("predict", str(retrained.experiment.folder), str(retrained.images / "test"), "--format", "json")
    predicted = {row["image"]: row["classes"][0] for row in json.loads(output)}
    for answer in answers:
        found = predicted[str(retrained.images / answer["image"])]
        assert found["class"] == answer["predicted"]
        assert found["probability"] == pytest.approx(float(answer["probability"]), abs=1e-3)


def test_the_predictor_resizes_as_training_does(retrained: Retrained) -> None:
    predictor = retrained.experiment.predictor()
    path = next((retrained.images / "test" / CLASSES[0]).iterdir())
    label, probabilities = predictor(np.asarray(Image.open(path)))
    labels, of_resized = predictor(read_image(path, 17)[None])
    assert [label] == labels.tolist()
    np.testing.assert_array_equal(probabilities, of_resized[0])
