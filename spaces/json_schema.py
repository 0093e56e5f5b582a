"""The JSON Schema of a space file, for editors: `python -m spaces.json_schema > spaces/space.schema.json`.

It has the rules of each key: type, range, forms of a parameter. Only the loader knows the rules between keys.
"""

import json
import re
from types import GenericAlias
from typing import Any

from pydantic import Field, create_model

from spaces.parameters import HYPERPARAMETER_NAMES, LIMITS
from spaces.schema import MODELS, OPTIONAL_SECTIONS, PARAMETERS, TRY_FIRST, Section

_ATTRIBUTE = re.compile(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", re.MULTILINE)


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a space file, from the models in `spaces.schema` and the limits of parameters."""
    optional: Any = Field(default_factory=dict)  # a plain default would be what editors insert
    keys: dict[str, Any] = {
        name: (model | None, optional) if name in OPTIONAL_SECTIONS else (model, ...) for name, model in MODELS.items()
    }
    keys[TRY_FIRST] = (GenericAlias(list, (PARAMETERS["baseline"],)) | None, optional)
    schema = create_model("Search space of depthwise-search", __base__=Section, **keys).model_json_schema()
    definitions = schema["$defs"]
    for model, schema_of in ((PARAMETERS["space"], _parameter), (PARAMETERS["baseline"], _value)):
        definitions[model.__name__]["properties"] = {name: schema_of(name) for name in HYPERPARAMETER_NAMES}
    for definition in definitions.values():
        definition["description"], texts = _split(definition["description"])
        for key, value in definition["properties"].items():
            value.pop("title", None)
            value |= {"description": texts[key]} if key in texts else {}
    definitions["SpaceSection"]["description"] = "The hyperparameters that are searched, each with its range, or fixed."
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _split(docstring: str) -> tuple[str, dict[str, str]]:
    """The text of a docstring, and that of each of its attributes."""
    text, _, attributes = docstring.partition("\n\nAttributes:\n")
    return text, {
        name: " ".join(description.split())
        for names, description in _ATTRIBUTE.findall(attributes)
        for name in names.split(", ")
    }


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
