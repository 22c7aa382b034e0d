"""Every reader of files on any bytes: taken, or refused in one line, and nothing else comes of it.
Nothing in a file is executed. Files are changed at random places, and plain data at random keys."""

import copy
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import checkpoint
import prepare_sft
from configurator import Config, UserError, from_saved, load
from corpus import Corpus, fingerprint
from patches.patch import apply_patch
from prepare_sft import SftConfig, conversations
from pretrained import published
from train import log_lines

SECONDS = 2.0  # of every loop
ODD = [None, True, 0, -1, 1 << 70, 1e400, 0.5, "", "x", "\0", "\ud800", [], [1], [[]], {}, {"x": 1}]


def changed(data: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, taken out, put in, or said twice."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, size = rng.randrange(len(data) + 1), rng.choice([1, 1, 2, 8, 64])
        how = rng.randrange(4)
        if how == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            del data[at : at + size]
        elif how == 2:
            data[at:at] = rng.choice([b"\0", b"\xff", b'"', b"{", b"[", b"9" * 30, b"-", b"e9"])
        else:
            data[at:at] = data[at : at + size]
    return bytes(data)


def replaced(value: Any, rng: random.Random) -> Any:
    """Plain data with one part, at any depth, that is another or gone."""
    value = copy.copy(value)
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        how = rng.random()
        if how < 0.1:
            del value[key]
        elif how < 0.2:
            value["new"] = rng.choice(ODD)
        else:
            value[key] = replaced(value[key], rng) if how < 0.7 else rng.choice(ODD)
    elif isinstance(value, list) and value:
        at = rng.randrange(len(value))
        value[at] = replaced(value[at], rng) if rng.random() < 0.7 else rng.choice(ODD)
    else:
        return rng.choice(ODD)
    return value


def hammer(step: Callable[[random.Random], Any], least: int = 20) -> Counter:
    """Call `step` for some seconds with seeds 0, 1, ...; the seed of a failure is in its report."""
    end, got, seed = time.monotonic() + SECONDS, Counter(), 0
    while time.monotonic() < end or seed < least:
        try:
            step(random.Random(seed))
            got["taken"] += 1
        except UserError as e:
            assert str(e) and "\n" not in str(e), (seed, str(e))
            got["refused"] += 1
        except Exception as e:
            raise AssertionError(f"seed {seed}") from e
        seed += 1
    assert got["refused"] > 0, got
    return got


# ---- corpora -----------------------------------------------------------------------------------


def use(folder: Path) -> None:
    """What training does first with a corpus."""
    got = Corpus(folder)
    got.require_block(8)
    for split in ("train", "val"):
        rows = torch.arange(min(4, got.windows(split, 8))).numpy()
        got.batch(split, rows, 8)
    next(got.texts("val"))


@pytest.fixture
def folder(tmp_path: Path, data_dir: Path) -> Path:
    for path in (data_dir / "tiny").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("honest", [True, False], ids=["checksums kept", "checksums made right"])
def test_corpora_of_any_bytes(folder: Path, honest: bool):
    """Also where meta.json agrees with the damage, as that of a hostile corpus does."""
    whole = {p.name: p.read_bytes() for p in folder.iterdir()}

    def step(rng: random.Random) -> None:
        for name, data in whole.items():
            (folder / name).write_bytes(data)
        name = rng.choice([n for n in whole if honest or n != "meta.json"])
        (folder / name).write_bytes(changed(whole[name], rng))
        if not honest:
            meta = json.loads(whole["meta.json"])
            meta["files"][name] = fingerprint(folder / name)
            (folder / "meta.json").write_text(json.dumps(meta))
        use(folder)

    hammer(step)


def test_corpora_of_any_description(folder: Path):
    meta = json.loads((folder / "meta.json").read_text())

    def step(rng: random.Random) -> None:
        (folder / "meta.json").write_text(json.dumps(replaced(meta, rng)))
        use(folder)

    hammer(step)


# ---- checkpoints -------------------------------------------------------------------------------


def test_checkpoints_of_any_bytes(tmp_path: Path, trained: Any):
    whole, path = (trained() / "ckpt.pt").read_bytes(), tmp_path / "ckpt.pt"

    def step(rng: random.Random) -> None:
        path.write_bytes(changed(whole, rng))
        checkpoint.load(str(path))

    hammer(step)


def test_checkpoints_of_any_content(tmp_path: Path, trained: Any, flags: Any):
    """Whole files, whose content is not what we write: for sampling, and to go on from."""
    import train

    state, path = checkpoint.read(trained() / "ckpt.pt"), tmp_path / "ckpt.pt"
    argv = load(Config, flags(tmp_path, init_from="resume", max_iters=9))
    world = train.World(0, 1, torch.device("cpu"))

    def step(rng: random.Random) -> None:
        torch.save(replaced(state, rng), path)
        if rng.random() < 0.5:
            checkpoint.load(str(path))
        else:
            train.start(*argv, world)

    hammer(step)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_exports_of_any_bytes(tmp_path: Path, trained: Any, name: str):
    pytest.importorskip("safetensors")
    checkpoint.export(checkpoint.load(str(trained() / "ckpt.pt")), tmp_path)
    whole = (tmp_path / name).read_bytes()

    def step(rng: random.Random) -> None:
        if name == "config.json" and rng.random() < 0.7:
            text = json.dumps(replaced(json.loads(whole), rng))
            (tmp_path / name).write_text(text)
        else:
            (tmp_path / name).write_bytes(changed(whole, rng))
        checkpoint.load(str(tmp_path))

    hammer(step)


@given(st.binary(max_size=200))
def test_no_bytes_are_a_checkpoint(tmp_path_factory: Any, data: bytes):
    path = tmp_path_factory.mktemp("any") / "ckpt.pt"
    path.write_bytes(data)
    for read in (checkpoint.read, published.read_tensors):
        with pytest.raises(UserError):
            read(path)


# ---- configs, logs, rows, patches --------------------------------------------------------------

CONFIG = 'batch_size = 4\nlearning_rate = 1e-3\ngraph = "absorb"\nlr_decay_iters = None\n'
LETTERS = st.text("abcdefghijklmnopqrstuvwxyz_= \n\t\"'.0123456789[]{}-+#\\é\0", max_size=60)


@given(LETTERS)
def test_config_files_of_any_text(tmp_path_factory: Any, text: str):
    """A config file is a program; the letters are too few for one that does harm."""
    path = tmp_path_factory.mktemp("any") / "mine.py"
    path.write_text(text)
    try:
        load(Config, [str(path)])
    except UserError as e:
        assert "\n" not in str(e)


def test_config_files_of_any_bytes(tmp_path: Path):
    path = tmp_path / "mine.py"

    def step(rng: random.Random) -> None:
        path.write_bytes(changed(CONFIG.encode(), rng))
        load(Config, [str(path)])

    hammer(step)


@given(st.dictionaries(st.sampled_from([*Config.__dataclass_fields__, "x"]), st.sampled_from(ODD)))
def test_saved_configs_of_any_values(values: dict):
    try:
        from_saved(Config, values, "here")
    except UserError as e:
        assert "here" in str(e)


def test_logs_of_any_bytes(tmp_path: Path, trained: Any):
    """Never a reason to stop: lines that are spoilt are left out."""
    whole = (trained() / "log.jsonl").read_bytes()
    path = tmp_path / "log.jsonl"
    for seed in range(300):
        path.write_bytes(changed(whole, random.Random(seed)))
        assert all(isinstance(values["step"], int) for values in log_lines(path))


ROWS = [
    {"instruction": "a", "input": "b", "output": "c"},
    {"prompt": "a", "response": "b"},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row))
