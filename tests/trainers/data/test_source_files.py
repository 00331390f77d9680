"""Sources of several files: patterns, folders of tables or of texts, and their own splits."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainers.config.data_section import DataConfig
from trainers.config.recipe import Recipe, parse_recipe
from trainers.data.corpus import Corpus, corpus_identity, gather_corpus
from trainers.data.files import DataError
from trainers.data.rows.own_splits import resolve_held_out
from trainers.data.rows.source_files import find_source_files
from trainers.data.sources import open_source, read_source, source_fingerprint
from trainers.data.splits import SplitName

HEADER = "text,label\n"


def write_rows(path: Path, *names: str, rows: int = 4) -> Path:
    """Write CSV files whose texts begin with the name of their file."""
    for name in names:
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = (f"{file.stem} {row},{'pos' if row % 2 else 'neg'}\n" for row in range(rows))
        file.write_text(HEADER + "".join(lines))
    return path


def write_texts(path: Path, *names: str) -> Path:
    for name in names:
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"the text of {name}")
    return path


def recipe_of(source: str | Path, **data: Any) -> Recipe:
    settings = {"model": {"name": "bert"}, "data": {"source": str(source), **data}}
    return parse_recipe(settings)


def gather(source: str | Path, **data: Any) -> Corpus:
    return gather_corpus(recipe_of(source, **data), lambda text: text)


def first_words(corpus: Corpus) -> dict[str, set[str]]:
    return {part: {text.split()[0] for text in rows.texts} for part, rows in corpus.splits.items()}


def test_a_folder_is_read_by_the_splits_that_its_names_say(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "set", "train.csv", "val.csv", "test/part-1.csv")
    corpus = gather(source)
    found = first_words(corpus)
    assert found == {"train": {"train"}, "validation": {"val"}, "test": {"part-1"}}
    assert corpus.notes == (
        f"{source} has splits of its own: validation is the split of that name, "
        "test is the split of that name",
    )
    origin = corpus.splits["test"].locate_row(1)
    assert origin == f"{source} line 3"


def test_what_is_stated_wins_over_the_splits_of_a_source(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "set", "train.csv", "valid.csv", "test.csv", rows=60)
    other = write_rows(tmp_path, "other.csv") / "other.csv"
    corpus = gather(source, validation=0.2, test=str(other))
    found = first_words(corpus)
    assert found == {"train": {"train"}, "validation": {"train"}, "test": {"other"}}
    assert corpus.notes == (f"{source}: not read: test.csv, valid.csv",)
    held = gather(source, validation=0)
    assert not len(held.splits["validation"].texts) and first_words(held)["test"] == {"test"}
    assert held.notes == (
        f"{source} has splits of its own: validation is 0 of the texts to train on, test is the "
        "split of that name",
        f"{source}: not read: valid.csv",
    )


def test_a_source_with_one_split_of_its_own_gives_a_share_for_the_other(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "set", "train.csv", "test.csv", rows=100)
    corpus = gather(source)
    found = first_words(corpus)
    assert found == {"train": {"train"}, "validation": {"train"}, "test": {"test"}}
    assert "validation is 0.1 of the texts to train on, test is the split" in corpus.notes[0]


def test_files_without_a_split_are_left_out_beside_those_with_one_and_named(
    tmp_path: Path,
) -> None:
    source = write_rows(tmp_path / "set", "train.csv", "test.csv", "sample_submission.csv")
    found = find_source_files(str(source))
    assert found is not None and [*found.splits] == ["test", "train"]
    corpus = gather(source, validation=0)
    assert corpus.notes[-1] == f"{source}: not read: sample_submission.csv"


def test_without_names_of_splits_all_files_are_rows(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "set", "a.csv", "b.csv", "contest.csv", "test.csv", rows=2)
    rows = read_source(str(source), DataConfig(source=str(source)))
    assert rows.texts == ["a 0", "a 1", "b 0", "b 1", "contest 0", "contest 1", "test 0", "test 1"]
    assert resolve_held_out(DataConfig(source=str(source)))[0].test == 0.1
    assert (rows.numbers, rows.unit) == ([2, 3, 5, 6, 8, 9, 11, 12], "row")


def test_a_split_without_labels_says_how_to_do_without_it(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "set", "train.csv")
    (source / "test.csv").write_text("id,text\n1,what is it\n")
    with pytest.raises(DataError, match=r"no column 'label'.*own; data\.test=0\.1 holds out"):
        gather(source, validation=0)
    assert gather(source, validation=0, test=0.5).rows_read == 4


@pytest.mark.parametrize("pattern", ["set/*.csv", "set/?.csv", "set/[ab].csv", "**/?.csv"])
def test_a_pattern_is_all_files_that_match(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    write_rows(tmp_path / "set", "b.csv", "a.csv", ".hidden.csv", rows=1)
    monkeypatch.chdir(tmp_path)
    for source in (pattern, str(tmp_path / pattern)):
        assert read_source(source, DataConfig(source=source)).texts == ["a 0", "b 0"]
    assert recipe_of(pattern).with_absolute_paths().data.source == str(tmp_path / pattern)
    with pytest.raises(DataError, match=r"set/\*\.tsv: matches no table"):
        read_source("set/*.tsv", DataConfig(source="set/*.tsv"))


def test_a_name_that_looks_like_a_pattern_is_a_name_where_it_is_there(tmp_path: Path) -> None:
    write_rows(tmp_path, "what[1]?.csv", "what1x.csv", rows=1)
    source = str(tmp_path / "what[1]?.csv")
    assert read_source(source, DataConfig(source=source)).texts == ["what[1]? 0"]


def test_a_tree_of_texts_has_a_class_a_folder(tmp_path: Path) -> None:
    source = write_texts(tmp_path / "set", "pos/a.txt", "neg/b.TXT", "pos/more/c.txt", "read.txt")
    rows = read_source(str(source), DataConfig(source=str(source)))
    assert rows.labels == ["neg", "pos", "pos"]
    assert rows.texts == [
        "the text of neg/b.TXT",
        "the text of pos/a.txt",
        "the text of pos/more/c.txt",
    ]
    pattern = str(source / "*" / "*.txt")
    assert read_source(pattern, DataConfig(source=pattern)).labels == ["pos"]
    with pytest.raises(
        DataError, match=r"no column 'body'; it has 'label', 'text'; set data\.text"
    ):
        read_source(str(source), DataConfig(source=str(source), text="body"))


def test_a_tree_of_texts_has_splits(tmp_path: Path) -> None:
    names = ("train/pos/test_1.txt", "train/neg/2.txt", "test/pos/3.txt", "test/neg/4.txt")
    source = write_texts(tmp_path / "set", *names, "train/urls_pos.txt", "README.txt")
    corpus = gather(source, validation=0)
    assert corpus.names == ("neg", "pos")
    assert {part: len(rows.texts) for part, rows in corpus.splits.items()} == {
        "train": 2, "validation": 0, "test": 2,
    }  # fmt: skip


def test_a_text_in_another_encoding_is_named(tmp_path: Path) -> None:
    source = write_texts(tmp_path / "set", "pos/a.txt", "neg/b.txt")
    (source / "pos/a.txt").write_bytes("caf\u00e9".encode("cp1252"))
    data = DataConfig(source=str(source))
    with pytest.raises(DataError, match=r"pos/a\.txt: not UTF-8.*data\.encoding=windows-1252"):
        read_source(str(source), data)
    read = read_source(str(source), data.model_copy(update={"encoding": "cp1252"}))
    assert read.texts[1] == "caf\u00e9"


def test_what_is_left_out_is_named_by_its_file(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "set", "a.csv", "b.csv")
    (source / "b.csv").write_text(HEADER + "x,pos\nbroken\n,neg\n")
    stream = open_source(str(source), DataConfig(source=str(source)))
    assert len([*stream]) == 5
    assert {(each.reason, each.rows, each.first) for each in stream.skips.list_reasons()} == {
        ("no text", 1, "b.csv line 4"),
        ("wrong number of fields", 1, "b.csv line 3"),
    }


def test_a_label_that_is_unknown_is_named_by_its_file(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "set", "a.csv", "b.csv")
    (source / "b.csv").write_text(HEADER + "x,pos\ny,what\n")
    with pytest.raises(DataError, match=r"set b\.csv line 3: .*what"):
        gather(source, labels=["neg", "pos"], validation=0, test=0)


@pytest.mark.parametrize("kind", ["folder", "pattern", "texts"])
def test_a_fingerprint_covers_every_file_and_name(tmp_path: Path, kind: str) -> None:
    folder = write_rows(tmp_path / "set", "a.csv", "b.csv")
    source, last = str(folder), folder / "b.csv"
    if kind == "pattern":
        source = str(folder / "*.csv")
    if kind == "texts":
        source = str(write_texts(tmp_path / "texts", "pos/a.txt", "neg/b.txt"))
        last = Path(source, "pos/a.txt")
    data, seen = DataConfig(source=source), set[str]()
    for change in (
        lambda: None,
        lambda: last.write_text(last.read_text() + "more,pos\n"),
        lambda: last.rename(last.with_stem("c")),
        lambda: last.with_stem("d").write_text(HEADER),
    ):
        change()
        seen.add(source_fingerprint(source, data))
        assert source_fingerprint(source, data) in seen
    assert len(seen) == 4


def test_the_identity_of_a_corpus_follows_how_it_is_read(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "set", "train.csv", "test.csv")
    identities = [
        corpus_identity(recipe_of(folder, **data))
        for data in (
            *({}, {"test": 0.1}, {"test": 0}, {"delimiter": ";"}, {"quoting": "none"}),
            *({"encoding": "cp1252"}, {"header": False}),
        )
    ]
    assert len({json.dumps(each) for each in identities}) == len(identities)
    single = folder / "train.csv"
    stated = corpus_identity(recipe_of(single, validation=0.1, test=0.1))
    assert stated == corpus_identity(recipe_of(single)), "of one file nothing changes"


def test_a_directory_that_is_called_as_a_table_is_a_folder(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "out.csv", "part-0.csv", "part-1.csv", "_SUCCESS", rows=1)
    assert read_source(str(source), DataConfig(source=str(source))).texts == [
        "part-0 0",
        "part-1 0",
    ]


def test_a_link_that_leads_into_itself_ends(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "set", "a.csv", rows=1)
    (source / "again").symlink_to(source)
    assert "a 0" in read_source(str(source), DataConfig(source=str(source))).texts


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("a.xls", "Save the sheet as CSV"),
        ("a.ods", "Save the sheet as CSV"),
        ("a.feather", "Save the table as Parquet or CSV"),
        ("a.tar.gz", "Unpack it"),
        ("a.tgz", "Unpack it"),
        ("a.txt", "Give it a header"),
    ],
)
def test_what_is_no_table_says_how_to_make_one(tmp_path: Path, name: str, way_out: str) -> None:
    source = tmp_path / name
    source.write_text("x")
    with pytest.raises(DataError, match=rf"its name must end in \.csv, .*\.zip.*{way_out}"):
        read_source(str(source), DataConfig(source=str(source)))


def save_splits(folder: Path, **splits: list[int]) -> str:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    sets = {
        name: datasets.Dataset.from_dict(
            {"text": [f"{name} {row}" for row in range(len(labels))], "label": labels}, features
        )
        for name, labels in splits.items()
    }
    only = next(iter(sets.values()))
    (datasets.DatasetDict(sets) if len(sets) > 1 else only).save_to_disk(folder)
    return str(folder)


def test_a_saved_data_set_has_its_splits_and_names(tmp_path: Path) -> None:
    source = save_splits(tmp_path / "saved", train=[0, 1, 1, 0], validation=[1, 0], test=[0, 1])
    corpus = gather(source)
    assert corpus.names == ("neg", "pos")
    assert first_words(corpus) == {part: {part} for part in ("train", "validation", "test")}
    before = source_fingerprint(source, DataConfig(source=source), "test")
    save_splits(tmp_path / "other", train=[0, 1, 1, 0], validation=[1, 0], test=[0, 0])
    other = source_fingerprint(str(tmp_path / "other"), DataConfig(source="x"), "test")
    assert before != other and before.startswith("saved:")


def test_a_saved_data_set_may_be_one_split(tmp_path: Path) -> None:
    source = save_splits(tmp_path / "saved", rows=[0, 1] * 20)
    splits: tuple[SplitName, ...] = ("train", "test")
    for part in splits:
        assert len(read_source(source, DataConfig(source=source), part).texts) == 40
    assert resolve_held_out(DataConfig(source=source))[0].test == 0.1


def test_a_split_whose_labels_are_secret_is_not_used(tmp_path: Path) -> None:
    source = save_splits(tmp_path / "saved", train=[0, 1] * 40, validation=[1, 0], test=[-1, -1])
    data, notes = resolve_held_out(DataConfig(source=source))
    assert (data.validation, data.test) == (source, 0.1)
    assert "test is 0.1 of the texts" in notes[0]
    assert resolve_held_out(DataConfig(source=source), labelled=False)[0].test == source


def test_a_saved_data_set_names_no_file_outside_of_it(tmp_path: Path) -> None:
    source = save_splits(tmp_path / "saved", rows=[0, 1])
    state = Path(source, "state.json")
    index = json.loads(state.read_text())
    index["_data_files"][0]["filename"] = "../other.arrow"
    state.write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"names '\.\./other\.arrow', which is not in its folder"):
        read_source(source, DataConfig(source=source))


def test_a_folder_with_a_card_is_read_as_the_hub_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    source = tmp_path / "set"
    source.mkdir()
    for split in ("train", "test"):
        lines = (json.dumps({"text": f"{split} {n}", "label": n % 2}) + "\n" for n in range(40))
        (source / f"{split}.jsonl").write_text("".join(lines))
    (source / "README.md").write_text("---\nlicense: mit\n---\n")
    assert find_source_files(str(source)) is None
    found = first_words(gather(source))
    assert found == {"train": {"train"}, "validation": {"train"}, "test": {"test"}}
