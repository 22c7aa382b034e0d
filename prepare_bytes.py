"""Byte corpora: rows of [BOS] bytes [EOS], from text of any kind.

    python prepare_bytes.py                                       # palindromes of letters (demo)
    python prepare_bytes.py --source=phrases                      # palindromes as people write them
    python prepare_bytes.py --source=text --path=notes.txt,essays
    python prepare_bytes.py --source=pydoc                        # the prose that Python carries
    python prepare_bytes.py --source=wikipedia --dataset_percent=1
    python prepare_bytes.py --report=figures                      # look at a prepared corpus

--path is files, folders and patterns with commas between them. A .jsonl, .json or .parquet holds a
document in the field `text` of each row; any other file is one, and .gz, .bz2, .xz and .zst are
unpacked.

Case and punctuation stay, white space is folded, EOS is never cut off, and what goes to validation
is decided before anything is cut, varied or repeated. --upstream_rules=true cleans and cuts as the
byte fork of SEDD does; --upstream_rules=loader as that fork does when it reads articles directly,
which is what its training in fact runs on.
"""

import dataclasses
import functools
import hashlib
import os
import sys
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Callable, Iterable, Iterator, Literal

import numpy as np
from tqdm import tqdm

from configurator import ROOT, UserError, describe, load, require, room, run
from corpus import Corpus, CorpusWriter
from prepare.byte_rows import (
    BOS,
    EOS,
    Rows,
    boundary,
    fold,
    our_rows,
    pack,
    pack_padded,
    palindrome_row,
    upstream_rows,
)
from prepare.figures import write_report
from prepare.files import local_files
from prepare.texts import (
    Documents,
    articles,
    has_rows,
    is_saved,
    python_prose,
    read,
    read_phrases,
    row_texts,
)
from tokenizer import Bytes

SHARES = {"wikipedia": 0.001, "phrases": 0.1}  # of validation; 0.05 for the other sources


@dataclass(frozen=True)
class PrepareConfig:
    """The options of `prepare_bytes.py`."""

    source: Literal["palindrome", "phrases", "text", "pydoc", "wikipedia"] = "palindrome"  # of text
    dataset: str = ""  # folder of the corpus, below data_dir; empty: the name of the source
    data_dir: str = "data"  # where prepared corpora live
    block_size: int = 32  # longest row, BOS and EOS included
    seed: int = 1337  # of every draw: which texts, and what goes to validation
    val_split_ratio: float | None = None  # None: wikipedia 0.001, phrases 0.1, others 0.05
    # source=palindrome
    rows: int = 200_000  # training rows
    val_rows: int = 2000  # validation rows; none of them is a training row
    min_letters: int = 4  # shortest text
    max_letters: int = 16  # longest text
    max_repeats: int = 8  # of one text in train: there are few short ones, and they would crowd
    listed_share: float = 0.02  # share of rows that are words and phrases of data/palindromes.txt
    # source=phrases
    file: str = ""  # one phrase per line, or JSON; empty: data/palindromes.txt
    repeat: int = 5  # times each training row is stored
    # source=text, pydoc, wikipedia
    path: str = ""  # files, folders, patterns: see above; wikipedia: instead of the hub
    fold_whitespace: bool = True  # ASCII white space to single spaces; False: every one as it is
    num_proc: int = 0  # processes that clean and cut; 0: 8, or the cores that there are
    dataset_percent: float = 20.0  # wikipedia: the first so many per cent of the articles
    hub_dataset: str = "wikimedia/wikipedia"  # wikipedia: any dataset with a column `text`
    hub_config: str = "20231101.en"  # wikipedia: its configuration
    cache_dir: str = ""  # wikipedia: where downloads go; empty: the library's own place
    upstream_rules: Literal["false", "true", "loader"] = "false"  # rules of the original, see above
    # a look at the result
    report: str = ""  # folder for figures; with an existing corpus, only this is done
    num_batches: int = 3  # figures, of 64 rows each
    max_samples: int = 0  # rows of training that figures may show, the first ones; 0: all

    def __post_init__(self):
        for key in "rows val_rows min_letters max_repeats repeat num_batches".split():
            require(self, key, getattr(self, key) >= 1, "at least 1")
        for key in ("seed", "num_proc", "max_samples"):
            require(self, key, getattr(self, key) >= 0, "at least 0")
        ratio = self.val_split_ratio
        require(self, "val_split_ratio", ratio is None or 0 < ratio < 1, "above 0 and below 1")
        require(self, "listed_share", 0 <= self.listed_share <= 1, "between 0 and 1")
        require(self, "dataset_percent", 0 < self.dataset_percent <= 100, "above 0, at most 100")
        require(self, "block_size", self.block_size >= 12, "at least 12 (BOS, EOS and some text)")
        room = f"from min_letters={self.min_letters} to block_size - 2 = {self.block_size - 2}"
        within = self.min_letters <= self.max_letters <= self.block_size - 2
        require(self, "max_letters", self.source != "palindrome" or within, room)
        unmixed = self.source != "palindrome" or self.upstream_rules == "false"
        require(self, "upstream_rules", unmixed, "false for source=palindrome, which is ours")
        require(self, "path", self.source != "text" or bool(self.path), "given with source=text")

    def processes(self) -> int:
        return self.num_proc or min(8, os.cpu_count() or 1)

    def share(self) -> float:
        """The share of validation."""
        return self.val_split_ratio or SHARES.get(self.source, 0.05)


