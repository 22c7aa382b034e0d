"""Corpora of patches: a file and the message of a commit are given, the hunks are written.

    python -m patches.prepare --repo=. --ext=.py --window=5    # any local git history, offline
    python -m patches.prepare --repo=. --repo=../other --tokenizer=train:4096
    python -m patches.prepare --source=commits.jsonl           # or .json, packed or not
    python -m patches.prepare --source=bigcode/commitpackft:python --tokenizer=gpt2
    python -m patches.prepare --source=data/final_dataset            # saved by `datasets`

A row is `<NME> name`, `<BEF> file`, `<MSG> message`, all given, then `<DFF> hunks` and EOS, which
are written (rows.py). The newest commits of each repository, of those that have a row, are the
validation split, and no commit is in both (train:N is learnt from all but the newest ones before
it is known which have a row). A source saved by `datasets` with several splits keeps them; any but
train is validation. Repositories are read by git's plumbing; nothing of them is run or checked out.
What is left out is counted by reason. Hunks are made from the two files, whatever the source has,
so that they are right within a --window as well.

The flags of the original scripts have their names. --train_diff_model=False learns the given part
as well. --ignore_long_samples=False keeps what is longer than a block, in pieces, in both splits,
and so sets --concatenate_texts, which puts several samples into a training row: whole ones, unless
one alone is too long, and never a row without anything to write. --save_final_dataset also writes
the rows for `datasets` (data/final_dataset: input_ids, attention_mask, labels), padded on the left
to --block_size with EOS, which --source takes up again without the padding: its labels hold unless
--force_label makes them anew from the markers, and --skip_concat keeps its rows as they are.
"""

import dataclasses
import hashlib
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Iterable, Iterator

import numpy as np
from tqdm import tqdm

from configurator import UserError, describe, load, optional, require, run
from corpus import Corpus, CorpusWriter
from patches.history import Commit
from patches.patch import Refused
from patches.rows import prompt_ids, prompt_text, target_text
from patches.saved import (
    Row,
    has_tokens,
    is_saved,
    kept_tokenizer,
    open_saved,
    save_final,
    saved_rows,
)
from patches.sources import Change, Limits, Source, from_git, from_rows, hub_rows, usable
from prepare.files import ROWS, entries, json_rows, kind_of
from tokenizer import Tokenizer, Unencodable, create

FINAL = "final_dataset"  # what --save_final_dataset writes, below data_dir
ADVICE = "try --window=5, or a larger --block_size, --max_bytes or --val_split_ratio"


@dataclass(frozen=True)
class DiffConfig:
    """The options of `patches/prepare.py`."""

    repo: str = ""  # git repositories, given again or with commas between; empty: this folder
    source: str = ""  # instead: FILE.jsonl or .json, a folder saved by datasets, a hub id
    ext: str = ""  # only files that end so, as in .py,.pyi; empty: all texts
    tokenizer: str = "bytes"  # bytes, gpt2, train:N, a folder with tokenizer.json, or a hub id
    dataset: str = "diff"  # folder of the corpus, below data_dir
    data_dir: str = "data"  # where prepared corpora live
    block_size: int = 1024  # tokens of the longest row, EOS included
    window: int = 0  # keep so many lines above and below what changes; 0: whole files
    per_hunk: bool = False  # a row for every hunk, as if the commit were that hunk alone
    max_bytes: int = 20_000  # larger files are left out
    max_commits: int = 0  # the newest of each repository, or of the source; 0: all
    val_split_ratio: float = 0.05  # share of the commits, the newest, that goes to validation
    train_diff_model: bool = True  # the part before <DFF> is given; False: it is learnt, too
    ignore_long_samples: bool = True  # leave out what is longer than a block; False: cut it
    concatenate_texts: bool = False  # several samples in a training row; ar keeps them apart
    skip_concat: bool = False  # the rows of a saved dataset as they are
    force_label: bool = False  # make its labels anew
    load_from_disk: bool = False  # the source is a folder saved by datasets (found by itself)
    save_final_dataset: bool = False  # write the rows for datasets, too
    bpe_dir: str = ""  # gpt2: folder with vocab.bpe and encoder.json
    cache_dir: str = ""  # where downloads go; empty: the library's own place

    def __post_init__(self):
        require(self, "source", not (self.source and self.repo), "left out with --repo")
        require(self, "block_size", self.block_size >= 8, "at least 8")
        for key in ("window", "max_commits"):
            require(self, key, getattr(self, key) >= 0, "at least 0")
        require(self, "max_bytes", self.max_bytes >= 1, "at least 1")
        require(self, "val_split_ratio", 0 < self.val_split_ratio < 1, "above 0 and below 1")
        saved = is_saved(self.source)
        for key in ("load_from_disk", "skip_concat", "force_label"):
            rule = "left out: --source is no folder saved by datasets"
            require(self, key, saved or not getattr(self, key), rule)
        packed = self.concatenate_texts and self.skip_concat
        require(self, "skip_concat", not packed, "left out with --concatenate_texts")

    def folder(self) -> Path:
        return Path(self.data_dir, self.dataset)

    def packs(self) -> bool:
        """Do training rows hold several samples? As in the original, also with
        --ignore_long_samples=False."""
        return (self.concatenate_texts or not self.ignore_long_samples) and not self.skip_concat


