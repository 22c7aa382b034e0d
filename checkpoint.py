"""Checkpoints: save and load our own, use published ones, export to safetensors.

`ckpt.pt` holds tensors and built-in types only and is read with weights_only=True, never otherwise:

    format     version of this layout
    config     the Config as a dict
    corpus     meta.json and the tokenizer's files, so that the checkpoint alone is enough
    model      parameters by name; ema: the same names, averaged, or None
    optimizer  list of optimiser states
    step, best steps done; lowest validation bound so far, nats per target position

It is written to a temporary file, flushed to disk and renamed, and the one before it stays as
`ckpt_prev.pt`. Names and shapes are strict: a mismatch is refused with a list.
"""

import dataclasses
import difflib
import json
import os
import re
from pathlib import Path
from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor, nn

from autoregressive import LeftToRight, RandomOrder
from configurator import Config, UserError, checked_values, from_saved, one_of, optional
from corpus import Corpus, check_meta
from diffusion import (
    NOISES,
    UDLM,
    BlockDiffusion,
    Masked,
    MaskedTokens,
    ScoreEntropy,
    has_limits,
)
from insertion import IDLM, FlexMDM, Insertion, InsertionTransformer
from model import Transformer
from objective import CHOICES, Objective
from parallel import fsdp
from pretrained import gguf, published
from pretrained.causal import AnyOrderLM, CausalLM
from pretrained.files import described, read_tensors
from pretrained.masked import MaskedLM
from pretrained.published import CAUSAL
from tokenizer import Tokenizer, tokenizer_from

# ==================================================================================================
# Every objective by name; network, objective and device from a Config and a corpus
#
# To add an objective, write its class beside its relatives and a line in OBJECTIVES: its
# `from_config`, or any function from (config, vocabulary size, special ids) to an instance.
# ==================================================================================================


OBJECTIVES: dict[str, Callable[[Config, int, dict[str, int]], Objective]] = {
    "sedd": ScoreEntropy.from_config,
    "udlm": UDLM.from_config,
    "masked": Masked.from_config,
    "bd3": BlockDiffusion.from_config,
    "mlm": MaskedTokens.from_config,
    "ar": LeftToRight.from_config,
    "xlnet": RandomOrder.from_config,
    "ilm": Insertion.from_config,
    "idlm": IDLM.from_config,
    "it": InsertionTransformer.from_config,
    "flex": FlexMDM.from_config,
}

# what a network that was trained from left to right can be made to learn in any order
ANY_ORDER = ("masked", "mlm", "sedd", "bd3")

# Names in the papers of what is one of these with some settings; written next to other values of
# the same settings they are refused.
PUBLISHED: dict[str, dict[str, Any]] = {
    "mdlm": {"objective": "masked", "noise": "loglinear"},
    "llada": {"objective": "masked", "noise": "affine", "time_input": False},
    "radd": {
        "objective": "sedd",
        "graph": "absorb",
        "noise": "loglinear",
        "normalize": True,
        "time_input": False,
    },
    "bd3lm": {"objective": "bd3"},
    "flexmdm": {"objective": "flex"},
}


# a corpus with all that an objective may ask for, where none is there yet
ANY_CORPUS = {"vocab_size": 5, "specials": {"pad": 1, "bos": 2, "eos": 3, "mask": 4}}


def names_of(key: str) -> list[str]:
    """What `objective`, `noise`, and the options of samplers may be."""
    if key == "sampler":
        cfgs = [Config(objective=name, noise="linear") for name in OBJECTIVES]
        samplers = [build_objective(cfg, ANY_CORPUS).samplers for cfg in cfgs]
        return list(dict.fromkeys(["auto", *(name for names in samplers for name in names)]))
    return list({"objective": OBJECTIVES | PUBLISHED, "noise": NOISES, **CHOICES}[key])


def unused_fields(cfg: Config) -> list[str]:
    """The fields of other objectives than that of `cfg`. An objective that does not declare its
    own may use any."""
    classes = {name: getattr(make, "__self__", Objective) for name, make in OBJECTIVES.items()}
    own = classes[cfg.objective].config_fields
    if own is None:
        return []
    every = [key for cls in classes.values() for key in cls.config_fields or ()]
    unused = [key for key in every if key not in own]
    if "noise" in own and not has_limits(cfg):
        unused += ["sigma_min", "sigma_max"]
    if not cfg.backbone or cfg.objective not in ANY_ORDER:
        unused += ["shift", "anneal_steps"]
    return list(dict.fromkeys(unused))


