"""What runs, prepared data and artefacts are called by: copies of the package are changed, names and fingerprints looked at."""
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[1]
NAMES = """
import json, sys
from medsynth.data.batches import parse_data
from medsynth.evaluation.catalogue import Request, artefact_key, plans_of
from medsynth.training.profiles import TASKS
from medsynth.training.tasks import plan, prepared_hashes, unfold

said = {}
for task in TASKS:
    data = parse_data("phantom", task)
    said[f"data {task}"] = [prepared_hashes(data, "smoke", changes, recipe) for recipe in ("mended", "thesis")
                            for changes in ({}, {"data.patients": 2})]
for task in ("brain", "fundus"):
    data = parse_data("phantom", task)
    said[f"runs {task}"] = [r.id for r in unfold(plan(task, "synthesis", data, "mended", "smoke", 0))]
request = Request(parse_data("phantom"))
for name in ("fig_05", "fig_16", "table_6", "evidence"):
    said[name] = artefact_key(name, request)
print(json.dumps(said))
"""


def copied(folder: Path) -> Path:
    """Copy the package, its notebooks of experiments and what is kept of its fingerprints."""
    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("medsynth", "nbs/experiments", "tests/fingerprints"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    for name in ("settings.ini", "nbs/reported.csv"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def run(folder: Path, *words: str | Path) -> subprocess.CompletedProcess:
    """Run Python with the copied package, in the session's home."""
    env = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "MEDSYNTH_DATA": ""}
    return subprocess.run([sys.executable, *map(str, words)], cwd=folder, env=env, capture_output=True, text=True, timeout=600)


@cache
def names_in(folder: Path) -> dict:
    """What the copy calls runs, data and artefacts."""
    said = run(folder, "-c", NAMES)
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


def edit(path: Path, old: str, new: str) -> None:
    """Replace what stands in a file once."""
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path.name}: {old!r} stands there {text.count(old)} times"
    path.write_text(text.replace(old, new), encoding="utf-8")


def compare(folder: Path, *names: str, write: bool = False) -> str:
    """Hold the copy's fingerprints against those kept, or add what is new; what is said, nothing where all is well."""
    said = run(folder, folder / "tests" / "fingerprints" / "store.py", *names, *(["--write"] if write else []))
    assert said.returncode in (0, 1) and not said.stderr.strip().endswith("Error"), said.stderr
    return said.stdout if said.returncode else ""


def rename_module(folder: Path) -> None:
    """medsynth.training.structure becomes medsynth.training.maps, and everything imports it from there."""
    (folder / "medsynth/training/structure.py").rename(folder / "medsynth/training/maps.py")
    for path in [*folder.glob("medsynth/**/*.py"), *folder.glob("nbs/experiments/*.ipynb")]:
        text = path.read_text(encoding="utf-8")
        text = text.replace("training.structure import", "training.maps import")
        text = text.replace("medsynth.training.structure", "medsynth.training.maps")
        if path.parent.name == "training":
            text = re.sub(r"^from \.structure import", "from .maps import", text, flags=re.M)
        path.write_text(text, encoding="utf-8")


def move_function(folder: Path) -> None:
    """`reduce_label` of structure.extraction moves to a module of its own."""
    path = folder / "medsynth/structure/extraction.py"
    text = path.read_text(encoding="utf-8")
    start = text.index("def reduce_label(")
    end = text.index("\n\n\n", start)
    moved = f"import torch\nimport torch.nn.functional as F\n\n\n{text[start:end]}\n"
    (folder / "medsynth/structure/reduction.py").write_text(moved, encoding="utf-8")
    text = text[:start] + text[end + 3:]
    text = text.replace("from .edges import", "from .reduction import reduce_label\nfrom .edges import")
    path.write_text(text, encoding="utf-8")


