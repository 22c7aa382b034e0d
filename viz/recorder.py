"""What a sampler drew: for whoever watches one, and asks.

    with recorder.recording() as notes:
        for frame in objective.sample(...):
            drawn = notes.take()  # {(row, column of the frame): Drawn}

objective.draw_tokens says what it draws, the sampler where it writes that; unless somebody is
recording, neither costs more than a comparison.
"""

from contextlib import contextmanager
from typing import Iterator, NamedTuple

import torch
from torch import Tensor


class Drawn(NamedTuple):
    """A token and what it was drawn from: the sampler's distribution before temperature, top_k and
    top_p, which hide what the network doubts."""

    id: int
    p: float
    best: list[tuple[int, float]]  # ids and probabilities, the most probable first


class Recorder:
    """The draws of one step after another, of the first `rows` samples, with `best` candidates."""

    def __init__(self, rows: int, best: int):
        self.rows, self.best = rows, best
        self.pending: list[tuple[Tensor, ...]] = []  # drawn, but not yet written
        self.written: dict[tuple[int, int], Drawn] = {}

    def draw(self, logits: Tensor, ids: Tensor) -> None:
        p = logits.double().softmax(-1)
        top = p.topk(min(self.best, p.shape[-1]))
        self.pending.append((ids, p.gather(-1, ids[:, None])[:, 0], top.indices, top.values))

    def write(self, row: Tensor, columns: tuple[Tensor, ...]) -> None:
        if not self.pending:
            return
        parts = [torch.cat(p) for p in zip(*self.pending, strict=True)]
        self.pending = []
        assert len(parts[0]) == len(row), (len(parts[0]), len(row))
        ours = row < self.rows
        told = zip(*(part[ours].tolist() for part in (row, *parts)), strict=True)
        places = zip(*(c[ours].tolist() for c in columns), strict=True)
        for (b, i, p, best, share), where in zip(told, places, strict=True):
            pairs = [(j, q) for j, q in zip(best, share, strict=True) if q > 0]
            self.written.update({(b, column): Drawn(i, p, pairs) for column in where})

    def take(self) -> dict[tuple[int, int], Drawn]:
        """What was written since the last call."""
        taken, self.written = self.written, {}
        return taken


_active: Recorder | None = None


@contextmanager
def recording(rows: int = 8, best: int = 5) -> Iterator[Recorder]:
    """Record what samplers draw for the time of a block."""
    global _active
    before, _active = _active, Recorder(rows, best)
    try:
        yield _active
    finally:
        _active = before


def active() -> bool:
    """Is somebody recording?"""
    return _active is not None


def drew(logits: Tensor, ids: Tensor) -> None:
    """Tokens ids (R,) were drawn from logits (R, V)."""
    if _active is not None:
        _active.draw(logits, ids)


def wrote(row: Tensor, *columns: Tensor) -> None:
    """What was drawn since the last call stands now at rows (R,) and columns (R,) of the canvas, in
    the order of the draws. Further columns are places that hold the same token: of a mirrored
    pair. Says nothing where nothing was drawn."""
    if _active is not None:
        _active.write(row, columns)
