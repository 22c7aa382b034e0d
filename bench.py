"""How fast is it? Our training step and samplers beside a textbook of the same maths, in one run.

    python bench.py                                 # all rows, ten rounds of coffee on two cores
    python bench.py --rows=equality,train --shapes=demo --budget=5 --threads=1
    python bench.py --json=bench.jsonl --gate       # also fail below the speed targets

The textbook follows the formulas and the published code of SEDD (arXiv 2310.16834) and MDLM
(arXiv 2406.07524): scores of all places over the whole vocabulary, in samplers as much noise, an
average updated one parameter at a time, AdamW as it comes. It starts from our weights.

Rows of equality come first, for a speed-up of something else is none, and decide the exit code.
Then both sides take turns until the budget of a row is spent. x1.5: the textbook takes 1.5 times
our time (or memory). Times depend on the machine and on who else uses it, ratios less, counters of
samplers (network calls, canvases in them, rows of logits) not at all.
"""

import functools
import itertools
import json
import math
import platform
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Callable, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from build import build_network, build_objective, pick_device
from configurator import Config, UserError, load, require, run
from corpus import Batch
from diffusion import SAMPLE_EPS, TRAIN_EPS, ScoreEntropy
from model import ROTARY_BASE, Transformer
from objective import SampleOptions, generator, stratified
from optimize import make_optimizers, scale_gradients, update_ema
from train import LossModule, Run, World, autocast, train_step

KINDS = ("equality", "train", "sample", "memory", "micro")
TOLERANCE = 1e-5  # of the loss, of the largest gradient, of the largest weight
EPS = 1e-3  # of the log-linear schedule
NOMINAL = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bfloat16 FLOP/s, data sheets
TARGETS = {  # what --gate asks of a ratio
    "train palindrome": {"sedd float32": 1.2, "sedd bfloat16": 1.8},
    "train palindrome768": {"sedd bfloat16": 2.8},
    "train gpt2": {"sedd float32": 3.3},
    "train gpt2_768": {"sedd float32": 2.2},
    "sample palindrome": {"64 hop float32": 2.5, "64 hop bfloat16": 4.5, "1024 hop float32": 20},
    "sample gpt2": {"16 analytic float32": 6, "16 hop float32": 10, "16 hop bfloat16": 16},
    "memory gpt2": {"sedd": 1 / 0.6, "mdlm": 1 / 0.45},
    "micro gpt2": {"ema": 5, "adamw": 4},
}


class Shape(NamedTuple):
    """A network and its batch, named as in Config; MASK is the last id of the vocabulary."""

    vocab: int
    block_size: int
    n_embd: int
    n_layer: int
    n_head: int
    batch_size: int
    time_input: bool = True
    positions: str = "rotary"


SHAPES = {
    "tiny": Shape(41, 8, 32, 2, 4, 8),
    "demo": Shape(260, 32, 64, 4, 4, 64, False, "learned"),
    "palindrome": Shape(260, 32, 256, 12, 8, 64),
    "gpt2": Shape(50258, 128, 256, 6, 8, 8),
    "palindrome768": Shape(260, 32, 768, 12, 12, 64),
    "gpt2_768": Shape(50258, 128, 768, 12, 12, 2),
}
SAMPLES = {"tiny": (8, [4]), "palindrome": (64, [16, 64, 1024]), "gpt2": (4, [16])}  # rows, steps


@dataclass(frozen=True)
class BenchConfig:
    """Everything that `bench.py` can be told."""

    rows: str = ",".join(KINDS)  # kinds of rows
    shapes: str = "demo,palindrome,gpt2"  # networks; also palindrome768, gpt2_768 and tiny
    quick: bool = False  # the tiny network and short turns: proves that it runs
    budget: float = 10.0  # seconds per row, more if the turns need them
    rounds: int = 5  # turns of each side at least
    threads: int = 0  # CPU threads; 0 leaves torch's own choice
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    dropout: float = 0.0  # of the textbook's training step; 0.1 is the published default
    seed: int = 0  # of weights, data and noise
    gate: bool = False  # exit with 1 if a speed-up is below its target
    json: str = ""  # file that gets one line per row
    profile: str = ""  # file that gets a chrome trace of our training step, before the rows
    alone: str = ""  # shape/form/side: one measurement of memory, in a process of its own

    def __post_init__(self):
        for key, known in (("rows", KINDS), ("shapes", SHAPES)):
            rule = "a comma-separated choice of " + ", ".join(known)
            require(self, key, set(getattr(self, key).split(",")) <= set(known), rule)
        for key in "budget rounds threads dropout".split():
            require(self, key, getattr(self, key) >= 0, "at least 0")


