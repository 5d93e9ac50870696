"""Every chapter's cells run, and what they assert holds: a test a chapter, each in a process of its own."""
import json
import multiprocessing
import os
import re
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from fastcore.nbio import mk_cell, new_nb, write_nb
from nbdev.config import get_config
from nbdev.test import test_nb as run_notebook

ROOT = Path(__file__).resolve().parents[1]
MEMORY_MB = 2048  # that a chapter may take at most
SECONDS = 600  # that a chapter may take at most
pytestmark = pytest.mark.long
PRELOAD = ["medsynth.cli", "lightning_fabric", "nbdev.test", "matplotlib_inline.backend_inline", "pytest"]  # slow imports


def chapters() -> list[Path]:
    """The notebooks of the book, of all its parts: no experiments, and nothing that a name hides (`_`, `.`)."""
    folder = ROOT / "nbs"
    hidden = {path for path in folder.rglob("*.ipynb") if any(
        name == "experiments" or name.startswith(("_", ".")) for name in path.relative_to(folder).parts)}
    return sorted(set(folder.rglob("*.ipynb")) - hidden)


def in_child(notebook: Path, folder: Path) -> None:
    """Run a notebook as nbdev-test does; leave what it said in `folder`/said.txt, and what it took in took.json."""
    os.setsid()  # so that whatever the notebook starts can be ended with it
    with (folder / "said.txt").open("wb") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    config = get_config(ROOT)
    passed, seconds = run_notebook(notebook, skip_flags=config.tst_flags.split(), basepath=config.config_path,
                                   cell_timeout=config.cell_timeout or None)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (folder / "took.json").write_text(json.dumps({"passed": passed, "seconds": seconds, "peak_mb": peak_mb}))


def end(child: BaseProcess) -> None:
    """End a process that is late, which says where it is, and whatever it has started."""
    if child.is_alive():
        os.kill(child.pid, signal.SIGINT)  # nbdev writes the stack of the running cell
        child.join(5)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.join()


def run_chapter(notebook: Path, folder: Path, seconds: float = SECONDS) -> dict[str, float]:
    """Run a notebook in a process of its own and return what it took; AssertionError with its name, and what it said."""
    child = multiprocessing.get_context("forkserver").Process(target=in_child, args=(notebook, folder))
    child.start()
    child.join(seconds)
    late = child.is_alive()
    end(child)
    said, took = folder / "said.txt", folder / "took.json"
    words = f"{notebook.name}: {{}}\n{said.read_text() if said.exists() else ''}".format
    assert not late, words(f"not done after {seconds:.0f} s, and ended")
    assert took.exists(), words(f"its process ended with {child.exitcode}")
    facts = json.loads(took.read_text())
    assert facts["passed"], words("a cell failed")
    return facts


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    """Start the process that every chapter's is a copy of: of one thread, with the slow imports behind it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    first = context.Process(target=int)
    first.start()
    first.join()  # the server has imported all


@pytest.mark.parametrize("notebook", [pytest.param(path, id=path.name) for path in chapters()])
def test_chapter_runs(notebook: Path, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Its cells run, what they assert holds, and they take no more than their share of memory."""
    took = run_chapter(notebook, tmp_path)
    for name, value in took.items():
        record_property(name, value)
    print(f"{notebook.name}: {took['seconds']:.1f} s, {took['peak_mb']:.0f} MB at most")
    assert took["peak_mb"] < MEMORY_MB, f"{notebook.name}: {took['peak_mb']:.0f} MB; {MEMORY_MB} at most"


def test_chapters_are_found() -> None:
    """So many that a test of none would not go unseen, each under a name of its own."""
    names = [path.name for path in chapters()]
    assert len(names) >= 60 and len(set(names)) == len(names), names


# The runner itself


def notebook_of(folder: Path, name: str, *cells: str) -> Path:
    """Write a notebook of code cells."""
    write_nb(new_nb([mk_cell(text) for text in cells]), folder / name)
    return folder / name


def test_a_failing_notebook_is_named_with_its_traceback(tmp_path: Path) -> None:
    """The cell that fails ends the notebook; the message has its name and its line; a cell that is not to run does not."""
    told = "#| eval: false\nraise ValueError('not run')"
    path = notebook_of(tmp_path, "fails.ipynb", told, "seven = 7", "assert seven == 8, 'seven is seven'", "print('after')")
    with pytest.raises(AssertionError, match=r"fails\.ipynb: a cell failed") as said:
        run_chapter(path, tmp_path)
    assert all(words in str(said.value) for words in ("AssertionError: seven is seven", "assert seven == 8", "Cell #3"))
    assert "not run" not in str(said.value)


@pytest.mark.parametrize(("cells", "words"), [
    (["import os, signal", "os.kill(os.getpid(), signal.SIGKILL)"], "ends.ipynb: its process ended with -9"),
    (["import time", "while True:\n    time.sleep(0.1)  # for ever"], "ends.ipynb: not done after 4 s")], ids=["killed", "hangs"])
def test_a_notebook_that_never_answers_is_named(cells: list[str], words: str, tmp_path: Path) -> None:
    """Killed for memory, say, or hanging: it is ended, and the message says so."""
    with pytest.raises(AssertionError, match=re.escape(words)) as said:
        run_chapter(notebook_of(tmp_path, "ends.ipynb", *cells), tmp_path, 4)
    assert "4 s" not in words or "interrupted" in str(said.value) and "for ever" in str(said.value), "with where it was"


def test_memory_is_measured_and_given_back(tmp_path: Path) -> None:
    """Half a GB that a notebook takes is seen, and the next one does not have it; both see the session's home."""
    took, home = [], os.environ["MEDSYNTH_HOME"]
    for name, n_mb in (("large", 512), ("small", 1)):
        (tmp_path / name).mkdir()
        cells = [f"held = b'1' * ({n_mb} << 20)", f"import os\nassert os.environ['MEDSYNTH_HOME'] == {home!r}",
                 "import torch\nassert torch.get_num_threads() == 1"]
        took.append(run_chapter(notebook_of(tmp_path, f"{name}.ipynb", *cells), tmp_path / name)["peak_mb"])
    assert 500 < took[0] - took[1] < 600
