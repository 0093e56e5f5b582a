"""Say whether a search was any good, and what to change: `python -m search.diagnose`."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from search.cli.options import add_experiment_arguments, chosen_experiment
from spaces.command import CommandParser, run_command

if TYPE_CHECKING:
    from search.analysis.findings import Finding


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m search.diagnose",
        description=(
            "Say whether a search was any good and what to change: divergence, ranges that are too narrow, winners "
            "that were stopped, which hyperparameters mattered. Works while the search runs."
        ),
        epilog="example: python -m search.diagnose quickstart-1 --format json",
    )
    add_experiment_arguments(parser)
    parser.add_argument("--format", choices=("text", "json"), default="text")
    return run_command(parser, _diagnose, arguments)


def _diagnose(options: argparse.Namespace) -> int:
    from search.analysis.diagnosis import diagnose
    from search.policy.budget import progress_text
    from spaces.printable import printable

    experiment = chosen_experiment(options, options.experiment)
    history, space = experiment.history(), experiment.space
    findings = diagnose(history, space, experiment.manifest.data.n_validation)
    live = experiment.is_live()
    if options.format == "json":
        content = {
            "experiment": experiment.name,
            "running": live,
            "trials_ended": history.n_ended,
            "epochs": history.n_epochs,
            "findings": [asdict(finding) for finding in findings],
        }
        print(json.dumps(content, indent=2, allow_nan=False))
        return 0
    now = ", running now" if live else ""
    epochs = f", {history.n_epochs} epochs" if space.search.epoch_budget is None else ""
    print(f"{printable(experiment.name)}: {progress_text(history, space)}{epochs}{now}")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(findings_text(findings, width))
    return 0


def findings_text(findings: Sequence[Finding], width: int | None) -> str:
    """The findings under a heading for each verdict, in their order; they are sorted by verdict.

    `width` is of the terminal, in characters; None keeps each finding on one line.
    """
    from search.analysis.findings import HEADINGS

    lines = []
    for verdict, heading in HEADINGS.items():
        found = [finding for finding in findings if finding.verdict == verdict]
        if found:
            lines += ["", f"{heading}:"]
        for finding in found:
            line = f"- {finding.sentence} {finding.advice}".rstrip()
            lines += textwrap.wrap(line, width, subsequent_indent="  ", break_on_hyphens=False) if width else [line]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
