"""viz/story.py and the draws of a frame: whose token is it, and what was it drawn from?"""

import json
import random
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from checkpoint import build_network, build_objective
from configurator import Config
from objective import Frame, SampleOptions, generator
from tasks.mirror import sample as mirror_sample
from viz import view
from viz.story import GONE, Drawn, Trace, by_place, readable

MASK, BOS, EOS, PAD, CLS = 0, 1, 2, 3, 4
SPECIALS = {"mask": MASK, "bos": BOS, "eos": EOS, "pad": PAD, "cls": CLS}
V, T, B = 11, 9, 4


def show(i: int) -> str:
    return "░" if i == MASK else "" if i in (BOS, EOS, PAD) else chr(60 + i)


def told(frames: list[Frame], fixed: Tensor, **options: Any) -> Trace:
    story = Trace("", show, MASK, **options)
    assert list(story.watch(frames, fixed)) == frames
    return story


def at(token: dict[str, Any], step: int) -> int:
    """The naive reading of a history."""
    return next((i for k, i, *_ in reversed(token["history"]) if k <= step), GONE)


# ---- tokens of a growing text ------------------------------------------------------------------


class Grown(NamedTuple):
    """A random run of an insertion sampler, with what each token really is."""

    frames: list[Frame]
    names: list[list[int]]  # of each frame, the tokens of the one sample; given ones are below 0
    ended: bool


def grown(seed: int) -> Grown:
    """Tokens and masks are inserted and masks are written, as in FlexMDM; EOS perhaps ends it. A
    text equals its neighbours often: three letters only."""
    rng, masks = random.Random(seed), seed % 2 == 0
    text = [(-1 - n, rng.randint(5, 7)) for n in range(rng.randint(1, 3))]
    ended, frames, names = seed % 3 == 0, [], []
    tail = [(-100, EOS)] if ended else []
    changed: set[int] = set()
    for step in range(rng.randint(1, 9)):
        if step:
            changed = set()
            for k, (name, i) in enumerate(text):  # unmask first: FlexMDM's order
                if i == MASK and rng.random() < 0.5:
                    text[k] = (name, rng.randint(5, 7))
                    changed.add(name)
            for n in range(rng.randint(0, 3)):
                new = (100 * step + n, MASK if masks else rng.randint(5, 7))
                text.insert(rng.randint(0, len(text)), new)
                changed.add(new[0])
        whole = text + tail
        ids = [i for _, i in whole] + [PAD] * (40 - len(whole))
        marks = [name in changed for name, _ in whole] + [False] * (40 - len(whole))
        frames.append(Frame(torch.tensor([ids]), torch.tensor([len(whole)]), torch.tensor([marks])))
        names.append([name for name, _ in whole])
    return Grown(frames, names, ended)


@settings(max_examples=150)
@given(st.integers(0, 10**6))
def test_tokens_of_a_growing_text_keep_their_identity(seed: int) -> None:
    run = grown(seed)
    mask = MASK if seed % 2 == 0 else None
    story = Trace("", lambda i: f"<{i}>", mask, inserts=True)
    list(story.watch(run.frames, torch.zeros(1, 1, dtype=torch.bool)))
    (tokens,) = story.data()["samples"]
    assert len(tokens) == len(run.names[-1])
    for k, (token, name) in enumerate(zip(tokens, run.names[-1], strict=True)):
        assert token["given"] == (name < 0)
        for step, (frame, names) in enumerate(zip(run.frames, run.names, strict=True)):
            here = int(frame.ids[0, names.index(name)]) if name in names else GONE
            assert at(token, step) == here, (k, step)


@given(st.integers(0, 10**6))
def test_marks_of_given_tokens_move_with_them(seed: int) -> None:
    """viz/view.py's terminal and GIF ask this."""
    run = grown(seed)
    marks = view._Given(None, 4, MASK if seed % 2 == 0 else None, True)
    for frame, names in zip(run.frames, run.names, strict=True):
        assert marks.of(view._shot(frame, 4)) == [[name < 0 for name in names]]


def test_what_falls_off_the_end_is_gone() -> None:
    still = torch.zeros(1, 3, dtype=torch.bool)
    frames = [
        Frame(torch.tensor([[5, EOS, PAD]]), torch.tensor([2]), still),
        Frame(torch.tensor([[5, 6, EOS]]), torch.tensor([3]), torch.tensor([[0, 1, 0]]).bool()),
        Frame(torch.tensor([[7, 5, 6]]), torch.tensor([3]), torch.tensor([[1, 0, 0]]).bool()),
    ]
    story = Trace("", lambda i: f"<{i}>", None, inserts=True)
    list(story.watch(frames, still))
    (tokens,) = story.data()["samples"]
    assert [[at(t, k) for t in tokens] for k in range(3)] == [
        [GONE, 5, GONE, EOS], [GONE, 5, 6, EOS], [7, 5, 6, GONE],
    ]  # fmt: skip


