"""Sample from a checkpoint: python sample.py --ckpt=out/palindrome/ckpt.pt --num_samples=50 --show

--prompt="abc" or --prompt=FILE:start.txt     text that every sample begins with
--infill="s[3]s"                              the whole text, with a hole of three tokens
--infill="a[*]b[*]"                           holes of unknown length: insertion models
--allowed="[a-z]"                             write letters only; FILE:places.txt: a line per place
--palindrome                                  mirrored in every sample by construction
--chat --prompt="What does len do?"           an answer; without a prompt, a conversation
--file=f.py --message="rename x to y"         a patch of the file; --write applies it
--ckpt=louaaron/sedd-small                    published weights, from the hub or a folder
--ckpt=model.safetensors --hf_model_name=answerdotai/ModernBERT-base    weights without the rest
--export=DIR                                  write safetensors and JSON instead of sampling
--cascade=out/stage1,out/stage2,out/stage3    stages in a row; its options: cascade/chain.py -h

With --chat and --file the defaults are those of LLaDA: one sample, temperature 0, and confidence
order where the objective has one. --sampler=auto is otherwise the first of the objective's that has
a use for all options that are given, so --steps=64 asks for one with steps:

    sedd              first_hitting, analytic, euler, and those behind it of masked
    sedd, uniform     analytic, euler
    udlm              ancestral, greedy_tail
    masked, mlm, bd3  first_hitting, ancestral, random, left_to_right, confidence, margin, entropy
    ar, xlnet         left_to_right
    ilm               threshold, ancestral, parallel
    ilm, delete       threshold, ancestral
    it                serial, parallel
    idlm              steps
    flex              ancestral, confidence, tau
"""

import dataclasses
import os
import random
import re
import sys
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Literal, NamedTuple, NoReturn, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import checkpoint
from autoregressive import Ordered
from checkpoint import Model
from configurator import PUZZLES, UserError, load, require, room, run
from corpus import Corpus
from diffusion import GRIDS, SAMPLERS, UDLM, Absorbing
from insertion import IDLM, FlexMDM, Insertion, InsertionTransformer
from model import autocast, compile_network, pick_device, pick_dtype, wants_compile
from objective import CHOICES, Allowed, Frame, SampleOptions, choose_sampler, generator, seed_of
from prepare.files import read_text
from tokenizer import ASSISTANT, USER, Message, Tokenizer, decode_answer, encode_chat
from viz import page, view
from viz.story import Trace

# ==================================================================================================
# Text from a model: the prompt of each sample, then batches of samples
#
# model = checkpoint.load("out/palindrome/ckpt.pt")
# start = canvas(model, infill="s[3]s")
# texts = generate(model, [start] * 10, SampleOptions(steps=64), seed=1).texts
# ==================================================================================================


HOLE = re.compile(r"(?<!\\)((?:\\\\)*)\[([0-9]+|\*)\]")  # of --infill; \[ is a bracket
SAMPLING = 5  # stream of randomness; 0 to 4 are those of training


class Prompt(NamedTuple):
    """The start of one sample."""

    ids: Tensor  # (T,) int64
    prompt_mask: Tensor  # (T,) bool: these ids stay
    mirror: Tensor | None = None  # (T,) int64, of a palindrome: which place holds the same token

    @classmethod
    def of(cls, parts: list[int | None]) -> "Prompt":
        """Given ids, and None for each place that is written."""
        ids = torch.tensor([0 if p is None else p for p in parts])
        return cls(ids, torch.tensor([p is not None for p in parts]))


class Samples(NamedTuple):
    """Samples and their cost."""

    ids: Tensor  # (N, T) int64, T the longest canvas
    texts: list[str]
    seconds: float
    nfe: int  # number of function evaluations: calls of the network
    rows: int  # canvases in those calls, summed


def has_bos_eos(model: Model) -> bool:
    """Are the rows of this model [BOS] text [EOS] PAD...? If not, every position is text."""
    names = {"pad", "bos", "eos"} <= set(model.meta["specials"])
    bare = model.meta.get("task") in ("chat", "stage", "diff", *PUZZLES)
    return names and longest_text(model) > 0 and not bare


def longest_row(model: Model) -> int:
    """Length in tokens of the longest training row; 0 for a continuous stream."""
    return model.meta.get("splits", {}).get("train", {}).get("longest", 0)


def longest_text(model: Model) -> int:
    """The same without BOS and EOS."""
    return max(0, longest_row(model) - 2)


def canvas_end(model: Model, needed: int) -> int:
    """Positions of a canvas for `needed` tokens: the block, or with padding="crop" the longest
    training row if that is enough, since networks write EOS on canvases longer than any seen in
    training."""
    block, longest = model.config.block_size, longest_row(model)
    cropped = getattr(model.objective, "padding", "learn") == "crop"
    return min(block, longest) if cropped and needed <= longest else block


def _require(condition: Any, problem: str) -> None:
    if not condition:
        raise UserError(problem)


def canvas(
    model: Model,
    prompt: str = "",
    infill: str = "",
    length: int = 0,
    max_length: int = 0,
    mirrored: bool = False,
) -> Prompt:
    """The canvas of one sample. prompt: text that it begins with. infill: the whole text, in which
    [3] is a hole of three tokens, [*], for insertion models, one of any length, and \\[ a bracket.
    length: exactly so many tokens of text. max_length: at most so many; 0 is as many as the block
    holds. mirrored: the text, whose length must be known, mirrors itself. Raises UserError for what
    does not fit."""
    parts = list(_template(model, infill)) if infill else model.tokenizer.encode(prompt)
    frame, special = has_bos_eos(model), model.meta["specials"]
    has_axis = not (mirrored and model.objective.inserts)
    _require(has_axis, "palindrome: no axis is known while tokens are inserted")
    if model.meta.get("task") in PUZZLES:
        _require(not infill, "infill: this model answers questions; ask one with --prompt")
        return answer_canvas(model, [*parts, special["bos"]], length or max_length)
    if any_length(infill):
        return Prompt.of([special["bos"]] * frame + parts)  # a place for each hole
    asked = max(len(parts), length, max_length)
    block = canvas_end(model, asked + 2 * frame)
    room = min(max_length or block, block - 2 * frame)
    _require(asked <= room, f"{asked} tokens of text do not fit: there is room for {room}")
    short = length and len(parts) > length
    _require(not short, f"a text of {length} tokens cannot hold the {len(parts)} given ones")
    fixed = len(parts) if infill else length  # 0: the model decides
    assert fixed or not mirrored, "the axis of a mirror needs a length"
    parts += [None] * ((fixed or room) - len(parts))
    if frame:
        parts = [special["bos"], *parts, special["eos"] if fixed else None]
        # with a length or max_length, positions beyond it are padding; else they are sampled
        parts += [special["pad"] if fixed or max_length else None] * (block - len(parts))
    begun = Prompt.of(parts)
    return _mirror(begun, model) if mirrored else begun


