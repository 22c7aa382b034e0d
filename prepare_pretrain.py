"""Corpora for pretraining: any amount of text, any tokenizer.

    python prepare_pretrain.py --source=pydoc --tokenizer=train:4096      # offline
    python prepare_pretrain.py --source=shakespeare --path=input.txt --tokenizer=chars
    python prepare_pretrain.py --source='essays,notes/*.jsonl' --tokenizer=gpt2 --dataset=mine
    python prepare_pretrain.py --source=openwebtext --tokenizer=gpt2 --num_workers=16
    python prepare_pretrain.py --large_dataset --path_to_data_store=data/large --num_workers=16
    python prepare_pretrain.py --source=lm1b --packing=rows --detokenize=lm1b --context_length=128

--source is pydoc; shakespeare or text8 (one text, divided by position); a dataset of the hub:
fineweb, wikipedia, gutenberg, openwebtext, lm1b, stories; or files, folders and patterns with
commas between them, of the kinds .txt, .jsonl, .json and .parquet (a field `text` per document).
--tokenizer is bytes, gpt2, chars, train:N (byte-level BPE of N ids, learnt from the text), a folder
with tokenizer.json, a GGUF file, or a hub id; to the last four the five tokens of a chat are added.

Documents go to training or validation as wholes, before anything is cut. They form one stream, EOS
after each, of which training reads windows; --packing=pad is the original's: every document by
itself in rows of context_length, BOS first, EOS last and as padding. --packing=rows has a row for
each document, BOS text EOS, with BOS given; one of more than context_length ids is left out. The
tokenizer then gets a BOS, EOS and PAD of its own if it has none. lm1b and stories keep the splits
that they have; with --separator='\\n' every line of a text file is a document.

The text is streamed: memory does not grow with it. An interrupted run goes on after its last
complete shard when the same command is given again (a dataset of the hub is read again up to
there). The corpus has its name only when it is whole, and does not depend on num_workers.
"""

import dataclasses
import functools
import os
import sys
import time
import zlib
from collections import Counter
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from configurator import UserError, describe, load, require, run
from prepare.files import PACKINGS
from prepare.shards import ShardWriter, kept_tokenizer, partial_of, progress_of, unfinished
from prepare.texts import (
    CUTS,
    HELD_OUT,
    HUB,
    LARGE,
    RULES,
    Piece,
    are_texts,
    as_text,
    cut_by_position,
    detokenizer,
    ends_held_out,
    file_chunks,
    labelled,
    prose_chunks,
    row_chunks,
    source_files,
    split_of,
    too_few,
    training_text,
)
from prepare_bytes import batches, in_order
from tokenizer import Bytes, Symbols, Tokenizer, create, with_bos_eos

SHARES = {"pydoc": 0.05}  # of validation; 0.005 for the other sources


