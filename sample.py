"""Sample from a checkpoint: python sample.py --ckpt=out/palindrome/ckpt.pt --num_samples=50 --show

--prompt="abc" or --prompt=FILE:start.txt     text that every sample begins with
--infill="s[3]s"                              the whole text, with a hole of three tokens
--palindrome                                  mirrored in every sample by construction
--ckpt=louaaron/sedd-small                    published weights, from the hub or a folder
--export=DIR                                  write safetensors and JSON instead of sampling
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, Iterator, Literal, NamedTuple

import torch
from torch import Tensor

import checkpoint
import palindromes
import view
from build import pick_device
from checkpoint import Model
from configurator import UserError, load, require, run
from corpus import Corpus
from generate import SAMPLING, Canvas, canvas, framed, generate, longest_text, read_prompt
from objective import Frame, SampleOptions, seed_of

SHORTEST = 4  # tokens of a text whose length --palindrome draws
SHOWN = 8  # samples in an animation


@dataclass(frozen=True)
class SampleConfig:
    """Everything that `sample.py` can be told."""

    ckpt: str = "out/palindrome/ckpt.pt"  # a ckpt.pt, a folder with safetensors, or a hub id
    num_samples: int = 10  # how many
    batch_size: int = 64  # of them at a time
    steps: int = 64  # of the reverse process
    sampler: str = "analytic"  # euler | analytic; absorbing: hop | first_hitting | confidence
    temperature: float = 1.0  # of the token draws; 0 takes the most probable
    top_k: int = 0  # keep the k most probable tokens; 0 keeps all
    top_p: float = 1.0  # keep the fewest tokens that hold this probability
    prompt: str = ""  # text that every sample begins with, or FILE:path
    infill: str = ""  # a whole text with holes: s[3]s has one of three tokens
    palindrome: bool = False  # mirror every sample
    max_length: int = 0  # of the text, in tokens; 0: the longest in training
    seed: int = 1337  # the same seed gives the same samples
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on GPUs with it
    use_ema: bool = True  # the averaged weights, where the checkpoint has them
    show: bool = False  # animate the first samples in the terminal
    gif: str = ""  # write that animation to this file
    export: str = ""  # write model.safetensors and config.json to this folder, and stop

    def __post_init__(self):
        for key in ("num_samples", "batch_size"):
            require(self, key, getattr(self, key) >= 1, "at least 1")
        require(self, "max_length", self.max_length >= 0, "at least 0")
        require(self, "infill", not (self.infill and self.prompt), "empty when there is a prompt")


def canvases(cfg: SampleConfig, model: Model) -> list[Canvas]:
    """One per sample; the lengths of palindromes are drawn from SHORTEST to the longest."""
    prompt = read_prompt(cfg.prompt)
    free = canvas(model, prompt, cfg.infill, 0, cfg.max_length, mirrored=False)
    if not cfg.palindrome:
        return [free] * cfg.num_samples
    if cfg.infill:
        return [canvas(model, infill=cfg.infill, mirrored=True)] * cfg.num_samples
    rng = random.Random(seed_of(cfg.seed, SAMPLING))
    sizes = rng.choices(palindrome_lengths(cfg, model, prompt), k=cfg.num_samples)
    return [canvas(model, prompt, length=n, mirrored=True) for n in sizes]


def palindrome_lengths(cfg: SampleConfig, model: Model, prompt: str) -> range | list[int]:
    """Lengths at which some palindrome begins with the prompt; one only where there is no frame
    that tells where a text ends."""
    longest = cfg.max_length or longest_text(model) or model.config.block_size
    if not framed(model):
        return [longest]
    ids = model.tokenizer.encode(prompt)
    few = range(min(max(SHORTEST, len(ids)), longest), longest + 1)

    def fits(n: int) -> bool:  # where the prompt reaches its own mirror image
        return all(ids[i] == ids[n - 1 - i] for i in range(max(0, n - len(ids)), len(ids)))

    return [n for n in few if fits(n)] or [longest]


def show_token(model: Model) -> Callable[[int], str]:
    """How an id looks in an animation: a shaded block for MASK, nothing for the other specials."""
    hidden = set(model.meta["specials"].values())

    def show(i: int) -> str:
        if i == model.objective.mask_id:
            return "░"
        return "" if i in hidden else model.tokenizer.decode([i])

    return show


class Shown(NamedTuple):
    """What an animation sees of a frame: the first samples, and the columns up to the last that is
    open in any of them."""

    ids: Tensor
    length: Tensor
    changed: Tensor
    whole: Frame


def watcher(cfg: SampleConfig, model: Model, kept: list[Shown]) -> Callable:
    """What `generate` hands the frames to: the animation, and the list for the GIF."""

    def watch(frames: Iterable[Frame], given: Tensor) -> Iterator[Frame]:
        width = shown_width(given)
        part = (slice(SHOWN), slice(width))
        few = (
            Shown(f.ids[part], f.length[:SHOWN].clamp(max=width), f.changed[part], f)
            for f in frames
        )
        if cfg.show:
            mask = model.objective.mask_id
            few = view.terminal(few, show_token(model), mask, given[part], SHOWN)
        for frame in few:
            if cfg.gif:
                kept.append(frame)
            yield frame.whole

    return watch


def shown_width(given: Tensor) -> int:
    """(B, T) -> columns up to the last one that is open somewhere in the first samples."""
    columns = (~given[:SHOWN]).any(0).nonzero()
    return int(columns.max()) + 1 if len(columns) else given.shape[1]


def palindrome_report(texts: list[str], model: Model) -> str:
    """How many are palindromes, and how many of those are new, if the corpus is still there."""
    try:
        seen = set(Corpus(Path(model.config.data_dir) / model.config.dataset).texts("train"))
    except UserError:
        seen = None
    return palindromes.describe(palindromes.report(texts, seen))


def main(argv: list[str]) -> None:
    cfg, _ = load(SampleConfig, argv)
    options = SampleOptions(cfg.steps, cfg.sampler, cfg.temperature, cfg.top_k, cfg.top_p)
    model = checkpoint.load(cfg.ckpt, pick_device(cfg.device), cfg.use_ema)
    if cfg.export:
        checkpoint.export(model, cfg.export)
        print(f"wrote {cfg.export}/model.safetensors and config.json")
        return
    kept: list[Shown] = []
    begun, watch = canvases(cfg, model), watcher(cfg, model, kept)
    found = generate(model, begun, options, cfg.seed, cfg.batch_size, watch, cfg.dtype)
    line = "\n" if not any("\n" in t for t in found.texts) else "\n---------------\n"
    print(line.join(found.texts))
    tokens = found.ids.numel() / found.seconds
    print(
        f"\n{cfg.num_samples} samples by {cfg.sampler}, {found.rows / cfg.num_samples:.1f} network "
        f"calls each, {found.seconds:.1f} s, {tokens:,.0f} tokens/s"
    )
    if cfg.gif:
        write_gif(cfg, model, kept, begun)
    if cfg.palindrome or model.meta.get("task") == "palindrome":
        print(palindrome_report(found.texts, model))


def write_gif(cfg: SampleConfig, model: Model, kept: list[Shown], begun: list[Canvas]) -> None:
    given = torch.stack([c.given for c in begun[:SHOWN]])
    given = given[:, : shown_width(given)]
    try:
        view.gif(cfg.gif, kept, show_token(model), model.objective.mask_id, given, rows=SHOWN)
    except (ModuleNotFoundError, OSError) as e:
        raise UserError(f"gif={cfg.gif}: {e}") from e
    print(f"wrote {cfg.gif}")


if __name__ == "__main__":
    run(main)
