"""prepare_pretrain.py, prepare/texts.py, prepare/shards.py: text of any length to ids in shards."""

import filecmp
import json
import os
import random
import signal
import subprocess
import sys
import types
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_forms import FORMS, write
from hypothesis import given, settings
from hypothesis import strategies as st

from configurator import UserError
from corpus import Corpus
from prepare import texts as text_module
from prepare.shards import LEAST, ShardWriter, partial_of
from prepare.texts import END, Hub, cut, labelled, pieces, split_of
from prepare_pretrain import PretrainConfig, chunks, main, padded_rows
from tokenizer import HF, Bytes, Symbols

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / os.environ.get("GOLDEN_DIR", "tests/golden")
NAME = f"masked_{os.environ.get('GOLDEN_SET', 'a')}.ldm"
WORDS = [w + e for w in "the cat sat on mat éclair Ω 42 don't".split() for e in ("", ",", "s")]
BOS, EOS = 257, 258  # of bytes


def text_of(size: int, seed: int = 0) -> str:
    """About `size` bytes of words, spaces, line ends and runs of white space."""
    rng = random.Random(seed)
    parts = (
        rng.choice(WORDS) + rng.choice([" ", " ", " ", "\n", "  ", "\n\n"]) for _ in range(size)
    )
    text, length = [], 0
    for part in parts:
        if length >= size:
            break
        text.append(part)
        length += len(part)
    return "".join(text)


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"id": 1, "text": t}) + "\n" for t in texts))
    return path


def prepare(folder: Path, **options: Any) -> Corpus:
    main([f"--{k}={v}" for k, v in {"path_to_data_store": folder, **options}.items()])
    return Corpus(folder, verify=True)


def ids_of(corpus: Corpus, split: str) -> np.ndarray:
    return np.concatenate([s.data() for s in corpus.splits[split]])


def documents(corpus: Corpus, split: str) -> list[str]:
    """Texts of a stream of bytes, by its EOS."""
    ids = ids_of(corpus, split)
    assert ids[-1] == EOS
    got = np.split(ids, np.flatnonzero(ids == EOS) + 1)[:-1]
    return [bytes(d[:-1].tolist()).decode() for d in got]


# ---- pieces ------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.binary(max_size=60), max_size=5), max_size=6), st.integers(8, 50))
def test_pieces_are_the_documents(got: list[list[bytes]], size: int):
    """Whatever the chunks are: nothing lost, nothing joined, none too long."""
    stream = chain.from_iterable([*document, END] for document in got)
    rebuilt = [b""]
    for text, last in pieces(stream, size):
        assert len(text) <= size
        rebuilt[-1] += text
        if last:
            rebuilt.append(b"")
    assert rebuilt == [*(b"".join(document) for document in got), b""]


def test_a_text_without_an_end_has_no_last_piece():
    assert list(pieces([b"abc", b"def"], 4)) == [(b"abcd", False), (b"ef", False)]


@settings(max_examples=50)
@given(st.text(max_size=60), st.integers(4, 30))
def test_cuts_keep_characters_whole(text: str, size: int):
    for piece, _ in pieces([text.encode(), END], size):
        piece.decode()


@pytest.mark.parametrize("data, end, at", [
    (b"one two three", 9, 7),  # before the space that begins a word
    (b"one two three", 8, 7),  # the space at the place itself
    (b"one  two", 6, 6),  # a run of spaces is no place: its words would change
    (b"one\ntwo", 5, 3),  # a line end where there is no space
    ("a" * 5 + "é", 6, 5),
])  # fmt: skip
def test_where_a_text_is_cut(data: Any, end: int, at: int):
    assert cut(data if isinstance(data, bytes) else data.encode(), end) == at


@pytest.fixture(scope="module")
def bpe() -> HF:
    pytest.importorskip("tokenizers")
    return HF.train([text_of(20_000)], 300)


@given(st.integers(0, 10**6), st.integers(100, 200))
@settings(max_examples=30, deadline=None)
def test_pieces_have_the_tokens_of_the_whole(bpe: HF, seed: int, size: int):
    """White space that begins a word opens a token, so a cut before it changes none."""
    text = text_of(1000, seed)
    parts = [bpe.encode(p.decode()) for p, _ in pieces([text.encode(), END], size)]
    assert len(parts) > 3 and list(chain(*parts)) == bpe.encode(text)


# ---- splits ------------------------------------------------------------------------------------


def test_splits_follow_share_and_seed():
    texts = [str(i).encode() for i in range(20_000)]
    val = {t for t in texts if split_of(t, 0.1, 1) == "val"}
    assert abs(len(val) - 2000) < 4 * 2000**0.5
    other = {t for t in texts if split_of(t, 0.1, 2) == "val"}
    assert abs(len(val & other) - 200) < 4 * 200**0.5  # another seed is an independent choice
    assert val < {t for t in texts if split_of(t, 0.2, 1) == "val"}


def test_a_document_is_in_one_split():
    """Also where its later pieces would fall on the other side."""
    long = b"a" * 100_000 + b"".join(b"%d " % i for i in range(300_000))
    got = list(labelled([long, END, b"b", END], lambda t: "val" if t[:1] == b"a" else "train"))
    assert [p.split for p in got] == ["val"] * (len(got) - 1) + ["train"] and len(got) > 2
    assert [p.first for p in got] == [True] + [False] * (len(got) - 2) + [True]


