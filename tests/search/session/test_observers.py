"""How often the files that are derived from the journal are written while a search runs."""

from search.session.observers import MAX_WRITING_FRACTION, Throttle


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def times_acted(takes_s: float, every_s: float = 5.0, for_s: int = 2000) -> tuple[int, float]:
    """How often something was done in `for_s` seconds of asking once a second, and for which share of the time."""
    clock, n = Clock(), 0
    throttle = Throttle(every_s, clock)

    def act() -> None:
        nonlocal n
        n += 1
        clock.now_s += takes_s

    while clock.now_s < 1000 + for_s:
        clock.now_s += 1
        throttle.act_if_due(act)
    return n, n * takes_s / for_s


def test_files_are_written_every_few_seconds_while_that_is_cheap() -> None:
    assert times_acted(0.0)[0] == 400
    assert times_acted(0.01)[0] >= 330


def test_files_that_take_long_are_written_more_seldom() -> None:
    for takes_s in (1.0, 5.0, 20.0):
        n, share = times_acted(takes_s)
        assert n >= 2
        assert share <= MAX_WRITING_FRACTION * 1.1
