"""Questions and answers from end to end: prepared, trained and asked through real processes at toy
size; answers of a batch are those of each question alone; and a network learns what it is told."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import evaluate
import sample
from checkpoint import Model, build_network, build_objective, load
from configurator import Config, UserError
from corpus import Batch
from objective import SampleOptions, generator
from sample import (
    Prompt,
    SampleConfig,
    answer_canvas,
    answer_defaults,
    chat_canvas,
    converse,
    generate,
    written_ids,
)
from tokenizer import ASSISTANT, HF, USER, chat_rows, decode_answer, encode_chat
from train import make_optimizers

pytest.importorskip("tokenizers")

BLOCK = 64
PAIRS = [  # no answer begins with a newline or is empty
    ("one plus one?", "two"),
    ("two plus two?", "four"),
    ("name a colour", "red"),
    ("name two colours", "red and blue"),
    ("say no", "no"),
    ("say yes", "yes"),
    ("who are you?", "a small network"),
    ("what is a cat?", "an animal"),
]
TOY = {
    "objective": "masked",
    "loss_per": "answer",
    "padding": "crop",
    "time_input": False,
    "block_size": BLOCK,
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "batch_size": 4,
    "max_iters": 4,
    "eval_interval": 4,
    "eval_iters": 1,
    "device": "cpu",
}


def error_of(action: Any, *arguments: Any) -> str:
    """The line that refuses."""
    with pytest.raises(UserError) as caught:
        action(*arguments)
    assert str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


# ---- as a user does it -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, run_cli: Any) -> Path:
    """A corpus from a file, and a run of four steps on it, both by real processes."""
    root = tmp_path_factory.mktemp("chat")
    rows = [{"prompt": q, "response": a} for q, a in PAIRS]
    (root / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    argv = "--source=asked.jsonl --tokenizer=train:290 --context_length=64 --test_split_pct=0.25"
    done = run_cli("prepare_sft.py", *argv.split(), "--dataset=asked", cwd=root)
    assert done.returncode == 0 and "6 rows" in done.stdout, done.stdout + done.stderr
    flags = [f"--{k}={v}" for k, v in {**TOY, "dataset": "asked"}.items()]
    done = run_cli("train.py", *flags, cwd=root)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def ckpt(folder: Path) -> str:
    return f"--ckpt={folder / 'out' / 'ckpt.pt'}"


def test_a_question_by_command(ckpt: str, run_cli: Any):
    """An answer, then what it took: one sample, confidence order, nothing on stderr."""
    done = run_cli("sample.py", ckpt, "--chat", "--prompt=say no", "--max_length=5")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    answer, cost = done.stdout.rsplit("\n\n", 1)
    assert re.match(r"1 samples by confidence, [\d.]+ network calls each", cost)
    assert "<EOS>" not in answer and "user" not in done.stdout  # nothing of the prompt


def test_a_conversation_through_a_pipe(ckpt: str, folder: Path, helpers: Any):
    """A line per answer and question, until the end of the input; costs go to stderr."""
    command = [sys.executable, str(helpers.repo / "sample.py"), ckpt, "--chat", "--max_length=3"]
    done = subprocess.run(
        command,
        input="say no\nsay yes\n",
        capture_output=True,
        text=True,
        env=helpers.env(),
        cwd=folder,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"network calls, [\d.]+ s\)", done.stderr)) == 2
    assert "> " not in done.stdout  # a prompt is for terminals
    assert len(done.stdout.splitlines()) >= 2  # an answer of an untrained network may hold any


@pytest.mark.parametrize("data", [b"\xef\xbb\xbfsay no\n", b"caf\xe9\n"])
def test_a_mark_and_other_encodings_through_a_pipe(data: bytes, monkeypatch: Any):
    """A mark is no part of a question, and what is no UTF-8 is refused in a line."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
    if data.startswith(b"caf"):
        with pytest.raises(UserError, match="the question is no UTF-8"):
            sample.ask()
    else:
        assert sample.ask() == "say no" and sample.ask() == ""


def test_animation_in_a_terminal(ckpt: str, folder: Path, helpers: Any):
    """In a pseudo-terminal the canvas is redrawn in place, and the cursor comes back."""
    command = [sys.executable, str(helpers.repo / "sample.py"), ckpt, "--chat"]
    command += ["--prompt=say no", "--show", "--max_length=4"]
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        command, stdout=theirs, stderr=theirs, stdin=theirs, env=helpers.env(TERM="xterm")
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # Linux says so when the last writer is gone
            break
        if not piece:
            break
        seen += piece
    os.close(ours)
    assert child.wait(60) == 0, seen
    shown = seen.decode()
    assert "\x1b[?25l" in shown and "\x1b[?25h" in shown and "░" in shown
    assert "step " in shown and "say no" in shown and "1 samples by confidence" in shown


