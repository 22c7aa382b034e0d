"""How fast is it? Our training step and samplers beside a textbook of the same maths, in one run.

    python -m bench --threads=2        # all rows: the better part of an hour on two cores
    python -m bench --rows=equality,train --shapes=demo --budget=5 --json=bench.jsonl --gate

The textbook follows the published SEDD (arXiv 2310.16834) and MDLM (arXiv 2406.07524) from our
weights: all scores, as much noise in samplers, an average by a loop, plain AdamW. Rows of equality
come first and decide the exit code; then both take turns, and ratio 1.5 says that the textbook
takes 1.5 times our time (or memory).
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import deque, namedtuple
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice, product
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, Callable, Iterator, NamedTuple

import torch
from torch import Tensor

from bench.textbook import Textbook, textbook, textbook_weights
from checkpoint import build_network, build_objective
from configurator import ROOT, Config, load, require, run
from corpus import Batch, CorpusWriter
from model import autocast, compile_network, gemm_peak, pick_device
from objective import SampleOptions, generator
from parallel.fsdp import LossModule
from tokenizer import Symbols
from train import TrainState, World, make_optimizers, train_step, update_ema

KINDS = "equality start loss train sample memory micro".split()
TOLERANCE = 1e-5  # of the loss, of the largest gradient, of the largest weight
keys = "vocab block_size n_embd n_layer n_head batch_size time_input positions"  # as in Config
Shape = namedtuple("Shape", keys, defaults=(True, "rotary"))
SHAPES = {
    "tiny": Shape(41, 8, 32, 2, 4, 8),
    "demo": Shape(260, 32, 64, 4, 4, 64, False, "learned"),
    "palindrome": Shape(260, 32, 256, 12, 8, 64),
    "gpt2": Shape(50258, 128, 256, 6, 8, 8),
    "palindrome768": Shape(260, 32, 768, 12, 12, 64),
    "gpt2_768": Shape(50258, 128, 768, 12, 12, 2),
    "ilm": Shape(30522, 128, 256, 6, 8, 8, False),
}
STEPS = {"tiny": [4], "palindrome": [16, 64, 1024], "gpt2": [16]}  # of samplers
NOMINAL = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bfloat16 FLOP/s
TARGETS = {  # what --gate asks of a ratio
    "train palindrome": {"sedd float32": 1.3, "sedd bfloat16": 2.2},
    "train palindrome768": {"sedd bfloat16": 2.9},
    "train gpt2": {"sedd float32": 3.7},
    "train gpt2_768": {"sedd float32": 2.3},
    "sample palindrome": {"ancestral 64 float32": 2.8, "ancestral 64 bfloat16": 4.5}
    | {"ancestral 1024 float32": 20},
    "sample gpt2": {"analytic 16 float32": 7, "ancestral 16 float32": 12}
    | {"ancestral 16 bfloat16": 18},
    "memory gpt2": {"sedd": 1 / 0.6, "mdlm": 1 / 0.45},
    "micro gpt2": {"ema": 5, "adamw": 4},
    "loss ilm": {"ilm float32": 1.8},
}


@dataclass(frozen=True)
class BenchConfig:
    """The options of `bench/speed.py`."""

    rows: str = ",".join(KINDS)  # kinds of rows
    shapes: str = "demo,palindrome,gpt2,ilm"  # networks; also palindrome768, gpt2_768 and tiny
    quick: bool = False  # the tiny network and short turns: proves that it runs
    budget: float = 10.0  # seconds per row, more if the turns need them
    rounds: int = 5  # turns of each side, at least
    threads: int = 0  # CPU threads; 0 leaves torch's own choice
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    seed: int = 0  # of weights, data and noise
    dropout: float = 0.0  # of the textbook in rows of training; the published recipes have 0.1
    gate: bool = False  # exit with 1 if a ratio is below its target
    json: str = ""  # file that gets one line per row
    profile: str = ""  # file that gets a chrome trace of our training step, before the rows

    def __post_init__(self):
        for key, choices in (("rows", KINDS), ("shapes", SHAPES)):
            rule = "a comma-separated choice of " + ", ".join(choices)
            require(self, key, set(getattr(self, key).split(",")) <= set(choices), rule)
        require(self, "dropout", 0 <= self.dropout < 1, "at least 0 and below 1")


FORMS = {"analytic": ("sedd", Textbook.analytic), "ancestral": ("mdlm", Textbook.ddpm)}


class Ours:
    """Network, objective and a random batch. Zero weights become N(0, fill^2), so that no gate
    skips work."""

    def __init__(self, cfg: BenchConfig, shape: Shape, form: str, dtype="float32", fill=0.02):
        values = {k: v for k, v in shape._asdict().items() if k != "vocab"}
        values |= {"time_input": False, "objective": "ilm"} if form == "ilm" else {}
        self.config = Config(
            **values, normalize=form == "mdlm", dtype=dtype, lr_schedule="constant"
        )
        V, names = shape.vocab, ("mask",) if form != "ilm" else ("mask", "pad", "bos", "cls")
        meta = {"vocab_size": V, "specials": {name: V - 1 - i for i, name in enumerate(names)}}
        self.objective, self.device = build_objective(self.config, meta), pick_device(cfg.device)
        torch.manual_seed(cfg.seed)
        self.net = build_network(self.config, self.objective).to(self.device)
        for p in self.net.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=fill)
        ids = torch.randint(V - len(names), (shape.batch_size, shape.block_size))
        given = torch.zeros_like(ids, dtype=torch.bool)
        if form == "ilm":
            ids[:, 0], given[:, 0] = meta["specials"]["bos"], True
        self.batch, self.x0 = Batch(ids, given, (ids >= 0).sum(1)), ids.to(self.device)

    def training(self) -> Callable[[], Any]:
        """One step of train.py per call, compiled where train.py does so by itself."""
        if self.device.type == "cuda":
            compile_network(self.net)
        ema = {k: p.detach().clone() for k, p in self.net.named_parameters()}
        world, module = World(0, 1, self.device), LossModule(self.net, self.objective)
        adamw = make_optimizers(self.config, self.net, self.device)
        job = TrainState(self.config, world, None, self.net, self.objective, module, adamw, ema)
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
        return {"nfe": len(canvases), "canvases": sum(canvases), "logit_rows": sum(rows)}


def seconds(call: Callable[[], Any], times: int = 1) -> tuple[float, float]:
    """Wall seconds, on a GPU between two events there, and processor seconds of one of `times`
    calls."""
    gpu = torch.cuda.is_initialized()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * gpu)]
    cpu, clock = time.process_time(), time.perf_counter()
    for event in events[:1]:  # idle before: every measurement ends in a synchronisation
        event.record()
    for _ in range(times):
        call()
    wall = time.perf_counter() - clock
    if gpu:
        events[1].record()
        torch.cuda.synchronize()
        wall = events[0].elapsed_time(events[1]) / 1000
    return wall / times, (time.process_time() - cpu) / times


def nominal(device: torch.device) -> dict[str, Any]:
    """Name of a GPU, and its dense bfloat16 FLOP/s by its data sheet; {} for a CPU."""
    if device.type != "cuda":
        return {}
    name = torch.cuda.get_device_name(device)
    rates = [rate for kind, rate in NOMINAL.items() if kind in name]
    return {"gpu": name, "nominal": rates[0]} if rates else {"gpu": name}


def one_step(folder: str) -> list[str]:
    """Writes a corpus -> arguments of train.py for one step of a tiny network on it."""
    tokenizer = Symbols(list("ab"))
    with CorpusWriter(Path(folder, "tiny"), tokenizer, task="text", source="bench") as out:
        for split in ("train", "val"):
            out.row(split, [tokenizer.specials["bos"], *tokenizer.encode("abba")], prompt=1)
    options = {"data_dir": folder, "dataset": "tiny", "out_dir": f"{folder}/run", "max_iters": 1}
    options |= {"block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 32, "batch_size": 4}
    return [f"--{k}={v}" for k, v in {**options, "eval_iters": 1, "demo": ""}.items()]


def resident(key: str, cuda: Callable[[], int]) -> int:
    """Resident bytes: of /proc on a CPU, as getrusage includes the parent's memory at our start."""
    if torch.cuda.is_initialized():
        return cuda()
    return 1024 * int(Path("/proc/self/status").read_text().split(key)[1].split()[0])


