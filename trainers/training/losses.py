"""What a task minimises and what its logits mean: one place for losses and probabilities."""

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.config.recipe import Recipe, Task


def sample_losses(task: Task, logits: Tensor, targets: Tensor) -> Tensor:
    """The loss [b] of each sample, fp32.

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
    """What `recipe` minimises: `sample_losses` [b], of which a teacher, its logits [b, num_labels],
    has a share: (1 - weight) of the labels and weight of `imitation_losses` (Hinton et al. 2015,
    arXiv 1503.02531, section 2).
    """
    of_labels, told = sample_losses(recipe.task, logits, targets), recipe.distillation
    if told is None:
        return of_labels
    assert teacher is not None, "the data is `taught`"
    of_teacher = imitation_losses(recipe.task, logits, teacher, told.temperature)
    return (1 - told.weight) * of_labels + told.weight * of_teacher


def imitation_losses(task: Task, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far logits [b, num_labels] are from those of a teacher: [b], fp32, 0 where they agree.

    classification: T^2 KL(teacher || student) of softmax(logits / T); T^2 keeps the gradient's size
    whatever the temperature T. multi-label: the same of each label's sigmoid(logit / T), mean over
    the labels. regression: squared difference of the numbers.
    """
    logits, teacher = logits.float(), teacher.float()
    if task == "regression":
        return (logits - teacher)[:, 0].square()
    soft, softened = teacher / temperature, logits / temperature
    if task == "classification":
        told = soft.log_softmax(dim=1)
        found = F.kl_div(softened.log_softmax(dim=1), told, reduction="none", log_target=True)
        return found.sum(dim=1) * temperature**2
    shares = soft.sigmoid()
    cross = F.binary_cross_entropy_with_logits(softened, shares, reduction="none")
    own = F.binary_cross_entropy_with_logits(soft, shares, reduction="none")
    return (cross - own).mean(dim=1) * temperature**2


def scores(task: Task, logits: Tensor) -> Tensor:
    """What a user reads off logits [b, num_labels]: probabilities, or the number itself."""
    if task == "classification":
        return torch.softmax(logits.float(), dim=-1)
    if task == "multi-label":
        return torch.sigmoid(logits.float())
    return logits.float()
