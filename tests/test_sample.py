"""sample.py, evaluate.py: what is given stays, what is asked for comes, and every
option has a defined result. Samplers run on random networks, so nothing here is owed to training.
"""

import contextlib
import io
import itertools
import math
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import file_forms
import numpy as np
import pytest
import torch

import evaluate
import sample
import train
from checkpoint import Model, build_network, build_objective, load
from configurator import Config, UserError
from corpus import Corpus
from diffusion import SAMPLERS
from objective import Frame, SampleOptions, generator, process_logits, sample_categorical
from sample import (
    Prompt,
    SampleConfig,
    _pieces,
    any_length,
    canvas,
    canvases,
    generate,
    has_bos_eos,
    read_prompt,
)
from tokenizer import Symbols

LETTERS = "abcd"
LONGEST = 8  # tokens of the longest training row: BOS, six letters, EOS
BLOCK = 10  # positions: more than any training row needs

# every graph and form of score, with and without time
FORMS = {
    "sedd absorb": {"graph": "absorb"},
    "sedd geometric": {"graph": "absorb", "noise": "geometric"},
    "sedd unscaled": {"graph": "absorb", "scale_by_sigma": False},
    "radd": {"graph": "absorb", "normalize": True},
    "radd without time": {"graph": "absorb", "normalize": True, "time_input": False},
    "sedd uniform": {"graph": "uniform"},
    "sedd uniform geometric": {"graph": "uniform", "noise": "geometric"},
}


def samplers(told: dict) -> tuple[str, ...]:
    """Those of a form: the grids, and on the absorbing graph all the others."""
    return ("analytic", "euler", *(SAMPLERS if told["graph"] == "absorb" else ()))


PAIRS = [
    pytest.param(form, name, id=f"{form}-{name}")
    for form, told in FORMS.items()
    for name in samplers(told)
]


def random_model(form: str, frame: bool = True, spread: float = 2.0) -> Model:
    """A model on four letters with random weights, as `checkpoint.load` returns it; `spread` is the
    standard deviation of its outputs."""
    tok = Symbols(list(LETTERS))
    size = {"n_layer": 1, "n_head": 2, "n_embd": 16, "cond_dim": 8, "block_size": BLOCK}
    cfg = Config(**size, **FORMS[form])
    meta: dict[str, Any] = {"vocab_size": tok.vocab_size, "specials": tok.specials}
    if frame:
        meta["splits"] = {"train": {"longest": LONGEST, "rows": 1, "tokens": LONGEST}}
    objective = build_objective(cfg, meta)
    net = build_network(cfg, objective).eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=rng) * 0.3)
        ids = torch.randint(0, tok.vocab_size, (9, BLOCK), generator=rng)
        time = None if net.time is None else torch.linspace(0, 5, 9)
        net.head.bias.zero_()
        net.head.weight.mul_(spread / net.logits(net.features(ids, time)).std())
    return Model(net, objective, tok, cfg, meta, 0)


def told(action: Any, *arguments: Any, **named: Any) -> str:
    """The line that refuses."""
    with pytest.raises(UserError) as caught:
        action(*arguments, **named)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def written(model: Model, begun: Prompt, options: SampleOptions, seed: int = 0, n: int = 6) -> Any:
    """Samples of one canvas, with the checks that hold for all of them."""
    found = generate(model, [begun] * n, options, seed)
    assert found.ids.shape == (n, len(begun.ids)) and len(found.texts) == n
    assert (found.ids[:, begun.prompt_mask] == begun.ids[begun.prompt_mask]).all()
    assert ((found.ids >= 0) & (found.ids < model.tokenizer.vocab_size)).all()  # MASK is above
    return found


# ---- what stdout cannot print ------------------------------------------------------------------

NARROW = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "strict": {"PYTHONIOENCODING": "ascii:strict"},  # of stderr, too
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.fixture(scope="module")
def greek(tmp_path_factory: Any, helpers: Any) -> Path:
    """The run of a model of four characters that no narrow encoding has, and its corpus."""
    root = tmp_path_factory.mktemp("greek")
    texts = {"train": ["αβ→→βα", "é→→é"] * 20, "val": ["α→→α"] * 12}
    helpers.write_corpus(root / "tiny", texts, Symbols(list("αβé→")))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(train, "gemm_peak", lambda *_: 1e12)
        train.main(helpers.flags(root / "out", data_dir=root, max_iters=2, eval_interval=2))
    return root