def test_a_kept_token_that_was_not_there_is_a_mistake() -> None:
    with pytest.raises(AssertionError):
        view.carry(["a"], [5, 6], [False, False], None, str)


# ---- tokens that stay where they are -------------------------------------------------------------


@settings(max_examples=100)
@given(st.integers(0, 10**6))
def test_histories_are_the_frames(seed: int) -> None:
    """Any ids in any frame, lengths too: what is read back is what was shown."""
    rng = random.Random(seed)
    B, T, n, skip = rng.randint(1, 3), rng.randint(1, 6), rng.randint(1, 6), rng.randint(0, 1)
    still = torch.zeros(B, T, dtype=torch.bool)
    fixed = torch.rand(B, T, generator=generator(seed)) < 0.3
    frames = []
    for _ in range(n):
        ids = torch.tensor([[rng.choice([MASK, 5, 6, PAD]) for _ in range(T)] for _ in range(B)])
        frames.append(Frame(ids, torch.tensor([rng.randint(0, T) for _ in range(B)]), still))
    data = told(frames, fixed, skip=skip).data()
    assert data["frames"] == n and data["mask"] == MASK and json.loads(json.dumps(data)) == data
    for b, tokens in enumerate(data["samples"]):
        columns = []  # those that ever show text
        for t in range(skip, T):
            life = [int(f.ids[b, t]) if t < f.length[b] else GONE for f in frames]
            if any(i not in (GONE, PAD) for i in life):
                columns.append((bool(fixed[b, t]), life))
        assert [(t["given"], [at(t, k) for k in range(n)]) for t in tokens] == columns
        for token in tokens:  # no entry says what was known already
            assert all(x[1] != y[1] for x, y in pairwise(token["history"]))
    used = {i for s in data["samples"] for t in s for _, i, *_ in t["history"]} - {GONE}
    assert data["texts"] == {str(i): show(i) for i in used}


def test_a_draw_counts_only_for_the_token_that_stands_there() -> None:
    still = torch.zeros(1, 2, dtype=torch.bool)
    story = Trace("", show, MASK)
    one = torch.tensor([2])
    story.see(Frame(torch.tensor([[MASK, MASK]]), one, still), still, {})
    drawn = {(0, 0): Drawn(5, 0.25, [(6, 0.75), (5, 0.25)]), (0, 1): Drawn(6, 0.123456, [])}
    story.see(Frame(torch.tensor([[5, EOS]]), one, still), still, drawn)
    (first, last), data = story.data()["samples"][0], story.data()
    assert first["history"] == [[0, MASK, None, None], [1, 5, 0.25, [[6, 0.75], [5, 0.25]]]]
    assert last["history"] == [[0, MASK, None, None], [1, EOS, None, None]]
    assert set(data["texts"]) == {"0", "2", "5", "6"}  # those of alternatives, too


@given(st.text(st.characters()))
def test_readable_text_keeps_its_characters(text: str) -> None:
    got = readable(text)
    assert got.replace("\n", "").isprintable()
    assert [c for c in got if c != "\n"] == [
        c if c.isprintable() else view.STAND_IN.get(c, "·") for c in text
    ]
    assert got.count("\n") == text.count("\n") and "\n" not in got.replace("⏎\n", "")


# ---- what samplers tell --------------------------------------------------------------------------


def network(**config: Any) -> tuple[nn.Module, Any]:
    """An untrained network with random outputs, and its objective."""
    sizes = {"block_size": T, "n_layer": 1, "n_head": 2, "n_embd": 16, "cond_dim": 8}
    cfg = Config(**{**sizes, **config})
    torch.manual_seed(1)
    objective = build_objective(cfg, {"vocab_size": V, "specials": SPECIALS})
    net = build_network(cfg, objective)
    for p in net.parameters():
        nn.init.normal_(p, std=0.4)
    return net.eval(), objective


