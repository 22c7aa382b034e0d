"""Stages of a cascade and prefixes in training against rules written out loop by loop."""

import contextlib
import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoint
import train
from cascade import stages
from cascade.stages import END_KEY, Chunks, first_chunks, joined, select, stage_rows, stride_chunks
from configurator import ROOT, Config, UserError, load
from corpus import Batch, Corpus
from model import Transformer
from objective import generator
from prepare.documents import Document, ShardFolder, shard_path
from tokenizer import Bytes, Symbols
from train import REPLACED, augment_prompt, corrupt_prompt, permutation, shuffle_prompt

# ---- the rules, one token at a time --------------------------------------------------------------


def walk(ids: list[int], value: list[float], scored: bool, groups: list[int]) -> list[int]:
    """Places in the order in which they are taken; a group once, but a score above 1 always."""
    candidates = [i for i in range(len(ids)) if scored or value[i] >= 0]
    candidates.sort(key=lambda i: -value[i] if scored else value[i])  # stable
    taken, seen = [], set()
    for i in candidates:
        if scored and value[i] > 1:
            taken.append(i)
        elif groups[i] not in seen:
            seen.add(groups[i])
            taken.append(i)
    return taken


def one_by_one(ids: list[int], value: list[float], scored: bool, n1: int, n2: int) -> Any:
    """Stages 1 and 2 as the original makes them, or None for a chunk that it drops."""
    if scored:
        many = sum(v > 1 for v in value)
        keys = {i for i, v in zip(ids, value, strict=True) if -1 <= v <= 1}
        if many + len(keys) < n1:
            return None
    taken = walk(ids, value, scored, ids)
    if len(taken) < n2:
        return None
    return sorted(taken[:n1]), sorted(taken[:n2])


def chunk(ids: list[int], value: list[float], scored: bool, words: Any = None) -> Chunks:
    word = np.arange(len(ids)) if words is None else np.array(words)
    kind = np.float32 if scored else np.int8
    rows = (np.array(ids, np.int64), np.array(value, kind), word, np.array(ids, np.int64))
    return Chunks(*(a[None] for a in rows))


SCORES = st.sampled_from([1.1, 2.0, 1.0, 0.9, 0.5, 0.5, 0.0, -1.0, -1.05, -1.1, -1.2])


@settings(max_examples=300)
@given(st.data())
def test_selection(data: Any):
    """Ties, repeated ids, scores at the borders, labels that forbid."""
    scored = data.draw(st.booleans())
    T = data.draw(st.integers(3, 12))
    ids = data.draw(st.lists(st.integers(0, 6), min_size=T, max_size=T))
    values = SCORES if scored else st.sampled_from([-100, -1, 0, 1, 2, 3, 7, 7])
    value = data.draw(st.lists(values, min_size=T, max_size=T))
    n1, n2 = sorted(data.draw(st.permutations(range(1, T)))[:2])
    got, kept = select(chunk(ids, value, scored), [n1, n2, T], "token")
    wanted = one_by_one(ids, value, scored, n1, n2)
    assert kept.tolist() == [wanted is not None]
    if wanted:
        assert [p[0].tolist() for p in got] == [*wanted, list(range(T))]


def test_selection_of_many_at_once():
    """A row does not depend on the others."""
    rng = np.random.default_rng(0)
    ids, value = rng.integers(0, 5, (200, 16)), rng.choice([1.1, 0.5, 0.2, -1.0, -1.1], (200, 16))
    word = np.arange(16) + np.zeros((200, 1), np.int64)
    chunks = Chunks(ids, value.astype(np.float32), word, ids)
    got, kept = select(chunks, [3, 6, 16], "token")
    alone = [select(chunks[k : k + 1], [3, 6, 16], "token") for k in range(200)]
    assert kept.tolist() == [bool(one[1][0]) for one in alone] and 0 < kept.sum() < 200
    for k in range(3):
        rows = [one[0][k][0].tolist() for one in alone if one[1][0]]
        assert got[k].tolist() == rows