def draft_canvas(model: Model, text: str) -> Prompt:
    """The canvas of a text that may change in all its places; in their number as well, with an
    insertion model."""
    n, frame = len(model.tokenizer.encode(text)), has_bos_eos(model)
    _require(
        model.meta.get("task") not in (*PUZZLES, "chat"), "draft: this model answers questions"
    )
    begun = canvas(model, text, length=n)
    mask = begun.prompt_mask.clone()
    mask[frame : frame + n] = False
    return begun._replace(prompt_mask=mask)


def chat_canvas(model: Model, messages: list[Message], length: int = 0) -> Prompt:
    """A conversation with `length` positions for the next answer; 0: to the end of the block.
    Raises UserError if they do not fit."""
    return answer_canvas(model, encode_chat(model.tokenizer, messages, reply=True), length)


def answer_canvas(model: Model, ids: list[int], length: int = 0) -> Prompt:
    """The ids of a conversation with `length` positions after them, as `chat_canvas`."""
    block = canvas_end(model, len(ids) + max(1, length))
    room = block - len(ids)
    if room < max(1, length):
        raise UserError(
            f"{len(ids)} tokens of conversation and {max(1, length)} of answer do not fit the "
            f"block of {block}"
        )
    return Prompt.of([*ids, *[None] * (length or room)])


