"""Animations: what is on a terminal's screen, what is in a GIF's pixels, what failures leave."""

import io
import re
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, Iterator, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont
from torch import Tensor

from viz import view

MASK, PAD = 1000, 1001
ESC = "\x1b"


class Frame(NamedTuple):
    ids: Tensor
    length: Tensor
    changed: Tensor


def show(i: int) -> str:
    return {MASK: "░", PAD: ""}.get(i) or (chr(i) if i < MASK else "")


def frame(rows: list[str], changed: list[str] | None = None) -> Frame:
    """One character is one token: _ is a mask, . the padding behind the text, ^ a changed place."""
    lengths = [len(row.rstrip(".")) for row in rows]
    ids = [[{"_": MASK, ".": PAD}.get(c, ord(c)) for c in row] for row in rows]
    marks = changed or [" " * len(row) for row in rows]
    flags = [[c == "^" for c in row] for row in marks]
    return Frame(torch.tensor(ids), torch.tensor(lengths), torch.tensor(flags))


def known(rows: list[str]) -> Tensor:
    return torch.tensor([[c == "^" for c in row] for row in rows])


# ---- cells -------------------------------------------------------------------------------------


def kinds(ids: list[int], changed: list[int], fixed: list[int], length: int) -> str:
    row = view.cells(ids, map(bool, changed), map(bool, fixed), length, show, MASK)
    return " ".join(cell.kind for cell in row)


def test_every_kind_of_cell() -> None:
    got = kinds([97, 98, 99, MASK, PAD], [0, 1, 0, 0, 0], [1, 0, 0, 0, 0], 4)
    assert got == "given new old mask pad"


def test_masks_win_over_new_given_over_new_and_padding_over_all() -> None:
    assert kinds([MASK, 97, MASK, 97], [1, 1, 1, 1], [0, 1, 0, 1], 2) == "mask given pad pad"


def test_rows_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError):
        view.cells([1, 2], [True], [False, False], 2, show, MASK)


@given(st.text(st.characters()))  # every code point, surrogates and controls among them
def test_text_of_a_cell_is_printable_and_keeps_its_count(text: str) -> None:
    (cell,) = view.cells([0], [False], [False], 1, lambda i: text, None)
    assert cell.text.isprintable() and len(cell.text) == len(text)
    cell.text.encode("utf-8")


def test_line_breaks_and_tabs_have_their_own_sign() -> None:
    assert view.cells([0], [False], [False], 1, lambda i: "a\n\t\x1b", None)[0].text == "a⏎→·"


# ---- a terminal --------------------------------------------------------------------------------


class Screen(io.StringIO):
    """A fake terminal. `read` interprets what was written to it, and knows just the codes below;
    any other stops the test."""

    code = re.compile(r"\x1b\[(\??)(\d*(?:;\d+)*)([A-Za-z])|(.)", re.DOTALL)

    def __init__(self, columns: int = 80):
        super().__init__()
        self.columns = columns

    def isatty(self) -> bool:
        return True

    def read_screen(self) -> "Screen":
        self.cells: dict[tuple[int, int], tuple[str, str]] = {}  # (y, x) -> character, colour
        self.x = self.y = 0
        self.colour, self.modes = "", {"25": True, "7": True}  # cursor visible, automatic wrap
        for private, numbers, letter, char in self.code.findall(self.getvalue()):
            if char:
                self.put(char)
            else:
                self.control(private + letter, numbers)
        return self

    def put(self, char: str) -> None:
        if char == "\r":
            self.x = 0
        elif char == "\n":
            self.x, self.y = 0, self.y + 1  # a terminal's driver adds the \r
        else:
            assert char.isprintable() and self.x < self.columns, (char, self.x)
            self.cells[self.y, self.x] = (char, self.colour)
            self.x += view._width(char)

    def control(self, what: str, numbers: str) -> None:
        if what in ("?l", "?h"):
            self.modes[numbers] = what == "?h"
        elif what == "m":
            self.colour = "" if numbers == "0" else numbers
        elif what == "A":
            self.y -= int(numbers)
            assert self.y >= 0
        elif what == "K":
            self.erase(lambda y, x: y == self.y and x >= self.x)
        elif what == "J":
            self.erase(lambda y, x: y > self.y or (y == self.y and x >= self.x))
        else:
            raise AssertionError(f"unexpected control sequence {what!r}")

    def erase(self, where: Any) -> None:
        self.cells = {spot: c for spot, c in self.cells.items() if not where(*spot)}

    def lines(self) -> list[str]:
        last = max((y for y, _ in self.cells), default=-1)
        rows = [
            sorted((x, c) for (y, x), (c, _) in self.cells.items() if y == n)
            for n in range(last + 1)
        ]
        return ["".join(c for _, c in row) for row in rows]

    def colours(self, y: int) -> list[str]:
        return [colour for (row, _), (_, colour) in sorted(self.cells.items()) if row == y]


