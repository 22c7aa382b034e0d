"""Text from a model: what is given and what is to be written, then batches of samples.

model = checkpoint.load("out/palindrome/ckpt.pt")
start = canvas(model, infill="s[3]s")
texts = generate(model, [start] * 10, SampleOptions(steps=64), seed=1).texts
"""

import re
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Callable, Iterable, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from build import autocast
from chat import Message, encode_chat
from checkpoint import Model
from configurator import UserError
from objective import Frame, SampleOptions, generator
from puzzles import TASKS

SAMPLING = 5  # stream of randomness; 0 to 4 are those of training


class Canvas(NamedTuple):
    """One sample before it is written."""

    ids: Tensor  # (T,) int64
    given: Tensor  # (T,) bool: these ids stay
    mirror: Tensor  # (T,) int64: partner of each place, itself where it has none


class Samples(NamedTuple):
    """What came out, and what it cost."""

    ids: Tensor  # (N, T) int64, T the longest canvas
    texts: list[str]
    seconds: float
    calls: int  # of the network
    rows: int  # canvases that it was called on, over all calls


def framed(model: Model) -> bool:
    """Are the rows of this model [BOS] text [EOS] PAD...? If not, every position is text."""
    names = {"pad", "bos", "eos"} <= set(model.meta["specials"])
    bare = model.meta.get("task") in ("chat", "stage", "diff", *TASKS)
    return names and longest_text(model) > 0 and not bare


def longest_row(model: Model) -> int:
    """Tokens of the longest training row; 0 for a continuous stream."""
    return model.meta.get("splits", {}).get("train", {}).get("longest", 0)


def longest_text(model: Model) -> int:
    """The same without BOS and EOS."""
    return max(0, longest_row(model) - 2)


def canvas_end(model: Model, least: int) -> int:
    """Positions of a canvas for `least` tokens: the block; where training cropped the padding, the
    longest training row if that is enough. On a longer canvas than any that it has seen, a network
    writes EOS."""
    block, longest = model.config.block_size, longest_row(model)
    cropped = getattr(model.objective, "padding", "learn") == "crop"
    return min(block, longest) if cropped and least <= longest else block


def _require(good: Any, problem: str) -> None:
    """Refuse what does not fit."""
    if not good:
        raise UserError(problem)


def canvas(
    model: Model,
    prompt: str = "",
    infill: str = "",
    length: int = 0,
    max_length: int = 0,
    mirrored: bool = False,
) -> Canvas:
    """The canvas of one sample. prompt: text that it begins with. infill: the whole text, in which
    [3] is a hole of three tokens, and [*], for insertion models, one of any length. length: exactly
    so many tokens of text. max_length: at most so many; 0 is as many as the block holds. mirrored:
    the text, whose length must be known, mirrors itself. Raises UserError for what does not fit."""
    parts = list(_template(model, infill)) if infill else model.tokenizer.encode(prompt)
    frame, special = framed(model), model.meta["specials"]
    known = not (mirrored and model.objective.grows)
    _require(known, "palindrome: no axis is known while tokens are inserted")
    if model.meta.get("task") in TASKS:
        _require(not infill, "infill: this model answers questions; ask one with --prompt")
        return answer_canvas(model, [*parts, special["bos"]], length or max_length)
    if "[*]" in infill:
        return _open_canvas([special["bos"]] * frame + parts)
    asked = max(len(parts), length, max_length)
    block = canvas_end(model, asked + 2 * frame)
    room = min(max_length or block, block - 2 * frame)
    _require(asked <= room, f"{asked} tokens of text do not fit: there is room for {room}")
    short = length and len(parts) > length
    _require(not short, f"a text of {length} tokens cannot hold the {len(parts)} given ones")
    fixed = len(parts) if infill else length  # 0: the model decides
    assert fixed or not mirrored, "the axis of a mirror needs a length"
    parts += [None] * ((fixed or room) - len(parts))
    mirror, text = torch.arange(block if frame else len(parts)), slice(frame, frame + fixed)
    if mirrored:  # the axis lies inside the text, between BOS and EOS
        mirror[text] = mirror[text].flip(0)
    if frame:
        parts = [special["bos"], *parts, special["eos"] if fixed else None]
        # what lies beyond the longest text that was asked for is padding; else it is open
        parts += [special["pad"] if fixed or max_length else None] * (block - len(parts))
    _mirror_given(parts, mirror.tolist(), model)
    ids = torch.tensor([0 if p is None else p for p in parts])
    return Canvas(ids, torch.tensor([p is not None for p in parts]), mirror)


