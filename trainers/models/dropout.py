"""Dropout whose mask belongs to the sample, not to the batch it happens to be computed in.

`torch.nn.Dropout` draws from a stream, so the mask of a sample depends on everything drawn before
it: cutting a batch differently, or on more workers, changes the run. Here a mask is a hash of
(key, site, position, channel), where the key is a hash of (seed, epoch, sample) alone. Any layout
drops the same activations, padding changes nothing, recomputed layers drop what they dropped
before, and a resumed run needs no saved RNG state.
"""

import torch
from torch import Tensor, nn

# The 32-bit finalizer "lowbias32" of C. Wellons' search for low-bias integer hashes.
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B - (1 << 32)


class DropoutKeys:
    """The keys of the micro-batch in flight, shared by every dropout of one model."""

    def __init__(self) -> None:
        self.sample_keys: Tensor | None = None
        self._hashes: dict[tuple[int, ...], Tensor] = {}

    def site_keys(self, site: int) -> Tensor:
        """Return the keys [b] int32 of one dropout site. Raises RuntimeError when none are set."""
        if self.sample_keys is None:
            raise RuntimeError("a model in training mode needs the keys of its samples")
        folded = (self.sample_keys ^ (self.sample_keys >> 32)).to(torch.int32)
        return _mix_bits_(folded + site * 0x632BE5)

    def position_hashes(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Return an int32 hash of each position in `shape`, one for every two channels.

        Two channels share a word: a mask needs 16 random bits an element.
        """
        *outer, channels = shape
        pairs = (channels + 1) // 2
        # Cached, since all sites and steps use the same ones. The hash of a position does not
        # depend on the shape, so a longer tensor serves every shorter sequence as a slice.
        slot = (len(outer), pairs) if len(outer) < 2 else (len(outer),)
        hashes = self._hashes.get(slot)
        wanted = (*outer, pairs)
        if (
            hashes is None
            or hashes.device != device
            or any(have < want for have, want in zip(hashes.shape, wanted, strict=True))
        ):
            hashes = torch.zeros((), dtype=torch.int32, device=device)
            for size in wanted:  # one dimension at a time: hash(hash(... i) * constant + j)
                steps = torch.arange(size, dtype=torch.int32, device=device)
                hashes = _mix_bits_(hashes.unsqueeze(-1) * 0x2545F491 + steps)
            self._hashes[slot] = hashes
        return hashes[tuple(slice(size) for size in wanted)]


class KeyedDropout(nn.Module):
    """Drop-in for `nn.Dropout` on [b, ..., channels] activations, keyed by sample.

    shard: (index, count) where this rank holds one of `count` equal parts of dimension 1, heads or
    positions. The mask is then this rank's part of the whole mask.
    """

    def __init__(self, p: float, site: int, keys: DropoutKeys) -> None:
        super().__init__()
        self.p, self.site, self._keys, self.shard = p, site, keys, (0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of `x` [b, ..., channels] in training mode."""
        if not self.training or self.p == 0.0:
            return x
        return torch.where(self.keep_mask(x.shape, x.device), x, 0.0) * (1.0 / (1.0 - self.p))

    def keep_mask(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Return which activations of `shape` [b, ..., channels] survive, bool."""
        (index, count), length = self.shard, shape[1]
        whole = torch.Size((length * count, *shape[2:])) if count > 1 else shape[1:]
        hashes = self._keys.position_hashes(whole, device)
        if count > 1:
            hashes = hashes[index * length : (index + 1) * length]
        keys = self._keys.site_keys(self.site)
        words = _mix_bits_(hashes ^ keys.view(-1, *[1] * hashes.dim()))
        # Read each 32-bit word as two uniform int16: an element is dropped when it is in the
        # lowest share p of the 65536 values.
        lanes = words.view(torch.int16)[..., : shape[-1]]
        return lanes >= round(self.p * 65536) - 32768


def use_keyed_dropout(model: nn.Module) -> DropoutKeys:
    """Replace every `nn.Dropout` in `model` and return the keys they now read."""
    keys, site = DropoutKeys(), 0
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, KeyedDropout(child.p, site, keys))
                site += 1
    return keys


def _mix_bits_(x: Tensor) -> Tensor:
    """Hash int32 numbers in place. Shifts are arithmetic, so only the last is masked."""
    x ^= x >> 16
    x *= _FIRST
    x ^= x >> 15
    x *= _SECOND
    x ^= (x >> 16) & 0xFFFF
    return x
