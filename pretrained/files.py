"""Files of weights: what a folder holds, tensors by name, and the names that training had.

    model.safetensors     whole, or in the parts that model.safetensors.index.json lists
    pytorch_model.bin     the same of torch.save; read where there are no safetensors
    *.pt, *.pth, *.ckpt   of torch.save; weights by name, or one entry of a training checkpoint

Nothing in them is executed: torch.save's are read with weights_only=True, and what that refuses is
refused in a line that says how to convert it.
"""

import json
import lzma
import pickle
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configurator import UserError, optional

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # of a folder; the first that is there is read
# modules that torch.compile, DeepSpeed, FSDP and activation checkpointing put around others
WRAPPERS = "_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module"
WRAPPER = re.compile(rf"(?<![^.])({WRAPPERS})\.")
OWN_MODEL = re.compile(r"model\.((en|de)coder\.)?layers\.")  # Llama, ModernBERT and others
ENTRIES = ("state_dict", "model_state_dict", "model")  # weights in training checkpoints
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch.save began before 1.6
POINTER = b"version https://git-lfs"

# A flipped bit in a zip header may ask for any compression, or for features that Python has not.
DAMAGED = (OSError, RuntimeError, ValueError, EOFError, KeyError, NotImplementedError)
DAMAGED += (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error)


def read_json(path: Path) -> Any:
    """The content of a file of JSON. Raises UserError if it is absent or not readable."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{path.parent}: {path.name} is missing") from None
    except ValueError as e:
        raise UserError(f"{path}: not readable as JSON: {e}") from None


# ---- one file ----------------------------------------------------------------------------------


def read_tensors(path: Path) -> Any:
    """The content of a file of torch.save, tensors and plain data only, checked by CRC."""
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    spare = path.with_name(f"{path.stem}_prev{path.suffix}")
    hint = f"; the one before it is {spare}" if spare.is_file() else ""
    refuse_other_kinds(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise UserError(f"{path}: holds more than tensors and plain data, {converted(path)}") from e
    except DAMAGED as e:
        raise UserError(f"{path} is corrupt or incomplete ({type(e).__name__}){hint}") from e
    raise UserError(f"{path} is corrupt: {damaged} fails its checksum{hint}")


def converted(path: Path) -> str:
    """That a file is refused, and the command that writes its weights to one that is not."""
    kept = ", ".join(map(repr, (*ENTRIES, "ema")))
    return (
        f"refused; where you trust it, run: python -c \"import torch; c = torch.load('{path}', "
        "weights_only=False); torch.save({'state_dict': c.state_dict()} if hasattr(c, "
        f"'state_dict') else {{k: c[k] for k in ({kept}) if k in c}}, 'NEW{path.suffix}')\""
    )


def refuse_other_kinds(path: Path) -> None:
    """Raise UserError for a file that torch.save of today does not write, with the way on."""
    with open(path, "rb") as file:
        start = file.read(64)
    again = f"python -c \"import torch; torch.save(torch.load('{path}', weights_only=True), "
    again += f"'NEW{path.suffix}')\""
    if start.startswith(POINTER):
        raise UserError(f"{path}: a pointer of Git LFS, not the file itself: run git lfs pull")
    if start.startswith(LEGACY):
        raise UserError(f"{path}: a file of torch.save before 1.6, without checksums; run: {again}")
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        fix = "torch.save its tensors by name"
        raise UserError(f"{path}: a pickle of other make, which is never executed; {fix}")
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                scripted = any(name.endswith("/constants.pkl") for name in archive.namelist())
        except DAMAGED:
            return  # told by the one who reads it
        if scripted:
            raise UserError(
                f"{path}: a program of torch.jit.save, which is never executed; where you trust "
                f"it, run: python -c \"import torch; torch.save(torch.jit.load('{path}')"
                f".state_dict(), 'NEW{path.suffix}')\""
            )


def entry_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The weights by name in the content of a torch.save file: itself, or one of its ENTRIES.
    Raises UserError where there are none, or several."""
    if _named_tensors(content):
        return content
    found = [k for k in ENTRIES if isinstance(content, dict) and _named_tensors(content.get(k))]
    if len(found) == 1:
        return content[found[0]]
    what = f"weights under {' and '.join(found)}" if found else described(content, path)
    raise UserError(f"{path}: {what}: save one state dict, names to tensors, as a file of its own")