@dataclass(frozen=True)
class PretrainConfig:
    """The options of `prepare_pretrain.py`."""

    # the text
    source: str = "gutenberg"  # a name, or files, folders and patterns: see above
    path: str = ""  # shakespeare, text8: a local copy, instead of the hub
    separator: str = ""  # a line between the documents of a text file; empty: a file is one
    large_dataset: bool = False  # fineweb, fineweb-edu (10 BT samples each) and wikipedia
    test_split_pct: float | None = None  # share of validation; None: 0.005, pydoc 0.05
    dataset_split_seed: int = 42  # of the choice of what goes to validation
    # the ids
    tokenizer: str = "answerdotai/ModernBERT-base"  # a name, folder or hub id: see above
    hf_model_name: str = ""  # the original's name for a tokenizer of the hub
    bpe_dir: str = ""  # gpt2: folder with vocab.bpe and encoder.json, instead of a download
    packing: Literal["stream", "pad", "rows"] = "stream"  # one stream, or rows: see above
    context_length: int = 1024  # pad: ids per row; rows: at most so many
    detokenize: Literal["none", *RULES] = "none"  # rows: undo the word list that this text came as
    # the result
    dataset: str = ""  # folder of the corpus, below data_dir; empty: the name of the source
    data_dir: str = "data"  # where prepared corpora live
    path_to_data_store: str = ""  # the original's name for both at once
    # the work
    num_workers: int = 1  # processes that tokenise; the corpus does not depend on it
    shard_mb: float = 256.0  # MB of text per shard: what a killed run may have to do again
    huggingface_cache_dir: str = ""  # where downloads go; empty: the library's own place

    def __post_init__(self):
        share, fixed = self.test_split_pct, self.source in CUTS
        require(self, "test_split_pct", share is None or 0 < share < 1, "above 0 and below 1")
        require(self, "test_split_pct", share is None or not fixed, f"None for {self.source}")
        require(self, "source", bool(self.source), "given")
        alone = not self.large_dataset or self.source == PretrainConfig.source
        require(self, "source", alone, "left out with --large_dataset")
        require(self, "path", fixed or not self.path, "for shakespeare and text8; files: --source=")
        require(self, "packing", not fixed or self.packing == "stream", f"stream for {self.source}")
        plain = self.detokenize == "none" or self.packing == "rows"
        require(self, "detokenize", plain, "none unless packing=rows")
        default = self.tokenizer == PretrainConfig.tokenizer or not self.hf_model_name
        require(self, "hf_model_name", default, "left out with --tokenizer")
        elsewhere = not (self.path_to_data_store and self.dataset)
        require(self, "path_to_data_store", elsewhere, "left out with --dataset")
        require(self, "dataset_split_seed", self.dataset_split_seed >= 0, "at least 0")
        require(self, "num_workers", self.num_workers >= 1, "at least 1")
        require(self, "context_length", self.context_length >= 2, "at least 2")
        require(self, "shard_mb", self.shard_mb > 0, "above 0")

    def folder(self) -> Path:
        """Where the corpus goes."""
        name = "large" if self.large_dataset else self.source
        if name not in ("large", "pydoc", *CUTS, *HUB):
            name = "text"
        return Path(self.path_to_data_store or Path(self.data_dir) / (self.dataset or name))

    def share(self) -> float:
        """The share of validation."""
        return self.test_split_pct or SHARES.get(self.source, 0.005)


# ---- the text ----------------------------------------------------------------------------------


class Source(NamedTuple):
    """Text that can be streamed any number of times."""

    files: list[Path]
    held_out: str  # what goes to validation, in words
    size: int | None  # bytes, where that is known beforehand


def find_source(cfg: PretrainConfig) -> Source:
    """Check that the source exists, before anything is read."""
    if cfg.source in CUTS:
        held = "the last tenth" if cfg.source == "shakespeare" else "5 % after the first 90 %"
        return Source([], f"{held} of the text", None)
    if own_split(cfg):
        return Source([], f"its {HELD_OUT[cfg.source].split} split", None)
    if cfg.large_dataset or cfg.source == "pydoc" or cfg.source in HUB:
        return Source([], "whole documents", None)
    files = source_files(cfg.source)
    plain = are_texts(files) and not any(p.suffix.lower() in PACKINGS for p in files)
    size = sum(p.stat().st_size for p in files) if plain else None
    few = too_few(files, cfg.separator, cfg.share())
    return Source(files, "the end of every file" if few else "whole documents", size)


def own_split(cfg: PretrainConfig) -> bool:
    """Does the source have a validation split, and is it used?"""
    return cfg.source in HELD_OUT and cfg.test_split_pct is None


def stream(cfg: PretrainConfig, source: Source) -> Iterator[Piece]:
    """All of the text in its order, with its split; the same every time."""
    if own_split(cfg):
        parts = {"train": HUB[cfg.source], "val": (HELD_OUT[cfg.source],)}
        return chain.from_iterable(
            labelled(row_chunks(hubs, cfg.huggingface_cache_dir), lambda _, s=split: s)
            for split, hubs in parts.items()
        )
    if cfg.source in CUTS:
        return cut_by_position(cfg.source, cfg.path, cfg.huggingface_cache_dir)
    if source.held_out == "the end of every file":
        return ends_held_out(source.files, cfg.share())
    if source.files:
        chunks = file_chunks(source.files, cfg.separator)
    elif cfg.source == "pydoc":
        chunks = prose_chunks()
    else:
        hubs = LARGE if cfg.large_dataset else HUB[cfg.source]
        chunks = row_chunks(hubs, cfg.huggingface_cache_dir)
    choose = functools.partial(split_of, share=cfg.share(), seed=cfg.dataset_split_seed)
    return labelled(chunks, choose)


