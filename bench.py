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

import itertools
import json
import math
import os
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, Callable, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from build import build_network, build_objective, gemm_peak, pick_device
from configurator import Config, load, require, run
from corpus import Batch
from diffusion import TRAIN_EPS, LogLinear, ScoreEntropy, grid
from model import ROTARY_BASE, Transformer
from objective import SampleOptions, generator, stratified
from optimize import make_optimizers, scale_gradients, update_ema
from train import LossModule, Run, World, autocast, train_step

KINDS = ("equality", "train", "sample", "memory", "micro")
TOLERANCE = 1e-5  # of the loss, of the largest gradient, of the largest weight
NOISE = LogLinear()
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
BFLOAT16 = ("avx512_bf16", "amx_bf16")  # CPUs that multiply it


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
    compile: bool = False  # our blocks, in training
    dropout: float = 0.0  # of the textbook's training step; 0.1 is the published default
    seed: int = 0  # of weights, data and noise
    gate: bool = False  # exit with 1 if a speed-up is below its target
    json: str = ""  # file that gets one line per row
    profile: str = ""  # file that gets a chrome trace of our training step, before the rows

    def __post_init__(self):
        for key, known in (("rows", KINDS), ("shapes", SHAPES)):
            rule = "a comma-separated choice of " + ", ".join(known)
            require(self, key, set(getattr(self, key).split(",")) <= set(known), rule)
        for key in "budget rounds threads dropout".split():
            require(self, key, getattr(self, key) >= 0, "at least 0")


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
    """The published network, written plainly. Its autocast, as theirs, knows only GPUs."""

    def __init__(self, ours: "Ours", dropout: float = 0.0):
        net, self.config, self.dropout = ours.net, ours.config, dropout
        self.w = textbook_weights(dict(net.named_parameters()))
        for weight in self.w.values():
            weight.requires_grad_()
        self.mask, self.rotary = net.vocab_size - 1, net.rotary
        self.sinusoids = net.time and net.time.sinusoids

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
        if self.sinusoids:
            c = F.silu(self.linear("time.fc", self.sinusoids(sigma)))
            c = F.silu(self.linear("time.proj", c))
        half = torch.arange(h.shape[-1] // self.config.n_head // 2, device=ids.device)
        angle = ROTARY_BASE ** -torch.cat([half, half]).div(len(half))
        angle = torch.arange(ids.shape[1], device=ids.device)[:, None] * angle  # (L, C / H)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.config.dtype == "bfloat16"):
            for i in range(self.config.n_layer):
                h = self.block(f"blocks.{i}.", h, c, angle.cos(), angle.sin())
            if c is not None:
                last = self.linear(f"blocks.{i + 1}.modulation", c)[:, None].chunk(2, -1)
            return self.linear("head", self.norm("norm", h, *last)).float()

    def block(self, name: str, h: Tensor, c: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
        (B, L, C), parts = h.shape, [None] * 6
        if c is not None:  # shift, scale, gate of both branches, each (B, 1, C)
            parts = self.linear(name + "modulation", c)[:, None].chunk(6, -1)
        x = self.linear(name + "attn.qkv", self.norm(name + "norm1", h, *parts[:2]))
        x = x.view(B, L, 3, self.config.n_head, -1)
        q, k, v = x.permute(2, 0, 3, 1, 4)  # (B, H, L, C / H) each
        if self.rotary:
            q, k = q * cos + turned(q) * sin, k * cos + turned(k) * sin
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, L, C)
        h = h + self.gated(self.linear(name + "attn.proj", x), parts[2])
        x = self.linear(name + "mlp.fc", self.norm(name + "norm2", h, *parts[3:5]))
        x = self.linear(name + "mlp.proj", F.gelu(x, approximate="tanh"))
        return h + self.gated(x, parts[5])


def turned(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


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
    sigma, dsigma = NOISE.total(t), NOISE.rate(t)
    xt = torch.where(u < -torch.expm1(-sigma)[:, None], book.mask, x0)
    logits = book.logits(xt, sigma)
    if form == "sedd":
        return (dsigma[:, None] * textbook_score_entropy(logits, xt, x0, sigma)).sum()
    log_p = textbook_subs(logits, xt).gather(-1, x0[..., None])[..., 0]
    return -((dsigma / torch.expm1(sigma))[:, None] * log_p).sum()


class TextbookTraining:
    """One step per call: noise, loss, backward, clipping, AdamW with its defaults, average."""

    def __init__(self, book: Textbook, ours: "Ours", form: str):
        self.book, self.form, self.x0 = book, form, ours.batch.ids.to(ours.device)
        self.params, self.updates, self.decay = list(book.w.values()), 0, ours.config.ema_decay
        self.ema = [p.detach().clone() for p in self.params]
        rate, betas = ours.config.learning_rate, (ours.config.beta1, ours.config.beta2)
        self.adamw = torch.optim.AdamW(self.params, rate, betas, weight_decay=0.0)

    def __call__(self) -> None:
        t, u = (torch.rand(n, device=self.x0.device) for n in (len(self.x0), self.x0.shape))
        t = TRAIN_EPS + (1 - TRAIN_EPS) * t
        (textbook_loss(self.book, self.x0, t, u, self.form) / self.x0.numel()).backward()
        self.update()

    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.adamw.step()
        self.adamw.zero_grad()
        self.average()

    @torch.no_grad()
    def average(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for ema, p in zip(self.ema, self.params, strict=True):
            ema.sub_((1 - decay) * (ema - p))


def textbook_draw(weights: Tensor, rng: torch.Generator) -> Tensor:
    """(B, L, V) -> (B, L): a race of exponential clocks over the vocabulary at every place."""
    u = torch.rand(weights.shape, generator=rng, device=weights.device)
    return (weights / (1e-10 - (u + 1e-10).log())).argmax(-1)


@torch.no_grad()
def textbook_analytic(book: Textbook, x: Tensor, steps: int, rng: Any) -> Iterator[Tensor]:
    """SEDD's Tweedie steps (Thm 4.2) from x (B, L), all MASK; the last one denoises."""
    total = [*NOISE.total(grid(steps)).tolist(), 0.0]
    for now, then in itertools.pairwise(total):
        sigma, grow = torch.full(x.shape[:1], now, device=x.device), math.exp(now - then)
        score = textbook_log_score(book.logits(x, sigma), x, sigma).exp()
        rest = (1 - grow) * score.sum(-1)
        score = grow * score
        score[..., -1] += rest
        masked = torch.where(x == book.mask, 1 - 1 / grow, 0.0)[..., None]
        weights = score * (F.one_hot(x, score.shape[-1]) / grow + masked)
        x = textbook_draw(weights[..., :-1] if then == 0 else weights, rng)
        yield x


@torch.no_grad()
def textbook_ddpm(book: Textbook, x: Tensor, steps: int, rng: Any) -> Iterator[Tensor]:
    """MDLM's ancestral steps from x (B, L), all MASK; what is left then takes its best token."""
    masked = (-torch.expm1(-NOISE.total(grid(steps)))).tolist()
    for now, then in itertools.pairwise(masked):
        weights = textbook_subs(book.logits(x, x[:, 0]), x).exp() * (now - then)
        weights[..., -1] = then
        x = torch.where(x == book.mask, textbook_draw(weights, rng), x)
        yield x
    yield textbook_subs(book.logits(x, x[:, 0]), x).argmax(-1)  # it has no use for noise levels


# ---- ours --------------------------------------------------------------------------------------


class Ours(NamedTuple):
    config: Config
    net: Transformer
    objective: ScoreEntropy
    batch: Batch
    device: torch.device


def build_ours(
    shape: Shape, cfg: BenchConfig, form: str = "sedd", dtype: str = "float32", fill: float = 0.02
) -> Ours:
    """Network, objective and a random batch. What starts at zero is filled with N(0, fill^2), so
    that no gate hides any work."""
    values = {k: v for k, v in shape._asdict().items() if k != "vocab"}
    config = Config(**values, normalize=form == "mdlm", dtype=dtype, schedule="constant")
    meta = {"vocab_size": shape.vocab, "specials": {"mask": shape.vocab - 1}}
    objective, device = build_objective(config, meta), pick_device(cfg.device)
    torch.manual_seed(cfg.seed)
    net = build_network(config, objective).to(device)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.normal_(std=fill)
    ids = torch.randint(shape.vocab - 1, (shape.batch_size, shape.block_size))
    length = torch.full_like(ids[:, 0], shape.block_size)
    return Ours(config, net, objective, Batch(ids, ids < 0, length), device)


def our_training(ours: Ours, cfg: BenchConfig) -> Callable[[], Any]:
    """One step of train.py per call."""
    config, net, objective, batch, device = ours
    for block in net.blocks if cfg.compile else ():
        block.compile()
    ema = {k: p.detach().clone() for k, p in net.named_parameters()}
    optimizers, module = make_optimizers(config, net, device), LossModule(net, objective)
    job = Run(config, World(0, 1, device), None, net, objective, module, optimizers, ema)
    job.batch = lambda split, order, number: batch  # instead of a corpus
    return lambda: train_step(job)


def our_sampling(ours: Ours, sampler: str, steps: int, rows: int, rng: Any) -> Tensor:
    """Write `rows` canvases -> ids (rows, L)."""
    ids = torch.zeros(rows, ours.config.block_size, dtype=torch.int64, device=ours.device)
    with autocast(ours.config, ours.device):
        options = SampleOptions(steps, sampler)
        frames = ours.objective.sample(ours.net, ids, ids < 0, rng, options)
        return deque(frames, maxlen=1).pop().ids


def counted(net: Transformer, call: Callable[[], Any]) -> dict[str, int]:
    """Make a call -> calls of the network, canvases in them, rows projected to logits."""
    canvases, rows = [], []
    hooks = (
        net.norm.register_forward_hook(lambda module, args, h: canvases.append(len(h))),
        net.head.register_forward_hook(lambda module, args, z: rows.append(z[..., 0].numel())),
    )
    call()
    for hook in hooks:
        hook.remove()
    return {"calls": len(canvases), "canvases": sum(canvases), "logit_rows": sum(rows)}


# ---- rows of the table -------------------------------------------------------------------------


def seconds(call: Callable[[], Any], times: int, device: torch.device) -> tuple[float, float]:
    """Wall and processor seconds of one of `times` calls."""
    cpu, clock = time.process_time(), time.perf_counter()
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
    for _ in range(times):
        call()
    wall = time.perf_counter() - clock
    if device.type == "cuda":
        end.record()
        torch.cuda.synchronize(device)
        wall = start.elapsed_time(end) / 1000
    return wall / times, (time.process_time() - cpu) / times


def duel(ours: Callable, theirs: Callable, cfg: BenchConfig, device: Any, share: float = 1) -> dict:
    """Two warm-ups of each side, then turns, ours first; `theirs` does `share` of a unit of work
    per call. All times are seconds per unit."""
    sides, turn = ((ours, 1.0), (theirs, share)), 0.02 if cfg.quick else 0.3
    first, wall, cpu = [seconds(side, 1, device)[0] for side, _ in sides], ([], []), ([], [])
    times = [math.ceil(turn / seconds(side, 1, device)[0]) for side, _ in sides]
    end = time.perf_counter() + cfg.budget
    while len(wall[0]) < cfg.rounds or time.perf_counter() < end:
        for i, (side, part) in enumerate(sides):
            w, c = seconds(side, times[i], device)
            wall[i].append(w / part)
            cpu[i].append(c / part)
    waited = device.type == "cpu" and sum(sum(c) for c in cpu) < 0.8 * sum(sum(w) for w in wall)
    return {
        "ratio": median(wall[1]) / median(wall[0]),
        "ratio_min": min(wall[1]) / min(wall[0]),
        "ratio_cpu": median(cpu[1]) / median(cpu[0]),
        **{f"{k}_s": median(w) for k, w in zip(("ours", "textbook"), wall, strict=True)},
        **{f"{k}_min_s": min(w) for k, w in zip(("ours", "textbook"), wall, strict=True)},
        **{f"{k}_first_s": s for k, s in zip(("ours", "textbook"), first, strict=True)},
        "rounds": len(wall[0]),
        "noisy": waited or max(max(w) / min(w) for w in wall) > 2,
    }


def machine_row(cfg: BenchConfig, name: str, dtype: str) -> dict:
    """What the machine can do: matrix products (the 100 % of mfu), copies, random numbers."""
    device, one = pick_device(cfg.device), partial(seconds, times=1, device=pick_device(cfg.device))
    x = torch.ones(1 << (22 if cfg.quick else 25), device=device)
    y = torch.empty_like(x)
    copy, rand = (min(one(f)[0] for _ in range(5)) for f in (partial(y.copy_, x), y.uniform_))
    return {
        "flops": gemm_peak(device, getattr(torch, dtype)),
        "copy_bytes_per_s": 8 * len(x) / copy,
        "random_per_s": len(x) / rand,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def equality_row(cfg: BenchConfig, name: str, form: str) -> dict:
    """Loss, gradients, and weights and average after an update with the same gradients."""
    ours = build_ours(SHAPES[name], cfg, form)
    theirs, params = TextbookTraining(Textbook(ours), ours, form), list(ours.net.parameters())
    [adamw], ema = make_optimizers(ours.config, ours.net, ours.device), [p.clone() for p in params]
    rng, ids = generator(cfg.seed), ours.batch.ids
    t = TRAIN_EPS + (1 - TRAIN_EPS) * stratified(len(ids), rng)
    noise = t.to(ours.device), torch.rand(ids.shape, generator=rng).to(ours.device)
    loss = ours.objective.loss(ours.net, ours.batch, generator(cfg.seed)).nats
    book_loss = textbook_loss(theirs.book, theirs.x0, *noise, form)
    loss.backward()
    book_loss.backward()
    names = [name for name, _ in ours.net.named_parameters()]

    def gap(mine: list[Tensor], other: list[Tensor]) -> float:
        mine = textbook_weights(dict(zip(names, mine, strict=True)))
        pairs = [(mine[k], b) for k, b in zip(theirs.book.w, other, strict=True)]
        return float(max((a - b).abs().max() for a, b in pairs) / max(b.abs().max() for b in other))

    gaps = {"loss": abs(float((loss - book_loss) / book_loss))}
    gaps["gradient"] = gap([p.grad for p in params], [p.grad for p in theirs.params])
    scale_gradients(params, torch.ones(()), 1.0)
    adamw.step()
    update_ema(ema, params, 1, ours.config)
    theirs.update()
    gaps["weights"], gaps["ema"] = gap(params, theirs.params), gap(ema, theirs.ema)
    return {"equal": max(gaps.values()) <= TOLERANCE, **gaps}


def law_row(cfg: BenchConfig, name: str, sampler: str) -> dict:
    """All texts of three places and five tokens, 20,000 from each side: chi-square of the two
    samples, texts seen less than ten times taken as one, at most five deviations above its mean."""
    shape = Shape(6, 3, 16, 1, 2, 1, sampler == "analytic")
    ours = build_ours(shape, cfg, FORMS[sampler], fill=0.3)
    rngs = [generator(cfg.seed, side, device=ours.device) for side in range(2)]
    start = torch.full((20000, 3), 5, device=ours.device)
    *_, theirs = WALKS[sampler](Textbook(ours), start, 6, rngs[0])
    places, sides = (
        torch.tensor([36, 6, 1]),
        (our_sampling(ours, sampler, 6, 20000, rngs[1]), theirs),
    )
    a, b = (torch.bincount(ids.cpu() @ places, minlength=216).double() for ids in sides)
    rare = a + b < 10
    a, b = (torch.cat([n[~rare], n[rare].sum()[None]]) for n in (a, b))
    chi2, dof = float(((a - b) ** 2 / (a + b).clamp(min=1)).sum()), len(a) - 1
    limit = dof + 5 * math.sqrt(2 * dof)
    return {"equal": chi2 <= limit, "chi2": chi2, "dof": dof, "limit": limit}


def train_row(cfg: BenchConfig, name: str, form: str, dtype: str) -> dict:
    ours = build_ours(SHAPES[name], cfg, form, dtype)
    theirs = TextbookTraining(Textbook(ours, cfg.dropout), ours, form)
    values = duel(our_training(ours, cfg), theirs, cfg, ours.device)
    values["tokens_per_s"] = ours.batch.ids.numel() / values["ours_s"]
    flops = ours.net.flops_per_token(ours.config.block_size) * values["tokens_per_s"]
    return {**values, "mfu": flops / gemm_peak(ours.device, getattr(torch, dtype))}


def sample_row(cfg: BenchConfig, name: str, steps: str, sampler: str, dtype: str) -> dict:
    """The textbook's steps all cost the same: four of them are timed, and scaled."""
    shape, rows, steps = SHAPES[name], SAMPLES[name][0], int(steps)
    shape = shape._replace(time_input=sampler == "analytic")
    ours = build_ours(shape, cfg, FORMS[sampler], dtype)
    book, rng, timed = Textbook(ours), generator(0, device=ours.device), min(steps + 1, 4)
    start = torch.full((rows, shape.block_size), book.mask, device=ours.device)

    def theirs() -> None:
        deque(itertools.islice(WALKS[sampler](book, start, steps, rng), timed), maxlen=0)

    call = partial(our_sampling, ours, sampler, steps, rows, rng)
    values = duel(call, theirs, cfg, ours.device, timed / (steps + 1))
    counts = {k: v / rows for k, v in counted(ours.net, call).items()}
    dense = {"textbook_calls": steps + 1, "textbook_rows": (steps + 1) * shape.block_size}
    return {**values, **counts, **dense}


def memory_row(cfg: BenchConfig, name: str, form: str) -> dict:
    """Most memory in two training steps above the built network; each side in a new process."""
    found = []
    for side in ("ours", "textbook"):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found.append(pool.submit(needed, cfg, name, form, side).result())
    return {"ratio": found[1] / found[0], "ours_bytes": found[0], "textbook_bytes": found[1]}


def needed(cfg: BenchConfig, name: str, form: str, side: str) -> int:
    ours = build_ours(SHAPES[name], cfg, form)
    book = Textbook(ours)
    before = resident("VmRSS", ours.device)
    step = our_training(ours, cfg) if side == "ours" else TextbookTraining(book, ours, form)
    step()
    step()
    return resident("VmHWM", ours.device) - before


def resident(key: str, device: torch.device) -> int:
    """Bytes now (VmRSS) or at the most (VmHWM); unlike getrusage, not those of the parent."""
    if device.type == "cuda":
        read = {"VmRSS": torch.cuda.memory_allocated, "VmHWM": torch.cuda.max_memory_allocated}
        return read[key](device)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def micro_row(cfg: BenchConfig, name: str, part: str) -> dict:
    ours = build_ours(SHAPES[name], cfg)
    theirs, params = TextbookTraining(Textbook(ours), ours, "sedd"), list(ours.net.parameters())
    for p in (*params, *theirs.params):
        p.grad = torch.randn_like(p)
    [adamw], ema = make_optimizers(ours.config, ours.net, ours.device), [p.clone() for p in params]
    if part == "ema":
        return duel(
            lambda: update_ema(ema, params, 1, ours.config), theirs.average, cfg, ours.device
        )
    return duel(adamw.step, theirs.adamw.step, cfg, ours.device)


# ---- the command -------------------------------------------------------------------------------
WALKS = {"analytic": textbook_analytic, "hop": textbook_ddpm}
FORMS = {"analytic": "sedd", "hop": "mdlm"}
