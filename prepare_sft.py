"""Corpora of questions and answers: rows whose question is given and whose answer is written.

    python prepare_sft.py                                         # about Python itself, offline
    python prepare_sft.py --source=pydoc --tokenizer=data/pydoc   # for a network trained on that
    python prepare_sft.py --source=alpaca --hf_model_name=answerdotai/ModernBERT-base
    python prepare_sft.py --source=mine.jsonl --tokenizer=data/mine

--source is pydoc, alpaca, or files, folders and patterns with commas between them. A .json holds a
list of objects, a .jsonl one object per line, a .parquet rows:

    {instruction, input, output}       Alpaca; or {prompt, response}, {question, answer}, ...
    {instruction, context, response}   Dolly: a context is joined to the question, as an input is
    {question, context, answers: {text: [...]}}   SQuAD: the first answer counts
    {messages: [{role, content, weight}]}         an answer of weight 0 is given, never written
    {conversations: [{from, value}]}              ShareGPT
    {prompt: [messages], completion: [messages]}  answers of the prompt are given
    {instruction, instances: [{input, output}]}

each also with `system`, which comes first, and `history`, pairs of earlier questions and answers.
The content of a message is a text, or parts that are all of type text. Fields and messages that are
not used are counted, and so are rows that are too long or lack something, which are left out.

Whole questions go to validation, before anything else is done, so no question is in both splits. A
network goes on training only with the vocabulary that it knows: pass the folder of its corpus as
--tokenizer.
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
    GIVEN,
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
TURNS = ("messages", "conversations", "conversation")  # of several names the first counts
QUESTIONS = ("instruction", "prompt", "question", "query")
ANSWERS = ("output", "response", "completion", "answer")
CONTEXTS = ("input", "context")  # joined to the question, both
SYSTEMS = ("system", "system_prompt")
TRAINED = ("weight", "train", "train_on_turn", "trainable")  # of a message; 0: given, not written
PARTS = ("text", "input_text", "output_text")  # types of the parts of a message
ROLES = {  # names of `conversations` and others
    **dict.fromkeys((USER, "human", "prompter"), USER),
    **dict.fromkeys((ASSISTANT, "gpt", "chatgpt", "model", "bot"), ASSISTANT),
}
EMPTY = (None, "", [], {})
SHOWN = 20  # lines about what is not used
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
    return ROLES.get(role.strip().lower(), role), text


def _checked(turns: Iterable[Message]) -> Conversation:
    """The conversation. Raises Unusable for an empty text, and without a question before the first
    answer."""
    messages = [m for m in turns if m[1].strip() or m[0] in (USER, ASSISTANT, GIVEN)]
    for role, text in messages:
        if not text.strip():
            raise Unusable("an empty question" if role == USER else "an empty answer")
    roles = [role for role, _ in messages]
    if ASSISTANT not in roles:
        raise Unusable("no answer of a weight above 0" if GIVEN in roles else "no answer")
    if USER not in roles[: roles.index(ASSISTANT)]:
        raise Unusable("no question before the answer")
    return messages


def _first(record: dict, names: Iterable[str], used: set[str]) -> Any:
    """The first of these fields that holds anything; it is added to the `used` ones."""
    name = next((n for n in names if record.get(n) is not None), None)
    used |= {name} if name else set()
    return record.get(name)


def _left(record: dict, used: set[str], what: str, unused: Counter) -> None:
    """Count the fields of a record that hold something and are not used."""
    unused.update(f"{what} {k!r}" for k, v in record.items() if k not in used and v not in EMPTY)


def _text_of(content: Any) -> Any:
    """The content of a message, whose parts, if it has some, are joined. Raises Unusable for a part
    that is no text."""
    parts = isinstance(content, list) and content and all(isinstance(p, dict) for p in content)
    if not parts or not all("type" in p for p in content):
        return content
    if not all(p["type"] in PARTS and isinstance(p.get("text"), str) for p in content):
        raise Unusable("a part of a message is no text")
    return "".join(p["text"] for p in content)


def _turn(turn: Any, unused: Counter) -> Message:
    """A message as an object, {role, content} or {from, value}."""
    if not isinstance(turn, dict):
        raise Unusable("a field is no text")
    used: set[str] = set()
    role, content = (
        _first(turn, names, used) for names in (("role", "from"), ("content", "value"))
    )
    if content is None and (turn.get("tool_calls") or turn.get("function_call")):
        raise Unusable("a call of a tool instead of a text")
    message = _message(role, _text_of(content))
    trained = _first(turn, TRAINED, used)
    if trained not in (None, 0, 1):
        raise Unusable("a weight that is neither 0 nor 1")
    if message[0] == ASSISTANT and trained == 0:
        message = (GIVEN, message[1])
    if message[0] not in (ASSISTANT, GIVEN) and trained:
        unused["weight of a message that is no answer"] += 1
    _left(turn, used, "field of a message", unused)
    return message


def _turns(value: Any, unused: Counter) -> list[Message]:
    """A list of messages, or of pairs of a question and its answer."""
    if not isinstance(value, list):
        raise Unusable("a field is no text")
    messages: list[Message] = []
    for item in value:
        if isinstance(item, list) and len(item) == 2:
            messages += [_message(USER, item[0]), _message(ASSISTANT, item[1])]
        else:
            messages.append(_turn(item, unused))
    return messages


def conversation(
    record: dict, how: Literal["final", "original"], unused: Counter | None = None
) -> Conversation:
    """Any known record -> [(role, text), ...]; what of it is not used is counted. Raises
    Unusable."""
    counts, used = Counter(), {"history"}
    system = _first(record, SYSTEMS, used)
    before = [] if system in EMPTY else [_message("system", system)]
    before += _turns(record.get("history") or [], counts)
    turns = _first(record, TURNS, used)
    asked = _asked(record, how, used, counts) if turns is None else _turns(turns, counts)
    checked = _checked([*before, *asked])
    last = max(i for i, (role, _) in enumerate(checked) if role == ASSISTANT)
    if more := len(checked) - 1 - last:
        counts["message after the last answer"] += more
    _left(record, used, "field", counts)
    if unused is not None:
        unused.update(counts)
    return checked


def _asked(record: dict, how: Any, used: set[str], unused: Counter) -> Conversation:
    """The question and the answer of a record that has them in fields of their own."""
    question = _first(record, (*QUESTIONS, "input"), used)  # input and output alone are both
    answer = _answer(record, used, unused)
    if answer is None and "chosen" in record:
        raise Unusable("a choice between answers instead of an answer")
    return [*_question(record, question, how, used, unused), *_said(ASSISTANT, answer, unused)]


def _question(
    record: dict, question: Any, how: Any, used: set[str], unused: Counter
) -> list[Message]:
    """The question with its context; or messages, whose answers are given."""
    asked = _said(USER, question, unused)
    if isinstance(question, list):
        return [(GIVEN if role == ASSISTANT else role, text) for role, text in asked]
    [(role, text)] = asked
    if not text.strip():
        raise Unusable("an empty question")
    for key in CONTEXTS:
        if key not in used and record.get(key) is not None:
            used.add(key)
            text = join(text, _message(USER, record[key])[1], how)
    return [(role, text)]


def _said(role: str, value: Any, unused: Counter) -> list[Message]:
    """A text of this role, or a list of messages."""
    return _turns(value, unused) if isinstance(value, list) else [_message(role, value)]


def _answer(record: dict, used: set[str], unused: Counter) -> Any:
    """The answer, or the first one of several in a field `answers`, as SQuAD has them."""
    answer, several = _first(record, ANSWERS, used), record.get("answers")
    several = several.get("text") if isinstance(several, dict) else several
    if answer is not None or not isinstance(several, list) or not several:
        return answer
    used.add("answers")
    if others := len(set(map(str, several))) - 1:
        unused["answer after the first of a question"] += others
    return several[0]


def _each(record: dict) -> Iterator[dict]:
    """A task with several instances becomes several records."""
    instances = record.get("instances")
    if isinstance(instances, list) and all(isinstance(i, dict) for i in instances):
        task = {key: value for key, value in record.items() if key != "instances"}
        yield from ({**task, **instance} for instance in instances)
    else:
        yield record


def conversations(
    cfg: SftConfig, dropped: Counter, unused: Counter | None = None
) -> list[Conversation]:
    """All usable conversations of the source, in order; reasons for the others are counted, and
    what of the usable ones is not used."""
    if cfg.source == "pydoc":
        rows: Iterable[dict] = ({"question": q, "answer": a} for q, a in python_pairs())
    elif cfg.source != "alpaca":
        rows = chain.from_iterable(map(records, files_of(cfg.source)))
    else:
        rows = alpaca(cfg.huggingface_cache_dir)
    usable = []
    for record in islice(chain.from_iterable(map(_each, rows)), cfg.max_rows or None):
        try:
            usable.append(conversation(record, cfg.join, unused))
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
    unused = info["unused"] = Counter()
    rows = conversations(cfg, info["dropped"], unused)
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
    for what, count in unused.most_common(SHOWN):
        print(f"not used: {what}: {count:,}")
    if len(unused) > SHOWN:
        print(f"not used: {len(unused) - SHOWN:,} others; all are in meta.json")
    names = ", ".join(tokenizer.specials)
    print(f"vocabulary: {tokenizer.vocab_size:,} ids, special ones included ({names})")
    print(f"wrote {cfg.folder()}")


def main(argv: list[str]) -> None:
    cfg, origins = load(SftConfig, argv)
    if origins:
        print(describe(cfg, origins))
    prepare(cfg)


if __name__ == "__main__":
    run(main)