# ---- the tokenizer -----------------------------------------------------------------------------


def make_tokenizer(cfg: PretrainConfig, source: Source) -> Tokenizer:
    """The tokenizer of the config; `chars` and `train:N` read the text for it."""
    name = cfg.hf_model_name or cfg.tokenizer
    if name == "chars":  # of validation too: which characters exist is no secret, and all need ids
        symbols: set[str] = set()
        for piece in stream(cfg, source):
            symbols.update(as_text(piece.text))
        return Symbols(sorted(symbols))

    def texts() -> Iterator[str]:
        return training_text(stream(cfg, source))

    if cfg.packing != "rows":
        return create(name, texts, cfg.bpe_dir, cfg.huggingface_cache_dir)
    return with_bos_eos(create(name, texts, cfg.bpe_dir, cfg.huggingface_cache_dir, chat=False))


# ---- from text to ids --------------------------------------------------------------------------


class Encoded(NamedTuple):
    """A batch of pieces as ids."""

    ids: dict[str, np.ndarray]  # split -> (N,), one document after another
    ends: dict[str, np.ndarray]  # split -> where in them documents end
    counts: Counter  # "train documents", "val bytes" ..., and what was left out or replaced
    pieces: int
    size: int  # bytes of text


def piece_ids(tokenizer: Tokenizer, piece: Piece, counts: Counter) -> np.ndarray:
    """The ids of a piece alone, none of them special."""
    if isinstance(tokenizer, Bytes):
        return np.frombuffer(piece.text, np.uint8)
    text = as_text(piece.text)
    if "\ufffd" in text and text.encode() != piece.text:
        counts["pieces with bytes that are no UTF-8, replaced"] += 1
    return np.array(tokenizer.encode(text), np.uint32)


class RowFormat(NamedTuple):
    """How documents become rows."""

    bos: bool = False  # before each
    longest: int = 0  # ids, BOS and EOS among them; a longer one is left out. 0: any
    detokenize: str = "none"  # the word list that it came as


def encode(batch: list[Piece], tokenizer: Tokenizer, form: RowFormat) -> Encoded:
    """Pieces -> ids, with EOS after each document and BOS before it if rows have one. Documents of
    more than `form.longest` ids, if set, are left out, and so are those of several pieces."""
    bos = [tokenizer.specials["bos"]] if form.bos else []
    proper = detokenizer(form.detokenize)
    parts: dict[str, list] = {"train": [], "val": []}
    ends: dict[str, list[int]] = {"train": [], "val": []}
    length, counts = Counter(), Counter()
    for piece in batch:
        if piece.first and piece.last and not piece.text.strip():
            counts["empty documents, left out"] += 1
            continue
        if form.detokenize != "none":
            piece = piece._replace(text=proper(as_text(piece.text)).encode())
        whole = piece.first and piece.last
        encoded = [piece_ids(tokenizer, piece, counts) if whole or not form.longest else []]
        if form.longest and (not whole or len(encoded[0]) + 2 > form.longest):
            counts[f"documents of more than {form.longest} ids, left out"] += piece.first
            continue
        if piece.first:
            encoded.insert(0, bos)
            counts[f"{piece.split} documents"] += 1
        if piece.last:
            encoded.append([tokenizer.specials["eos"]])
        parts[piece.split] += encoded
        length[piece.split] += sum(map(len, encoded))
        counts[f"{piece.split} bytes"] += len(piece.text)
        if piece.last:
            ends[piece.split].append(length[piece.split])
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    ids = {s: np.concatenate([np.asarray(p, dtype) for p in ps]) for s, ps in parts.items() if ps}
    where = {s: np.array(ends[s], np.int64) for s in ids}
    return Encoded(ids, where, counts, len(batch), sum(len(p.text) for p in batch))


