"""Format tables of measured servers."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

# The ceiling of all other rows is that of torch fp32.
CEILING_OF = dict.fromkeys(("bertha", "litserve-engine", "mosec-engine"), "ceiling")
OURS = ("bertha", "bertha-fp32")
HEADER = (
    "| server | requests/s | p50 ms | p99 ms | failed | client CPU | server CPU ms a request "
    "| Bertha / it | Bertha fp32 / it | of the ceiling |\n|---|---|---|---|---|---|---|---|---|---|"
)


def format_table(records: Sequence[Record], missing: Mapping[str, str]) -> str:
    """Format a table for each kind of text and load, of medians over the rounds."""
    parts = []
    cases = dict.fromkeys(
        (record["texts"], record["load"], record["half_cpu"])
        for record in records
        if record["load"]
    )
    for kind, load, half_cpu in cases:
        half = ", half of the CPU taken away" if half_cpu else ""
        parts.append(
            f"{kind} texts, {load}{half}\n\n{_format_case(records, (kind, load, half_cpu))}"
        )
    ceilings = [record for record in records if not record["load"]]
    for name, kind in dict.fromkeys((each["row"], each["texts"]) for each in ceilings):
        of_row = [r for r in ceilings if (r["row"], r["texts"]) == (name, kind)]
        rate = statistics.median(each["requests_per_second"] for each in of_row)
        parts.append(f"{name} ({of_row[0]['engine']}), {kind} texts: {rate:.1f} texts/s")
    parts += [f"{name}: not measured: {why}" for name, why in missing.items()]
    return "\n\n".join(parts)


def _format_case(records: Sequence[Record], case: tuple[str, str, bool]) -> str:
    of_case = [r for r in records if (r["texts"], r["load"], r["half_cpu"]) == case]
    rates: dict[str, dict[int, float]] = {}
    for record in records:
        if (record["texts"], record["half_cpu"]) == (case[0], False) and not record["load"]:
            _add_rate(rates, record)  # the ceiling
    for record in of_case:
        _add_rate(rates, record)
    lines = [HEADER]
    for name in dict.fromkeys(record["row"] for record in of_case):
        of_row = [record for record in of_case if record["row"] == name]
        cells = [
            _format_median(of_row, lambda r: r["requests_per_second"], ".1f"),
            _format_median(of_row, lambda r: r["milliseconds"].get("p50", 0.0), ".1f"),
            _format_median(of_row, lambda r: r["milliseconds"].get("p99", 0.0), ".1f"),
            str(sum(count_failed(record) for record in of_row)),
            _format_median(of_row, lambda r: r["client_cpu_share"], ".0%"),
            _format_median(of_row, lambda r: 1000 * r["server_cpu_seconds_a_request"], ".2f"),
            *(_format_ratio(rates, ours, name, ".2f") for ours in OURS),
            _format_ratio(rates, name, CEILING_OF.get(name, "ceiling-fp32"), ".0%"),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def count_failed(record: Record) -> int:
    """Count requests without a response of 200, refused ones included."""
    wrong = sum(count for status, count in record["statuses"].items() if status != "200")
    return int(wrong + sum(record["failures"].values()))


def _add_rate(rates: dict[str, dict[int, float]], record: Record) -> None:
    rates.setdefault(record["row"], {})[record["round"]] = record["requests_per_second"]


def _format_median(records: Sequence[Record], value: Callable[[Record], float], form: str) -> str:
    return format(statistics.median(value(record) for record in records), form)


def _format_ratio(rates: Mapping[str, Mapping[int, float]], one: str, other: str, form: str) -> str:
    """Format the median ratio over the rounds that both took part in."""
    rounds = rates.get(one, {}).keys() & rates.get(other, {}).keys()
    ratios = [rates[one][n] / rates[other][n] for n in rounds if rates[other][n]]
    return format(statistics.median(ratios), form) if ratios else ""
