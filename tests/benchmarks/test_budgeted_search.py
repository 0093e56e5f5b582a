"""What the comparison with stock Ray says of its figures; the searches themselves take minutes and are not run."""

import pytest

from benchmarks.replay import budgeted_search
from benchmarks.replay.budgeted_search import OURS, STOCK, Found
from spaces import load_space

BASELINE = load_space("quickstart").baseline


def found(said: float, epochs: int) -> Found:
    return Found(BASELINE, said, trials=9, epochs=epochs, wall_s=12.4)


def test_a_winner_is_compared_with_stock_rays_seed_by_seed() -> None:
    ours, stock = [0.82, 0.84, 0.86], [0.80, 0.81, 0.82]
    row = budgeted_search._row(1, OURS, found(0.9, 60), ours, stock)
    assert row[:7] == ("1", OURS, "9", "60", "12", "90.00%", "84.00 %")
    # The mean difference is 3 points, its standard error 1 / sqrt(3), and t for two degrees of freedom 4.303.
    assert row[7] == "+3.00 (+0.52 – +5.48)"
    assert budgeted_search._row(1, STOCK, found(0.9, 60), stock, stock)[7] == "-"
    assert budgeted_search._row(1, "hand-picked", None, ours, stock)[2:6] == ("-",) * 4


def test_stock_ray_trains_as_many_epochs_as_ours_took(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def stock(arguments: list[str], epochs: int) -> Found:
        asked.append(epochs)
        return found(0.7, epochs)

    monkeypatch.setattr(budgeted_search, "_ours", lambda arguments, epochs: found(0.8, epochs + 5))
    monkeypatch.setattr(budgeted_search, "_stock", stock)
    monkeypatch.setattr(
        budgeted_search,
        "_replicate_accuracies",
        lambda space, configs, n, seed: {title: [0.5, 0.6] for title in configs},
    )
    assert budgeted_search.main(["--epochs", "60", "--rounds", "2"]) == 0
    assert asked == [65, 65]
    assert '"epochs": 65' in capsys.readouterr().out


def test_bad_options_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert budgeted_search.main(["--replicates", "1"]) == 2
    assert "--replicates at least 2" in capsys.readouterr().err
