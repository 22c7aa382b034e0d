"""Texts as streams: neither a corpus nor a long document is ever in memory as a whole.

A stream is an iterable of chunks, the bytes of one document after another, with `END` after each.
`labelled` turns it into pieces of about a megabyte, each with its split. Which split a document
belongs to follows from its own beginning and a seed: it does not depend on the order, and equal
documents are on the same side.
"""

import ast
import functools
import gc
import hashlib
import io
import json
import os
import re
import sys
import sysconfig
import warnings
from itertools import chain, dropwhile, islice
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Sequence

from tqdm import tqdm

from configurator import UserError, optional
from prepare.byte_rows import boundary
from prepare.files import (
    COLUMNS,
    KNOWN,
    RECORDS,
    entries,
    json_rows,
    kind_of,
    local_files,
    matches,
    opened,
    read_text,
    text_size,
)
from tokenizer import require_utf8

# ==================================================================================================
# Where texts come from: the prose that Python carries, local files, datasets of the hub
# ==================================================================================================


class Documents(NamedTuple):
    """How many there are, and the documents themselves, read one by one."""

    count: int
    texts: Iterable[bytes]


def library_files() -> tuple[Path, list[Path]]:
    """The folder of the standard library, and its Python files without tests, in order."""
    root, skip = Path(sysconfig.get_path("stdlib")), {"test", "tests", "idle_test", "site-packages"}
    # `parts` orders folders alike on all systems
    files = sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).parts)
    files = [p for p in files if not skip.intersection(p.relative_to(root).parts)]
    if not files:
        raise UserError(f"source=pydoc: no Python sources below {root}; take another source")
    return root, files


def python_prose() -> list[str]:
    """The English of this Python: help topics, then the docstrings of the standard library in the
    order of files and lines. Sources are parsed, never imported. Duplicates are left out."""
    root, files = library_files()
    topics = root / "pydoc_data" / "topics.py"
    files.sort(key=lambda p: p != topics)  # stable: topics first, if this Python has them
    collecting = gc.isenabled()
    gc.disable()  # syntax trees hold no cycles, and the search for them takes half of the time
    try:
        bar = tqdm(files, "reading the standard library", disable=not sys.stdout.isatty())
        trees = ((_strings if p == topics else _docstrings, parsed(p)) for p in bar)
        texts = [text for texts_of, tree in trees for text in texts_of(tree)]
    finally:
        if collecting:
            gc.enable()
    return list(dict.fromkeys(texts))


def parsed(path: Path) -> ast.AST:
    """A source file parsed; empty if it is for another version of the language."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in old modules
            return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


def _strings(tree: ast.AST) -> list[str]:
    """The values of the dictionary in pydoc_data.topics; its keys are single words."""
    tables = (node for node in ast.walk(tree) if isinstance(node, ast.Dict))
    values = (v for t in tables for v in t.values if isinstance(v, ast.Constant))
    return [v.value for v in values if isinstance(v.value, str)]


def _docstrings(node: ast.AST) -> Iterator[str]:
    """In the order of lines; only statements are entered, no expressions."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        if text := ast.get_docstring(node):
            yield text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.stmt, ast.ExceptHandler)):
            yield from _docstrings(child)


def read(path: Path) -> bytes:
    """The contents of a file, unpacked: its text if it is of a kind that is one, or else its bytes
    as they are."""
    with opened(path, text=kind_of(path) in KNOWN) as file:
        return file.read()


def is_saved(path: str) -> bool:
    """Is this a folder that `datasets` has saved?"""
    return any(Path(path, mark).is_file() for mark in ("state.json", "dataset_dict.json"))