def test_evaluation(ckpt: str, folder: Path, monkeypatch: Any, capsys: Any):
    """The bound of the answers, then how many sampled ones are right in both splits, counted."""
    monkeypatch.chdir(folder)
    evaluate.main([ckpt, "--json=found.json", "--t_samples=1"])
    printed = capsys.readouterr().out
    assert re.search(r"val: at most [\d.]+ .*\n.* 2 rows", printed)
    for split, rows in (("train", 6), ("val", 2)):
        assert re.search(rf"{split}: \d of {rows} answers exact .* tokens right", printed)
    assert "sampler=confidence temperature=0.0" in printed
    got = json.loads((folder / "found.json").read_text())
    model = load(str(folder / "out" / "ckpt.pt"))
    wanted = [len(model.tokenizer.encode("\n" + a)) for _, a in PAIRS]
    counts = [got["samples"][s]["answers"] for s in ("train", "val")]
    assert sum(c["tokens"] for c in counts) == sum(wanted)
    assert got["bound"]["tokens"] == counts[1]["tokens"] + 2  # each with EOS
    assert got["bound"]["bytes"] in {
        len(f"\n{a}\n{b}") for _, a in PAIRS for _, b in PAIRS if a != b
    }


@pytest.mark.parametrize(
    "options",
    [
        "--block_length=4",
        "--block_length=5 --steps=3",
        "--unmask_schedule=threshold --threshold=0.02",
        "--unmask_schedule=factor --factor=0.9 --sampler=margin",
        "--unmask_schedule=cosine --steps=4 --sampler=entropy",
        "--cfg=0.5",
        "--cache=prefix --block_length=4",
        "--cache=dual --block_length=4 --cfg=0.5",
        "--remask=conf --steps=20",
        "--delay_eos",
        "--sampler=ancestral --temperature=1 --top_p=0.9 --num_samples=3",
        "--num_samples=3 --batch_size=2 --temperature=1 --sampler=first_hitting",
    ],
)
def test_options_of_the_sampler(ckpt: str, folder: Path, options: str, capsys: Any):
    sample.main([ckpt, "--chat", "--prompt=say yes", "--max_length=9", *options.split()])
    printed = capsys.readouterr().out
    number = 3 if "num_samples" in options else 1
    name = re.search(r"sampler=(\w+)", options)
    assert f"{number} samples by {name[1] if name else 'confidence'}" in printed
    kept = [o for o in options.split() if not o.startswith(("--num", "--batch"))]
    few = ["--rows=0", "--samples=2", "--max_length=9", "--batch_size=1"]
    evaluate.main([ckpt, f"--data={folder / 'data' / 'asked'}", *few, *kept])
    assert "of 2 answers exact" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, words",
    [
        ("--prompt=" + "?" * BLOCK, ["of conversation", f"block of {BLOCK}"]),
        ("--prompt=a --max_length=60", ["60 of answer", f"block of {BLOCK}"]),
        ("--palindrome --prompt=a", ["chat", "palindrome"]),
        ("--prompt=FILE:/no/such", ["/no/such"]),
        ("--prompt=a --cache=prefix --remask=cap", ["cache", "remask"]),
        ("--prompt=a --sampler=analytic", ["sampler", "confidence"]),
    ],
)
def test_refusals(ckpt: str, options: str, words: list[str]):
    message = error_of(sample.main, [ckpt, "--chat", *options.split()])
    for word in words:
        assert word in message


def test_a_tokenizer_without_a_chat_is_refused(trained: Any):
    ckpt = f"--ckpt={trained() / 'ckpt.pt'}"
    message = error_of(sample.main, [ckpt, "--chat", "--prompt=a"])
    assert "symbols tokenizer" in message and "no start, end, eot" in message


# ---- conversations -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> HF:
    return HF.train([text for pair in PAIRS for text in pair] * 5, 290)


