"""Texts as streams: neither a corpus nor a long document is ever in memory as a whole.

A stream is an iterable of chunks, the bytes of one document after another, with `END` after each.
`labelled` turns it into pieces of about a megabyte, each with its split. Which split a document
belongs to follows from its own beginning and a seed: it does not depend on the order, and equal
documents are on the same side.
"""

import functools
import glob
import hashlib
import json
import re
from itertools import chain
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, NamedTuple

from byte_rows import boundary
from configurator import UserError, optional
from sources import local_files, python_prose, read

END = None  # after the last chunk of a document
PIECE = 1 << 20  # bytes: longest chunk, and about the longest piece
ROWS, COLUMNS = (".json", ".jsonl"), ".parquet"  # files that hold documents in a field `text`
KNOWN = (".txt", ".md", *ROWS, COLUMNS)  # what is taken from folders and patterns
# a space, or else a line end, that begins a word: what tokenizers cut at, too
GAPS = [re.compile(rb"\S" + mark + rb"(?=\S)") for mark in (b" ", b"\n")]
FEW = 10  # documents to hold out; with fewer, the end of each file is held out instead
SEEN = 1 << 28  # bytes of training text that tokenizers and the like are learnt from
LOCAL = "--source=FILES (.txt, .jsonl, .json, .parquet)"

Chunks = Iterable[bytes | None]


class Hub(NamedTuple):
    """A dataset of the hub with a column `text`."""

    name: str
    config: str | None = None
    split: str = "train"


HUB = {
    "fineweb": (Hub("HuggingFaceFW/fineweb", "sample-10BT"),),
    "wikipedia": (Hub("wikimedia/wikipedia", "20231101.en"),),
    "gutenberg": (Hub("manu/project_gutenberg", split="en"),),
    "openwebtext": (Hub("Skylion007/openwebtext"),),
    "lm1b": (Hub("billion-word-benchmark/lm1b"),),
    "stories": (Hub("dhruveshpatel/tiny_roc_stories"),),  # TinyStories and ROCStories
}
# what is validation there, unless a share of the training split is asked for
HELD_OUT = {
    "lm1b": Hub("billion-word-benchmark/lm1b", split="test"),
    "stories": Hub("dhruveshpatel/tiny_roc_stories", split="validation"),
}
LARGE = (HUB["fineweb"][0], Hub("HuggingFaceFW/fineweb-edu", "sample-10BT"), HUB["wikipedia"][0])
# texts that are divided by position, and where training and validation end in them
CUTS = {"shakespeare": (0.9, 1.0), "text8": (0.9, 0.95)}
CUT_HUB = {"shakespeare": "karpathy/tiny_shakespeare", "text8": "afmck/text8"}


# ---- pieces ------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """A part of one document, at most about PIECE bytes."""

    split: str
    text: bytes
    first: bool  # it begins its document
    last: bool  # it ends its document


def cut(data: bytes, end: int) -> int:
    """The largest good place <= end to cut at: before the white space of a word if there is one
    within 4 KB, so that byte pair encodings see the same words as in the whole; else between two
    characters."""
    start = max(0, end - 4096)
    for gap in GAPS:
        if places := [m.start() for m in gap.finditer(data, start, end + 2)]:
            return places[-1] + 1
    return boundary(data, end)


def pieces(chunks: Chunks, size: int = PIECE) -> Iterator[tuple[bytes, bool]]:
    """Chunks -> (text of at most `size` bytes, whether it ends its document)."""
    parts: list[bytes] = []
    length = 0
    for chunk in chunks:
        if chunk is END:
            yield b"".join(parts), True
            parts, length = [], 0
            continue
        parts.append(chunk)
        length += len(chunk)
        while length > size:
            data = b"".join(parts)
            at = cut(data, size)
            yield data[:at], False
            parts, length = [data[at:]], length - at
    if length:
        yield b"".join(parts), False


def split_of(text: bytes, share: float, seed: int) -> str:
    """The split of the document that begins with `text`: val with probability `share`."""
    digest = hashlib.blake2b(text[: 1 << 16], digest_size=8, key=str(seed).encode()).digest()
    return "val" if int.from_bytes(digest, "big") < share * 2**64 else "train"


