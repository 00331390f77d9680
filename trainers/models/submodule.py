"""A part of a module tree: the same tensors under the same names, without the rest."""

import copy
from collections.abc import Callable
from typing import TypeVar

from torch import nn

Tree = TypeVar("Tree", bound=nn.Module)


def carved(tree: Tree, kept: Callable[[str], bool]) -> Tree:
    """A copy of `tree` with only the parameters, buffers and leaf modules whose name is `kept`.

    Containers are copied, tensors and leaves are shared. Names stay as they were.
    """
    return _carved(tree, "", kept)


def _carved(module: Tree, prefix: str, kept: Callable[[str], bool]) -> Tree:
    part = copy.copy(module)
    for name, value in vars(module).items():
        if name.endswith("_hooks") or "_hooks_" in name:
            part.__dict__[name] = copy.copy(value)  # a hook of one part is none of another's
    part._parameters = {k: v for k, v in module._parameters.items() if kept(prefix + k)}
    part._buffers = {k: v for k, v in module._buffers.items() if kept(prefix + k)}
    part._modules = {
        name: _carved(child, f"{prefix}{name}.", kept)
        for name, child in module._modules.items()
        if child is not None and _holds(child, f"{prefix}{name}.", kept)
    }
    return part


def _holds(module: nn.Module, prefix: str, kept: Callable[[str], bool]) -> bool:
    """Whether anything under `module` is kept; a leaf stands for itself."""
    names = [
        f"{prefix}{name}" for name, child in module.named_modules() if not list(child.children())
    ]
    return any(kept(name if name.endswith(".") else f"{name}.") for name in names)
