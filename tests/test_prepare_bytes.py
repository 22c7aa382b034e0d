"""Byte corpora: texts, rows, figures, and what a palindrome is."""

import filecmp
import json
import os
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from file_forms import FORMS, write
from hypothesis import given, settings
from hypothesis import strategies as st

import prepare_bytes
from configurator import UserError
from corpus import Corpus, CorpusWriter
from prepare import texts
from prepare.byte_rows import (
    BOS,
    EOS,
    PAD,
    Rows,
    boundary,
    chunk,
    chunk_on_the_fly,
    clean_text,
    fold,
    our_rows,
    palindrome_row,
    upstream_rows,
)
from prepare.texts import lines_of, read_phrases
from prepare_bytes import main, variants
from tasks.palindromes import counted_valid, describe, is_exact, is_palindrome, normalise, report
from tokenizer import Bytes

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / os.environ.get("GOLDEN_DIR", "tests/golden")
FILE = GOLDEN / f"sedd_{os.environ.get('GOLDEN_SET', 'a')}_data.json"
ODD = {  # inputs that have broken such programs before
    "nul": b"before\0after " * 9,
    "emoji": "\U0001f600\U0001f9d1\u200d\U0001f680".encode() * 30,
    "crlf": b"one line\r\nand another\r\n" * 5,
    "bom": b"\xef\xbb\xbfa text with a mark " * 3,
    "latin1": bytes(range(256)) * 3,
    "one line": b"long " * 20000,
    "no spaces": b"x" * 5000,
    "continuation": b"\x80" * 500,
}


# ---- reference cases ---------------------------------------------------------------------------


def on_the_fly(case: dict) -> tuple:
    """A case holds one text, one block size and the rows, whatever they are called."""
    text = next(v for v in case.values() if isinstance(v, str))
    block = next(v for v in case.values() if type(v) is int)
    rows = next(v for v in case.values() if isinstance(v, list))
    return chunk_on_the_fly(text, block), [r + [PAD] * (block - len(r)) for r in rows]


CHECKS = {  # list in the file -> (ours, theirs) of one of its cases
    "clean": lambda c: (clean_text(c["text"]), c["cleaned"]),
    "chunks": lambda c: (chunk(c["cleaned"], c["block_size"]), c["rows"]),
    "palindrome_rows": lambda c: (palindrome_row(c["text"], c["max_length"]), c["row"]),
    "is_palindrome": lambda c: (
        (is_palindrome(c["text"]), counted_valid(c["text"])),
        (c["is_palindrome"], c["counted_valid"]),
    ),
    "decode": lambda c: (Bytes().decode(c["ids"]), c["text"]),
    "byte_data_chunks": on_the_fly,
}


def cases() -> list:
    data = json.loads(FILE.read_text(encoding="utf-8"))
    return [pytest.param(n, c, id=f"{n}-{i}") for n in CHECKS for i, c in enumerate(data[n])]


@pytest.mark.parametrize("name, case", cases())
def test_golden(name, case):
    ours, theirs = CHECKS[name](case)
    assert ours == theirs


def test_golden_is_complete():
    data = json.loads(FILE.read_text(encoding="utf-8"))
    assert set(data) == {"vocab", *CHECKS}
    assert data["vocab"] == {"PAD": PAD, "BOS": BOS, "EOS": EOS, "size": Bytes.vocab_size}
    for name in set(CHECKS) - {"byte_data_chunks"}:
        assert data[name], f"{name} holds no case"


