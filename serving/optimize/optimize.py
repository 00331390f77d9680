"""Build every engine that can run here from a bundle, measure them, and choose the best.

The fastest of those that agree with torch fp32 in at least 99.5% of the held-out rows serves the
bundle from then on; all figures go into its card. A candidate that agrees less is refused unless it
is allowed by name. A build is for one kind of device, and runs on one; the engines of other kinds
stay as they were.

    bertha build runs/reviews/bundle [--device cuda] [--texts FILE] [--threshold 0.995]
        [--allow "onnxruntime int8"] [--only NAME] [--student BUNDLE] [--rounds 3] [--dry-run]
"""

import argparse
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from serving.engine.backends.registry import BACKENDS, STUDENT, reference_backend
from serving.engine.devices import (
    CPU,
    DeviceError,
    find_device_problem,
    find_engine_device,
    open_device,
)
from serving.engine.engine import load_model_config, split_rows
from serving.optimize import throughput
from serving.optimize.candidates import CandidateEvaluator, EngineCandidate
from serving.optimize.eval_texts import EvalRows, load_eval_rows
from serving.optimize.install import describe_engines, install_engines
from trainers.config.metrics import METRICS
from trainers.data.tokenizer import Encoder
from trainers.models import bundle
from trainers.models.card import BundleError, ModelCard, read_card
from trainers.storage.atomic import create_temporary

THRESHOLD = 0.995
ROUNDS, SECONDS = 3, 0.5  # of each engine's turns at each length of text and number of tokens

STUDENT_FILES = ("config.json", "model.safetensors")
# Fields of the teacher's card.
STUDENT_MATCHES = ("task", "labels", "cleaning", "max_length", "windows")
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
    device: str = CPU,
) -> list[EngineCandidate]:
    """Build and measure engines of the bundle in `directory` and write them into it.

    candidates: names of `BACKENDS`; default: all but those on request. student: the bundle of a
    model distilled from this one, as one more candidate. rows: to measure on; default: those the
    recipe held out. threshold: the least agreement with torch fp32. allow: candidates that may
    serve with less. rounds, seconds: how often and how long the speed of each is measured. device:
    the kind that the engines are for, one of which must be here. Raises BundleError, TextsError and
    DeviceError.
    """
    card = read_card(directory)
    names = _candidate_names(card, candidates, allow, student, device)
    device_name = open_device(device).name if device != CPU else ""
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
        evaluator = CandidateEvaluator(directory, card, encoder, rows, temporary, log, device)
        measured = []
        for name in names:
            log(f"{name} …")
            candidate = evaluator.evaluate(name, threshold)
            is_unfaithful = candidate.engine is not None and candidate.agreement < threshold
            if is_unfaithful and name not in {names[0], *allow}:
                candidate.reason = f"refused: under {threshold:.1%}"
            measured.append(candidate)
        _choose_fastest(directory, card, measured, rows, rounds, seconds, device)
        records = describe_engines(measured, evaluator.num_compared, device, device_name)
        install_engines(directory, temporary, card, records, device)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return measured


def run_build_command(options: argparse.Namespace, directory: Path) -> int:
    """Run `build` for the bundle in `directory` and print the table.

    options: as `serving.__main__` parses them.
    """
    card = read_card(directory)
    device = find_build_device(options.device)
    names = _candidate_names(card, options.only, options.allow, options.student, device)
    encoder = bundle.load_encoder(directory, card)
    if options.student is not None:
        _check_student(card, encoder, options.student)
    rows = load_eval_rows(card, encoder, options.texts)
    print(
        f"{options.bundle}: {card.task}, {len(rows.held_out)} texts to judge by and "
        f"{len(rows.calibration)} to calibrate with, of {rows.origin}"
        + ("" if device == CPU else f", on {device}: {open_device(device).name}"),
        flush=True,
    )
    if options.dry_run:
        for name in names:
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
        device=device,
    )
    print(format_table(candidates, card))
    return 0


def find_build_device(asked: str) -> str:
    """Return the kind of device that engines are built for. asked: "auto" for what serves here.

    Raises DeviceError where none is here: an engine is measured where it serves.
    """
    device = find_engine_device() if asked == "auto" else asked
    problem = find_device_problem(device)
    if problem is not None:
        raise DeviceError(f"--device {device}: {problem}, or build where there is one")
    return device


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
    card: ModelCard,
    candidates: Sequence[str] | None,
    allow: Collection[str],
    student: Path | None,
    device: str,
) -> list[str]:
    """Return the names of the candidates on `device`, the reference first, a student last."""
    of_device = {name: spec for name, spec in BACKENDS.items() if spec.device == device}
    unknown = sorted({*(candidates or ()), *allow} - of_device.keys())
    if unknown and unknown[0] in BACKENDS:
        kind = BACKENDS[unknown[0]].device
        raise BundleError(
            f"{unknown[0]!r} computes on {kind}, and this build is for {device}; build again with "
            f"--device {kind}, or name one of {', '.join(of_device)}"
        )
    if unknown:
        raise BundleError(f"no engine is called {unknown[0]!r}; there is {', '.join(of_device)}")
    if student is not None and device != CPU:
        raise BundleError(
            f"--student {student}: {STUDENT!r} computes on {CPU}, and this build is for {device}; "
            f"build again with --device {CPU}"
        )
    if student is None and STUDENT in (candidates or ()):
        raise BundleError(f"{STUDENT!r} is of another bundle; name it with --student BUNDLE")
    default = [name for name, spec in of_device.items() if not spec.on_request]
    if card.recipe["model"]["name"] == "linear":
        candidates, default = None, []
    others = [name for name in candidates or default if name != STUDENT]
    students = [] if student is None else [STUDENT]
    return list(dict.fromkeys([reference_backend(device), *others, *students]))


def _choose_fastest(
    directory: Path,
    card: ModelCard,
    candidates: Sequence[EngineCandidate],
    rows: EvalRows,
    rounds: int,
    seconds: float,
    device: str,
) -> None:
    """Measure the speed of all engines, each at its best batch size, and choose the fastest."""
    built = {each.name: each for each in candidates if each.engine is not None}
    width = load_model_config(directory).get("num_features")
    # A linear model reads texts of one length only.
    lengths = (card.max_length,) if width is None else (width, width)
    texts = split_rows(rows.held_out)
    workloads = {
        budget: throughput.make_workload(texts, budget, *lengths)
        for budget in throughput.budgets_of(device)
    }
    runs = {
        (name, budget): (each.engine.infer_rows, workload)
        for name, each in built.items()
        if each.engine is not None
        for budget, workload in workloads.items()
    }
    clock = time.process_time if device == CPU else time.perf_counter
    measured = throughput.measure_interleaved(runs, rounds, seconds, clock)
    for (name, budget), speeds in measured.items():
        tokens = throughput.slowest_tokens_per_second(workloads[budget], speeds)
        built[name].keep_if_faster(budget, speeds, tokens)
    faithful = [each for each in built.values() if not each.reason]
    max(faithful, key=lambda each: each.speed).chosen = True