def _open_canvas(parts: list[int | None]) -> Canvas:
    """A whole text whose holes are of unknown length, one place each."""
    ids = torch.tensor([0 if p is None else p for p in parts])
    return Canvas(ids, torch.tensor([p is not None for p in parts]), torch.arange(len(ids)))


def chat_canvas(model: Model, messages: list[Message], length: int = 0) -> Canvas:
    """A conversation with room for `length` tokens of the next answer; 0: to the end of the block.
    Raises UserError if they do not fit."""
    return answer_canvas(model, encode_chat(model.tokenizer, messages, reply=True), length)


def answer_canvas(model: Model, ids: list[int], length: int = 0) -> Canvas:
    """The ids of a conversation with room for `length` tokens after them, as `chat_canvas`."""
    block = canvas_end(model, len(ids) + max(1, length))
    room = block - len(ids)
    if room < max(1, length):
        raise UserError(
            f"{len(ids)} tokens of conversation and {max(1, length)} of answer do not fit the "
            f"block of {block}"
        )
    length = length or room
    given = torch.arange(len(ids) + length) < len(ids)
    canvas = torch.tensor(ids + [0] * length)
    return Canvas(canvas, given, torch.arange(len(canvas)))


def _template(model: Model, text: str) -> Iterator[int | None]:
    """`s[3]s` -> ids, with None for each place in a hole; `s[*]s` with one None for the hole."""
    most = model.config.block_size + 1  # enough to be refused
    holes = re.findall(r"\[(\d+|\*)\]", text)
    if "*" in holes and not model.objective.grows:
        raise UserError("infill: only insertion models fill holes of unknown length; write [3]")
    if 0 < holes.count("*") < len(holes):
        raise UserError("infill: holes are either all of unknown length, [*], or none of them is")
    for i, piece in enumerate(re.split(r"\[(\d+|\*)\]", text)):
        size = 1 if piece == "*" else min(int(piece), most) if i % 2 else 0
        yield from [None] * size if i % 2 else model.tokenizer.encode(piece)


def _mirror_given(parts: list[int | None], mirror: list[int], model: Model) -> None:
    """Give the partner of a given place the same id; refuse two that differ."""
    for i, j in enumerate(mirror):
        if parts[i] is None or parts[j] == parts[i]:
            continue
        if parts[j] is not None:
            pair = model.tokenizer.decode([parts[i]]), model.tokenizer.decode([parts[j]])
            raise UserError(f"no palindrome has {pair[0]!r} at a place mirrored by {pair[1]!r}")
        parts[j] = parts[i]


def read_prompt(text: str) -> str:
    """A prompt as given, or the contents of the file of `FILE:path`."""
    if not text.startswith("FILE:"):
        return text
    try:
        with open(text[5:], encoding="utf-8") as file:
            found = file.read()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"prompt file {text[5:]}: {e}") from None
    if not found:
        raise UserError(f"prompt file {text[5:]} is empty")
    return found


