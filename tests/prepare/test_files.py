"""prepare/files.py: names with commas, kinds, packings, encodings, and lines or lists of JSON."""

import gzip
import json
import lzma
from pathlib import Path

import pytest
from file_forms import FORMS, write

from configurator import UserError
from prepare.files import (
    entries,
    json_rows,
    kind_of,
    local_files,
    opened,
    read_text,
    stem_of,
    text_size,
)

TEXT = "Käse, 東京\u2028and 🚢\r\n" * 900  # more than a buffer, and a character at its end


@pytest.mark.parametrize("form", FORMS)
def test_a_text_is_the_same_in_every_form(form, tmp_path):
    path = write(form, tmp_path, "notes.TXT", TEXT)
    assert read_text(path) == TEXT and text_size(path) == len(TEXT.encode())
    assert kind_of(path) == ".txt" and stem_of(path) == "notes"
    with opened(path) as file:
        assert list(file) == TEXT.encode().splitlines(keepends=True)


def test_zstandard_of_several_frames(tmp_path):
    pack = pytest.importorskip("zstandard").ZstdCompressor().compress
    path, data = tmp_path / "a.txt.zst", TEXT.encode("utf-16")
    path.write_bytes(b"".join(pack(part) for part in (data[:101], data[101:])))
    assert read_text(path) == TEXT
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"a\.txt\.zst is no text: what it packs is damaged"):
        read_text(path)


@pytest.mark.parametrize(
    "name, data, why",
    [
        ("a.txt", b"PK\x03\x04" + b"x" * 99, "a zip archive"),
        ("a.md", b"%PDF-1.7 ...", "a PDF"),
        ("a.txt", b"one\0two", "has a NUL byte"),
        ("a.txt.gz", gzip.compress(b"one\0two", mtime=0), "has a NUL byte"),
        ("a.txt.gz", gzip.compress(b"one two" * 99, mtime=0)[:-9], "is damaged"),
        ("a.txt.gz", b"\x1f\x8b" + b"x" * 99, "is damaged"),
        ("a.txt.xz", lzma.compress(b"one two" * 99)[:40], "is damaged"),
        ("a.txt", b"\xff\xfea", "no utf-16"),
        ("a.txt", b"caf\xe9", "line 1: no UTF-8"),
    ],
)
def test_what_is_no_text_is_refused_with_the_reason(name, data, why, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=why) as got:
        read_text(tmp_path / name)
    assert "\n" not in str(got.value) and str(tmp_path / name) in str(got.value)


ROWS = [{"text": f"{i}\u2028é"} for i in range(30)]
LINES = "\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name, text",
    [
        ("a.jsonl", LINES),
        ("a.NDJSON", "\n \n" + LINES.replace("\n", "\r\n\r\n") + "\n"),
        ("a.json", LINES),  # some data sets call lines so
        ("a.json", json.dumps(ROWS)),
        ("a.JSON", " \n\t" + json.dumps(ROWS, indent=2) + "\n"),
        ("a.jsonl", "\n [" + ",\n".join(LINES.split("\n")) + "]"),
    ],
)
def test_rows_are_the_same_in_every_form(form, name, text, tmp_path):
    assert [row for _, row in json_rows(write(form, tmp_path, name, text))] == ROWS


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.jsonl", json.dumps(ROWS[0], indent=1), r"line 1: no JSON.*on one line.*a list"),
        ("a.jsonl", '{"a": 1}\n\n{"a": 2}, {"a": 3}', "line 3: no JSON: Extra data"),
        ("a.jsonl", '{"a": 1}\n"text"', "line 2: an object is needed, not 'text'"),
        ("a.json", '[{"a": 1}, "text"]', "row 2: an object is needed, not 'text'"),
        ("a.json", '\n\n[{"a": 1},\n{"b" 1}]', "line 4: Expecting ':'"),
    ],
)
def test_rows_that_are_none_are_named(name, text, words, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        list(json_rows(tmp_path / name))
    (tmp_path / "b.json").write_text('{"data": [{"a": 1}], "version": 2}')
    with pytest.raises(UserError, match="must hold a list, not an object of data, version"):
        list(json_rows(tmp_path / "b.json", listed=True))


def test_names_with_commas_spaces_and_brackets(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = ["a, b.txt", "c.txt", "d[1].txt", " e.txt", "deep/f, g.md", "deep/h.log", "i.TXT.gz"]
    for name in names:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(name)
    Path("empty.txt").touch()

    def found(text, *kinds):
        return [str(p) for p in local_files(text, kinds)]

    assert found("a, b.txt, c.txt,d[1].txt") == ["a, b.txt", "c.txt", "d[1].txt"]
    assert found(" e.txt,c.txt") == [" e.txt", "c.txt"]
    assert found("a, *.txt,deep") == ["a, b.txt", "deep/f, g.md", "deep/h.log"]
    capsys.readouterr()
    got = found(".", ".txt", ".md")
    assert got == sorted(n for n in names if "log" not in n)
    told = capsys.readouterr().out
    assert "left out: 1 files that are none of .txt, .md" in told
    assert "left out: 1 empty files" in told and "unpacked: 1 files .gz" in told
    assert found("deep/h.log,c.txt", ".txt") == ["deep/h.log", "c.txt"]  # named itself
    assert entries("x,,y , z") == ["x", "y", "z"]
    assert len(entries(",".join(map(str, range(3000))))) == 3000  # in a second or so
    with pytest.raises(UserError, match=r"cannot read none\.txt: no such file"):
        local_files("c.txt, none.txt")
