"""What a task minimises and what its logits mean: one place for losses and probabilities."""

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.recipe import Task


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


def scores(task: Task, logits: Tensor) -> Tensor:
    """What a user reads off logits [b, num_labels]: probabilities, or the number itself."""
    if task == "classification":
        return torch.softmax(logits.float(), dim=-1)
    if task == "multi-label":
        return torch.sigmoid(logits.float())
    return logits.float()