@pytest.mark.parametrize(
    "encoding, command",
    [
        *(("ascii", "sample"), ("ascii", "show"), ("strict", "sample"), ("strict", "train")),
        *(("latin-1", "sample"), ("latin-1", "evaluate"), ("C", "file"), ("C", "train")),
    ],
)
def test_output_that_is_not_utf8(greek: Path, helpers: Any, encoding: str, command: str):
    """Escapes for what the encoding lacks, and no traceback; exit code as ever."""
    ckpt = f"--ckpt={greek / 'out/ckpt.pt'}"
    (greek / "µ.txt").write_text("α→", encoding="utf-8")
    argv = {
        "sample": ["sample.py", ckpt, "--num_samples=2", "--steps=4", "--prompt=α→"],
        "show": ["sample.py", ckpt, "--num_samples=1", "--steps=4", "--show"],
        "file": ["sample.py", ckpt, "--num_samples=1", f"--prompt=FILE:{greek / 'µ.txt'}"],
        "evaluate": ["evaluate.py", ckpt, "--num_samples=2", "--prompt=α→"],
        "train": ["train.py", *helpers.flags(greek / "ü→", data_dir=greek, dataset="α")],
    }[command]
    done = subprocess.run(
        [sys.executable, helpers.repo / argv[0], *argv[1:]],
        env=helpers.env(**NARROW[encoding]),
        capture_output=True,
        timeout=120,
    )
    out, err = (x.decode("latin-1") for x in (done.stdout, done.stderr))
    assert "Traceback" not in out + err and "codec" not in out + err
    refused = {"train", "evaluate"}
    assert done.returncode == (2 if command in refused else 0), err
    if command in refused:
        assert len(err.strip().splitlines()) == 1
    elif command != "show":
        assert "\\u03b1\\u2192" in out
        assert f"seed 1337 in batches of {2 if command == 'sample' else 1}" in out


def test_a_broken_character_is_printed_as_an_escape(helpers: Any):
    """What a name or a file may hold, whatever the encoding."""
    code = "import configurator; configurator.run(lambda argv: print('a\\udcc3é'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=helpers.env(PYTHONPATH=helpers.repo, PYTHONIOENCODING="utf-8"),
        capture_output=True,
    )
    assert done.returncode == 0 and done.stdout == "a\\udcc3é\n".encode()


def test_a_question_that_is_not_in_the_encoding_is_a_line(monkeypatch: pytest.MonkeyPatch):
    stream = io.TextIOWrapper(io.BytesIO("é\n".encode()), encoding="ascii")
    monkeypatch.setattr(sys, "stdin", stream)
    assert "no ASCII" in told(sample.ask)


@pytest.mark.parametrize("path", sorted(p.name for p in Path(__file__).parent.parent.glob("*.py")))
def test_every_command_runs_through_run(path: str):
    """Which is where mistakes become a line and unprintable characters escapes."""
    text = (Path(__file__).parent.parent / path).read_text(encoding="utf-8")
    if '__main__":' in text:
        assert "    run(main)\n" in text


# ---- what is given stays, and no MASK is left --------------------------------------------------


@pytest.mark.parametrize("form, sampler", PAIRS)
@pytest.mark.parametrize("steps", [1, 3, 50])
def test_every_sampler_finishes(form: str, sampler: str, steps: int):
    """Faults 33 and 34: one step, few, and many more than there are places."""
    model = random_model(form, frame=False)
    ids = torch.randint(0, 7, (BLOCK,), generator=torch.Generator().manual_seed(1))
    given = torch.arange(BLOCK) % 3 == 1
    begun = Prompt(ids, given)
    for seed in range(3):
        found = written(model, begun, SampleOptions(steps=steps, sampler=sampler), seed)
        free = found.ids[:, ~given]
        assert len(free.unique()) > 1


@pytest.mark.parametrize("form, sampler", PAIRS)
def test_frames_never_touch_what_is_given(form: str, sampler: str):
    """In every frame, not only in the last; `changed` is what changed; written places stay so on
    the absorbing graph."""
    model = random_model(form, frame=False)
    ids = torch.randint(0, 7, (4, BLOCK), generator=torch.Generator().manual_seed(2))
    given = torch.rand(4, BLOCK, generator=torch.Generator().manual_seed(3)) < 0.4
    options = SampleOptions(steps=6, sampler=sampler)
    frames = list(model.objective.sample(model.net, ids, given, generator(1), options))
    assert len(frames) >= 2 and not frames[0].changed.any()
    for before, after in itertools.pairwise(frames):
        assert (after.ids[given] == ids[given]).all()
        assert torch.equal(after.changed, after.ids != before.ids)
        assert (after.length == BLOCK).all()
        if model.objective.mask_id is not None:
            assert (before.ids[after.changed] == model.objective.mask_id).all()
    if model.objective.mask_id is not None:
        assert (frames[0].ids[~given] == model.objective.mask_id).all()
        assert (frames[-1].ids != model.objective.mask_id).all()


@pytest.mark.parametrize("form, sampler", PAIRS)
def test_nothing_to_write(form: str, sampler: str):
    """All places given: the canvas comes back as it is."""
    model = random_model(form, frame=False)
    ids = torch.randint(0, 7, (BLOCK,), generator=torch.Generator().manual_seed(1))
    begun = Prompt(ids, torch.ones(BLOCK, dtype=torch.bool))
    assert (written(model, begun, SampleOptions(steps=4, sampler=sampler)).ids == ids).all()