@functools.lru_cache(1)
def kept_in(folder: Path, identity: int) -> Tokenizer:
    """The tokenizer of a corpus that is being written; `identity` distinguishes corpora in the same
    folder in the cache."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread per worker
    return kept_tokenizer(progress_of(folder))


def encode_elsewhere(batch: list[Piece], folder: Path, identity: int, form: RowFormat) -> Encoded:
    """`encode` in a worker, which reads the tokenizer once and not with every batch."""
    return encode(batch, kept_in(folder, identity), form)


def padded_rows(
    ids: np.ndarray, ends: np.ndarray, length: int, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """Documents that end at `ends` (D,) in ids (N,), each cut into rows of `length`, the last one
    filled with `pad` -> (rows (R, length), what is left of a document that goes on)."""
    total = int(ends[-1]) if len(ends) else 0
    sizes = np.diff(ends, prepend=0)  # (D,)
    needed = -(-sizes // length)  # rows of each document
    shift = (np.cumsum(needed) - needed) * length - (ends - sizes)  # from its place to that in rows
    rows = np.full(needed.sum() * length, pad, ids.dtype)
    rows[np.arange(total) + np.repeat(shift, sizes)] = ids[:total]
    rest = ids[total:]
    more = len(rest) // length * length  # these rows are full whatever follows
    return np.concatenate([rows, rest[:more]]).reshape(-1, length), rest[more:]


def chunks(ids: Iterable[int], context_length: int, bos: int, eos: int) -> np.ndarray:
    """A document as the ModernBERT diffusion model trains on it: BOS, its ids (N,), EOS, in rows
    (ceil((N + 2) / context_length), context_length), the last one filled with EOS."""
    row = np.array([bos, *ids, eos], np.int64)
    return padded_rows(row, np.array([len(row)]), context_length, eos)[0]


# ---- the command -------------------------------------------------------------------------------


def worker(cfg: PretrainConfig, out: ShardWriter) -> Callable[[list[Piece]], Encoded]:
    """`encode` for this process, or in a form that is cheap to send to another one."""
    longest, tokenizer = cfg.context_length if cfg.packing == "rows" else 0, out.tokenizer
    form = RowFormat(cfg.packing != "stream", longest, cfg.detokenize)
    if cfg.num_workers == 1:
        return functools.partial(encode, tokenizer=tokenizer, form=form)
    identity = zlib.crc32(repr((tokenizer.spec(), tokenizer.files)).encode())
    return functools.partial(encode_elsewhere, folder=out.folder, identity=identity, form=form)


def append(
    cfg: PretrainConfig, out: ShardWriter, encoded: Encoded, rest: dict[str, np.ndarray]
) -> None:
    """Write ids to the files; with packing=pad in rows, where an incomplete row is kept in `rest`
    until its document continues."""
    for split, ids in encoded.ids.items():
        if cfg.packing == "pad":
            before = rest.pop(split, ids[:0])
            eos, ids = out.tokenizer.specials["eos"], np.concatenate([before, ids])
            ends = encoded.ends[split] + len(before)
            rows, rest[split] = padded_rows(ids, ends, cfg.context_length, eos)
            ids = rows.ravel()
        if cfg.packing == "rows" and len(ids):
            lengths = np.diff(encoded.ends[split], prepend=0)
            out.rows(split, ids, lengths, np.ones_like(lengths))
        elif len(ids):
            out.tokens(split, ids)


def write(cfg: PretrainConfig, source: Source, out: ShardWriter) -> int:
    """Tokenise the rest of the text, shard by shard. Returns bytes of text."""
    mark = out.mark or {"pieces": 0, "bytes": 0, "counts": {}, "rest": {}}
    pieces, done, counts = mark["pieces"], mark["bytes"], Counter(mark["counts"])
    rest = {split: np.array(ids, out.dtype) for split, ids in mark["rest"].items()}
    saved = done
    scale = {"total": source.size, "initial": done, "unit": "B", "unit_scale": True}
    todo = batches(islice(stream(cfg, source), pieces, None))
    with tqdm(desc="text", disable=not sys.stdout.isatty(), **scale) as bar:
        for encoded in in_order(worker(cfg, out), todo, cfg.num_workers):
            append(cfg, out, encoded, rest)
            counts += encoded.counts
            pieces, done = pieces + encoded.pieces, done + encoded.size
            bar.update(encoded.size)
            if done - saved >= cfg.shard_mb * 1e6:
                kept = {s: r.tolist() for s, r in rest.items()}
                out.complete({"pieces": pieces, "bytes": done, "counts": counts, "rest": kept})
                saved = done
    assert not any(map(len, rest.values())), rest  # every document has ended
    for split, count in out.counts.items():
        count |= {k: counts.pop(f"{split} {k}", 0) for k in ("documents", "bytes")}
    out.info["notes"] = counts
    return done - mark["bytes"]


def refuse_empty(cfg: PretrainConfig, out: ShardWriter) -> None:
    for split in ("train", "val"):
        if not out.counts.get(split, {}).get("tokens"):
            out.mark = {}  # another run could not continue this one
            raise UserError(
                f"the {split} split is empty: too few documents for test_split_pct="
                f"{cfg.share()}; change it, or take more text"
            )


def settings(cfg: PretrainConfig, source: Source) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options that determine the corpus, for meta.json; and with them the files and the Python
    version, by which an interrupted run is recognised."""
    elsewhere = "dataset data_dir path_to_data_store num_workers huggingface_cache_dir".split()
    options = {k: v for k, v in dataclasses.asdict(cfg).items() if k not in elsewhere}
    stats = [(p, p.stat()) for p in source.files]
    files = [[str(p), s.st_size, s.st_mtime_ns] for p, s in stats]
    return options, {**options, "files": files, "python": sys.version.split()[0]}


