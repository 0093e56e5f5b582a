"""The model card: the `README.md` of `final/`, as the Hugging Face Hub reads it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from search.experiment.manifest import TestSetUse
from search.retraining.answers import tested_sentence
from spaces import Space
from spaces.counted import counted
from spaces.printable import printable
from trainable.metric import ACCURACY, METRICS, Metric

CARD_FILE = "README.md"

# Characters in names that would end a table cell, or make a link, a picture or HTML.
_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`|<["})

# Each block after the first continues it. Tests run them as they are.
_LOADING = """```python
import json

import numpy as np
from PIL import Image, ImageOps

config = json.load(open("config.json", encoding="utf-8"))
size = config["preprocessing"]["image_size"]
photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
images = np.array(photo.resize((size, size), Image.Resampling.BILINEAR))[None]  # (1, size, size, 3) uint8


def show(log_probabilities):
    for i in log_probabilities[0].argsort()[::-1][:3]:
        print(config["class_names"][i], f"{np.exp(log_probabilities[0][i]):.4f}")
```

With `onnxruntime`:

```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
show(session.run(None, {"images": images})[0])
```

With `torch`, as a `torch.export` program:

```python
import torch

module = torch.export.load("model.pt2").module()
with torch.inference_mode():
    show(module(torch.from_numpy(images)).numpy())
```

The weights alone, to train them further with the network's code (depthwise-search, installed from its checkout):

```python
import torch
from safetensors.torch import load_file

from trainable.network.model import DepthwiseSeparableNet, Normalise

network = DepthwiseSeparableNet(len(config["class_names"])).eval()
network.load_state_dict(load_file("model.safetensors"))
normalise = Normalise(config["preprocessing"]["mean"], config["preprocessing"]["std"])
with torch.inference_mode():
    show(network(normalise(torch.from_numpy(images))).numpy())
```"""

_LIMITS = """## Limits

It names one of its classes for any image, also for one that shows none of them. It was tested on images of the same
origin as those it was trained on; elsewhere it will do worse. `metrics.json` has the confusion matrix,
`test_predictions.csv` the answer to each test image, `mistakes/` the test images where it was surest and wrong.
"""


def model_card(space: Space, metrics: Mapping[str, Any], openings: Sequence[TestSetUse]) -> str:
    """Markdown about the model: data, accuracy, use and limits, below a head in YAML.

    Args:
        space: the searched space.
        metrics: the content of `metrics.json`.
        openings: all uses of the test set, from the manifest.
    """
    size, n_classes = space.dataset.image_size, len(metrics["class_names"])
    schedule = f" The search's schedule was stretched: {metrics['schedule']}." if metrics["schedule"] else ""
    weights = " The training loss had balanced class weights." if space.training.class_weights == "balanced" else ""
    classes = "\n".join(
        f"| {_escaped(name)} | {'-' if accuracy is None else f'{accuracy:.2%}'} |"
        for name, accuracy in metrics["per_class_accuracy"].items()
    )
    return f"""---
{_head(space, metrics)}---

# {_escaped(metrics["experiment"])}: classifier of {n_classes} classes

A depthwise-separable CNN for {size} x {size} RGB images, found by a hyperparameter search on {_data_of(space)}
(trial {metrics["trial"]}) and retrained on {metrics["trained_on"]["n_images"]:,} training and validation images for
{counted(metrics["epochs"], "epoch")} of {metrics["trained_on"]["images_per_epoch"]:,} images, in
{metrics["precision"]}.{schedule}{weights} `config.json` has the hyperparameters.

{_tested(metrics)}
{_on_validation(metrics)}
## Use

`model.onnx` and `model.pt2` take uint8 images (N, {size}, {size}, 3), RGB, N free, and give log-probabilities
(N, {n_classes}); normalisation is inside. `config.json` names the classes in their order, and how images are resized.
`metrics.json` has the largest difference between each file's answers and the network's (`exports`).

{_LOADING}

## By class

| class | test accuracy of the exported model |
|---|---:|
{classes}

## The test set was opened

{_openings(openings)}

{_LIMITS}"""


def _head(space: Space, metrics: Mapping[str, Any]) -> str:
    """YAML that the Hub reads: what the model does, and its results."""
    name, per_seed = space.dataset.name, metrics["test_accuracy_per_seed"]
    results = []
    for metric in _shown(metrics):
        values = {f"{metric.title} of the exported model": per_seed[0][metric.name]}
        if len(per_seed) > 1:
            values[f"mean {metric.title} of {len(per_seed)} seeds"] = metrics["test_metrics"][metric.name]["mean"]
        kind = "f1" if metric.name == "macro_f1" else metric.name  # the Hub's names
        results += [{"type": kind, "name": title, "value": round(value, 6)} for title, value in values.items()]
    result = {
        "task": {"type": "image-classification", "name": "Image Classification"},
        "dataset": {"type": "imagefolder" if name == "folder" else name, "name": _data_of(space), "split": "test"},
        "metrics": results,
    }
    head = {
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "onnx", "safetensors"],
        "model-index": [{"name": printable(metrics["experiment"]), "results": [result]}],
    }
    return str(yaml.safe_dump(head, sort_keys=False, allow_unicode=True))


def _data_of(space: Space) -> str:
    return "an image folder" if space.dataset.name == "folder" else space.dataset.name


def _shown(metrics: Mapping[str, Any]) -> Iterable[Metric]:
    """The metric of the search, and accuracy."""
    return dict.fromkeys((METRICS[metrics["metric"]], ACCURACY))


def _tested(metrics: Mapping[str, Any]) -> str:
    parts = [tested_sentence(metrics, metric).partition(";") for metric in _shown(metrics)]
    sentences = "\n\n".join(f"**{exported}**{semicolon}{mean}." for exported, semicolon, mean in parts)
    n_images = f"On {metrics['tested_on']['n_images']:,} test images."
    if len(metrics["test_accuracy_per_seed"]) == 1:
        return f"{sentences}\n\n{n_images}"
    return f"""{sentences}

{n_images} The first seed is exported whatever its result, because the best would have been chosen by the test images.
Intervals say how much another training run would differ, not how much another set of test images would."""


def _on_validation(metrics: Mapping[str, Any]) -> str:
    metric, replicates = METRICS[metrics["metric"]], metrics["replicates"]
    value = metrics[f"search_{metric.column}"]
    if value is None:
        return ""
    name = "" if metric is ACCURACY else f" a {metric.title} of"
    sentence = f"On the validation images the search said{name} {metric.text(metric.value(value))}"
    if replicates:
        half_width = replicates["half_width_95"]
        spread = "" if half_width is None else f" ± {metric.size_text(half_width)} {metric.unit}"
        mean = metric.text(metric.value(replicates[f"{metric.column}_mean"]))
        sentence += f"; {counted(replicates['n'], 'replicate')} said {mean}{spread}"
    return f"\n{sentence}.\n"


def _openings(openings: Sequence[TestSetUse]) -> str:
    lines = []
    for opening in openings:
        mean = opening.test_accuracy_mean
        result = "not finished" if mean is None else f"mean accuracy {mean:.2%}"
        reason = f", because: {_escaped(opening.reason)}" if opening.reason else ""
        seeds = counted(opening.seeds, "seed")
        lines.append(f"- {_escaped(opening.at)}: trial {opening.trial}, {seeds}, {result}{reason}")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Text from a file, escaped for Markdown."""
    return printable(text).translate(_MARKDOWN)
