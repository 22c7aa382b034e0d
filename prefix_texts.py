"""The documents of the data sets that cascades are trained on, by name, numbered from 0.

Published benchmarks come as lists of words with blanks around every mark; `detokenizer` undoes that
for each of them, after GPT-2's habit. Other texts stay exactly as they are.
"""

import functools
import glob
import re
import sys
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Sequence

from configurator import UserError, optional
from sources import local_files, read
from streams import (
    HUB,
    Hub,
    Piece,
    as_text,
    column_texts,
    ends_held_out,
    file_chunks,
    json_texts,
    labelled,
    prose_chunks,
    source_files,
    split_of,
    too_few,
)

LAMBADA = "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl"
NAMED = {
    "openwebtext": HUB["openwebtext"][0],
    "wikitext103": Hub("Salesforce/wikitext", "wikitext-103-raw-v1"),
    "wikitext2": Hub("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "ptb": Hub("ptb-text-only/ptb_text_only"),
    "lambada": Hub("json"),  # one file, without splits
    "lm1b": HUB["lm1b"][0],
}
COLUMNS = {"ptb": "sentence"}  # of the text; `text` for all others
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
    return functools.partial(_apply, rules=rules, framed=key == "lambada")


def _apply(text: str, rules: list[tuple[re.Pattern, str]], framed: bool) -> str:
    for old, new in rules:
        text = old.sub(new, text)
    return "\n" + text.strip() if framed else text


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
    known = ", ".join([*NAMED, "pydoc"])
    raise UserError(f"dataset_name={name}: neither one of {known} nor a file, folder or hub id")


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
    return Column(table, COLUMNS.get(name, "text"), name)


def _disk(name: str, path: str) -> Sequence[str]:
    """A local copy: a folder saved by `datasets`, JSON lines or parquet, or text, line by line."""
    if any((Path(path) / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
        table = optional("datasets").load_from_disk(path)
        if isinstance(table, dict):
            raise UserError(f"path={path} holds the splits {', '.join(table)}; name one of them")
        return Column(table, COLUMNS.get(name, "text"), path)
    rows: list[str] = []
    for file in local_files(path):
        if file.suffix in (".json", ".jsonl"):
            rows += json_texts(file)
        elif file.suffix == ".parquet":
            rows += column_texts(file)
        else:
            rows += as_text(read(file)).splitlines(keepends=True)
    return rows


def is_local(name: str) -> bool:
    """Are these files, folders or patterns?"""
    return any(Path(n).expanduser().exists() or glob.glob(n) for n in name.split(",") if n)


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
