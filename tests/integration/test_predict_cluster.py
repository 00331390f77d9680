"""Rows spread over Ray: the same file as one process writes, and errors that say what is wrong."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import BerthaError
from serving.batch.predict import predict_files
from serving.engine.engine import Engine
from tests.support.tiny_bundle import write_linear_bundle, write_tiny_bundle

pytestmark = pytest.mark.ray

WORDS = ["a", "warm", "funny", "film", "dull", "long"]


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One Ray for all; each test joins it."""
    from cluster.local_ray import run_local_ray

    with run_local_ray(256 * 2**20):
        yield


def write_rows(folder: Path, files: int = 2, rows: int = 1300) -> Path:
    draw = np.random.default_rng(0)
    folder.mkdir()
    for number in range(files):
        with (folder / f"{number}.jsonl").open("w") as stream:
            for row in range(rows):
                words = draw.choice(WORDS, size=draw.integers(0, 12))
                stream.write(json.dumps({"id": [number, row], "text": " ".join(words)}) + "\n")
    return folder


@pytest.mark.parametrize("task", ["classification", "embedding"])
def test_the_file_is_that_of_one_process(
    task: str, local_ray: None, tiny_bert: Path, tmp_path: Path
) -> None:
    from serving.batch.cluster import predict_on_cluster

    bundle = write_tiny_bundle(tmp_path / "bundle", tiny_bert, task)
    rows, said = str(write_rows(tmp_path / "rows")), list[tuple[int, int]]()
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    alone = predict_files(Engine.load(bundle), [rows], str(here))
    spread = predict_on_cluster(
        bundle,
        [rows],
        str(there),
        address="local",
        on_progress=lambda done, total: said.append((done, total)),
    )
    assert (spread.rows, spread.empty, spread.cut) == (alone.rows, alone.empty, alone.cut)
    assert spread.empty > 0 and said[-1] == (2600, 2600)
    lines = zip(here.read_text().splitlines(), there.read_text().splitlines(), strict=True)
    for ours, theirs in lines:
        one, other = json.loads(ours), json.loads(theirs)
        assert one["id"] == other["id"] and one.get("label") == other.get("label")
        name = "embedding" if task == "embedding" else "probability_positive"
        assert other[name] == (None if one[name] is None else pytest.approx(one[name], abs=1e-5))


def test_what_a_worker_cannot_read_is_its_own_error(local_ray: None, tmp_path: Path) -> None:
    from serving.batch.cluster import predict_on_cluster

    bundle = write_linear_bundle(tmp_path / "bundle", [1.0, 2.0])
    (tmp_path / "rows.csv").write_text("text\n1 2\nno numbers\n")
    with pytest.raises(BerthaError, match="'no numbers' is not numbers with white space") as caught:
        predict_on_cluster(
            bundle, [str(tmp_path / "rows.csv")], str(tmp_path / "out.csv"), address="local"
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.csv").exists()
