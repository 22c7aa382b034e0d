"""Watch a sampler: frames -> terminal animation, animated GIF.

A sampler yields a frame after every step; this file draws frames and knows nothing else of ours:

    show = lambda id: "░" if id == mask_id else chr(id)
    frames = list(view.terminal(objective.sample(...), show, mask_id))
    view.gif("sample.gif", frames, show, mask_id)

Every drawing starts from the same board: the first `rows` samples as rows of `Cell`s. Insertion
models slide text and change `length`, so a frame is drawn by itself, never as a difference.
"""

import os
import shutil
import sys
import time
import unicodedata
from functools import cache
from importlib.util import find_spec
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Literal, NamedTuple, Protocol, TextIO, TypeVar

from torch import Tensor

ANSI = {"given": "94", "new": "1;92", "old": "", "mask": "2", "pad": "2"}  # SGR codes
# without automatic wrapping a character wider than we think cannot push a row onto two lines
HIDE, RESTORE = "\x1b[?25l\x1b[?7l", "\x1b[0m\x1b[?7h\x1b[?25h"
STAND_IN = {"\n": "⏎", "\r": "←", "\t": "→"}  # any other unprintable character: ·

PAPER, HEADER, TRACK, BAR = (13, 17, 23), (139, 148, 158), (33, 38, 45), (46, 160, 67)
COLOURS = {  # tile, text: RGB
    "given": ((20, 52, 98), (140, 200, 255)),
    "new": ((22, 92, 48), (126, 255, 160)),
    "old": ((27, 33, 42), (226, 232, 239)),
    "mask": ((56, 64, 75), (56, 64, 75)),  # a plain block
    "pad": (PAPER, (60, 68, 79)),
}
FONT_PX, WIDTH_PX = 30, 1200  # twice what a page shows (sharp on dense screens); width at most
WIDEST = 12  # columns of text that fit a tile; longer tokens are cut
HOLD_MS = 2000  # the last picture of a GIF stays this long


class Frame(Protocol):
    """What a sampler yields after a step. Any object with these three attributes will do."""

    @property
    def ids(self) -> Tensor: ...  # (B, T) int64
    @property
    def length(self) -> Tensor: ...  # (B,) int64: positions from here on are padding
    @property
    def changed(self) -> Tensor: ...  # (B, T) bool: written in this step


F = TypeVar("F", bound=Frame)
ShowToken = Callable[[int], str]


# ---- boards: what there is to draw ---------------------------------------------------------------


class Cell(NamedTuple):
    """One position: printable text (perhaps empty, never a line break) and where it is from."""

    text: str
    kind: Literal["given", "new", "old", "mask", "pad"]


Board = list[list[Cell]]


def cells(
    ids_row: Iterable[int],
    changed_row: Iterable[bool],
    given_row: Iterable[bool],
    length: int,
    show_token: ShowToken,
    mask_id: int | None,
) -> list[Cell]:
    """One sample as cells. The three rows have T entries; `mask_id` None: no id is a mask.

    A mask is a mask even where the step wrote it (remasking), and a given token is never new.
    """
    row = []
    for t, (i, changed, given) in enumerate(zip(ids_row, changed_row, given_row, strict=True)):
        if t >= length:
            kind = "pad"
        elif i == mask_id:
            kind = "mask"
        else:
            kind = "given" if given else "new" if changed else "old"
        row.append(Cell(_printable(show_token(i)), kind))
    return row


def carry(
    before: list[Any], ids: list[int], changed: list[bool], mask_id: int | None, new: Callable
) -> list[Any]:
    """The values of the tokens `ids` after insertions, from the values `before` of the last frame.
    Inserted tokens (all that changed, or with masks the changed masks) get new(); the others keep
    theirs, in order. Tokens at the end may have been cut off."""
    kept, values = iter(before), []
    for i, written in zip(ids, changed, strict=True):
        inserted = written and mask_id in (None, i)
        values.append(new() if inserted else next(kept, None))
    assert None not in values, (len(before), ids, changed)
    return values


class _Given:
    """Which tokens of a frame belong to the prompt, row by row: the positions in prompt_mask,
    or with insertions, where tokens move, those of the first frame. `of` must be called on every
    frame."""

    def __init__(self, prompt_mask: Tensor | None, rows: int, mask_id: int | None, inserts: bool):
        self.rows = None if inserts else [] if prompt_mask is None else prompt_mask[:rows].tolist()
        self.inserts, self.mask_id = inserts, mask_id

    def of(self, shot: "_Shot") -> list[list[bool]]:
        if self.rows is None:
            self.rows = [[True] * n for n in shot.length]
        elif self.inserts:
            part = zip(self.rows, shot.ids, shot.changed, shot.length, strict=True)
            self.rows = [carry(r, i[:n], c[:n], self.mask_id, bool) for r, i, c, n in part]
        return self.rows