def build_objective(cfg: Config, meta: dict[str, Any]) -> Objective:
    """The objective of a config on the vocabulary of a corpus (its meta.json)."""
    if cfg.objective not in OBJECTIVES:
        rule = f"objective must be {one_of(OBJECTIVES)}"
        raise UserError(f"config error: {rule}, got {cfg.objective!r}")
    return OBJECTIVES[cfg.objective](cfg, meta["vocab_size"], meta["specials"])


def build_network(cfg: Config, objective: Objective) -> Transformer | MaskedLM:
    """The network that the objective needs, freshly initialised from torch's global generator."""
    if "network" in objective.network_kwargs:
        return objective.network_kwargs["network"](cfg, objective.network_kwargs["vocab_size"])
    if cfg.backbone:
        return build_backbone(cfg, objective)
    timed = objective.network_kwargs["time"] and cfg.time_input
    if timed and not cfg.final_norm:
        raise UserError("final_norm=False needs time_input=False: the noise level shifts that norm")
    net = Transformer(
        vocab_size=objective.network_kwargs["vocab_size"],
        n_layer=cfg.n_layer,
        n_head=cfg.n_head,
        n_embd=cfg.n_embd,
        cond_dim=cfg.cond_dim if timed else 0,
        positions=cfg.positions,
        block_size=cfg.block_size + objective.inserts,  # and CLS
        causal=objective.network_kwargs["causal"],
        dropout=cfg.dropout,
        n_inner=cfg.n_inner,
        norm_bias=cfg.norm_bias,
        activation=cfg.activation,
        final_norm=cfg.final_norm,
        rotary_dims=cfg.rotary_dims,
        heads=objective.network_kwargs.get("heads"),
    )
    net.gradient_checkpointing = cfg.gradient_checkpointing
    return net


def build_backbone(cfg: Config, objective: Objective) -> MaskedLM:
    """The network of transformers that the JSON of cfg.backbone describes, with cfg.dropout instead
    of its own dropout."""
    try:
        backbone = json.loads(cfg.backbone)
        name, rows = backbone["model_type"], objective.network_kwargs["vocab_size"]
        backbone["vocab_size"] = int(backbone["vocab_size"])
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"backbone: {cfg.backbone[:60]!r} is not the JSON of a model") from e
    causal, any_order = name in CAUSAL, not objective.network_kwargs["causal"]
    if not causal and not any_order:
        raise UserError(f"objective={cfg.objective} reads from left to right, {name} cannot")
    if causal and any_order and cfg.objective not in ANY_ORDER:
        kinds = ", ".join(ANY_ORDER)
        raise UserError(f"{name} reads from left to right: add --objective=ar, or any of {kinds}")
    if cfg.objective == "bd3" and not causal:
        raise UserError(f"objective=bd3 needs a cache of keys and values, which {name} has not")
    if cfg.objective == "bd3" and (cfg.shift or cfg.anneal_steps):
        raise UserError(
            f"objective=bd3 on {name} needs --shift=False and no anneal_steps: a block "
            "begins anew, no place before it predicts its first token"
        )
    if cfg.anneal_steps and not (causal and any_order):
        raise UserError(
            f"anneal_steps: {name} with objective={cfg.objective} has no mask to anneal"
        )
    if cfg.time_input and objective.network_kwargs["time"]:
        raise UserError(f"{name} has no input for the noise level: add --time_input=False")
    if backbone["vocab_size"] < rows:
        raise UserError(f"{name} has {backbone['vocab_size']} tokens, this objective needs {rows}")
    dropouts = re.compile(r"(?<!classifier_)dropout(_prob)?$|(attn|resid|embd)_pdrop$")
    backbone |= {k: cfg.dropout for k in backbone if dropouts.search(k)}
    transformers = optional("transformers")
    try:
        config = transformers.AutoConfig.for_model(**backbone)
        factory = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForMaskedLM
        attention = {} if causal else {"attn_implementation": "sdpa"}  # not all causal ones have it
        network = factory.from_config(config, dtype=torch.float32, **attention)
    except Exception as e:  # transformers validates by exceptions of many types
        raise UserError(f"backbone: {str(e).splitlines()[0][:200]}") from e
    if cfg.gradient_checkpointing:
        method = "gradient_checkpointing_enable"  # the name before transformers 5.2x
        getattr(network, "activation_checkpointing_enable", getattr(network, method))(
            {"use_reentrant": False}
        )
    if causal and any_order:
        net = AnyOrderLM(network, rows, cfg.shift)
    else:
        net = (CausalLM if causal else MaskedLM)(network, rows)
    if cfg.block_size > net.longest:
        raise UserError(f"block_size={cfg.block_size}, but {name} has {net.longest} positions")
    return net