def _pieces(text: str) -> list[str]:
    """`s[3]s` -> s, 3, s: text and the insides of holes by turns. A bracket after a backslash is
    text, `v\\[3]`, and so is one around anything but a number or a star; before a bracket two
    backslashes are one."""

    def halved(found: re.Match) -> str:
        return found[1][: len(found[1]) // 2] + "["

    split = HOLE.split(text)
    got = [re.sub(r"(\\+)\[", halved, piece) for piece in split]
    for i in range(0, len(split) - 1, 3):  # text, the pairs of backslashes before a hole, the hole
        got[i] += split[i + 1][::2]
    return [piece for i, piece in enumerate(got) if i % 3 != 1]


def any_length(infill: str) -> bool:
    """Has the text a hole of unknown length?"""
    return "*" in _pieces(infill)[1::2]


def _template(model: Model, text: str) -> Iterator[int | None]:
    """`s[3]s` -> ids, with None for each place in a hole; `s[*]s` with one None for the hole."""
    longest = model.config.block_size + 1  # any longer hole is refused by `canvas`
    pieces = _pieces(text)
    holes = pieces[1::2]
    if empty := [hole for hole in holes if hole != "*" and not int(hole)]:
        hole = f"[{empty[0]}]"
        raise UserError(f"infill: {hole} is a hole of no tokens; as text it is written \\{hole}")
    if "*" in holes and not model.objective.inserts:
        raise UserError("infill: only insertion models fill holes of unknown length; write [3]")
    if 0 < holes.count("*") < len(holes):
        raise UserError("infill: holes are either all of unknown length, [*], or none of them is")
    for i, piece in enumerate(pieces):
        if i % 2:
            yield from [None] * (1 if piece == "*" else min(int(piece), longest))
        else:
            yield from model.tokenizer.encode(piece)


def _mirror(begun: Prompt, model: Model) -> Prompt:
    """The same as a palindrome: the partner of a given place is given the same id. Refuses two that
    differ."""
    ids, given, _ = begun
    mirror = room("mirror").partners(ids, given, list(model.meta["specials"].values()))
    for i in (given & given[mirror] & (ids != ids[mirror])).nonzero().flatten()[:1]:
        pair = [model.tokenizer.decode([int(ids[place])]) for place in (i, mirror[i])]
        raise UserError(f"no palindrome has {pair[0]!r} at a place mirrored by {pair[1]!r}")
    return Prompt(torch.where(given, ids, ids[mirror]), given | given[mirror], mirror)


def read_prompt(text: str, key: str = "prompt") -> str:
    """The text, or the contents of the file of `FILE:path`."""
    if not text.startswith("FILE:"):
        return text
    content = read_text(Path(text[5:]))
    if not content:
        raise UserError(f"{key} file {text[5:]} is empty")
    return content.replace("\r\n", "\n").replace("\r", "\n")


def generate(
    model: Model,
    canvases: list[Prompt],
    options: SampleOptions,
    seed: int = 0,
    batch_size: int = 64,
    watch: Callable[[Iterable[Frame], Tensor], Iterable[Frame]] = lambda frames, given: frames,
    dtype: str = "auto",
    finished: Callable[["Samples"], None] = lambda batch: None,
    quiet: bool = False,
) -> Samples:
    """Sample every canvas; shorter ones are padded. `watch` receives the frames of the first batch
    and its prompt mask (B, T), and passes the frames on; `finished` receives each batch as soon as
    it is written. quiet: no progress bar. The same seed gives the same samples for the same
    canvases and batch_size: what is drawn for the rows of a batch comes from one generator."""
    batches: list[Samples] = []
    with progress_bar(len(canvases), quiet) as bar:
        for number, first in enumerate(range(0, len(canvases), batch_size)):
            part = canvases[first : first + batch_size]
            rng = generator(seed, SAMPLING, number, device=next(model.net.parameters()).device)
            clock = time.perf_counter()
            with _counted_calls(model.net) as counter:
                frames, given = _frames(model, part, options, rng)
                frames = watch(frames, given) if number == 0 else frames
                with autocast(dtype, given.device):
                    last = deque(counted(frames, model, len(part), bar), maxlen=1).pop()
            ids = last.ids.cpu()
            texts = [text_of(model, row) for row in ids.tolist()]
            seconds = time.perf_counter() - clock
            batches.append(Samples(ids, texts, seconds, counter["nfe"], counter["rows"]))
            finished(batches[-1])
    return joined(batches, model.meta["specials"].get("pad", 0))


def _frames(
    model: Model, part: list[Prompt], options: SampleOptions, rng: torch.Generator
) -> tuple[Iterable[Frame], Tensor]:
    """The frames of a batch of canvases and its prompt mask (B, T)."""
    sizes, pad = torch.tensor([len(c.ids) for c in part]), model.meta["specials"].get("pad", 0)
    even = zip(*_even(part, int(sizes.max()), pad), strict=True)
    ids, given, mirror = (torch.stack(p).to(rng.device) for p in even)
    if (sizes != ids.shape[1]).any():
        options = replace(options, length=sizes.to(rng.device))
    if options.allowed is not None and len(options.allowed.ids) > 1:
        options = replace(options, allowed=by_place(options.allowed.ids.to(rng.device), given))
    if all(c.mirror is None for c in part):
        return model.objective.sample(model.net, ids, given, rng, options), given
    # inside a text whose length is fixed, no special token may be written
    options = replace(options, banned=tuple(model.meta["specials"].values()))
    sample = room("mirror").sample
    return sample(model.objective, model.net, ids, given, mirror, rng, options), given


def by_place(ids: Tensor, given: Tensor) -> Allowed:
    """Lists of ids (K + 1, V) for canvases with these given places (B, T): the first K for as many
    places that are written, the last for those behind them. Raises UserError for fewer places, and
    for more of them where no end of a text may stand."""
    K, places = len(ids) - 1, (~given).sum(1)
    if places.min() < K or (places.max() > K and not ids[K].any()):
        raise UserError(
            f"allowed: {K} lines, but {int(places.min())} places are written; write a line for "
            "each, or set their number by --max_length"
        )
    return Allowed(ids, ((~given).cumsum(1) - 1).clamp(0, K))


def joined(batches: list[Samples], pad: int) -> Samples:
    """All batches as one, padded to the longest canvas."""
    widest = max(batch.ids.shape[1] for batch in batches)
    ids = [F.pad(one.ids, (0, widest - one.ids.shape[1]), value=pad) for one in batches]
    texts = [text for batch in batches for text in batch.texts]
    seconds, nfe, rows = (sum(numbers) for numbers in zip(*(b[2:] for b in batches), strict=True))
    return Samples(torch.cat(ids), texts, seconds, nfe, rows)


# ---- progress ----------------------------------------------------------------------------------


PATIENCE = 2.0  # seconds of sampling before a bar is shown
REDRAW = 0.3  # seconds


def progress_bar(samples: int, quiet: bool) -> tqdm:
    """On stderr, if that is a terminal."""
    shape = "{l_bar}{bar}| {n:.0f}/{total} samples [{elapsed}<{remaining}, {rate_fmt}]"
    pace = {"delay": PATIENCE, "mininterval": REDRAW, "miniters": 0}
    quiet = quiet or None  # None: where it is no terminal
    how = {"unit": " samples", "leave": False, "bar_format": shape, **pace}
    return tqdm(total=samples, disable=quiet, **how)


def counted(frames: Iterable[Frame], model: Model, size: int, bar: tqdm) -> Iterator[Frame]:
    """The frames of a batch of `size` samples, which move the bar by the share of their places that
    is written: no longer MASK, or within the length of the text so far."""
    done, begun, mask = bar.n, 0, model.objective.mask_id
    for number, frame in enumerate(frames):
        if not bar.disable:
            beyond = frame.ids.shape[1] - frame.length
            left = int(beyond.sum() if mask is None else (frame.ids == mask).sum())
            begun = left if number == 0 else begun  # 0 on the uniform graph: no share is known
            bar.update(done + size * (1 - left / begun if begun else 0) - bar.n)
        yield frame
    bar.update(done + size - bar.n)


def is_stream(model: Model) -> bool:
    """Can a training row hold several documents: windows of a stream, or stages?"""
    rows = model.meta.get("splits", {}).get("train", {}).get("rows", 0)
    return not rows or model.meta.get("task") == "stage"


def text_of(model: Model, ids: list[int]) -> str:
    """One sample as text: up to EOS, or for a stream its documents with blank lines between."""
    eos = model.meta["specials"].get("eos", -1)
    if not is_stream(model) or eos not in ids:
        return model.tokenizer.decode(ids)
    ends = [i for i, token in enumerate(ids) if token == eos]
    parts = [ids[a:b] for a, b in zip([0, *(e + 1 for e in ends)], [*ends, len(ids)], strict=True)]
    return "\n\n".join(filter(None, map(model.tokenizer.decode, parts)))


def written_ids(model: Model, ids: Tensor, canvases: list[Prompt]) -> list[list[int]]:
    """ids (N, T) of samples -> the ids of each that are not its prompt: all of them if the model
    was trained on a stream, else up to the first EOS, inclusive."""
    eos = -1 if is_stream(model) else model.meta["specials"].get("eos", -1)
    pairs = zip(ids, canvases, strict=True)
    if model.objective.inserts:
        rows = [_inserted(row.tolist(), prompt) for row, prompt in pairs]
    else:
        rows = [row[: len(prompt.ids)][~prompt.prompt_mask].tolist() for row, prompt in pairs]
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


def _inserted(row: list[int], begun: Prompt) -> list[int]:
    """A row without the ids of the prompt, a subsequence of it, each matched as early as
    possible."""
    prompt = begun.ids[begun.prompt_mask].tolist()[::-1]
    inserted = []
    for token in row:
        if prompt and token == prompt[-1]:
            prompt.pop()
        else:
            inserted.append(token)
    return inserted


def _even(canvases: list[Prompt], T: int, pad: int) -> list[Prompt]:
    """All of T places: behind a shorter canvas stands given padding (mirrored ones are of one
    length). Without a mirror, each place is its own partner."""
    return [
        Prompt(
            F.pad(c.ids, (0, T - len(c.ids)), value=pad),
            F.pad(c.prompt_mask, (0, T - len(c.prompt_mask)), value=True),
            torch.arange(T) if c.mirror is None else c.mirror,
        )
        for c in canvases
    ]


@contextmanager
def _counted_calls(net: Any) -> Iterator[dict[str, int]]:
    """Count the calls of the network, and the canvases in them, while the block runs."""
    counter, features = {"nfe": 0, "rows": 0}, net.features

    def count(*args: Any, **options: Any) -> Tensor:
        h = features(*args, **options)
        counter["nfe"] += 1
        counter["rows"] += len(h)
        return h

    net.features = count  # a hook in the network would break the graph of a compiled one
    try:
        yield counter
    finally:
        net.features = features


# ==================================================================================================
# The command
# ==================================================================================================


# the samplers of all objectives
NAMES = dict.fromkeys((*GRIDS, *SAMPLERS, *Ordered.samplers))
for objective in (UDLM, Insertion, InsertionTransformer, IDLM, FlexMDM):
    NAMES |= dict.fromkeys(objective.samplers)

INSERTION = (  # settings that only samplers of insertion models read
    *("sampling_method", "top", "p", "second_sampling_method", "second_top", "second_p"),
    *("stopping_threshold", "stopping_temperature", "length_temperature", "use_first_step_factor"),
    "delete",
)


SHORTEST = 4  # tokens of a text whose length --palindrome draws
SHOWN = 8  # samples in an animation
Methods = Literal["", "sample", "sample_top_k", "sample_top_p"]
SamplerName = Literal[("auto", *NAMES)]
UnmaskSchedule = Literal[tuple(CHOICES["unmask_schedule"])]
Remask = Literal[tuple(CHOICES["remask"])]
CacheKind = Literal[tuple(CHOICES["cache"])]
CorrectorOrder = Literal[tuple(CHOICES["corrector_order"])]


@dataclass(frozen=True)
class SamplerConfig:
    """The options that `sample.py` and `evaluate.py` share."""

    ckpt: str = "out/palindrome/ckpt.pt"  # folder of a run or of safetensors, ckpt.pt, hub id
    steps: int = 64  # of the reverse process, for samplers with a grid of them
    sampler: SamplerName = "auto"  # which places are written when; auto: by the objective
    temperature: float = 1.0  # of the token draws; 0 takes the most probable
    top_k: int = 0  # keep the k most probable tokens; 0 keeps all
    top_p: float = 1.0  # keep the fewest tokens that hold this probability
    unmask_schedule: UnmaskSchedule = "uniform"  # how many places are written in a step
    threshold: float = 0.9  # unmask_schedule=threshold: write every place that is at least so sure
    factor: float = 1.0  # unmask_schedule=factor: the r surest while sure of 1 - factor / (r + 1)
    entropy_bound: float = 0.1  # unmask_schedule=entropy_bound: the surest, up to so many nats
    block_length: int = 0  # write so many tokens before those to their right; 0: all at once
    cfg: float = 0.0  # guidance: how far to go beyond what the prompt alone says
    remask: Remask = "none"  # write again what was written, by a rule of ReMDM
    eta: float | None = None  # remask=cap, rescale, loop: how often; None: as published
    cache: CacheKind = "none"  # keep keys and values for the time of a block
    draft_time: float = 0.1  # udlm: the time t from which a --draft is denoised
    renoise: bool = True  # udlm: noise the draft to that time first; False: it is as noisy as it is
    corrector_steps: int = 0  # udlm: how often some tokens are drawn anew after each step
    corrector_places: int = 1  # udlm: how many tokens of each text
    corrector_order: CorrectorOrder = "margin"  # udlm: which: those that fall behind most, or any
    delete: int = 0  # insertion, trained with token_noise: delete at most so many tokens of a text
    sampling_method: Methods = ""  # insertion: of tokens, in ILM's words; empty: as all others
    top: int = 1000  # sampling_method=sample_top_k: keep so many tokens
    p: float = 0.9  # sampling_method=sample_top_p: keep those that together stay below it
    second_sampling_method: Methods = ""  # insertion: choose the gap first, like this
    second_top: int = 1000  # second_sampling_method=sample_top_k: keep so many gaps
    second_p: float = 0.9  # second_sampling_method=sample_top_p: keep those below it
    stopping_threshold: float | None = None  # insertion: be so sure that nothing is missing
    stopping_temperature: float = 1.0  # insertion: of the probability that nothing is missing
    length_temperature: float = 1.0  # idlm: of the number of missing tokens
    use_first_step_factor: bool = True  # idlm: the exact rate of the first token; False: longer
    delay_eos: bool = False  # sampler=confidence, margin, entropy: end a text as late as possible
    allowed: str = ""  # write no token but those that match this regex; FILE:path: one per place
    chat: bool = False  # the prompt is a question to answer; sample.py without one: converse
    prompt: str = ""  # text that comes first, or FILE:path
    max_length: int = 0  # of the text or answer, in tokens; 0: what the block holds
    seed: int = 1337  # the same gives the same samples, of as many in batches of one size
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on GPUs with it
    use_ema: bool = True  # the averaged weights, where the checkpoint has them
    show: bool = False  # animate the first samples in the terminal

    def __post_init__(self):
        for key in "max_length top second_top stopping_temperature length_temperature".split():
            require(self, key, getattr(self, key) >= 0, "at least 0")
        for key in ("p", "second_p"):
            require(self, key, 0 <= getattr(self, key) <= 1, "between 0 and 1")


@dataclass(frozen=True)
class SampleConfig(SamplerConfig):
    """The options of `sample.py`."""

    hf_model_name: str = ""  # folder or hub id with config and tokenizer, if ckpt is weights only
    seq_len: int = 0  # places of the canvas of a transformers model, prompt included; 0: 512
    num_samples: int = 10  # how many
    batch_size: int = 64  # of them at a time
    infill: str = ""  # a whole text with holes: s[3]s has one of three tokens
    draft: str = ""  # a whole text to correct, or FILE:path: udlm, --remask=edit, --delete=N
    palindrome: bool = False  # mirror every sample
    file: str = ""  # diff models: print a patch of this file, and whether it applies
    message: str = ""  # what the patch is to do
    lines: str = ""  # show the model only lines FIRST:LAST of the file, as a model of windows needs
    write: bool = False  # apply the patch to the file, if git could bring it back
    gif: str = ""  # write that animation to this file
    html: str = ""  # write it as a page with a slider, and what every token was drawn from
    export: str = ""  # write model.safetensors and config.json to this folder, and stop
    compile: bool = False  # the network, which takes a minute: for many long texts on a GPU

    def __post_init__(self):
        super().__post_init__()
        for key in ("num_samples", "batch_size"):
            require(self, key, getattr(self, key) >= 1, "at least 1")
        require(self, "seq_len", self.seq_len >= 0, "at least 0")
        require(self, "infill", not (self.infill and self.prompt), "empty when there is a prompt")
        others = self.prompt or self.infill or self.palindrome or self.chat
        require(self, "draft", not (self.draft and others), "the only text that is given")
        require(self, "chat", not (self.chat and self.palindrome), "off with --palindrome")
        for key in ("message", "lines", "write"):
            require(self, key, bool(self.file) or not getattr(self, key), "left out without --file")
        ends = re.fullmatch(r"(\d{1,9}):(\d{1,9})", self.lines)
        good = not self.lines or (ends and 1 <= int(ends[1]) <= int(ends[2]))
        require(self, "lines", good, "FIRST:LAST, counted from 1")
        for key in ("prompt", "infill", "palindrome", "chat", "draft"):
            free = not (self.file and getattr(self, key))
            require(self, key, free, "left out with --file")
        for key in ("gif", "html"):
            drawn = not (self.file or (self.chat and not self.prompt))
            require(
                self, key, drawn or not getattr(self, key), "of samples, or --chat --prompt=..."
            )


Configured = TypeVar("Configured", bound=SamplerConfig)


def canvases(cfg: SampleConfig, model: Model) -> list[Prompt]:
    """One per sample; the lengths of palindromes are drawn from SHORTEST to the longest."""
    if cfg.draft:
        return [draft_canvas(model, read_prompt(cfg.draft))] * cfg.num_samples
    prompt = read_prompt(cfg.prompt)
    free = canvas(model, prompt, cfg.infill, 0, cfg.max_length, mirrored=False)
    if not cfg.palindrome:
        return [free] * cfg.num_samples
    if cfg.infill:
        return [canvas(model, infill=cfg.infill, mirrored=True)] * cfg.num_samples
    rng = random.Random(seed_of(cfg.seed, SAMPLING))
    sizes = rng.choices(palindrome_lengths(cfg, model, prompt), k=cfg.num_samples)
    return [canvas(model, prompt, length=n, mirrored=True) for n in sizes]


# option of SampleOptions -> the flag that sets it, where it is called otherwise
FLAGS = {
    "delay": "delay_eos",
    "gap": "second_sampling_method",
    "stop_threshold": "stopping_threshold",
    "stop_temperature": "stopping_temperature",
    "first_step_factor": "use_first_step_factor",
}
SETTINGS = {  # flags that shape samples, each read by some sampler
    *("steps", "temperature", "top_k", "top_p", "unmask_schedule", "threshold", "factor"),
    *("entropy_bound", "block_length", "cfg", "remask", "eta", "cache", "delay_eos", "allowed"),
    *("draft", "draft_time", "renoise"),
    *("corrector_steps", "corrector_places", "corrector_order"),
    *INSERTION,
}
NEEDS = {  # flag -> the other flag without which it changes nothing
    "threshold": "unmask_schedule=threshold",
    "factor": "unmask_schedule=factor",
    "entropy_bound": "unmask_schedule=entropy_bound",
    "eta": "remask=cap",
    "draft_time": "draft=TEXT",
    "renoise": "draft=TEXT",
    "corrector_places": "corrector_steps=1",
    "corrector_order": "corrector_steps=1",
    "top": "sampling_method=sample_top_k",
    "p": "sampling_method=sample_top_p",
    "second_top": "second_sampling_method=sample_top_k",
    "second_p": "second_sampling_method=sample_top_p",
}


def flags_read(cfg: SamplerConfig, model: Model, sampler: str) -> set[str]:
    """Those of SETTINGS that have an effect with this sampler and the others of these settings."""
    options = sample_options(replace(cfg, sampler=sampler), model)
    flags = {FLAGS.get(option, option) for option in model.objective.options_used(options)}
    if model.objective.inserts:  # ILM's words: a method, and the option that goes with it
        flags.add("sampling_method")
        for method in flags & {"sampling_method", "second_sampling_method"}:
            chosen = f"{method}={getattr(cfg, method)}"
            flags |= {key for key, need in NEEDS.items() if need == chosen}
        flags.discard(cfg.sampling_method.removeprefix("sample_"))  # top_k is top's, top_p is p's
    return flags


def usual_sampler(
    cfg: SamplerConfig, origins: dict[str, str], model: Model
) -> tuple[str, list[str]]:
    """The sampler to use, and which of the flags that were given it has no use for. auto is the
    first of the objective's with the fewest of those."""
    names, given = model.objective.samplers, [key for key in origins if key in SETTINGS]
    if cfg.sampler != "auto":
        names = (choose_sampler(model.objective, SampleOptions(sampler=cfg.sampler)).sampler,)
    if not given:
        return names[0], []
    unread = {}
    for name in names:
        read = flags_read(cfg, model, name)
        unread[name] = [key for key in given if key not in read]
    name = min(names, key=lambda name: len(unread[name]))
    return name, unread[name]


def with_sampler(cfg: Configured, origins: dict[str, str], model: Model) -> Configured:
    """`cfg` with its usual sampler. Raises UserError for a flag that was given, on the command line
    or in a config file, and that would change nothing."""
    name, unread = usual_sampler(cfg, origins, model)
    if unread:
        refuse_flag(cfg, origins, model, name, unread[0])
    return cfg if name == model.objective.samplers[0] else replace(cfg, sampler=name)


def refuse_flag(
    cfg: SamplerConfig, origins: dict[str, str], model: Model, sampler: str, key: str
) -> NoReturn:
    masked = "confidence" in model.objective.samplers and not model.objective.inserts
    possible = model.objective.inserts if key in INSERTION else masked
    fix = f", or use it with --{NEEDS[key]}" if key in NEEDS and possible else ""
    raise UserError(
        f"{key}={getattr(cfg, key)} ({origins[key]}): objective={model.config.objective} with "
        f"sampler={sampler} has no use for it; leave it out{fix}"
    )


def sample_options(cfg: SamplerConfig, model: Model) -> SampleOptions:
    """The options of the sampler."""
    names = [f.name for f in dataclasses.fields(SampleOptions) if hasattr(cfg, f.name)]
    draft = bool(getattr(cfg, "draft", ""))  # the text itself is on the canvas
    options = SampleOptions(**{name: getattr(cfg, name) for name in names} | {"draft": draft})
    special = model.meta["specials"]
    ends = tuple(special[name] for name in ("eos", "eot") if name in special)
    if model.objective.inserts:
        options = insertion_options(cfg, model, options)
    return dataclasses.replace(
        options,
        stop=special.get("eos") if cfg.chat and not model.objective.inserts else None,
        delay=ends if cfg.delay_eos else (),
        allowed=allowed_ids(cfg, model) if cfg.allowed else None,
        candidates=Trace.best if getattr(cfg, "html", "") else 0,
    )


@lru_cache(maxsize=1)
def texts_of_ids(tokenizer: Tokenizer) -> list[str]:
    """The text of each id alone; empty for special ids, and for parts of characters."""
    texts = (tokenizer.decode([i]) for i in range(tokenizer.vocab_size))
    return ["" if "\ufffd" in text else text for text in texts]


def allowed_ids(cfg: SamplerConfig, model: Model) -> Allowed:
    """The ids whose text matches --allowed as a whole: one list of them for every place, in which
    the end of a text may stand as well; or with FILE:path, of several lines, a list for each line,
    in which it may if the line matches the empty text, and one for what is behind the last line:
    the end. In a hole of --infill no text ends. Raises UserError for a regex that is none, and for
    one that no id matches."""
    lines = [cfg.allowed]
    if cfg.allowed.startswith("FILE:"):
        lines = read_prompt(cfg.allowed, "allowed").removesuffix("\n").split("\n")
    inserts, several, special = model.objective.inserts, len(lines) > 1, model.meta["specials"]
    moved = inserts or getattr(cfg, "palindrome", False)
    if several and moved:
        what = "an insertion model, whose places move" if inserts else "a mirrored text"
        raise UserError(f"allowed={cfg.allowed}: {what} takes one line for all places")
    ends = [special[name] for name in ("eos", "eot", "pad") if name in special]
    ends = [] if getattr(cfg, "infill", "") and not inserts else ends
    texts, V = texts_of_ids(model.tokenizer), len(model.net.head.weight)
    ids = torch.zeros(len(lines) + several, V, dtype=torch.bool)
    for k, line in enumerate(lines):
        name = f"allowed={line!r}" + (f", line {k + 1} of {cfg.allowed[5:]}" if several else "")
        try:
            regex = re.compile(line)
        except re.error as e:
            raise UserError(f"{name}: {e}; write a regular expression, as [a-z]") from None
        found = [i for i, text in enumerate(texts) if text and regex.fullmatch(text)]
        may_end = bool(ends) and (not several or regex.fullmatch("") is not None)
        if not found and not (several and may_end):
            raise UserError(f"{name}: no token of this model matches it as a whole")
        ids[k, found] = True
        ids[k, ends] = may_end
    if several:
        ids[-1, ends] = True
    return Allowed(ids.to(model.net.head.weight.device))


def insertion_options(cfg: SamplerConfig, model: Model, options: SampleOptions) -> SampleOptions:
    """The options with the settings of ILM's configs, whose top_p drops the token that crosses
    p."""

    def rule(method: str, top: int, p: float) -> dict[str, Any]:
        options = {"": {}, "sample": {}, "sample_top_k": {"top_k": top}}
        return options.get(method, {"top_p": p, "strict_p": True})

    gap, infill = cfg.second_sampling_method, getattr(cfg, "infill", "")
    free = any_length(infill) or options.draft  # texts may grow
    block, room = model.config.block_size, cfg.max_length + 2 * has_bos_eos(model)
    return dataclasses.replace(
        options,
        **rule(cfg.sampling_method, cfg.top, cfg.p),
        gap=SampleOptions(**rule(gap, cfg.second_top, cfg.second_p)) if gap else None,
        capacity=(min(room, block) if cfg.max_length else block) if free else 0,
        exact=bool(infill) and not any_length(infill),
        stop_threshold=cfg.stopping_threshold,
        stop_temperature=cfg.stopping_temperature,
        first_step_factor=cfg.use_first_step_factor,
    )


def settings(cfg: SamplerConfig, model: Model) -> dict[str, Any]:
    """The settings on which samples depend, for reports."""
    options = dataclasses.asdict(choose_sampler(model.objective, sample_options(cfg, model)))
    if model.objective.inserts:
        names = ("steps", "temperature", "top_k", "top_p", "threshold", *INSERTION)
        shown = {"sampler": options["sampler"], **{name: getattr(cfg, name) for name in names}}
    else:
        shown = {k: v for k, v in options.items() if k in vars(cfg) and k not in INSERTION}
    shown["allowed"] = cfg.allowed or None  # as it was asked for, not its ids
    dtype = pick_dtype(cfg.dtype, pick_device(cfg.device))
    return {**shown, "network": str(dtype).removeprefix("torch."), "draws": "float64"}


def palindrome_lengths(cfg: SampleConfig, model: Model, prompt: str) -> range | list[int]:
    """Lengths at which some palindrome begins with the prompt; one only where there is no frame
    that tells where a text ends."""
    longest = cfg.max_length or longest_text(model) or model.config.block_size
    if not has_bos_eos(model):
        return [longest]
    ids = model.tokenizer.encode(prompt)
    few = range(min(max(SHORTEST, len(ids)), longest), longest + 1)

    def fits(n: int) -> bool:  # where the prompt reaches its own mirror image
        return all(ids[i] == ids[n - 1 - i] for i in range(max(0, n - len(ids)), len(ids)))

    return [n for n in few if fits(n)] or [longest]


def show_token(model: Model) -> Callable[[int], str]:
    """The text of an id in an animation: a shaded block for MASK, nothing for other specials."""
    hidden = set(model.meta["specials"].values())

    def show(i: int) -> str:
        if i == model.objective.mask_id:
            return "░"
        return "" if i in hidden else model.tokenizer.decode([i])

    return show


class Shown(NamedTuple):
    """The part of a frame that an animation shows: the first samples, and the columns up to the
    last one outside the prompt in any of them."""

    ids: Tensor
    length: Tensor
    changed: Tensor
    whole: Frame


def watcher(cfg: SampleConfig, model: Model, kept: list[Shown]) -> Callable:
    """The `watch` of `generate`: shows the animation and appends frames of the GIF to `kept`."""

    def watch(frames: Iterable[Frame], prompt_mask: Tensor) -> Iterator[Frame]:
        if model.objective.inserts:  # any column may change
            prompt_mask = torch.zeros(len(prompt_mask), model.config.block_size, dtype=torch.bool)
        width = shown_width(prompt_mask)
        part = (slice(SHOWN), slice(width))
        shown = (
            Shown(f.ids[part], f.length[:SHOWN].clamp(max=width), f.changed[part], f)
            for f in frames
        )
        if cfg.show:
            mask = model.objective.mask_id
            inserts = model.objective.inserts
            shown = view.terminal(
                shown, show_token(model), mask, prompt_mask[part], SHOWN, inserts=inserts
            )
        for frame in shown:
            if cfg.gif:
                kept.append(frame)
            yield frame.whole

    return watch


def shown_width(prompt_mask: Tensor) -> int:
    """(B, T) -> columns up to the last one outside the prompt of any of the first samples."""
    columns = (~prompt_mask[:SHOWN]).any(0).nonzero()
    return int(columns.max()) + 1 if len(columns) else prompt_mask.shape[1]


def palindrome_report(texts: list[str], model: Model) -> str:
    """How many are palindromes, and how many of those are new, if the corpus is still there."""
    try:
        seen = set(Corpus(Path(model.config.data_dir) / model.config.dataset).texts("train"))
    except UserError:
        seen = None
    task = room("palindrome")
    return task.describe(task.report(texts, seen))


# ---- conversations -----------------------------------------------------------------------------


def answer_defaults(
    cfg: Configured, origins: dict[str, str], samplers: tuple[str, ...]
) -> Configured:
    """`cfg` with the defaults for answers and patches, for options that the user has not set."""
    defaults = {"num_samples": 1, "temperature": 0.0}
    if "confidence" in samplers:
        defaults["sampler"] = "confidence"
    unset = {k: v for k, v in defaults.items() if k not in origins and hasattr(cfg, k)}
    return dataclasses.replace(cfg, **unset)


def answers_of(model: Model, samples: Samples, begun: Prompt) -> list[str]:
    """What stands behind a conversation in its samples: the next message of the assistant."""
    prompt = int(begun.prompt_mask.sum())
    return [decode_answer(model.tokenizer, row[prompt:].tolist()) for row in samples.ids]


def answer(
    cfg: SampleConfig, model: Model, messages: list[Message], watch: Callable
) -> tuple[list[str], Samples]:
    """The next message of the assistant, cfg.num_samples times, and the samples."""
    begun, options = chat_canvas(model, messages, cfg.max_length), sample_options(cfg, model)
    how = (options, cfg.seed, cfg.batch_size, watch, cfg.dtype)
    samples = generate(model, [begun] * cfg.num_samples, *how, quiet=cfg.show)
    return answers_of(model, samples, begun), samples


def converse(cfg: SampleConfig, model: Model) -> None:
    """Answer questions from the terminal until its end (Ctrl-D) or an empty line. The prompt of
    each answer is the whole conversation, without the oldest turns if it exceeds the block."""
    messages: list[Message] = []
    while question := ask():
        messages.append((USER, question))
        while len(messages) > 1 and not fits(cfg, model, messages):
            messages = messages[2:]  # the oldest question and its answer
        texts, samples = answer(cfg, model, messages, watcher(cfg, model, []))
        print(texts[0], flush=True)
        print(f"  ({samples.rows} network calls, {samples.seconds:.1f} s)", file=sys.stderr)
        messages.append((ASSISTANT, texts[0]))


def fits(cfg: SampleConfig, model: Model, messages: list[Message]) -> bool:
    prompt = len(encode_chat(model.tokenizer, messages, reply=True))
    return prompt + max(1, cfg.max_length) <= model.config.block_size


def ask() -> str:
    """A line from the terminal or a pipe; empty at its end. Raises UserError for bytes that are
    none in the encoding of the terminal."""
    try:
        line = input("> " if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        return ""
    except UnicodeDecodeError as e:
        encoding = sys.stdin.encoding.upper()
        raise UserError(f"the question is no {encoding}: {e}; convert it") from None
    return line.removeprefix("\ufeff").strip()  # a mark, of a file that is piped


# ---- the command -------------------------------------------------------------------------------


def require_writable(cfg: Any, *keys: str) -> None:
    """Raise UserError unless the files that these fields name can be written: before time is spent
    on what is to stand in them."""
    for key in [key for key in keys if getattr(cfg, key)]:
        path = Path(getattr(cfg, key))
        if path.is_dir():
            raise UserError(f"{key}={path} is a folder; name a file in it")
        probe = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            probe.touch()
            probe.unlink()
        except OSError as e:
            raise UserError(f"{key}={path}: {e.strerror}") from e


def require_pillow(cfg: SampleConfig) -> None:
    try:
        view._pillow()
    except ModuleNotFoundError as e:
        raise UserError(f"gif={cfg.gif}: {e}") from e


def main(argv: list[str]) -> None:
    if any(a.startswith("--cascade=") for a in argv):
        room("cascade").main(argv)
        return
    cfg, origins = load(SampleConfig, argv)
    require_writable(cfg, "gif", "html")
    if cfg.gif:
        require_pillow(cfg)
    device = pick_device(cfg.device)
    model = checkpoint.load(cfg.ckpt, device, cfg.use_ema, cfg.hf_model_name, cfg.seq_len)
    if cfg.export:
        checkpoint.export(model, cfg.export)
        print(f"wrote {cfg.export}/model.safetensors and config.json")
        return
    if cfg.chat or cfg.file:
        cfg = answer_defaults(cfg, origins, model.objective.samplers)
    cfg = with_sampler(cfg, origins, model)
    if cfg.compile:
        if cfg.cache != "none" or model.config.objective == "bd3":
            raise UserError("compile: not with the cache of a block, whose window moves")
        if wants_compile("true", device):
            compile_network(model.net)
    if cfg.file:
        room("patch").patch_file(cfg, model)
    elif cfg.chat and not cfg.prompt:
        converse(cfg, model)
    else:
        write_texts(cfg, model)


def write_texts(cfg: SampleConfig, model: Model) -> None:
    """Print samples, or answers to the one question, each batch when it is finished; then their
    cost and the files that were written."""
    kept: list[Shown] = []
    texts: list[str] = []
    trace, watch = trace_of(model), watcher(cfg, model, kept)
    if cfg.html:
        watch = partial(trace.watch, then=watch)
    if cfg.chat:
        messages = [(USER, read_prompt(cfg.prompt))]
        begun = [chat_canvas(model, messages, cfg.max_length)] * cfg.num_samples
    else:
        begun = canvases(cfg, model)

    def finished(batch: Samples) -> None:
        found = answers_of(model, batch, begun[0]) if cfg.chat else batch.texts
        print_batch(found, texts)
        if not texts and cfg.gif:
            write_gif(cfg, model, kept, begun)
        if not texts and cfg.html:
            write_page(cfg.html, [trace], cfg.ckpt, settings(cfg, model) | {"seed": cfg.seed})
        texts.extend(found)

    options = sample_options(cfg, model)
    how = (options, cfg.seed, cfg.batch_size, watch, cfg.dtype)
    samples = generate(model, begun, *how, finished=finished, quiet=cfg.show)
    tokens = sum(map(len, written_ids(model, samples.ids, begun))) / samples.seconds
    sampler = choose_sampler(model.objective, options).sampler
    print(
        f"\n{cfg.num_samples} samples by {sampler}, {samples.rows / cfg.num_samples:.1f} network "
        f"calls each, {samples.seconds:.1f} s, {tokens:,.0f} tokens/s; "
        f"seed {cfg.seed} in batches of {min(cfg.batch_size, cfg.num_samples)}"
    )
    if cfg.palindrome or model.meta.get("task") == "palindrome":
        print(palindrome_report(texts, model))
    if files := [name for name in (cfg.gif, cfg.html) if name]:
        print(f"wrote {' and '.join(files)}")


def print_batch(texts: list[str], before: list[str]) -> None:
    """Print texts behind those of the batches before: a line each, or from the first batch on in
    which one has several lines, with a dashed line between them."""
    dashed = any("\n" in text for text in [*before, *texts])
    line = "\n---------------\n" if dashed else "\n"
    start = line[1:] if before else ""
    tqdm.write(start + line.join(texts), file=sys.stdout)
    sys.stdout.flush()


def write_gif(cfg: SampleConfig, model: Model, kept: list[Shown], begun: list[Prompt]) -> None:
    prompt_mask = torch.stack([c.prompt_mask for c in begun[:SHOWN]])
    prompt_mask = prompt_mask[:, : shown_width(prompt_mask)]
    try:
        show, objective = show_token(model), model.objective
        view.gif(
            cfg.gif, kept, show, objective.mask_id, prompt_mask, SHOWN, inserts=objective.inserts
        )
    except OSError as e:
        raise UserError(f"gif={cfg.gif}: {e}") from e


def trace_of(model: Model, name: str = "", skip: int = 0) -> Trace:
    """The Trace for a page, or for a stage on one, of samples without their first `skip`
    positions."""
    objective, note = model.objective, ""
    if not getattr(objective, "graph", Absorbing).absorbing:
        note = (
            "Any token may change in any step; probabilities are those of one step, in which it "
            "most probably stays."
        )
    show, mask, rows = show_token(model), objective.mask_id, SHOWN
    return Trace(name, show, mask, inserts=objective.inserts, rows=rows, skip=skip, note=note)


def write_page(path: str, traces: list[Trace], name: str, facts: dict[str, Any]) -> None:
    try:
        page.write(path, traces, f"Samples of {name}", facts)
    except OSError as e:
        raise UserError(f"html={path}: {e.strerror}") from e


if __name__ == "__main__":
    run(main)