# ---- from documents to rows --------------------------------------------------------------------

Batch = list[tuple[str, bytes]]  # (split, document) pairs, about a megabyte of them


def file_documents(files: list[Path], counts: Counter) -> Documents:
    """The rows of files that hold rows, and each other file. Those that may be no text are
    counted."""

    def texts() -> Iterator[bytes]:
        for path in files:
            if has_rows(path):
                yield from (text.encode("utf-8", "surrogatepass") for text in row_texts(path))
                continue
            data = read(path)
            if b"\0" in data[:4096]:
                counts["files with a NUL byte, taken byte by byte"] += 1
            yield data

    sizes = (sum(1 for _ in row_texts(path)) if has_rows(path) else 1 for path in files)
    return Documents(sum(sizes), texts())


def divided(documents: Documents, share: float, seed: int) -> Iterator[tuple[str, bytes]]:
    """Documents -> (split, document). Whole documents are held out, drawn by `seed`; if there are
    too few, the end of each one."""
    if held := int(documents.count * share):
        chosen = np.random.default_rng(seed).permutation(documents.count)[:held]
        val = set(chosen.tolist())
        for number, text in enumerate(documents.texts):
            yield "val" if number in val else "train", text
        return
    for text in documents.texts:
        end = int(len(text) * (1 - share))
        space = max(text.rfind(b" ", 0, end), text.rfind(b"\n", 0, end))
        end = space + 1 if space > 0 else boundary(text, end)
        yield from (("train", text[:end]), ("val", text[end:]))


def batches(pairs: Iterable[tuple[str, bytes]]) -> Iterator[Batch]:
    """Groups of documents, large enough to be worth sending to another process."""
    batch, size = [], 0
    for pair in pairs:
        batch.append(pair)
        size += len(pair[1])
        if size >= 1 << 20:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def rows_of(batch: Batch, block: int, folding: bool, rules: str) -> list[tuple[str, bytes, Rows]]:
    """(split, document) pairs -> (split, digest of the text, rows)."""
    done = []
    for split, text in batch:
        if rules == "false":
            text = fold(text) if folding else text
            rows = our_rows(text, block) if text else pack([], 0)
        else:
            rows = upstream_rows(text, block, rules)
        done.append((split, hashlib.blake2b(text, digest_size=16).digest(), rows))
    return done


def in_order(work: Callable, batches: Iterable[Batch], num_proc: int) -> Iterator:
    """`work` on every batch, in this process or in `num_proc` others, results in order. At most a
    few batches per process wait, so that memory does not grow with the corpus."""
    if num_proc == 1:
        yield from map(work, batches)
        return
    waiting: deque = deque()
    try:
        with ProcessPoolExecutor(num_proc, get_context("spawn")) as pool:
            for batch in batches:
                waiting.append(pool.submit(work, batch))
                if len(waiting) > 4 * num_proc:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    except BrokenProcessPool as e:
        raise UserError(f"a process ended early, perhaps for memory; lower {num_proc=}") from e


