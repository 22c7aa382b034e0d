"""Frames of a sampler -> the history of every token, for viz/page.py.

    trace = Trace("stage 1", show_token, mask_id, inserts=objective.inserts)
    options = replace(options, candidates=Trace.best)  # frames then carry the candidates
    generate(model, canvases, options, watch=trace.watch)
    page.write("sample.html", [trace], "A title")

A token is one position of the canvas, or with insertion models a token that moves as others are
inserted before it (view.carry). Its history lists its ids and the frames in which they begin.
"""

from dataclasses import dataclass, field
from typing import Any, Callable, Iterable, Iterator, NamedTuple

from torch import Tensor

from viz.view import STAND_IN, Frame, ShowToken, carry

GONE = -1  # id of a token that is not in the text


class Drawn(NamedTuple):
    """A token and the candidates that it was drawn from (objective.Draws)."""

    id: int
    p: float
    best: list[tuple[int, float]]  # ids and probabilities, the most probable first


def by_place(draws: Any, rows: int) -> dict[tuple[int, int], Drawn]:
    """The draws of a frame, or None, by (row, column), for the first `rows` rows."""
    if draws is None:
        return {}
    drawn = {}
    for b, t, i, p, best, share in zip(*(part.tolist() for part in draws), strict=True):
        if b < rows:
            pairs = [(j, q) for j, q in zip(best, share, strict=True) if q > 0]
            drawn[b, t] = Drawn(i, p, pairs)
    return drawn


@dataclass(eq=False)
class Token:
    """One token: entries (frame, id, draw or None), the earliest first."""

    given: bool = False
    history: list[tuple[int, int, Drawn | None]] = field(default_factory=list)

    def now(self) -> int:
        return self.history[-1][1] if self.history else GONE

    def become(self, step: int, id: int, drawn: Drawn | None) -> None:
        """A frame shows this id; draws of another one do not count."""
        if id != self.now():
            drawn = drawn if drawn is not None and drawn.id == id else None
            self.history.append((step, id, drawn))


class Trace:
    """One run of a sampler: the first `rows` samples, without their first `skip` positions.

    show_token: id -> text, empty for hidden tokens. inserts: tokens are inserted, and those of the
    first frame are the prompt. note: a sentence for the reader of the page.
    """

    best = 5  # candidates of every draw

    def __init__(
        self,
        name: str,
        show_token: ShowToken,
        mask_id: int | None = None,
        *,
        inserts: bool = False,
        rows: int = 8,
        skip: int = 0,
        note: str = "",
    ):
        self.name, self.show, self.mask_id, self.note = name, show_token, mask_id, note
        self.inserts, self.rows, self.skip = inserts, rows, skip
        self.steps = 0
        self.lines: list[list[Token]] = []  # of each sample, the tokens in their order
        self.gone: list[list[Token]] = []  # those that fell off the end

    def watch(
        self,
        frames: Iterable[Frame],
        prompt_mask: Tensor,
        then: Callable = lambda frames, prompt_mask: frames,
    ) -> Iterator[Frame]:
        """A `watch` for `generate`: records the frames of `then`, another `watch`, and passes them
        on."""
        for frame in then(frames, prompt_mask):
            self.see(frame, prompt_mask, by_place(frame.draws, self.rows))
            yield frame

    def see(self, frame: Frame, prompt_mask: Tensor, drawn: dict[tuple[int, int], Drawn]) -> None:
        """Record a frame; prompt_mask (B, T) bool; `drawn` as `by_place` returns it."""
        ids, length, changed, fixed = (
            part[: self.rows].tolist()
            for part in (frame.ids, frame.length, frame.changed, prompt_mask)
        )
        if not self.steps:
            self.lines, self.gone = [[] for _ in ids], [[] for _ in ids]
        for b, row in enumerate(ids):
            if self.inserts:
                self.place(b, row[: length[b]], changed[b][: length[b]])
            else:
                more = range(len(self.lines[b]), len(row))  # a canvas may widen
                self.lines[b] += [Token(t < len(fixed[b]) and fixed[b][t]) for t in more]
            for t, token in enumerate(self.lines[b]):
                now = row[t] if t < min(length[b], len(row)) else GONE
                token.become(self.steps, now, drawn.get((b, t)))
        self.steps += 1

    def place(self, b: int, ids: list[int], changed: list[bool]) -> None:
        """Match the tokens of sample b to those of the frame before, after insertions."""
        if not self.steps:
            self.lines[b] = [Token(True) for _ in ids]
            return
        before = self.lines[b]
        self.lines[b] = carry(before, ids, changed, self.mask_id, Token)
        kept = set(map(id, self.lines[b]))
        lost = [token for token in before if id(token) not in kept]
        for token in lost:
            token.become(self.steps, GONE, None)
        self.gone[b] = lost + self.gone[b]

    # -- plain data --

    def data(self) -> dict[str, Any]:
        """The data that viz/page.py embeds, in types of JSON:

        samples: a list of tokens each, {"given": bool, "history": [[frame, id, p, best], ...]}, p
        and best null where nothing was drawn, best [[id, p], ...]; texts: {str(id): text}; frames:
        how many; mask: an id, or null. Tokens that never show any text are left out.
        """
        samples = [
            [entry for token in line[self.skip :] + rest if (entry := self.entry(token))]
            for line, rest in zip(self.lines, self.gone, strict=True)
        ]
        histories = [h for sample in samples for token in sample for h in token["history"]]
        ids = {i for _, i, _, best in histories for i in (i, *(j for j, _ in best or []))}
        return {
            "name": self.name,
            "note": self.note,
            "frames": self.steps,
            "inserts": self.inserts,
            "mask": self.mask_id,
            "texts": {str(i): readable(self.show(i)) for i in sorted(ids - {GONE})},
            "samples": samples,
        }

    def entry(self, token: Token) -> dict[str, Any] | None:
        if not any(self.show(i) for _, i, _ in token.history if i != GONE):
            return None
        history = [
            [step, i, None, None]
            if drawn is None
            else [step, i, _short(drawn.p), [[j, _short(p)] for j, p in drawn.best]]
            for step, i, drawn in token.history
        ]
        return {"given": token.given, "history": history}


def _short(p: float) -> float:
    """A probability with four digits, so that a page stays small."""
    return float(f"{p:.4g}")


def readable(text: str) -> str:
    """The text with a sign for each unprintable character; a line break stays, after its sign."""
    signs = (c if c.isprintable() else STAND_IN.get(c, "·") for c in text)
    return "".join(sign + "\n" * (c == "\n") for c, sign in zip(text, signs, strict=True))
