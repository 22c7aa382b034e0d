"""Samples of a diff model: a file and a message are given, the patch is written.

    <NME> name of the file
    <BEF> the file before
    <MSG> message of the commit
    <DFF> hunks, then EOS

Each marker stands at the beginning of a line, and one newline separates two sections. All before
`<DFF>` is given; the marker itself is the first thing that is written. Of a new file, the word
ADDFILE stands for the file before. (Format: the CarperAI diff models.)

The sections are found again whatever they hold: a name has no newline, so that the first `<BEF>`
is the marker; of `<MSG>` it is the last one, since a message with a line like it is refused; and
no line of a hunk can begin with `<DFF>`, so that it is the last one as well.
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
    """What a patch is asked for."""

    name: str  # of the file, without its folder
    before: str | None  # its text; None: there is no such file yet
    message: str


class Sample(NamedTuple):
    """A prompt and its patch."""

    prompt: PatchPrompt
    hunks: str


# ---- text --------------------------------------------------------------------------------------


def prompt_text(prompt: PatchPrompt) -> str:
    """The given part of a sample; `split_prompt` reads it. Raises Refused for a name that is none
    and for what could not be told from the format: the message's fault, or the file's."""
    name, before, message = prompt
    check_name(name)
    if "\n" + MESSAGE in message:
        raise Refused("a marker in the message")
    if before == NEW_FILE:
        raise Refused(f"a file that is the word {NEW_FILE}")
    body = NEW_FILE if before is None else before
    return f"{NAME}{name}\n{BEFORE}{body}\n{MESSAGE}{message}\n"


def target_text(hunks: str) -> str:
    """The written part of a sample, without EOS; `apply_patch` takes it as it is."""
    return HUNKS + hunks


def split_prompt(text: str) -> PatchPrompt:
    """The given part of a sample -> what is in it. Raises Refused if a marker is missing."""
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
    """Ids of the given part. It is encoded by itself, so that a row is cut at the marker whatever
    the tokenizer would merge there."""
    return tokenizer.encode(prompt_text(prompt))


# ---- how good a patch is -----------------------------------------------------------------------


class Judged(NamedTuple):
    """What a written patch is worth."""

    strict: State
    lenient: State
    exact: bool  # is the file after, by the lenient applier, the wanted one?
    gain: float  # how much nearer it is: ratio(after, result) - ratio(after, before), of lines
    parses: bool | None  # applied, and Python; None: the wanted file is no Python


def judge_patch(prompt: PatchPrompt, gold: str, written: str) -> Judged:
    """A patch that a model wrote, beside the one of the commit. What does not apply leaves the
    file as it was. Raises Refused if the gold patch itself does not apply."""
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
    """Of lines: of characters, difflib takes minutes or, with its shortcut, sees nothing."""
    return difflib.SequenceMatcher(None, a.split("\n"), b.split("\n"), autojunk=False).ratio()


def is_python(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def rates(found: Iterable[Judged]) -> dict[str, float]:
    """Shares of the patches: those that parse, apply (strict, lenient), are exact; the mean gain;
    and of Python files, those that are Python afterwards (0 where there are none)."""
    found = list(found)
    assert found, "no patch"
    python = [one.parses for one in found if one.parses is not None]
    return {
        "rows": len(found),
        "parse": sum(one.lenient != "bad_format" for one in found) / len(found),
        "apply": sum(one.strict == "ok" for one in found) / len(found),
        "apply_lenient": sum(one.lenient in ("ok", "ok_fuzzy") for one in found) / len(found),
        "exact": sum(one.exact for one in found) / len(found),
        "gain": sum(one.gain for one in found) / len(found),
        "python_rows": len(python),
        "python": sum(python) / max(1, len(python)),
    }


def nearest_patch(prompt: PatchPrompt, known: list[Sample]) -> str:
    """The patch of the known sample whose name and message share the most words with the prompt's
    (Jaccard); the first of equals."""

    def words(p: PatchPrompt) -> set[str]:
        return set(re.findall(r"\w+", f"{p.name} {p.message}".lower()))

    asked = words(prompt)

    def shared(sample: Sample) -> float:
        there = words(sample.prompt)
        return len(asked & there) / max(1, len(asked | there))

    return max(known, key=shared).hunks
