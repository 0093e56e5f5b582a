"""Numbers with their nouns and units, as texts."""

import math


def counted(number: float | str, noun: str) -> str:
    """`1 replicate`, `2 replicates`, `1,200 trials`.

    Args:
        number: a number, which is shown rounded and with commas; or its text, such as `2.5`.
        noun: singular; `s` makes it plural.
    """
    text = number if isinstance(number, str) else f"{number:,.0f}"
    return f"{text} {noun if text == '1' else f'{noun}s'}"


def duration_text(seconds: float) -> str:
    """`45 seconds`, `12 minutes` or `3.5 hours`."""
    if seconds < 90:
        return counted(f"{seconds:.0f}", "second")
    if seconds < 90 * 60:
        return counted(f"{seconds / 60:.0f}", "minute")
    return counted(f"{seconds / 3600:.1f}", "hour")


def size_text(n_bytes: float) -> str:
    """`13 MB`, in powers of ten; at least `1 MB`."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{max(1, math.ceil(n_bytes / 1e6))} MB"
