"""Published rows: read as what they are, predicted without being seen, and the record is true."""

import json
import sys

import pytest

from tests.support.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))

from fitting import FREE, fit_constants, predict_left_out, predict_throughput
from planner import RESULTS, summarize_errors
from published import BINNED, DATA, PublishedRow, read_mlperf, read_serving, read_training

from cluster.costmodel.constants import CALIBRATED, NINE_IN_TEN
from cluster.hardware import catalog

KNOWN = catalog.load_catalog()
MLPERF, TRAINING = list(read_mlperf(KNOWN)), list(read_training(KNOWN))
SERVING = list(read_serving(KNOWN))
ROWS = [*MLPERF, *TRAINING, *SERVING]


def find_row(name: str, rows: list[PublishedRow]) -> PublishedRow:
    return next(row for row in rows if name in row.name)


def test_every_row_with_a_throughput_is_read() -> None:
    lines = (DATA / "mlperf_bert.csv").read_text().splitlines()[1:]
    without = [line for line in lines if ",,," in line]  # three submissions give no throughput
    assert (len(MLPERF), len(without)) == (len(lines) - 3, 3)
    for name, rows in (("bert_training", TRAINING), ("bert_serving", SERVING)):
        assert len(rows) == len((DATA / f"{name}_throughput.csv").read_text().splitlines()) - 1


def test_systems_are_what_their_descriptions_say() -> None:
    sparse = find_row("16xXE8545x4A100-SXM-40GB", MLPERF)
    assert (sparse.topology.devices, sparse.topology.nodes, sparse.topology.network) == (
        64,
        16,
        50e9,
    )
    assert find_row("2xXE8545x4A100-SXM-80GB", MLPERF).topology.accelerator.watts == 500
    assert find_row("PCIE-80GB-NVBridge", MLPERF).topology.bridged
    assert find_row("16-nodes-SPR", MLPERF).topology.devices == 32  # sockets
    assert find_row("dgxh100_preview", MLPERF).work.precision == "fp8"
    assert find_row("8xA100_80GB-baseline", MLPERF).work.tokens == 512
    assert find_row("dgxa100_n8", MLPERF).work.tokens == 256


def test_what_dense_sequences_cannot_explain_is_flagged_by_physics() -> None:
    flagged = [row for row in ROWS if "of the peak" in row.note]
    assert [row.name for row in flagged] == ["BERT-large pretrain LAMB s512 fp32"]
    assert flagged[0].work.tokens == BINNED
    assert find_row("BERT-large SQuAD fine-tune", TRAINING).work.tokens == 384


def test_an_accelerator_left_out_has_no_say() -> None:
    few = [row for row in ROWS if row.accelerator in ("A30", "L40")]
    wrong = [
        PublishedRow(r.kind, r.name, r.work, r.topology, r.stack, r.throughput * 10, r.copies)
        if r.accelerator == "A30"
        else r
        for r in few
    ]
    for before, after, row in zip(predict_left_out(few), predict_left_out(wrong), few, strict=True):
        if row.accelerator == "A30":
            assert after == pytest.approx(before)


def test_the_shipped_constants_are_those_of_the_fit() -> None:
    found = fit_constants(ROWS)
    for name in FREE:
        assert getattr(CALIBRATED, name) == pytest.approx(getattr(found, name), rel=0.02), name


def test_the_record_is_of_these_rows_and_the_interval_is_its() -> None:
    record = json.loads(RESULTS.read_text())
    assert [each["row"] for each in record["rows"]] == [row.name for row in ROWS]
    assert [each["seen"] for each in record["rows"]] == [row.throughput for row in ROWS]
    again = summarize_errors(ROWS, [each["predicted"] for each in record["rows"]])
    assert again == record["summary"]
    assert record["summary"]["all"]["factor"] == pytest.approx(NINE_IN_TEN, abs=0.01)


def test_predictions_are_as_good_as_they_are_said_to_be() -> None:
    """Not a proof: these rows were fitted. It fails when the model is broken."""
    whole = summarize_errors(ROWS, [predict_throughput(row, CALIBRATED) for row in ROWS])
    assert whole["all"]["median"] < 0.08
    assert whole["all"]["within_20"] > 0.85