def repeated(argv: list[str], key: str) -> list[str]:
    """--key=a --key=b -> --key=a,b, at the place of the last."""
    given = [a for a in argv if a.startswith(f"--{key}=")]
    if len(given) < 2:
        return argv
    values = ",".join(a.partition("=")[2] for a in given)
    return [a for a in argv if a not in given] + [f"--{key}={values}"]


def folders(names: str) -> list[Path]:
    """Folders with commas between them, of which one may have commas itself."""
    got = entries(names, lambda name: Path(name).expanduser().is_dir())
    return [Path(name).expanduser() for name in got]


# ---- the split ---------------------------------------------------------------------------------


def held_out(
    commits: list[Commit], share: float, fitting: set[tuple[str, str]] | None = None
) -> set[tuple[str, str]]:
    """The newest commits of each repository, by (repo, id): those from which on `share` of its
    `fitting` commits (by default all) are. Where times are missing, the order of the source counts.
    If all repositories have too few, it is the newest one of the largest. Raises UserError for
    fewer than two fitting commits."""
    groups = []
    for _, group in groupby(sorted(commits, key=lambda c: c.repo), lambda c: c.repo):
        group_commits = list(group)
        if all(one.time is not None for one in group_commits):
            group_commits.sort(key=lambda c: c.time)
        keys = [(one.repo, one.id) for one in group_commits]
        groups.append((keys, [i for i, k in enumerate(keys) if fitting is None or k in fitting]))
    largest = max(groups, key=lambda g: len(g[1]), default=([], []))
    if len(largest[1]) < 2:
        raise UserError("two splits need two commits with a row, of one --repo or --source")
    counts = [min(round(len(places) * share), len(places) - 1) for _, places in groups]
    if max(counts) < 1:
        groups, counts = [largest], [1]
    cuts = [(keys, places[-n]) for (keys, places), n in zip(groups, counts, strict=True) if n > 0]
    return {key for keys, first in cuts for key in keys[first:]}


def validation(
    cfg: DiffConfig, source: Source, fitting: set[tuple[str, str]] | None = None
) -> set[tuple[str, str]]:
    """The commits of validation: the source's own, or the newest ones, as `held_out` says."""
    if source.held_out is not None:
        return source.held_out
    return held_out(source.commits, cfg.val_split_ratio, fitting)


# ---- rows --------------------------------------------------------------------------------------


def encode(cfg: DiffConfig, tokenizer: Tokenizer, change: Change) -> Row:
    """A change as tokens, EOS last. Raises Refused for a text that cannot be decoded from its
    tokens, since its patch would not apply."""
    texts = prompt_text(change.prompt), target_text(change.hunks)
    try:
        prompt, answer = prompt_ids(tokenizer, change.prompt), tokenizer.encode(texts[1])
    except Unencodable as e:
        raise Refused(e.reason) from None
    if (tokenizer.decode(prompt), tokenizer.decode(answer)) != texts:
        raise Refused("a text that the tokenizer does not give back")
    ids = np.array([*prompt, *answer, tokenizer.specials["eos"]])
    return Row("", ids, np.arange(len(ids)) < len(prompt) * cfg.train_diff_model)