def new_model(tokenizer: HF, spread: float = 0.0, **options: Any) -> Model:
    """An untrained network; with `spread`, random weights everywhere."""
    small = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": BLOCK, "time_input": False}
    cfg = Config(**{**small, "objective": "masked", **options})
    meta = {"vocab_size": tokenizer.vocab_size, "specials": tokenizer.specials, "task": "chat"}
    meta["splits"] = {"train": {"rows": len(PAIRS), "tokens": 1, "longest": BLOCK}}
    objective = build_objective(cfg, meta)
    torch.manual_seed(0)
    net = build_network(cfg, objective).eval()
    with torch.no_grad():
        for p in net.parameters() if spread else ():
            p.normal_(std=spread)
    return Model(net, objective, tokenizer, cfg, meta, 0)


def test_history_that_does_not_fit_is_dropped_from_its_beginning(tokenizer: HF, monkeypatch: Any):
    """The network is shown whole turns only: the latest question, and what fits before it."""
    block, shown, asked = 140, [], iter(f"question {i}" for i in range(6))
    model = new_model(tokenizer, block_size=block)
    monkeypatch.setattr(sample, "ask", lambda: next(asked, ""))

    def answer(cfg: Any, model: Model, messages: list, watch: Any) -> Any:
        shown.append(list(messages))
        return [f"answer {len(shown)}"], sample.Samples(torch.zeros(1, 1), [], 1.0, 1, 1)

    monkeypatch.setattr(sample, "answer", answer)
    values = SampleConfig(max_length=10, chat=True)
    converse(answer_defaults(values, {}, model.objective.samplers), model)
    assert len(shown) == 6 and shown[0] == [(USER, "question 0")]
    assert shown[1] == [(USER, "question 0"), (ASSISTANT, "answer 1"), (USER, "question 1")]
    dropped = 0
    for i, messages in enumerate(shown):
        assert messages[-1] == (USER, f"question {i}") and messages[0][0] == USER
        size = len(encode_chat(tokenizer, messages, reply=True)) + 10
        assert size <= block
        first = int(messages[0][1].split()[1])
        dropped += first > 0
        if first:  # one turn more would not have fitted
            before = [(USER, f"question {first - 1}"), (ASSISTANT, f"answer {first}")]
            assert len(encode_chat(tokenizer, before + messages, reply=True)) + 10 > block
    assert dropped >= 2


def test_an_answer_is_cut_at_its_first_eos_and_knows_nothing_of_the_prompt(tokenizer: HF):
    """Earlier answers end in EOS too, and the words of the template may be part of an answer."""
    model = new_model(tokenizer, block_size=90)
    said = [(USER, "say no"), (ASSISTANT, "no"), (USER, "say yes")]
    begun = chat_canvas(model, said)
    prompt, eos = int(begun.prompt_mask.sum()), tokenizer.specials["eos"]
    assert begun.ids[:prompt].tolist() == encode_chat(tokenizer, said, reply=True)
    assert (begun.ids[:prompt] == eos).sum() == 1 and len(begun.ids) == 90
    ids = begun.ids.clone()
    answer = [*tokenizer.encode("\nassistant user say yes"), eos, *tokenizer.encode("more")]
    ids[prompt : prompt + len(answer)] = torch.tensor(answer)
    [written] = written_ids(model, ids[None], [begun])
    assert written == answer[: answer.index(eos) + 1]
    assert decode_answer(tokenizer, ids[prompt:].tolist()) == "assistant user say yes"


# ---- a batch is its rows -----------------------------------------------------------------------

HOW = [
    {"sampler": "confidence"},
    {"sampler": "margin", "unmask_schedule": "cosine", "steps": 5},
    {"sampler": "entropy", "block_length": 7, "steps": 9},
    {"sampler": "confidence", "unmask_schedule": "threshold", "threshold": 0.3, "block_length": 8},
    {"sampler": "confidence", "unmask_schedule": "factor", "factor": 2.0},
    {"sampler": "confidence", "cfg": 1.0, "steps": 11},
    {"sampler": "confidence", "steps": 6, "delays": True},
]


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("how", HOW, ids=lambda how: "-".join(map(str, how.values())))
def test_unequal_canvases_are_written_as_each_alone(tokenizer: HF, positions: str, how: dict):
    """Prompts and canvases of different lengths, with an end of text that stops a row early."""
    model = new_model(tokenizer, 0.35, positions=positions)
    special = tokenizer.specials
    ends = (special["eos"], special["eot"]) if "delays" in how else ()
    values = {k: v for k, v in how.items() if k != "delays"}
    options = SampleOptions(temperature=0.0, stop=special["eos"], delay=ends, **values)
    begun = [
        answer_canvas(model, encode_chat(tokenizer, [(USER, question)], reply=True), length)
        for length, (question, _) in zip((5, 9, 20, 0, 13, 1), PAIRS, strict=False)
    ]
    assert len({len(c.ids) for c in begun}) > 4
    together = generate(model, begun, options)
    for row, text, one in zip(together.ids, together.texts, begun, strict=True):
        alone = generate(model, [one], options)
        assert row[: len(one.ids)].tolist() == alone.ids[0].tolist()
        assert (row[len(one.ids) :] == special["pad"]).all()
        assert text == alone.texts[0]
        assert special["mask"] not in row.tolist()
    shuffled = generate(model, begun[::-1], options, batch_size=4)
    for a, b, one in zip(shuffled.ids.flip(0), together.ids, begun, strict=True):
        assert torch.equal(a[: len(one.ids)], b[: len(one.ids)])


