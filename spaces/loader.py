"""Loads a space file with `--set` options into a validated `Space`, or reports all its errors at once."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from spaces.errors import InputError, did_you_mean, expanded, nearest
from spaces.parameters import (
    HYPERPARAMETER_NAMES,
    LIMITS,
    Fixed,
    Hyperparameters,
    Number,
    Parameter,
    ParameterError,
    as_yaml_numbers,
    looks_like_exponent,
    out_of_limits,
    parse_parameter,
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
from spaces.schema import OPTIONAL_SECTIONS, SECTIONS, Search, Section, Space, Training
from spaces.yaml_lines import MAX_BYTES, Document, parse

SHIPPED_FOLDER = Path(__file__).parent
# Space file in an experiment's folder, with all defaults written out.
EXPERIMENT_FILE = "experiment.yaml"

TOP_LEVEL = (*SECTIONS, "space", "baseline")

_TYPE_NAMES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "string_unicode": "text",
    "bool_type": "true or false",
    "model_type": "a section of its own, one `key: value` a line",
}


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
        if isinstance(values, dict) and old in values and Path(source).name != EXPERIMENT_FILE:
            warn_once(f"{source}: {renamed_sentence(key)}")
    finder = _Overridden(replace(document, content=with_present_names(document.content)), source)
    finder.apply(overrides)
    return _Validation(finder).run(name)


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
    keys = [(section, name) for section, model in SECTIONS.items() for name in model.model_fields]
    keys += [(section, name) for section in ("space", "baseline") for name in HYPERPARAMETER_NAMES]
    match = nearest(key, {name for _, name in keys})
    homes = [f"{section}.{name}" for section, name in keys if name == match]
    return f" Write {' or '.join(homes)}." if homes else ""


class _Overridden:
    """A document with `--set` options applied, which keeps the origin of each value."""

    def __init__(self, document: Document, source: str) -> None:
        self.content = document.content
        self._document = document
        self._source = source
        self._option_of: dict[tuple[str | int, ...], str] = {}

    def apply(self, overrides: Iterable[str]) -> None:
        problems = [problem for option in overrides if (problem := self._apply_one(option))]
        if problems:
            raise InputError(problems)

    def where(self, path: tuple[str | int, ...]) -> str:
        for length in range(len(path), 0, -1):
            if path[:length] in self._option_of:
                return f"--set {shortened(self._option_of[path[:length]])}"
        return f"{self._source}:{self._document.line_of(path)}"

    def _apply_one(self, option: str) -> str | None:
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
        if section not in TOP_LEVEL:
            return f"{shown}: {_unknown(section, 'a section', TOP_LEVEL)}"
        try:
            (value,) = parse(f"value: {text}", shown).content.values()
        except ValueError:  # not YAML, or more than one value
            return f"{shown}: has a value that is not valid YAML: {shorten(text)}."
        holder = self.content.setdefault(section, {})
        if holder is None:
            holder = self.content[section] = {}
        if isinstance(holder, dict):
            holder[name] = value
            self._option_of[path] = option
        if section == "space":
            self._drop_from_training(name)
        return None

    def _drop_from_training(self, name: str) -> None:
        # An option that searches a parameter replaces the fixed value in the file's `training`.
        training = self.content.get("training")
        if isinstance(training, dict) and ("training", name) not in self._option_of:
            training.pop(name, None)


def _with_grace(training: Section | None, search: Section | None) -> Section | None:
    """Set the default grace period, which depends on `training`: one rung at `max_epochs / reduction_factor`."""
    if not isinstance(training, Training) or not isinstance(search, Search):
        return search
    share, rest = divmod(training.max_epochs, search.reduction_factor)
    if "grace_epochs" in search.model_fields_set or search.asha == "off" or rest or share < 1:
        return search
    return search.model_copy(update={"grace_epochs": share})


class _Validation:
    """Validates one document and collects all problems before it raises an error."""

    def __init__(self, source: _Overridden) -> None:
        self._source = source
        self._content = source.content
        self._findings: list[tuple[str, str]] = []
        # Keys without a valid value, which rules across keys must not use.
        self._unusable: set[tuple[str | int, ...]] = set()

    def run(self, name: str) -> Space:
        self._check_top_level()
        sections = {key: self._section(key, model) for key, model in SECTIONS.items()}
        sections["search"] = _with_grace(sections["training"], sections["search"])
        parameters = self._parameters()
        self._check_epochs(sections)
        self._check_it_ends(sections["search"])
        self._check_something_is_searched(sections["search"], parameters)
        baseline = self._baseline(sections["training"], parameters)
        if self._findings:
            raise InputError(f"{where}: {sentence}" for where, sentence in sorted(self._findings, key=_by_line))
        return Space(name=name, parameters=MappingProxyType(parameters), baseline=baseline, **sections)  # type: ignore[arg-type]

    def _find(self, path: tuple[str | int, ...], sentence: str) -> None:
        self._findings.append((self._source.where(path), sentence))
        self._unusable.add(path)

    def _check_top_level(self) -> None:
        for key in self._content:
            if key not in TOP_LEVEL:
                self._find((key,), _unknown(key, "a section", TOP_LEVEL))
        for key in ("dataset", "training", "search", "space"):
            if key not in self._content:
                self._find((), f"`{key}` is missing, but every space must have that section.")

    def _section(self, key: str, model: type[Section]) -> Section | None:
        raw = self._content.get(key)
        if raw is None and key not in OPTIONAL_SECTIONS:
            if key in self._content:
                self._find((key,), f"`{key}` is empty, but must have {', '.join(model.model_fields)}.")
            return None
        try:
            section = model.model_validate({} if raw is None else raw)
        except ValidationError as error:
            by_key = _by_key(error.errors(), model)
            for location, several in by_key.items():
                self._find((key, *location), _sentence(key, location, model, several))
            return self._usable_part(key, model, raw, by_key)
        if key == "dataset" and section.name == "folder" and section.root is None:  # type: ignore[attr-defined]
            self._find((key,), "`dataset.root` is missing, but a folder data set must say where its images are.")
            return None
        return section

    def _usable_part(
        self, key: str, model: type[Section], raw: Any, errors: Mapping[tuple[str | int, ...], list[ErrorDetails]]
    ) -> Section | None:
        """The section without its invalid keys, so that rules across keys can still be checked."""
        if not isinstance(raw, dict):
            return None
        wrong = {str(location[0]) for location in errors if location}
        for name in wrong - model.model_fields.keys():
            # The user probably meant the nearest key, so its value is unknown too.
            self._unusable.add((key, nearest(name, model.model_fields) or name))
        try:
            return model.model_validate({name: value for name, value in raw.items() if name not in wrong})
        except ValidationError:
            return None

    def _can_use(self, *keys: str) -> bool:
        """Whether none of `keys`, such as `search.trials`, has an invalid value."""
        return not any(tuple(key.split(".")) in self._unusable for key in keys)

    def _parameters(self) -> dict[str, Parameter]:
        raw = self._content.get("space")
        if not isinstance(raw, dict):
            if "space" in self._content:
                example = "`lr: {loguniform: [0.01, 0.5]}`"
                self._find(("space",), f"`space` must have one hyperparameter a line, such as {example}.")
            return {}
        parameters = {}
        for name, value in raw.items():
            if name not in LIMITS:
                self._find(("space", name), _unknown(f"space.{name}", "a hyperparameter", HYPERPARAMETER_NAMES))
                continue
            try:
                parameters[name] = parse_parameter(name, value)
            except ParameterError as error:
                self._find(("space", name), f"`space.{name}` {error}")
        return parameters

    def _check_epochs(self, sections: Mapping[str, Section | None]) -> None:
        training, search = sections["training"], sections["search"]
        if training is None or search is None or search.asha == "off":  # type: ignore[attr-defined]
            return
        if not self._can_use("search.asha", "search.grace_epochs", "search.reduction_factor", "training.max_epochs"):
            return
        grace, reduction, epochs = search.grace_epochs, search.reduction_factor, training.max_epochs  # type: ignore[attr-defined]
        if grace > epochs:
            self._find(
                ("search", "grace_epochs"),
                f"`search.grace_epochs` is {grace}, but must be between 1 and `training.max_epochs` ({epochs}). "
                f"Lower it or raise `training.max_epochs`.",
            )
            return
        below = grace
        while below * reduction <= epochs:
            below *= reduction
        if below != epochs:
            self._find(
                ("training", "max_epochs"),
                f"`training.max_epochs` is {epochs}, but must be `search.grace_epochs` ({grace}) × "
                f"`search.reduction_factor` ({reduction})^k: the nearest are {below} and {below * reduction}.",
            )

    def _check_it_ends(self, search: Section | None) -> None:
        if search is None or not self._can_use("search.trials", "search.epoch_budget", "search.time_budget"):
            return
        limits = (search.trials, search.epoch_budget, search.time_budget)  # type: ignore[attr-defined]
        if all(limit is None for limit in limits):
            self._find(
                ("search",),
                "`search` has none of `trials`, `epoch_budget` and `time_budget`, but at least one must say when the "
                "search ends. Give one.",
            )

    def _check_something_is_searched(self, search: Section | None, parameters: Mapping[str, Parameter]) -> None:
        searched = [name for name, parameter in parameters.items() if not isinstance(parameter, Fixed)]
        if searched or not isinstance(self._content.get("space"), dict) or search is None:
            return
        if any(path[0] == "space" for path in self._unusable if path) or not self._can_use("search.trials"):
            return
        if search.trials != 1:  # type: ignore[attr-defined]
            number = search.trials or "not given"  # type: ignore[attr-defined]
            self._find(
                ("space",),
                f"`space` searches nothing, but `search.trials` is {number}. "
                f"Give a parameter a range, or train the one configuration with python -m trainable.train.",
            )

    def _baseline(self, training: Section | None, parameters: Mapping[str, Parameter]) -> Hyperparameters:
        values: dict[str, Number] = {}
        for name in ("batch_size", "dropout", "weight_decay"):
            if training is None:
                continue
            if name in parameters and name in training.model_fields_set:
                sentence = f"`{name}` stands in `training` and in `space`. Remove it from one of them."
                self._find(("training", name), sentence)
            if self._can_use(f"training.{name}"):
                values[name] = getattr(training, name)
        values.update({name: p.value for name, p in parameters.items() if isinstance(p, Fixed)})
        given = self._baseline_section()
        for name, value in (given or {}).items():
            if self._baseline_value_fits(name, value, values, parameters):
                values[name] = value if LIMITS[name].whole else float(value)
        if given is not None:
            self._check_defaults_in_range(given, values, parameters)
        return Hyperparameters() if self._findings else Hyperparameters(**values)  # type: ignore[arg-type]

    def _baseline_section(self) -> dict[str, Any] | None:
        """Content of `baseline`; empty if it is missing, None if it is not a section."""
        raw = self._content.get("baseline")
        if raw is None:
            return {}
        if not isinstance(raw, dict):
            self._find(("baseline",), "`baseline` must have one hyperparameter a line, such as `lr: 0.05`.")
            return None
        return raw

    def _baseline_value_fits(
        self, name: str, value: Any, fixed: Mapping[str, Number], parameters: Mapping[str, Parameter]
    ) -> bool:
        path = ("baseline", name)
        if name not in LIMITS:
            self._find(path, _unknown(f"baseline.{name}", "a hyperparameter", HYPERPARAMETER_NAMES))
            return False
        problem = out_of_limits(name, value)
        if problem:
            self._find(path, problem.replace(f"`{name}`", f"`baseline.{name}`", 1))
            return False
        parameter = parameters.get(name)
        if parameter is None and name in fixed and value != fixed[name]:
            self._find(
                path,
                f"`baseline.{name}` is {value}, but `training.{name}` is {fixed[name]} for all trials. "
                f"Make them equal.",
            )
            return False
        if parameter is not None and not parameter.contains(value):
            self._find(
                path,
                f"`baseline.{name}` is {value}, but must lie in the searched {_described(parameter)}. "
                f"Change one of them.",
            )
            return False
        return True

    def _check_defaults_in_range(
        self, given: Mapping[str, Any], values: Mapping[str, Number], parameters: Mapping[str, Parameter]
    ) -> None:
        defaults = Hyperparameters()
        for name, parameter in parameters.items():
            value = values.get(name, getattr(defaults, name))
            if name not in given and not parameter.contains(value):
                self._find(
                    ("space", name),
                    f"`baseline.{name}` is missing, and its default {value} is not in the searched "
                    f"{_described(parameter)}. Give the baseline a value.",
                )


def _by_line(finding: tuple[str, str]) -> tuple[int, str]:
    where = finding[0]
    line = where.rpartition(":")[2]
    return (int(line) if line.isdigit() and not where.startswith("--set") else 0, where)


def _described(parameter: Parameter) -> str:
    match parameter.as_yaml():
        case dict() as mapping:
            kind, values = next(iter(mapping.items()))
            return f"{kind} {shorten(values)}"
        case value:
            return f"value {value}"


def _by_key(errors: Iterable[ErrorDetails], model: type[Section]) -> dict[tuple[str | int, ...], list[ErrorDetails]]:
    # pydantic reports a value that fits no member of a union once per member: group these errors by key.
    grouped: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
    for details in errors:
        depth = 2 if _inner_section(model, details["loc"]) else 1
        grouped.setdefault(details["loc"][:depth], []).append(details)
    return grouped


def _inner_section(model: type[Section], location: tuple[str | int, ...]) -> type[Section] | None:
    """The nested section at a key, such as `track.mlflow`; None if the key holds a plain value."""
    field = model.model_fields.get(str(location[0])) if location else None
    kinds = (field.annotation, *get_args(field.annotation)) if field else ()
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def _sentence(section: str, location: tuple[str | int, ...], model: type[Section], errors: list[ErrorDetails]) -> str:
    key = shortened(".".join([section, *map(str, location)]))
    kind, value = errors[0]["type"], errors[0].get("input")
    if kind == "extra_forbidden" and key in REMOVED_KEYS:
        return removed_sentence(key)
    if kind == "extra_forbidden":
        inner = _inner_section(model, location) if len(location) > 1 else None
        return _unknown(f"{section}.{'.'.join(map(str, location))}", "a key", (inner or model).model_fields)
    if kind == "missing":
        return f"`{key}` is missing, but must be given."
    rules = " or ".join(_rule(details["type"], details.get("ctx", {})) for details in errors)
    return f"`{key}` is {shorten(value)}, but must be {rules}.{_exponent_hint(value)}"


def _exponent_hint(value: Any) -> str:
    if isinstance(value, str) and looks_like_exponent(value):
        return f" YAML reads an exponent without a decimal point as text: write {as_yaml_numbers(value)}."
    return ""


def _rule(kind: str, context: Mapping[str, Any]) -> str:
    if kind in _TYPE_NAMES:
        return _TYPE_NAMES[kind]
    if kind == "literal_error":
        expected = str(context["expected"])
        return f"one of {expected}" if " or " in expected else expected
    if kind == "value_error":
        return str(context["error"])
    bounds = {
        "greater_than": "greater than {gt}",
        "greater_than_equal": "at least {ge}",
        "less_than": "less than {lt}",
        "less_than_equal": "at most {le}",
        "string_too_short": "of at least {min_length} characters",
        "string_too_long": "of at most {max_length} characters",
    }
    return bounds[kind].format(**context) if kind in bounds else kind.replace("_", " ")