class _Shot(NamedTuple):
    """A frame as plain lists: off the device, and safe from samplers that reuse their tensors."""

    ids: list[list[int]]
    length: list[int]
    changed: list[list[bool]]


def _shot(frame: Frame, rows: int) -> _Shot:
    picked = (part[:rows].tolist() for part in (frame.ids, frame.length, frame.changed))
    return _Shot(*picked)


def _board(
    shot: _Shot, show: ShowToken, mask_id: int | None, prompt_mask: list[list[bool]]
) -> Board:
    board = []
    for b, ids in enumerate(shot.ids):
        is_given = prompt_mask[b] if b < len(prompt_mask) else []
        is_given = (is_given + [False] * len(ids))[: len(ids)]  # a canvas may grow while sampling
        board.append(cells(ids, shot.changed[b], is_given, shot.length[b], show, mask_id))
    return board


def _status(board: Board, mask_id: int | None) -> str:
    """Progress: the share of written positions, or without masks the number of tokens."""
    kinds = [cell.kind for row in board for cell in row]
    new, written = kinds.count("new"), kinds.count("new") + kinds.count("old")
    if mask_id is None:
        return f"{written} tokens, {new} new"
    total = written + kinds.count("mask")
    return f"{100 * written // total if total else 100} % written"


def _printable(text: str) -> str:
    """The text with a stand-in for each unprintable character, which could move the cursor."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else STAND_IN.get(c, "·") for c in text)


@cache
def _width(char: str) -> int:
    """Terminal columns that a printable character takes: 0 if combining, 2 if East Asian wide."""
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def _fitting(chars: str | list[str], width: int) -> int:
    """Number of characters that fit `width` columns: all, or as many as leave a column for …"""
    ends = list(accumulate(map(_width, chars)))
    return len(chars) if not ends or ends[-1] <= width else sum(end < width for end in ends)


# ---- terminal ------------------------------------------------------------------------------------


def terminal(
    frames: Iterable[F],
    show_token: ShowToken,
    mask_id: int | None = None,
    prompt_mask: Tensor | None = None,
    rows: int = 4,
    fps: float = 20,
    file: TextIO | None = None,
    inserts: bool = False,
) -> Iterator[F]:
    """Pass the frames through, drawing the first `rows` samples of each in place on a terminal.

    prompt_mask: (B, T) bool. inserts: tokens are inserted, and the prompt is the first frame. fps:
    at most so many frames a second (0: no limit). file: by default sys.stdout. If it is not a
    terminal, the rows of the last frame are printed as plain text when the frames end. $NO_COLOR
    turns the colours off.
    """
    file, show = file or sys.stdout, cache(show_token)
    prompt, marks = _Given(prompt_mask, rows, mask_id, inserts), []
    animate = file.isatty() and os.environ.get("TERM") != "dumb"
    shot, drawn, due = None, 0, 0.0
    try:
        for step, frame in enumerate(frames, 1):
            shot = _shot(frame, rows)
            marks = prompt.of(shot)
            if animate:
                time.sleep(max(0.0, due - time.monotonic()))
                due = time.monotonic() + (1 / fps if fps else 0)
                board = _board(shot, show, mask_id, marks)
                lines = _screen(board, f"step {step:4d}  {_status(board, mask_id)}")
                text, drawn = _redraw(lines, drawn), len(lines)  # first: Ctrl-C while writing
                _write(file, text)
            yield frame
    finally:
        if drawn:
            _write(file, RESTORE)
    if shot and not animate:
        for row in _board(shot, show, mask_id, marks):
            _write(file, "".join(c.text for c in row if c.kind != "pad") + "\n")


def _screen(board: Board, header: str) -> list[str]:
    """The header and as many rows as the terminal has room for, cut to its width."""
    width, height = shutil.get_terminal_size()
    colour = not os.environ.get("NO_COLOR")
    board = board[: max(1, height - 2)]  # the cursor cannot go up to what has scrolled away
    return [_paint([Cell(header, "old")], width, colour)] + [
        _paint(r, width, colour) for r in board
    ]


def _redraw(lines: list[str], drawn: int) -> str:
    """Text that draws the lines over the `drawn` ones above the cursor, which ends below them."""
    start = f"\r\x1b[{drawn}A" if drawn else HIDE
    return start + "".join(line + "\x1b[K\n" for line in lines) + "\x1b[J"


def _paint(row: list[Cell], width: int, colour: bool) -> str:
    """A row as terminal text of at most `width` columns; … says that there is more."""
    chars = [(char, cell.kind) for cell in row for char in cell.text]
    room = _fitting([char for char, _ in chars], width)
    if room < len(chars):
        chars = [*chars[:room], ("…", "pad")]
    parts = []
    for kind, run in groupby(chars, key=lambda c: c[1]):
        text = "".join(char for char, _ in run)
        parts.append(f"\x1b[{ANSI[kind]}m{text}\x1b[0m" if colour and ANSI[kind] else text)
    return "".join(parts)


def _write(file: TextIO, text: str) -> None:
    """Write the text; characters that the file's encoding lacks become question marks."""
    encoding = getattr(file, "encoding", None) or "utf-8"
    file.write(text.encode(encoding, "replace").decode(encoding))
    file.flush()


