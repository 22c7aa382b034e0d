"""How fast is it? Our training step and samplers beside a textbook of the same maths, in one run.

    python bench.py                              # all rows: half an hour on two cores
    python bench.py --rows=equality,train --shapes=demo --budget=5 --threads=1
    python bench.py --json=bench.jsonl --gate    # also fail below the speed targets

The textbook follows the published SEDD (arXiv 2310.16834) and MDLM (arXiv 2406.07524) and starts
from our weights: scores of all places over the whole vocabulary, in samplers as much noise, an
average updated one parameter at a time, AdamW as it comes. Rows of equality come first, and decide
the exit code; then both sides take turns. ratio 1.5: the textbook takes 1.5 times our time (or
memory). Times depend on the machine and its other users, ratios less, counters not at all.
"""

import itertools
import json
import math
import os
import re
import time
from collections import deque, namedtuple
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from build import build_network, build_objective, gemm_peak, pick_device
from configurator import Config, load, require, run
from corpus import Batch
from diffusion import TRAIN_EPS, LogLinear, grid
from model import ROTARY_BASE, Transformer
from objective import SampleOptions, generator, stratified
from optimize import make_optimizers, update_ema
from train import LossModule, Run, World, autocast, train_step

TOLERANCE = 1e-5  # of the loss, of the largest gradient, of the largest weight
NOISE = LogLinear()
# a network and its batch, in terms of Config; MASK is the last id of the vocabulary
keys = "vocab block_size n_embd n_layer n_head batch_size time_input positions"
Shape = namedtuple("Shape", keys, defaults=(True, "rotary"))
SHAPES = {
    "tiny": Shape(41, 8, 32, 2, 4, 8),
    "demo": Shape(260, 32, 64, 4, 4, 64, False, "learned"),
    "palindrome": Shape(260, 32, 256, 12, 8, 64),
    "gpt2": Shape(50258, 128, 256, 6, 8, 8),
    "palindrome768": Shape(260, 32, 768, 12, 12, 64),
    "gpt2_768": Shape(50258, 128, 768, 12, 12, 2),
}
STEPS = {"tiny": [4], "palindrome": [16, 64, 1024], "gpt2": [16]}  # of samplers
TARGETS = {  # what --gate asks of a ratio
    "train palindrome": {"sedd float32": 1.2, "sedd bfloat16": 1.8},
    "train palindrome768": {"sedd bfloat16": 2.8},
    "train gpt2": {"sedd float32": 3.3},
    "train gpt2_768": {"sedd float32": 2.2},
    "sample palindrome": {"hop 64 float32": 2.5, "hop 64 bfloat16": 4.5, "hop 1024 float32": 20},
    "sample gpt2": {"analytic 16 float32": 6, "hop 16 float32": 10, "hop 16 bfloat16": 16},
    "memory gpt2": {"sedd": 1 / 0.6, "mdlm": 1 / 0.45},
    "micro gpt2": {"ema": 5, "adamw": 4},
}
Ours = namedtuple("Ours", "config net objective batch device")


