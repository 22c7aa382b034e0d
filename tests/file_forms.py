"""One text as files of every kind that holds it: packings, encodings, byte order marks."""

import bz2
import gzip
import lzma
from pathlib import Path

FORMS = {  # name of a form -> what is appended to the file's name, and how the text is written
    "utf-8": ("", lambda t: t.encode()),
    "byte order mark": ("", lambda t: t.encode("utf-8-sig")),
    "utf-16": ("", lambda t: t.encode("utf-16")),
    "utf-16 of the other order": ("", lambda t: b"\xfe\xff" + t.encode("utf-16-be")),
    "utf-32": ("", lambda t: t.encode("utf-32")),
    "gz": (".gz", lambda t: gzip.compress(t.encode())),
    "gz in two parts": (".GZ", lambda t: b"".join(gzip.compress(p.encode()) for p in halves(t))),
    "gz that is not called so": ("", lambda t: gzip.compress(t.encode("utf-8-sig"))),
    "a text that is called gz": (".gz", lambda t: t.encode()),
    "bz2": (".bz2", lambda t: bz2.compress(t.encode())),
    "xz of utf-16": (".xz", lambda t: lzma.compress(t.encode("utf-16"))),
}


def halves(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]


def write(form: str, folder: Path, name: str, text: str) -> Path:
    """The text as a file in this form."""
    ending, encode = FORMS[form]
    path = folder / (name + ending)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(text))
    return path
