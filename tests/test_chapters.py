"""Every chapter's cells run, and what they assert holds."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_every_chapter_runs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """nbdev-test runs the cells of every chapter; a failing one is shown with its traceback."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    words = [Path(sys.executable).with_name("nbdev-test"), "--skip-folder-re", "^[_.]|^experiments$",
             "--n-workers", str(1 + alone)]
    env = os.environ | {"MEDSYNTH_HOME": str(tmp_path_factory.mktemp("chapters")), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    said = subprocess.run(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800)
    assert said.returncode == 0, said.stdout
