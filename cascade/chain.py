"""Sample from a cascade: every stage writes around what the one before it wrote.

    python sample.py --cascade=out/stage1,out/stage2,out/stage3 --steps=128 --num_samples=32 --show

Stage 1 writes a skeleton of important tokens from nothing. Each next stage is given the ids that
the stage before it wrote, and writes its own text, which should contain them. Into --output_dir go
sample_stage1.txt, sample_stage2.txt ... and summary.json.

    overlap      share of the given tokens that occur anywhere in what was written, for each sample;
                 beside it what prefixes of other samples reach by chance
    order kept   longest common subsequence of both, as a share of the given tokens
    --gold       also sample every stage from the prefixes of the validation texts it was trained
                 beside: what a stage loses because its prefix is a generated one
    --clamp      the given tokens also stand in the text, at evenly spread places in their order,
                 and stay: none is lost
    --judge      perplexity under a causal language model, beside the entropy (evaluate.py)

A stage is the folder of a run, a ckpt.pt, or what sample.py --export wrote.
"""

import dataclasses
import os
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import checkpoint
from checkpoint import Model
from configurator import UserError, load, require, run, save_json
from corpus import Corpus, shuffled
from evaluate import Judge, describe_judged, judged
from model import pick_device
from objective import Frame, SampleOptions, seed_of
from sample import (
    Prompt,
    SamplerConfig,
    Samples,
    generate,
    require_writable,
    sample_options,
    settings,
    show_token,
    text_of,
    trace_of,
    with_sampler,
    write_page,
)
from viz import view
from viz.story import Trace

SHOWN = 2  # samples in the animation
LINE = {"bytes": 64, "symbols": 64}  # tokens in one of its lines; 16 of other tokenizers
OTHERS = 16  # at most so many other prefixes for the overlap by chance


@dataclass(frozen=True)
class CascadeConfig(SamplerConfig):
    """The options of `sample.py --cascade`."""

    cascade: str = ""  # the stages, with commas between them
    num_samples: int = 32  # how many
    batch_size: int = 32  # of them at a time
    output_dir: str = "out/cascade"  # texts and summary.json go here
    gold: bool = False  # also from the prefixes of real texts
    clamp: bool = False  # the tokens of the prefix also stand in the text
    judge: str = ""  # causal language model of transformers: a folder or hub id
    html: str = ""  # write the first samples of every stage to this page, with a slider

    def __post_init__(self):
        super().__post_init__()
        for key in ("num_samples", "batch_size"):
            require(self, key, getattr(self, key) >= 1, "at least 1")
        require(self, "cascade", bool(self.cascade.strip(",")), "stages with commas between them")
        for key in ("prompt", "chat", "max_length"):
            require(self, key, not getattr(self, key), "left out: a cascade begins from nothing")


# ---- the stages ----------------------------------------------------------------------------------


class Stage(NamedTuple):
    """One model of the cascade."""

    path: str
    number: int  # from 1
    model: Model
    P: int  # tokens of its prefix
    T: int  # tokens after it


def open_stage(path: str, number: int, cfg: CascadeConfig) -> Stage:
    """Load stage `number`, from 1. Raises UserError for a model of another stage, or of none."""
    model = checkpoint.load(path, pick_device(cfg.device), cfg.use_ema)
    meta = model.meta
    if meta.get("task") != "stage":
        raise UserError(f"{path} is no stage of a cascade: its corpus is not of cascade.stages")
    if meta["stage"] != number:
        raise UserError(f"{path} is stage {meta['stage']}, but stands at place {number}")
    return Stage(path, number, model, *[0, *meta["lengths"]][number - 1 : number + 1])


def open_stages(cfg: CascadeConfig) -> list[Stage]:
    """All stages, in order. Raises UserError for stages that do not fit each other."""
    paths = [p for p in cfg.cascade.split(",") if p]
    stages = [open_stage(path, k, cfg) for k, path in enumerate(paths, 1)]
    first = stages[0]
    for stage in stages[1:]:
        ours, theirs = (s.model.tokenizer for s in (first, stage))
        if (ours.spec(), ours.files) != (theirs.spec(), theirs.files):
            raise UserError(f"{stage.path} has another tokenizer than {first.path}")
        for key in ("lengths", "unique"):
            a, b = (s.model.meta[key] for s in (first, stage))
            if a != b:
                raise UserError(f"{stage.path} has {key}={b}, but {first.path} has {a}")
    return stages


def places(P: int, T: int) -> Tensor:
    """(P,) int64: positions of clamped tokens in the text, the middles of equal parts."""
    return ((torch.arange(P) + 0.5) * T / max(P, 1)).long()


def stage_canvas(stage: Stage, prefix: Tensor, clamp: bool) -> Prompt:
    """prefix (P,) -> the canvas of one sample: the prefix and T positions for the text."""
    assert len(prefix) == stage.P, (len(prefix), stage)
    ids = F.pad(prefix, (0, stage.T))
    prompt_mask = torch.arange(len(ids)) < stage.P
    if clamp and stage.P:
        where = stage.P + places(stage.P, stage.T)
        ids[where], prompt_mask[where] = prefix, True
    return Prompt(ids, prompt_mask)


