"""Lesson 4: insertion against masking against left to right, on star graphs.

A star graph has two arms. Given its edges in random order, a start and a goal, the path between
them is to be written. The arms differ only at their ends, so from left to right the first step is a
guess, unless the whole path is found at once; whoever may begin at the goal just walks back.

Network, data, optimiser and steps are the same for all three, those of config/star_tiny.py. Each
writes one answer step by step, then 300 of them, at temperature 0.

What to expect after 150 steps, about 20 seconds in all: none of the three is done, and insertion,
whose one softmax holds every gap and token, is far behind (measured: 46, 36 and 2 % of 300). Half
is what an arm taken by chance gives. But the order is there already: masking writes start and goal,
which it can copy, before the node that it must find. Only the full run, some minutes, tells the
orders apart: --steps=1800 is the table of the README, 49.5 % from left to right, 100 % by masking,
100 % by insertion.

    python lessons/orders.py                  python lessons/orders.py --steps=1800 --plot=stars.png
"""

import contextlib
import io
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import checkpoint
import train
from configurator import load, optional, run
from corpus import Batch, Corpus
from evaluate import EvaluateConfig, sampled
from objective import SampleOptions, generator
from sample import answer_canvas
from tasks import puzzles, stars

ORDERS = {
    "left to right": ("ar", {"temperature": 0.0}),
    "masking, surest first": ("masked", {"temperature": 0.0, "sampler": "confidence"}),
    "insertion": ("ilm", {"temperature": 0.0}),
}


@dataclass(frozen=True)
class Lesson:
    steps: int = 150  # of training, for each order
    samples: int = 300  # answers that are counted
    plot: str = ""  # write a figure to this file


def trained(objective: str, folder: str, steps: int) -> checkpoint.Model:
    """config/star_tiny.py with this objective; what train.py prints is left out."""
    flags = f"data_dir={folder} out_dir={folder}/{objective} objective={objective} demo= threads=1"
    flags += f" device=cpu max_iters={steps} eval_interval={steps} eval_iters=1"
    with contextlib.redirect_stdout(io.StringIO()):
        train.main(["config/star_tiny.py", *(f"--{one}" for one in flags.split())])
    return checkpoint.load(f"{folder}/{objective}/ckpt.pt")


def steps_of_one(model: checkpoint.Model, batch: Batch, how: dict) -> list[str]:
    """The answer to the first question after each step; _ is a place that is not yet written."""
    prompt = int(batch.prompt_mask[0].sum())
    begun = answer_canvas(model, batch.ids[0, :prompt].tolist(), 5)
    rng, options = generator(0), SampleOptions(**how)
    frames = model.objective.sample(
        model.net, begun.ids[None], begun.prompt_mask[None], rng, options
    )
    steps, words, special = [], model.tokenizer.symbols, model.meta["specials"]
    for frame in frames:
        ids = frame.ids[0, prompt : int(frame.length[0])].tolist()
        ids = [i for i in ids if i not in (special["eos"], special["pad"])]
        text = " ".join(words[i] if i < len(words) else "_" for i in ids)
        steps += [text] if text not in ("", *steps[-1:]) else []
    return steps


def main(argv: list[str]) -> None:
    cfg, _ = load(Lesson, argv)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            stars.main(["--level=tiny", f"--data_dir={folder}"])
        corpus = Corpus(f"{folder}/star_tiny")
        batch = corpus.batch("val", torch.arange(1).numpy(), 16)
        ids, given = batch.ids[0, : batch.length[0]], batch.prompt_mask[0, : batch.length[0]]
        print(f"edges, start and goal: {corpus.tokenizer.decode(ids[given].tolist())}")
        print(f"wanted:                {corpus.tokenizer.decode(ids[~given].tolist())}")
        for name, (objective, how) in ORDERS.items():
            model = trained(objective, folder, cfg.steps)
            print(f"\n{name}, {model.step} steps; one answer as it is written:")
            print("   " + "  |  ".join(steps_of_one(model, batch, how)))
            eval_cfg = EvaluateConfig(samples=cfg.samples, device="cpu", **how)
            texts = sampled(eval_cfg, model, corpus, "val", cfg.samples)
            answers = [*map(puzzles.Pair, texts.prompts, texts.found, texts.wanted)]
            scores = puzzles.scores("star", model.tokenizer, answers)
            print("   " + puzzles.describe(scores, "held-out graphs", len(answers)))
            print(f"   {texts.speed['nfe']:.1f} network calls per answer")
            results[name] = scores["exact_match"]
    if cfg.plot:
        plt = optional("matplotlib.pyplot", "matplotlib")
        plt.bar(list(results), list(results.values()))
        plt.axhline(0.5, color="grey", linestyle=":")
        plt.title(f"exact paths after {cfg.steps} steps; dotted: a guess between two arms")
        plt.savefig(cfg.plot)


if __name__ == "__main__":
    run(main)
