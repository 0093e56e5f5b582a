"""Programs in docs/ run as they are, and say what they promise."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_training_loop_learns_and_keeps_its_best_epoch(tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "docs" / "training_loop.py")]
    result = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=True)
    assert result.stderr == ""
    *epochs, kept = result.stdout.splitlines()
    accuracies = [float(found[1]) for line in epochs if (found := re.search(r"accuracy ([\d.]+)%$", line))]
    assert len(accuracies) == len(epochs) >= 2
    assert max(accuracies) > 30, "chance is about 10"
    number, accuracy = re.fullmatch(r"kept epoch (\d): ([\d.]+)% of 288 validation images", kept).groups()  # type: ignore[union-attr]
    assert accuracies[int(number) - 1] == max(accuracies)
    assert abs(float(accuracy) - max(accuracies)) < 2, "evaluated in fp32, not in the run's precision"
    assert list(tmp_path.iterdir()) == []