def test_words_are_taken_once_and_as_wholes():
    """Bytes: the tokens of a word come together, with the space that is part of it; a word in
    another spelling of case is the same word; white space alone is never taken; the last word is
    cut where the stage is full."""
    text = "The cat saw  the Dog. A dog!"
    spans = [(0, 3), (3, 7), (7, 11), (12, 16), (16, 20), (20, 21), (21, 23), (23, 27), (27, 28)]
    label = [7, 3, 4, 7, 3, 7, 7, 3, 7]
    word, value = np.full(len(text), -1), np.full(len(text), 7)
    key = np.zeros(len(text), np.int64)
    names = ["the", "cat", "saw", "the", "dog", ".", "a", "dog", "!"]
    for number, (start, end) in enumerate(spans):
        word[start:end], value[start:end] = number, label[number]
        key[start:end] = 10 + names.index(names[number])
    ids = np.array([ord(c) for c in text])
    chunks = Chunks(*(a[None] for a in (ids, value, word, key)))
    (first, second, _), kept = select(chunks, [8, 16, len(text)], "word")
    assert kept.all()

    def read(places):
        return "".join(text[p] for p in places)

    assert read(first[0]) == " cat Dog"
    assert read(second[0]) == "The cat saw Dog."  # in order of labels: cat Dog saw The .
    (short, _, _), _ = select(chunks, [6, 16, len(text)], "word")
    assert read(short[0]) == " cat D"
    assert not select(chunks, [8, 20, len(text)], "word")[1].any()  # 19 are all that differ


def test_everything_once_more():
    """unique=none: labels and places decide alone."""
    got, kept = select(chunk([5] * 6, [3, 1, 3, 1, 7, 2], False), [2, 4, 6], "none")
    assert kept.all() and [p[0].tolist() for p in got[:2]] == [[1, 3], [0, 1, 3, 5]]


@pytest.mark.parametrize("unique", ["token", "word", "none"])
@pytest.mark.parametrize("scored", [False, True])
def test_stages_are_subsets(unique: Any, scored: bool):
    rng = np.random.default_rng(1)
    B, T = 300, 24
    value = (
        rng.choice([1.1, 0.5, 0.2, -1.0, -1.1], (B, T)) if scored else rng.integers(1, 8, (B, T))
    )
    word = np.sort(rng.integers(-1, 14, (B, T)), 1)
    key = np.where(word < 0, 0, word % 9)
    chunks = Chunks(rng.integers(0, 15, (B, T)), value, word, key)
    got, kept = select(chunks, [4, 8, T], unique)
    assert kept.sum() > 100
    for short, long in itertools.pairwise(got):
        for a, b in zip(short.tolist(), long.tolist(), strict=True):
            assert a == sorted(set(a)) and set(a) <= set(b)
    rows = [stage_rows(chunks, [4, 8, T], k, unique) for k in (1, 2, 3)]
    assert [r.shape[1] for r in rows] == [4, 12, 8 + T]
    assert np.array_equal(rows[1][:, :4], rows[0]) and np.array_equal(
        rows[2][:, :8], rows[1][:, 4:]
    )
    assert np.array_equal(rows[2][:, 8:], chunks.ids[kept])


# ---- chunks --------------------------------------------------------------------------------------


