"""A checkpoint as one page: evaluate.py --ckpt=out/palindrome/ckpt.pt --report=about

The page, report.md, has figures and the numbers behind them (numbers.json): the curves of training,
where the model fails (probes.py), what the bound depends on, right answers against network calls
(curves.py), samples, and every setting. Its folder is there when it is whole, or not at all.
"""

import dataclasses
import os
import platform
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch

import checkpoint
from analysis.compare import greedy, opened, parameters, quality, table
from analysis.curves import CurveConfig, curves, draw
from analysis.probes import axis, by_level
from checkpoint import Model
from configurator import PUZZLES, UserError, optional, save_json
from corpus import Corpus, fingerprint
from evaluate import (
    EvaluateConfig,
    Judge,
    batches,
    bound,
    count,
    describe_bound,
    describe_judged,
    judged,
    sampled,
    share_of,
)
from sample import settings, with_sampler
from train import log_lines

GALLERY = 8  # samples on the page
T_SAMPLES = (1, 2, 4, 8)  # noise levels per row, of the bounds that are compared
POINTS = 100  # answers for each point of the curve against calls
PROBED = 500  # rows that are destroyed to each level


# ---- the page ----------------------------------------------------------------------------------


@dataclass
class Page:
    """The page being written, and the model that it is about."""

    cfg: EvaluateConfig
    model: Model
    corpus: Corpus
    folder: Path  # that is being filled
    judge: Judge | None
    plot: Any  # matplotlib.pyplot
    lines: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def say(self, *lines: str) -> None:
        self.lines += [*lines, ""]

    def figure(self, name: str, about: str, paint: Callable[[Any], None], **labels: str) -> None:
        """A figure of one pair of axes, in a file and on the page."""
        figure, axes = self.plot.subplots(figsize=(6, 3.4), layout="constrained")
        paint(axes)
        axes.set(**labels)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
        figure.savefig(self.folder / name, dpi=150)
        self.plot.close(figure)
        self.say(f"![{about}]({name})")


def write(cfg: EvaluateConfig, origins: dict[str, str], device: torch.device) -> dict[str, Any]:
    """Write the report of cfg.ckpt to the new folder cfg.report -> its numbers. Raises UserError,
    and then the folder does not exist."""
    optional("matplotlib").use("Agg")  # files only: no window, no display needed
    plot = optional("matplotlib.pyplot", "matplotlib")
    model, corpus = opened(cfg.ckpt, cfg, device)
    cfg = dataclasses.replace(cfg, split=corpus.split_named(cfg.split))
    cfg, folder = with_sampler(greedy(cfg, origins, model), origins, model), Path(cfg.report)
    judge = Judge(cfg.judge, device, cfg.dtype) if cfg.judge else None
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        partial.mkdir(parents=True)
    except OSError as e:
        raise UserError(f"report={folder}: {e.strerror}") from e
    page = Page(cfg, model, corpus, partial, judge, plot)
    try:
        for section in (about, likelihood, training, levels, noise, cost, gallery, reproduce):
            section(page)
        (partial / "report.md").write_text("\n".join(page.lines), encoding="utf-8")
        save_json(page.numbers, partial / "numbers.json")
        os.rename(partial, folder)
    except OSError as e:
        raise UserError(f"report={folder}: {e.strerror or e}") from e
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"wrote {folder / 'report.md'}")
    return page.numbers


def about(page: Page) -> None:
    model, meta = page.model, page.model.meta
    name = f"{page.model.config.objective} on {page.corpus.folder.name}"
    page.say(f"# {name}")
    page.say(
        f"`{page.cfg.ckpt}`: objective {model.config.objective}, {parameters(model):,} parameters, "
        f"step {model.step:,}, {meta['vocab_size']:,} tokens, rows of up to "
        f"{model.config.block_size}. Numbers are of the {page.cfg.split} split."
    )


