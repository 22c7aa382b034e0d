"""Star graphs against strings recorded from the published generators, token for token.

Levels, arguments, seeds and how many there are come from `$GOLDEN_DIR/ilm_$GOLDEN_SET.json`.
"""

import random

import numpy as np
import pytest
from recorded import Recorded

from tasks.stars import graphs

STARS = Recorded("ilm").facts["star_graphs"]


@pytest.mark.parametrize("level", STARS)
def test_star_strings(level):
    values = STARS[level]
    wanted = values["examples"]
    assert wanted
    for got, want in zip(
        graphs(values["seed"], (values["args"], len(wanted))), wanted, strict=True
    ):
        assert " ".join(map(str, got.prompt())) == want["prompt"]
        assert " ".join(map(str, got.answer())) == want["target"]


def test_the_global_generators_are_left_alone():
    before = random.getstate(), np.random.get_state()[1].copy()
    for values in STARS.values():
        list(graphs(values["seed"], (values["args"], 3)))
    assert random.getstate() == before[0] and np.array_equal(np.random.get_state()[1], before[1])
