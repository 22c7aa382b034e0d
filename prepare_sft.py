"""Corpora of questions and answers: rows whose question is given and whose answer is written.

    python prepare_sft.py                                         # about Python itself, offline
    python prepare_sft.py --source=pydoc --tokenizer=data/pydoc   # for a network trained on that
    python prepare_sft.py --source=alpaca --hf_model_name=answerdotai/ModernBERT-base
    python prepare_sft.py --source=mine.jsonl --tokenizer=data/mine

--source is pydoc, alpaca, or files, folders and patterns with commas between them. A .json holds a
list of objects, a .jsonl one object per line, a .parquet rows: {instruction, input, output}
as Alpaca, {prompt, response}, {messages: [{role, content}]}, {conversations: [{from, value}]}, or
{instruction, instances: [{input, output}]}. Whole questions go to validation, before anything else
is done, so no question is in both splits. Rows that are too long or lack something are left out and
counted. A network goes on training only with the vocabulary that it knows: pass the folder of its
corpus as --tokenizer.
"""

import dataclasses
import functools
import glob
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Iterable, Iterator, Literal

import numpy as np
from tqdm import tqdm

from configurator import UserError, describe, load, optional, require, run
from corpus import Corpus, CorpusWriter
from prepare.files import (
    COLUMNS,
    RECORDS,
    entries,
    json_rows,
    kind_of,
    local_files,
    matches,
    stem_of,
)
from prepare.pydoc_questions import python_pairs
from prepare.texts import dataset_rows
from prepare_bytes import in_order
from tokenizer import (
    ASSISTANT,
    HF,
    USER,
    Message,
    Tokenizer,
    Unencodable,
    chat_rows,
    require_chat,
    tokenizer_from,
)

Conversation = list[Message]
QUESTIONS = ("instruction", "prompt", "question")  # names of the field, the first one found counts
ANSWERS = ("output", "response", "completion", "answer")
ROLES = {"human": USER, "gpt": ASSISTANT}  # of `conversations`
HUB = "tatsu-lab/alpaca"


@dataclass(frozen=True)
class SftConfig:
    """The options of `prepare_sft.py`."""

    source: str = "pydoc"  # pydoc, alpaca, or files, folders and patterns: see above
    tokenizer: str = "train:4096"  # train:N, a folder of a corpus or tokenizer, or a hub id
    dataset: str = ""  # folder of the corpus, below data_dir; empty: the source and _sft
    data_dir: str = "data"  # where prepared corpora live
    path_to_data_store: str = ""  # the folder of the corpus, instead of data_dir and dataset
    context_length: int = 1024  # longer rows are left out
    turns: Literal["each", "last"] = "each"  # a row per answer of a conversation, or its last one
    join: Literal["final", "original"] = "final"  # which full stops an instruction loses: see join
    max_rows: int = 0  # only the first so many questions; 0: all
    test_split_pct: float = 0.01  # share of the questions that go to validation
    dataset_split_seed: int = 42  # of which ones
    num_workers: int = 1  # processes that encode; the corpus does not depend on it
    hf_model_name: str = ""  # hub id of the tokenizer, instead of `tokenizer`
    huggingface_cache_dir: str = ""  # alpaca: where downloads go; empty: the library's own place

    def __post_init__(self):
        names = entries(self.source)
        files = bool(names) and all(matches(n) or kind_of(Path(n)) in RECORDS for n in names)
        valid = files or self.source in ("pydoc", "alpaca")
        require(self, "source", valid, "pydoc, alpaca, FILE.json, FILE.jsonl or FILE.parquet")
        require(self, "context_length", self.context_length >= 8, "at least 8")
        for key, minimum in (("num_workers", 1), ("max_rows", 0), ("dataset_split_seed", 0)):
            require(self, key, getattr(self, key) >= minimum, f"at least {minimum}")
        require(self, "test_split_pct", 0 < self.test_split_pct < 1, "above 0 and below 1")
        once = self.tokenizer == type(self).tokenizer or not self.hf_model_name
        require(self, "hf_model_name", once, "left out with --tokenizer")
        elsewhere = not (self.path_to_data_store and self.dataset)
        require(self, "path_to_data_store", elsewhere, "left out with --dataset")

    def folder(self) -> Path:
        """Where the corpus goes."""
        names = entries(self.source)
        one = len(names) == 1 and not glob.has_magic(names[0])
        name = self.dataset or (stem_of(Path(names[0])) if one else "files") + "_sft"
        return Path(self.path_to_data_store or Path(self.data_dir, name))


# ---- reading -----------------------------------------------------------------------------------


class Unusable(Exception):
    """A record without a conversation; its text is the reason."""


