"""Files as what they are: packed or not, in UTF-8 or UTF-16, lines or a list of JSON.

Every command that takes texts or records finds and opens their files here, so that a file is the
same to all of them.
"""

import bz2
import codecs
import glob
import gzip
import io
import json
import lzma
import os
import zlib
from collections import Counter
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator

from configurator import UserError, optional

LINES, COLUMNS = (".jsonl", ".ndjson", ".jsonlines"), ".parquet"
ROWS, TEXTS = (".json", *LINES), (".txt", ".md")
RECORDS = (*ROWS, COLUMNS)
KNOWN = (*TEXTS, *RECORDS)  # what is taken from folders and patterns
PACKINGS = {  # ending -> first bytes, by which it is known whatever the file is called
    ".gz": b"\x1f\x8b",
    ".bz2": b"BZh",
    ".xz": b"\xfd7zXZ\0",
    ".zst": b"\x28\xb5\x2f\xfd",
}
FOREIGN = {  # first bytes of what cannot be read as a text
    b"PK\x03\x04": "a zip archive",
    b"7z\xbc\xaf'\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a rar archive",
    b"%PDF-": "a PDF",
}
PARTS = 16  # at most, of a name with commas of its own
MARKS = {  # byte order marks; those of UTF-32 come first, as one begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


# ---- names -------------------------------------------------------------------------------------


def kind_of(path: Path) -> str:
    """The ending of a name in lower case, without that of its packing: notes.JSONL.gz is .jsonl."""
    path = Path(path.name.lower())
    return Path(path.stem).suffix if path.suffix in PACKINGS else path.suffix


def stem_of(path: Path) -> str:
    """The name without these endings."""
    return Path(path.stem).stem if path.suffix.lower() in PACKINGS else path.stem


def matches(name: str) -> list[str]:
    """The file or folder of this name, or those of a pattern."""
    name = os.path.expanduser(name)
    return [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))


def entries(names: str, found: Callable[[str], Any] = matches) -> list[str]:
    """Names with commas between them, of which one may have commas itself: each is the longest one
    that is `found`. The spaces after a comma belong to a name only if it is found with them."""
    parts, got = names.split(","), []
    while parts:
        joined = [(n, ",".join(parts[:n])) for n in range(min(len(parts), PARTS), 0, -1)]
        tries = [(n, one) for n, name in joined for one in (name, name.strip()) if one]
        n, name = next((t for t in tries if found(t[1])), (1, parts[0].strip()))
        got += [name] if name else []
        parts = parts[n:]
    return got


def local_files(names: str, kinds: tuple[str, ...] = ()) -> list[Path]:
    """'a.txt,folder,*.jsonl' -> files, in order. A file that is named is taken as it is; so are the
    visible ones of folders and patterns, or with `kinds` those of these kinds. The others and empty
    ones are counted. Raises UserError for a name of nothing, and if no file is left."""
    files: dict[Path, bool] = {}  # file -> is it named itself
    for entry in entries(names):
        found = matches(entry)
        if not found:
            raise UserError(f"cannot read {entry}: no such file or folder")
        itself = os.path.isfile(os.path.expanduser(entry))
        for path in map(Path, found):
            inside = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
            seen = [p for p in inside if not any(x[0] == "." for x in p.relative_to(path).parts)]
            files |= {p: files.get(p, False) or itself for p in sorted(seen)}
    kept = [p for p, named in files.items() if named or not kinds or kind_of(p) in kinds]
    if len(kept) < len(files):
        print(f"left out: {len(files) - len(kept)} files that are none of {', '.join(kinds)}")
    full = [p for p in kept if p.stat().st_size]
    if len(full) < len(kept):
        print(f"left out: {len(kept) - len(full)} empty files")
    if packed := Counter(p.suffix.lower() for p in full if p.suffix.lower() in PACKINGS):
        print("unpacked: " + ", ".join(f"{n} files {ending}" for ending, n in packed.items()))
    if not full:
        what = f"of the kinds {', '.join(kinds)}" if kinds else "with any text"
        why = "it is empty" if kept else "name others"
        raise UserError(f"{names} holds no file {what}: {why}")
    return full


# ---- contents ----------------------------------------------------------------------------------


class _Recoded(io.RawIOBase):
    """A file in another encoding, read as UTF-8."""

    def __init__(self, file: BinaryIO, encoding: str):
        self.file, self.decoder = file, codecs.getincrementaldecoder(encoding)()
        self.rest, self.ended = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.rest and not self.ended:
            data = self.file.read(1 << 16)
            self.ended = not data
            self.rest = self.decoder.decode(data, final=self.ended).encode()
        size = min(len(buffer), len(self.rest))
        buffer[:size], self.rest = self.rest[:size], self.rest[size:]
        return size


@contextmanager
def opened(path: Path, text: bool = True) -> Iterator[io.BufferedReader]:
    """A file as bytes, unpacked. Its text is UTF-8 from the first character on: a byte order mark
    is left out, and what it says is UTF-16 or UTF-32 is recoded; with text=False bytes are as they
    are. Raises UserError, also while the file is read, if it is damaged or holds no text."""
    try:
        with ExitStack() as stack:
            file = stack.enter_context(open(path, "rb"))
            file = stack.enter_context(_unpacked(file, path))
            yield _texts(file, path) if text else file
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is no text: it is no {e.encoding}, as its first bytes say") from e
    except (EOFError, zlib.error, lzma.LZMAError) as e:
        raise UserError(f"{path} is no text: what it packs is damaged ({e})") from e
    except OSError as e:
        if e.strerror is None:  # of gzip and bz2, not of the system
            raise UserError(f"{path} is no text: what it packs is damaged ({e})") from e
        raise UserError(f"cannot read {path}: {e.strerror}") from e