def documents(sizes: list[int], scored: bool = False) -> list[Document]:
    """Every id occurs once: id = place in the whole text; two tokens to a word."""
    got, start = [], 0
    for n in sizes:
        ids = np.arange(start, start + n, dtype=np.uint16)
        value = (ids % 7 + 1).astype(np.int8)
        word = np.arange(n, dtype=np.int32) // 2
        label, score = (None, value.astype(np.float32)) if scored else (value, None)
        got.append(Document(ids, label, score, word, ids.astype(np.uint32) // 2))
        start += n
    return got


SIZES = st.lists(st.integers(0, 9), max_size=12)


@given(SIZES, st.integers(1, 6), st.integers(1, 5))
def test_first_chunks(sizes: list[int], T: int, batch: int):
    """Each document gives what begins with it, within its batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "BATCH", batch)
        got = list(first_chunks(documents(sizes), T))
    wanted, start = [], 0
    for first in range(0, len(sizes), batch):
        group = sizes[first : first + batch]
        end = start + sum(group)
        for n in group:
            if start + T <= end:
                wanted.append(list(range(start, start + T)))
            start += n
    assert [row for c in got for row in c.ids.tolist()] == wanted


@given(SIZES, st.integers(1, 6), st.integers(1, 5), st.booleans())
def test_stride_chunks(sizes: list[int], T: int, batch: int, scored: bool):
    """All tokens once and in order, EOS behind each document, as important as nothing else; words
    keep to themselves across documents and batches; the result does not depend on the batches."""
    eos = 999
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "BATCH", batch)
        got = list(stride_chunks(documents(sizes, scored), T, eos))
    ids = [i for c in got for i in c.ids.ravel().tolist()]
    stream, owner = [], []
    for d, document in enumerate(documents(sizes)):
        stream += [*document.ids.tolist(), eos]
        owner += [*((d, w) for w in document.word.tolist()), (d, "end")]
    whole = len(stream) // T * T
    assert ids == stream[:whole]
    for c in got:
        assert c.ids.shape == c.importance.shape == c.word.shape == c.key.shape
        ends = c.ids == eos
        assert (c.importance[ends] == (2 if scored else 0)).all() and (c.key[ends] == END_KEY).all()
        assert (c.key[~ends] == c.ids[~ends] // 2).all()
    words = [w for c in got for w in c.word.ravel().tolist()]
    for start in range(0, whole, T):  # within a chunk, one number for one word
        pairs = set(zip(words[start : start + T], owner[start : start + T], strict=True))
        assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)


def test_white_space_stays_in_no_word():
    one = Document(np.arange(3), np.ones(3, np.int8), None, np.array([-1, 0, -1]), np.arange(3))
    row, begins = joined([one, one], 9)
    assert row.word.tolist() == [-1, 0, -1, 1, -1, 2, -1, 3] and begins.tolist() == [0, 4]


# ---- corpora -------------------------------------------------------------------------------------


def preprocessed(
    folder: Path, seed: int, tokenizer: Any = None, mode: str = "constituency"
) -> None:
    """A text of two shards, of random letters."""
    rng = np.random.default_rng(seed)
    tokenizer = tokenizer or Symbols([chr(65 + i) for i in range(40)])
    info = {"mode": mode, "num_shards": 2, "dataset_name": "x", "dataset_mode": "train"}
    info["tokenizer_name"] = "train:9"
    for k in range(2):
        with ShardFolder(shard_path(folder, k), tokenizer, info) as out:
            for n in rng.integers(1, 40, 30):
                ids = rng.integers(0, 40, n)
                value = rng.integers(1, 8, n)
                label, score = (value, None) if mode == "constituency" else (None, value / 8)
                out.add(Document(ids, label, score, np.arange(n), ids))


def prepare(*argv: Any) -> str:
    """Run cascade/stages.py; what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        stages.main([str(a) for a in argv])
    return out.getvalue()


def test_corpora(tmp_path: Path):
    """The three corpora belong together, row by row; EOS stands in them; meta.json tells."""
    for split, seed in (("train", 1), ("validation", 2)):
        preprocessed(tmp_path / f"text_{split}", seed)
    where = [f"--source={tmp_path / 'text'}", f"--data_dir={tmp_path}", "--lengths=4,8,16"]
    for k in (1, 2, 3):
        out = prepare(f"--stage={k}", *where)
        assert "train: " in out and "val: " in out
    with pytest.raises(UserError, match="exists already"):
        prepare("--stage=1", *where)
    got = [Corpus(tmp_path / f"stage{k}") for k in (1, 2, 3)]
    ends = 0
    for split in ("train", "val"):
        counts = {c.rows(split) for c in got}
        assert len(counts) == 1
        rows = np.arange(counts.pop())
        one, two, three = (
            c.batch(split, rows, size) for c, size in zip(got, (4, 12, 24), strict=True)
        )
        assert (
            not one.prompt_mask.any()
            and (two.prompt_mask.sum(1) == 4).all()
            and (three.prompt_mask.sum(1) == 8).all()
        )
        assert torch.equal(two.ids[:, :4], one.ids) and torch.equal(
            three.ids[:, :8], two.ids[:, 4:]
        )
        ends += int((three.ids[:, 8:] == got[0].specials["eos"]).sum())
    assert ends > 20
    meta = got[1].meta
    assert (meta["task"], meta["stage"], meta["lengths"]) == ("stage", 2, [4, 8, 16])
    assert meta["kept"]["train"][0] == got[1].rows("train") <= meta["kept"]["train"][1]
    assert meta["preprocessed"]["mode"] == "constituency"


def test_the_original_chunker_has_no_ends(tmp_path: Path):
    for split, seed in (("train", 1), ("validation", 2)):
        preprocessed(tmp_path / f"text_{split}", seed, mode="keybert")
    where = [f"--source={tmp_path / 'text'}", f"--data_dir={tmp_path}", "--lengths=4,8,16"]
    prepare("--stage=3", "--chunk=first", *where)
    corpus = Corpus(tmp_path / "stage3")
    ids = corpus.batch("train", np.arange(corpus.rows("train")), 24).ids
    assert not (ids == corpus.specials["eos"]).any() and corpus.rows("train") <= 60


@pytest.mark.parametrize(
    "more, words",
    [
        (["--lengths=8,4"], "lengths"),
        (["--lengths=8"], "lengths"),
        (["--lengths=a,b"], "lengths"),
        (["--lengths=4,8", "--stage=3"], "between 1 and 2"),
        (["--lengths=4,8,4000"], "no chunk of the train split"),
        (["--source=copy", "--lengths=4,40"], "32 different symbols"),
    ],
)
def test_refusals(tmp_path: Path, more: list[str], words: str):
    for split in ("train", "validation"):
        preprocessed(tmp_path / f"text_{split}", 1)
    argv = [f"--source={tmp_path / 'text'}", f"--data_dir={tmp_path / 'out'}", *more]
    with pytest.raises(UserError, match=words) as caught:
        prepare(*argv)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("*")) and not list((tmp_path / "out").glob(".*"))


def test_a_missing_shard_and_another_tokenizer(tmp_path: Path):
    preprocessed(tmp_path / "a_train", 1)
    preprocessed(tmp_path / "a_validation", 1, Bytes())
    preprocessed(tmp_path / "b_validation", 1)
    where = [f"--source={tmp_path / 'a'}", f"--data_dir={tmp_path}", "--lengths=4,8,16"]
    with pytest.raises(UserError, match=r"another tokenizer.* --tokenizer=train:9$"):
        prepare(*where)
    (tmp_path / "a_fitted" / "train_9").mkdir(parents=True)
    with pytest.raises(UserError, match=rf" --tokenizer={tmp_path}/a_fitted/train_9$"):
        prepare(*where)
    (tmp_path / "b_validation" / "shard_1").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="shard_1 is missing"):
        prepare(*where, f"--val_source={tmp_path / 'b'}")
    (tmp_path / "gone").rename(tmp_path / "b_validation" / "shard_1")
    prepare(*where, f"--val_source={tmp_path / 'b'}")


