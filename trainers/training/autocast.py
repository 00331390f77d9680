"""The precision of forward passes: of training, and of evaluation."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


class Autocast:
    """Autocast in `dtype` for training; None is plain fp32.

    An accelerator evaluates in it too, as fp32 would cost it a tenth of its speed; the host does
    not, and inside `exact` neither does.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype | None, is_host: bool) -> None:
        self._device, self._dtype, self._is_host = device, dtype, is_host
        self._is_exact = False

    def context(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        in_dtype = torch.is_grad_enabled() or not self._is_host
        if self._dtype is None or self._is_exact or not in_dtype:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._dtype)

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Compute in fp32."""
        self._is_exact = True
        try:
            yield
        finally:
            self._is_exact = False