# ---- GIF -----------------------------------------------------------------------------------------


def gif(
    path: str | Path,
    frames: Iterable[Frame],
    show_token: ShowToken,
    mask_id: int | None = None,
    prompt_mask: Tensor | None = None,
    rows: int = 4,
    fps: float = 8,
    columns: int = 32,
    max_frames: int = 200,
    inserts: bool = False,
) -> None:
    """Write the first `rows` samples of each frame as an animated GIF, complete or not at all.

    prompt_mask, inserts: as in `terminal`. columns: one-character tiles per line. max_frames: at
    least 2; of more frames an even selection is drawn, with the first and the last. Raises
    ModuleNotFoundError without Pillow, ValueError without frames, and what `frames` raises.
    """
    pillow = _pillow()
    show, prompt = cache(show_token), _Given(prompt_mask, rows, mask_id, inserts)
    shots = [_shot(frame, rows) for frame in frames]
    if not shots:
        raise ValueError(f"{path}: no frames to draw")
    picked = _evenly(len(shots), max_frames)
    starts = [0] + [i + 1 for i in picked[:-1]]
    merged = [_merge(shots[a : b + 1]) for a, b in zip(starts, picked, strict=True)]
    marks = [prompt.of(shot) for shot in shots]
    boards = [_board(shot, show, mask_id, marks[i]) for i, shot in zip(picked, merged, strict=True)]
    picture = _Picture(pillow, boards, columns)
    images = [
        picture.draw(board, i + 1, len(shots), _status(board, mask_id))
        for i, board in zip(picked, boards, strict=True)
    ]
    _save(Path(path), images, fps)


def _save(path: Path, images: list[Any], fps: float) -> None:
    """Write an animation under a temporary name, then rename it."""
    pause = max(20, int(round(1000 / fps, -1)))  # ms; GIFs count hundredths, browsers refuse one
    times = [pause] * (len(images) - 1) + [HOLD_MS]
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    rest = {"save_all": True, "append_images": images[1:], "duration": times, "loop": 0}
    try:
        images[0].save(partial, format="GIF", **rest)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _pillow() -> Any:
    """The package PIL with the modules that we use loaded."""
    hint = "a GIF needs Pillow 10.1 or newer: pip install pillow"
    try:
        import PIL.Image
        import PIL.ImageDraw
        import PIL.ImageFont
    except ImportError as e:
        raise ModuleNotFoundError(hint) from e
    if tuple(int(n) for n in PIL.__version__.split(".")[:2]) < (10, 1):  # a font without a file
        raise ModuleNotFoundError(hint)
    return PIL


def _evenly(n: int, count: int) -> list[int]:
    """At most `count` evenly spaced indices of 0 ... n - 1, including the first and the last."""
    assert count >= 2, count
    if n <= count:
        return list(range(n))
    return [round(k * (n - 1) / (count - 1)) for k in range(count)]


def _merge(shots: list[_Shot]) -> _Shot:
    """The last shot, with what changed in those before it, which are not drawn, also marked.

    Only in rows that kept their length meanwhile: elsewhere the text has moved.
    """
    last = shots[-1]
    changed = [list(row) for row in last.changed]
    for shot in shots[:-1]:
        for b, row in enumerate(shot.changed):
            if all(s.length[b] == last.length[b] and len(s.ids[b]) == len(row) for s in shots):
                changed[b] = [old or new for old, new in zip(row, changed[b], strict=True)]
    return last._replace(changed=changed)