def rows_of(
    cfg: DiffConfig, tokenizer: Tokenizer, source: Source, limits: Limits, dropped: Counter
) -> Iterator[tuple[Commit, Row]]:
    """The row of every usable change, once, without a split."""
    seen = set()
    changes = tqdm(usable(source, limits, dropped), unit="change", disable=None, leave=False)
    for commit, change in changes:
        try:
            row = encode(cfg, tokenizer, change)
        except Refused as e:
            dropped[str(e)] += 1
            continue
        key = hashlib.blake2b(row.ids.tobytes(), digest_size=12).digest()
        if key in seen:
            dropped["same as an earlier one"] += 1
        elif len(row.ids) > cfg.block_size and cfg.ignore_long_samples:
            dropped[f"longer than block_size={cfg.block_size}"] += 1
        else:
            seen.add(key)
            yield commit, row


def divided(
    cfg: DiffConfig, source: Source, rows: Iterator[tuple[Commit, Row]], dropped: Counter
) -> Iterator[Row]:
    """Rows with their split, which is known when all rows have been made; they wait in a file."""
    waiting: list[tuple[tuple[str, str], int, int]] = []
    with tempfile.TemporaryFile(dir=cfg.folder().parent) as file:
        for commit, row in rows:
            file.write(row.ids.astype(np.uint32).tobytes())
            waiting.append(((commit.repo, commit.id), len(row.ids), int(row.prompt_mask.sum())))
        with_row = {key for key, _, _ in waiting}
        try:
            val = validation(cfg, source, with_row)
        except UserError as e:
            raise UserError(f"{e} ({dropped_text(dropped)}); {ADVICE}") from None
        file.seek(0)
        for key, size, prompt in waiting:
            ids = np.frombuffer(file.read(4 * size), np.uint32).astype(np.int64)
            yield Row("val" if key in val else "train", ids, np.arange(size) < prompt)


def dropped_text(dropped: Counter) -> str:
    reasons = (f"{reason}: {count:,}" for reason, count in dropped.most_common())
    return ", ".join(reasons) or "the source is empty"


# ---- writing -----------------------------------------------------------------------------------


class Packer:
    """Puts samples one after another into rows of at most `size` tokens, whole as long as one fits
    a row. Only parts of long samples without a target are dropped."""

    def __init__(self, size: int, dropped: Counter):
        self.size, self.dropped = size, dropped
        self.open: list[Row] = []

    def add(self, row: Row) -> Iterator[Row]:
        """Add a row -> the rows that are now full."""
        if sum(len(one.ids) for one in self.open) + len(row.ids) > self.size:
            yield from self.flush()
        for first in range(0, len(row.ids), self.size):
            part = slice(first, first + self.size)
            piece = Row(row.split, row.ids[part], row.prompt_mask[part])
            if piece.prompt_mask.all():
                self.dropped["pieces without anything to write"] += 1
                continue
            self.open.append(piece)
            if part.stop < len(row.ids):
                yield from self.flush()

    def flush(self) -> Iterator[Row]:
        """The last row."""
        if self.open:
            ids, prompt_mask = (np.concatenate([one[k] for one in self.open]) for k in (1, 2))
            yield Row(self.open[0].split, ids, prompt_mask)
        self.open = []


def fitting(cfg: DiffConfig, rows: Iterable[Row], dropped: Counter) -> Iterator[Row]:
    """Rows of at most block_size: packed for training with concatenate_texts, else single ones. A
    longer one is left out or cut, in validation as well."""
    packer = Packer(cfg.block_size, dropped)
    for row in rows:
        long = len(row.ids) > cfg.block_size
        if long and cfg.ignore_long_samples:
            dropped[f"longer than block_size={cfg.block_size}"] += 1
        elif cfg.packs() and row.split == "train":
            yield from packer.add(row)
        elif long:
            alone = Packer(cfg.block_size, dropped)
            yield from chain(alone.add(row), alone.flush())
        else:
            yield row
    yield from packer.flush()


def write(cfg: DiffConfig, rows: Iterable[Row], out: CorpusWriter, marked: set[str]) -> None:
    """Store the rows, each checked first; rows of the splits in `marked` may hold several samples
    and have a flag per token: is it prompt?"""
    dropped = out.info["dropped"]
    for row in fitting(cfg, rows, dropped):
        assert 0 < len(row.ids) <= cfg.block_size and not row.prompt_mask.all(), row
        if row.split in marked:
            out.row(row.split, row.ids, prompt_mask=row.prompt_mask)
        else:
            prompt = int(row.prompt_mask.sum())
            assert row.prompt_mask[:prompt].all(), row
            out.row(row.split, row.ids, prompt)
    empty = [split for split in ("train", "val") if split not in out.counts]
    if empty:
        raise UserError(f"no row is left for {empty[0]} ({dropped_text(dropped)}); {ADVICE}")


