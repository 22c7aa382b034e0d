"""Rows of patches as the `datasets` library keeps them: a mid-point that is written and read.

Columns input_ids, attention_mask, labels, as the trainer of the CarperAI diff models reads them;
labels are -100 where a token is given. Rows that are written are all of one length, so that they
form batches as they are: EOS fills them on the left, with attention_mask 0 and label -100. Other
columns are not looked at.
"""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, Iterator, NamedTuple

import numpy as np

from configurator import UserError, optional
from corpus import Corpus
from patches.rows import HUNKS
from tokenizer import Tokenizer, tokenizer_from

KEPT = "anyorder.json"  # the tokenizer, beside the files of `datasets`
SAVED = ("dataset_info.json", "dataset_dict.json")  # what save_to_disk leaves
IGNORED = -100  # label of a token that is not learnt


class Row(NamedTuple):
    """Tokens of a sample, or of several."""

    split: str
    ids: np.ndarray  # (n,) int64
    prompt_mask: np.ndarray  # (n,) bool


def is_saved(source: str) -> bool:
    return bool(source) and any(Path(source, mark).is_file() for mark in SAVED)


def open_saved(folder: str) -> dict[str, Any]:
    """A folder that `datasets` has saved -> its splits by name; "" is the only one of a Dataset."""
    datasets = optional("datasets")
    try:
        data = datasets.load_from_disk(folder)
    except Exception as e:  # of pyarrow and others
        why = " ".join(str(e).split())[:150]
        raise UserError(f"source={folder} cannot be read: {why}") from e
    return dict(data) if isinstance(data, dict) else {"": data}


def has_tokens(source: str) -> bool:
    """Is the source a dataset that was tokenised before?"""
    return is_saved(source) and any(
        "input_ids" in part.column_names for part in open_saved(source).values()
    )


def kept_tokenizer(source: str) -> Tokenizer | None:
    """The tokenizer of a dataset that --save_final_dataset has saved."""
    path = Path(source, KEPT)
    if not is_saved(source) or not path.is_file():
        return None
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        return tokenizer_from(saved["tokenizer"], saved["files"])
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is damaged: {e}") from e


# ---- reading -----------------------------------------------------------------------------------


def saved_rows(
    source: str, tokenizer: Tokenizer, share: float, relabel: bool, dropped: Counter
) -> Iterator[Row]:
    """The rows of a dataset with `input_ids`, and its `labels` unless they are to be made anew. Of
    a dataset without splits, the last `share` is validation."""
    splits = open_saved(source)
    for name, data in splits.items():
        alone = len(splits) == 1
        last = len(data) - max(1, round(len(data) * share))
        for number, row in enumerate(data):
            held = number >= last if alone else name != "train"
            where = f"{source}, {name} row {number}".replace("  ", " ")
            result = saved_row(tokenizer, "val" if held else "train", row, relabel, where)
            if result.prompt_mask.all():
                dropped["nothing to write"] += 1
            else:
                yield result


def saved_row(tokenizer: Tokenizer, split: str, row: dict, relabel: bool, where: str) -> Row:
    """Ids and labels, checked: a label is -100 or the id itself. Padding on the left is removed,
    and an EOS after a learnt token is learnt, too, which the original's was not."""
    ids = np.array(row["input_ids"], np.int64)
    seen = np.array(row.get("attention_mask", np.ones_like(ids)))
    if ids.ndim != 1 or seen.shape != ids.shape or not 0 < len(ids):
        raise UserError(f"{where}: input_ids and attention_mask do not fit")
    start = int(np.argmax(seen > 0))
    if row.get("labels") is None or relabel:
        ids = ids[start:]
        prompt_mask = mask_by_marker(tokenizer, ids)
    else:
        labels = np.array(row["labels"])
        if labels.shape != ids.shape or not np.all((labels == IGNORED) | (labels == ids)):
            raise UserError(f"{where}: labels are neither {IGNORED} nor the ids")
        ids, prompt_mask = ids[start:], labels[start:] == IGNORED
    ends = np.flatnonzero(ids[1:] == tokenizer.specials["eos"]) + 1
    prompt_mask[ends] &= prompt_mask[ends - 1]
    return Row(split, ids, prompt_mask)


def mask_by_marker(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """ids (n,) of samples with an EOS after each -> (n,) bool: is it before its sample's `<DFF>`?
    The marker is looked for in the text, not in the tokens; of a token that holds more than the
    marker's beginning, the whole is written."""
    prompt_mask = np.ones(len(ids), bool)
    cuts = np.flatnonzero(ids == tokenizer.specials["eos"]) + 1
    for start, stop in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        part = ids[start:stop].tolist()
        at = tokenizer.decode(part).rfind("\n" + HUNKS) + 1
        if at == 0:  # no marker: nothing of it is learnt
            continue
        low, high = 0, len(part)  # the most tokens that end before the marker
        while low < high:
            middle = (low + high + 1) // 2
            fits = len(tokenizer.decode(part[:middle])) <= at
            low, high = (middle, high) if fits else (low, middle - 1)
        prompt_mask[start + low : stop] = False
    return prompt_mask


# ---- writing -----------------------------------------------------------------------------------


def save_final(corpus: Corpus, folder: Path, length: int) -> None:
    """The rows as `datasets` keeps them, each of `length` tokens, under the column names that the
    original's trainer reads; whole or not at all."""
    datasets = optional("datasets")
    datasets.disable_progress_bars()
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    cache, parts = partial / "cache", {}
    try:
        for split, name in (("train", "train"), ("val", "validation")):
            which = {"folder": str(corpus.folder), "split": split, "length": length}
            made = datasets.Dataset.from_generator(_columns, cache_dir=str(cache), gen_kwargs=which)
            parts[name] = made
        datasets.DatasetDict(parts).save_to_disk(str(partial / "whole"))
        kept = {"tokenizer": corpus.tokenizer.spec(), "files": corpus.tokenizer.files}
        (partial / "whole" / KEPT).write_text(json.dumps(kept), encoding="utf-8")
        (partial / "whole").rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _columns(folder: str, split: str, length: int) -> Iterator[dict[str, list[int]]]:
    corpus = Corpus(folder)
    longest, eos = corpus.meta["splits"][split]["longest"], corpus.tokenizer.specials["eos"]
    for number in range(corpus.rows(split)):
        batch = corpus.batch(split, np.array([number]), longest)
        ids, prompt_mask = (part[0, : int(batch.length)].numpy() for part in batch[:2])
        columns = {
            "input_ids": (ids, eos),
            "attention_mask": (np.ones_like(ids), 0),
            "labels": (np.where(prompt_mask, IGNORED, ids), IGNORED),
        }
        left = length - len(ids)
        yield {name: [fill] * left + part.tolist() for name, (part, fill) in columns.items()}
