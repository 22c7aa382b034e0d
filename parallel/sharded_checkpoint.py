"""Checkpoints of sharded runs: a folder that every process writes its own part of.

    ckpt/000007/__0_0.distcp    tensors of process 0, written by torch.distributed.checkpoint (DCP)
    ckpt/000007/head.pt         all that is no tensor: config, corpus, step ...
    ckpt/000007/layout.json     which part of which tensor lies where, and a checksum of every file

layout.json is written last, and renamed into place: a save without it never happened. The last two
saves are kept. DCP would pickle what layout.json says and unpickle it with nothing checked, so that
file is ours, and everything else is read with weights_only=True: nothing in a checkpoint is ever
executed. Any number of processes can read what any other number has written.
"""

import json
import math
import os
import re
import shutil
import warnings
import zlib
from pathlib import Path
from typing import Any, Callable, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from configurator import UserError
from corpus import fingerprint
from parallel.fsdp import NUMBER, saves
from pretrained.files import read_tensors

FORMAT = 1  # of layout.json
KEEP = 2  # saves: the last may be in progress
PART = re.compile(r"__\d+_\d+\.distcp")


class Place(NamedTuple):
    """Location of the bytes of a shard, as DCP's reader needs it."""

    relative_path: str
    offset: int
    length: int
    transform_descriptors: None = None


# ---- a checkpoint as a flat table of tensors ---------------------------------------------------


