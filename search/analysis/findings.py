"""A finding of a diagnosis."""

from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["change", "fine", "unknown"]
HEADINGS: dict[Verdict, str] = {"change": "To change", "fine": "Fine as it is", "unknown": "Cannot be told yet"}


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to a question about a search.

    Attributes:
        name: the question, such as `edges`.
        verdict: `change` (something should be changed), `fine`, or `unknown` (too few trials to say).
        sentence: the answer with its numbers.
        advice: a sentence that says what to change; empty where nothing should be changed.
        numbers: numbers of the sentence; finite, or None.
    """

    name: str
    verdict: Verdict
    sentence: str
    advice: str
    numbers: dict[str, Any]
