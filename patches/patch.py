"""Patches of one file: read them, apply all of one or nothing, make them, write the result.

    result = apply_patch(before, patch)           # result.state, result.text, result.why
    patch = make_hunks(before, after)

A patch here is what follows the headers of a unified diff: hunks, each from its `@@` on, and no
file name: the caller names the file, so a patch cannot choose one. Lines end in "\\n" only; a
carriage return is a part of its line. Patches of a model are not trusted: line numbers are hints,
a hunk has as many lines as its header says or is none, and if one does not fit, nothing is applied.

Imports nothing of ours.
"""

import difflib
import hashlib
import os
import re
import stat
import subprocess
import tempfile
import unicodedata
from pathlib import Path, PureWindowsPath
from typing import Iterator, Literal, NamedTuple

State = Literal["ok", "ok_fuzzy", "bad_format", "no_match", "no_change"]
MARKERS = ("<NME> ", "<BEF> ", "<MSG> ", "<DFF> ")  # of the sections of a sample, at a line's start
NO_NEWLINE = "\\ No newline at end of file"
HEADER = re.compile(r"@@(?: -([0-9]{1,9})(,[0-9]{1,9})? \+([0-9]{1,9})(,[0-9]{1,9})? @@)?(?!@)")
SIGNATURE = re.compile(r"\n-- \n[0-9]+\.[^\n]*\n*\Z")  # of git format-patch, below the last hunk
FILE = re.compile(  # what names files in a diff
    r"--- |\+\+\+ |diff |index [0-9a-f]+\.\.|(rename|copy) (from|to) |(old|new|deleted) .*mode "
)


class BadPatch(ValueError):
    """A text that is not a patch of one file; the message says why."""


class Refused(ValueError):
    """A name or a file that is not read or written; the message says why in one line."""


# ---- reading -----------------------------------------------------------------------------------


class Hunk(NamedTuple):
    """One change with the lines around it."""

    start: int | None  # where the header says it begins, counted from 1; None: it does not say
    lines: list[tuple[str, str]]  # " ", "-" or "+", and the line without its end
    ends: list[str]  # signs of the lines after which the file is said to end without a newline

    def old(self) -> list[str]:
        """The lines that the file must have."""
        return [line for sign, line in self.lines if sign != "+"]

    def place(self) -> int | None:
        """Index in the file of the first of them, as the header tells; of an insertion without any,
        the index of the line that it stands before."""
        return None if self.start is None else self.start - (1 if self.old() else 0)


class _Reader:
    """The lines of one hunk, as they come. The sizes in its header say where it ends: a line that
    is missing, has lost its sign or is one too many means that this is not the whole hunk."""

    def __init__(self, header: re.Match, number: int):
        self.name = f"hunk {number}"
        self.start = int(header[1]) if header[1] else None
        sizes = [int((header[i] or ",1")[1:]) for i in (2, 4)]
        self.left = None if self.start is None else {"-": sizes[0], "+": sizes[1]}  # None: unknown
        self.lines: list[tuple[str, str]] = []  # with "" for the sign of an empty line without one
        self.ends: list[str] = []
        self.over = False  # has something else followed?

    def full(self) -> bool:
        return self.left is not None and not any(self.left.values())

    def add(self, line: str) -> None:
        """Take a line, or leave it out as one behind the hunk. Raises BadPatch."""
        sign = line[:1] if line[:1] in (" ", "-", "+") else None
        if line.startswith("\\") and not self.over:
            self.ends.extend(sign or " " for sign, _ in self.lines[-1:])
        elif sign is None and line not in ("", "\r"):
            self._stop(line)
        elif self.over or self.full():
            if sign in ("-", "+") or (line.strip() and not self.over):
                raise BadPatch(f"{self.name} has more lines than its header says")
        else:
            for side in "-+" if self.left is not None else "":
                self.left[side] -= sign in (None, " ", side)
                if self.left[side] < 0:
                    raise BadPatch(f"the lines of {self.name} are not those that its header counts")
            self.lines.append((sign or "", line[1:] if sign else line))

    def _stop(self, line: str) -> None:
        """A line that is none of a hunk: behind the end, or one that has lost its sign."""
        ended = self.left is None and self.lines and (not self.lines[-1][0] or line[:3] == "```")
        if not (self.over or self.full() or ended):
            raise BadPatch(f"{self.name} has a line that begins with none of space, - and +")
        self.over = True

    def hunk(self) -> Hunk:
        """All of it. Raises BadPatch for less. Without sizes, empty lines at the end are none."""
        while self.left is None and self.lines and not self.lines[-1][0]:
            self.lines.pop()
        if not any(sign for sign, _ in self.lines):
            raise BadPatch(f"{self.name} has no lines")
        if self.left is not None and not self.full():
            raise BadPatch(f"{self.name} has fewer lines than its header says")
        return Hunk(self.start, [(sign or " ", line) for sign, line in self.lines], self.ends)


