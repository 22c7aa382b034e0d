"""Corpora: rows of token ids, on disk and in batches.

A corpus is a folder:

    meta.json   format, dtype, vocabulary size, special ids, tokenizer, source, counts, checksums
    train.bin   every id of the split in one flat array, uint16 or uint32 (meta.json says which)
    train.idx   int64 (N, 3): start, prompt, length of each row; absent for a continuous stream
    train.giv   uint8 for each id: is it prompt; only where rows hold several samples
    val.bin, val.idx, and the file of the tokenizer if it needs one

A split may be several shards (train_000.bin ...), read as one. Nothing is pickled. The writer
builds the folder under a temporary name and renames it when complete; the reader refuses files that
do not fit together, in one line that names the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, NamedTuple, NoReturn

import numpy as np

from configurator import UserError
from tokenizer import Tokenizer, tokenizer_from

if TYPE_CHECKING:  # the import takes two seconds, and writers of corpora do not need it
    from torch import Tensor
from concurrent.futures import Future, ThreadPoolExecutor

# ==================================================================================================
# Folders: checksums, and one writer at a time
# ==================================================================================================


CHECKED = 1 << 28  # bytes: files up to this size have their checksum verified when opened


def fingerprint(path: Path) -> dict[str, int]:
    """Size in bytes and CRC-32 of a file."""
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return {"bytes": path.stat().st_size, "crc32": crc}


def check_file(
    path: Path, recorded: dict[str, int], verify: bool = False, empty: bool = False
) -> None:
    """Raise UserError if a file is absent, empty (unless `empty`), or differs from the recorded
    size or checksum; the checksum is checked if the file is small, or with `verify`."""
    if not path.is_file():
        raise UserError(f"{path} is missing; prepare the corpus anew")
    size = path.stat().st_size
    if size == 0 and not empty:
        raise UserError(f"{path} is empty; prepare the corpus anew")
    if size != recorded.get("bytes"):
        raise UserError(f"{path}: {size} bytes, but meta.json says {recorded.get('bytes')}")
    if (verify or size <= CHECKED) and fingerprint(path)["crc32"] != recorded.get("crc32"):
        raise UserError(f"{path} is damaged: its checksum is not the one in meta.json")


def lock_file(descriptor: int) -> None:
    """Lock an open file or folder until the descriptor is closed or the process ends. Raises
    BlockingIOError if another process has the lock."""
    if os.name != "posix":
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # some network file systems have no locks
        pass


def lock_folder(partial: Path, folder: Path) -> int | None:
    """Lock `partial`, in which `folder` is built -> the descriptor of the lock. Raises UserError if
    another process has it."""
    if os.name != "posix":
        return None
    lock = os.open(partial, os.O_RDONLY)
    try:
        lock_file(lock)
    except BlockingIOError:
        os.close(lock)
        raise UserError(f"another process is writing {folder}") from None
    return lock


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep other processes out of `folder` while the block runs: the file `lock` there holds our
    process id. A lock that a killed process left behind is taken over. Raises UserError."""
    path = folder / "lock"
    try:
        held = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            lock_file(held)
            os.ftruncate(held, 0)
            os.write(held, f"{os.getpid()}\n".encode())
        except BlockingIOError:
            pid = os.read(held, 20).decode("ascii", "replace").strip()
            os.close(held)
            raise UserError(f"process {pid} is writing {folder}; wait for it, or stop it") from None
        if not path.exists() or not os.path.samestat(os.stat(path), os.fstat(held)):
            os.close(held)
            raise UserError(f"another process has just left {folder}; try again")
    except OSError as e:
        raise UserError(f"out_dir={folder} cannot be written: {e.strerror}") from e
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(held)


# ==================================================================================================
# Rows on disk, and batches
# ==================================================================================================


FORMAT = 1  # of meta.json and the files that it describes


class Batch(NamedTuple):
    """B rows of T positions. Positions from `length` on hold the pad id."""

    ids: Tensor  # (B, T) int64
    prompt_mask: Tensor  # (B, T) bool: conditioned on; never corrupted, scored or changed
    length: Tensor  # (B,) int64


# ---- writing -----------------------------------------------------------------------------------