def labelled(chunks: Chunks, choose: Callable[[bytes], str]) -> Iterator[Piece]:
    """Chunks -> pieces; `choose` gives the split of a document from its first piece."""
    split, first = "", True
    for text, last in pieces(chunks):
        split = choose(text) if first else split
        yield Piece(split, text, first, last)
        first = last


def as_text(data: bytes) -> str:
    """Bytes that are no UTF-8 become replacement characters."""
    return data.decode("utf-8", "replace")


def training_text(found: Iterable[Piece]) -> Iterator[str]:
    """The first SEEN bytes of the training split."""
    size = 0
    for piece in found:
        if piece.split == "train":
            yield as_text(piece.text)
            size += len(piece.text)
            if size >= SEEN:
                return


# ---- chunks ------------------------------------------------------------------------------------


def sliced(data: bytes) -> Iterator[bytes]:
    return (data[a : a + PIECE] for a in range(0, len(data), PIECE))


def whole(text: str) -> Iterator[bytes | None]:
    """A document that is in memory."""
    return chain(sliced(text.encode("utf-8", "surrogatepass")), [END])


def file_part(path: Path, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Bytes [start, end) of a text file. Raises UserError for a file that holds no text."""
    left = path.stat().st_size - start if end is None else end - start
    with _opened(path) as file:
        if b"\0" in file.read(4096):
            raise UserError(f"{path} is no text (it has a NUL byte); unpack or convert it first")
        file.seek(start)
        while left > 0 and (chunk := file.read(min(PIECE, left))):
            left -= len(chunk)
            yield chunk


def separated(path: Path, separator: bytes) -> Iterator[bytes | None]:
    """The documents of a text file; a line that is the separator stands between two of them. Where
    it is a line end, written \\n, every line is a document."""
    fresh, pending = True, False  # at the beginning of a line; something since the last END
    each = separator == b"\\n"
    with _opened(path) as file:
        while line := file.readline(PIECE):
            if fresh and line.rstrip(b"\r\n") == separator:
                yield END
                pending = False
            else:
                yield line.rstrip(b"\r\n") if each else line
                pending = True
            fresh = line.endswith(b"\n")
            if each and fresh:
                yield END
                pending = False
    if pending:
        yield END


def json_texts(path: Path) -> Iterator[str]:
    """The field `text` of each line of a JSON lines file, or of each object of a JSON array (which
    is read as a whole)."""
    with _opened(path) as file:
        if file.read(1) == b"[":
            rows: Iterable[bytes] = [path.read_bytes()]
        else:
            file.seek(0)
            rows = (line for line in file if line.strip())
        for number, row in enumerate(rows, 1):
            try:
                found = json.loads(row)
            except ValueError as e:
                raise UserError(f"{path}, row {number}: no JSON: {e}") from None
            for item in found if isinstance(found, list) else [found]:
                yield _text(item, f"{path}, row {number}")


def column_texts(source: Hub | Path, cache_dir: str = "", instead: str = LOCAL) -> Iterator[str]:
    """The column `text` of a dataset of the hub or of a parquet file, row by row. Raises UserError,
    which for the hub names what to give `instead`."""
    where = source.name if isinstance(source, Hub) else str(source)
    datasets = optional("datasets")
    try:
        for row in open_dataset(datasets, source, cache_dir or None):
            yield _text(row, where)
    except UserError:
        raise
    except Exception as e:  # those of the hub, of three network libraries and of pyarrow
        why = " ".join(str(e).split())[:150] or type(e).__name__
        advice = f"; without the hub: {instead}" if isinstance(source, Hub) else ""
        raise UserError(f"{where} cannot be read ({why}){advice}") from e


def open_dataset(datasets: Any, source: Hub | Path, cache_dir: str | None) -> Iterable[dict]:
    """The rows of a dataset of the hub or of a parquet file, streamed."""
    more = {"streaming": True, "cache_dir": cache_dir}
    if isinstance(source, Path):
        return datasets.load_dataset("parquet", data_files=[str(source)], split="train", **more)
    try:
        return datasets.load_dataset(source.name, source.config, split=source.split, **more)
    except RuntimeError:  # a dataset with a loading script: the hub keeps a copy without
        copy = {"revision": "refs/convert/parquet", **more}
        return datasets.load_dataset(source.name, source.config, split=source.split, **copy)


def _text(row: Any, where: str) -> str:
    if not isinstance(row, dict) or "text" not in row:
        found = list(row) if isinstance(row, dict) else type(row).__name__
        raise UserError(f"{where}: no field 'text', but {str(found)[:80]}")
    if not isinstance(row["text"] or "", str):
        raise UserError(f"{where}: the field 'text' holds {str(row['text'])[:40]!r}, no string")
    return row["text"] or ""


def _opened(path: Path) -> Any:
    try:
        return open(path, "rb")
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from e


# ---- sources -----------------------------------------------------------------------------------


def source_files(source: str) -> list[Path]:
    """'a.txt,folder,*.jsonl' -> files. A file that is named is taken as it is; from folders and
    patterns only files of a known kind are."""
    found: dict[Path, bool] = {}  # file -> is it named itself
    for entry in filter(None, source.split(",")):
        itself = Path(entry).expanduser()
        matches = [entry] if itself.exists() else sorted(glob.glob(entry, recursive=True))
        if not matches:
            names = ", ".join(["pydoc", *CUTS, *HUB])
            raise UserError(f"source={entry}: neither one of {names} nor a file, folder or pattern")
        for match in matches:
            for path in local_files(match):
                found[path] = found.get(path, False) or itself.is_file()
    kept = [p for p, named in found.items() if named or p.suffix in KNOWN]
    if len(kept) < len(found):
        print(f"left out: {len(found) - len(kept)} files that are none of {', '.join(KNOWN)}")
    if not kept:
        raise UserError(f"source={source} has no file of the kinds {', '.join(KNOWN)}")
    return kept


def are_texts(files: list[Path]) -> bool:
    """Is every one of these files a plain text, so that without a separator it is a document?"""
    return not any(p.suffix in ROWS or p.suffix == COLUMNS for p in files)


def too_few(files: list[Path], separator: str, share: float) -> bool:
    """Are there too few plain texts to hold out `share` of them as wholes?"""
    return are_texts(files) and not separator and len(files) * share < FEW


def file_chunks(files: list[Path], separator: str) -> Iterator[bytes | None]:
    """The documents of files of any of the known kinds."""
    for path in files:
        if path.suffix in ROWS or path.suffix == COLUMNS:
            texts = json_texts(path) if path.suffix in ROWS else column_texts(path)
            for text in texts:
                yield from whole(text)
        elif separator:
            yield from separated(path, separator.encode())
        else:
            yield from chain(file_part(path), [END])


def row_chunks(hubs: Iterable[Hub], cache_dir: str) -> Iterator[bytes | None]:
    """The documents of datasets of the hub, one dataset after another."""
    for hub in hubs:
        for text in column_texts(hub, cache_dir):
            yield from whole(text)


@functools.lru_cache(1)
def prose() -> list[str]:
    """The standard library is read once where it is streamed twice."""
    return python_prose()


def prose_chunks() -> Iterator[bytes | None]:
    """The documentation of this Python; each docstring is a document."""
    for text in prose():
        yield from whole(text)


def ends_held_out(files: list[Path], share: float) -> Iterator[Piece]:
    """Too few texts to hold out whole ones: the last `share` of each is validation."""
    for path in files:
        size = path.stat().st_size
        at = max(0, int(size * (1 - share)) - 3)
        with _opened(path) as file:
            file.seek(at)
            at += boundary(file.read(7), 3)
        for split, start, end in (("train", 0, at), ("val", at, size)):
            yield from labelled(chain(file_part(path, start, end), [END]), lambda _, s=split: s)


def cut_by_position(source: str, path: str, cache_dir: str) -> Iterator[Piece]:
    """shakespeare, text8: one text (held in memory, at most 100 MB), its first nine tenths for
    training. No document ends in it, so there is no END."""
    if path:
        text = read(Path(path))
    else:
        hubs = [Hub(CUT_HUB[source], split=s) for s in ("train", "validation", "test")]
        rows = chain.from_iterable(column_texts(h, cache_dir, "--path=FILE") for h in hubs)
        text = "".join(rows).encode()
    first, second = (boundary(text, int(len(text) * part)) for part in CUTS[source])
    for split, part in (("train", text[:first]), ("val", text[first:second])):
        yield from labelled(sliced(part), lambda _, s=split: s)
