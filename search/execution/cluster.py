"""A private Ray cluster of this process, which leaves no process and no file behind."""

import contextlib
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from search.execution.ray_internals import keep_ray_to_itself, node_of_this_process
from search.processes.guarded_folder import guarded_folder
from search.processes.helper_pool import count_cores
from search.processes.native_errors import native_errors_in
from spaces.errors import RunError, first_line
from spaces.schema import Space
from trainable.environment import ALLOCATOR_ENVIRONMENT, environment_with

# Our objects in Ray's store are small: images are memory-mapped files.
OBJECT_STORE_BYTES = 100 * 1024 * 1024

# Environment of the process that runs the search.
DRIVER_ENVIRONMENT = {
    # No usage reports, no second progress display, no second handler of Ctrl-C.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # Hides traces of calls whose results are not used, as when a search ends early; Tune reports all other errors.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # At the end, do not wait for an actor in the middle of an epoch.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "1",
    # Dispatch as many trials at once as the searcher proposes; Ray's default is one after the other.
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
    # One log per trial (`result.json`, see `launching`) instead of three with the same content.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ray's snapshots are never read back.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # No usage statistics of trackers, and no output of trackers on the terminal.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
}

# Environment of the processes that run trials.
WORKER_ENVIRONMENT = {
    "NO_ALBUMENTATIONS_UPDATE": "1",
    # One thread per trial and one trial per core, whatever the user's shell has set: more threads would compete.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    **ALLOCATOR_ENVIRONMENT,
}

_LOCAL_ENVIRONMENT = {
    **DRIVER_ENVIRONMENT,
    **WORKER_ENVIRONMENT,
    # Workers, which start with the cluster, import torch and the rest while the driver is still busy.
    "RAY_preload_python_modules": "trainable.preload",
    # Listen on the loopback interface only, as Ray does on systems where it has no multi-node clusters.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    # Ray would write process names over the environment, by which the guardian finds processes.
    "SPT_NOENV": "1",
}
# If these are set, Tune starts its actors with them, and cannot use workers that stand ready without them.
_HANDED_ON_BY_TUNE = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
# No trial runs without these; the names are Ray's.
_NEEDED_PROCESSES = ("raylet", "gcs_server")


class Cluster:
    """Ray for one search. A context manager: enters Ray, and leaves it and restores the environment with the block.

    Must be entered before Ray is imported, because Ray reads its settings then.

    Attributes:
        shares_disk: whether workers map the images that the driver decoded.
        address: of a cluster that was joined.
    """

    shares_disk = True
    address: str | None = None

    def __init__(self) -> None:
        self._started = contextlib.ExitStack()
        self._send_errors_to: Callable[[Path], None] = lambda path: None
        self._is_running = False

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as started:
            started.enter_context(environment_with({}))
            folder = self._prepare(started)
            self._send_errors_to = started.enter_context(native_errors_in(folder / "driver.err"))
            started.callback(shut_down_ray)
            keep_ray_to_itself()
            self._connect(folder, started)
            # Failures of trials are reported by this project; the trace is in the trial's folder.
            logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
            self._started = started.pop_all()
        self._is_running = True
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def what_is_gone(self) -> str | None:
        """Why the cluster can no longer be used, in one line; None while it can, and before and after the block."""
        return self._reason_of_loss() if self._is_running else None

    def log_to(self, path: Path) -> None:
        """Keep the log of Ray's C++ code in this process in `path`, unless it is empty."""
        self._send_errors_to(path)

    def end(self) -> None:
        """Leave Ray and restore the environment; a second call does nothing."""
        self._is_running = False
        self._started.close()

    def _prepare(self, started: contextlib.ExitStack) -> Path:
        """Set the environment; returns a temporary folder."""
        raise NotImplementedError

    def _connect(self, folder: Path, started: contextlib.ExitStack) -> None:
        raise NotImplementedError

    def _reason_of_loss(self) -> str | None:
        raise NotImplementedError


