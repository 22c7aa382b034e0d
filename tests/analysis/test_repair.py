"""analysis/repair.py: what is corrupted and what is counted."""

import pytest

from analysis.repair import corrupted, measure


def test_as_many_letters_are_wrong_as_asked_and_at_least_one():
    texts = ["abcabcabca" * 4, "abc", "cab"]
    wrong = corrupted(texts, 0.05, seed=3)
    pairs = zip(texts, wrong, strict=True)
    found = [sum(a != b for a, b in zip(*pair, strict=True)) for pair in pairs]
    assert found == [2, 1, 1] and {*"".join(wrong)} <= {*"abc"}
    assert corrupted(texts, 0.05, seed=3) == wrong != corrupted(texts, 0.05, seed=4)


def test_counts_by_hand():
    texts, drafts = ["abba", "cddc", "eeee"], ["abbx", "cdxc", "eexe"]
    found = ["abba", "cxxc", "ee"]  # restored; another palindrome; another length
    assert measure(texts, drafts, found) == {
        "restored": (1, 3),
        "wrong letters repaired": (1, 2),
        "right letters changed": (1, 6),
    }


@pytest.mark.parametrize(
    "more, asked",
    [
        ({"objective": "udlm"}, ["--draft_time=0.05", "--steps=4"]),
        ({"objective": "masked", "token_noise": 0.1}, ["--sampler=confidence", "--remask=edit"]),
        ({"objective": "ilm", "token_noise": 0.1, "time_input": False}, ["--delete=2"]),
    ],
)
def test_command(trained, capsys, more, asked):
    from analysis.repair import main

    main([f"--ckpt={trained(**more)}", "--samples=8", "--draft=train", *asked])
    out = capsys.readouterr().out
    for words in ("restored", "wrong letters repaired", "network calls each"):
        assert words in out


def test_models_that_cannot_correct_refuse(trained, run_cli, assert_refused):
    run = run_cli("analysis.repair", f"--ckpt={trained(objective='masked')}", "--samples=4")
    assert_refused(run, "draft")
