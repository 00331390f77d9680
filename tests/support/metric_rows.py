"""Rows of metrics.jsonl as a run writes them, and the lines that a bad disk or an editor leaves."""

import json
from typing import Any


def start_row(step: int = 0, **others: Any) -> dict[str, Any]:
    """Return the row of a start."""
    return {"kind": "start", "step": step, "total_steps": 10, **others}


def step_row(step: int, **others: Any) -> dict[str, Any]:
    """Return the row of a step."""
    row = {"loss": 0.5, "learning_rate": 2e-5, "tokens": 90, "computed_tokens": 100, "seconds": 0.5}
    return {"kind": "step", "step": step, **row, **others}


def evaluation_row(step: int, **others: Any) -> dict[str, Any]:
    """Return the row of an evaluation."""
    row = {"metrics": {"f1": 0.5}, "best": False, "tokens": 90 * step}
    return {"kind": "evaluation", "step": step, **row, **others}


def to_line(row: dict[str, Any]) -> bytes:
    """Return a row as it stands in the file."""
    return json.dumps(row).encode() + b"\n"


DAMAGED_LINES = {
    "no JSON": b"step 3 loss 0.5\n",
    "an empty line": b"\n",
    "no object": b"[1, 2]\n",
    "a number": b"3\n",
    "no kind": b'{"step": 3}\n',
    "a kind that is a list": b'{"kind": [], "step": 3}\n',
    "no step": b'{"kind": "step", "loss": 0.5}\n',
    "a step that is a word": to_line(step_row(3) | {"step": "three"}),
    "a step before the first": to_line(step_row(-3)),
    "a loss that is a word": to_line(step_row(3, loss="low")),
    "no seconds": to_line(step_row(3, seconds=0)),
    "a start without an end": b'{"kind": "start", "step": 0}\n',
    "losses that are words": to_line(start_row(lost_steps="some")),
    "metrics that are a list": to_line(evaluation_row(3, metrics=[0.5])),
    "bytes": bytes(range(128, 256)) + b"\x00\n",
    "nulls": b"\x00" * 512 + b"\n",
    "half a row and another": to_line(step_row(3))[:20] + to_line(step_row(4)),
    "a long line": b"[" * 3_000_000 + b"\n",
    "a long number": b"9" * 100_000 + b"\n",
}