def _named_tensors(content: Any) -> bool:
    pairs = content.items() if isinstance(content, dict) else ()
    return bool(pairs) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in pairs)


def described(content: Any, path: Path) -> str:
    """What a file of torch.save holds that is not what was looked for, with the way on."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}, no weights by name"
    if "model_args" in content and "model" in content:
        return (
            f"a checkpoint of nanoGPT; python -m pretrained.causal --nanogpt={path} --out=FOLDER "
            "writes it as a GPT-2 that --init_from and --ckpt read"
        )
    found = [k for k in ENTRIES if _named_tensors(content.get(k))]
    if found or _named_tensors(content):
        where = f"under {found[0]}" if found else "alone"
        return (
            f"weights {where}, without a configuration; for a model of transformers, start from "
            "it with --init_from and --backbone=the folder or hub id of its config.json"
        )
    return f"a dict without weights by name, of {sorted(map(str, content))[:6]}"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file."""
    try:
        with open(path, "rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise UserError(f"{path}: a pointer of Git LFS, not the file: run git lfs pull")
        return optional("safetensors.torch", "safetensors").load_file(path)
    except UserError:
        raise
    except Exception as e:  # safetensors raises its own, undocumented types
        raise UserError(f"{path}: {e}") from e


# ---- a folder ----------------------------------------------------------------------------------


def weights_file(folder: Path) -> Path | None:
    """The file with the weights of a folder, or the index of its parts."""
    names = [name for whole in WEIGHTS for name in (whole, f"{whole}.index.json")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by bare name of a file of weights, or of all parts that an index.json lists."""
    if path.name.endswith(".index.json"):
        return bare(_parts(path), path)
    if path.suffix == ".safetensors":
        return bare(read_safetensors(path), path)
    return bare(entry_of(read_tensors(path), path), path)


def _parts(index: Path) -> dict[str, Tensor]:
    """The tensors of all parts. Raises UserError unless they are those of the index."""
    where = read_json(index)
    where = where.get("weight_map") if isinstance(where, dict) else None
    if not where or not isinstance(where, dict) or not all(map(_is_name, where.values())):
        raise UserError(f"{index}: no weight_map of tensors to files beside it")
    weights: dict[str, Tensor] = {}
    for name in sorted(set(where.values())):
        part = index.with_name(name)
        if not part.is_file():
            raise UserError(f"{index.parent}: {name} is missing, which {index.name} lists")
        one = read_safetensors(part) if part.suffix == ".safetensors" else read_tensors(part)
        if wrong := [k for k in one if where.get(k) != name] + [
            k for k, file in where.items() if file == name and k not in one
        ]:
            raise UserError(f"{part}: {wrong[0]} is not where {index.name} has it")
        weights |= one
    return weights


def _is_name(text: Any) -> bool:
    return isinstance(text, str) and Path(text).name == text


# ---- names -------------------------------------------------------------------------------------


def bare(weights: dict[str, Tensor], path: Path | str) -> dict[str, Tensor]:
    """The tensors without the names of the modules that training put around the network, such as
    `_orig_mod.` of torch.compile; `module.` and `model.` only where they begin every name, and
    `model.` not where the network itself is called so. Raises UserError for two of one name."""
    named = {name: WRAPPER.sub("", name) for name in weights}
    while prefix := _common(list(named.values())):
        named = {name: short.removeprefix(prefix) for name, short in named.items()}
    if len(set(named.values())) < len(named):
        twice = [n for n in named if n not in named.values() and named[n] in weights]
        raise UserError(f"{path}: {(twice or [*named])[0]} stands there with and without a wrapper")
    return {named[name]: value for name, value in weights.items()}


def _common(names: list[str]) -> str:
    """A prefix of all names that is none of the network's own; empty if there is none."""
    if names and all(name.startswith("module.") for name in names):
        return "module."
    ours = any(OWN_MODEL.match(name) for name in names)
    return "model." if names and not ours and all(n.startswith("model.") for n in names) else ""