def test_on_the_fly_rule():
    text = "<b>Ab</b> " + "c\n d" * 60  # without markup: 3 + 60 * 4 - 0 bytes
    bare = b"Ab " + b"c d" * 60
    rows = chunk_on_the_fly(text, 32)
    assert all(len(r) == 32 and r[0] == BOS and r.count(EOS) == 1 for r in rows)
    assert bytes(i for r in rows for i in r if i < 256) == bare[: len(bare) // 30 * 30]  # 3 left
    assert chunk_on_the_fly("x" * 99, 32) == [] and len(chunk_on_the_fly("x" * 100, 32)) == 4


# ---- our rules ---------------------------------------------------------------------------------

blocks = st.integers(12, 70)
documents = st.one_of(
    st.binary(min_size=1, max_size=400),
    st.text(min_size=1, max_size=300).map(lambda t: t.encode("utf-8", "surrogatepass")),
    st.lists(st.sampled_from(["a", "the", "palindrome", "été", "\n"]), min_size=1, max_size=90).map(
        lambda words: " ".join(words).encode()
    ),
)


def split_rows(rows: Rows) -> list[list[int]]:
    ends = np.cumsum(rows.lengths)
    return [p.tolist() for p in np.split(rows.ids, ends[:-1])]


@settings(deadline=None, max_examples=100)
@given(documents, blocks)
def test_rows_are_the_document(data, block):
    rows = our_rows(data, block)
    pieces = split_rows(rows)
    assert [i for p in pieces for i in p] == [BOS, *data, EOS]  # nothing lost, nothing twice
    assert max(map(len, pieces)) <= block
    assert pieces[-1][-1] == EOS and len(pieces[-1]) > 1
    assert rows.prompts.tolist() == [1] + [0] * (len(pieces) - 1)


@settings(deadline=None, max_examples=100)
@given(st.text(min_size=1, max_size=300, alphabet="a \u00e9\u4eac\U0001f600"), blocks)
def test_rows_keep_characters_whole(text, block):
    for piece in split_rows(our_rows(text.encode(), block)):
        bytes(i for i in piece if i < 256).decode("utf-8")  # raises on half a character


def test_rows_end_after_words():
    data = b"some words of which none is very long " * 20
    *inner, _ = split_rows(our_rows(data, 32))
    assert all(p[-1] == 32 and len(p) > 16 for p in inner)


@settings(deadline=None)
@given(st.binary(max_size=300) | st.text(" \n\tab", max_size=300).map(str.encode))
def test_fold(data):
    assert fold(data) == b" ".join(data.split())


@settings(deadline=None)
@given(st.text(max_size=40), st.integers(0, 60))
def test_boundary(text, end):
    data = text.encode("utf-8", "surrogatepass")
    end = min(end, len(data))
    place = boundary(data, end)
    assert end - 3 <= place <= end
    assert place == len(data) or place == 0 or data[place] & 0xC0 != 0x80


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet="ab c.", min_size=90, max_size=900), blocks)
def test_upstream_rows_are_the_padded_ones(text, block):
    cleaned = clean_text(text)
    pieces = split_rows(upstream_rows(text.encode(), block, "true")) if cleaned else []
    expected = chunk(cleaned, block) if cleaned else []
    assert [p + [PAD] * (block - len(p)) for p in pieces] == expected
    assert not upstream_rows(text.encode(), block, "true").prompts.any()


# ---- palindromes -------------------------------------------------------------------------------


def test_committed_list():
    path = ROOT / "data" / "palindromes.txt"
    phrases = read_phrases(path)
    assert len(phrases) >= 320 and path.read_text().isascii()
    assert all(map(is_palindrome, phrases)), [p for p in phrases if not is_palindrome(p)]
    assert len({normalise(p) for p in phrases}) == len(phrases)


