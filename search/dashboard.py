"""Look at an experiment in a browser, while it runs too: `python -m search.dashboard`."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import sys

from search.options import add_experiment_arguments, chosen_experiment
from spaces.command import CommandParser, run_command

DEFAULT_PORT = 8080


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m search.dashboard",
        description=(
            "Serve optuna-dashboard for an experiment, to this machine only, until Ctrl-C. It follows a search that "
            "runs, and changes nothing in its folder."
        ),
        epilog="example: python -m search.dashboard quickstart-20260101-120000 --port 8081",
    )
    add_experiment_arguments(parser)
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, metavar="N", help=f"0 takes a free one (default: {DEFAULT_PORT})"
    )
    return run_command(parser, _serve, arguments)


def _serve(options: argparse.Namespace) -> int:
    from importlib.util import find_spec

    from spaces import InputError
    from spaces.printable import printable

    if not 0 <= options.port < 2**16:
        raise InputError(f"--port is {options.port}, but must be between 0 and 65535.")
    if find_spec("optuna_dashboard") is None:
        raise InputError("optuna-dashboard is not installed. Install it: python -m pip install optuna-dashboard")
    experiment = chosen_experiment(options, options.experiment)

    from search.dashboard_server import dashboard_server

    with dashboard_server(experiment, options.port) as server:
        address = f"http://127.0.0.1:{server.server_port}/dashboard/studies/0"
        print(f"{printable(experiment.name)} is at {address} (Ctrl-C ends)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
