"""Insertion with deletion: the law of its sampler by enumeration on three tokens, what is
corrupted, and the loss by hand."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from configurator import Config, UserError
from corpus import Batch
from insertion import Insertion, InsertionAndDeletion, add_wrong, drop_tokens
from objective import SampleOptions, generator, seed_of

N, PAD, BOS, CLS, DELETE = 3, 3, 4, 5, 6
V = 7


class ByText:
    """Random outputs that are a table over texts: features are V logits and two of the readout."""

    time = None
    head = SimpleNamespace(weight=torch.zeros(V, V + 2), bias=torch.zeros(V))

    def __init__(self, seed: int):
        self.seed = seed
        self.heads = {"stop": lambda h: h[..., V:]}

    def table(self, ids: list[int]) -> Tensor:
        """(W, V + 2) for CLS, BOS and a text."""
        return torch.randn(len(ids), V + 2, generator=generator(self.seed, *ids))

    def features(self, ids: Tensor, time: Any = None, mask: Any = None) -> Tensor:
        out = torch.zeros(*ids.shape, V + 2)
        for row, line in zip(out, ids.tolist(), strict=True):
            text = [i for i in line if i != PAD]
            row[: len(text)] = self.table(text)
        return out

    def logits(self, h: Tensor) -> Tensor:
        return h[..., :V].clone()


def objective() -> InsertionAndDeletion:
    cfg = Config(objective="ilm", token_noise=0.3, time_input=False)
    made = Insertion.from_config(cfg, 5, {"pad": PAD, "bos": BOS})
    assert isinstance(made, InsertionAndDeletion) and made.delete_id == DELETE
    return made


def law(net: ByText, sampler: str, room: int, deletions: int, start: tuple[int, ...]) -> dict:
    """The exact law of the final text."""
    final: dict[tuple[int, ...], float] = {}
    open_ = {(start, 0): 1.0}
    while open_:
        after: dict = {}
        for (text, deleted), mass in open_.items():
            z = net.table([CLS, BOS, *text])
            stop = float(z[0, V:].double().softmax(0)[0])
            stop = stop if sampler == "ancestral" else float(stop >= 0.9)
            stop = 1.0 if len(text) == room else stop
            final[text] = final.get(text, 0.0) + mass * stop
            logits = {
                ("in", col, v): float(z[col, v]) for col in range(1, len(z)) for v in range(N)
            }
            if deleted < deletions:
                logits |= {("out", col, 0): float(z[col, DELETE]) for col in range(2, len(z))}
            total = sum(math.exp(x) for x in logits.values())
            for (kind, col, v), x in logits.items():
                k = col - 1  # tokens up to and with this column
                new = (*text[:k], v, *text[k:]) if kind == "in" else (*text[: k - 1], *text[k:])
                key, p = (new, deleted + (kind == "out")), mass * (1 - stop) * math.exp(x) / total
                after[key] = after.get(key, 0.0) + p
        open_ = {key: mass for key, mass in after.items() if mass > 0}
    return final


def check(net: ByText, options: SampleOptions, want: dict, ids: Tensor, given: Tensor) -> None:
    *_, last = objective().sample(net, ids, given, generator(9), options)
    texts = [tuple(i for i in row if i < N) for row in last.ids.tolist()]
    assert sum(want.values()) == pytest.approx(1)
    for text in {*want, *texts}:
        p = want.get(text, 0.0)
        error = abs(texts.count(text) - len(ids) * p)
        assert error <= 4.5 * math.sqrt(len(ids) * p * (1 - p)) + 1e-9, text


@pytest.mark.parametrize("sampler", ["ancestral", "threshold"])
@pytest.mark.parametrize("deletions", [0, 2])
def test_law_of_insertion_and_deletion(sampler, deletions):
    net, rows = ByText(seed=1), 6000
    want = law(net, sampler, 2, deletions, ())
    ids = torch.full((rows, 3), BOS)
    given = torch.arange(3).expand(rows, 3) < 1
    check(net, SampleOptions(sampler=sampler, delete=deletions), want, ids, given)


def test_law_from_a_draft():
    """The text is there at first, may lose tokens, and may grow up to the capacity."""
    net, rows = ByText(seed=2), 6000
    want = law(net, "ancestral", 2, 1, (0,))
    assert any(0 not in text for text in want)
    ids = torch.tensor([BOS, 0]).expand(rows, 2)
    options = SampleOptions(sampler="ancestral", delete=1, draft=True, capacity=3)
    first, *_ = objective().sample(net, ids, ids == BOS, generator(1), options)
    assert first.ids[:, :2].tolist() == ids.tolist()
    check(net, options, want, ids, ids == BOS)


def test_given_tokens_are_never_deleted():
    """DELETE is far likelier than anything else, everywhere."""
    net = ByText(seed=3)
    table = net.table
    net.table = lambda ids: table(ids).index_fill(1, torch.tensor([DELETE]), 20.0)
    ids = torch.tensor([BOS, 1, 0, 2]).expand(50, 4)  # 0 is a hole
    given = torch.tensor([True, True, False, True]).expand(50, 4)
    options = SampleOptions(sampler="ancestral", delete=5, capacity=6)
    for frame in objective().sample(net, ids, given, generator(1), options):
        for row in frame.ids.tolist():
            text = [i for i in row if i < N]
            assert text[0] == 1 and text[-1] == 2


def test_wrong_tokens_are_inserted_behind_what_is_missing():
    ids = torch.tensor([[CLS, BOS, 0, 1, 2]])
    droppable = torch.tensor([[False, False, True, True, True]])
    drop = torch.tensor([[False, False, True, False, True]])  # 0 and 2 are missing
    rows = drop_tokens(ids, droppable, torch.tensor([5]), drop, PAD)
    into = (rows.ids == BOS) | (rows.ids == 1)  # a wrong token behind BOS and one behind 1
    rows = add_wrong(rows, into, torch.full(rows.ids.shape, 2), DELETE, 16, PAD)
    assert rows.ids[0, :5].tolist() == [CLS, BOS, 2, 1, 2] and int(rows.length) == 5
    assert rows.gaps[0, :6].tolist() == [False, True, True, True, True, False]
    targets = zip(rows.row.tolist(), rows.col.tolist(), rows.token.tolist(), strict=True)
    assert [*targets] == [(0, 1, 0), (0, 2, DELETE), (0, 3, 2), (0, 4, DELETE)]
    assert int(rows.n) == 4


def test_shares_and_what_is_left_alone():
    made, rows = objective(), 3000
    ids = torch.cat([torch.full((rows, 1), BOS), torch.randint(N, (rows, 6))], 1)
    ids = torch.nn.functional.pad(ids, (0, 13), value=PAD)  # room for all wrong tokens
    given = torch.arange(20).expand(rows, 20) < 3
    batch = Batch(ids, given, torch.full((rows,), 7))
    got, plain = made.corrupt(batch, generator(4)), Insertion.corrupt(made, batch, generator(4))
    wrong = got.token == DELETE
    gaps = int(plain.gaps.sum())
    assert abs(float(wrong.double().sum()) / gaps - 0.3) < 4.5 * math.sqrt(0.21 / gaps)
    assert torch.equal(got.n - torch.bincount(got.row[wrong], minlength=rows), plain.n)
    back = got.ids.clone()
    back[got.row[wrong], got.col[wrong]] = PAD  # without them, the rows are those of ILM
    for a, b in zip(back.tolist(), plain.ids.tolist(), strict=True):
        assert [i for i in a if i != PAD] == [i for i in b if i != PAD]


def test_rows_never_outgrow_the_network():
    made, rows = objective(), 500
    ids = torch.cat([torch.full((rows, 1), BOS), torch.randint(N, (rows, 6))], 1)
    got = made.corrupt(Batch(ids, ids == BOS, torch.full((rows,), 7)), generator(4))
    assert got.ids.shape[1] <= 8 and int(got.length.max()) == 8


def test_loss_by_hand():
    """The mean over the edits that are left of -log p(edit), under one softmax over all columns but
    CLS and all ids, and the readout of whether there are any."""
    made, net = objective(), ByText(seed=seed_of(5))
    ids = torch.tensor([[BOS, 0, 2, 1], [BOS, 1, 1, 0]])
    batch = Batch(ids, ids == BOS, torch.full((2,), 4))
    rows = made.corrupt(batch, generator(11))
    assert (rows.token == DELETE).any() and (rows.token != DELETE).any()
    want = 0.0
    for b in range(2):
        z = net.table(rows.ids[b, : rows.length[b]].tolist()).double()
        log_p = z[1:, :V].flatten().log_softmax(0).view(-1, V)
        mine = rows.row == b
        edits = zip(rows.col[mine].tolist(), rows.token[mine].tolist(), strict=True)
        want -= sum(float(log_p[c - 1, v]) for c, v in edits) / max(1, int(mine.sum()))
        want -= float(z[0, V:].log_softmax(0)[int(rows.n[b] > 0)])

    class Network(ByText):
        head = torch.nn.Linear(V + 2, V)

    with torch.no_grad():
        Network.head.weight.copy_(torch.eye(V, V + 2))
        Network.head.bias.zero_()
    assert float(made.loss(Network(seed_of(5)), rows).sum) == pytest.approx(want, rel=1e-4)


def test_other_models_refuse():
    plain = Insertion(5, {"pad": PAD, "bos": BOS})
    ids = torch.full((1, 3), BOS)
    for options in (SampleOptions(delete=1), SampleOptions(draft=True)):
        with pytest.raises(UserError, match="has no use"):
            list(plain.sample(ByText(1), ids, ids == BOS, generator(1), options))
    with pytest.raises(UserError, match="stop=stop"):
        cfg = Config(objective="ilm", token_noise=0.3, stop="length")
        Insertion.from_config(cfg, 5, {"pad": PAD, "bos": BOS})
