"""Joins an existing Ray cluster for one search, and leaves it running afterwards.

The driver must run on a machine of the cluster. It ships the project's code and the decoded images to the other
machines.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from search.execution.cluster import DRIVER_ENVIRONMENT, WORKER_ENVIRONMENT, Cluster
from search.execution.ray_internals import node_of_this_process
from search.execution.stop_signal import POLL_S
from spaces.errors import InputError, first_line

if TYPE_CHECKING:
    from search.execution.plan import ResourcePlan
    from spaces.schema import Space
    from trainable.data.datasets import TrainingData
    from trainable.ray_trainable import ShippedImages

# Time limits: to reach the head; for the answers of all nodes, which import torch for the first time.
REACH_S = 5.0
ANSWER_S = 180.0
# Interval at which the head is asked, and the time without an answer after which it counts as lost. Ray itself would
# end this process after 60 s, without a message; a head with a database may be restarted before that.
ASK_EVERY_S = 5.0
SILENCE_S = 45.0
_SHIPPED_PACKAGES = ("spaces", "trainable", "search")
# Ray reserves the resources of a task; a task that inspects a GPU must not wait for a whole one.
_TOKEN_GPU = 0.001

# Words of Ray where it cannot join a cluster, and the reason in ours.
_WHY_NOT_JOINED = (
    (
        "Could not find any running Ray instance",
        "no Ray cluster runs on this machine. Start one (ray start --head), or give HOST:PORT of its head.",
    ),
    (
        "No node info found",
        "this machine is not a node of that cluster. Start the search on one that is, or add this one: ray start "
        "--address=HOST:PORT",
    ),
    (
        "token",
        "that cluster refuses us without its token. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH "
        "as on its nodes.",
    ),
)


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """Report of one machine of a cluster.

    Attributes:
        name: host name and the start of Ray's id, because several nodes may share a host name.
        n_cpus, n_gpus: resources that Ray may assign there.
        device: name of the processor or GPU.
        bf16_reason: why it computes in bf16; None where bf16 is not fast.
        problem: why no trial can run there, in a sentence; None where trials can.
    """

    name: str
    n_cpus: int
    n_gpus: int
    device: str = ""
    bf16_reason: str | None = None
    problem: str | None = None


class JoinedCluster(Cluster):
    """The cluster at `address`; a context manager that joins it, and at its end removes this search's actors from it.

    Args:
        address: `auto` for the cluster that this machine belongs to, or HOST:PORT of the head.
        results: folder that every node must see; None if results are kept at a URL.

    Attributes:
        nodes: nodes that can run trials, read when the cluster was joined.

    Raises:
        InputError: on entering: the address is wrong, the cluster cannot be joined, or a node cannot be used.
    """

    shares_disk = False

    def __init__(self, address: str, results: Path | None) -> None:
        super().__init__()
        self.address: str = address
        self._results = results
        self.nodes: tuple[NodeFacts, ...] = ()

    def _prepare(self, started: contextlib.ExitStack) -> Path:
        must_be_joinable(self.address)
        os.environ.update(DRIVER_ENVIRONMENT)
        # These settings override those of a surrounding job, such as of `ray job submit`.
        os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"
        # By default, Ray searches for a node on this machine for a minute.
        os.environ.setdefault("RAY_gcs_server_request_timeout_seconds", "20")
        return Path(started.enter_context(tempfile.TemporaryDirectory(prefix="dws-")))

    def _connect(self, folder: Path, started: contextlib.ExitStack) -> None:
        import ray

        packages = Path(__file__).parents[2]
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
            raise InputError(f"--address is {self.address}, but {why_not_joined(error)}") from error
        with _marker_in(self._results) as marker:
            self.nodes = _ask_nodes(self.address, marker)
        must_be_usable(self.nodes)
        self._watch = HeadWatch()
        started.callback(self._watch.end)

    def _reason_of_loss(self) -> str | None:
        gone = self._watch.what_is_gone()
        return f"The cluster at {self.address} is lost: {gone}" if gone else None

    def seconds_per_epoch(self, space: Space, data: TrainingData, resource_plan: ResourcePlan) -> float:
        """Time a few steps of the baseline on a node, and scale them to an epoch."""
        import ray

        from trainable.ray_trainable import ship

        wanted = resource_plan.resources_per_trial
        task = ray.remote(num_cpus=wanted["cpu"], num_gpus=wanted.get("gpu", 0))(_timed_here)
        try:
            return float(ray.get(task.remote(space, ship(data.decoded), resource_plan), timeout=ANSWER_S))
        except ray.exceptions.GetTimeoutError:
            raise InputError(_no_answer(self.address)) from None


class HeadWatch:
    """Notices that the head no longer answers, or that this machine's raylet has ended, as it does without the head.

    A thread asks, because a lost head never answers. The raylet is watched in `/proc`, if it is visible there.
    """

    def __init__(self) -> None:
        self._raylet = _process_with_argument(f"--raylet_socket_name={node_of_this_process().raylet_socket_name}")
        self._ended = threading.Event()
        # Counted, not read from a clock, because this process may have been stopped (SIGSTOP) meanwhile.
        self._n_polls_without_answer = 0
        threading.Thread(target=self._ask_head, name="head", daemon=True).start()

    def what_is_gone(self) -> str | None:
        """The lost part of the cluster; None while the cluster can be used. Called every `POLL_S`."""
        self._n_polls_without_answer += 1
        if self._raylet and _has_ended(self._raylet):
            return "this machine's raylet is gone (killed, perhaps for its memory)"
        if self._n_polls_without_answer * POLL_S > SILENCE_S:
            return f"its head has not answered for {SILENCE_S:.0f} s"
        return None

    def end(self) -> None:
        self._ended.set()

    def _ask_head(self) -> None:
        import ray

        while not self._ended.wait(ASK_EVERY_S):
            with contextlib.suppress(Exception):  # Ray raises many types; only the missing answer matters
                ray.nodes()  # type: ignore[no-untyped-call]
                self._n_polls_without_answer = 0


def _process_with_argument(argument: str) -> Path | None:
    """Folder in `/proc` of a process with this argument; None if no such process is visible."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended meanwhile
            if os.fsencode(argument) in (process / "cmdline").read_bytes().split(b"\0"):
                return process
    return None


