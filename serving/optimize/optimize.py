"""Every kind of engine that can run here is made from a bundle and measured; the best is chosen.

The fastest of those that answer as torch fp32 does, in at least 99.5% of the held-out rows, is what
the bundle answers with from then on; all figures go into its card. A candidate that agrees less is
refused unless it is allowed by name.

    python -m serving build runs/reviews/bundle [--texts FILE] [--threshold 0.995]
        [--allow "onnxruntime int8"] [--only NAME] [--student BUNDLE] [--rounds 3] [--dry-run]
"""

import argparse
import shutil
from collections.abc import Callable, Collection, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from serving.engine.backends.registry import KINDS, REFERENCE, STUDENT
from serving.engine.engine import config_of, split
from serving.optimize import distilled as distilled
from serving.optimize import throughput
from serving.optimize.candidates import Bench, Candidate
from serving.optimize.eval_texts import Rows, rows_of
from trainers.config.recipe import METRICS
from trainers.models import bundle
from trainers.models.card import CARD, Built, BundleError, Card, read, written
from trainers.storage.atomic import begin, sha256, write_file
from trainers.tracking import provenance

THRESHOLD = 0.995
ROUNDS, SECONDS = 3, 0.5  # of each engine's turns at each length of text and number of tokens

Tell = Callable[[str], None]


def build(
    directory: Path,
    *,
    candidates: Sequence[str] | None = None,
    student: Path | None = None,
    rows: Rows | None = None,
    threshold: float = THRESHOLD,
    allow: Collection[str] = (),
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    tell: Tell = print,
) -> list[Candidate]:
    """Make and measure engines of the bundle in `directory` and write them into it.

    candidates: names of `KINDS`; default: all but those on request. student: the bundle of one more
    candidate, distilled from this one. rows: to measure on; default:
    those the recipe held out. threshold: the least agreement with torch fp32. allow: candidates
    that may serve with less. rounds, seconds: how often and how long the speed of each is measured.
    Raises BundleError and TextsError.
    """
    card = read(directory)
    names = _names(card, candidates, allow, student)
    encoder = bundle.load_encoder(directory, card)
    if student is not None:
        distilled.check(card, encoder, student)
    rows = rows or rows_of(card, encoder)
    aside = begin(directory / "engines")
    try:
        if student is not None:
            distilled.copy(student, aside / KINDS[STUDENT].directory)
        bench = Bench(directory, card, encoder, rows, aside, tell)
        found = []
        for name in names:
            tell(f"{name} …")
            found.append(bench.candidate(name, threshold))
            _judge(found[-1], threshold, allow)
        _race(directory, card, found, rows, rounds, seconds)
        _write(directory, aside, card, found, bench.num_judged)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return found