def test_the_copy_task(tmp_path: Path):
    """Eight different letters; four of them in their order, each as often as another."""
    prepare("--source=copy", "--lengths=4,8", "--stage=2", f"--data_dir={tmp_path}")
    corpus = Corpus(tmp_path / "stage2")
    batch = corpus.batch("train", np.arange(4000), 12)
    given, written = batch.ids[:, :4].tolist(), batch.ids[:, 4:].tolist()
    counts = np.zeros(8)
    for few, many in zip(given, written, strict=True):
        assert len(set(many)) == 8
        places = [many.index(i) for i in few]
        assert places == sorted(places)
        counts[places] += 1
    assert np.abs(counts / 4000 - 0.5).max() < 0.04
    assert sorted(map(tuple, written))[0] != sorted(map(tuple, written))[1]


# ---- prefixes in training ------------------------------------------------------------------------


def batch_of(B: int, T: int, prompts: list[int]) -> Batch:
    ids = torch.arange(B * T).view(B, T)
    given = torch.arange(T) < torch.tensor(prompts)[:, None]
    return Batch(ids, given, torch.full((B,), T))


def test_permutation_is_uniform_and_keeps_the_rest():
    """All orders of the given places of every row are equally likely, and rows differ."""
    batch = batch_of(3000, 5, [3] * 3000)
    got = permutation(batch.prompt_mask, generator(1))
    assert torch.equal(got[:, 3:], torch.tensor([[3, 4]]).expand(3000, 2))
    names, counts = torch.unique(got[:, :3], dim=0, return_counts=True)
    assert len(names) == 6 and (counts - 500).abs().max() < 5 * (500 * 5 / 6) ** 0.5
    uneven = batch_of(4, 6, [0, 1, 4, 6])
    moved = shuffle_prompt(uneven, generator(2))
    for a, b, keep in zip(uneven.ids, moved.ids, uneven.prompt_mask, strict=True):
        assert sorted(a[keep].tolist()) == sorted(b[keep].tolist())
        assert torch.equal(a[~keep], b[~keep])
    assert torch.equal(moved.prompt_mask, uneven.prompt_mask) and not torch.equal(
        moved.ids, uneven.ids
    )


