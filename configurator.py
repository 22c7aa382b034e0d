"""Configuration: one flat, frozen, typed dataclass per command; files of overrides; --key=value.

    python train.py config/palindrome.py config/mine.py --batch_size=32
    python train.py config/star_easy.py config/objective/ilm.py

Every positional argument is a Python file, run from left to right in an empty namespace; the
public names that it leaves behind, if they are plain data, override the defaults. So files compose:
one says which data and network, the next which objective. A file may also build on another by an
ordinary `from config.palindrome import *`. The command line always has the last word, wherever it
stands; `--key value` is `--key=value`. Config files are programs and are executed: run only those
you trust.

A run whose `out_dir` nobody sets goes to out/ and the names of its config files, the last first:
out/ilm_star_easy for the second command above.

From another folder: a config file is looked for there and then in this repository; data/ and out/
are below the folder that a command is run in.

A mistake of the user's is a `UserError`: one line on stderr and exit code 2, raised before
anything is written. `run(main)` at the bottom of every command turns it into that.
"""

import dataclasses
import difflib
import importlib
import inspect
import json
import math
import os
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
import time
import types
import typing
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Literal, NoReturn

ROOT = Path(__file__).resolve().parent


class UserError(Exception):
    """Something that the user can put right; its text is one line and names the fix."""

    code = 2  # of the process
    shared = False  # do all processes of a job raise it alike, so that the first one tells it?


class ConfigError(UserError):
    """A bad value, raised by `__post_init__`; `load` adds where the value came from."""

    def __init__(self, key: str, rule: str, value: Any):
        super().__init__(f"{key} must be {rule}, got {value!r}")
        self.key = key


def require(cfg: Any, key: str, ok: bool, rule: str) -> None:
    """Raise ConfigError(`key` must be `rule`, got its value) unless `ok`."""
    if not ok:
        raise ConfigError(key, rule, getattr(cfg, key))


