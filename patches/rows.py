"""Samples of a diff model: the prompt is a file and a message, the target a patch.

    <NME> name of the file
    <BEF> the file before
    <MSG> message of the commit
    <DFF> hunks, then EOS

Each marker stands at the beginning of a line, and one newline separates two sections. All before
`<DFF>` is the prompt; the marker itself begins the target. For a new file, the word ADDFILE stands
for the file before. (Format: the CarperAI diff models.)

The sections can be parsed whatever they hold: a name has no newline, so the first `<BEF>` is the
marker; so is the last `<MSG>`, since a message with such a line is refused, and the last `<DFF>`,
since no line of a hunk can begin with it.
"""

import ast
import difflib
import re
import warnings
from typing import Any, Iterable, NamedTuple

from patches.patch import MARKERS, Refused, State, apply_patch, check_name

NAME, BEFORE, MESSAGE, HUNKS = MARKERS
NEW_FILE = "ADDFILE"


class PatchPrompt(NamedTuple):
    """The prompt of a patch."""

    name: str  # of the file, without its folder
    before: str | None  # its text; None: there is no such file yet
    message: str


class Sample(NamedTuple):
    """A prompt and its patch."""

    prompt: PatchPrompt
    hunks: str


# ---- text --------------------------------------------------------------------------------------


def prompt_text(prompt: PatchPrompt) -> str:
    """The prompt of a sample as text, which `split_prompt` reads. Raises Refused for an invalid
    name, and for a message or file that contains a marker."""
    name, before, message = prompt
    check_name(name)
    if "\n" + MESSAGE in message:
        raise Refused("a marker in the message")
    if before == NEW_FILE:
        raise Refused(f"a file that is the word {NEW_FILE}")
    body = NEW_FILE if before is None else before
    return f"{NAME}{name}\n{BEFORE}{body}\n{MESSAGE}{message}\n"


def target_text(hunks: str) -> str:
    """The target of a sample as text, without EOS, which `apply_patch` accepts."""
    return HUNKS + hunks


def split_prompt(text: str) -> PatchPrompt:
    """The text of a prompt -> its parts. Raises Refused if a marker is missing."""
    first, last = text.find("\n" + BEFORE), text.rfind("\n" + MESSAGE)
    if not text.startswith(NAME) or first < 0 or last <= first + len(BEFORE):
        raise Refused("no marker")
    body = text[first + 1 + len(BEFORE) : last]
    message = text[last + 1 + len(MESSAGE) :].removesuffix("\n")
    name = check_name(text[len(NAME) : first])
    return PatchPrompt(name, None if body == NEW_FILE else body, message)


def split_sample(text: str) -> Sample:
    """A whole sample as one text -> its parts. Raises Refused if a marker is missing."""
    at = text.rfind("\n" + HUNKS)
    if at < 0:
        raise Refused("no marker")
    return Sample(split_prompt(text[: at + 1]), text[at + 1 + len(HUNKS) :])


def prompt_ids(tokenizer: Any, prompt: PatchPrompt) -> list[int]:
    """Ids of a prompt. It is encoded by itself, so that the row is cut at the marker even if the
    tokenizer would merge across it."""
    return tokenizer.encode(prompt_text(prompt))


# ---- how good a patch is -----------------------------------------------------------------------


class Judged(NamedTuple):
    """The scores of a patch."""

    strict: State
    lenient: State
    exact: bool  # is the file after, by the lenient applier, the wanted one?
    gain: float  # how much nearer it is: ratio(after, result) - ratio(after, before), of lines
    parses: bool | None  # applied, and Python; None: the wanted file is no Python


def judge_patch(prompt: PatchPrompt, gold: str, written: str) -> Judged:
    """The scores of a model's patch against that of the commit. A patch that does not apply leaves
    the file unchanged. Raises Refused if the gold patch itself does not apply."""
    before = prompt.before or ""
    wanted = apply_patch(before, gold)
    if wanted.state != "ok":
        raise Refused(f"the patch of the commit does not apply: {wanted.why}")
    strict, lenient = (apply_patch(before, written, how) for how in (False, True))
    applied = lenient.state in ("ok", "ok_fuzzy")
    gain = _alike(wanted.text, lenient.text) - _alike(wanted.text, before)
    python = prompt.name.endswith(".py") and is_python(wanted.text)
    parses = applied and is_python(lenient.text) if python else None
    return Judged(strict.state, lenient.state, lenient.text == wanted.text, gain, parses)


def _alike(a: str, b: str) -> float:
    """Similarity by lines: by characters, difflib takes minutes or, with its shortcut, misses
    everything."""
    return difflib.SequenceMatcher(None, a.split("\n"), b.split("\n"), autojunk=False).ratio()


def is_python(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def rates(results: Iterable[Judged]) -> dict[str, float]:
    """Shares of the patches: those that parse, apply (strict, lenient), are exact; the mean gain;
    and of Python files, those that are Python afterwards (0 where there are none)."""
    results = list(results)
    assert results, "no patch"
    python = [one.parses for one in results if one.parses is not None]
    return {
        "rows": len(results),
        "parse": sum(one.lenient != "bad_format" for one in results) / len(results),
        "apply": sum(one.strict == "ok" for one in results) / len(results),
        "apply_lenient": sum(one.lenient in ("ok", "ok_fuzzy") for one in results) / len(results),
        "exact": sum(one.exact for one in results) / len(results),
        "gain": sum(one.gain for one in results) / len(results),
        "python_rows": len(python),
        "python": sum(python) / max(1, len(python)),
    }


def nearest_patch(prompt: PatchPrompt, samples: list[Sample]) -> str:
    """The patch of the known sample whose name and message share the most words with the prompt's
    (Jaccard); the first of equals."""

    def words(p: PatchPrompt) -> set[str]:
        return set(re.findall(r"\w+", f"{p.name} {p.message}".lower()))

    query = words(prompt)

    def shared(sample: Sample) -> float:
        there = words(sample.prompt)
        return len(query & there) / max(1, len(query | there))

    return max(samples, key=shared).hunks