def test_equal_documents_are_on_one_side(tmp_path: Path):
    texts = [f"document {i}\n" for i in range(200)]
    file = write_jsonl(tmp_path / "a.jsonl", texts * 3)
    corpus = prepare(tmp_path / "c", source=file, tokenizer="bytes", test_split_pct=0.2)
    train, val = (documents(corpus, s) for s in ("train", "val"))
    assert not set(train) & set(val) and sorted(train + val) == sorted(texts * 3)
    other = prepare(
        tmp_path / "d", source=file, tokenizer="bytes", test_split_pct=0.2, dataset_split_seed=1
    )
    assert set(documents(other, "val")) != set(val)


# ---- rows --------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), max_size=6), st.data())
def test_padded_rows(got: list[list[int]], data: Any):
    length, tail = data.draw(st.integers(2, 6)), data.draw(st.lists(st.integers(0, 9), max_size=9))
    want = []
    for document in got:
        for a in range(0, len(document), length):
            row = document[a : a + length]
            want.append(row + [77] * (length - len(row)))
    full = len(tail) // length
    want += [tail[i * length : (i + 1) * length] for i in range(full)]
    flat = np.array([*chain(*got), *tail], np.int64)
    rows, rest = padded_rows(flat, np.cumsum([len(d) for d in got], dtype=np.int64), length, 77)
    assert rows.tolist() == want and rest.tolist() == tail[full * length :]


def test_chunks_of_the_original():
    """The rows that the ModernBERT diffusion model trains on, number by number."""
    pytest.importorskip("tokenizers")
    facts = json.loads((GOLDEN / f"{NAME}.json").read_text())
    tokenizer = HF.with_chat(json.dumps(facts["tokenizer_json"]))
    special = tokenizer.specials
    for name, want in np.load(GOLDEN / f"{NAME}.npz").items():
        if name.startswith("chunks_ctx"):
            rows = [
                chunks(tokenizer.encode(text), want.shape[1], special["bos"], special["eos"])
                for text in facts["chunk_docs"]
            ]
            assert np.array_equal(np.concatenate(rows), want)


def test_pad_is_the_original_row_by_row(tmp_path: Path, bpe: HF):
    """Also for documents of several pieces, and as rows that the reader knows."""
    texts = [text_of(n, n) for n in (1, 10, 200, 2_500_000, 300)] + [f"text {i}" for i in range(60)]
    file = write_jsonl(tmp_path / "a.jsonl", texts)
    corpus = prepare(
        tmp_path / "c", source=file, tokenizer="bytes", packing="pad", context_length=64,
        test_split_pct=0.2,
    )  # fmt: skip
    for split in ("train", "val"):
        mine = [t.encode() for t in texts if split_of(t.encode(), 0.2, 42) == split]
        want = np.concatenate([chunks(list(t), 64, BOS, EOS) for t in mine])
        assert np.array_equal(ids_of(corpus, split).reshape(-1, 64), want)
        assert corpus.rows(split) == len(want)
        batch = corpus.batch(split, np.arange(len(want)), 64)
        assert np.array_equal(batch.ids.numpy(), want)
        assert not batch.prompt_mask.any() and (batch.length == 64).all()  # its EOS are learnt
        whose = corpus.documents(split, np.arange(len(want)), 64)  # what an error bar is made of
        owner = np.repeat(np.arange(len(mine)), [len(chunks(list(t), 64, BOS, EOS)) for t in mine])
        assert (
            np.array_equal(np.diff(whose) > 0, np.diff(owner) > 0) and (np.diff(whose) >= 0).all()
        )
    assert corpus.meta["splits"]["train"]["longest"] == 64


# ---- sources -----------------------------------------------------------------------------------


def test_every_kind_of_file(tmp_path: Path):
    """A folder of the layouts that the hub has; each document ends in EOS, in order."""
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("datasets")
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    write_jsonl(folder / "a.jsonl", ["one\u2028two", "", "  \n", *map(str, range(50))])
    (folder / "b.json").write_text(json.dumps([{"text": "é <EOS>"}, {"text": None}]))
    (folder / "c.txt").write_bytes(b"whole\r\nfile")
    table = pyarrow.table({"id": list(range(40)), "text": [f"row {i}" for i in range(40)]})
    parquet.write_table(table, folder / "deep" / "d.parquet", row_group_size=7)
    (folder / "notes.bin").write_bytes(b"\0")  # another kind: left out, and told
    (folder / ".hidden.txt").write_text("no")
    corpus = prepare(
        tmp_path / "c", source=folder, tokenizer="bytes", test_split_pct=0.2,
        huggingface_cache_dir=tmp_path / "cache",
    )  # fmt: skip
    values = ["one\u2028two", *map(str, range(50)), "é <EOS>", "whole\r\nfile"]
    values += [f"row {i}" for i in range(40)]
    for split in ("train", "val"):
        mine = [t for t in values if split_of(t.encode(), 0.2, 42) == split]
        assert documents(corpus, split) == mine
        count = corpus.meta["splits"][split]
        assert count["documents"] == len(mine)
        assert count["bytes"] == sum(len(t.encode()) for t in mine) == count["tokens"] - len(mine)
        assert not corpus.rows(split)  # a stream
    assert corpus.meta["notes"] == {"empty documents, left out": 3}
    assert corpus.meta["options"]["source"] == str(folder)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["docs.jsonl", "a, b.NDJSON", "docs.Json"])
def test_rows_in_every_form_are_the_same_corpus(form: str, name: str, tmp_path: Path):
    texts = [f"document {i}, é" for i in range(60)]
    rows = [json.dumps({"text": t}, ensure_ascii=False) for t in texts]
    whole = f"\n [{','.join(rows)}]" if name == "docs.Json" else "\n".join(rows)
    path = write(form, tmp_path / "in", name, whole)
    for source in (path, path.parent, f"{path.parent}/*"):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        corpus = prepare(folder, source=source, tokenizer="bytes", test_split_pct=0.2)
        assert sorted(documents(corpus, "train") + documents(corpus, "val")) == sorted(texts)