@dataclass(frozen=True)
class Config:
    """Everything that `train.py` can be told. Saved in each checkpoint as plain data."""

    # corpus
    dataset: str = "palindrome"  # folder of the corpus, below data_dir
    data_dir: str = "data"  # where prepared corpora live
    prepare: str = ""  # command that makes the corpus; run when its folder is missing
    block_size: int = 32  # positions per row
    # the run
    out_dir: str = "auto"  # of checkpoints and logs; auto: out/ and the names of the config files
    init_from: str = "scratch"  # scratch | resume | a checkpoint, folder or hub id | auto, auto:ID
    finetune_suffix: str = ""  # what out_dir gets at its end where init_from names weights
    overwrite: bool = False  # replace the run that is in out_dir already
    seed: int = 1337  # every draw derives from it: init, data order, noise, dropout
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on GPUs with it
    compile: Literal["auto", "true", "false"] = "auto"  # forward and loss; auto: on CUDA only
    threads: int = 0  # CPU threads of torch; 0 leaves torch's own choice
    parallel: Literal["ddp", "fsdp"] = "ddp"  # several processes: a whole network each, or parts
    patience: int = 1800  # seconds that a process waits for the others before it gives up
    demo: str = ""  # command run on the finished checkpoint, which is added as --ckpt=
    # the objective
    objective: str = "sedd"  # a name listed in checkpoint.py
    noise: str = "loglinear"  # how many tokens are destroyed at time t: NOISES of diffusion.py
    sigma_min: float = 1e-4  # geometric noise at t = 0
    sigma_max: float = 20.0  # geometric noise at t = 1
    graph: Literal["uniform", "absorb"] = "absorb"  # sedd: noise takes a token to any, or to MASK
    predict: Literal["denoiser", "leave_one_out"] = "denoiser"  # udlm: given a token's own noise?
    scale_by_sigma: bool = True  # sedd, absorb: subtract log(e^sigma - 1) + log n
    normalize: bool = False  # sedd, absorb: scores from a softmax (RADD): a cross-entropy loss
    loss_per: Literal["token", "answer", "sequence"] = "token"  # masked: what it is a mean over
    padding: Literal["learn", "crop", "ignore"] = "learn"  # masked; crop: up to the longest row
    random_length: float = 0.0  # masked: share of micro-batches that are cut to a random length
    token_noise: float = 0.0  # masked, ilm: share of tokens that are wrong, to learn to edit
    importance: bool = False  # masked: draw t where its weight is large: all tokens weigh alike
    block_length: int = 0  # bd3: tokens per block, from left to right; 0: all of them are one
    t_low: float = 0.0  # bd3: noise levels of training, a clipped schedule; 0: as the noise has it
    t_high: float = 1.0  # bd3: evaluate.py names the limits with the least spread
    # insertion
    stop: Literal["stop", "length"] = "stop"  # ilm: learn whether tokens are missing, or how many
    stop_weight: float = 1.0  # ilm: of that loss
    stop_class_weight: float | None = None  # ilm: of rows that miss nothing, the others 1 less it
    eos_weight: float = 1.0  # it: of gaps that miss nothing
    close_prompt: bool = False  # gaps of the prompt, where nothing is ever written, are not scored
    ce_weight: float = 1.0  # idlm: of the loss of tokens
    length_loss_weight: float = 1.0  # idlm: of the loss of their number
    length_loss: Literal["diffusion", "cross_entropy"] = "diffusion"  # idlm: ours, or ln p(n)
    use_diffusion_weight_for_ce: bool = True  # idlm: times rate / total noise
    use_diffusion_weight_for_length_loss: bool = True  # idlm: the same
    use_n_drops_for_ce: bool = True  # idlm: times the number of missing tokens
    use_incomplete_gamma_factor: bool = True  # idlm: the exact rate where all tokens are missing
    send_t_to_model: bool = True  # idlm: the time; False: the total noise
    upstream_rules: bool = False  # idlm: its rates, factors and constants as in the authors' code
    gap_loss: Literal["expectation", "distribution"] = "expectation"  # flex: of missing tokens
    # what is given, in training only
    prefix_shuffle: bool = False  # the given ids of every row in an order of its own
    prefix_noise: float = 0.0  # share of the rows in which some given ids are others: train.py
    # the network
    n_layer: int = 12  # transformer blocks
    n_head: int = 12  # attention heads
    n_embd: int = 768  # width
    time_input: bool = True  # condition every block on the noise level (adaLN)
    zero_time: bool = False  # masked: but tell it noise 0 always, as the published MDLM does
    cond_dim: int = 128  # width of the time embedding
    positions: Literal["rotary", "learned", "both"] = "rotary"  # how a block knows where it is
    dropout: float = 0.0  # on both residual branches; slow on CPU
    n_inner: int = 0  # width inside the MLPs; 0: 4 n_embd. This and the next four: others' weights
    activation: Literal["gelu", "relu"] = "gelu"  # of the MLPs
    norm_bias: bool = False  # layer norms with a bias
    final_norm: bool = True  # a layer norm before the head
    rotary_dims: int = 0  # channels of each attention head that rotary positions turn; 0: all
    backbone: str = ""  # a masked or causal LM of transformers: hub id, folder, JSON; empty: ours
    shift: bool = True  # causal backbone read in both directions: the place before predicts a token
    anneal_steps: int = 0  # the same: steps in which later tokens come into sight; 0: none
    gradient_checkpointing: bool = False  # run blocks again in the backward pass: less memory
    # optimisation
    max_iters: int = 20000  # optimiser steps
    batch_size: int = 64  # rows per micro-batch
    gradient_accumulation_steps: int = 1  # micro-batches per step, counted over all processes
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: block matrices by Muon, the rest by AdamW
    learning_rate: float = 3e-4  # peak, AdamW
    muon_lr: float = 0.01  # peak, Muon
    weight_decay: float = 0.0  # AdamW, on all parameters
    beta1: float = 0.9  # AdamW
    beta2: float = 0.95  # AdamW
    grad_clip: float = 1.0  # global gradient norm; 0 turns clipping off
    # learning rate, as a multiple of the peak
    lr_schedule: Literal["constant", "cosine", "linear", "flat_cosine"] = "cosine"  # after warm-up
    warmup_iters: int = 0  # linear from 1/warmup_iters to 1
    lr_decay_iters: int | None = None  # where the decay ends; None: max_iters
    min_lr: float = 0.1  # final multiple of the peak
    # average of the weights, used for evaluation and sampling
    ema_decay: float = 0.999  # 0 turns it off
    ema_warmup: bool = True  # decay no larger than (1 + k) / (10 + k) after k updates
    # evaluation, checkpoints, logs
    eval_interval: int = 1000  # steps between evaluations, each with a checkpoint before it
    eval_iters: int = 10  # validation batches, with fixed noise
    eval_only: bool = False  # evaluate the checkpoint of init_from and stop
    always_save_checkpoint: bool = True  # False: only when the validation bound is the best so far
    save_errors: Literal["stop", "warn"] = "stop"  # when a checkpoint cannot be written; or go on
    skip_nonfinite: int = 0  # steps whose loss or gradient is not finite that may be left out
    snapshot_interval: int = 0  # steps between numbered checkpoints, ckpt_005000.pt; 0: none
    keep_snapshots: int = 0  # so many of them, the newest; 0: all
    sample_interval: int = 0  # steps between samples, printed and in samples.jsonl; 0: none
    num_samples: int = 4  # of sample_interval
    log_interval: int = 100  # steps between lines of log.jsonl and of the terminal
    debug: Literal["", "overfit", "multinode"] = ""  # learn a row by heart; try two nodes
    wandb_log: bool = False  # also log to Weights & Biases
    wandb_project: str = "anyorder"  # its project
    wandb_run_name: str = ""  # its run; empty: the name of out_dir

    def __post_init__(self):
        sizes = "block_size n_layer n_head n_embd cond_dim batch_size gradient_accumulation_steps"
        counts = " max_iters eval_interval eval_iters log_interval patience num_samples"
        for key in (sizes + counts).split():
            require(self, key, getattr(self, key) >= 1, "at least 1")
            require(self, key, getattr(self, key) < 1 << 31, "below 2^31")
        rates = "learning_rate muon_lr weight_decay grad_clip"
        counts = " warmup_iters threads seed skip_nonfinite anneal_steps"
        counts += " snapshot_interval keep_snapshots sample_interval"
        for key in (rates + counts).split():
            require(self, key, getattr(self, key) >= 0, "at least 0")
        for key in "dropout ema_decay beta1 beta2".split():
            require(self, key, 0 <= getattr(self, key) < 1, "at least 0 and below 1")
        require(self, "min_lr", 0 <= self.min_lr <= 1, "between 0 and 1, a multiple of the peak")
        step = self.n_head * (1 if self.positions == "learned" else 2)  # rotary turns pairs
        require(
            self, "n_embd", self.n_embd % step == 0, f"a multiple of {step} (n_head={self.n_head})"
        )
        size = self.n_embd // self.n_head
        good = self.rotary_dims % 2 == 0 and 0 <= self.rotary_dims <= size
        require(self, "rotary_dims", good, f"even, and at most {size}, the channels of a head")
        a = self.stop_class_weight
        require(self, "stop_class_weight", a is None or 0 <= a <= 1, "between 0 and 1")
        weights = "stop_weight eos_weight ce_weight length_loss_weight"
        for key in ("block_length n_inner " + weights).split():
            require(self, key, getattr(self, key) >= 0, "at least 0")
        require(self, "t_low", 0 <= self.t_low < 1, "at least 0 and below 1")
        above = f"above t_low={self.t_low} and at most 1"
        require(self, "t_high", self.t_low < self.t_high <= 1, above)
        for key in ("random_length", "prefix_noise", "token_noise"):
            require(self, key, 0 <= getattr(self, key) <= 1, "between 0 and 1")
        above = f"above 0 and below sigma_max={self.sigma_max}"
        require(self, "sigma_min", 0 < self.sigma_min < self.sigma_max, above)
        end, above = self.lr_decay_iters, f"above warmup_iters={self.warmup_iters}"
        require(self, "lr_decay_iters", end is None or end > self.warmup_iters, above)


