"""Numbers recorded from the reference code of ILM: its left-to-right and XLNet baselines."""

import re

import pytest
import torch
from recorded import Recorded

from autoregressive import earlier, reading_order, targets
from checkpoint import build_network, build_objective, load_weights
from configurator import Config
from corpus import Batch
from objective import generator
from pretrained.ilm import from_ilm

GOLD = Recorded("ilm")
TOKENS = dict(zip("pad cls mask eos bos sep unk".split(), range(7), strict=True))
PREFIX = "ilm_w."


@pytest.fixture(scope="module", autouse=True)
def all_compared():
    yield
    mine = {name for name in GOLD.arrays if name.startswith(("arlm_", "xlnet_"))}
    assert len(mine) >= 10 and mine <= GOLD.used


# ---- left to right -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    """The recorded network with its attention made causal, and the objective."""
    names = [name for name in GOLD.arrays if name.startswith(PREFIX)]
    kept = {n.removeprefix(PREFIX): GOLD.gold(n) for n in names if "length_output" not in n}
    weights, sizes = from_ilm(kept)
    heads = int(re.search(r"(\d+) heads", GOLD.facts["keys"]["ilm_w.*"])[1])
    cfg = Config(**{**sizes, "objective": "ar", "n_head": heads})
    meta = {"vocab_size": len(weights["embed.weight"]), "specials": TOKENS}
    objective = build_objective(cfg, meta)
    net = build_network(cfg, objective)
    load_weights(net, weights, GOLD.name)
    return net.eval(), objective


def recorded_rows():
    """The recorded batch: its prompts are what is ignored before the first target."""
    ids, ignored = GOLD.gold("arlm_input_ids"), GOLD.gold("arlm_ignore").bool()
    given = ignored.int().cumprod(1).bool()
    length = (~ignored * (torch.arange(ids.shape[1]) + 1)).amax(1)
    return Batch(ids, given, length)


def test_left_to_right(network):
    """Loss, each token's nats in row order, and the bound of each row."""
    net, objective = network
    batch = recorded_rows()
    loss = objective.loss(net, objective.corrupt(batch, generator(0)))
    GOLD.close(loss.sum / loss.count, "arlm_loss")
    _, each, row = objective.cross_entropy(net, objective.corrupt(batch, None))
    GOLD.close(each, "arlm_nlls")
    assert loss.count == len(each) == int((~GOLD.gold("arlm_ignore").bool()).sum())
    want = torch.zeros(len(batch.ids)).double().index_add_(0, row, GOLD.gold("arlm_nlls").double())
    got = objective.bound(net, batch, generator(0))
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


# ---- XLNet -------------------------------------------------------------------------------------


def recorded_order():
    """Scored places, and uniforms that give them the recorded permutation."""
    mapping = GOLD.gold("xlnet_target_mapping").bool()  # (B, M, T), the targets in their order
    scored = mapping.any(1)
    rank = (mapping * torch.arange(mapping.shape[1])[:, None]).sum(1)
    return scored, rank / mapping.shape[1]


def test_masks_of_a_random_order():
    """perm_mask, target_mapping and labels, in the recorded layout, which is padded on the left."""
    ids, seen = GOLD.gold("xlnet_input_ids"), GOLD.gold("xlnet_attention_mask").bool()
    scored, u = recorded_order()
    assert torch.equal(seen, ids != TOKENS["pad"]) and (seen & ~scored).any(1).all()
    order = reading_order(scored, u)
    GOLD.same(~earlier(order), "xlnet_perm_mask")
    columns, some = targets(order, scored)
    width = GOLD.gold("xlnet_labels").shape[1]
    mapping = torch.nn.functional.one_hot(columns, ids.shape[1]) * some[..., None]
    assert mapping.shape[1] == width
    GOLD.same(mapping, "xlnet_target_mapping")
    GOLD.same(ids.gather(1, columns).masked_fill(~some, -100), "xlnet_labels")
    # the other recorded mode, whose prompts see nothing: one rank for all of them
    alike = torch.where(scored, order + 1, 0)
    GOLD.same(~earlier(alike), "xlnet_full_perm_mask")


def test_the_network_is_shown_these_masks():
    """The same rows padded on the right, through the objective: what it hands to the network is
    what was recorded, with keys that are padding hidden."""
    seen = GOLD.gold("xlnet_attention_mask").bool()
    B, T = seen.shape
    length, ids = seen.sum(1), GOLD.gold("xlnet_input_ids")
    scored, u = recorded_order()
    shift = (torch.arange(T) + (T - length)[:, None]) % T  # right-padded column -> recorded one
    move = lambda x: x.gather(1, shift)  # noqa: E731
    inside = torch.arange(T) < length[:, None]
    batch = Batch(move(ids), inside & ~move(scored), length)
    options = {}

    class Spy(torch.nn.Module):
        head = torch.nn.Linear(3, 16)

        def features(self, ids, time, mask, columns):
            options.update(ids=ids, mask=mask, columns=columns)
            return torch.zeros(*columns.shape, 3)

    cfg = Config(objective="xlnet")
    objective = build_objective(cfg, {"vocab_size": 16, "specials": TOKENS})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda size, **_: move(u)[:, : size[1]].double())
        objective.loss(Spy(), objective.corrupt(batch, generator(0)))
    width = options["mask"].shape[-1]
    place, shift, inside = torch.arange(B)[:, None, None], shift[:, :width], inside[:, :width]
    want = ~GOLD.gold("xlnet_perm_mask")[place, shift[:, :, None], shift[:, None]]
    want &= inside[:, None] & inside[:, :, None]
    assert torch.equal(options["mask"] & inside[:, :, None], want)
    assert torch.equal(options["ids"], batch.ids[:, :width])
    labels = GOLD.gold("xlnet_labels")
    got = batch.ids.gather(1, options["columns"])
    assert torch.equal(got[labels >= 0], labels[labels >= 0])
