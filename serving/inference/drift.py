"""Whether live texts and answers still look like the held-out ones that a model was judged by.

Each replica counts the last texts of each version in the bins of the profile in its card. Counts of
replicas add up; from their sum follows the population stability index (PSI) of each feature,

    PSI = sum over bins of (live - held out) * ln(live / held out), in shares of the texts,

the symmetric divergence of Jeffreys (1946) between the two distributions. Half a text is added to
each bin, so that none is empty. By the rule of thumb of credit scoring, where it comes from
(Siddiqi, Credit Risk Scorecards, 2006), below 0.1 is no change, and above 0.25 a large one.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serving.http.metrics import Sample
from serving.inference.model_cache import ModelKey
from serving.interface import InferenceResult, ModelInfo, Prediction, choose_labels
from trainers.models.profile import NO_LABEL, OTHER_LABELS, RowProfile, unknown_share

LABEL_TASKS = ("classification", "multi-label", "regression")
WINDOW_TEXTS = 1000  # of each version, in each replica
MOST_OF_REQUEST = 32  # texts that are counted of one request, which may be no sample of the traffic
MIN_TEXTS = 200  # below, chance alone moves the index
MODERATE, LARGE = 0.1, 0.25
NO_PROFILE = (
    "the bundle has no profile: it was made by an older version, without held-out rows, or from an "
    "encoder; train again to compare"
)

Bins = tuple[tuple[str, int], ...]  # of one text: feature and bin


class DriftWindow:
    """The bins of the last texts of one version, and their counts."""

    def __init__(self, profile: RowProfile) -> None:
        self.profile = profile
        self.counts = {name: [0] * len(each.counts) for name, each in profile.features.items()}
        self._texts: deque[Bins] = deque()
        labels = profile.features.get("labels")
        self._label_bins = {} if labels is None else {n: i for i, n in enumerate(labels.names)}

    def add(self, row: Any, prediction: Prediction, model: ModelInfo) -> None:
        """Count a text, and no longer the oldest where the window is full."""
        bins = tuple(self._find_bins(row, prediction, model))
        self._texts.append(bins)
        for feature, place in bins:
            self.counts[feature][place] += 1
        if len(self._texts) > WINDOW_TEXTS:
            for feature, place in self._texts.popleft():
                self.counts[feature][place] -= 1

    def _find_bins(
        self, row: Any, prediction: Prediction, model: ModelInfo
    ) -> Iterator[tuple[str, int]]:
        features, unknown = self.profile.features, self.profile.unknown_id
        values = {"tokens": float(len(row))}
        if unknown is not None:
            values["unknown_tokens"] = unknown_share(row, unknown)
        if model.task == "regression":
            values["values"] = prediction.scores[0]
        else:
            values["confidence"] = max(prediction.scores)
        for feature, value in values.items():
            if feature in features:
                yield feature, features[feature].find_bin(value)
        if "labels" in features:
            chosen = choose_labels(prediction.scores, model.labels, model.task, model.thresholds)
            for label in chosen or (NO_LABEL,):
                place = self._label_bins.get(label, self._label_bins.get(OTHER_LABELS))
                if place is not None:
                    yield "labels", place


class DriftWindows:
    """The windows of the versions that a replica answers by. Belongs to one event loop."""

    def __init__(self) -> None:
        self._windows: dict[ModelKey, DriftWindow] = {}

    def record(self, result: InferenceResult[Any]) -> None:
        """Count the texts of a request, of a long one an even selection."""
        model = result.model
        if model.profile is None or model.task not in LABEL_TASKS:
            return
        key = (model.name, model.version)
        window = self._windows.get(key)
        if window is None or window.profile is not model.profile:
            window = self._windows[key] = DriftWindow(model.profile)
        step = -(-len(result.values) // MOST_OF_REQUEST)
        for place in range(0, len(result.values), step or 1):
            window.add(result.rows[place], result.values[place], model)

    def metric_samples(self) -> Iterator[tuple[Sample, float]]:
        """Yield the counts of each bin."""
        for (name, version), window in list(self._windows.items()):
            for feature, counts in window.counts.items():
                for place, count in enumerate(counts):
                    yield _sample(name, version, feature, str(place)), count


def stability_index(expected: Sequence[float], found: Sequence[float]) -> float:
    """Return the PSI of two histograms with the same bins."""
    total, index = sum(expected) + len(expected) / 2, 0.0
    live_total = sum(found) + len(found) / 2
    for before, now in zip(expected, found, strict=True):
        one, other = (before + 0.5) / total, (now + 0.5) / live_total
        index += (other - one) * math.log(other / one)
    return index


def describe_drift(
    models: Sequence[ModelInfo], samples: Mapping[Sample, float]
) -> list[dict[str, Any]]:
    """Return what a person compares, of each version that was asked or is loaded.

    samples: of all replicas.
    """
    return [
        _describe_version(model, samples)
        for model in models
        if model.task in LABEL_TASKS and (model.state == "ready" or _num_texts(model, samples))
    ]


def psi_samples(
    models: Sequence[ModelInfo], samples: Mapping[Sample, float]
) -> dict[Sample, float]:
    """Return the PSI of each feature of each version with enough texts, for Prometheus."""
    found: dict[Sample, float] = {}
    for model in models:
        if model.profile is not None and _num_texts(model, samples) >= MIN_TEXTS:
            labels = (("model", model.name), ("version", model.version))
            for name, each in model.profile.features.items():
                counts = _counts(model, name, len(each.counts), samples)
                index = stability_index(each.counts, counts)
                found["bertha_drift_psi", (*labels, ("feature", name))] = index
    return found


def _describe_version(model: ModelInfo, samples: Mapping[Sample, float]) -> dict[str, Any]:
    about: dict[str, Any] = {"name": model.name, "version": model.version}
    if model.profile is None:
        return {**about, "state": "unknown", "reason": NO_PROFILE}
    num_texts = int(_num_texts(model, samples))
    about |= {"texts": num_texts, "held_out": model.profile.rows, "features": {}}
    for name, each in model.profile.features.items():
        counts = _counts(model, name, len(each.counts), samples)
        index = stability_index(each.counts, counts)
        about["features"][name] = {
            "psi": round(index, 4),
            "state": _judge(index) if num_texts >= MIN_TEXTS else "unknown",
            "bins": list(each.bins),
            "held_out": list(each.counts),
            "live": [int(count) for count in counts],
        }
    if num_texts < MIN_TEXTS:
        reason = f"{num_texts} texts; from {MIN_TEXTS} on they are compared"
        return {**about, "state": "unknown", "reason": reason}
    order = ("stable", "moderate", "large")
    states = [each["state"] for each in about["features"].values()]
    return {**about, "state": max(states, key=order.index)}


def _judge(index: float) -> str:
    if index < MODERATE:
        return "stable"
    return "moderate" if index <= LARGE else "large"


def _num_texts(model: ModelInfo, samples: Mapping[Sample, float]) -> float:
    if model.profile is None:
        return 0
    size = len(model.profile.features["tokens"].counts)
    return sum(_counts(model, "tokens", size, samples))


def _counts(
    model: ModelInfo, feature: str, size: int, samples: Mapping[Sample, float]
) -> list[float]:
    keys = (_sample(model.name, model.version, feature, str(place)) for place in range(size))
    return [samples.get(key, 0.0) for key in keys]


def _sample(name: str, version: str, feature: str, place: str) -> Sample:
    labels = (("model", name), ("version", version), ("feature", feature), ("bin", place))
    return "bertha_drift_texts", labels