# ---- reading values ----------------------------------------------------------------------------

BOOLS = {"true": True, "1": True, "false": False, "0": False}

# Keys that have been renamed: the present name -> the former one, which old command lines, config
# files and checkpoints still use. A former name means the present one that the class has. The last
# two are those of the ModernBERT diffusion model's inference.py.
ALIASES = {
    "lr_schedule": "schedule",
    "unmask_schedule": "schedule",
    "ckpt": "safetensors_path",
    "steps": "num_steps",
}

# Keys of `Config` that are gone, and the value that always holds now: what old command lines,
# config files and checkpoints may still say; any other value is refused.
DROPPED = {
    "muon_momentum": 0.95,
}

# Fields that are a name in a registry, which checkpoint.py knows and is asked for
NAMES = "objective noise sampler unmask_schedule remask cache".split()


def present_name(cls: type, name: str) -> str:
    """The field of `cls` that `name` means: itself, or what it is called now."""
    fields = {f.name for f in dataclasses.fields(cls)}
    renamed = (new for new, old in ALIASES.items() if old == name and new in fields)
    return name if name in fields else next(renamed, name)


def _parts(kind: Any) -> tuple[list, tuple]:
    """Annotation -> (plain types, literal choices): `int | None` -> ([int, NoneType], ())."""
    if typing.get_origin(kind) is Literal:
        return [], typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return list(typing.get_args(kind)), ()
    return [kind], ()


