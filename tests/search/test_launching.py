from pathlib import Path

from search.experiment import Experiment
from search.launching import LONGEST_SHARE, _Rhythm


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def times_acted(takes_s: float, every_s: float = 5.0, for_s: int = 2000) -> tuple[int, float]:
    """How often something was done in `for_s` seconds of asking once a second, and for which share of the time."""
    clock, n = Clock(), 0
    rhythm = _Rhythm(every_s, clock)

    def act() -> None:
        nonlocal n
        n += 1
        clock.now_s += takes_s

    while clock.now_s < 1000 + for_s:
        clock.now_s += 1
        rhythm.act_if_due(act)
    return n, n * takes_s / for_s


def test_files_are_written_every_few_seconds_while_that_is_cheap() -> None:
    assert times_acted(0.0)[0] == 400
    assert times_acted(0.01)[0] >= 330


def test_files_that_take_long_are_written_more_seldom() -> None:
    for takes_s in (1.0, 5.0, 20.0):
        n, share = times_acted(takes_s)
        assert n >= 2
        assert share <= LONGEST_SHARE * 1.1


def test_the_newest_checkpoints_of_a_trial_are_those_of_the_latest_session(tmp_path: Path) -> None:
    names = [
        "session_2/trial_0003/checkpoint_000007",
        "session_10/trial_0003/checkpoint_000000",
        "session_10/trial_0003/checkpoint_000001",
        "session_10/trial_0004/checkpoint_000000",
    ]

    def left() -> set[str]:
        return {str(path.relative_to(tmp_path / "ray")) for path in tmp_path.glob("ray/*/*/checkpoint_*")}

    for name in names:
        (tmp_path / "ray" / name).mkdir(parents=True)
        (tmp_path / "ray" / name / "state.json").touch()
    experiment = Experiment(tmp_path)
    experiment.drop_checkpoints("trial_0003", but_newest=4)
    assert left() == set(names)
    experiment.drop_checkpoints("trial_0003", but_newest=2)
    assert left() == set(names[1:])
    experiment.drop_checkpoints("trial_0003")
    assert left() == {names[3]}
