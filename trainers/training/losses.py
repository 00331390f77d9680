"""The losses of each task, and what its logits mean."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.errors import BerthaError
from trainers.config.recipe import Recipe, Task
from trainers.config.sections import LossConfig
from trainers.data.dataset_cache import PreparedDataset


def sample_losses(task: Task, logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss [b] of each sample, fp32.

    classification: cross-entropy of logits [b, num_labels] and classes [b] int64. multi-label:
    binary cross-entropy, mean over the labels of targets [b, num_labels]. regression: squared error
    of logits [b, 1] and numbers [b].
    """
    logits = logits.float()
    if task == "classification":
        return F.cross_entropy(logits, targets, reduction="none")
    if task == "multi-label":
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)
    return (logits[:, 0] - targets).square()


def class_weights(recipe: Recipe, data: PreparedDataset) -> Tensor | None:
    """Return what each class counts [num_labels] float32 by `loss.class_weights`; None for 1.

    Balanced, of a classification: n / (num_labels * n_c), scikit-learn's formula, with the n rows
    to train on, n_c of them of the class; of multi-label (n - n_c) / n_c. A class without rows
    counts 1, and so does a label that all rows have. Raises BerthaError for a name of no class.
    """
    check_class_weights(recipe, data.labels)
    given, labels = recipe.loss.class_weights, data.labels
    if given is None or not labels:
        return None
    if isinstance(given, dict):
        return torch.tensor([given.get(label, 1.0) for label in labels])
    targets, rows = np.asarray(data.train.targets), len(data.train)
    is_single = recipe.task == "classification"
    counts = np.bincount(targets, minlength=len(labels)) if is_single else targets.sum(axis=0)
    counts = counts.astype(np.float64)
    shares = rows / len(labels) if is_single else rows - counts
    is_known = (counts > 0) & (shares > 0)
    weights = np.where(is_known, shares / np.maximum(counts, 1), 1.0)
    return torch.from_numpy(weights.astype(np.float32))


def check_class_weights(recipe: Recipe, labels: Sequence[str]) -> None:
    """Raise BerthaError where `loss.class_weights` names what is no class."""
    given = recipe.loss.class_weights
    unknown = sorted(set(given) - set(labels)) if isinstance(given, dict) else []
    if unknown:
        raise BerthaError(
            f"loss.class_weights names {unknown[0]!r}, but the classes are "
            f"{', '.join(map(repr, labels[:20]))}{', ...' if len(labels) > 20 else ''}; name those"
        )


def weighted_losses(
    task: Task, logits: Tensor, targets: Tensor, loss: LossConfig, weights: Tensor | None
) -> Tensor:
    """Return the loss [b] of each sample as `loss` asks; that of `sample_losses` by default.

    weights: of the classes [num_labels], from `class_weights`. The mean over a batch is the plain
    one: a sample's share never depends on the others. Focal loss: Lin et al. 2017, arXiv
    1708.02002, (1 - p)^gamma times the cross-entropy, p the probability of the truth. Label
    smoothing: Szegedy et al. 2016, arXiv 1512.00567, section 7.
    """
    logits, smoothing, gamma = logits.float(), loss.label_smoothing, loss.focal_gamma
    if task == "classification":
        losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
        if gamma:
            truth = logits.log_softmax(dim=1).gather(1, targets[:, None])[:, 0]
            losses = losses * _miss(truth) ** gamma
        return losses if weights is None else losses * weights[targets]
    smooth = targets * (1 - smoothing) + smoothing / 2
    losses = F.binary_cross_entropy_with_logits(
        logits, smooth, reduction="none", pos_weight=weights
    )
    if gamma:
        truth = F.logsigmoid(torch.where(targets > 0.5, logits, -logits))
        losses = losses * _miss(truth) ** gamma
    return losses.mean(dim=1)


def _miss(truth: Tensor) -> Tensor:
    """Return one minus the probability whose logarithm is `truth`.

    It is above 0: at 0 the gradient of a power below 1 is infinite.
    """
    return -torch.expm1(truth.clamp(max=-torch.finfo(truth.dtype).eps))


def training_losses(
    recipe: Recipe,
    logits: Tensor,
    targets: Tensor,
    teacher: Tensor | None,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the loss [b] of each sample that `recipe` minimises.

    weights: of the classes, see `class_weights`. With a teacher's logits [b, num_labels] it is
    (1 - weight) of the labels' losses and weight of `distillation_losses` (Hinton et al. 2015,
    arXiv 1503.02531, section 2).
    """
    distillation = recipe.distillation
    if recipe.loss == LossConfig():
        label_losses = sample_losses(recipe.task, logits, targets)
    else:
        label_losses = weighted_losses(recipe.task, logits, targets, recipe.loss, weights)
    if distillation is None:
        return label_losses
    assert teacher is not None, "call `attach_teacher_logits` on the data"
    temperature, weight = distillation.temperature, distillation.weight
    teacher_losses = distillation_losses(recipe.task, logits, teacher, temperature)
    return (1 - weight) * label_losses + weight * teacher_losses


def distillation_losses(task: Task, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return how far logits [b, num_labels] are from a teacher's: [b], fp32, 0 where they agree.

    classification: T^2 KL(teacher || student) of softmax(logits / T); T^2 keeps the gradient's size
    whatever the temperature T. multi-label: the same of each label's sigmoid(logit / T), mean over
    the labels. regression: squared difference of the numbers.
    """
    logits, teacher = logits.float(), teacher.float()
    if task == "regression":
        return (logits - teacher)[:, 0].square()
    teacher, logits = teacher / temperature, logits / temperature
    if task == "classification":
        target = teacher.log_softmax(dim=1)
        divergence = F.kl_div(logits.log_softmax(dim=1), target, reduction="none", log_target=True)
        return divergence.sum(dim=1) * temperature**2
    probabilities = teacher.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, probabilities, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(teacher, probabilities, reduction="none")
    return (cross_entropy - entropy).mean(dim=1) * temperature**2


def logits_to_scores(task: Task, logits: Tensor) -> Tensor:
    """Return probabilities of logits [b, num_labels], or the numbers of a regression."""
    if task == "classification":
        return torch.softmax(logits.float(), dim=-1)
    if task == "multi-label":
        return torch.sigmoid(logits.float())
    return logits.float()
