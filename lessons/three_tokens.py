"""Lesson 1: is the sampler right? A world so small that every answer can be written down.

Three tokens, texts of three of them: 27 texts, each with a probability that we choose. Then the
perfect network of masked diffusion needs no training: P(token | the tokens that are not masked) is
a sum over the 27. With a perfect network whatever is wrong in the samples is the sampler's doing.

What to expect: one place at a time is exact, in random order and surest first alike, by the chain
rule. Several places in one call are drawn independently of each other: that is what fewer calls
cost, and all at once give the product of the marginals, computed here, too. A temperature below 1
is another law, however many calls are made. The bound of the perfect network is, on average over
texts, their entropy: no nat is lost.

    python lessons/three_tokens.py            python lessons/three_tokens.py --plot=three.png
"""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from checkpoint import build_objective
from configurator import Config, load, optional, run
from corpus import Batch
from objective import SampleOptions, generator

TOKENS, PLACES, SAMPLES = 3, 3, 20_000
MASK = TOKENS  # the id after the last token
TEXTS = torch.tensor(list(itertools.product(range(TOKENS), repeat=PLACES)))  # (27, 3)
P = torch.rand(len(TEXTS), generator=generator(3), dtype=torch.float64) ** 3 + 0.01
P /= P.sum()


@dataclass(frozen=True)
class Lesson:
    plot: str = ""  # write a figure to this file


class Perfect(nn.Module):
    """log P(x_i = y | the tokens that are not MASK): features are logits, the head changes none."""

    time = None

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(TOKENS + 1, TOKENS + 1, dtype=torch.float64)
        nn.init.eye_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def logits(self, h: Tensor) -> Tensor:
        return self.head(h)

    def features(self, ids: Tensor, time: Tensor | None = None) -> Tensor:
        agrees = ((ids[:, None] == TEXTS) | (ids[:, None] == MASK)).all(-1)  # (B, 27)
        one_hot = nn.functional.one_hot(TEXTS, TOKENS + 1).double()  # (27, 3, 4)
        p = torch.einsum("bk,k,kiy->biy", agrees.double(), P, one_hot)
        return (p / p.sum(-1, keepdim=True)).clamp(min=1e-300).log()


def frequencies(objective, net, **how) -> Tensor:
    """(27,) how often a sampler writes each text."""
    ids = torch.zeros(SAMPLES, PLACES, dtype=torch.int64)
    options = SampleOptions(**how)
    *_, last = objective.sample(net, ids, torch.zeros_like(ids).bool(), generator(1), options)
    number = (last.ids * TOKENS ** torch.arange(PLACES - 1, -1, -1)).sum(1)
    return torch.bincount(number, minlength=len(P)) / SAMPLES


def distance(p: Tensor, q: Tensor) -> float:
    """Total variation: the largest difference in the probability of any event."""
    return float((p - q).abs().sum() / 2)


def main(argv: list[str]) -> None:
    plot = load(Lesson, argv)[0].plot
    config = Config(objective="masked", time_input=False)
    objective, net = build_objective(config, {"vocab_size": TOKENS, "specials": {}}), Perfect()
    samplers = {
        "one place at a time, random order": {"sampler": "first_hitting"},
        "one at a time, surest place first": {"sampler": "confidence", "steps": 3},
        "two calls, random order": {"sampler": "random", "steps": 2},
        "all places in one call": {"sampler": "random", "steps": 1},
        "one at a time, temperature 0.5": {"sampler": "first_hitting", "temperature": 0.5},
    }
    results = {name: frequencies(objective, net, **how) for name, how in samplers.items()}
    noise = float((2 * P * (1 - P) / torch.pi / SAMPLES).sqrt().sum() / 2)
    print(f"distance from the truth of {SAMPLES:,} samples, {noise:.4f} of it by chance:")
    for name, q in results.items():
        print(f"  {name:<36} {distance(q, P):.4f}")
    marginal = net.features(torch.full((1, PLACES), MASK))[0].exp()  # (3, 4)
    product = marginal[torch.arange(PLACES), TEXTS].prod(1)
    print(f"  product of the marginals, computed   {distance(product, P):.4f}")

    batch = Batch(TEXTS, torch.zeros_like(TEXTS).bool(), torch.full((len(TEXTS),), PLACES))
    bound = objective.bound(net, batch, generator(2), 1000)
    print(f"entropy of the texts  {float(-(P * P.log()).sum()):.3f} nats")
    print(f"mean bound            {float(P @ bound):.3f} nats, 1000 maskings of each text")
    if plot:
        plt = optional("matplotlib.pyplot", "matplotlib")
        for name, q in {"truth": P, **results}.items():
            plt.plot(q, "k-" if name == "truth" else ".", label=name)
        plt.legend(title="probability of each text")
        plt.savefig(plot)


if __name__ == "__main__":
    run(main)