def canvas(holes: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """BOS and a letter are given, and one more in row 1 in the middle."""
    ids = torch.full((B, T), 0)
    ids[:, 0], ids[:, 1], ids[1, 4] = BOS, 5, 6
    fixed = torch.zeros(B, T, dtype=torch.bool)
    fixed[:, :2], fixed[1, 4] = True, True
    return ids, fixed


MASKED = {"objective": "masked", "time_input": False}
RUNS = {
    "sedd": ({"objective": "sedd"}, {}),
    "sedd euler": ({"objective": "sedd"}, {"sampler": "euler"}),
    "sedd order": ({"objective": "sedd"}, {"sampler": "confidence"}),
    "uniform": ({"objective": "sedd", "graph": "uniform"}, {}),
    "masked": (MASKED, {}),
    "remasked": (MASKED, {"remask": "conf", "steps": 6}),
    "guided": (MASKED, {"cfg": 1.0, "sampler": "margin", "block_length": 3}),
    "greedy": (
        MASKED,
        {"temperature": 0.0, "sampler": "confidence", "unmask_schedule": "threshold"},
    ),
    "bd3": ({"objective": "bd3", "block_length": 3}, {}),
    "ilm": ({"objective": "ilm", "time_input": False}, {"stop_threshold": 1.0}),
    "ilm top_k": ({"objective": "ilm", "time_input": False}, {"stop_threshold": 1.0, "top_k": 3}),
    "ilm two": ({"objective": "ilm", "time_input": False}, {"gap": SampleOptions(), "exact": True}),
    "parallel": ({"objective": "ilm", "time_input": False}, {"sampler": "parallel", "exact": True}),
    "it": ({"objective": "it", "time_input": False}, {"exact": True}),
    "idlm": ({"objective": "idlm", "noise": "linear"}, {"exact": True}),
    "flex": ({"objective": "flex"}, {"exact": True, "steps": 8}),
    "ar": ({"objective": "ar", "time_input": False}, {}),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_written_token_was_told_with_its_place(name: str) -> None:
    """In every frame, the places told are those that changed, and their tokens are what was drawn;
    and who records changes nothing."""
    config, options = RUNS[name]
    net, objective = network(**config)
    ids, fixed = canvas()
    rows, seen = 3, 0

    def run(**more: Any) -> Any:
        o = SampleOptions(**options, **more)
        return objective.sample(net, ids, fixed, generator(7), o)

    for old, frame in zip(run(), run(candidates=4), strict=True):
        assert old.draws is None
        drawn = by_place(frame.draws, rows)
        assert torch.equal(frame.ids, old.ids)
        changed = {(b, t) for b, t in frame.changed.nonzero().tolist() if b < rows}
        changed = {place for place in changed if frame.ids[place] != objective.mask_id}
        # what is drawn may be what stands there: any token, or the filling of what is to come
        same = changed <= set(drawn) if name in ("uniform", "ar") else changed == set(drawn)
        assert same, (frame, changed, set(drawn))
        for place, d in drawn.items():
            seen += 1
            assert frame.ids[place] == d.id and 0 < d.p <= 1 + 1e-9
            p = [q for _, q in d.best]
            assert 1 <= len(p) <= 4 and p == sorted(p, reverse=True) and sum(p) < 1 + 1e-9
            assert dict(d.best).get(d.id, d.p) == d.p and d.p <= p[0]
            assert objective.mask_id not in dict(d.best)
    assert seen > 5


def rest_of(z: Tensor, never: list[int]) -> Tensor:
    z = z.double()
    z[:, never] = -torch.inf
    return z.softmax(-1)


@torch.no_grad()
def test_probabilities_are_those_of_the_network() -> None:
    """Recomputed from the frame before, whatever the temperature: of one masked place, of a gap,
    and of the next token."""
    o = {"temperature": 0.5, "steps": 64, "stop_threshold": 1.0, "candidates": 5}
    for name, sampler in (("masked", "confidence"), ("ilm", "threshold"), ("ar", "left_to_right")):
        net, objective = network(**RUNS[name][0])
        ids, fixed = canvas()
        if name == "ar":
            fixed[1, 4] = False
        before, many = None, 0
        for frame in objective.sample(
            net, ids, fixed, generator(3), SampleOptions(sampler=sampler, **o)
        ):
            for (b, t), d in by_place(frame.draws, B).items():
                if name == "masked":
                    z, never = net.logits(net.features(before.ids[b : b + 1], None))[:, t], [0]
                elif name == "ilm":
                    text = before.ids[b : b + 1, : before.length[b] - 1]
                    x = nn.functional.pad(text, (1, 0), value=objective.cls_id)
                    z, never = net.logits(net.features(x, None))[:, t], objective.never
                else:
                    z, never = (
                        net.logits(net.features(frame.ids[b : b + 1, :t], None))[:, -1],
                        [],
                    )
                    z = z[:, : objective.tokens]
                p = rest_of(z, never)[0]
                assert d.p == pytest.approx(float(p[d.id]), rel=1e-4)
                assert [q for _, q in d.best] == pytest.approx(p.topk(5).values.tolist(), rel=1e-4)
                many += 1
            before = frame
        assert many > 6


@pytest.mark.parametrize("name", ["masked", "ar"])
def test_both_places_of_a_mirrored_pair_tell_of_their_draw(name: str) -> None:
    net, objective = network(**RUNS[name][0])
    mirror = torch.arange(T).flip(0).expand(B, T)
    o = SampleOptions(banned=(BOS, EOS, PAD), candidates=5)
    free = torch.zeros(B, T, dtype=torch.bool)
    ids = torch.zeros(B, T, dtype=torch.int64)
    frames = list(mirror_sample(objective, net, ids, free, mirror, generator(2), o))
    draws = {}
    for frame in frames:
        draws |= by_place(frame.draws, B)
    assert set(draws) == {(b, t) for b in range(B) for t in range(T)}
    for (b, t), d in draws.items():
        assert d == draws[b, T - 1 - t] and d.id == frames[-1].ids[b, t]
