"""OpenVINO: a graph gets the inputs that it reads, and its answers outlive the next batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.engine.backends.backend import import_optional
from serving.engine.backends.load import load_backend
from serving.engine.backends.openvino import FILE, OpenVinoBackend
from tests.support.engine_builds import needs_graphs
from tests.support.hostile import copy_bundle, seal_bundle
from trainers.models.card import BundleError, read_card
from trainers.models.packed import PackedBatch
from trainers.storage.atomic import file_sha256

pytestmark = needs_graphs


def packed(*rows: list[int]) -> PackedBatch:
    arrays = [np.array(row) for row in rows]
    return PackedBatch.from_rows(arrays, [np.arange(len(row)) for row in arrays])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph that returns the tokens that are read as float32, and reads no other input."""
    openvino, ops = import_optional("openvino"), import_optional("openvino.opset13")
    reads, ids = (ops.parameter([-1], np.int64, name=name) for name in ("reads", "ids"))
    reads.output(0).get_tensor().set_names({"reads"})
    ids.output(0).get_tensor().set_names({"ids.1", "ids"})  # the tracer adds a name of its own
    outputs = ops.convert(ops.gather(ids, reads, np.int64(0)), np.float32)
    place = tmp_path_factory.mktemp("openvino")
    openvino.save_model(openvino.Model([outputs], [reads, ids], "tokens"), place / FILE)
    return place


def settings(backend: OpenVinoBackend, *names: str) -> list[Any]:
    compiled = backend._request.get_compiled_model()
    return [compiled.get_property(name) for name in names]


def test_a_graph_gets_the_inputs_that_it_reads_by_name(directory: Path) -> None:
    backend = OpenVinoBackend(directory, "openvino fp32", 1)
    assert backend.run(packed([7, 8, 9], [5, 6])).tolist() == [7, 5]
    assert backend.name == "openvino fp32"


def test_answers_outlive_the_next_batch(directory: Path) -> None:
    backend = OpenVinoBackend(directory, "openvino fp32", 1)
    first = backend.run(packed([7, 8], [5]))
    backend.run(packed([1, 2], [3]))
    assert first.tolist() == [7, 5]


def test_all_files_of_the_directory_weigh(directory: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
    assert set(sizes) == {FILE, "model.bin"}
    assert OpenVinoBackend(directory, "openvino fp32", 1).num_bytes == sum(sizes.values())


def test_replicas_share_a_machine(directory: Path) -> None:
    """Each computes with its own threads, wherever there is a free core."""
    names = ("INFERENCE_NUM_THREADS", "NUM_STREAMS", "ENABLE_CPU_PINNING")
    for threads in (1, 2):
        backend = OpenVinoBackend(directory, "openvino fp32", threads)
        found = [str(each) for each in settings(backend, *names)]
        assert found == [str(threads), "1", "False"]


def test_layers_compute_in_float32_unless_bf16_is_asked_for(directory: Path) -> None:
    backend = OpenVinoBackend(directory, "openvino fp32", 1)
    (precision,) = settings(backend, "INFERENCE_PRECISION_HINT")
    assert precision.get_type_name() == "f32"


@pytest.mark.parametrize(
    ("written", "changed"),
    [
        ('type="Gather"', 'type="Evil"'),
        ('offset="0"', 'offset="1099511627776"'),
        ('size="8"', 'size="1099511627776"'),
        ("</net>", ""),
    ],
)
def test_a_graph_of_a_stranger_that_is_none_is_a_sentence(
    directory: Path, tiny_classifier: Path, tmp_path: Path, written: str, changed: str
) -> None:
    bundle = copy_bundle(tiny_classifier, tmp_path / "bundle")
    graph = (directory / FILE).read_text()
    assert written in graph
    (bundle / "openvino").mkdir()
    (bundle / "openvino" / FILE).write_text(graph.replace(written, changed))
    (bundle / "openvino" / "model.bin").write_bytes((directory / "model.bin").read_bytes())
    names = ("openvino/model.xml", "openvino/model.bin")
    engine = {"name": "openvino fp32", "agreement": 1, "max_logit_difference": 0, "rows": 1}
    engine |= {"directory": "openvino"}
    engine |= {"files": {name: file_sha256(bundle / name) for name in names}}
    seal_bundle(bundle, engines=[engine])
    with pytest.raises(BundleError, match=r"^.*'openvino fp32' cannot be loaded .*; build again"):
        load_backend(bundle, read_card(bundle), "openvino fp32", 1)
