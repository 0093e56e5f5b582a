"""Regret against epochs, drawn with matplotlib."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.replay.arms import DEFAULT, REFERENCE_NAMES
from benchmarks.stats import Array

# Share of the budget where the plot starts. Before that, hardly any trial has completed.
DRAWN_FROM = 0.1
# Smallest median regret that is drawn, in points.
LEAST = 0.05
PANEL_INCHES = (6.4, 5.0)
REFERENCE_COLOURS = ("#000000", "#888888", "#d62728", "#e9967a")
OWN_COLOURS = ("#1f77b4", "#17becf", "#2ca02c", "#98df8a", "#9467bd", "#8c564b")
LEVELS = (1.0, 0.5)


def draw(path: Path, file_format: str, arms: Sequence[tuple[str, str, Array]]) -> None:
    """Draw one panel per setting, with the median regret of each arm; references are dashed.

    Args:
        path: file to write.
        file_format: `png` or `svg`.
        arms: setting, name and (S, T) regrets in points after each epoch.
    """
    settings = list(dict.fromkeys(setting for setting, _, _ in arms))
    figure = Figure(figsize=(PANEL_INCHES[0] * len(settings), PANEL_INCHES[1] + 1.2), layout="constrained")
    panels = figure.subplots(1, len(settings), squeeze=False)[0]
    for panel, setting in zip(panels, settings, strict=True):
        _panel(panel, setting, [(name, regrets) for at, name, regrets in arms if at == setting])
    panels[0].set_ylabel("median regret, points of accuracy")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, 2 * len(settings)), frameon=False)
    figure.savefig(path, format=file_format, dpi=130)


def _panel(panel: Axes, setting: str, arms: Sequence[tuple[str, Array]]) -> None:
    first = round(DRAWN_FROM * arms[0][1].shape[1])
    references, own = cycle(REFERENCE_COLOURS), cycle(OWN_COLOURS)
    for name, regrets in arms:
        is_reference = name in REFERENCE_NAMES or name.startswith("ray-")
        medians = np.maximum(np.median(regrets[:, first:], axis=0), LEAST)
        epochs = first + np.arange(1, len(medians) + 1)
        panel.plot(
            epochs,
            medians,
            label=f"{name} (default)" if name == DEFAULT else name,
            color=next(references) if is_reference else next(own),
            linestyle="--" if is_reference else "-",
            linewidth=3.0 if name == DEFAULT else 1.8 if is_reference else 1.3,
            drawstyle="steps-post",
        )
    for level in LEVELS:
        panel.axhline(level, color="#bbbbbb", linewidth=0.8, linestyle=":")
    panel.set(title=setting, xlabel="epochs trained by all workers", yscale="log")
    panel.set_yticks([0.1, 0.2, 0.5, 1, 2, 5, 10, 20], ["0.1", "0.2", "0.5", "1", "2", "5", "10", "20"])
    panel.grid(visible=True, axis="x", color="#eeeeee")
