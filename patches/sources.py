"""Where changes of files come from: git repositories, JSON lines, datasets of the hub.

Each gives records, one for a changed file, of any of these forms:

    {path, before, after, message}                         also with repo, commit, date, status
    {new_file, old_contents, new_contents, message}        CommitPackFT
    {tgt_file, before_file, hunks, message}                the scraper of the CarperAI diff models
    {text: "<NME> ...\\n<BEF> ...\\n<MSG> ...\\n<DFF> ..."}   a sample as it is
"""

import calendar
import math
import re
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

from configurator import UserError, optional
from patches.history import Commit, changes, commits
from patches.patch import Refused, apply_patch, check_path, make_hunks, window
from patches.rows import PatchPrompt, prompt_text, split_prompt, split_sample
from prepare.texts import Hub, open_dataset

PATH = ("path", "new_file", "tgt_file")  # names of the field; the first one found counts
BEFORE = ("before", "old_contents", "before_file")
AFTER = ("after", "new_contents")
MESSAGE = ("message", "subject")
RAW_DATE = re.compile(r"@?[0-9]{9,12}(\.[0-9]+)?( [+-][0-9]{4})?")  # of git: seconds, zone
DATES = (  # of `git log`, with or without a zone, then of mail
    "%Y-%m-%dT%H:%M:%S%z",
    *("%a %b %d %H:%M:%S %Y %z", "%a %b %d %H:%M:%S %Y", "%Y-%m-%d %H:%M:%S %z"),
    *("%a, %d %b %Y %H:%M:%S %z", "%d %b %Y %H:%M:%S %z", "%a, %d %b %Y %H:%M:%S GMT"),
)
REPO = ("repo", "repo_name", "repos")


class Source(NamedTuple):
    """Every commit in order, and the records of their files; `records()` can be called
    repeatedly."""

    commits: list[Commit]
    records: Callable[[], Iterator[dict]]  # each with `repo` and `commit`
    held_out: set[tuple[str, str]] | None = None  # these commits, if the source has splits


class Change(NamedTuple):
    """A usable change of one file."""

    prompt: PatchPrompt
    after: str
    hunks: str


class Limits(NamedTuple):
    """Which changes are used."""

    endings: tuple[str, ...]  # of names; none: all
    max_bytes: int  # of the text on either side
    window: int  # lines around the changes; 0: whole files
    per_hunk: bool = False  # each hunk by itself, as a change of the file before


# ---- sources -----------------------------------------------------------------------------------


def from_git(repos: list[Path], limits: Limits, max_commits: int) -> Source:
    """The newest `max_commits` (0: all) of each repository; a commit that several have is taken
    from the first."""
    excluded: set[str] = set()
    parts: list[tuple[Path, list[Commit]]] = []
    for repo in repos:
        chosen = [one for one in commits(repo)[-max_commits:] if one.id not in excluded]
        excluded.update(one.id for one in chosen)
        parts.append((repo, chosen))

    def records() -> Iterator[dict]:
        for repo, chosen in parts:
            yield from changes(repo, chosen, limits.endings, limits.max_bytes)

    return Source([one for _, chosen in parts for one in chosen], records)


def from_rows(
    rows: Callable[[], Iterator[dict]], max_commits: int, has_splits: bool = False
) -> Source:
    """A source that is read twice: first for its commits only. A row without a commit counts as
    one. has_splits: a row has a `split`, and any but train is validation, as is then all of that
    commit."""

    def numbered() -> Iterator[dict]:
        for number, row in enumerate(rows()):
            commit = row.get("commit") or f"row {number}"
            yield {**row, "repo": str(_first(row, REPO) or ""), "commit": str(commit)}

    commits: dict[tuple[str, str], Commit] = {}
    unknown, held_out = [], set()
    for row in numbered():
        key, date = (row["repo"], row["commit"]), row.get("date")
        held_out |= {key} if has_splits and row["split"] != "train" else set()
        if key not in commits:
            commits[key] = Commit(*key, _time(date))
            unknown += [date] if date and commits[key].time is None else []
    if unknown:
        print(
            f"source: {len(unknown):,} dates are not understood ({str(unknown[0])[:40]!r}); there "
            "the order of the rows counts, oldest first"
        )
    kept = list(commits.values())[-max_commits:]
    keys = {(one.repo, one.id) for one in kept}

    def records() -> Iterator[dict]:
        return (r for r in numbered() if (r["repo"], r["commit"]) in keys)

    return Source(kept, records, held_out if has_splits else None)


