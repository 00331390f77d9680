"""Long texts in windows, from a bundle to every answer; and answers that say what was cut."""

import csv
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from serving.batch.predict import predict_files
from serving.engine.engine import Engine, split_rows
from serving.http.messages import TRUNCATED_HEADER, HTTPError
from serving.inference.attribution import TOLERANCE, Attributor
from serving.inference.model_server import ModelServer
from tests.support.model_servers import make_registry, run_scenario
from tests.support.tiny_bundle import write_tiny_bundle
from trainers.config.windows import Pool, WindowsConfig
from trainers.models.build import load_model, predict_logits
from trainers.models.card import CARD_FILE, read_card

WORDS = ["good", "bad", "film", "plot", "cast", "scene", "actor", "story", "warm", "cold"]
LONG = " ".join(WORDS[n * n % 10] for n in range(40))  # four windows of 16 at a stride of 9
ENDLESS = " ".join(WORDS[n % 7] for n in range(80))
TEXTS = ["a warm film", LONG, ENDLESS, "dull"]


def make_bundle(
    directory: Path, bert: Path, pool: Pool = "mean", task: str = "classification"
) -> Path:
    windows = WindowsConfig(stride=9, pool=pool, max_windows=5)
    return write_tiny_bundle(directory / "bundle", bert, task, windows=windows)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    return make_bundle(tmp_path_factory.mktemp("windows"), tiny_bert)


@pytest.fixture(scope="module")
def cutting(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("cutting") / "bundle", tiny_bert)


@pytest.mark.parametrize("task", ["classification", "multi-label", "regression"])
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_serving_answers_what_evaluation_measured(
    tmp_path: Path, tiny_bert: Path, pool: Pool, task: str
) -> None:
    directory = make_bundle(tmp_path, tiny_bert, pool, task)
    engine = Engine.load(directory)
    samples, truncated = engine.encode(TEXTS)
    assert truncated.tolist() == [False, False, True, False]
    expected = predict_logits(load_model(directory), samples, 64, pool=pool)
    answers = engine.predict(TEXTS)
    np.testing.assert_allclose([each.logits for each in answers], expected, atol=2e-5)
    by_hand = [
        np.array([each.logits for each in engine.infer_rows(split_rows(engine.encode([text])[0]))])
        for text in TEXTS
    ]
    assert [len(each) for each in by_hand] == [1, 4, 5, 1]
    pooled = [each.mean(0) if pool == "mean" else each.max(0) for each in by_hand]
    np.testing.assert_allclose(expected, pooled, atol=2e-5)
    if task == "classification":
        assert sum(answers[1].scores) == pytest.approx(1.0, abs=1e-5)


def test_a_window_more_changes_the_answer(bundle: Path, cutting: Path) -> None:
    long, short = Engine.load(bundle).predict([LONG]), Engine.load(cutting).predict([LONG])
    assert abs(long[0].logits[0] - short[0].logits[0]) > 1e-4
    same = Engine.load(bundle).predict(["a film"]), Engine.load(cutting).predict(["a film"])
    np.testing.assert_allclose(same[0][0].logits, same[1][0].logits, atol=1e-5)


def test_every_protocol_answers_a_long_text_as_the_engine_does(
    bundle: Path, tmp_path: Path
) -> None:
    expected = [each.scores for each in Engine.load(bundle).predict(TEXTS)]

    async def scenario(client: httpx.AsyncClient, server: ModelServer) -> None:
        result = await server.predict(None, TEXTS)
        np.testing.assert_allclose([each.scores for each in result.values], expected, atol=1e-5)
        assert list(result.truncated) == [2]
        assert result.num_tokens == [len(row) for row in result.rows]
        assert server.get_info(None).max_length == 16 + 4 * 9
        answer = await client.post("/predict", json={"inputs": TEXTS})
        assert len(answer.json()) == len(TEXTS)
        assert answer.headers[TRUNCATED_HEADER] == "2"
        for path, body in (
            ("/predict", {"inputs": LONG}),
            ("/classify", {"input": LONG}),
            ("/predictions/tiny", {"data": LONG}),
        ):
            answer = await client.post(path, json=body)
            assert answer.status_code == 200 and TRUNCATED_HEADER not in answer.headers
        refused = await client.post("/predict", json={"inputs": ENDLESS, "truncate": False})
        assert refused.status_code == 413 and "longer than 52 tokens" in refused.text
        assert TRUNCATED_HEADER not in refused.headers
        fits = await client.post("/predict", json={"inputs": LONG, "truncate": False})
        assert fits.status_code == 200
        statistics = server.get_statistics(None)
        assert statistics.num_failed == 0

    run_scenario(make_registry(tmp_path, bundle), scenario)


