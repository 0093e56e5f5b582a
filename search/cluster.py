"""A Ray cluster of this process's own, which leaves nothing behind."""

import logging
import os
import shutil
import sys
import tempfile
from types import TracebackType

from spaces.schema import Space
from trainable.allocator import ALLOCATOR_ENVIRONMENT

# Objects that we put into Ray's store are small: images are memory-mapped files.
OBJECT_STORE_BYTES = 100 * 1024 * 1024
LONGEST_TEMPORARY_PATH = 30

# Of the process that a search runs in.
DRIVER_ENVIRONMENT = {
    # No reports to anybody, no second progress display, no handler of Ctrl-C beside ours.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # After an end, an actor in the middle of an epoch is not waited for.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "1",
    # Trials start together, as many as the searcher gives out; Ray's default is one after the other.
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
    # Ray's snapshots are never read back.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}

# Of the processes that trials run in.
WORKER_ENVIRONMENT = {
    "NO_ALBUMENTATIONS_UPDATE": "1",
    # One thread a trial and a trial a core: more only compete, whatever the user's shell has set.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    **ALLOCATOR_ENVIRONMENT,
}

_ENVIRONMENT = {
    **DRIVER_ENVIRONMENT,
    **WORKER_ENVIRONMENT,
    # Workers, which start with the cluster, import torch and the rest while the driver is still busy.
    "RAY_preload_python_modules": "trainable.preload",
}


# Tune starts its actors with these where they are set, and workers that stand ready do not have them.
_HANDED_ON_BY_TUNE = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")


class LocalCluster:
    """Ray on this machine; a context manager that starts it, and ends all of it with the block.

    Must be entered in the thread that lives longest: Ray's processes end with the thread that started them.

    Args:
        n_workers: processes to start at once, and the CPUs that Ray may hand out.
        n_gpus: that it may hand out; None for all that are there.
        keeps_credentials: leave AWS's in the environment, for results at a URL that wants them; workers that stand
            ready are not used then.
    """

    # Workers map the images that the driver decoded.
    shares_disk = True

    def __init__(self, n_workers: int, n_gpus: int | None, keeps_credentials: bool = False) -> None:
        self._n_workers = n_workers
        self._n_gpus = n_gpus
        self._keeps_credentials = keeps_credentials
        self._before: dict[str, str] | None = None
        self._folder: str | None = None

    def __enter__(self) -> "LocalCluster":
        # Not under the experiment's folder, nor under a long TMPDIR: a socket's path has at most 107 bytes.
        temporary = tempfile.gettempdir()
        short = temporary if len(temporary) <= LONGEST_TEMPORARY_PATH else "/tmp"
        self._folder = tempfile.mkdtemp(prefix="dws-", dir=short)
        self._before = dict(os.environ)
        try:
            os.environ.update(_ENVIRONMENT)
            # torch makes an empty cache for its compiler wherever it is imported.
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{self._folder}/inductor"
            for name in () if self._keeps_credentials else _HANDED_ON_BY_TUNE:
                os.environ.pop(name, None)
            self._start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _start(self) -> None:
        import ray

        # `local`: without it Ray joins whatever cluster the machine's temporary folder names.
        ray.init(
            address="local",
            num_cpus=self._n_workers,
            num_gpus=self._n_gpus,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=self._folder,
        )
        logging.getLogger("ray.tune").setLevel(logging.ERROR)

    def end(self) -> None:
        """End Ray's processes and give the environment back; nothing where that is done already."""
        before, folder = self._before, self._folder
        self._before = self._folder = None
        if before is None or folder is None:
            return
        try:
            if "ray" in sys.modules:
                sys.modules["ray"].shutdown()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.environ.clear()
            os.environ.update(before)


def cluster_for(space: Space, keeps_credentials: bool = False) -> LocalCluster:
    """The cluster that a search of `space` needs; told without torch, so that both can start side by side."""
    wanted = space.resources.trials_at_once
    n_workers = count_cores() if wanted == "auto" or space.resources.device == "cuda" else wanted
    n_gpus = 0 if space.resources.device == "cpu" else None
    return LocalCluster(min(n_workers, space.search.trials), n_gpus, keeps_credentials)


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
