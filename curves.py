"""How good answers are against what they cost: python curves.py --ckpt=out/chat_pydoc/ckpt.pt

Answers questions of the training split with several numbers of steps, by equal shares per step
(LLaDA's quota) and by threshold (Fast-dLLM), in confidence order at temperature 0, and prints the
share of exact answers at so many network calls per answer; --figure=calls.png draws it. A quota
writes the same number of tokens in every call, a threshold what the network is sure of.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import checkpoint
from answers import compare
from build import pick_device
from checkpoint import Model
from configurator import UserError, load, optional, require, run
from corpus import Corpus
from evaluate import EvaluateConfig, sampled, uncropped

STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
THRESHOLDS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
Points = list[tuple[float, float, float]]  # setting, calls per answer, share of exact answers


@dataclass(frozen=True)
class CurveConfig:
    """Everything that `curves.py` can be told."""

    ckpt: str = "out/chat_pydoc/ckpt.pt"  # a checkpoint that was trained on questions
    samples: int = 200  # answers per point
    figure: str = ""  # write a figure to this file
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on GPUs with it

    def __post_init__(self):
        require(self, "samples", self.samples >= 1, "at least 1")
        there = not self.figure or Path(self.figure).parent.is_dir()
        require(self, "figure", there, "a file in a folder that exists")


def curves(cfg: CurveConfig, model: Model, corpus: Corpus) -> dict[str, Points]:
    """Name of the schedule -> its points."""
    told = {"samples": cfg.samples, "chat": True, "sampler": "confidence", "temperature": 0.0}
    base, eos = EvaluateConfig(dtype=cfg.dtype, **told), model.meta["specials"]["eos"]

    def point(**how: float | str) -> tuple[float, float]:
        texts = sampled(dataclasses.replace(base, **how), model, corpus, "train")
        same = compare(texts.found, texts.wanted, eos)
        return texts.speed["calls"], same.exact / same.rows

    quota = [(n, *point(steps=n)) for n in STEPS]
    sure = [(t, *point(schedule="threshold", threshold=t)) for t in THRESHOLDS]
    return {"equal shares of --steps": quota, "--schedule=threshold": sure}


def draw(found: dict[str, Points], path: str) -> None:
    plot = optional("matplotlib.pyplot", "matplotlib")
    figure, axes = plot.subplots(figsize=(6, 3.4), layout="constrained")
    for (name, points), marker in zip(found.items(), "os", strict=True):
        _, calls, share = zip(*points, strict=True)
        axes.plot(calls, [100 * s for s in share], marker=marker, ms=4, label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="network calls per answer", ylabel="exact answers, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as e:
        raise UserError(f"figure={path}: {e}") from e
    plot.close(figure)
    print(f"wrote {path}")


def main(argv: list[str]) -> None:
    cfg, _ = load(CurveConfig, argv)
    model = uncropped(checkpoint.load(cfg.ckpt, pick_device(cfg.device)))
    if model.meta.get("task") != "chat":
        raise UserError(f"{cfg.ckpt} was not trained on questions")
    found = curves(cfg, model, Corpus(f"{model.config.data_dir}/{model.config.dataset}"))
    for name, points in found.items():
        print(f"{name}, {cfg.samples} answers each")
        for setting, calls, share in points:
            print(f"  {setting:<6g}{calls:7.2f} calls{share:8.1%} exact")
    if cfg.figure:
        draw(found, cfg.figure)


if __name__ == "__main__":
    run(main)
