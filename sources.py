"""Where texts come from: the prose that Python carries, local files, datasets of the hub."""

import ast
import gc
import json
import sys
import sysconfig
import warnings
from itertools import dropwhile
from pathlib import Path
from typing import Iterable, Iterator, NamedTuple

from tqdm import tqdm

from configurator import UserError, optional
from tokenizer import Bytes


class Documents(NamedTuple):
    """How many there are, and the documents themselves, read one by one."""

    count: int
    texts: Iterable[bytes]


def library_files() -> tuple[Path, list[Path]]:
    """The folder of the standard library, and its Python files without tests, in order."""
    root, skip = Path(sysconfig.get_path("stdlib")), {"test", "tests", "idle_test", "site-packages"}
    # `parts` orders folders alike on all systems
    files = sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).parts)
    files = [p for p in files if not skip.intersection(p.relative_to(root).parts)]
    if not files:
        raise UserError(f"source=pydoc: no Python sources below {root}; take another source")
    return root, files


def python_prose() -> list[str]:
    """The English of this Python: help topics, then the docstrings of the standard library in the
    order of files and lines. Sources are parsed, never imported. Duplicates are left out."""
    root, files = library_files()
    topics = root / "pydoc_data" / "topics.py"
    files.sort(key=lambda p: p != topics)  # stable: topics first, if this Python has them
    collecting = gc.isenabled()
    gc.disable()  # syntax trees hold no cycles, and the search for them takes half of the time
    try:
        bar = tqdm(files, "reading the standard library", disable=not sys.stdout.isatty())
        trees = ((_strings if p == topics else _docstrings, parsed(p)) for p in bar)
        texts = [text for texts_of, tree in trees for text in texts_of(tree)]
    finally:
        if collecting:
            gc.enable()
    return list(dict.fromkeys(texts))


def parsed(path: Path) -> ast.AST:
    """A source file parsed; empty if it is for another version of the language."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in old modules
            return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


def _strings(tree: ast.AST) -> list[str]:
    """The values of the dictionary in pydoc_data.topics; its keys are single words."""
    tables = (node for node in ast.walk(tree) if isinstance(node, ast.Dict))
    values = (v for t in tables for v in t.values if isinstance(v, ast.Constant))
    return [v.value for v in values if isinstance(v.value, str)]


def _docstrings(node: ast.AST) -> Iterator[str]:
    """In the order of lines; only statements are entered, no expressions."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        if text := ast.get_docstring(node):
            yield text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.stmt, ast.ExceptHandler)):
            yield from _docstrings(child)


def local_files(paths: str) -> list[Path]:
    """'a,b' -> the files named and the visible files below the folders named, in sorted order."""
    files = []
    for path in [Path(p).expanduser() for p in paths.split(",") if p]:
        if not path.exists():
            raise UserError(f"path: no such file or folder: {path}")
        inside = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
        hidden = [any(x.startswith(".") for x in p.relative_to(path).parts) for p in inside]
        files += sorted(p for p, h in zip(inside, hidden, strict=True) if not h)
    files = [p for p in files if p.stat().st_size]
    if not files:
        raise UserError(f"path: {paths} holds no file with any text; name others")
    return files


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise UserError(f"path: cannot read {path}: {e.strerror}") from e


def articles(
    path: str, hub_dataset: str, hub_config: str, cache_dir: str, percent: float
) -> Documents:
    """The first `percent` of the articles: of the hub, or of a folder saved by `datasets`, or
    of parquet and JSON files with a column `text`, or one article per file of another kind."""
    files = local_files(path) if path else []
    kinds = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}
    kind = kinds.get(files[0].suffix) if files else None
    marks = ("state.json", "dataset_dict.json")  # what save_to_disk leaves
    saved = bool(files) and any(Path(path, m).is_file() for m in marks)
    if files and not kind and not saved:
        files = files[: max(1, int(len(files) * percent / 100))]
        return Documents(len(files), map(read, files))
    datasets = optional("datasets")
    try:
        if saved:
            data = datasets.load_from_disk(path)
            data = data["train"] if isinstance(data, dict) else data
        else:
            where = {"data_files": [str(f) for f in files]} if kind else {"name": hub_config}
            name, cache = kind or hub_dataset, cache_dir or None
            data = datasets.load_dataset(name, split="train", cache_dir=cache, **where)
    # unreachable, unknown configuration, no train split, damaged file
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as e:
        why = " ".join(str(e).split())[:150] or type(e).__name__
        raise UserError(
            f"{path or hub_dataset} cannot be read ({why}); without the hub: --source=pydoc, "
            "--source=text --path=FILES, or --source=wikipedia --path=FOLDER (saved by datasets)"
        ) from e
    if "text" not in data.column_names:
        raise UserError(f"{path or hub_dataset} has no column text: {data.column_names}")
    count = max(1, int(len(data) * percent / 100))
    rows = data.select(range(count))
    return Documents(count, ((row["text"] or "").encode("utf-8", "surrogatepass") for row in rows))


def read_phrases(path: Path) -> list[str]:
    """A JSON array of strings, or one phrase per line after comment lines; no empty ones."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
        lines = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except OSError as e:
        raise UserError(f"file: cannot read {path}: {e.strerror}") from e
    except ValueError as e:
        raise UserError(f"file: {path} is no JSON: {e}") from e
    if not isinstance(lines, list) or not all(isinstance(p, str) for p in lines):
        raise UserError(f"file: {path} must hold a JSON array of strings")
    try:
        Bytes().encode("".join(lines))
    except ValueError as e:  # half of a surrogate pair, which JSON can spell
        raise UserError(f"file: {path} holds a character that UTF-8 lacks: {e}") from e
    if path.suffix != ".json":
        lines = dropwhile(lambda line: line.startswith("#"), lines)
    phrases = [p.strip() for p in lines if p.strip()]
    if not phrases:
        raise UserError(f"file: {path} holds no phrases; write one per line")
    return phrases
