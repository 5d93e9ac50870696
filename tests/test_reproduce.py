"""`medsynth reproduce` whole, as README's commands type it: on a real data set of the brain, and on one of another task."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import real_folder
from medsynth.core.paths import home
from medsynth.core.versions import declared
from medsynth.evaluation.contents import ARTEFACTS, tasks_of

pytestmark = pytest.mark.long

MEDSYNTH = Path(sys.executable).parent / "medsynth"


def reproduce(*words: str, **env: str) -> subprocess.CompletedProcess:
    """Run `medsynth reproduce WORDS` at smoke, in the session's home."""
    said = subprocess.run([MEDSYNTH, "reproduce", *words], capture_output=True, text=True, timeout=2400, env=os.environ | env)
    return said


def made_of(name: str) -> dict[str, dict]:  # artefact -> its provenance
    """Read what was made of a data set at smoke."""
    return {p.stem: json.loads(p.read_text()) for p in (home() / "artefacts" / name / "smoke").glob("*.json")}


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "folder"), [("brats2015_subset", "brats2015_subset"), ("drive", "DRIVE")])
def test_a_real_data_set_is_reproduced_whole(name: str, folder: str) -> None:
    """Every artefact of the data's tasks is made, with versions of all that went into it; a second call makes nothing."""
    data = f"{name}={real_folder(folder)}"
    said, wanted = reproduce("--data", data), {n for n in ARTEFACTS if tasks_of(n, name)}
    assert said.returncode == 0, said.stdout + said.stderr
    made = made_of(name)
    assert wanted <= made.keys() and not made[min(wanted)]["phantom"]
    for artefact in wanted:
        versions = made[artefact]["versions"]
        assert versions[f"preparation/{name}"].count(".") == 1
        assert all(declared()[n].version == v for n, v in versions.items() if n.startswith(("measure/", "drawing/")))
        assert {f"stage/{r.split('-')[2]}" for r in made[artefact]["runs"]} <= versions.keys()
    again = reproduce("--data", data)
    assert again.returncode == 0 and again.stdout.count(" current") == len(wanted), again.stdout


def test_an_artefact_measured_in_an_older_way_is_made_again(tmp_path: Path) -> None:
    """The versions that its provenance remembers are compared with those of today."""
    folder = home() / "artefacts" / "phantom" / "smoke"
    assert reproduce("fig_06", MEDSYNTH_DATA="").returncode == 0
    path = folder / "fig_06.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"versions": about["versions"] | {"measure/ms_ssim": 1}}))
    assert "current" in reproduce("fig_06", MEDSYNTH_DATA="").stdout
    for versions in ({"measure/ms_ssim": 0}, {"measure/a_measure_that_is_gone": 1}):
        path.write_text(json.dumps(about | {"versions": versions}))
        assert "made" in reproduce("fig_06", MEDSYNTH_DATA="").stdout
