"""Dropout whose mask belongs to the sample, not to the batch it happens to be computed in.

`torch.nn.Dropout` draws from a stream, so the mask of a sample depends on everything computed
before it: cutting a batch differently changes the run. Here a mask is a hash of (key, site,
position, channel), where the key is a function of (seed, epoch, sample) alone. Any cut over any
number of workers drops the same activations, padding changes nothing, and a resumed run needs no
saved random state. Knows nothing of models or data.
"""

import numpy as np
import torch
from torch import Tensor, nn

# The 32-bit finalizer "lowbias32" of C. Wellons' search for low-bias integer hashes.
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B - (1 << 32)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def sample_keys(seed: int, epoch: int, rows: np.ndarray) -> np.ndarray:
    """A key for each sample, [n] int64: splitmix64 over (seed, epoch, row)."""
    with np.errstate(over="ignore"):
        stream = splitmix(np.array([(seed << 32) + epoch], dtype=np.uint64))
        keys: np.ndarray = splitmix(stream + rows.astype(np.uint64) * _GOLDEN)
        return keys.view(np.int64)


class Keys:
    """The keys of the micro-batch in flight, shared by every dropout of one model."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self._counters: dict[tuple[int, ...], Tensor] = {}

    def of_site(self, site: int) -> Tensor:
        """Keys [b] int32 of one dropout site. Raises RuntimeError when none are set."""
        if self.keys is None:
            raise RuntimeError("a model in training mode needs the keys of its samples")
        folded = (self.keys ^ (self.keys >> 32)).to(torch.int32)
        return _mix_(folded + site * 0x632BE5)

    def counter(self, shape: torch.Size, device: torch.device) -> Tensor:
        """A hash of each position in `shape`, int32, two channels to a number.

        The value at a position does not depend on the shape: a longer counter holds a shorter.
        """
        *outer, channels = shape
        pairs = (channels + 1) // 2
        slot = (len(outer), pairs) if len(outer) < 2 else (len(outer),)
        held = self._counters.get(slot)
        want = (*outer, pairs)
        if (
            held is None
            or held.device != device
            or any(h < w for h, w in zip(held.shape, want, strict=True))
        ):
            held = torch.zeros((), dtype=torch.int32, device=device)
            for size in want:
                steps = torch.arange(size, dtype=torch.int32, device=device)
                held = _mix_(held.unsqueeze(-1) * 0x2545F491 + steps)
            self._counters[slot] = held
        return held[tuple(slice(size) for size in want)]


class KeyedDropout(nn.Module):
    """Drop-in for `nn.Dropout` on [b, ..., channels] activations, keyed by sample.

    part: (index, count) where dimension 1 of the activations, heads or positions, is the part
    `index` of `count` equal ones; the others are on other ranks, and the mask is that of the whole.
    """

    def __init__(self, p: float, site: int, keys: Keys) -> None:
        super().__init__()
        self.p, self.site, self._keys, self.part = p, site, keys, (0, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        return torch.where(self.kept(x.shape, x.device), x, 0.0) * (1.0 / (1.0 - self.p))

    def kept(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Which activations of `shape` [b, ..., channels] survive, bool."""
        (index, count), length = self.part, shape[1]
        whole = torch.Size((length * count, *shape[2:])) if count > 1 else shape[1:]
        counter = self._keys.counter(whole, device)
        if count > 1:
            counter = counter[index * length : (index + 1) * length]
        keys = self._keys.of_site(self.site)
        words = _mix_(counter ^ keys.view(-1, *[1] * counter.dim()))
        lanes = words.view(torch.int16)[..., : shape[-1]]
        return lanes >= round(self.p * 65536) - 32768


def use_keyed_dropout(model: nn.Module) -> Keys:
    """Replace every `nn.Dropout` in `model` and return the keys they now read."""
    keys, site = Keys(), 0
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, KeyedDropout(child.p, site, keys))
                site += 1
    return keys


def _mix_(x: Tensor) -> Tensor:
    """Hash int32 numbers in place. Shifts are arithmetic, so only the last is masked."""
    x ^= x >> 16
    x *= _FIRST
    x ^= x >> 15
    x *= _SECOND
    x ^= (x >> 16) & 0xFFFF
    return x


def splitmix(x: np.ndarray) -> np.ndarray:
    """Hash uint64 numbers: one step of splitmix64 (Steele et al. 2014) from each."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
