"""How fast is a GPU? `python -m bench.gpu --json=gpu.json`: at most eight minutes.

Steps of training beside those of a textbook GPT, sampling, a run that is resumed, and whether the
device computes what a CPU does. Data are random, so nothing is downloaded or prepared. A row that
would not end in time is skipped, with a line. On a CPU the sizes are tiny: it proves that it runs.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import train
from bench.speed import one_step
from checkpoint import OBJECTIVES, build_network, build_objective
from configurator import ROOT, Config, load, require, run
from corpus import Batch
from model import autocast, compile_network, pick_device, wants_compile
from objective import SampleOptions, generator
from parallel.fsdp import LossModule

SPECIALS = ("mask", "pad", "bos", "eos", "cls")  # the last ids of every vocabulary here
# operators of torch that compute nothing: views, and memory
FREE = set(
    "view as_strided as_strided_ _unsafe_view alias detach detach_ _reshape_alias reshape empty "
    "empty_strided empty_like new_empty resize_ set_ lift_fresh _local_scalar_dense is_nonzero "
    "item unbind split resolve_conj resolve_neg transpose permute unsqueeze squeeze expand "
    "expand_as select slice narrow to result_type t numpy_T mT mH flatten unflatten is_pinned "
    "_to_copy contiguous chunk".split()
)


@dataclass(frozen=True)
class GpuConfig:
    """The options of `bench/gpu.py`."""

    device: str = "auto"  # auto | cpu | cuda | cuda:N
    minutes: float = 8.0  # no row is begun that would end later, as far as the rows before tell
    rows: str = ""  # only rows whose names begin like one of these, separated by commas
    steps: int = 20  # timed steps of a row of training
    compile: bool = True  # False: as with --compile=False of train.py
    seed: int = 0  # of weights, data and noise
    json: str = ""  # file that gets the table

    def __post_init__(self):
        require(self, "steps", self.steps >= 1, "at least 1")
        require(self, "minutes", self.minutes > 0, "above 0")


class Shape(NamedTuple):
    """A row of training: options of Config, ids, and how long its texts are."""

    vocab: int
    shortest: int
    options: dict[str, Any]
    longest: int = 0  # 0: it fills the block


BODY = {"n_layer": 12, "n_head": 12, "n_embd": 768, "batch_size": 32, "block_size": 1024}
LEFT = {"objective": "ar", "time_input": False}
STARS = {"objective": "ilm", "time_input": False, "batch_size": 64, "block_size": 36}
SHAPES = {
    "ar": Shape(50_257, 1024, {**BODY, **LEFT}),
    "mdlm": Shape(50_258, 1024, {**BODY, "objective": "masked", "zero_time": True}),
    "sedd": Shape(50_258, 1024, {**BODY, "objective": "sedd", "dropout": 0.1}),
    "ilm": Shape(50_262, 64, {**BODY, "objective": "ilm", "time_input": False}, 569),
    "stars": Shape(104, 30, {**BODY, **STARS, "dropout": 0.1}),
    "demo": Shape(
        260,
        32,
        {"objective": "sedd", "normalize": True, "time_input": False, "positions": "learned"}
        | {"n_layer": 3, "n_head": 4, "n_embd": 64, "batch_size": 32, "block_size": 32}
        | {"gradient_accumulation_steps": 2, "optimizer": "muon", "ema_decay": 0.0},
    ),
}
# one number for all: what tiny sizes have in common
TINY = {"n_layer": 1, "n_head": 2, "n_embd": 16, "cond_dim": 8, "batch_size": 4, "block_size": 16}


def tiny(shape: Shape) -> Shape:
    return Shape(64, 8, {**shape.options, **TINY})


# ---- what is measured --------------------------------------------------------------------------


def random_batch(cfg: Config, shape: Shape, number: int) -> Batch:
    """Rows of random tokens and padding, from BOS on, which is given."""
    rng, size, V = generator(cfg.seed, number), (cfg.batch_size, cfg.block_size), shape.vocab
    most = shape.longest or cfg.block_size
    length = torch.randint(shape.shortest, most + 1, size[:1], generator=rng)
    ids, place = torch.randint(V - len(SPECIALS), size, generator=rng), torch.arange(size[1])
    ids = ids.masked_fill(place >= length[:, None], V - 2).masked_fill(place == 0, V - 3)
    return Batch(ids, (place == 0).expand(size), length)


def training_state(cfg: Config, shape: Shape, device: torch.device, compiled: bool) -> Any:
    """The state of train.py for this config, on random rows instead of a corpus."""
    specials = {name: shape.vocab - 1 - i for i, name in enumerate(SPECIALS)}
    objective = build_objective(cfg, {"vocab_size": shape.vocab, "specials": specials})
    torch.manual_seed(cfg.seed)
    net = build_network(cfg, objective).to(device).train()
    if compiled:
        compile_network(net)
    ema = {k: p.detach().clone() for k, p in net.named_parameters()} if cfg.ema_decay else {}
    optimizers = train.make_optimizers(cfg, net, device)
    world, module = train.World(0, 1, device), LossModule(net, objective)
    state = train.TrainState(cfg, world, None, net, objective, module, optimizers, ema)
    state.batch = lambda split, order, number: random_batch(cfg, shape, number)
    return state


def operators(call: Callable[[], Any], device: torch.device) -> int:
    """What a call starts: kernels and copies on a GPU; on a CPU operators that compute something,
    where a `foreach` or fused one counts once, as on a GPU, and so does a compiled kernel (with
    `torch._inductor.config.cpp.enable_kernel_profile`)."""
    activity, gpu = torch.profiler.ProfilerActivity, device.type == "cuda"
    with torch.profiler.profile(activities=[activity.CPU] + [activity.CUDA] * gpu) as profiler:
        call()
        wait(device)
    events = profiler.events()
    if gpu:
        kernels = (e for e in events if e.device_type == torch.autograd.DeviceType.CUDA)
        return sum("#" not in e.name for e in kernels)  # Optimizer.step#... is a range

    def started(event: Any) -> int:
        if event.name.startswith(("aten::_foreach", "aten::_fused")):
            return 1
        inside = sum(map(started, event.cpu_children))
        kernel = event.name.startswith("aten::") and event.name[6:] not in FREE
        return inside or int(kernel or "cpp_fused" in event.name)

    return sum(started(e) for e in events if e.cpu_parent is None)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(step: Callable[[], Any], steps: int, device: torch.device) -> dict[str, Any]:
    """ms and peak memory of a step after a third of as many, which compile; operators of one."""
    start = time.perf_counter()
    for _ in range(max(3, steps // 3)):
        step()
    wait(device)
    first, memory = time.perf_counter() - start, {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait(device)
    ms = (time.perf_counter() - start) / steps * 1000
    if device.type == "cuda":
        memory = {"peak_gb": torch.cuda.max_memory_allocated(device) / 1e9}
    return {"ms": ms, "first_s": first, **memory, "operators": operators(step, device)}


# ---- the yardstick -----------------------------------------------------------------------------


class TextbookGPT(nn.Module):
    """GPT-2 as everybody writes it: tied embeddings, learnt positions, a plain cross entropy over
    the whole vocabulary padded to a multiple of 64. ids (B, T) -> loss ()."""

    def __init__(self, vocab: int, cfg: Config):
        super().__init__()
        C, self.n_head = cfg.n_embd, cfg.n_head
        self.embed = nn.Embedding(-(-vocab // 64) * 64, C)
        self.place = nn.Embedding(cfg.block_size, C)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(C, bias=False),
                    "qkv": nn.Linear(C, 3 * C, bias=False),
                    "out": nn.Linear(C, C, bias=False),
                    "norm2": nn.LayerNorm(C, bias=False),
                    "fc": nn.Linear(C, 4 * C, bias=False),
                    "proj": nn.Linear(4 * C, C, bias=False),
                }
            )
            for _ in range(cfg.n_layer)
        )
        self.norm = nn.LayerNorm(C, bias=False)
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        B, T = ids.shape
        h = self.embed(ids) + self.place(torch.arange(T, device=ids.device))
        for block in self.blocks:
            qkv = block["qkv"](block["norm1"](h)).view(B, T, 3, self.n_head, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, d)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + block["out"](y.transpose(1, 2).reshape(B, T, -1))
            h = h + block["proj"](F.gelu(block["fc"](block["norm2"](h)), approximate="tanh"))
        logits = F.linear(self.norm(h), self.embed.weight)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


# ---- rows --------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """A method per kind of row -> its numbers."""

    cfg: GpuConfig
    device: torch.device
    compiled: bool

    def shape(self, name: str) -> Shape:
        return SHAPES[name] if self.device.type == "cuda" else tiny(SHAPES[name])

    def config(self, shape: Shape) -> Config:
        return Config(**shape.options, lr_schedule="constant", seed=self.cfg.seed)

    def textbook(self) -> dict[str, Any]:
        shape = self.shape("ar")
        cfg = self.config(shape)
        torch.manual_seed(cfg.seed)
        net = TextbookGPT(shape.vocab, cfg).to(self.device)
        adamw = torch.optim.AdamW(net.parameters(), fused=True)
        loss = torch.compile(net) if self.compiled else net
        size = cfg.batch_size, cfg.block_size
        ids = torch.randint(shape.vocab, size, device=self.device)

        def step() -> None:
            with autocast(cfg.dtype, self.device):
                nats = loss(ids)
            nats.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            adamw.step()
            adamw.zero_grad(set_to_none=True)

        return self.rate(timed(step, self.cfg.steps, self.device), cfg, net)

    def train(self, name: str) -> dict[str, Any]:
        shape = self.shape(name)
        cfg = self.config(shape)
        state = training_state(cfg, shape, self.device, self.compiled)
        got = timed(partial(train.train_step, state), self.cfg.steps, self.device)
        return self.rate(got, cfg, state.net)

    def rate(self, got: dict[str, Any], cfg: Config, net: nn.Module) -> dict[str, Any]:
        places = cfg.batch_size * cfg.gradient_accumulation_steps * cfg.block_size
        size = sum(p.numel() for p in net.parameters())
        return {"tokens_per_s": places / got["ms"] * 1000, **got, "parameters": size}

    def sample(self, name: str, sampler: str, steps: str) -> dict[str, Any]:
        """16 texts of a block, from BOS, by an untrained network, once before the clock starts.
        Compiled is left to right only, as with `sample.py --compile`."""
        shape = self.shape(name)
        cfg, rows = self.config(shape), 16
        static = self.compiled and name == "ar"
        state = training_state(cfg, shape, self.device, static)
        ids = torch.full((rows, cfg.block_size), shape.vocab - 3, device=self.device)
        given = (torch.arange(cfg.block_size, device=self.device) == 0).expand_as(ids)
        options = SampleOptions(int(steps), sampler)

        def write(seed: int) -> None:
            rng = generator(seed, device=self.device)
            with autocast(cfg.dtype, self.device):
                deque(state.objective.sample(state.net.eval(), ids, given, rng, options), 0)
            wait(self.device)

        write(0)
        start = time.perf_counter()
        write(1)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens_per_s": rows * cfg.block_size / seconds}

    def losses(self) -> dict[str, Any]:
        """Loss of every objective on the device, in the dtype that it trains in, beside that on a
        CPU in float32, from equal weights and noise: the largest relative difference."""
        worst = {}
        for name in sorted(OBJECTIVES.keys() - {"xlnet"}):  # whose network is of transformers
            more = {"noise": "geometric"} if name == "idlm" else {}
            more |= {"block_length": 4} if name == "bd3" else {}
            shape = Shape(64, 8, {**TINY, "n_embd": 64, "objective": name, **more})
            sums = []
            for device in (torch.device("cpu"), self.device):
                state = training_state(self.config(shape), shape, device, False)
                for i, p in enumerate(state.net.parameters()):
                    p.data = 0.1 * torch.randn(p.shape, generator=generator(1, i))
                    p.data = p.data.to(device)
                noisy = state.noisy(0)
                with autocast("auto", device):
                    sums.append(state.objective.loss(state.net, noisy).sum.item())
            worst[name] = abs(sums[1] / sums[0] - 1)
        limit = 0.02 if self.device.type == "cuda" else 1e-6  # bfloat16 has 8 bits
        return {"equal": max(worst.values()) <= limit, "difference": max(worst.values()), **worst}

    def resume(self) -> dict[str, Any]:
        """train.py on the device, stopped after two of four steps and resumed, beside a run that
        was not: the relative difference of their losses."""
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(ROOT / "train.py"), *one_step(folder)]
            command += [f"--device={self.device}", "--log_interval=1", "--lr_schedule=constant"]
            for name, steps, start in (
                ("whole", 4, "scratch"),
                ("parts", 2, "scratch"),
                ("parts", 4, "resume"),
            ):
                out = [f"--out_dir={folder}/{name}", f"--max_iters={steps}", f"--init_from={start}"]
                subprocess.run([*command, *out], check=True, stdout=subprocess.DEVNULL)
            whole, parts = (
                [x["loss"] for x in train.log_lines(Path(folder, name, "log.jsonl")) if "loss" in x]
                for name in ("whole", "parts")
            )
        assert len(whole) == len(parts) == 4
        gap = max(abs(b / a - 1) for a, b in zip(whole, parts, strict=True))
        return {"equal": gap <= 1e-3, "difference": gap}

    def tests(self) -> dict[str, Any]:
        """The tests that look for waits within a step."""
        files = [str(ROOT / "tests" / "test_device.py")]
        command = [sys.executable, "-m", "pytest", "-n0", "-q", *files]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return {"equal": done.returncode == 0, "said": done.stdout.strip().splitlines()[-1:]}


def plan() -> Iterator[tuple[str, ...]]:
    """The rows in order: kind, and the arguments of its method. Those that matter most come
    first."""
    yield ("losses",)
    yield ("textbook",)
    for name in ("ar", "mdlm", "sedd", "ilm", "stars", "demo"):
        yield "train", name
    yield "sample", "ar", "left_to_right", "1"
    yield "sample", "mdlm", "ancestral", "128"
    yield "sample", "mdlm", "first_hitting", "128"
    yield ("resume",)
    yield ("tests",)


def machine(device: torch.device) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {"device": gpu or f"CPU, {torch.get_num_threads()} threads", "torch": torch.__version__}


def main(argv: list[str]) -> None:
    cfg, _ = load(GpuConfig, argv)
    begun, device = time.perf_counter(), pick_device(cfg.device)
    compiled = cfg.compile and wants_compile("true", device)
    rows, bad = Rows(cfg, device, compiled), []
    table: dict[str, Any] = {"machine": {**machine(device), "compiled": compiled}}
    print(json.dumps(table["machine"]), flush=True)
    longest = 0.0  # seconds of a row
    for kind, *words in plan():
        name = " ".join([kind, *words])
        if not name.startswith(tuple(cfg.rows.split(","))):
            continue
        start = time.perf_counter()
        if start - begun + longest > 60 * cfg.minutes:
            table[name] = {"skipped": f"not begun after {start - begun:.0f} s"}
        else:
            table[name] = getattr(rows, kind)(*words)
            torch._dynamo.reset()
            longest = max(longest, time.perf_counter() - start)
        result = table[name]
        if not result.get("equal", True):
            bad.append(name)
        cells = (f"{k} {v:,.4g}" if type(v) is float else f"{k} {v}" for k, v in result.items())
        print(f"{name:<32}" + "  ".join(cells), flush=True)
    table["machine"]["seconds"] = time.perf_counter() - begun
    if cfg.json:
        Path(cfg.json).write_text(json.dumps(table, indent=1) + os.linesep)
    if bad:
        raise SystemExit("differs from a CPU, or failed: " + "; ".join(bad))


if __name__ == "__main__":
    run(main)
