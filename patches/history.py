"""Changes of files in a git repository, read by git's plumbing: nothing is checked out, and nothing
that the repository could bring with it is run (no hooks, filters, text conversion, or download).

    ids = commits(Path("."))                     # oldest first, merges left out
    for record in changes(Path("."), ids, (".py",), 20_000): ...
"""

import codecs
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Iterator, NamedTuple

from configurator import UserError
from patches.patch import git, git_env

FILES = ("100644", "100755")  # modes of regular files; the others are links and submodules
NOTHING = "000000"


class Commit(NamedTuple):
    """A commit of a source."""

    repo: str
    id: str
    time: float | None  # seconds since 1970; None: the source does not say


def _run(repo: Path, *command: str) -> str:
    try:
        result = subprocess.run(git(repo, *command), env=git_env(), capture_output=True)
    except OSError as e:
        raise UserError(f"git cannot be run ({e.strerror}); without it, name --source") from e
    if result.returncode:
        why = " ".join(result.stderr.decode("utf-8", "replace").split())[:150].removeprefix(
            "fatal: "
        )
        raise UserError(
            f"repo: git cannot read {repo}: {why}; without a git history, name --source"
        )
    return result.stdout.decode("utf-8", "replace")


def commits(repo: Path) -> list[Commit]:
    """The commits that lead to HEAD, without merges, oldest first. The oldest ones of a shallow
    clone, which seem to add every file, are left out."""
    if not repo.is_dir():
        raise UserError(f"repo: no such folder: {repo}")
    shallow = _run(repo, "rev-parse", "--is-shallow-repository").strip() == "true"
    options = ("--no-merges", "--date-order", "--reverse", "--parents", "--timestamp")
    if not _run(repo, "rev-list", "--all", "--max-count=1"):
        raise UserError(f"repo: {repo} has no commit yet; make two, or name --source")
    lines = _run(repo, "rev-list", *options, "HEAD", "--").splitlines()  # HEAD may be a file, too
    rows = [line.split() for line in lines]
    return [Commit(str(repo), row[1], float(row[0])) for row in rows if len(row) > 2 or not shallow]


# ---- what changed ------------------------------------------------------------------------------


class _Raw(NamedTuple):
    """A line of `git diff-tree`."""

    modes: tuple[str, str]
    blobs: tuple[str, str]
    status: str  # A, M, D, R, T
    paths: tuple[bytes, bytes]


def _fields(pipe: IO[bytes]) -> Iterator[bytes]:
    """The fields between NULs."""
    rest = b""
    while piece := pipe.read1(1 << 16):
        *whole, rest = (rest + piece).split(b"\0")
        yield from whole


def _raw_changes(pipe: IO[bytes]) -> Iterator[tuple[str, _Raw]]:
    """(commit, change) for every change in the output of `git diff-tree --stdin -z`."""
    fields, commit = _fields(pipe), ""
    for field in fields:
        if not field.startswith(b":"):
            commit = field.decode("ascii")
            continue
        old, new, a, b, status = field[1:].decode("ascii").split()
        first = next(fields)
        second = next(fields) if status[0] in "RC" else first
        yield commit, _Raw((old, new), (a, b), status[0], (first, second))


@contextmanager
def _piped(repo: Path, *command: str, **pipes: Any) -> Iterator[subprocess.Popen]:
    """A git process that runs during the block, and is ended with it."""
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "env": git_env()}
    process = subprocess.Popen(git(repo, *command), **quiet, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class _Objects:
    """Contents by id, through one `git cat-file --batch`."""

    def __init__(self, process: subprocess.Popen):
        self.process = process

    def read(self, id: str, max_bytes: int) -> bytes | None:
        """The bytes of an object; None if there are more than `most`. Raises UserError for one that
        the clone lacks."""
        self.process.stdin.write(f"{id}\n".encode())
        self.process.stdin.flush()
        header = self.process.stdout.readline().split()
        if len(header) != 3:
            raise UserError(f"repo: the clone lacks the object {id}; make a complete clone")
        size = left = int(header[2])
        kept = bytearray()
        while left and (piece := self.process.stdout.read(min(left, 1 << 20))):
            left -= len(piece)
            if size <= max_bytes:
                kept += piece
        self.process.stdout.read(1)  # the newline after it
        return bytes(kept) if size <= max_bytes else None


def changes(
    repo: Path, commits: list[Commit], endings: tuple[str, ...], max_bytes: int
) -> Iterator[dict[str, Any]]:
    """Records {repo, commit, path, before, after, message}, one for each changed file, in the
    order of the commits; of what cannot be used, {repo, commit, why}. Files are looked at if they
    have one of the endings (or there are none) and at most `most` bytes on either side."""
    with tempfile.TemporaryFile() as ids:
        ids.write("".join(f"{one.id}\n" for one in commits).encode())
        ids.seek(0)
        options = ("--stdin", "--root", "-r", "-M", "-z", "--raw", "--no-ext-diff", "--no-textconv")
        batch = {"stdin": subprocess.PIPE}
        with (
            _piped(repo, "diff-tree", *options, stdin=ids) as tree,
            _piped(repo, "cat-file", "--batch", **batch) as files,
        ):
            objects, last, message = _Objects(files), "", ""
            for commit, raw in _raw_changes(tree.stdout):
                if commit != last:
                    last, message = commit, _message(objects.read(commit, 1 << 20))
                record = _record(objects, raw, endings, max_bytes)
                yield {"repo": str(repo), "commit": commit, "message": message, **record}
            if tree.wait():
                raise UserError(f"repo: git diff-tree fails in {repo}; is the clone complete?")


def _record(
    objects: _Objects, raw: _Raw, endings: tuple[str, ...], max_bytes: int
) -> dict[str, Any]:
    """The contents of a change, or why it is not usable."""
    try:
        path = raw.paths[1].decode("utf-8")
    except UnicodeDecodeError:
        return {"why": "a hostile name"}
    if endings and not path.endswith(endings):
        return {"why": "another ending"}
    if raw.status == "D":
        return {"why": "deleted"}
    if any(mode not in (*FILES, NOTHING) for mode in raw.modes):
        return {"why": "a link or a submodule"}
    if raw.blobs[0] == raw.blobs[1]:
        return {"why": "renamed or of another mode only"}
    texts: list[str | None] = []
    for mode, blob in zip(raw.modes, raw.blobs, strict=True):
        data = objects.read(blob, max_bytes) if mode != NOTHING else b""
        if data is None:
            return {"why": f"over {max_bytes:,} bytes"}
        try:
            texts.append(data.decode("utf-8") if mode != NOTHING else None)
        except UnicodeDecodeError:
            return {"why": "binary"}
    return {"path": path, "before": texts[0], "after": texts[1]}


def _message(data: bytes | None) -> str:
    """The message in the bytes of a commit; empty if its encoding is unknown."""
    head, _, body = (data or b"").partition(b"\n\n")
    named = [line[9:] for line in head.split(b"\n") if line.startswith(b"encoding ")]
    try:
        return body.decode(codecs.lookup(named[0].decode("ascii")).name if named else "utf-8")
    except (LookupError, ValueError):  # UnicodeDecodeError is a ValueError
        return ""