# ---- the command -------------------------------------------------------------------------------


def open_source(cfg: DiffConfig, limits: Limits) -> Source:
    """The source of the config, unless that is one of tokens."""
    if not cfg.source:
        return from_git(folders(cfg.repo or "."), limits, cfg.max_commits)
    path, where = Path(cfg.source).expanduser(), cfg.source
    if is_saved(where):
        data = open_saved(where)

        def rows() -> Iterator[dict]:
            return ({**row, "split": name} for name, part in data.items() for row in part)

        return from_rows(rows, cfg.max_commits, has_splits=len(data) > 1)
    if kind_of(path) in ROWS:
        return from_rows(lambda: (row for _, row in json_rows(path)), cfg.max_commits)
    if path.exists() or where.startswith((".", "/", "~")):
        raise UserError(f"source={where}: take a .jsonl, a .jsonl.zst, or --repo={where}")
    return from_rows(lambda: hub_rows(where, cfg.cache_dir), cfg.max_commits)


def tokenizer_of(cfg: DiffConfig, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer of the config, or of the saved dataset; without chat tokens, so that a network
    with this tokenizer need not grow. Without a pad id, EOS fills the rows."""
    made = kept_tokenizer(cfg.source) or create(
        cfg.tokenizer, lambda: texts, cfg.bpe_dir, cfg.cache_dir, chat=False
    )
    if "eos" not in made.specials:
        raise UserError(f"tokenizer={cfg.tokenizer} has no EOS, which ends a patch")
    made.specials = {"pad": made.specials["eos"], **made.specials}
    return made


def training_texts(cfg: DiffConfig, source: Source, limits: Limits) -> Iterator[str]:
    val = validation(cfg, source)
    for commit, change in usable(source, limits, Counter()):
        if (commit.repo, commit.id) not in val:
            yield prompt_text(change.prompt) + target_text(change.hunks)


def prepare(cfg: DiffConfig) -> None:
    """Write the corpus, complete or not at all, and print a summary."""
    final = Path(cfg.data_dir, FINAL)
    if cfg.save_final_dataset and (optional("datasets"), final.exists())[1]:
        raise UserError(f"{final} exists already; move it away to save another")
    dropped: Counter = Counter()
    endings = tuple(filter(None, cfg.ext.split(",")))
    limits = Limits(endings, cfg.max_bytes, cfg.window, cfg.per_hunk)
    if has_tokens(cfg.source):
        tokenizer = tokenizer_of(cfg, ())
        rows = saved_rows(cfg.source, tokenizer, cfg.val_split_ratio, cfg.force_label, dropped)
        marked = {"train", "val"}
    else:
        source = open_source(cfg, limits)
        tokenizer = tokenizer_of(cfg, training_texts(cfg, source, limits))
        all_rows = rows_of(cfg, tokenizer, source, limits, dropped)
        rows = divided(cfg, source, all_rows, dropped)
        marked = {"train"} if cfg.packs() else set()
    if cfg.packs() and not cfg.concatenate_texts:
        print("ignore_long_samples=False: training rows are concatenated")
    places = "repo source dataset data_dir bpe_dir cache_dir".split()
    options = {k: v for k, v in dataclasses.asdict(cfg).items() if k not in places}
    named = cfg.source or cfg.repo or "."
    info = {"task": "diff", "source": named, "options": options, "dropped": dropped}
    with CorpusWriter(cfg.folder(), tokenizer, **info) as out:
        write(cfg, rows, out, marked)
    for split, count in out.counts.items():
        size = f"{count['rows']:>9,} rows {count['tokens']:>12,} ids"
        print(f"{split:<6}{size}, longest row {count['longest']}")
    for reason, number in dropped.most_common():
        print(f"dropped: {reason}: {number:,}")
    print(f"wrote {cfg.folder()}")
    if cfg.save_final_dataset:
        save_final(Corpus(cfg.folder()), final, cfg.block_size)
        print(f"wrote {final}")


def main(argv: list[str]) -> None:
    cfg, origins = load(DiffConfig, repeated(argv, "repo"))
    if origins:
        print(describe(cfg, origins))
    prepare(cfg)
    sys.stdout.flush()


if __name__ == "__main__":
    run(main)