def articles(path: str, hub_dataset: str, hub_config: str, cache_dir: str) -> Documents:
    """The articles of the hub, or of a folder saved by `datasets`."""
    datasets = optional("datasets")
    try:
        if path:
            data = datasets.load_from_disk(path)
            data = data["train"] if isinstance(data, dict) else data
        else:
            more = {"name": hub_config, "split": "train", "cache_dir": cache_dir or None}
            data = datasets.load_dataset(hub_dataset, **more)
    # unreachable, unknown configuration, no train split, damaged file
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as e:
        why = " ".join(str(e).split())[:150] or type(e).__name__
        raise UserError(
            f"{path or hub_dataset} cannot be read ({why}); without the hub: --source=pydoc, "
            "--source=text --path=FILES, or --source=wikipedia --path=FOLDER (saved by datasets)"
        ) from e
    if "text" not in data.column_names:
        raise UserError(f"{path or hub_dataset} has no column text: {data.column_names}")
    texts = ((row["text"] or "").encode("utf-8", "surrogatepass") for row in data)
    return Documents(len(data), texts)


def lines_of(text: str) -> list[str]:
    """The lines of a text with their ends, as files have them: a line feed, a carriage return, or
    both. `str.splitlines` cuts at form feeds and separators inside of a line as well."""
    return list(io.StringIO(text, newline=""))


def read_phrases(path: Path) -> list[str]:
    """One phrase per line after comment lines; or JSON: an array of strings or of objects with a
    `text`, alone or as the `palindromes` of an object. No empty ones."""
    listed = kind_of(path) == ".json"
    try:
        text = read_text(path, "surrogateescape")
        lines = json.loads(text) if listed else lines_of(text)
    except ValueError as e:
        raise UserError(f"file: {path} is no JSON: {e}") from e
    if isinstance(lines, dict):
        lines = lines.get("palindromes")
    if isinstance(lines, list):
        lines = [item.get("text") if isinstance(item, dict) else item for item in lines]
    if not isinstance(lines, list) or not all(isinstance(p, str) for p in lines):
        raise UserError(
            f'file: {path} must hold a JSON array of strings or of {{"text": ...}}, alone or as '
            '{"palindromes": [...]}'
        )
    try:
        require_utf8("".join(lines), "surrogateescape")
    except UserError as e:
        raise UserError(f"file: {path}: {e}") from e
    if not listed:
        lines = dropwhile(lambda line: line.startswith("#"), lines)
    phrases = [p.strip() for p in lines if p.strip()]
    if not phrases:
        raise UserError(f"file: {path} holds no phrases; write one per line")
    return phrases


# ==================================================================================================
# Texts as streams
# ==================================================================================================


END = None  # after the last chunk of a document
PIECE = 1 << 20  # bytes: longest chunk, and about the longest piece
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


def training_text(pieces: Iterable[Piece]) -> Iterator[str]:
    """The first SEEN bytes of the training split."""
    size = 0
    for piece in pieces:
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
    left = sys.maxsize if end is None else end - start
    with opened(path) as file:
        skip(file, start)
        while left > 0 and (chunk := file.read(min(PIECE, left))):
            left -= len(chunk)
            yield chunk


def skip(file: io.BufferedReader, size: int) -> None:
    """Go on by `size` bytes, which a packed file has to read."""
    if file.seekable():
        file.seek(size, os.SEEK_CUR)
        return
    while size > 0 and (chunk := file.read(min(PIECE, size))):
        size -= len(chunk)


def separated(path: Path, separator: bytes) -> Iterator[bytes | None]:
    """The documents of a text file; a line that is the separator stands between two of them. Where
    it is a line end, written \\n, every line is a document."""
    fresh, pending = True, False  # at the beginning of a line; something since the last END
    each = separator == b"\\n"
    with opened(path) as file:
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


def row_texts(path: Path) -> Iterator[str]:
    """The field `text` of each row of a file that holds rows."""
    if kind_of(path) == COLUMNS:
        return column_texts(path)
    return (_text(row, where) for where, row in json_rows(path, "row"))


