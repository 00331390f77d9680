"""Bertha: BERT on Ray, from text to a served model. The `bertha` command and the Python API.

    import bertha

    outcome = bertha.train("csv.yaml", ["data.source=reviews.csv", "data.text=body",
                                        "data.label=stars"], run="runs/mine")
    bertha.predict("runs/mine", ["A wonderful film."])            # [{"5": 0.98, "1": 0.02}]
    bertha.predict_file("runs/mine", "rows.csv", "answers.csv")
    bertha.evaluate("runs/mine", "labelled.csv").figures["f1"]    # its value, and its interval
    with bertha.serve("runs/mine", port=8000) as address:
        ...

Importing this module imports neither torch nor Ray; each function imports what it needs. A mistake
that the caller can fix is a `BerthaError`, whose message names the setting, its value and the way
out.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster.errors import BerthaError

if TYPE_CHECKING:
    from cluster.planning.plan import HardwarePlan, Objective
    from serving.batch.evaluate import Evaluation
    from serving.batch.predict import Summary
    from serving.engine.engine import Engine
    from serving.publish.export import ExportFormat
    from trainers.runtime.fit import Outcome

__all__ = [
    "BerthaError",
    "evaluate",
    "export",
    "load",
    "main",
    "plan",
    "predict",
    "predict_file",
    "push",
    "serve",
    "train",
    "tune",
]


def train(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    cluster: str | Path = "local.yaml",
    run: str | Path | None = None,
    resume: bool = False,
) -> Outcome:
    """Train a recipe and return its outcome.

    recipe: a file, or the name of a shipped recipe. overrides: settings as `key=value`. cluster: a
    Ray cluster file; the default is this machine. run: a directory or s3:// URL, by default a new
    one below the cluster's storage. resume: continue a run that was interrupted.

    Returns an `Outcome`: `result` holds the contents of result.json (metrics of the held-out rows
    under "test", how good they are under "verdict"), `seconds` the duration of this call. The
    bundle is at RUN/bundle. Raises BerthaError.
    """
    from cluster.spec import load_cluster_spec
    from trainers.config.recipe import load_recipe
    from trainers.runtime.fit import fit

    where = load_cluster_spec(str(cluster))
    return fit(load_recipe(str(recipe), overrides), where, run or _new_run(where, recipe), resume)


def tune(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    trials: int = 16,
    cluster: str | Path = "local.yaml",
    run: str | Path | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Search the settings of a recipe and return the contents of the search's result.json.

    settings: further fields of `tuning.store.config.SearchConfig`, as `budget="2h"`,
    `sampler="tpe"`, `seeds=5`, `register_as="sentiment"`. The winner's bundle is at RUN/bundle, the
    report at RUN/report.html. Raises BerthaError.
    """
    from cluster.spec import load_cluster_spec
    from tuning.store.config import build_search_config
    from tuning.study import run_new_search

    where = {"cluster": str(cluster), "trials": trials}
    config = build_search_config(str(recipe), overrides, **where, **settings)
    named = run or _new_run(load_cluster_spec(config.cluster), recipe, "tuning-")
    return run_new_search(config, str(named))


def plan(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    objective: Objective = "money",
    deadline_seconds: float | None = None,
    budget_usd: float | None = None,
    power_limit_watts: float | None = None,
    region: str | None = None,
) -> HardwarePlan:
    """Compare every machine of the catalog for a recipe; needs no torch, no Ray and no network.

    objective: "time", "money" or "energy". Returns a `HardwarePlan`: `best`, an offer a machine,
    best first, each with machine, nodes, layout, seconds, price and kWh; and `rejected`, each with
    its reason. Raises BerthaError, also where nothing meets the limits.
    """
    from cluster.hardware.catalog import load_catalog
    from cluster.planning.plan import Constraints, plan_hardware
    from trainers.planning.workload import load_workload

    limits = Constraints(objective, deadline_seconds, budget_usd, power_limit_watts, region)
    return plan_hardware(load_workload(str(recipe), overrides), load_catalog(), limits)


def load(bundle: str | Path, engine: str | None = None) -> Engine:
    """Load a bundle into this process: a directory, a run's directory or an s3:// URL.

    engine: as "torch fp32" or "onnxruntime int8"; by default the one that `bertha build` chose.
    Every file is verified by its checksum. Returns an `Engine`, whose `predict(texts)` gives one
    value a text: a `Prediction` (scores [num_labels] by `engine.card.labels`), a vector
    float32 [width] of an embedder, or the fillings of a masked language model. Raises BerthaError.
    """
    from serving.engine.engine import Engine
    from serving.fetch import local_copy

    with local_copy(str(bundle)) as directory:
        return Engine.load(directory, engine)