@pytest.mark.parametrize("form", FORMS)
def test_a_text_in_every_form_is_the_same_corpus(form: str, tmp_path: Path):
    """No mark is a character of the vocabulary, and the two parts of a file are the file."""
    text = "".join(f"line {i}, é\n" for i in range(99))
    path = write(form, tmp_path, "a.txt", text)
    one = prepare(tmp_path / "c", source="shakespeare", path=path, tokenizer="chars")
    assert one.tokenizer.symbols == sorted(set(text))
    two = prepare(tmp_path / "d", source=path, tokenizer="chars", test_split_pct=0.2)
    assert two.tokenizer.symbols == sorted(set(text))
    assert "".join([*two.texts("train"), *two.texts("val")]) == text
    three = prepare(
        tmp_path / "e", source=path, tokenizer="bytes", separator="\\n", test_split_pct=0.2
    )
    assert {*documents(three, "train"), *documents(three, "val")} == set(text.splitlines())


def test_patterns_and_separator(tmp_path: Path):
    story = "a story\nof two lines\n"
    (tmp_path / "a1.txt").write_text(f"{story}<|sep|>\n<|sep|>\nx <|sep|>\n" * 50)
    (tmp_path / "a2.txt").write_text("<|sep|>\r\nlast")
    (tmp_path / "b.txt").write_text("not this one")
    corpus = prepare(
        tmp_path / "c", source=f"{tmp_path}/a*.txt", tokenizer="bytes", separator="<|sep|>",
        test_split_pct=0.5,
    )  # fmt: skip
    got = documents(corpus, "train") + documents(corpus, "val")
    assert set(got) == {story, f"x <|sep|>\n{story}", "x <|sep|>\n", "last"}


def test_the_end_of_a_long_line_is_no_separator(tmp_path: Path, monkeypatch):
    """Where a line is read in parts, only its first part can be one."""
    monkeypatch.setattr(text_module, "PIECE", 5)
    (tmp_path / "a.txt").write_bytes(b"12345sep\nsep\n12345\nsep")
    got = list(text_module.separated(tmp_path / "a.txt", b"sep"))
    assert b"".join(c or b"|" for c in got) == b"12345sep\n|12345\n|"


def test_one_file_gives_its_end_to_validation(tmp_path: Path):
    """Between two characters, and the two parts are the file."""
    text = "é" * 1001
    (tmp_path / "a.txt").write_text(text)
    corpus = prepare(
        tmp_path / "c", source=tmp_path / "a.txt", tokenizer="bytes", test_split_pct=0.25
    )
    (train,), (val,) = (documents(corpus, s) for s in ("train", "val"))
    assert train + val == text and abs(len(val) - 250) < 4
    assert corpus.meta["held_out"] == "the end of every file"


def test_shakespeare_is_cut_by_position(tmp_path: Path):
    """As everybody does: nine tenths of the characters, rounded down; no EOS, nothing dropped."""
    text = text_of(10_007).replace("é", "e").replace("Ω", "o") + "Z"  # Z only in validation
    (tmp_path / "input.txt").write_text(text)
    corpus = prepare(
        tmp_path / "c", source="shakespeare", path=tmp_path / "input.txt", tokenizer="chars"
    )
    at, tok = int(len(text) * 0.9), corpus.tokenizer
    assert isinstance(tok, Symbols) and tok.symbols == sorted(set(text))
    assert ids_of(corpus, "train").tolist() == tok.encode(text[:at])
    assert ids_of(corpus, "val").tolist() == tok.encode(text[at:])


def test_pydoc(tmp_path: Path, monkeypatch):
    """Docstrings are the documents; one in twenty is held out."""
    texts = [f"Docstring {i} of\na function." for i in range(1000)]
    monkeypatch.setattr(text_module, "prose", lambda: texts)
    main([f"--data_dir={tmp_path}", "--source=pydoc", "--tokenizer=bytes"])
    corpus = Corpus(tmp_path / "pydoc")
    val = [t for t in texts if split_of(t.encode(), 0.05, 42) == "val"]
    assert documents(corpus, "val") == val and 20 < len(val) < 80
    assert len(documents(corpus, "train")) == 1000 - len(val)


def test_text8_leaves_the_test_part_out(tmp_path: Path):
    (tmp_path / "text8").write_text("".join(random.Random(0).choices("abc ", k=2000)))
    corpus = prepare(tmp_path / "c", source="text8", path=tmp_path / "text8", tokenizer="chars")
    assert [len(ids_of(corpus, s)) for s in ("train", "val")] == [1800, 100]


class FakeHub(types.ModuleType):
    """What `datasets` does for us, with a log of what it was asked."""

    def __init__(self, scripts: bool = False):
        super().__init__("datasets")
        self.asked: list[tuple] = []
        self.scripts = scripts

    def load_dataset(self, name: str, config: str | None = None, **more: Any) -> list[dict]:
        self.asked.append((name, config, more["split"], more.get("revision")))
        assert more["streaming"] is True
        if self.scripts and "revision" not in more:
            raise RuntimeError("Dataset scripts are no longer supported")
        return [{"text": f"{name} {i}"} for i in range(40)]