def write_documents(cfg: PrepareConfig, out: CorpusWriter) -> None:
    """Rows of text, pydoc, wikipedia. Duplicates are dropped, so that no row is in both splits."""
    if cfg.source == "pydoc":
        prose = [t.encode("utf-8", "surrogatepass") for t in python_prose()]
        documents = Documents(len(prose), prose)
    elif cfg.path and not is_saved(cfg.path):
        documents = file_documents(local_files(cfg.path), out.info["counts"])
    else:
        documents = articles(cfg.path, cfg.hub_dataset, cfg.hub_config, cfg.cache_dir)
    if cfg.source == "wikipedia":
        count = max(1, int(documents.count * cfg.dataset_percent / 100))
        documents = Documents(count, islice(documents.texts, count))
    work = functools.partial(
        rows_of, block=cfg.block_size, folding=cfg.fold_whitespace, rules=cfg.upstream_rules
    )
    unfit = "empty" if cfg.upstream_rules == "false" else "too short or long for these rules"
    whole = int(documents.count * cfg.share()) > 0
    out.info["held_out"] = "whole documents" if whole else "the end of every document"
    bar = tqdm(documents.texts, "documents", documents.count, disable=not sys.stdout.isatty())
    pairs = divided(documents._replace(texts=bar), cfg.share(), cfg.seed)
    seen: set[bytes] = set()
    for split, digest, rows in chain.from_iterable(in_order(work, batches(pairs), cfg.processes())):
        if not len(rows.lengths):
            out.info["dropped"][unfit] += 1
        elif digest in seen and cfg.upstream_rules == "false":
            out.info["dropped"]["same as an earlier document"] += 1
        else:
            seen.add(digest)
            _write(out, split, rows)
            out.info["counts"][f"{split} documents"] += 1


def _write(out: CorpusWriter, split: str, rows: Rows, size: int = 1 << 16) -> None:
    """Write in parts, so that a document of 100 MB does not need many times its size in memory."""
    ends = np.concatenate([[0], np.cumsum(rows.lengths)])
    for a in range(0, len(rows.lengths), size):
        b = min(a + size, len(rows.lengths))
        out.rows(split, rows.ids[ends[a] : ends[b]], rows.lengths[a:b], rows.prompts[a:b])


# ---- phrases -----------------------------------------------------------------------------------


def variants(text: str) -> list[str]:
    """The text and, where they differ from it, its lower, upper and title forms."""
    return [text, *(v for v in (text.lower(), text.upper(), text.title()) if v != text)]


def phrase_row(text: str, block: int, counts: Counter) -> list[int]:
    """[BOS] text [EOS]; a text too long for the block loses its end, but not EOS, and is
    counted."""
    data = bytes(Bytes().encode(text))
    if len(data) > block - 2:
        counts["rows with a truncated text"] += 1
        data = data[: boundary(data, block - 2)]
    return [BOS, *data, EOS]


def write_phrases(cfg: PrepareConfig, out: CorpusWriter) -> None:
    """Phrases are divided by their letters, then varied, then (train only) repeated."""
    dropped, counts = out.info["dropped"], out.info["counts"]
    groups: dict[str, list[str]] = {}
    for text in read_phrases(Path(cfg.file) if cfg.file else ROOT / "data" / "palindromes.txt"):
        group = groups.setdefault(room("palindrome").normalise(text), [])
        if not room("palindrome").is_palindrome(text):
            dropped["no palindrome"] += 1
        elif text in group:
            dropped["same as an earlier phrase"] += 1
        else:
            group.append(text)
    kept = [g for g in groups.values() if g]
    held = max(1, int(len(kept) * cfg.share()))
    order = np.random.default_rng(cfg.seed).permutation(len(kept)).tolist()
    rows = {}
    for split, chosen in (("val", order[:held]), ("train", order[held:])):
        texts = dict.fromkeys(v for i in sorted(chosen) for t in kept[i] for v in variants(t))
        rows[split] = [phrase_row(t, cfg.block_size, counts) for t in texts]
    # two long phrases may be the same once truncated
    val_rows = set(map(tuple, rows["val"]))
    train = [r for r in rows["train"] if tuple(r) not in val_rows]
    if len(train) < len(rows["train"]):
        dropped["train row that is also a validation row"] = len(rows["train"]) - len(train)
    for split, kept_rows in (("train", train * cfg.repeat), ("val", rows["val"])):
        if kept_rows:
            out.rows(split, *pack(kept_rows, prompt=1))


