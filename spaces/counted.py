"""Numbers with their nouns, in the singular or the plural."""


def counted(number: float | str, noun: str, plural: str = "") -> str:
    """`1 replicate`, `2 replicates`, `1,200 trials`.

    Args:
        number: shown rounded, with commas; or its text as it is to be shown, such as `2.5`.
        noun: in the singular.
        plural: of a noun that does not form it with an `s`.
    """
    text = number if isinstance(number, str) else f"{number:,.0f}"
    return f"{text} {noun if text == '1' else plural or f'{noun}s'}"
