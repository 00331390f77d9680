"""Attention in training: torch's fused kernel against multiplying out, forward and backward.

Batches of 2,048 tokens in texts of about one length, laid into rows, 12 heads of 32; the two ways
in turns, medians. `trainers/distributed/device.py` chooses by these figures on a CPU.

    python benchmarks/attention.py     # writes results/attention.json
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from trainers.models.attention import attention_forward
from trainers.models.packed import PackedTexts
from trainers.tracking import provenance

RESULTS = Path(__file__).parent / "results" / "attention.json"
TOKENS, HEADS, WIDTH = 2048, 12, 32
LENGTHS = (16, 32, 64, 128, 256, 512)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
WARMUP = 3


def time_attention(fused: bool, dtype: torch.dtype, length: int) -> float:
    """Time one forward and backward pass, in seconds."""
    lengths = [length - length // 10 * (text % 2) for text in range(TOKENS // length)]
    packed, shape = PackedTexts.from_lengths(lengths), (1, sum(lengths), HEADS, WIDTH)
    query, key, value = (
        torch.randn(shape, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)
    )
    module = SimpleNamespace(dropout=SimpleNamespace(p=0.0), training=True, fused=fused)
    start = time.perf_counter()
    context, _ = attention_forward(module, query, key, value, packed, WIDTH**-0.5)  # type: ignore[arg-type]
    context.backward(torch.ones_like(context))  # type: ignore[no-untyped-call]
    return time.perf_counter() - start


def compare_paths(dtype: torch.dtype, length: int, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of both ways, timed in turns, and their ratio."""
    taken: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(WARMUP + rounds):
        for fused, times in taken.items():
            times.append(time_attention(fused, dtype, length))
    fused_ms, out_ms = (1000 * statistics.median(each[WARMUP:]) for each in taken.values())
    return {"fused_ms": fused_ms, "multiplied_out_ms": out_ms, "ratio": fused_ms / out_ms}


def main() -> int:
    """Compare both ways, print the table and store it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = []
    print("| dtype | tokens | fused ms | multiplied out ms | ratio |")
    print("|---|---|---|---|---|")
    for name, dtype in DTYPES.items():
        for length in LENGTHS:
            row = {"dtype": name, "tokens": length, **compare_paths(dtype, length, options.rounds)}
            rows.append(row)
            print(
                f"| {name} | {length} | {row['fused_ms']:.1f} | {row['multiplied_out_ms']:.1f} "
                f"| {row['ratio']:.1f} |"
            )
    record = {
        "environment": provenance.describe_environment(),
        "rounds": options.rounds,
        "rows": rows,
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