def _unpacked(file: io.BufferedReader, path: Path) -> io.BufferedReader:
    head = file.peek(16)[:16]
    foreign = next((what for first, what in FOREIGN.items() if head.startswith(first)), "")
    if foreign:
        raise UserError(f"{path} is no text but {foreign}; unpack or convert it first")
    ending = next((e for e, first in PACKINGS.items() if head.startswith(first)), "")
    if ending == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=file))
    if ending == ".bz2" and head[4:10] == b"1AY&SY":  # else a text that begins with BZh
        return io.BufferedReader(bz2.BZ2File(file))
    if ending == ".xz":
        return io.BufferedReader(lzma.LZMAFile(file))
    if ending == ".zst":
        return io.BufferedReader(_Zstandard(file, path))
    return file


class _Zstandard(io.RawIOBase):
    """A file of zstandard, unpacked. Unlike the library's own reader, it tells of a missing end."""

    def __init__(self, file: BinaryIO, path: Path):
        self.zstandard, self.path, self.file = optional("zstandard"), path, file
        self.frame, self.packed, self.rest = self._frame(), b"", b""

    def _frame(self) -> Any:
        return self.zstandard.ZstdDecompressor().decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            while not self.rest and (packed := self.packed or self.file.read(1 << 16)):
                if self.frame.eof:  # another frame, as after appending
                    self.frame = self._frame()
                self.rest = self.frame.decompress(packed)
                self.packed = self.frame.unused_data if self.frame.eof else b""
        except self.zstandard.ZstdError as e:
            raise UserError(f"{self.path} is no text: what it packs is damaged ({e})") from e
        if not self.rest and not self.frame.eof:
            raise EOFError("it has no end")
        size = min(len(buffer), len(self.rest))
        buffer[:size], self.rest = self.rest[:size], self.rest[size:]
        return size


def _texts(file: io.BufferedReader, path: Path) -> io.BufferedReader:
    head = file.peek(4096)[:4096]
    mark = next((m for m in MARKS if head.startswith(m)), b"")
    file.read(len(mark))
    if mark and mark != codecs.BOM_UTF8:
        file = io.BufferedReader(_Recoded(file, MARKS[mark]))
    if b"\0" in file.peek(4096)[:4096]:
        raise UserError(f"{path} is no text (it has a NUL byte); unpack or convert it first")
    return file


def text_size(path: Path) -> int:
    """How many bytes of UTF-8 the text of a file has."""
    with opened(path) as file:
        if isinstance(file.raw, io.FileIO):
            return path.stat().st_size - file.tell()
        return sum(map(len, iter(lambda: file.read(1 << 20), b"")))


def read_text(path: Path, errors: str = "strict") -> str:
    """The text of a file. Raises UserError for one that is no UTF-8, unless `errors` allows it."""
    with opened(path) as file:
        data = file.read()
    try:
        return data.decode("utf-8", errors)
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise UserError(f"{path}, line {line}: no UTF-8; convert the file") from e


# ---- records -----------------------------------------------------------------------------------


def json_rows(path: Path, unit: str = "line", listed: bool = False) -> Iterator[tuple[str, dict]]:
    """The objects of a file, each with its place in words, in which a line is a `unit`: those of a
    list (which is read as a whole), or one per line. listed: a .json file must hold a list. Raises
    UserError that names the place of what is none."""
    with opened(path) as file:
        first, number = b"", 0
        for number, first in enumerate(file, 1):  # noqa: B007, the first line that is not blank
            if first.strip():
                break
        if first.lstrip().startswith(b"[") or (listed and kind_of(path) == ".json"):
            rows = _listed(path, first + file.read(), number or 1)
        else:
            lines = enumerate(chain([first], file), number)
            filled = ((f"{path}, {unit} {n}", line) for n, line in lines if line.strip())
            rows = ((where, _line(where, line)) for where, line in filled)
        for where, row in rows:
            if not isinstance(row, dict):
                raise UserError(f"{where}: an object is needed, not {str(row)[:40]!r}")
            yield where, row


def _line(where: str, line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as e:
        raise UserError(f"{where}: no UTF-8; convert the file") from e
    except json.JSONDecodeError as e:
        advice = "an object stands on one line, or the file is a list in [ ]"
        raise UserError(f"{where}: no JSON: {e.msg} at character {e.pos + 1}; {advice}") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where}: no usable JSON: {e}") from e


def _listed(path: Path, data: bytes, first_line: int) -> Iterator[tuple[str, Any]]:
    """The items of a list that begins in line `first_line`."""

    def line(at: int) -> int:
        return first_line + data.count(b"\n", 0, at)

    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as e:
        raise UserError(f"{path}, line {line(e.start)}: no UTF-8; convert the file") from e
    except json.JSONDecodeError as e:
        more = "; one object per line is a .jsonl file" if e.msg == "Extra data" else ""
        raise UserError(f"{path}, line {first_line + e.lineno - 1}: {e.msg}{more}") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}, line {first_line}: no usable JSON: {e}") from e
    if not isinstance(value, list):
        what = f"an object of {', '.join(value)[:60]}" if isinstance(value, dict) else repr(value)
        advice = "one object per line is a .jsonl file"
        raise UserError(f"{path}: it must hold a list, not {what[:80]}; {advice}")
    where = f"{path}, line {first_line}" if kind_of(path) in LINES else str(path)
    return ((f"{where}, row {n}", row) for n, row in enumerate(value, 1))
