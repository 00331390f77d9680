"""Random keys that belong to a sample: the seeds of its dropout masks and of its masked tokens."""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def sample_keys(seed: int, epoch: int, rows: np.ndarray) -> np.ndarray:
    """Return a key for each sample, [n] int64: splitmix64 over (seed, epoch, row)."""
    with np.errstate(over="ignore"):
        stream = splitmix(np.array([(seed << 32) + epoch], dtype=np.uint64))
        keys: np.ndarray = splitmix(stream + rows.astype(np.uint64) * _GOLDEN)
        return keys.view(np.int64)


def splitmix(x: np.ndarray) -> np.ndarray:
    """Hash uint64 numbers: one step of splitmix64 (Steele et al. 2014) from each."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
