"""The program `depthwise-search COMMAND …`: the same as `python -m search.COMMAND …`.

The current folder is not on the import path of an installed program, so that a file such as `random.py` in it is never
imported.
"""

import sys
from importlib import import_module

from spaces.errors import did_you_mean

COMMANDS = ("run", "leaderboard", "retrain", "diagnose", "why", "report", "compare", "predict", "steer", "train")
_USAGE = f"usage: depthwise-search {{{','.join(COMMANDS)}}} …   (each has --help)"


def main() -> int:
    """Run the command that the first argument names; exit code 2 if it names none."""
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if name in ("-h", "--help"):
        print(_USAGE)
        return 0
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS) if name else ""
        print(f"`{name}` is not a command: there are {', '.join(COMMANDS)}.{hint}", file=sys.stderr)
        return 2
    module = "trainable.train" if name == "train" else f"search.{name}"
    code: int = import_module(module).main(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
