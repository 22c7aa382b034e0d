"""Corpora for the stages of a cascade, from a text that preprocess_prefix.py has been through.

    python -m cascade.stages --stage=2 --source=data/preprocessed/constituency/pydoc
    python -m cascade.stages --stage=2 --source=copy --lengths=4,8     # a task to test copying on

A row of stage 2 is 32 given tokens, the most important ones of a text, and after them its 64 most
important ones, which are written; of stage 3, those 64 and the whole text of 128. --lengths says
how many, --unique which tokens a stage takes only once. Run it once for each stage,
with the same options but --stage: all of them then have the same texts in the same order.

--source is what preprocess_prefix.py made, without _train and _validation; --val_source takes the
validation split of another text. --chunk=stride cuts all of the text, with EOS between documents;
`first` is the original's chunker, which takes only the beginning of every document.
"""

from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Iterable, Iterator, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from configurator import UserError, describe, load, require, run, run_command
from corpus import CorpusWriter
from prepare.documents import Document, Preprocessed
from tokenizer import Symbols, Tokenizer

# ==================================================================================================
# Stages of a cascade: which tokens of a text its shorter forms keep
#
# A chunk of n_K tokens is thinned to its n_(K-1) most important ones, those again, down to n_1,
# all in the order of the text: every stage is a subset of the next. Stage k learns to write its
# n_k tokens after the n_(k-1) of the stage before it, which are given; stage 1 has nothing given.
#
# Importance is a label per token (1 the most important, 7 the least, below 0 never taken) or a
# score: above 1 it is always taken, however often the token comes; below -1 it is no key of stage
# 1. preprocess_prefix.py says where they come from.
# ==================================================================================================


Unique = Literal["token", "word", "none"]
BATCH = 10_000  # documents that are cut at a time
END_LABEL, END_SCORE = 0, 2.0  # nothing is more important than the end of a document
END_KEY = 1 << 32  # of the word that it is: no CRC-32


class Chunks(NamedTuple):
    """B pieces of text of T tokens each; or, before they are cut, one long row (N,)."""

    ids: np.ndarray  # (B, T) int64
    importance: np.ndarray  # (B, T) labels, integers; or scores, floats
    word: np.ndarray  # (B, T) int64, the number of the word, which no other has; -1: in no word
    key: np.ndarray  # (B, T) int64, equal for equal words

    def __getitem__(self, rows) -> "Chunks":
        return Chunks(*(np.asarray(a)[rows] for a in tuple(self)))


# ---- chunks --------------------------------------------------------------------------------------


def joined(documents: Iterable[Document], eos: int | None = None) -> tuple[Chunks, np.ndarray]:
    """Documents one after another as rows (N,), each followed by EOS unless that is None, and their
    starts (D,)."""
    rows, begins, words = [], [0], 0
    for ids, label, score, word, key in documents:
        count = int(word.max(initial=-1)) + 1
        value, end = (label, END_LABEL) if score is None else (score, END_SCORE)
        row = [ids, value, np.where(word < 0, -1, word.astype(np.int64) + words), key]
        if eos is not None:
            last = (eos, end, words + count, END_KEY)
            row = [np.append(a, np.array([b])) for a, b in zip(row, last, strict=True)]
        rows.append(row)
        begins.append(begins[-1] + len(row[0]))
        words += count + 1
    whole = [np.concatenate(column) for column in zip(*rows, strict=True)]
    ids, value, word, key = whole or [np.empty(0, np.int64)] * 4
    chunks = Chunks(ids.astype(np.int64), value, word, key.astype(np.int64))
    return chunks, np.array(begins[:-1], np.int64)


def first_chunks(documents: Iterable[Document], size: int) -> Iterator[Chunks]:
    """The original's chunker: the first `size` tokens from the start of each document on, including
    documents after it. The rest of long documents is never used, short ones repeat; documents at
    the end of a batch that cannot fill a chunk are left out."""
    documents = iter(documents)
    while batch := list(islice(documents, BATCH)):
        row, begins = joined(batch)
        begins = begins[begins + size <= len(row.ids)]
        if len(begins):
            yield row[begins[:, None] + np.arange(size)]


