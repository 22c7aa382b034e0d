"""viz/page.py: what is in the file, and what a browser makes of it."""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import browser
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sample
from configurator import UserError
from objective import Frame
from viz import page
from viz.story import Drawn, Trace

MASK, END = 0, 1
HOSTILE = [
    "</script>",
    "<!--",
    "<script>",
    "]]>",
    "&lt;",
    "a&b",
    "\u2028",
    '"',
    "\\",
    "\ud800",
    "\x00",
]
VOID = {"meta", "link", "input", "br"}


class Page(HTMLParser):
    """A page as a list of elements; fails where tags do not match."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}  # tag, or tag#id -> what stands in it
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(f"{tag}#{dict(attrs)['id']}" if "id" in dict(attrs) else tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop().split("#")[0] == tag, (self.open, tag)

    def handle_data(self, data: str) -> None:
        key = self.open[-1] if self.open else ""
        self.text[key] = self.text.get(key, "") + data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data!r}")

    def ids(self) -> list[str]:
        return [a["id"] for _, a in self.found if "id" in a]


# ---- two stories: a masked text with hostile tokens, and a growing one ---------------------------


def show(i: int) -> str:
    if i in (MASK, END):
        return "░" if i == MASK else ""
    return HOSTILE[i - 50] if i >= 50 else chr(60 + i)


def frame(rows: list[list[int]], marks: list[list[int]], length: list[int] | None = None) -> Frame:
    ids = torch.tensor(rows)
    whole = torch.tensor(length or [ids.shape[1]] * len(ids))
    return Frame(ids, whole, torch.tensor(marks).bool())


def masked_story() -> Trace:
    """Two samples of four tokens; the first is given. Frame 2 doubts a token."""
    story, still = Trace("one", show, MASK), [[0] * 4] * 2
    fixed = torch.tensor([[1, 0, 0, 0]] * 2).bool()
    rows = [[[5, 0, 0, 0], [6, 0, 0, 0]], [[5, 0, 50, 0], [6, 7, 0, 0]]]
    rows += [[[5, 8, 0, 0], [6, 7, 0, 9]], [[5, 8, 51, 1], [6, 7, 10, 9]]]
    drawn: list[dict] = [{}, {(0, 2): Drawn(50, 0.75, [(50, 0.75), (7, 0.2)])}, {}, {}]
    drawn[2] = {(0, 1): Drawn(8, 0.01, [(9, 0.5), (52, 0.3)])}
    for ids, notes in zip(rows, drawn, strict=True):
        story.see(frame(ids, still), fixed, notes)
    return story


def grown_story() -> Trace:
    """ab, then axb, then axyb; sample 2 is c and stays so."""
    story, none = Trace("two", show, None, inserts=True), torch.zeros(2, 1).bool()
    story.see(frame([[37, 38, 1, 1], [39, 1, 1, 1]], [[0] * 4] * 2, [2, 1]), none, {})
    moved = frame([[37, 48, 38, 1], [39, 1, 1, 1]], [[0, 1, 0, 0], [0] * 4], [3, 1])
    story.see(moved, none, {})
    story.see(frame([[37, 48, 49, 38], [39, 1, 1, 1]], [[0, 0, 1, 0], [0] * 4], [4, 1]), none, {})
    return story


# ---- the file ------------------------------------------------------------------------------------

texts = st.text(st.characters()) | st.lists(st.sampled_from(HOSTILE)).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_embedded_data_is_no_markup_and_comes_back(data: Any) -> None:
    text = page.embedded(data)
    assert text.isascii() and not set("<>&") & set(text) and "\n" not in text
    assert json.loads(text) == data


@given(texts, texts, texts)
def test_no_text_becomes_markup(token: str, title: str, fact: str) -> None:
    """The same elements whatever the texts are, and the texts themselves come back."""
    story, still = Trace(token, lambda i: token or "x"), torch.zeros(1, 1).bool()
    story.see(frame([[5]], [[0]]), still, {})
    got = Page(page.render([story], title, {fact: fact}))
    assert [tag for tag, _ in got.found] == PLAIN
    assert json.loads(got.text["script#data"])["stages"] == [story.data()]
    clean = title.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "")
    if clean.isprintable():
        assert got.text.get("h1", "") == title == got.text.get("title", "")


def plain() -> list[str]:
    story = Trace("", lambda i: "x")
    story.see(frame([[5]], [[0]]), torch.zeros(1, 1).bool(), {})
    return [tag for tag, _ in Page(page.render([story], "t", {"a": 1})).found]


PLAIN = plain()


def test_the_page_needs_nothing_but_itself() -> None:
    got = Page(text := page.render([masked_story()], "t"))
    assert text.startswith("<!doctype html>") and text.encode("ascii")
    assert len(got.ids()) == len(set(got.ids()))
    for tag, attrs in got.found:
        assert tag not in ("img", "iframe", "object", "embed", "base") and "src" not in attrs
        assert attrs.get("href", "data:,") == "data:,"
        assert not any(name.startswith("on") for name in attrs)
    assert not re.search(r"https?:|//\w+\.|url\(|@import|innerHTML|eval\(|fetch\(", text)
    (policy,) = [a["content"] for _, a in got.found if "http-equiv" in a]
    assert policy.startswith("default-src 'none';") and "http" not in policy
    used = set(re.findall(r'\$\("(\w+)"\)', page.SCRIPT))
    assert used <= set(got.ids()), used - set(got.ids())


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "a.html"
    page.write(path, [masked_story(), grown_story()], "<t>", {"steps": 4})
    text = path.read_text("ascii")
    assert "<dt>steps</dt><dd>4</dd>" in text and "<h1>&lt;t&gt;</h1>" in text

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        page.write(path, [grown_story()], "t")
    assert path.read_text("ascii") == text and len(list(tmp_path.iterdir())) == 1


def test_a_story_without_frames_is_refused() -> None:
    with pytest.raises(AssertionError):
        page.render([Trace("", show)], "t")


# ---- the commands --------------------------------------------------------------------------------


def stages_of(path: Path) -> list[dict[str, Any]]:
    return json.loads(Page(path.read_text("ascii")).text["script#data"])["stages"]


def final(stage: dict[str, Any]) -> list[str]:
    ends = ([t["history"][-1][1] for t in tokens] for tokens in stage["samples"])
    return ["".join(stage["texts"].get(str(i), "") for i in ids) for ids in ends]


@pytest.mark.parametrize("objective", ["sedd", "ilm"])
def test_sample_writes_a_page_of_what_it_prints(
    objective: str, trained: Any, tmp_path: Path, capsys: Any
) -> None:
    more = {} if objective == "sedd" else {"objective": "ilm", "time_input": False, "max_iters": 3}
    ckpt, path = f"--ckpt={trained(**more) / 'ckpt.pt'}", tmp_path / "a.html"
    argv = [ckpt, "--num_samples=3", "--batch_size=2", "--device=cpu", "--prompt=ab"]
    sample.main(argv)
    before = capsys.readouterr().out
    sample.main([*argv, f"--html={path}", "--show"])
    printed = capsys.readouterr().out
    assert f"wrote {path}" in printed and before.split("\n\n")[0] in printed
    (stage,) = stages_of(path)
    assert final(stage) == [line for line in before.splitlines()[:2]]  # of the first batch
    for tokens in stage["samples"]:
        given = [stage["texts"][str(t["history"][0][1])] for t in tokens if t["given"]]
        assert "".join(given) == "ab"
        written = [h for t in tokens if not t["given"] for h in t["history"]]
        assert all(h[2] for h in written if h[1] not in (stage["mask"], -1))


def test_mistakes(trained: Any, tmp_path: Path) -> None:
    ckpt, where = f"--ckpt={trained() / 'ckpt.pt'}", tmp_path / "none" / "a.html"
    for argv, words in (
        (["--num_samples=1", "--steps=2", f"--html={where}"], f"html={where}: No such file"),
        (["--chat", "--html=a.html"], "html must be of samples"),
        (["--file=a.py", "--gif=a.gif"], "gif must be of samples"),
    ):
        with pytest.raises(UserError, match=words):
            sample.main([ckpt, "--device=cpu", *argv])


# ---- in a browser --------------------------------------------------------------------------------

TEXTS = """[...document.querySelectorAll(".stage")].map((stage) =>
  [...stage.querySelectorAll(".text")].map((text) =>
    [...text.querySelectorAll(".token")].filter((s) => s.offsetParent).map((s) => s.textContent)))
