"""Lesson 3: why float32 noise lies. The sampler is right, the network is right, the text is dull.

The usual way to draw a token is argmax(log p + Gumbel noise), with noise -log(-log u). In float32
torch.rand is a multiple of 2^-24, so u is never above 1 - 2^-24 and the noise never above 16.6. An
unlikely token needs more than that to win. In masked diffusion every token is unlikely in any one
step: with k steps to go, a place stays masked with probability 1 - 1/k, and a token has p / k.

The race can be solved: -log u is exponential, and the least (-log u_i) / w_i wins. On a grid of
2^-24 it is rounded up, so the clock of outcome i moves in jumps of 2^-24 / w_i: rare ones are late.
`wins` adds up who comes first, without drawing anything, and real draws are laid beside it.

What to expect: the more steps, the less entropy, as if someone had turned the temperature down, and
"better" perplexity of samples for this reason alone. One draw over the vocabulary shows nothing.
`categorical` of objective.py inverts float64 sums instead, and every sampler here goes through it.

    Zheng et al. 2024, arXiv 2409.02908

    python lessons/float32_noise.py           python lessons/float32_noise.py --plot=noise.png
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from configurator import load, optional, run
from objective import SampleOptions, generator, process_logits

VOCAB = 50_257  # GPT-2's
STEPS = (1, 4, 16, 64, 256, 1024)
MEASURED, DRAWS = 256, 24_000  # calls of the float32 sampler, with so many steps to go
ZIPF = 1 / torch.arange(1, VOCAB + 1, dtype=torch.float64)  # probabilities as words have them
ZIPF /= ZIPF.sum()


@dataclass(frozen=True)
class Lesson:
    plot: str = ""  # write a figure to this file


def wins(weights: Tensor, grid: float = 2.0**-24) -> Tensor:
    """weights (V,) float64 of rare outcomes -> the probability of each. An outcome is at the j-th
    jump of its clock with probability `grid`, and wins if nobody was earlier: exp(-j grid / w), as
    all weights together are 1. The sum over j is a geometric series, and w for a fine grid."""
    return grid / torch.expm1(grid / weights)


def step(k: int) -> Tensor:
    """Weights of one place with k steps to go: MASK first, then the tokens."""
    return torch.cat([torch.tensor([1 - 1 / k], dtype=torch.float64), ZIPF / k])


def entropy(p: Tensor) -> float:
    return float(-torch.special.xlogy(p, p).sum())


def temperature(nats: float) -> float:
    """The temperature, in hundredths, at which the true distribution has about this entropy."""
    laws = ((t, SampleOptions(temperature=t / 100)) for t in range(100, 70, -1))
    distributions = ((t, process_logits(ZIPF.log()[None], how).softmax(1)[0]) for t, how in laws)
    return next(t for t, p in distributions if entropy(p) <= nats + 0.02) / 100


def gumbel(weights: Tensor, draws: int) -> Tensor:
    """(draws,) winners, all of it in float32, as it is usually written."""
    logits, rng = weights.float().log(), generator(0)
    parts = [min(32, draws - k) for k in range(0, draws, 32)]
    noise = (torch.rand(n, len(weights), generator=rng) for n in parts)
    return torch.cat([(logits - u.log_().neg_().log_()).argmax(1) for u in noise])


def main(argv: list[str]) -> None:
    plot = load(Lesson, argv)[0].plot
    share = f"{ZIPF[10_000:].sum():.1%} of them beyond rank 10,000"
    print(f"{VOCAB:,} tokens by Zipf's law: entropy {entropy(ZIPF):.3f} nats, {share}")
    print("what a whole run in float32 writes, by the law of the race:")
    total, curve = torch.zeros(VOCAB, dtype=torch.float64), []
    for k in range(1, STEPS[-1] + 1):  # a place is written with k steps to go, all k alike
        won = wins(ZIPF / k)
        total += won / won.sum()
        if k in STEPS:
            nats, rare = entropy(total / k), float(total[10_000:].sum() / k)
            text = f"entropy {nats:.3f}, as at temperature {temperature(nats):.2f}"
            print(f"  {k:5d} steps: {text}; {rare:.1%} beyond rank 10,000")
            curve.append(nats)
    late, cost = wins(ZIPF / MEASURED), -ZIPF.log()
    print(f"with {MEASURED} steps to go, mean -log p by the law of the race, and as drawn:")
    nats, count = float(late @ cost / late.sum()), float(late.sum()) * DRAWS
    print(f"  float32, by the law: {nats:.2f} nats ({count:.0f} tokens of {DRAWS:,} draws)")
    u = torch.rand(50 * DRAWS, generator=generator(1), dtype=torch.float64)
    fair = torch.searchsorted(step(MEASURED).cumsum(0), u, right=True)
    for name, won in (("float32", gumbel(step(MEASURED), DRAWS)), ("float64", fair)):
        nats = cost[won[won > 0] - 1]
        text = f"{float(nats.mean()):.2f} +- {float(nats.std()) / len(nats) ** 0.5:.2f} nats"
        print(f"  {name}, drawn: {text} ({len(nats)} tokens of {len(won):,} draws)")
    if plot:
        plt = optional("matplotlib.pyplot", "matplotlib")
        plt.semilogx(STEPS, curve, "o-")
        plt.title("float32: entropy of what is written, nats, by number of steps")
        plt.savefig(plot)


if __name__ == "__main__":
    run(main)