def records(path: Path) -> Iterator[dict]:
    """The objects of a file of JSON or parquet. Raises UserError naming what is none."""
    if kind_of(path) == COLUMNS:
        return dataset_rows(path)
    return (row for _, row in json_rows(path, listed=True))


def files_of(source: str) -> list[Path]:
    """The files of --source. Raises UserError for one of a kind that holds no rows."""
    files = local_files(source, RECORDS)
    for path in files:
        if kind_of(path) not in RECORDS:
            kinds = ", ".join(RECORDS)
            raise UserError(f"source: {path} is of none of the kinds {kinds}; convert or rename it")
    return files


def alpaca(cache_dir: str) -> Iterable[dict]:
    """The 52,002 rows of the hub."""
    datasets = optional("datasets")
    try:
        return datasets.load_dataset(HUB, split="train", cache_dir=cache_dir or None)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as e:
        why = " ".join(str(e).split())[:150] or type(e).__name__
        raise UserError(
            f"{HUB} cannot be read ({why}); without the hub: --source=pydoc or --source=FILE.json"
        ) from e


# ---- from records to conversations -------------------------------------------------------------


def join(instruction: str, context: str, how: Literal["final", "original"]) -> str:
    """Instruction and input -> one question, "instruction: input". The full stop (or colon) that
    ends the instruction goes; "original" takes every full stop out of it, as the first scripts of
    the ModernBERT diffusion model did, abbreviations and numbers included."""
    if not context.strip():
        return instruction
    if how == "original":
        return instruction.replace(".", "") + ": " + context
    return re.sub(r"(?<!\.)[.:]$", "", instruction.rstrip()) + ": " + context


def _message(role: Any, text: Any) -> Message:
    if not isinstance(role, str) or not isinstance(text, str) or not role:
        raise Unusable("a field is missing" if None in (role, text) else "a field is no text")
    try:
        (role + text).encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        raise Unusable("a character that UTF-8 lacks") from None
    return ROLES.get(role, role), text


def _checked(turns: Iterable[Message]) -> Conversation:
    """The conversation. Raises Unusable for an empty text, and without a question before the first
    answer."""
    messages = [m for m in turns if m[1].strip() or m[0] in (USER, ASSISTANT)]
    for role, text in messages:
        if not text.strip():
            raise Unusable("an empty question" if role == USER else "an empty answer")
    roles = [role for role, _ in messages]
    if ASSISTANT not in roles:
        raise Unusable("no answer")
    if USER not in roles[: roles.index(ASSISTANT)]:
        raise Unusable("no question before the answer")
    return messages


def conversation(record: dict, how: Literal["final", "original"]) -> Conversation:
    """Any known record -> [(role, text), ...]. Raises Unusable."""
    for key, role, text in (("messages", "role", "content"), ("conversations", "from", "value")):
        if key in record:
            turns = record[key]
            if not isinstance(turns, list) or not all(isinstance(t, dict) for t in turns):
                raise Unusable("a field is no text")
            return _checked(_message(t.get(role), t.get(text)) for t in turns)
    question = next((record[k] for k in QUESTIONS if k in record), None)
    answer = next((record[k] for k in ANSWERS if k in record), None)
    more = record.get("input")
    user, (_, context) = _message(USER, question), _message(USER, "" if more is None else more)
    if not user[1].strip():
        raise Unusable("an empty question")
    return _checked([(USER, join(user[1], context, how)), _message(ASSISTANT, answer)])


def _each(record: dict) -> Iterator[dict]:
    """A task with several instances becomes several records."""
    instances = record.get("instances")
    if isinstance(instances, list) and all(isinstance(i, dict) for i in instances):
        yield from ({"instruction": record.get("instruction"), **i} for i in instances)
    else:
        yield record


def conversations(cfg: SftConfig, dropped: Counter) -> list[Conversation]:
    """All usable conversations of the source, in order; reasons for the others are counted."""
    if cfg.source == "pydoc":
        rows: Iterable[dict] = ({"question": q, "answer": a} for q, a in python_pairs())
    elif cfg.source != "alpaca":
        rows = chain.from_iterable(map(records, files_of(cfg.source)))
    else:
        rows = alpaca(cfg.huggingface_cache_dir)
    usable = []
    for record in islice(chain.from_iterable(map(_each, rows)), cfg.max_rows or None):
        try:
            usable.append(conversation(record, cfg.join))
        except Unusable as e:
            dropped[str(e)] += 1
    if not usable:
        counts = ", ".join(f"{reason}: {count}" for reason, count in dropped.items())
        raise UserError(f"source: {cfg.source} holds no usable row ({counts or 'it is empty'})")
    return usable


# ---- from conversations to rows ----------------------------------------------------------------


def question(messages: Conversation) -> str:
    """The key that decides the split: the first question, case and spaces ignored."""
    first = next(text for role, text in messages if role == USER)
    return " ".join(first.casefold().split())