def stride_chunks(documents: Iterable[Document], size: int, eos: int) -> Iterator[Chunks]:
    """All of the text, cut every `size` tokens, with EOS after each document, without an incomplete
    last chunk."""
    documents, rest = iter(documents), joined([])[0]
    while batch := list(islice(documents, BATCH)):
        row = joined(batch, eos)[0]
        shift = rest.word.max(initial=-1) + 1
        row = row._replace(word=np.where(row.word < 0, -1, row.word + shift))
        row = Chunks(*map(np.concatenate, zip(rest, row, strict=True)))
        whole = len(row.ids) // size * size
        rest = row[whole:]
        if whole:
            yield Chunks(*(a.reshape(-1, size) for a in row[:whole]))


# ---- selection -----------------------------------------------------------------------------------


def leaders(ranked: np.ndarray) -> np.ndarray:
    """ranked (B, T) -> (B, T): the first position in its row that holds the same value."""
    by_value = ranked.argsort(1, kind="stable")
    value = np.take_along_axis(ranked, by_value, 1)
    fresh = np.ones(value.shape, bool)
    fresh[:, 1:] = value[:, 1:] != value[:, :-1]
    run = np.maximum.accumulate(np.where(fresh, np.arange(value.shape[1]), 0), 1)
    first = np.empty_like(by_value)
    np.put_along_axis(first, by_value, np.take_along_axis(by_value, run, 1), 1)
    return first


def ordered(chunks: Chunks, unique: Unique) -> tuple[np.ndarray, np.ndarray]:
    """Positions (B, T), selectable ones first, by importance and then by their order in the text;
    and the number of selectable ones (B,).

        unique: `token` selects an id once, `word` the tokens of a word once (all of them, and
    nothing outside of words), `none` everything. A score above 1 is always selectable.
    """
    scored = chunks.importance.dtype.kind == "f"
    rank = (-chunks.importance if scored else chunks.importance).argsort(1, kind="stable")
    ids, value, word, key = (np.take_along_axis(a, rank, 1) for a in chunks)
    place = np.arange(ids.shape[1])
    always = value > 1 if scored else np.zeros(ids.shape, bool)
    never = np.zeros(ids.shape, bool) if scored else value < 0
    if unique == "word":
        never |= word < 0
    if unique == "none":
        keep = ~never
    else:
        group = np.where(always | never, -1 - place, ids if unique == "token" else key)
        first = leaders(group)
        member = np.broadcast_to(place, ids.shape) if unique == "token" else word
        keep = (np.take_along_axis(member, first, 1) == member) & ~never
    taken = (~keep).argsort(1, kind="stable")
    return np.take_along_axis(rank, taken, 1), keep.sum(1)


def select(chunks: Chunks, lengths: list[int], unique: Unique) -> tuple[list, np.ndarray]:
    """Positions (K, n), ascending, of every stage n_1 < ... < n_K = T in the chunks that are kept,
    and which chunks these are (B,) bool. Chunks with too few selectable tokens for the last but one
    stage are left out, and those with a stage-1 token that scores below -1."""
    places, count = ordered(chunks, unique)
    kept = count >= lengths[-2]
    if chunks.importance.dtype.kind == "f":
        threshold = np.take_along_axis(chunks.importance, places[:, lengths[0] - 1, None], 1)
        kept &= threshold[:, 0] >= -1
    columns = [np.sort(places[kept, :n], 1) for n in lengths[:-1]]
    columns.append(np.broadcast_to(np.arange(lengths[-1]), (int(kept.sum()), lengths[-1])))
    for short, long in pairwise(columns):
        assert subset(short, long).all(), "a stage is no subset of the next"
    return columns, kept


