"""The JSON Schema of a space file, for editors: `python -m spaces.json_schema > spaces/space.schema.json`.

It has the rules of each key: type, range, forms of a parameter. Only the loader knows the rules between keys.
"""

import inspect
import json
import re
from collections.abc import Callable
from typing import Any

from pydantic.json_schema import models_json_schema

from spaces.parameters import HYPERPARAMETER_NAMES, LIMITS, Hyperparameters
from spaces.schema import OPTIONAL_SECTIONS, SECTIONS, TRY_FIRST

_ATTRIBUTE = re.compile(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", re.MULTILINE)


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a space file, from the models in `spaces.schema` and the limits of parameters."""
    _, generated = models_json_schema([(model, "validation") for model in SECTIONS.values()])
    definitions = generated["$defs"]
    for definition in definitions.values():
        definition["description"], texts = _split(definition["description"])
        for key, schema in definition["properties"].items():
            schema.pop("title", None)
            schema |= {"description": texts[key]} if key in texts else {}
    sections: dict[str, Any] = {name: {"$ref": f"#/$defs/{model.__name__}"} for name, model in SECTIONS.items()}
    sections |= {"space": _of_hyperparameters(_parameter), "baseline": _of_hyperparameters(_value)}
    optional = (*OPTIONAL_SECTIONS, TRY_FIRST)
    sections[TRY_FIRST] = {"type": "array", "items": _of_hyperparameters(_value)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Search space of depthwise-search",
        "type": "object",
        "properties": {
            name: {"anyOf": [section, {"type": "null"}]} if name in optional else section
            for name, section in sections.items()
        },
        "required": [name for name in sections if name not in optional],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _split(docstring: str) -> tuple[str, dict[str, str]]:
    """The text of a docstring, and that of each of its attributes."""
    text, _, attributes = docstring.partition("\n\nAttributes:\n")
    return text, {
        name: " ".join(description.split())
        for names, description in _ATTRIBUTE.findall(attributes)
        for name in names.split(", ")
    }


def _of_hyperparameters(schema_of: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    _, texts = _split(inspect.getdoc(Hyperparameters) or "")
    properties = {name: {"description": texts[name], **schema_of(name)} for name in HYPERPARAMETER_NAMES}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _value(name: str) -> dict[str, Any]:
    """A value of a hyperparameter."""
    limits = LIMITS[name]
    low = "minimum" if limits.includes_low else "exclusiveMinimum"
    high = "maximum" if limits.includes_high else "exclusiveMaximum"
    return {"type": "integer" if limits.whole else "number", low: limits.low, high: limits.high}


def _parameter(name: str) -> dict[str, Any]:
    """A value of a hyperparameter, or one of the forms that `parse_parameter` reads."""
    value = _value(name)
    ends = {"type": "array", "items": value, "minItems": 2, "maxItems": 2}
    above_0 = {**ends, "items": {**value, "exclusiveMinimum": 0}}
    ranges = {"randint": ends} if LIMITS[name].whole else {"uniform": ends, "loguniform": above_0}
    forms = {**ranges, "choice": {"type": "array", "items": value, "minItems": 1, "uniqueItems": True}}
    one_form = {"minProperties": 1, "maxProperties": 1, "additionalProperties": False}
    return {"anyOf": [value, {"type": "object", "properties": forms, **one_form}]}


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))
