"""Rules of a space file, within a section and between sections, and the sentences that say how a value breaks one."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from spaces.errors import did_you_mean
from spaces.parameters import Fixed, Hyperparameters, Number, Parameter, shorten
from spaces.printable import shortened
from spaces.removed import REMOVED_KEYS, removed_sentence
from spaces.schema import (
    MODELS,
    OPTIONAL_SECTIONS,
    PARAMETERS,
    SHARED_PARAMETERS,
    TRACKERS,
    TRY_FIRST,
    Search,
    Section,
    Training,
    rung_epochs,
)

# What must hold, by pydantic's type of the error.
_RULES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_unicode": "text",
    "bool_type": "true or false",
    "model_type": "a section of its own, one `key: value` a line",
    "literal_error": "{expected}",
    "value_error": "{error}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_too_short": "of at least {min_length} characters",
    "string_too_long": "of at most {max_length} characters",
}

Location = tuple[str | int, ...]
# Path of the key, and the sentence about it.
Problem = tuple[Location, str]


def unknown(key: str, what: str, known: Iterable[str]) -> str:
    known = list(known)
    hint = did_you_mean(key.rpartition(".")[2], known)
    return f"`{shortened(key)}` is not {what}: there are {', '.join(known)}.{hint}"


def problems_of_top_level(content: Mapping[str, Any]) -> Iterator[Problem]:
    for key in content:
        if key not in MODELS and key != TRY_FIRST:
            yield (key,), unknown(key, "a section", [*MODELS, TRY_FIRST])
    for key in MODELS.keys() - OPTIONAL_SECTIONS:
        if key not in content:
            yield (), f"`{key}` is missing, but every space must have that section."
        elif content[key] is None:
            yield (key,), f"`{key}` is empty, but must have {', '.join(MODELS[key].model_fields)}."


def problems_of_section(key: str, model: type[Section], errors: Iterable[ErrorDetails]) -> Iterator[Problem]:
    # pydantic reports a value that fits no member of a union once per member: group these errors by key.
    grouped: dict[Location, list[ErrorDetails]] = {}
    for details in errors:
        grouped.setdefault(details["loc"][: 2 if key == "track" else 1], []).append(details)
    for location, several in grouped.items():
        known = TRACKERS[str(location[0])] if len(location) > 1 else model
        yield (key, *location), _sentence((key, *location), known, several)


def with_grace(training: Training, search: Search) -> Search:
    """Set the default of `search.grace_epochs`, which depends on `training.max_epochs`."""
    grace, rest = divmod(training.max_epochs, search.reduction_factor)
    if "grace_epochs" in search.model_fields_set or search.asha == "off" or rest or grace < 1:
        return search
    while search.asha == "adaptive" and grace % search.reduction_factor == 0:
        grace //= search.reduction_factor
    return search.model_copy(update={"grace_epochs": grace})


def problems_of_rungs(training: Training, search: Search) -> Iterator[Problem]:
    if search.asha == "off":
        return
    grace, reduction, epochs = search.grace_epochs, search.reduction_factor, training.max_epochs
    if grace > epochs:
        yield (
            ("search", "grace_epochs"),
            f"`search.grace_epochs` is {grace}, but must be between 1 and `training.max_epochs` ({epochs}). "
            f"Lower it or raise `training.max_epochs`.",
        )
        return
    below = rung_epochs(grace, reduction, epochs)[-1]
    if below != epochs:
        yield (
            ("training", "max_epochs"),
            f"`training.max_epochs` is {epochs}, but must be `search.grace_epochs` ({grace}) × "
            f"`search.reduction_factor` ({reduction})^k: the nearest are {below} and {below * reduction}.",
        )


def problems_of_size(search: Search, parameters: Mapping[str, Parameter]) -> Iterator[Problem]:
    if search.trials is None and search.epoch_budget is None and search.time_budget is None:
        yield (
            ("search",),
            "`search` has none of `trials`, `epoch_budget` and `time_budget`, but at least one must say when the "
            "search ends. Give one.",
        )
    if search.trials != 1 and all(isinstance(parameter, Fixed) for parameter in parameters.values()):
        yield (
            ("space",),
            f"`space` searches nothing, but `search.trials` is {search.trials or 'not given'}. "
            f"Give a parameter a range, or train the one configuration with python -m trainable.train.",
        )


def baseline_values(
    training: Training, parameters: Mapping[str, Parameter], given: Mapping[str, Number]
) -> dict[str, Number]:
    """Values of the baseline that are not defaults: of `training`, fixed values of `space`, and its own."""
    shared = {name: getattr(training, name) for name in SHARED_PARAMETERS}
    fixed = {name: parameter.value for name, parameter in parameters.items() if isinstance(parameter, Fixed)}
    return {**shared, **fixed, **given}


def problems_of_baseline(
    training: Training, parameters: Mapping[str, Parameter], given: Mapping[str, Number]
) -> Iterator[Problem]:
    for name in SHARED_PARAMETERS:
        if name in parameters and name in training.model_fields_set:
            yield (
                ("training", name),
                f"`{name}` stands in `training` and in `space`. Remove it from one of them.",
            )
        elif name not in parameters and given.get(name, getattr(training, name)) != getattr(training, name):
            yield (
                ("baseline", name),
                f"`baseline.{name}` is {given[name]}, but `training.{name}` is {getattr(training, name)} for all "
                f"trials. Make them equal.",
            )
    values = {**Hyperparameters().as_dict(), **baseline_values(training, parameters, given)}
    for name, parameter in parameters.items():
        if parameter.contains(values[name]):
            continue
        if name in given:
            yield (
                ("baseline", name),
                f"`baseline.{name}` is {values[name]}, but must lie in the searched {_described(parameter)}. "
                f"Change one of them.",
            )
        else:
            yield (
                ("space", name),
                f"`baseline.{name}` is missing, and its default {values[name]} is not in the searched "
                f"{_described(parameter)}. Give the baseline a value.",
            )


def problems_of_try_first(
    listed: Any, parameters: Mapping[str, Parameter], baseline: Mapping[str, Number]
) -> Iterator[Problem]:
    if not isinstance(listed, list | None):
        yield (TRY_FIRST,), f"`{TRY_FIRST}` is {shorten(listed)}, but must be a list of configurations."
        return
    for i, raw in enumerate(listed or ()):
        for path, sentence in problems_of_configuration(raw, f"{TRY_FIRST}[{i}]", parameters, baseline):
            yield (TRY_FIRST, i, *path[1:]), sentence


def problems_of_configuration(
    raw: Any, name: str, parameters: Mapping[str, Parameter], baseline: Mapping[str, Number]
) -> Iterator[Problem]:
    """Problems of a configuration that the baseline completes; `name` is that of the configuration, for messages."""
    model = PARAMETERS["baseline"]
    try:
        model.model_validate(raw)
    except ValidationError as error:
        yield from problems_of_section(name, model, error.errors())
        return
    for key, value in raw.items():
        parameter = parameters.get(key, Fixed(baseline[key]))
        if not parameter.contains(value):
            must_lie = f"but must lie in the searched {_described(parameter)}. Change one of them."
            yield (name, key), f"`{name}.{key}` is {value}, {must_lie}"


def _described(parameter: Parameter) -> str:
    written = parameter.as_yaml()
    if not isinstance(written, dict):
        return f"value {written}"
    ((kind, values),) = written.items()
    return f"{kind} {shorten(values)}"


def _sentence(path: Location, model: type[Section], errors: list[ErrorDetails]) -> str:
    key = shortened(".".join(map(str, path)))
    kind, value = errors[0]["type"], errors[0].get("input")
    if kind == "extra_forbidden" and key in REMOVED_KEYS:
        return removed_sentence(key)
    if kind == "extra_forbidden":
        what = "a hyperparameter" if model in PARAMETERS.values() else "a key"
        return unknown(".".join(map(str, path)), what, model.model_fields)
    if kind == "missing":
        return f"`{key}` is missing, but must be given."
    if kind == "value_error" and (model in PARAMETERS.values() or len(path) == 1):  # a whole clause
        return f"`{key}` {errors[0]['ctx']['error']}"
    rules = " or ".join(_rule(details["type"], details.get("ctx", {})) for details in errors)
    return f"`{key}` is {shorten(value)}, but must be {rules}."


def _rule(kind: str, context: Mapping[str, Any]) -> str:
    if kind == "literal_error" and " or " in context["expected"]:
        return f"one of {context['expected']}"
    return _RULES.get(kind, kind.replace("_", " ")).format(**context)
