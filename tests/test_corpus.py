"""corpus.py: what is written is what is read, whatever does not fit together is refused, and the
order of reading is a permutation per epoch."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import corpus as corpus_module
from configurator import UserError
from corpus import Corpus, CorpusWriter, Prefetcher, check_specials, shuffled
from tokenizer import Bytes, Symbols

SLOW_DISK = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


class Wide(Symbols):
    """A vocabulary beyond uint16, without 70000 symbols in every meta.json."""

    def __init__(self):
        super().__init__(["a"])
        self.vocab_size = 70000


def error_of(folder: Path, **how: Any) -> str:
    """The line that refuses this corpus."""
    with pytest.raises(UserError) as caught:
        Corpus(folder, **how)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def write(folder: Path, train: list, val: list | None = None, tokenizer: Any = None) -> Path:
    """A corpus of rows [(ids, prompt)], or of a stream where an entry is a bare array."""
    with CorpusWriter(folder, tokenizer or Bytes()) as out:
        for split, items in (("train", train), ("val", val or train)):
            for item in items:
                if isinstance(item, tuple):
                    out.row(split, *item)
                else:
                    out.tokens(split, item)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small corpus of rows to damage: 20 ids in 4 rows per split."""
    rows = [([1, 2, 3, 4, 5, 6], 1), ([7, 8], 0), ([9] * 10, 2), ([10, 11], 2)]
    return write(tmp_path / "corpus", rows)


