"""Documents whose tokens have an importance: what `preprocess_prefix.py` writes, shard by shard.

A preprocessed text is a folder of `num_shards` folders shard_0, shard_1, ...; each of them is

    meta.json     format, options, tokenizer, tagger and scorer, counts, checksums
    tokens.bin    the ids of all documents, uint16 or uint32
    labels.bin    int8, 1 (most important) to 7; or scores.bin, float32: a score for each token
    words.bin     int32, the number of the token's word in its document; -1: white space between
    keys.bin      uint32, CRC-32 of that word in lower case: equal for equal words; 0 for -1
    offsets.bin   int64 (D + 1,), where documents begin and the last one ends
    the file of the tokenizer, if it has one

A shard is built under a temporary name and renamed when it is complete. The reader refuses a text
of which a shard is missing, by its name. Nothing is pickled.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Iterator, NamedTuple

import numpy as np

from configurator import UserError
from corpus import check_file, fingerprint, lock_folder
from tokenizer import Tokenizer, tokenizer_from

FORMAT = 1  # of meta.json and the files that it describes
WORST_LABEL, WORST_SCORE = 7, -1.2  # of what is in no word
SAME = ("mode", "dataset_name", "dataset_mode", "num_shards", "tokenizer", "tagger", "scorer")


class Document(NamedTuple):
    """One document: n tokens. `label` is None if the text has scores, `score` if it has labels."""

    ids: np.ndarray  # (n,) uint16 or uint32
    label: np.ndarray | None  # (n,) int8, 1 is the most important
    score: np.ndarray | None  # (n,) float32, the largest is the most important
    word: np.ndarray  # (n,) int32, number of the word; -1: in none
    key: np.ndarray  # (n,) uint32, equal for equal words


def importance_of(mode: str) -> tuple[str, type]:
    """Mode -> name and type of what is stored for each token."""
    return ("labels", np.int8) if mode == "constituency" else ("scores", np.float32)


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard_{number}"


# ---- writing -----------------------------------------------------------------------------------


class ShardFolder:
    """Context manager that writes one shard, complete or not at all.

        with ShardFolder(path, tokenizer, {"mode": "constituency", ...}) as out:
            out.add(Document(...))

    What a killed process left is removed first. Raises UserError if another process writes it.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer, info: dict[str, Any]):
        self.path, self.tokenizer, self.info = path, tokenizer, info
        self.partial = path.with_name(f".{path.name}.unfinished")
        self.dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
        self.importance, self.kind = importance_of(info["mode"])
        self.offsets = [0]
        self.counts: dict[str, int] = {"documents": 0, "tokens": 0, "words": 0}
        self.unknown = getattr(tokenizer, "unknown", None)  # the id of what has no token of its own

    def __enter__(self) -> "ShardFolder":
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"cannot write {self.path}: {e.strerror}") from e
        self.lock = lock_folder(self.partial, self.path)
        for old in self.partial.iterdir():
            old.unlink()
        names = ("tokens", self.importance, "words", "keys")
        self.files = {n: open(self.partial / f"{n}.bin", "wb") for n in names}
        return self

    def add(self, document: Document) -> None:
        """Append a document."""
        n, value = len(document.ids), document.label
        value = document.score if value is None else value
        assert value is not None and n == len(value) == len(document.word) == len(document.key), n
        if n and int(document.ids.max()) >= self.tokenizer.vocab_size:
            raise UserError(f"id {document.ids.max()} >= {self.tokenizer.vocab_size=}")
        self.files["tokens"].write(document.ids.astype(self.dtype).tobytes())
        self.files[self.importance].write(value.astype(self.kind).tobytes())
        self.files["words"].write(document.word.astype(np.int32).tobytes())
        self.files["keys"].write(document.key.astype(np.uint32).tobytes())
        self.offsets.append(self.offsets[-1] + n)
        self.count("documents", 1)
        self.count("tokens", n)
        if (
            lost := 0
            if self.unknown is None
            else int(np.count_nonzero(document.ids == self.unknown))
        ):
            self.count("tokens that stand for what is unknown", lost)
        self.count("words", len(np.unique(document.word[document.word >= 0])))

    def count(self, what: str, number: int) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

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
            if self.lock is not None:
                os.close(self.lock)

    def _finish(self) -> None:
        np.array(self.offsets, np.int64).tofile(self.partial / "offsets.bin")
        for name, text in self.tokenizer.files.items():
            (self.partial / name).write_text(text, encoding="utf-8")
        names = [*(f"{n}.bin" for n in self.files), "offsets.bin", *self.tokenizer.files]
        meta = {
            "format": FORMAT,
            **self.info,
            "dtype": np.dtype(self.dtype).name,
            "vocab_size": self.tokenizer.vocab_size,
            "tokenizer": self.tokenizer.spec(),
            "tokenizer_files": list(self.tokenizer.files),
            "counts": self.counts,
            "files": {n: fingerprint(self.partial / n) for n in names},
        }
        with open(self.partial / "meta.json", "w", encoding="utf-8") as file:
            json.dump(meta, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.rename(self.partial, self.path)


# ---- reading -----------------------------------------------------------------------------------


def read_meta(path: Path) -> dict[str, Any]:
    """meta.json of a shard."""
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        problem = f"{path / 'meta.json'} is not readable ({e}); make the shard anew"
        raise UserError(problem) from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise UserError(f"{path / 'meta.json'} is not of format {FORMAT}; make the shard anew")
    return meta


class Shard:
    """One complete shard, checked. Raises UserError that names the faulty file."""

    def __init__(self, path: Path, verify: bool = False):
        self.path, self.meta = path, read_meta(path)
        for name, recorded in self.meta["files"].items():
            check_file(path / name, recorded, verify, empty=True)  # a shard of no documents
        self.offsets = self.array("offsets", np.int64)
        self.importance, kind = importance_of(self.meta["mode"])
        self.ids = self.array("tokens", np.dtype(self.meta["dtype"]))
        self.value = self.array(self.importance, kind)
        self.words, self.keys = self.array("words", np.int32), self.array("keys", np.uint32)
        sizes = {int(self.offsets[-1]), *map(len, (self.ids, self.value, self.words, self.keys))}
        if len(sizes) > 1 or np.any(np.diff(self.offsets) < 0):
            raise UserError(f"{path}: its files are not of one length; make the shard anew")

    def array(self, name: str, dtype: Any) -> np.ndarray:
        path = self.path / f"{name}.bin"
        if path.stat().st_size % np.dtype(dtype).itemsize:
            raise UserError(f"{path} holds no whole numbers; make the shard anew")
        return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)

    def documents(self) -> Iterator[Document]:
        labels = self.importance == "labels"
        for start, end in zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True):
            ids, value, word, key = (
                np.array(a[start:end]) for a in (self.ids, self.value, self.words, self.keys)
            )
            yield Document(ids, value if labels else None, None if labels else value, word, key)


