"""How fast is it? Our training step and samplers beside a textbook of the same maths, in one run.

    python bench.py --threads=2        # all rows: the better part of an hour on two cores
    python bench.py --rows=equality,train --shapes=demo --budget=5 --json=bench.jsonl --gate

The textbook follows the published SEDD (arXiv 2310.16834) and MDLM (arXiv 2406.07524) from our
weights: all scores, as much noise in samplers, an average by a loop, plain AdamW. Rows of equality
come first and decide the exit code; then both take turns, and ratio 1.5 says that the textbook
takes 1.5 times our time (or memory).
"""

import json
import math
import os
import time
from collections import deque, namedtuple
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise, product
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, Callable, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from build import autocast, build_network, build_objective, gemm_peak, pick_device
from configurator import Config, load, require, run
from corpus import Batch
from diffusion import grid
from noise import LogLinear
from objective import SampleOptions, generator, stratified
from optimize import make_optimizers, update_ema
from train import LossModule, Run, World, train_step

KINDS = "equality train sample memory micro".split()
TOLERANCE = 1e-5  # of the loss, of the largest gradient, of the largest weight
NOISE, LOW = LogLinear(), LogLinear.lowest
keys = "vocab block_size n_embd n_layer n_head batch_size time_input positions"  # as in Config
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
    "train gpt2": {"sedd float32": 3.3},
    "sample palindrome": {"ancestral 64 float32": 2.5, "ancestral 64 bfloat16": 4.5}
    | {"ancestral 1024 float32": 20},
    "sample gpt2": {"analytic 16 float32": 6, "ancestral 16 float32": 10}
    | {"ancestral 16 bfloat16": 16},
    "memory gpt2": {"sedd": 1 / 0.6, "mdlm": 1 / 0.45},
    "micro gpt2": {"ema": 5, "adamw": 4},
}


@dataclass(frozen=True)
class BenchConfig:
    """Everything that `bench.py` can be told."""

    rows: str = ",".join(KINDS)  # kinds of rows
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
        for key, known in (("rows", KINDS), ("shapes", SHAPES)):
            rule = "a comma-separated choice of " + ", ".join(known)
            require(self, key, set(getattr(self, key).split(",")) <= set(known), rule)


# ---- the textbook ------------------------------------------------------------------------------