@pytest.mark.parametrize("form, sampler", PAIRS)
def test_same_seed_same_text(form: str, sampler: str):
    model = random_model(form)
    options, begun = SampleOptions(steps=5, sampler=sampler), [canvas(model, length=5)] * 8
    a, b, c = (generate(model, begun, options, seed).ids for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("form, sampler", PAIRS)
def test_temperature_zero_is_one_text(form: str, sampler: str):
    """At temperature 0 all places revealed in one step get their most probable token."""
    model = random_model(form, frame=False)
    blank = Prompt.of([None] * BLOCK)
    if sampler != "confidence":  # only there does the order depend on no draw
        written(model, blank, SampleOptions(steps=3, sampler=sampler, temperature=0))
        return
    options = SampleOptions(steps=3, sampler=sampler, temperature=0)
    ids = [written(model, blank, options, seed).ids for seed in (1, 2)]
    assert torch.equal(*ids) and (ids[0] == ids[0][0]).all()


EXTREMES = [
    {"temperature": 0},
    {"temperature": 1e-8},
    {"temperature": 100.0},
    {"top_k": 1},
    {"top_k": 10**6},
    {"top_p": 0.0},
    {"top_p": 1.0},
    {"top_p": 1e-9, "top_k": 2, "temperature": 0.5},
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("extreme", EXTREMES, ids=str)
def test_extreme_options(form: str, extreme: dict):
    """Fault 32: defined results for every sampler, with mirrored pairs as well."""
    model = random_model(form)
    begun = canvas(model, length=6)
    pair = canvas(model, length=6, mirrored=True)
    for sampler in samplers(FORMS[form]):
        options = SampleOptions(steps=3, sampler=sampler, **extreme)
        written(model, begun, options, n=2)
        for text in written(model, pair, options, n=2).texts:
            assert len(text) == 6 and text == text[::-1]


@pytest.mark.parametrize(
    "values, words",
    [
        ({"steps": 0}, ["steps", "at least 1", "0"]),
        ({"steps": -3}, ["steps"]),
        ({"temperature": -0.1}, ["temperature", "at least 0"]),
        ({"top_k": -1}, ["top_k", "at least 0"]),
        ({"top_p": -0.1}, ["top_p", "between 0 and 1"]),
        ({"top_p": 1.1}, ["top_p", "between 0 and 1", "1.1"]),
    ],
)
def test_options_out_of_range(values: dict, words: list[str]):
    message = told(SampleOptions, **values)
    for word in words:
        assert word in message


def test_samplers_of_the_other_graph():
    """Named, with those that there are; not a KeyError, not another sampler."""
    for form, name in (
        ("sedd uniform", "confidence"),
        ("radd", "bogus"),
        ("sedd uniform", "ancestral"),
    ):
        model = random_model(form)
        message = told(written, model, canvas(model), SampleOptions(sampler=name))
        assert repr(name) in message and "analytic" in message


# ---- options act as they say -------------------------------------------------------------------


def test_sharpen():
    """Against the definition, on one row; ties and all."""
    z = torch.tensor([[1.0, 3.0, 2.0, 0.0]])

    def kept(**o: Any) -> list[float]:
        return [round(p, 6) for p in process_logits(z, SampleOptions(**o)).softmax(-1)[0].tolist()]

    p = z[0].double().softmax(-1)
    assert kept() == [round(x, 6) for x in p.tolist()]
    assert kept(temperature=0) == kept(top_k=1) == kept(top_p=0.0) == [0, 1, 0, 0]
    assert kept(temperature=1e-8) == [0, 1, 0, 0]
    assert kept(top_k=4) == kept(top_k=9) == kept(top_p=1.0) == kept()
    pair = [0, float(p[1] / (p[1] + p[2])), float(p[2] / (p[1] + p[2])), 0]
    assert np.allclose(kept(top_k=2), pair, atol=1e-5)
    assert np.allclose(kept(top_p=0.7), pair, atol=1e-5)  # 0.644 does not hold 0.7, two do
    assert kept(top_p=0.6) == [0, 1, 0, 0]  # the token that crosses stays
    assert np.allclose(kept(temperature=100.0), [0.25] * 4, atol=0.01)
    halves = process_logits(z, SampleOptions(temperature=2.0)).softmax(-1)
    assert torch.allclose(halves, (z.double() / 2).softmax(-1))


def test_draws_follow_the_weights():
    """20000 draws: within four standard deviations, and never a token of weight zero."""
    z = torch.tensor([1.0, 3.0, -torch.inf, 0.0]).expand(20000, 4)
    counts = sample_categorical(z, SampleOptions(), generator(3)).bincount(minlength=4) / 20000
    p = z[0].double().softmax(-1)
    assert counts[2] == 0 and ((counts - p).abs() < 4 * (p * (1 - p) / 20000).sqrt() + 1e-12).all()


# ---- canvases ----------------------------------------------------------------------------------

PAD, BOS, EOS = 4, 5, 6


def shown(c: Prompt) -> str:
    """A canvas as text: letters that are given, . for what is to be written, ^ $ _ for specials."""
    names = [*LETTERS, "_", "^", "$"]
    pairs = zip(c.ids.tolist(), c.prompt_mask.tolist(), strict=True)
    return "".join(names[i] if g else "." for i, g in pairs)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({}, "^........."),  # the model decides where the text ends
        ({"prompt": "ab"}, "^ab......."),
        ({"prompt": "abcdabcd"}, "^abcdabcd."),
        ({"length": 4}, "^....$____"),
        ({"length": 8}, "^........$"),
        ({"prompt": "ab", "length": 4}, "^ab..$____"),
        ({"prompt": "ab", "length": 2}, "^ab$______"),
        ({"max_length": 3}, "^...._____"),  # three letters and an end, or less
        ({"prompt": "abc", "max_length": 3}, "^abc._____"),
        ({"max_length": 8}, "^........."),
        ({"infill": "a[3]b"}, "^a...b$___"),
        ({"infill": "[2]"}, "^..$______"),
        ({"infill": "[1]ab[02]"}, "^.ab..$___"),
        ({"infill": "abc"}, "^abc$_____"),
    ],
)
def test_framed_canvases(arguments: dict, expected: str):
    model = random_model("radd")
    assert has_bos_eos(model) and shown(canvas(model, **arguments)) == expected


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({}, ".........."),
        ({"prompt": "abc"}, "abc......."),
        ({"length": 4}, "...."),
        ({"max_length": 5}, "....."),
        ({"infill": "a[3]b"}, "a...b"),
    ],
)
def test_canvases_without_a_frame(arguments: dict, expected: str):
    """A stream or published weights: every position is text."""
    model = random_model("radd", frame=False)
    assert not has_bos_eos(model) and shown(canvas(model, **arguments)) == expected