def likelihood(page: Page) -> None:
    page.say("## Likelihood")
    if not page.model.objective.bounded or not page.cfg.rows:
        page.say("No bound on the likelihood is known for this objective, or --rows=0.")
        return
    result = page.numbers["bound"] = bound(page.cfg, page.model, page.corpus)
    page.say(describe_bound(result, page.cfg).replace("\n", " "))


def training(page: Page) -> None:
    page.say("## Training")
    records = log_lines(Path(checkpoint.find(page.cfg.ckpt)).parent / "log.jsonl")
    every = {
        name: [(one["step"], one[key]) for one in records if key in one]
        for name, key in (("training loss", "loss"), ("validation", "val_bound"))
    }
    page.numbers["training"] = every
    if not any(every.values()):
        page.say("There is no log.jsonl beside the checkpoint, so there are no curves.")
        return

    def paint(axes: Any) -> None:
        for (name, points), style in zip(every.items(), ("-", "o-"), strict=True):
            if points:
                axes.plot(*zip(*points, strict=True), style, ms=4, label=name)

    labels = {"xlabel": "step", "ylabel": "nats, as logged"}
    page.figure("training.png", "Training loss and validation against steps", paint, **labels)
    kind = "bound" if page.model.objective.bounded else "loss"
    page.say(
        f"The training loss is that of the objective, weights and all; validation is the {kind} "
        "per written position, one noise level per row."
    )


def levels(page: Page) -> None:
    page.say("## Where the model fails")
    name = axis(page.model.objective)
    if name is None:
        page.say(f"No probe is known for objective={page.model.config.objective}.")
        return
    few = dataclasses.replace(page.cfg, rows=min(page.cfg.rows or PROBED, PROBED))
    points = by_level(page.model, batches(few, page.model, page.corpus))
    page.numbers["levels"] = {"axis": name, "points": [p._asdict() for p in points]}

    def curve(key: str, scale: float = 1.0) -> Callable[[Any], None]:
        xs, ys = [p.level for p in points], [scale * getattr(p, key) for p in points]
        return lambda axes: axes.plot(xs, ys, "o-", ms=4)

    page.figure("loss.png", f"Nats against {name}", curve("nats"), xlabel=name, ylabel="nats")
    labels = {"xlabel": name, "ylabel": "best token right, %"}
    page.figure("accuracy.png", f"Right guesses against {name}", curve("right", 100), **labels)
    rows = [[f"{p.level:.2f}", f"{p.nats:.4f}", f"{p.right:.1%}", f"{p.guesses:,}"] for p in points]
    page.say(*table([name, "nats", "best token right", "guesses"], rows))
    page.say(
        f"Of {few.rows:,} rows at most, each destroyed anew at each level; nats per lost token "
        "(analysis/probes.py says what is counted for each objective)."
    )


def noise(page: Page) -> None:
    page.say("## The bound by noise levels per row")
    objective = page.model.objective
    if not objective.bounded or not page.cfg.rows:
        page.say("There is none.")
        return
    if objective.exact:
        page.say("Nothing is drawn: the likelihood is exact, whatever --t_samples is.")
        return
    every = []
    for n in T_SAMPLES:
        cfg = dataclasses.replace(page.cfg, t_samples=n, discrete_steps=0)
        every.append(bound(cfg, page.model, page.corpus))
    page.numbers["by_t_samples"] = every
    ys, errors = ([one[f"nats_per_token{k}"] for one in every] for k in ("", "_error"))

    def paint(axes: Any) -> None:
        axes.errorbar(T_SAMPLES, ys, errors, fmt="o-", ms=4, capsize=3)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")

    labels = {"xlabel": "noise levels per row", "ylabel": "nats per token"}
    page.figure("bound.png", "The bound with its standard error", paint, **labels)
    rows = [[str(n), f"{y:.4f}", f"{e:.4f}"] for n, y, e in zip(T_SAMPLES, ys, errors, strict=True)]
    page.say(*table(["noise levels per row", "nats per token", "standard error"], rows))
    page.say("More levels leave the error that comes of the choice of rows.")


