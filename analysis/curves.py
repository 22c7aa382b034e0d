"""How good answers are against what they cost.

    python -m analysis.curves --ckpt=out/chat_pydoc/ckpt.pt

Answers questions with several settings of the samplers that a model has, at temperature 0, and
prints the share of exact answers at so many network calls per answer; --figure=calls.png draws it.
Several checkpoints, with commas between them, share the figure. For masked models: equal shares of
--steps (LLaDA's quota) in confidence order and, for puzzles, in random order, and the threshold of
Fast-dLLM; for insertion models, tokens in several gaps at once; for others, their one way.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import checkpoint
from checkpoint import Model
from configurator import PUZZLES, UserError, load, optional, require, run
from corpus import Corpus
from evaluate import EvaluateConfig, compare, sampled, uncropped
from model import pick_device
from sample import require_writable

STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
THRESHOLDS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
RATIOS = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 0.03)  # of a gap to the likeliest one
Points = list[tuple[float, float, float]]  # setting, NFE per answer, share of exact answers


@dataclass(frozen=True)
class CurveConfig:
    """The options of `analysis/curves.py`."""

    ckpt: str = "out/chat_pydoc/ckpt.pt"  # a run trained on questions; or several, commas between
    samples: int = 200  # answers per point
    every: bool = False  # also all other samplers that the objective has
    figure: str = ""  # write a figure to this file
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on GPUs with it

    def __post_init__(self):
        require(self, "samples", self.samples >= 1, "at least 1")


def grid(sampler: str, **more: Any) -> list[tuple[float, dict[str, Any]]]:
    """A sampler with each number of --steps."""
    return [(n, {"sampler": sampler, "steps": n, **more}) for n in STEPS]


def ways(model: Model, every: bool = False) -> dict[str, list[tuple[float, dict[str, Any]]]]:
    """Name of a sampler's setting -> the points of its curve: (value of the varied option,
    options)."""
    settings, names = usual_ways(model), model.objective.samplers
    used = {how.get("sampler", names[0]) for points in settings.values() for _, how in points}
    one = ("first_hitting", "serial", "threshold", "parallel")
    one += ("left_to_right",) if len(names) == 1 else ()  # of masked text it is in steps
    one += ("ancestral",) if "threshold" in names else ()  # of ILM: a token at a time
    for name in names if every else ():
        if name in ("analytic", "euler"):  # at temperature 0 a step would change nothing
            settings.pop(name, None)
            settings[f"--sampler={name} --temperature=1"] = grid(name, temperature=1.0)
        elif name not in used:
            settings[f"--sampler={name}"] = [(1, {"sampler": name})] if name in one else grid(name)
    return settings


def usual_ways(model: Model) -> dict[str, list[tuple[float, dict[str, Any]]]]:
    """The settings in the figure of the README."""
    names, order = model.objective.samplers, {"sampler": "confidence"}
    if "confidence" in names and not model.objective.inserts:
        settings = {
            "equal shares of --steps": [(n, {**order, "steps": n}) for n in STEPS],
            "--unmask_schedule=threshold": [
                (t, {**order, "unmask_schedule": "threshold", "threshold": t}) for t in THRESHOLDS
            ],
        }
        if model.meta["task"] in PUZZLES:
            settings["equal shares, random order"] = grid("random")
        return settings
    if "parallel" in names and model.objective.bounded:
        points = [(r, {"sampler": "parallel", "threshold": r}) for r in RATIOS]
        return {"one gap": [(1, {})], "--sampler=parallel": points}
    stepped = model.objective.inserts and names[0] in ("steps", "ancestral")
    return {names[0]: grid(names[0]) if stepped else [(1, {})]}


def curves(cfg: CurveConfig, model: Model, corpus: Corpus) -> dict[str, Points]:
    """Name of the setting -> points of its curve, on training questions of a chat or held-out
    puzzles."""
    chat, eos = model.meta["task"] == "chat", model.meta["specials"]["eos"]
    options = {"samples": cfg.samples, "chat": chat, "temperature": 0.0}
    base = EvaluateConfig(dtype=cfg.dtype, **options)

    def point(how: dict[str, Any]) -> tuple[float, float]:
        point_cfg = dataclasses.replace(base, **how)
        texts = sampled(point_cfg, model, corpus, "train" if chat else "val", cfg.samples)
        same = compare(texts.found, texts.wanted, eos)
        return texts.speed["nfe"], same.exact / same.rows

    every = ways(model, cfg.every).items()
    return {name: [(number, *point(how)) for number, how in points] for name, points in every}


def require_figure(cfg: Any) -> None:
    """Raise UserError if cfg.figure, where it is not empty, cannot be drawn: without matplotlib,
    for a name whose ending it does not know, for a file that cannot be written."""
    if not cfg.figure:
        return
    there = Path(cfg.figure).parent.is_dir()
    require(cfg, "figure", there, "a file in a folder that exists")
    require_writable(cfg, "figure")
    plot = optional("matplotlib.pyplot", "matplotlib")
    known = sorted(plot.figure().canvas.get_supported_filetypes())
    plot.close()
    if Path(cfg.figure).suffix[1:] not in known:
        raise UserError(f"figure={cfg.figure}: end the name in one of {', '.join(known)}")


def save_figure(figure: Any, path: str, dpi: int = 150) -> None:
    """Write a figure of matplotlib to a file, and close it."""
    try:
        figure.savefig(path, dpi=dpi)
    except (OSError, ValueError) as e:
        raise UserError(f"figure={path}: {e}") from e
    optional("matplotlib.pyplot", "matplotlib").close(figure)
    print(f"wrote {path}")


def draw(results: dict[str, Points], path: str) -> None:
    plot = optional("matplotlib.pyplot", "matplotlib")
    many = len(results) > 2  # names beside the points, not among them
    figure, axes = plot.subplots(figsize=(8.5 if many else 6, 3.4), layout="constrained")
    for (name, points), marker in zip(results.items(), "osD^v*pXhP" * len(results), strict=False):
        _, nfe, share = zip(*points, strict=True)
        axes.plot(nfe, [100 * s for s in share], marker=marker, ms=4, label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="network calls per answer", ylabel="exact answers, %")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", frameon=False) if many else axes.legend(frameon=False)
    save_figure(figure, path)


def main(argv: list[str]) -> None:
    cfg, _ = load(CurveConfig, argv)
    require_figure(cfg)
    every: dict[str, Points] = {}
    for path in cfg.ckpt.split(","):
        model = uncropped(checkpoint.load(path, pick_device(cfg.device)))
        if model.meta.get("task") not in ("chat", *PUZZLES):
            raise UserError(f"{path} was not trained on questions")
        results = curves(cfg, model, Corpus(f"{model.config.data_dir}/{model.config.dataset}"))
        for name, points in results.items():
            print(f"{path}: {name}, {cfg.samples} answers each")
            for setting, nfe, share in points:
                print(f"  {setting:<6g}{nfe:7.2f} calls{share:8.1%} exact", flush=True)
        several = f"{model.config.objective}: " if "," in cfg.ckpt else ""
        every |= {several + name: points for name, points in results.items()}
    if cfg.figure:
        draw(every, cfg.figure)


if __name__ == "__main__":
    run(main)