@pytest.mark.parametrize(
    "text, pieces",
    [
        ("s[3]s", ["s", "3", "s"]),
        ("[*]", ["", "*", ""]),
        ("[1][2]", ["", "1", "", "2", ""]),
        (r"v\[0]+v\[1]", ["v[0]+v[1]"]),
        (r"\[*][2]", ["[*]", "2", ""]),
        (r"v\[[3]]", ["v[", "3", "]"]),
        (r"a\\[3]", ["a\\", "3", ""]),  # a backslash, then a hole
        (r"a\\\[3]", [r"a\[3]"]),
        (r"\frac\\ \x", [r"\frac\\ \x"]),  # elsewhere a backslash is itself
        ("v[i] [3 ] [-1] [] [٣] [*2]", ["v[i] [3 ] [-1] [] [٣] [*2]"]),
        ("a[3]\n[2]b", ["a", "3", "\n", "2", "b"]),
    ],
)
def test_holes_and_brackets(text: str, pieces: list[str]):
    assert _pieces(text) == pieces
    assert any_length(text) == ("*" in pieces[1::2])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"prompt": "abcdabcda"}, ["9", "8"]),
        ({"length": 9}, ["9", "8"]),
        ({"infill": "[9]"}, ["9", "8"]),
        ({"prompt": "abc", "max_length": 2}, ["3", "2"]),
        ({"max_length": 9}, ["9", "8"]),
        ({"prompt": "abc", "length": 2}, ["2", "3"]),
        ({"prompt": "axb"}, ["'x'", "vocabulary"]),
        ({"infill": "a[b"}, ["'['", "vocabulary"]),
        ({"infill": "[99999999999999999999]"}, ["8"]),
        ({"infill": "a[0]"}, ["[0]", "no tokens", r"\[0]"]),
        ({"infill": "[1]a[00]"}, ["[00]", "no tokens"]),
        ({"infill": "a[*][0]"}, ["no tokens"]),
        ({"infill": r"a\[3]"}, ["'['", "vocabulary"]),  # text, which these letters do not have
        ({"infill": "a[٣]"}, ["'['", "vocabulary"]),  # digits of other scripts are text
        ({"infill": "a[²]"}, ["'['", "vocabulary"]),
    ],
)
def test_what_does_not_fit(arguments: dict, words: list[str]):
    """Fault 48: a prompt is never cut."""
    message = told(canvas, random_model("radd"), **arguments)
    for word in words:
        assert word in message


@pytest.mark.parametrize("frame", [True, False])
@pytest.mark.parametrize("length", [1, 2, 5, 6])
def test_mirrors(frame: bool, length: int):
    """The axis lies inside the text; the frame mirrors nothing."""
    c = canvas(random_model("radd", frame=frame), length=length, mirrored=True)
    places = torch.arange(len(c.ids))
    text = places[int(frame) : int(frame) + length]
    assert c.mirror[text].tolist() == text.tolist()[::-1]
    assert torch.equal(c.mirror[c.mirror], places)
    outside = places[(places < int(frame)) | (places >= int(frame) + length)]
    assert torch.equal(c.mirror[outside], outside)