@pytest.mark.parametrize(
    "odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_line_ends_where_files_end_lines(tmp_path, odd, end):
    path = tmp_path / "p.txt"
    phrases = [f"Was it a rat{odd}I saw", "level", f"no{odd}on", "kayak"]
    path.write_bytes(end.join(["# a comment", *phrases]).encode())
    assert read_phrases(path) == phrases
    assert lines_of(end.join(phrases)) == [*(p + end for p in phrases[:-1]), phrases[-1]]
    assert lines_of("") == [] and lines_of(f"a{end}{end}") == [f"a{end}", end]


@pytest.mark.parametrize("form", FORMS)
def test_phrases_in_every_form_are_the_same(form, tmp_path):
    lines, listed = "# a comment\nlevel\n\nNoon, é\n", ' \n["level",\n"Noon, é"]'
    for name, text in (("p.txt", lines), ("q.JSON", listed)):
        assert read_phrases(write(form, tmp_path, name, text)) == ["level", "Noon, é"]


def test_lists_of_phrases_in_json(tmp_path):
    path, rows = tmp_path / "p.json", [{"text": "level"}, {"text": " Noon", "source": 1}]
    names = ["level", "Noon"]
    for value in (names, rows, {"palindromes": rows}, {"palindromes": names}):
        path.write_text(json.dumps(value))
        assert read_phrases(path) == ["level", "Noon"], value
    for value in ({"phrases": ["level"]}, [1], [{"title": "level"}], [None], "level", {}):
        path.write_text(json.dumps(value))
        with pytest.raises(UserError, match="must hold a JSON array"):
            read_phrases(path)


def test_report():
    texts = ["abba", "abba", "level", "Level", "no on", "ab", "aa", "", "abc", "l\u00e9l"]
    got = report(texts, seen={"abba"})
    assert [t for t in texts if is_exact(t)] == ["abba", "abba", "level"]
    assert got["samples"] == 10 and got["exact"] == 0.3
    assert got["normalised"] == sum(map(counted_valid, texts)) / 10
    assert got["distinct"] == pytest.approx(2 / 3) and got["new"] == pytest.approx(1 / 3)
    assert got["length"] == pytest.approx(13 / 3)
    assert got["frequent"] == [("abba", 2), ("level", 1)]
    assert "30.0%" in describe(got) and "abba (2)" in describe(got)
    json.dumps(got)


def test_report_of_nothing():
    assert describe(report([])).startswith("0 samples")
    assert report(["ab"])["new"] is None


@pytest.fixture(scope="session")
def prose():
    return texts.python_prose()


def test_prose(prose):
    assert len(prose) == len(set(prose)) and sum(map(len, prose)) > 300_000
    assert any("with" in text and "statement" in text for text in prose)


@pytest.fixture
def make(tmp_path, monkeypatch, prose):
    """Prepare in an empty folder: options -> corpus."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare_bytes, "python_prose", lambda: prose[::4])

    def made(name: str, *options: str) -> Corpus:
        main([f"--dataset={name}", *options])
        return Corpus(tmp_path / "data" / name)

    return made


def same_files(a: Corpus, b: Corpus) -> bool:
    names = [*a.meta["files"], "meta.json"]
    return not any(filecmp.cmpfiles(a.folder, b.folder, names, shallow=False)[1:])


def rows_in(corpus: Corpus, split: str) -> list[tuple[int, ...]]:
    (shard,) = corpus.splits[split]
    data = shard.data()
    return [tuple(data[s : s + n].tolist()) for s, _, n in shard.index()]


def test_palindrome_corpus(make, prose):
    corpus = make("p", "--rows=6000", "--val_rows=500", "--max_repeats=6000")
    train, val = (list(corpus.texts(s)) for s in ("train", "val"))
    assert (len(train), len(val)) == (6000, 500)
    assert all(t == t[::-1] and t.isalpha() and t.islower() and t.isascii() for t in train + val)
    assert not set(train) & set(val)
    sizes = Counter(map(len, train))
    assert set(sizes) == set(range(4, 17))
    # uniform: 461.5 each, standard deviation 20.6
    assert max(abs(n - 6000 / 13) for n in sizes.values()) < 5 * 20.6
    for row in (*rows_in(corpus, "train"), *rows_in(corpus, "val")):
        assert row[0] == BOS and row[-1] == EOS and row.count(EOS) == 1
    assert corpus.splits["train"][0].index()[:, 1].tolist() == [1] * 6000
    assert corpus.meta["task"] == "palindrome" and corpus.meta["options"]["rows"] == 6000
    listed = {normalise(p) for p in read_phrases(ROOT / "data" / "palindromes.txt")}
    letters = " ".join("".join(c for c in t.lower() if "a" <= c <= "z") for t in prose)
    own = [t for t in train[:300] if t not in listed]
    assert all(t[: (len(t) + 1) // 2] in letters for t in own)
    assert corpus.meta["dropped"]["word starts held out from training, over all lengths"] > 1000
    assert 0 < corpus.meta["counts"]["train rows from the list"] < 300


def test_no_training_text_comes_more_often_than_max_repeats(make):
    """The first ones stay, in their order; the rest is counted. Validation is left as drawn."""
    every = list(make("all", "--rows=4000", "--max_repeats=4000").texts("train"))
    corpus = make("few", "--rows=4000", "--max_repeats=2")
    kept, seen = [], Counter()
    for text in every:
        seen[text] += 1
        if seen[text] <= 2:
            kept.append(text)
    assert list(corpus.texts("train")) == kept and len(kept) < 4000
    assert corpus.meta["dropped"]["train rows beyond max_repeats"] == 4000 - len(kept)
    assert len(list(corpus.texts("val"))) == 2000


@pytest.mark.slow
def test_palindrome_corpus_depends_on_the_seed_alone(make):
    options = "--rows=500", "--val_rows=100", "--max_letters=9"
    one, two = make("one", *options), make("two", *options)
    assert same_files(one, two)
    assert rows_in(make("three", *options, "--seed=7"), "train") != rows_in(one, "train")
    more = make("more", *options, "--val_rows=200", "--min_letters=4")
    assert rows_in(more, "train") == rows_in(one, "train")


def test_palindrome_lengths(make):
    corpus = make("p", "--rows=200", "--min_letters=3", "--max_letters=10", "--block_size=12")
    assert {len(t) for t in corpus.texts("train")} == set(range(3, 11))


# ---- phrases -----------------------------------------------------------------------------------


def test_phrases_are_divided_by_letters(make):
    corpus = make("p", "--source=phrases", "--block_size=300")
    train, val = (list(corpus.texts(s)) for s in ("train", "val"))
    assert not {normalise(t) for t in train} & {normalise(t) for t in val}
    listed = read_phrases(ROOT / "data" / "palindromes.txt")
    assert {v for p in listed for v in variants(p)} == {*train, *val}
    assert set(Counter(train).values()) == {5} and len(set(val)) == len(val)
    assert len({normalise(t) for t in val}) == int(len(listed) * 0.1)


def test_long_phrases_keep_the_end_mark(make):
    corpus = make("p", "--source=phrases", "--repeat=1")
    rows = rows_in(corpus, "train")
    assert all(r[0] == BOS and r[-1] == EOS and len(r) <= 32 for r in rows)
    assert not set(rows) & set(rows_in(corpus, "val"))
    assert corpus.meta["counts"]["rows with a truncated text"] > 0
    assert corpus.splits["train"][0].index()[:, 1].min() == 1


def test_phrases_from_files(make, tmp_path):
    phrases = ["Level", "level", "Level", "no palindrome", "No on", "été", "Noon"]
    (tmp_path / "a.json").write_text(json.dumps(phrases))
    (tmp_path / "a.txt").write_bytes(
        b"\xef\xbb\xbf# comment\r\n\r\n" + "\r\n".join(phrases).encode() + b"\r\n"
    )
    one, two = (
        make(n, "--source=phrases", f"--file=a.{n}", "--val_split_ratio=.4", "--repeat=2")
        for n in ("json", "txt")
    )
    assert rows_in(one, "train") == rows_in(two, "train")
    dropped = {"same as an earlier phrase": 1, "no palindrome": 1}
    assert one.meta["dropped"] == two.meta["dropped"] == dropped
    both = {t for s in ("train", "val") for t in one.texts(s)}
    assert both == {v for p in ["Level", "level", "No on", "été", "Noon"] for v in variants(p)}


def test_phrases_by_upstream_rules(make, tmp_path):
    phrases = ["Level", "A man, a plan, a cat, a canal: Panama", "noon", "Noon", "Noon"]
    (tmp_path / "a.txt").write_text("\n".join(phrases))
    corpus = make("p", "--source=phrases", "--file=a.txt", "--upstream_rules=true", "--seed=42")
    train, val = rows_in(corpus, "train"), rows_in(corpus, "val")
    forms = [v for p in phrases for v in variants(p)]
    expected = Counter(
        tuple(i for i in palindrome_row(f, 32) if i != PAD) for f in forms for _ in range(5)
    )
    assert Counter(train + val) == expected
    assert len(train) == int(0.9 * len(forms) * 5)
    assert any(len(r) == 32 and EOS not in r for r in train)  # the original's fault, kept
    assert not corpus.splits["train"][0].index()[:, 1].any()


# ---- documents ---------------------------------------------------------------------------------


def whole(corpus: Corpus) -> dict[str, list[bytes]]:
    """The documents of each split, put together again from their rows."""
    got = {}
    for split in ("train", "val"):
        flat = [i for r in rows_in(corpus, split) for i in r]
        ends = [i for i, x in enumerate(flat) if x == EOS]
        starts = [0, *(e + 1 for e in ends[:-1])]
        assert all(flat[s] == BOS for s in starts) and ends[-1] == len(flat) - 1
        got[split] = [bytes(flat[s + 1 : e]) for s, e in zip(starts, ends, strict=True)]
    return got


def test_text_round_trips_to_the_byte(make, tmp_path):
    (tmp_path / "in").mkdir()
    for number, (name, data) in enumerate(ODD.items()):
        (tmp_path / "in" / name).write_bytes(data + b"\n" * number)
    (tmp_path / "in" / "empty").write_bytes(b"")
    options = "--source=text", "--path=in", "--val_split_ratio=.3"
    got = whole(make("raw", *options, "--fold_whitespace=false"))
    expected = sorted(d + b"\n" * n for n, d in enumerate(ODD.values()))
    assert sorted(got["train"] + got["val"]) == expected
    assert len(got["val"]) == 2
    folded = whole(make("folded", *options))
    assert sorted(folded["train"] + folded["val"]) == sorted(fold(d) for d in ODD.values())


@pytest.mark.parametrize("form", FORMS)
def test_files_of_every_form_are_their_documents(make, tmp_path, form, capsys):
    """Rows of JSON are documents, packed or not, and no mark is a part of a text."""
    texts = [f"text {i}, é" for i in range(9)]
    rows = [json.dumps({"text": t, "id": 1}, ensure_ascii=False) for t in texts]
    write(form, tmp_path / "in", "a, b.JSONL", "\n".join(rows[:4]))
    write(form, tmp_path / "in", "c.json", f"\n [{','.join(rows[4:7])}]")
    for i in (7, 8):
        write(form, tmp_path / "in", f"{i}.txt", texts[i])
    for number, path in enumerate(["in", "in/*", "in/a, *,in/[78]*,in/c.*"]):
        got = whole(make(f"c{number}", "--source=text", f"--path={path}", "--val_split_ratio=.3"))
        assert sorted(got["train"] + got["val"]) == sorted(t.encode() for t in texts)
    if form == "gz":
        assert "unpacked: 4 files .gz" in capsys.readouterr().out


def test_what_may_be_no_text_is_told_or_refused(make, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name, data in {"a": b"a text", "b": b"\x89PNG\r\n\0\0", "c.txt": b"more"}.items():
        (tmp_path / "in" / name).write_bytes(data)
    make("a", "--source=text", "--path=in", "--val_split_ratio=.4")
    assert "files with a NUL byte, taken byte by byte: 1\n" in capsys.readouterr().out
    for name, data, why in [
        ("d.txt", b"a\0b", "NUL byte"),
        ("d.zip", b"PK\x03\x04...", "a zip archive"),
        ("d.jsonl", b'{"body": "x"}', "no field 'text'"),
    ]:
        (tmp_path / "in" / name).write_bytes(data)
        with pytest.raises(UserError, match=why):
            make("b", "--source=text", "--path=in")
        (tmp_path / "in" / name).unlink()
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["a"]


def test_a_single_file_gives_its_end_to_validation(make, tmp_path):
    data = b"".join(b"Sentence number %d. " % n for n in range(500)).strip()
    (tmp_path / "a.txt").write_bytes(data)
    corpus = make("one", "--source=text", "--path=a.txt")
    got = whole(corpus)
    assert b" ".join(got["train"] + got["val"]) == data
    assert 0.03 < len(got["val"][0]) / len(data) < 0.07
    assert corpus.meta["held_out"] == "the end of every document"


def test_duplicates_and_blank_files_are_dropped(make, tmp_path):
    for name, data in {"a": b"one  text", "b": b"one\ntext", "c": b"other", "d": b" \n"}.items():
        (tmp_path / name).write_bytes(data * 3)
    corpus = make("t", "--source=text", "--path=a,b,c,d", "--val_split_ratio=.25", "--seed=1")
    assert sum(corpus.meta["dropped"].values()) == 2
    assert sum(corpus.meta["counts"].values()) == 2


def test_processes_do_not_change_the_corpus(make, tmp_path):
    (tmp_path / "in").mkdir()
    for n in range(30):
        (tmp_path / "in" / f"{n:02}.txt").write_bytes(b"text %d of thirty. " % n * (4000 + n))
    options = "--source=text", "--path=in"
    assert same_files(make("one", *options), make("two", *options, "--num_proc=2"))


def test_pydoc_upstream(make):
    corpus = make("p", "--source=pydoc", "--upstream_rules=true")
    rows = rows_in(corpus, "val")
    assert all(set(r) <= {BOS, EOS, 32, *range(97, 123)} for r in rows)
    ours = whole(make("q", "--source=pydoc"))
    assert not set(ours["train"]) & set(ours["val"]) and len(ours["val"]) > 50


def test_a_failure_half_way_leaves_nothing(make, tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / name).write_bytes(b"text " * 300_000)

    def reading(path):
        if path.name == "b":
            raise UserError("path: cannot read b: Input/output error")
        return path.read_bytes()

    monkeypatch.setattr(prepare_bytes, "read", reading)
    with pytest.raises(UserError, match="cannot read b"):
        make("t", "--source=text", "--path=a,b,c")
    assert not any(p.is_file() for p in tmp_path.glob("data/**/*"))
    assert not list(tmp_path.glob("data/.*")) and not (tmp_path / "data" / "t").exists()


# ---- wikipedia, without a network --------------------------------------------------------------


class Table(list):
    column_names = ("id", "text")

    def select(self, places):
        return Table(self[i] for i in places)


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the library `datasets`; `asked` keeps what it was called with."""
    articles = Table({"text": f"Article number {n}, with text."} for n in range(40))
    library = types.ModuleType("datasets")
    library.asked = []
    library.exceptions = types.SimpleNamespace(DatasetsError=RuntimeError)

    def answer(*args, **kwargs):
        library.asked.append((args, kwargs))
        if isinstance(library.answer, Exception):
            raise library.answer
        return library.answer

    library.answer = articles
    library.load_dataset = library.load_from_disk = answer
    monkeypatch.setitem(sys.modules, "datasets", library)
    return library


def test_wikipedia(make, hub):
    corpus = make("w", "--source=wikipedia", "--dataset_percent=25", "--val_split_ratio=.2")
    got = whole(corpus)
    expected = [r["text"].encode() for r in hub.answer[:10]]
    assert sorted(got["train"] + got["val"]) == sorted(expected) and len(got["val"]) == 2
    (args, kwargs) = hub.asked[0]
    assert args == ("wikimedia/wikipedia",) and kwargs["name"] == "20231101.en"


def test_wikipedia_from_disk(make, hub, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text("{}")
    hub.answer = {"train": hub.answer}
    options = "--source=wikipedia", "--path=saved", "--dataset_percent=100"
    corpus = make("w", *options, "--val_split_ratio=.1")
    assert hub.asked == [(("saved",), {})] and corpus.meta["counts"]["val documents"] == 4


@pytest.mark.parametrize("error", [ConnectionError("no route"), ValueError("no such config")])
def test_wikipedia_unreachable(make, hub, error):
    hub.answer = error
    with pytest.raises(UserError, match=r"no .*--source=pydoc.*--source=text.*saved by datasets"):
        make("w", "--source=wikipedia")


def test_wikipedia_without_the_library(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        make("w", "--source=wikipedia")


def test_wikipedia_from_plain_files(make, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # not needed for these
    (tmp_path / "a.txt").write_text("An article. " * 50)
    options = "--source=wikipedia", "--path=a.txt", "--val_split_ratio=.2"
    assert make("w", *options).rows("val") > 0


# ---- refusals ----------------------------------------------------------------------------------

REFUSED = [
    ("--source=text", "path must be given"),
    ("--source=text --path=nowhere", "nowhere"),
    ("--source=text --path=empty", "empty holds no file"),
    ("--source=text --path=blank", "train split .* is empty"),
    ("--source=phrases --file=nowhere.txt", "nowhere.txt"),
    ("--source=phrases --file=blank", "holds no phrases"),
    ("--source=phrases --file=bad.json", "bad.json"),
    ("--source=phrases --file=number.json", "array of strings"),
    ("--source=phrases --file=half.json", "UTF-8 lacks"),
    ("--source=phrases --file=one", "split .* is empty"),
    ("--source=wikipedia --path=nowhere", "nowhere"),
    ("--source=novels", "one of palindrome"),
    ("--block_size=17", "max_letters must be"),
    ("--source=pydoc --block_size=8", "block_size must be at least 12"),
    ("--min_letters=9 --max_letters=8", "max_letters"),
    ("--val_split_ratio=1", "val_split_ratio"),
    ("--dataset_percent=0", "dataset_percent"),
    ("--num_proc=-1", "num_proc"),
    ("--upstream_rules=true", "upstream_rules"),
    ("--upstream_rules=perhaps", "one of false, true, loader"),
    ("--rowz=3", "did you mean rows"),
    ("--data_dir=blank --source=phrases", "cannot write"),
]


@pytest.mark.parametrize("options, message", REFUSED)
def test_refusals(make, tmp_path, options, message):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "blank").write_bytes(b" \r\n ")
    (tmp_path / "one").write_text("level\n")
    (tmp_path / "bad.json").write_text("[")
    (tmp_path / "number.json").write_text("[1]")
    (tmp_path / "half.json").write_text('["level\\ud83d", "noon"]')
    before = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    with pytest.raises(UserError, match=message):
        make("x", *options.split())
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == before
    assert not (tmp_path / "data" / "x").exists()


def test_existing_folder(make):
    corpus = make("p", "--source=phrases")
    values = (corpus.folder / "meta.json").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        make("p", "--source=phrases", "--repeat=9")
    assert (corpus.folder / "meta.json").read_bytes() == values


def test_writer_refuses_ids_beyond_the_vocabulary(tmp_path):
    with pytest.raises(UserError, match="70000"):
        with CorpusWriter(tmp_path / "x", Bytes()) as out:
            out.rows("train", np.array([1, 70000]), np.array([2]), np.array([0]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [b"", b"123", None])
def test_damaged_corpora_are_refused(make, damage):
    corpus = make("p", "--source=phrases")
    path = corpus.folder / "val.bin"
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(UserError, match=r"val\.bin"):
        Corpus(corpus.folder)


# ---- figures -----------------------------------------------------------------------------------


def test_report_figures(make, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    make("p", "--source=phrases")
    main(["--dataset=p", "--report=figures", "--num_batches=2"])
    figures = sorted((tmp_path / "figures").iterdir())
    assert [f.name for f in figures] == ["batch_0.png", "batch_1.png"]
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in figures)
    assert "most frequent" in capsys.readouterr().out
    main(["--dataset=p", "--report=figures", "--num_batches=1", "--max_samples=1"])
    size = Corpus("data/p").batch("train", np.array([0]), 32).length[0]
    assert f"length {size:.1f} +- 0.0 ids, {size} to {size}" in capsys.readouterr().out


def test_report_does_not_hide_other_options(make):
    make("p", "--source=phrases")
    with pytest.raises(UserError, match="exists already"):
        make("p", "--source=phrases", "--seed=3", "--report=figures")


# ---- as real processes -------------------------------------------------------------------------


def command(folder: Path, *options: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    line = [sys.executable, str(ROOT / "prepare_bytes.py"), *options]
    return subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def test_the_demo_command(tmp_path):
    done = command(tmp_path, "--rows=3000", "--val_rows=100", "--max_repeats=3000")
    assert done.returncode == 0, done.stderr
    assert "3,000 rows" in done.stdout and done.stderr == ""  # no bars where nobody looks
    assert Corpus(tmp_path / "data" / "palindrome", verify=True).rows("val") == 100


def test_refusal_of_a_process(tmp_path):
    done = command(tmp_path, "--source=text", "--path=nowhere")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nowhere" in done.stderr
    assert not any(p.is_file() for p in tmp_path.rglob("*"))