def _time(date: Any) -> float | None:
    """Seconds since 1970 of a date in a form of git's (ISO, mail, its own, raw), or a number; None
    if it is none. A date without a zone is one of UTC."""
    if isinstance(date, (int, float)) and not isinstance(date, bool):
        return float(date) if math.isfinite(date) else None
    text = date.strip() if isinstance(date, str) else ""
    if RAW_DATE.fullmatch(text):
        return float(text.split()[0].removeprefix("@"))
    text = re.sub(r"[Zz]$", "+00:00", text)  # which Python 3.10 does not read
    for form in ("", *DATES):
        try:
            at = datetime.strptime(text, form) if form else datetime.fromisoformat(text)
            return at.timestamp() if at.tzinfo else float(calendar.timegm(at.timetuple()))
        except (ValueError, OverflowError):
            continue
    return None


def hub_rows(name: str, cache_dir: str) -> Iterator[dict]:
    """The training split of a dataset of the hub, `name` or `name:configuration`, streamed."""
    datasets = optional("datasets")
    name, _, config = name.partition(":")
    try:
        yield from open_dataset(datasets, Hub(name, config or None), cache_dir or None)
    except Exception as e:  # those of the hub and of three network libraries
        why = " ".join(str(e).split())[:150] or type(e).__name__
        raise UserError(
            f"source={name} cannot be read ({why}); without the hub: --repo=FOLDER or "
            "--source=FILE.jsonl"
        ) from e


# ---- from records to changes -------------------------------------------------------------------


def _first(row: dict, names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def changes_of(record: dict, limits: Limits) -> list[Change]:
    """Any supported record -> its change, or those of its hunks, checked: the hunks give the file
    after, and the prompt can be parsed. Raises Refused, whose text is the reason."""
    if "why" in record:
        raise Refused(record["why"])
    prompt, after = _from_text(record) if "text" in record else _from_fields(record)
    for text in (prompt.message, prompt.before or "", after):
        _require_text(text, limits.max_bytes)
    if limits.endings and not prompt.name.endswith(limits.endings):
        raise Refused("another ending")
    if (prompt.before or "") == after:
        raise Refused("no change")
    if not prompt.message:
        raise Refused("no message")
    before, afters = prompt.before or "", [after]
    if limits.per_hunk:  # no line of a hunk begins with @@
        pieces = re.split(r"(?m)^(?=@@)", make_hunks(before, after))[1:]
        afters = [apply_patch(before, piece).text for piece in pieces]
    return [_change(prompt, after, limits.window) for after in afters]


def _change(prompt: PatchPrompt, after: str, lines: int) -> Change:
    if lines and prompt.before is not None:
        before, after, _ = window(prompt.before, after, lines)
        prompt = prompt._replace(before=before)
    hunks = make_hunks(prompt.before or "", after)
    result = apply_patch(prompt.before or "", hunks)
    assert (result.state, result.text) == ("ok", after), (result.state, result.why, prompt.name)
    again = split_prompt(prompt_text(prompt))
    assert again == prompt, (again, prompt)
    return Change(prompt, after, hunks)


def _require_text(text: str, limit: int) -> None:
    if "\0" in text:
        raise Refused("binary")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        raise Refused("a character that UTF-8 lacks") from None
    if size > limit:
        raise Refused(f"over {limit:,} bytes")


def _from_text(record: dict) -> tuple[PatchPrompt, str]:
    if not isinstance(record["text"], str):
        raise Refused("a field is no text")
    try:
        prompt, hunks = split_sample(record["text"])
    except Refused as e:
        raise Refused("no marker" if str(e) == "no marker" else "a hostile name") from e
    return prompt._replace(message=prompt.message.strip()), _patched(prompt.before, hunks)


def _patched(before: str | None, hunks: str) -> str:
    result = apply_patch(before or "", hunks)
    if result.state not in ("ok", "no_change"):
        raise Refused("hunks that do not apply")
    return result.text


def _from_fields(record: dict) -> tuple[PatchPrompt, str]:
    path, before, after, message = (_first(record, k) for k in (PATH, BEFORE, AFTER, MESSAGE))
    if record.get("status") == "D" or (after is None and any(k in record for k in AFTER)):
        raise Refused("deleted")
    if record.get("status") == "A":
        before = None
    hunks = record.get("hunks") if after is None else None
    if path is None or message is None or (after is None and hunks is None):
        raise Refused("a field is missing")
    if not all(isinstance(x, (str, type(None))) for x in (path, before, after, message, hunks)):
        raise Refused("a field is no text")
    try:
        name = check_path(path)
    except Refused as e:
        raise Refused("a hostile name") from e
    after = _patched(before, hunks) if after is None else after
    return PatchPrompt(name, before, message.strip()), after


def usable(source: Source, limits: Limits, dropped: Counter) -> Iterator[tuple[Commit, Change]]:
    """The commit and the changes of every usable record; the others are counted."""
    by_id = {(one.repo, one.id): one for one in source.commits}
    for record in source.records():
        try:
            changes = changes_of(record, limits)
        except Refused as e:
            dropped[str(e)] += 1
            continue
        yield from ((by_id[record["repo"], record["commit"]], change) for change in changes)
