"""The model card: the `README.md` of `final/`, as the Hugging Face Hub reads it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from search.experiment.manifest import TestSetUse
from search.retraining.answers import tested_sentence, validation_sentence
from spaces import Space
from spaces.counted import counted
from spaces.printable import printable
from trainable.metric import ACCURACY, METRICS, Metric

CARD_FILE = "README.md"

# Characters in names that would end a table cell, or make a link, a picture or HTML.
_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`|<["})


def model_card(space: Space, metrics: Mapping[str, Any], openings: Sequence[TestSetUse]) -> str:
    """Markdown about the model: data, accuracy, use and limits, below a head in YAML.

    `metrics` is the content of `metrics.json`; `openings` are all uses of the test set, from the manifest.
    """
    templates = Environment(
        loader=PackageLoader("search.retraining", "assets"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    templates.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    templates.filters |= {"escaped": lambda text: printable(text).translate(_MARKDOWN), "printable": printable}
    return templates.get_template("model_card.md.jinja").render(
        space=space,
        metrics=metrics,
        counted=counted,
        results=_results(metrics),
        tested=_tested(metrics),
        on_validation=validation_sentence(metrics),
        openings=openings,
    )


def _results(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the Hub shows beside the card: each result by its name, with the Hub's name of the metric."""
    per_seed = metrics["test_accuracy_per_seed"]
    results = []
    for metric in _shown(metrics):
        values = {f"{metric.title} of the exported model": per_seed[0][metric.name]}
        if len(per_seed) > 1:
            values[f"mean {metric.title} of {len(per_seed)} seeds"] = metrics["test_metrics"][metric.name]["mean"]
        kind = "f1" if metric.name == "macro_f1" else metric.name
        results += [{"type": kind, "name": title, "value": round(value, 6)} for title, value in values.items()]
    return results


def _shown(metrics: Mapping[str, Any]) -> Iterable[Metric]:
    """The metric of the search, and accuracy."""
    return dict.fromkeys((METRICS[metrics["metric"]], ACCURACY))


def _tested(metrics: Mapping[str, Any]) -> str:
    parts = [tested_sentence(metrics, metric).partition(";") for metric in _shown(metrics)]
    return "\n\n".join(f"**{exported}**{semicolon}{mean}." for exported, semicolon, mean in parts)
