"""The layout of the repository: what stands at the root, and who imports whom."""

import ast
from pathlib import Path

import pytest

import configurator

ROOT = Path(__file__).resolve().parent.parent
FILES = (
    *("configurator", "tokenizer", "corpus", "model", "objective", "diffusion", "insertion"),
    *("autoregressive", "checkpoint", "train", "sample", "evaluate"),
    *("prepare_bytes", "prepare_pretrain", "prepare_sft", "preprocess_prefix"),
)
FOLDERS = (
    *("prepare", "tasks", "cascade", "patches", "pretrained", "parallel", "viz", "analysis"),
    "bench",
)
ABOVE = ("cascade", "patches", "tasks", "analysis", "bench")  # they import the root


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name; a package by that of its folder."""
    paths = [*ROOT.glob("*.py"), *(p for name in FOLDERS for p in (ROOT / name).glob("*.py"))]
    names = (p.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for p in paths)
    return {name.removesuffix(".__init__"): p for name, p in zip(names, paths, strict=True)}


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ours that a file imports, in functions as well as at its head."""
    got = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            got |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            got |= inside & known.keys() or {node.module}
    return got & known.keys()


GRAPH = {name: imports(path, modules()) for name, path in modules().items()}


def circles(graph: dict[str, set[str]]) -> list[str]:
    """The modules that are left when those that import none of the others are taken away, again
    and again: empty if and only if there is no circle."""
    left = dict(graph)
    while free := [name for name, those in left.items() if not those & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def test_the_root_holds_what_a_newcomer_reads():
    assert {p.stem for p in ROOT.glob("*.py")} == set(FILES)


def test_no_import_circle():
    assert circles({"a": {"b"}, "b": {"a"}, "c": {"a"}, "d": set()}) == ["a", "b", "c"]
    assert circles(GRAPH) == []


@pytest.mark.parametrize("name", FILES)
def test_the_root_is_below_the_folders_that_build_on_it(name):
    assert not [other for other in GRAPH[name] if other.split(".")[0] in ABOVE]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_says_what_it_is_for(name):
    """Its __init__.py is one docstring, which names every file of the folder."""
    [body] = ast.parse((ROOT / name / "__init__.py").read_text(encoding="utf-8")).body
    text = ast.literal_eval(body.value)
    files = {p.name for p in (ROOT / name).glob("*.py")} - {"__init__.py", "__main__.py"}
    assert not [file for file in files if file not in text]


def test_rooms_and_old_names_lead_to_modules():
    named = [*configurator.ROOMS.values(), *configurator.MOVED.values()]
    named += configurator.TASKS.values()
    assert set(named) <= GRAPH.keys()
    assert all(hasattr(configurator.room(task), "evaluate") for task in configurator.TASKS)
