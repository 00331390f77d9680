"""Tables of what servers were measured to do; pure."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

CEILING_OF = {"bertha": "ceiling"}  # of every other row it is that of torch fp32
OURS = ("bertha", "bertha-fp32")
HEADER = (
    "| server | requests/s | p50 ms | p99 ms | failed | client CPU | server CPU ms a request "
    "| Bertha / it | Bertha fp32 / it | of the ceiling |\n|---|---|---|---|---|---|---|---|---|---|"
)


def table(records: Sequence[Record], missing: Mapping[str, str]) -> str:
    """One table for each kind of text and load, medians over the rounds."""
    parts = []
    cases = dict.fromkeys(
        (record["texts"], record["load"], record["half_cpu"])
        for record in records
        if record["load"]
    )
    for kind, load, half_cpu in cases:
        half = ", half of the CPU taken away" if half_cpu else ""
        parts.append(f"{kind} texts, {load}{half}\n\n{_case(records, (kind, load, half_cpu))}")
    ceilings = [record for record in records if not record["load"]]
    for name, kind in dict.fromkeys((each["row"], each["texts"]) for each in ceilings):
        mine = [r for r in ceilings if (r["row"], r["texts"]) == (name, kind)]
        rate = statistics.median(each["requests_per_second"] for each in mine)
        parts.append(f"{name} ({mine[0]['engine']}), {kind} texts: {rate:.1f} texts/s")
    parts += [f"{name}: not measured: {why}" for name, why in missing.items()]
    return "\n\n".join(parts)


def _case(records: Sequence[Record], case: tuple[str, str, bool]) -> str:
    of_case = [r for r in records if (r["texts"], r["load"], r["half_cpu"]) == case]
    rates: dict[str, dict[int, float]] = {}
    for record in records:
        if (record["texts"], record["half_cpu"]) == (case[0], False) and not record["load"]:
            _note(rates, record)  # the ceiling
    for record in of_case:
        _note(rates, record)
    lines = [HEADER]
    for name in dict.fromkeys(record["row"] for record in of_case):
        mine = [record for record in of_case if record["row"] == name]
        cells = [
            _median(mine, lambda r: r["requests_per_second"], ".1f"),
            _median(mine, lambda r: r["milliseconds"].get("p50", 0.0), ".1f"),
            _median(mine, lambda r: r["milliseconds"].get("p99", 0.0), ".1f"),
            str(sum(failed(record) for record in mine)),
            _median(mine, lambda r: r["client_cpu_share"], ".0%"),
            _median(mine, lambda r: 1000 * r["server_cpu_seconds_a_request"], ".2f"),
            *(_ratio(rates, ours, name, ".2f") for ours in OURS),
            _ratio(rates, name, CEILING_OF.get(name, "ceiling-fp32"), ".0%"),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def failed(record: Record) -> int:
    """Requests without an answer of 200, those refused included."""
    wrong = sum(count for status, count in record["statuses"].items() if status != "200")
    return int(wrong + sum(record["failures"].values()))


def _note(rates: dict[str, dict[int, float]], record: Record) -> None:
    rates.setdefault(record["row"], {})[record["round"]] = record["requests_per_second"]


def _median(records: Sequence[Record], value: Callable[[Record], float], form: str) -> str:
    return format(statistics.median(value(record) for record in records), form)


def _ratio(rates: Mapping[str, Mapping[int, float]], one: str, other: str, form: str) -> str:
    """The median of the ratios of the rounds that both were in."""
    rounds = rates.get(one, {}).keys() & rates.get(other, {}).keys()
    ratios = [rates[one][n] / rates[other][n] for n in rounds if rates[other][n]]
    return format(statistics.median(ratios), form) if ratios else ""
