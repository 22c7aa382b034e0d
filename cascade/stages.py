"""Corpora for the stages of a cascade, from a text that preprocess_prefix.py has been through.

    python prepare_stages.py --stage=2 --source=data/preprocessed/constituency/pydoc
    python prepare_stages.py --stage=2 --source=copy --lengths=4,8     # a task to test copying on

A row of stage 2 is 32 given tokens, the most important ones of a text, and after them its 64 most
important ones, which are written; of stage 3, those 64 and the whole text of 128. --lengths says
how many, --unique which tokens a stage takes only once (stages.py). Run it once for each stage,
with the same options but --stage: all of them then have the same texts in the same order.

--source is what preprocess_prefix.py made, without _train and _validation; --val_source takes the
validation split of another text. --chunk=stride cuts all of the text, with EOS between documents;
`first` is the original's chunker, which takes only the beginning of every document.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Iterator, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from configurator import UserError, describe, load, require, run, run_command
from corpus import CorpusWriter
from prefix_data import Document, Preprocessed
from stages import Chunks, first_chunks, stage_rows, stride_chunks
from tokenizer import Symbols, Tokenizer

SYMBOLS, COPIES = 32, {"train": 40_000, "val": 2_000}  # of the copy task, and its documents


@dataclass(frozen=True)
class StagesConfig:
    """What `prepare_stages.py` can be told."""

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
    """The documents of both splits, and what is known of them."""

    documents: dict[str, Iterable[Document]]
    tokenizer: Tokenizer
    facts: dict[str, Any]


def open_text(cfg: StagesConfig) -> Text:
    """The text of the config; made by the config's own command if it is missing."""
    if cfg.source == "copy":
        return copy_text(cfg.sizes()[-1])
    names = {"train": f"{cfg.source}_train", "val": f"{cfg.val_source or cfg.source}_validation"}
    if cfg.preprocess and not all(Path(name).exists() for name in names.values()):
        print(f"no text at {cfg.source}_train; running: python {cfg.preprocess}", flush=True)
        run_command(cfg.preprocess)
    train, val = (Preprocessed(name) for name in names.values())
    for key in ("mode", "tokenizer", "tokenizer_files"):
        if train.meta[key] != val.meta[key]:
            raise UserError(f"{names['val']} has another {key} than {names['train']}")
    if train.tokenizer.files != val.tokenizer.files:
        raise UserError(f"{names['val']} has another tokenizer than {names['train']}")
    facts = {k: v for k, v in train.meta.items() if k not in ("format", "files", "dtype")}
    both = {"train": train.documents(), "val": val.documents()}
    return Text(both, train.tokenizer, {**facts, "counts": train.counts()})


def copy_text(size: int) -> Text:
    """Documents of different symbols in random order, each as important as chance will have it:
    whoever writes them can copy what is given, and has to guess the rest."""
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
    """Few of the 256 bytes are different in a text, and none of them is a word."""
    if cfg.unique != "auto":
        return cfg.unique
    return "word" if tokenizer.kind == "bytes" else "token"


def write(cfg: StagesConfig, text: Text, out: CorpusWriter) -> dict[str, list[int]]:
    """All rows of both splits -> of each split how many chunks were kept, and of how many."""
    sizes, unique = cfg.sizes(), uniqueness(cfg, text.tokenizer)
    given, told = [0, *sizes][cfg.stage - 1], {}
    for split, documents in text.documents.items():
        kept = seen = 0
        documents = tqdm(documents, split, unit="document", disable=None, leave=False)
        for chunks in cut(cfg, documents, text.tokenizer.specials["eos"]):
            rows = stage_rows(chunks, sizes, cfg.stage, unique)
            kept, seen = kept + len(rows), seen + len(chunks.ids)
            if len(rows):
                lengths = np.full(len(rows), rows.shape[1])
                out.rows(split, rows.ravel(), lengths, np.full(len(rows), given))
        told[split] = [kept, seen]
        if not kept:
            raise UserError(
                f"no chunk of the {split} split fills its stages ({seen} chunks of {sizes[-1]} "
                f"tokens, unique={unique}); take more text or other --lengths"
            )
    return told


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
        told = out.info["kept"] = write(cfg, text, out)
    given, written = [0, *cfg.sizes()][cfg.stage - 1 : cfg.stage + 1]
    print(f"{folder}: rows of {given} given and {written} written tokens")
    for split, (kept, seen) in told.items():
        print(f"  {split}: {kept:,} of {seen:,} chunks; the others have too few different tokens")


if __name__ == "__main__":
    run(main)