def write_phrases_upstream(cfg: PrepareConfig, out: CorpusWriter) -> None:
    """As the original: vary, repeat, and only then divide, so that validation rows are in train too
    (--seed=42 gives the same division)."""
    import torch

    texts = read_phrases(Path(cfg.file) if cfg.file else ROOT / "data" / "palindromes.txt")
    texts = [*texts, *(v for t in texts for v in variants(t)[1:])] * cfg.repeat
    cut_at = int((1 - cfg.share()) * len(texts))
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(cfg.seed)).tolist()
    for split, chosen in (("train", order[:cut_at]), ("val", order[cut_at:])):
        rows = [palindrome_row(texts[i], cfg.block_size) for i in chosen]
        if rows:
            out.rows(split, *pack_padded(rows))


def write_palindromes(cfg: PrepareConfig, out: CorpusWriter) -> None:
    """The demo: letters of real English, mirrored, and listed words and phrases among them."""
    texts = room("palindrome").LetterRows(
        phrases=read_phrases(ROOT / "data" / "palindromes.txt"),
        lengths=range(cfg.min_letters, cfg.max_letters + 1),
        val_share=cfg.share(),
        listed_share=cfg.listed_share,
        max_repeats=cfg.max_repeats,
        seed=cfg.seed,
        counts=out.info["counts"],
        dropped=out.info["dropped"],
    )
    out.rows("train", *texts.draw("train", cfg.rows))
    out.rows("val", *texts.draw("val", cfg.val_rows))


# ---- the command -------------------------------------------------------------------------------


def prepare(cfg: PrepareConfig, folder: Path) -> None:
    """Write the corpus, complete or not at all, and print a summary."""
    elsewhere = "dataset data_dir cache_dir num_proc report num_batches max_samples".split()
    options = {k: v for k, v in dataclasses.asdict(cfg).items() if k not in elsewhere}
    write = {"palindrome": write_palindromes, "phrases": write_phrases}.get(
        cfg.source, write_documents
    )
    if cfg.source == "phrases" and cfg.upstream_rules != "false":
        write = write_phrases_upstream
    task = "palindrome" if write is not write_documents else "text"
    info = {"task": task, "source": cfg.source, "options": options}
    info |= {"python": sys.version.split()[0], "dropped": Counter(), "counts": Counter()}
    with CorpusWriter(folder, Bytes(), **info) as out:
        write(cfg, out)
    for split, count in out.counts.items():
        size = f"{count['rows']:>12,} rows {count['tokens']:>14,} ids"
        print(f"{split:<6}{size}, longest row {count['longest']}")
    for key in ("counts", "dropped"):
        for reason, count in out.info[key].items():
            print(f"{'dropped: ' * (key == 'dropped')}{reason}: {count:,}")
    if "held_out" in out.info:
        print(f"held out for validation: {out.info['held_out']}")
    print(f"wrote {folder}")


def main(argv: list[str]) -> None:
    """Prepare a corpus, look at one, or both."""
    cfg, origins = load(PrepareConfig, argv)
    folder = Path(cfg.data_dir) / (cfg.dataset or cfg.source)
    looking = {"report", "num_batches", "max_samples", "source", "dataset", "data_dir"}
    if not (cfg.report and folder.exists() and looking.issuperset(origins)):
        if origins:
            print(describe(cfg, origins))
        prepare(cfg, folder)
    if cfg.report:
        write_report(Corpus(folder), Path(cfg.report), cfg.num_batches, cfg.max_samples)


if __name__ == "__main__":
    run(main)
