"""Hardware before, during and after: `bertha plan|check|up|down|doctor|...`.

Each module of COMMANDS has `add_parser(subparsers)`, which adds one or more parsers and names with
`set_defaults(run=...)` the function that runs the command: parsed options in, exit status out. A
BerthaError that it raises is printed here. Heavy libraries (ray, boto3) are imported only by the
command that needs them. `plan` is an alias of trainers.planning.plan_command.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from cluster import choices
from cluster.command_line import Parser
from cluster.doctor import doctor
from cluster.errors import BerthaError
from cluster.launch import cost_commands, launcher, spot_notice
from cluster.validation import check

COMMANDS = (check, launcher, cost_commands, doctor, spot_notice)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m cluster") -> int:
    """Run the command line and return its exit status, 2 after a user's mistake."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["plan"]:
        return int(_plan_command().main(words[1:], f"{prog} plan"))
    if len(words) == 1 and words[0] in choices.EXAMPLES:
        print(choices.describe_choices(words[0], prog))
        return 2
    options = parse_arguments(words, prog)
    try:
        status: int = options.run(options)
    except BerthaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status


def parse_arguments(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    """Parse a command line; exit as argparse does on a mistake."""
    if arguments[:1] == ["plan"]:
        options: argparse.Namespace = _plan_command().parse_arguments(arguments[1:], f"{prog} plan")
        return options
    parser = Parser(prog=prog, description=__doc__.splitlines()[0])
    subparsers = parser.add_subparsers(dest="command", required=True)
    subparsers.add_parser("plan", help="compare hardware and layouts by time, price and energy")
    for module in COMMANDS:
        module.add_parser(subparsers)
    return parser.parse_args(arguments)


def _plan_command() -> Any:
    """Return the module of `plan`, by name: it reads recipes, so it is above this package."""
    return importlib.import_module("trainers.planning.plan_command")


if __name__ == "__main__":
    sys.exit(main())
