"""Joins an existing Ray cluster for one search, and leaves it running afterwards.

The driver must run on a machine of the cluster. It ships the project's code and the decoded images to the other
machines.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from search.execution.cluster import DRIVER_ENVIRONMENT, WORKER_ENVIRONMENT, shut_down_ray
from search.execution.nodes import NodeFacts, facts_of_this_node, must_be_usable
from search.execution.ray_internals import keep_ray_to_itself, node_of_this_process
from search.execution.stop_signal import POLL_S
from search.processes.native_errors import FILE_NAME, NativeErrors, native_errors_in
from spaces.errors import InputError

if TYPE_CHECKING:
    from search.execution.plan import ResourcePlan
    from spaces.schema import Space
    from trainable.data.datasets import TrainingData
    from trainable.ray_trainable import ShippedImages

# Time limits: to reach the head; for the answers of all nodes, which import torch for the first time.
REACH_S = 5.0
ANSWER_S = 180.0
# Interval at which the list of nodes is read, and the time without an answer after which the head counts as lost. Ray
# itself would end this process after 60 s; a head with a database may be restarted before that.
LIST_EVERY_S = 5.0
SILENCE_S = 45.0
_SHIPPED_PACKAGES = ("spaces", "trainable", "search")
# Ray reserves the resources of a task; a task that inspects a GPU must not wait for a whole one.
_TOKEN_GPU = 0.001


class JoinedCluster:
    """The cluster at `address`; a context manager that joins it, and at its end removes this search's actors from it.

    Args:
        address: `auto` for the cluster that this machine belongs to, or HOST:PORT of the head.
        results: folder that every node must see; None if results are kept at a URL.

    Attributes:
        address: as given.
        nodes: nodes that can run trials, read when the cluster was joined.

    Raises:
        InputError: on entering: the address is wrong, the cluster cannot be joined, or a node cannot be used.
    """

    shares_disk = False

    def __init__(self, address: str, results: Path | None) -> None:
        self.address = address
        self._results = results
        self._before: dict[str, str] | None = None
        self._started = contextlib.ExitStack()
        self._errors: NativeErrors | None = None
        self._nodes_watch: _NodesWatch | None = None
        self.nodes: tuple[NodeFacts, ...] = ()

    def __enter__(self) -> JoinedCluster:
        must_be_joinable(self.address)
        self._before = dict(os.environ)
        try:
            os.environ.update(DRIVER_ENVIRONMENT)
            # These settings override those of a surrounding job, such as of `ray job submit`.
            os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"
            # By default, Ray searches for a node on this machine for a minute.
            os.environ.setdefault("RAY_gcs_server_request_timeout_seconds", "20")
            folder = self._started.enter_context(tempfile.TemporaryDirectory(prefix="dws-"))
            self._errors = self._started.enter_context(native_errors_in(Path(folder) / FILE_NAME))
            self._join()
            with _marker_in(self._results) as marker:
                self.nodes = _ask_nodes(self.address, marker)
            must_be_usable(self.nodes, self._results)
            self._nodes_watch = _NodesWatch()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _join(self) -> None:
        import ray

        packages = Path(__file__).parents[2]
        keep_ray_to_itself()
        try:
            ray.init(
                address=self.address,
                runtime_env={
                    "py_modules": [str(packages / name) for name in _SHIPPED_PACKAGES],
                    "env_vars": WORKER_ENVIRONMENT,
                },
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (Exception, SystemExit) as error:  # Ray exits if the head never answers
            raise InputError(why_not_joined(self.address, error)) from error
        # Failures of trials are reported by this project; the trace is in the trial's folder.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)

    def seconds_per_epoch(self, space: Space, data: TrainingData, resource_plan: ResourcePlan) -> float:
        """Time a few steps of the baseline on a node, and scale them to an epoch."""
        import ray

        from trainable.ray_trainable import ship

        wanted = resource_plan.resources_per_trial
        task = ray.remote(num_cpus=wanted["cpu"], num_gpus=wanted.get("gpu", 0), max_retries=3)(_timed_here)
        try:
            seconds = ray.get(task.remote(space, ship(data.decoded), resource_plan), timeout=ANSWER_S)
        except ray.exceptions.GetTimeoutError:
            raise InputError(_no_answer(self.address)) from None
        return float(seconds)

    def what_is_gone(self) -> str | None:
        """Reason, in one line, why the cluster can no longer be used; None while it can. Called every `POLL_S`."""
        gone = self._nodes_watch.what_is_gone(POLL_S) if self._nodes_watch else None
        return f"The cluster at {self.address} is lost: {gone}" if gone else None

    def log_to(self, path: Path) -> None:
        """Keep the log of Ray's C++ code in this process in `path`, unless it is empty."""
        if self._errors:
            self._errors.send_to(path)

    def end(self) -> None:
        """Leave the cluster, which ends this search's actors; a second call does nothing."""
        before, self._before = self._before, None
        if before is None:
            return
        if self._nodes_watch:
            self._nodes_watch.end()
        self._nodes_watch = None
        try:
            shut_down_ray()
        finally:
            self._started.close()
            os.environ.clear()
            os.environ.update(before)