class Rows(NamedTuple):
    """A method per kind: shape and variant -> the numbers of the row."""

    cfg: BenchConfig

    def duel(self, ours: Callable, theirs: Callable, share: float = 1) -> dict[str, Any]:
        """Two warm-up calls of each side, then alternating calls; a call of `theirs` does `share`
        of the work."""
        sides, turn = ((ours, 1.0), (theirs, share)), 0.02 if self.cfg.quick else 0.3
        first, wall, cpu = [seconds(side)[0] / part for side, part in sides], ([], []), ([], [])
        times = [math.ceil(turn / seconds(side)[0]) for side, _ in sides]
        end = time.perf_counter() + self.cfg.budget
        while len(wall[0]) < max(self.cfg.rounds, 1) or time.perf_counter() < end:
            for i, (side, part) in enumerate(sides):
                w, c = seconds(side, times[i])
                wall[i].append(w / part)
                cpu[i].append(c / part)
        result = {"rounds": len(wall[0]), "ratio": median(wall[1]) / median(wall[0])}
        result |= {"ratio_min": min(wall[1]) / min(wall[0]), "ratio_cpu": sum(cpu[1]) / sum(cpu[0])}
        for name, w, s in zip(("ours", "textbook"), wall, first, strict=True):
            result |= {f"{name}_s": median(w), f"{name}_min_s": min(w), f"{name}_first_s": s}
        return {**result, "noisy": max(max(w) / min(w) for w in wall) > 2}

    def machine(self, name: str, dtype: str) -> dict[str, Any]:
        """Speed of the machine: matrix products (100 % of mfu), bytes copied, random numbers."""
        device, threads = pick_device(self.cfg.device), torch.get_num_threads()
        x = torch.ones(1 << (22 if self.cfg.quick else 25), device=device)
        jobs = partial(torch.empty_like(x).copy_, x), partial(torch.rand_like, x)
        copy, draw = (len(x) / min(seconds(job)[0] for _ in range(5)) for job in jobs)
        flops = gemm_peak(device, dtype)
        rates = {"flops": flops, "copied_per_s": 8 * copy, "drawn_per_s": draw}
        return {"threads": threads, **rates, **nominal(device)}

    def equality(self, name: str, form: str) -> dict[str, Any]:
        """Loss and gradients, relative to the largest; or for a sampler, the distribution of its
        texts."""
        if form in FORMS:
            return self.law(form)
        ours = Ours(self.cfg, SHAPES[name], form)
        book = textbook(ours)
        a = ours.objective.loss(
            ours.net, ours.objective.corrupt(ours.batch, generator(self.cfg.seed))
        ).sum
        b = book.replayed(self.cfg.seed)
        (a + b).backward()
        grads = textbook_weights({k: p.grad for k, p in ours.net.named_parameters()})
        worst = max(float((grads[k] - p.grad).abs().max()) for k, p in book.w.items())
        gradient = worst / max(float(p.grad.abs().max()) for p in book.params)
        loss = abs(a.item() / b.item() - 1)
        return {"equal": max(loss, gradient) <= TOLERANCE, "loss": loss, "gradient": gradient}

    def law(self, sampler: str) -> dict[str, Any]:
        """20,000 short texts from each sampler: chi-square, rare texts as one class, within five
        deviations."""
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

    def start(self, name: str, what: str) -> dict[str, Any]:
        """Seconds of a new process: torch alone, the help of train.py, or its run of one step."""
        script, times = str(ROOT / "train.py"), []
        with tempfile.TemporaryDirectory() as folder:
            words = {"torch": ["-c", "import torch"], "help": [script, "-h"]}
            words["step"] = [script, *one_step(folder), f"--device={self.cfg.device}"]
            for i in range(1 if self.cfg.quick else 3):
                more = [f"--out_dir={folder}/{i}"] if what == "step" else []
                clock, before = time.perf_counter(), sum(os.times()[2:4])
                command = [sys.executable, *words[what], *more]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                times.append((time.perf_counter() - clock, sum(os.times()[2:4]) - before))
        wall, cpu = map(median, zip(*times, strict=True))
        return {"seconds": wall, "cpu_s": cpu}

    def loss(self, name: str, form: str, dtype: str) -> dict[str, Any]:
        """Loss and gradients, without the optimiser."""
        ours = Ours(self.cfg, SHAPES[name], form, dtype)
        book, steps = textbook(ours), count(1)

        def mine() -> None:
            ours.net.zero_grad(set_to_none=True)
            with autocast(dtype, ours.device):
                loss = ours.objective.loss(
                    ours.net, ours.objective.corrupt(ours.batch, generator(next(steps)))
                )
            (loss.sum / loss.count).backward()

        def theirs() -> None:
            book.adamw.zero_grad()
            book.gradients()

        return self.duel(mine, theirs)

    def train(self, name: str, form: str, dtype: str) -> dict[str, Any]:
        ours = Ours(self.cfg, SHAPES[name], form, dtype)
        book = textbook(ours)
        book.dropout = self.cfg.dropout
        result = self.duel(ours.training(), book.step)
        rate = ours.x0.numel() / result["ours_s"]
        flops = rate * ours.net.flops_per_token(ours.config.block_size)
        result |= {"tokens_per_s": rate, "mfu": flops / gemm_peak(ours.device, dtype)}
        promised = nominal(ours.device).get("nominal")
        more = {"mfu_nominal": flops / promised} if promised and dtype == "bfloat16" else {}
        return result | more

    def sample(self, name: str, sampler: str, steps: str, dtype: str) -> dict[str, Any]:
        """Every step costs the textbook the same, so only four are timed. Counters are per
        sample."""
        shape, (form, walk), steps = SHAPES[name], FORMS[sampler], int(steps)
        ours = Ours(self.cfg, shape._replace(time_input=form == "sedd"), form, dtype)
        rng, rows = generator(0, device=ours.device), 4 if name == "gpt2" else shape.batch_size
        start = torch.full((rows, shape.block_size), shape.vocab - 1, device=ours.device)
        book, timed = Textbook(ours), min(steps + 1, 4)
        call = partial(ours.sampling, sampler, steps, rows, rng)
        result = self.duel(
            call,
            lambda: deque(islice(walk(book, start, steps, rng), timed), 0),
            timed / (steps + 1),
        )
        result |= {k: v / rows for k, v in ours.counted(call).items()}
        return {**result, "textbook_logit_rows": (steps + 1) * shape.block_size}

    def memory(self, name: str, form: str) -> dict[str, Any]:
        """Peak memory of two training steps above that of the built network, each in a new
        process."""
        result = {}
        for side in ("ours", "textbook"):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                result[f"{side}_bytes"] = pool.submit(self.needed, name, form, side).result()
        return {"ratio": result["textbook_bytes"] / result["ours_bytes"], **result}

    def needed(self, name: str, form: str, side: str) -> int:
        Ours(self.cfg, SHAPES["tiny"], form).training()()  # loads libraries
        ours = Ours(self.cfg, SHAPES[name], form)
        before = resident("VmRSS:", torch.cuda.memory_allocated)
        step = ours.training() if side == "ours" else textbook(ours).step
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
    shapes, both = cfg.shapes.split(","), ("float32", "bfloat16")
    forms = {"tiny": ("sedd", "mdlm", "ilm"), "ilm": ("ilm",)}
    forms = {name: forms.get(name, ("sedd", "mdlm")) for name in ("tiny", *shapes)}
    yield from product(["machine"], [""], both)
    for name in forms:
        yield from product(["equality"], [name], forms[name])
    yield from product(["equality"], ["tiny"], FORMS)
    yield from product(["start"], [""], ("torch", "help", "step"))
    for name in shapes:
        variants = [f"{form} {dtype}" for form in forms[name] for dtype in both]
        yield from product(["loss"], [name], [v for v in variants if "ilm" in v])
        yield from product(["train"], [name], [v for v in variants if v != "mdlm bfloat16"])
        for steps in STEPS.get(name, []):  # without ancestral, a thousand steps take minutes
            yield from product(["sample"], [name], [f"analytic {steps} float32"] * (steps <= 64))
            yield from product(["sample"], [name], (f"ancestral {steps} {dtype}" for dtype in both))
        if SHAPES[name].vocab > 10000 or cfg.quick:
            yield from product(["memory"], [name], forms[name] * Path("/proc").exists())
            yield from product(["micro"], [name], ("ema", "adamw") * ("sedd" in forms[name]))


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
    with open(cfg.json or os.devnull, "w", encoding="utf-8") as file:
        for kind, name, variant in plan(cfg):
            if kind not in ("machine", *cfg.rows.split(",")):
                continue
            result = {"skipped": "no bfloat16 units"}
            if fast or "bfloat16" not in variant:
                result = getattr(Rows(cfg), kind)(name, *variant.split())
            row = {"kind": kind, "shape": name, "variant": variant}
            print(json.dumps(row | result), file=file, flush=True)
            cells = (f"{k} {v:.4g}" if type(v) is float else f"{k} {v}" for k, v in result.items())
            print(f"{kind:<9}{name:<14}{variant:<20}" + "  ".join(cells), flush=True)
            target = TARGETS.get(f"{kind} {name}", {}).get(variant, 0.0)
            if not result.get("equal", True) or (cfg.gate and result.get("ratio", target) < target):
                bad.append(f"{kind} {name} {variant}")
    if bad:
        raise SystemExit("differs, or is too slow: " + "; ".join(bad))


if __name__ == "__main__":
    run(main)