def test_large_dataset_is_three_in_a_row(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", hub := FakeHub())
    main(["--large_dataset", f"--data_dir={tmp_path}", "--tokenizer=bytes", "--test_split_pct=0.1"])
    names = [a[:3] for a in hub.asked]
    assert names == [
        ("HuggingFaceFW/fineweb", "sample-10BT", "train"),
        ("HuggingFaceFW/fineweb-edu", "sample-10BT", "train"),
        ("wikimedia/wikipedia", "20231101.en", "train"),
    ]
    corpus = Corpus(tmp_path / "large")
    assert sum(c["documents"] for c in corpus.meta["splits"].values()) == 120


def test_a_dataset_with_a_script_is_read_from_its_copy(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", hub := FakeHub(scripts=True))
    prepare(tmp_path / "c", source="lm1b", tokenizer="bytes", test_split_pct=0.1)
    assert hub.asked[-1] == ("billion-word-benchmark/lm1b", None, "train", "refs/convert/parquet")


def test_without_the_hub(tmp_path: Path, run_cli, assert_refused):
    pytest.importorskip("datasets")
    where = f"--path_to_data_store={tmp_path / 'c'}"
    result = run_cli("prepare_pretrain.py", "--source=fineweb", "--tokenizer=bytes", where)
    assert_refused(result, "HuggingFaceFW/fineweb", "--source=FILES")
    assert not list(tmp_path.iterdir())


# ---- tokenizers --------------------------------------------------------------------------------


def test_trained_tokenizer_and_specials_in_the_text(tmp_path: Path):
    """A special token that a text spells is text; those in the corpus are our own EOS only."""
    pytest.importorskip("tokenizers")
    names = "<BOS> <EOS> <START_ID> <END_ID> <EOT_ID> [MASK] [PAD] [UNK] [CLS] [SEP]"
    texts = [f"{names} {text_of(300, i)}" for i in range(80)]
    file = write_jsonl(tmp_path / "a.jsonl", texts)
    corpus = prepare(tmp_path / "c", source=file, tokenizer="train:320", test_split_pct=0.2)
    tok = corpus.tokenizer
    assert tok.vocab_size == 320 and tok.specials["pad"] == tok.specials["eos"] == 316
    assert [tok.specials[n] for n in ("mask", "bos", "start", "end", "eot")] == [
        4,
        315,
        317,
        318,
        319,
    ]
    for split in ("train", "val"):
        ids = ids_of(corpus, split)
        special = ids[(ids < 5) | (ids >= 315)]
        assert (special == 316).all() and len(special) == corpus.meta["splits"][split]["documents"]
        ends = np.flatnonzero(ids == 316)
        got = [tok.decode(d.tolist()) for d in np.split(ids, ends + 1)[:-1]]
        assert got == [t for t in texts if split_of(t.encode(), 0.2, 42) == split]
    again = prepare(tmp_path / "d", source=file, tokenizer=tmp_path / "c", test_split_pct=0.2)
    assert again.tokenizer.spec() == tok.spec() and again.tokenizer.files == tok.files
    assert np.array_equal(ids_of(again, "train"), ids_of(corpus, "train"))


@pytest.mark.parametrize("model", ["BPE", "Unigram", "WordLevel", "WordPiece"])
def test_no_text_is_lost_for_want_of_a_token(
    model: str, tmp_path: Path, run_cli: Any, assert_refused: Any
):
    """A tokenizer without a token for what is unknown: one line that names it, and no corpus."""
    parts = pytest.importorskip("tokenizers")
    ids = {"cat": 0, "c": 1, "a": 2, "t": 3}
    more = {"unk_token": "<unk>"} if model.startswith("Word") else {}
    ids = [(t, -1.0) for t in ids] if model == "Unigram" else ids
    codec = parts.Tokenizer(getattr(parts.models, model)(ids, *([[]] * (model == "BPE")), **more))
    codec.pre_tokenizer = parts.pre_tokenizers.WhitespaceSplit()
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.json").write_text(codec.to_str())
    write_jsonl(tmp_path / "a.jsonl", ["cat"] * 30 + ["cat Käse cat"])
    argv = [f"--source={tmp_path}/a.jsonl", f"--tokenizer={tmp_path}/tok", "--test_split_pct=0.2"]
    done = run_cli("prepare_pretrain.py", f"--path_to_data_store={tmp_path}/c", *argv)
    assert_refused(done, "has no token for 'K")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "tok"]


@pytest.mark.parametrize("packing", ["stream", "pad", "rows"])
def test_ids_for_what_is_unknown_are_counted(packing: str, tmp_path: Path, capsys: Any):
    parts = pytest.importorskip("tokenizers")
    ids = {"[UNK]": 0, "cat": 1, "<BOS>": 2, "<EOS>": 3}
    codec = parts.Tokenizer(parts.models.WordLevel(ids, unk_token="[UNK]"))
    codec.pre_tokenizer = parts.pre_tokenizers.WhitespaceSplit()
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.json").write_text(codec.to_str())
    file = write_jsonl(tmp_path / "a.jsonl", [f"cat Käse{i} dog" for i in range(30)])
    corpus = prepare(
        tmp_path / "c", source=file, tokenizer=tmp_path / "tok", test_split_pct=0.3, packing=packing
    )
    assert sum(corpus.meta["splits"][s]["unknown"] for s in ("train", "val")) == 60
    told = "ids that stand for what the tokenizer has no token for: 60\n"
    assert told in capsys.readouterr().out


def test_broken_utf8_is_kept_or_counted(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 " * 100)
    file = tmp_path / "a.txt"
    corpus = prepare(tmp_path / "b", source=file, tokenizer="bytes", test_split_pct=0.5)
    assert 0xE9 in ids_of(corpus, "train") and not corpus.meta["notes"]
    corpus = prepare(tmp_path / "c", source=file, tokenizer="chars", test_split_pct=0.5)
    assert "\ufffd" in corpus.tokenizer.symbols
    assert list(corpus.meta["notes"].values()) == [2]


# ---- workers, shards, interruptions ------------------------------------------------------------


def same_files(a: Path, b: Path) -> bool:
    names = sorted(p.name for p in a.iterdir())
    assert names == sorted(p.name for p in b.iterdir())
    return all(filecmp.cmp(a / n, b / n, shallow=False) for n in names)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5.5 MB: a document of several pieces among short ones, some of them in each split."""
    short = [text_of(30_000, i) for i in range(40)]
    texts = [*short, text_of(3_100_000, 41), *(t[::-1] for t in short), *map(str, range(200))]
    return write_jsonl(tmp_path_factory.mktemp("mixed") / "a.jsonl", texts)


SHARDED = {"tokenizer": "bytes", "test_split_pct": 0.15, "shard_mb": 0.5, "context_length": 100}


def test_workers_and_shards_do_not_change_the_ids(tmp_path: Path, mixed: Path):
    alone = prepare(tmp_path / "a", source=mixed, **SHARDED)
    assert len(alone.splits["train"]) > 2 and len(alone.splits["val"]) == 1
    assert all(s.tokens >= LEAST for s in alone.splits["train"])
    counts = alone.meta["splits"].values()
    assert sum(c["documents"] for c in counts) == 281
    assert sum(c["bytes"] + c["documents"] for c in counts) == sum(c["tokens"] for c in counts)
    prepare(tmp_path / "b", source=mixed, num_workers=2, **SHARDED)
    assert same_files(tmp_path / "a", tmp_path / "b")
    one = prepare(tmp_path / "c", source=mixed, **{**SHARDED, "shard_mb": 100})
    assert len(one.splits["train"]) == 1
    assert np.array_equal(ids_of(one, "train"), ids_of(alone, "train"))


# a process that dies by SIGKILL in the middle of a shard, after bytes of it reached the disk
DIES = """
import os, signal, sys, prepare_pretrain
from prepare.shards import ShardWriter
whole = ShardWriter.tokens
def tokens(self, split, ids):
    start = whole(self, split, ids)
    rest = self.mark.get("rest", {})
    if self.mark and (split == "val" if sys.argv[1] == "stream" else any(rest.values())):
        [f.flush() for f in self.files.values()]
        os.kill(os.getpid(), signal.SIGKILL)
    return start
ShardWriter.tokens = tokens
prepare_pretrain.main(sys.argv[2:])
"""


@pytest.mark.parametrize("packing", ["stream", "pad"])
def test_a_killed_run_continues(tmp_path: Path, mixed: Path, packing: str, helpers, capsys):
    options = {"source": mixed, "packing": packing, **SHARDED}
    prepare(tmp_path / "whole", **options)
    folder = tmp_path / "killed"
    flags = [f"--{k}={v}" for k, v in {**options, "path_to_data_store": folder}.items()]
    command = [sys.executable, "-c", DIES, packing, *flags]
    died = subprocess.run(command, env=helpers.env(PYTHONPATH=ROOT), capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not folder.exists() and partial_of(folder).is_dir()
    kept = json.loads((partial_of(folder) / "progress.json").read_text())
    if packing == "stream":  # a file that goes on has more than is complete
        assert (partial_of(folder) / "val.bin").stat().st_size > kept["sizes"]["val.bin"] > 0
    else:  # a document goes on, in the middle of a row; and there is half of a new file
        assert any(map(len, kept["mark"]["rest"].values()))
        assert len(list(partial_of(folder).glob("*.bin"))) > len(kept["sizes"])
    with pytest.raises(UserError, match=r"unfinished corpus with shard_mb=0\.5, not 7"):
        prepare(folder, **{**options, "shard_mb": 7})
    capsys.readouterr()
    prepare(folder, **options)
    assert "MB of text are done" in capsys.readouterr().out
    assert same_files(tmp_path / "whole", folder) and not partial_of(folder).exists()


def test_no_shard_is_too_short_for_a_window(tmp_path: Path):
    """A shard goes on until it has LEAST ids, and a short last one is joined to the one before."""
    sizes, mark = [LEAST, 10, LEAST, LEAST, 5], {"pieces": 1}
    ids = np.arange(sum(sizes)) % 256
    with ShardWriter(tmp_path / "c", Bytes(), {}, task="text") as out:
        out.tokens("val", [1, 2, 3])
        for part in np.split(ids, np.cumsum(sizes)[:-1]):
            out.tokens("train", part)
            out.complete(mark)
    corpus = Corpus(tmp_path / "c", verify=True)
    assert [s.tokens for s in corpus.splits["train"]] == [LEAST, 10 + LEAST, LEAST + 5]
    assert np.array_equal(ids_of(corpus, "train"), ids)
    names = {"meta.json", "val.bin", *(f"train_{i:03d}.bin" for i in range(3))}
    assert {p.name for p in (tmp_path / "c").iterdir()} == names


def test_an_error_in_the_text_keeps_what_is_complete(tmp_path: Path, mixed: Path):
    """A bad line near the end: one message, no corpus; without a complete shard, no trace."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text(mixed.read_text() + '{"text": 5}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl, row \d+: the field 'text' holds '5'"):
        prepare(tmp_path / "c", source=bad, **SHARDED)
    assert partial_of(tmp_path / "c").is_dir() and not (tmp_path / "c").exists()
    with pytest.raises(UserError, match="the field 'text'"):
        prepare(tmp_path / "d", source=bad, **{**SHARDED, "shard_mb": 100})
    assert not partial_of(tmp_path / "d").exists()


def test_two_processes_do_not_write_one_corpus(tmp_path: Path, mixed: Path, monkeypatch):
    import prepare_pretrain

    def second(*_: Any) -> None:
        with pytest.raises(UserError, match="another process is writing"):
            prepare(tmp_path / "c", source=mixed, **SHARDED)
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_pretrain, "write", second)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "c", source=mixed, **SHARDED)
    assert not list(tmp_path.iterdir())


