"""The model card."""

from collections.abc import Mapping, Sequence
from typing import Any

from search.experiment.manifest import TestSetUse
from spaces import Space
from spaces.counted import counted
from spaces.printable import printable

# Characters in names that would end a table cell, or make a link, a picture or HTML.
_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`|<["})


def model_card(space: Space, metrics: Mapping[str, Any], openings: Sequence[TestSetUse]) -> str:
    """Markdown about the model: data, accuracy, use and limits.

    Args:
        space: the searched space.
        metrics: the content of `metrics.json`.
        openings: all uses of the test set, from the manifest.
    """
    interval = metrics["test_accuracy_interval_95"]
    n_seeds = len(metrics["test_accuracy_per_seed"])
    spread = (
        f" (95 % interval of the mean over {n_seeds} seeds: {interval[0]:.2%} to {interval[1]:.2%})" if interval else ""
    )
    size = space.dataset.image_size
    classes = "\n".join(
        f"| {_cell(name)} | {'-' if accuracy is None else f'{accuracy:.2%}'} |"
        for name, accuracy in metrics["per_class_accuracy"].items()
    )
    seeds = ", ".join(f"{score['accuracy']:.2%}" for score in metrics["test_accuracy_per_seed"])
    exports = "\n".join(f"| `{name}` | {export['max_difference']:.1e} |" for name, export in metrics["exports"].items())
    return f"""# {_cell(metrics["experiment"])}: classifier of {len(metrics["class_names"])} classes

A depthwise-separable CNN for {size} x {size} RGB images, found by a hyperparameter search on `{space.dataset.name}`
(trial {metrics["trial"]}) and retrained on {metrics["trained_on"]["n_images"]:,} training and validation images for
{counted(metrics["epochs"], "epoch")} of {metrics["trained_on"]["images_per_epoch"]:,} images, in
{metrics["precision"]}.{_schedule(metrics)}

**Test accuracy {metrics["test_accuracy_mean"]:.2%}**{spread}, on {metrics["tested_on"]["n_images"]:,} test images;
by seed: {seeds}. The files here are the first seed's. The interval says how much another training run would differ,
not how much another set of test images would.
{_on_validation(metrics)}
{_usage(size, len(metrics["class_names"]))}
| file | largest difference from the network (log-probability) |
|---|---|
{exports}

## By class

| class | test accuracy |
|---|---:|
{classes}

## The test set was opened

{_openings(openings)}

## Limits

It names one of its classes for any image, also for one that shows none of them. It was tested on images of the same
origin as those it was trained on; elsewhere it will do worse. `metrics.json` has the confusion matrix.
"""


def _usage(size: int, n_classes: int) -> str:
    return f"""## Use

`model.onnx` and `model.pt2` take uint8 images (N, {size}, {size}, 3), RGB, N free, and give log-probabilities
(N, {n_classes}); normalisation is inside. `model.safetensors` holds the network's weights alone.

```python
import numpy as np, onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
log_probabilities = session.run(None, {{"images": images}})[0]
```
"""


def _schedule(metrics: Mapping[str, Any]) -> str:
    return f" The search's schedule was stretched: {metrics['schedule']}." if metrics["schedule"] else ""


def _on_validation(metrics: Mapping[str, Any]) -> str:
    said = metrics["search_validation_accuracy"]
    if said is None:
        return ""
    sentence = f"On the validation images the search said {said:.2%}"
    replicates = metrics["replicates"]
    if replicates:
        spread = "" if replicates["half_width_95"] is None else f" ± {100 * replicates['half_width_95']:.2f} points"
        sentence += (
            f"; {counted(replicates['n'], 'replicate')} said {replicates['validation_accuracy_mean']:.2%}{spread}"
        )
    return f"\n{sentence}.\n"


def _openings(openings: Sequence[TestSetUse]) -> str:
    lines = []
    for opening in openings:
        result = "not finished" if opening.test_accuracy_mean is None else f"{opening.test_accuracy_mean:.2%}"
        reason = f", because: {_cell(opening.reason)}" if opening.reason else ""
        lines.append(
            f"- {_cell(opening.at)}: trial {opening.trial}, {counted(opening.seeds, 'seed')}, {result}{reason}"
        )
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text from a file, escaped for a Markdown table."""
    return printable(text).translate(_MARKDOWN)