def unwatched(frames: Iterable[Frame], prompt_mask: Tensor) -> Iterable[Frame]:
    return frames


def write_stage(
    cfg: CascadeConfig, stage: Stage, prefixes: Tensor, watch: Callable | None = None
) -> Samples:
    """prefixes (N, P) -> samples whose ids are the text without the prefix, (N, T)."""
    begun = [stage_canvas(stage, prefix, cfg.clamp) for prefix in prefixes]
    special = stage.model.meta["specials"]
    ends = {special.get("eos"), special.get("mask")}  # no text has the other special tokens
    banned = tuple(i for i in special.values() if i not in ends)
    options: SampleOptions = sample_options(cfg, stage.model)
    options = dataclasses.replace(options, banned=banned)
    seed = seed_of(cfg.seed, stage.number)
    watch = watch or unwatched
    how = (options, seed, cfg.batch_size, watch, cfg.dtype)
    samples = generate(stage.model, begun, *how, quiet=cfg.show)
    return samples._replace(ids=samples.ids[:, stage.P :])


# ---- numbers -------------------------------------------------------------------------------------


def overlap(source: Tensor, target: Tensor) -> Tensor:
    """source (B, P), target (B, T) -> (B,) float64: the share of the positions of the source whose
    id occurs anywhere in the target. Repeated tokens count repeatedly in the source."""
    return (source[:, :, None] == target[:, None]).any(2).double().mean(1)


def overlap_by_chance(source: Tensor, target: Tensor) -> float | None:
    """The mean overlap of targets with the sources of other samples; None for a single sample."""
    shifts = range(1, min(len(source), OTHERS + 1))
    if not shifts:
        return None
    return float(torch.stack([overlap(source.roll(k, 0), target) for k in shifts]).mean())


def order_kept(source: Tensor, target: Tensor) -> Tensor:
    """Length of the longest common subsequence divided by that of the source, for each sample."""
    best = np.zeros((len(source), target.shape[1] + 1), np.int64)  # of what comes before a place
    wide = target.numpy()
    for column in source.numpy().T:
        # a row of the usual table: its entries can only grow from left to right
        longer = best[:, :-1] + (wide == column[:, None])
        best[:, 1:] = np.maximum.accumulate(np.maximum(best[:, 1:], longer), 1)
    return torch.from_numpy(best[:, -1] / source.shape[1])


def compare_prefix(source: Tensor, target: Tensor) -> dict[str, Any]:
    """Overlap and order of N samples, with the overlap by chance."""
    each, order = overlap(source, target), order_kept(source, target)
    return {
        "overlap": float(each.mean()),
        "overlap_by_chance": overlap_by_chance(source, target),
        "order_kept": float(order.mean()),
        "each_overlap": each.tolist(),
        "each_order_kept": order.tolist(),
    }


def describe_prefix(result: dict[str, Any]) -> str:
    chance = result["overlap_by_chance"]
    by_chance = "" if chance is None else f" (by chance {chance:.3f})"
    return f"overlap {result['overlap']:.3f}{by_chance}, order kept {result['order_kept']:.3f}"


# ---- what is shown and written -------------------------------------------------------------------


class Folded(NamedTuple):
    """A frame whose samples are folded into lines, with an empty one below each."""

    ids: Tensor
    length: Tensor
    changed: Tensor
    whole: Frame