def test_mirror_of_what_is_given():
    model = random_model("radd")
    assert shown(canvas(model, "ab", length=6, mirrored=True)) == "^ab..ba$__"
    assert shown(canvas(model, infill="a[2]c[1]", mirrored=True)) == "^ac.ca$___"
    assert shown(canvas(model, infill="[5]", mirrored=True)) == "^.....$___"
    assert shown(canvas(model, infill="[1]b[1]", mirrored=True)) == "^.b.$_____"
    message = told(canvas, model, infill="a[2]b", mirrored=True)
    assert "'a'" in message and "'b'" in message and "palindrome" in message
    assert "palindrome" in told(canvas, model, "ab", length=2, mirrored=True)


# ---- palindromes by construction ---------------------------------------------------------------


@pytest.mark.parametrize("form, sampler", PAIRS)
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("bias", [0.0, 20.0], ids=["free", "rather the end"])
def test_palindromes_are_mirrored(form: str, sampler: str, steps: int, bias: float):
    """In every sample, of odd and even length, from a random network; no special token within, even
    if it is sure that the text ends everywhere: all weight then lies on what may not be written."""
    model = random_model(form)
    with torch.no_grad():
        model.net.head.bias[EOS] += bias
    for arguments in ({"length": 5}, {"length": 6}, {"prompt": "ab", "length": 6}):
        begun = canvas(model, mirrored=True, **arguments)
        found = written(model, begun, SampleOptions(steps=steps, sampler=sampler))
        for text in found.texts:
            assert len(text) == arguments["length"] and text == text[::-1]
            assert text.startswith(arguments.get("prompt", ""))


def test_mixed_lengths_in_one_batch():
    """Each row has its own axis."""
    model = random_model("radd")
    begun = [canvas(model, length=n, mirrored=True) for n in (1, 2, 3, 4, 5, 6)]
    texts = generate(model, begun, SampleOptions(steps=4), 1).texts
    assert [len(t) for t in texts] == [1, 2, 3, 4, 5, 6]
    assert all(t == t[::-1] for t in texts)


def test_palindromes_of_drawn_lengths():
    model = random_model("radd")
    told = canvases(SampleConfig(palindrome=True, num_samples=40), model)
    sizes = [int((~c.prompt_mask).sum()) for c in told]
    assert set(sizes) == {4, 5, 6}
    again = canvases(SampleConfig(palindrome=True, num_samples=40), model)
    assert [shown(c) for c in told] == [shown(c) for c in again]
    capped = canvases(SampleConfig(palindrome=True, num_samples=9, max_length=3), model)
    assert {int((~c.prompt_mask).sum()) for c in capped} == {3}


def test_palindromes_of_drawn_lengths_without_a_frame():
    """Published weights and streams: the canvases of a batch still fit together."""
    model = random_model("radd", frame=False)
    begun = canvases(SampleConfig(palindrome=True, num_samples=9), model)
    for text in generate(model, begun, SampleOptions(steps=4), 1).texts:
        assert text == text[::-1] and len(text) >= 4


@pytest.mark.parametrize("prompt", ["ab", "abc", "abcb"])
def test_palindromes_that_begin_with_a_prompt(prompt: str):
    """Lengths are drawn among those that a palindrome with this beginning can have: `abc` has
    none of four letters, but abcba and abccba. Only where there is none at all is it told."""
    model = random_model("radd")
    begun = canvases(SampleConfig(palindrome=True, num_samples=20, prompt=prompt), model)
    for text in generate(model, begun, SampleOptions(steps=4), 1).texts:
        assert text == text[::-1] and text.startswith(prompt)
    assert "palindrome" in told(canvases, SampleConfig(palindrome=True, prompt="abcdab"), model)


# ---- generate ----------------------------------------------------------------------------------


def test_cost_is_counted():
    """Calls of the network, and the canvases in them; the hook is gone afterwards."""
    model = random_model("radd", frame=False)
    blank = canvas(model)
    found = generate(model, [blank] * 5, SampleOptions(sampler="first_hitting"), batch_size=2)
    assert found.nfe == 3 * BLOCK and found.rows == 5 * BLOCK  # one place per call and canvas
    assert found.seconds > 0 and not model.net.norm._forward_hooks


def test_batches_are_all_written():
    model = random_model("radd")
    begun = [canvas(model, length=n) for n in (2, 3, 4, 5, 6)]
    for size in (1, 2, 5, 64):
        texts = generate(model, begun, SampleOptions(steps=4), 1, batch_size=size).texts
        assert len(texts) == 5
    same = generate(model, begun[:1] * 6, SampleOptions(steps=4), 1, batch_size=1)
    assert len({tuple(r) for r in same.ids.tolist()}) > 1  # batches have noise of their own


def test_watch_sees_the_first_batch():
    model, seen = random_model("radd"), []

    def watch(frames: Any, given: torch.Tensor):
        seen.append(given)
        for frame in frames:
            seen.append(frame)
            yield frame

    begun = [canvas(model, "ab")] * 5
    found = generate(model, begun, SampleOptions(steps=3), 1, 2, watch)
    assert torch.equal(seen[0], torch.stack([c.prompt_mask for c in begun[:2]]))
    assert all(isinstance(f, Frame) and len(f.ids) == 2 for f in seen[1:])
    assert torch.equal(seen[-1].ids, found.ids[:2])
    assert torch.equal(generate(model, begun, SampleOptions(steps=3), 1, 2).ids, found.ids)