# ==================================================================================================
# Save, load, export
# ==================================================================================================


FORMAT = 1
FIELDS = {
    "format": int,
    "config": dict,
    "corpus": dict,
    "model": dict,
    "ema": (dict, type(None)),
    "optimizer": list,
    "step": int,
    "best": float,
}


BLOCK = 512  # block_size for a published language model, or fewer if it has fewer positions
# fields of Config that are taken over with the weights
ARCHITECTURE = (
    "objective graph noise sigma_min sigma_max scale_by_sigma normalize "
    "n_layer n_head n_embd cond_dim time_input zero_time positions backbone "
    "n_inner activation norm_bias final_norm rotary_dims shift stop send_t_to_model"
).split()


class Model(NamedTuple):
    """A network with its objective, tokenizer and config."""

    net: nn.Module
    objective: Objective
    tokenizer: Tokenizer
    config: Config
    meta: dict[str, Any]  # of the corpus
    step: int


# ---- our own -----------------------------------------------------------------------------------


def save(state: dict[str, Any], path: Path) -> None:
    """Write `state` to `path` atomically; the file that was there becomes *_prev.pt.

    Raises UserError if writing fails; `path` is then untouched.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():  # by a hard link, so that `path` exists at every moment
            backup = path.with_name(f"{path.stem}_prev{path.suffix}")
            spare = path.with_name(f"{backup.name}.{os.getpid()}.tmp")
            spare.unlink(missing_ok=True)
            os.link(path, spare)
            os.replace(spare, backup)
            spare.unlink(missing_ok=True)  # os.replace does nothing if both are the same file
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except (OSError, RuntimeError) as e:  # torch raises RuntimeError on a full disk
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {e}; the checkpoint before it is intact") from e


def read(path: str | Path) -> dict[str, Any]:
    """The dictionary in `path`, on the CPU, with CRC, types of the fields and version checked.

    Raises UserError if the file is absent, damaged, from another version, or holds anything but
    tensors and plain data (no code in it is executed).
    """
    path = Path(path)
    state = _sharded().read(path) if fsdp.saves(path) else read_tensors(path)
    return checked(state, path)


def checked(state: Any, path: Path) -> dict[str, Any]:
    """`state` unchanged. Raises UserError if a field is missing or has a wrong type, or the format
    is another version."""
    for key, kind in FIELDS.items():
        if not isinstance(state, dict) or key not in state:
            ours = isinstance(state, dict) and "format" in state
            found = "" if ours else f"; this is {described(state, path)}"
            raise UserError(f"{path}: not a checkpoint of this project: {key} is missing{found}")
        if not isinstance(state[key], kind):
            raise UserError(f"{path}: {key} is a {type(state[key]).__name__}, which is wrong")
    if state["format"] != FORMAT:
        raise UserError(f"{path}: format {state['format']}, but this code reads format {FORMAT}")
    for key in ("meta", "files"):
        if not isinstance(state["corpus"].get(key), dict):
            raise UserError(f"{path}: corpus has no {key}")
    for key in ("model", "ema"):
        for name, value in (state[key] or {}).items():
            if not (isinstance(name, str) and isinstance(value, Tensor)):
                raise UserError(f"{path}: {key}: {str(name)[:40]!r} is not a tensor")
    return state


def store(state: dict[str, Any], file: Path, sharded: bool) -> None:
    """Save as `file`, called by one process; or sharded, as the folder of that name without the
    suffix, called by all processes."""
    if not sharded:
        save(state, file)
        return fsdp.retire_other(file)
    folder = file.with_suffix("")
    _sharded().save(state, folder)
    if torch.distributed.get_rank() == 0:
        fsdp.retire_other(folder)


def open_parts(folder: Path) -> Any:
    """The last save of a sharded run, a `sharded_checkpoint.Saved`; called by all processes."""
    parts = _sharded().Saved(folder)
    checked(parts.head, parts.path)
    return parts


def _sharded() -> Any:
    from parallel import sharded_checkpoint  # the import takes a second, and few runs need it

    return sharded_checkpoint


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones once, under their first name."""
    weights, seen = {}, set()
    for name, value in net.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            weights[name] = value.detach()
        seen.add(id(value))
    return weights