def test_a_rename_a_docstring_and_a_move_change_no_name(tmp_path: Path) -> None:
    """No run id, data hash or artefact key is another; and no fingerprint fails."""
    folder = copied(tmp_path / "copy")
    rename_module(folder)
    move_function(folder)
    edit(folder / "medsynth/training/processors.py", '"""A stage: the segmenter', '"""A stage, by another word: the segmenter')
    edit(folder / "medsynth/metrics/images.py", "# Wang et al. 2003", "# by Wang and others, 2003")
    assert (folder / "medsynth/structure/reduction.py").exists() and not (folder / "medsynth/training/structure.py").exists()
    assert names_in(folder) == names_in(ROOT)
    assert not compare(folder, "stage/density", "preparation/phantom", "measure/ms_ssim")


CHANGES = {  # fingerprint that fails -> file, what stands there, what is put there; where its version is, what is put there
    "stage/pretraining": ("training/synthesis.py", "steps: int = 150, lr: float = 2e-3,", "steps: int = 150, lr: float = 4e-3,",
                          "training/synthesis.py", 'images (eq. 18)."""\n    version = 1', 'images."""\n    version = 2'),
    "stage/synthesis": ("training/synthesis.py", '"registration": 20.0, "lesion": 1.0', '"registration": 20.0, "lesion": 1.5',
                        "training/synthesis.py", "default_weights = 1, WEIGHTS", "default_weights = 2, WEIGHTS"),
    "preparation/brats2015": ("structure/edges.py", '"brats2015": {"alpha": 0.035,', '"brats2015": {"alpha": 0.036,',
                              "data/brats_full.py", "partial(folder_in, name=OUTER)),", "partial(folder_in, name=OUTER), 2),"),
    "drawing/cases": ("synthesis/pipeline.py", 'uniform(seed, "z\'", records', 'uniform(seed, "z", records',
                      "synthesis/pipeline.py", '@versioned("drawing/cases")', '@versioned("drawing/cases", 2)'),
    "measure/ms_ssim": ("metrics/images.py", "BETAS = (0.0448,", "BETAS = (0.0548,",
                        "metrics/images.py", '@versioned("measure/ms_ssim")', '@versioned("measure/ms_ssim", 2)')}


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy in which a learning rate, a loss weight, a constant, the drawing and a measure were changed."""
    folder = copied(tmp_path_factory.mktemp("changed") / "copy")
    for file, old, new, *_ in CHANGES.values():
        edit(folder / "medsynth" / file, old, new)
    return folder


def test_a_change_of_numbers_fails_until_the_version_is_raised(changed: Path) -> None:
    """Each change is named with the version to raise; what is kept cannot be overwritten; raised, it is added and all is well."""
    kept = {p: p.read_bytes() for p in (changed / "tests/fingerprints").glob("*s.json")}
    said = compare(changed, *CHANGES, "stage/modality_judge")
    assert all(any(line.startswith(f"{name}, version") for line in said.splitlines()) for name in CHANGES), said
    assert "stage/modality_judge" not in said and said.count("raise the version") == len(CHANGES)
    refused = compare(changed, *CHANGES, write=True)
    assert refused.count("Raise the version first") == len(CHANGES)
    assert all(p.read_bytes() == before for p, before in kept.items() if p.stem != "sources"), "nothing was written over"
    for *_, file, old, new in CHANGES.values():
        edit(changed / "medsynth" / file, old, new)
    assert not compare(changed, *CHANGES, write=True) and not compare(changed, *CHANGES)
    now, before = (json.loads((f / "tests/fingerprints/stages.json").read_text())["stage/synthesis"] for f in (changed, ROOT))
    assert list(now) == ["1", "2"] and now["1"] == before["1"]


def test_a_raised_version_is_another_name(changed: Path) -> None:
    """After the changes above, chains that pre-train have other names, what they build on keeps its own."""
    before, after = names_in(ROOT), names_in(changed)
    for task in ("brain", "fundus"):
        old, new = (set(said[f"runs {task}"]) for said in (before, after))
        assert {name.split("-")[2] for name in old - new} == {"pretraining", "synthesis"}
        assert before[f"data {task}"] == after[f"data {task}"]
    assert before["fig_05"] == after["fig_05"] and before["fig_16"] != after["fig_16"]
