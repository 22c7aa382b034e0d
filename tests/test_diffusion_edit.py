"""Editing what is written: the law of `remask=edit` by enumeration on three tokens, and the
corruption and loss that a network learns it from."""

import itertools

import pytest
import torch
from exact import Given
from torch import Tensor

from configurator import Config, UserError
from corpus import Batch
from diffusion import LogLinear, Masked, TokenNoise
from objective import SampleOptions, generator

N, MASK, T = 3, 3, 2
STATES = torch.tensor(list(itertools.product(range(N + 1), repeat=T)))  # (16, T)


class ByCanvas(Given):
    """Logits that are a table over canvases: (16, T, V)."""

    def __init__(self, seed: int):
        self.table = 1.5 * torch.randn(len(STATES), T, N + 1, generator=generator(seed))
        super().__init__(self.table[:1])

    def features(self, ids: Tensor, *inputs, **options) -> Tensor:
        return self.table[ids[:, 0] * (N + 1) + ids[:, 1]]

    def p(self, state: tuple[int, ...]) -> Tensor:
        """(T, 3): what it predicts for a canvas, MASK left out."""
        logits = self.table[state[0] * (N + 1) + state[1], :, :N].double()
        return logits.softmax(-1)


def objective() -> TokenNoise:
    made = Masked.from_config(Config(objective="masked", token_noise=0.1), N, {})
    assert isinstance(made, TokenNoise)
    return made