def edit_meta(folder: Path, **changes: Any) -> None:
    path = folder / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Other contents for a file, with a meta.json that agrees: what a faulty writer would leave."""
    (folder / name).write_bytes(data)
    files = json.loads((folder / "meta.json").read_text())["files"]
    files[name] = {"bytes": len(data), "crc32": zlib.crc32(data)}
    edit_meta(folder, files=files)


# ---- round trip --------------------------------------------------------------------------------


@st.composite
def some_rows(draw: Any, top: int) -> list[tuple[list[int], int]]:
    ids = st.lists(st.integers(0, top - 1), min_size=1, max_size=9)
    rows = draw(st.lists(ids, min_size=1, max_size=6))
    return [(r, draw(st.integers(0, len(r)))) for r in rows]


@pytest.mark.parametrize("tokenizer", [Bytes(), Wide()], ids=["uint16", "uint32"])
def test_rows_round_trip(tmp_path_factory: Any, tokenizer: Any):
    """Every id, prompt and length comes back; padding fills the rest and is not given."""

    @settings(max_examples=25, deadline=None, suppress_health_check=SLOW_DISK)
    @given(some_rows(tokenizer.vocab_size), some_rows(tokenizer.vocab_size))
    def check(train: list, val: list):
        folder = tmp_path_factory.mktemp("c") / "x"
        meta_only_tokenizer = Symbols(["a"]) if isinstance(tokenizer, Wide) else tokenizer
        write(folder, train, val, tokenizer)
        got = open_with(folder, tokenizer, meta_only_tokenizer)
        for split, rows in (("train", train), ("val", val)):
            assert got.rows(split) == got.windows(split, 9) == len(rows)
            batch = got.batch(split, np.arange(len(rows)), 9)
            for i, (ids, prompt) in enumerate(rows):
                filled = ids + [got.pad_id] * (9 - len(ids))
                assert batch.ids[i].tolist() == filled
                assert batch.prompt_mask[i].tolist() == [j < prompt for j in range(9)]
            assert batch.length.tolist() == [len(ids) for ids, _ in rows]

    check()


def open_with(folder: Path, tokenizer: Any, rebuilt: Any) -> Corpus:
    """Open a corpus; the wide vocabulary has no tokenizer of its size to be rebuilt."""
    if rebuilt is tokenizer:
        return Corpus(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module, "tokenizer_from", lambda *_: tokenizer)
        return Corpus(folder)


def test_dtype_follows_the_vocabulary(tmp_path: Path):
    """65536 ids still fit uint16; ids above do not wrap (70000 -> 4464 under astype)."""
    write(tmp_path / "wide", [([69999, 65536], 0)], tokenizer=Wide())
    meta = json.loads((tmp_path / "wide/meta.json").read_text())
    assert meta["dtype"] == "uint32"
    assert np.fromfile(tmp_path / "wide/train.bin", np.uint32).tolist() == [69999, 65536]
    edge = Wide()
    edge.vocab_size = 1 << 16
    write(tmp_path / "edge", [([65535], 0)], tokenizer=edge)
    assert json.loads((tmp_path / "edge/meta.json").read_text())["dtype"] == "uint16"


def test_batch_semantics(folder: Path):
    """Rows by number, in any order and repeatedly; shapes, types, given, padding."""
    batch = Corpus(folder).batch("val", np.array([3, 0, 3, 1]), 12)
    assert [x.dtype for x in batch] == [torch.int64, torch.bool, torch.int64]
    assert [tuple(x.shape) for x in batch] == [(4, 12), (4, 12), (4,)]
    assert batch.ids[:, :3].tolist() == [[10, 11, 256], [1, 2, 3], [10, 11, 256], [7, 8, 256]]
    assert batch.prompt_mask.sum(1).tolist() == [2, 1, 2, 0]
    assert batch.length.tolist() == [2, 6, 2, 2]
    for ids, n in zip(batch.ids, batch.length, strict=True):
        assert (ids[n:] == Bytes.specials["pad"]).all()


def test_rows_at_once_equal_rows_one_by_one(tmp_path: Path):
    rows = [([1, 2, 3], 1), ([4], 0), ([5, 6], 2)]
    one = write(tmp_path / "one", rows)
    with CorpusWriter(tmp_path / "many", Bytes()) as out:
        for split in ("train", "val"):
            out.rows(split, np.arange(1, 5), np.array([3, 1]), np.array([1, 0]))
            out.rows(split, np.array([5, 6]), np.array([2]), np.array([2]))
    for name in ("train.bin", "train.idx", "val.bin", "val.idx", "meta.json"):
        assert (one / name).read_bytes() == (tmp_path / "many" / name).read_bytes()


def test_texts(tmp_path: Path):
    tok = Bytes()
    rows = [([257, *tok.encode(t), 258], 1) for t in ("first", "", "zweite é")]
    got = Corpus(write(tmp_path / "x", rows))
    assert list(got.texts("train")) == ["first", "", "zweite é"]
    assert got.identity()["meta"]["splits"]["train"] == {"tokens": 20, "rows": 3, "longest": 11}


def shard(folder: Path, split: str, parts: list[list[tuple]], stream: bool = False) -> None:
    """Replace the files of a split by several shards, by hand."""
    files = json.loads((folder / "meta.json").read_text())["files"]
    for end in ("bin", "idx"):
        (folder / f"{split}.{end}").unlink(missing_ok=True)
        files.pop(f"{split}.{end}", None)
    edit_meta(folder, files=files)
    for i, rows in enumerate(parts):
        flat = np.concatenate([np.array(ids, np.uint16) for ids, _ in rows])
        replace_file(folder, f"{split}_{i:03}.bin", flat.tobytes())
        lengths = np.array([len(ids) for ids, _ in rows], np.int64)
        index = np.stack([np.cumsum(lengths) - lengths, [p for _, p in rows], lengths], 1)
        if not stream:
            replace_file(folder, f"{split}_{i:03}.idx", index.astype(np.int64).tobytes())


def test_shards_are_read_as_one(folder: Path):
    """Global numbers, local starts: mixing them up reads the wrong rows from the second on."""
    parts = [[([1, 2], 0), ([3], 1)], [([4, 5, 6], 1)], [([7], 0), ([8, 9], 2), ([10], 0)]]
    shard(folder, "train", parts)
    got = Corpus(folder)
    flat = [row for part in parts for row in part]
    assert got.rows("train") == len(flat) == 6
    order = np.array([5, 0, 2, 3, 1, 4, 2])
    batch = got.batch("train", order, 4)
    assert [ids[:n].tolist() for ids, n in zip(batch.ids, batch.length, strict=True)] == [
        flat[i][0] for i in order
    ]
    assert got.lengths("train", order).tolist() == batch.length.tolist()
    assert batch.prompt_mask.sum(1).tolist() == [flat[i][1] for i in order]
    assert got.rows("val") == 4  # untouched


def test_batches_are_read_ahead(folder: Path):
    """In order or not, what is got is what was asked for; what comes next has been read already,
    in one other thread; and an error in it is told when it is asked for."""
    got, reads = Corpus(folder), []

    def read(number: int) -> Any:
        reads.append((number, threading.get_ident()))
        return got.batch("train", np.array([number]), 12)

    ahead = Prefetcher(read)
    for number in (0, 1, 2, 1, 2):
        batch = ahead.get(number, number + 1)
        assert torch.equal(batch.ids, got.batch("train", np.array([number]), 12).ids)
    with pytest.raises(IndexError):
        ahead.get(4, 5)  # there are four rows
    assert [number for number, _ in reads] == [0, 1, 2, 3, 1, 2, 3, 4]
    assert {thread for _, thread in reads} == {reads[0][1]} != {threading.get_ident()}


# ---- streams -----------------------------------------------------------------------------------


def test_windows_of_a_stream(tmp_path: Path):
    """All offsets and no more: one too many reads past the end, one too few loses the last id."""
    got = Corpus(write(tmp_path / "x", [np.arange(20)], [np.arange(30, 41)]))
    assert got.rows("train") == 0
    for block in (1, 4, 10):
        assert got.windows("train", block) == 20 - block + 1
        assert got.windows("val", block) == 11 - block + 1
        every = np.arange(got.windows("train", block))
        batch = got.batch("train", every, block)
        assert batch.ids.tolist() == [[i + j for j in range(block)] for i in every]
        assert batch.length.tolist() == [block] * len(every) and not batch.prompt_mask.any()
    assert got.batch("val", np.array([7]), 4).ids.tolist() == [[37, 38, 39, 40]]


def test_disjoint_windows_and_their_documents(folder: Path):
    """In each of two shards: every block ids, and a document for each stretch behind an EOS."""
    eos = Corpus(folder).specials["eos"]
    one, two = [1, 2, eos, 3, 4, 5, 6, 7], [eos, 8, 9, eos, 1, 1, 1]
    shard(folder, "train", [[(one, 0)], [(two, 0)]], stream=True)
    got = Corpus(folder)
    numbers = got.disjoint("train", 2)
    firsts = got.batch("train", numbers, 2).ids[:, 0].tolist()
    assert firsts == [1, eos, 4, 6, eos, 9, 1] and got.tokens("train") == 15
    documents = got.documents("train", numbers, 2).tolist()
    # an EOS belongs to what it ends
    assert len({*documents}) == 5 and documents[0] == documents[1] != documents[2]
    assert documents[2] == documents[3] and documents[4] not in documents[:4]
    assert documents[5] not in (*documents[:5], documents[6])
    mixed = numbers[[4, 0, 6, 3]]
    assert got.documents("train", mixed, 2).tolist() == [documents[i] for i in (4, 0, 6, 3)]
    every = np.arange(got.rows("val"))  # rows
    assert got.disjoint("val", 9).tolist() == got.documents("val", every, 9).tolist() == [*every]


def test_windows_stay_inside_their_shard(folder: Path):
    """Two shards of a stream are different texts: no window straddles them."""
    shard(folder, "train", [[(list(range(0, 6)), 0)], [(list(range(50, 57)), 0)]], stream=True)
    got = Corpus(folder)
    assert got.windows("train", 4) == 3 + 4
    batch = got.batch("train", np.arange(7), 4)
    assert batch.ids[:, 0].tolist() == [0, 1, 2, 50, 51, 52, 53]
    assert (batch.ids.diff() == 1).all()


def test_block_size_must_fit(tmp_path: Path, folder: Path):
    """Fault 38: too short a stream, also if only val is, and rows that do not fit the block."""
    short = Corpus(write(tmp_path / "x", [np.arange(20)], [np.arange(9)]))
    short.require_block(8)
    with pytest.raises(UserError, match=r"val\.bin: 9 tokens, but block_size=9 needs at least 10"):
        short.require_block(9)
    Corpus(folder).require_block(10)
    message = r"train\.bin: the longest row has 10 tokens; block_size=9 is too small"
    with pytest.raises(UserError, match=message):
        Corpus(folder).require_block(9)


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "train.idx", "meta.json"])
def test_missing_files(folder: Path, name: str):
    """Fault 35."""
    (folder / name).unlink()
    assert name in error_of(folder) and "missing" in error_of(folder)


def test_no_corpus_at_all(tmp_path: Path):
    assert str(tmp_path / "nothing") in error_of(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in error_of(tmp_path / "file")


@pytest.mark.parametrize("name", ["train.bin", "val.idx"])
def test_sizes(folder: Path, name: str):
    """Fault 36 and plain truncation; also when meta.json agrees that the file is empty."""
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-1])
    message = error_of(folder)
    assert name in message and str(len(whole)) in message and str(len(whole) - 1) in message
    (folder / name).write_bytes(whole + b"\0")
    assert name in error_of(folder)
    replace_file(folder, name, b"")
    assert name in error_of(folder) and "empty" in error_of(folder)


def test_odd_byte_count(folder: Path):
    """Fault 37: half an id at the end."""
    replace_file(folder, "train.bin", (folder / "train.bin").read_bytes() + b"\0")
    assert "train.bin" in error_of(folder) and "41 bytes" in error_of(folder)


@pytest.mark.parametrize("size", [1, 23, 25, 95])
def test_odd_index(folder: Path, size: int):
    """No whole rows. Below 24 bytes there is no row at all, yet the file is not a stream's."""
    replace_file(folder, "train.idx", (folder / "train.idx").read_bytes()[:size])
    assert "train.idx" in error_of(folder)


