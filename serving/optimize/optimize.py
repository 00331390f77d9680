"""Build every engine that can run here from a bundle, measure them, and choose the best.

The fastest of those that agree with torch fp32 in at least 99.5% of the held-out rows serves the
bundle from then on; all figures go into its card. A candidate that agrees less is refused unless it
is allowed by name.

    bertha build runs/reviews/bundle [--texts FILE] [--threshold 0.995]
        [--allow "onnxruntime int8"] [--only NAME] [--student BUNDLE] [--rounds 3] [--dry-run]
"""

import argparse
import shutil
from collections.abc import Callable, Collection, Sequence
from importlib.metadata import version
from pathlib import Path

from serving.engine.backends.registry import BACKENDS, REFERENCE, STUDENT
from serving.engine.engine import load_model_config, split_rows
from serving.optimize import throughput
from serving.optimize.candidates import CandidateEvaluator, EngineCandidate
from serving.optimize.eval_texts import EvalRows, load_eval_rows
from trainers.config.recipe import METRICS
from trainers.data.tokenizer import Encoder
from trainers.models import bundle
from trainers.models.card import (
    CARD_FILE,
    BundleError,
    EngineRecord,
    ModelCard,
    read_card,
    serialize_card,
)
from trainers.storage.atomic import create_temporary, file_sha256, replace_file
from trainers.tracking import provenance

THRESHOLD = 0.995
ROUNDS, SECONDS = 3, 0.5  # of each engine's turns at each length of text and number of tokens

STUDENT_FILES = ("config.json", "model.safetensors")
STUDENT_MATCHES = ("task", "labels", "cleaning", "max_length")  # fields of the teacher's card
STUDENT_TASKS = ("classification", "multi-label", "regression")


def build_engines(
    directory: Path,
    *,
    candidates: Sequence[str] | None = None,
    student: Path | None = None,
    rows: EvalRows | None = None,
    threshold: float = THRESHOLD,
    allow: Collection[str] = (),
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    log: Callable[[str], None] = print,
) -> list[EngineCandidate]:
    """Build and measure engines of the bundle in `directory` and write them into it.

    candidates: names of `BACKENDS`; default: all but those on request. student: the bundle of a
    model distilled from this one, as one more candidate. rows: to measure on; default: those the
    recipe held out. threshold: the least agreement with torch fp32. allow: candidates that may
    serve with less. rounds, seconds: how often and how long the speed of each is measured. Raises
    BundleError and TextsError.
    """
    card = read_card(directory)
    names = _candidate_names(card, candidates, allow, student)
    encoder = bundle.load_encoder(directory, card)
    if student is not None:
        _check_student(card, encoder, student)
    rows = rows or load_eval_rows(card, encoder)
    temporary = create_temporary(directory / "engines")
    try:
        if student is not None:
            student_directory = temporary / BACKENDS[STUDENT].directory
            student_directory.mkdir()
            for file in STUDENT_FILES:
                shutil.copyfile(student / file, student_directory / file)
        evaluator = CandidateEvaluator(directory, card, encoder, rows, temporary, log)
        measured = []
        for name in names:
            log(f"{name} …")
            candidate = evaluator.evaluate(name, threshold)
            is_unfaithful = candidate.engine is not None and candidate.agreement < threshold
            if is_unfaithful and name not in {REFERENCE, *allow}:
                candidate.reason = f"refused: under {threshold:.1%}"
            measured.append(candidate)
        _choose_fastest(directory, card, measured, rows, rounds, seconds)
        _install_engines(directory, temporary, card, measured, evaluator.num_compared)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return measured


def run_build_command(options: argparse.Namespace, directory: Path) -> int:
    """Run `build` for the bundle in `directory` and print the table.

    options: as `serving.__main__` parses them.
    """
    card = read_card(directory)
    encoder = bundle.load_encoder(directory, card)
    if options.student is not None:
        _check_student(card, encoder, options.student)
    rows = load_eval_rows(card, encoder, options.texts)
    print(
        f"{options.bundle}: {card.task}, {len(rows.held_out)} texts to judge by and "
        f"{len(rows.calibration)} to calibrate with, of {rows.origin}",
        flush=True,
    )
    if options.dry_run:
        for name in _candidate_names(card, options.only, options.allow, options.student):
            missing = BACKENDS[name].missing_requirement(to_build=True)
            print(f"  {name}: {missing or 'would be measured'}")
        return 0
    candidates = build_engines(
        directory,
        candidates=options.only,
        student=options.student,
        rows=rows,
        rounds=options.rounds or ROUNDS,
        threshold=THRESHOLD if options.threshold is None else options.threshold,
        allow=options.allow,
        log=lambda line: print(line, flush=True),
    )
    print(format_table(candidates, card))
    return 0


