"""What every benchmark prints: a table for people, and as its last line one JSON object with everything measured."""

import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Above this many busy cores before a measurement, its figure is not to be trusted.
MOST_CORES_BUSY = 0.1


def medians(runs: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each variant's runs; variants without a run are left out."""
    return {name: statistics.median(values) for name, values in runs.items() if values}


def factors(values: Mapping[str, float], reference: str) -> dict[str, float]:
    """Each value as a multiple of the reference's; empty where the reference was not measured."""
    if reference not in values:
        return {}
    return {name: value / values[reference] for name, value in values.items()}


def table_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(_line(cells, widths) for cells in (header, rule, *rows))


def best_ratio(runs: Mapping[str, Sequence[float]], name: str, reference: str) -> float | None:
    """The best run of one over the best run of the other: what is least disturbed on a busy machine."""
    if not runs.get(name) or not runs.get(reference):
        return None
    return max(runs[name]) / max(runs[reference])


def number_text(value: float | None, digits: int = 0, suffix: str = "") -> str:
    """`value` with thousands separated, or a dash for None and what is not finite."""
    return "-" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}{suffix}"


def print_json(content: Mapping[str, Any]) -> None:
    """One line on standard output; what JSON does not know (NaN, infinity) becomes null."""
    print(json.dumps(_json_ready(content), allow_nan=False), flush=True)


def progress(message: str) -> None:
    """One line on standard error, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """What figures depend on beside the code: processor, cores, versions, commit, and what else was running."""
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
    """How many cores are busy now, by whatever runs on this machine; NaN where the kernel does not tell.

    To be asked before a measurement: a loop with several threads becomes several times slower when something
    else takes one of its cores, so that a busy machine flatters whoever uses one thread.
    """
    before = _busy_ticks()
    time.sleep(seconds)
    return (_busy_ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds


def busy_warning(n_cores_busy: float) -> str:
    """Words to put behind a figure that was taken on a busy machine; empty otherwise."""
    return f"  (something else kept {n_cores_busy:.1f} cores busy)" if n_cores_busy > MOST_CORES_BUSY else ""


def processor_name() -> str:
    """As the kernel names it: with family and model, as virtual machines hide the rest."""
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