def predict(bundle: str | Path | Engine, texts: Sequence[str]) -> list[dict[str, float]]:
    """Return the scores of each text by label, highest first.

    bundle: what `load` takes, or what it returned. A regression has the one key "score"; a
    multi-label model gives a probability for each label by itself. Raises BerthaError, also for
    embedders and masked language models, which `load(bundle).predict(texts)` answers.
    """
    from serving.interface import Prediction

    engine = load(bundle) if isinstance(bundle, str | Path) else bundle
    labels = engine.card.labels or ("score",)
    answers = []
    for answer in engine.predict(texts):
        if not isinstance(answer, Prediction):
            raise BerthaError(f"a model for {engine.card.task} has no labels; use load().predict")
        scores = zip(labels, answer.scores, strict=True)
        answers.append(dict(sorted(scores, key=lambda pair: -pair[1])))
    return answers


def predict_file(
    bundle: str | Path | Engine,
    path: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    text: str | Sequence[str] = (),
    prefix: str = "",
    overwrite: bool = False,
) -> Summary:
    """Predict the rows of files and write them, in their order, with the answers behind.

    bundle: what `load` takes, or what it returned. path: files of tables (docs/data.md), their
    directories, local or s3://; any size, in flat memory. out: one file, in the format of its
    suffix, which appears when it is whole. New columns: `label` and `probability_LABEL` of each
    label, of a regression `score`, of an embedder `embedding`; prefix goes before their names.
    text: the columns that make a text; default: those of the bundle's recipe. overwrite: replace an
    older file.

    Returns a `Summary`: how many `rows`, and of them `empty` (no text, no answer) and `cut`. Raises
    BerthaError.
    """
    from serving.batch.predict import predict_files

    return predict_files(
        _load_on_all_cores(bundle),
        _list_names(path),
        str(out),
        text=_list_names(text),
        prefix=prefix,
        overwrite=overwrite,
    )


