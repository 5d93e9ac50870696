"""The house rules, kept by machine: one rule, one test, and a message that says what to do."""
import ast
import os
import re
import shutil
import subprocess
import sysconfig
import tomllib
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import pytest
from fastcore.nbio import NbCell, read_nb

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sysconfig.get_path("scripts"))
PACKAGE = "medsynth"
LAYERS = (
    "core show data structure nets losses metrics training baselines synthesis evaluation widgets bench cli"
).split()
MODULES = sorted(p for p in (ROOT / PACKAGE).rglob("*.py") if p.name != "_modidx.py")
CHAPTERS = sorted((ROOT / "nbs").glob("*.ipynb"))
EXPERIMENTS = sorted((ROOT / "nbs" / "experiments").glob("*.ipynb"))
EXPORTS = {"export", "exporti", "exports"}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def name(path: Path) -> str:
    """The path as a reader of the repository knows it."""
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a Python file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=name(path))


def offenders(paths: list[Path], find: Callable[[Path], list[str]]) -> str:
    """What `find` says about each file, one line each; empty where the rule is kept."""
    return "\n".join(f"{name(path)}: {fault}" for path in paths for fault in find(path))


def run(*command: str | Path, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command and keep what it says, both streams in one."""
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, env=os.environ | env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)


# What the package is called, and by whom


def settings() -> dict[str, str]:
    """The metadata in settings.ini, read as setup.py reads it."""
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def test_settings_and_pyproject_agree() -> None:
    """settings.ini holds the metadata; pyproject.toml repeats names only where nbdev reads them, and no version."""
    ours, project = settings(), tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "project" not in project, "pyproject.toml: no [project] table; the metadata lives in settings.ini"
    theirs = project["tool"]["nbdev"] | {"lib_name": project["tool"]["nbdev"]["title"]}
    differ = {key: (ours[key], theirs[key]) for key in ours.keys() & theirs.keys() if ours[key] != theirs[key]}
    assert not differ, f"settings.ini and [tool.nbdev] in pyproject.toml disagree: {differ}"
    assert ours["lib_name"] == ours["lib_path"] == PACKAGE
    assert "tags" in theirs["allowed_cell_metadata_keys"], "nbdev-clean would delete papermill's `parameters` tag"


def test_the_version_is_the_same_wherever_it_is_written() -> None:
    """settings.ini says the version; CITATION.cff repeats it."""
    said = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    assert said and said[1] == settings()["version"], "CITATION.cff and settings.ini state different versions"


# Notebooks and what they export


def exported(path: Path) -> list[NbCell]:
    """The cells of a notebook that nbdev writes into a module."""
    return [cell for cell in read_nb(path).cells if cell.cell_type == "code" and EXPORTS & cell.directives.keys()]


def package_files(root: Path) -> dict[str, bytes]:
    """Everything that nbdev-export writes under `root`: path -> bytes."""
    paths = [p for p in (root / PACKAGE).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    paths += (root / "nbs").glob("llms.txt")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def test_a_clean_export_equals_the_committed_modules(tmp_path: Path) -> None:
    """Exporting a fresh copy of nbs/ gives medsynth/ byte for byte: no hand edit, no orphan, nothing forgotten."""
    skip = shutil.ignore_patterns("llms.txt", ".ipynb_checkpoints")
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", ignore=skip)
    for file in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path)
    said = run(BIN / "nbdev-export", cwd=tmp_path)
    assert said.returncode == 0, said.stdout
    fresh, ours = package_files(tmp_path), package_files(ROOT)
    orphans, missing = sorted(ours.keys() - fresh.keys()), sorted(fresh.keys() - ours.keys())
    changed = sorted(key for key in fresh.keys() & ours.keys() if fresh[key] != ours[key])
    assert not orphans, f"no notebook exports these: delete them, or write their chapter: {orphans}"
    assert not missing, f"exported, not there: run `make export`: {missing}"
    assert not changed, f"edited by hand, or not exported since nbs/ changed: run `make export`: {changed}"


def test_exported_cells_are_short() -> None:
    """An exported cell has at most 40 lines, its directives not counted."""
    def find(path: Path) -> list[str]:
        lines = {cell.id: [row for row in cell.source.splitlines() if not row.startswith("#|")]
                 for cell in exported(path)}
        return [f"cell {key} has {len(rows)} lines; split it (40 at most)" for key, rows in lines.items()
                if len(rows) > 40]
    assert not (faults := offenders(CHAPTERS, find)), faults


def test_notebook_files_are_small() -> None:
    """A notebook file has at most 200 KB: fewer or smaller pictures, or an experiment."""
    def find(path: Path) -> list[str]:
        size_kb = path.stat().st_size / 1024
        return [f"{size_kb:.0f} KB; 200 at most"] if size_kb > 200 else []
    assert not (faults := offenders(CHAPTERS + EXPERIMENTS, find)), faults


def test_notebooks_name_their_kernel_and_cells() -> None:
    """papermill and JupyterLab need the kernel's name, and the modules' headers need every cell's id."""
    def find(path: Path) -> list[str]:
        notebook = read_nb(path)
        kernel = notebook.metadata.get("kernelspec", {}).get("name")
        faults = [] if kernel == "python3" else [f"kernelspec is {kernel}; it should be python3"]
        ids = [cell.get("id") for cell in notebook.cells]
        return faults + ([] if all(ids) and len(set(ids)) == len(ids) else ["a cell without an id of its own"])
    assert not (faults := offenders(CHAPTERS + EXPERIMENTS, find)), faults


def test_chapters_open_with_a_title_and_a_quoted_line() -> None:
    """Before any prose or code, an H1 and a line starting with `> `, which nbdev makes the module's docstring."""
    def find(path: Path) -> list[str]:
        first = next((cell for cell in read_nb(path).cells if "default_exp" not in cell.directives), None)
        lines = first.source.splitlines() if first and first.cell_type == "markdown" else []
        opens = lines and lines[0].startswith("# ") and any(line.startswith("> ") for line in lines)
        return [] if opens else ["its first cell (after `#| default_exp`) should be `# Title`, then `> line`"]
    assert not (faults := offenders(CHAPTERS, find)), faults


def test_experiments_have_one_parameters_cell_and_export_and_store_nothing() -> None:
    """An experiment is run by papermill with parameters; what it makes goes to MEDSYNTH_HOME, not into the notebook."""
    def find(path: Path) -> list[str]:
        cells = read_nb(path).cells
        tagged = sum("parameters" in cell.metadata.get("tags", []) for cell in cells)
        faults = [] if tagged == 1 else [f"{tagged} cells are tagged `parameters`; one should be"]
        if any((EXPORTS | {"default_exp"}) & cell.directives.keys() for cell in cells):
            faults.append("exports code; only chapters do")
        if any(cell.get("outputs") or cell.get("execution_count") for cell in cells):
            faults.append("stores outputs; clear them: jupyter nbconvert --clear-output --inplace")
        return faults
    assert not (faults := offenders(EXPERIMENTS, find)), faults


# Modules


def imports(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """Each import in a module, relative ones made absolute: (node, full name imported)."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) + 1 - node.level] if node.level else ()
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node, f"{origin}.{alias.name}") for alias in node.names)


def layer_of(path: Path) -> str:
    """The layer that a module belongs to: its folder in the package, or its own name; `python -m` is the command line."""
    own = path.relative_to(ROOT / PACKAGE).with_suffix("").parts[0]
    return "cli" if own == "__main__" else own


def layer_faults(path: Path) -> list[str]:
    """Imports of a module that point to a later layer, or to none."""
    own, faults = layer_of(path), []
    for node, target in imports(path):
        package, _, rest = target.partition(".")
        layer = rest.split(".")[0]
        if package != PACKAGE or own == "__init__":
            continue
        if layer not in LAYERS:
            faults.append(f"line {node.lineno}: imports {target}, which is in no layer ({' '.join(LAYERS)})")
        elif LAYERS.index(layer) > LAYERS.index(own):
            faults.append(f"line {node.lineno}: {own} imports {target}, from a later layer")
    return faults


def test_every_module_has_a_layer() -> None:
    """A module lives in one of the layers; a new layer is added to LAYERS, in its place."""
    strays = [name(path) for path in MODULES if layer_of(path) not in {*LAYERS, "__init__"}]
    assert not strays, f"in no layer ({' '.join(LAYERS)}): {strays}"


def test_imports_point_down() -> None:
    """A module imports from its own layer or an earlier one, never from a later one, inside functions too."""
    known = [path for path in MODULES if layer_of(path) in {*LAYERS, "__init__"}]
    assert not (faults := offenders(known, layer_faults)), faults


def test_imports_are_named() -> None:
    """No star import, in the package or in its tests."""
    def find(path: Path) -> list[str]:
        return [f"line {node.lineno}: imports *; name what it needs" for node, target in imports(path)
                if target.endswith(".*")]
    assert not (faults := offenders(MODULES + sorted((ROOT / "tests").glob("*.py")), find)), faults


def test_ruff_is_clean() -> None:
    """Ruff, as pyproject.toml sets it up, finds nothing in medsynth/ and tests/."""
    said = run(BIN / "ruff", "check", "--no-cache", "--output-format=concise", PACKAGE, "tests")
    assert said.returncode == 0, said.stdout


def test_modules_are_short() -> None:
    """A module has at most 300 lines: a longer one is two chapters."""
    def find(path: Path) -> list[str]:
        n_lines = len(path.read_text(encoding="utf-8").splitlines())
        return [f"{n_lines} lines; 300 at most"] if n_lines > 300 else []
    assert not (faults := offenders(MODULES, find)), faults


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from `def` to its end, its docstring not counted."""
    first = function.body[0]
    n_doc = first.end_lineno - first.lineno + 1 if ast.get_docstring(function) is not None else 0
    return function.end_lineno - function.lineno + 1 - n_doc


def test_functions_are_short() -> None:
    """A function has at most 40 lines, its docstring not counted, in the package and in its tests."""
    def find(path: Path) -> list[str]:
        functions = [node for node in ast.walk(tree(path)) if isinstance(node, FUNCTIONS)]
        return [f"{node.name} has {body_lines(node)} lines; 40 at most" for node in functions if body_lines(node) > 40]
    assert not (faults := offenders(MODULES + sorted((ROOT / "tests").glob("*.py")), find)), faults


def public(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, ast.stmt]]:
    """Public functions, classes and methods below a module or class: (dotted name, definition)."""
    for child in node.body:
        if isinstance(child, DEFINITIONS) and not child.name.startswith("_"):
            yield prefix + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{prefix}{child.name}.")


def test_public_names_have_a_docstring() -> None:
    """Every public function, class and method says what it does, in a first line that is a sentence."""
    def find(path: Path) -> list[str]:
        first = {label: (ast.get_docstring(node) or "").partition("\n")[0] for label, node in public(tree(path))}
        return [f"{label}: its docstring's first line should be a sentence, full stop and all"
                for label, line in first.items() if not re.search(r"\w.*\.$", line)]
    assert not (faults := offenders(MODULES, find)), faults


def untyped(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Names of the parameters without a type, self and cls left out."""
    args = function.args
    every = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
    return [arg.arg for arg in every if arg and arg.annotation is None and arg.arg not in {"self", "cls"}]


def test_public_parameters_have_types() -> None:
    """Every parameter of a public function or method carries its type."""
    def find(path: Path) -> list[str]:
        functions = [(label, node) for label, node in public(tree(path)) if isinstance(node, FUNCTIONS)]
        return [f"{label}: no type for {', '.join(untyped(node))}" for label, node in functions if untyped(node)]
    assert not (faults := offenders(MODULES, find)), faults


def unsafe(node: ast.AST) -> bool:
    """Whether a call would run code that it finds in a file."""
    if not isinstance(node, ast.Call):
        return False
    loose = any(word.arg == "allow_pickle" and getattr(word.value, "value", True) is not False for word in node.keywords)
    return loose or ast.unparse(node.func) == "torch.load"


def test_nothing_is_unpickled() -> None:
    """Files are data: no pickle, no torch.load, no allow_pickle; use safetensors, JSON, and plain arrays."""
    barred = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}

    def find(path: Path) -> list[str]:
        names = [f"line {node.lineno}: imports {target}" for node, target in imports(path)
                 if target.split(".")[0] in barred or target == "torch.load"]
        calls = [f"line {node.lineno}: {ast.unparse(node)}" for node in ast.walk(tree(path)) if unsafe(node)]
        return names + calls
    assert not (faults := offenders(MODULES, find)), faults


# The whole repository


def repository_files() -> list[Path]:
    """Files that git tracks or would add; a skip where there is no git to ask."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git clone: nothing tells which files are the project's")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    assert listed.returncode == 0, listed.stdout
    return [ROOT / file for file in listed.stdout.split("\0") if (ROOT / file).is_file()]


def test_no_file_names_a_path_of_one_machine() -> None:
    """No text file, stored output included, names a folder that only its author has."""
    machine = re.compile(r"(?<![\w.~-])/(?:work|root|home|tmp)/[^\s\"']*")

    def find(path: Path) -> list[str]:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return []
        return [f"line {text.count(chr(10), 0, hit.start()) + 1}: {hit[0][:80]}" for hit in machine.finditer(text)]
    assert not (faults := offenders(repository_files(), find)), faults
