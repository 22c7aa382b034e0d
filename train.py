"""Train any objective: python train.py config/palindrome.py

    python train.py config/star_tiny.py config/objective/ilm.py --max_iters=500
    torchrun --standalone --nproc_per_node=4 train.py config/palindrome_pretrain.py
    python train.py config/palindrome_finetune.py --init_from=out/palindrome_pretrain/ckpt.pt
    python train.py config/palindrome.py --init_from=resume --max_iters=2500

A run writes out_dir/config.json, log.jsonl (one object per line) and ckpt.pt; with
--snapshot_interval also numbered checkpoints, which stay, and with --sample_interval samples.jsonl.
Every draw derives
from (seed, stream, step, micro-batch): a run resumes exactly, is the same on 1 or 4 processes, and
does not depend on how often it is evaluated. A run that is there already is not replaced, unless
with --overwrite.

--init_from=auto goes on where there is a checkpoint. Else it begins with the weights that it names,
auto:WEIGHTS, or that the config file names; or from scratch.

Before a long run: --debug=overfit learns one row by heart, until its bound is near 0, and fails if
it cannot; --debug=multinode compares the first losses of one process and of two nodes, on the CPU.

From another folder: config files are looked for there and then beside train.py; data/ and out/ are
below the folder that one is in.
"""

import contextlib
import dataclasses
import difflib
import gc
import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Callable, ContextManager, Iterable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

import checkpoint
from checkpoint import Model, build_network, build_objective
from configurator import (
    Config,
    UserError,
    describe,
    load,
    optional,
    respelled,
    run,
    run_command,
    save_json,
)
from corpus import Batch, Corpus, Prefetcher, length_bucketed_rows, sole_writer
from model import autocast, compile_network, gemm_peak, to_device, wants_compile
from objective import NotFinite, Objective, generator, seed_of
from parallel import agree, fsdp
from parallel.fsdp import local, total_norm
from parallel.processes import World, enter_world

# ==================================================================================================
# Optimisers, learning-rate schedules, clipping, and the average of the weights
# ==================================================================================================