MEASURED = """
import resource, sys, prepare_pretrain
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare_pretrain.main(sys.argv[1:])
print("grown", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_text(tmp_path: Path, helpers):
    """96 MB on one line, held as two bytes per id, in less than 48 MB; 300 MB took the same."""
    with open(tmp_path / "a.txt", "wb") as file:
        for _ in range(96):
            file.write(b"0123456789abcde " * (1 << 16))
    flags = [
        f"--source={tmp_path}/a.txt",
        "--tokenizer=bytes",
        f"--path_to_data_store={tmp_path}/c",
    ]
    command = [sys.executable, "-c", MEASURED, *flags]
    done = subprocess.run(
        command, env=helpers.env(PYTHONPATH=ROOT), capture_output=True, text=True, check=True
    )
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    grown = int(done.stdout.rpartition("grown ")[2]) * unit
    assert grown < 48e6, grown
    assert "MB/s" in done.stdout


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        ({"source": "pydocs"}, "source=pydocs: neither one of pydoc, shakespeare"),
        ({"source": "{here}/bin.txt"}, "is no text"),
        ({"source": "{here}/empty"}, "no file"),
        ({"source": "{here}/other.jsonl"}, "row 1: no field 'text', but .*body"),
        ({"source": "{here}/broken.jsonl"}, "row 2: no JSON"),
        ({"source": "{here}/few.jsonl"}, "the val split is empty: too few documents"),
        ({"tokenizer": "train:many"}, "write train:N"),
        ({"tokenizer": "train:265"}, "must be at least train:266"),
        ({"tokenizer": "train:9000"}, "the text has pairs for \\d+ ids only"),
        ({"tokenizer": "{here}"}, "has no tokenizer.json"),
        ({"tokenizer": "{here}/none"}, "no such folder"),
        ({"hf_model_name": "x"}, "hf_model_name must be left out with --tokenizer"),
        ({"dataset": "x"}, "path_to_data_store must be left out with --dataset"),
        ({"large_dataset": True}, "source must be left out with --large_dataset"),
        ({"path": "x"}, "path must be for shakespeare and text8"),
        ({"source": "text8", "test_split_pct": 0.1}, "test_split_pct must be None for text8"),
        ({"source": "text8", "packing": "pad"}, "packing must be stream for text8"),
        ({"test_split_pct": 1.0}, "test_split_pct must be above 0 and below 1"),
        ({"num_workers": 0}, "num_workers must be at least 1"),
    ],
)
def test_refused_in_one_line(tmp_path: Path, options: dict, words: str):
    if str(options.get("tokenizer", "")).startswith("train"):
        pytest.importorskip("tokenizers")
    here = tmp_path / "here"
    (here / "empty").mkdir(parents=True)
    (here / "bin.txt").write_bytes(b"\x1f\x8b\0\0")
    (here / "other.jsonl").write_text('{"body": "x"}\n')
    (here / "broken.jsonl").write_text('{"text": "x"}\n{"text": \n')
    write_jsonl(here / "few.jsonl", ["one"])
    (here / "good.txt").write_text(text_of(500))
    values = {"source": "{here}/good.txt", "tokenizer": "bytes", **options}
    values = {k: str(v).format(here=here) for k, v in values.items()}
    with pytest.raises(UserError, match=words) as e:
        prepare(tmp_path / "c", **values)
    assert "\n" not in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ["here"]


def test_an_existing_corpus_is_not_touched(tmp_path: Path):
    (tmp_path / "a.txt").write_text(text_of(500))
    options = {"source": tmp_path / "a.txt", "tokenizer": "bytes", "test_split_pct": 0.1}
    prepare(tmp_path / "c", **options)
    with pytest.raises(UserError, match="exists already"):
        prepare(tmp_path / "c", **options)
    Corpus(tmp_path / "c", verify=True)


def test_packing_pad_needs_bos(tmp_path: Path, monkeypatch):
    """GPT-2 has none, and nothing stands in for it."""
    import prepare_pretrain

    tokenizer = Symbols(list("ab"))
    tokenizer.specials = {"eos": 4}
    monkeypatch.setattr(prepare_pretrain, "make_tokenizer", lambda *_: tokenizer)
    (tmp_path / "a.txt").write_text("ab" * 500)
    with pytest.raises(UserError, match="packing=pad needs a tokenizer with bos"):
        prepare(tmp_path / "c", source=tmp_path / "a.txt", packing="pad")


def test_folders_and_defaults():
    """The names and defaults of the original project, and ours."""
    cfg = PretrainConfig()
    assert (cfg.share(), cfg.context_length, cfg.dataset_split_seed) == (0.005, 1024, 42)
    assert cfg.folder() == Path("data/gutenberg")
    assert PretrainConfig(large_dataset=True).folder() == Path("data/large")
    assert PretrainConfig(source="a.txt,b", data_dir="x").folder() == Path("x/text")
    assert PretrainConfig(source="pydoc", dataset="mine").folder() == Path("data/mine")
    assert PretrainConfig(path_to_data_store="x/y").folder() == Path("x/y")
    assert text_module.HUB["gutenberg"] == (Hub("manu/project_gutenberg", None, "en"),)


def test_preparing_does_without_torch():
    """Which takes two seconds to import, in every worker again."""
    names = [p.stem for p in ROOT.glob("prep*.py")]
    assert len(names) == 4
    names += ["tasks.stars", "tasks.puzzles", "patches.prepare", "cascade.stages"]
    code = f"import sys, {', '.join(names)}; print([n for n in LIBRARIES if n in sys.modules])"
    code = code.replace("LIBRARIES", "('torch', 'transformers', 'datasets', 'spacy', 'pandas')")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.slow
def test_pydoc_as_a_user_runs_it(tmp_path: Path, run_cli):
    """What config/mdlm_pydoc.py prepares."""
    pytest.importorskip("tokenizers")
    result = run_cli(
        "prepare_pretrain.py", "--source=pydoc", "--tokenizer=train:4096", f"--data_dir={tmp_path}"
    )
    assert result.returncode == 0, result.stderr
    assert "MB/s" in result.stdout and "ids/s" in result.stdout
    corpus = Corpus(tmp_path / "pydoc", verify=True)
    train, val = (corpus.meta["splits"][s] for s in ("train", "val"))
    assert corpus.vocab_size == 4096 and train["bytes"] > 1e6 and train["tokens"] > 1e5
    assert 0.02 < val["bytes"] / train["bytes"] < 0.1


# ---- rows --------------------------------------------------------------------------------------


def row_texts(corpus: Corpus, split: str) -> list[str]:
    """The text of every row, which is framed as it should be."""
    special, got = corpus.specials, []
    for shard in corpus.splits[split]:
        data = shard.data()
        for start, prompt, length in shard.index():
            ids = data[start : start + length].tolist()
            assert prompt == 1 and ids[0] == special["bos"] and ids[-1] == special["eos"]
            assert not {special["bos"], special["eos"], special["pad"]} & set(ids[1:-1])
            got.append(corpus.tokenizer.decode(ids[1:]))
    return got


@pytest.mark.parametrize("workers", [1, 2])
def test_a_row_for_each_document(tmp_path: Path, workers: int, capsys: Any):
    """Of up to 20 bytes with BOS and EOS; longer ones are counted, not cut."""
    texts = ["x" * n for n in range(1, 40)] * 3 + ["", "y" * 3_000_000]
    file = write_jsonl(tmp_path / "a.jsonl", texts)
    corpus = prepare(
        tmp_path / "c", source=file, tokenizer="bytes", packing="rows", context_length=20,
        test_split_pct=0.3, num_workers=workers, shard_mb=1e-4,
    )  # fmt: skip
    got = [t for split in ("train", "val") for t in row_texts(corpus, split)]
    assert sorted(got) == sorted(t for t in texts if 1 <= len(t) <= 18)
    assert not set(row_texts(corpus, "train")) & set(row_texts(corpus, "val"))
    counts = corpus.meta["splits"]
    assert max(counts[s]["longest"] for s in counts) == 20
    assert sum(counts[s]["rows"] for s in counts) == len(got)
    assert sum(counts[s]["bytes"] for s in counts) == sum(map(len, got))
    notes = corpus.meta["notes"]
    assert notes["documents of more than 20 ids, left out"] == 3 * 21 + 1
    assert notes["empty documents, left out"] == 1
    assert "rows of up to 20" in capsys.readouterr().out
    batch = corpus.batch("train", np.arange(4), 20)
    assert batch.prompt_mask.sum(1).tolist() == [1] * 4
    assert (batch.length == (batch.ids != corpus.specials["pad"]).sum(1)).all()


def test_rows_in_shards_are_those_of_one(tmp_path: Path):
    """The index of every shard begins anew."""
    file = write_jsonl(tmp_path / "a.jsonl", [f"{i} {'x' * 800}" for i in range(5000)])
    options = {"source": file, "tokenizer": "bytes", "packing": "rows"}
    one, more = (prepare(tmp_path / f"c{mb}", **options, shard_mb=mb) for mb in (256, 0.1))
    assert len(one.splits["train"]) == 1 < len(more.splits["train"])
    for split in ("train", "val"):
        assert row_texts(one, split) == row_texts(more, split)


def test_interrupted_rows_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write_jsonl(tmp_path / "a.jsonl", [f"{i} {'x' * 800}" for i in range(5000)])
    options = {"source": file, "tokenizer": "bytes", "packing": "rows", "shard_mb": 0.1}
    whole, complete = prepare(tmp_path / "whole", **options), ShardWriter.complete

    def stop(self: ShardWriter, mark: dict) -> None:
        complete(self, mark)
        if self.number == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShardWriter, "complete", stop)
        prepare(tmp_path / "c", **options)
    again = prepare(tmp_path / "c", **options)
    assert row_texts(again, "train") == row_texts(whole, "train")
    assert row_texts(again, "val") == row_texts(whole, "val")


def test_lines_as_documents(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo two\n\n \nthree\n" + b"more\n" * 40 + b"last")
    corpus = prepare(
        tmp_path / "c", source=tmp_path / "a.txt", separator="\\n", tokenizer="bytes",
        packing="rows", test_split_pct=0.5,
    )  # fmt: skip
    got = {t for split in ("train", "val") for t in row_texts(corpus, split)}
    assert got == {"one", "two two", "three", "more", "last"}


def test_sentences_of_a_word_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """LM1B: its own test split is validation, and blanks around marks are undone."""
    asked = []

    def load_dataset(name: str, config: Any = None, split: str = "", **more: Any) -> list[dict]:
        asked.append((name, split))
        return [{"text": f"He said , {split} ' s ."}, {"text": "It 's $ 5 ( or 6 ) ."}]

    hub = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    options = {"source": "lm1b", "tokenizer": "bytes", "packing": "rows", "context_length": 40}
    corpus = prepare(tmp_path / "c", **options, detokenize="lm1b")
    assert set(asked) == {("billion-word-benchmark/lm1b", s) for s in ("train", "test")}
    assert row_texts(corpus, "val")[1] == row_texts(corpus, "train")[1] == "It's $5 (or 6)."
    assert row_texts(corpus, "val")[0].startswith("He said, test")
    assert corpus.meta["held_out"] == "its test split"


@pytest.mark.parametrize("option, words", [
    ({"detokenize": "lm1b"}, ("detokenize", "packing=rows")),
    ({"source": "text8", "packing": "rows"}, ("packing", "stream for text8")),
])  # fmt: skip
def test_refused_rows(tmp_path: Path, option: dict, words: tuple):
    with pytest.raises(UserError) as caught:
        prepare(tmp_path / "c", **option)
    assert all(w in str(caught.value) for w in words)


def test_each_size_of_a_vocabulary_says_what_it_counts(tmp_path: Path, capsys: Any):
    """A stream and rows of one tokenizer differ by the special ids that rows need."""
    (tmp_path / "a.txt").write_text(text_of(3000))
    tok = prepare(
        tmp_path / "c", source=tmp_path / "a.txt", tokenizer="train:300", test_split_pct=0.1
    )
    assert (
        "vocabulary: 300 ids, special ones included (pad, bos, eos, mask" in capsys.readouterr().out
    )
    rows = prepare(
        tmp_path / "d", source=tmp_path / "a.txt", separator="\\n", packing="rows",
        tokenizer="train:300", test_split_pct=0.1,
    )  # fmt: skip
    told = capsys.readouterr().out
    assert f"vocabulary: {rows.vocab_size} ids, special ones included" in told
    with pytest.raises(UserError, match=r"special ids included: \d for .*; and \d for ") as got:
        rows.require_like(tok.meta)
    assert "\n" not in str(got.value)


def test_rows_of_trained_tokenizers_have_a_pad_of_their_own(tmp_path: Path):
    pytest.importorskip("tokenizers")
    file = write_jsonl(tmp_path / "a.jsonl", [text_of(200, i) for i in range(300)])
    corpus = prepare(tmp_path / "c", source=file, tokenizer="train:300", packing="rows",
                     test_split_pct=0.2)  # fmt: skip
    special = corpus.specials
    assert corpus.vocab_size == 300 and len({special[k] for k in ("bos", "eos", "pad")}) == 3
    assert {k: special[k] for k in ("pad", "mask", "cls")} == {"pad": 3, "mask": 4, "cls": 1}
    assert all(row_texts(corpus, "val"))


# ---- the original's command --------------------------------------------------------------------

DATASETS = """import json, os
class exceptions:
    class DatasetsError(Exception): pass