def generate(
    model: Model,
    canvases: list[Canvas],
    options: SampleOptions,
    seed: int = 0,
    batch_size: int = 64,
    watch: Callable[[Iterable[Frame], Tensor], Iterable[Frame]] = lambda frames, given: frames,
    dtype: str = "auto",
) -> Samples:
    """Write every canvas; a shorter one has the pad id behind it. `watch` sees the frames of the
    first batch and the given places (B, T), and passes the frames on. The same seed gives the same
    samples."""
    device, done = next(model.net.parameters()).device, []
    widest, pad = max(len(c.ids) for c in canvases), model.meta["specials"].get("pad", 0)
    clock = time.perf_counter()
    with _counted_calls(model.net) as counter:
        for number, first in enumerate(range(0, len(canvases), batch_size)):
            part = canvases[first : first + batch_size]
            sizes = torch.tensor([len(c.ids) for c in part])
            even = zip(*_even(part, int(sizes.max()), pad), strict=True)
            ids, given, mirror = (torch.stack(p).to(device) for p in even)
            paired = (mirror != torch.arange(mirror.shape[1], device=device)).any()
            own = _mirrored(options, mirror, model) if paired else options
            if (sizes != ids.shape[1]).any():
                own = replace(own, length=sizes.to(device))
            rng = generator(seed, SAMPLING, number, device=device)
            frames = model.objective.sample(model.net, ids, given, rng, own)
            frames = watch(frames, given) if number == 0 else frames
            with autocast(dtype, device):
                last = deque(frames, maxlen=1).pop()
            done.append(last.ids.cpu())
    widest = max([widest, *(x.shape[1] for x in done)])
    ids = torch.cat([F.pad(x, (0, widest - x.shape[1]), value=pad) for x in done])
    texts = [text_of(model, row) for row in ids.tolist()]
    return Samples(ids, texts, time.perf_counter() - clock, counter["calls"], counter["rows"])


def is_stream(model: Model) -> bool:
    """May several documents stand in what it was trained on: windows of a stream, or stages?"""
    rows = model.meta.get("splits", {}).get("train", {}).get("rows", 0)
    return not rows or model.meta.get("task") == "stage"


def text_of(model: Model, ids: list[int]) -> str:
    """One sample as text: up to EOS, or, of a stream, its documents with blank lines between."""
    eos = model.meta["specials"].get("eos", -1)
    if not is_stream(model) or eos not in ids:
        return model.tokenizer.decode(ids)
    ends = [i for i, token in enumerate(ids) if token == eos]
    parts = [ids[a:b] for a, b in zip([0, *(e + 1 for e in ends)], [*ends, len(ids)], strict=True)]
    return "\n\n".join(filter(None, map(model.tokenizer.decode, parts)))


def written_ids(model: Model, ids: Tensor, canvases: list[Canvas]) -> list[list[int]]:
    """ids (N, T) of samples -> of each what was written, not what was given: all of it where the
    model was trained on a stream, else up to the first EOS, which is among it if it was written."""
    eos = -1 if is_stream(model) else model.meta["specials"].get("eos", -1)
    pairs = zip(ids, canvases, strict=True)
    if model.objective.grows:
        found = [_inserted(row.tolist(), begun) for row, begun in pairs]
    else:
        found = [row[: len(begun.ids)][~begun.given].tolist() for row, begun in pairs]
    return [row[: row.index(eos) + 1] if eos in row else row for row in found]


def _inserted(row: list[int], begun: Canvas) -> list[int]:
    """A row without the given ids, which stand in it in their order: of several ways to find them,
    the one that finds each as early as possible."""
    given = begun.ids[begun.given].tolist()[::-1]
    found = []
    for token in row:
        if given and token == given[-1]:
            given.pop()
        else:
            found.append(token)
    return found


def _even(canvases: list[Canvas], T: int, pad: int) -> list[Canvas]:
    """All of T places: behind a shorter canvas stands given padding."""
    return [
        Canvas(
            F.pad(c.ids, (0, T - len(c.ids)), value=pad),
            F.pad(c.given, (0, T - len(c.given)), value=True),
            torch.cat([c.mirror, torch.arange(len(c.mirror), T)]),
        )
        for c in canvases
    ]


def _mirrored(options: SampleOptions, mirror: Tensor, model: Model) -> SampleOptions:
    """Inside a text whose length is fixed, no special token may be written."""
    return replace(options, mirror=mirror, banned=tuple(model.meta["specials"].values()))


@contextmanager
def _counted_calls(net: Any) -> Iterator[dict[str, int]]:
    """Count the calls of the network, and the canvases in them, for the time of a block."""
    counter = {"calls": 0, "rows": 0}

    def count(module: Any, args: tuple, output: Tensor) -> None:
        counter["calls"] += 1
        counter["rows"] += len(output)

    hook = net.norm.register_forward_hook(count)
    try:
        yield counter
    finally:
        hook.remove()
