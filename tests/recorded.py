"""Numbers recorded from the reference implementations, and whether all of them were compared.

A set is `$GOLDEN_DIR/STEM_$GOLDEN_SET[.PART].{npz,json}`; sizes, cases and names are read from it,
so that another set of the same layout can be run.
"""

import json
import os
import re
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent / "golden"))


class Recorded:
    """One set; `used` are the names of the arrays that were asked for."""

    def __init__(self, stem, part=""):
        name = f"{stem}_{os.environ.get('GOLDEN_SET', 'a')}{part and '.' + part}"
        self.name = name
        self.arrays = np.load(FOLDER / f"{name}.npz")
        self.facts = json.loads((FOLDER / f"{name}.json").read_text())
        self.used: set[str] = set()

    def gold(self, name):
        """A recorded array as a tensor."""
        self.used.add(name)
        return torch.from_numpy(np.asarray(self.arrays[name]))

    def cases(self, pattern):
        """Distinct first groups of `pattern` among the names of the arrays."""
        got = (re.fullmatch(pattern, name) for name in self.arrays)
        return sorted({m[1] for m in got if m})

    def close(self, ours, name, rtol=1e-5, atol=1e-6):
        want = self.gold(name)
        assert ours.shape == want.shape, (name, ours.shape, want.shape)
        ours = ours.detach().double()
        torch.testing.assert_close(
            ours, want.double(), rtol=rtol, atol=atol, msg=lambda m: f"{name} {m}"
        )

    def same(self, ours, name):
        assert torch.equal(ours, self.gold(name)), name
