"""Texts that engines are measured on."""

from pathlib import Path

import pytest

from serving.engine.engine import split_rows
from serving.optimize.eval_texts import TextsError, load_eval_rows
from tests.support.tiny_bundle import write_tiny_bundle
from trainers.models import bundle
from trainers.models.card import read_card

pytestmark = pytest.mark.slow


class TestTexts:
    @pytest.mark.parametrize("task", ["classification", "embedding"])
    def test_where_there_are_none_both_ways_out_are_named(
        self, task: str, tmp_path: Path, tiny_bert: Path
    ) -> None:
        place = write_tiny_bundle(tmp_path / "bundle", tiny_bert, task, source="gone.csv")
        card = read_card(place)
        with pytest.raises(TextsError, match=r"make the recipe's data readable here, or .*--texts"):
            load_eval_rows(card, bundle.load_encoder(place, card))

    def test_rows_of_the_recipe_are_those_held_out(
        self, tmp_path: Path, tiny_bert: Path, corpus: Path
    ) -> None:
        place = write_tiny_bundle(tmp_path / "bundle", tiny_bert, source=str(corpus))
        card = read_card(place)
        rows = load_eval_rows(card, bundle.load_encoder(place, card))
        assert rows.targets is not None and len(rows.targets) == len(rows.held_out) == 48
        assert len(rows.calibration) == 192
        held_out = {row.tobytes() for row in split_rows(rows.held_out)}
        assert not held_out & {row.tobytes() for row in split_rows(rows.calibration)}

    def test_a_file_is_lines_or_a_table(
        self, tmp_path: Path, tiny_bert: Path, corpus: Path, texts: Path
    ) -> None:
        place = write_tiny_bundle(tmp_path / "bundle", tiny_bert)
        card = read_card(place)
        encoder = bundle.load_encoder(place, card)
        for source in (corpus, texts):
            rows = load_eval_rows(card, encoder, source)
            assert rows.targets is None
            assert len(rows.held_out) > 2 * len(rows.calibration) > 50
            assert len(rows.held_out) + len(rows.calibration) == 240

    def test_a_file_that_says_nothing_is_refused(self, tmp_path: Path, tiny_bert: Path) -> None:
        place = write_tiny_bundle(tmp_path / "bundle", tiny_bert)
        (tmp_path / "empty.txt").write_text("\n\n")
        card = read_card(place)
        encoder = bundle.load_encoder(place, card)
        with pytest.raises(TextsError, match="too few texts"):
            load_eval_rows(card, encoder, tmp_path / "empty.txt")
        with pytest.raises(TextsError, match=r"nowhere\.txt"):
            load_eval_rows(card, encoder, tmp_path / "nowhere.txt")
