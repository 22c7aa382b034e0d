"""Text to rows of byte ids, [BOS] bytes [EOS]: our rules, and the original's to the byte.

The original is the byte-level fork of SEDD; its rules serve comparisons with models trained on it.
"""

import re
from typing import NamedTuple

import numpy as np

from tokenizer import Bytes

PAD, BOS, EOS = (Bytes.specials[name] for name in ("pad", "bos", "eos"))


class Rows(NamedTuple):
    """N rows: their ids in one flat array, the length and the number of prompt ids of each."""

    ids: np.ndarray  # uint16
    lengths: np.ndarray  # (N,) int64
    prompts: np.ndarray  # (N,) int64


def pack(rows: list[list[int]], prompt: int) -> Rows:
    """Rows as lists -> Rows, each with `prompt` prompt ids."""
    lengths = np.array([len(r) for r in rows], np.int64)
    ids = np.fromiter((i for r in rows for i in r), np.uint16, int(lengths.sum()))
    return Rows(ids, lengths, np.full_like(lengths, prompt))


# ---- our rules ---------------------------------------------------------------------------------

SPACES = bytes(32 if i in b"\t\n\v\f\r" else i for i in range(256))  # translation table


def fold(data: bytes) -> bytes:
    """Runs of ASCII white space to single spaces, none at the ends; other bytes as they are."""
    data = data.translate(SPACES)
    while b"  " in data:  # halves every run: a few passes and no list of words, however long
        data = data.replace(b"  ", b" ")
    return data.strip(b" ")


def boundary(data: bytes, end: int) -> int:
    """The largest place <= end that does not cut a UTF-8 character: at most three bytes back."""
    for place in range(end, max(end - 4, -1), -1):
        if place >= len(data) or data[place] & 0xC0 != 0x80:
            return place
    return end  # no UTF-8 here


def cut(data: bytes, block: int) -> list[int]:
    """Lengths of the rows of [BOS] data [EOS]: at most `block` each, cut after white space in the
    second half of a row, else between characters; EOS never stands alone."""
    words, total, start, lengths = data.translate(SPACES), len(data) + 2, 0, []
    while total - start > block:
        end = min(start + block, total - 2)  # id i is BOS for i = 0 and data[i - 1] after it
        space = words.rfind(b" ", max(start + block // 2 - 1, 0), end - 1)
        end = space + 2 if space >= 0 else boundary(data, end - 1) + 1
        lengths.append(end - start)
        start = end
    return [*lengths, total - start]


def our_rows(data: bytes, block: int) -> Rows:
    """All of a document, already folded: BOS begins its first row and is the prompt, EOS ends its
    last row, and the bytes between them are the document's."""
    ids = np.empty(len(data) + 2, np.uint16)
    ids[0], ids[1:-1], ids[-1] = BOS, np.frombuffer(data, np.uint8), EOS
    lengths = np.array(cut(data, block), np.int64)
    return Rows(ids, lengths, (np.arange(len(lengths)) == 0).astype(np.int64))


# ---- rules of the original: byte fork of SEDD ---------------------------------------------------


def clean_text(text: str) -> str | None:
    """Words of two or more letters a-z, single spaces; None unless 100..5000 characters remain."""
    if len(text) < 50:
        return None
    text = re.sub(r"\s+", " ", without_markup(text)).lower()
    words = re.sub("[^a-z ]", "", text).split()  # "well-known" becomes one word, "a" and "I" vanish
    cleaned = " ".join(w for w in words if len(w) > 1)
    return cleaned if 100 <= len(cleaned) <= 5000 else None


def without_markup(text: str) -> str:
    """`text` without [[links]], {{templates}} and <tags>, none of them across lines."""
    for pattern in (r"\[\[.*?\]\]", r"\{\{.*?\}\}", r"<.*?>"):
        text = re.sub(pattern, "", text)
    return text


def padded(row: list[int], length: int) -> list[int]:
    """A row filled with PAD to `length`."""
    return row + [PAD] * (length - len(row))


def chunk(cleaned: str, block: int) -> list[list[int]]:
    """[BOS] article [EOS] in rows of `block`, cut after a space if one is late enough, padded."""
    ids, start, rows = [BOS, *cleaned.encode(), EOS], 0, []
    while start < len(ids):
        end = start + block
        if end < len(ids):
            # 20 places, whatever the block: with block <= 20 words are cut anywhere
            spaces = (i for i in range(end - 1, start + 19, -1) if ids[i] == 32)
            end = next(spaces, end - 1) + 1
        rows.append(padded(ids[start:end], block))
        start = end
    return rows


def chunk_on_the_fly(text: str, block: int) -> list[list[int]]:
    """The rows of the original's loader: block - 2 bytes each, [BOS]..[EOS], padded; none if fewer
    than 100 characters remain without markup, and none of less than 10 bytes."""
    text = re.sub(r"\s+", " ", without_markup(text)).strip()
    data = text.encode("utf-8", "surrogateescape") if len(text) >= 100 else b""
    pieces = (data[i : i + block - 2] for i in range(0, len(data), block - 2))
    return [padded([BOS, *p, EOS], block) for p in pieces if len(p) >= 10]


def palindrome_row(text: str, length: int) -> list[int]:
    """[BOS] text [EOS], plainly cut at `length` (EOS is lost) or padded to it."""
    return padded([BOS, *Bytes().encode(text), EOS][:length], length)


def pack_padded(rows: list[list[int]]) -> Rows:
    """The original's rows without their padding, which our reader adds again; no prompt."""
    return pack([[i for i in row if i != PAD] for row in rows], prompt=0)


def upstream_rows(document: bytes, block: int, rules: str) -> Rows:
    """The rows of one document, if any, by the rules "true" (its preparation) or "loader"."""
    text = document.decode("utf-8", "surrogateescape")
    if rules == "loader":
        rows = chunk_on_the_fly(text, block)
    else:
        cleaned = clean_text(text)
        rows = chunk(cleaned, block) if cleaned else []
    return pack_padded(rows)
