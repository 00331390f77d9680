"""Dropout whose mask belongs to the sample, not to the batch it happens to be computed in.

`torch.nn.Dropout` draws from a stream, so the mask of a sample depends on everything drawn before
it: cutting a batch differently, or on more workers, changes the run. Here a mask is a hash of
(key, site, position, channel), where the key is a hash of (seed, epoch, sample) alone. Any layout
drops the same activations, whatever a text is packed with, recomputed layers drop what they dropped
before, and a resumed run needs no saved RNG state.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainers.models.packed import PackedTexts

# The 32-bit finalizer "lowbias32" of C. Wellons' search for low-bias integer hashes.
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B - (1 << 32)
_NEXT = 0x2545F491  # takes a hash to the next dimension of a position


class DropoutKeys:
    """The texts in flight with their keys, shared by all dropouts of a model."""

    def __init__(self) -> None:
        self.packed: PackedTexts | None = None
        self._hashes: dict[tuple[int, ...], Tensor] = {}

    def site_keys(self, site: int) -> Tensor:
        """Return the keys [number of texts] int32 of one dropout site.

        Raises RuntimeError when there are none.
        """
        if self.packed is None or self.packed.keys is None:
            raise RuntimeError("a model in training mode needs the keys of its samples")
        keys = self.packed.keys
        return _mix_bits_((keys ^ (keys >> 32)).to(torch.int32) + site * 0x632BE5)

    def token_hashes(self, shape: torch.Size, shard: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the text [t] of each token in `shape` [1, t, width], and a hash of its channels.

        Hashes are [t, width / 2] int32. The tokens are those of `shard` among all, or those read.
        """
        packed, (_, length, width) = self.packed, shape
        assert packed is not None
        texts, positions = self.find_tokens(length, shard)
        place = length, width, shard[0]
        if place not in packed.dropout_hashes:  # the same for all sites
            table = self.position_hashes(torch.Size((packed.longest, width)), texts.device)
            packed.dropout_hashes[place] = table[positions]
        return texts, packed.dropout_hashes[place]

    def find_tokens(self, length: int, shard: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return texts [t] and positions [t] of `length` tokens: of a shard, or those read."""
        packed, (index, count) = self.packed, shard
        assert packed is not None
        tokens: slice | Tensor = packed.reads
        if length * count == len(packed.texts):
            tokens = slice(index * length, (index + 1) * length)
        return packed.texts[tokens], packed.positions[tokens]

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
                hashes = _mix_bits_(hashes.unsqueeze(-1) * _NEXT + steps)
            self._hashes[slot] = hashes
        return hashes[tuple(slice(size) for size in wanted)]


class KeyedDropout(nn.Module):
    """Drop-in for `nn.Dropout`, keyed by sample, for activations of packed texts.

    They are [1, t, channels] of all tokens, [1, n, channels] of those that are read, [n, channels]
    of the first n texts, or attention weights [n, heads, s, s] of them. shard: (index, count) where
    this rank holds one of `count` equal parts of dimension 1, heads or tokens. The mask is then
    this rank's part of the whole mask.
    """

    def __init__(self, p: float, site: int, keys: DropoutKeys) -> None:
        super().__init__()
        self.p, self.site, self._keys, self.shard = p, site, keys, (0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of `x` in training mode."""
        if not self.training or self.p == 0.0:
            return x
        if x.dim() == 3 and is_fused_on(x.device):
            texts, positions = self._keys.find_tokens(x.shape[1], self.shard)
            return _fused_drop()(x, self._keys.site_keys(self.site)[texts], positions, self.p)
        return torch.where(self.keep_mask(x.shape, x.device), x, 0.0) * (1.0 / (1.0 - self.p))

    def keep_mask(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Return which activations of `shape` survive, bool."""
        keys = self._keys.site_keys(self.site)
        if len(shape) == 3:
            texts, hashes = self._keys.token_hashes(shape, self.shard)
            words = _mix_bits_(hashes ^ keys[texts][:, None])[None]
        else:
            hashes = self._keys.position_hashes(self._whole(shape), device)
            (index, count), length = self.shard, shape[1]
            if count > 1:
                hashes = hashes[index * length : (index + 1) * length]
            words = _mix_bits_(hashes ^ keys[: shape[0]].view(-1, *[1] * hashes.dim()))
        # Read each 32-bit word as two uniform int16: an element is dropped when it is in the
        # lowest share p of the 65536 values.
        lanes = words.view(torch.int16)[..., : shape[-1]]
        return lanes >= round(self.p * 65536) - 32768

    def _whole(self, shape: torch.Size) -> torch.Size:
        """Return the shape [heads, s, s] or [channels] of a text's activations on all ranks."""
        if len(shape) == 2:
            return torch.Size(shape[1:])
        return torch.Size((shape[1] * self.shard[1], *shape[2:]))


def is_fused_on(device: torch.device) -> bool:
    """Return whether masks are computed inside a compiled kernel, without memory for them."""
    return device.type == "cuda"


def drop_tokens(x: Tensor, keys: Tensor, positions: Tensor, p: float) -> Tensor:
    """Drop elements of `x` [1, t, channels] as `KeyedDropout` does, by arithmetic alone.

    keys: [t] int32 of the token's text at this site. positions: [t] in its text. Eager it takes
    ten passes over memory; compiled it is one kernel forward and one backward.
    """
    channels = torch.arange(x.shape[-1], dtype=torch.int32, device=x.device)
    of_position = _mix_bits_(positions.to(torch.int32, copy=True))
    words = _mix_bits_(_mix_bits_(of_position[:, None] * _NEXT + (channels >> 1)) ^ keys[:, None])
    lanes = torch.where((channels & 1) == 1, words >> 16, (words << 16) >> 16)
    kept = lanes >= round(p * 65536) - 32768
    return torch.where(kept, x, 0.0) * (1.0 / (1.0 - p))


@functools.cache
def _fused_drop() -> Callable[..., Tensor]:
    """Return `drop_tokens`, compiled once for any number of tokens."""
    return torch.compile(drop_tokens, dynamic=True)


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
