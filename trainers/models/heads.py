"""What becomes of the head in a model's files, when a recipe has another task or other labels.

The encoder is always kept. A head is kept where its classes are those of the recipe, put in order
where they stand in another, and drawn anew where they are others.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from trainers.config.recipe import Recipe
from trainers.models.config import PROBLEM_TYPES, pretrained_source
from trainers.models.families import FAMILIES, ModelFamily
from trainers.untrusted.model_files import read_weight_headers
from trainers.untrusted.tensor_header import TensorEntry

GENERIC = re.compile(r"LABEL_\d+")  # what Transformers calls a class that has no name
LM_HEADS = ("cls.predictions.", "lm_head.", "generator_predictions.", "vocab_transform.")
ENCODER_ALONE, MASKED_LM = "has an encoder alone", "is a masked language model"
NAMES_SHOWN = 3


@dataclass(frozen=True)
class HeadPlan:
    """What becomes of the head in a model's files.

    is_drawn: whether a new one replaces it. is_number: whether it is kept and gives a number. rows:
    where each class of the recipe lies in it, if in another order. line: for a person; "" where the
    head is the recipe's own, or there is none.
    """

    is_drawn: bool = False
    is_number: bool = False
    rows: tuple[int, ...] | None = None
    line: str = ""


def plan_head(recipe: Recipe, labels: tuple[str, ...]) -> HeadPlan:
    """Compare the head in the files of the recipe's model with its task and `labels`.

    labels: class names, () for a regression. Raises ModelError when it cannot be loaded.
    """
    name = recipe.model.name
    if name in ("random", "linear"):
        return HeadPlan()
    with pretrained_source(name) as source:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    directory = Path(source)
    tensors = read_weight_headers(directory) if directory.is_dir() else {}
    kind = _describe_head(config, tensors, directory, FAMILIES[config.model_type])
    task = "to guess words" if recipe.task == "masked-lm" else _for_classes(labels)
    if recipe.task == "masked-lm":
        is_kept = kind == MASKED_LM
        return HeadPlan(line="" if is_kept else f"drawn anew {task}: {name} {kind}")
    output = tensors.get(f"{FAMILIES[config.model_type].output}.weight")
    architecture = (config.architectures or [""])[0]
    is_classifier = architecture.endswith("ForSequenceClassification")
    if output is None and (tensors or not is_classifier):  # an encoder alone has nothing to say
        is_said = bool(kind) and kind != ENCODER_ALONE
        return HeadPlan(line=f"drawn anew {task}: {name} {kind}" if is_said else "")
    if architecture and not is_classifier:
        return HeadPlan(True, line=f"drawn anew {task}: {name} {kind}")
    if output is not None and output.shape[0] != config.num_labels:
        said = f"holds {output.shape[0]} of {config.num_labels}"
        return HeadPlan(True, line=f"drawn anew {task}: the head of {name} {said}")
    return _compare_labels(recipe, config, labels)


def _compare_labels(recipe: Recipe, config: PreTrainedConfig, labels: tuple[str, ...]) -> HeadPlan:
    """Plan for a head that classifies texts or gives a number."""
    name = recipe.model.name
    old = tuple(str(config.id2label[index]) for index in sorted(config.id2label))
    problem, task = config.problem_type, _for_classes(labels)
    was_number = problem == "regression" or (len(old) == 1 and problem is None)
    if not labels:
        if len(old) == 1:
            return HeadPlan(is_number=True)
        return HeadPlan(True, line=f"drawn anew {task}: {name} has {_count_classes(old)}")
    if was_number:
        return HeadPlan(True, line=f"drawn anew {task}: {name} gives a number")
    if len(old) != len(labels):
        return HeadPlan(True, line=f"drawn anew {task}: {name} has {_count_classes(old)}")
    if problem not in (None, PROBLEM_TYPES[recipe.task]):
        was = "one of its classes" if problem.startswith("single") else "several of its classes"
        note = f"; {name} gave a text {was}"
    else:
        note = ""
    if old == labels:
        return HeadPlan(line=f"kept{note}" if note else "")
    if set(old) == set(labels):
        rows = tuple(map(old.index, labels))
        return HeadPlan(rows=rows, line=f"kept, its classes put in order by their names{note}")
    if all(map(GENERIC.fullmatch, old)):
        shown = list_names(labels)
        return HeadPlan(
            line=f"kept: the {len(old)} classes of {name} have no names, and are taken "
            f"as {shown}{note}"
        )
    return HeadPlan(True, line=f"drawn anew {task}: those of {name} are {list_names(old)}")


def _describe_head(
    config: PreTrainedConfig,
    tensors: Mapping[str, TensorEntry],
    directory: Path,
    family: ModelFamily,
) -> str:
    """Say what a model's files were made for; "" where nothing tells it."""
    architecture = (config.architectures or [""])[0]
    is_masked_lm = architecture.endswith(("ForMaskedLM", "ForPreTraining"))
    if any(name.startswith(LM_HEADS) for name in tensors) or (is_masked_lm and not tensors):
        return MASKED_LM
    if (directory / "modules.json").is_file():
        return "gives sentence embeddings"
    if f"{family.output}.weight" in tensors and architecture.endswith("ForSequenceClassification"):
        return "is a classifier"
    if "For" in architecture:
        return f"is a {architecture}"
    return ENCODER_ALONE


def _for_classes(labels: tuple[str, ...]) -> str:
    return f"for {len(labels)} classes" if labels else "for a number"


def _count_classes(names: tuple[str, ...]) -> str:
    has_names = not all(map(GENERIC.fullmatch, names))
    return f"{len(names)} classes" + (f" ({list_names(names)})" if has_names else "")


def list_names(names: tuple[str, ...]) -> str:
    """Return the first names, for a person."""
    shown = ", ".join(names[:NAMES_SHOWN])
    return f"{shown}, ..." if len(names) > NAMES_SHOWN else shown
