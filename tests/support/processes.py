"""What runs and what listens on this machine, as the kernel tells it; and Ctrl-C for child processes."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from search.processes import guardian

_LISTENS = "0A"


def listen_to_ctrl_c() -> None:
    """Shells start background jobs, as tests may be, with Ctrl-C ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def marked_commands(folder: Path) -> dict[int, str]:
    """The command lines of all processes that carry the mark of a guarded folder, by process id."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{guardian.MARK}={folder}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return found


@dataclass(frozen=True)
class Listener:
    """A TCP socket that a process waits for connections on."""

    address: IPv4Address | IPv6Address
    port: int


def listeners(pids: Iterable[int]) -> list[Listener]:
    """All of some processes."""
    sockets = set()
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                sockets.add(str(handle.readlink()))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == _LISTENS and f"socket:[{inode}]" in sockets:
                address, _, port = local.partition(":")
                found.append(Listener(_address(address), int(port, 16)))
    return found


def wait_until(reached: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline_s, "it has not come to that"
        time.sleep(0.02)


def _address(words: str) -> IPv4Address | IPv6Address:
    # The kernel writes each 4 bytes as a number of this machine's, which is little-endian.
    address = ip_address(b"".join(bytes.fromhex(words[i : i + 8])[::-1] for i in range(0, len(words), 8)))
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