def test_noise_spoils_its_share():
    """Some given ids of some rows become given ids of the batch; nothing else changes."""
    batch = batch_of(4000, 10, [6] * 4000)
    got = corrupt_prompt(batch, 0.4, generator(3))
    changed = got.ids != batch.ids
    assert not changed[:, 6:].any() and torch.equal(got.prompt_mask, batch.prompt_mask)
    assert set(got.ids[changed].tolist()) <= set(batch.ids[batch.prompt_mask].tolist())
    rows = changed.any(1).float().mean().item()
    assert rows == pytest.approx(0.4 * (1 - (1 - REPLACED) ** 6), abs=0.04)
    assert changed[:, :6].float().mean().item() == pytest.approx(0.4 * REPLACED, abs=0.01)
    none = batch_of(3, 4, [0, 0, 0])
    assert torch.equal(corrupt_prompt(none, 1.0, generator(3)).ids, none.ids)


def test_nothing_is_drawn_where_nothing_is_asked_for():
    rng = generator(5)
    before = rng.get_state()
    batch = batch_of(2, 4, [2, 2])
    assert augment_prompt(batch, False, 0.0, rng) is batch
    assert torch.equal(rng.get_state(), before)


@pytest.mark.parametrize("positions", ["rotary", "learned", "both"])
def test_shuffling_is_renumbering(positions: str):
    """Permuted ids under true numbers and true ids under permuted numbers: the same outputs."""
    torch.manual_seed(0)
    net = Transformer(20, 2, 2, 16, cond_dim=8, positions=positions, block_size=9).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn_like(p) * 0.3)
        batch = Batch(torch.randint(20, (3, 9)), torch.arange(9) < torch.tensor([[4]] * 3), None)
        order, sigma = permutation(batch.prompt_mask, generator(1)), torch.tensor([0.1, 1.0, 3.0])
        permuted = net.features(batch.ids.gather(1, order), sigma)[:, 4:]
        renumbered = net.features(batch.ids, sigma, positions=order.argsort(1))[:, 4:]
        plain = net.features(batch.ids, sigma)[:, 4:]
    assert (permuted - renumbered).abs().max() <= 1e-5 * permuted.abs().max()
    assert (permuted - plain).abs().max() > 1e-3


@pytest.fixture(scope="module")
def copies(tmp_path_factory: Any) -> Path:
    """Folder with the corpus `copy`."""
    root = tmp_path_factory.mktemp("copies")
    where = [f"--data_dir={root}", "--dataset=copy"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "COPIES", {"train": 300, "val": 100})
        prepare("--source=copy", "--lengths=4,8", "--stage=2", *where)
    return root


