"""Every chapter's cells run, and what they assert holds."""
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_chapter_runs() -> None:
    """nbdev-test runs the cells of every chapter; a failing one is shown with its traceback."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    words = [Path(sys.executable).with_name("nbdev-test"), "--skip-folder-re", "^[_.]|^experiments$",
             "--n-workers", str(1 + alone)]
    env = os.environ | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}  # the home is the session's: what they train is found again
    said = subprocess.run(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800)
    assert said.returncode == 0, said.stdout
