"""What counts as a palindrome, and how many of a model's texts are one. Imports nothing of ours.

Two notions, never mixed: *exact* is the demo's, a string that equals its own mirror image byte for
byte; *normalised* is the usual one for phrases, which looks only at letters and digits.
"""

import re
from collections import Counter
from typing import Any, Iterable

SHORTEST = 3  # characters; shorter texts mirror themselves too easily to count


def normalise(text: str) -> str:
    """Only the ASCII letters and digits of `text`, in lower case; other letters are deleted."""
    return re.sub("[^A-Za-z0-9]", "", text).lower()


def is_palindrome(text: str) -> bool:
    """Is `text` its own mirror image when normalised? Never true of a text without letters."""
    kept = normalise(text)
    return bool(kept) and kept == kept[::-1]


def counted_valid(text: str) -> bool:
    """A palindrome of at least 3 raw characters, the white space around it not counted."""
    return is_palindrome(text) and len(text.strip()) >= SHORTEST


def is_exact(text: str) -> bool:
    """At least 3 characters, all of them a-z or 0-9, and equal to their reverse as they stand."""
    return bool(re.fullmatch(f"[a-z0-9]{{{SHORTEST},}}", text)) and text == text[::-1]


def report(texts: Iterable[str], seen: set[str] | None = None) -> dict[str, Any]:
    """Texts of a model -> counts and shares (0..1) as plain data.

    `exact` and `normalised` are shares of all samples; `distinct` and `new` (not in `seen`, the
    training texts; None if those are not given) are shares of the exact ones; `length` is their
    mean number of characters; `frequent` the five most frequent with their counts.
    """
    texts = list(texts)
    exact = [t for t in texts if is_exact(t)]
    counts = Counter(exact)

    def share(count: int, whole: int) -> float:
        return count / whole if whole else 0.0

    return {
        "samples": len(texts),
        "exact": share(len(exact), len(texts)),
        "normalised": share(sum(map(counted_valid, texts)), len(texts)),
        "distinct": share(len(counts), len(exact)),
        "new": None if seen is None else share(sum(t not in seen for t in exact), len(exact)),
        "length": share(sum(map(len, exact)), len(exact)),
        # ties by alphabet, so that the same samples in another order give the same report
        "frequent": sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:5],
    }


def describe(found: dict[str, Any]) -> str:
    """Two lines for the terminal from what `report` returned."""
    told = [
        f"{found['samples']} samples",
        f"exact palindromes {found['exact']:.1%}",
        f"ignoring case, spaces and punctuation {found['normalised']:.1%}",
    ]
    if not found["frequent"]:
        return ", ".join(told)
    of_exact = [f"distinct {found['distinct']:.1%}"]
    if found["new"] is not None:
        of_exact.append(f"not in the training set {found['new']:.1%}")
    of_exact.append(f"mean length {found['length']:.1f} characters")
    frequent = ", ".join(f"{text} ({count})" for text, count in found["frequent"])
    return f"{', '.join(told)}\nof the exact ones: {', '.join(of_exact)}; most frequent: {frequent}"
