"""The commands `predict` and `evaluate`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from cluster.errors import BerthaError
from serving import client
from serving.batch.arguments import AS_TEXT, find_files
from serving.batch.progress import RowProgress
from serving.fetch import local_copy
from trainers.data.files import UTF8
from trainers.data.rows.delimited import Dialect, Quoting
from trainers.models.card import read_card
from trainers.tracking.progress import format_duration

PREPARING = "loading the model and counting the rows"


def add_commands(subparsers: Any) -> None:
    """Add the parsers of these commands."""
    predicts = subparsers.add_parser(
        "predict",
        help="answer texts, or files of them",
        description='bertha predict runs/mine "A wonderful film."      a line a text\n'
        "bertha predict runs/mine rows.csv --out answers.csv     the same rows, answered",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    predicts.add_argument("bundle", metavar="BUNDLE|RUN", help="a directory, or s3://")
    predicts.add_argument(
        "what",
        nargs="+",
        metavar="TEXT|FILE",
        help="texts; or files of tables (docs/data.md), directories of them, or s3://",
    )
    predicts.add_argument("--out", help="file for the answers; its suffix says the format")
    _add_file_arguments(predicts)
    predicts.add_argument("--prefix", default="", help="before the names of the new columns")
    predicts.add_argument(AS_TEXT, action="store_true", help="all are texts, even names of files")
    predicts.add_argument(
        "--address",
        default=_submitted_to(),
        help="spread files over this Ray cluster; `local`: over a Ray of this machine",
    )
    predicts.add_argument("--dry-run", action="store_true", help="say what would be answered")
    predicts.set_defaults(command=run_predict)

    evaluates = subparsers.add_parser(
        "evaluate",
        help="measure a bundle on labelled files",
        description="bertha evaluate runs/mine labelled.csv",
    )
    evaluates.add_argument("bundle", metavar="BUNDLE|RUN", help="a directory, or s3://")
    evaluates.add_argument("files", nargs="+", metavar="FILE", help="as `predict` takes them")
    evaluates.add_argument("--label", metavar="COLUMN", help="default: that of the recipe")
    evaluates.add_argument("--out", help="file for what is answered wrongly, the worst first")
    _add_file_arguments(evaluates)
    evaluates.add_argument("--json", action="store_true", help="print JSON")
    evaluates.set_defaults(command=run_evaluate)


def _submitted_to() -> str | None:
    """Return the cluster that this process was submitted to; None for none."""
    address = os.environ.get("RAY_ADDRESS", "")
    return None if address in ("", "local") else address


def _add_file_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace an older --out")
    parser.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="COLUMN",
        help="column of the text, several are joined; default: those of the recipe",
    )
    parser.add_argument("--engine", help="as 'onnxruntime int8'; default: the chosen one")
    tables = parser.add_argument_group("how CSV and TSV files are written")
    tables.add_argument("--delimiter", metavar="MARK", help="default: a comma, in a .tsv a tab")
    tables.add_argument(
        "--quoting", choices=get_args(Quoting), default="auto", help="as data.quoting of a recipe"
    )
    tables.add_argument("--encoding", default=UTF8, help="of all text files; default: UTF-8")
    tables.add_argument(
        "--header", choices=("true", "false"), default="true", help="false: columns by number"
    )


def _read_dialect(options: argparse.Namespace) -> Dialect:
    """Return how the tables are written. Raises BerthaError for what cannot be."""
    mark = options.delimiter
    if mark is not None and len(mark) != 1:
        raise BerthaError(f"--delimiter {mark!r}: give one character; a tab is $'\\t'")
    try:
        "".encode(options.encoding)
    except LookupError:
        raise BerthaError(
            f"--encoding {options.encoding!r}: is no encoding of text; try utf-8 or cp1252"
        ) from None
    return Dialect(mark, options.quoting, options.encoding, options.header == "true", "--")


def run_predict(options: argparse.Namespace) -> int:
    """Answer texts, or the rows of files."""
    files = () if options.as_text else find_files(options.what)
    for given, name in ((options.out, "--out"), (options.text, "--text")):
        if given and not files:
            raise BerthaError(
                f"{name} goes with a file, and {options.what[0][:60]!r} is a text; name a file "
                "that is there"
            )
    with local_copy(options.bundle) as directory:
        if options.dry_run:
            return _describe_prediction(options, directory, files)
        answer = _predict_files if files else _predict_texts
        return answer(options, directory, files or options.what)


def _describe_prediction(options: argparse.Namespace, directory: Path, files: Sequence[str]) -> int:
    card = read_card(directory)
    if not files:
        print(f"would answer {len(options.what)} texts by a model for {card.task}")
        return 0
    from serving.batch.predict import plan_prediction

    plan = plan_prediction(
        card,
        files,
        options.out,
        options.text,
        options.prefix,
        options.overwrite,
        _read_dialect(options),
    )
    added = plan.schema.names[len(plan.table.columns) :]
    shown = ", ".join(added[:6]) + (", ..." if len(added) > 6 else "")
    num_files = len(plan.table.sources)
    files_said = plan.table.sources[0] if num_files == 1 else f"{num_files} files"
    print(
        f"would answer {plan.table.num_rows:,} rows of {files_said} into "
        f"{options.out or 'the standard output'}, with {shown} behind their columns"
    )
    return 0


def _predict_texts(options: argparse.Namespace, directory: Path, texts: Sequence[str]) -> int:
    """Print a line a text."""
    from serving.engine.engine import Engine
    from serving.interface import Prediction
    from serving.protocols.labels import choose_labels, rank_labels

    engine = Engine.load(directory, options.engine)
    card, (samples, is_cut) = engine.card, engine.encode(texts)
    for number, was_cut in enumerate(is_cut, 1):
        if was_cut:
            print(
                f"text {number}: longer than {card.max_tokens} tokens: the rest was not read",
                file=sys.stderr,
            )
    for text, answer in zip(texts, engine.infer(samples), strict=True):
        if not isinstance(answer, Prediction):
            raise BerthaError(
                f"{options.bundle}: a model for {card.task}; serve it and ask over HTTP: "
                f"bertha serve {options.bundle}"
            )
        ranked = rank_labels(answer.scores, card.labels)
        chosen = choose_labels(answer.scores, card.labels, card.task, card.thresholds)
        print(client.format_labels(ranked, card.task, text, chosen))
    return 0


def _predict_files(options: argparse.Namespace, directory: Path, files: Sequence[str]) -> int:
    """Write the rows of files with their answers, and say on the standard error what came of it."""
    from serving.batch.predict import load_on_all_cores, predict_files

    settings = {
        "text": options.text,
        "prefix": options.prefix,
        "overwrite": options.overwrite,
        "dialect": _read_dialect(options),
    }
    with RowProgress() as progress:
        progress.announce(f"joining Ray, {PREPARING}" if options.address else PREPARING)
        if options.address:
            from serving.batch.cluster import predict_on_cluster  # Ray

            summary = predict_on_cluster(
                directory,
                files,
                options.out,
                address=options.address,
                engine=options.engine,
                on_progress=progress.update,
                **settings,
            )
        else:
            engine = load_on_all_cores(directory, options.engine)
            summary = predict_files(
                engine, files, options.out, on_progress=progress.update, **settings
            )
    for note in summary.describe(read_card(directory).max_tokens):
        print(note, file=sys.stderr)
    where = f"{options.out}: " if options.out else ""
    print(f"{where}{summary.rows:,} rows in {format_duration(summary.seconds)}", file=sys.stderr)
    return 0


def run_evaluate(options: argparse.Namespace) -> int:
    """Print the figures of a bundle on labelled files."""
    from serving.batch.evaluate import evaluate_files
    from serving.batch.predict import load_on_all_cores

    with local_copy(options.bundle) as directory, RowProgress() as progress:
        progress.announce(PREPARING)
        engine = load_on_all_cores(directory, options.engine)
        found = evaluate_files(
            engine,
            options.files,
            text=options.text,
            label=options.label,
            out=options.out,
            overwrite=options.overwrite,
            dialect=_read_dialect(options),
            on_progress=progress.update,
        )
    if options.json:
        print(json.dumps(found.to_json(), indent=2))
        return 0
    print("\n".join(format_evaluation(found.to_json(), engine.card.metrics)))
    if options.out:
        print(f"errors: {options.out}")
    return 0


def format_evaluation(found: dict[str, Any], trained: dict[str, Any]) -> list[str]:
    """Format an evaluation. trained: the metrics of the card, shown beside those found."""
    lines = [*found["skipped"], f"{found['rows']:,} rows, each figure with its 95% interval:"]
    names = max(map(len, found["figures"]))
    for name, figure in found["figures"].items():
        before = trained.get(name)
        beside = "" if before is None else f"   {before:.4f} on the rows held out in training"
        value, low, high = (figure[each] for each in ("value", "low", "high"))
        lines.append(f"  {name:<{names}} {value:8.4f}  {low:.4f} to {high:.4f}{beside}")
    if not found["per_class"]:
        return lines
    width = max(map(len, found["per_class"]))
    lines.append(f"  {'':<{width}}  precision  recall      f1   rows")
    return lines + [
        f"  {label:<{width}}  {row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:6.4f}  "
        f"{row['support']:5d}"
        for label, row in found["per_class"].items()
    ]
