"""All unmasking schedules in one figure: how good text is against how many calls it took.

    python -m analysis.schedules --ckpt=out/chat_pydoc/ckpt.pt,out/ar_chat_pydoc/ckpt.pt \\
        --figure=schedules.png

A panel for each corpus of the checkpoints, which have commas between them. Its model of masked text
writes with every schedule and several settings of it, in one order, and a model from left to right
of the same corpus, with its cache of keys and values, is the line to beat: its calls run one token,
the others a canvas. Answers (chat, puzzles) are written at temperature 0 and counted if they are
exact. Other text is written at temperature 1, and judged by the model from left to right, in nats
per token: less is better, down to that of held-out text; repetitive text scores well, so that its
entropy is printed beside it.

The area of a schedule is the mean, over log2 of a budget from one call to as many as there are
places, at most 32, of the best that it reaches within that budget.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import checkpoint
from analysis.curves import require_figure, save_figure
from checkpoint import Model
from configurator import PUZZLES, UserError, load, optional, require, run
from corpus import Batch, Corpus
from diffusion import ADAPTIVE, BLIND, ORDERS, SCHEDULES
from evaluate import (
    EvaluateConfig,
    batches,
    plus_minus,
    ratio,
    rows_of,
    sampled,
    uncropped,
    unigram_entropy,
)
from model import pick_device
from objective import generator
from sample import has_bos_eos

STEPS = (1, 2, 4, 8, 16, 32)
VALUES = {  # settings of adaptive schedules, from all places at once to few at a time
    "threshold": (0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99),
    "factor": (1e4, 30.0, 10.0, 5.0, 3.0, 2.0, 1.5, 1.0, 0.5, 0.2, 0.05),
    "entropy_bound": (1e4, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.01, 1e-3, 1e-4),
}
ONE_BY_ONE = 0.9  # calls per place: settings beyond one with so many would change nothing
RESAMPLES = 200  # of the texts, for the standard error of an area
AR = "left to right"


class Point(NamedTuple):
    """N texts of one setting: their quality is the sum of `good` over the sum of `size`."""

    setting: float
    calls: float  # per text
    tokens: float  # per call
    good: Tensor  # (N,) float64: is the answer exact, or nats
    size: Tensor  # (N,) float64: 1, or tokens
    entropy: float  # nats: unigram entropy of a text, mean

    def quality(self) -> tuple[float, float]:
        """Mean and standard error."""
        return ratio(self.good, self.size)


class Panel(NamedTuple):
    title: str
    higher: bool  # is more better?
    places: int  # of a canvas that are written
    curves: dict[str, list[Point]]  # name of a schedule -> its settings
    reference: float | None  # quality of held-out text


@dataclass(frozen=True)
class ScheduleConfig:
    """The options of `analysis/schedules.py`."""

    ckpt: str = "out/chat_pydoc/ckpt.pt"  # one, or several with commas between them
    samples: int = 100  # answers per point
    judged: int = 16  # texts per point where they are judged, each as long as the block
    order: Literal[tuple(name for name in ORDERS if name not in BLIND)] = "confidence"
    figure: str = ""  # write a figure to this file
    device: str = "auto"  # auto | cpu | cuda | cuda:N

    def __post_init__(self):
        for key in ("samples", "judged"):
            require(self, key, getattr(self, key) >= 2, "at least 2")


def settings(places: int) -> dict[str, list[tuple[float, dict[str, Any]]]]:
    """Name of a schedule -> (setting, options) of each point; steps up to one per place."""
    steps = [n for n in STEPS if n < places] + [places] * (places <= max(STEPS))
    every = {name: [(n, {"steps": n}) for n in steps] for name in SCHEDULES}
    every |= {name: [(v, {name: v}) for v in VALUES.get(name, ())] for name in ADAPTIVE}
    return {
        name: [(value, {"unmask_schedule": name, **how}) for value, how in points]
        for name, points in every.items()
    }


# ---- how good ----------------------------------------------------------------------------------


def nats(judge: Model, batch: Batch) -> Tensor:
    """(N,) float64: -log p of the rows of a batch under a model from left to right."""
    return judge.objective.bound(judge.net, batch, generator(0))


def unpadded(model: Model, ids: list[int]) -> list[int]:
    """Without the padding that a model from left to right puts behind EOS, which may be its id."""
    pad, size = model.meta["specials"].get("pad", -1), len(ids)
    while size and ids[size - 1] == pad:
        size -= 1
    return ids[: size + (pad == model.meta["specials"].get("eos"))]


def as_rows(model: Model, texts: list[list[int]]) -> Batch:
    """Written ids as rows of the corpus."""
    special = model.meta["specials"]
    begin = [special["bos"]] if has_bos_eos(model) else []
    rows = [torch.tensor([*begin, *ids]) for ids in texts]
    ids = pad_sequence(rows, batch_first=True, padding_value=special.get("pad", 0))
    given = (torch.arange(ids.shape[1]) < len(begin)).expand_as(ids)
    return Batch(ids, given, torch.tensor([len(row) for row in rows]))


def point(
    cfg: EvaluateConfig, model: Model, corpus: Corpus, judge: Model | None, setting: float
) -> Point:
    split = "train" if cfg.chat else "val"  # a chat knows the answers that it was trained on
    texts = sampled(cfg, model, corpus, split, 0)
    found = texts.found if judge is None else [unpadded(model, ids) for ids in texts.found]
    written = torch.tensor([len(ids) for ids in found], dtype=torch.float64)
    if judge is None:
        pairs = zip(found, texts.wanted, strict=True)
        good, size = torch.tensor([a == b for a, b in pairs]).double(), torch.ones_like(written)
    else:
        good, size = nats(judge, as_rows(model, found)), written
    entropy = sum(map(unigram_entropy, found)) / len(found)
    calls = texts.speed["nfe"]
    return Point(setting, calls, float(written.mean()) / calls, good, size, entropy)


def panel(cfg: ScheduleConfig, models: list[Model]) -> Panel:
    """Every schedule of the models of one corpus."""
    config, task = models[0].config, models[0].meta.get("task")
    corpus, answers = Corpus(f"{config.data_dir}/{config.dataset}"), task in ("chat", *PUZZLES)
    masked = [m for m in models if cfg.order in m.objective.samplers and not m.objective.inserts]
    serial = [m for m in models if m.objective.samplers == ("left_to_right",)]
    for kind, some, needed in (("of masked text", masked, 1), (AR, serial, 1 - answers)):
        if not needed <= len(some) <= 1:
            got = ", ".join(m.config.objective for m in models)
            raise UserError(f"ckpt: {config.dataset} needs one checkpoint {kind}, got {got}")
    judge = None if answers else serial[0]
    texts = cfg.samples if answers else cfg.judged
    base = EvaluateConfig(samples=texts, rows=texts, chat=task == "chat", temperature=1.0 - answers)
    first = corpus.batch(
        "val", rows_of(corpus, "val", 1, masked[0].config.block_size), masked[0].config.block_size
    )
    target = masked[0].objective.target_mask(first) if answers else ~first.prompt_mask
    places, curves = int(target.sum()), {}
    for name, points in settings(places).items():
        curves[name] = []
        for setting, how in points:
            way = replace(base, sampler=cfg.order, **how)
            curves[name].append(point(way, masked[0], corpus, judge, setting))
            if name in ADAPTIVE and curves[name][-1].calls >= ONE_BY_ONE * places:
                break
    for model in serial:
        curves[AR] = [point(base, model, corpus, judge, 0)]
    if answers:
        return Panel(f"{config.dataset}: exact answers, %", True, places, curves, None)
    real = [
        (nats(judge, b), int(judge.objective.target_mask(b).sum()))
        for b in batches(base, judge, corpus)
    ]
    held_out = sum(float(n.sum()) for n, _ in real) / sum(k for _, k in real)
    return Panel(f"{config.dataset}: nats per token", False, places, curves, held_out)


def area(points: list[Point], panel: Panel, rows: Tensor | slice = slice(None)) -> float:
    """The mean over log2 of a budget of the best quality within it; of these texts."""
    sign, top = 1 if panel.higher else -1, math.log2(min(panel.places, max(STEPS)))
    total, best = 0.0, None
    each = sorted((p.calls, float(p.good[rows].sum() / p.size[rows].sum())) for p in points)
    ends = [min(math.log2(calls), top) for calls, _ in each[1:]] + [top]
    for (calls, quality), end in zip(each, ends, strict=True):
        begin = 0.0 if best is None else min(math.log2(calls), top)  # the first takes one call
        best = quality if best is None else max(best, quality, key=lambda q: sign * q)
        total += best * max(0.0, end - begin)
    return total / top


def area_and_error(points: list[Point], panel: Panel) -> tuple[float, float]:
    """The area, and its standard error by resampling the texts (the bootstrap)."""
    N, rng = len(points[0].good), generator(1)
    draws = [torch.randint(N, (N,), generator=rng) for _ in range(RESAMPLES)]
    again = torch.tensor([area(points, panel, rows) for rows in draws])
    return area(points, panel), float(again.std())


def frugal(points: list[Point], panel: Panel) -> Point:
    """The fewest calls that are within a standard error of the best of these points."""
    sign = 1 if panel.higher else -1
    best = max(points, key=lambda p: sign * p.quality()[0])
    least = sign * best.quality()[0] - best.quality()[1]
    return min((p for p in points if sign * p.quality()[0] >= least), key=lambda p: p.calls)


# ---- the report --------------------------------------------------------------------------------


def shown(panel: Panel, number: tuple[float, float]) -> str:
    return plus_minus(*(100 * x for x in number), 1) if panel.higher else plus_minus(*number, 2)


def table(panel: Panel) -> list[str]:
    """A Markdown table: a row for each schedule."""
    lines = [
        f"| {panel.title} | area | best, with few calls | setting | calls | tokens per call |"
        " entropy |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, points in panel.curves.items():
        p = frugal(points, panel)
        under = "-" if name == AR else shown(panel, area_and_error(points, panel))
        setting = "-" if name == AR else f"{p.setting:g}"
        quality = shown(panel, p.quality())
        lines.append(
            f"| {name} | {under} | {quality} | {setting} | {p.calls:.1f} | {p.tokens:.1f} | "
            f"{p.entropy:.2f} |"
        )
    if panel.reference is not None:
        lines.append(f"| held-out text | - | {panel.reference:.2f} | - | - | - | - |")
    return lines


def draw(panels: list[Panel], path: str) -> None:
    plot = optional("matplotlib.pyplot", "matplotlib")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    size = (4.25 * columns, 2.8 * rows + 0.6)
    figure, axes = plot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        scale = 100 if panel.higher else 1
        for (name, points), marker in zip(panel.curves.items(), "os^Dv*P", strict=False):
            calls = [p.calls for p in points]
            quality = [scale * p.quality()[0] for p in points]
            if name == AR:
                axis.axhline(quality[0], color="black", lw=0.8, ls="--")
                axis.plot(calls, quality, "k*", ms=9, label=f"{AR}, with its cache")
                continue
            line = {"lw": 1.2, "ls": "-" if name in ADAPTIVE else ":"}
            axis.plot(calls, quality, marker=marker, ms=4, label=name, **line)
        if panel.reference is not None:
            axis.axhline(panel.reference, color="gray", lw=0.8, ls=":")
            axis.text(1, panel.reference, "held-out text", va="bottom", fontsize=7, color="gray")
            axis.invert_yaxis()  # better is higher in every panel
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_title(panel.title, fontsize=10)
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(panels) :]:
        axis.axis("off")
    for axis in axes[-1]:
        axis.set_xlabel("network calls per text", fontsize=9)
    handles = {
        label: h for a in axes.flat for h, label in zip(*a.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False)
    save_figure(figure, path, dpi=100)


def main(argv: list[str]) -> None:
    cfg, _ = load(ScheduleConfig, argv)
    require_figure(cfg)
    device, groups = pick_device(cfg.device), {}
    for path in cfg.ckpt.split(","):
        model = uncropped(checkpoint.load(path, device))
        groups.setdefault(model.config.dataset, []).append(model)
    panels = []
    for models in groups.values():
        panels.append(panel(cfg, models))
        print("\n".join(table(panels[-1])), flush=True)
        for name, points in panels[-1].curves.items():
            for p in points:
                quality = shown(panels[-1], p.quality())
                print(f"  {name} {p.setting:<7g}{p.calls:7.2f} calls  {quality}", flush=True)
    if cfg.figure:
        draw(panels, cfg.figure)


if __name__ == "__main__":
    run(main)