def test_a_run_resumes_exactly_and_is_evaluated_on_true_prefixes(
    copies: Path, tmp_path: Path, flags: Any, monkeypatch: Any
):
    monkeypatch.setattr(train, "gemm_peak", lambda *_: 1e12)
    more = {"data_dir": copies, "dataset": "copy", "block_size": 12, "prefix_noise": 0.5}
    more |= {"prefix_shuffle": True, "eval_interval": 3}
    seen = []
    bound = train.evaluate

    def evaluate(job: Any) -> float:
        batch = job.batch("val", 4, 0)
        monkeypatch.setattr(train, "augment_prompt", None)  # not to be called from here
        seen.append(batch)
        value = bound(job)
        monkeypatch.setattr(train, "augment_prompt", augment_prompt)
        return value

    monkeypatch.setattr(train, "evaluate", evaluate)
    train.main(flags(tmp_path / "whole", max_iters=6, **more))
    train.main(flags(tmp_path / "parts", max_iters=3, lr_decay_iters=6, **more))
    train.main(flags(tmp_path / "parts", max_iters=6, init_from="resume", **more))
    train.main(flags(tmp_path / "plain", max_iters=6, **more | {"prefix_shuffle": False}))
    whole, parts, plain = (
        checkpoint.read(tmp_path / name / "ckpt.pt")["model"]
        for name in ("whole", "parts", "plain")
    )
    assert seen and all(torch.equal(whole[k], parts[k]) for k in whole)
    assert not all(torch.equal(whole[k], plain[k]) for k in whole)


def test_loss_and_bound_are_per_written_token(
    copies: Path, tmp_path: Path, flags: Any, monkeypatch
):
    """An untrained network has ln V for each of them, whatever is given beside them."""
    monkeypatch.setattr(train, "gemm_peak", lambda *_: 1e12)
    more = {"data_dir": copies, "dataset": "copy", "block_size": 12, "batch_size": 64}
    train.main(flags(tmp_path, max_iters=1, learning_rate=0, eval_iters=20, **more))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    bound = next(line["val_bound"] for line in lines if "val_bound" in line)
    assert bound == pytest.approx(np.log(35), rel=0.03)


def test_names_of_fine_tuning(tmp_path: Path):
    """Weights to start from change where the run goes; a run that goes on keeps its folder, and so
    does a name given by hand."""
    file = str(ROOT / "config" / "stage2_shuffle.py")
    for more, name in (
        ([], "out/stage2_shuffle"),
        (["--init_from=louaaron/sedd-small"], "out/stage2_shuffle-finetuning"),
        (["--init_from=resume"], "out/stage2_shuffle"),
        (["--init_from=out/x/ckpt.pt", "--out_dir=mine"], "mine"),
    ):
        assert train.resolve(*load(Config, [file, *more])).out_dir == name


def test_configs_fit_their_corpora():
    """block_size is what is given and what is written; the four stages share all but that."""
    configs = ROOT / "config"
    for path in [*configs.glob("stage*.py"), *configs.glob("cascade_toy?.py")]:
        cfg, _ = load(Config, [str(path)])
        words = [w for w in cfg.prepare.split() if w.startswith(("--stage=", "--lengths="))]
        values, _ = load(stages.StagesConfig, words)
        assert cfg.block_size == sum([0, *values.sizes()][values.stage - 1 : values.stage + 1]), (
            path
        )
        assert cfg.dataset.endswith(f"stage{values.stage}"), path


# ---- the copy task, trained ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", [False, True])
def test_copying_is_learnt(tmp_path: Path, run_cli: Any, shuffle: bool):
    """Without shuffling the order of the prefix is used, with it it is not."""
    from cascade import chain

    argv = ["config/cascade_copy.py", f"--prefix_shuffle={shuffle}", "--threads=1"]
    where = [f"--data_dir={tmp_path / 'data'}", f"--out_dir={tmp_path / 'out'}"]
    done = run_cli("train.py", *argv, *where, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    model = checkpoint.load(str(tmp_path / "out" / "ckpt.pt"))
    batch = Corpus(tmp_path / "data" / "cascade_copy").batch("val", np.arange(1000), 12)
    other = shuffle_prompt(batch, generator(2))
    true, permuted = (
        float(model.objective.bound(model.net, b, generator(1), 4).mean()) for b in (batch, other)
    )
    stage = chain.Stage("", 2, model, 4, 8)
    cfg = chain.CascadeConfig(cascade="x", steps=32)
    made = chain.write_stage(cfg, stage, batch.ids[:512, :4])
    overlap = float(chain.overlap(batch.ids[:512, :4], made.ids).mean())
    print(f"shuffle={shuffle}: {true:.2f} and {permuted:.2f} nats, overlap {overlap:.3f}")
    if shuffle:
        assert abs(true - permuted) < 0.5
    else:
        assert overlap >= 0.6 and true <= 21 and permuted > true + 2