@pytest.fixture(autouse=True)
def usual_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COLUMNS": "80", "LINES": "24", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)


STORY = [
    frame(["ab____", "cd____"], ["  ^   ", "    ^ "]),
    frame(["abx___", "cd__y_"], ["  ^   ", "    ^ "]),
    frame(["abx_zz", "cdwwy_"], ["    ^^", "  ^^  "]),
]
FIXED = known(["^^    ", "^^    "])


def played(frames: Any, fixed: Tensor | None = None, columns: int = 80, **options: Any) -> Screen:
    screen = Screen(columns)
    options = {"mask_id": MASK, "fps": 0, **options}
    list(view.terminal(frames, show, prompt_mask=fixed, file=screen, **options))
    return screen.read_screen()


def test_the_last_frame_stays_on_the_screen_and_the_cursor_below_it() -> None:
    screen = played(STORY, FIXED)
    assert screen.lines() == ["step    3  75 % written", "abx░zz", "cdwwy░"]
    assert (screen.y, screen.x) == (3, 0)
    assert screen.modes == {"25": True, "7": True} and screen.colour == ""


def test_colours_say_where_a_token_is_from() -> None:
    screen = played(STORY, FIXED)
    blue, green, dim = "94", "1;92", "2"
    assert screen.colours(1) == [blue, blue, "", dim, green, green]
    assert screen.colours(2) == [blue, blue, green, green, "", dim]


def test_what_stood_on_the_screen_before_is_left_alone() -> None:
    screen = Screen()
    screen.write("$ sample\n")
    list(view.terminal(STORY, show, MASK, fps=0, file=screen))
    assert screen.read_screen().lines()[0] == "$ sample" and len(screen.lines()) == 4


def test_frames_pass_through_one_by_one() -> None:
    asked = []

    def frames() -> Iterator[Frame]:
        for f in STORY:
            asked.append(f)
            yield f

    for n, got in enumerate(view.terminal(frames(), show, MASK, fps=0, file=Screen()), 1):
        assert got is asked[-1] and len(asked) == n


def test_no_colour_still_animates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    screen = played(STORY, FIXED)
    assert screen.lines()[1:] == ["abx░zz", "cdwwy░"]
    assert {colour for _, colour in screen.cells.values()} == {""}
    assert set(re.findall(r"\x1b\[[\d;]*m", screen.getvalue())) == {"\x1b[0m"}


@pytest.mark.parametrize("columns", [1, 2, 5, 6, 30])
def test_rows_are_cut_to_the_width(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    row = played([frame(["abcdef"])], columns=columns).lines()[1]
    assert row == ("abcdef" if columns >= 6 else "abcdef"[: columns - 1] + "…")


def test_wide_characters_count_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "6")
    text = {0: "日本", 1: "語", 2: "x", 3: "e\u0301"}.get
    for ids, expected in (([0, 1], "日本語"), ([0, 1, 2], "日本…"), ([2, 0, 1], "x日本…")):
        still = torch.zeros(1, len(ids), dtype=torch.bool)
        f = Frame(torch.tensor([ids]), torch.tensor([len(ids)]), still)
        screen = Screen(6)
        list(view.terminal([f], text, fps=0, file=screen))
        assert screen.read_screen().lines()[1] == expected
    assert [view._width(c) for c in "e\u0301日"] == [1, 0, 2]