def subset(short: np.ndarray, long: np.ndarray) -> np.ndarray:
    """For each row (B,): are its positions (B, n), ascending, all among the others (B, m)?"""
    seen = np.zeros((len(long), int(long.max(initial=0)) + 1), bool)
    np.put_along_axis(seen, long, True, 1)
    rising = (np.diff(short, axis=1) > 0).all(1)
    return rising & np.take_along_axis(seen, short, 1).all(1)


def stage_rows(chunks: Chunks, lengths: list[int], stage: int, unique: Unique) -> np.ndarray:
    """Rows (K, n_(stage-1) + n_stage) of ids: the prompt, then the target. Stages count from 1; the
    first has no prompt."""
    columns, kept = select(chunks, lengths, unique)
    ids = chunks.ids[kept]
    parts = [np.take_along_axis(ids, p, 1) for p in columns[max(stage - 2, 0) : stage]]
    return np.concatenate(parts, 1)


# ==================================================================================================
# The corpus of a stage
# ==================================================================================================


SYMBOLS, COPIES = 32, {"train": 40_000, "val": 2_000}  # of the copy task, and its documents


@dataclass(frozen=True)
class StagesConfig:
    """The options of `cascade/stages.py`."""

    stage: int = 1  # which one, from 1; the last one writes whole texts
    lengths: str = "32,64,128"  # tokens of every stage
    source: str = "data/preprocessed/constituency/pydoc"  # a text without its split, or: copy
    val_source: str = ""  # another text, for validation; empty: the same
    preprocess: str = ""  # command that makes the source; run when its folder is missing
    chunk: Literal["stride", "first"] = "stride"  # how documents are cut
    unique: Literal["auto", "token", "word", "none"] = "auto"  # auto: word for bytes, else token
    dataset: str = ""  # folder of the corpus, below data_dir; empty: stage1, stage2 ...
    data_dir: str = "data"  # where prepared corpora live

    def __post_init__(self):
        numbers = self.lengths.split(",")
        rising = all(n.isdigit() for n in numbers) and len(numbers) > 1
        rising = rising and sorted({0, *self.sizes()}) == [0, *self.sizes()]
        require(self, "lengths", rising, "two or more rising numbers, as in 32,64,128")
        require(self, "stage", 1 <= self.stage <= len(numbers), f"between 1 and {len(numbers)}")

    def sizes(self) -> list[int]:
        return [int(n) for n in self.lengths.split(",")]

    def folder(self) -> Path:
        """Where the corpus goes."""
        return Path(self.data_dir) / (self.dataset or f"stage{self.stage}")


# ---- texts ---------------------------------------------------------------------------------------


class Text(NamedTuple):
    """The documents of both splits with their importance."""

    documents: dict[str, Iterable[Document]]
    tokenizer: Tokenizer
    facts: dict[str, Any]


def open_text(cfg: StagesConfig) -> Text:
    """The text of the config; if it is missing, the config's command makes it."""
    if cfg.source == "copy":
        return copy_text(cfg.sizes()[-1])
    names = {"train": f"{cfg.source}_train", "val": f"{cfg.val_source or cfg.source}_validation"}
    if cfg.preprocess and not all(Path(name).exists() for name in names.values()):
        print(f"no text at {cfg.source}_train; running: python {cfg.preprocess}", flush=True)
        run_command(cfg.preprocess)
    train, val = (Preprocessed(name) for name in names.values())
    if train.meta["mode"] != val.meta["mode"]:
        raise UserError(f"{names['val']} has another mode than {names['train']}")
    keys = ("tokenizer", "tokenizer_files")
    alike = all(train.meta[key] == val.meta[key] for key in keys)
    if not alike or train.tokenizer.files != val.tokenizer.files:
        name = str(train.meta.get("tokenizer_name", ""))
        kept = Path(f"{cfg.source}_fitted", name.replace(":", "_"))  # by preprocess_prefix.py
        raise UserError(
            f"{names['val']} has another tokenizer than {names['train']}; remove it and make it "
            f"with preprocess_prefix.py --tokenizer={kept if kept.is_dir() else name}"
        )
    facts = {k: v for k, v in train.meta.items() if k not in ("format", "files", "dtype")}
    both = {"train": train.documents(), "val": val.documents()}
    return Text(both, train.tokenizer, {**facts, "counts": train.counts()})