def test_texts_end_at_the_first_eos():
    model = random_model("radd")
    found = written(model, canvas(model), SampleOptions(steps=4), n=20)
    for ids, text in zip(found.ids.tolist(), found.texts, strict=True):
        kept = ids[1 : ids.index(EOS)] if EOS in ids else ids[1:]
        assert text == "".join(LETTERS[i] for i in kept if i < 4)


# ---- prompts from files ------------------------------------------------------------------------


def test_prompt_files(tmp_path: Path):
    """Fault 48: missing, empty, a directory, not UTF-8: one line that names the file."""
    good = tmp_path / "good.txt"
    good.write_text("ab\ncd", encoding="utf-8")
    assert read_prompt(f"FILE:{good}") == "ab\ncd" and read_prompt("ab") == "ab"
    for form in file_forms.FORMS:
        path = file_forms.write(form, tmp_path, "p.txt", "ab\r\né")
        assert read_prompt(f"FILE:{path}") == "ab\né", form
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe")
    for name in ("missing.txt", "empty.txt", "latin.txt", ""):
        assert str(tmp_path / name) in told(read_prompt, f"FILE:{tmp_path / name}")
    assert "empty" in told(read_prompt, f"FILE:{tmp_path / 'empty.txt'}")


# ---- sample.py and evaluate.py -----------------------------------------------------------------


def test_sample_prints_texts(trained: Any, capsys):
    """One per line, then what they cost, then how many are palindromes."""
    ckpt = f"--ckpt={trained() / 'ckpt.pt'}"
    sample.main([ckpt, "--num_samples=7", "--steps=4", "--palindrome"])
    lines = capsys.readouterr().out.splitlines()
    assert all(t == t[::-1] and 4 <= len(t) <= 6 and set(t) <= set(LETTERS) for t in lines[:7])
    assert lines[7] == "" and lines[8].startswith("7 samples by analytic")
    assert "exact palindromes 100.0%" in lines[9] and "not in the training set" in lines[10]


def test_sample_seed(trained: Any, capsys):
    printed = []
    for seed in (1, 1, 2):
        sample.main([f"--ckpt={trained() / 'ckpt.pt'}", "--num_samples=9", f"--seed={seed}"])
        printed.append(capsys.readouterr().out.split("\n\n")[0])
    assert printed[0] == printed[1] != printed[2]


def test_sample_infill(trained: Any, capsys):
    sample.main([f"--ckpt={trained() / 'ckpt.pt'}", "--num_samples=5", "--infill=a[3]d"])
    for text in capsys.readouterr().out.splitlines()[:5]:
        assert text.startswith("a")  # and may end early: an infilled text need not be mirrored


@pytest.mark.parametrize(
    "argument, words",
    [
        ("--num_samples=0", ["num_samples", "at least 1"]),
        ("--batch_size=0", ["batch_size"]),
        ("--steps=0", ["steps", "at least 1"]),
        ("--top_p=2", ["top_p"]),
        ("--temperature=-1", ["temperature"]),
        ("--max_length=-1", ["max_length"]),
        ("--sampler=bogus", ["sampler", "'bogus'", "first_hitting"]),
        ("--prompt=xyz", ["'x'", "vocabulary"]),
        ("--prompt=aaaaaaa", ["7", "6"]),  # block_size 8, with BOS and EOS
        ("--prompt=FILE:/no/such/file", ["/no/such/file"]),
        ("--infill=a[3]b --prompt=a", ["infill", "prompt"]),
        ("--infill=a[3]b --palindrome", ["palindrome"]),
        ("--device=cuda:99", ["cuda:99"]),
        ("--ckpt=/no/such/ckpt.pt", ["/no/such/ckpt.pt"]),
    ],
)
def test_sample_refusals(trained: Any, argument: str, words: list[str]):
    message = told(sample.main, [f"--ckpt={trained() / 'ckpt.pt'}", *argument.split()])
    for word in words:
        assert word in message


