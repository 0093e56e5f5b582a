"""optuna-dashboard over an experiment's journal, for this machine alone.

The study is built in memory from the journal, as the search builds its own: `study.db`, which may come from elsewhere
and is written from time to time only, is not opened, and what the dashboard would write has nowhere to go.
"""

import errno
import threading
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from optuna.storages import InMemoryStorage

from search.experiment import Experiment
from search.records import History
from search.study import study_of
from search.watch import FETCH_S
from spaces.errors import InputError
from spaces.schema import Space

LOOPBACK = "127.0.0.1"
# The dashboard asks every few seconds. Building the study anew takes at most this share of the time.
BUILD_EVERY_S = 2.0
LARGEST_SHARE = 0.1


def dashboard_server(experiment: Experiment, port: int) -> WSGIServer:
    """A server that waits to be run; its socket is open.

    Args:
        experiment: to show.
        port: on the loopback; 0 for a free one.

    Raises:
        InputError: the port is taken, or the experiment cannot be read.
    """
    follow = _Follower(experiment)
    try:
        return make_server(LOOPBACK, port, _local_and_reading(follow), _Server, _QuietHandler)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "is taken" if error.errno == errno.EADDRINUSE else "may not be used"
        raise InputError(f"--port is {port}, which {why}. Give another one, or 0 for a free one.") from None


class _Follower:
    """The dashboard's application over what the journal says now.

    Args:
        experiment: to show.
        now: the clock, in seconds.
    """

    def __init__(self, experiment: Experiment, now: Callable[[], float] = time.monotonic) -> None:
        self._experiment = experiment
        self._journal = experiment.follower()
        self._now = now
        self._building = threading.Lock()
        self._due_s = 0.0
        # Whoever chose the experiment has just fetched it.
        self._fetch_due_s = now() + FETCH_S
        self._n_events = -1
        self._app: WSGIApplication = self._up_to_date()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return self._up_to_date()(environ, start_response)

    def _up_to_date(self) -> WSGIApplication:
        with self._building:
            self._fetch_now_and_then()
            started_s = self._now()
            if started_s >= self._due_s:
                history = self._journal.history()
                if history.n_events != self._n_events:
                    self._app = _application(self._experiment.space, history)
                    self._n_events = history.n_events
                cost_s = self._now() - started_s
                self._due_s = started_s + max(BUILD_EVERY_S, cost_s / LARGEST_SHARE)
            return self._app

    def _fetch_now_and_then(self) -> None:
        """Bring results at a URL up to date. While they cannot be had, what is known is shown."""
        if self._now() < self._fetch_due_s:
            return
        try:
            self._experiment.bring_up_to_date()
        except InputError as error:
            self._experiment.tell_once(error.lines[0])
        self._fetch_due_s = self._now() + FETCH_S


def _application(space: Space, history: History) -> WSGIApplication:
    from optuna_dashboard import wsgi

    storage = InMemoryStorage()
    study_of(space, history, storage)
    app: WSGIApplication = wsgi(storage)
    return app


def _local_and_reading(app: WSGIApplication) -> WSGIApplication:
    """Answer only who asks for this machine by name, and only what changes nothing.

    A page from elsewhere can give its own name the loopback's address, and would then read what is served here.
    """

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        host = str(environ.get("HTTP_HOST", "")).partition(":")[0]
        if host not in (LOOPBACK, "localhost"):
            return _refused(start_response, HTTPStatus.FORBIDDEN, "This server answers 127.0.0.1 and localhost only.")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            reason = "The experiment is shown, and cannot be changed here."
            return _refused(start_response, HTTPStatus.METHOD_NOT_ALLOWED, reason)
        return app(environ, start_response)

    return answer


def _refused(start_response: StartResponse, status: HTTPStatus, reason: str) -> Iterable[bytes]:
    start_response(f"{status.value} {status.phrase}", [("Content-Type", "text/plain; charset=utf-8")])
    return [reason.encode()]


class _Server(ThreadingMixIn, WSGIServer):
    """One thread a request: importances of many trials take seconds."""

    daemon_threads = True
    # A server that ended just now does not keep the port.
    allow_reuse_address = True


class _QuietHandler(WSGIRequestHandler):
    """Says nothing of each request."""

    def log_message(self, format: str, *values: Any) -> None:
        pass