def textbook_weights(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of our weights or gradients: a modulation per block, and the last in the output."""
    copies = {k: v.detach().clone() for k, v in named.items() if not k.startswith("modulation")}
    for name in named.keys() - copies.keys():
        for i, part in enumerate(named[name].detach().split(6 * len(named["norm.weight"]))):
            copies[f"blocks.{i}.{name}"] = part.clone()
    return copies


class Textbook:
    """The published network, losses, training step and samplers. V counts MASK, the last id."""

    def __init__(self, ours: "Ours"):
        self.net, self.config = ours.net, ours.config
        self.mask, self.w = ours.net.vocab_size - 1, textbook_weights(ours.net.state_dict())
        self.params, self.updates = [p.requires_grad_() for p in self.w.values()], 0
        self.ema = [p.detach().clone() for p in self.params]
        self.adamw = torch.optim.AdamW(self.params, 3e-4, (0.9, 0.95), weight_decay=0.0)

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
        if self.config.time_input:
            c = F.silu(self.linear("time.fc", self.net.time.sinusoids(sigma)))
            c = F.silu(self.linear("time.proj", c))
        cos, sin = self.net.rotation(torch.arange(ids.shape[1], device=ids.device)[None])
        cos, sin = torch.cat([cos, cos], -1).squeeze(), torch.cat([-sin, sin], -1).squeeze()
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
        at_x0 = log_score.gather(-1, x0[masked][:, None])[:, 0]
        entropy = torch.zeros(xt.shape, device=xt.device)
        entropy[masked] += log_score[:, :-1].exp().sum(-1) - r * at_x0 + r * (r.log() - 1)
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
        t, u = (torch.rand(n, device=x0.device) for n in (len(x0), x0.shape))
        (self.loss(x0, LOW + (1 - LOW) * t, u) / x0.numel()).backward()
        torch.nn.utils.clip_grad_norm_(self.params, self.config.grad_clip)
        self.adamw.step()
        self.adamw.zero_grad()
        self.average()

    def average(self) -> None:
        self.updates += 1
        decay = min(self.config.ema_decay, (1 + self.updates) / (10 + self.updates))
        for ema, p in zip(self.ema, self.params, strict=True):
            ema.sub_((1 - decay) * (ema - p.detach()))

    def draw(self, weights: Tensor, rng: torch.Generator) -> Tensor:
        """(B, L, V) -> (B, L): a race of exponential clocks over the vocabulary at every place."""
        u = torch.rand(weights.shape, generator=rng, device=weights.device)
        return (weights / (1e-10 - (u + 1e-10).log())).argmax(-1)

    @torch.no_grad()
    def analytic(self, x: Tensor, steps: int, rng: torch.Generator) -> Iterator[Tensor]:
        """SEDD's Tweedie steps (Thm 4.2) from x (B, L), all MASK; the last one denoises."""
        for now, then in pairwise([*NOISE.total(grid(steps)).tolist(), 0.0]):
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
        for now, then in pairwise((-torch.expm1(-NOISE.total(grid(steps)))).tolist()):
            weights = self.log_p(x, x[:, 0]).exp() * (now - then)  # this network is not told time
            weights[..., -1] = then
            x = torch.where(x == self.mask, self.draw(weights, rng), x)
            yield x
        yield self.log_p(x, x[:, 0]).argmax(-1)


FORMS = {"analytic": ("sedd", Textbook.analytic), "ancestral": ("mdlm", Textbook.ddpm)}


class Ours:
    """Network, objective and a random batch. Zeros become N(0, fill^2): no gate hides any work."""

    def __init__(self, cfg: BenchConfig, shape: Shape, form: str, dtype="float32", fill=0.02):
        values = {k: v for k, v in shape._asdict().items() if k != "vocab"}
        self.config = Config(**values, normalize=form == "mdlm", dtype=dtype, schedule="constant")
        meta = {"vocab_size": shape.vocab, "specials": {"mask": shape.vocab - 1}}
        self.objective, self.device = build_objective(self.config, meta), pick_device(cfg.device)
        torch.manual_seed(cfg.seed)
        self.net = build_network(self.config, self.objective).to(self.device)
        for p in self.net.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=fill)
        ids = torch.randint(shape.vocab - 1, (shape.batch_size, shape.block_size))
        self.batch, self.x0 = Batch(ids, ids < 0, (ids >= 0).sum(1)), ids.to(self.device)

    def training(self) -> Callable[[], Any]:
        """One step of train.py per call, compiled where train.py does so by itself."""
        for block in self.net.blocks if self.device.type == "cuda" else ():
            block.compile()
        ema = {k: p.detach().clone() for k, p in self.net.named_parameters()}
        world, module = World(0, 1, self.device), LossModule(self.net, self.objective)
        adamw = make_optimizers(self.config, self.net, self.device)
        job = Run(self.config, world, None, self.net, self.objective, module, adamw, ema)
        job.batch = lambda split, order, number: self.batch  # instead of a corpus
        return partial(train_step, job)

    def sampling(self, sampler: str, steps: int, rows: int, rng: torch.Generator) -> Tensor:
        """Write `rows` canvases -> ids (rows, L)."""
        ids = torch.zeros(rows, self.config.block_size, dtype=torch.int64, device=self.device)
        with autocast(self.config.dtype, self.device):
            options = SampleOptions(steps, sampler)
            frames = self.objective.sample(self.net, ids, ids < 0, rng, options)
            return deque(frames, maxlen=1).pop().ids

    def counted(self, call: Callable[[], Any]) -> dict[str, int]:
        """Make a call -> calls of the network, canvases in them, rows projected to logits."""
        canvases, rows = [], []
        body = self.net.norm.register_forward_hook(lambda *a: canvases.append(len(a[2])))
        head = self.net.head.register_forward_hook(lambda *a: rows.append(a[2][..., 0].numel()))
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


def resident(key: str, cuda: Callable[[], int]) -> int:
    """Bytes. Of /proc on a CPU, for getrusage counts what our parent had when it started us."""
    if torch.cuda.is_initialized():
        return cuda()
    return 1024 * int(Path("/proc/self/status").read_text().split(key)[1].split()[0])


