"""Writing a large corpus: in shards, and continued after an interruption.

The folder grows under a temporary name beside its place. `progress.json` in it says how much of
every file is complete and how much of the source that was; whatever a killed run wrote beyond
that is cut off when the same command is run again.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from configurator import UserError
from corpus import CorpusWriter, lock_folder
from tokenizer import Tokenizer, tokenizer_from

LEAST = 1 << 16  # ids of a shard, so that windows of any length fit into each


def partial_of(folder: Path) -> Path:
    """The folder in which a corpus is written; the same for every run, so that the next one can
    continue."""
    return folder.with_name(f".{folder.name}.unfinished")


def progress_of(folder: Path) -> dict[str, Any] | None:
    """progress.json of an unfinished corpus, or None."""
    path = partial_of(folder) / "progress.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def kept_tokenizer(kept: dict[str, Any]) -> Tokenizer:
    return tokenizer_from(kept["tokenizer"], kept["tokenizer_files"])


def unfinished(folder: Path, options: dict[str, Any]) -> dict[str, Any] | None:
    """progress.json of an interrupted run that completed a shard, or None. Raises UserError if the
    corpus is finished, or if that run had other options."""
    if folder.exists():
        raise UserError(f"{folder} exists already; remove it to prepare the corpus anew")
    kept = progress_of(folder)
    if not kept or not kept["mark"]:
        return None
    for key, value in options.items():
        if kept["options"].get(key) != value:
            raise UserError(
                f"{partial_of(folder)} is an unfinished corpus with {key}="
                f"{str(kept['options'].get(key))[:60]}, not {str(value)[:60]}; give the same "
                "options to continue, or remove that folder"
            )
    return kept


class ShardWriter(CorpusWriter):
    """A CorpusWriter that takes up where it was interrupted. Ids are appended with `tokens`;
    `complete(mark)` closes a shard, after which `mark` is what a later run finds in `self.mark`.
    The files are train_000.bin ... and val.bin. A later run must have the same `identity`. With
    `row_length`, all rows are of that length; without, the corpus is a stream, or consists of
    rows that are appended with `rows`.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        identity: dict[str, Any],
        row_length: int = 0,
        **info: Any,
    ):
        super().__init__(folder, tokenizer, **info)
        self.partial, self.identity, self.row_length = partial_of(folder), identity, row_length
        self.sizes: dict[str, int] = {}  # bytes of every file, complete ones included
        self.mark: dict[str, Any] = {}
        self.number = 0  # of the shard of training ids that is being written

    def __enter__(self) -> "ShardWriter":
        kept = unfinished(self.folder, self.identity)
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"cannot write {self.folder}: {e.strerror}") from e
        self.lock = lock_folder(self.partial, self.folder)
        if kept:
            self.sizes, self.counts, self.mark, self.number = (
                kept[k] for k in ("sizes", "counts", "mark", "number")
            )
        self._clean()
        for name, text in self.tokenizer.files.items():
            (self.partial / name).write_text(text, encoding="utf-8")
        self.names = {"train": f"train_{self.number:03d}"}
        self._save()
        return self

    def _clean(self) -> None:
        """Truncate the files after the last complete shard."""
        for path in self.partial.iterdir():
            if path.name not in (*self.sizes, "progress.json"):
                path.unlink()
        for name, size in self.sizes.items():
            if (self.partial / name).stat().st_size < size:
                raise UserError(f"{self.partial / name} is damaged; remove {self.partial}")
            os.truncate(self.partial / name, size)

    def _write(self, name: str, array: np.ndarray) -> None:
        super()._write(name, array)
        self.sizes[name] = self.sizes.get(name, 0) + array.nbytes

    def rows(self, split: str, ids: np.ndarray, lengths: np.ndarray, prompts: np.ndarray) -> None:
        """As CorpusWriter.rows; starts are relative to the shard."""
        name = self.names.get(split, split)
        start = self.sizes.get(f"{name}.bin", 0) // self.dtype().itemsize
        self.tokens(split, ids)
        index = np.stack([start + np.cumsum(lengths) - lengths, prompts, lengths], 1)  # (N, 3)
        self._write(f"{name}.idx", index.astype(np.int64))
        count = self.counts[split]
        count["rows"] += len(lengths)
        count["longest"] = max(count["longest"], int(lengths.max()))

    def complete(self, mark: dict[str, Any]) -> None:
        """Flush everything so far to disk, then begin the next shard."""
        self._close()
        self.mark = mark
        if self.sizes.get(f"train_{self.number:03d}.bin", 0) >= LEAST * self.dtype().itemsize:
            self.number += 1
            self.names["train"] = f"train_{self.number:03d}"
        self._save()

    def _save(self) -> None:
        """Write progress.json atomically."""
        kept = {
            "options": self.identity,
            "tokenizer": self.tokenizer.spec(),
            "tokenizer_files": self.tokenizer.files,
            "sizes": self.sizes,
            "counts": self.counts,
            "mark": self.mark,
            "number": self.number,
        }
        temporary = self.partial / "progress.tmp"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(kept, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.partial / "progress.json")

    def _close(self) -> None:
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        self.files = {}

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        self._close()
        try:
            if kind is None:
                self._finish()
        except UserError:  # a split is empty: nothing that another run could continue
            self.mark = {}
            raise
        finally:
            if not self.mark:
                shutil.rmtree(self.partial, ignore_errors=True)
            elif kind is not None:
                print(f"{self.partial} keeps what is complete; the same command continues")
            if self.lock is not None:
                os.close(self.lock)

    def _finish(self) -> None:
        """Rename the folder to its final name. Every step can be repeated by the next run if this
        one is killed: files are removed only after the rename."""
        joined = self._join_last()
        if self.row_length:
            self._index()
        self.files = dict.fromkeys(sorted(self.sizes))
        super()._finish()
        for name in ("progress.json", *joined):
            (self.folder / name).unlink(missing_ok=True)

    def _join_last(self) -> list[str]:
        """Append a last shard that is too short for a window to the one before. Returns the files
        that are now superfluous."""
        shards = sorted(n for n in self.sizes if n.startswith("train"))
        if any(n.endswith(".idx") for n in shards):
            return []  # rows need no windows
        if len(shards) < 2 or self.sizes[shards[-1]] >= LEAST * self.dtype().itemsize:
            return []
        with open(self.partial / shards[-1], "rb") as last:
            with open(self.partial / shards[-2], "ab") as before:
                shutil.copyfileobj(last, before)
        self.sizes[shards[-2]] += self.sizes.pop(shards[-1])
        return shards[-1:]

    def _index(self) -> None:
        """Rows of one length without prompt, one after another."""
        for name in list(self.sizes):
            rows = self.sizes[name] // self.dtype().itemsize // self.row_length
            index = np.zeros((rows, 3), np.int64)  # start, prompt, length
            index[:, 0] = np.arange(rows) * self.row_length
            index[:, 2] = self.row_length
            self.sizes[name[:-4] + ".idx"] = index.nbytes
            index.tofile(self.partial / f"{name[:-4]}.idx")
        for count in self.counts.values():
            count["rows"] = count["tokens"] // self.row_length
            count["longest"] = self.row_length