def table(found: Sequence[Candidate], card: Card) -> str:
    """One line a candidate, the chosen one marked."""
    metric = METRICS[card.task][0] if card.task != "embedding" else ""
    speeds = ("short/s", "long/s", "at once")
    header = ("engine", "agree", "max diff", metric or "-", *speeds, "MB", "load s", "")
    lines = [header, *(_line(each, metric) for each in found)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, len(header) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def main_build(options: argparse.Namespace, directory: Path) -> int:
    """The command `build` for a bundle that is here in `directory`; prints the table.

    options: as `serving.__main__` reads them.
    """
    card = read(directory)
    encoder = bundle.load_encoder(directory, card)
    if options.student is not None:
        distilled.check(card, encoder, options.student)
    rows = rows_of(card, encoder, options.texts)
    print(
        f"{options.bundle}: {card.task}, {len(rows.held_out)} texts to judge by and "
        f"{len(rows.calibration)} to calibrate with, of {rows.origin}",
        flush=True,
    )
    if options.dry_run:
        for name in _names(card, options.only, options.allow, options.student):
            print(f"  {name}: {KINDS[name].lacking(to_make=True) or 'would be measured'}")
        return 0
    found = build(
        directory,
        candidates=options.only,
        student=options.student,
        rows=rows,
        rounds=options.rounds or ROUNDS,
        threshold=THRESHOLD if options.threshold is None else options.threshold,
        allow=options.allow,
        tell=lambda line: print(line, flush=True),
    )
    print(table(found, card))
    return 0


def _names(
    card: Card, candidates: Sequence[str] | None, allow: Collection[str], student: Path | None
) -> list[str]:
    """The candidates by name, the reference first, a student last."""
    unknown = sorted({*(candidates or ()), *allow} - KINDS.keys())
    if unknown:
        raise BundleError(f"no engine is called {unknown[0]!r}; there is {', '.join(KINDS)}")
    if student is None and STUDENT in (candidates or ()):
        raise BundleError(f"{STUDENT!r} is of another bundle; name it with --student BUNDLE")
    usual = [name for name, kind in KINDS.items() if not kind.on_request]
    if card.recipe["model"]["name"] == "linear":
        candidates, usual = None, []
    others = [name for name in candidates or usual if name != STUDENT]
    students = [] if student is None else [STUDENT]
    return list(dict.fromkeys([REFERENCE, *others, *students]))


def _judge(found: Candidate, threshold: float, allow: Collection[str]) -> None:
    """Refuse a candidate that agrees too little; what it is compared with always may serve."""
    under = found.engine is not None and found.agreement < threshold
    if under and found.name not in {REFERENCE, *allow}:
        found.reason = f"refused: under {threshold:.1%}"


def _race(
    directory: Path,
    card: Card,
    found: Sequence[Candidate],
    rows: Rows,
    rounds: int,
    seconds: float,
) -> None:
    """Measure the speed of all that were made, computing as much at once as suits each, and choose
    the fastest that may serve.
    """
    made = {each.name: (each, each.engine) for each in found if each.engine is not None}
    width = config_of(directory).get("num_features")  # a linear model reads texts of one length
    lengths = (card.max_length,) if width is None else (width, width)
    texts = split(rows.held_out)
    works = {budget: throughput.workload(texts, budget, *lengths) for budget in throughput.BUDGETS}
    tried = {
        (name, budget): (engine.infer_rows, work)
        for name, (_, engine) in made.items()
        for budget, work in works.items()
    }
    for (name, budget), speeds in throughput.interleaved(tried, rounds, seconds).items():
        made[name][0].offer(budget, speeds)
    served = [each for each, _ in made.values() if not each.reason]
    max(served, key=lambda each: each.speed).chosen = True


def _write(
    directory: Path, aside: Path, card: Card, found: Sequence[Candidate], num_rows: int
) -> None:
    """Put the engines into the bundle and their figures into its card.

    The card never vouches for a file that is not there: it forgets the old engines first.
    """
    if card.engines:
        write_file(directory / CARD, written(card.model_copy(update={"engines": ()})))
    old = {each.directory for each in card.engines if each.directory}
    served = [each for each in found if each.engine is not None and not each.reason]
    kept = {KINDS[each.name].directory for each in served} - {""}
    for held in old | kept:
        shutil.rmtree(directory / held, ignore_errors=True)
    for held in kept:
        (aside / held).rename(directory / held)
    entries = tuple(_entry(directory, each, num_rows) for each in found if each.engine is not None)
    write_file(directory / CARD, written(card.model_copy(update={"engines": entries})))


def _entry(directory: Path, found: Candidate, num_rows: int) -> Built:
    """The figures of a candidate for the card, and its files where it may serve."""
    held = "" if found.reason else KINDS[found.name].directory
    files = sorted((directory / held).iterdir()) if held else []
    return Built(
        name=found.name,
        chosen=found.chosen,
        directory=held,
        files={str(path.relative_to(directory)): sha256(path) for path in files},
        agreement=found.agreement,
        refused=found.reason,
        max_logit_difference=found.max_logit_difference,
        rows=num_rows,
        metrics=found.metrics,
        texts_per_second=found.texts_per_second,
        batch_tokens=found.batch_tokens,
        num_bytes=found.num_bytes,
        load_seconds=found.load_seconds,
        trials=tuple(found.trials),
        environment=_environment(found.name),
    )


def _environment(name: str) -> dict[str, Any]:
    module = KINDS[name].module
    return provenance.environment() | {module: version(module)}


def _line(found: Candidate, metric: str) -> tuple[str, ...]:
    if found.engine is None:
        return (found.name, *["-"] * 8, found.reason)
    speeds = found.texts_per_second
    value = found.metrics.get(metric)
    return (
        found.name,
        f"{found.agreement:.2%}",
        f"{found.max_logit_difference:.2g}",
        "-" if value is None else f"{value:.4f}",
        f"{speeds.get('short', 0):.0f}",
        f"{speeds.get('long', 0):.1f}",
        str(found.batch_tokens),
        f"{found.size_bytes / 1e6:.0f}",
        f"{found.load_seconds:.1f}",
        "<- chosen" if found.chosen else found.reason,
    )
