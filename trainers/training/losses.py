"""The losses of each task, and what its logits mean."""

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.config.recipe import Recipe, Task


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


def training_losses(
    recipe: Recipe, logits: Tensor, targets: Tensor, teacher: Tensor | None
) -> Tensor:
    """Return the loss [b] of each sample that `recipe` minimises.

    With a teacher's logits [b, num_labels] it is (1 - weight) of `sample_losses` and weight of
    `distillation_losses` (Hinton et al. 2015, arXiv 1503.02531, section 2).
    """
    label_losses, distillation = sample_losses(recipe.task, logits, targets), recipe.distillation
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
