"""Checkpoints: save and load our own, read published SEDD weights, export to safetensors.

`ckpt.pt` holds tensors and built-in types only and is read with weights_only=True, never otherwise:

    format     version of this layout
    config     the Config as a dict
    corpus     meta.json and the tokenizer's files, so that the checkpoint alone is enough
    model      parameters by name; ema: the same names, averaged, or None
    optimizer  list of optimiser states
    step, best steps done; lowest validation bound so far, nats per written position

It is written to a temporary file, flushed to disk and renamed, and the one before it stays as
`ckpt_prev.pt`. Names and shapes are strict: a mismatch is refused with a list.
"""

import dataclasses
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from build import build_network, build_objective
from configurator import Config, UserError, from_saved, optional
from objective import Objective
from tokenizer import GPT2, Bytes, Tokenizer, tokenizer_from

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
# fields of Config that decide what the weights mean: they come with them
ARCHITECTURE = (
    "objective graph noise sigma_min sigma_max scale_by_sigma normalize "
    "n_layer n_head n_embd cond_dim time_input positions"
).split()


class Model(NamedTuple):
    """A network ready to use, with all that belongs to it."""

    net: nn.Module
    objective: Objective
    tokenizer: Tokenizer
    config: Config
    meta: dict[str, Any]  # of the corpus
    step: int


# ---- our own -----------------------------------------------------------------------------------