@dataclass(frozen=True)
class BenchConfig:
    """Everything that `bench.py` can be told."""

    rows: str = "equality,train,sample,memory,micro"  # kinds of rows
    shapes: str = "demo,palindrome,gpt2"  # networks; also palindrome768, gpt2_768 and tiny
    quick: bool = False  # the tiny network and short turns: proves that it runs
    budget: float = 10.0  # seconds per row, more if the turns need them
    rounds: int = 5  # turns of each side, at least
    threads: int = 0  # CPU threads; 0 leaves torch's own choice
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    seed: int = 0  # of weights, data and noise
    gate: bool = False  # exit with 1 if a ratio is below its target
    json: str = ""  # file that gets one line per row
    profile: str = ""  # file that gets a chrome trace of our training step, before the rows

    def __post_init__(self):
        for key, known in (("rows", ROWS), ("shapes", SHAPES)):
            rule = "a comma-separated choice of " + ", ".join(known)
            require(self, key, set(getattr(self, key).split(",")) <= set(known), rule)
        require(self, "rounds", self.rounds >= 1, "at least 1")


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
    """The published network, losses, training step and samplers. V counts MASK, the last id."""

    def __init__(self, ours: Ours):
        self.config, self.time = ours.config, ours.net.time
        self.mask, self.w = ours.net.vocab_size - 1, textbook_weights(ours.net.state_dict())
        self.params, self.updates = [p.requires_grad_() for p in self.w.values()], 0
        self.ema = [p.detach().clone() for p in self.params]
        rate, betas = self.config.learning_rate, (self.config.beta1, self.config.beta2)
        self.adamw = torch.optim.AdamW(self.params, rate, betas, weight_decay=0.0)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[name + ".weight"], self.w.get(name + ".bias"))

    def norm(self, name: str, x: Tensor, shift: Any = None, scale: Any = None) -> Tensor:
        x = F.layer_norm(x.float(), x.shape[-1:]) * self.w[name + ".weight"]
        return x if shift is None else x * (1 + scale) + shift

    def logits(self, ids: Tensor, sigma: Tensor) -> Tensor:
        """ids (B, L), noise levels (B,) -> (B, L, V). Its autocast, as theirs, is for GPUs only."""
        h, c, last = F.embedding(ids, self.w["embed.weight"]), None, [None] * 2
        if "place.weight" in self.w:
            h = h + self.w["place.weight"][: ids.shape[1]]
        if self.time is not None:
            c = F.silu(self.linear("time.fc", self.time.sinusoids(sigma)))
            c = F.silu(self.linear("time.proj", c))
        half = torch.arange(h.shape[-1] // self.config.n_head // 2, device=ids.device)
        angle = torch.arange(ids.shape[1], device=ids.device)[:, None] * (
            ROTARY_BASE ** -(half / len(half))
        )
        cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([-angle.sin(), angle.sin()], -1)
        fast = ids.is_cuda and self.config.dtype == "bfloat16"
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=fast):
            for i in range(self.config.n_layer):
                h = self.block(f"blocks.{i}.", h, c, cos, sin)
            if c is not None:
                last = self.linear(f"blocks.{i + 1}.modulation", c)[:, None].chunk(2, -1)
            return self.linear("head", self.norm("norm", h, *last)).float()

    def block(self, name: str, h: Tensor, c: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
        (B, L, C), parts = h.shape, [None] * 6
        if c is not None:  # shift, scale, gate of both branches, each (B, 1, C)
            parts = self.linear(name + "modulation", c)[:, None].chunk(6, -1)
        x = self.linear(name + "attn.qkv", self.norm(name + "norm1", h, *parts[:2]))
        q, k, v = x.view(B, L, 3, self.config.n_head, -1).permute(2, 0, 3, 1, 4)  # (B, H, L, C / H)
        if self.config.positions == "rotary":
            swap = partial(torch.roll, shifts=cos.shape[1] // 2, dims=-1)  # of the halves
            q, k = q * cos + swap(q) * sin, k * cos + swap(k) * sin
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, L, C)
        x = self.linear(name + "attn.proj", x)
        h = h + (x if c is None else parts[2] * x)
        x = self.linear(name + "mlp.fc", self.norm(name + "norm2", h, *parts[3:5]))
        x = self.linear(name + "mlp.proj", F.gelu(x, approximate="tanh"))
        return h + (x if c is None else parts[5] * x)

    def log_score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """SEDD's output (B, L, V): scaled by sigma (B,), and 0 at the token itself."""
        s = self.logits(x, sigma) - torch.expm1(sigma).log()[:, None, None] - math.log(self.mask)
        return s.scatter(-1, x[..., None], 0.0)

    def log_p(self, x: Tensor, sigma: Tensor) -> Tensor:
        """MDLM's output (B, L, V): log-probabilities, none for MASK; what is there stays."""
        logits, there = self.logits(x, sigma), x != self.mask
        logits[..., -1] = -1e6
        log_p = logits - logits.logsumexp(-1, keepdim=True)
        log_p[there] = -1e6
        log_p[there, x[there]] = 0
        return log_p

    def score_entropy(self, xt: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
        """(B, L): sum_y s_y - r log s_x0 + r (log r - 1) where masked, r = 1 / (e^sigma - 1)."""
        log_score, masked = self.log_score(xt, sigma), xt == self.mask
        log_score, r = log_score[masked], (1 / torch.expm1(sigma))[:, None].expand_as(xt)[masked]
        negative = r * log_score.gather(-1, x0[masked][:, None])[:, 0]
        positive = log_score[:, :-1].exp().sum(-1)
        entropy = torch.zeros(xt.shape, device=xt.device)
        entropy[masked] += positive - negative + r * (r.log() - 1)
        return entropy

    def loss(self, x0: Tensor, t: Tensor, u: Tensor) -> Tensor:
        """Sum () over x0 (B, L) at times t (B,); a token is masked where u (B, L) is small."""
        sigma, rate = NOISE.total(t), NOISE.rate(t)[:, None]
        xt = torch.where(u < -torch.expm1(-sigma)[:, None], self.mask, x0)
        if not self.config.normalize:
            return (rate * self.score_entropy(xt, x0, sigma)).sum()
        log_p = self.log_p(xt, sigma).gather(-1, x0[..., None])[..., 0]
        return -(rate / torch.expm1(sigma)[:, None] * log_p).sum()

    def step(self, x0: Tensor) -> None:
        """One update from a batch x0 (B, L)."""
        t, u = (torch.rand(n, device=x0.device) for n in (len(x0), x0.shape))
        (self.loss(x0, TRAIN_EPS + (1 - TRAIN_EPS) * t, u) / x0.numel()).backward()
        torch.nn.utils.clip_grad_norm_(self.params, self.config.grad_clip)
        self.adamw.step()
        self.adamw.zero_grad()
        self.average()

    @torch.no_grad()
    def average(self) -> None:
        self.updates += 1
        decay = min(self.config.ema_decay, (1 + self.updates) / (10 + self.updates))
        for ema, p in zip(self.ema, self.params, strict=True):
            ema.sub_((1 - decay) * (ema - p))

    def draw(self, weights: Tensor, rng: torch.Generator) -> Tensor:
        """(B, L, V) -> (B, L): a race of exponential clocks over the vocabulary at every place."""
        u = torch.rand(weights.shape, generator=rng, device=weights.device)
        return (weights / (1e-10 - (u + 1e-10).log())).argmax(-1)

    @torch.no_grad()
    def analytic(self, x: Tensor, steps: int, rng: torch.Generator) -> Iterator[Tensor]:
        """SEDD's Tweedie steps (Thm 4.2) from x (B, L), all MASK; the last one denoises."""
        for now, then in itertools.pairwise([*NOISE.total(grid(steps)).tolist(), 0.0]):
            sigma, grow = torch.full(x.shape[:1], now, device=x.device), math.exp(now - then)
            score = self.log_score(x, sigma).exp()
            rest, score = (1 - grow) * score.sum(-1), grow * score
            score[..., -1] += rest
            masked = torch.where(x == self.mask, 1 - 1 / grow, 0.0)[..., None]
            weights = score * (F.one_hot(x, score.shape[-1]) / grow + masked)
            x = self.draw(weights[..., :-1] if then == 0 else weights, rng)
            yield x

    @torch.no_grad()
    def ddpm(self, x: Tensor, steps: int, rng: torch.Generator) -> Iterator[Tensor]:
        """MDLM's ancestral steps from x (B, L), all MASK; what is left takes its best token."""
        masked = -torch.expm1(-NOISE.total(grid(steps)))
        for now, then in itertools.pairwise(masked.tolist()):
            weights = self.log_p(x, x[:, 0]).exp() * (now - then)  # this network is not told time
            weights[..., -1] = then
            x = torch.where(x == self.mask, self.draw(weights, rng), x)
            yield x
        yield self.log_p(x, x[:, 0]).argmax(-1)


FORMS = {"analytic": ("sedd", Textbook.analytic), "hop": ("mdlm", Textbook.ddpm)}

# ---- ours, and the rows of the table -----------------------------------------------------------


def build_ours(
    cfg: BenchConfig, shape: Shape, form: str, dtype: str = "float32", fill: float = 0.02
) -> Ours:
    """Network, objective, a batch. Zeros become N(0, fill^2), so that no gate hides any work."""
    values = {k: v for k, v in shape._asdict().items() if k != "vocab"}
    config = Config(**values, normalize=form == "mdlm", dtype=dtype, schedule="constant")
    meta = {"vocab_size": shape.vocab, "specials": {"mask": shape.vocab - 1}}
    objective, device = build_objective(config, meta), pick_device(cfg.device)
    torch.manual_seed(cfg.seed)
    net = build_network(config, objective).to(device)
    for p in net.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=fill)
    ids = torch.randint(shape.vocab - 1, (shape.batch_size, shape.block_size))
    length = torch.full_like(ids[:, 0], shape.block_size)
    return Ours(config, net, objective, Batch(ids, ids < 0, length), device)


def our_training(ours: Ours) -> Callable[[], Any]:
    """One step of train.py per call, compiled where train.py does so by itself."""
    config, net, objective, batch, device = ours
    for block in net.blocks if device.type == "cuda" else ():
        block.compile()
    ema = {k: p.detach().clone() for k, p in net.named_parameters()}
    optimizers, module = make_optimizers(config, net, device), LossModule(net, objective)
    job = Run(config, World(0, 1, device), None, net, objective, module, optimizers, ema)
    job.batch = lambda split, order, number: batch  # instead of a corpus
    return partial(train_step, job)


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
    body = net.norm.register_forward_hook(lambda module, args, h: canvases.append(len(h)))
    head = net.head.register_forward_hook(lambda module, args, z: rows.append(z[..., 0].numel()))
    call()
    body.remove()
    head.remove()
    return {"calls": len(canvases), "canvases": sum(canvases), "logit_rows": sum(rows)}


def seconds(call: Callable[[], Any], times: int = 1) -> tuple[float, float]:
    """Wall and processor seconds of one of `times` calls."""
    cpu, clock = time.process_time(), time.perf_counter()
    for _ in range(times):
        call()
    if torch.cuda.is_initialized():  # idle before: every measurement ends here
        torch.cuda.synchronize()
    return (time.perf_counter() - clock) / times, (time.process_time() - cpu) / times


def duel(cfg: BenchConfig, ours: Callable, theirs: Callable, share: float = 1) -> dict:
    """Two warm-ups of each side, then turns; `theirs` does `share` of a unit of work per call."""
    sides, turn = ((ours, 1.0), (theirs, share)), 0.02 if cfg.quick else 0.3
    first, wall, cpu = [seconds(side)[0] for side, _ in sides], ([], []), ([], [])
    times = [math.ceil(turn / seconds(side)[0]) for side, _ in sides]
    end = time.perf_counter() + cfg.budget
    while len(wall[0]) < cfg.rounds or time.perf_counter() < end:
        for i, (side, part) in enumerate(sides):
            w, c = seconds(side, times[i])
            wall[i].append(w / part)
            cpu[i].append(c / part)
    found = {"ratio": median(wall[1]) / median(wall[0]), "ratio_min": min(wall[1]) / min(wall[0])}
    found["ratio_cpu"] = sum(cpu[1]) / sum(cpu[0])
    for name, w, s in zip(("ours", "textbook"), wall, first, strict=True):
        found |= {f"{name}_s": median(w), f"{name}_min_s": min(w), f"{name}_first_s": s}
    waited = sum(map(sum, cpu)) < 0.8 * sum(map(sum, wall)) and not torch.cuda.is_initialized()
    noisy = waited or max(max(w) / min(w) for w in wall) > 2
    return {**found, "rounds": len(wall[0]), "noisy": noisy}


def machine_row(cfg: BenchConfig, name: str, dtype: str) -> dict:
    """What the machine can do: matrix products (100 % of mfu), bytes copied, random numbers."""
    device = pick_device(cfg.device)
    x = torch.ones(1 << (22 if cfg.quick else 25), device=device)
    jobs = partial(torch.empty_like(x).copy_, x), partial(torch.rand_like, x)
    copy, draw = (min(seconds(job)[0] for _ in range(5)) for job in jobs)
    found = {"threads": torch.get_num_threads(), "flops": gemm_peak(device, getattr(torch, dtype))}
    return {**found, "copied_per_s": 8 * len(x) / copy, "drawn_per_s": len(x) / draw}


def equality_row(cfg: BenchConfig, name: str, form: str) -> dict:
    """Loss and gradients, relative to the largest; or for a sampler, the law of its texts."""
    if form in FORMS:
        return law_row(cfg, form)
    ours = build_ours(cfg, SHAPES[name], form)
    book, x0, rng = Textbook(ours), ours.batch.ids, generator(cfg.seed)
    t, u = stratified(len(x0), rng), torch.rand(x0.shape, generator=rng)
    noise = (x.to(ours.device) for x in (x0, TRAIN_EPS + (1 - TRAIN_EPS) * t, u))
    a = ours.objective.loss(ours.net, ours.batch, generator(cfg.seed)).nats
    b = book.loss(*noise)
    (a + b).backward()
    grads = textbook_weights({k: p.grad for k, p in ours.net.named_parameters()})
    worst = max((grads[k] - p.grad).abs().max() for k, p in book.w.items())
    gaps = {"loss": abs(a.item() / b.item() - 1)}
    gaps["gradient"] = (worst / max(p.grad.abs().max() for p in book.params)).item()
    return {"equal": max(gaps.values()) <= TOLERANCE, **gaps}


def law_row(cfg: BenchConfig, sampler: str) -> dict:
    """20,000 texts of three places and five tokens from each side, in six steps: chi-square of the
    two, texts seen less than ten times taken as one, at most five deviations above its mean."""
    form, walk = FORMS[sampler]
    ours = build_ours(cfg, Shape(6, 3, 16, 1, 2, 1, form == "sedd"), form, fill=0.3)
    rngs = [generator(cfg.seed, side, device=ours.device) for side in range(2)]
    *_, theirs = walk(Textbook(ours), torch.full((20000, 3), 5, device=ours.device), 6, rngs[0])
    texts = our_sampling(ours, sampler, 6, 20000, rngs[1]), theirs
    numbers = [ids.cpu() @ torch.tensor([36, 6, 1]) for ids in texts]
    a, b = (torch.bincount(n, minlength=216).double() for n in numbers)
    rare = a + b < 10
    a, b = (torch.cat([n[~rare], n[rare].sum()[None]]) for n in (a, b))
    chi2, dof = ((a - b) ** 2 / (a + b).clamp(min=1)).sum().item(), len(a) - 1
    limit = dof + 5 * math.sqrt(2 * dof)
    return {"equal": chi2 <= limit, "chi2": chi2, "dof": dof, "limit": limit}


def train_row(cfg: BenchConfig, name: str, form: str, dtype: str) -> dict:
    ours = build_ours(cfg, SHAPES[name], form, dtype)
    theirs = partial(Textbook(ours).step, ours.batch.ids.to(ours.device))
    found = duel(cfg, our_training(ours), theirs)
    rate = ours.batch.ids.numel() / found["ours_s"]
    flops = rate * ours.net.flops_per_token(ours.config.block_size)
    peak = gemm_peak(ours.device, getattr(torch, dtype))
    return {**found, "tokens_per_s": rate, "mfu": flops / peak}


def sample_row(cfg: BenchConfig, name: str, sampler: str, steps: str, dtype: str) -> dict:
    """Every step costs the textbook the same: only four are timed. Counters are per sample."""
    shape, (form, walk), steps = SHAPES[name], FORMS[sampler], int(steps)
    ours = build_ours(cfg, shape._replace(time_input=form == "sedd"), form, dtype)
    rng, rows = generator(0, device=ours.device), 4 if name == "gpt2" else shape.batch_size
    start = torch.full((rows, shape.block_size), shape.vocab - 1, device=ours.device)
    book, timed = Textbook(ours), min(steps + 1, 4)
    call = partial(our_sampling, ours, sampler, steps, rows, rng)

    def theirs() -> None:
        deque(itertools.islice(walk(book, start, steps, rng), timed), maxlen=0)

    found = duel(cfg, call, theirs, timed / (steps + 1))
    found |= {k: v / rows for k, v in counted(ours.net, call).items()}
    return {**found, "textbook_logit_rows": (steps + 1) * shape.block_size}


def memory_row(cfg: BenchConfig, name: str, form: str) -> dict:
    """Most memory in two training steps above the built network; each side in a new process."""
    found = {}
    for side in ("ours", "textbook"):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found[f"{side}_bytes"] = pool.submit(needed, cfg, name, form, side).result()
    return {"ratio": found["textbook_bytes"] / found["ours_bytes"], **found}


def needed(cfg: BenchConfig, name: str, form: str, side: str) -> int:
    our_training(build_ours(cfg, SHAPES["tiny"], form))()  # loads libraries
    ours = build_ours(cfg, SHAPES[name], form)
    before = resident("VmRSS", torch.cuda.memory_allocated)
    step, copies = our_training(ours), 0
    if side == "textbook":
        step = partial(Textbook(ours).step, ours.batch.ids.to(ours.device))
        copies = sum(p.nbytes for p in ours.net.parameters())  # of the network, which is built
    step()
    step()
    return resident("VmHWM", torch.cuda.max_memory_allocated) - before - copies


def resident(key: str, cuda: Callable[[], int]) -> int:
    """Bytes. Of /proc on a CPU, for getrusage counts what our parent had when it started us."""
    if torch.cuda.is_initialized():
        return cuda()
    return 1024 * int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def micro_row(cfg: BenchConfig, name: str, part: str) -> dict:
    ours = build_ours(cfg, SHAPES[name], "sedd")
    book, params = Textbook(ours), list(ours.net.parameters())
    for p in (*params, *book.params):
        p.grad = torch.randn_like(p)
    if part == "ema":
        ema = [p.detach().clone() for p in params]
        return duel(cfg, partial(update_ema, ema, params, 100, ours.config), book.average)
    return duel(cfg, make_optimizers(ours.config, ours.net, ours.device)[0].step, book.adamw.step)


# ---- the command -------------------------------------------------------------------------------

ROWS = {
    f.__name__.removesuffix("_row"): f
    for f in (machine_row, equality_row, train_row, sample_row, memory_row, micro_row)
}


def plan(cfg: BenchConfig) -> Iterator[tuple[str, str, str]]:
    """(kind, shape, variant) of the rows in order; the words of a variant are arguments."""
    shapes, both = cfg.shapes.split(","), ("float32", "bfloat16")
    yield from (("machine", "", dtype) for dtype in both)
    for name in dict.fromkeys(["tiny", *shapes]):
        yield from (("equality", name, form) for form in ("sedd", "mdlm"))
    yield from (("equality", "tiny", sampler) for sampler in FORMS)
    for name in shapes:
        yield from (("train", name, v) for v in ("sedd float32", "sedd bfloat16", "mdlm float32"))
        for steps in STEPS.get(name, []):
            if steps <= 64:  # without hop, a thousand steps take minutes
                yield "sample", name, f"analytic {steps} float32"
            yield from (("sample", name, f"hop {steps} {dtype}") for dtype in both)
        if SHAPES[name].vocab > 10000 or cfg.quick:
            yield from (("memory", name, form) for form in ("sedd", "mdlm"))
            yield from (("micro", name, part) for part in ("ema", "adamw"))


def main(argv: list[str]) -> None:
    cfg, _ = load(BenchConfig, argv)
    cfg = replace(cfg, shapes="tiny", budget=0.0, rounds=2) if cfg.quick else cfg
    torch.set_num_threads(cfg.threads or torch.get_num_threads())
    if cfg.profile:
        step = our_training(build_ours(cfg, SHAPES[cfg.shapes.split(",")[0]], "sedd"))
        with torch.profiler.profile() as profiler:
            step()
        profiler.export_chrome_trace(cfg.profile)
    info, bad = Path("/proc/cpuinfo"), []  # avx512_bf16 or amx_bf16 is what it takes
    fast = pick_device(cfg.device).type == "cuda" or (info.exists() and "_bf16" in info.read_text())
    with open(cfg.json or os.devnull, "w") as file:
        for kind, name, variant in plan(cfg):
            if kind not in cfg.rows.split(",") and kind != "machine":
                continue
            found = {"skipped": "no bfloat16 units"}
            if fast or "bfloat16" not in variant:
                found = ROWS[kind](cfg, name, *variant.split())
            row = {"kind": kind, "shape": name, "variant": variant}
            print(json.dumps(row | found), file=file, flush=True)
            cells = (
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()
            )
            print(f"{kind:<9}{name:<14}{variant:<20}" + "  ".join(cells), flush=True)
            target = TARGETS.get(f"{kind} {name}", {}).get(variant, 0.0)
            if not found.get("equal", True) or (cfg.gate and found.get("ratio", target) < target):
                bad.append(f"{kind} {name} {variant}")
    if bad:
        raise SystemExit("differs, or is too slow: " + "; ".join(bad))


if __name__ == "__main__":
    run(main)
