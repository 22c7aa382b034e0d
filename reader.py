"""In what order a corpus is read for training, and when: every place of an endless shuffled reading
can be computed at once, and a thread reads ahead."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable

import numpy as np

from corpus import Batch, Corpus


def shuffled(places: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Places (N,) in an endless shuffled reading of `size` rows -> row numbers (N,).

    Each epoch is a permutation of its own, computed place by place (a four-round Feistel network
    on the smallest even number of bits, walked until it lands inside), so that the order of a
    trillion rows takes no memory and any place can be reached at once.
    """
    half = max(1, (int(size - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    epoch, value = np.divmod(places.astype(np.uint64), np.uint64(size))
    key = epoch * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed % (1 << 63))
    pending = np.ones(len(places), bool)
    while pending.any():
        left, right = value[pending] >> np.uint64(half), value[pending] & low
        for turn in range(4):
            mixed = _mix(right + (key[pending] ^ np.uint64(turn << 56)))
            left, right = right, left ^ (mixed & low)
        value[pending] = (left << np.uint64(half)) | right
        pending = value >= size
    return value.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64: a well-mixed 64-bit hash of each element; arithmetic wraps around."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def dealt(
    corpus: Corpus, split: str, seed: int, number: int, size: int, parts: int, block: int
) -> np.ndarray:
    """Rows (size,) of micro-batch `number` of a shuffled reading. The rows of a step, which takes
    `parts` micro-batches, are dealt to them by length: those of short rows are narrow, and the sum
    that the step takes is the same. For `ragged` objectives only: where the padding of a batch is
    learnt, its width would come to tell how long a text is."""
    step, part = divmod(number, parts)
    places = np.arange(step * parts * size, (step + 1) * parts * size)
    rows = shuffled(places, corpus.windows(split, block), seed)
    if parts == 1 or not corpus.rows(split):
        return rows[part * size : (part + 1) * size]
    by_length = np.argsort(corpus.lengths(split, rows), kind="stable")
    return rows[np.sort(by_length[part * size : (part + 1) * size])]  # within it, still shuffled


class Ahead:
    """Batches by number, read in a thread of its own: the next one while this one is used."""

    def __init__(self, read: Callable[[int], Batch]):
        self.read, self.thread = read, ThreadPoolExecutor(1, "reader")
        self.coming: dict[int, Future] = {}

    def get(self, number: int, following: int) -> Batch:
        """Batch `number`; `following` is what will be asked for next."""
        found = self.coming.pop(number, None) or self.thread.submit(self.read, number)
        batch = found.result()
        self.coming = {following: self.thread.submit(self.read, following)}
        return batch