class LocalCluster(Cluster):
    """Ray on this machine, started for one search and ended with it.

    No process of Ray outlives this process, however it ends; see `guarded_folder`. Ray listens on the loopback
    interface only. Connections need a token, which only this user can read and which ends with the cluster.

    Must be entered in the thread that lives longest, because Ray's processes end with the thread that started them.

    Args:
        n_workers: number of worker processes that start with the cluster, and of CPUs that Ray may allocate.
        n_gpus: number of GPUs that Ray may allocate; None for all GPUs of this machine.
        keeps_credentials: leave AWS's credentials in the environment, for results at a URL that needs them. Workers
            that stand ready are not used then.
    """

    def __init__(self, n_workers: int, n_gpus: int | None, keeps_credentials: bool = False) -> None:
        super().__init__()
        self._n_workers = n_workers
        self._n_gpus = n_gpus
        self._keeps_credentials = keeps_credentials

    def _prepare(self, started: contextlib.ExitStack) -> Path:
        folder = started.enter_context(guarded_folder())
        # Ray's own token would stay in the user's home, be shared by all clusters, and be readable by other users.
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        os.environ.update(_LOCAL_ENVIRONMENT, RAY_AUTH_TOKEN_PATH=str(token))
        os.environ.pop("RAY_AUTH_TOKEN", None)  # it would be used instead
        for name in () if self._keeps_credentials else _HANDED_ON_BY_TUNE:
            os.environ.pop(name, None)
        return folder

    def _connect(self, folder: Path, started: contextlib.ExitStack) -> None:
        import ray

        try:
            # Without `local`, Ray joins any cluster that the machine's temporary folder names.
            ray.init(
                address="local",
                num_cpus=self._n_workers,
                num_gpus=self._n_gpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                # Below the private folder, because Ray makes this folder writable for all users.
                _temp_dir=str(folder / "ray"),
            )
        except Exception as error:  # Ray raises no type of its own
            if isinstance(error, OSError):
                raise
            reason = first_line(error).partition(". ")[0]
            raise RunError(f"Ray could not be started ({reason}). Try again when the machine is less busy.") from error
        if not ip_address(ray.util.get_node_ip_address()).is_loopback:  # type: ignore[no-untyped-call]
            raise RuntimeError("Ray was imported before the cluster was entered, and listens to the network.")

    def _reason_of_loss(self) -> str | None:
        processes = node_of_this_process().all_processes
        for name in _NEEDED_PROCESSES:
            if any(info.process.poll() is not None for info in list(processes.get(name, ()))):
                return f"Ray's process {name} is gone (killed, perhaps for its memory)"
        return None


def shut_down_ray() -> None:
    """End Ray in this process; its C++ code sets SIGTERM to its default then, so the handler is set again."""
    if "ray" in sys.modules:
        before = signal.getsignal(signal.SIGTERM)
        try:
            sys.modules["ray"].shutdown()
        finally:
            signal.signal(signal.SIGTERM, before)


def cluster_for(space: Space, keeps_credentials: bool = False) -> LocalCluster:
    """The cluster for a search of `space`, chosen without torch, so that torch and Ray can start at the same time."""
    wanted = space.resources.trials_at_once
    n_workers = count_cores() if wanted == "auto" or space.resources.device == "cuda" else wanted
    n_gpus = 0 if space.resources.device == "cpu" else None
    return LocalCluster(min(n_workers, space.search.most_trials), n_gpus, keeps_credentials)


@contextlib.contextmanager
def torch_imported_beside() -> Iterator[None]:
    """Import torch in a thread while the block waits for Ray's processes.

    The thread must not import Ray: two threads that import it would wait for each other. An error repeats in the main
    thread, which reports it.
    """
    with ThreadPoolExecutor(1) as beside:
        beside.submit(import_module, "torch")
        yield
