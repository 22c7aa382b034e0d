"""FlexMDM's noising against what the reference made of recorded times."""

import torch
import torch.nn.functional as F
from recorded import Recorded

from corpus import Batch
from insertion import FlexMDM, noised

SET = Recorded("ilm")
PAD, MASK, EOS = 0, 2, 3  # json: ids of the recorded set


def test_noising_from_recorded_times():
    ids, t = SET.gold("flex_ids"), SET.gold("flex_t")
    fixed = SET.gold("flex_fixed").bool()
    length = (ids != PAD).sum(1)
    objective = FlexMDM(32, {"pad": PAD, "mask": MASK, "eos": EOS}, longest=ids.shape[1])
    # BOS in front: what our rows begin with, there at all times and deleting nothing
    given = F.pad(fixed, (1, 0), value=True)
    rows = objective.with_eos(Batch(F.pad(ids, (1, 0), value=4), given, length + 1))
    times = (F.pad(SET.gold(f"flex_{k}_time"), (1, 1)) for k in ("ins", "unmask"))
    x = noised(rows, *times, t, MASK, PAD)
    assert torch.equal(x.length - 1, SET.gold("flex_gaps_mask").sum(1))

    def recorded(ours):  # without BOS, in the recorded width
        return F.pad(ours[:, 1:], (0, ids.shape[1] - ours.shape[1] + 1))

    inside = torch.arange(x.ids.shape[1]) < x.length[:, None]
    SET.same(recorded(inside), "flex_gaps_mask")
    SET.same(recorded(x.ids), "flex_xt")
    SET.same(recorded(((x.source - 1) * inside).clamp(min=0)), "flex_st")
    SET.same(recorded(x.gap), "flex_gaps")
    assert torch.equal(x.masked, x.ids == MASK) and not x.gap[~x.editable].any()
    assert torch.equal(x.target[inside], rows.ids.gather(1, x.source)[inside])


def test_every_array_was_compared():
    assert SET.used == {name for name in SET.arrays if name.startswith("flex_")}