def cost(page: Page) -> None:
    page.say("## Quality against network calls")
    task = page.model.meta.get("task")
    if task not in ("chat", *PUZZLES):
        page.say("The texts of this corpus are not right or wrong answers: nothing to count here.")
        return
    n = count(page.cfg, POINTS)
    if not n:
        page.say("--samples=0: none were made.")
        return
    cfg = CurveConfig(samples=n, every=True, dtype=page.cfg.dtype, device=page.cfg.device)
    results = page.numbers["nfe"] = curves(cfg, page.model, page.corpus)
    draw(results, str(page.folder / "calls.png"))
    page.say("![Exact answers against network calls](calls.png)")
    rows = [
        [name, f"{setting:g}", f"{nfe:.2f}", f"{share:.1%}"]
        for name, points in results.items()
        for setting, nfe, share in points
    ]
    page.say(*table(["way to write", "setting", "network calls", "exact"], rows))
    split = "training questions" if task == "chat" else "validation rows"
    page.say(f"{n:,} answers for each point, to {split}, at temperature 0 unless it is named.")


def gallery(page: Page) -> None:
    page.say("## Samples")
    cfg, model = page.cfg, page.model
    if model.meta.get("task") == "diff" or cfg.samples == 0:
        page.say("None here: of patches, `evaluate.py` without --report writes some.")
        return
    texts = sampled(dataclasses.replace(cfg, samples=GALLERY), model, page.corpus, cfg.split, 0)
    decode = model.tokenizer.decode
    answers = model.meta.get("task") in ("chat", "stage", *PUZZLES)  # samples with a prompt
    for prompt, sample, wanted in zip(*texts[:3], strict=False):
        lines = [f"written  {decode(sample)}"]
        if answers:
            lines = [f"given    {decode(prompt)}", *lines, f"wanted   {decode(wanted)}"]
        page.say("````text", *lines, "````")
    for name, ids in (("samples", texts.found), ("corpus", texts.wanted)):
        result = judged(ids, model.tokenizer, page.judge)
        page.numbers.setdefault("samples", {})[name] = result
        page.say(describe_judged(result, name, page.judge).replace("\n ", ";"))
    result = page.numbers["quality"] = quality(cfg, model, page.corpus)
    if result["score"] is not None:
        page.say(
            f"{result['measure']}: {share_of(result['score'], result['samples'])} of "
            f"{result['samples']:,} samples, {result['nfe']:.1f} network calls and "
            f"{result['tokens_per_second']:,.0f} tokens/s."
        )
    page.say(", ".join(f"{k}={v}" for k, v in settings(cfg, model).items()))


def reproduce(page: Page) -> None:
    """The command, and every setting of evaluation and training."""
    cfg, fields = page.cfg, dataclasses.fields(EvaluateConfig)
    flags = [
        f"--{f.name}={getattr(cfg, f.name)}" for f in fields if getattr(cfg, f.name) != f.default
    ]
    page.say("## Settings", "", "```sh", "python evaluate.py " + shlex.join(flags), "```")
    ckpt = Path(checkpoint.find(cfg.ckpt))
    versions = {
        "checkpoint crc32": fingerprint(ckpt)["crc32"] if ckpt.is_file() else "-",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": str(next(page.model.net.parameters()).device),
        "threads": torch.get_num_threads(),
        **{
            f"corpus {name} crc32": recorded["crc32"]
            for name, recorded in page.corpus.meta["files"].items()
        },
    }
    parts = {
        "evaluation": dataclasses.asdict(cfg),
        "training": dataclasses.asdict(page.model.config),
    }
    page.numbers["settings"] = {**parts, "versions": versions}
    for name, values in {**parts, "versions": versions}.items():
        page.say(
            f"### {name}",
            "",
            *table(["setting", "value"], [[k, f"`{v}`"] for k, v in values.items()]),
        )
