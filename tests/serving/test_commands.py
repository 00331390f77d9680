"""The command line of serving, where it starts no Ray."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving import client
from serving.__main__ import main
from serving.registry.registry import Registry
from tests.support.fake_gpu import CARD, install_gpu
from tests.support.paths import ROOT
from tests.support.tiny_bundle import write_linear_bundle, write_tiny_bundle

TEXTS = ["a warm funny film", "dull"]


@pytest.mark.parametrize(
    ("task", "line"),
    [
        ("classification", r"(negative|positive) \d+\.\d%"),
        ("multi-label", r"(plot|cast|music) \d+\.\d%(, (plot|cast|music) \d+\.\d%)*"),
        ("regression", r"-?\d[\d.e+-]*"),
    ],
)
def test_predict_answers_a_line_a_text(
    task: str, line: str, tmp_path: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", tiny_bert, task)
    capsys.readouterr()
    assert main(["predict", str(bundle), *TEXTS]) == 0
    said = capsys.readouterr()
    for text, answer in zip(TEXTS, said.out.splitlines(), strict=True):
        assert re.fullmatch(rf'{line}  "{text}"', answer)
    assert said.err == ""


@pytest.mark.parametrize("command", [["predict", "BUNDLE", "a"], ["run", "BUNDLE"]])
def test_no_bundle_is_one_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "nowhere")
    assert main([missing if word == "BUNDLE" else word for word in command]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {missing}: no such directory")
    assert said.count("\n") == 1


def test_an_altered_bundle_is_refused(
    tmp_path: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", tiny_bert)
    weights = bundle / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert main(["run", str(bundle)]) == 2
    assert "model.safetensors is not the file that was written" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_served(
    tmp_path: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "reviews" / "bundle", tiny_bert)
    capsys.readouterr()
    assert main(["run", str(bundle), "--dry-run", "--port", "8123"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("reviews: classification (negative, positive), texts of up to 16 tokens")
    assert re.search(r"http://127.0.0.1:8123, on \d+ replicas? of one thread", said)


def test_grpc_without_its_packages_is_one_line(
    tmp_path: Path,
    tiny_bert: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = write_tiny_bundle(tmp_path / "reviews" / "bundle", tiny_bert)
    command = ["run", str(bundle), "--dry-run", "--grpc"]
    assert main(command) == 0
    monkeypatch.setitem(sys.modules, "grpc", None)
    capsys.readouterr()
    assert main(command) == 2
    error = 'error: --grpc: there is no module grpc; pip install "bertha-ray[grpc]"\n'
    assert capsys.readouterr().err == error


@pytest.mark.parametrize(
    ("words", "replicas", "device"),
    [
        ([], None, "cuda, "),
        (["--replicas", "2", "--device", "cuda"], 2, "cuda, a GPU each"),
        (["--replicas", "4"], 4, "cuda, 0.5 of a GPU each"),
        (["--replicas", "3", "--gpus-per-replica", "0.25"], 3, "cuda, 0.25 of a GPU each"),
        (["--device", "cpu", "--replicas", "1"], 1, ""),
    ],
)
def test_a_machine_with_gpus_serves_on_them_and_says_so(
    words: list[str],
    replicas: int | None,
    device: str,
    tiny_classifier: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_gpu(monkeypatch)  # two of them
    capsys.readouterr()
    assert main(["run", str(tiny_classifier), "--dry-run", *words]) == 0
    said = capsys.readouterr().out
    number = re.search(r"on (\d+) replicas? of one thread", said)
    assert number and int(number[1]) in ([replicas] if replicas else range(1, 9))
    assert (f"\ndevice    {device}" in said) == bool(device) == (f": {CARD}\n" in said)
    assert ("nobody has measured there: bertha build BUNDLE --device cuda" in said) == bool(device)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cuda"], "device = cuda: there is no GPU here"),
        (["--gpus-per-replica", "0.5"], "gpus_per_replica = 0.5: there is no GPU"),
        (["--device", "neuron"], "device = neuron: serving has no engine for it yet"),
        (["--device", "cpu", "--gpus-per-replica", "0.5"], "such a replica holds no GPU"),
    ],
)
def test_a_device_that_is_not_here_is_refused(
    words: list[str], message: str, tiny_classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(tiny_classifier), "--dry-run", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_long_text_is_shortened_in_its_line() -> None:
    labels = [{"label": "positive", "score": 0.5}, {"label": "negative", "score": 0.5}]
    line = client.format_labels(labels, "classification", "film " * 100)
    assert line.startswith('positive 50.0%  "film film')
    assert line.endswith(' …"') and len(line) < 100


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("127.0.0.1", 8000, "http://127.0.0.1:8000"),
        ("0.0.0.0", 80, "http://127.0.0.1:80"),
        ("::", 80, "http://[::1]:80"),
    ],
)
def test_a_service_is_asked_where_it_can_be_reached(host: str, port: int, expected: str) -> None:
    assert client.service_url(host, port) == expected


def test_a_service_that_is_not_there_is_one_line() -> None:
    with pytest.raises(client.ServiceError, match="does not answer"):
        client.predict_text("http://127.0.0.1:9", "a film")


def said_by(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command prints, where it succeeds."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_versions_are_deployed_tried_promoted_and_rolled_back(
    tmp_path: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "reviews" / "bundle", tiny_bert)
    place = ("--registry", tmp_path / "registry")
    assert "no models" in said_by(capsys, "list", *place)
    first = said_by(capsys, "deploy", bundle, *place)
    assert first == "reviews  live 1  versions 1@live\n"
    trial = said_by(capsys, "deploy", bundle, *place, "--canary", "0.1", "--rule", "min_requests=9")
    assert trial == "reviews  live 1  versions 1@live 2  canary 2 on 10.0%\n"
    assert said_by(capsys, "promote", "reviews", *place).startswith("reviews  live 2")
    assert said_by(capsys, "rollback", "reviews", *place).startswith("reviews  live 1")
    assert said_by(capsys, "deploy", "reviews:2", *place).startswith("reviews  live 2")
    assert said_by(capsys, "list", *place).endswith("(default)\n")
    past = said_by(capsys, "history", "reviews", *place).splitlines()
    assert len(past) == 7 and "register 1" in past[0] and "roll back" in past[5]
    assert main(["run", "reviews", "--registry", str(place[1]), "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["deploy", "sentimnet"], "sentimnet: no such model"),
        (["deploy", "Nice Name"], "names no model; write NAME"),
        (["promote", "reviews"], "reviews: no such model"),
    ],
)
def test_what_is_not_there_is_one_line_and_the_way_out(
    command: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--registry", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and said.count("\n") == 1


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A registry of `sums`, version 2 without its card and version 3 with other weights, and of
    `lost`, whose states are empty files."""
    bundle, place = write_linear_bundle(tmp_path / "bundle", [1.0, 1.0]), tmp_path / "registry"
    registry = Registry.open(str(place))
    for name, num_versions in (("sums", 4), ("lost", 1)):
        for _ in range(num_versions):
            registry.register(bundle, name)
        registry.deploy(name, "1")
    registry.make_default("sums")
    (place / "sums" / "versions" / "2" / "bundle.json").unlink()
    (place / "sums" / "versions" / "3" / "model.safetensors").write_bytes(b"bits")
    for state in (place / "_states" / "lost").iterdir():
        state.write_bytes(b"")
    return place