def format_table(candidates: Sequence[EngineCandidate], card: ModelCard) -> str:
    """Return a table with a row a candidate, the chosen one marked."""
    metric = METRICS[card.task][0] if card.task != "embedding" else ""
    speeds = ("short/s", "long/s", "at once")
    header = ("engine", "agree", "max diff", metric or "-", *speeds, "MB", "load s", "")
    lines = [header, *(_table_row(each, metric) for each in candidates)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, len(header) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _table_row(candidate: EngineCandidate, metric: str) -> tuple[str, ...]:
    if candidate.engine is None:
        return (candidate.name, *["-"] * 8, candidate.reason)
    speeds = candidate.texts_per_second
    value = candidate.metrics.get(metric)
    return (
        candidate.name,
        f"{candidate.agreement:.2%}",
        f"{candidate.max_logit_difference:.2g}",
        "-" if value is None else f"{value:.4f}",
        f"{speeds.get('short', 0):.0f}",
        f"{speeds.get('long', 0):.1f}",
        str(candidate.batch_tokens),
        f"{candidate.size_bytes / 1e6:.0f}",
        f"{candidate.load_seconds:.1f}",
        "<- chosen" if candidate.chosen else candidate.reason,
    )


def _check_student(card: ModelCard, encoder: Encoder, student: Path) -> None:
    """Raise a BundleError unless the bundle `student` may stand in for the teacher's.

    Only the model is taken from it, so it must read the very tokens that the teacher's encoder
    makes, and its outputs must mean the same.
    """
    if card.task not in STUDENT_TASKS:
        raise BundleError(
            f"--student {student}: the bundle is for {card.task}, which has no students; they "
            f"are of {', '.join(STUDENT_TASKS)}"
        )
    own = read_card(student)
    for name in STUDENT_MATCHES:
        if getattr(own, name) != getattr(card, name):
            raise BundleError(
                f"--student {student}: its {name} is {getattr(own, name)!r}, that of the bundle is "
                f"{getattr(card, name)!r}; train the student with the same "
                f"{', '.join(STUDENT_MATCHES)} and tokenizer"
            )
    if bundle.load_encoder(student, own).fingerprint != encoder.fingerprint:
        raise BundleError(
            f"--student {student}: its tokenizer is not that of the bundle; train the student with "
            "model.tokenizer set to the directory of the bundle"
        )


def _candidate_names(
    card: ModelCard, candidates: Sequence[str] | None, allow: Collection[str], student: Path | None
) -> list[str]:
    """Return the names of the candidates, the reference first, a student last."""
    unknown = sorted({*(candidates or ()), *allow} - BACKENDS.keys())
    if unknown:
        raise BundleError(f"no engine is called {unknown[0]!r}; there is {', '.join(BACKENDS)}")
    if student is None and STUDENT in (candidates or ()):
        raise BundleError(f"{STUDENT!r} is of another bundle; name it with --student BUNDLE")
    default = [name for name, spec in BACKENDS.items() if not spec.on_request]
    if card.recipe["model"]["name"] == "linear":
        candidates, default = None, []
    others = [name for name in candidates or default if name != STUDENT]
    students = [] if student is None else [STUDENT]
    return list(dict.fromkeys([REFERENCE, *others, *students]))


def _choose_fastest(
    directory: Path,
    card: ModelCard,
    candidates: Sequence[EngineCandidate],
    rows: EvalRows,
    rounds: int,
    seconds: float,
) -> None:
    """Measure the speed of all engines, each at its best batch size, and choose the fastest."""
    built = {each.name: each for each in candidates if each.engine is not None}
    width = load_model_config(directory).get("num_features")
    # A linear model reads texts of one length only.
    lengths = (card.max_length,) if width is None else (width, width)
    texts = split_rows(rows.held_out)
    workloads = {
        budget: throughput.make_workload(texts, budget, *lengths) for budget in throughput.BUDGETS
    }
    runs = {
        (name, budget): (each.engine.infer_rows, workload)
        for name, each in built.items()
        if each.engine is not None
        for budget, workload in workloads.items()
    }
    for (name, budget), speeds in throughput.measure_interleaved(runs, rounds, seconds).items():
        built[name].keep_if_faster(budget, speeds)
    faithful = [each for each in built.values() if not each.reason]
    max(faithful, key=lambda each: each.speed).chosen = True


def _install_engines(
    directory: Path,
    temporary: Path,
    card: ModelCard,
    candidates: Sequence[EngineCandidate],
    num_compared: int,
) -> None:
    """Move the engines into the bundle and write their figures into its card.

    The card never lists a file that is not there: it forgets the old engines first.
    """
    if card.engines:
        replace_file(directory / CARD_FILE, serialize_card(card.model_copy(update={"engines": ()})))
    built = [each for each in candidates if each.engine is not None]
    old = {each.directory for each in card.engines if each.directory}
    new = {BACKENDS[each.name].directory for each in built if not each.reason} - {""}
    for name in old | new:
        shutil.rmtree(directory / name, ignore_errors=True)
    for name in new:
        (temporary / name).rename(directory / name)
    records = tuple(_engine_record(directory, each, num_compared) for each in built)
    with_engines = card.model_copy(update={"engines": records})
    replace_file(directory / CARD_FILE, serialize_card(with_engines))


def _engine_record(directory: Path, candidate: EngineCandidate, num_compared: int) -> EngineRecord:
    """Return the figures of a candidate for the card, and its files if it may serve."""
    spec = BACKENDS[candidate.name]
    holder = "" if candidate.reason else spec.directory
    files = sorted((directory / holder).iterdir()) if holder else []
    return EngineRecord(
        name=candidate.name,
        chosen=candidate.chosen,
        directory=holder,
        files={str(path.relative_to(directory)): file_sha256(path) for path in files},
        agreement=candidate.agreement,
        refused=candidate.reason,
        max_logit_difference=candidate.max_logit_difference,
        rows=num_compared,
        metrics=candidate.metrics,
        texts_per_second=candidate.texts_per_second,
        batch_tokens=candidate.batch_tokens,
        num_bytes=candidate.num_bytes,
        load_seconds=candidate.load_seconds,
        trials=tuple(candidate.trials),
        environment=provenance.describe_environment() | {spec.module: version(spec.module)},
    )