class Rows(NamedTuple):
    """A method per kind: shape and the words of the variant -> what the row tells."""

    cfg: BenchConfig

    def duel(self, ours: Callable, theirs: Callable, share: float = 1) -> dict[str, Any]:
        """Two warm-ups of each side, then turns; a call of `theirs` does `share` of the work."""
        sides, turn = ((ours, 1.0), (theirs, share)), 0.02 if self.cfg.quick else 0.3
        first, wall, cpu = [seconds(side)[0] / part for side, part in sides], ([], []), ([], [])
        times = [math.ceil(turn / seconds(side)[0]) for side, _ in sides]
        end = time.perf_counter() + self.cfg.budget
        while len(wall[0]) < max(self.cfg.rounds, 1) or time.perf_counter() < end:
            for i, (side, part) in enumerate(sides):
                w, c = seconds(side, times[i])
                wall[i].append(w / part)
                cpu[i].append(c / part)
        found = {"rounds": len(wall[0]), "ratio": median(wall[1]) / median(wall[0])}
        found |= {"ratio_min": min(wall[1]) / min(wall[0]), "ratio_cpu": sum(cpu[1]) / sum(cpu[0])}
        for name, w, s in zip(("ours", "textbook"), wall, first, strict=True):
            found |= {f"{name}_s": median(w), f"{name}_min_s": min(w), f"{name}_first_s": s}
        return {**found, "noisy": max(max(w) / min(w) for w in wall) > 2}

    def machine(self, name: str, dtype: str) -> dict[str, Any]:
        """What the machine can do: matrix products (100 % of mfu), bytes copied, random numbers."""
        device, threads = pick_device(self.cfg.device), torch.get_num_threads()
        x = torch.ones(1 << (22 if self.cfg.quick else 25), device=device)
        jobs = partial(torch.empty_like(x).copy_, x), partial(torch.rand_like, x)
        copy, draw = (len(x) / min(seconds(job)[0] for _ in range(5)) for job in jobs)
        flops = gemm_peak(device, dtype)
        return {"threads": threads, "flops": flops, "copied_per_s": 8 * copy, "drawn_per_s": draw}

    def equality(self, name: str, form: str) -> dict[str, Any]:
        """Loss and gradients, relative to the largest; or for a sampler, the law of its texts."""
        if form in FORMS:
            return self.law(form)
        ours = Ours(self.cfg, SHAPES[name], form)
        book, rng = Textbook(ours), generator(self.cfg.seed)
        t, u = stratified(len(ours.x0), rng), torch.rand(ours.x0.shape, generator=rng)
        a = ours.objective.loss(ours.net, ours.batch, generator(self.cfg.seed)).nats
        b = book.loss(ours.x0, (LOW + (1 - LOW) * t).to(ours.device), u.to(ours.device))
        (a + b).backward()
        grads = textbook_weights({k: p.grad for k, p in ours.net.named_parameters()})
        worst = max(float((grads[k] - p.grad).abs().max()) for k, p in book.w.items())
        gradient = worst / max(float(p.grad.abs().max()) for p in book.params)
        loss = abs(a.item() / b.item() - 1)
        return {"equal": max(loss, gradient) <= TOLERANCE, "loss": loss, "gradient": gradient}

    def law(self, sampler: str) -> dict[str, Any]:
        """20,000 short texts from each: chi-square, rare ones as one, within five deviations."""
        form, walk = FORMS[sampler]
        ours = Ours(self.cfg, Shape(6, 3, 16, 1, 2, 1, form == "sedd"), form, fill=0.3)
        rngs = [generator(self.cfg.seed, side, device=ours.device) for side in range(2)]
        *_, theirs = walk(Textbook(ours), torch.full((20000, 3), 5, device=ours.device), 6, rngs[0])
        both, places = (ours.sampling(sampler, 6, 20000, rngs[1]), theirs), torch.tensor([36, 6, 1])
        a, b = (torch.bincount(ids.cpu() @ places, minlength=216).double() for ids in both)
        rare = a + b < 10
        a, b = (torch.cat([n[~rare], n[rare].sum()[None]]) for n in (a, b))
        chi2, dof = ((a - b) ** 2 / (a + b).clamp(min=1)).sum().item(), len(a) - 1
        limit = dof + 5 * math.sqrt(2 * dof)
        return {"equal": chi2 <= limit, "chi2": chi2, "dof": dof, "limit": limit}

    def train(self, name: str, form: str, dtype: str) -> dict[str, Any]:
        ours = Ours(self.cfg, SHAPES[name], form, dtype)
        found = self.duel(ours.training(), partial(Textbook(ours).step, ours.x0))
        rate = ours.x0.numel() / found["ours_s"]
        flops = rate * ours.net.flops_per_token(ours.config.block_size)
        mfu = flops / gemm_peak(ours.device, dtype)
        return {**found, "tokens_per_s": rate, "mfu": mfu}

    def sample(self, name: str, sampler: str, steps: str, dtype: str) -> dict[str, Any]:
        """Every step costs the textbook the same: only four are timed. Counters are per sample."""
        shape, (form, walk), steps = SHAPES[name], FORMS[sampler], int(steps)
        ours = Ours(self.cfg, shape._replace(time_input=form == "sedd"), form, dtype)
        rng, rows = generator(0, device=ours.device), 4 if name == "gpt2" else shape.batch_size
        start = torch.full((rows, shape.block_size), shape.vocab - 1, device=ours.device)
        book, timed = Textbook(ours), min(steps + 1, 4)
        call = partial(ours.sampling, sampler, steps, rows, rng)
        found = self.duel(
            call,
            lambda: deque(islice(walk(book, start, steps, rng), timed), 0),
            timed / (steps + 1),
        )
        found |= {k: v / rows for k, v in ours.counted(call).items()}
        return {**found, "textbook_logit_rows": (steps + 1) * shape.block_size}

    def memory(self, name: str, form: str) -> dict[str, Any]:
        """Most memory in two training steps above the built network, each in a new process."""
        found = {}
        for side in ("ours", "textbook"):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                found[f"{side}_bytes"] = pool.submit(self.needed, name, form, side).result()
        return {"ratio": found["textbook_bytes"] / found["ours_bytes"], **found}

    def needed(self, name: str, form: str, side: str) -> int:
        Ours(self.cfg, SHAPES["tiny"], form).training()()  # loads libraries
        ours = Ours(self.cfg, SHAPES[name], form)
        before = resident("VmRSS:", torch.cuda.memory_allocated)
        step = ours.training() if side == "ours" else partial(Textbook(ours).step, ours.x0)
        copies = (side != "ours") * sum(p.nbytes for p in ours.net.parameters())  # the textbook's
        step()
        step()
        return resident("VmHWM:", torch.cuda.max_memory_allocated) - before - copies

    def micro(self, name: str, part: str) -> dict[str, Any]:
        ours = Ours(self.cfg, SHAPES[name], "sedd")
        book, params = Textbook(ours), list(ours.net.parameters())
        for p in (*params, *book.params):
            p.grad = torch.randn_like(p)
        if part == "adamw":
            [adamw] = make_optimizers(ours.config, ours.net, ours.device)
            return self.duel(adamw.step, book.adamw.step)
        ema = [p.detach().clone() for p in params]
        return self.duel(partial(update_ema, ema, params, 100, ours.config), book.average)


