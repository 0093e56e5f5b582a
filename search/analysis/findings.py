"""What a diagnosis says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["change", "fine", "unknown"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer.

    Attributes:
        name: what was asked, such as `edges`.
        verdict: `change` something, `fine` as it is, or `unknown`: it cannot be told from so little.
        sentence: the answer with its numbers.
        advice: what to change, as a sentence; empty where nothing is to be.
        numbers: that the sentence rests on; finite, or None.
    """

    name: str
    verdict: Verdict
    sentence: str
    advice: str
    numbers: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "advice": self.advice,
            "numbers": dict(self.numbers),
        }
