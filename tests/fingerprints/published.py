"""Do the numbers in figures/ stand? `python tests/fingerprints/published.py FOLDER MEASURES`, where FOLDER/COMMIT.json is what
`store.py --values` wrote in a worktree of the commit that an artefact's provenance names. An artefact all of whose parts agree
with what is kept gets `versions`, any other `stale` with the reason; what has versions is left alone."""
import argparse
import ast
import json
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent)] * (str(HERE.parent) not in sys.path)

from fingerprints.stages import CASES  # noqa: E402  by the path above

KIND = {"brain": "map", "fundus": "colour", "lung_ct": "none", "chest_xray": "class", "low_dose_ct": "boxes"}  # see inputs.py
STRUCTURES = {"two steps": ("map none class", {}), "one step": ("map", {}), "cells": ("colour boxes", {})}  # who draws whose maps
DIAGRAMS = ("fig_05", "fig_07", "fig_09", "fig_10", "fig_11")  # which show the code itself
DRAWN = {"synthesis": ("cases", "maps"), "gan": ("gan",), "vessel_reader": ("learnt",), "class_reader": ("learnt",),
         "box_reader": ("learnt",)}  # stage among an artefact's runs -> what it draws


def runs_of(about: dict) -> list[tuple[str, str, str]]:  # task, stage, recipe
    """Read what an artefact was trained of: its runs and judges, and the stages that a chain builds on."""
    from fingerprints.inputs import made_slices
    from medsynth.training.tasks import builds_on, stage_settings

    found = []
    for name in [*about["runs"], *about.get("judges", {}).values()]:
        task = next(t for t in KIND if name.startswith(f"{t}-{about['data']}-"))
        stage, recipe, *_ = name[len(f"{task}-{about['data']}-"):].split("-")
        todo = [stage]
        while todo:
            found.append((task, todo[0], recipe))
            settings = stage_settings(todo[0], recipe, about["profile"], {}, task)
            kind, k = ("map", 4) if task == "brain" else (made_slices(KIND[task]).label_kind, 1)
            todo = todo[1:] + [s for s, _ in builds_on(todo[0], k, settings, kind)]
    return list(dict.fromkeys(found))


def parts_of(about: dict, measures: dict[str, list[str]]) -> tuple[dict[str, set[str]], str]:  # entry -> kinds of slices; recipe
    """Name the fingerprints that an artefact hangs on: of its runs' stages, its data, what they draw, what it measures."""
    runs, parts = runs_of(about), {}
    for task, stage, _ in runs:
        for name in (f"stage/{stage}", *(f"drawing/{d}" for d in DRAWN.get(stage, ()))):
            parts.setdefault(name, set()).add(KIND[task])
    parts |= {f"preparation/{n}": set() for n in layouts_of(about, {t for t, *_ in runs})}
    parts |= {name: set() for name in measures.get(about["artefact"], [])}
    return parts, "thesis" if any(recipe == "thesis" for *_, recipe in runs) else "mended"


def layouts_of(about: dict, tasks: set[str]) -> list[str]:
    """Name the data sets whose readers and constants prepared an artefact's data."""
    from medsynth.training.profiles import TASKS

    if about["data"] != "phantom":
        return [about["data"]]
    return sorted({TASKS[t].get("layout", "phantom") for t in tasks or {"brain"}})


def of_these(name: str, cases: list[str], kinds: set[str], recipe: str) -> list[str]:
    """Choose the cases of an entry that are of some kinds of slices and a recipe; where none is, all of the recipe."""
    of_stage = CASES.get("synthesis" if name == "drawing/cases" else name.partition("/")[2], {}) | STRUCTURES
    fit = [c for c in cases if c not in of_stage or (c in ("thesis", "one step")) == (recipe == "thesis")]
    return [c for c in fit if c not in of_stage or kinds & set(of_stage[c][0].split())] or fit


def unlike(name: str, kinds: set[str], recipe: str, then: dict, new: dict) -> str:
    """Say in what an entry of a commit is not that of today; nothing where it is. What was not logged yet does not count."""
    from fingerprints.store import close

    old, n_shared = then.get(name, {"error": "there was none"}), 0
    for case in of_these(name, list(new), kinds, recipe):
        if why := old.get("error") or old.get(case, {}).get("error"):
            return f"{name} cannot be taken there ({re.sub(r' *[(]/.*', '', why)})"
        for n, v in new[case].items():
            then_v = old.get(case, {}).get(n, v)
            n_shared += n in old.get(case, {})
            if not close(v, then_v):
                return f"{name}: {case} {n} was {then_v:.6g}, is {v:.6g}"
    return "" if n_shared else f"{name} has no number in common"


def cells_then(commit: str, artefact: str) -> str:
    """Hash an experiment's cells as they were in a commit; nothing where it had none."""
    words = ["git", "-C", str(ROOT), "show", f"{commit}:nbs/experiments/{artefact}.ipynb"]
    shown = subprocess.run(words, capture_output=True, text=True)
    return cells_of(shown.stdout) if shown.returncode == 0 else ""


def cells_of(text: str) -> str:
    """Dump what a notebook's cells compute, without imports, docstrings and comments."""
    from medsynth.core.runs import without_docstrings

    code = "\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "code")
    tree = without_docstrings(ast.parse(code))
    tree.body = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
    return ast.dump(tree)


def verdict_of(about: dict, folder: Path, measures: dict[str, list[str]]) -> dict:  # versions, or why it is stale
    """Judge one artefact."""
    from fingerprints.store import entries, read_kept

    commit = about["environment"]["medsynth"].split()[-1]
    if commit.endswith("+"):
        return {"stale": f"made of files that differed from commit {commit[:-1]}, which nobody can make again"}
    if about["artefact"] in DIAGRAMS:
        return {"stale": f"drawn from the code of {commit}"}
    notebook = ROOT / "nbs" / "experiments" / f"{about['artefact']}.ipynb"
    if notebook.exists() and cells_then(commit, about["artefact"]) != cells_of(notebook.read_text(encoding="utf-8")):
        return {"stale": f"the cells of its notebook changed since {commit}"}
    then, kept, (parts, recipe) = json.loads((folder / f"{commit}.json").read_text()), read_kept(HERE), parts_of(about, measures)
    for name, kinds in sorted(parts.items()):
        if why := unlike(name, kinds, recipe, then, kept[name][str(entries()[name].version)]["numbers"]):
            return {"stale": f"of {commit}; since then {why}"}
    versions = {n: entries()[n].version for n in sorted(parts)}
    return {"versions": versions, "versions_by": f"fingerprints of {commit}, equal to those kept"}


def main() -> None:
    """Judge everything in figures/ and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("measures", type=Path, help="JSON: artefact -> the measures that it calls, as noted in a run at smoke")
    args = parser.parse_args()
    measures = json.loads(args.measures.read_text())
    for path in sorted((ROOT / "figures").rglob("*.json")):
        about = json.loads(path.read_text(encoding="utf-8"))
        if "versions" not in about:
            found = verdict_of(about, args.folder, measures)
            kept = {k: v for k, v in about.items() if k not in ("stale", "environment")}
            about = kept | found | {"environment": about["environment"]}
            path.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path.relative_to(ROOT)} | {about['environment']['medsynth']} | {about.get('stale', 'stands')}")


if __name__ == "__main__":
    main()