class Preprocessed:
    """A preprocessed text, all of its shards opened and checked. `meta` is that of the first shard,
    `tokenizer` what made the ids. verify=True checks the checksums of large files, too.
    """

    def __init__(self, folder: str | Path, verify: bool = False):
        self.folder = Path(folder)
        folders = {p.name for p in self.folder.glob("shard_*") if p.is_dir()}
        if not folders:
            raise UserError(f"no preprocessed text at {self.folder}; run preprocess_prefix.py")
        first = min(folders, key=lambda name: (len(name), name))
        count = read_meta(self.folder / first)["num_shards"]
        for number in range(count):
            if f"shard_{number}" not in folders:
                path = shard_path(self.folder, number)
                raise UserError(f"{path} is missing, one of {count}: --shard_idx={number} makes it")
        self.shards = [Shard(shard_path(self.folder, k), verify) for k in range(count)]
        self.meta = self.shards[0].meta
        for shard in self.shards:
            for key in SAME:
                ours, theirs = self.meta.get(key), shard.meta.get(key)
                if ours != theirs:
                    raise UserError(
                        f"{shard.path} has {key}={theirs!r}, but {self.shards[0].path} {ours!r}; "
                        "make all shards with the same options"
                    )
        self._one_tokenizer()
        path, names = self.shards[0].path, self.meta["tokenizer_files"]
        files = {name: (path / name).read_text(encoding="utf-8") for name in names}
        self.tokenizer = tokenizer_from(self.meta["tokenizer"], files)

    def _one_tokenizer(self) -> None:
        for shard in self.shards:
            for name in self.meta["tokenizer_files"]:
                if shard.meta["files"][name] != self.meta["files"][name]:
                    raise UserError(f"{shard.path / name} is not the {name} of the other shards")

    def counts(self) -> dict[str, int]:
        """Documents, tokens and words of all shards, and what was left out."""
        total: dict[str, int] = {}
        for shard in self.shards:
            for key, number in shard.meta["counts"].items():
                total[key] = total.get(key, 0) + number
        return total

    def documents(self) -> Iterator[Document]:
        """All documents in their order."""
        for shard in self.shards:
            yield from shard.documents()


def read_documents(folder: str | Path) -> Iterator[Document]:
    """The documents of a preprocessed text in their order. Raises UserError if a shard is missing
    or damaged, before the first document."""
    return Preprocessed(folder).documents()