class CorpusWriter:
    """Context manager that writes a corpus folder, complete or not at all.

        with CorpusWriter(folder, Bytes(), source="palindrome") as out:
            out.row("train", [257, 97, 258], prompt=1)

    The folder appears under its name when the block ends without an exception. `info` is added to
    meta.json. Raises UserError if the folder exists, a split is empty, or an id is outside the
    vocabulary.
    """

    def __init__(self, folder: str | Path, tokenizer: Tokenizer, **info: Any):
        self.folder, self.tokenizer, self.info = Path(folder), tokenizer, info
        self.dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
        self.partial = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.partial")
        self.files: dict[str, Any] = {}
        self.counts: dict[str, dict[str, int]] = {}
        self.names: dict[str, str] = {}  # split -> name of its file, if it is not the split's
        self.unknown = getattr(tokenizer, "unknown", None)  # the id of what has no token of its own

    def __enter__(self) -> CorpusWriter:
        if self.folder.exists():
            raise UserError(f"{self.folder} exists already; remove it to prepare the corpus anew")
        try:
            self.partial.mkdir(parents=True)
        except OSError as e:
            raise UserError(f"cannot write {self.folder}: {e.strerror}") from e
        return self

    def _write(self, name: str, array: np.ndarray) -> None:
        if name not in self.files:
            self.files[name] = open(self.partial / name, "ab")
        self.files[name].write(array.tobytes())

    def tokens(self, split: str, ids: Iterable[int] | np.ndarray) -> int:
        """Append ids to the flat array of `split`; returns the offset of the first."""
        array = np.asarray(ids, dtype=np.int64)
        if array.size and not 0 <= array.min() <= array.max() < self.tokenizer.vocab_size:
            bad = int(array.max() if array.min() >= 0 else array.min())
            raise UserError(f"id {bad} is outside the vocabulary of {self.tokenizer.vocab_size}")
        count = self.counts.setdefault(split, {"tokens": 0, "rows": 0, "longest": 0})
        self._write(f"{self.names.get(split, split)}.bin", array.astype(self.dtype))
        count["tokens"] += array.size
        if lost := 0 if self.unknown is None else int(np.count_nonzero(array == self.unknown)):
            count["unknown"] = count.get("unknown", 0) + lost
        return count["tokens"] - array.size

    def row(
        self,
        split: str,
        ids: Iterable[int] | np.ndarray,
        prompt: int = 0,
        prompt_mask: np.ndarray | None = None,
    ) -> None:
        """Append one row of n ids whose first `prompt` ids are the prompt; or those where
        prompt_mask (n,) bool is true, for all rows of the split or none."""
        array = np.asarray(ids, dtype=np.int64)
        assert 0 <= prompt <= array.size and array.size > 0, (prompt, array.size)
        if split in self.counts:
            has_mask = f"{split}.giv" in self.files
            assert (prompt_mask is not None) == has_mask, (
                f"{split}: prompt_mask for all rows or none"
            )
        start = self.tokens(split, array)
        if prompt_mask is not None:
            assert prompt_mask.shape == array.shape, (prompt_mask.shape, array.shape)
            self._write(f"{split}.giv", prompt_mask.astype(np.uint8))
        self._write(f"{split}.idx", np.array([start, prompt, array.size], np.int64))
        count = self.counts[split]
        count["rows"] += 1
        count["longest"] = max(count["longest"], array.size)

    def rows(self, split: str, ids: np.ndarray, lengths: np.ndarray, prompts: np.ndarray) -> None:
        """Append N >= 1 rows at once: their ids in one flat array, then the length and the number
        of prompt ids of each (N,)."""
        lengths, prompts = np.asarray(lengths, np.int64), np.asarray(prompts, np.int64)
        assert lengths.sum() == len(ids) and lengths.shape == prompts.shape, (split, len(ids))
        assert np.all((prompts >= 0) & (prompts <= lengths) & (lengths > 0)), split
        starts = self.tokens(split, ids) + np.cumsum(lengths) - lengths
        self._write(f"{split}.idx", np.stack([starts, prompts, lengths], 1))  # (N, 3)
        count = self.counts[split]
        count["rows"] += len(lengths)
        count["longest"] = max(count["longest"], int(lengths.max()))

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        try:
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self.partial, ignore_errors=True)

    def _finish(self) -> None:
        empty = [s for s in ("train", "val") if not self.counts.get(s, {}).get("tokens")]
        if empty:
            raise UserError(f"nothing to write: the {empty[0]} split of {self.folder} is empty")
        for name, text in self.tokenizer.files.items():
            (self.partial / name).write_text(text, encoding="utf-8")
        names = [*self.files, *self.tokenizer.files]
        meta = {
            "format": FORMAT,
            "dtype": np.dtype(self.dtype).name,
            "vocab_size": self.tokenizer.vocab_size,
            "specials": self.tokenizer.specials,
            "tokenizer": self.tokenizer.spec(),
            **self.info,
            "splits": self.counts,
            "files": {n: fingerprint(self.partial / n) for n in names},
        }
        (self.partial / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        os.rename(self.partial, self.folder)
        if lost := sum(count.get("unknown", 0) for count in self.counts.values()):
            print(f"ids that stand for what the tokenizer has no token for: {lost:,}")


# ---- reading -----------------------------------------------------------------------------------


class Shard(NamedTuple):
    """One .bin with its .idx."""

    path: Path
    dtype: str
    tokens: int
    rows: int  # 0 for a stream

    def data(self) -> np.ndarray:
        return np.memmap(self.path, dtype=self.dtype, mode="r")

    def index(self) -> np.ndarray:
        return np.memmap(self.path.with_suffix(".idx"), np.int64, "r").reshape(-1, 3)

    def prompt_mask(self) -> np.ndarray | None:
        path = self.path.with_suffix(".giv")
        return np.memmap(path, np.uint8, "r") if path.is_file() else None


class Corpus:
    """A prepared corpus, opened and checked. Raises UserError naming the faulty file.

    verify=True checks the checksums of files of any size, not only of small ones.
    """

    def __init__(self, folder: str | Path, verify: bool = False):
        self.folder = Path(folder)
        self.meta = _read_meta(self.folder)
        self.vocab_size: int = self.meta["vocab_size"]
        self.specials: dict[str, int] = self.meta["specials"]
        self.pad_id = self.specials.get("pad", 0)
        names = self.meta["files"]
        for name, recorded in names.items():
            check_file(self.folder / name, recorded, verify)
        more = [s for s in self.meta["splits"] if s not in ("train", "val")]
        self.splits = {s: self._shards(s) for s in ("train", "val", *more)}
        self.maps: dict[Path, tuple[np.ndarray, np.ndarray | None, np.ndarray | None]] = {}
        self.batches = 0
        texts = [n for n in names if not n.endswith((".bin", ".idx", ".giv"))]
        self.files = {n: (self.folder / n).read_text(encoding="utf-8") for n in texts}
        self.tokenizer = tokenizer_from(self.meta["tokenizer"], self.files)
        if self.tokenizer.vocab_size != self.vocab_size:
            ids = self.tokenizer.vocab_size
            self._refuse(f"vocab_size is {self.vocab_size}, but its tokenizer has {ids} ids")

    def _refuse(self, message: str) -> NoReturn:
        raise UserError(f"{self.folder / 'meta.json'}: {message}")

    def _shards(self, split: str) -> list[Shard]:
        bins = sorted(n for n in self.meta["files"] if n.startswith(split) and n.endswith(".bin"))
        if not bins:
            self._refuse(f"the split {split} has no .bin file")
        shards, size = [], np.dtype(self.meta["dtype"]).itemsize
        for name in bins:
            index = self.meta["files"].get(name[:-4] + ".idx")
            tokens = self.meta["files"][name]["bytes"] // size
            if index and index["bytes"] % 24:
                self._refuse(f"{name[:-4]}.idx: not whole rows of three int64")
            rows = index["bytes"] // 24 if index else 0
            marks = self.meta["files"].get(name[:-4] + ".giv")
            if marks and marks["bytes"] != tokens:
                self._refuse(f"{name[:-4]}.giv: not one byte for each of {tokens} ids")
            shard = Shard(self.folder / name, self.meta["dtype"], tokens, rows)
            _check_shard(shard, self.vocab_size)
            shards.append(shard)
        if len({s.rows > 0 for s in shards}) > 1:
            self._refuse(f"the split {split} mixes rows and streams")
        return shards

    def split_named(self, name: str) -> str:
        """The split that is called `name`: itself, or one by its published name, validation is val
        elsewhere. Raises UserError if there is none."""
        names = {"validation": "val", **self.meta.get("published", {})}
        split = name if name in self.splits else names.get(name, name)
        if split not in self.splits:
            there = ", ".join([*self.splits, *names])
            raise UserError(f"{self.folder} has no split {name}; it has {there}")
        return split

    def rows(self, split: str) -> int:
        """Number of rows; 0 if the split is a continuous stream."""
        return sum(s.rows for s in self.splits[split])

    def given_whole(self, split: str) -> bool:
        """Is every row of the split prompt alone, so that nothing of it is ever written?"""

        def given(shard: Shard) -> Iterator[np.ndarray]:
            marks = shard.prompt_mask()
            for k in range(0, shard.tokens if marks is not None else shard.rows, 1 << 20):
                part = slice(k, k + (1 << 20))
                if marks is not None:
                    yield marks[part] > 0
                else:
                    _, prompt, length = shard.index()[part].T
                    yield prompt >= length

        shards = self.splits[split]
        return self.rows(split) > 0 and all(part.all() for s in shards for part in given(s))

    def require_block(self, block_size: int) -> None:
        """Raise UserError for a block size smaller than a row or larger than a stream."""
        for split, shards in self.splits.items():
            tokens = min(s.tokens for s in shards)
            longest = self.meta["splits"].get(split, {}).get("longest", 0)
            if not self.rows(split) and tokens < block_size + 1:
                raise UserError(
                    f"{shards[0].path}: {tokens} tokens, but block_size={block_size} "
                    f"needs at least {block_size + 1}"
                )
            if self.rows(split) and "pad" not in self.specials:
                shortest = min(int(s.index()[:, 2].min()) for s in shards)
                if shortest < block_size:  # pad_id 0 would be a token of the text
                    raise UserError(
                        f"{shards[0].path}: rows of {shortest} tokens need a pad id to fill "
                        f"block_size={block_size}, and the tokenizer has none"
                    )
            if longest > block_size:
                raise UserError(
                    f"{shards[0].path}: the longest row has {longest} tokens; "
                    f"block_size={block_size} is too small"
                )

    def require_like(self, meta: dict[str, Any]) -> None:
        """Raise UserError if `meta`, that of a model's corpus, has another vocabulary."""
        for key in ("vocab_size", "specials", "tokenizer"):
            if meta.get(key) != self.meta[key]:
                theirs, ours = (str(m.get(key))[:80] for m in (meta, self.meta))
                raise UserError(
                    f"the checkpoint has {key}={theirs}, but {self.folder} has {ours} (special ids "
                    f"included: {_specials(meta)}; and {_specials(self.meta)})"
                )

    def batch(self, split: str, rows: np.ndarray, block_size: int) -> Batch:
        """Rows (B,) by number -> Batch of T = block_size. In a stream, a number is the offset of
        a window: any integer in [0, windows(split, block_size))."""
        import torch

        shards = self.splits[split]
        sizes = [s.rows or s.tokens - block_size + 1 for s in shards]
        ends = np.cumsum(sizes)
        ids = np.full((len(rows), block_size), self.pad_id, np.int64)  # (B, T)
        prompt_mask = np.zeros_like(ids, dtype=bool)  # (B, T)
        lengths = np.empty(len(rows), np.int64)
        owner = np.searchsorted(ends, rows, side="right")
        self.batches += 1
        if self.batches % 256 == 0:  # or resident memory grows with the part that has been read
            self.maps.clear()
        for k in np.unique(owner):
            data, index, in_prompt = self._mapped(shards[k])
            at = np.flatnonzero(owner == k)
            local = rows[at] - (ends[k] - sizes[k])
            if index is not None:
                start, prompt, length = index[local].T
            else:
                start, prompt, length = local, np.zeros_like(local), np.full_like(local, block_size)
            position = np.arange(block_size)
            inside = position < length[:, None]  # (b, T)
            source = np.where(inside, start[:, None] + position, 0)
            ids[at] = np.where(inside, data[source], self.pad_id)
            is_prompt = position < prompt[:, None] if in_prompt is None else in_prompt[source] > 0
            prompt_mask[at], lengths[at] = is_prompt & inside, length
        if ids.max() >= self.vocab_size:
            raise UserError(f"{self.folder}: id {ids.max()} >= vocab_size {self.vocab_size}")
        return Batch(*map(torch.from_numpy, (ids, prompt_mask, lengths)))

    def _mapped(self, shard: Shard) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        maps = self.maps.get(shard.path)  # `get`, as another thread may clear them
        if maps is None:
            index = shard.index() if shard.rows else None
            maps = self.maps[shard.path] = shard.data(), index, shard.prompt_mask()
        return maps

    def lengths(self, split: str, rows: np.ndarray) -> np.ndarray:
        """Lengths in tokens of rows (N,) by number -> (N,); not for streams."""
        shards = self.splits[split]
        ends = np.cumsum([s.rows for s in shards])
        owner, lengths = np.searchsorted(ends, rows, side="right"), np.empty(len(rows), np.int64)
        for k in np.unique(owner):
            at, (_, index, _) = owner == k, self._mapped(shards[k])
            assert index is not None, split
            lengths[at] = index[rows[at] - (ends[k] - shards[k].rows), 2]
        return lengths

    def windows(self, split: str, block_size: int) -> int:
        """Number of rows, or of windows of a stream."""
        return sum(s.rows or s.tokens - block_size + 1 for s in self.splits[split])

    def tokens(self, split: str) -> int:
        return sum(s.tokens for s in self.splits[split])

    def disjoint(self, split: str, block_size: int) -> np.ndarray:
        """(N,) numbers for `batch`: of all rows, or of windows of a stream that share no token."""
        sizes = [s.rows or s.tokens - block_size + 1 for s in self.splits[split]]
        step, begins = 1 if self.rows(split) else block_size, np.cumsum([0, *sizes])
        parts = [begin + np.arange(0, n, step) for begin, n in zip(begins, sizes, strict=False)]
        return np.concatenate(parts)

    def documents(self, split: str, numbers: np.ndarray, block_size: int) -> np.ndarray:
        """(N,) int64, the same for windows (N,) of a stream that begin in one document, behind the
        same EOS. A row is a document, unless it goes on with that of the row before (packing=pad)
        and so has no BOS. A stream without EOS is a single one."""
        packed = self.meta.get("options", {}).get("packing") == "pad"
        if self.rows(split) and not packed:
            return numbers
        mark = self.specials.get("bos" if packed else "eos", -1)
        documents, before, begun = np.empty_like(numbers), 0, 0
        for shard in self.splits[split]:
            data, size = shard.data(), shard.rows or shard.tokens - block_size + 1
            first = data[shard.index()[:, 0]] if packed else np.append(0, data[: size - 1])
            begins = np.flatnonzero(first == mark)  # also in the middle of a window
            inside = (numbers >= before) & (numbers < before + size)
            at = np.searchsorted(begins, numbers[inside] - before, side="right")
            documents[inside] = begun + at
            before, begun = before + size, begun + len(begins) + 1
        return documents

    def texts(self, split: str) -> Iterator[str]:
        """Every row of a split, decoded, in order."""
        for shard in self.splits[split]:
            data = shard.data()
            for start, _, length in shard.index() if shard.rows else [(0, 0, shard.tokens)]:
                yield self.tokenizer.decode(data[start : start + length].tolist())

    def identity(self) -> dict[str, Any]:
        """meta.json and the files of the tokenizer, which checkpoints contain."""
        return {"meta": self.meta, "files": self.files}


def _specials(meta: dict[str, Any]) -> str:
    """The names of the special ids of a meta.json, of which several may be one id."""
    names = meta.get("specials") or {}
    return f"{len(set(names.values()))} for {', '.join(names)}" if names else "none"


def _read_meta(folder: Path) -> dict[str, Any]:
    """meta.json of a corpus folder, checked field by field."""
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no corpus at {folder}: {path.name} is missing") from None
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: not readable as JSON: {e}") from None
    check_meta(meta, str(path))
    return meta


def check_meta(meta: Any, where: str, partial: bool = False) -> None:
    """Raise UserError, naming the file `where`, unless `meta` is the content of a meta.json; if
    `partial`, fields other than the vocabulary may be missing."""
    fields: dict[str, Callable[[Any], bool]] = {
        "format": lambda v: v == FORMAT,
        "dtype": lambda v: v in ("uint16", "uint32"),
        "vocab_size": lambda v: type(v) is int and 1 <= v < 1 << 31,
        "specials": lambda v: isinstance(v, dict) and all(type(i) is int for i in v.values()),
        "tokenizer": lambda v: isinstance(v, dict),
        "splits": _numbers,
        "files": _numbers,
    }
    for key, valid in fields.items():
        if partial and isinstance(meta, dict) and key not in {"vocab_size", "specials", *meta}:
            continue
        if not isinstance(meta, dict) or key not in meta or not valid(meta[key]):
            value = meta.get(key, "nothing") if isinstance(meta, dict) else "no object"
            raise UserError(f"{where}: bad {key}: {str(value)[:80]!r}")
    check_specials(meta["specials"], meta["vocab_size"], where)


def _numbers(table: Any) -> bool:
    """Is this {name: {name: whole number}}?"""
    rows = table.values() if isinstance(table, dict) else [None]
    return all(isinstance(r, dict) and all(type(i) is int for i in r.values()) for r in rows)


def check_specials(specials: dict[str, int], vocab_size: int, where: str) -> None:
    """Raise UserError for special ids outside the vocabulary, and if MASK shares its id."""
    for name, i in specials.items():
        if not 0 <= i < vocab_size:
            raise UserError(f"{where}: special {name}={i} is outside vocab_size {vocab_size}")
        if name != "mask" and i == specials.get("mask"):
            raise UserError(f"{where}: mask and {name} share the id {i}")


def _sample(path: Path, dtype: str, count: int, width: int = 1) -> np.ndarray:
    """A flat sample of the `count` entries of `width` numbers each in a file: all, or 4096 evenly
    spaced runs of 256. They are read, not mapped: touching a million places of a large map would
    take minutes and gigabytes of memory."""
    if count <= 1 << 20:
        return np.fromfile(path, dtype, count * width)
    size = np.dtype(dtype).itemsize * width
    starts = np.linspace(0, count - 256, 4096).astype(np.int64)
    parts = [np.fromfile(path, dtype, 256 * width, offset=int(at) * size) for at in starts]
    return np.concatenate(parts)


def _check_shard(shard: Shard, vocab_size: int) -> None:
    """Raise UserError for odd sizes, rows that point outside the file, and ids outside the
    vocabulary (about a million of each; `Corpus.batch` checks every id that it returns)."""
    path, size = shard.path, np.dtype(shard.dtype).itemsize
    if path.stat().st_size % size:
        raise UserError(f"{path}: {path.stat().st_size} bytes are not whole {shard.dtype} ids")
    largest = int(_sample(path, shard.dtype, shard.tokens).max())
    if largest >= vocab_size:
        raise UserError(f"{path}: id {largest} >= vocab_size {vocab_size}")
    if shard.rows:
        index = _sample(path.with_suffix(".idx"), "int64", shard.rows, 3)
        start, prompt, length = index.reshape(-1, 3).T
        valid = (start >= 0) & (prompt >= 0) & (prompt <= length) & (length >= 1)
        if not np.all(valid & (start + length <= shard.tokens)):
            raise UserError(f"{path.with_suffix('.idx')}: a row points outside {path.name}")


# ==================================================================================================
# The order of reading
#
# The row at any place of an endless shuffled reading is computed directly, without the places
# before it, so a run can resume anywhere. A thread reads one batch ahead.
# ==================================================================================================


def shuffled(places: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Places (N,) in an endless shuffled reading of `size` rows -> row numbers (N,).

    Each epoch is another permutation, computed element by element (a four-round Feistel network on
    the smallest even number of bits, repeated until the value is below `size`), so the order of a
    trillion rows takes no memory.
    """
    half = max(1, (int(size - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    epoch, value = np.divmod(places.astype(np.uint64), np.uint64(size))
    key = epoch * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed % (1 << 63))
    pending = np.ones(len(places), bool)
    while pending.any():
        left, right = value[pending] >> np.uint64(half), value[pending] & low
        for turn in range(4):
            mixed = _mix(right + (key[pending] ^ np.uint64(turn << 56)))
            left, right = right, left ^ (mixed & low)
        value[pending] = (left << np.uint64(half)) | right
        pending = value >= size
    return value.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64: a well-mixed 64-bit hash of each element; arithmetic wraps around."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def length_bucketed_rows(
    corpus: Corpus, split: str, seed: int, number: int, size: int, parts: int, block: int
) -> np.ndarray:
    """Rows (size,) of micro-batch `number` of a shuffled reading. The rows of a step of `parts`
    micro-batches are sorted into them by length, so that short rows need little padding; the sum
    over the step stays the same. For `crops_padding` objectives only: where padding is learnt, the
    width of a batch would tell the length of its texts."""
    step, part = divmod(number, parts)
    places = np.arange(step * parts * size, (step + 1) * parts * size)
    rows = shuffled(places, corpus.windows(split, block), seed)
    if parts == 1 or not corpus.rows(split):
        return rows[part * size : (part + 1) * size]
    by_length = np.argsort(corpus.lengths(split, rows), kind="stable")
    return rows[np.sort(by_length[part * size : (part + 1) * size])]  # in shuffled order


class Prefetcher:
    """Batches by number, read in another thread: the next one while this one is used."""

    def __init__(self, read: Callable[[int], Any]):
        self.read, self.thread = read, ThreadPoolExecutor(1, "reader")
        self.coming: dict[int, Future] = {}

    def get(self, number: int, following: int) -> Any:
        """Batch `number`; `following` is the number of the next call."""
        future = self.coming.pop(number, None) or self.thread.submit(self.read, number)
        batch = future.result()
        self.coming = {following: self.thread.submit(self.read, following)}
        return batch