def taken_apart(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A checkpoint -> everything but tensors, and the tensors: model/NAME, ema/NAME, and
    optimizer/WHICH/PARAMETER/KEY."""
    tensors = {f"model/{k}": v for k, v in state["model"].items()}
    tensors |= {f"ema/{k}": v for k, v in (state["ema"] or {}).items()}
    rest = []
    for i, one in enumerate(state["optimizer"]):
        for j, entries in one["state"].items():
            tensors |= {f"optimizer/{i}/{j}/{k}": v for k, v in entries.items()}
        rest.append(one["param_groups"])
    odd = [k for k, v in tensors.items() if not torch.is_tensor(v)]
    assert not odd, odd
    head = {**state, "model": {}, "ema": {} if state["ema"] else None, "optimizer": rest}
    return head, tensors


def put_together(head: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The inverse of `taken_apart`, for all tensors or some."""
    optimizers = [{"state": {}, "param_groups": groups} for groups in head["optimizer"]]
    state = {**head, "model": {}, "ema": None if head["ema"] is None else {}}
    for name, value in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            i, j, key = rest.split("/")
            optimizers[int(i)]["state"].setdefault(int(j), {})[key] = value
        else:
            state[kind][rest] = value
    return {**state, "optimizer": optimizers}


# ---- layout.json -------------------------------------------------------------------------------


def described(metadata: Metadata) -> dict[str, Any]:
    """DCP's metadata of the tensors that it has written, as plain data."""
    layout = {}
    for name, about in metadata.state_dict_metadata.items():
        chunks = []
        for chunk in about.chunks:
            place = metadata.storage_data[MetadataIndex(name, chunk.offsets)]
            at = [place.relative_path, place.offset, place.length]
            chunks.append([list(chunk.offsets), list(chunk.sizes), *at])
        kind = str(about.properties.dtype).removeprefix("torch.")
        layout[name] = {"dtype": kind, "shape": list(about.size), "chunks": chunks}
    return layout


def understood(tensors: dict[str, Any]) -> Metadata:
    """The inverse of `described`."""
    state, storage = {}, {}
    for name, about in tensors.items():
        chunks = []
        for i, (offsets, sizes, *place) in enumerate(about["chunks"]):
            chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
            storage[MetadataIndex(name, offsets, i)] = Place(*place)
        kind = TensorProperties(dtype=getattr(torch, about["dtype"]))
        state[name] = TensorStorageMetadata(kind, torch.Size(about["shape"]), chunks)
    return Metadata(state, storage_data=storage, storage_meta=dcp.metadata.StorageMeta())


def covers(about: dict[str, Any], files: dict[str, Any]) -> bool:
    """Are the chunks of a tensor in known files, inside the tensor, and together as large as it?"""
    shape, inside = about["shape"], 0
    for offsets, sizes, file, at, length in about["chunks"]:
        ends = [o + s for o, s in zip(offsets, sizes, strict=True)]
        if not all(0 <= o <= e <= n for o, e, n in zip(offsets, ends, shape, strict=True)):
            return False
        if not (file in files and 0 <= at <= at + length <= files[file]["bytes"]):
            return False
        inside += math.prod(sizes)
    return isinstance(getattr(torch, about["dtype"]), torch.dtype) and inside == math.prod(shape)


def crc_of(layout: dict[str, Any]) -> int:
    """CRC-32 of a layout in canonical JSON."""
    return zlib.crc32(json.dumps(layout, sort_keys=True).encode())


def read_layout(folder: Path) -> dict[str, Any]:
    """layout.json of one save, checked. Raises UserError."""
    path = folder / "layout.json"
    try:
        layout = json.loads(path.read_text(encoding="utf-8"))
        recorded, crc = layout.pop("crc32"), crc_of(layout)
        if layout["format"] != FORMAT:
            version = layout["format"]
            raise UserError(f"{path}: format {version}, but this code reads format {FORMAT}")
        files = layout["files"]
        good = recorded == crc and all(PART.fullmatch(name) or name == "head.pt" for name in files)
        good = good and all(covers(about, files) for about in layout["tensors"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is corrupt or incomplete ({type(e).__name__})") from e
    if not good:
        raise UserError(f"{path} is corrupt: it does not agree with itself")
    return layout


class Writer(dcp.FileSystemWriter):
    """DCP's writer without the pickle at the end: `layout` is the metadata, in the first
    process."""

    layout: dict[str, Any] | None = None

    def finish(self, metadata: Metadata, results: list) -> None:
        places = {one.index: one.storage_data for part in results for one in part}
        metadata.storage_data = places
        self.layout = described(metadata)


class Reader(dcp.FileSystemReader):
    """DCP's reader on our layout.json."""

    def __init__(self, folder: Path, layout: dict[str, Any]):
        super().__init__(folder)
        self.layout = layout

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        return understood(self.layout["tensors"])


# ---- in every process --------------------------------------------------------------------------


def place(alone: bool = False) -> tuple[int, int]:
    """Rank and size of the job; 0 and 1 for a single process."""
    if alone or not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def together(work: Callable[[], Any], first: bool = False, alone: bool = False) -> list:
    """Call work in every process, or in the first only with `first` -> the results of all. If one
    fails, all raise its UserError."""
    rank, size = place(alone)
    result, wrong = None, None
    try:
        result = work() if rank == 0 or not first else None
    except UserError as e:
        wrong = str(e)
    except (OSError, RuntimeError, dcp.api.CheckpointException) as e:
        wrong = f"{type(e).__name__}: {e}"
        failures = getattr(e, "failures", None)
        if failures:  # of DCP: those of each process
            cause = next(iter(failures.values()))[0]
            wrong = f"{type(cause).__name__}: {cause}"
    results = [(result, wrong)]
    if size > 1:
        results = [None] * size
        dist.all_gather_object(results, (result, wrong))
    faults = [w for _, w in results if w]
    if faults:
        raise UserError(faults[0].splitlines()[0])
    return [t for t, _ in results]


def begin(folder: Path) -> Path:
    """An empty folder for the next save; unfinished saves are removed."""
    done = saves(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if NUMBER.fullmatch(old.name) and old not in done:
            shutil.rmtree(old)
    new = folder / f"{int(done[-1].name) + 1 if done else 1:06d}"
    new.mkdir()
    return new


def commit(new: Path, layout: dict[str, Any]) -> None:
    """Write layout.json, flush it to disk, and keep only the last two saves."""
    temporary = new / "layout.json.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump({**layout, "crc32": crc_of(layout)}, file)
        file.flush()
        os.fsync(file.fileno())
    for folder in (new, new.parent):
        if folder is new:
            os.replace(temporary, new / "layout.json")
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    for old in saves(new.parent)[:-KEEP]:
        (old / "layout.json").unlink()  # first, so that it is never half there
        shutil.rmtree(old)


def write_head(head: dict[str, Any], path: Path) -> None:
    with open(path, "wb") as file:
        torch.save(head, file)
        file.flush()
        os.fsync(file.fileno())


def save(state: dict[str, Any], folder: Path) -> None:
    """Write a checkpoint atomically; called by every process of the job with its shards. Raises
    UserError in all of them if one fails; earlier saves are then intact."""
    head, tensors = taken_apart(state)
    rank, _ = place()
    new = None
    try:
        new = together(lambda: begin(folder), first=True)[0]
        together(lambda: write_head(head, new / "head.pt"), first=True)
        writer = Writer(new)
        plan = dcp.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        together(lambda: quiet(dcp.save, tensors, storage_writer=writer, planner=plan))
        written = sorted(new.glob(f"__{rank}_*.distcp")) + [new / "head.pt"] * (rank == 0)
        recorded = together(lambda: {path.name: fingerprint(path) for path in written})
        files = {name: about for part in recorded for name, about in part.items()}
        layout = {"format": FORMAT, "files": files, "tensors": writer.layout}
        together(lambda: commit(new, layout), first=True)
    except UserError as e:
        if rank == 0 and new is not None:
            shutil.rmtree(new, ignore_errors=True)
        raise UserError(f"cannot write {folder}: {e}; the checkpoint before it is intact") from e


def quiet(act: Callable, *args: Any, **more: Any) -> None:
    """Suppress DCP's warning that there is only one process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        act(*args, **more)


# ---- reading -----------------------------------------------------------------------------------


class Saved:
    """One save, its files checked by size and checksum; the last complete one of a folder. In a
    job, all processes open it together and each checks a share, unless it is read `alone`."""

    def __init__(self, folder: str | Path, alone: bool = False):
        done = saves(Path(folder))
        if not done:
            raise UserError(f"no complete checkpoint in {folder}")
        self.alone = alone
        self.path = Path(together(lambda: str(done[-1]), alone=alone)[0])
        self.layout = read_layout(self.path)
        together(self.check, alone=alone)
        self.head = read_tensors(self.path / "head.pt")
        self.tensors: dict[str, Any] = self.layout["tensors"]

    def check(self) -> None:
        rank, size = place(self.alone)
        for name, recorded in list(self.layout["files"].items())[rank::size]:
            path, before = self.path / name, saves(self.path.parent)[:-1]
            if not path.is_file() or fingerprint(path) != recorded:
                hint = f"; the one before it is {before[-1]}" if before else ""
                raise UserError(f"{path} is corrupt or incomplete{hint}")

    def fill(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Read into these tensors, sharded or not, and return them. Raises UserError."""
        for name, value in tensors.items():
            shape = self.tensors.get(name, {}).get("shape")
            if shape != list(value.shape):
                raise UserError(f"{self.path}: {name} is {shape}, not {list(value.shape)}")
        plan = dcp.DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        how = {"storage_reader": Reader(self.path, self.layout), "planner": plan}

        def act() -> None:
            quiet(dcp.load, tensors, no_dist=self.alone, **how)

        together(act, alone=self.alone)
        return tensors

    def empty(self, name: str) -> Tensor:
        about = self.tensors[name]
        return torch.empty(about["shape"], dtype=getattr(torch, about["dtype"]))

    def require_names(self, kind: str, names: Any) -> None:
        """Raise UserError for a save with other tensors of a kind than these."""
        saved = {n.partition("/")[2] for n in self.tensors if n.startswith(kind + "/")}
        problems = [f"missing {n}" for n in sorted(set(names) - saved)]
        problems += [f"unexpected {n}" for n in sorted(saved - set(names))]
        if problems:
            raise UserError(f"{self.path}: weights do not fit: {'; '.join(problems[:6])}")

    def fill_weights(self, weights: dict[str, Tensor]) -> None:
        """Read the network, by name, in place."""
        self.require_names("model", weights)
        self.fill({f"model/{k}": v for k, v in weights.items()})

    def rest(self, ema: dict[str, Tensor], optimizers: list) -> dict[str, Any]:
        """The checkpoint without its network; averages are read in place, moments sharded as the
        optimisers' parameters."""
        wanted = {}
        if ema and self.head["ema"] is not None:
            self.require_names("ema", ema)
            wanted = {f"ema/{k}": v for k, v in ema.items()}
        params = [[p for g in o.param_groups for p in g["params"]] for o in optimizers]
        for name, about in self.tensors.items():
            if name.startswith("optimizer/"):
                _, i, j, _ = name.split("/")
                like = params[int(i)][int(j)].detach()
                same = list(like.shape) == about["shape"]
                wanted[name] = torch.zeros_like(like) if same else self.empty(name)
        head = self.head if ema else {**self.head, "ema": None}
        return put_together(head, self.fill(wanted))


def read(folder: str | Path) -> dict[str, Any]:
    """The last save of a folder, whole, on the CPU, as in a ckpt.pt. For a single process. Raises
    UserError."""
    saved = Saved(folder, alone=True)
    return put_together(saved.head, saved.fill({name: saved.empty(name) for name in saved.tensors}))