class Failed(UserError):
    """A row of equality differs, or, with --gate, a ratio is below its target."""

    code = 1


# ---- the textbook ------------------------------------------------------------------------------


def textbook_weights(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of our weights, or of their gradients, under the textbook's names: the published
    networks have a modulation matrix in every block, and one (the last here) in the output."""
    copies = {k: v.detach().clone() for k, v in named.items() if not k.startswith("modulation")}
    for name in named.keys() - copies.keys():
        for i, part in enumerate(named[name].detach().split(6 * len(named["norm.weight"]))):
            copies[f"blocks.{i}.{name}"] = part.clone()
    return copies


class Textbook:
    """The published network, written plainly."""

    def __init__(self, net: Transformer, dropout: float = 0.0):
        self.w = textbook_weights(dict(net.named_parameters()))
        for weight in self.w.values():
            weight.requires_grad_()
        self.n_layer, self.n_head, self.dropout = net.n_layer, net.n_head, dropout
        self.mask, self.rotary, self.time = net.vocab_size - 1, net.rotary, net.time is not None

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[name + ".weight"], self.w.get(name + ".bias"))

    def norm(self, name: str, x: Tensor, shift: Any = None, scale: Any = None) -> Tensor:
        x = F.layer_norm(x.float(), x.shape[-1:]) * self.w[name + ".weight"]
        return x if shift is None else x * (1 + scale) + shift

    def gated(self, x: Tensor, gate: Tensor | None) -> Tensor:
        x = F.dropout(x, self.dropout)
        return x if gate is None else gate * x

    def logits(self, ids: Tensor, sigma: Tensor) -> Tensor:
        """ids (B, L), noise levels (B,) -> (B, L, V)."""
        h, c, last = F.embedding(ids, self.w["embed.weight"]), None, [None] * 2
        if "place.weight" in self.w:
            h = h + self.w["place.weight"][: ids.shape[1]]
        if self.time:
            angle = sigma[:, None] * frequencies(128, 1e4, ids.device)
            c = F.silu(self.linear("time.fc", torch.cat([angle.cos(), angle.sin()], -1)))
            c = F.silu(self.linear("time.proj", c))
            last = self.linear(f"blocks.{self.n_layer}.modulation", c)[:, None].chunk(2, -1)
        for i in range(self.n_layer):
            h = self.block(f"blocks.{i}.", h, c)
        return self.linear("head", self.norm("norm", h, *last)).float()

    def block(self, name: str, h: Tensor, c: Tensor | None) -> Tensor:
        (B, L, C), parts = h.shape, [None] * 6
        if c is not None:  # shift, scale, gate of both branches, each (B, 1, C)
            parts = self.linear(name + "modulation", c)[:, None].chunk(6, -1)
        x = self.linear(name + "attn.qkv", self.norm(name + "norm1", h, *parts[:2]))
        q, k, v = x.view(B, L, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)  # (B, H, L, C / H)
        if self.rotary:
            q, k = rotate(q), rotate(k)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, L, C)
        h = h + self.gated(self.linear(name + "attn.proj", x), parts[2])
        x = self.linear(name + "mlp.fc", self.norm(name + "norm2", h, *parts[3:5]))
        x = self.linear(name + "mlp.proj", F.gelu(x, approximate="tanh"))
        return h + self.gated(x, parts[5])


@functools.cache
def frequencies(count: int, base: float, device: torch.device) -> Tensor:
    return (base ** -(torch.arange(count) / count)).to(device)


def rotate(x: Tensor) -> Tensor:
    """Rotary positions, x (B, H, L, D)."""
    angle = torch.arange(x.shape[2], device=x.device)[:, None] * frequencies(
        x.shape[3] // 2, ROTARY_BASE, x.device
    )
    angle, (a, b) = torch.cat([angle, angle], -1), x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-b, a], -1) * angle.sin()


def textbook_sigma(t: Tensor) -> Tensor:
    return -torch.log1p(-(1 - EPS) * t)


def textbook_log_score(logits: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """SEDD's output (B, L, V): scaled by sigma (B,), and 0 at the token itself."""
    s = logits - torch.expm1(sigma).log()[:, None, None] - math.log(logits.shape[-1] - 1)
    return s.scatter(-1, x[..., None], 0.0)


def textbook_score_entropy(logits: Tensor, xt: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """(B, L): sum_y s_y - r log s_x0 + r (log r - 1) where masked, with r = 1 / (e^sigma - 1)."""
    log_score, masked = textbook_log_score(logits, xt, sigma), xt == logits.shape[-1] - 1
    log_score, r = log_score[masked], (1 / torch.expm1(sigma))[:, None].expand_as(xt)[masked]
    negative = r * log_score.gather(-1, x0[masked][:, None])[:, 0]
    positive = log_score[:, :-1].exp().sum(-1)
    entropy = torch.zeros(xt.shape, device=xt.device)
    entropy[masked] += positive - negative + r * (r.log() - 1)
    return entropy


def textbook_subs(logits: Tensor, x: Tensor) -> Tensor:
    """MDLM's output (B, L, V): log-probabilities, none for MASK; a token that is there stays."""
    logits[..., -1] = -1e6
    log_p, there = logits - logits.logsumexp(-1, keepdim=True), x != logits.shape[-1] - 1
    log_p[there] = -1e6
    log_p[there, x[there]] = 0
    return log_p


def textbook_loss(book: Textbook, x0: Tensor, t: Tensor, u: Tensor, form: str) -> Tensor:
    """Sum () over x0 (B, L) at times t (B,); a token is masked where u (B, L) is small."""
    sigma, dsigma = textbook_sigma(t), (1 - EPS) / (1 - (1 - EPS) * t)
    xt = torch.where(u < -torch.expm1(-sigma)[:, None], book.mask, x0)
    logits = book.logits(xt, sigma)
    if form == "sedd":
        return (dsigma[:, None] * textbook_score_entropy(logits, xt, x0, sigma)).sum()
    log_p = textbook_subs(logits, xt).gather(-1, x0[..., None])[..., 0]
    return -((dsigma / torch.expm1(sigma))[:, None] * log_p).sum()


class TextbookTraining:
    """One step per call: noise, loss, backward, clipping, AdamW with its defaults, average."""

    def __init__(self, book: Textbook, ours: "Ours", form: str):
        self.book, self.x0, self.form, self.config = (
            book,
            ours.batch.ids.to(ours.device),
            form,
            ours.config,
        )
        self.params, self.updates = list(book.w.values()), 0
        self.ema = [p.detach().clone() for p in self.params]
        self.adamw = torch.optim.AdamW(
            self.params, self.config.learning_rate, (0.9, 0.95), weight_decay=0.0
        )

    def __call__(self) -> None:
        t, u = (torch.rand(n, device=self.x0.device) for n in (len(self.x0), self.x0.shape))
        with autocast(self.config, self.x0.device):
            loss = textbook_loss(self.book, self.x0, TRAIN_EPS + (1 - TRAIN_EPS) * t, u, self.form)
        (loss / self.x0.numel()).backward()
        self.update()

    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.adamw.step()
        self.adamw.zero_grad()
        self.average()

    @torch.no_grad()
    def average(self) -> None:
        self.updates += 1
        decay = min(self.config.ema_decay, (1 + self.updates) / (10 + self.updates))
        for ema, p in zip(self.ema, self.params, strict=True):
            ema.sub_((1 - decay) * (ema - p))