def load_dataset(name, config=None, **more):
    with open(os.environ["ASKED"], "a") as log:
        log.write(json.dumps([name, config, more["split"], more["cache_dir"]]) + chr(10))
    return [{"text": f"{name} number {i}, of some words"} for i in range(60)]
"""
LARGE_NAMES = [
    ["HuggingFaceFW/fineweb", "sample-10BT", "train"],
    ["HuggingFaceFW/fineweb-edu", "sample-10BT", "train"],
    ["wikimedia/wikipedia", "20231101.en", "train"],
]


def flags(options: dict[str, Any]) -> list[str]:
    """In the spelling of the original: --key value."""
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("packing", ["pad", "stream"])
def test_every_option_of_the_original(tmp_path: Path, run_cli: Any, large: bool, packing: str):
    """Gutenberg alone, or FineWeb, FineWeb-Edu and Wikipedia: what is asked of the hub and of its
    cache, the share and the seed of the split, the tokenizer, and the length of a row."""
    pytest.importorskip("tokenizers")
    site, log = tmp_path / "site", tmp_path / "asked"
    site.mkdir()
    (site / "datasets.py").write_text(DATASETS)
    folder = tmp_path / "base"
    folder.mkdir()
    tokenizer = HF.train([text_of(3000, i) for i in range(9)], 300)
    (folder / "tokenizer.json").write_text(tokenizer.files["tokenizer.json"])
    options = {
        "test_split_pct": 0.2,
        "context_length": 16,
        "huggingface_cache_dir": tmp_path / "hf",
    }
    options |= {"num_workers": 2, "hf_model_name": folder, "packing": packing}

    def made(name: str, **more: Any) -> Corpus:
        argv = flags(options | {"path_to_data_store": tmp_path / name} | more)
        argv += ["--large_dataset"] * large
        env = {"PYTHONPATH": site, "ASKED": log}
        done = run_cli("prepare_pretrain.py", *argv, env=env)
        assert done.returncode == 0, done.stderr
        assert ("context_length=16 has no use" in done.stdout) == (packing == "stream")
        return Corpus(tmp_path / name, verify=True)

    one, two, other = made("one"), made("two", num_workers=1), made("seed", dataset_split_seed=3)
    names = LARGE_NAMES if large else [["manu/project_gutenberg", None, "en"]]
    asked = [json.loads(line) for line in log.read_text().splitlines()]
    assert asked == [[*name, str(tmp_path / "hf")] for name in names] * 3
    assert one.meta["files"] == two.meta["files"] != other.meta["files"]
    for corpus in (one, other):
        counts = {s: corpus.meta["splits"][s]["documents"] for s in ("train", "val")}
        assert sum(counts.values()) == 60 * len(names)
        assert 0.08 < counts["val"] / sum(counts.values()) < 0.35
    assert one.tokenizer.files == tokenizer.files
    if packing == "pad":
        assert {one.meta["splits"][s]["longest"] for s in ("train", "val")} == {16}
        rows = ids_of(one, "train").reshape(-1, 16)
        assert (rows[0, 0], set(rows[:, -1].tolist()) >= {296}) == (295, True)  # BOS; EOS pads