def column_texts(source: Hub | Path, cache_dir: str = "", instead: str = LOCAL) -> Iterator[str]:
    """The column `text` of a dataset of the hub or of a parquet file, row by row. Raises UserError,
    which for the hub names what to give `instead`."""
    where = source.name if isinstance(source, Hub) else str(source)
    return (_text(row, where) for row in dataset_rows(source, cache_dir, instead))


def dataset_rows(source: Hub | Path, cache_dir: str = "", instead: str = LOCAL) -> Iterator[dict]:
    """The rows of a dataset of the hub or of a parquet file, streamed. Raises UserError, which for
    the hub names what to give `instead`."""
    where = source.name if isinstance(source, Hub) else str(source)
    datasets = optional("datasets")
    try:
        yield from open_dataset(datasets, source, cache_dir or None)
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


def _text(row: dict, where: str) -> str:
    if "text" not in row:
        raise UserError(f"{where}: no field 'text', but {str(list(row))[:80]}")
    if not isinstance(row["text"] or "", str):
        raise UserError(f"{where}: the field 'text' holds {str(row['text'])[:40]!r}, no string")
    return row["text"] or ""


# ---- sources -----------------------------------------------------------------------------------


def source_files(source: str) -> list[Path]:
    """'a.txt,folder,*.jsonl' -> files. A file that is named is taken as it is; from folders and
    patterns only files of a known kind are."""
    for entry in entries(source):
        if not matches(entry):
            names = ", ".join(["pydoc", *CUTS, *HUB])
            raise UserError(f"source={entry}: neither one of {names} nor a file, folder or pattern")
    return local_files(source, KNOWN)


def has_rows(path: Path) -> bool:
    """Does a file hold its documents in a field `text`?"""
    return kind_of(path) in RECORDS


def are_texts(files: list[Path]) -> bool:
    """Is every one of these files a plain text, so that without a separator it is a document?"""
    return not any(map(has_rows, files))


def too_few(files: list[Path], separator: str, share: float) -> bool:
    """Are there too few plain texts to hold out `share` of them as wholes?"""
    return are_texts(files) and not separator and len(files) * share < FEW


def file_chunks(files: list[Path], separator: str) -> Iterator[bytes | None]:
    """The documents of files of any of the known kinds."""
    for path in files:
        if has_rows(path):
            for text in row_texts(path):
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
        size = text_size(path)
        at = max(0, int(size * (1 - share)) - 3)
        with opened(path) as file:
            skip(file, at)
            at += boundary(file.read(7), 3)
        for split, start, end in (("train", 0, at), ("val", at, size)):
            yield from labelled(chain(file_part(path, start, end), [END]), lambda _, s=split: s)


def cut_by_position(source: str, path: str, cache_dir: str) -> Iterator[Piece]:
    """shakespeare, text8: one text (held in memory, at most 100 MB), its first nine tenths for
    training. No document ends in it, so there is no END."""
    if path:
        text = b"".join(file_part(Path(path)))
    else:
        hubs = [Hub(CUT_HUB[source], split=s) for s in ("train", "validation", "test")]
        rows = chain.from_iterable(column_texts(h, cache_dir, "--path=FILE") for h in hubs)
        text = "".join(rows).encode()
    first, second = (boundary(text, int(len(text) * part)) for part in CUTS[source])
    for split, part in (("train", text[:first]), ("val", text[first:second])):
        yield from labelled(sliced(part), lambda _, s=split: s)


# ==================================================================================================
# The documents of the data sets that cascades are trained on, by name, numbered from 0
#
# Published benchmarks come as lists of words with blanks around every mark; `detokenizer` undoes
# that for each of them, after GPT-2's habit. Other texts stay exactly as they are.
# ==================================================================================================


