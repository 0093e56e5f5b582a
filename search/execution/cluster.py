"""A private Ray cluster of this process, which leaves no process and no file behind."""

import contextlib
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any

from search.execution.ray_internals import keep_ray_to_itself, node_of_this_process
from search.processes.guarded_folder import guarded_folder
from search.processes.helper_pool import count_cores
from search.processes.native_errors import FILE_NAME, NativeErrors, native_errors_in
from spaces.errors import RunError, first_line
from spaces.schema import Space
from trainable.environment import ALLOCATOR_ENVIRONMENT

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
}

# Environment of both: no usage statistics of trackers, and no output of trackers on the terminal.
_TRACKER_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}

# Environment of the processes that run trials.
WORKER_ENVIRONMENT = {
    "NO_ALBUMENTATIONS_UPDATE": "1",
    # One thread per trial and one trial per core, whatever the user's shell has set: more threads would compete.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    **ALLOCATOR_ENVIRONMENT,
}

_ENVIRONMENT = {
    **DRIVER_ENVIRONMENT,
    **WORKER_ENVIRONMENT,
    **_TRACKER_ENVIRONMENT,
    # Workers, which start with the cluster, import torch and the rest while the driver is still busy.
    "RAY_preload_python_modules": "trainable.preload",
}


# Keep other users out of the cluster.
_PRIVACY = {
    # Listen on the loopback interface only, as Ray does on systems where it has no multi-node clusters.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    # Ray would write process names over the environment, by which the guardian finds processes.
    "SPT_NOENV": "1",
}
# No trial runs without these; the names are Ray's.
_NEEDED_PROCESSES = ("raylet", "gcs_server")

# These would be used instead of the cluster's own token.
_OTHER_TOKEN = "RAY_AUTH_TOKEN"

# If these are set, Tune starts its actors with them, and cannot use workers that stand ready without them.
_HANDED_ON_BY_TUNE = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")


class LocalCluster:
    """Ray on this machine; a context manager that starts Ray, and ends it with the block.

    No process of Ray outlives this process, however it ends; see `guarded_folder`. Ray listens on the loopback
    interface only. Connections need a token, which only this user can read and which ends with the cluster.

    Must be entered before Ray is imported, because Ray reads its settings then, and in the thread that lives longest,
    because Ray's processes end with the thread that started them.

    Args:
        n_workers: number of worker processes that start with the cluster, and of CPUs that Ray may allocate.
        n_gpus: number of GPUs that Ray may allocate; None for all GPUs of this machine.
        keeps_credentials: leave AWS's credentials in the environment, for results at a URL that needs them. Workers
            that stand ready are not used then.
    """

    # Workers map the images that the driver decoded.
    shares_disk = True
    address: str | None = None

    def __init__(self, n_workers: int, n_gpus: int | None, keeps_credentials: bool = False) -> None:
        self._n_workers = n_workers
        self._n_gpus = n_gpus
        self._keeps_credentials = keeps_credentials
        self._started = contextlib.ExitStack()
        self._errors: NativeErrors | None = None
        self._is_ending = False

    def __enter__(self) -> "LocalCluster":
        with contextlib.ExitStack() as started:
            started.enter_context(_environment_given_back())
            folder = started.enter_context(guarded_folder()).path
            os.environ.update(_ENVIRONMENT | _PRIVACY, RAY_AUTH_TOKEN_PATH=str(_write_token(folder)))
            handed_on = () if self._keeps_credentials else _HANDED_ON_BY_TUNE
            for name in (*handed_on, _OTHER_TOKEN):
                os.environ.pop(name, None)
            self._errors = started.enter_context(native_errors_in(folder / FILE_NAME))
            started.callback(shut_down_ray)
            self._start(folder)
            self._started = started.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _start(self, folder: Path) -> None:
        import ray

        keep_ray_to_itself()
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
        except OSError:
            raise
        except Exception as error:  # Ray raises no type of its own
            reason = first_line(error).partition(". ")[0]
            raise RunError(f"Ray could not be started ({reason}). Try again when the machine is less busy.") from error
        if not ip_address(ray.util.get_node_ip_address()).is_loopback:  # type: ignore[no-untyped-call]
            raise RuntimeError("Ray was imported before the cluster was entered, and listens to the network.")
        # Failures of trials are reported by this project; the trace is in the trial's folder.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)

    def what_is_gone(self) -> str | None:
        """Why the cluster is gone, as one line; None while its processes live, and before and after them."""
        node = None if self._is_ending else node_of_this_process()
        dead = [name for name in _NEEDED_PROCESSES if node and _has_ended(node, name)]
        return f"Ray's process {dead[0]} is gone (killed, perhaps for its memory)" if dead else None

    def log_to(self, path: Path) -> None:
        """Keep the log of Ray's C++ code in this process in `path`, unless it is empty."""
        if self._errors:
            self._errors.send_to(path)

    def end(self) -> None:
        """End Ray's processes and restore the environment; a second call does nothing."""
        self._is_ending = True
        self._started.close()


def _has_ended(node: Any, name: str) -> bool:
    return any(info.process.poll() is not None for info in list(node.all_processes.get(name, ())))


@contextlib.contextmanager
def _environment_given_back() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _write_token(folder: Path) -> Path:
    # Ray's own token would stay in the user's home, be shared by all clusters, and be readable by other users.
    path = folder / "token"
    path.write_text(secrets.token_hex(32))
    return path


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

    The thread must not import Ray: two threads that import it would wait for each other.
    """
    thread = threading.Thread(target=_import_torch)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _import_torch() -> None:
    # An error repeats in the main thread, which reports it.
    with contextlib.suppress(ImportError):
        import torch  # noqa: F401
