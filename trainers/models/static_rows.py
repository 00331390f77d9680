"""Rows of few shapes, for devices that compile a program for every shape.

Texts lie end to end in rows of a width from a short list, none reaching out of its row; pads fill
the rows up, and the number of rows and of what is read up to powers of two.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class StaticRows:
    """How texts are laid into rows.

    width: of the rows. order: [n] the texts in the order of their tokens. pads: [n] pads after each
    of these.
    """

    width: int
    order: np.ndarray
    pads: np.ndarray


def fit_into_rows(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Return which texts of `lengths` share a row of `width`: first fit, the longest first."""
    rows: list[list[int]] = []
    used: list[int] = []  # tokens in each row
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        row = next((r for r, taken in enumerate(used) if taken + lengths[text] <= width), None)
        if row is None:
            row = len(used)
            used.append(0)
            rows.append([])
        rows[row].append(text)
        used[row] += lengths[text]
    return rows


def round_up(count: int) -> int:
    """Return the least power of two that is not below `count`."""
    return 1 << max(0, count - 1).bit_length()


def lay_into_static_rows(
    lengths: Sequence[int], widths: Sequence[int], shares_rows: bool = True
) -> StaticRows:
    """Lay texts of `lengths` into rows of the least of `widths` that holds the longest.

    shares_rows: several texts may share a row; else each has its own, in their order.
    """
    longest = max(lengths)
    width = min((each for each in widths if each >= longest), default=longest)
    rows = fit_into_rows(lengths, width) if shares_rows else [[n] for n in range(len(lengths))]
    order, pads = [], []
    for row in rows:
        order += row
        left = width - sum(lengths[text] for text in row)
        pads += [*[0] * (len(row) - 1), left]
    pads[-1] += width * (round_up(len(rows)) - len(rows))
    return StaticRows(width, np.array(order), np.array(pads))
