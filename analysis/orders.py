"""How many answers are right, by the order in which they are written.

    python -m analysis.orders --ckpt=out/mdlm_sudoku4/ckpt.pt,out/ar_sudoku4/ckpt.pt

Answers held-out questions at temperature 0, a token per network call, in every order that a model
has (ORDERS of diffusion.py; others write in their one way), and prints the share of exact answers
with its standard error. All orders answer the same questions. So the last columns tell more about
a difference than two errors do: how many answers this order alone has right, compared to the first
order, and how many that one alone.

--figure=orders.png draws the shares, with 95 % intervals: blue where the model chooses the order by
what it knows, grey where nobody looks. For sudoku it also draws the first board that the best order
solved and the worst one did not, with the step in which each cell was filled.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import checkpoint
from analysis.curves import require_figure, save_figure
from checkpoint import Model
from configurator import PUZZLES, UserError, load, optional, require, run
from corpus import Corpus
from diffusion import BLIND, ORDERS
from evaluate import EvaluateConfig, Texts, sampled, uncropped, wilson
from model import pick_device
from objective import SampleOptions, generator
from sample import answer_canvas


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


class Answers(NamedTuple):
    """What a model answered in one order."""

    model: Model
    order: str  # a name of its samplers
    texts: Texts

    def right(self) -> list[bool]:
        """For each question whether the answer is exact, EOS included."""
        return [a == b for a, b in zip(self.texts.found, self.texts.wanted, strict=True)]

    def name(self) -> str:
        layers = self.model.config.n_layer
        of = "1 layer" if layers == 1 else f"{layers} layers"
        return f"{self.model.config.objective}, {of}: {self.order.replace('_', ' ')}"


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
    return f"{answers.name():<32}{numbers}"


def standard_error(right: list[bool]) -> float:
    """Of the share of independent answers that are right."""
    share = sum(right) / len(right)
    return math.sqrt(share * (1 - share) / len(right))


# ---- the figure ----------------------------------------------------------------------------------


class Board(NamedTuple):
    """A sudoku as a model filled it."""

    order: str
    givens: list[int]  # size * size cells, row by row, 0 for a blank
    found: list[int]
    wanted: list[int]
    step: list[int]  # in which each blank was filled, from 1 on; 0 for a given


def filled(answers: Answers, question: int) -> Board:
    """The board of this question, written once more and watched. In random order that is another
    one than among the answers."""
    model, texts = answers.model, answers.texts
    prompt, n = texts.prompts[question], len(texts.prompts[question]) - 1
    begun = answer_canvas(model, prompt, n + 1)
    options = SampleOptions(sampler=answers.order, steps=model.config.block_size, temperature=0.0)
    frames = model.objective.sample(
        model.net, begun.ids[None], begun.prompt_mask[None], generator(0), options
    )
    cells, step = slice(n + 1, 2 * n + 1), [0] * n
    for frame in frames:
        found = frame.ids[0, cells].tolist()
        for cell in frame.changed[0, cells].nonzero()[:, 0].tolist():
            if not prompt[cell]:  # to copy a given is no step towards the solution
                step[cell] = max(step) + 1
    order = answers.order.replace("_", " ")
    return Board(order, prompt[:n], found, texts.wanted[question][:n], step)


def boards(every: list[Answers]) -> list[Board]:
    """The first board that the order with most answers right solved, while the one with fewest
    copied the givens and filled a blank wrong, from both; none if there is no such board, and for
    other tasks. Models that insert do not know where a digit will stand, so they show none."""
    placed = [a for a in every if not a.model.objective.inserts]
    if not placed or placed[0].model.meta["task"] != "sudoku":
        return []
    best, worst = (choose(placed, key=lambda a: sum(a.right())) for choose in (max, min))
    for question, (solved, too) in enumerate(zip(best.right(), worst.right(), strict=True)):
        if solved and not too:
            board = filled(worst, question)
            kept = all(g in (0, d) for g, d in zip(board.givens, board.found, strict=True))
            if kept and board.found != board.wanted:
                return [filled(best, question), board]
    return []


def draw_board(axes: Any, board: Board) -> None:
    """Givens in bold on grey; the others with their step in the corner, and the darker the earlier
    they were filled; wrong digits in red."""
    rectangle = optional("matplotlib.patches", "matplotlib").Rectangle
    size = math.isqrt(len(board.givens))
    last = max(board.step)
    for cell, digit in enumerate(board.found):
        (row, column), step = divmod(cell, size), board.step[cell]
        early = 1 - step / last
        face = (0.9 - 0.4 * early, 0.95 - 0.22 * early, 1.0) if step else "0.85"
        axes.add_patch(rectangle((column, row), 1, 1, facecolor=face, edgecolor="0.5", lw=0.5))
        font = {"color": "black" if digit == board.wanted[cell] else "crimson"}
        font |= {"weight": "normal" if step else "bold", "size": 64 / size}
        axes.text(column + 0.53, row + 0.55, digit, ha="center", va="center", **font)
        if step and size == 4:
            axes.text(column + 0.06, row + 0.06, step, size=7.5, va="top", color="0.25")
    for k in range(0, size + 1, math.isqrt(size)):
        axes.plot([k, k], [0, size], color="black", lw=1.5)
        axes.plot([0, size], [k, k], color="black", lw=1.5)
    wrong = sum(a != b for a, b in zip(board.found, board.wanted, strict=True))
    axes.set(xlim=(-0.05, size + 0.05), ylim=(size + 0.05, -0.05), aspect="equal")
    axes.set_title(f"{board.order}: {f'{wrong} wrong' if wrong else 'solved'}", size=10)
    axes.axis("off")


def draw(every: list[Answers], path: str) -> None:
    plot = optional("matplotlib.pyplot", "matplotlib")
    shown = boards(every)
    widths = [2.2] * len(shown) + [3.4]
    figure, axes = plot.subplots(
        1, len(widths), figsize=(8.4, 3.0), layout="constrained", width_ratios=widths, squeeze=False
    )
    figure.get_layout_engine().set(h_pad=0.08)
    *before, bars = axes[0]
    for axis, board in zip(before, shown, strict=True):
        draw_board(axis, board)
    for place, answers in enumerate(every):
        share = sum(answers.right()) / len(answers.right())
        low, high = wilson(share, len(answers.right()))
        error = [[100 * max(0, share - low)], [100 * max(0, high - share)]]  # of rounding
        colour = "0.7" if answers.order in BLIND else "tab:blue"
        bars.barh(place, 100 * share, xerr=error, color=colour, capsize=2)
        bars.text(100 * high + 2, place, f"{share:.0%}", va="center", size=9)
    bars.set_yticks(range(len(every)), [answers.name() for answers in every], size=9)
    bars.invert_yaxis()
    bars.set(xlim=(0, 120), xlabel="answers that are right, %", xticks=range(0, 101, 25))
    bars.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def main(argv: list[str]) -> None:
    cfg, _ = load(OrdersConfig, argv)
    require_figure(cfg)
    models = []
    for path in cfg.ckpt.split(","):
        models.append(uncropped(checkpoint.load(path, pick_device(cfg.device))))
        if models[-1].meta.get("task") not in PUZZLES:
            raise UserError(f"{path} was not trained on questions with one answer")
    print(f"{cfg.samples:,} answers of {cfg.split} each, temperature 0, +- one standard error")
    print(f"{'':<32}{'exact':>7}{'only it':>17}{'only 1st':>9}{'calls':>7}")
    every: list[Answers] = []
    for model in models:
        for order in orders_of(model):
            every.append(answered(cfg, model, order))
            print(describe(every[-1], every[0].right()), flush=True)
    if cfg.figure:
        draw(every, cfg.figure)


if __name__ == "__main__":
    run(main)