def law(net: ByCanvas, sampler: str, steps: int, eta: float, start: tuple[int, ...]) -> dict:
    """The exact law of the final canvas, step by step as the docstring of EditSampler says."""
    laws = {start: 1.0}
    for step in range(steps):
        after: dict[tuple[int, ...], float] = {}
        for state, mass in laws.items():
            p = net.p(state)
            masked = [i for i in range(T) if state[i] == MASK]
            again = [i for i in range(T) if state[i] != MASK and p[i, state[i]] < eta]
            again = again if step < steps - 1 else []
            number = -(-len(masked) // (steps - step))
            if sampler == "random":
                sets = list(itertools.combinations(masked, number))
            else:
                best = p.amax(1) if sampler == "confidence" else -torch.arange(T)
                order = sorted(masked, key=lambda i, best=best: -float(best[i]))
                sets = [tuple(order[:number])]
            for places in sets:
                for tokens in itertools.product(range(N), repeat=len(places)):
                    new, weight = list(state), mass / len(sets)
                    for i, token in zip(places, tokens, strict=True):
                        new[i], weight = token, weight * float(p[i, token])
                    for i in again:
                        new[i] = MASK
                    after[tuple(new)] = after.get(tuple(new), 0.0) + weight
        laws = after
    return laws


@pytest.mark.parametrize("sampler", ["left_to_right", "confidence", "random"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_law_of_editing(sampler, steps):
    """Chi-square of 20,000 texts. eta is high, so that a third of the written tokens is edited."""
    net, rows = ByCanvas(seed=steps), 20_000
    want = law(net, sampler, steps, 0.3, (MASK, MASK))
    assert all(MASK not in state for state in want)
    options = SampleOptions(sampler=sampler, remask="edit", eta=0.3, steps=steps)
    check(net, options, want, torch.zeros(rows, T, dtype=torch.long))
    if steps == 5:  # it does change what is written
        plain = law(net, sampler, steps, 0.0, (MASK, MASK))
        assert sum(abs(plain[s] - want.get(s, 0.0)) for s in plain) > 0.1


def test_law_of_editing_a_draft():
    net, draft = ByCanvas(seed=4), (0, 1)
    want = law(net, "confidence", 4, 0.5, draft)
    assert want.get(draft, 0.0) < 0.9
    options = SampleOptions(sampler="confidence", remask="edit", eta=0.5, steps=4, draft=True)
    check(net, options, want, torch.tensor(draft).expand(20_000, T))


def check(net: ByCanvas, options: SampleOptions, want: dict, ids: Tensor) -> None:
    *_, last = objective().sample(net, ids, torch.zeros_like(ids) > 0, generator(9), options)
    for state in itertools.product(range(N), repeat=T):
        count, mean = int((last.ids == torch.tensor(state)).all(1).sum()), want.get(state, 0.0)
        sd = (len(ids) * mean * (1 - mean)) ** 0.5
        assert abs(count - len(ids) * mean) <= 4.5 * sd + 1e-9, (state, count, mean)


def test_it_stops_when_nothing_changes():
    """A text without doubts is read once more, not 64 times."""
    net = Given(torch.tensor([9.0, 0.0, 0.0, 0.0]).expand(1, T, 4))
    calls, features = [], net.features
    net.features = lambda *a, **k: calls.append(1) or features(*a, **k)
    ids = torch.zeros(1, T, dtype=torch.long)
    options = SampleOptions(sampler="confidence", remask="edit", temperature=0.0)
    list(objective().sample(net, ids, ids > 0, generator(1), options))
    assert len(calls) == T + 1


def test_the_prompt_is_never_edited():
    net = Given(torch.tensor([-30.0, 0.0, 0.0, 0.0]).expand(50, T, 4))  # 0 is never right
    ids, given = torch.zeros(50, T, dtype=torch.long), torch.tensor([True, False]).expand(50, T)
    options = SampleOptions(sampler="confidence", remask="edit", eta=0.9, steps=6)
    for frame in objective().sample(net, ids, given, generator(1), options):
        assert (frame.ids[:, 0] == 0).all()


def test_what_is_corrupted_and_scored():
    rows, width = 4000, 6
    ids = torch.randint(N, (rows, width), generator=generator(2))
    given = torch.arange(width).expand(rows, -1) < 2
    batch = Batch(ids, given, torch.full((rows,), width))
    noisy = objective().corrupt(batch, generator(3))
    masked, changed = noisy.xt == MASK, (noisy.xt != ids) & (noisy.xt != MASK)
    assert not (masked | changed)[given].any() and torch.equal(noisy.scored, ~given)
    visible = ~given & ~masked
    found = float(changed[visible].double().mean())  # a third of the draws hit the same token
    assert abs(found - 0.1 * 2 / 3) < 0.01
    same = Masked(N, noise=LogLinear()).corrupt(batch, generator(3))
    assert torch.equal(same.scored, masked)  # the masks are those of masked diffusion


def test_loss_by_hand():
    """weight(t) for masked tokens, 1 for visible ones, wrong or not."""
    made, rows = objective(), 5
    net = ByCanvas(seed=7)
    ids = torch.randint(N, (rows, T), generator=generator(5))
    batch = Batch(ids, ids < 0, torch.full((rows,), T))
    noisy = made.corrupt(batch, generator(6))
    want = 0.0
    for r, i in itertools.product(range(rows), range(T)):
        nats = -float(net.p(tuple(noisy.xt[r].tolist()))[i, ids[r, i]].log())
        want += nats * (float(noisy.weight[r]) if noisy.xt[r, i] == MASK else 1.0)
    assert float(made.loss(net, noisy).sum) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"remask": "edit", "sampler": "confidence"}, "token_noise"),
        ({"draft": True, "sampler": "confidence"}, "draft"),
    ],
)
def test_other_models_refuse(options, words):
    ids, net = torch.zeros(1, T, dtype=torch.long), ByCanvas(seed=1)
    plain = Masked(N, noise=LogLinear())
    with pytest.raises(UserError, match=words):
        list(plain.sample(net, ids, ids > 0, generator(1), SampleOptions(**options)))
    for sampler in ("ancestral", "first_hitting"):
        with pytest.raises(UserError, match="remask"):
            edit = SampleOptions(sampler=sampler, remask="edit")
            list(objective().sample(net, ids, ids > 0, generator(1), edit))