"""
MARKED = """(name) => [...document.querySelectorAll(".stage .token." + name)]
  .filter((s) => s.offsetParent).map((s) => s.textContent)"""
BLANK = "░"
# what is to be read at every place of the slider
READ = [
    [[["A", *BLANK * 3], ["B", *BLANK * 3]], [[], []]],
    [[["A", BLANK, "</script>", BLANK], ["B", "C", *BLANK * 2]], [[], []]],
    [[["A", "D", *BLANK * 2], ["B", "C", BLANK, "E"]], [[], []]],
    [[["A", "D", "<!--"], ["B", "C", "F", "E"]], [[], []]],
    [[["A", "D", "<!--"], ["B", "C", "F", "E"]], [["a", "b"], ["c"]]],
    [[["A", "D", "<!--"], ["B", "C", "F", "E"]], [["a", "l", "b"], ["c"]]],
    [[["A", "D", "<!--"], ["B", "C", "F", "E"]], [["a", "l", "m", "b"], ["c"]]],
]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: Any) -> Any:
    program = browser.find()
    if program is None:
        pytest.skip("no Chromium on PATH: the package `chromium` of Debian has one")
    got = browser.Browser(program, tmp_path_factory.mktemp("profile"))
    yield got
    got.close()


@pytest.fixture
def shown(chromium: Any, tmp_path: Path) -> Any:
    """The page of both stories, in a light wide window that does not move things."""
    page.write(tmp_path / "a.html", [masked_story(), grown_story()], "</title><b>")
    chromium.size(1000)
    chromium.prefer(color_scheme="light", reduced_motion="reduce")
    chromium.open(tmp_path / "a.html")
    return chromium


def read(shown: Any) -> Any:
    return shown.js(TEXTS)


def slide(shown: Any, value: int) -> None:
    shown.js(f"$('step').value = {value}; $('step').dispatchEvent(new Event('input'))")


def test_the_slider_shows_every_frame(shown: Any) -> None:
    assert read(shown) == READ[-1]  # a page opens with the finished texts
    assert shown.js("Number($('step').max)") == len(READ) - 1
    for k in (0, 3, 1, 2, 6, 5, 4, 0):
        slide(shown, k)
        assert read(shown) == READ[k], k
    assert shown.js("document.querySelectorAll('b').length") == 0
    assert shown.js("document.title") == "</title><b>"
    urls = [e["params"]["request"]["url"] for e in shown.events if "request" in e.get("params", {})]
    assert len([u for u in urls if not u.startswith("data:")]) == 1, urls
    said = [e for e in shown.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert not said, said


def test_tokens_are_marked_and_coloured(shown: Any) -> None:
    marked = lambda name: shown.js(f"({MARKED})('{name}')")  # noqa: E731
    assert marked("given") == ["A", "B", "a", "b", "c"] and marked("new") == ["m"]
    slide(shown, 2)
    assert marked("new") == ["D", "E"] and marked("mask") == [BLANK] * 3
    when = "[...document.querySelectorAll('.token')].find((s) => s.textContent === 'D').style"
    assert float(shown.js(f"{when}.getPropertyValue('--when')")) == pytest.approx(2 / 3)
    assert float(shown.js(f"{when}.getPropertyValue('--sure')")) == 0.01
    colour = f"getComputedStyle({when.removesuffix('.style')}).backgroundColor"
    before = shown.js(colour)
    shown.js("document.querySelector('input[value=confidence]').click()")
    assert shown.js(colour) != before and shown.js("$('low').textContent") == "unsure"


def test_keys_do_all_of_it(shown: Any) -> None:
    def now() -> int:
        return int(shown.js("$('step').value"))

    for focus in ("document.body", "$('step')", "$('play')", "document.querySelector('.text')"):
        shown.js(f"document.activeElement.blur(), {focus}.focus()")
        shown.press("Home")
        assert now() == 0 and read(shown) == READ[0]
        shown.press("ArrowLeft")
        assert now() == 0
        shown.press("ArrowRight")
        shown.press("ArrowRight")
        assert now() == 2 and read(shown) == READ[2]
        shown.press("ArrowLeft")
        assert now() == 1
        shown.press("End")
        assert now() == 6
    shown.js("document.querySelector('.text').focus()")
    shown.press("ArrowDown")
    assert shown.js("document.activeElement.textContent") == "A"
    shown.press("ArrowDown")
    assert shown.js("document.activeElement.textContent") == "D"
    tip = shown.js("$('tip').textContent")
    assert "step 2 with probability 1\u00a0%" in tip and shown.js("$('tip').checkVisibility()")
    rows = "[...$('tip').querySelectorAll('tr')].map((r) => [...r.cells].slice(0, 2).map("
    values = shown.js(rows + "(c) => c.textContent))")
    assert values == [["E", "50\u00a0%"], ["<script>", "30\u00a0%"], ["D", "1\u00a0%"]]
    assert shown.js("document.activeElement.getAttribute('aria-describedby')") == "tip"
    shown.press("Escape")
    assert shown.js("$('tip').hidden")
    shown.press("ArrowUp")
    assert "was given" in shown.js("$('tip').textContent")


def test_playing_and_pausing(shown: Any) -> None:
    shown.js("$('speed').value = '30'")
    shown.press(" ")  # at the end: from the start
    assert shown.js("$('play').textContent") == "Pause" and int(shown.js("$('step').value")) < 6
    done = "new Promise((end) => { const look = () => timer ? setTimeout(look, 20) : end(now);"
    assert shown.js(done + "look() })") == 6 and shown.js("$('play').textContent") == "Play"
    shown.js("$('speed').value = '2'; $('play').click()")
    assert shown.js("$('play').textContent") == "Pause"
    shown.press(" ")
    assert shown.js("$('play').textContent") == "Play"
    assert read(shown) == READ[int(shown.js("$('step').value"))]


def test_the_mouse_shows_the_alternatives(shown: Any) -> None:
    slide(shown, 1)
    x, y = shown.js("""(() => { const box = document.querySelectorAll(".stage .token")[2]
        .getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()""")
    shown.point(x, y)
    tip = shown.js("$('tip').hidden ? '' : $('tip').textContent")
    assert "</script>" in tip and "75\u00a0%" in tip and "20\u00a0%" in tip
    shown.point(5, 700)
    assert shown.js("$('tip').hidden")


ARRIVED = "Promise.all(document.getAnimations().map((a) => a.finished)).then(() => 0)"


def test_insertions_slide_unless_motion_is_unwanted(shown: Any) -> None:
    moving = "document.getAnimations().length"
    slide(shown, 4)
    slide(shown, 5)
    assert shown.js(moving) == 0
    shown.prefer(color_scheme="light", reduced_motion="no-preference")
    slide(shown, 4)
    assert shown.js(moving) == 1  # b, back to where it was
    shown.js(ARRIVED)
    slide(shown, 5)
    assert shown.js(moving) == 2  # l grows, b makes room for it
    assert shown.js("document.getAnimations()[1].effect.getKeyframes()[0].transform").startswith(
        "translate(-"
    )
    shown.js(ARRIVED)
    assert read(shown) == READ[5]


CONTRASTS = """(() => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const light = (colours) => {  // of colours on top of each other
    for (const c of colours) { paint.fillStyle = c; paint.fillRect(0, 0, 1, 1); }
    const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data].map((x) =>
      x / 255 <= 0.04045 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = getComputedStyle(document.body).backgroundColor;
  const spans = [...document.querySelectorAll(".stage .token:not(.mask), p, h3, button")];
  return spans.filter((s) => s.offsetParent).map((s) => {
    const style = getComputedStyle(s);
    const [a, b] = [light([paper, style.backgroundColor, style.color]),
      light([paper, style.backgroundColor])].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  });
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_is_readable(shown: Any, scheme: str) -> None:
    """WCAG 2's contrast for text, for all shades of both colourings."""
    shown.prefer(color_scheme=scheme)
    papers = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}
    assert shown.js("getComputedStyle(document.body).backgroundColor") == papers[scheme]
    for by in ("step", "confidence"):
        shown.js(f"document.querySelector('input[value={by}]').click()")
        for k in range(11):
            shown.js(f"""document.querySelectorAll(".token").forEach((s) => {{
                s.classList.remove("undrawn");
                s.style.setProperty("--when", {k / 10}); s.style.setProperty("--sure", {k / 10});
            }})""")
            assert min(shown.js(CONTRASTS)) >= 4.5, (scheme, by, k)


def test_a_phone_needs_no_scrolling_sideways(shown: Any, tmp_path: Path) -> None:
    long = Trace("n" * 200, lambda i: "w" * 300 if i == 5 else "ab ", note="x" * 200)
    long.see(frame([[5, *[6] * 80]] * 3, [[0] * 81] * 3), torch.zeros(3, 81).bool(), {})
    page.write(tmp_path / "b.html", [long], "t" * 200, {"k" * 100: "v" * 300})
    shown.size(360)
    shown.open(tmp_path / "b.html")
    assert shown.js("innerWidth") == 360
    shown.js("document.querySelector('details').open = true")
    shown.js("document.querySelectorAll('.token')[40].focus()")
    assert shown.js("document.documentElement.scrollWidth") <= 360
    left, right = shown.js("(({left, right}) => [left, right])($('tip').getBoundingClientRect())")
    assert left >= 0 and right <= 360
    tops = shown.js("[...document.querySelectorAll('.sample')].map((s) => s.offsetTop)")
    assert len(set(tops)) == 3
    shown.size(1400)
    assert (
        len(set(shown.js("[...document.querySelectorAll('.sample')].map((s) => s.offsetTop)"))) == 1
    )


def test_line_breaks_and_spaces_are_kept(shown: Any, tmp_path: Path) -> None:
    words = {5: "a", 6: "\n", 7: "  ", 8: "b", 9: "x\ny\n"}
    story = Trace("", words.__getitem__)
    story.see(frame([[5, 6, 7, 8, 9, 5]], [[0] * 6]), torch.zeros(1, 6).bool(), {})
    page.write(tmp_path / "b.html", [story], "t")
    shown.open(tmp_path / "b.html")
    assert read(shown) == [[["a", "⏎", "  ", "b", "x⏎y⏎", "a"]]]
    boxes = shown.js("""[...document.querySelectorAll(".stage .token")].map((s) => {
        const box = s.getBoundingClientRect(); return [box.top, box.width]; })""")
    tops, widths = zip(*boxes, strict=True)
    assert tops[0] == tops[1] < tops[2] == tops[3] == tops[4] < tops[5]
    assert widths[2] > 1.5 * widths[0]