def copy_text(size: int) -> Text:
    """Documents of different symbols in random order with random importance: a model can copy the
    prompt, and has to guess the rest."""
    symbols = [chr(ord("A") + i) for i in range(SYMBOLS)]
    if size > SYMBOLS:
        raise UserError(f"source=copy has {SYMBOLS} different symbols: no text has {size}")

    def documents(count: int, seed: int) -> Iterator[Document]:
        rng, words = np.random.default_rng(seed), np.arange(size)
        for _ in range(count):
            ids = rng.permutation(SYMBOLS)[:size]
            yield Document(ids, rng.permutation(size) + 1, None, words, ids)

    both = {split: documents(count, seed) for seed, (split, count) in enumerate(COPIES.items())}
    return Text(both, Symbols(symbols), {"mode": "chance"})


# ---- rows ----------------------------------------------------------------------------------------


def cut(cfg: StagesConfig, documents: Iterable[Document], eos: int) -> Iterator[Chunks]:
    size = cfg.sizes()[-1]
    first = cfg.chunk == "first" or cfg.source == "copy"  # its documents have no ends
    return first_chunks(documents, size) if first else stride_chunks(documents, size, eos)


def uniqueness(cfg: StagesConfig, tokenizer: Tokenizer) -> str:
    """The default of --unique: `word` for bytes, of which a text has few different ones, else
    `token`."""
    if cfg.unique != "auto":
        return cfg.unique
    return "word" if tokenizer.kind == "bytes" else "token"


def write(cfg: StagesConfig, text: Text, out: CorpusWriter) -> dict[str, list[int]]:
    """Write all rows of both splits -> split: [number of chunks kept, number of chunks]."""
    sizes, unique = cfg.sizes(), uniqueness(cfg, text.tokenizer)
    given, counts = [0, *sizes][cfg.stage - 1], {}
    for split, documents in text.documents.items():
        kept = seen = 0
        documents = tqdm(documents, split, unit="document", disable=None, leave=False)
        for chunks in cut(cfg, documents, text.tokenizer.specials["eos"]):
            rows = stage_rows(chunks, sizes, cfg.stage, unique)
            kept, seen = kept + len(rows), seen + len(chunks.ids)
            if len(rows):
                lengths = np.full(len(rows), rows.shape[1])
                out.rows(split, rows.ravel(), lengths, np.full(len(rows), given))
        counts[split] = [kept, seen]
        if not kept:
            raise UserError(
                f"no chunk of the {split} split fills its stages ({seen} chunks of {sizes[-1]} "
                f"tokens, unique={unique}); take more text or other --lengths"
            )
    return counts


def main(argv: list[str]) -> None:
    cfg, origins = load(StagesConfig, argv)
    folder = cfg.folder()
    if folder.exists():
        raise UserError(f"{folder} exists already; remove it to prepare the corpus anew")
    text = open_text(cfg)
    print(describe(cfg, origins), flush=True)
    info = {
        "task": "stage",
        "source": cfg.source,
        "stage": cfg.stage,
        "lengths": cfg.sizes(),
        "chunk": cfg.chunk,
        "unique": uniqueness(cfg, text.tokenizer),
        "preprocessed": text.facts,
    }
    with CorpusWriter(folder, text.tokenizer, **info) as out:
        counts = out.info["kept"] = write(cfg, text, out)
    given, written = [0, *cfg.sizes()][cfg.stage - 1 : cfg.stage + 1]
    print(f"{folder}: rows of {given} given and {written} written tokens")
    for split, (kept, seen) in counts.items():
        print(f"  {split}: {kept:,} of {seen:,} chunks; the others have too few different tokens")


if __name__ == "__main__":
    run(main)
