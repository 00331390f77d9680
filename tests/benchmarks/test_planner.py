"""Published rows: read as what they are, predicted without being seen, and the record is true."""

import json
import sys

import pytest

from tests.support.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))

from fitting import FREE, fitted, left_out, predicted
from planner import RESULTS, summary
from published import BINNED, DATA, Row, mlperf, serving, training

from cluster.costmodel.constants import CALIBRATED, NINE_IN_TEN
from cluster.hardware import catalog

KNOWN = catalog.load()
MLPERF, TRAINING = list(mlperf(KNOWN)), list(training(KNOWN))
SERVING = list(serving(KNOWN))
ROWS = [*MLPERF, *TRAINING, *SERVING]


def of(name: str, rows: list[Row]) -> Row:
    return next(row for row in rows if name in row.name)


def test_every_row_with_a_throughput_is_read() -> None:
    lines = (DATA / "mlperf_bert.csv").read_text().splitlines()[1:]
    without = [line for line in lines if ",,," in line]  # three submissions give no throughput
    assert (len(MLPERF), len(without)) == (len(lines) - 3, 3)
    for name, rows in (("bert_training", TRAINING), ("bert_serving", SERVING)):
        assert len(rows) == len((DATA / f"{name}_throughput.csv").read_text().splitlines()) - 1


def test_systems_are_what_their_descriptions_say() -> None:
    sparse = of("16xXE8545x4A100-SXM-40GB", MLPERF)
    assert (sparse.place.devices, sparse.place.nodes, sparse.place.network) == (64, 16, 50e9)
    assert of("2xXE8545x4A100-SXM-80GB", MLPERF).place.accelerator.watts == 500
    assert of("PCIE-80GB-NVBridge", MLPERF).place.bridged
    assert of("16-nodes-SPR", MLPERF).place.devices == 32  # sockets
    assert of("dgxh100_preview", MLPERF).work.precision == "fp8"
    assert of("8xA100_80GB-baseline", MLPERF).work.tokens == 512
    assert of("dgxa100_n8", MLPERF).work.tokens == 256


def test_what_dense_sequences_cannot_explain_is_flagged_by_physics() -> None:
    flagged = [row for row in ROWS if "of the peak" in row.note]
    assert [row.name for row in flagged] == ["BERT-large pretrain LAMB s512 fp32"]
    assert flagged[0].work.tokens == BINNED
    assert of("BERT-large SQuAD fine-tune", TRAINING).work.tokens == 384


def test_an_accelerator_left_out_has_no_say() -> None:
    few = [row for row in ROWS if row.accelerator in ("A30", "L40")]
    wrong = [
        Row(r.kind, r.name, r.work, r.place, r.stack, r.seen * 10, r.copies)
        if r.accelerator == "A30"
        else r
        for r in few
    ]
    for before, after, row in zip(left_out(few), left_out(wrong), few, strict=True):
        if row.accelerator == "A30":
            assert after == pytest.approx(before)


def test_the_shipped_constants_are_those_of_the_fit() -> None:
    found = fitted(ROWS)
    for name in FREE:
        assert getattr(CALIBRATED, name) == pytest.approx(getattr(found, name), rel=0.02), name


def test_the_record_is_of_these_rows_and_the_interval_is_its() -> None:
    record = json.loads(RESULTS.read_text())
    assert [each["row"] for each in record["rows"]] == [row.name for row in ROWS]
    assert [each["seen"] for each in record["rows"]] == [row.seen for row in ROWS]
    again = summary(ROWS, [each["predicted"] for each in record["rows"]])
    assert again == record["summary"]
    assert record["summary"]["all"]["factor"] == pytest.approx(NINE_IN_TEN, abs=0.01)


def test_predictions_are_as_good_as_they_are_said_to_be() -> None:
    """Not a proof: these rows were fitted. It fails when the model is broken."""
    whole = summary(ROWS, [predicted(row, CALIBRATED) for row in ROWS])
    assert whole["all"]["median"] < 0.08
    assert whole["all"]["within_20"] > 0.85