def plan(cfg: BenchConfig) -> Iterator[tuple[str, str, str]]:
    """(kind, shape, variant) of the rows in order; the words of a variant are arguments."""
    shapes, both, forms = cfg.shapes.split(","), ("float32", "bfloat16"), ("sedd", "mdlm")
    yield from product(["machine"], [""], both)
    yield from product(["equality"], dict.fromkeys(["tiny", *shapes]), forms)
    yield from product(["equality"], ["tiny"], FORMS)
    for name in shapes:
        yield from product(["train"], [name], ("sedd float32", "sedd bfloat16", "mdlm float32"))
        for steps in STEPS.get(name, []):  # without ancestral, a thousand steps take minutes
            yield from product(["sample"], [name], [f"analytic {steps} float32"] * (steps <= 64))
            yield from product(["sample"], [name], (f"ancestral {steps} {dtype}" for dtype in both))
        if SHAPES[name].vocab > 10000 or cfg.quick:
            yield from product(["memory"], [name], forms * Path("/proc").exists())  # read there
            yield from product(["micro"], [name], ("ema", "adamw"))


def main(argv: list[str]) -> None:
    cfg, _ = load(BenchConfig, argv)
    cfg = replace(cfg, shapes="tiny", budget=0.0, rounds=2) if cfg.quick else cfg
    torch.set_num_threads(cfg.threads or torch.get_num_threads())
    if cfg.profile:
        step = Ours(cfg, SHAPES[cfg.shapes.split(",")[0]], "sedd").training()
        with torch.profiler.profile() as profiler:
            step()
        profiler.export_chrome_trace(cfg.profile)
    info, bad = Path("/proc/cpuinfo"), []  # avx512_bf16 or amx_bf16 is what it takes
    fast = pick_device(cfg.device).type == "cuda" or (info.exists() and "_bf16" in info.read_text())
    with open(cfg.json or os.devnull, "w") as file:
        for kind, name, variant in plan(cfg):
            if kind not in ("machine", *cfg.rows.split(",")):
                continue
            found = {"skipped": "no bfloat16 units"}
            if fast or "bfloat16" not in variant:
                found = getattr(Rows(cfg), kind)(name, *variant.split())
            row = {"kind": kind, "shape": name, "variant": variant}
            print(json.dumps(row | found), file=file, flush=True)
            cells = (f"{k} {v:.4g}" if type(v) is float else f"{k} {v}" for k, v in found.items())
            print(f"{kind:<9}{name:<14}{variant:<20}" + "  ".join(cells), flush=True)
            target = TARGETS.get(f"{kind} {name}", {}).get(variant, 0.0)
            if not found.get("equal", True) or (cfg.gate and found.get("ratio", target) < target):
                bad.append(f"{kind} {name} {variant}")
    if bad:
        raise SystemExit("differs, or is too slow: " + "; ".join(bad))


if __name__ == "__main__":
    run(main)