def test_rows_are_cut_to_the_height(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", "5")
    many = frame([c * 3 for c in "abcdefgh"])
    assert played([many, many], rows=8).lines()[1:] == ["aaa", "bbb", "ccc"]


def test_rows_limit_what_is_drawn() -> None:
    assert played(STORY, FIXED, rows=1).lines()[1:] == ["abx░zz"]


def test_control_characters_cannot_break_the_drawing() -> None:
    nasty = {0: "\n\n", 1: "\x1b[2J", 2: "\r", 3: "\t", 4: "\x07", 5: "\u2028", 6: "\ud800"}
    f = Frame(torch.arange(7)[None], torch.tensor([7]), torch.ones(1, 7, dtype=torch.bool))
    screen = Screen()
    list(view.terminal([f, f], nasty.__getitem__, fps=0, file=screen))
    assert screen.read_screen().lines()[1:] == ["⏎⏎·[2J←→···"]


def test_insertions_move_text_and_the_header_counts_tokens() -> None:
    frames = [
        frame(["b....", "....."], ["^    ", "     "]),
        frame(["ab...", "x...."], ["^    ", "^    "]),
        frame(["ab", "xy"], [" ^", "  "]),  # even a canvas that shrinks
    ]
    screen = played(frames[:2], mask_id=None)
    assert screen.lines() == ["step    2  3 tokens, 2 new", "ab", "x"]
    assert screen.colours(1) == ["1;92", ""]
    assert played(frames, mask_id=None).lines() == ["step    3  4 tokens, 1 new", "ab", "xy"]


GROWN = [  # bd is given; c is inserted, then a, and so much that the places do not tell it
    frame(["bd..", "x..."]),
    frame(["bcd.", "x..."], [" ^  ", "    "]),
    frame(["abcd", "xx.."], ["^   ", "^   "]),
]


def test_given_tokens_keep_their_colour_as_they_move() -> None:
    screen = played(GROWN, mask_id=None, inserts=True)
    assert screen.lines() == ["step    3  3 tokens, 2 new", "abcd", "xx"]
    blue, green = "94", "1;92"
    assert screen.colours(1) == [green, blue, "", blue] and screen.colours(2) == [green, blue]
    assert played(GROWN[:1], mask_id=None, inserts=True).colours(1) == [blue, blue]


def test_in_a_gif_too_and_past_frames_that_are_not_drawn(tmp_path: Path) -> None:
    view.gif(
        tmp_path / "a.gif", GROWN, show, None, known(["^^^^", "^^^^"]), max_frames=2, inserts=True
    )
    images, _ = pictures(tmp_path / "a.gif")
    grid = Grid(GROWN)
    for image, row in zip(
        images, (["given", "given"], ["new", "given", "old", "given"]), strict=True
    ):
        for t, kind in enumerate(row):
            part = image.crop(grid.box(0, t))
            pixels = [colour for _, colour in part.getcolors(part.width * part.height)]
            assert any(near(p, view.COLOURS[kind][1], 24) for p in pixels), (t, kind)


def test_nothing_is_left_of_a_longer_row_or_of_more_rows() -> None:
    shorter = [frame(["abcde", "vwxyz"]), frame(["ab", "xy"]), frame(["q"])]
    assert played(shorter[:2]).lines()[1:] == ["ab", "xy"]
    assert played(shorter).lines()[1:] == ["q"]


def test_given_may_be_shorter_than_a_canvas_that_grows() -> None:
    screen = played([frame(["a"]), frame(["abc"])], known(["^"]), mask_id=None)
    assert screen.colours(1) == ["94", "", ""]


@pytest.mark.parametrize(
    ("row", "words"), [("ab__", "0 %"), ("abc_", "50 %"), ("abcd", "100 %"), ("ab..", "100 %")]
)
def test_percentage_leaves_out_given_and_padding(row: str, words: str) -> None:
    header = played([frame([row])], known(["^^  "])).lines()[0]
    assert header == f"step    1  {words} written"


class Stop(Exception):
    pass


def failing() -> Iterator[Frame]:
    yield STORY[0]
    raise Stop


def test_the_cursor_is_back_after_an_exception_in_the_sampler() -> None:
    screen = Screen()
    with pytest.raises(Stop):
        list(view.terminal(failing(), show, MASK, fps=0, file=screen))
    assert screen.read_screen().modes == {"25": True, "7": True} and screen.colour == ""
    assert f"{ESC}[?25l" in screen.getvalue()  # it was hidden


def test_the_cursor_is_back_after_ctrl_c_in_the_callers_loop() -> None:
    screen = Screen()
    with pytest.raises(KeyboardInterrupt):
        for _ in view.terminal(STORY, show, MASK, fps=0, file=screen):
            raise KeyboardInterrupt
    assert screen.read_screen().modes == {"25": True, "7": True}


def test_the_cursor_is_back_after_ctrl_c_while_drawing() -> None:
    class Interrupted(Screen):
        def flush(self) -> None:
            if f"{ESC}[?25h" not in self.getvalue():
                raise KeyboardInterrupt

    screen = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        list(view.terminal(STORY, show, MASK, fps=0, file=screen))
    assert screen.read_screen().modes == {"25": True, "7": True}


def test_the_pace_is_at_most_fps() -> None:
    start = time.monotonic()
    played(STORY, fps=50)
    assert time.monotonic() - start >= 2 / 50  # three frames, two pauses


def test_no_frames_write_nothing() -> None:
    assert played([]).getvalue() == ""


# ---- not a terminal ----------------------------------------------------------------------------


def test_a_file_gets_the_last_rows_as_plain_text() -> None:
    out = io.StringIO()
    passed = list(view.terminal(STORY, show, MASK, FIXED, file=out))
    assert out.getvalue() == "abx░zz\ncdwwy░\n" and passed == STORY


def test_a_file_gets_no_escapes_even_from_tokens_and_no_padding() -> None:
    out, f = io.StringIO(), frame(["a\x1b[0m\n.."])
    list(view.terminal([f, f], lambda i: "~" if i == PAD else show(i), MASK, file=out))
    assert out.getvalue() == "a·[0m⏎\n"


def test_a_dumb_terminal_is_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert played(STORY).getvalue() == "abx░zz\ncdwwy░\n"


def test_a_file_gets_nothing_of_a_sampler_that_failed() -> None:
    out = io.StringIO()
    with pytest.raises(Stop):
        list(view.terminal(failing(), show, MASK, file=out))
    assert out.getvalue() == ""


def test_an_encoding_without_the_blocks_gets_question_marks() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii", newline="\n")
    list(view.terminal(STORY, show, MASK, file=out))
    assert raw.getvalue() == b"abx?zz\ncdwwy?\n"


def test_standard_output_is_looked_up_late(capsys: pytest.CaptureFixture[str]) -> None:
    list(view.terminal(STORY, show, MASK, rows=1))
    assert capsys.readouterr().out == "abx░zz\n"


# ---- GIF ---------------------------------------------------------------------------------------


def pictures(path: Path) -> tuple[list[Any], list[int]]:
    """The frames of an animation as RGB images, and how long each is shown, in ms."""
    image, got, times = Image.open(path), [], []
    for n in range(image.n_frames):
        image.seek(n)
        got.append(image.convert("RGB"))
        times.append(image.info["duration"])
    return got, times


class Grid:
    """Where the tiles of these frames are, from the layout alone."""

    def __init__(self, frames: list[Frame], mask_id: int | None = MASK, columns: int = 32):
        boards = [view._board(view._shot(f, 4), show, mask_id, []) for f in frames]
        self.layout = view._Picture(view._pillow(), boards, columns)

    def box(self, b: int, t: int) -> tuple[int, int, int, int]:
        x, y = self.layout.corner(b, t)
        wide, high = self.layout.tile_w - self.layout.gap, self.layout.tile_h - self.layout.gap
        return x, y, x + wide, y + high

    def centre(self, image: Any, b: int, t: int) -> tuple[int, ...]:
        left, top, right, bottom = self.box(b, t)
        return image.getpixel(((left + right) // 2, (top + bottom) // 2))


def near(colour: Any, other: Any, by: int = 6) -> bool:
    return all(abs(a - b) <= by for a, b in zip(colour, other, strict=True))


def test_frames_durations_and_size(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    view.gif(path, iter(STORY), show, MASK, FIXED, fps=8)
    images, times = pictures(path)
    assert len(images) == 3 and times == [120, 120, 2000]
    layout = Grid(STORY).layout
    assert {image.size for image in images} == {(layout.width, layout.height)}
    assert Image.open(path).info["loop"] == 0  # for ever
    assert [p.name for p in tmp_path.iterdir()] == ["a.gif"]


def test_tiles_have_the_colour_of_their_kind(tmp_path: Path) -> None:
    frames = [frame([" _ _   "], ["^      "]), frame(["  __..."], [" ^     "])]  # blank tokens
    view.gif(tmp_path / "a.gif", frames, show, MASK, known(["^      "]))
    (first, second), _ = pictures(tmp_path / "a.gif")
    tile, grid = {kind: colours[0] for kind, colours in view.COLOURS.items()}, Grid(frames)
    expected = {
        0: ["given", "mask", "old", "mask", "old"],
        1: ["given", "new", "mask", "mask", "pad"],
    }
    for image, row in ((first, expected[0]), (second, expected[1])):
        for t, kind in enumerate(row):
            assert near(grid.centre(image, 0, t), tile[kind]), (t, kind, grid.centre(image, 0, t))
    corner = first.getpixel((0, 0))
    assert near(corner, view.PAPER)


def test_text_is_drawn_in_the_ink_of_its_kind_within_its_tile(tmp_path: Path) -> None:
    frames = [frame(["MMM_"], [" ^  "])]
    view.gif(tmp_path / "a.gif", frames, show, MASK, known(["^   "]))
    (image,), times = pictures(tmp_path / "a.gif")
    assert times == [2000]
    grid = Grid(frames)
    for t, kind in enumerate(("given", "new", "old")):
        part = image.crop(grid.box(0, t))
        tile, ink = view.COLOURS[kind]
        pixels = [colour for _, colour in part.getcolors(part.width * part.height)]
        assert any(near(p, ink, 24) for p in pixels) and any(near(p, tile) for p in pixels)
    mask = image.crop(grid.box(0, 3)).crop((4, 4, 20, 30))
    assert len(mask.getcolors()) == 1  # the sign of a mask is a block, not a character


def test_the_progress_bar_grows(tmp_path: Path) -> None:
    view.gif(tmp_path / "a.gif", STORY, show, MASK)
    images, _ = pictures(tmp_path / "a.gif")
    layout = Grid(STORY).layout
    y = layout.height - layout.pad - 3
    spots = [range(layout.pad + 3, layout.width - layout.pad - 3)] * 3
    full = len(spots[0])
    parts = [
        sum(near(i.getpixel((x, y)), view.BAR) for x in row) / full
        for i, row in zip(images, spots, strict=True)
    ]
    assert parts == pytest.approx([1 / 3, 2 / 3, 1], abs=0.02)


def test_long_samples_go_on_in_the_next_line() -> None:
    layout = Grid([frame(["a" * 50, "b" * 50])]).layout
    assert (layout.lines, layout.across) == (2, 25)
    assert layout.corner(0, 25) == (layout.pad, layout.top + layout.tile_h)
    assert layout.corner(1, 0)[1] > layout.corner(0, 25)[1] + layout.tile_h
    wide = Grid([frame(["a" * 128])], columns=128).layout
    assert wide.lines == 1 and wide.width <= view.WIDTH_PX


def test_padding_that_every_frame_has_takes_no_room() -> None:
    layout = Grid([frame(["a" * 3 + "." * 60]), frame(["b" * 20 + "." * 43])]).layout
    assert (layout.lines, layout.across) == (1, 20)


def test_tiles_are_as_wide_as_the_longest_token_and_cut_beyond() -> None:
    words = {0: "a", 1: "seven  ", 2: "x" * 40, 3: "日" * 40}

    def layout(*ids: int) -> Any:
        row = view.cells(ids, [False] * len(ids), [False] * len(ids), 9, words.__getitem__, None)
        picture = view._Picture(view._pillow(), [[row]], 32)
        assert all(picture.tile(c).width == picture.tile_w - picture.gap for c in row)
        return picture

    assert [layout(0).chars, layout(0, 1).chars, layout(2).chars] == [1, 7, view.WIDEST]
    picture = layout(3)
    empty = picture.tile(view.Cell("", "old"))
    cut = picture.tile(view.Cell("日" * 40, "old"))
    edge = (0, 0, 3, cut.height)  # columns of pixels that text would reach if it were not cut
    assert cut.crop(edge).tobytes() == empty.crop(edge).tobytes()


@settings(max_examples=200)
@given(st.integers(1, 3000), st.integers(2, 300))
def test_subsampling_keeps_both_ends_and_spreads_evenly(n: int, most: int) -> None:
    picked = view._evenly(n, most)
    assert len(picked) == min(n, most) and picked[0] == 0 and picked[-1] == n - 1
    gaps = {b - a for a, b in pairwise(picked)}
    assert min(gaps, default=1) >= 1 and max(gaps, default=1) - min(gaps, default=1) <= 1


def test_subsampled_gif_shows_what_changed_between(tmp_path: Path) -> None:
    rows = ["______", " _____", "  ____", "   ___", "    __"]
    marks = ["      ", "^     ", " ^    ", "  ^   ", "   ^  "]
    frames = [frame([r], [m]) for r, m in zip(rows, marks, strict=True)]
    view.gif(tmp_path / "a.gif", frames, show, MASK, max_frames=3)  # steps 1, 3 and 5
    images, times = pictures(tmp_path / "a.gif")
    new, old, grid = view.COLOURS["new"][0], view.COLOURS["old"][0], Grid(frames)
    assert times == [120, 120, 2000]
    assert all(near(grid.centre(images[1], 0, t), new) for t in (0, 1))
    assert all(near(grid.centre(images[2], 0, t), old) for t in (0, 1))
    assert all(near(grid.centre(images[2], 0, t), new) for t in (2, 3))


def test_merging_leaves_rows_alone_whose_text_has_moved() -> None:
    shots = [view._shot(frame(["bc.", "xyz"], [" ^ ", "^  "]), 2)]
    shots += [view._shot(frame(["abc", "xyz"], ["^  ", " ^ "]), 2)]
    assert view._merge(shots).changed == [[True, False, False], [True, True, False]]
    assert shots[1].changed == [[True, False, False], [False, True, False]]  # untouched


def test_frames_that_reuse_their_tensors_are_copied(tmp_path: Path) -> None:
    def frames() -> Iterator[Frame]:
        f = frame(["___"], ["   "])
        for t in range(3):
            f.ids[0, t] = ord(" ")
            yield f

    view.gif(tmp_path / "a.gif", frames(), show, MASK)
    images, grid = pictures(tmp_path / "a.gif")[0], Grid([frame(["___"])])
    assert near(grid.centre(images[0], 0, 2), view.COLOURS["mask"][0])
    assert near(grid.centre(images[2], 0, 2), view.COLOURS["old"][0])


def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.gif"
    with pytest.raises(Stop):
        view.gif(path, failing(), show, MASK)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"before")

    def half(self: Any, where: Path, **options: Any) -> None:
        where.write_bytes(b"GIF89a")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="disk full"):
        view.gif(path, STORY, show, MASK)
    assert path.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1


def test_no_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.gif: no frames"):
        view.gif(tmp_path / "a.gif", [], show, MASK)


@pytest.mark.parametrize("version", [None, "9.5.0"])
def test_without_a_pillow_that_will_do_the_message_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None
) -> None:
    import PIL

    if version is None:
        monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    else:
        monkeypatch.setattr(PIL, "__version__", version)
    with pytest.raises(ModuleNotFoundError, match="pip install pillow"):
        view.gif(tmp_path / "a.gif", STORY, show, MASK)


def test_pillow_alone_and_characters_that_its_font_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*args: Any) -> None:
        raise OSError

    monkeypatch.setattr(view, "find_spec", lambda name: None)
    builtin = ImageFont.load_default(12)
    monkeypatch.setattr(ImageFont, "truetype", absent)
    monkeypatch.setattr(ImageFont, "load_default", lambda size: builtin)  # it uses truetype inside
    view.gif(
        tmp_path / "a.gif", [frame(["a\nб日\U0001f600e\u0301\u0600 _"])], lambda i: show(i % 4096)
    )
    assert len(pictures(tmp_path / "a.gif")[0]) == 1


def test_a_picture_for_a_page_is_small(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    full, when = torch.randint(33, 126, (8, 32), generator=rng), torch.rand(8, 32, generator=rng)
    frames = [
        Frame(
            torch.where(when <= n / 64, full, MASK),
            torch.full((8,), 32),
            (when <= n / 64) & (when > (n - 1) / 64),
        )
        for n in range(1, 65)
    ]
    path = tmp_path / "a.gif"
    view.gif(path, frames, show, MASK, rows=8)
    with Image.open(path) as image:
        assert image.n_frames == 64 and max(image.size) <= view.WIDTH_PX
    assert path.stat().st_size < 1_000_000
