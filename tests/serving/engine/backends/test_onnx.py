"""ONNX Runtime: a graph gets the inputs that it reads, and leaves the cores of others alone."""

import os
from pathlib import Path

import numpy as np
import pytest

from serving.engine.backends.load import load_backend
from serving.engine.backends.onnx import FILE, OnnxBackend
from tests.support.engine_builds import needs_graphs
from tests.support.hostile import copy_bundle, refused_cheaply, seal_bundle
from trainers.models.card import BundleError, read_card
from trainers.models.packed import PackedBatch
from trainers.storage.atomic import file_sha256

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


class TestAGraphOfAStranger:
    """What a graph names besides itself is read only where the card lists it."""

    @pytest.fixture
    def bundle(self, tiny_classifier: Path, tmp_path: Path) -> Path:
        place = copy_bundle(tiny_classifier, tmp_path / "bundle")
        (place / "onnx").mkdir()
        secret = np.arange(4, dtype=np.float32).tobytes()
        for path in (tmp_path / "secret.bin", place / "secret.bin", place / "onnx" / "in.bin"):
            path.write_bytes(secret)
        return place

    def seal(self, bundle: Path, *names: str, node: str = "Add", data: str = "in.bin") -> None:
        """Write a graph with weights in the file `data`, and seal files of these names."""
        from onnx import TensorProto, helper, save

        weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=data)
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
        domain = "" if node == "Add" else "evil"
        step = helper.make_node(node, ["x", "w"], ["y"], domain=domain)
        graph = helper.make_graph([step], "g", values[:1], values[1:], [weights])
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("evil", 1)]
        save(
            helper.make_model(graph, opset_imports=opsets, ir_version=8),
            str(bundle / "onnx" / FILE),
        )
        engine = {"name": "onnxruntime fp32", "agreement": 1, "max_logit_difference": 0, "rows": 1}
        files = {name: file_sha256(bundle / name) for name in names}
        seal_bundle(bundle, engines=[engine | {"directory": "onnx", "files": files}])

    def load(self, bundle: Path) -> None:
        load_backend(bundle, read_card(bundle), "onnxruntime fp32", 1)

    def test_weights_of_its_own_directory_are_read(self, bundle: Path) -> None:
        (bundle / "secret.bin").unlink()
        self.seal(bundle, "onnx/model.onnx", "onnx/in.bin")
        self.load(bundle)

    def test_weights_that_the_card_does_not_list(self, bundle: Path) -> None:
        (bundle / "secret.bin").unlink()
        self.seal(bundle, "onnx/model.onnx")
        with pytest.raises(BundleError, match=r"does not list onnx/in\.bin"):
            self.load(bundle)

    def test_a_graph_that_the_card_does_not_list(self, bundle: Path) -> None:
        """Though it lists another file of that engine, as it was written."""
        self.seal(bundle, "secret.bin")
        with pytest.raises(BundleError, match=r"not list onnx/in\.bin as a file of 'onnxruntime"):
            self.load(bundle)

    @pytest.mark.parametrize("data", ["../secret.bin", "../../secret.bin", "{root}/secret.bin"])
    def test_weights_of_elsewhere(self, bundle: Path, tmp_path: Path, data: str) -> None:
        (bundle / "onnx" / "in.bin").unlink()
        data = data.format(root=tmp_path)
        self.seal(bundle, "onnx/model.onnx", "secret.bin", data=data)
        with pytest.raises(
            BundleError, match=r"'onnxruntime fp32' cannot be loaded .*xternal data"
        ):
            self.load(bundle)

    def test_an_operator_that_onnx_does_not_have(self, bundle: Path) -> None:
        (bundle / "secret.bin").unlink()
        self.seal(bundle, "onnx/model.onnx", "onnx/in.bin", node="Evil")
        with pytest.raises(BundleError, match=r"cannot be loaded .*Evil.*build again"):
            self.load(bundle)

    def test_a_file_of_terabytes_is_not_hashed(self, bundle: Path) -> None:
        (bundle / "secret.bin").unlink()
        self.seal(bundle, "onnx/model.onnx", "onnx/in.bin")
        os.truncate(bundle / "onnx" / "in.bin", 2**43)
        with refused_cheaply(), pytest.raises(BundleError, match=r"in\.bin: holds 8 TiB"):
            self.load(bundle)
