"""Spread the rows of a table over a Ray cluster, with an actor pool of our packed engine.

    summary = predict_on_cluster(bundle, ["s3://rows/"], "s3://answers/all.parquet", address="auto")

Ray Data moves the texts of a window to an actor and its answers back, in order. The rows themselves
stay here: they are read again beside the answers, and written as one process would write them, so
the same rows come out in the same order, whatever the number of nodes.
"""

import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data

from cluster.errors import BerthaError
from cluster.local_ray import run_local_ray
from cluster.ray_token import close_token_file
from serving.batch.predict import (
    OnProgress,
    PredictionError,
    PredictionPlan,
    Summary,
    WindowAnswers,
    answer_texts,
    count_answers,
    ignore_progress,
    iter_windows,
    plan_prediction,
)
from serving.engine.engine import Engine
from serving.interface import Prediction
from trainers.data.files import local_path
from trainers.data.rows.delimited import DEFAULT_DIALECT, Dialect
from trainers.data.tables import Place, iter_file
from trainers.models.card import CARD_FILE, read_card

LOCAL = "local"
NODE_LABEL = "ray.io/node-id"  # that Ray gives each node
WINDOW_ROWS = 512  # few enough that a pool has work to the end
OBJECT_STORE_BYTES = 512 * 2**20  # of a Ray that is started here; windows pass through it

SCORES, VECTORS, ERROR = b"scores", b"vectors", b"error"  # kinds of packed answers
_ERROR_LINE = re.compile(r"(?!ray\.)[A-Za-z_][\w.]*: ")  # of a traceback

Columns = dict[str, np.ndarray]  # of a block of Ray Data


class ClusterError(BerthaError):
    """A cluster that cannot be used, or failed; the message says the way out."""


def predict_on_cluster(
    bundle: Path,
    sources: Sequence[str],
    out: str | None,
    *,
    address: str,
    engine: str | None = None,
    text: Sequence[str] = (),
    prefix: str = "",
    overwrite: bool = False,
    dialect: Dialect = DEFAULT_DIALECT,
    on_progress: OnProgress = ignore_progress,
) -> Summary:
    """Predict the rows of files as `predict_files` does, on all cores of a Ray cluster.

    bundle: a directory of this machine; the nodes get a copy. sources: paths are read on this
    machine, s3:// wherever there is room. address: of the cluster, as "auto"; "local" starts a Ray
    here. Raises BerthaError.
    """
    plan = plan_prediction(read_card(bundle), sources, out, text, prefix, overwrite, dialect)
    started, summary = time.monotonic(), Summary(0, skipped=plan.table.skipped)
    rows = plan.table.iter_rows()
    with _join_cluster(address), plan.open_output() as write_rows:
        for answers in _stream_answers(bundle, plan, engine):
            window = list(islice(rows, len(answers.values)))
            write_rows(plan.add_answers(window, answers.values))
            summary = count_answers(summary, answers)
            on_progress(summary.rows, plan.table.num_rows)
    if summary.rows != plan.table.num_rows:
        raise ClusterError(
            f"{plan.table.sources[0]}: {plan.table.num_rows:,} rows were counted and "
            f"{summary.rows:,} answered; do not change files while they are read, and try again"
        )
    return replace(summary, seconds=time.monotonic() - started)


@contextmanager
def _join_cluster(address: str) -> Iterator[None]:
    """Join a Ray cluster for the block, or start one on this machine. Raises ClusterError."""
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
    elif address == LOCAL:
        with run_local_ray(OBJECT_STORE_BYTES):
            yield
    else:
        close_token_file()
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ClusterError(
                f"--address {address}: no Ray cluster answers there: {error}; `--address local` "
                "starts one on this machine"
            ) from None
        try:
            yield
        finally:
            ray.shutdown()


def _stream_answers(
    bundle: Path, plan: PredictionPlan, engine: str | None
) -> Iterator[WindowAnswers]:
    """Yield the answers to the windows of the table, in order."""
    context = ray.data.DataContext.get_current()
    before = (context.target_max_block_size, context.enable_progress_bars)
    context.target_max_block_size, context.enable_progress_bars = 1, False  # a window a block
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    try:
        windows = _count_windows(plan)
        num_actors = max(1, min(windows, int(ray.cluster_resources().get("CPU", 1))))
        sources = ray.data.from_items(
            [{"source": each} for each in plan.table.sources],
            override_num_blocks=len(plan.table.sources),
        )
        texts = sources.map_batches(
            _WindowReader(plan.table.columns, plan.places, plan.table.dialect),
            batch_size=None,
            num_cpus=0,  # reading waits for the engines, and must not take a core from them
            label_selector=_reading_place(plan.table.sources),
        )
        files = ray.put(_read_bundle(bundle, engine))
        answers = texts.map_batches(
            _Answerer,
            fn_constructor_args=(files, engine),
            batch_size=None,
            num_cpus=1,
            concurrency=num_actors,
        )
        for block in answers.iter_batches(batch_size=None, batch_format="numpy"):
            yield from _unpack_answers(block)
    except ray.exceptions.RayError as error:
        raise _describe_failure(error) from None
    finally:
        context.target_max_block_size, context.enable_progress_bars = before


