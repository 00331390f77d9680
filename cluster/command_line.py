"""Command lines: numbers within their range, and one line for a value that is not.

parser = Parser(prog="bertha serve")
parser.add_argument("--port", type=PORT)    # error: --port: '70000': give a whole number ...
"""

import argparse
import math
from collections.abc import Callable
from typing import NoReturn, TypeVar

T = TypeVar("T", int, float)


class Parser(argparse.ArgumentParser):
    """An argument parser that answers a wrong value with one line, and not with the usage."""

    def error(self, message: str) -> NoReturn:
        """Print the mistake and exit with status 2."""
        if message.startswith("argument "):
            self.exit(2, f"error: {message.removeprefix('argument ')}\n")
        super().error(message)


def whole_number(least: int = 1, most: int | None = None) -> Callable[[str], int]:
    """Return the `type` of an option that takes a whole number from `least` to `most`."""
    wanted = f"a whole number of {least} or more"
    if most is not None:
        wanted = f"a whole number from {least} to {most}"
    return _number_type(
        int, lambda value: least <= value <= (value if most is None else most), wanted
    )


def positive_number(most: float | None = None) -> Callable[[str], float]:
    """Return the `type` of an option that takes a finite number above 0, up to `most`."""
    wanted = "a number above 0" if most is None else f"a number above 0, up to {most:g}"
    return _number_type(float, lambda each: 0 < each <= (each if most is None else most), wanted)


def _number_type(
    read: Callable[[str], T], fits: Callable[[T], bool], wanted: str
) -> Callable[[str], T]:
    def parse(text: str) -> T:
        try:
            value = read(text)
        except ValueError:
            value = None
        if value is None or not math.isfinite(value) or not fits(value):
            raise argparse.ArgumentTypeError(f"{text[:60]!r}: give {wanted}")
        return value

    return parse


COUNT, POSITIVE = whole_number(), positive_number()
FRACTION = _number_type(float, lambda each: 0 <= each <= 1, "a number from 0 to 1")
PORT = whole_number(1, 65535)
