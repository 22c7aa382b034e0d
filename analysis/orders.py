"""How many answers are right, by the order in which they are written.

    python -m analysis.orders --ckpt=out/mdlm_sudoku4/ckpt.pt,out/ar_sudoku4/ckpt.pt

Answers held-out questions at temperature 0 in every order that each model has (ORDERS of
diffusion.py; others write in their one way), a token per network call, and prints the share of
exact answers with its standard error. All answer the same questions: how many of them only this
order has right, and how many only the first one, tells more about a difference than the two errors.

--figure=orders.png draws the shares with 95 % intervals. For sudoku it also draws one board: how
the last order but one that is no order of its own ...
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import checkpoint
from analysis.curves import require_format
from checkpoint import Model
from configurator import PUZZLES, UserError, load, optional, require, run
from corpus import Corpus
from diffusion import BLIND, ORDERS
from evaluate import EvaluateConfig, Texts, sampled, uncropped, wilson
from model import pick_device
from objective import SampleOptions, generator
from sample import answer_canvas, require_writable


@dataclass(frozen=True)
class OrdersConfig:
    """The options of `analysis/orders.py`."""

    ckpt: str = "out/mdlm_sudoku4/ckpt.pt"  # a run on puzzles; or several, commas between
    samples: int = 1000  # answers in each order
    split: str = "val"  # whose questions are answered
    figure: str = ""  # write a figure to this file
    device: str = "auto"  # auto | cpu | cuda | cuda:N

    def __post_init__(self):
        require(self, "samples", self.samples >= 1, "at least 1")
        there = not self.figure or Path(self.figure).parent.is_dir()
        require(self, "figure", there, "a file in a folder that exists")


class Answers(NamedTuple):
    """What a model answered in one order."""

    model: Model
    order: str  # a name of its samplers
    texts: Texts

    def right(self) -> list[bool]:
        """For each question whether the answer is exact, EOS included."""
        return [a == b for a, b in zip(self.texts.found, self.texts.wanted, strict=True)]

    def name(self) -> str:
        return f"{self.model.config.objective}: {self.order.replace('_', ' ')}"


def orders_of(model: Model) -> list[str]:
    """The samplers that are an order, or the first of all."""
    names = model.objective.samplers
    return [name for name in ORDERS if name in names] or [names[0]]


def answered(cfg: OrdersConfig, model: Model, order: str) -> Answers:
    corpus = Corpus(f"{model.config.data_dir}/{model.config.dataset}")
    how = {"sampler": order, "steps": model.config.block_size, "temperature": 0.0}
    eval_cfg = EvaluateConfig(samples=cfg.samples, **how)
    split = corpus.split_named(cfg.split)
    return Answers(model, order, sampled(eval_cfg, model, corpus, split, cfg.samples))


def describe(answers: Answers, first: list[bool]) -> str:
    """A line of the table."""
    right = answers.right()
    share, error = sum(right) / len(right), standard_error(right)
    only = sum(a and not b for a, b in zip(right, first, strict=True))
    other = sum(b and not a for a, b in zip(right, first, strict=True))
    numbers = f"{share:7.1%} +- {error:.1%}{only:8,}{other:8,}{answers.texts.speed['nfe']:8.1f}"
    return f"{answers.name():<28}{numbers}"


def standard_error(right: list[bool]) -> float:
    """Of the share of independent answers that are right."""
    share = sum(right) / len(right)
    return math.sqrt(share * (1 - share) / len(right))


# ---- the figure ----------------------------------------------------------------------------------


class Board(NamedTuple):
    """A sudoku as a model filled it."""

    title: str
    givens: list[int]  # size * size cells, row by row, 0 for a blank
    found: list[int]
    wanted: list[int]
    step: list[int]  # in which each blank was filled, from 1 on; 0 for a given


def filled(answers: Answers, question: int) -> Board:
    """The board of this question, written again and watched."""
    model, texts = answers.model, answers.texts
    prompt, n = texts.prompts[question], len(texts.prompts[question]) - 1
    begun = answer_canvas(model, prompt, n + 1)
    options = SampleOptions(sampler=answers.order, steps=model.config.block_size, temperature=0.0)
    when = [0] * n
    frames = model.objective.sample(
        model.net, begun.ids[None], begun.prompt_mask[None], generator(0), options
    )
    blanks = 0
    for frame in frames:
        for cell in frame.changed[0, n + 1 : 2 * n + 1].nonzero()[:, 0].tolist():
            if not prompt[cell]:  # that a given is copied is no step of the solution
                blanks += 1
                when[cell] = blanks
    found, wanted = (ids[question][:n] for ids in (texts.found, texts.wanted))
    return Board(answers.name(), prompt[:n], found, wanted, when)


def boards(every: list[Answers]) -> list[Board]:
    """One question in the order that has most right and, if that has one right that it has not, as
    the last answers have it; none for other tasks and for models that insert."""
    ordered = [a for a in every if not a.model.objective.inserts]
    if not ordered or ordered[0].model.meta["task"] != "sudoku":
        return []
    best = max(ordered, key=lambda a: sum(a.right()))
    last = min(ordered, key=lambda a: sum(a.right()))
    pairs = zip(best.right(), last.right(), strict=True)
    question = next((k for k, (a, b) in enumerate(pairs) if a and not b), None)
    return [] if question is None else [filled(best, question), filled(last, question)]


def draw_board(axes: Any, board: Board) -> None:
    """Givens in black, the others in the shade of their step, which stands in the corner; wrong
    digits red."""
    size = math.isqrt(len(board.givens))
    box, last = math.isqrt(size), max(board.step)
    for cell, digit in enumerate(board.found):
        row, column = divmod(cell, size)
        step, wrong = board.step[cell], digit != board.wanted[cell]
        shade = 0.15 + 0.75 * (1 - step / last)
        face = (1 - shade * 0.55, 1 - shade * 0.3, 1.0) if step else "0.88"
        axes.add_patch(plot_rectangle((column, row), face))
        colour = "crimson" if wrong else "black"
        weight = "normal" if step else "bold"
        centre = (column + 0.5, row + 0.55)
        font = {"ha": "center", "va": "center", "color": colour, "weight": weight}
        axes.text(*centre, str(digit), size=60 / size, **font)
        if step:
            axes.text(column + 0.07, row + 0.09, str(step), size=26 / size, va="top", color="0.35")
    for k in range(0, size + 1, box):
        axes.plot([k, k], [0, size], color="black", lw=1.5)
        axes.plot([0, size], [k, k], color="black", lw=1.5)
    axes.set(xlim=(-0.05, size + 0.05), ylim=(size + 0.05, -0.05), aspect="equal")
    axes.set_title(board.title, size=10)
    axes.axis("off")


def plot_rectangle(corner: tuple[int, int], face: Any) -> Any:
    patches = optional("matplotlib.patches", "matplotlib")
    return patches.Rectangle(corner, 1, 1, facecolor=face, edgecolor="0.5", lw=0.5)


def draw(every: list[Answers], path: str) -> None:
    plot = optional("matplotlib.pyplot", "matplotlib")
    shown = boards(every)
    widths = [2.4] * len(shown) + [3.6]
    figure, axes = plot.subplots(
        1, len(widths), figsize=(8.4, 3.0), layout="constrained", width_ratios=widths
    )
    axes = list(axes) if shown else [axes]
    for axis, board in zip(axes, shown, strict=False):
        draw_board(axis, board)
    bars = axes[-1]
    for place, answers in enumerate(every):
        right = answers.right()
        share = sum(right) / len(right)
        low, high = wilson(share, len(right))
        blind = answers.order in BLIND
        error = [[100 * (share - low)], [100 * (high - share)]]
        bars.barh(place, 100 * share, xerr=error, color="0.7" if blind else "tab:blue", capsize=2)
        bars.text(100 * high + 2, place, f"{share:.0%}", va="center", size=9)
    bars.set_yticks(range(len(every)), [answers.name() for answers in every], size=9)
    bars.invert_yaxis()
    bars.set(xlim=(0, 115), xlabel="solved, %", xticks=range(0, 101, 25))
    bars.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as e:
        raise UserError(f"figure={path}: {e}") from e
    plot.close(figure)


def main(argv: list[str]) -> None:
    cfg, _ = load(OrdersConfig, argv)
    require_writable(cfg, "figure")
    if cfg.figure:
        require_format(cfg.figure)
    models = []
    for path in cfg.ckpt.split(","):
        models.append(uncropped(checkpoint.load(path, pick_device(cfg.device))))
        if models[-1].meta.get("task") not in PUZZLES:
            raise UserError(f"{path} was not trained on questions with one answer")
    print(f"{cfg.samples:,} answers of {cfg.split} each, temperature 0, +- one standard error")
    print(f"{'':<28}{'exact':>7}{'only it':>17}{'only 1st':>9}{'calls':>7}")
    every: list[Answers] = []
    for model in models:
        for order in orders_of(model):
            every.append(answered(cfg, model, order))
            print(describe(every[-1], every[0].right()), flush=True)
    if cfg.figure:
        draw(every, cfg.figure)
        print(f"wrote {cfg.figure}")


if __name__ == "__main__":
    run(main)
