"""Lesson 0: masked diffusion in one file, from text to a trained model, a bound and samples. Torch
alone; diffusion.py has the same for any text.

The text is sums in words, "three plus four is seven". A model that writes from left to right can
finish a sum. This one fills any hole: it learns to predict whatever words are hidden from the rest.

    forwards   at time t in (0, 1] every word is hidden with probability t    (x0 -> xt)
    training   a network sees xt and predicts the hidden words: cross entropy, times 1 / t
    bound      the mean of that loss over t is at least -log p(x0)            (MDLM, eq. 10)
    backwards  begin with everything hidden; write a word at a time, drawn from the network

What to expect: all sums are equally likely, so -log2 p is 7.64 bits for each, and the bound comes
within half a bit of that. Four samples of five are true sums, and a hole gets each of its answers.

    python lessons/whole_idea.py        # MDLM: Sahoo et al. 2024, arXiv 2406.07524
"""

import math
import sys
import time
from collections import Counter

import torch
import torch.nn as nn
from torch import Tensor

# ---- the text: all sums and differences of 0 to 9, as rows of word ids ---------------------------

NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen""".split()
PAIRS = [(a, b) for a in range(10) for b in range(10)]
TEXTS = [f"{NUMBERS[a]} plus {NUMBERS[b]} is {NUMBERS[a + b]}" for a, b in PAIRS]
TEXTS += [f"{NUMBERS[a + b]} minus {NUMBERS[b]} is {NUMBERS[a]}" for a, b in PAIRS]
WORDS = [*NUMBERS, "plus", "minus", "is", "_"]
T, V, MASK = 5, len(WORDS), len(WORDS) - 1


def encode(text: str) -> Tensor:
    return torch.tensor([WORDS.index(word) for word in text.split()])


def decode(ids: Tensor) -> str:
    return " ".join(WORDS[i] for i in ids.tolist())


# ---- the network: a transformer that looks in both directions ------------------------------------


class Network(nn.Module):
    def __init__(self, width: int = 64, layers: int = 2, heads: int = 4):
        super().__init__()
        self.word, self.position = nn.Embedding(V, width), nn.Embedding(T, width)
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        blocks = (
            nn.TransformerEncoderLayer(width, heads, 4 * width, **options) for _ in range(layers)
        )
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, V)

    def features(self, xt: Tensor) -> Tensor:
        """xt (B, T) -> (B, T, C). t is no input: the number of hidden words says as much."""
        return self.norm(self.blocks(self.word(xt) + self.position.weight))

    def forward(self, xt: Tensor) -> Tensor:
        """xt (B, T) -> log p(x0 | xt) of every word at every position, (B, T, V)."""
        logits = self.head(self.features(xt))
        logits[..., MASK] = -torch.inf  # is part of no text
        return logits.log_softmax(-1)


# ---- forwards, the loss, its mean ----------------------------------------------------------------


def corrupt(x0: Tensor, t: Tensor, u: Tensor) -> Tensor:
    """Hide each word of x0 (B, T) with probability t (B,); u (B, T) is uniform noise in [0, 1)."""
    return torch.where(u < t[:, None], MASK, x0)


def loss(net: nn.Module, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
    """(B,) nats: cross entropy of the hidden words, times 1 / t."""
    nll = -net(xt).gather(-1, x0[..., None])[..., 0]  # (B, T)
    return (nll * (xt == MASK)).sum(1) / t


def times(B: int) -> Tensor:
    """(B,) in (0, 1], one in each of B equal parts, less spread than B at random."""
    return (1 - (torch.arange(B) + torch.rand(B)) / B)[torch.randperm(B)]


def train(net: nn.Module, x0: Tensor, steps: int = 5000, batch: int = 64) -> None:
    adam = torch.optim.AdamW(net.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=5e-3, total_steps=steps)
    for step in range(1, steps + 1):
        rows, t = x0[torch.randint(len(x0), (batch,))], times(batch)
        nats = loss(net, rows, corrupt(rows, t, torch.rand(rows.shape)), t).mean()
        adam.zero_grad()
        nats.backward()
        adam.step()
        rate.step()
        if step % 1000 == 0:
            print(f"step {step}: bound %.2f +- %.2f bits per row" % bound(net, x0), flush=True)


@torch.no_grad()
def bound(net: nn.Module, x0: Tensor, samples: int = 100) -> tuple[float, float]:
    """The mean of the loss over rows and times, and its standard error; bits per row."""
    rows, t = x0.repeat(samples, 1), times(samples * len(x0))
    bits = loss(net, rows, corrupt(rows, t, torch.rand(rows.shape)), t) / math.log(2)
    return bits.mean().item(), (bits.std() / len(bits) ** 0.5).item()


# ---- backwards -----------------------------------------------------------------------------------


@torch.no_grad()
def sample(net: nn.Module, xt: Tensor, show: bool = False) -> Tensor:
    """Fill the hidden places of xt (B, T), one in each row per step, in random order."""
    while (hidden := xt == MASK).any():
        place = torch.rand(xt.shape).masked_fill(~hidden, -1).argmax(1, keepdim=True)
        drawn = torch.distributions.Categorical(logits=net(xt)).sample()
        now = torch.zeros_like(hidden).scatter(1, place, True) & hidden
        xt = torch.where(now, drawn, xt)
        if show:
            print("   ", decode(xt[0]))
    return xt


if __name__ == "__main__":
    torch.manual_seed(0)
    x0, net, start = torch.stack([encode(text) for text in TEXTS]), Network(), time.time()
    print(f"{len(TEXTS)} equally likely sums: entropy {math.log2(len(TEXTS)):.2f} bits per row")
    train(net, x0, *map(int, sys.argv[1:]))  # another number of steps
    print(f"trained in {time.time() - start:.0f} s")
    print("a sample, as it is written:")
    texts = [decode(ids) for ids in sample(net, torch.full((1000, T), MASK), show=True)]
    true = sum(text in TEXTS for text in texts) / len(texts)
    print(f"{true:.1%} of {len(texts)} samples are true; they hold", end=" ")
    print(f"{len(set(texts) & set(TEXTS))} of the {len(TEXTS)} sums\n")
    for hole in (
        "three plus four is _",
        "_ plus four is seven",
        "six _ two is _",
        "_ plus _ is two",
    ):
        answers = Counter(map(decode, sample(net, encode(hole).repeat(100, 1))))
        most = ", ".join(f"{text} ({n} %)" for text, n in answers.most_common(4))
        print(f"{hole:20} -> {most}")