def one_of(choices: Iterable[str]) -> str:
    """The choices for a message or -h; an empty one is named."""
    return "one of " + ", ".join(choice or "'' (empty)" for choice in choices)


def choices_of(cls: type, key: str) -> list[str]:
    """What the field may be, if it is one of several names; they are in its annotation, or in a
    registry."""
    if key in NAMES:
        return importlib.import_module("checkpoint").names_of(key)
    return list(_parts(typing.get_type_hints(cls)[key])[1])


def _describe(kind: Any) -> str:
    members, choices = _parts(kind)
    if choices:
        return one_of(choices)
    return " or ".join("None" if m is type(None) else m.__name__ for m in members)


def _from_text(text: str, kind: Any) -> Any:
    """Command-line text -> value of type `kind`. Raises ValueError if it is none."""
    members, choices = _parts(kind)
    if choices:
        if text.lower() in choices:  # --compile=False as everybody writes it
            return text.lower()
        raise ValueError(text)
    if type(None) in members and text.lower() == "none":
        return None
    if str in members:
        return text  # raw: `12`, `a=b` and the empty string are good strings
    if bool in members:
        return BOOLS[text.lower()]
    value = (int if int in members else float)(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _from_data(value: Any, kind: Any) -> Any:
    """Value from a config file -> the same, checked. int serves as float. Raises ValueError."""
    members, choices = _parts(kind)
    if choices:
        value = str(value).lower() if isinstance(value, bool) else value
        if isinstance(value, str) and value in choices:
            return value
    elif type(value) is int and float in members and int not in members:
        return float(value)
    elif type(value) in members and (type(value) is not float or math.isfinite(value)):
        return value
    raise ValueError(value)


def _refuse(origin: str, message: str) -> NoReturn:
    raise UserError(f"config error: {origin}: {message}")


def _convert(cls: type, origin: str, key: str, value: Any, reader: Callable) -> Any:
    kinds = typing.get_type_hints(cls)
    if key not in kinds:
        near = difflib.get_close_matches(key, kinds, 1)
        hint = f"; did you mean {near[0]}?" if near else "; -h lists all keys"
        _refuse(origin, f"unknown key {key}{hint}")
    try:
        return reader(value, kinds[key])
    except (ValueError, KeyError):
        _refuse(origin, f"{key} must be {_describe(kinds[key])}, got {value!r}")


def _is_dropped(cls: type, origin: str, key: str, value: Any, reader: Callable) -> bool:
    """Whether it is a key that is gone, and may be passed over. Raises UserError for a value that
    no longer can be chosen."""
    if cls is not Config or key not in DROPPED:
        return False
    try:
        same = reader(value, type(DROPPED[key])) == DROPPED[key]
    except (ValueError, KeyError):
        same = False
    if not same:
        _refuse(origin, f"{key} is always {DROPPED[key]!r} now, got {value!r}; leave it out")
    return True


def _convert_all(cls: type, origin: str, given: dict[str, Any], reader: Callable) -> dict[str, Any]:
    """All that one origin gives, under present names and checked. Raises UserError."""
    values: dict[str, Any] = {}
    for name, value in given.items():
        key = present_name(cls, name)
        if _is_dropped(cls, origin, key, value, reader):
            continue
        value = _convert(cls, origin, key, value, reader)
        if values.get(key, value) != value:
            both = f"{ALIASES[key]} is the former name of {key}"
            _refuse(origin, f"{both}, and they differ: {values[key]!r} and {value!r}; keep {key}")
        values[key] = value
    if "objective" in values:
        values = _spelled_out(cls, origin, values)
    for key in values.keys() & {"objective", "noise"}:
        if values[key] not in choices_of(cls, key):
            _refuse(origin, f"{key} must be {one_of(choices_of(cls, key))}, got {values[key]!r}")
    return values


def _spelled_out(cls: type, origin: str, values: dict[str, Any]) -> dict[str, Any]:
    """The values with an objective by its published name, such as mdlm, as what it is here."""
    name, fields = values["objective"], {f.name for f in dataclasses.fields(cls)}
    published = importlib.import_module("checkpoint").PUBLISHED.get(name, {})
    means = {key: value for key, value in published.items() if key in fields}
    for key in (means.keys() & values.keys()) - {"objective"}:
        if values[key] != means[key]:
            clash = f"objective={name} has {key}={means[key]!r}, not {values[key]!r}"
            _refuse(origin, f"{clash}; write objective={means['objective']} to choose it")
    return values | means


def _find(path: str) -> Path | None:
    """A config file, in the working directory or in this repository."""
    return next((p for p in (Path(path), ROOT / path) if p.is_file()), None)


def _nearest(path: str) -> str:
    """The committed config file whose name is most like that of `path`, or nothing."""
    files = {p.stem: str(p.relative_to(ROOT)) for p in sorted((ROOT / "config").rglob("*.py"))}
    near = difflib.get_close_matches(Path(path).stem, files, 1)
    return files[near[0]] if near else ""


def _composed(path: str) -> list[str]:
    """The file itself; or, for config/OBJECTIVE_star_LEVEL.py of an earlier layout, the two files
    that say the same now, which are printed."""
    objective, _, data = Path(path).stem.partition("_")
    folders = ["objective"] if data in ("star_tiny", "star_small") else ["published", "objective"]
    files = [[f"config/{data}.py", f"config/{folder}/{objective}.py"] for folder in folders]
    there = [pair for pair in files if all((ROOT / file).is_file() for file in pair)]
    if _find(path) or not data.startswith("star_") or not there:
        return [path]
    if os.environ.get("RANK", "0") == "0":
        print(f"{path} is now: {' '.join(there[0])}", file=sys.stderr)
    return there[0]


def _out_dir(files: list[str]) -> str:
    """out/ilm_star_easy for config/star_easy.py config/objective/ilm.py; out without files."""
    names = [Path(file).stem for file in reversed(files)]
    return "out/" + "_".join(names) if names else "out"


def _read_file(path: str) -> dict[str, Any]:
    """Run one override file -> its public names that are plain data."""
    found = _find(path)
    if found is None:
        near = _nearest(path)
        hint = f"; did you mean {near}?" if near else ""
        raise UserError(f"config error: no such config file: {path}{hint}")
    try:
        names = runpy.run_path(str(found))
    except UserError:
        raise
    except (Exception, SystemExit) as e:  # whatever a user's program may do; told in one line
        raise UserError(f"config error: {path}: {type(e).__name__}: {e}") from e
    skip = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
    return {k: v for k, v in names.items() if not k.startswith("_") and not isinstance(v, skip)}


def _file(cls: type, word: str) -> str:
    """The config file that a word of the command line names. Anything else is refused, with the
    spelling that is meant."""
    key, equals, text = word.partition("=")
    fields = {f.name for f in dataclasses.fields(cls)}
    if equals:
        hint = f", such as {_nearest(text)}" if _nearest(text) else ""
        _refuse("command line", f"unknown key {key}; a config file is named by its path{hint}")
    if word.endswith(".py"):
        return word
    for path in (f"{word}.py", f"config/{word}.py"):
        if _find(path):
            _refuse("command line", f"write {path} instead of {word}")
    hint = f"; write --{word}=value" if present_name(cls, word) in fields else ""
    _refuse("command line", f"{word!r} is neither a .py file nor --key=value{hint}")


def _foreign(cls: type, word: str) -> str:
    """What to do about an argument of another project, or one in the spelling of Hydra, such as
    training.batch_size=64; empty if it is neither."""
    key, _, text = word.lstrip("-+~").partition("=")
    name = key.replace("-", "_")
    *groups, last = name.split(".")
    fields = {f.name for f in dataclasses.fields(cls)}

    def theirs(key: str) -> str:
        tables = importlib.import_module("pretrained.foreign")
        return tables.instead(cls.__name__, key, text, word)

    def ours(part: str) -> str:
        known = present_name(cls, part) in fields
        return f"write --{part}={text} instead of {word}" if known else ""

    told = theirs(f"{name}={text}".lower()) or theirs(f"{last}={text}".lower())
    told = told or (theirs(name) if groups else "") or ours(last) or theirs(last)
    return told or next(filter(None, map(ours, reversed(groups))), "")  # noise.type is noise


def split_arguments(cls: type, argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Arguments -> (config files, {key: text}). A key may be followed by its value instead of
    holding it, and a bool by none: --show is --show=true. Raises UserError for anything else."""
    kinds = typing.get_type_hints(cls)
    words, files, texts, foreign = deque(argv), [], {}, []
    while words:
        word = words.popleft()
        if not word.startswith("-"):
            if "=" in word and (told := _foreign(cls, word)):
                foreign.append(told)
                continue
            files += _composed(_file(cls, word))
            continue
        key, equals, text = word.lstrip("-").partition("=")
        key = key.replace("-", "_")
        if not word.startswith("--"):
            _refuse("command line", f"write --{key}=value instead of {word}")
        kind = kinds.get(present_name(cls, key))
        if not equals and kind is bool:
            text = words.popleft() if words and words[0].lower() in BOOLS else "true"
        elif not equals and words and not words[0].startswith("--"):
            text = words.popleft()
        elif not equals and kind is not None:
            _refuse("command line", f"write --{key}=value instead of {word}")
        shown = f"--{key}={text}" if text else f"--{key}"
        if kind is None and key not in DROPPED and (told := _foreign(cls, shown)):
            foreign.append(told)
        texts[key] = text
    if foreign:
        _refuse("command line", "; ".join(foreign))
    return files, texts


def respelled(cls: type, argv: list[str], **changes: str | None) -> list[str]:
    """The arguments with other values of some keys; a key whose value is None is left out."""
    files, texts = split_arguments(cls, argv)
    return [*files, *(f"--{k}={v}" for k, v in (texts | changes).items() if v is not None)]


def load(cls: type, argv: list[str]) -> tuple[Any, dict[str, str]]:
    """Arguments -> (frozen instance of `cls`, {key: origin} of all values that were given).

    Files apply from left to right and the command line last. Raises UserError; `-h` prints the
    fields with their comments and exits 0.
    """
    if "-h" in argv or "--help" in argv:
        print(usage(cls))
        raise SystemExit(0)
    values, origins = {}, {}
    files, texts = split_arguments(cls, argv)
    for path in files:
        given = _convert_all(cls, path, _read_file(path), _from_data)
        values |= given
        origins |= dict.fromkeys(given, path)
    given = _convert_all(cls, "command line", texts, _from_text)
    if given.get("init_from") == "auto" and "init_from" in values:
        given["init_from"] = f"auto:{values['init_from']}"  # the weights of a file are not lost
    values |= given
    origins |= dict.fromkeys(given, "command line")
    cfg = build(cls, values, origins)
    if getattr(cfg, "out_dir", "") == "auto":
        cfg = dataclasses.replace(cfg, out_dir=_out_dir(files))
        origins["out_dir"] = "auto"
    return cfg, origins


def build(cls: type, values: dict[str, Any], origins: dict[str, str] | None = None) -> Any:
    """Values -> instance of `cls`; a broken rule is a UserError that names where it came from."""
    try:
        return cls(**values)
    except ConfigError as e:
        _refuse((origins or {}).get(e.key, "default"), str(e))


def checked_values(cls: type, saved: dict[str, Any], origin: str) -> dict[str, Any]:
    """The plain dict of a checkpoint with values of the right types; others, and unknown keys, are
    refused."""
    return _convert_all(cls, origin, {str(k): v for k, v in saved.items()}, _from_data)


def from_saved(cls: type, saved: dict[str, Any], origin: str) -> Any:
    """The plain dict of a checkpoint -> instance of `cls`; unknown or bad keys are refused."""
    values = checked_values(cls, saved, origin)
    return build(cls, values, dict.fromkeys(values, origin))


# ---- telling about them ------------------------------------------------------------------------


def comments(cls: type) -> dict[str, tuple[str, str]]:
    """Field -> (heading, comment) in the source of `cls` and of what it inherits from: the comment
    line above its group of fields, and the comment that trails it."""
    found = {}
    for part in reversed(cls.__mro__[:-1]):
        heading = ""
        for line in inspect.getsource(part).splitlines():
            code, _, comment = line.partition("  # ")
            name, colon, _ = code.strip().partition(":")
            if line.strip().startswith("# "):
                heading = line.strip()[2:]
            elif colon and comment and name.isidentifier():
                found[name] = (heading, comment.strip())
    return found


def usage(cls: type) -> str:
    """The text of -h: what the command does, then every field with default, comment and choices,
    in the groups of its class."""
    main = sys.modules["__main__"].__spec__  # of `python -m`; None for a file
    script = f"-m {main.name.removesuffix('.__main__')}" if main else Path(sys.argv[0]).name
    about = sys.modules["__main__" if cls is Config else cls.__module__].__doc__ or ""
    head = f"usage: python {script} [config/FILE.py ...] [--key=value ...]"
    lines, group = [head, "", *about.splitlines()], None
    told = comments(cls)
    for field in dataclasses.fields(cls):
        heading, comment = told.get(field.name, ("", ""))
        if heading != group:
            lines += ["", heading] if heading else [""]
            group = heading
        shown = f"--{field.name}={field.default}"
        lines.append(f"  {shown:<38} {comment}".rstrip())
        choices = choices_of(cls, field.name)
        if choices:
            lines += textwrap.indent(textwrap.fill(one_of(choices), 58), " " * 41).splitlines()
    return "\n".join(lines)


def describe(cfg: Any, origins: dict[str, str]) -> str:
    """The values that differ from the defaults, one per line, each with its origin."""
    changed = [f for f in dataclasses.fields(cfg) if getattr(cfg, f.name) != f.default]
    rows = [(f"{f.name} = {getattr(cfg, f.name)!r}", origins.get(f.name, "")) for f in changed]
    return "\n".join(f"  {value:<50} {origin}".rstrip() for value, origin in rows)


def _without_nan(values: Any) -> Any:
    """NaN, such as the standard error of a single text, becomes null: JSON has no NaN."""
    if isinstance(values, dict):
        return {key: _without_nan(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_without_nan(value) for value in values]
    return None if isinstance(values, float) and values != values else values


def save_json(values: Any, path: Path) -> None:
    """Write a config, or a dict of plain data, to a file, whole or not at all."""
    if dataclasses.is_dataclass(values):
        values = dataclasses.asdict(values)
    temporary = path.with_name(path.name + ".tmp")
    try:
        text = json.dumps(_without_nan(values), indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror}") from e


# Versions below which a library does not work here, as requirements-full.txt says.
OLDEST = {"transformers": "5.1"}


def optional(module: str, package: str | None = None) -> Any:
    """Import an optional library where it is used; one line with the install command if it is
    absent or older than OLDEST says."""
    needed = OLDEST.get(module)
    install = f"pip install '{module}>={needed}'" if needed else f"pip install {package or module}"
    try:
        library = __import__(module, fromlist=["_"])
    except ImportError as e:
        raise UserError(f"{module} is not installed: {install}") from e
    if needed and _release(library.__version__) < _release(needed):
        found = f"{module} {library.__version__} is too old, {needed} or newer is needed"
        raise UserError(f"{found}: {install}")
    return library


def _release(version: str) -> list[int]:
    """5.1.0.dev0 -> [5, 1, 0]: the numbers at the beginning."""
    return [int(part) for part in re.match(r"[0-9.]*", version)[0].split(".") if part]


# What the root reaches in the folders built on it: asked for by name, imported only then.
ROOMS = {
    "cascade": "cascade.chain",
    "compare": "analysis.compare",
    "mirror": "tasks.mirror",
    "patch": "patches.commands",
    "report": "analysis.report",
}
# meta["task"] of a corpus -> the module whose `evaluate` says what samples are worth there
TASKS = {
    "palindrome": "tasks.palindromes",
    "grammar": "tasks.grammar",
    "diff": "patches.commands",
    "star": "tasks.puzzles",
    "zebra": "tasks.puzzles",
    "countdown": "tasks.puzzles",
    "sudoku": "tasks.puzzles",
    "addition": "tasks.puzzles",
}
PUZZLES = tuple(name for name, module in TASKS.items() if module == "tasks.puzzles")


def room(name: str) -> types.ModuleType:
    """The module of ROOMS or TASKS by name, imported when it is asked for: all of them build on the
    files at the root, which therefore never import them."""
    return importlib.import_module({**ROOMS, **TASKS}[name])


# scripts of an earlier layout, as old configs, checkpoints and job files name them -> their modules
MOVED = {
    "bench.py": "bench",
    "cascade.py": "cascade.chain",
    "causal.py": "pretrained.causal",
    "curves.py": "analysis.curves",
    "harness.py": "analysis.harness",
    "pieces.py": "parallel.convert",
    "prepare_diff.py": "patches.prepare",
    "prepare_stages.py": "cascade.stages",
    "prepare_stars.py": "tasks.stars",
    "results.py": "analysis.results",
    "scale.py": "parallel.scale",
}


def our_command(command: str) -> list[str]:
    """`FILE.py ...` or `-m MODULE ...` of this repository -> the words that run it, from any
    folder. A script that has moved is found under its new name, which is printed."""
    first, *rest = shlex.split(command)
    if first in MOVED:
        print(f"{first} is now: python -m {MOVED[first]}", file=sys.stderr)
        first, rest = "-m", [MOVED[first], *rest]
    if first == "-m":
        code = f"import runpy, sys; sys.path[0] = {str(ROOT)!r}; sys.argv = sys.argv[1:]; "
        code += f"runpy.run_module({rest[0]!r}, run_name='__main__', alter_sys=True)"
        return [sys.executable, "-c", code, *rest]
    return [sys.executable, str(ROOT / first), *rest]


def run_command(command: str) -> None:
    """Run one of our own commands, as a user would."""
    alone = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if subprocess.run(our_command(command), env=alone).returncode:
        raise UserError(f"this command failed: python {command}")


def _tell(error: UserError, rank: int) -> None:
    """The line on stderr. Once is enough for a job: where its first process has told something,
    torchrun ends the others within seconds."""
    if rank and error.shared:
        return
    if rank:
        time.sleep(3)
    told = f"process {rank}: {error}" if rank else str(error)
    print(told.replace("\n", " "), file=sys.stderr)


def escape_unprintable() -> None:
    """Print what the encoding of stdout or stderr does not have (ASCII, Latin-1, or a broken
    character of a file) as an escape such as \\xe9: no text is a reason to stop."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # None if closed by who started us
            stream.reconfigure(errors="backslashreplace")


def run(main: Callable[[list[str]], None]) -> NoReturn:
    """Call a command's `main` and exit: 0 when done, 2 after the one line of a UserError."""
    escape_unprintable()
    try:
        main(sys.argv[1:])
        if sys.stdout is not None:  # closed by who started us
            sys.stdout.flush()
    except UserError as e:
        _tell(e, int(os.environ.get("RANK", "0")))
        raise SystemExit(e.code) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # `| head` has read enough; nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    raise SystemExit(0)
