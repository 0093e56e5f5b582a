"""Output of the benchmarks: a table, and as the last line one JSON object with all measurements."""

import json
import math
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Number of busy cores before a measurement above which its result is not reliable.
MOST_CORES_BUSY = 0.1


def table_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align the columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(_line(cells, widths) for cells in (header, rule, *rows))


def number_text(value: float | None, digits: int = 0, suffix: str = "") -> str:
    """`value` with separated thousands; a dash for None, NaN and infinity."""
    return "-" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}{suffix}"


def print_json(content: Mapping[str, Any]) -> None:
    """Print `content` as one line of JSON; NaN and infinity become null."""
    print(json.dumps(_json_ready(content), allow_nan=False), flush=True)


def progress(message: str) -> None:
    """Print a line with the time of day on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """Environment of a measurement: processor, cores, load, versions and commit."""
    import torch

    from search.experiment.manifest import git_commit, versions
    from search.processes.helper_pool import count_cores

    return {
        "processor": processor_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": count_cores(),
        "load_average_1_min": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def cores_busy(seconds: float = 0.5) -> float:
    """Number of cores that are busy now, with any process of this machine; NaN if the kernel does not say.

    Call this before a measurement. A loop with several threads becomes several times slower if another process uses
    one of its cores, so a busy machine favours programs with one thread.
    """
    before = _busy_ticks()
    time.sleep(seconds)
    return (_busy_ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds


def busy_warning(n_cores_busy: float) -> str:
    """Remark about a figure from a busy machine; empty if the machine was idle."""
    return f"  (something else kept {n_cores_busy:.1f} cores busy)" if n_cores_busy > MOST_CORES_BUSY else ""


def processor_name() -> str:
    """Name of the processor, with family and model, because virtual machines hide the rest."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.partition(":")[::2] for line in text.partition("\n\n")[0].splitlines())
    facts = {key.strip(): value.strip() for key, value in pairs}
    if "model name" not in facts:
        return platform.machine()
    return f"{facts['model name']} (family {facts.get('cpu family')}, model {facts.get('model')})"


def _busy_ticks() -> float:
    try:
        first = Path("/proc/stat").read_text().partition("\n")[0]
    except OSError:
        return math.nan
    user, nice, system, _idle, _waiting, *others = (int(word) for word in first.split()[1:9])
    return user + nice + system + sum(others)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cells[0].ljust(widths[0]),
        *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)),
    ]
    return "  ".join(padded).rstrip()


def _json_ready(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(key): _json_ready(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_json_ready(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