def parse(patch: str) -> list[Hunk]:
    """Text -> its hunks. What stands before the first `@@` or behind the last hunk is left out, and
    all from a line with `<NME>` on, where a model begins another sample.

    The sizes in its header decide where a hunk ends. A header without numbers has none: there the
    hunk ends at an empty line with other text below, or at ```. An empty line inside is one of the
    file that lost its space. Raises BadPatch for a hunk with fewer or more lines, or one without a
    sign; if there is none, an empty one, text between two, a combined diff of a merge, or the name
    of a file, since hunks may then be meant for another one.
    """
    hunks: list[_Reader] = []
    patch = SIGNATURE.sub("\n", patch.removeprefix(MARKERS[3])).removesuffix("\n")
    for line in patch.split("\n"):
        last = hunks[-1] if hunks else None
        if line.startswith(MARKERS[0].rstrip()):
            break
        if line.startswith("@@"):
            header = HEADER.match(line)
            if header is None:
                raise BadPatch("it is the combined diff of a merge (@@@)")
            if last and last.over:
                raise BadPatch(f"there is text before hunk {len(hunks) + 1}")
            hunks.append(_Reader(header, len(hunks) + 1))
        elif FILE.match(line) and (last is None or last.over or last.full() or line[0] not in "+-"):
            raise BadPatch("it names a file; a patch has only hunks")
        elif last:
            last.add(line)
    if not hunks:
        raise BadPatch("there is no hunk: no line begins with @@")
    return [one.hunk() for one in hunks]


# ---- applying ----------------------------------------------------------------------------------


class Applied(NamedTuple):
    """The result of applying a patch."""

    state: State  # ok_fuzzy: applied, but white space or the mark of the file's end differed
    text: str  # the file after; the file before unless the state is ok or ok_fuzzy
    why: str  # empty, or what is wrong


class _Places(NamedTuple):
    """Where the old lines of a hunk match."""

    at: list[int]  # indices of the first of them, rising
    exact: bool
    marked: bool  # does what the hunk says about the end of the file count?


VIEWS = (str, str.rstrip, lambda line: " ".join(line.split()))  # under which lines are compared


def apply_patch(before: str, patch: str, lenient: bool = False) -> Applied:
    """The file before and a patch of it -> the file after, or why not.

    Hunks go from top to bottom; each needs its old lines, exactly, behind the hunk before it.
    Where they are several times, the place counts that is nearest to the header's number plus how
    far the last hunk was from its own (of the first hunk: the first one that has only one place),
    or the first one if the header has no number; but never one that leaves no place for a later
    hunk. `lenient` looks again without white space at the ends of lines, then with runs of it taken
    for one space, where the place must be the only one. Kept lines come from the file, not from the
    patch. The last line keeps its newline, or its lack of one, unless a `\\` line says otherwise.
    """
    try:
        hunks = parse(patch)
    except BadPatch as e:
        return Applied("bad_format", before, str(e))
    lines, newline = _lines(before)
    places = [_places(lines, newline, hunk, lenient) for hunk in hunks]
    made: list[str] = []
    cursor, shift = 0, _first_shift(hunks, places)
    rooms = _rooms(lines, hunks, places)
    for number, (hunk, place, room) in enumerate(zip(hunks, places, rooms, strict=True), 1):
        at = _nearest(hunk, [i for i in place.at if cursor <= i <= room], shift)
        if at is None:
            return Applied("no_match", before, f"hunk {number}: the file has no such lines there")
        part = slice(at, at + len(hunk.old()))
        made += lines[cursor:at] + _replaced(lines[part], hunk, place.exact)
        cursor, shift = part.stop, shift if hunk.start is None else at - hunk.place()
        if place.marked:
            newline = set(hunk.ends) == {"-"}
    made += lines[cursor:]
    after = "\n".join(made) + ("\n" if made and newline else "")
    if after == before:
        return Applied("no_change", before, "the file stays as it is")
    return Applied("ok" if all(place.exact for place in places) else "ok_fuzzy", after, "")


