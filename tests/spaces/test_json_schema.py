"""The JSON Schema of space files: the shipped file is the generated one, and it agrees with the loader on each key."""

import copy
import json
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from spaces import InputError, load_space, shipped_spaces
from spaces.json_schema import json_schema
from spaces.loader import SHIPPED_FOLDER, dump_space, space_from_text
from spaces.parameters import HYPERPARAMETER_NAMES
from spaces.schema import MODELS, TRY_FIRST

SCHEMA_FILE = SHIPPED_FOLDER / "space.schema.json"
QUICKSTART = yaml.safe_load((SHIPPED_FOLDER / "quickstart.yaml").read_text())


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    content = json.loads(SCHEMA_FILE.read_text())
    Draft202012Validator.check_schema(content)
    return Draft202012Validator(content)


def test_the_shipped_file_is_the_generated_one() -> None:
    again = "python -m spaces.json_schema > spaces/space.schema.json"
    assert json.loads(SCHEMA_FILE.read_text()) == json_schema(), again


@pytest.mark.parametrize("name", shipped_spaces())
def test_shipped_spaces_fit_and_name_the_schema_for_editors(name: str, schema: Draft202012Validator) -> None:
    text = (SHIPPED_FOLDER / f"{name}.yaml").read_text()
    assert text.splitlines()[0] == f"# yaml-language-server: $schema={SCHEMA_FILE.name}"
    schema.validate(yaml.safe_load(text))
    schema.validate(yaml.safe_load(dump_space(load_space(name))))  # all keys, written out


def test_every_key_is_there_and_described(schema: Draft202012Validator) -> None:
    sections = schema.schema["properties"]
    assert list(sections) == [*MODELS, TRY_FIRST]
    for name in ("SpaceSection", "Baseline"):
        assert list(schema.schema["$defs"][name]["properties"]) == list(HYPERPARAMETER_NAMES)
    for definition in schema.schema["$defs"].values():
        assert all(value["description"] for value in definition["properties"].values()), definition["title"]


def with_value(path: str, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(QUICKSTART)
    *sections, key = path.split(".")
    holder = content
    for section in sections:
        holder = holder.setdefault(section, {})
    if value is None:
        del holder[key]
    else:
        holder[key] = value
    return content


def is_loaded(content: dict[str, Any]) -> bool:
    try:
        space_from_text(yaml.safe_dump(content), "mine.yaml", "mine")
    except InputError:
        return False
    return True


@pytest.mark.parametrize(
    "path, value",
    [
        ("space.weight_decay", {"uniform": [0.0, 0.5]}),
        ("space.batch_size", {"choice": [16, 64]}),
        ("space.momentum", 0.9),
        ("search.time_budget", "1h30m"),
        ("search.memory", "none"),
        ("search.memory", ["shipped", "mine"]),
        ("resources.trials_at_once", "auto"),
        ("resources.trials_at_once", 3),
        ("track.mlflow", {"tracking_uri": "sqlite:///x.db"}),
        ("confirm", None),
        ("try_first", [{"lr": 0.1}, {"lr": 0.2, "gamma": 1}]),
    ],
)
def test_what_the_loader_takes_fits(path: str, value: Any, schema: Draft202012Validator) -> None:
    content = with_value(path, value)
    if path.startswith("space.") and path.partition(".")[2] in content["training"]:
        del content["training"][path.partition(".")[2]]
    assert is_loaded(content)
    assert schema.is_valid(content), list(schema.iter_errors(content))


@pytest.mark.parametrize(
    "path, value",
    [
        ("dataset", None),
        ("dataset.name", "digit"),
        ("dataset.image_size", 16),
        ("dataset.image_size", "18"),
        ("dataset.validation_fraction", 0),
        ("datasets", {"name": "digits"}),
        ("training.max_epochs", None),
        ("training.batch_sise", 16),
        ("training.precision", "fp64"),
        ("search.trials", True),
        ("search.sampler", "sobol"),
        ("search.memory", [3]),
        ("confirm.seeds", 1),
        ("resources.trials_at_once", "all"),
        ("track.wandb", {"project": ""}),
        ("space.lr", {"loguniform": [0.0, 0.5]}),
        ("space.lr", {"uniform": [0.1, 11]}),
        ("space.lr", {"uniform": [0.1]}),
        ("space.lr", {"uniform": [0.1, 0.2], "choice": [0.1]}),
        ("space.lr", {"normal": [0.1, 0.2]}),
        ("space.lr", [0.1, 0.2]),
        ("space.lr", "0.1"),
        ("space.momentum", 1),
        ("space.step_size", {"uniform": [1, 9]}),
        ("space.flip_p", {"randint": [0, 1]}),
        ("space.flip_p", {"choice": []}),
        ("space.flip_p", {"choice": [0.5, 0.5]}),
        ("space.nothing", 1),
        ("baseline.lr", {"uniform": [0.1, 0.2]}),
        ("baseline.step_size", 1.5),
        ("try_first", {"lr": 0.1}),
        ("try_first", [{"lr": 100}]),
        ("try_first", [{"larning_rate": 0.1}]),
    ],
)
def test_what_the_loader_refuses_does_not_fit(path: str, value: Any, schema: Draft202012Validator) -> None:
    content = with_value(path, value)
    assert not is_loaded(content)
    assert not schema.is_valid(content)