def folded(rows: Tensor, width: int) -> Tensor:
    """(B, T) -> (B * lines, width), zeros behind the end of each and in its last line."""
    lines = -(-rows.shape[1] // width) + 1
    return F.pad(rows, (0, lines * width - rows.shape[1])).view(-1, width)


def animated(stage: Stage) -> Callable:
    """The `watch` of `generate` that shows the first samples of a stage."""
    width = LINE.get(stage.model.tokenizer.kind, 16)

    def watch(frames: Iterable[Frame], prompt_mask: Tensor) -> Iterator[Frame]:
        part = (slice(SHOWN), slice(stage.P, None))
        length = folded(torch.ones_like(prompt_mask[part]), width).sum(1)
        few = (
            Folded(folded(f.ids[part], width), length, folded(f.changed[part], width), f)
            for f in frames
        )
        prompt_mask, mask = folded(prompt_mask[part], width), stage.model.objective.mask_id
        show = show_token(stage.model)
        for frame in view.terminal(few, show, mask, prompt_mask, len(length)):
            yield frame.whole

    return watch


def write_texts(folder: Path, name: str, texts: list[str]) -> None:
    """Write all texts to one file, atomically."""
    temporary = folder / f"{name}.tmp"
    blocks = [f"sample {k}\n{text}\n{'-' * 40}\n" for k, text in enumerate(texts, 1)]
    try:
        temporary.write_text("".join(blocks), encoding="utf-8")
        os.replace(temporary, folder / name)
    except OSError as e:
        raise UserError(f"cannot write {folder / name}: {e.strerror}") from e


# ---- the chain -----------------------------------------------------------------------------------


def sample_chain(cfg: CascadeConfig, stages: list[Stage], stories: list[Trace]) -> list[Samples]:
    """The samples of every stage, each from those of the stage before, and a Trace of each for
    --html."""
    prefixes, done = torch.zeros(cfg.num_samples, 0, dtype=torch.int64), []
    for stage in stages:
        if cfg.show:
            print(f"\nstage {stage.number}: {stage.T} tokens from {stage.P}", flush=True)
        watch = animated(stage) if cfg.show else unwatched
        if cfg.html:
            name = f"Stage {stage.number}: {stage.T} tokens from {stage.P}"
            stories.append(trace_of(stage.model, name, skip=stage.P))
            watch = partial(stories[-1].watch, then=watch)
        done.append(write_stage(cfg, stage, prefixes, watch))
        prefixes = done[-1].ids
    return done


def gold_rows(cfg: CascadeConfig, stage: Stage) -> Tensor:
    """(N, P + T): validation rows of the corpus that the stage was trained on."""
    config = stage.model.config
    corpus = Corpus(Path(config.data_dir) / config.dataset)
    corpus.require_like({**stage.model.meta, "tokenizer": stage.model.tokenizer.spec()})
    total = corpus.rows("val")
    rows = shuffled(np.arange(min(cfg.num_samples, total)), total, 0)
    return corpus.batch("val", rows, stage.P + stage.T).ids


def gap(cfg: CascadeConfig, stage: Stage, made: Samples, before: Tensor, rows: Tensor) -> dict:
    """Pairs of prefixes and texts: generated prefixes (N, P) and the texts written from them;
    prefixes of real texts, rows (M, P + T), and the texts written from them; and the real
    texts."""
    prefixes, real = rows[:, : stage.P], rows[:, stage.P :]
    return {
        "generated prefix": (before, made.ids),
        "gold prefix": (prefixes, write_stage(cfg, stage, prefixes).ids),
        "gold text": (prefixes, real),
    }


def report(
    cfg: CascadeConfig,
    stages: list[Stage],
    done: list[Samples],
    gold: dict[int, Tensor],
    judge: Judge | None,
) -> dict[str, Any]:
    """All numbers, also printed."""
    tokenizer = stages[0].model.tokenizer
    result: dict[str, Any] = {"overlaps": {}, "stages": []}
    print()
    for i, j in combinations(range(len(done)), 2):
        pair = result["overlaps"][f"{i + 1}->{j + 1}"] = compare_prefix(done[i].ids, done[j].ids)
        print(f"stage {i + 1} in stage {j + 1}: {describe_prefix(pair)}")
    for stage, made in zip(stages, done, strict=True):
        entry = {"path": stage.path, "number": stage.number, "given": stage.P, "written": stage.T}
        entry |= {"step": stage.model.step, "seconds": made.seconds, "nfe": made.nfe}
        entry["samples"] = judged(made.ids.tolist(), tokenizer, judge)
        print(describe_judged(entry["samples"], f"stage {stage.number}", judge), flush=True)
        if stage.number in gold:
            entry["gap"], before = {}, done[stage.number - 2].ids
            for name, pair in gap(cfg, stage, made, before, gold[stage.number]).items():
                row = compare_prefix(*pair) | judged(pair[1].tolist(), tokenizer, judge)
                entry["gap"][name] = row
                print(f"  {name}: {describe_prefix(row)}")
                print(describe_judged(row, f"  {name}", judge), flush=True)
        result["stages"].append(entry)
    return result


def main(argv: list[str]) -> None:
    cfg, origins = load(CascadeConfig, argv)
    require_writable(cfg, "html")
    stages, folder = open_stages(cfg), Path(cfg.output_dir)
    for stage in stages:
        cfg = with_sampler(cfg, origins, stage.model)
    gold = {s.number: gold_rows(cfg, s) for s in stages[1:]} if cfg.gold else {}
    judge = Judge(cfg.judge, pick_device(cfg.device), cfg.dtype) if cfg.judge else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"output_dir={folder} cannot be written: {e.strerror}") from e
    stories: list[Trace] = []
    done = sample_chain(cfg, stages, stories)
    for stage, made in zip(stages, done, strict=True):
        texts = [text_of(stage.model, ids) for ids in made.ids.tolist()]
        write_texts(folder, f"sample_stage{stage.number}.txt", texts)
    result = report(cfg, stages, done, gold, judge)
    how = {"config": dataclasses.asdict(cfg), "settings": settings(cfg, stages[-1].model)}
    save_json({**how, **result}, folder / "summary.json")
    seconds, nfe = (sum(getattr(m, key) for m in done) for key in ("seconds", "nfe"))
    print(
        f"{cfg.num_samples} samples by {how['settings']['sampler']}, {nfe} network calls, "
        f"{seconds:.1f} s; wrote {folder}"
    )
    if stories:
        write_page(cfg.html, stories, cfg.cascade.replace(",", ", "), how["settings"])
        print(f"wrote {cfg.html}")


if __name__ == "__main__":
    run(main)
