"""The README.md of a bundle: what the model is, how good, on what data, its limits and its use.

Begins with the metadata block that the Hugging Face hub reads. Written from the card alone, so it
can be written again at any time; imports no torch.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.yaml_schema import dump_yaml
from trainers.models.card import ModelCard
from trainers.models.usage import GRAPHS, PIPELINES, describe_usage, is_linear

README = "README.md"

NAMES = {
    "classification": "text classification",
    "multi-label": "multi-label text classification",
    "regression": "text regression",
    "masked-lm": "masked language modelling",
    "embedding": "sentence embeddings",
}
FIGURES = {  # in the order they are shown, as a reader calls them
    "accuracy": "accuracy",
    "f1": "F1 (macro)",
    "precision": "precision (macro)",
    "recall": "recall (macro)",
    "f1_micro": "F1 (micro)",
    "f1_weighted": "F1 (weighted)",
    "mcc": "Matthews' correlation",
    "kappa": "Cohen's kappa",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "r2": "R²",
    "pearson": "Pearson's correlation",
    "spearman": "Spearman's correlation",
    "mae": "mean absolute error",
    "perplexity": "perplexity",
    "loss": "loss",
}
CLEANINGS = {
    "none": "Texts are read as they are.",
    "text-v1": "Before the tokenizer, tags of HTML are removed, character references replaced, "
    "characters composed (Unicode NFC) and white space reduced to single spaces. `bertha` does "
    "this by itself; with Transformers it is yours to do.",
}
MAX_CLASSES = 100  # that are listed one by one
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def write_readme(
    directory: Path, card: ModelCard, name: str, form: str = "bundle", place: str = "DIRECTORY"
) -> None:
    """Write the README.md of a directory.

    form: of the files: "bundle", or that of an export. place: what its reader loads them by.
    """
    text = format_readme(card, name, form, place)
    (directory / README).write_text(text, encoding="utf-8")


def format_readme(
    card: ModelCard, name: str, form: str = "bundle", place: str = "DIRECTORY"
) -> str:
    """Return the README of a model. form, place: as of `write_readme`."""
    metadata = dump_yaml(_metadata(card, name, form))
    sections = [
        f"---\n{metadata}---",
        f"# {name}",
        _introduction(card),
        *_quality(card),
        *_classes(card),
        *_data(card),
        _limits(card),
        describe_usage(card, form).replace("DIRECTORY", place),
    ]
    return "\n\n".join(sections) + "\n"


def run_name(directory: Path) -> str:
    """Return the name of the run that a bundle lies in, or of its own directory."""
    resolved = directory.resolve()
    return resolved.parent.name if resolved.name == "bundle" else resolved.name


def base_model(card: ModelCard) -> str | None:
    """Return the model of the hub that was trained further; None where it was another."""
    name = str(card.recipe["model"]["name"])
    is_local = name in ("random", "linear") or Path(name).exists()
    return name if _HUB_NAME.fullmatch(name) and not is_local else None


def _metadata(card: ModelCard, name: str, form: str) -> dict[str, Any]:
    """Return the metadata block; what is not known, as language and license, is left out."""
    data: dict[str, Any] = {}
    if not is_linear(card):
        data["library_name"] = form if form in GRAPHS else "transformers"
    data["pipeline_tag"] = PIPELINES[card.task]
    if base := base_model(card):
        data["base_model"] = base
    data["tags"] = ["bertha", card.task, *(["bert"] if not is_linear(card) else [])]
    figures = [
        {"type": key, "value": round(card.metrics[key], 4), "name": title}
        for key, title in FIGURES.items()
        if _is_number(card.metrics.get(key))
    ]
    if figures:
        data["metrics"] = [each["type"] for each in figures]
        task = {"type": PIPELINES[card.task], "name": NAMES[card.task]}
        source = _source_name(card)
        dataset = {"name": source, "type": source, "split": "test"}
        result = {"task": task, "dataset": dataset, "metrics": figures}
        data["model-index"] = [{"name": name, "results": [result]}]
    return data


def _source_name(card: ModelCard) -> str:
    """Return what its data is called, without the directories of whoever trained it."""
    source = str(card.recipe.get("data", {}).get("source", "")) or "unknown"
    return Path(source).name if "/" in source and not _HUB_NAME.fullmatch(source) else source


def _introduction(card: ModelCard) -> str:
    base = base_model(card)
    of_what = f"`{base}`" if base else "a linear model" if is_linear(card) else "a BERT"
    made = "taken as it is" if card.task == "embedding" else f"trained on `{_source_name(card)}`"
    said = f"A model for {NAMES[card.task]}: {of_what}, {made}"
    if card.labels:
        said += f", with {len(card.labels)} labels"
    return f"{said}. Texts of up to {card.max_tokens} tokens are read."


def _quality(card: ModelCard) -> Iterator[str]:
    """Yield the figures with their intervals, beside the baselines, and what was said of them."""
    figures = {key: card.metrics[key] for key in FIGURES if _is_number(card.metrics.get(key))}
    if not figures:
        return
    rows = card.metrics.get("rows", card.metrics.get("tokens"))
    counted = "hidden tokens" if "tokens" in card.metrics else "rows"
    yield "## How good it is"
    number = f"{rows:,} " if _is_number(rows) else ""
    yield f"On {number}{counted} that were held out, none of them trained on:"
    intervals = card.verdict.get("figures", {})
    baselines = {
        str(each.get("name", key)): each
        for key, each in card.verdict.get("baselines", {}).items()
        if isinstance(each, dict)
    }
    head = ["", "this model", *(["95% interval"] if intervals else []), *baselines]
    table = [_row(head), _row(["---"] * len(head))]
    for key, value in figures.items():
        cells = [FIGURES[key], _number(value)]
        if intervals:
            found = intervals.get(key, {})
            low, high = _number(found.get("low")), _number(found.get("high"))
            cells.append(f"{low} to {high}" if low and high else "")
        cells += [_number(each.get(key)) for each in baselines.values()]
        table.append(_row(cells))
    yield "\n".join(table)
    for column, values in card.verdict.get("slices", {}).items():
        metric = FIGURES.get(str(card.verdict["metric"]), str(card.verdict["metric"]))
        head = [column, metric, "95% interval", "rows"]
        found = [(each["figure"], str(each["value"]), each["rows"]) for each in values]
        table = [_row(head), _row(["---"] * len(head))]
        for figure, value, count in found:
            low, high = _number(figure["low"]), _number(figure["high"])
            cells = [value, _number(figure["value"]), f"{low} to {high}", _number(count)]
            table.append(_row(cells))
        yield "\n".join(table)
    sentences = [str(each) for each in card.verdict.get("sentences", ())]
    if sentences:
        yield "\n".join(f"- {each}" for each in sentences)


def _classes(card: ModelCard) -> Iterator[str]:
    """Yield the labels with their figures and thresholds."""
    if not card.labels:
        return
    yield "## Labels"
    if len(card.labels) > MAX_CLASSES:
        yield ", ".join(f"`{label}`" for label in card.labels[:MAX_CLASSES]) + ", …"
        return
    per_class = card.metrics.get("per_class", {})
    names = ("precision", "recall", "f1", "support")
    head = ["label", *(["precision", "recall", "F1", "rows"] if per_class else [])]
    head += ["threshold"] if card.thresholds else []
    table = [_row(head), _row(["---"] * len(head))]
    for label in card.labels:
        cells = [label]
        if per_class:
            found = per_class.get(label, {})
            cells += [_number(found.get(name)) for name in names]
        if card.thresholds:
            limit = card.thresholds.get(label, 0.5 if card.task == "multi-label" else None)
            cells.append(_number(limit))
        table.append(_row(cells))
    yield "\n".join(table)
    if card.thresholds:
        yield _explain_thresholds(card)


def _explain_thresholds(card: ModelCard) -> str:
    if card.task == "multi-label":
        return (
            "A label is given where its probability reaches its threshold, which was chosen on "
            "validation rows. `bertha` does this by itself; with Transformers compare the scores."
        )
    label = card.labels[1]
    return (
        f"The answer is `{label}` where its probability reaches its threshold, which was chosen "
        f"on validation rows, else `{card.labels[0]}`. `bertha` does this by itself; with "
        "Transformers compare the score."
    )


def _data(card: ModelCard) -> Iterator[str]:
    """Yield the source, and how many rows of it were used for what."""
    if "data" not in card.recipe:
        return
    yield "## Data"
    lines = [f"- source: `{_source_name(card)}`"]
    rows = card.data.get("rows", {})
    if rows:
        shown = ", ".join(f"{number:,} {part}" for part, number in rows.items())
        lines.append(f"- rows: {shown}")
    skipped = card.data.get("skipped", ())
    for each in skipped:
        lines.append(f"- left out: {each['rows']:,} ({each['reason']})")
    counts = card.data.get("label_counts", {}).get("train", {})
    if counts and len(counts) <= MAX_CLASSES:
        shown = ", ".join(f"{label} {number:,}" for label, number in counts.items())
        lines.append(f"- training rows of each label: {shown}")
    if card.target:
        low, high = (_number(card.target.get(key)) for key in ("low", "high"))
        lines.append(f"- trained values lie from {low} to {high}")
    lines.append(f"- fingerprint: `{card.data_fingerprint}`")
    yield "\n".join(lines)


def _limits(card: ModelCard) -> str:
    lines = [
        *_windows(card),
        f"- A text is cut at {card.max_tokens} tokens; what comes after is not read.",
        "- " + CLEANINGS.get(card.cleaning, f"Texts are cleaned by `{card.cleaning}`."),
    ]
    if "data" in card.recipe:
        lines.append(
            "- The held-out rows come from the same source as those it was trained on. Texts from "
            "elsewhere, of another time or in another language may be answered worse: evaluate it "
            "on rows of yours."
        )
    if card.task in ("classification", "multi-label"):
        lines.append("- It knows no other labels than these, and says one of them of any text.")
    if card.task == "multi-label":
        lines[-1] = "- It knows no other labels than these."
    never = card.verdict.get("never_predicted", ())
    if never:
        names = ", ".join(f"`{label}`" for label in never)
        lines.append(f"- On the held-out rows it never answered {names}.")
    if card.task == "regression":
        lines.append("- It learned nothing about values outside those it was trained on.")
    return "## Limits\n\n" + "\n".join(lines)


def _windows(card: ModelCard) -> Iterator[str]:
    """Yield how a long text is read, where that is in windows."""
    windows = card.windows
    if windows is not None:
        made = "mean" if windows.pool == "mean" else "highest of each label"
        yield (
            f"- A text of more than {card.max_length} tokens is read in windows of so many, at a "
            f"stride of {windows.step(card.max_length)}; the {made} of their logits is its own. "
            "`bertha` does this by itself; Transformers cuts the text."
        )


def _row(cells: list[str]) -> str:
    """Return a row of a table; a label may hold what would end its cell."""
    plain = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(plain)} |"


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _number(value: Any) -> str:
    """Return a number as it is shown: counts whole, figures with four digits; nothing of others."""
    if not _is_number(value):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