def divided(conversations: list[Conversation], share: float, seed: int) -> list[str]:
    """The split of each conversation; those with the same first question stay together."""
    keys = [question(messages) for messages in conversations]
    distinct = list(dict.fromkeys(keys))
    if len(distinct) < 2:
        raise UserError("source: two splits need at least two different questions")
    order = np.random.default_rng(seed).permutation(len(distinct))
    val = {distinct[i] for i in order[: max(1, round(len(distinct) * share))]}
    return ["val" if key in val else "train" for key in keys]


Encoded = tuple[str, list[int], int, str]  # split, ids, prompt, why it is left out


def encoded(batch: list[tuple[str, Conversation]], spec: str, files: tuple, turns: Any) -> list:
    """(split, conversation) pairs -> Encoded rows."""
    tokenizer = _rebuilt(spec, files)
    rows: list[Encoded] = []
    for split, messages in batch:
        try:
            rows += [
                (split, ids, prompt, "") for ids, prompt in chat_rows(tokenizer, messages, turns)
            ]
        except Unencodable as e:
            rows.append((split, [], 0, e.reason))
    return rows


@functools.lru_cache(1)
def _rebuilt(spec: str, files: tuple) -> Tokenizer:
    return tokenizer_from(json.loads(spec), dict(files))


def write(cfg: SftConfig, out: CorpusWriter, chats: list[Conversation], splits: list[str]) -> None:
    """Encode and store each conversation that fits the block, once."""
    pairs = list(zip(splits, chats, strict=True))
    batches = [pairs[i : i + 1000] for i in range(0, len(pairs), 1000)]
    spec, files = json.dumps(out.tokenizer.spec()), tuple(out.tokenizer.files.items())
    work = functools.partial(encoded, spec=spec, files=files, turns=cfg.turns)
    bar = tqdm(batches, "thousand conversations", disable=not sys.stdout.isatty())
    dropped, seen = out.info["dropped"], set()
    for split, ids, prompt, reason in chain.from_iterable(in_order(work, bar, cfg.num_workers)):
        key = (prompt, *ids)
        if reason:
            dropped[reason] += 1
        elif len(ids) > cfg.context_length:
            dropped[f"longer than context_length={cfg.context_length}"] += 1
        elif key in seen:
            dropped["same as an earlier row"] += 1
        else:
            seen.add(key)
            out.row(split, ids, prompt)
    if len(out.counts) < 2:
        bar = ", ".join(f"{reason}: {count}" for reason, count in dropped.items())
        raise UserError(f"source: no row is left for one of the two splits ({bar})")


# ---- the command -------------------------------------------------------------------------------


def tokenizer_of(cfg: SftConfig, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer of a prepared corpus, one trained on `texts`, or a published one."""
    name = cfg.hf_model_name or cfg.tokenizer
    kind, _, size = name.partition(":")
    if Path(name, "meta.json").is_file():
        return Corpus(name).tokenizer
    if kind == "train" or name in ("bytes", "gpt2", "chars"):
        if not size.isdecimal():
            raise UserError(f"tokenizer={name} has no tokens for a chat; train:4096 has them")
        return HF.train(texts, int(size))
    return HF.create(name, cfg.huggingface_cache_dir)


def prepare(cfg: SftConfig) -> None:
    """Write the corpus, complete or not at all, and print a summary."""
    elsewhere = "dataset data_dir path_to_data_store num_workers huggingface_cache_dir".split()
    options = {k: v for k, v in dataclasses.asdict(cfg).items() if k not in elsewhere}
    info = {"task": "chat", "source": cfg.source, "options": options, "dropped": Counter()}
    rows = conversations(cfg, info["dropped"])
    splits = divided(rows, cfg.test_split_pct, cfg.dataset_split_seed)
    pairs = zip(splits, rows, strict=True)
    texts = (text for split, messages in pairs if split == "train" for _, text in messages)
    tokenizer = tokenizer_of(cfg, texts)
    require_chat(tokenizer)
    with CorpusWriter(cfg.folder(), tokenizer, **info) as out:
        out.info["python"] = sys.version.split()[0]
        write(cfg, out, rows, splits)
    for split, count in out.counts.items():
        size = f"{count['rows']:>12,} rows {count['tokens']:>14,} ids"
        print(f"{split:<6}{size}, longest row {count['longest']}")
    for reason, count in out.info["dropped"].items():
        print(f"dropped: {reason}: {count:,}")
    print(f"wrote {cfg.folder()}")


def main(argv: list[str]) -> None:
    cfg, origins = load(SftConfig, argv)
    if origins:
        print(describe(cfg, origins))
    prepare(cfg)


if __name__ == "__main__":
    run(main)
