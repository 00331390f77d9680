"""Tensors of the Open Inference Protocol: shapes by task, and which outputs are wanted how."""

from typing import Any

import numpy as np
import pytest

from serving.http.messages import HTTPError
from serving.interface import ModelInfo
from serving.protocols.oip_outputs import DEFAULT_TOP_K, compute_outputs, select_outputs
from serving.protocols.oip_tensors import OIPInferRequest, OutputTensor
from tests.support.fake_models import FakeModels, fake_model_info, fake_prediction
from tests.support.http_requests import run_coroutine

TEXTS = ["a film", "a plot"]
MODEL = fake_model_info("topics")
SCORES = np.float32([[0.25, 0.5, 0.25], [0.125, 0.75, 0.875]])
TENSORS = [
    OutputTensor("label", "BYTES", (2,), ["cast", "music"]),
    OutputTensor("probabilities", "FP32", (2, 3), SCORES.ravel()),
]


def request(*outputs: dict[str, Any], **parameters: Any) -> OIPInferRequest:
    inputs = [{"datatype": "BYTES", "shape": [1]}]
    body = {"inputs": inputs, "outputs": list(outputs) or None, "parameters": parameters}
    return OIPInferRequest.model_validate(body)


def compute(
    name: str, texts: list[str] = TEXTS, **parameters: Any
) -> tuple[ModelInfo, dict[str, OutputTensor]]:
    work = compute_outputs(request(**parameters), texts, FakeModels(), name)
    info, tensors = run_coroutine(work)  # type: ignore[arg-type,misc]
    return info, {tensor.name: tensor for tensor in tensors}


def classify(count: int, **parameters: Any) -> OutputTensor:
    wanted = {"name": "probabilities", "parameters": {"classification": count}}
    ((tensor, _),) = select_outputs(TENSORS, request(wanted, **parameters), MODEL)
    return tensor


def test_probabilities_are_in_the_order_of_the_labels_and_the_label_the_likeliest() -> None:
    info, found = compute("topics")
    scores = [fake_prediction(text, "multi-label", 3).scores for text in TEXTS]
    assert info.name == "topics"
    assert found["probabilities"].shape == (2, 3)
    np.testing.assert_array_equal(found["probabilities"].values, np.float32(scores).ravel())
    assert found["label"].values == [MODEL.labels[int(np.argmax(of_text))] for of_text in scores]


@pytest.mark.parametrize(("top_k", "width"), [(1, 1), (2, 2), (9, 3)])
def test_top_k_is_a_row_of_the_likeliest_and_no_wider_than_the_labels(
    top_k: int, width: int
) -> None:
    _, found = compute("topics", top_k=top_k)
    scores = np.float32([fake_prediction(text, "multi-label", 3).scores for text in TEXTS])
    best = np.argsort(-scores, axis=1)[:, :width]
    assert found["label"].shape == found["probabilities"].shape == (2, width)
    assert found["label"].values == [MODEL.labels[index] for index in best.ravel()]
    expected = np.take_along_axis(scores, best, axis=1).ravel()
    np.testing.assert_array_equal(found["probabilities"].values, expected)


def test_masks_are_rows_of_tokens() -> None:
    texts = ["[MASK] [MASK]", "a [MASK] [MASK]", "[MASK] b [MASK]"]
    _, found = compute("filler", texts)
    assert {tensor.shape for tensor in found.values()} == {(3, 2, DEFAULT_TOP_K)}
    assert found["token"].values.tolist() == [*range(DEFAULT_TOP_K)] * 6  # type: ignore[union-attr]
    _, found = compute("filler", texts, top_k=99)  # of a vocabulary of six
    assert found["token_str"].shape == (3, 2, 6)
    assert len(found["sequence"].values) == 3 * 2 * 6


def test_all_outputs_are_given_unless_some_are_named() -> None:
    assert select_outputs(TENSORS, request(), MODEL) == [(tensor, False) for tensor in TENSORS]
    found = select_outputs(TENSORS, request(binary_data_output=True), MODEL)
    assert [binary for _, binary in found] == [True, True]


@pytest.mark.parametrize("default", [False, True])
def test_an_output_is_binary_as_it_says_itself_or_as_the_request_does(default: bool) -> None:
    wanted = [
        {"name": "probabilities", "parameters": {"binary_data": not default}},
        {"name": "label"},
    ]
    found = select_outputs(TENSORS, request(*wanted, binary_data_output=default), MODEL)
    assert [(tensor.name, binary) for tensor, binary in found] == [
        ("probabilities", not default),
        ("label", default),
    ]


def test_a_classification_is_the_value_the_index_and_the_label_of_the_highest() -> None:
    assert classify(2).values == [
        "0.5:1:cast",
        "0.25:0:plot",
        "0.875:2:music",
        "0.75:1:cast",
    ]
    assert (classify(2).datatype, classify(2).shape) == ("BYTES", (2, 2))
    assert classify(9).shape == (2, 3)


def test_what_cannot_be_given_is_refused_with_what_can() -> None:
    with pytest.raises(HTTPError, match="'logits': this model has label, probabilities"):
        select_outputs(TENSORS, request({"name": "logits"}), MODEL)
    with pytest.raises(HTTPError, match="only probabilities can be classified, without top_k"):
        classify(1, top_k=2)
    with pytest.raises(HTTPError, match=r"the texts hold 1 to 3 masks.*send texts of as many"):
        compute("filler", ["[MASK]", "[MASK] [MASK] [MASK]"])