def _lines(text: str) -> tuple[list[str], bool]:
    """Text -> its lines, and whether the last one has a newline (or there is none)."""
    lines = text.split("\n")
    newline = lines[-1] == ""
    return lines[:-1] if newline else lines, newline


def _places(lines: list[str], newline: bool, hunk: Hunk, lenient: bool) -> _Places:
    """All matches of a hunk in the file, at the strictest level of comparison that has any."""
    old, last = hunk.old(), len(lines) - len(hunk.old())
    exact = [i for i in range(last + 1) if lines[i : i + len(old)] == old]
    exact = [i for i in exact if _end_fits(hunk, i == last, newline or not lines)]
    if exact or not lenient:
        return _Places(exact, True, bool(hunk.ends))
    for marked in (True, False) if hunk.ends else (False,):
        span = range(max(last, 0) if marked else 0, last + 1)  # a mark: the end of the file
        for level, view in enumerate(VIEWS):
            wanted, there = [view(x) for x in old], [view(x) for x in lines]
            matches = [i for i in span if there[i : i + len(old)] == wanted]
            if len(matches) == 1 or (matches and level < 2):
                return _Places(matches, False, marked)
    return _Places([], True, False)


def _end_fits(hunk: Hunk, last: bool, newline: bool) -> bool:
    """Is what a hunk says of the old file's end so? `last`: is that where its lines end?"""
    if not hunk.ends:
        return newline or not last
    return last and newline == (set(hunk.ends) == {"+"})


def _rooms(lines: list[str], hunks: list[Hunk], places: list[_Places]) -> list[int]:
    """For each hunk, the last index at which it may be applied so that those after it have a place;
    -1 without one."""
    rooms, room = [], len(lines)
    for hunk, place in zip(reversed(hunks), reversed(places), strict=True):
        rooms.append(room - len(hunk.old()))
        room = max((i for i in place.at if i <= rooms[-1]), default=-1)
    return rooms[::-1]


def _first_shift(hunks: list[Hunk], places: list[_Places]) -> int:
    """Distance of the first hunk with only one match from the number in its header: a model that
    counts wrongly does so for the whole patch."""
    sure = zip(hunks, places, strict=True)
    shifts = (p.at[0] - h.place() for h, p in sure if len(p.at) == 1 and h.start is not None)
    return next(shifts, 0)


def _nearest(hunk: Hunk, places: list[int], shift: int) -> int | None:
    """The match to use. Added lines without context match everywhere, so only the header's number
    says where they belong; an empty file has only one place."""
    expected = None if hunk.start is None else hunk.place() + shift
    if not hunk.old() and places != [0]:
        places = [i for i in places if i == expected]
    return min(places, key=lambda i: i if expected is None else abs(i - expected), default=None)


def _replaced(there: list[str], hunk: Hunk, exact: bool) -> list[str]:
    """The lines of the file after a hunk. Added ones get the carriage returns of the old ones where
    these did not match exactly."""
    made, rest = [], iter(there)
    ends = {line.endswith("\r") for line in there}
    for sign, line in hunk.lines:
        if sign == "+":
            if not exact and len(ends) == 1:
                line = line.removesuffix("\r") + "\r" * ends.copy().pop()
            made.append(line)
        elif sign == " ":
            made.append(next(rest))
        else:
            next(rest)
    return made


# ---- making ------------------------------------------------------------------------------------


def kept_ends(text: str) -> list[str]:
    """Lines with their newlines; the last one may have none."""
    lines = text.split("\n")
    return [line + "\n" for line in lines[:-1]] + [line for line in lines[-1:] if line]


def changed_span(before: list[str], after: list[str]) -> tuple[int, int]:
    """Number of lines that both have in common at the beginning, and at the end."""
    limit = min(len(before), len(after))
    first = next((i for i in range(limit) if before[i] != after[i]), limit)
    pairs = zip(reversed(before[first:]), reversed(after[first:]), strict=False)
    last = next((i for i, (a, b) in enumerate(pairs) if a != b), limit - first)
    return first, last


def window(before: str, after: str, context: int) -> tuple[str, str, int]:
    """Both texts, only from `context` lines above the first change to as many below the last one;
    and how many lines were cut off above."""
    a, b = kept_ends(before), kept_ends(after)
    first, last = changed_span(a, b)
    top, bottom = max(0, first - context), max(0, last - context)
    return "".join(a[top : len(a) - bottom]), "".join(b[top : len(b) - bottom]), top