def test_chat_rows_of_any_bytes(tmp_path: Path, name: str, row: dict, monkeypatch: Any):
    path, rows = tmp_path / name, [row] * 3

    def step(rng: random.Random) -> None:
        got = replaced(rows, rng) if rng.random() < 0.5 else rows
        got = got if isinstance(got, list) else [got]
        text = json.dumps(got) if name == "rows.json" else "\n".join(map(json.dumps, got))
        path.write_bytes(changed(text.encode(), rng) if got is rows else text.encode())
        for talk in conversations(SftConfig(source=str(path)), Counter()):
            assert all(isinstance(part, str) for message in talk for part in message)

    monkeypatch.setattr(prepare_sft, "print", lambda *_, **__: None, raising=False)
    monkeypatch.setattr("test_fuzz.SECONDS", 0.7)
    hammer(step)


PATCH = "@@ -1,3 +1,4 @@\n a\n-b\n+c\n+d\n e\n@@ -10 +11,0 @@\n-x\n"
BEFORE = "a\nb\ne\n" + "".join(f"{i}\n" for i in range(6)) + "x\n"


def test_patches_of_any_bytes():
    """Applied, or the file as it was and a reason why."""
    counts = Counter()
    for seed in range(1500):
        patch = changed(PATCH.encode(), random.Random(seed)).decode("utf-8", "surrogateescape")
        done = apply_patch(BEFORE, patch, lenient=bool(seed % 2))
        counts[done.state] += 1
        assert done.state.startswith("ok") or done.text == BEFORE
    assert counts["bad_format"] and counts["ok"] and counts["no_match"]