def _has_ended(process: Path) -> bool:
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
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"--address is {address}, but must be `auto` or HOST:PORT, such as 10.0.0.5:6379.")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S) as connection:
            is_head = os.environ.get("RAY_USE_TLS", "0") not in ("", "0") or _speaks_http2(connection)
        problem = "" if is_head else "what answers there is not the head of a Ray cluster"
    except (OSError, UnicodeError) as error:
        problem = f"nothing answers there ({first_line(error)})"
    if problem:
        raise InputError(
            f"--address is {address}, but {problem}. Give HOST:PORT of the cluster's head, as `ray start --head` "
            f"printed it."
        )


def _speaks_http2(connection: socket.socket) -> bool:
    """Whether a server answers like a gRPC server. With another server, Ray would try for minutes.

    Source: RFC 9113, section 3.4: both sides begin with a SETTINGS frame, the client after its preface.
    """
    try:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        greeting = connection.recv(4, socket.MSG_WAITALL)
    except OSError:
        return False
    return len(greeting) == 4 and greeting[3] == 4


def why_not_joined(error: BaseException) -> str:
    """The reason for an exception of `ray.init`, in one line."""
    text = f"{error}\n{error.__cause__ or ''}"
    if "Version mismatch" in text:
        versions = [line.strip() for line in text.splitlines() if line.strip().startswith(("Ray:", "Python:"))]
        theirs, ours = ", ".join(versions[:2]), ", ".join(versions[2:4])
        return f"that cluster has {theirs} and this command {ours}. Use the same versions on both sides."
    known = next((reason for words, reason in _WHY_NOT_JOINED if words.lower() in text.lower()), None)
    return known or f"the cluster there cannot be joined ({first_line(error).rstrip('.')})."


def _no_answer(address: str) -> str:
    return (
        f"--address is {address}, but its nodes do not answer within {ANSWER_S:.0f} s. See `ray status` for what they "
        f"are busy with."
    )


