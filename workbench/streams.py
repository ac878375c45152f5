"""Counter-based random numbers: sample i is the same whichever batch, worker or restart draws it.

Does: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011) over whole arrays of (sample index, step), and a tree of named streams.
Does not: make a model's logits equal across batch widths; `workbench.models.sampling` sees to that.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from workbench.errors import require_integer

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox4x32(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Ten rounds of Philox over `counter` of shape (..., 4), 32-bit words held in uint64.

    Returns the same shape. Agrees with the known-answer vectors of the Random123 library.
    """
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


@dataclass(frozen=True)
class Stream:
    """A named stream of random numbers; `first` is the index of the sample that row 0 belongs to.

    `Stream.of(seed, *names)` begins one; `.child(*names)` derives an unrelated one; `.at(i)` moves
    to sample i. Two streams with different seeds or names never share a number by construction.
    """

    seed: int
    path: tuple[str, ...] = ()
    first: int = 0

    @classmethod
    def of(cls, seed: int, *names: object) -> Stream:
        require_integer("seed", seed, low=0, high=2**63 - 1, cure="pass a whole number such as seed=0")
        return cls(int(seed), tuple(str(name) for name in names))

    def child(self, *names: object) -> Stream:
        return replace(self, path=self.path + tuple(str(name) for name in names), first=0)

    def at(self, index: int) -> Stream:
        return replace(self, first=int(index))

    @property
    def key(self) -> tuple[int, int]:
        text = repr((int(self.seed), self.path)).encode()
        digest = hashlib.blake2b(text, digest_size=8).digest()
        return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")

    def uniforms(self, n: int, width: int = 1, step: int = 0) -> np.ndarray:
        """(n, width) float64 in [0, 1) with 53 random bits.

        Row j belongs to sample `first + j`, column t to step `step + t`; an entry depends on
        nothing but (seed, names, sample, step).
        """
        return self.uniforms_of(np.arange(n), width, step)

    def uniforms_of(self, rows: np.ndarray, width: int = 1, step: int = 0) -> np.ndarray:
        """`rows` (n,) of what `uniforms` gives, in any order: (n, width)."""
        n = len(rows)
        blocks_from, blocks_to = step // 2, (step + width + 1) // 2
        samples = (np.asarray(rows, dtype=np.int64) + self.first).astype(np.uint64)[:, None]
        blocks = np.arange(blocks_from, blocks_to, dtype=np.uint64)[None, :]
        counter = np.zeros((n, blocks_to - blocks_from, 4), dtype=np.uint64)
        counter[..., 0], counter[..., 1] = blocks & _LOW, blocks >> _SHIFT
        counter[..., 2], counter[..., 3] = samples & _LOW, samples >> _SHIFT
        words = philox4x32(counter, self.key)
        high, low = words[..., 0::2] >> np.uint64(5), words[..., 1::2] >> np.uint64(6)
        doubles = (high.astype(np.float64) * 67108864.0 + low) / 9007199254740992.0
        offset = step - 2 * blocks_from
        return doubles.reshape(n, -1)[:, offset : offset + width]

    def generator(self) -> np.random.Generator:
        """A NumPy generator of this stream's own, for work that is not split into samples.

        Depends on (seed, names, first).
        """
        text = repr((int(self.seed), self.path, int(self.first), "generator")).encode()
        digest = hashlib.blake2b(text, digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
