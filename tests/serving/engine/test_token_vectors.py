"""The vectors of tokens are those that the pooled vector is made of."""

from pathlib import Path

import numpy as np
import pytest

from serving.engine.engine import Engine, split_rows
from serving.engine.token_vectors import BATCH_TOKENS, TokenEmbedder
from tests.support.tiny_bundle import write_tiny_bundle
from trainers.models.card import BundleError

TEXTS = ["a warm film", "dull", "good cast and a plot"]


@pytest.mark.parametrize("texts", [TEXTS, TEXTS * 200, []])
def test_their_mean_is_the_vector_of_the_text(
    tiny_bert: Path, tmp_path: Path, texts: list[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", tiny_bert, "embedding")
    engine = Engine.load(bundle)
    rows = split_rows(engine.encode(texts)[0]) if texts else []
    found = TokenEmbedder.from_bundle(bundle).embed(rows)
    assert len(texts) < 10 or sum(map(len, rows)) > BATCH_TOKENS, "in one batch alone"
    assert [len(vectors) for vectors in found] == [len(row) for row in rows]
    for vectors, pooled in zip(found, engine.predict(texts), strict=True):
        mean = vectors.mean(axis=0)
        np.testing.assert_allclose(mean / np.linalg.norm(mean), pooled, atol=1e-6)


def test_a_classifier_has_none(tiny_classifier: Path) -> None:
    with pytest.raises(BundleError, match="no vectors"):
        TokenEmbedder.from_bundle(tiny_classifier)
