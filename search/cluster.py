"""A Ray cluster of this process's own, which leaves nothing behind."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

# Objects that we put into Ray's store are small: images are memory-mapped files.
OBJECT_STORE_BYTES = 100 * 1024 * 1024
LONGEST_TEMPORARY_PATH = 30

_ENVIRONMENT = {
    # No reports to anybody, no second progress display, no handler of Ctrl-C beside ours.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # After an end, an actor in the middle of an epoch is not waited for.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "1",
    # Ray's snapshots are never read back.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    # One thread a trial and a trial a core: more only compete, whatever the user's shell has set.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


@contextmanager
def local_cluster(n_cpus: int, n_gpus: int, trials_at_once: int) -> Iterator[None]:
    """Start Ray on this machine, and end all of it with the block.

    Args:
        n_cpus: that Ray may hand out.
        n_gpus: likewise.
        trials_at_once: so many workers start together; Ray's default is one after the other.
    """
    before = dict(os.environ)
    os.environ.update(_ENVIRONMENT, TUNE_MAX_PENDING_TRIALS_PG=str(trials_at_once))

    # Not under the experiment's folder, nor under a long TMPDIR: a socket's path has at most 107 bytes.
    temporary = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="dws-", dir=temporary if len(temporary) <= LONGEST_TEMPORARY_PATH else "/tmp")
    # torch makes an empty cache for its compiler wherever it is imported.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/inductor"
    import ray

    try:
        # `local`: without it Ray joins whatever cluster the machine's temporary folder names.
        ray.init(
            address="local",
            num_cpus=n_cpus,
            num_gpus=n_gpus,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.clear()
        os.environ.update(before)