def test_sample_as_a_process(trained: Any, run_cli: Any, assert_refused: Any, tmp_path: Path):
    """From another folder, without the corpus; and a mistake is one line."""
    ckpt = f"--ckpt={trained() / 'ckpt.pt'}"
    done = run_cli("sample.py", ckpt, "--num_samples=3", "--steps=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 samples by analytic" in done.stdout and done.stderr == ""
    assert list(tmp_path.iterdir()) == []
    assert_refused(run_cli("sample.py", ckpt, "--steps=0"), "steps must be at least 1, got 0")


def test_samples_are_printed_batch_by_batch(trained: Any, helpers: Any, tmp_path: Path):
    """What is finished is there while the rest is written, and after Ctrl-C."""
    argv = [sys.executable, str(helpers.repo / "sample.py"), f"--ckpt={trained()}"]
    argv += ["--num_samples=1000000", "--batch_size=5", f"--html={tmp_path / 'a.html'}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        argv, stdout=pipe, stderr=pipe, text=True, env=helpers.env(), preexec_fn=heeds_interrupts
    ) as process:
        first = [process.stdout.readline() for _ in range(12)]
        process.send_signal(signal.SIGINT)
        rest, errors = process.stdout.read(), process.stderr.read()
    assert process.returncode == 130 and errors == "interrupted\n"
    lines = "".join([*first, rest]).splitlines()
    assert len(lines) >= 15 and len(lines) % 5 == 0 and (tmp_path / "a.html").is_file()
    assert all(set(line) <= set(LETTERS) for line in lines)


def heeds_interrupts() -> None:
    """A job in the background of a shell ignores Ctrl-C, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_batches_are_the_samples_and_texts_of_several_lines_are_told_apart(capsys):
    model, batches = random_model("radd"), []
    begun = [canvas(model, length=n) for n in (2, 6, 4, 3, 5)]
    whole = generate(model, begun, SampleOptions(), 1, 2, finished=batches.append)
    assert [len(batch.texts) for batch in batches] == [2, 2, 1]
    assert [text for batch in batches for text in batch.texts] == whole.texts
    assert sum(batch.rows for batch in batches) == whole.rows
    sample.print_batch(["a", "b"], [])
    sample.print_batch(["c\nd", "e"], ["a", "b"])
    sample.print_batch(["f"], ["a", "b", "c\nd", "e"])
    dashes = "-" * 15
    assert capsys.readouterr().out.splitlines() == [
        *("a", "b", dashes, "c", "d", dashes, "e", dashes, "f")
    ]


@pytest.mark.parametrize("options", [{}, {"graph": "uniform"}, {"objective": "ar"}])
def test_progress_in_a_terminal(trained: Any, monkeypatch: Any, options: dict):
    """On stderr, with rate and time left, from 0 to all samples; nothing if it is no terminal."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    more = {"time_input": False} if "objective" in options else {}
    model = load(str(trained(**options, **more)))
    monkeypatch.setattr(sample, "PATIENCE", 0.0)
    monkeypatch.setattr(sample, "REDRAW", 0.0)
    for kind in (Terminal, io.StringIO):
        monkeypatch.setattr(sys, "stderr", kind())
        generate(model, [canvas(model)] * 6, SampleOptions(), 1, 3)
        shown = sys.stderr.getvalue()
        if kind is io.StringIO:
            assert shown == ""
            continue
        counts = [int(n) for n in re.findall(r"\| (\d+)/6 samples \[", shown)]
        assert counts[0] == 0 and counts[-1] == 6 and 3 in counts and counts == sorted(counts)
        assert options.get("graph") == "uniform" or {1, 2} & {*counts}  # within a batch
        assert re.search(r"\[\d\d:\d\d<\d\d:\d\d, +[\d.]+ samples/s\]", shown)


@pytest.mark.parametrize("key", ["gif", "html"])
def test_files_are_checked_before_anything_is_sampled(key: str, monkeypatch: Any, tmp_path: Path):
    monkeypatch.setattr(sample.checkpoint, "load", lambda *_: pytest.fail("sampled"))
    for name, words in (("no/such/a", "No such file"), ("", "is a folder")):
        message = told(sample.main, [f"--{key}={tmp_path / name}"])
        assert message.startswith(f"{key}={tmp_path / name}") and words in message
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    assert "pip install pillow" in told(sample.main, [f"--gif={tmp_path / 'a.gif'}"])
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_run_serves_both_commands(trained: Any, capsys):
    run = f"--ckpt={trained()}"
    sample.main([run, "--num_samples=2"])
    assert "2 samples by first_hitting" in capsys.readouterr().out
    evaluate.main([run, "--rows=2", "--samples=0"])
    assert "nats per token" in capsys.readouterr().out


def test_sample_export(trained: Any, tmp_path: Path, capsys):
    pytest.importorskip("safetensors")
    sample.main([f"--ckpt={trained() / 'ckpt.pt'}", f"--export={tmp_path / 'e'}"])
    assert str(tmp_path / "e") in capsys.readouterr().out
    sample.main([f"--ckpt={tmp_path / 'e'}", "--num_samples=2", "--steps=2"])
    assert "2 samples" in capsys.readouterr().out


@pytest.mark.parametrize("graph", ["absorb", "uniform"])
def test_samples_on_both_graphs(trained: Any, capsys, graph: str):
    """As trained, through the command."""
    ckpt = f"--ckpt={trained(graph=graph) / 'ckpt.pt'}"
    for name in samplers({"graph": graph}):
        steps = [] if name == "first_hitting" else ["--steps=3"]
        sample.main([ckpt, "--num_samples=4", *steps, f"--sampler={name}", "--palindrome"])
        lines = capsys.readouterr().out.splitlines()
        assert all(t and t == t[::-1] for t in lines[:4])


NUMBERS = re.compile(
    r"(\w+): at most ([\d.]+) \+- ([\d.]+) nats per token, ([\d.]+) \+- ([\d.]+) bits per byte, "
    r"([\d.]+) nats per row"
)


def test_evaluate_prints_the_bound(trained: Any, capsys):
    """Numbers that fit one another: nats per row and token, bits per byte, the counts."""
    out = trained()
    evaluate.main([f"--ckpt={out / 'ckpt.pt'}", "--rows=10", "--samples=4", "--batch_size=4"])
    printed = capsys.readouterr().out
    split, token, error, byte, _, row = NUMBERS.search(printed).groups()
    tokens, size = re.search(r"([\d,]+) tokens, EOS among them; ([\d,]+) bytes", printed).groups()
    assert split == "val" and "4 noise levels for each of 10 rows" in printed
    total = float(token) * int(tokens)
    assert math.isclose(total, float(row) * 10, rel_tol=1e-3)
    assert math.isclose(total / math.log(2), float(byte) * int(size), rel_tol=1e-3)
    assert int(tokens) == int(size) + 10 and 0 < float(error) < float(token) < 5
    for name in ("random order", "confidence order", "mirrored"):
        assert f"{name} (" in printed
    assert "exact palindromes 100.0%" in printed  # of the mirrored ones


def test_evaluate_is_repeatable_and_independent_of_the_samples(trained: Any, capsys):
    bounds = []
    for seed, samples in ((1, 0), (2, 3)):
        argv = [f"--ckpt={trained() / 'ckpt.pt'}", f"--seed={seed}", f"--samples={samples}"]
        evaluate.main([*argv, "--rows=5"])
        bounds.append(NUMBERS.search(capsys.readouterr().out).groups())
    assert bounds[0] == bounds[1]


def test_bound_of_an_untrained_network_is_the_uniform_one(data_dir: Path, trained: Any):
    """A new network, whose scores are those of the uniform guess over 7 ids: log 7 nats for each
    of the 7 written places, whatever the noise level. Nothing is estimated here but m / (1 - m)."""
    model = load(str(trained() / "ckpt.pt"))
    with torch.no_grad():
        for p in (model.net.head.weight, model.net.head.bias):
            p.zero_()
    cfg = evaluate.EvaluateConfig(rows=12, t_samples=3)
    found = evaluate.bound(cfg, model, Corpus(data_dir / "tiny"))
    normal = replace(model.config, normalize=True)
    model = model._replace(objective=build_objective(normal, model.meta))
    exact = evaluate.bound(cfg, model, Corpus(data_dir / "tiny"))
    assert math.isclose(exact["nats_per_row"], 7 * math.log(7), rel_tol=0.25)
    assert math.isclose(found["nats_per_row"], exact["nats_per_row"], rel_tol=1e-4)


@pytest.mark.parametrize(
    "argument, printed",
    [("--rows=0", "exact palindromes"), ("--samples=0", "nats per token")],
)
def test_evaluate_skips(trained: Any, capsys, argument: str, printed: str):
    more = "--samples=2" if argument == "--rows=0" else "--rows=2"
    evaluate.main([f"--ckpt={trained() / 'ckpt.pt'}", argument, more])
    out = capsys.readouterr().out
    assert printed in out
    assert ("nats per token" in out) != ("exact palindromes" in out)


def test_evaluate_show_draws_no_escape_codes_of_its_own(trained: Any, capsys):
    """The headline of an animation stands on a line of its own."""
    evaluate.main([f"--ckpt={trained() / 'ckpt.pt'}", "--rows=0", "--samples=2", "--show"])
    out = capsys.readouterr().out
    assert "mirrored, as it is written:" in out and "\\n" not in out


def test_evaluate_refusals(trained: Any, tmp_path: Path, helpers: Any):
    ckpt = f"--ckpt={trained() / 'ckpt.pt'}"
    assert str(tmp_path / "no") in told(evaluate.main, [ckpt, f"--data={tmp_path / 'no'}"])
    assert "split" in told(evaluate.main, [ckpt, "--split=test"])
    assert "rows" in told(evaluate.main, [ckpt, "--rows=-1"])
    texts = {"train": ["xyz"], "val": ["xyz"]}
    for name, letters in (("fewer", "xyz"), ("other", "wxyz")):
        folder = helpers.write_corpus(tmp_path / name, texts, Symbols(list(letters)))
        assert str(folder) in told(evaluate.main, [ckpt, f"--data={folder}"])
    longer = helpers.write_corpus(tmp_path / "long", {"train": ["a" * 9], "val": ["a"]})
    assert "block_size=8" in told(evaluate.main, [ckpt, f"--data={longer}"])


@pytest.mark.parametrize("graph", ["absorb", "uniform"])
def test_evaluate_on_both_graphs(trained: Any, capsys, graph: str):
    ckpt = trained(graph=graph) / "ckpt.pt"
    evaluate.main([f"--ckpt={ckpt}", "--rows=4", "--samples=2", "--use_ema=False"])
    out = capsys.readouterr().out
    assert NUMBERS.search(out) and ("confidence order" in out) == (graph == "absorb")