def test_damage_is_listed_with_its_reason(
    damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    lines = said_by(capsys, "list", "--registry", damaged).splitlines()
    assert lines[0].startswith(f"  lost: {damaged}/_states/lost/00000002.json is damaged: it is no")
    assert lines[1] == "sums  live 1  versions 1@live 2! 3 4  (default)"
    assert lines[2] == (
        f"  sums:2 is damaged: {damaged}/sums/versions/2 is not the bundle that was registered: "
        "bundle.json is missing; put its files back, or register the bundle again and deploy that"
    )
    assert len(lines) == 3


def test_damage_of_any_file_is_found_and_fails_the_command(
    damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["list", "--verify", "--registry", str(damaged)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "sums  live 1  versions 1@live 2! 3! 4  (default)"
    assert lines[3].startswith(f"  sums:3 is damaged: {damaged}/sums/versions/3 is not the bundle")
    assert "model.safetensors" in lines[3]
    assert lines[-1] == f"{damaged}: 4 versions verified, 3 damages"
    for name in ("sums/versions/2", "sums/versions/3", "_states/lost"):
        shutil.rmtree(damaged / name)
    Registry.open(str(damaged)).remove_version("sums", "2")
    Registry.open(str(damaged)).remove_version("sums", "3")
    said = said_by(capsys, "list", "--verify", "--registry", damaged)
    assert said.endswith(f"{damaged}: 2 versions verified, 0 damages\n")


def test_a_damaged_version_is_not_deployed(
    damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for what in ("sums:2", "lost"):
        capsys.readouterr()
        assert main(["deploy", what, "--registry", str(damaged)]) == 2
        (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("error: "))
        assert "is not the bundle that was registered" in line or "is damaged: it is no" in line
    assert Registry.open(str(damaged)).read_state("sums").live == "1"


def test_a_name_without_versions_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry.open(str(tmp_path / "registry"))
    registry.register(write_linear_bundle(tmp_path / "bundle", [1.0]), "sums")
    registry.remove_version("sums", "1")
    capsys.readouterr()
    assert main(["deploy", "sums", "--registry", registry.address]) == 2
    assert capsys.readouterr().err.startswith("error: sums: no version is live; deploy one of")


def test_a_history_writes_no_control_characters_to_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry.open(str(tmp_path / "registry"))
    registry.register(write_linear_bundle(tmp_path / "bundle", [1.0]), "sums")
    registry.deploy("sums", "1", why="\x1b]0;owned\x07 caf\u00e9\nline")
    said = said_by(capsys, "history", "sums", "--registry", registry.address)
    assert said.endswith("deploy 1: \\x1b]0;owned\\x07 caf\u00e9\\nline\n")


LIMITED = """
import resource, sys
from serving.__main__ import main

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.multiprocess
def test_a_registry_that_is_full_is_one_line_and_holds_no_half_version(tmp_path: Path) -> None:
    bundle = write_linear_bundle(tmp_path / "bundle", [1.0] * 20_000)
    place = tmp_path / "registry"
    Registry.open(str(place)).register(bundle, "sums")
    words = ["deploy", str(bundle), "--as", "sums", "--registry", str(place)]
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, "50000", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(f"error: {place}/sums/versions/2/model.safetensors: cannot be")
    assert "File too large; a store needs" in run.stderr and run.stderr.count("\n") == 1
    assert not (place / "sums" / "versions" / "2").exists()
    state = Registry.open(str(place)).read_state("sums")
    assert (state.live, list(state.versions)) == (None, ["1"])
    assert main(words) == 0
    assert Registry.open(str(place)).read_state("sums").live == "3"


def test_a_key_is_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.jsonl"
    secret = said_by(capsys, "key", "reader", "--file", file, "--rate", "10").strip()
    assert secret.startswith("bertha_") and secret not in file.read_text()
    assert main(["key", "reader", "--file", str(file)]) == 2
    assert "there is a key 'reader' already" in capsys.readouterr().err


ROWS = "id,text\n1,a warm funny film\n2,dull\n"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file of two texts."""
    (tmp_path / "rows.csv").write_text(ROWS)
    return tmp_path / "rows.csv"


def test_a_file_is_answered_into_a_file(
    rows: Path, tiny_classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers.csv"
    assert said_by(capsys, "predict", tiny_classifier, rows, "--out", out) == ""
    lines = out.read_text().splitlines()
    assert lines[0] == "id,text,label,probability_negative,probability_positive"
    assert [line.split(",")[:2] for line in lines[1:]] == [["1", TEXTS[0]], ["2", TEXTS[1]]]
    assert main(["predict", str(tiny_classifier), str(rows), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said == f"error: --out {out}: exists; add --overwrite, or name another file\n"


def test_a_file_without_an_out_is_printed_as_csv(
    rows: Path, tiny_classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = said_by(capsys, "predict", tiny_classifier, rows)
    assert said.splitlines()[0].startswith("id,text,label,")
    assert len(said.splitlines()) == 3


def test_how_a_file_is_written_is_an_option(
    rows: Path, tiny_classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows.write_bytes(ROWS.replace(",", ";").replace("dull", "d\u00fcll").encode("cp1252"))
    assert main(["predict", str(tiny_classifier), str(rows), "--encoding", "cp1252"]) == 2
    assert "set --delimiter=';'" in capsys.readouterr().err
    options = ("--delimiter=;", "--encoding", "cp1252")
    said = said_by(capsys, "predict", tiny_classifier, rows, *options)
    assert said.splitlines()[2].startswith("2,d\u00fcll,")
    options += ("--header=false", "--text", "2")
    assert len(said_by(capsys, "predict", tiny_classifier, rows, *options).splitlines()) == 4
    for wrong in (["--delimiter", ";;"], ["--encoding", "base64"]):
        assert main(["predict", str(tiny_classifier), str(rows), *wrong]) == 2
        assert f"error: {wrong[0]} {wrong[1]!r}: " in capsys.readouterr().err


def test_the_name_of_a_file_can_be_a_text(
    rows: Path,
    tiny_classifier: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(rows.parent)
    said = said_by(capsys, "predict", tiny_classifier, rows.name, "--as-text")
    assert said.endswith(f'"{rows.name}"\n')


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["nowhere.csv"], "nowhere.csv: no such file; .* add --as-text"),
        (["A film.", "--out", "out.csv"], "--out goes with a file, and 'A film.' is a text"),
    ],
)
def test_a_text_that_seems_to_be_a_file_is_one_line(
    words: list[str], error: str, tiny_classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(tiny_classifier), *words]) == 2
    said = capsys.readouterr().err
    assert re.match(f"error: {error}", said) and said.count("\n") == 1


def test_a_dry_run_says_what_would_be_answered(
    rows: Path, tiny_classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers.csv"
    said = said_by(capsys, "predict", tiny_classifier, rows, "--out", out, "--dry-run")
    assert said.startswith(f"would answer 2 rows of {rows} into {out}, with label, probability_")
    assert not out.exists()


def test_the_thresholds_of_the_card_decide_what_is_printed(
    tmp_path: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", tiny_bert)
    card = json.loads((bundle / "bundle.json").read_text())
    for share, label in ((0.001, "positive"), (0.999, "negative")):
        changed = json.dumps(card | {"thresholds": {"positive": share}})
        (bundle / "bundle.json").write_text(changed)
        assert said_by(capsys, "predict", bundle, "film").startswith(f"{label} ")


def test_no_label_that_reaches_its_threshold_is_said() -> None:
    labels = [{"label": "plot", "score": 0.25}, {"label": "cast", "score": 0.125}]
    line = client.format_labels(labels, "multi-label", "film", chosen=())
    assert line == 'none (likeliest: plot 25.0%)  "film"'


def test_labelled_rows_are_evaluated(
    tiny_classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, out = tmp_path / "rows.csv", tmp_path / "errors.csv"
    rows.write_text("text,label\nfilm,positive\ndull,positive\nwarm,\n")
    said = said_by(capsys, "evaluate", tiny_classifier, rows, "--out", out)
    assert said.splitlines()[:2] == [
        "1 row left out: no label (first: row 3)",
        "2 rows, each figure with its 95% interval:",
    ]
    assert re.search(
        r"accuracy +\d\.\d{4}  \d\.\d{4} to \d\.\d{4}   0\.8750 on the rows held", said
    )
    assert re.search(r"positive +\d\.\d{4} +\d\.\d{4} +\d\.\d{4} +2", said)
    assert out.read_text().startswith("text,label,answer,confidence\n")
    found = json.loads(said_by(capsys, "evaluate", tiny_classifier, rows, "--json"))
    assert found["rows"] == 2 and {*found["figures"]["f1"]} == {"value", "low", "high"}


def test_a_run_is_taken_where_a_bundle_is(
    rows: Path, tmp_path: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "reviews"
    write_tiny_bundle(run / "bundle", tiny_bert)
    (run / "recipe.yaml").write_text("task: classification\n")
    assert "id,text,label" in said_by(capsys, "predict", run, rows)
    assert said_by(capsys, "run", run, "--dry-run").startswith("reviews: classification")
    place = ("--registry", tmp_path / "registry")
    assert said_by(capsys, "register", run, *place) == "reviews:1\n"
    assert said_by(capsys, "deploy", run, *place).startswith("reviews  live 2")
    said = said_by(capsys, "export", run, tmp_path / "out")
    assert said == f"{tmp_path}/out: see {tmp_path}/out/README.md for its use\n"
    assert "bundle.json" in said_by(capsys, "push", run, "acme/reviews", "--dry-run")


def test_a_hub_that_is_not_reached_is_one_line(
    tiny_classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(tiny_classifier), "acme/reviews"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: acme/reviews: the hub cannot be reached")
    assert said.count("\n") == 1
