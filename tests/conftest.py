"""What every test shares: a home of its own, no window for figures, the real images where they are, and word of how far it is."""
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

os.environ["MPLBACKEND"] = "agg"
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if WORKER:
    os.environ["OMP_NUM_THREADS"] = "1"  # two workers of two threads each would fight over two cores

SHARED = ("test_cli", "test_tasks_other")  # these train the same chains: one worker runs both, and begins with them
LAST = "test_chapters"  # given out a chapter at a time, so that all workers end together
LONG = {"chain", "graphs", "judged", "painter", "reproduced", "written"}  # fixtures of seconds; what asks for one is `long`
EVERY_S = 15  # seconds between two lines about how far the tests are


@pytest.hookimpl(tryfirst=True)  # before pytest looks at -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files: SHARED, the longest; those of seconds, which say soonest that something is broken; the others; LAST."""
    for item in items:
        if LONG & set(getattr(item, "fixturenames", ())):
            item.add_marker("long")
    long = {item.path.stem for item in items if item.get_closest_marker("long")}

    def place(item: pytest.Item) -> int:
        name = item.path.stem
        return SHARED.index(name) - len(SHARED) if name in SHARED else 2 if name == LAST else int(name in long)

    items.sort(key=place)


class ByFile(LoadFileScheduling):
    """Give a worker a file at a time, SHARED as if they were one, and a test of LAST at a time."""

    def _split_scope(self, nodeid: str) -> str:
        """Name what a test is given out with."""
        file = super()._split_scope(nodeid)
        return "shared" if Path(file).stem in SHARED else nodeid if Path(file).stem == LAST else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile:
    """Replace the scheduler of `--dist loadfile`."""
    return ByFile(config, log)


class Progress:
    """A line every EVERY_S seconds, instead of pytest's dots: how many tests are done, and at which the workers are."""

    def __init__(self, reporter: pytest.TerminalReporter):
        self.reporter, self.total, self.began = reporter, 0, time.time()
        self.at: dict[str, float] = {}  # test -> when it began
        self.done: Counter[str] = Counter()
        self.stopped = threading.Event()

    def line(self) -> str:
        """Say how far the tests are."""
        now, counted = time.time(), ", ".join(f"{n} {word}" for word, n in self.done.items())
        at = ", ".join(f"{name.removeprefix('tests/')} ({now - began:.0f} s)" for name, began in list(self.at.items()))
        done = f"{sum(self.done.values())} of {self.total} tests done{f' ({counted})' if counted else ''}; at work on {at}"
        return f"{(now - self.began) / 60:4.1f} min: {done if self.total else 'finding the tests'}"

    def say(self, text: str) -> None:
        """Write a line at once, into a file too."""
        self.reporter.write_line(text)
        self.reporter.flush()

    def talk(self) -> None:
        """Say how far the tests are until they are over."""
        while not self.stopped.wait(EVERY_S):
            self.say(self.line())

    @pytest.hookimpl
    def pytest_sessionstart(self) -> None:
        """Begin to talk."""
        threading.Thread(target=self.talk, daemon=True).start()

    @pytest.hookimpl
    def pytest_sessionfinish(self) -> None:
        """Fall silent."""
        self.stopped.set()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Note how many tests there are."""
        self.total = len(ids)

    @pytest.hookimpl
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note that a worker has begun a test."""
        self.at[nodeid] = time.time()

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test that is over, and name one that failed at once."""
        if report.failed:
            self.say(f"FAILED {report.nodeid}, {report.when}")
        if report.when == "call" or report.outcome != "passed":
            self.done[report.outcome] += 1
        if report.when == "teardown":
            self.at.pop(report.nodeid, None)

    @pytest.hookimpl(wrapper=True)
    def pytest_report_teststatus(self) -> Iterator[None]:
        """Keep what pytest calls a report, but for the letter that it writes."""
        category, _, word = yield
        return category, "", word


@pytest.hookimpl(trylast=True)  # after pytest's own, which makes the reporter
def pytest_configure(config: pytest.Config) -> None:
    """Give the session its own MEDSYNTH_HOME, or the one that MEDSYNTH_TEST_HOME names (to keep runs between sessions)."""
    home = os.environ["MEDSYNTH_HOME"] if WORKER else os.environ.get("MEDSYNTH_TEST_HOME")  # a worker's lies in the session's
    if home is None:
        folder = tempfile.TemporaryDirectory(prefix="medsynth-test-", ignore_cleanup_errors=True)
        config.add_cleanup(folder.cleanup)
        home = folder.name
    os.environ["MEDSYNTH_HOME"] = str(Path(home) / WORKER)
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter and config.getoption("numprocesses", None) and config.get_verbosity() == 0:
        config.pluginmanager.register(Progress(reporter))


@pytest.fixture(scope="module", autouse=True)
def finished_runs() -> None:
    """Copy what other workers have trained meanwhile, so that no chain is trained twice: the same seed gives the same bits."""
    home = Path(os.environ["MEDSYNTH_HOME"])
    (home / "runs").mkdir(parents=True, exist_ok=True)
    for done in (home.parent.glob("gw*/runs/*/done.json") if WORKER else ()):
        if not (run := home / "runs" / done.parent.name).exists():
            whole = shutil.copytree(done.parent, home / "copied" / run.name, ignore=shutil.ignore_patterns("step_*"))
            whole.rename(run)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the notebooks that took most memory."""
    took = {r.nodeid: dict(r.user_properties).get("peak_mb") for r in terminalreporter.stats.get("passed", [])}
    most = sorted(((mb, nodeid) for nodeid, mb in took.items() if mb), reverse=True)[:5]
    if most:
        terminalreporter.section("most memory taken")
    for mb, nodeid in most:
        terminalreporter.write_line(f"{mb:6.0f} MB  {nodeid}")


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
