"""The sentences of a verdict, and the command that it ends with."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainers.config.metrics import lower_is_better
from trainers.evaluation.learning import Training, advise_longer_run
from trainers.tracking.verdict_lines import format_figure, format_number

MAX_NAMES = 8  # of labels in a sentence
FEW_ROWS = 100  # of a test: its intervals are wide
BAD_CALIBRATION = 0.1

Verdict = Mapping[str, Any]


def beats(verdict: Verdict) -> int | None:
    """Return 1 or -1 where a run is better or worse than a bag of words beyond chance, else 0.

    None where there is no bag of words.
    """
    difference = verdict.get("baselines", {}).get("bag-of-words", {}).get("difference")
    if not difference:
        return None
    sign = -1 if lower_is_better(str(verdict["metric"])) else 1
    return sign * (int(difference["low"] > 0) - int(difference["high"] < 0))


def write_sentences(
    verdict: Verdict, training: Training, labels: tuple[str, ...], reason: str
) -> list[str]:
    """Return what is to be said of a run, the most important first.

    reason: why there is no bag of words to compare with; "" where there is, or none is wanted.
    """
    sentences = [
        *_about_baselines(verdict, reason),
        *_about_labels(verdict, labels),
        *_about_slices(verdict),
        *_about_thresholds(verdict, training),
        *_about_probabilities(verdict),
        *_about_average(training),
    ]
    advice = advise_longer_run(training.recipe, training.stopped_early)
    if verdict["loss_falling"]:
        sentences.append(f"The loss was still falling when the run ended: {advice}.")
    elif _is_poor(verdict):
        sentences.append(
            "The loss was no longer falling: more steps alone would not help; try another "
            "optimizer.learning_rate, a larger model.name, or more rows."
        )
    if 0 < verdict["rows"] < FEW_ROWS:
        sentences.append(
            f"{verdict['rows']} test rows tell little: what is closer than an interval is wide may "
            "be chance."
        )
    return sentences


def _about_baselines(verdict: Verdict, reason: str) -> list[str]:
    metric, baselines = verdict["metric"], verdict["baselines"]
    own, sentences = verdict["figures"].get(metric, {}), []
    commonest = baselines.get("majority") or baselines.get("mean")
    better = -1 if lower_is_better(metric) else 1
    if commonest is not None:
        bound = own["low"] if better > 0 else own["high"]
        if better * (bound - commonest[metric]) <= 0:
            answer = "the commonest answer" if "majority" in baselines else "the mean"
            sentences.append(
                f"It is not clearly better than always giving {answer} ({metric} "
                f"{format_number(commonest[metric])}): it has learned little or nothing."
            )
    words = baselines.get("bag-of-words")
    if words is not None:
        between = _format_interval(words["difference"])
        theirs = f"{words['name']}: {metric} {format_number(words[metric])}"
        sentences.append(
            {
                1: f"It beats a bag of words ({theirs}) beyond chance, by {between}.",
                0: f"It is neither clearly better nor worse than a bag of words ({theirs}): the "
                f"difference is {between}.",
                -1: f"A bag of words does better ({theirs}): the difference is {between}. Do not "
                "use this model as it is.",
            }[beats(verdict) or 0]
        )
    elif reason:
        sentences.append(f"No bag of words to compare with: {reason}.")
    return sentences


def _about_labels(verdict: Verdict, labels: tuple[str, ...]) -> list[str]:
    never, sentences = verdict["never_predicted"], []
    if absent := verdict.get("absent_labels", 0):
        sentences.append(
            f"{absent} of {len(labels)} labels are in no test row and were never predicted: "
            "averages over labels leave them out."
        )
    if never:
        sentences.append(f"Never predicted: {_join(never)} ({len(never)} of {len(labels)} labels).")
    mixed = [
        f"{each['true']!r} was taken for {each['predicted']!r} in {each['rows']} of {each['of']} "
        "rows"
        for each in verdict["confusions"]
        if each["rows"] >= 2
    ]
    if mixed:
        sentences.append(f"{', '.join(mixed)}.")
    return sentences


def _about_slices(verdict: Verdict) -> list[str]:
    """Say of each column which value is answered worst, where that is worse beyond chance."""
    metric, sentences = verdict["metric"], []
    better = -1 if lower_is_better(metric) else 1
    whole = verdict["figures"].get(metric, {}).get("value")
    for column, values in verdict.get("slices", {}).items():
        worst = values[0]
        best = worst["figure"]["high" if better > 0 else "low"]
        if whole is not None and better * (best - whole) < 0:
            sentences.append(
                f"Worst by {column}: {worst['value']!r} ({worst['rows']} rows), {metric} "
                f"{format_figure(worst['figure'])}, where all rows have {format_number(whole)}."
            )
    return sentences


def _about_thresholds(verdict: Verdict, training: Training) -> list[str]:
    thresholds, plain = training.thresholds, verdict.get("without_thresholds")
    if not thresholds or not plain:
        return []
    shown = _join(
        [f"{label} from {share:.2f}" for label, share in thresholds.items()], quoted=False
    )
    own = verdict["figures"]["f1"]["value"]
    return [
        f"Labels are given {shown}, as is best on {training.tuned_rows} validation rows: f1 "
        f"{format_number(own)}, where 0.5 gives {format_number(plain['f1'])}."
    ]


def _about_probabilities(verdict: Verdict) -> list[str]:
    found, sentences = verdict["calibration"], []
    error = found.get("ece", 0.0)
    if "temperature" in found:
        sentences.append(
            f"Its logits are divided by {found['temperature']:.3g}, as is best on the validation "
            f"rows: probabilities are off by {error:.3f} on average (ECE), where they were off by "
            f"{found['ece_before']:.3f}."
        )
    if error > BAD_CALIBRATION:
        sentences.append(
            f"Its probabilities are off by {error:.2f} on average (ECE): do not take them at word."
        )
    return sentences


def _about_average(training: Training) -> list[str]:
    average, metric = training.average, training.recipe.metric
    if average is None:
        return []
    steps = ", ".join(map(str, average["steps"]))
    values = f"{metric} {format_number(average['value'])} on the validation rows"
    best = f"the best checkpoint has {format_number(average['best'])}"
    if average["kept"]:
        return [f"The weights are the mean of those of steps {steps}: {values}, where {best}."]
    return [f"The mean of the weights of steps {steps} has {values} and is left out: {best}."]


def _is_poor(verdict: Verdict) -> bool:
    """Return whether a run ought to be better: below a bag of words, or blind for a label."""
    return beats(verdict) == -1 or bool(verdict["never_predicted"])


def next_command(verdict: Verdict, training: Training) -> str:
    """Return the command that a user most likely wants next."""
    run, recipe = training.address, training.recipe
    if recipe.task == "masked-lm":
        return f"bertha train csv.yaml model.name={run}/bundle data.source=FILE"
    if _is_poor(verdict) and verdict["loss_falling"]:
        change = advise_longer_run(recipe, training.stopped_early, as_setting=True)
        return f"bertha train {run}/recipe.yaml {change} --run {run} --resume"
    return f"bertha serve {run}"


def _format_interval(difference: Mapping[str, float]) -> str:
    value, low, high = (f"{difference[name]:+.3g}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _join(names: Sequence[str], quoted: bool = True) -> str:
    shown = [repr(name) if quoted else name for name in names[:MAX_NAMES]]
    return ", ".join(shown) + (", ..." if len(names) > MAX_NAMES else "")
