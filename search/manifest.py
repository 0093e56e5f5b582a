"""What an experiment's manifest says beside its results: enough to repeat it, and to trust it."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from search.experiment import timestamp
from spaces.schema import Space

_PACKAGES = (
    "depthwise-search",
    "torch",
    "torchvision",
    "albumentations",
    "ray",
    "optuna",
    "numpy",
    "pillow",
    "scikit-learn",
    "onnxruntime",
)


def new_manifest(space: Space, name: str, device: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """The manifest of an experiment that starts now.

    Args:
        space: resolved.
        name: of the experiment.
        device: kind and name of the device, and trials at once.
        data: what the images are.
    """
    return {
        "name": name,
        "space": space.name,
        "created_at": timestamp(),
        "state": "running",
        "versions": versions(),
        "git_commit": git_commit(),
        "device": device,
        "data": data,
        "seeds": {"experiment": space.search.seed, "split": space.dataset.split_seed},
        "sessions": [],
    }


def versions() -> dict[str, str]:
    """Python's and the packages' that results depend on."""
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed[package] = "not installed"
    return {"python": platform.python_version(), **installed}


def git_commit() -> str | None:
    """The commit that this code is at, with `+changes` where files differ; None outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            command = ["git", "-C", str(here), *arguments]
            return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    # An installed copy may lie inside some other project's checkout, whose commit says nothing of ours.
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and git("status", "--porcelain", "--", ".") else commit