@pytest.mark.parametrize(
    "row",
    [[19, 0, 2], [-1, 0, 2], [0, 3, 2], [0, -1, 2], [0, 0, 0], [1 << 40, 0, 1], [0, 0, 1 << 40]],
    ids=["past the end", "start", "prompt above", "prompt below", "no length", "far", "long"],
)
def test_rows_that_point_outside(folder: Path, row: list[int]):
    index = np.frombuffer((folder / "train.idx").read_bytes(), np.int64).reshape(-1, 3).copy()
    index[1] = row
    replace_file(folder, "train.idx", index.tobytes())
    assert "train.idx" in error_of(folder) and "outside" in error_of(folder)


def test_ids_outside_the_vocabulary(folder: Path, monkeypatch):
    """Fault 39: at the start, and for ids that the sampled scan has not seen, in every batch."""
    ids = np.arange(20, dtype=np.uint16)
    ids[12] = 259
    replace_file(folder, "train.bin", ids.tobytes())
    assert "train.bin: id 259 >= vocab_size 259" in error_of(folder)
    monkeypatch.setattr(corpus_module, "_check_shard", lambda *_: None)
    got = Corpus(folder)
    got.batch("train", np.array([0, 1]), 10)
    with pytest.raises(UserError, match="id 259 >= vocab_size 259"):
        got.batch("train", np.array([1, 2]), 10)


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "train.idx", "val.idx"])
def test_any_flipped_byte_is_found(folder: Path, name: str):
    whole = (folder / name).read_bytes()
    for i in range(len(whole)):
        (folder / name).write_bytes(whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :])
        assert f"{name} is damaged" in error_of(folder)
    (folder / name).write_bytes(whole)
    Corpus(folder)


