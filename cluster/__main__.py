"""Hardware before, during and after: `python -m cluster plan|check|up|down|doctor|...`.

Each command is a module of COMMANDS. It has `add_parser(subparsers)`, which adds a parser (or more
than one), and names with `set_defaults(run=...)` the function that runs it: parsed options in, exit
status out, lines printed by itself. A BerthaError that it raises is printed here, status 2. It
imports what is heavy (ray, torch, boto3) only when it runs, never when it is imported. A parser
that has a list `overrides` is given every key=value of the line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cluster.doctor import doctor
from cluster.errors import BerthaError
from cluster.launch import cost_commands, launcher, spot_notice
from cluster.planning import command
from cluster.validation import check

COMMANDS = (command, check, launcher, cost_commands, doctor, spot_notice)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. Everything a user can get wrong ends in one line."""
    options = _parse(arguments)
    try:
        status: int = options.run(options)
    except BerthaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Overrides may stand anywhere: argparse stops at the first option behind a positional."""
    parser = argparse.ArgumentParser(prog="python -m cluster", description=__doc__.splitlines()[0])
    subparsers = parser.add_subparsers(dest="command", required=True)
    for each in COMMANDS:
        each.add_parser(subparsers)
    options, rest = parser.parse_known_args(arguments)
    takes_overrides = hasattr(options, "overrides")
    unknown = [each for each in rest if "=" not in each or each.startswith("-")]
    if unknown or (rest and not takes_overrides):
        parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if takes_overrides:
        options.overrides = [*options.overrides, *rest]
    return options


if __name__ == "__main__":
    sys.exit(main())