def lr_multiple(step: int, cfg: Config) -> float:
    """Learning rate of update `step` (the first is 1) as a multiple of the peak: linear warm-up,
    then by cfg.lr_schedule down to cfg.min_lr at lr_decay_iters, and constant from there on."""
    if step < cfg.warmup_iters:
        return step / cfg.warmup_iters
    end = cfg.lr_decay_iters or cfg.max_iters
    # flat_cosine: the peak until 80 % of the run, as in the palindrome fork of SEDD
    begin = int(0.8 * end) if cfg.lr_schedule == "flat_cosine" else cfg.warmup_iters
    done = min(max(step - begin, 0) / max(end - begin, 1), 1.0)
    if cfg.lr_schedule == "constant":
        return 1.0
    if cfg.lr_schedule == "linear":
        return 1 + (cfg.min_lr - 1) * done
    return cfg.min_lr + (1 - cfg.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


class StackedMuon(torch.optim.Muon):
    """torch.optim.Muon, which orthogonalises one matrix after the other, with all matrices of a
    shape at once (docs/performance.md). Its state and options are those of torch's, whose
    checkpoints it resumes."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads, momentum = [p.grad for p in params], group["momentum"]
            for p in params:
                self.state[p].setdefault("momentum_buffer", torch.zeros_like(p.grad))
            averages = [self.state[p]["momentum_buffer"] for p in params]
            torch._foreach_lerp_(averages, grads, 1 - momentum)
            updates = torch._foreach_lerp(grads, averages, momentum)  # Nesterov
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            alike: dict[tuple[int, ...], list[int]] = {}  # shape -> which have it
            for i, p in enumerate(params):
                alike.setdefault(tuple(p.shape), []).append(i)
            for (rows, columns), chosen in alike.items():
                x = torch.stack([updates[i] for i in chosen])
                x = orthogonalise(x, group["ns_coefficients"], group["ns_steps"], group["eps"])
                lr = group["lr"] * math.sqrt(max(1, rows / columns))
                torch._foreach_add_([params[i] for i in chosen], list(x.unbind()), alpha=-lr)


def orthogonalise(
    x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Matrices x (n, A, B) -> (n, A, B) float32, about the nearest ones with orthonormal rows or
    columns: the Newton-Schulz iteration of Muon, in bfloat16."""
    (a, b, c), tall = coefficients, x.shape[1] > x.shape[2]
    x = x.mT.bfloat16() if tall else x.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float().contiguous()


def make_optimizers(cfg: Config, net: nn.Module, device: torch.device) -> list:
    """AdamW on everything, or Muon (Jordan et al. 2024) on the block matrices and AdamW on the
    rest. Every group carries its `peak` learning rate."""
    matrices = net.matrices() if cfg.optimizer == "muon" else []
    chosen = {id(p) for p in matrices}
    rest = [p for p in net.parameters() if id(p) not in chosen]
    adamw = torch.optim.AdamW(
        [{"params": rest, "peak": cfg.learning_rate}],
        lr=cfg.learning_rate,
        betas=(cfg.beta1, cfg.beta2),
        weight_decay=cfg.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )
    if not matrices:
        return [adamw]
    sharded = any(hasattr(p, "to_local") for p in matrices)  # shards cannot be stacked
    muon = (torch.optim.Muon if sharded else StackedMuon)(
        [{"params": matrices, "peak": cfg.muon_lr}],
        lr=cfg.muon_lr,
        momentum=0.95,
        weight_decay=0.0,
    )
    return [adamw, muon]


def scale_gradients(params: Iterable[Tensor], scale: Tensor, clip: float) -> Tensor:
    """Multiply all gradients by `scale` (), from sums to means, and clip their global norm (0: do
    not), in one pass over them. Returns the norm () of the means before clipping."""
    grads = [p.grad for p in params if p.grad is not None]
    norm = total_norm(grads) * scale.to(grads[0].dtype)
    if clip:
        scale = scale * (clip / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([local(g) for g in grads], scale.to(grads[0].dtype))
    return norm


@contextlib.contextmanager
def replaced(net: nn.Module, values: dict[str, Tensor]) -> Iterator[nn.Module]:
    """The network in evaluation mode with other values of its parameters, by name, while the block
    runs. Nothing is copied."""
    params = dict(net.named_parameters())
    raw = {name: params[name].data for name in values}
    try:
        for name, value in values.items():
            params[name].data = value
        yield net.eval()
    finally:
        for name, data in raw.items():
            params[name].data = data
        net.train()


@torch.no_grad()
def update_ema(ema: list[Tensor], params: list[Tensor], updates: int, cfg: Config) -> None:
    """Move the average towards the parameters after their `updates`-th update, in one kernel."""
    decay = cfg.ema_decay
    if cfg.ema_warmup:
        decay = min(decay, (1 + updates) / (10 + updates))
    torch._foreach_lerp_([*map(local, ema)], [*map(local, params)], 1 - decay)


# ==================================================================================================
# Logging: lines for people, log.jsonl for programs, Weights & Biases with wandb_log
# ==================================================================================================


def log_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a log.jsonl, without lines that a crash has cut short or damaged."""
    lines = []
    text = path.read_text(errors="replace") if path.is_file() else ""
    for line in text.split("\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            lines.append(record)
    return lines


def rewound(path: Path, step: int) -> list[dict[str, Any]]:
    """Keep the records up to `step`, none of step 0: a run that goes on from an older checkpoint
    writes the later ones again. Returns them."""
    kept = [record for record in log_lines(path) if step and record["step"] <= step]
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror}") from e
    return kept


def append(path: Path, records: Iterable[dict[str, Any]]) -> None:
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror}") from e


class Log:
    """The log of a run in the first process; elsewhere, nothing."""

    def __init__(self, cfg: Config, state: Any):
        """state: the TrainState, whose `best` is brought up to date."""
        self.path = Path(cfg.out_dir) / "log.jsonl"
        self.samples = Path(cfg.out_dir) / "samples.jsonl"
        self.quiet, self.wandb = state.world.rank > 0, None
        terminal = sys.stdout is not None and sys.stdout.isatty()
        self.bar = tqdm(
            total=cfg.max_iters,
            initial=state.step,
            unit="step",
            disable=self.quiet or not terminal,
        )
        if self.quiet:
            return
        kept = rewound(self.path, state.step)
        # a checkpoint is saved before its own evaluation, so the latest `best` is in the log
        state.best = min(record.get("best", state.best) for record in [{}, *kept])
        if self.samples.is_file():
            rewound(self.samples, state.step)
        if cfg.wandb_log:
            self.wandb = self.start_wandb(cfg)

    def start_wandb(self, cfg: Config) -> Any:
        """A run, online or offline. A failure of wandb never stops training."""
        name, folder = cfg.wandb_run_name, Path(cfg.out_dir).name
        name = name + cfg.finetune_suffix * folder.endswith(cfg.finetune_suffix) if name else folder
        try:
            wandb = optional("wandb")
            return wandb.init(
                project=cfg.wandb_project,
                name=name,
                config=dataclasses.asdict(cfg),
                dir=cfg.out_dir,
            )
        except Exception as e:
            return self.stop_wandb(e)

    def stop_wandb(self, e: Exception) -> None:
        print(f"wandb is off: {type(e).__name__} {e}".splitlines()[0], file=sys.stderr)
        self.wandb = None

    def write(self, line: str, **values: Any) -> None:
        if self.quiet:
            return
        if sys.stdout is not None:  # closed by who started us
            tqdm.write(line)
            sys.stdout.flush()
        append(self.path, [values])
        try:
            if self.wandb is not None:
                self.wandb.log(values, step=values["step"])
        except Exception as e:
            self.stop_wandb(e)


# ==================================================================================================
# Signals that stop a run: the step is finished and saved, then the process exits
# ==================================================================================================


STOP_SIGNALS = [getattr(signal, n) for n in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, n)]


class Interrupted(UserError):
    """A signal stopped the run. The exit code is the usual one, 128 + the number of the signal: 143
    for SIGTERM, 130 for SIGINT."""

    shared = True

    def __init__(self, number: int, message: str):
        super().__init__(f"{signal.Signals(number).name}: {message}")
        self.code = 128 + number


@contextlib.contextmanager
def listening() -> Iterator[list[int]]:
    """A list to which the numbers of signals are appended while the block runs.

    Signals do nothing else, so that a save is never cut short; but a second SIGINT ends the process
    at once. A signal that was ignored (by nohup) stays ignored. Outside of the main thread no
    signal is received.
    """
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def receive(number: int, _: Any) -> None:
        signals.append(number)
        if number == signal.SIGINT:  # the default handler, as Python may wait for another process
            signal.signal(number, signal.SIG_DFL)

    before = {n: signal.getsignal(n) for n in STOP_SIGNALS}
    before = {n: old for n, old in before.items() if old not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, receive)
        yield signals
    finally:
        for number, old in before.items():
            signal.signal(number, old)


# ==================================================================================================
# Augmentation of prompts: shuffle the prompt of a row, or replace some of its tokens
#
# Both are for cascades, whose stages are trained on prompts from real texts and sampled on prompts
# that the stage before wrote. They use the generator of the step, before any other draw, and never
# affect evaluation or sampling.
# ==================================================================================================


REPLACED = 0.3  # share of the tokens of a corrupted prompt


def augment_prompt(batch: Batch, shuffle: bool, noise: float, rng: torch.Generator) -> Batch:
    """The batch with corrupted prompts (a share `noise` of the rows) and shuffled prompts. Draws
    nothing where both are off."""
    if noise:
        batch = corrupt_prompt(batch, noise, rng)
    return shuffle_prompt(batch, rng) if shuffle else batch


def shuffle_prompt(batch: Batch, rng: torch.Generator) -> Batch:
    """The prompt of every row in a random order. As attention is bidirectional and knows a token's
    place by its position only, this is the same as permuting the positions of the prompt."""
    return batch._replace(ids=batch.ids.gather(1, permutation(batch.prompt_mask, rng)))


def permutation(prompt_mask: Tensor, rng: torch.Generator) -> Tensor:
    """prompt_mask (B, T) bool, a prefix of each row -> (B, T) int64: a uniform permutation of the
    prompt positions of each row; the others stay."""
    assert not (prompt_mask[:, 1:] & ~prompt_mask[:, :-1]).any(), "the prompt is no prefix"
    positions = torch.arange(prompt_mask.shape[1]).expand(prompt_mask.shape)
    # float64, as float32 draws may be equal
    draws = torch.rand(prompt_mask.shape, generator=rng, dtype=torch.float64)
    return torch.where(prompt_mask, draws, 1.0 + positions).argsort(1)


def corrupt_prompt(batch: Batch, share: float, rng: torch.Generator) -> Batch:
    """In a `share` of the rows, REPLACED of the prompt tokens become random prompt tokens of the
    batch. Errors of a generated prompt are like that: likely words that do not belong to its
    text."""
    rows = torch.rand(len(batch.ids), 1, generator=rng) < share
    replaced = batch.prompt_mask & rows & (torch.rand(batch.ids.shape, generator=rng) < REPLACED)
    pool = batch.ids[batch.prompt_mask]
    if not len(pool):
        return batch
    other = pool[torch.randint(len(pool), batch.ids.shape, generator=rng)]
    return batch._replace(ids=torch.where(replaced, other, batch.ids))


# ==================================================================================================
# The run
# ==================================================================================================


INIT, NOISE, DROPOUT, ORDER, EVALUATION = range(5)  # streams of randomness
ANNEAL = 8  # another; those between are of sample.py, evaluate.py and analysis/probes.py
FRESH = ("scratch", "modernbert-tiny")  # init_from: neither another run nor weights


LEARNT = 0.1  # --debug=overfit: nats per position; where tokens are inserted, which of two equal
PAIRS = math.log(2) / 2  # neighbours is missing cannot be known, and all may be such pairs


class NotLearnt(UserError):
    """One row was not learnt by heart: not an error of the command line, so exit code 1."""

    code, shared = 1, True


class Diverged(NotFinite):
    """The loss, the gradient or the validation bound is no longer finite, in all processes."""

    shared = True


def open_corpus(cfg: Config, origins: dict[str, str], world: World) -> Corpus:
    """The corpus of the config; made by the config's own command if its folder is missing."""
    folder = Path(cfg.data_dir) / cfg.dataset
    # the command of a file makes the corpus that this file names, and no other
    makes = cfg.prepare and origins.get("prepare") in ("command line", origins.get("dataset"))
    if not folder.exists() and makes and world.rank == 0:
        command = f"{cfg.prepare} --data_dir={cfg.data_dir} --dataset={cfg.dataset}"
        print(f"no corpus at {folder}; running: python {command}", flush=True)
        run_command(command)
    if world.size > 1:
        dist.barrier()
    if not folder.exists():
        raise UserError(f"no corpus at {folder}; {corpus_hint(cfg, origins, bool(makes))}")
    corpus = Corpus(folder)
    corpus.require_block(cfg.block_size)
    for split in ("train", "val"):
        if corpus.given_whole(split) and world.rank == 0:
            print(
                f"warning: every row of the {split} split of {folder} is given as a whole, there "
                "is nothing to write in it",
                file=sys.stderr,
            )
    return corpus


def corpus_hint(cfg: Config, origins: dict[str, str], makes: bool) -> str:
    """What to do about a corpus that is not there."""
    if makes:
        return f"run: python {cfg.prepare}"
    there = sorted(path.parent.name for path in Path(cfg.data_dir).glob("*/meta.json"))
    near = difflib.get_close_matches(Path(cfg.dataset).name, there, 1)
    hints = [f"perhaps --dataset={near[0]}"] if near else []
    if not near and Path(cfg.dataset).name != cfg.dataset:
        hints = [f"dataset is a name: --dataset={Path(cfg.dataset).name} --data_dir={cfg.data_dir}"]
    hints.append(f"in {cfg.data_dir} there are: {', '.join(there) or 'none'}")
    if cfg.prepare:
        hints.append(f"without --dataset, {origins['prepare']} makes its own")
    return "; ".join([*hints, "others are made by the prepare_*.py"])


# ---- the state of a run ------------------------------------------------------------------------


@dataclass
class TrainState:
    """What a checkpoint saves and restores, and what else the loop needs."""

    cfg: Config
    world: World
    corpus: Corpus
    net: nn.Module
    objective: Objective
    module: nn.Module  # LossModule, perhaps in DDP
    optimizers: list
    ema: dict[str, Tensor]
    root: fsdp.Root | None = None  # with FSDP
    step: int = 0  # updates done
    best: float = math.inf
    skipped: int = 0  # steps skipped because they were not finite
    last: float = math.nan  # loss of the last finite step
    signals: list[int] = field(default_factory=list)  # signals that have come to this process
    stopping: bool = False  # a signal has come to some process: all of them agree on the step

    def __post_init__(self):
        self.prefetcher = Prefetcher(self.noisy)

    def state_dict(self) -> dict[str, Any]:
        return {
            "format": checkpoint.FORMAT,
            "config": dataclasses.asdict(self.cfg),
            "corpus": self.corpus.identity(),
            "model": checkpoint.weights_of(self.net),
            "ema": self.ema or None,
            "optimizer": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "best": float(self.best),
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; learning rates and decay are those of the present config."""
        try:
            for optimizer, saved in zip(self.optimizers, state["optimizer"], strict=True):
                keys = ("peak", "weight_decay")
                present = [{k: group[k] for k in keys} for group in optimizer.param_groups]
                optimizer.load_state_dict(saved)
                for group, values in zip(optimizer.param_groups, present, strict=True):
                    group.update(values)
            if self.ema and state["ema"]:
                for name, average in self.ema.items():
                    average.copy_(state["ema"][name])
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as e:
            raise UserError(f"the checkpoint's optimizer or ema does not fit: {e}") from e
        self.step, self.best = state["step"], state["best"]
        self.skipped = state.get("skipped", 0)

    def within(self, work: Callable, *args: Any) -> Any:
        """work(*args); with FSDP inside the root module, where parameters outside of the blocks are
        gathered."""
        return work(*args) if self.root is None else self.root(partial(work, *args))

    def averaged(self) -> ContextManager[nn.Module]:
        """The network in evaluation mode with the averaged weights, for the time of a block."""
        if self.root is not None:
            return fsdp.replaced(self.root, self.ema)
        return replaced(self.net, self.ema)

    def batch(self, split: str, order: int, number: int) -> Batch:
        """Micro-batch `number` of an endless shuffled reading of a split."""
        size, block = self.cfg.batch_size, self.cfg.block_size
        crops = split == "train" and self.objective.crops_padding
        parts = self.cfg.gradient_accumulation_steps if crops else 1
        if self.cfg.debug == "overfit":
            return self.corpus.batch("train", np.zeros(size, np.int64), block)
        rows = length_bucketed_rows(self.corpus, split, order, number, size, parts, block)
        return self.corpus.batch(split, rows, block)

    def noisy(self, number: int) -> Any:
        """Micro-batch `number` of the run, counted over all processes: read, corrupted and, for a
        GPU, in pinned memory. A background thread does this a step ahead."""
        cfg = self.cfg
        batch = self.batch("train", seed_of(cfg.seed, ORDER), number)
        rng = generator(cfg.seed, NOISE, *divmod(number, cfg.gradient_accumulation_steps))
        batch = augment_prompt(batch, cfg.prefix_shuffle, cfg.prefix_noise, rng)
        return pinned(self.objective.corrupt(batch, rng), self.world.device)


def start(cfg: Config, origins: dict[str, str], world: World) -> TrainState:
    """Build network, objective and optimisers, from scratch or from the weights of `init_from`."""
    source, weights, resumed, parts = cfg.init_from, None, None, None
    if source in FRESH:
        refuse_unused(cfg, origins, world)  # before a corpus is made for it
        build_objective(cfg, checkpoint.ANY_CORPUS)
    corpus, out = open_corpus(cfg, origins, world), Path(cfg.out_dir)
    sharded = cfg.parallel == "fsdp" and world.size > 1
    if source == "modernbert-tiny":
        cfg, source = dataclasses.replace(cfg, backbone=source), "scratch"
    if cfg.backbone:
        cfg = checkpoint.with_backbone(cfg, origins, corpus, cfg.backbone)
    if source == "resume":
        path = fsdp.newest(out) or out / "ckpt.pt"
        parts = checkpoint.open_parts(path) if sharded and path.is_dir() else None
        resumed = parts.head if parts else checkpoint.read(path)
        cfg = checkpoint.inherit(cfg, origins, resumed["config"], str(path), "optimizer")
        corpus.require_like(resumed["corpus"]["meta"])
        warn_of_order(cfg, resumed["config"], world)
        warn_of_corpus(corpus, resumed["corpus"]["meta"], world)
        weights = resumed["model"] or None  # None: sharded, read below
    elif source != "scratch":
        cfg, weights = checkpoint.pretrained(cfg, origins, corpus)
    if source != "scratch":
        refuse_unused(cfg, origins, world)  # the objective may be that of the weights
    grow = source not in ("resume", "scratch") and bool(cfg.backbone)
    objective = build_objective(cfg, corpus.meta)
    torch.manual_seed(seed_of(cfg.seed, INIT))
    net = build_network(cfg, objective)
    if weights is not None:
        checkpoint.load_weights(net, weights, cfg.init_from, grow)
    net = net.to("cpu" if sharded else world.device).train()
    if wants_compile(cfg.compile, world.device):
        compile_network(net, whole=not sharded)
    module, root = fsdp.wrap_model(net, objective, cfg, world)
    if parts:
        parts.fill_weights(checkpoint.weights_of(net))
    params = dict(net.named_parameters())
    ema = {k: p.detach().clone() for k, p in params.items()} if cfg.ema_decay else {}
    optimizers = make_optimizers(cfg, net, world.device)
    state = TrainState(cfg, world, corpus, net, objective, module, optimizers, ema, root)
    if resumed is not None:
        if sharded:
            resumed = fsdp.shard_state(resumed, parts, ema, optimizers)
        state.load_state_dict(resumed)
    return state


def refuse_unused(cfg: Config, origins: dict[str, str], world: World) -> None:
    """Raise UserError for options of other objectives on the command line. Those of config files,
    which may be meant for several objectives, are told."""
    unused = [key for key in checkpoint.unused_fields(cfg) if key in origins]
    kind = f"objective={cfg.objective}, noise={cfg.noise}"
    for key in unused:
        if origins[key] == "command line":
            raise UserError(f"config error: command line: {key} means nothing for {kind}; omit it")
    changed = [key for key in unused if getattr(cfg, key) != getattr(Config, key)]
    if changed and world.rank == 0:
        names = ", ".join(f"{key} ({origins[key]})" for key in changed)
        print(f"warning: not used by {kind}: {names}", file=sys.stderr)


def warn_of_order(cfg: Config, saved: dict[str, Any], world: World) -> None:
    """Warn of options that change the order of the data: positions in it are counted in
    micro-batches over all processes."""
    for key in "seed batch_size gradient_accumulation_steps block_size".split():
        if saved.get(key) != getattr(cfg, key) and world.rank == 0:
            change = f"{key} was {saved.get(key)}, is {getattr(cfg, key)}"
            print(f"warning: {change}: the order of the data changes", file=sys.stderr)


def warn_of_corpus(corpus: Corpus, saved: dict[str, Any], world: World) -> None:
    """Warn of a corpus with other rows than the run has seen so far, by the checksums of both."""
    if saved.get("files") != corpus.meta["files"] and world.rank == 0:
        was, now = (m.get("splits", {}).get("train", {}) for m in (saved, corpus.meta))
        sizes = f"{was.get('tokens', 0):,} tokens of training, is {now.get('tokens', 0):,}"
        print(
            f"warning: the dataset is another: it was {sizes} in {corpus.folder}; the run goes on "
            "with these, at its place in the order",
            file=sys.stderr,
        )


# ---- one step ----------------------------------------------------------------------------------


def pinned(noisy: Any, device: torch.device) -> Any:
    """The NamedTuple with its tensors in pinned memory, for asynchronous copies to a GPU."""
    if device.type != "cuda":
        return noisy
    return type(noisy)(*(x.pin_memory() if torch.is_tensor(x) else x for x in noisy))


def train_step(state: TrainState) -> dict[str, float]:
    """Accumulate gradients, check, clip, update, average. Returns loss (nats per target position),
    learning rate, gradient norm and the objective's metrics; {} if the step was skipped. Raises
    Diverged before the update."""
    cfg, world = state.cfg, state.world
    multiple = lr_multiple(state.step + 1, cfg)
    totals, names = None, []
    per_rank = cfg.gradient_accumulation_steps // world.size
    for i in range(per_rank):
        micro = i * world.size + world.rank  # of the micro-batches of all processes
        number = state.step * cfg.gradient_accumulation_steps + micro
        noisy = state.prefetcher.get(number, number + world.size)
        if cfg.dropout:
            torch.manual_seed(seed_of(cfg.seed, DROPOUT, state.step, micro))
        if cfg.anneal_steps:
            rng = generator(cfg.seed, ANNEAL, state.step, micro)
            state.net.anneal(state.step / cfg.anneal_steps, cfg.block_size, rng)
        # DDP reduces gradients after the last micro-batch, FSDP after each, as it keeps shards only
        postpone = world.size > 1 and state.root is None and i < per_rank - 1
        with state.module.no_sync() if postpone else contextlib.nullcontext():
            with autocast(cfg.dtype, world.device):
                loss = state.within(state.module, noisy)
            loss.sum.backward()
        names = list(loss.metrics)
        count = to_device(torch.tensor(float(loss.count)), world.device)
        sums = torch.cat([torch.stack([loss.sum.detach(), count]), *loss.metrics.values()])
        totals = sums if totals is None else totals + sums
    signals = torch.tensor([float(len(state.signals))], dtype=torch.float64).to(world.device)
    totals = world.sum(torch.cat([totals.double(), signals]))
    norm = scale_gradients(
        state.net.parameters(), world.size / totals[1].clamp(min=1), cfg.grad_clip
    )
    numbers = torch.cat([totals, norm.double()[None]]).tolist()  # the only synchronisation
    total, count, *sums, signals, norm = numbers
    state.stopping = signals > 0
    loss, lr = total / max(count, 1), multiple * cfg.learning_rate
    is_finite = finite(state, loss, norm, lr)
    update(state, multiple, is_finite)
    if not is_finite:
        return {}
    state.last = loss
    triples = zip(names, sums[::2], sums[1::2], strict=True)
    metrics = {name: total / max(number, 1) for name, total, number in triples}
    return {"loss": loss, "lr": lr, "grad_norm": norm, **metrics}


def update(state: TrainState, multiple: float, is_finite: bool) -> None:
    """One step of the optimisers at `multiple` times their peak learning rates, and of the averaged
    weights, both only if the gradient is finite."""
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * multiple
        if is_finite:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    state.step += 1
    if is_finite and state.ema:
        update_ema(list(state.ema.values()), list(state.net.parameters()), state.step, state.cfg)


def finite(state: TrainState, loss: float, norm: float, lr: float) -> bool:
    """Are loss and gradient norm finite? If not, skip the step, or raise Diverged where
    cfg.skip_nonfinite steps have been skipped already."""
    if math.isfinite(loss) and math.isfinite(norm):
        return True
    cfg, first = state.cfg, state.step * state.cfg.gradient_accumulation_steps
    message = (
        f"step {state.step + 1}: loss {loss:.4g} (of the last good step {state.last:.4g}), "
        f"gradient norm {norm:.4g}, learning rate {lr:.3g}, micro-batches {first} to "
        f"{first + cfg.gradient_accumulation_steps - 1}; the step was not taken"
    )
    if state.skipped >= cfg.skip_nonfinite:
        raise Diverged(f"{message}; the last checkpoint is intact")
    state.skipped += 1
    if state.world.rank == 0:
        left = cfg.skip_nonfinite - state.skipped
        print(f"warning: {message}; {left} more may be skipped", file=sys.stderr, flush=True)
    return False


@torch.no_grad()
def evaluate(state: TrainState) -> float:
    """Validation bound in nats per target position, or the loss of objectives that have no bound;
    averaged weights, fixed batches and noise."""
    cfg, world = state.cfg, state.world
    sums = torch.zeros(2, dtype=torch.float64)
    with state.averaged() as net, autocast(cfg.dtype, world.device):
        rounds = -(-cfg.eval_iters // world.size)  # equal in all processes, which wait for others
        for i in range(world.rank, rounds * world.size, world.size):
            batch, rng = state.batch("val", EVALUATION, i), generator(EVALUATION, i)
            if state.objective.bounded:
                nats = state.within(state.objective.bound, net, batch, rng).sum()
                count = int(state.objective.target_mask(batch).sum())
            else:
                noisy = state.objective.corrupt(batch, rng)
                nats, count, _ = state.within(state.objective.loss, net, noisy)
            if i < cfg.eval_iters:
                sums += torch.stack([nats.double().cpu(), torch.tensor(float(count))])
    sums = world.sum(sums.to(world.device))
    return float(sums[0] / sums[1].clamp(min=1))


# ---- the loop ----------------------------------------------------------------------------------


def utilisation(rate: float, peak: float | None) -> dict[str, float]:
    """Model FLOPs utilisation as a value of the log: FLOP/s over the measured peak. Nothing without
    a peak, or above 1: FLOPs are those of full rows with every position projected, and cropped rows
    or few scored places take fewer."""
    share = math.inf if peak is None else rate / peak
    return {"mfu": share} if share <= 1 else {}


def learnt(state: TrainState) -> float:
    """What the validation bound has to be below with --debug=overfit."""
    return LEARNT + PAIRS * state.objective.inserts


def loop(state: TrainState) -> None:
    """Train until max_iters or a signal, with a checkpoint before each evaluation and at the
    end."""
    cfg, world = state.cfg, state.world
    log, ckpt = Log(cfg, state), Path(cfg.out_dir) / "ckpt.pt"
    best = state.best if world.rank == 0 else 0.0  # rank 0 has read the log
    state.best = float(world.sum(torch.tensor(best, dtype=torch.float64).to(world.device)))
    tokens = cfg.batch_size * cfg.gradient_accumulation_steps * cfg.block_size
    flops = state.net.flops_per_token(cfg.block_size) * tokens / world.size
    on_gpu = world.device.type == "cuda"  # elsewhere there is no peak that a share would be of
    peak = gemm_peak(world.device, cfg.dtype) if on_gpu else None
    since, clock = state.step, time.perf_counter()
    while state.step < cfg.max_iters and not state.stopping:
        values, saved = train_step(state), False
        log.bar.update()
        if values and (state.step % cfg.log_interval == 0 or state.step == cfg.max_iters):
            seconds = (time.perf_counter() - clock) / (state.step - since)  # per step
            values["tokens_per_s"] = tokens / seconds
            line = f"iter {state.step}: loss {values['loss']:.4f}, time {seconds * 1000:.1f} ms"
            line += f", {values['tokens_per_s']:,.0f} tokens/s"
            values |= utilisation(flops / seconds, peak)
            line += f", mfu {values['mfu']:.1%}" if "mfu" in values else ""
            log.write(line, step=state.step, **values)
            since, clock = state.step, time.perf_counter()
        pause = time.perf_counter()
        if state.step % cfg.eval_interval == 0 or state.step == cfg.max_iters:
            saved = save_and_evaluate(state, log, ckpt)
            if cfg.debug == "overfit" and state.best < learnt(state):
                break
        if cfg.snapshot_interval and state.step % cfg.snapshot_interval == 0:
            take_snapshot(state)
        if cfg.sample_interval and state.step % cfg.sample_interval == 0:
            write_samples(state, log)
        clock += time.perf_counter() - pause  # the time of all that is not counted
    log.bar.close()
    if cfg.debug == "overfit" and not state.stopping:
        told = f"after {state.step} steps the {state.objective.criterion} of the first row is "
        told += f"{state.best:.4f} nats per position"
        if state.best >= learnt(state):
            raise NotLearnt(f"debug=overfit: {told}, not below {learnt(state):.2f}")
        print(f"learnt by heart: {told}")
    if state.step < cfg.max_iters and cfg.always_save_checkpoint and not saved:
        save(state, ckpt)


def save(state: TrainState, ckpt: Path) -> bool:
    """Write the checkpoint, in the first process, or sharded in all. Returns whether it was
    written: on failure the run ends, or with save_errors=warn goes on with a warning, unless this
    was its last step."""
    if state.world.rank > 0 and state.root is None:
        return True
    try:
        checkpoint.store(state.state_dict(), ckpt, sharded=state.root is not None)
    except UserError as e:
        if state.cfg.save_errors == "stop" or state.step >= state.cfg.max_iters or state.stopping:
            raise
        if state.world.rank == 0:
            print(f"warning: {e}", file=sys.stderr, flush=True)
        return False
    return True


def snapshots(out: Path) -> list[Path]:
    """The numbered checkpoints of a run, files or the folders of sharded ones, the oldest first."""
    found = [path for path in out.glob("ckpt_*") if re.fullmatch(r"ckpt_\d+(\.pt)?", path.name)]
    return sorted(found, key=lambda path: int(path.stem.removeprefix("ckpt_")))


def remove(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as e:
            raise UserError(f"cannot remove {path}: {e.strerror}") from e


def take_snapshot(state: TrainState) -> None:
    """Write the checkpoint under the number of its step, in place of one that is there from before
    the run was resumed, and leave the newest keep_snapshots."""
    out, keep = Path(state.cfg.out_dir), state.cfg.keep_snapshots
    save(state, out / f"ckpt_{state.step:06}.pt")
    if state.world.rank == 0:
        remove(out.glob(f"ckpt_{state.step:06}_prev.pt"))
        remove(snapshots(out)[:-keep] if keep else ())


def write_samples(state: TrainState, log: Log) -> None:
    """Samples of the averaged weights by the usual sampler, as evaluate.py draws them: where a
    corpus has prompts, for those of its first rows of validation. Their score, if there is one for
    the corpus, goes to the log as well."""
    from evaluate import EvaluateConfig, fitted, sampled, score_of  # imports a lot, for few runs

    cfg, corpus = state.cfg, state.corpus
    if state.world.rank > 0 and state.root is None:  # only a sharded network needs all processes
        return
    options = EvaluateConfig(samples=cfg.num_samples, seed=state.step, dtype=cfg.dtype)
    with state.averaged() as net:
        model = Model(net, state.objective, corpus.tokenizer, cfg, corpus.meta, state.step)
        options = fitted(options, {}, model)
        texts = state.within(sampled, options, model, corpus, "val", cfg.num_samples)
    if state.world.rank > 0:
        return
    pairs = zip(texts.prompts, texts.found, strict=True)
    both = [tuple(map(corpus.tokenizer.decode, pair)) for pair in pairs]
    shown = [f"  {prompt!r} {text!r}" if prompt else f"  {text!r}" for prompt, text in both]
    line, values = f"step {state.step}: {cfg.num_samples} samples", {}
    name, share = score_of(model, texts)
    if share is not None:
        line, values = f"{line}, {name} {share:.1%}", {name.replace(" ", "_"): share}
    append(log.samples, ({"step": state.step, "prompt": p, "text": t} for p, t in both))
    log.write("\n".join([line, *shown]), step=state.step, **values)


def save_and_evaluate(state: TrainState, log: Log, ckpt: Path) -> bool:
    """Save first, so that a failing evaluation loses nothing; with always_save_checkpoint=False
    save afterwards, if this is the best."""
    cfg, saved = state.cfg, False
    if cfg.always_save_checkpoint:
        saved = save(state, ckpt)
    bound = evaluate(state)
    if not math.isfinite(bound):
        kept = "the checkpoint of this step" if saved else "the last checkpoint"
        raise Diverged(
            f"step {state.step}: validation {state.objective.criterion} {bound}, which is not "
            f"finite; {kept} is intact"
        )
    better, state.best = bound < state.best, min(state.best, bound)
    if not cfg.always_save_checkpoint and better:
        saved = save(state, ckpt)
    line = f"step {state.step}: val {state.objective.criterion} {bound:.4f} nats per position"
    line += f" (best {state.best:.4f})"
    log.write(line, step=state.step, val_bound=bound, best=state.best)
    return saved


# ---- which run it is ---------------------------------------------------------------------------


def resolve(cfg: Config, origins: dict[str, str]) -> Config:
    """The config with the folder of the run as out_dir, and as init_from what `auto` comes to."""
    cfg = dataclasses.replace(cfg, out_dir=folder_of(cfg, origins))
    if not is_auto(cfg):
        return cfg
    if fsdp.newest(Path(cfg.out_dir)):
        return dataclasses.replace(cfg, init_from="resume")
    if origins.get("finetune_suffix") == "command line" and not names_weights(cfg):
        raise UserError(
            f"no checkpoint in {cfg.out_dir}, and no weights to begin with: "
            "name them, --init_from=auto:WEIGHTS"
        )
    return dataclasses.replace(cfg, init_from=begins_with(cfg))


def is_auto(cfg: Config) -> bool:
    return cfg.init_from.partition(":")[0] == "auto"


def begins_with(cfg: Config) -> str:
    """init_from, of auto:WEIGHTS that which follows, and of auto alone scratch."""
    return cfg.init_from.partition(":")[2] or "scratch" if is_auto(cfg) else cfg.init_from


def names_weights(cfg: Config) -> bool:
    return begins_with(cfg) not in (*FRESH, "resume")


def folder_of(cfg: Config, origins: dict[str, str]) -> str:
    """out_dir, with finetune_suffix where weights are named, so that fine-tuning does not touch the
    run that they are of. resume and auto name none: they go on where there is a checkpoint, or with
    the suffix if that is on the command line. An out_dir of the command line stays."""
    plain, tuned = cfg.out_dir, cfg.out_dir + cfg.finetune_suffix
    goes_on = cfg.init_from == "resume" or is_auto(cfg)
    if plain == tuned or origins.get("out_dir") == "command line":
        return plain
    if names_weights(cfg) or (goes_on and origins.get("finetune_suffix") == "command line"):
        return tuned
    if not goes_on or not fsdp.newest(Path(tuned)):
        return plain
    if fsdp.newest(Path(plain)):
        raise UserError(f"{plain} and {tuned} are both there: name one with --out_dir=")
    return tuned


def refuse_replacing(cfg: Config) -> None:
    """Raise UserError if this run would replace one that is in out_dir already."""
    out = Path(cfg.out_dir)
    there = fsdp.newest(out) or snapshots(out)
    if cfg.init_from == "resume" or cfg.overwrite or cfg.eval_only or not there:
        return
    done = max([0, *(record["step"] for record in log_lines(out / "log.jsonl"))])
    finished = done >= cfg.max_iters
    state = "a finished run" if finished else "an unfinished run"
    more = f" --max_iters={2 * done}" if finished else ""
    raise UserError(
        f"{out} holds {state} of {done} steps: go on with --init_from=resume{more}, "
        "write elsewhere with --out_dir=..., or replace it with --overwrite"
    )


def command_to_resume(cfg: Config, argv: list[str], world: World) -> str:
    """The whole command that goes on with this run."""
    changes = {"init_from": "resume", "overwrite": None}
    if cfg.finetune_suffix:
        changes["out_dir"] = cfg.out_dir
    start = ["python"]
    if world.size > 1:
        start = ["torchrun", "--standalone", f"--nproc_per_node={world.size}"]
        if int(os.environ.get("LOCAL_WORLD_SIZE", world.size)) < world.size:
            start = ["torchrun", "..."]  # several machines: as before
    return shlex.join([*start, sys.argv[0], *respelled(Config, argv, **changes)])


def prepare_out(cfg: Config, lock: contextlib.ExitStack | None) -> None:
    """Make out_dir, lock it unless `lock` is None, write config.json before the first step, and
    remove temporary files of a killed run and, where the run begins, the snapshots and samples of
    one that it replaces."""
    out = Path(cfg.out_dir)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if lock is not None:
            lock.enter_context(sole_writer(out))
        remove(out.glob("*.tmp"))
        if cfg.init_from != "resume":
            remove([*snapshots(out), *out.glob("samples.jsonl")])
        save_json(cfg, out / "config.json")
    except OSError as e:
        raise UserError(f"out_dir={cfg.out_dir} cannot be written: {e.strerror}") from e


def perform(
    cfg: Config, origins: dict, world: World, lock: contextlib.ExitStack, again: str
) -> Interrupted | None:
    """Run a config; `lock` keeps other processes out of its folder, `again` is the command that
    goes on. Returns the signal that has ended the run early, or None."""
    writes = world.rank == 0 and not cfg.eval_only
    early = writes and Path(cfg.out_dir).is_dir()
    if early:  # before a checkpoint is read that another process may be about to replace
        lock.enter_context(sole_writer(Path(cfg.out_dir)))
    refuse_replacing(cfg)
    if world.rank == 0:
        out, data = (Path(folder).absolute() for folder in (cfg.out_dir, cfg.data_dir))
        print(f"{describe(cfg, origins)}\nout_dir is {out}, data_dir is {data}", flush=True)
    state = start(cfg, origins, world)
    if writes:
        prepare_out(state.cfg, None if early else lock)
    if world.rank == 0:
        if cfg.warmup_iters >= cfg.max_iters:
            print(f"warning: warmup_iters={cfg.warmup_iters} never ends", file=sys.stderr)
        size = sum(p.numel() for p in state.net.parameters())
        print(f"{size:,} parameters on {world.device}, {world.size} process(es)", flush=True)
    if cfg.eval_only:
        print(f"val {state.objective.criterion} {evaluate(state):.4f} nats per position")
    elif state.step >= cfg.max_iters:
        print(f"nothing to do: step {state.step} of max_iters={cfg.max_iters} is done")
    else:
        with listening() as state.signals:
            loop(state)
    if state.step >= cfg.max_iters or not state.stopping:
        return None
    saved = f"saved at step {state.step}" if cfg.always_save_checkpoint else "the best is kept"
    number = state.signals[0] if state.signals else signal.SIGTERM
    return Interrupted(number, f"{saved}; go on with: {again}")


def main(argv: list[str]) -> None:
    if not argv:
        raise UserError(
            "nothing to train: python train.py config/palindrome.py makes a corpus and trains on "
            "it; -h has more"
        )
    cfg, origins = load(Config, argv)
    if cfg.debug == "multinode":
        return agree.compare(cfg, argv)
    cfg = resolve(cfg, origins)
    world = enter_world(cfg)
    try:
        with contextlib.ExitStack() as lock:
            again = command_to_resume(cfg, argv, world)
            interrupted = perform(cfg, origins, world, lock, again)
            if world.size > 1:
                gc.collect()  # free DDP while all processes are alive: later it may hang
                dist.barrier()  # exit together: gloo's threads abort if another process has left
    finally:
        if world.size > 1:
            dist.destroy_process_group()
    if interrupted is not None:
        raise interrupted
    if world.rank == 0 and not cfg.eval_only:
        conclude(cfg)


def conclude(cfg: Config) -> None:
    """Run the demo on the finished checkpoint, and say where it is and what to do with it."""
    ckpt = fsdp.newest(Path(cfg.out_dir))
    if cfg.demo and not cfg.debug:
        run_command(f"{cfg.demo} --ckpt={ckpt}")
    print(f"the model is in {ckpt}; next:")
    for name in ("sample.py", "evaluate.py"):
        print(
            "   ", shlex.join(["python", str(Path(sys.argv[0]).with_name(name)), f"--ckpt={ckpt}"])
        )


if __name__ == "__main__":
    run(main)