def test_large_files_are_verified_on_demand(folder: Path, monkeypatch):
    monkeypatch.setattr(corpus_module, "CHECKED", 10)
    data = bytearray((folder / "train.bin").read_bytes())
    data[0] ^= 1
    (folder / "train.bin").write_bytes(data)
    Corpus(folder)
    assert "damaged" in error_of(folder, verify=True)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "3", '{"format": 1', "\xff"])
def test_meta_that_is_no_json_object(folder: Path, text: str):
    """Fault 41."""
    (folder / "meta.json").write_bytes(text.encode("latin-1"))
    assert str(folder / "meta.json") in error_of(folder)


@pytest.mark.parametrize(
    "key", "format dtype vocab_size specials tokenizer splits files task".split()
)
@pytest.mark.parametrize("value", [None, 7, -1, "x", [1], {"x": "y"}, {"val": -3}, "absent"])
def test_meta_with_a_bad_entry(folder: Path, key: str, value: Any):
    """Opened or refused in one line, never another exception: meta.json may be written by hand."""
    meta = json.loads((folder / "meta.json").read_text())
    meta[key] = value
    if value == "absent":
        del meta[key]
    (folder / "meta.json").write_text(json.dumps(meta))
    if key not in ("splits", "task"):  # what the ids mean hangs on all the others
        message = error_of(folder)
        assert str(folder / "meta.json") in message or key == "tokenizer"
        return
    try:
        Corpus(folder).require_block(10)
    except UserError as e:
        assert "meta.json" in str(e)


