import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection

import pytest

from search.processes.helper_pool import HelperLostError, HelperPool


class UnpicklableError(Exception):
    def __init__(self) -> None:
        super().__init__("something of C")
        self.lock = threading.Lock()


def count(n: int, pipe: Connection) -> None:
    for i in range(n):
        pipe.send(i)


def echo(pipe: Connection) -> None:
    while True:
        pipe.send(pipe.recv())


def fail(pipe: Connection) -> None:
    pipe.send("first")
    raise ValueError("no")


def fail_unpicklably(pipe: Connection) -> None:
    raise UnpicklableError


def kill_itself(pipe: Connection) -> None:
    pipe.send("first")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    assert not multiprocessing.active_children()


def test_all_messages_are_delivered_and_helpers_that_ended_are_dropped() -> None:
    found = []
    with HelperPool() as pool:
        for _ in range(2):
            pool.start(partial(count, 5))
        while pool.helpers:
            found += pool.messages(10)
            time.sleep(0.02)  # a slow reader: messages wait in the pipes of processes that have ended
    assert sorted(found) == sorted([*range(5)] * 2)


def test_a_round_takes_at_most_one_message_of_each_helper() -> None:
    with HelperPool() as pool:
        helper = pool.start(partial(count, 1000))
        assert len(list(pool.messages(10))) == 1, "the caller can start others meanwhile"
        assert helper.receive(10) == 1


def test_messages_go_both_ways_and_silence_is_a_timeout() -> None:
    with HelperPool() as pool:
        helper = pool.start(echo)
        helper.pipe.send("hello")
        assert helper.receive(30) == "hello"
        with pytest.raises(TimeoutError):
            helper.receive(0.1)
        assert list(pool.messages(0.1)) == []


@pytest.mark.parametrize(
    ("work", "error", "message"),
    [
        (fail, ValueError, "no"),
        (fail_unpicklably, Exception, "UnpicklableError: something of C"),
        (kill_itself, HelperLostError, "most often memory ran out"),
    ],
)
def test_a_helper_that_fails_raises_its_error_here(
    work: Callable[[Connection], None], error: type[Exception], message: str
) -> None:
    with HelperPool() as pool:
        helper = pool.start(work)
        if work is not fail_unpicklably:
            assert helper.receive(30) == "first"
        with pytest.raises(error, match=message):
            list(pool.messages(30))
        other = pool.start(echo)
    assert not other.process.is_alive()