class _Picture:
    """Draws boards as images of one size: a header, a grid of tiles, a progress bar.

    All lengths are in pixels and follow from the font's, `em`. Every token has a tile of the same
    size, so text stands still while tokens change.
    """

    def __init__(self, pillow: Any, boards: list[Board], columns: int):
        self.pillow, self.tiles = pillow, {}
        every = [row for board in boards for row in board]
        used = [
            max((t + 1 for t, c in enumerate(row) if c.kind != "pad"), default=0) for row in every
        ]
        long = max([1, *used])
        texts = {cell.text for row in every for cell in row[:long]}
        self.chars = min(WIDEST, max([1, *(sum(map(_width, text)) for text in texts)]))
        wide = 0.6 * self.chars + 0.5  # em: 0.6 per character is the advance of monospaced fonts
        fit = max(1, int(columns * 1.1 / wide))
        self.lines = -(-long // fit)  # of one sample
        self.across = -(-long // self.lines)
        self.em = max(8, min(FONT_PX, int(WIDTH_PX / (self.across * wide + 2.4))))
        em = self.em
        self.tile_w, self.tile_h, self.gap = round(wide * em), round(1.5 * em), max(1, em // 10)
        self.pad, self.top = round(1.2 * em), round(3.1 * em)
        self.apart = round(0.55 * em) if self.lines > 1 else 0  # between samples
        high = max(len(board) for board in boards) * (self.lines * self.tile_h + self.apart)
        self.width = 2 * self.pad + max(self.across * self.tile_w - self.gap, 18 * em)
        self.height = self.top + high - self.apart + round(2.4 * em)
        self.font, self.small = _font(pillow, em), _font(pillow, round(0.8 * em))
        self.palette = _palette(pillow)

    def draw(self, board: Board, step: int, steps: int, status: str) -> Any:
        """One frame as a palette image."""
        image = self.pillow.Image.new("RGB", (self.width, self.height), PAPER)
        draw = self.pillow.ImageDraw.Draw(image)
        left, right, base = self.pad, self.width - self.pad, round(1.9 * self.em)
        draw.text((left, base), f"step {step} / {steps}", HEADER, self.small, anchor="ls")
        draw.text((right, base), status, HEADER, self.small, anchor="rs")
        for b, row in enumerate(board):
            for t, cell in enumerate(row[: self.lines * self.across]):
                image.paste(self.tile(cell), self.corner(b, t))
        thick, below = max(2, self.em // 5), self.height - self.pad
        for end, colour in ((right, TRACK), (left + (right - left) * step / steps, BAR)):
            draw.rounded_rectangle((left, below - thick, end, below), thick // 2, colour)
        return image.quantize(palette=self.palette, dither=self.pillow.Image.Dither.NONE)

    def corner(self, b: int, t: int) -> tuple[int, int]:
        """Left upper pixel of the tile of position t of sample b."""
        line, column = divmod(t, self.across)
        y = self.top + (b * self.lines + line) * self.tile_h + b * self.apart
        return self.pad + column * self.tile_w, y

    def tile(self, cell: Cell) -> Any:
        """The picture of a cell; drawn once, as a sampler shows the same tokens again and again."""
        if cell in self.tiles:
            return self.tiles[cell]
        fill, ink = COLOURS[cell.kind]
        wide, high = self.tile_w - self.gap, self.tile_h - self.gap
        image = self.pillow.Image.new("RGB", (4 * wide, 4 * high), PAPER)  # 4: smooth corners
        corners = (0, 0, 4 * wide - 1, 4 * high - 1)
        self.pillow.ImageDraw.Draw(image).rounded_rectangle(corners, 0.6 * self.em, fill)
        image = image.reduce(4)
        room = _fitting(cell.text, self.chars)
        text = cell.text if room == len(cell.text) else cell.text[:room] + "…"
        spot = (wide / 2, high / 2 + 0.36 * self.em)  # 0.36: half the height of a capital
        self.pillow.ImageDraw.Draw(image).text(spot, text, ink, self.font, anchor="ms")
        self.tiles[cell] = image
        return image


def _font(pillow: Any, size: int) -> Any:
    """DejaVu Sans Mono of the system or of matplotlib, else the font inside Pillow.

    A character that the font lacks is drawn as the font's box for it.
    """
    names = ["DejaVuSansMono.ttf"]
    spec = find_spec("matplotlib")  # not imported: that takes longer than the drawing
    if spec and spec.origin:
        names.append(str(Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSansMono.ttf"))
    for name in names:
        try:
            return pillow.ImageFont.truetype(name, size)
        except OSError:
            continue
    return pillow.ImageFont.load_default(size)


def _palette(pillow: Any) -> Any:
    """The colours of every tile, its text and the steps between (smooth edges), as an image: one
    palette for all frames, so that nothing flickers, and none is stored twice."""
    pairs = [(tile, ink, 12) for tile, ink in COLOURS.values()]
    pairs += [(PAPER, tile, 4) for tile, _ in COLOURS.values()]
    pairs += [(PAPER, HEADER, 12), (PAPER, TRACK, 1), (PAPER, BAR, 1)]
    mixed = {
        tuple(round(x + (y - x) * k / n) for x, y in zip(a, b, strict=True))
        for a, b, n in pairs
        for k in range(n + 1)
    }
    image = pillow.Image.new("P", (1, 1))
    image.putpalette([part for colour in sorted(mixed) for part in colour])
    return image