def make_hunks(before: str, after: str, context: int = 3) -> str:
    """The patch that turns one text into the other, with `context` lines around every change where
    the file has them, in the form of `git diff` without what follows the second @@. Empty if they
    are equal."""
    a, b = kept_ends(before), kept_ends(after)
    first, last = changed_span(a, b)  # only what lies between is aligned: there are no changes
    middle = difflib.SequenceMatcher(None, a[first : len(a) - last], b[first : len(b) - last])
    moved = [(kind, *(at + first for at in span)) for kind, *span in middle.get_opcodes()]
    ends = (len(a) - last, len(a), len(b) - last, len(b))
    middle.opcodes = [("equal", 0, first, 0, first), *moved, ("equal", *ends)]  # of the whole files
    groups = middle.get_grouped_opcodes(context) if a != b else ()
    return "".join(piece for group in groups for piece in _hunk_text(group, a, b))


def _hunk_text(group: list[tuple], a: list[str], b: list[str]) -> Iterator[str]:
    old, new = _range(group[0][1], group[-1][2]), _range(group[0][3], group[-1][4])
    yield f"@@ -{old} +{new} @@\n"
    for kind, a1, a2, b1, b2 in group:
        signed = [(" " if kind == "equal" else "-", line) for line in a[a1:a2]]
        signed += [("+", line) for line in b[b1:b2] if kind != "equal"]
        for sign, line in signed:
            yield sign + (line if line.endswith("\n") else f"{line}\n{NO_NEWLINE}\n")


def _range(start: int, stop: int) -> str:
    """Line numbers as in a header: an empty range counts from the line before, and a size of 1 is
    omitted."""
    size = stop - start
    return f"{start + 1}" if size == 1 else f"{start + (size > 0)},{size}"


def renumber(patch: str, lines: int) -> str:
    """The same hunks for a file that has so many more lines above: of a `window`, for the whole."""

    def moved(line: str) -> str:
        header = HEADER.match(line)
        if not (line.startswith("@@") and header and header[1]):
            return line
        old, new = (int(header[i]) + lines for i in (1, 3))
        return f"@@ -{old}{header[2] or ''} +{new}{header[4] or ''} @@{line[header.end() :]}"

    return "\n".join(map(moved, patch.split("\n")))


# ---- names and files ---------------------------------------------------------------------------


TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def _unprintable(character: str) -> bool:
    return character in TURNING or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def check_name(name: str) -> str:
    """A file's own name, without folders -> the same. Raises Refused for `..`, separators, drives,
    control characters, line ends, halves of surrogate pairs, what turns the direction of writing,
    and what is too long. Spaces and joiners of any script are parts of ordinary names."""
    bad = name in ("", ".", "..") or any(map(_unprintable, name)) or len(name.encode()) > 255
    if bad or "/" in name or "\\" in name or PureWindowsPath(name).drive:
        raise Refused(f"{name[:80]!r} is no name of a file")
    return name


def check_path(path: str) -> str:
    """A path inside a repository -> the name of its file. Raises Refused for an absolute path, one
    that leaves the folder, one into `.git`, and whatever `check_name` refuses."""
    *folders, name = path.split("/")
    parts = [*(folder for folder in folders if folder != "."), name]  # "." is where one is
    for part in parts:
        check_name(part)
        if part.lower() == ".git":
            raise Refused(f"{path[:80]!r} is a file of git itself")
    return parts[-1]


class Seen(NamedTuple):
    """A file as it was read."""

    text: str | None  # None: there is none
    digest: str  # of its bytes


def read_file(path: str | Path) -> Seen:
    """A text file, its line ends as they are. Raises Refused for what is no regular file of UTF-8:
    links, folders, devices, binary files, and files of git itself."""
    path = Path(path)
    check_name(path.name)
    parts = (*path.absolute().parts, *real(path).parts)
    if ".git" in (part.lower() for part in parts):
        raise Refused(f"{path} is a file of git itself")
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise Refused(f"{path} is no regular file (a link, a folder or a device)")
        data = path.read_bytes()
        if b"\0" in data:
            raise Refused(f"{path} is no text: it has a NUL byte")
        return Seen(data.decode("utf-8"), hashlib.sha256(data).hexdigest())
    except FileNotFoundError:
        return Seen(None, "")
    except UnicodeDecodeError as e:
        raise Refused(f"{path} is no text in UTF-8") from e
    except OSError as e:
        raise Refused(f"cannot read {path}: {e.strerror}") from e