def load_weights(net: nn.Module, state: dict[str, Tensor], where: str, grow: bool = False) -> None:
    """Copy `state` into `net`. Raises UserError for a missing, unexpected or differently shaped
    name; of tied names one is enough. grow: rows of new tokens, which `state` lacks, keep their
    initial values."""
    weights, names = weights_of(net), net.state_dict(keep_vars=True)
    first = {id(names[name]): name for name in weights}
    tied = {k: first[id(v)] for k, v in names.items() if k not in weights}
    unexpected = [f"unexpected {k}" for k in state if k not in names]
    unequal = [
        f"{k} differs from {tied[k]}, to which it is tied"
        for k in tied
        if k in state and not torch.equal(state[k], state.get(tied[k], state[k]))
    ]
    state = {tied[k]: state[k] for k in tied if k in state} | state  # either name will do
    missing = [f"missing {k}" for k in weights if k not in state]
    state = {k: _grown(v, weights[k], net) if grow else v for k, v in state.items() if k in weights}
    shapes = [
        f"{k} is {tuple(v.shape)} instead of {tuple(weights[k].shape)}"
        for k, v in state.items()
        if weights[k].shape != v.shape
    ]
    if kinds := [kind for kind in (missing, unexpected, unequal, shapes) if kind]:
        shown = [problem for kind in kinds for problem in kind[: 6 // len(kinds)]]  # some of each
        more = sum(map(len, kinds)) - len(shown)
        told = "; ".join(shown) + (f" and {more} more" if more else "")
        raise UserError(f"{where}: weights do not fit: {told}")
    with torch.no_grad():
        for k, v in state.items():
            weights[k].copy_(v)


def _grown(value: Tensor, initial: Tensor, net: Any) -> Tensor:
    """`value` (v, ...) extended by the last rows of `initial` (V, ...), if its rows are tokens."""
    if value.ndim != initial.ndim or value.shape[1:] != initial.shape[1:]:
        return value
    if not len(value) < len(initial) == net.vocab_size:  # padded ones have no row to add
        return value
    return torch.cat([value.to(initial), initial[len(value) :]])


def find(source: str) -> str:
    """The checkpoint that a user means: the ckpt.pt of the folder of a run; a file, a folder with
    weights or a hub id as it is. Raises UserError where there is none, with the nearest name."""
    path = Path(source)
    if path.is_dir():
        if newest := fsdp.newest(path):
            return str(newest)
        if fsdp.saves(path) or any((path / name).exists() for name in published.FILES):
            return source
        files = sorted(path.glob(f"*{gguf.SUFFIX}"))
        hint = f"; name the file, as {files[0]}" if files else ""
        raise UserError(
            f"no checkpoint in {source}: neither ckpt.pt nor {published.FILES[1]}{hint}"
        )
    weights = path.suffix in (".pt", ".pth", ".ckpt", ".safetensors", ".bin", gguf.SUFFIX)
    on_hub = published.HUB_ID.fullmatch(source) and not (weights or path.parent.exists())
    if path.exists() or on_hub:
        return source
    raise UserError(f"no checkpoint at {source}; {nearest_run(path)}")


def nearest_run(path: Path) -> str:
    """What to name instead: the run with the most similar name, in the folders around or in out."""
    folders = {Path("out"), path.parent, path.parent.parent}
    runs = [run for folder in folders if folder.is_dir() for run in folder.iterdir()]
    runs = sorted({str(run) for run in runs if fsdp.newest(run)})
    wanted = str(path.parent if path.suffix == ".pt" else path)
    near = difflib.get_close_matches(wanted, runs, 1, cutoff=0)
    return f"the nearest is {near[0]}" if near else "train.py makes one, in out/"


def load(
    path: str,
    device: str | torch.device = "cpu",
    use_ema: bool = True,
    hf_model_name: str = "",
    seq_len: int = 0,
) -> Model:
    """The model in a ckpt.pt, the folder of a run, an exported folder, a GGUF file, or of a hub id,
    for `sample.py` and `evaluate.py`. hf_model_name: folder or hub id with config.json and
    tokenizer of weights that have none beside them. seq_len: places of the canvas for a language
    model of transformers, which does not tell them; 0 is BLOCK, or as many as it has."""
    path = find(path)
    if Path(path).suffix in (".pth", ".ckpt", ".safetensors", ".bin") and not hf_model_name:
        there = (Path(path).parent / "config.json").is_file()
        folder = f"name its folder, {Path(path).parent}"
        fix = folder if there else "sample.py takes them with --hf_model_name=FOLDER"
        raise UserError(
            f"{path} holds weights only; {fix}, or start a run from them with --init_from"
        )
    ours = Path(path).is_file() and Path(path).suffix != gguf.SUFFIX
    bare = False
    if (ours or Path(path).suffix == ".pt" or fsdp.saves(Path(path))) and not hf_model_name:
        state = read(path)
        cfg = from_saved(Config, state["config"], str(path))
        meta, files = state["corpus"]["meta"], state["corpus"]["files"]
        check_meta(meta, str(path))
        weights = state["ema"] if use_ema and state["ema"] else state["model"]
        tokenizer, step = tokenizer_from(meta["tokenizer"], files), state["step"]
    else:
        apart = hf_model_name and published.read_apart(path, hf_model_name)
        source = apart or published.read(path)
        assert source.tokens is not None, path
        tokenizer = source.tokenizer or published.usual_tokenizer(source.tokens, path)
        meta = source.meta or {"vocab_size": tokenizer.vocab_size, "specials": tokenizer.specials}
        check_meta(meta, path, partial=True)
        config = source.config
        bare = source.meta is None and "backbone" in config  # a language model of transformers
        if bare:
            backbone = json.loads(config["backbone"])
            kind = "ar" if backbone["model_type"] in published.CAUSAL else "masked"
            places = backbone.get("max_position_embeddings", backbone.get("n_positions", BLOCK))
            room = seq_len or min(places - 2, BLOCK)
            config = {"objective": kind, "time_input": False, "block_size": room, **config}
        cfg = from_saved(Config, config, path)
        weights, step = source.weights, 0
    if seq_len and not bare:
        own = f"{path} has a block_size of its own, {cfg.block_size}"
        raise UserError(f"seq_len={seq_len}: {own}; leave it out, or shorten with --max_length")
    objective = build_objective(cfg, meta)
    net = build_network(cfg, objective)
    load_weights(net, weights, str(path))
    return Model(net.to(device).eval(), objective, tokenizer, cfg, meta, step)


# ---- where a run begins ------------------------------------------------------------------------


def inherit(
    cfg: Config, origins: dict[str, str], saved: dict[str, Any], source: str, *more: str
) -> Config:
    """`cfg` with the architecture of the checkpoint `source`, and the fields `more` of its config.
    Raises UserError if the user has set one of them to another value."""
    saved = checked_values(Config, saved, source)
    changed = {k: v for k, v in saved.items() if k in (*ARCHITECTURE, *more)}
    changed = {k: v for k, v in changed.items() if v != getattr(cfg, k)}
    for key, value in changed.items():
        if key in origins:
            raise UserError(
                f"{source} has {key}={value!r}, but {origins[key]} says {getattr(cfg, key)!r}"
            )
        print(f"{key} = {value!r:.60}, taken from {source}")
    return dataclasses.replace(cfg, **changed)


def with_backbone(
    cfg: Config, origins: dict[str, str], corpus: Corpus, backbone: str, rows: int = 0
) -> Config:
    """`cfg` for a network of transformers, whose JSON for this corpus becomes the backbone. It has
    its own sizes and no time input: sizes on the command line raise UserError, those of a config
    file are for runs from scratch and ignored. rows: those of the weights that it is given, if they
    are more than the corpus needs."""
    sizes = [key for key in "n_layer n_head n_embd cond_dim positions".split() if key in origins]
    for key in sizes:
        if origins[key] == "command line":
            raise UserError(f"{key} ({origins[key]}) means nothing with a backbone; leave it out")
    if sizes:
        print(f"not used, as the backbone has its own: {', '.join(sizes)} of {origins[sizes[0]]}")
    if cfg.time_input:
        fixed, source = {"time_input": False, "zero_time": False}, "the backbone"
        cfg = inherit(cfg, origins, fixed, source)
    objective = build_objective(cfg, corpus.meta)
    rows = max(rows, objective.network_kwargs["vocab_size"])
    text = published.resolve_backbone(backbone, rows, corpus.specials)
    kind = json.loads(text)["model_type"]
    if kind in CAUSAL and not objective.network_kwargs["causal"]:
        how = "the place before it" if cfg.shift else "its own place"
        print(f"{kind} is made to read in both directions; {how} predicts a token")
    return dataclasses.replace(cfg, backbone=text)


def _but_rows(backbone: str) -> dict[str, Any]:
    """JSON of a network without its number of rows, which is that of the corpus or of weights."""
    return {k: v for k, v in json.loads(backbone).items() if k != "vocab_size"}


def _others(file: str, cfg: Config) -> bool:
    """Does a .pt hold weights of the network that --backbone describes, and is no run of ours?"""
    content = read_tensors(Path(file)) if cfg.backbone else None
    return isinstance(content, dict) and "format" not in content


def pretrained(cfg: Config, origins: dict[str, str], corpus: Corpus) -> tuple[Config, dict]:
    """Config and weights to start from, the averaged weights where there are any."""
    source = find(cfg.init_from)
    if fsdp.saves(Path(source)) or (Path(source).suffix == ".pt" and not _others(source, cfg)):
        state = read(source)
        corpus.require_like(state["corpus"]["meta"])
        return inherit(cfg, origins, state["config"], source), state["ema"] or state["model"]
    release = published.read(source, cfg.backbone)
    if release.meta is not None:
        corpus.require_like(release.meta)
    elif "backbone" in release.config:
        published.require_extension(release, corpus.tokenizer, source)
        theirs = release.config["backbone"]
        rows = json.loads(theirs)["vocab_size"]
        resolved = with_backbone(cfg, origins, corpus, theirs, rows)
        if cfg.backbone and _but_rows(cfg.backbone) != _but_rows(resolved.backbone):
            raise UserError(f"{source} is not the network that --backbone describes")
        return resolved, release.weights
    if release.tokens not in (None, corpus.vocab_size):
        raise UserError(
            f"{source} has {release.tokens} tokens, {corpus.folder} {corpus.vocab_size} ids, "
            "special ones included"
        )
    return inherit(cfg, origins, release.config, source), release.weights


# ---- export ------------------------------------------------------------------------------------


def export(model: Model, folder: str | Path) -> None:
    """Write model.safetensors and config.json, which `load` and --init_from read. A backbone of
    transformers keeps its names, so that from_pretrained reads the folder too; it gets the
    tokenizer.json of the corpus if there is one."""
    folder = Path(folder)
    save_file = optional("safetensors.torch", "safetensors").save_file
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"export={folder} cannot be written: {e.strerror}") from e
    weights = {k: v.contiguous().cpu() for k, v in weights_of(model.net).items()}
    ours = {
        "config": dataclasses.asdict(model.config),
        "meta": {**model.meta, "tokenizer": model.tokenizer.spec()},
        "files": model.tokenizer.files,
    }
    texts = {}
    config = {"anyorder": ours}
    if model.config.backbone:
        weights = {k.removeprefix(published.BACKBONE): v for k, v in weights.items()}
        config |= json.loads(model.config.backbone)
        config["architectures"] = [type(model.net.network).__name__]
        texts = {k: v for k, v in model.tokenizer.files.items() if k == "tokenizer.json"}
    texts["config.json"] = json.dumps(config, indent=1) + "\n"
    for name in ("model.safetensors", *texts):
        temporary = folder / f"{name}.tmp"
        if name in texts:
            temporary.write_text(texts[name], encoding="utf-8")
        else:
            save_file(weights, temporary, metadata={"format": "pt"})
        os.replace(temporary, folder / name)