def evaluate(
    bundle: str | Path | Engine,
    path: str | Path | Sequence[str | Path],
    *,
    text: str | Sequence[str] = (),
    label: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Evaluation:
    """Measure a bundle on labelled rows.

    bundle, path, text: as of `predict_file`. label: the column of the truth; default: that of the
    bundle's recipe. out: a file for the rows that are answered wrongly, the worst first.

    Returns an `Evaluation`: `figures` by name, each with `value`, `low` and `high` (95%), the
    figures of each label in `per_class`, `confusion`, and what was left out in `skipped`. Raises
    BerthaError, as for labels that the bundle does not know.
    """
    from serving.batch.evaluate import evaluate_files

    return evaluate_files(
        _load_on_all_cores(bundle),
        _list_names(path),
        text=_list_names(text),
        label=label,
        out=None if out is None else str(out),
        overwrite=overwrite,
    )


def export(
    bundle: str | Path, directory: str | Path, format: ExportFormat = "transformers"
) -> None:
    """Write a bundle to a new directory for other libraries, with a README.md that says its use.

    format: "transformers" (`from_pretrained` and `pipeline` load it), "onnx" or "openvino" (a graph
    of input_ids and attention_mask, compared with torch before it is kept). Raises BerthaError.
    """
    from serving.fetch import local_copy
    from serving.publish.export import export_bundle

    with local_copy(str(bundle)) as source:
        export_bundle(source, Path(directory), format)


def push(bundle: str | Path, name: str, *, private: bool = False) -> str:
    """Publish a bundle as the model `name` ("user/name") of the Hugging Face hub; return its URL.

    The token is that of `hf auth login`, or HF_TOKEN. Held-out example texts and the directories in
    its recipe stay here. Raises BerthaError, as where the hub cannot be reached.
    """
    from serving.fetch import local_copy
    from serving.publish.push import push_bundle

    with local_copy(str(bundle)) as source:
        return push_bundle(source, name, private=private)


def _load_on_all_cores(bundle: str | Path | Engine) -> Engine:
    from serving.batch.predict import load_on_all_cores
    from serving.fetch import local_copy

    if not isinstance(bundle, str | Path):
        return bundle
    with local_copy(str(bundle)) as directory:
        return load_on_all_cores(directory)


def _list_names(given: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    """Return one name or several as texts."""
    return (str(given),) if isinstance(given, str | Path) else tuple(map(str, given))


@contextlib.contextmanager
def serve(
    bundle: str | Path, *, port: int = 8000, host: str = "127.0.0.1", replicas: int = 1
) -> Iterator[str]:
    """Serve a bundle on this machine within a `with` block; yields the server's URL.

    Starts a Ray of its own and returns when a replica answers; on leaving the block, requests in
    flight are answered first. Raises BerthaError, as where the port is taken.
    """
    from serving.__main__ import serve_bundle

    with serve_bundle(str(bundle), host=host, port=port, replicas=replicas) as url:
        yield url


def _new_run(cluster: Any, recipe: str | Path, prefix: str = "") -> str:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return str(cluster.run_path(f"{prefix}{Path(recipe).stem}-{stamp}"))


class Command(NamedTuple):
    """A word of the command line: the package whose `main` runs it, and the words put before."""

    package: str
    words: tuple[str, ...]
    help: str


def _commands(package: str, **helps: str) -> dict[str, Command]:
    return {name: Command(package, (name,), text) for name, text in helps.items()}


GROUPS: dict[str, dict[str, Command]] = {
    "Train": {
        "train": Command("trainers", (), "train a recipe: text to a bundle"),
        "recipes": Command("trainers", ("recipes",), "list the shipped recipes"),
        "compare": Command("trainers", ("compare",), "tell which of two runs or more is better"),
        "probe": Command("trainers", ("probe",), "time real steps on this machine"),
        "tune": Command("tuning", (), "search settings; also: resume, dashboard, report"),
    },
    "Serve": {
        "serve": Command("serving", ("serve",), "answer over HTTP: bertha serve runs/mine"),
        **_commands(
            "serving",
            predict="answer texts, or files of them",
            evaluate="measure a bundle on labelled files",
            export="write a bundle for Transformers, ONNX or OpenVINO",
            push="publish a bundle on the Hugging Face hub",
            build="measure engines of a bundle and choose one",
            embedder="make a bundle of embeddings from an encoder",
            register="keep for later: bertha register runs/mine --as sentiment",
            deploy="make it live: bertha deploy sentiment",
            promote="make the canary live",
            rollback="end the canary, or go back to the version before",
            list="list names, versions, aliases and canaries",
            history="show every change of a name",
            key="make an API key",
        ),
    },
    "Cluster": _commands(
        "cluster",
        plan="compare hardware: time, dollars and kWh before a cent is spent",
        check="find every mistake in a cluster file",
        up="bring a cluster up",
        doctor="test whether a live cluster is fit to train",
        offers="list AWS prices, quotas and zones by region",
        spent="show what a cluster has cost so far",
        down="take a cluster down",
    ),
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}
HELP_HINT = "`bertha --help` lists the commands"
# What people call a command elsewhere.
OTHER_WORDS = {
    "run": "serve train",
    "start": "serve up",
    "stop": "down",
    "fit": "train",
    "finetune": "train",
    "fine-tune": "train",
    "search": "tune",
    "sweep": "tune",
    "test": "evaluate",
    "eval": "evaluate",
    "classify": "predict",
    "infer": "predict",
    "ask": "predict",
    "models": "list",
    "ls": "list",
    "init": "recipes",
    "new": "recipes",
    "launch": "up",
    "price": "plan",
}
EXTRAS = {"trainers": "train", "tuning": "tune", "serving": "serve", "cluster": "aws"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status, 2 after a mistake on the command line."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"bertha {version('bertha-ray')}")
        return 0
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        known = near or [name for name in OTHER_WORDS.get(words[0], "").split() if name in COMMANDS]
        hint = f"did you mean {' or '.join(known)}?" if known else HELP_HINT
        print(f"error: no command {words[0]!r}; {hint}", file=sys.stderr)
        return 2
    package, before, _ = COMMANDS[words[0]]
    try:
        module = importlib.import_module(f"{package}.__main__")
        status: int = module.main([*before, *words[1:]], prog="bertha")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in EXTRAS:
            raise
        extra = f'pip install "bertha-ray[{EXTRAS[package]}]"'
        print(f"error: {error.name} is not installed; {extra}", file=sys.stderr)
        return 2
    return status


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command as `main` does and run nothing. Exits as argparse does on a mistake."""
    package, before, _ = COMMANDS[words[0]]
    module = importlib.import_module(f"{package}.__main__")
    options: argparse.Namespace = module.parse_arguments([*before, *words[1:]], prog="bertha")
    return options


def _usage() -> str:
    lines = ["usage: bertha COMMAND ...", "", "BERT on Ray, from text to a served model.", ""]
    for group, commands in GROUPS.items():
        lines += [f"{group}:", *(f"  {name:<10}{each.help}" for name, each in commands.items()), ""]
    return "\n".join([*lines, "`bertha COMMAND --help` says more; docs/ has a page for each task."])


if __name__ == "__main__":
    sys.exit(main())