LAMBADA = "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl"
NAMED = {
    "openwebtext": HUB["openwebtext"][0],
    "wikitext103": Hub("Salesforce/wikitext", "wikitext-103-raw-v1"),
    "wikitext2": Hub("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "ptb": Hub("ptb-text-only/ptb_text_only"),
    "lambada": Hub("json"),  # one file, without splits
    "lm1b": HUB["lm1b"][0],
}


PREFIX_COLUMNS = {"ptb": "sentence"}  # of the text; `text` for all others
VAL_SEED = 42  # of which documents are held out, where a text has no splits of its own


class Texts(NamedTuple):
    """How many documents there are, `read(start, stop)` for some of them, and what tells this text
    from another, for meta.json."""

    count: int
    read: Callable[[int, int], Iterator[str]]
    identity: dict[str, Any]


# ---- detokenizers --------------------------------------------------------------------------------

Rules = list[tuple[str, str]]


INSIDE: Rules = [  # no blanks inside brackets and quotes
    (r"\(\s*([^)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"\{\s*([^}]*?)\s*\}", r"{\1}"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
]


RULES: dict[str, Rules] = {
    "wikitext": [
        (r"s '", "s'"),
        (r" @([-,.])@ ", r"\1"),
        (r" ([:;.!?,]) ", r"\1 "),
        *INSIDE,
        (r"= = = =", "===="),
        (r"= = =", "==="),
        (r"= =", "=="),
        (r" ° ", "°"),
        (r" \n", "\n"),
        (r"\n ", "\n"),
        (r" N ", " 1 "),
        (r" 's", "'s"),
    ],
    "ptb": [
        (r" 's", "'s"),
        (r"s ' ", "s' "),
        (r" n't", "n't"),
        (r" \\/ ", "/"),
        (r"\\/", "/"),
        (r"(?<= )N(?= )", "1"),
        (r"\$ 1", "$1"),
        (r"# 1", "#1"),
        (r"<unk>", "?"),
    ],
    "lm1b": [
        (r"(https?) : / / ", r"\1://"),
        (r" '(\w+)", r"'\1"),
        (r" ([.,:;?!])(?= |$)", r"\1"),
        (r" / ", "/"),
        *INSIDE,
        (r"\$ ", "$"),
        (r"£ ", "£"),
    ],
    "lambada": [(r"[“”]", '"'), (r"[‘’]", "'")],
}


def detokenizer(name: str) -> Callable[[str], str]:
    """The function that undoes the word lists of data set `name`."""
    key = "wikitext" if name.startswith("wikitext") else name
    rules = [(re.compile(old), new) for old, new in RULES.get(key, [])]
    return functools.partial(_apply, rules=rules, strip=key == "lambada")


def _apply(text: str, rules: list[tuple[re.Pattern, str]], strip: bool) -> str:
    for old, new in rules:
        text = old.sub(new, text)
    return "\n" + text.strip() if strip else text


HEADING = re.compile(r"=.+= ?$")  # "= Robert =\n", "= = Career = = \n", but not "= a\n"


def is_prose(row: str) -> bool:
    """Is a row of wikitext neither blank nor a heading?"""
    row = row.lstrip()
    return bool(row) and not HEADING.match(row)


# ---- texts ---------------------------------------------------------------------------------------


def find_texts(name: str, mode: str, path: str, separator: str, share: float, cache: str) -> Texts:
    """The documents of split `mode` of data set `name`: one of NAMED, pydoc, files and folders, or
    an id of the hub. `path` is a local copy of a named one. Where there are no splits, `share` of
    the documents is validation."""
    if name in NAMED:
        rows = _disk(name, path) if path else _hub(NAMED[name], name, mode, cache)
        return _rows(name, mode, rows, path)
    if name == "pydoc" or is_local(name):
        return _local(name, mode, separator, share)
    if re.fullmatch(r"[\w-]+/[\w.-]+", name):
        return _rows(name, mode, _hub(Hub(name), name, mode, cache), "")
    names = ", ".join([*NAMED, "pydoc"])
    raise UserError(f"dataset_name={name}: neither one of {names} nor a file, folder or hub id")


def _rows(name: str, mode: str, rows: Sequence[str], path: str) -> Texts:
    """Every row is a document; of wikitext, rows of prose only."""
    proper, wiki = detokenizer(name), name.startswith("wikitext")
    kept = [i for i, row in enumerate(rows) if is_prose(row)] if wiki else range(len(rows))

    def read_some(start: int, stop: int) -> Iterator[str]:
        for i in kept[start:stop]:
            yield proper(rows[i].lstrip() if wiki else rows[i])

    identity = {"rows": len(rows), **_files(local_files(path) if path else [])}
    return Texts(len(kept), read_some, identity)


def _files(files: list[Path]) -> dict[str, Any]:
    """What tells these files from others, or from their next edition."""
    stats = [(p, p.stat()) for p in files]
    return {"files": [[str(p), s.st_size, s.st_mtime_ns] for p, s in stats]}


class Column(Sequence):
    """One column of a `datasets` table, read row by row."""

    def __init__(self, table: Any, name: str, where: str):
        if name not in table.column_names:
            raise UserError(f"{where} has no column {name}: {', '.join(table.column_names)}")
        self.table, self.name = table, name

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> str:
        return self.table[i][self.name] or ""


def _hub(hub: Hub, name: str, mode: str, cache: str) -> Sequence[str]:
    """Split `mode` of a data set of the hub, downloaded once and then read from the disk."""
    datasets = optional("datasets")
    more: dict[str, Any] = {"cache_dir": cache or None, "split": mode}
    if name == "lambada":
        more |= {"data_files": LAMBADA, "split": "train"}
    try:
        try:
            table = datasets.load_dataset(hub.name, hub.config, **more)
        except RuntimeError:  # a dataset with a loading script: the hub keeps a copy without
            table = datasets.load_dataset(hub.name, revision="refs/convert/parquet", **more)
    except Exception as e:  # those of the hub, of three network libraries and of pyarrow
        why = " ".join(str(e).split())[:150] or type(e).__name__
        advice = "--path=FILES (a local copy)" if name in NAMED else "--dataset_name=FILES"
        raise UserError(
            f"{name}, split {mode}, cannot be read ({why}); without the hub: {advice}, or "
            "--dataset_name=pydoc"
        ) from e
    return Column(table, PREFIX_COLUMNS.get(name, "text"), name)


def _disk(name: str, path: str) -> Sequence[str]:
    """A local copy: a folder saved by `datasets`, JSON lines or parquet, or text, line by line."""
    if is_saved(path):
        table = optional("datasets").load_from_disk(path)
        if isinstance(table, dict):
            raise UserError(f"path={path} holds the splits {', '.join(table)}; name one of them")
        return Column(table, PREFIX_COLUMNS.get(name, "text"), path)
    rows: list[str] = []
    for file in local_files(path):
        rows += row_texts(file) if has_rows(file) else lines_of(read_text(file, "replace"))
    return rows


def is_local(name: str) -> bool:
    """Are these files, folders or patterns?"""
    return any(map(matches, entries(name)))


def _local(name: str, mode: str, separator: str, share: float) -> Texts:
    """pydoc, or files, of which `share` is validation; a document above a megabyte is cut."""
    split = "val" if mode == "validation" else mode
    if split not in ("train", "val"):
        raise UserError(f"dataset_mode={mode}: {name} has train and validation only")
    files = [] if name == "pydoc" else source_files(name)

    def stream() -> Iterator[Piece]:
        if files and too_few(files, separator, share):
            return ends_held_out(files, share)
        chunks = file_chunks(files, separator) if files else prose_chunks()
        return labelled(chunks, functools.partial(split_of, share=share, seed=VAL_SEED))

    def read_all() -> Iterator[str]:
        return (as_text(piece.text) for piece in stream() if piece.split == split)

    def read_some(start: int, stop: int) -> Iterator[str]:
        return islice(read_all(), start, stop)

    identity = {"val_split_ratio": share, "separator": separator, **_files(files)}
    if not files:
        identity["python"] = sys.version.split()[0]
    return Texts(sum(1 for _ in read_all()), read_some, identity)
