import pytest

from spaces.counted import counted
from spaces.errors import first_line


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "0 replicates"),
        (1, "1 replicate"),
        (1200, "1,200 replicates"),
        (1.2, "1 replicate"),
        ("1.0", "1.0 replicates"),
    ],
)
def test_nouns_are_in_the_plural_unless_one_is_shown(number: float | str, expected: str) -> None:
    assert counted(number, "replicate") == expected


def test_the_first_line_of_an_error_is_its_message_or_its_type() -> None:
    assert first_line(ValueError("\n  too large\nby 3")) == "too large"
    assert first_line(ValueError()) == "ValueError"
    assert first_line(ValueError("x" * 300)) == "x" * 200