class _NodesWatch:
    """Reads the cluster's list of nodes at intervals, in a thread, because a lost head never answers.

    The state of this machine's own raylet is read from `/proc`, if it is visible there: when the head misses the
    raylet, Ray ends this process without a message.
    """

    def __init__(self) -> None:
        import ray

        node = node_of_this_process()
        self._raylet = process_with_argument(f"--raylet_socket_name={node.raylet_socket_name}")
        self._own_id = ray.get_runtime_context().get_node_id()
        self._ended = threading.Event()
        self._own_is_alive = True
        # Count calls instead of reading a clock, because this process may have been stopped (SIGSTOP) meanwhile.
        self._n_asked_since = 0
        threading.Thread(target=self._read_lists, name="nodes", daemon=True).start()

    def what_is_gone(self, every_s: float) -> str | None:
        """The lost part of the cluster; None while the cluster can be used. Called every `every_s`."""
        self._n_asked_since += 1
        if self._raylet and has_ended(self._raylet):
            return "this machine's raylet is gone (killed, perhaps for its memory)"
        if not self._own_is_alive:
            return "this machine is no longer one of its nodes"
        if self._n_asked_since * every_s > SILENCE_S:
            return f"its head has not answered for {SILENCE_S:.0f} s"
        return None

    def end(self) -> None:
        self._ended.set()

    def _read_lists(self) -> None:
        import ray

        while not self._ended.wait(LIST_EVERY_S):
            try:
                nodes = ray.nodes()  # type: ignore[no-untyped-call]
            except Exception:  # Ray raises many types; only the missing list matters
                continue
            own = [node["Alive"] for node in nodes if node["NodeID"] == self._own_id]
            self._own_is_alive = any(own)
            self._n_asked_since = 0


def process_with_argument(argument: str) -> Path | None:
    """Folder in `/proc` of a process with this argument; None if no such process is visible."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended meanwhile
            if os.fsencode(argument) in (process / "cmdline").read_bytes().split(b"\0"):
                return process
    return None


def has_ended(process: Path) -> bool:
    """Whether the process of a folder in `/proc` has ended; a zombie has."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def must_be_joinable(address: str) -> None:
    """Raise InputError unless `address` is `auto`, or HOST:PORT where something answers."""
    if "://" in address:
        raise InputError(
            f"--address is {address}, but a search cannot be run from outside a cluster. Start it on one of the "
            f"cluster's machines (ray exec, ray job submit or kubectl exec) with --address auto."
        )
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"--address is {address}, but must be `auto` or HOST:PORT, such as 10.0.0.5:6379.")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S) as connection:
            is_head = os.environ.get("RAY_USE_TLS", "0") not in ("", "0") or _speaks_http2(connection)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "no answer"
        raise InputError(
            f"--address is {address}, but nothing answers there ({reason}). Give HOST:PORT of the cluster's head, "
            f"as `ray start --head` printed it."
        ) from None
    if not is_head:
        raise InputError(
            f"--address is {address}, but what answers there is not the head of a Ray cluster. Give HOST:PORT of the "
            f"head, as `ray start --head` printed it."
        )


def _speaks_http2(connection: socket.socket) -> bool:
    """Whether a server answers like a gRPC server. With another server, Ray would try for two minutes.

    Source: RFC 9113, section 3.4: both sides begin with a SETTINGS frame, the client after its preface.
    """
    try:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        greeting = connection.recv(4, socket.MSG_WAITALL)
    except OSError:
        return False
    return len(greeting) == 4 and greeting[3] == 4