def test_meta_that_does_not_fit_the_files(folder: Path):
    edit_meta(folder, vocab_size=300)
    assert "300" in error_of(folder) and "259" in error_of(folder)
    edit_meta(folder, vocab_size=5)  # less than the special ids
    assert "pad=256" in error_of(folder)
    edit_meta(folder, vocab_size=259, format=2)
    assert "format" in error_of(folder) and "2" in error_of(folder)
    edit_meta(folder, format=1, dtype="float32")
    assert "dtype" in error_of(folder) and "float32" in error_of(folder)


def test_split_of_rows_and_streams_is_refused(folder: Path):
    shard(folder, "train", [[([1, 2], 0)], [([3], 0)]])
    files = json.loads((folder / "meta.json").read_text())["files"]
    del files["train_001.idx"]
    edit_meta(folder, files=files)
    assert "meta.json" in error_of(folder) and "train" in error_of(folder)


def test_special_ids():
    """Fault 41: MASK must be an id of its own; PAD may be EOS, as in GPT-2."""
    check_specials({"pad": 1, "eos": 1, "mask": 2}, 3, "here")
    with pytest.raises(UserError, match="here: mask and pad share the id 1"):
        check_specials({"pad": 1, "mask": 1}, 3, "here")
    with pytest.raises(UserError, match="here: special eos=3 is outside vocab_size 3"):
        check_specials({"eos": 3}, 3, "here")
    with pytest.raises(UserError, match="eos=-1"):
        check_specials({"eos": -1}, 3, "here")


# ---- the writer --------------------------------------------------------------------------------


def test_writer_refuses_ids_that_do_not_fit(tmp_path: Path):
    """Fault 40: numpy would wrap them silently. Nothing stays behind."""
    for bad in (259, 70000, -1, 1 << 40):
        with pytest.raises(UserError, match=f"id {bad} is outside the vocabulary of 259"):
            write(tmp_path / "x", [([1, bad], 0)])
    with pytest.raises(UserError, match="id 259 is outside"):
        with CorpusWriter(tmp_path / "x", Bytes()) as out:
            out.rows("train", np.array([1, 259]), np.array([2]), np.array([0]))
    assert list(tmp_path.iterdir()) == []


def test_writer_leaves_nothing_after_an_exception(tmp_path: Path):
    class Stop(Exception):
        pass

    with pytest.raises(Stop):
        with CorpusWriter(tmp_path / "x", Bytes()) as out:
            out.row("train", [1])
            out.row("val", [1])
            raise Stop
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "x", [([1], 0)])  # and the name is free


@pytest.mark.parametrize("splits", [[], ["train"], ["val"]])
def test_writer_refuses_an_empty_split(tmp_path: Path, splits: list[str]):
    """Fault 36 at its source."""
    with pytest.raises(UserError, match="empty"):
        with CorpusWriter(tmp_path / "x", Bytes()) as out:
            for split in splits:
                out.row(split, [1])
    assert list(tmp_path.iterdir()) == []


