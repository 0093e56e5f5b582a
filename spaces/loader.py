"""Loads a space file with `--set` options into a validated `Space`, or reports all its errors at once."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from spaces.errors import InputError, did_you_mean, expanded, nearest
from spaces.parameters import Hyperparameters, shorten
from spaces.plain_files import read_plain
from spaces.printable import shortened, warn_once
from spaces.removed import RENAMED_KEYS, renamed_sentence, with_current_keys, with_present_names
from spaces.rules import (
    Location,
    baseline_values,
    problems_of_baseline,
    problems_of_configuration,
    problems_of_rungs,
    problems_of_section,
    problems_of_size,
    problems_of_top_level,
    problems_of_try_first,
    unknown,
    with_grace,
)
from spaces.schema import MODELS, OPTIONAL_SECTIONS, PARAMETERS, SECTIONS, TRY_FIRST, Space
from spaces.yaml_lines import MAX_BYTES, Document, dumped, parse

SHIPPED_FOLDER = Path(__file__).parent
# Space file in an experiment's folder, with all defaults written out.
EXPERIMENT_FILE = "experiment.yaml"


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
    """Check a space given as YAML, as `load_space` does; `source` names the origin of the text, for messages."""
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


def configuration_from(options: Iterable[str], space: Space) -> Hyperparameters:
    """A configuration in `space` from `name=value` each; the baseline has the other values.

    Raises:
        InputError: all problems.
    """
    given: dict[str, Any] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals or not name:
            raise InputError(f"{shortened(option)} must have the form name=value, such as lr=0.1.")
        given |= parse(f"{name}: {text}", shortened(option)).content
    if not given:
        raise InputError("A configuration needs at least one name=value, such as lr=0.1.")
    baseline = space.baseline.as_dict()
    if problems := list(problems_of_configuration(given, "add", space.parameters, baseline)):
        raise InputError(sentence for _, sentence in problems)
    return Hyperparameters.from_mapping({**baseline, **given})


def dump_space(space: Space) -> str:
    """YAML text from which `load_space` reads an equal space, except for the name."""
    return dumped(space.as_dict())


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
            return f"{shown}: {unknown(section, 'a section', MODELS)}"
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
    findings = list(problems_of_top_level(source.content))
    valid: dict[str, Any] = {}
    for key, model in MODELS.items():
        raw = source.content.get(key)
        if raw is None and key not in OPTIONAL_SECTIONS:
            continue
        try:
            valid[key] = model.model_validate({} if raw is None else raw)
        except ValidationError as error:
            findings += problems_of_section(key, model, error.errors())
    for key in PARAMETERS.keys() & valid.keys():
        valid[key] = {name: getattr(valid[key], name) for name in source.content.get(key) or ()}
    training, search, parameters = valid.get("training"), valid.get("search"), valid.get("space")
    if training and search:
        valid["search"] = search = with_grace(training, search)
        findings += problems_of_rungs(training, search)
    if search and parameters is not None:
        findings += problems_of_size(search, parameters)
    listed = source.content.get(TRY_FIRST)
    if training and parameters is not None and "baseline" in valid:
        findings += problems_of_baseline(training, parameters, valid["baseline"])
        baseline = {**Hyperparameters().as_dict(), **baseline_values(training, parameters, valid["baseline"])}
        findings += problems_of_try_first(listed, parameters, baseline)
    if findings:
        lines = [(source.where(path), sentence) for path, sentence in findings]
        raise InputError(f"{where}: {sentence}" for where, sentence in sorted(lines, key=_by_line))
    sections = {key: valid[key] for key in SECTIONS}
    return Space(
        name=name,
        parameters=MappingProxyType(valid["space"]),
        baseline=Hyperparameters.from_mapping(baseline),
        try_first=tuple(dict.fromkeys(Hyperparameters.from_mapping({**baseline, **values}) for values in listed or ())),
        **sections,
    )


def _by_line(finding: tuple[str, str]) -> tuple[int, str]:
    where = finding[0]
    line = where.rpartition(":")[2]
    return (int(line) if line.isdigit() and not where.startswith("--set") else 0, where)