def test_an_answer_says_which_texts_were_cut(cutting: Path, tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient, server: ModelServer) -> None:
        for path, body in (
            ("/predict", {"inputs": TEXTS}),
            ("/", {"inputs": TEXTS}),
            ("/classify", {"input": TEXTS}),
            ("/invocations", {"inputs": TEXTS}),
            ("/v1/models/tiny:predict", {"instances": TEXTS}),
        ):
            answer = await client.post(path, json=body)
            assert answer.status_code == 200, answer.text
            assert answer.headers[TRUNCATED_HEADER] == "1,2", path
            answer = await client.post(path, json={key: [TEXTS[0]] for key in body})
            assert TRUNCATED_HEADER not in answer.headers, "it is of this request alone"
        tensor = {"name": "text", "datatype": "BYTES", "shape": [4], "data": TEXTS}
        answer = await client.post("/v2/models/tiny/infer", json={"inputs": [tensor]})
        assert answer.json()["parameters"] == {"truncated": [1, 2]}
        with pytest.raises(HTTPError, match=r"2 of 4 texts longer than 16 tokens"):
            await server.predict(None, TEXTS, truncate=False)

    run_scenario(make_registry(tmp_path, cutting), scenario)


def test_files_are_answered_in_windows_and_name_the_rows_that_were_cut(
    bundle: Path, tmp_path: Path
) -> None:
    texts = [*TEXTS, "", LONG, ENDLESS]
    source, out = tmp_path / "rows.csv", tmp_path / "answers.csv"
    with source.open("w", newline="") as stream:
        csv.writer(stream).writerows([["text"], *([each] for each in texts)])
    engine = Engine.load(bundle)
    summary = predict_files(engine, [str(source)], str(out))
    with out.open(newline="") as stream:
        found = [row["probability_positive"] for row in csv.DictReader(stream)]
    rows = [place for place, text in enumerate(texts) if text]
    expected = [each.scores[1] for each in engine.predict([texts[row] for row in rows])]
    filled = [float(each) for each in found if each]
    np.testing.assert_allclose(filled, expected, atol=1e-5)
    assert (summary.cut, summary.cut_rows) == (2, (3, len(found)))
    assert summary.describe(52)[-1].endswith(f"was not read (rows 3, {len(found)})")


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_an_explanation_is_of_the_pooled_answer(
    tmp_path: Path, tiny_bert: Path, pool: Pool
) -> None:
    directory = make_bundle(tmp_path, tiny_bert, pool)
    explainer, engine = Attributor.from_bundle(directory), Engine.load(directory)
    found = explainer.explain(LONG, "positive")
    np.testing.assert_allclose(found.prediction.logits, engine.predict([LONG])[0].logits, atol=1e-4)
    windows = explainer._encode_text(LONG)
    assert len(windows) == 4
    changes, logits = [], []
    for tokens in windows:
        masks = torch.where(tokens.special, tokens.ids, 4)
        with torch.inference_mode():
            ends = explainer._model(torch.cat([masks, tokens.ids]))[:, 1]
        changes.append(float(ends[1] - ends[0]))
        logits.append(float(ends[1]))
    expected = np.mean(changes) if pool == "mean" else changes[int(np.argmax(logits))]
    total = sum(each.weight for each in found.attributions)
    assert abs(total - expected) <= TOLERANCE * max(1.0, abs(expected)) + 1e-4
    spans = [LONG[each.start : each.end] for each in found.attributions]
    assert len(spans) == 40 if pool == "mean" else len(spans) < 15
    assert set(spans) <= set(WORDS), "each word once, where it stands"


def test_a_bundle_of_before_windows_still_loads(cutting: Path, tmp_path: Path) -> None:
    import json
    import shutil

    old = shutil.copytree(cutting, tmp_path / "old")
    settings = json.loads((old / CARD_FILE).read_text())
    del settings["windows"], settings["recipe"]["data"]["windows"]
    (old / CARD_FILE).write_text(json.dumps(settings))
    assert read_card(old).windows is None and read_card(old).max_tokens == 16
    assert Engine.load(old).predict(["a film"]) == Engine.load(cutting).predict(["a film"])