def _ask_nodes(address: str, marker: str | None) -> tuple[NodeFacts, ...]:
    """Facts of every node that can run trials, by node id; each node is asked by a task."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = []
    for node in sorted(ray.nodes(), key=lambda node: str(node["NodeID"])):  # type: ignore[no-untyped-call]
        # Ray counts in floats, and a trial needs a whole CPU.
        n_cpus, n_gpus = (int(node["Resources"].get(kind, 0)) for kind in ("CPU", "GPU"))
        if not node["Alive"] or not (n_cpus or n_gpus):
            continue
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(num_cpus=0, num_gpus=_TOKEN_GPU if n_gpus else 0)(facts_of_this_node)
        answer = task.options(scheduling_strategy=there).remote(node["NodeID"], n_cpus, n_gpus, marker)
        asked.append((node["NodeID"], n_cpus, n_gpus, answer))
    facts = []
    for node_id, n_cpus, n_gpus, answer in asked:
        try:
            facts.append(ray.get(answer, timeout=ANSWER_S))
        except ray.exceptions.GetTimeoutError:
            raise InputError(_no_answer(address)) from None
        except ray.exceptions.RayError as error:
            # A dependency of the project is missing on the node, or the node was lost meanwhile.
            reason = str(error).strip().splitlines()[-1].strip()
            facts.append(NodeFacts(node_id[:8], n_cpus, n_gpus, problem=_cannot_train(reason)))
    return tuple(facts)


def facts_of_this_node(node_id: str, n_cpus: int, n_gpus: int, marker: str | None) -> NodeFacts:
    """Report on the machine that this runs on, Ray's node `node_id`; its problem is reported, not raised.

    `marker` is a file in the results folder that all machines must see; None skips that check.
    """
    name = f"{platform.node()} ({node_id[:8]})"
    if marker and not Path(marker).is_file():
        problem = (
            f"does not see {Path(marker).parent}. --results must be a folder that all nodes mount at the same path, "
            f"or a URL such as s3://BUCKET/results."
        )
        return NodeFacts(name, n_cpus, n_gpus, problem=problem)
    try:
        import trainable.fit_evaluate
        import trainable.ray_trainable  # noqa: F401 -- the imports of a trial
        from trainable.compute import choose_precision, describe_device

        device = "cuda" if n_gpus else "cpu"
        precision, reason = choose_precision("auto", device)
        described = describe_device(device)
    except (ImportError, RuntimeError, AssertionError) as error:  # Ray counts a GPU that torch cannot use
        return NodeFacts(name, n_cpus, n_gpus, problem=_cannot_train(first_line(error)))
    return NodeFacts(name, n_cpus, n_gpus, described, reason if precision == "bf16" else None)


def _cannot_train(reason: str) -> str:
    return (
        f"cannot train ({reason.rstrip('.')}). Every node needs this project's requirements: install them there, or "
        f"use an image that has them."
    )


def must_be_usable(nodes: tuple[NodeFacts, ...]) -> None:
    """Raise InputError that names each machine on which no trial can run, or if there is no machine."""
    if lines := [f"node {node.name}: {node.problem}" for node in nodes if node.problem]:
        raise InputError(lines)
    if not any(node.n_cpus for node in nodes):
        raise InputError("--address names a cluster without a free CPU for a trial. Add nodes, or give them CPUs.")


@contextlib.contextmanager
def _marker_in(results: Path | None) -> Iterator[str | None]:
    """Create a file in the results folder, and remove it after the block."""
    if results is None:
        yield None
        return
    made = not results.exists()
    results.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix=".seen-by-all-", dir=results.resolve()) as marker:
        yield marker.name
    if made:
        with contextlib.suppress(OSError):
            results.rmdir()


def _timed_here(space: Space, shipped: ShippedImages, resource_plan: ResourcePlan) -> float:
    from search.execution.plan import seconds_per_epoch
    from trainable.data.datasets import open_training_data

    return seconds_per_epoch(space, open_training_data(shipped.unpack(), space.dataset), resource_plan)