def why_not_joined(address: str, error: BaseException) -> str:
    """One line for an exception of `ray.init`."""
    texts = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__
    text = "\n".join(texts)
    if "Version mismatch" in text:
        facts = [line.strip() for line in text.splitlines() if line.strip().startswith(("Ray:", "Python:"))]
        theirs, ours = ", ".join(facts[:2]), ", ".join(facts[2:4])
        return (
            f"--address is {address}, but that cluster has {theirs} and this command {ours}. "
            f"Use the same versions on both sides."
        )
    if "Could not find any running Ray instance" in text:
        return (
            f"--address is {address}, but no Ray cluster runs on this machine. Start one (ray start --head), or give "
            f"HOST:PORT of its head."
        )
    if "No node info found" in text or "local raylet" in text.lower():
        return (
            f"--address is {address}, but this machine is not a node of that cluster. Start the search on one that "
            f"is, or add this one: ray start --address={address}"
        )
    if "auth" in text.lower() or "token" in text.lower():
        return (
            f"--address is {address}, but that cluster refuses us without its token. Set RAY_AUTH_MODE=token and "
            f"RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH as on its nodes."
        )
    lines = [line.strip() for line in texts[-1].splitlines() if line.strip()] or [type(error).__name__]
    return f"--address is {address}, but the cluster there cannot be joined ({lines[0][:200].rstrip('.')})."


def _no_answer(address: str) -> str:
    return (
        f"--address is {address}, but its nodes do not answer within {ANSWER_S:.0f} s. See `ray status` for what they "
        f"are busy with."
    )


def _ask_nodes(address: str, marker: str | None) -> tuple[NodeFacts, ...]:
    """Facts of every node that can run trials, by node id; each node is asked by a task."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked: list[tuple[str, int, int, Any]] = []
    for node in sorted(ray.nodes(), key=lambda node: str(node["NodeID"])):  # type: ignore[no-untyped-call]
        # Ray counts in floats, and a trial needs a whole CPU.
        n_cpus, n_gpus = (int(node["Resources"].get(kind, 0)) for kind in ("CPU", "GPU"))
        if not node["Alive"] or not (n_cpus or n_gpus):
            continue
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(num_cpus=0, num_gpus=_TOKEN_GPU if n_gpus else 0, max_retries=3)(facts_of_this_node)
        answer = task.options(scheduling_strategy=there).remote(node["NodeID"], n_cpus, n_gpus, marker)
        asked.append((node["NodeID"], n_cpus, n_gpus, answer))
    ray.wait([answer for *_, answer in asked], num_returns=len(asked), timeout=ANSWER_S) if asked else None
    facts = []
    for node_id, n_cpus, n_gpus, answer in asked:
        try:
            facts.append(ray.get(answer, timeout=0.1))
        except ray.exceptions.GetTimeoutError:
            raise InputError(_no_answer(address)) from None
        except ray.exceptions.RayError as error:
            # A dependency of the project is missing on the node, or the node was lost meanwhile.
            reason = str(error).strip().splitlines()[-1].strip().rstrip(".")
            facts.append(NodeFacts(node_id[:8], n_cpus, n_gpus, "", None, reason, True))
    return tuple(facts)


@contextlib.contextmanager
def _marker_in(results: Path | None) -> Iterator[str | None]:
    """Create a file in the results folder, and remove it after the block."""
    if results is None:
        yield None
        return
    made = not results.exists()
    results.mkdir(parents=True, exist_ok=True)
    handle, marker = tempfile.mkstemp(prefix=".seen-by-all-", dir=results.resolve())
    os.close(handle)
    try:
        yield marker
    finally:
        Path(marker).unlink(missing_ok=True)
        if made:
            with contextlib.suppress(OSError):
                results.rmdir()


def _timed_here(space: Space, shipped: ShippedImages, resource_plan: ResourcePlan) -> float:
    from search.execution.plan import seconds_per_epoch
    from trainable.data.datasets import open_training_data

    return seconds_per_epoch(space, open_training_data(shipped.unpack(), space.dataset), resource_plan)
