"""ONNX Runtime: a graph gets the inputs that it reads, and leaves the cores of others alone."""

from pathlib import Path

import numpy as np
import pytest

from serving.engine.backends.onnx import FILE, OnnxBackend
from serving.engine.packed import PackedBatch
from tests.support.engine_builds import needs_graphs

pytestmark = needs_graphs

PACKED = PackedBatch.from_rows(
    [np.array([7, 8, 9]), np.array([5, 6])], [np.arange(3), np.arange(2)]
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph that returns the tokens that are read, and reads no other input."""
    from onnx import TensorProto, helper, save

    def tensor(name: str) -> object:
        return helper.make_tensor_value_info(name, TensorProto.INT64, ["n"])

    graph = helper.make_graph(
        [helper.make_node("Gather", ["ids", "reads"], ["outputs"])],
        "tokens",
        [tensor("reads"), tensor("ids")],  # in no order of ours
        [tensor("outputs")],
    )
    place = tmp_path_factory.mktemp("onnx")
    opset = [helper.make_opsetid("", 18)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(place / FILE))
    (place / "weights.data").write_bytes(b"0" * 1000)
    return place


def test_a_graph_gets_the_inputs_that_it_reads_by_name(directory: Path) -> None:
    backend = OnnxBackend(directory, "onnxruntime fp32", 1)
    assert backend.run(PACKED).tolist() == [7, 5]
    assert backend.name == "onnxruntime fp32"


def test_all_files_of_the_directory_weigh(directory: Path) -> None:
    backend = OnnxBackend(directory, "onnxruntime fp32", 1)
    assert backend.num_bytes == 1000 + (directory / FILE).stat().st_size


def test_it_computes_with_its_threads_and_none_of_them_spins(directory: Path) -> None:
    options = OnnxBackend(directory, "onnxruntime fp32", 3)._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
