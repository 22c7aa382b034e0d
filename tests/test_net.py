"""What every objective computed at 3985a0c, before its code moved, it computes still (net.py).

Where that was wrong, net.json has what is right now, and another test says why:

    bd3 block_length=1    bound and samplers told the network levels that training never did
                          (test_diffusion_blocks.test_blocks_of_one_with_time_are_told_what_...)
    sedd graph=uniform    the bound's noise levels were uniform in m, with infinite variance
                          (test_diffusion_graphs.test_uniform_graph_standard_error_is_one)
    left_to_right         of masked text is newer than 3985a0c: as it was when it came
    confidence, margin,   ties were decided by float32 rounding; within diffusion.TIE they go to
    entropy               the left (test_diffusion_samplers.test_ties_go_to_the_left)
"""

import json
import math
from pathlib import Path
from typing import Any, Callable

import net
import pytest

KEPT = json.loads((Path(__file__).parent / "net.json").read_text())
CASES = dict([*net.cases(), *net.runs()])
FIRST = {f"{name} {net.label(options[0])}".strip() for name, options in net.OPTIONS.items()}
SMALL = FIRST | {"train masked", "train ilm prefix", "train bd3"}


def close(kind: str, a: list[float], b: list[float]) -> bool:
    """Another processor or torch rounds otherwise; ten steps of Adam make more of that."""
    tolerance = 2e-3 if kind in ("model", "ema") else 2e-5
    if kind in ("model", "ema") or kind.startswith("grad"):  # a norm, and a product of its size
        return all(abs(x - y) <= tolerance * a[0] for x, y in zip(a, b, strict=True))
    near = (math.isclose(x, y, rel_tol=tolerance, abs_tol=1e-6) for x, y in zip(a, b, strict=True))
    return all(near)


def differences(want: dict[str, Any], got: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Keys whose numbers differ, and those of samples that do: a draw may fall on the other side
    of a rounding error, a most probable token may not."""
    assert set(want) == set(got)
    numbers, samples = [], []
    for key, value in want.items():
        if isinstance(value, str) or isinstance(got[key], str):
            random = "sample" in key and "temperature=0.0" not in key
            if value != got[key]:
                (samples if random and got[key] not in ("refused", "failed") else numbers).append(
                    key
                )
        elif not close(key.split()[0], value, got[key]):
            numbers.append(key)
    return numbers, samples


def check(name: str, compute: Callable[[], Any]) -> None:
    case = net.figures(compute())
    numbers, samples = differences(KEPT[name], case)
    assert not numbers, {k: (KEPT[name][k], case[k]) for k in numbers}
    assert len(samples) <= 1, {k: (KEPT[name][k], case[k]) for k in samples}


def test_every_case_is_kept():
    assert set(KEPT) == set(CASES)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_defaults_compute_what_they_did(name: str):
    check(name, CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(CASES) - SMALL))
def test_every_option_computes_what_it_did(name: str):
    check(name, CASES[name])


def test_a_wrong_sign_is_seen():
    """In one number of a gradient, and one token of a greedy sample."""
    case = net.computed("masked", {})
    key = next(k for k in case if k.startswith("grad blocks") or k.startswith("grad head"))
    flipped = {**case, key: -case[key]}
    assert differences(net.figures(case), net.figures(flipped)) == ([f"grad{key[-1]}"], [])
    key = "sample confidence temperature=0.0"
    other = case[key].clone()
    other[0, -1] = (other[0, -1] + 1) % 5
    assert differences(net.figures(case), net.figures({**case, key: other})) == ([key], [])