def test_texts_of_samples_are_their_ids_decoded(tokenizer: HF):
    """One text per canvas, in order, prompt included, up to the first EOS; nothing of the padding
    behind a shorter canvas."""
    model = new_model(tokenizer, 0.35)
    ids = [tokenizer.encode(text) for text in ("say", "name two colours", "who")]
    sizes = [len(i) + n for i, n in zip(ids, (3, 6, 1), strict=True)]
    begun = [Prompt.of([*i, *[None] * (n - len(i))]) for i, n in zip(ids, sizes, strict=True)]
    plain = [i for i in range(tokenizer.vocab_size) if i < 5 or i >= 285]  # all special tokens
    got = generate(model, begun, SampleOptions(steps=3, banned=tuple(plain)), seed=3, batch_size=2)
    assert got.ids.shape == (3, max(len(c.ids) for c in begun)) and got.rows > 3
    for row, text, one in zip(got.ids, got.texts, begun, strict=True):
        assert text == tokenizer.codec.decode(row[: len(one.ids)].tolist())
    assert [t.startswith(p) for t, p in zip(got.texts, ("say", "name", "who"), strict=True)]


# ---- what is told is learnt --------------------------------------------------------------------


def test_eight_answers_are_learnt_by_heart(tokenizer: HF):
    """A few seconds of training on eight pairs; then every answer is written exactly, each alone
    and all at once, in several orders; and a wrong answer is far less likely."""
    size = max(len(chat_rows(tokenizer, [(USER, q), (ASSISTANT, a)])[0][0]) for q, a in PAIRS)
    values = {"optimizer": "muon", "learning_rate": 5e-3, "muon_lr": 0.02, "loss_per": "answer"}
    model = new_model(tokenizer, block_size=size, noise="affine", positions="learned", **values)
    pad, eos = (tokenizer.specials[k] for k in ("pad", "eos"))
    rows = [chat_rows(tokenizer, [(USER, q), (ASSISTANT, a)])[0] for q, a in PAIRS]
    ids = torch.tensor([r + [pad] * (size - len(r)) for r, _ in rows])
    given = torch.arange(size) < torch.tensor([[prompt] for _, prompt in rows])
    length = torch.tensor([len(r) for r, _ in rows])
    batch = Batch(ids.repeat(4, 1), given.repeat(4, 1), length.repeat(4))
    optimizers = make_optimizers(model.config, model.net.train(), torch.device("cpu"))
    for step in range(250):
        for group in (g for o in optimizers for g in o.param_groups):
            group["lr"] = group["peak"] * min(1, 2 - step / 125)
        loss = model.objective.loss(model.net, model.objective.corrupt(batch, generator(0, step)))
        (loss.sum / loss.count).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    model.net.eval()
    begun = [chat_canvas(model, [(USER, question)]) for question, _ in PAIRS]
    for how in ({}, {"steps": 3}, {"sampler": "entropy"}, {"unmask_schedule": "threshold"}):
        options = SampleOptions(**{"sampler": "confidence", "temperature": 0.0, "stop": eos, **how})
        made = generate(model, begun, options)
        for (_, answer), row, one in zip(PAIRS, made.ids, begun, strict=True):
            assert decode_answer(tokenizer, row[one.prompt_mask.sum() :].tolist()) == answer
    cfg = replace(SampleConfig(), chat=True)
    pairs = [(PAIRS[0][0], "two"), (PAIRS[0][0], "four")]
    right, wrong = evaluate.score_answers(cfg, model, pairs, 64, 2)
    assert right["greedy"] and not wrong["greedy"]
    assert right["nats"] > -1 and wrong["nats"] < right["nats"] - 5