def prepare(cfg: PretrainConfig, folder: Path) -> None:
    """Write the corpus, complete or not at all, and print a summary and the speed."""
    source = find_source(cfg)
    options, identity = settings(cfg, source)
    kept = unfinished(folder, identity)
    if kept:
        print(f"{partial_of(folder)}: {kept['mark']['bytes'] / 1e6:,.0f} MB of text are done")
    tokenizer = kept_tokenizer(kept) if kept else make_tokenizer(cfg, source)
    for name in {"stream": ("eos",), "pad": ("bos", "eos")}.get(cfg.packing, ()):
        if name not in tokenizer.specials:
            raise UserError(f"packing={cfg.packing} needs a tokenizer with {name}")
    info = {"task": "text", "source": "large" if cfg.large_dataset else cfg.source}
    info |= {"options": options, "held_out": source.held_out, "python": identity["python"]}
    length = cfg.context_length if cfg.packing == "pad" else 0
    clock = time.perf_counter()
    with ShardWriter(folder, tokenizer, identity, length, **info) as out:
        before = sum(c["tokens"] for c in out.counts.values())
        size = write(cfg, source, out)
        refuse_empty(cfg, out)
    seconds = time.perf_counter() - clock
    report(out, size, sum(c["tokens"] for c in out.counts.values()) - before, seconds)


def report(out: ShardWriter, read: int, tokens: int, seconds: float) -> None:
    """Print a summary of the corpus, and the speed of this run."""
    for split, count in out.counts.items():
        limit = "" if out.row_length else "up to "
        rows = f"{count['rows']:,} rows of {limit}{count['longest']}, " if count["rows"] else ""
        print(
            f"{split:<6}{count['tokens']:>15,} ids, {rows}{count['documents']:,} documents, "
            f"{count['bytes']:,} bytes ({count['bytes'] / count['tokens']:.2f} per id)"
        )
    for what, number in out.info["notes"].items():
        print(f"{what}: {number:,}")
    print(f"held out for validation: {out.info['held_out']}")
    rates = f"{read / seconds / 1e6:.2f} MB/s, {tokens / seconds:,.0f} ids/s"
    size, names = out.tokenizer.vocab_size, ", ".join(out.tokenizer.specials)
    print(f"vocabulary: {size:,} ids, special ones included ({names})")
    print(f"wrote {out.folder}: {seconds:.1f} s, {rates}")


def main(argv: list[str]) -> None:
    cfg, origins = load(PretrainConfig, argv)
    if origins:
        print(describe(cfg, origins))
    if "context_length" in origins and cfg.packing == "stream":
        print(
            f"context_length={cfg.context_length} has no use with packing=stream: training reads "
            "windows of its block_size; the original's rows are --packing=pad"
        )
    prepare(cfg, cfg.folder())


if __name__ == "__main__":
    run(main)
