"""What every test shares: a home of its own, no window for figures, and the real images where they are."""
import os
import tempfile
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

os.environ["MPLBACKEND"] = "agg"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # two workers of two threads each would fight over two cores

LONGEST = ("test_chapters", "test_cli", "test_tasks_other", "test_training", "test_data_check")  # files that workers take first
SHARED = ("test_cli", "test_tasks_other")  # these train the same chains: one worker, whose home has them, runs both


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, so that no worker is left alone with one at the end."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


class ByFile(LoadFileScheduling):
    """Give a worker a file at a time, SHARED as if they were one."""

    def _split_scope(self, nodeid: str) -> str:
        """Name what a test is given out with."""
        file = super()._split_scope(nodeid)
        return "shared" if Path(file).stem in SHARED else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile:
    """Replace the scheduler of `--dist loadfile`."""
    return ByFile(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """Give the session its own MEDSYNTH_HOME, or the one that MEDSYNTH_TEST_HOME names (to keep runs between sessions)."""
    home = os.environ.get("MEDSYNTH_TEST_HOME")
    if home is None:
        folder = tempfile.TemporaryDirectory(prefix="medsynth-test-", ignore_cleanup_errors=True)
        config.add_cleanup(folder.cleanup)
        home = folder.name
    os.environ["MEDSYNTH_HOME"] = str(Path(home) / os.environ.get("PYTEST_XDIST_WORKER", ""))


def pytest_report_header() -> list[str]:
    """Say at the top of the report which home and which images the tests use."""
    data = os.environ.get("MEDSYNTH_DATA")
    images = f"{data}: tests on real images run" if data else "not set: tests on real images are skipped"
    return [f"MEDSYNTH_HOME: {os.environ['MEDSYNTH_HOME']}", f"MEDSYNTH_DATA: {images}"]


def real_folder(name: str) -> Path:
    """The folder of a set of real images, or a skip that says what to set."""
    data = os.environ.get("MEDSYNTH_DATA")
    if not data:
        pytest.skip("MEDSYNTH_DATA is not set: no real images")
    folder = Path(data) / name
    if not folder.is_dir():
        pytest.skip(f"no folder {name} under MEDSYNTH_DATA ({data})")
    return folder.absolute()


@pytest.fixture(scope="session")
def brain_ms() -> Path:
    """The folder of the multiple sclerosis images, or a skip that says what to set."""
    return real_folder("brain_ms")


@pytest.fixture(scope="session")
def brats2015_subset() -> Path:
    """The folder of the two-modality BRATS subset, or a skip that says what to set."""
    return real_folder("brats2015_subset")