def save(state: dict[str, Any], path: Path) -> None:
    """Write `state` to `path`, all of it or nothing; what was there becomes *_prev.pt.

    Raises UserError if the disk refuses; what was in `path` is then untouched.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():  # never a moment without a checkpoint: a second name, then the rename
            backup = path.with_name(f"{path.stem}_prev{path.suffix}")
            spare = path.with_name(f"{backup.name}.{os.getpid()}.tmp")
            spare.unlink(missing_ok=True)
            os.link(path, spare)
            os.replace(spare, backup)
            spare.unlink(missing_ok=True)  # the rename of two names of one file does nothing
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except (OSError, RuntimeError) as e:  # torch tells of a full disk by a RuntimeError
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {e}; the checkpoint before it is intact") from e


def read(path: str | Path) -> dict[str, Any]:
    """The dictionary in `path`, on the CPU, checked: every byte by its CRC, then types and version.

    Raises UserError if the file is absent, damaged, from another version, or holds anything but
    tensors and plain data (nothing in it is ever executed).
    """
    path = Path(path)
    state = _read_tensors(path)
    for key, kind in FIELDS.items():
        if not isinstance(state, dict) or key not in state:
            raise UserError(f"{path}: not a checkpoint of this project: {key} is missing")
        if not isinstance(state[key], kind):
            raise UserError(f"{path}: {key} is a {type(state[key]).__name__}, unexpectedly")
    if state["format"] != FORMAT:
        raise UserError(f"{path}: format {state['format']}, but this code reads format {FORMAT}")
    for key in ("meta", "files"):
        if not isinstance(state["corpus"].get(key), dict):
            raise UserError(f"{path}: corpus has no {key}")
    return state


def _read_tensors(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    spare = path.with_name(f"{path.stem}_prev{path.suffix}")
    hint = f"; the one before it is {spare}" if spare.is_file() else ""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        first = str(e).strip().splitlines()[0]
        raise UserError(f"{path}: holds more than tensors and plain data, refused: {first}") from e
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as e:
        raise UserError(f"{path} is corrupt or incomplete ({type(e).__name__}){hint}") from e
    except NotImplementedError as e:  # a flipped bit in a zip header asks for odd features
        raise UserError(f"{path} is corrupt or incomplete{hint}") from e
    raise UserError(f"{path} is corrupt: {damaged} fails its checksum{hint}")


def load_weights(net: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Copy `state` into `net`; a missing, unexpected or differently shaped name is refused."""
    own = net.state_dict()
    problems = [f"missing {k}" for k in own if k not in state]
    problems += [f"unexpected {k}" for k in state if k not in own]
    problems += [
        f"{k} is {tuple(state[k].shape)} instead of {tuple(v.shape)}"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    if problems:
        more = f" and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise UserError(f"{where}: weights do not fit: {'; '.join(problems[:6])}{more}")
    net.load_state_dict(state)


def load(path: str, device: str | torch.device = "cpu", use_ema: bool = True) -> Model:
    """What `sample.py` and `evaluate.py` need from a ckpt.pt, an exported folder, or a hub id."""
    if Path(path).suffix == ".pth":
        raise UserError(f"{path} does not say what it was trained on; start a run from it first")
    if Path(path).suffix == ".pt" or Path(path).is_file():
        state = read(path)
        cfg = from_saved(Config, state["config"], str(path))
        meta, files = state["corpus"]["meta"], state["corpus"]["files"]
        weights = state["ema"] if use_ema and state["ema"] else state["model"]
        tokenizer, step = tokenizer_from(meta["tokenizer"], files), state["step"]
    else:
        found = published(path)
        if found.tokens is None:
            raise UserError(f"{path}: nothing here says which tokenizer it belongs to")
        tokenizer = found.tokenizer or _usual_tokenizer(found.tokens, path)
        meta = found.meta or {"vocab_size": tokenizer.vocab_size, "specials": tokenizer.specials}
        cfg = from_saved(Config, found.config, path)
        weights, step = found.weights, 0
    objective = build_objective(cfg, meta)
    net = build_network(cfg, objective)
    load_weights(net, weights, str(path))
    return Model(net.to(device).eval(), objective, tokenizer, cfg, meta, step)


# ---- published weights -------------------------------------------------------------------------


class Published(NamedTuple):
    """Weights under our names, and what came with them."""

    weights: dict[str, Tensor]
    config: dict[str, Any]  # the fields of Config that they fix
    tokens: int | None  # real tokens of their vocabulary, if told
    tokenizer: Tokenizer | None = None
    meta: dict[str, Any] | None = None  # of the corpus, if it was exported by us


def published(source: str) -> Published:
    """Read a SEDD or exported folder (config.json, model.safetensors), a `.pth` of SEDD's training
    (its EMA), or a hub id. Raises UserError if it is none, or lacks or exceeds a name."""
    path = Path(source)
    if path.suffix == ".pth":
        return _from_pth(path)
    if not path.is_dir():
        path = _download(source)
    for name in ("config.json", "model.safetensors"):
        if not (path / name).is_file():
            raise UserError(f"{path}: {name} is missing")
    try:
        told = json.loads((path / "config.json").read_text())
    except ValueError as e:
        raise UserError(f"{path / 'config.json'}: not readable as JSON: {e}") from None
    try:
        weights = optional("safetensors.torch", "safetensors").load_file(path / "model.safetensors")
    except Exception as e:  # safetensors raises its own, undocumented types
        if isinstance(e, UserError):
            raise
        raise UserError(f"{path / 'model.safetensors'}: {e}") from e
    try:
        if "anyorder" in told:
            config, meta, files = (told["anyorder"][k] for k in ("config", "meta", "files"))
            tokenizer = tokenizer_from(meta["tokenizer"], files)
            return Published(weights, config, tokenizer.vocab_size, tokenizer, meta)
        return Published(from_sedd(weights), *_from_sedd_config(told))
    except KeyError as e:
        raise UserError(f"{path}: {e.args[0]} is missing, so this is no SEDD model") from None
    except TypeError:
        raise UserError(f"{path / 'config.json'}: not the configuration of a model") from None


def _from_sedd_config(told: dict[str, Any]) -> tuple[dict[str, Any], int]:
    model, graph, noise = told["model"], told["graph"]["type"], told["noise"]
    config = {
        "objective": "sedd",
        "graph": graph,
        "noise": noise["type"],
        "scale_by_sigma": bool(model["scale_by_sigma"]),
        "n_embd": model["hidden_size"],
        "cond_dim": model["cond_dim"],
        "n_head": model["n_heads"],
        "n_layer": model["n_blocks"],
        "block_size": model["length"],
    }
    if noise["type"] == "geometric":
        config |= {"sigma_min": noise["sigma_min"], "sigma_max": noise["sigma_max"]}
    return config, told["tokens"]


def _from_pth(path: Path) -> Published:
    """SEDD's training checkpoint: sizes are read off the tensors; the EMA is a list in the order of
    the parameters, which is the order of the state dict without its only buffer."""
    state = _read_tensors(path)
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise UserError(f"{path}: not a checkpoint of SEDD's training: no entry model")
    raw = state["model"]
    names = [n for n in raw if n != "rotary_emb.inv_freq"]
    averaged = state.get("ema", {}).get("shadow_params", [])
    if averaged and len(averaged) != len(names):
        raise UserError(f"{path}: the EMA has {len(averaged)} tensors, the model {len(names)}")
    weights = dict(zip(names, averaged, strict=True)) if averaged else raw
    try:
        width = raw["vocab_embed.embedding"].shape[1]
        config = {
            "n_embd": width,
            "cond_dim": raw["sigma_map.mlp.0.weight"].shape[0],
            "n_head": width // (2 * len(raw["rotary_emb.inv_freq"])),
            "n_layer": sum(n.endswith(".attn_qkv.weight") for n in names),
        }
        return Published(from_sedd(weights), config, None)
    except KeyError as e:
        raise UserError(f"{path}: {e.args[0]} is missing, so this is no SEDD model") from None


def _download(source: str) -> Path:
    """Folder of a hub repository's config.json and model.safetensors."""
    if source.count("/") != 1 or source.startswith((".", "/")):
        raise UserError(f"no checkpoint, folder or hub id: {source}")
    hub = optional("huggingface_hub")
    try:
        files = ["config.json", "model.safetensors"]
        return Path(hub.snapshot_download(source, allow_patterns=files))
    except Exception as e:  # the hub's errors are many; none of them is ours to interpret
        raise UserError(
            f"{source} could not be fetched ({type(e).__name__}); download it elsewhere and pass "
            "the folder with config.json and model.safetensors"
        ) from e


def _usual_tokenizer(tokens: int, source: str) -> Tokenizer:
    """The published models are on GPT-2's or the byte vocabulary."""
    if tokens == Bytes.vocab_size:
        return Bytes()
    if tokens == GPT2.vocab_size:
        return GPT2.create()
    raise UserError(f"{source}: {tokens} tokens belong to neither the bytes nor the gpt2 tokenizer")


# ---- SEDD's names ------------------------------------------------------------------------------


def _names(n_layer: int) -> dict[str, str]:
    """SEDD's name -> ours, for all parameters that correspond one to one."""
    pairs = {
        "vocab_embed.embedding": "embed.weight",
        "output_layer.norm_final.weight": "norm.weight",
    }
    for end in ("weight", "bias"):
        pairs[f"sigma_map.mlp.0.{end}"] = f"time.fc.{end}"
        pairs[f"sigma_map.mlp.2.{end}"] = f"time.proj.{end}"
        pairs[f"output_layer.linear.{end}"] = f"head.{end}"
    for i in range(n_layer):
        theirs, ours = f"blocks.{i}.", f"blocks.{i}."
        pairs[theirs + "norm1.weight"] = ours + "norm1.weight"
        pairs[theirs + "norm2.weight"] = ours + "norm2.weight"
        pairs[theirs + "attn_qkv.weight"] = ours + "attn.qkv.weight"
        pairs[theirs + "attn_out.weight"] = ours + "attn.proj.weight"
        for end in ("weight", "bias"):
            pairs[f"{theirs}mlp.0.{end}"] = f"{ours}mlp.fc.{end}"
            pairs[f"{theirs}mlp.2.{end}"] = f"{ours}mlp.proj.{end}"
    return pairs


def _modulations(n_layer: int, end: str) -> list[str]:
    """SEDD keeps a modulation per block and one for the output; ours are stacked in this order."""
    blocks = [f"blocks.{i}.adaLN_modulation.{end}" for i in range(n_layer)]
    return [*blocks, f"output_layer.adaLN_modulation.{end}"]


def from_sedd(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under SEDD's (and MDLM's) names -> ours. Raises KeyError naming what is missing
    and UserError naming what is too much."""
    n_layer = sum(name.endswith(".attn_qkv.weight") for name in state)
    pairs = _names(n_layer)
    result = {ours: state[theirs] for theirs, ours in pairs.items()}
    known = {*pairs, "rotary_emb.inv_freq"}  # a constant, recomputed
    for end in ("weight", "bias"):
        stack = _modulations(n_layer, end)
        result[f"modulation.{end}"] = torch.cat([state[name] for name in stack])
        known |= set(stack)
    excess = [name for name in state if name not in known]
    if excess:
        raise UserError(f"weights do not fit: unexpected {'; '.join(excess[:6])}")
    return result


def to_sedd(state: dict[str, Tensor], n_layer: int) -> dict[str, Tensor]:
    """The inverse of `from_sedd`, without the constant buffer."""
    result = {theirs: state[ours] for theirs, ours in _names(n_layer).items()}
    for end in ("weight", "bias"):
        width = state["modulation." + end].shape[0] // (6 * n_layer + 2)
        parts = state["modulation." + end].split([6 * width] * n_layer + [2 * width])
        names = _modulations(n_layer, end)
        result |= {name: part.clone() for name, part in zip(names, parts, strict=True)}
    return result


# ---- export ------------------------------------------------------------------------------------


def export(model: Model, folder: str | Path) -> None:
    """Write model.safetensors and config.json, which `load` and --init_from read; no pickle."""
    folder = Path(folder)
    save_file = optional("safetensors.torch", "safetensors").save_file
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"export={folder} cannot be written: {e.strerror}") from e
    weights = {k: v.contiguous().cpu() for k, v in model.net.state_dict().items()}
    config = {
        "anyorder": {
            "config": dataclasses.asdict(model.config),
            "meta": {**model.meta, "tokenizer": model.tokenizer.spec()},
            "files": model.tokenizer.files,
        }
    }
    for name, write in {
        "model.safetensors": lambda path: save_file(weights, path),
        "config.json": lambda path: Path(path).write_text(json.dumps(config, indent=1) + "\n"),
    }.items():
        temporary = folder / f"{name}.tmp"
        write(temporary)
        os.replace(temporary, folder / name)
