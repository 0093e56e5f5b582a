"""Loads a space file with `--set` options into a validated `Space`, or reports all its errors at once."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from spaces.errors import InputError, did_you_mean, expanded, nearest
from spaces.parameters import (
    Fixed,
    Hyperparameters,
    Number,
    Parameter,
    as_yaml_numbers,
    looks_like_exponent,
    shorten,
)
from spaces.plain_files import read_plain
from spaces.printable import shortened, warn_once
from spaces.removed import (
    REMOVED_KEYS,
    RENAMED_KEYS,
    removed_sentence,
    renamed_sentence,
    with_current_keys,
    with_present_names,
)
from spaces.schema import (
    MODELS,
    OPTIONAL_SECTIONS,
    PARAMETERS,
    SECTIONS,
    SHARED_PARAMETERS,
    TRACKERS,
    Search,
    Section,
    Space,
    Training,
    rung_epochs,
)
from spaces.yaml_lines import MAX_BYTES, Document, parse

SHIPPED_FOLDER = Path(__file__).parent
# Space file in an experiment's folder, with all defaults written out.
EXPERIMENT_FILE = "experiment.yaml"

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


def shipped_spaces() -> tuple[str, ...]:
    """Names of the spaces that come with the project."""
    return tuple(sorted(path.stem for path in SHIPPED_FOLDER.glob("*.yaml")))


def load_space(space: str, overrides: Iterable[str] = ()) -> Space:
    """Read and check a space.

    Args:
        space: a path, or the name of a shipped file such as `quickstart`.
        overrides: `section.key=value` each, with the value in YAML; they replace values of the file.

    Raises:
        InputError: all problems, each with its line of the file or its `--set`.
    """
    path = find_space(space)
    document = parse(_read(path), path.name)
    if path.name == EXPERIMENT_FILE:
        document = replace(document, content=with_current_keys(document.content, defaults_only=True))
    return _validated(document, path.name, _space_name(path), overrides)


def space_from_text(text: str, source: str, name: str, overrides: Iterable[str] = ()) -> Space:
    """Check a space given as YAML.

    Args:
        text: the YAML.
        source: name of the text's origin, for messages.
        name: name of the space.
        overrides: see `load_space`.

    Raises:
        InputError: all problems.
    """
    return _validated(parse(text, source), source, name, overrides)


def _validated(document: Document, source: str, name: str, overrides: Iterable[str]) -> Space:
    for key in RENAMED_KEYS:
        section, _, old = key.partition(".")
        values = document.content.get(section)
        if isinstance(values, dict) and old in values and source != EXPERIMENT_FILE:
            warn_once(f"{source}: {renamed_sentence(key)}")
    contents = _Source(document, source)
    contents.override(overrides)
    return _check(contents, name)


def find_space(space: str) -> Path:
    """Find the file of a shipped name, a path, or an experiment's folder.

    Raises:
        InputError: `space` is none of these.
    """
    if space in shipped_spaces():
        return SHIPPED_FOLDER / f"{space}.yaml"
    path = expanded(space)
    if path.is_dir():
        path = path / EXPERIMENT_FILE
    if path.is_file():
        return path
    names = ", ".join(shipped_spaces())
    hint = did_you_mean(space, shipped_spaces())
    raise InputError(f"`{space}` is not a space: give a path to a YAML file, or one of {names}.{hint}")


def dump_space(space: Space) -> str:
    """YAML text from which `load_space` reads an equal space, except for the name."""
    return str(yaml.safe_dump(space.as_dict(), sort_keys=False, allow_unicode=True))


def _space_name(path: Path) -> str:
    # results/NAME/experiment.yaml is the space of NAME, not a space called "experiment".
    return path.resolve().parent.name if path.stem == "experiment" else path.stem


def _read(path: Path) -> str:
    try:
        # An experiment's folder may come from another user, so its file must not be a link.
        return read_plain(path, MAX_BYTES, follow_links=path.name != EXPERIMENT_FILE).decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text, but a space must be a YAML file.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}.") from None


def _unknown(key: str, what: str, known: Iterable[str]) -> str:
    known = list(known)
    hint = did_you_mean(key.rpartition(".")[2], known)
    return f"`{shortened(key)}` is not {what}: there are {', '.join(known)}.{hint}"


def _with_section(key: str) -> str:
    """Advice for a key without its section, such as ` Write training.max_epochs.`; empty if no key is similar."""
    keys = [(section, name) for section, model in MODELS.items() for name in model.model_fields]
    match = nearest(key, {name for _, name in keys})
    homes = [f"{section}.{name}" for section, name in keys if name == match]
    return f" Write {' or '.join(homes)}." if homes else ""


class _Source:
    """Content of a space with `--set` options applied, and the origin of each value."""

    def __init__(self, document: Document, name: str) -> None:
        self.content = with_present_names(document.content)
        self._document = document
        self._name = name
        self._option_of: dict[Location, str] = {}

    def override(self, options: Iterable[str]) -> None:
        problems = [problem for option in options if (problem := self._override_one(option))]
        if problems:
            raise InputError(problems)

    def where(self, path: Location) -> str:
        for length in range(len(path), 0, -1):
            if path[:length] in self._option_of:
                return f"--set {shortened(self._option_of[path[:length]])}"
        return f"{self._name}:{self._document.line_of(path)}"

    def _override_one(self, option: str) -> str | None:
        key, equals, text = option.partition("=")
        shown = f"--set {shortened(option)}"
        path = tuple(key.strip().split("."))
        if not equals or len(path) != 2 or not all(path):
            hint = _with_section(path[0]) if equals and len(path) == 1 else ""
            return f"{shown}: must have the form section.key=value, such as search.trials=32.{hint}"
        if (given := ".".join(path)) in RENAMED_KEYS:
            warn_once(f"{shown}: {renamed_sentence(given)}")
            path = tuple(RENAMED_KEYS[given].split("."))
        section, name = path
        if section not in MODELS:
            return f"{shown}: {_unknown(section, 'a section', MODELS)}"
        try:
            (value,) = parse(f"value: {text}", shown).content.values()
        except ValueError:  # not YAML, or more than one value
            return f"{shown}: has a value that is not valid YAML: {shorten(text)}."
        if self.content.get(section) is None:
            self.content[section] = {}
        holder, training = self.content[section], self.content.get("training")
        if isinstance(holder, dict):
            holder[name] = value
            self._option_of[path] = option
        if section == "space" and isinstance(training, dict) and ("training", name) not in self._option_of:
            # An option that searches a parameter replaces the fixed value in the file's `training`.
            training.pop(name, None)
        return None


def _check(source: _Source, name: str) -> Space:
    """Check the sections one by one, then the rules between those that are valid."""
    findings = list(_problems_of_top_level(source.content))
    valid: dict[str, Any] = {}
    for key, model in MODELS.items():
        raw = source.content.get(key)
        if raw is None and key not in OPTIONAL_SECTIONS:
            continue
        try:
            valid[key] = model.model_validate({} if raw is None else raw)
        except ValidationError as error:
            findings += _problems_of_section(key, model, error.errors())
    for key in PARAMETERS.keys() & valid.keys():
        valid[key] = {name: getattr(valid[key], name) for name in source.content.get(key) or ()}
    training, search, parameters = valid.get("training"), valid.get("search"), valid.get("space")
    if training and search:
        valid["search"] = search = _with_grace(training, search)
        findings += _problems_of_rungs(training, search)
    if search and parameters is not None:
        findings += _problems_of_size(search, parameters)
    if training and parameters is not None and "baseline" in valid:
        findings += _problems_of_baseline(training, parameters, valid["baseline"])
    if findings:
        lines = [(source.where(path), sentence) for path, sentence in findings]
        raise InputError(f"{where}: {sentence}" for where, sentence in sorted(lines, key=_by_line))
    baseline = Hyperparameters(**_baseline(valid["training"], valid["space"], valid["baseline"]))  # type: ignore[arg-type]
    sections = {key: valid[key] for key in SECTIONS}
    return Space(name=name, parameters=MappingProxyType(valid["space"]), baseline=baseline, **sections)


def _problems_of_top_level(content: Mapping[str, Any]) -> Iterator[Problem]:
    for key in content:
        if key not in MODELS:
            yield (key,), _unknown(key, "a section", MODELS)
    for key in MODELS.keys() - OPTIONAL_SECTIONS:
        if key not in content:
            yield (), f"`{key}` is missing, but every space must have that section."
        elif content[key] is None:
            yield (key,), f"`{key}` is empty, but must have {', '.join(MODELS[key].model_fields)}."


def _problems_of_section(key: str, model: type[Section], errors: Iterable[ErrorDetails]) -> Iterator[Problem]:
    # pydantic reports a value that fits no member of a union once per member: group these errors by key.
    grouped: dict[Location, list[ErrorDetails]] = {}
    for details in errors:
        grouped.setdefault(details["loc"][: 2 if key == "track" else 1], []).append(details)
    for location, several in grouped.items():
        known = TRACKERS[str(location[0])] if len(location) > 1 else model
        yield (key, *location), _sentence((key, *location), known, several)


def _with_grace(training: Training, search: Search) -> Search:
    """Set the default grace period, which depends on `training`: one rung at `max_epochs / reduction_factor`."""
    share, rest = divmod(training.max_epochs, search.reduction_factor)
    if "grace_epochs" in search.model_fields_set or search.asha == "off" or rest or share < 1:
        return search
    return search.model_copy(update={"grace_epochs": share})


def _problems_of_rungs(training: Training, search: Search) -> Iterator[Problem]:
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


def _problems_of_size(search: Search, parameters: Mapping[str, Parameter]) -> Iterator[Problem]:
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


def _baseline(
    training: Training, parameters: Mapping[str, Parameter], given: Mapping[str, Number]
) -> dict[str, Number]:
    """Values of the baseline that are not defaults: of `training`, fixed values of `space`, and its own."""
    shared = {name: getattr(training, name) for name in SHARED_PARAMETERS}
    fixed = {name: parameter.value for name, parameter in parameters.items() if isinstance(parameter, Fixed)}
    return {**shared, **fixed, **given}


def _problems_of_baseline(
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
    values = {**Hyperparameters().as_dict(), **_baseline(training, parameters, given)}
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


def _by_line(finding: tuple[str, str]) -> tuple[int, str]:
    where = finding[0]
    line = where.rpartition(":")[2]
    return (int(line) if line.isdigit() and not where.startswith("--set") else 0, where)


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
        what = "a hyperparameter" if path[0] in PARAMETERS else "a key"
        return _unknown(".".join(map(str, path)), what, model.model_fields)
    if kind == "missing":
        return f"`{key}` is missing, but must be given."
    if kind == "value_error" and (path[0] in PARAMETERS or len(path) == 1):  # a whole clause
        return f"`{key}` {errors[0]['ctx']['error']}"
    rules = " or ".join(_rule(details["type"], details.get("ctx", {})) for details in errors)
    return f"`{key}` is {shorten(value)}, but must be {rules}.{_exponent_hint(value)}"


def _exponent_hint(value: Any) -> str:
    if isinstance(value, str) and looks_like_exponent(value):
        return f" YAML reads an exponent without a decimal point as text: write {as_yaml_numbers(value)}."
    return ""


def _rule(kind: str, context: Mapping[str, Any]) -> str:
    if kind == "literal_error" and " or " in context["expected"]:
        return f"one of {context['expected']}"
    return _RULES.get(kind, kind.replace("_", " ")).format(**context)