def _count_windows(plan: PredictionPlan) -> int:
    return -(-plan.table.num_rows // WINDOW_ROWS) + len(plan.table.sources) - 1


def _reading_place(sources: Sequence[str]) -> dict[str, str] | None:
    """Return the label of the node that reads the files: this one, if one of them lies on it."""
    if all(local_path(each) is None for each in sources):
        return None
    return {NODE_LABEL: ray.get_runtime_context().get_node_id()}


def _describe_failure(error: Exception) -> ClusterError:
    """Return what failed on a node, from the last line of its traceback that names an error."""
    named = [line for line in str(error).splitlines() if _ERROR_LINE.match(line)]
    reason = (named or [str(error).strip()])[-1].partition("\n")[0][:300]
    return ClusterError(f"the cluster failed: {reason}; is Bertha installed on every node?")


def _read_bundle(bundle: Path, engine: str | None) -> dict[str, bytes]:
    """Return the files of a bundle that its engine needs, by name."""
    card = read_card(bundle)
    files = [each.files for each in card.engines if each.chosen or each.name == engine]
    names = [CARD_FILE, *card.files, *(name for each in files for name in each)]
    return {name: (bundle / name).read_bytes() for name in names}


@dataclass(frozen=True)
class _WindowReader:
    """Reads files into windows of texts, a row each."""

    columns: tuple[str, ...]
    places: tuple[Place, ...]
    dialect: Dialect

    def __call__(self, block: Columns) -> Iterator[Columns]:
        for source in block["source"]:
            rows = iter_file(str(source), self.columns, self.dialect)
            for window in iter_windows(rows, self.places, WINDOW_ROWS):
                texts = np.empty(1, dtype=object)
                texts[0] = [text or "" for text in window.texts]
                yield {"texts": texts}


class _Answerer:
    """An engine of one thread in an actor."""

    def __init__(self, files: ray.ObjectRef, engine: str | None) -> None:
        """Write the files of a bundle here, and load it. files: of `_read_bundle`, stored once."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # other actors have the other cores
        with tempfile.TemporaryDirectory(prefix="bertha-") as place:
            bundle = Path(place, "bundle")
            for name, data in ray.get(files).items():
                (bundle / name).parent.mkdir(parents=True, exist_ok=True)
                (bundle / name).write_bytes(data)
            self._engine = Engine.load(bundle, engine)

    def __call__(self, block: Columns) -> Columns:
        packed = [self._answer_window(list(each)) for each in block["texts"]]
        columns = {name: np.empty(len(packed), dtype=object) for name in packed[0]}
        for row, answers in enumerate(packed):
            for name, value in answers.items():
                columns[name][row] = value
        return columns

    def _answer_window(self, texts: list[str]) -> dict[str, bytes]:
        """Return packed answers; an error of ours as its sentence, which Ray would bury."""
        try:
            return _pack_answers(answer_texts(self._engine, texts))
        except BerthaError as error:
            return {"kind": ERROR, "present": b"", "numbers": str(error).encode(), "cut": b""}


def _pack_answers(answers: WindowAnswers) -> dict[str, bytes]:
    """Return the numbers of a window as bytes: what a cluster moves fast and unchanged."""
    present = np.array([value is not None for value in answers.values], dtype=bool)
    given = [value for value in answers.values if value is not None]
    kind = SCORES if given and isinstance(given[0], Prediction) else VECTORS
    numbers = [each.scores if isinstance(each, Prediction) else each for each in given]
    return {
        "kind": kind,
        "present": present.tobytes(),
        "numbers": np.array(numbers, dtype=np.float32).tobytes(),
        "cut": np.array(answers.cut, dtype=np.int64).tobytes(),
    }


def _unpack_answers(block: Columns) -> Iterator[WindowAnswers]:
    """Yield the windows of a block of `_pack_answers`. Raises PredictionError."""
    columns = (block[name] for name in ("kind", "present", "numbers", "cut"))
    for kind, flags, numbers, cut in zip(*columns, strict=True):
        if kind == ERROR:
            raise PredictionError(numbers.decode())
        present = np.frombuffer(flags, dtype=bool)
        values: list[Any] = [None] * len(present)
        places = np.flatnonzero(present)
        rows = np.frombuffer(numbers, dtype=np.float32).reshape(max(1, len(places)), -1)
        for place, row in zip(places, rows, strict=False):  # of no text one row, empty
            values[place] = row if kind == VECTORS else Prediction(tuple(row.tolist()), ())
        yield WindowAnswers(values, tuple(np.frombuffer(cut, dtype=np.int64).tolist()))
