"""The model card."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from search.experiment.manifest import TestSetUse
from search.retraining.answers import tested_text
from spaces import Space
from spaces.counted import counted
from spaces.printable import printable
from trainable.metric import ACCURACY, METRICS

# Characters in names that would end a table cell, or make a link, a picture or HTML.
_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`|<["})

_LIMITS = """## Limits

It names one of its classes for any image, also for one that shows none of them. It was tested on images of the same
origin as those it was trained on; elsewhere it will do worse. `metrics.json` has the confusion matrix.
"""


def model_card(space: Space, metrics: Mapping[str, Any], openings: Sequence[TestSetUse]) -> str:
    """Markdown about the model: data, accuracy, use and limits.

    Args:
        space: the searched space.
        metrics: the content of `metrics.json`.
        openings: all uses of the test set, from the manifest.
    """
    size, n_classes = space.dataset.image_size, len(metrics["class_names"])
    schedule = f" The search's schedule was stretched: {metrics['schedule']}." if metrics["schedule"] else ""
    weights = " The training loss had balanced class weights." if space.training.class_weights == "balanced" else ""
    exports = _rows((f"`{name}`", f"{export['max_difference']:.1e}") for name, export in metrics["exports"].items())
    classes = _rows(
        (_escaped(name), "-" if accuracy is None else f"{accuracy:.2%}")
        for name, accuracy in metrics["per_class_accuracy"].items()
    )
    return f"""# {_escaped(metrics["experiment"])}: classifier of {n_classes} classes

A depthwise-separable CNN for {size} x {size} RGB images, found by a hyperparameter search on `{space.dataset.name}`
(trial {metrics["trial"]}) and retrained on {metrics["trained_on"]["n_images"]:,} training and validation images for
{counted(metrics["epochs"], "epoch")} of {metrics["trained_on"]["images_per_epoch"]:,} images, in
{metrics["precision"]}.{schedule}{weights}

{_tested(metrics)}. The files here are the first seed's. The interval
says how much another training run would differ, not how much another set of test images would.
{_on_validation(metrics)}
## Use

`model.onnx` and `model.pt2` take uint8 images (N, {size}, {size}, 3), RGB, N free, and give log-probabilities
(N, {n_classes}); normalisation is inside. `model.safetensors` holds the network's weights alone.

```python
import numpy as np, onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
log_probabilities = session.run(None, {{"images": images}})[0]
```

| file | largest difference from the network (log-probability) |
|---|---|
{exports}

## By class

| class | test accuracy |
|---|---:|
{classes}

## The test set was opened

{_openings(openings)}

{_LIMITS}"""


def _rows(cells: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _tested(metrics: Mapping[str, Any]) -> str:
    per_seed, metric = metrics["test_accuracy_per_seed"], METRICS[metrics["metric"]]
    interval_of = f"; 95 % interval of the mean over {len(per_seed)} seeds:"
    tested = (
        f"**Test {one.title} {tested_text(metrics, one, interval_of)}**" for one in dict.fromkeys((metric, ACCURACY))
    )
    by_seed = ", ".join(metric.text(metric.value(one[metric.name])) for one in per_seed)
    n_images = metrics["tested_on"]["n_images"]
    return f"{', '.join(tested)}, on {n_images:,} test images;\n{metric.title} by seed: {by_seed}"


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
        result = "not finished" if opening.test_accuracy_mean is None else f"{opening.test_accuracy_mean:.2%}"
        reason = f", because: {_escaped(opening.reason)}" if opening.reason else ""
        seeds = counted(opening.seeds, "seed")
        lines.append(f"- {_escaped(opening.at)}: trial {opening.trial}, {seeds}, {result}{reason}")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Text from a file, escaped for Markdown."""
    return printable(text).translate(_MARKDOWN)