def require_writable(path: str | Path, seen: Seen) -> None:
    """Raise Refused if the file is not what it was, if its folder is missing, or if git does not
    hold its content: changed, not added, ignored, or one that git is told not to look at, through
    whatever linked folders. A file outside of any repository is guarded by
    its content alone."""
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise Refused(f"cannot write {path}: its folder is missing")
    _require_same(path, seen)
    if status := uncommitted(path):
        raise Refused(f"{path} is not written: {status}")


def write_file(path: str | Path, text: str, seen: Seen) -> None:
    """Put `text` in the place of what `read_file` saw, whole or not at all; mode bits stay. Raises
    Refused, with nothing changed, as `require_writable`."""
    path = Path(path)
    require_writable(path, seen)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:60]}.", dir=path.parent)
        with open(handle, "wb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        if seen.text is None:
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.link(temporary, path)  # fails if somebody has made the file meanwhile
        else:
            os.chmod(temporary, stat.S_IMODE(os.lstat(path).st_mode))
            _require_same(path, seen)
            os.replace(temporary, path)
    except (OSError, UnicodeEncodeError) as e:
        raise Refused(f"cannot write {path}: {getattr(e, 'strerror', None) or e}") from e
    finally:
        if temporary and os.path.lexists(temporary):
            os.unlink(temporary)


def _require_same(path: Path, seen: Seen) -> None:
    if read_file(path).digest != seen.digest:
        raise Refused(f"{path} has changed since it was read; nothing is written")


# ---- git, without anything that a repository could have us run ---------------------------------


def git(folder: str | Path, *command: str, more: tuple[str, ...] = ()) -> list[str]:
    """The command line of `git COMMAND` in a folder, without hooks, monitors and network; `more`
    settings are KEY=VALUE. To be run with `git_env()`."""
    off = ("core.fsmonitor=false", "core.hooksPath=/dev/null", "protocol.allow=never", *more)
    settings = [word for value in off for word in ("-c", value)]
    return ["git", "--no-pager", "-C", str(folder), *settings, *command]


def git_env() -> dict[str, str]:
    """The environment for it: no repository but the one in the folder, no download of what a
    partial clone lacks, and no lock that is not needed."""
    kept = ("GIT_CONFIG", "GIT_EXEC_PATH", "GIT_CEILING", "GIT_DISCOVERY")
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or k.startswith(kept)}
    fixed = {"GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"}
    fixed |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_REPLACE_OBJECTS": "1", "LC_ALL": "C"}
    return env | fixed | {"GIT_LITERAL_PATHSPECS": "1"}


def real(path: str | Path) -> Path:
    """Where a file is: its folder without links. The file itself may not be one."""
    path = Path(path)
    return Path(os.path.realpath(path.parent), path.name)


def uncommitted(path: Path) -> str:
    """Why git could not bring this file back: "" if it could, if the file does not exist, or if
    there is no repository around it.

    What the last commit holds is compared with the bytes of the file, as they are or as git would
    check them out. `git status` is not asked: it does not look at files where the index or a
    setting says so (assume-unchanged, skip-worktree, times).
    """
    path = real(path)
    inside = any((place / ".git").exists() for place in path.parents)
    if not inside or not path.exists():
        return ""
    why = "git has it not in a commit; commit it first"
    try:
        data, more = path.read_bytes(), _no_filters(path.parent)
        for how in ("blob", "--filters"):
            command = git(path.parent, "cat-file", how, f"HEAD:./{path.name}", more=more)
            result = subprocess.run(command, env=git_env(), capture_output=True)
            if result.returncode:
                reason = result.stderr.decode("utf-8", "replace").removeprefix("fatal: ")
                return f"{why} (git: {' '.join(reason.split())[:150]})"
            if result.stdout == data:
                return ""
    except OSError as e:
        return f"git, which would tell whether it is committed, cannot be run ({e.strerror})"
    return why


def _no_filters(folder: Path) -> tuple[str, ...]:
    """Settings that turn off the programs through which a repository passes contents."""
    command = git(folder, "config", "-z", "--name-only", "--get-regexp", r"^filter\.")
    names = subprocess.run(command, env=git_env(), capture_output=True, text=True).stdout
    drivers = {name.rpartition(".")[0] for name in names.split("\0") if name}
    if any("=" in driver for driver in drivers):  # which cannot be named on a command line
        return ("filter.=",)  # an error for git
    return tuple(
        f"{driver}.{setting}"
        for driver in sorted(drivers)
        for setting in ("clean=", "smudge=", "process=", "required=false")
    )