def test_writer_keeps_what_exists(folder: Path):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(UserError, match="exists already"):
        write(folder, [([1], 0)])
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_writer_below_a_file(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write(tmp_path / "file" / "x", [([1], 0)])


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[2])
from corpus import CorpusWriter
from tokenizer import Bytes
with CorpusWriter(sys.argv[1], Bytes()) as out:
    for split in ("train", "val"):
        out.row(split, [1, 2, 3])
    print("written", flush=True)
    time.sleep(60)
"""


def test_a_killed_writer_leaves_no_corpus(tmp_path: Path, helpers: Any):
    """Rows were written, the block never ended: no folder under the final name."""
    command = [sys.executable, "-c", KILLED, str(tmp_path / "x"), str(helpers.repo)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=helpers.env())
    try:
        assert process.stdout.readline() == b"written\n"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert not (tmp_path / "x").exists()
    write(tmp_path / "x", [([1], 0)])  # its remains are in nobody's way
    Corpus(tmp_path / "x")


# ---- order -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [*range(1, 18), 31, 32, 33, 63, 64, 65, 100, 255, 256, 257, 1000])
def test_every_epoch_is_a_permutation(size: int):
    order = shuffled(np.arange(3 * size), size, seed=5).reshape(3, size)
    for epoch in order:
        assert sorted(epoch.tolist()) == list(range(size))
    if size > 16:
        assert len({tuple(e) for e in order.tolist()}) == 3  # each has its own order
        assert not np.array_equal(order[0], np.arange(size))
        assert not np.array_equal(order[0], shuffled(np.arange(size), size, seed=6))


@given(st.integers(1, 5000), st.integers(0, 2**63 - 1), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_places_are_independent_of_how_they_are_asked_for(size: int, seed: int, first: int):
    """A batch, its parts and its reverse agree: this is what makes a resumed run exact."""
    places = np.arange(first, first + 40)
    whole = shuffled(places, size, seed)
    assert np.array_equal(whole[7:9], shuffled(places[7:9], size, seed))
    assert np.array_equal(whole[::-1], shuffled(places[::-1], size, seed))
    assert whole.min() >= 0 and whole.max() < size
    assert np.array_equal(places, np.arange(first, first + 40)), "the argument was changed"


def test_rows_are_spread_evenly():
    """Over many epochs each row is about equally often at each place (chi-square, 63 d.o.f.)."""
    size, epochs = 8, 2000
    order = shuffled(np.arange(size * epochs), size, seed=3).reshape(epochs, size)
    counts = np.stack([np.bincount(order[:, i], minlength=size) for i in range(size)])
    expected = epochs / size
    assert ((counts - expected) ** 2 / expected).sum() < 120
    assert len({tuple(e) for e in order.tolist()}) > 1000  # of 40320 permutations


def test_neighbours_are_not_related():
    """Neighbouring places of a long reading: as far apart as at random (a third of the size)."""
    order = shuffled(np.arange(20000), 1_000_003, seed=1).astype(float)
    assert abs(np.abs(np.diff(order)).mean() / 1_000_003 - 1 / 3) < 0.01
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03


def test_far_places_cost_nothing():
    """The place of step 10^12 in a trillion rows: no permutation is ever stored or walked through.
    A stored one would need 8 TB, a walk hours."""
    begin = time.process_time()
    far = shuffled(np.arange(10**12 + 3, 10**12 + 103), 10**12, seed=1)
    assert len(set(far.tolist())) == 100 and far.max() < 10**12 and far.min() >= 0
    assert time.process_time() - begin < 1


def test_short_rows_need_a_pad_id(tmp_path: Path):
    """Without one they would be filled with id 0, a token of the text, and that would be learnt."""
    tokens = Symbols(list("abc"))
    tokens.specials = {"eos": 5}
    with CorpusWriter(tmp_path / "c", tokens) as out:
        for split in ("train", "val"):
            out.row(split, [0, 1, 2])
            out.row(split, [0, 1, 2, 5])
    corpus = Corpus(tmp_path / "c")
    with pytest.raises(UserError, match="pad id"):
        corpus.require_block(4)
