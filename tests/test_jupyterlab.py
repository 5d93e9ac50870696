"""A reader's first minute: a chapter opened in JupyterLab, all its cells run, and its slider moved, in a real browser."""
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

NBS = Path(__file__).resolve().parents[1] / "nbs"
CHAPTER = "20_edges.ipynb"
LAB = Path(sysconfig.get_path("scripts")) / "jupyter-lab"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1400,1000"
).split()
PICTURES = ".jp-OutputArea img[src^='data:image/png']"
START_S, RUN_S, DRAW_S = 90, 120, 30

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium and chromedriver to drive"),
    pytest.mark.skipif(not (NBS / CHAPTER).exists(), reason=f"no chapter {CHAPTER} to open"),
]


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def lab_environment(home: Path) -> dict[str, str]:
    """Surroundings of a first-time user: no settings of ours, and figures drawn into the notebook."""
    folders = {key: str(home / key.lower()) for key in (
        "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MEDSYNTH_HOME",
        "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")}
    settings = Path(folders["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    # Otherwise only the cells in view are in the page, and the test could not see the others.
    (settings / "tracker.jupyterlab-settings").write_text(json.dumps({"windowingMode": "none"}))
    return {key: value for key, value in os.environ.items() if key != "MPLBACKEND"} | folders


def wait_for_server(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the server answers; fail with its log if it ends or stays silent."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"jupyter lab did not start in {START_S} s:\n{log.read_text()[-3000:]}")


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and its kernels: asked first, then made to."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if server.poll() is None:
            os.killpg(server.pid, sign)
            try:
                server.wait(timeout=10)
            except subprocess.TimeoutExpired:
                continue


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A JupyterLab server on a copy of nbs/: (address of the chapter, file of the chapter)."""
    root, log = tmp_path / "nbs", tmp_path / "lab.log"
    shutil.copytree(NBS, root, ignore=shutil.ignore_patterns(".ipynb_checkpoints", ".last_checked"))
    port, token = free_port(), secrets.token_hex(16)
    command = [
        LAB, "--no-browser", "--allow-root", f"--ServerApp.root_dir={root}", "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    with log.open("wb") as out:
        server = subprocess.Popen(command, cwd=root, env=lab_environment(tmp_path), start_new_session=True,
                                  stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for_server(f"{address}/api/status?token={token}", server, log)
        yield f"{address}/lab/tree/{CHAPTER}?reset&token={token}", root / CHAPTER
    finally:
        stop(server)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """A headless browser with an empty profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in [*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def wait_until(browser: webdriver.Chrome, css: str, seconds: float = START_S) -> None:
    """Wait for an element to be there."""
    WebDriverWait(browser, seconds, 0.2).until(lambda page: page.find_elements(By.CSS_SELECTOR, css),
                                               f"nothing in the page matches {css}")


def open_chapter(browser: webdriver.Chrome, address: str) -> None:
    """Open the chapter and wait until its cells are in the page and its kernel, started by the page, is idle."""
    browser.get(address)
    wait_until(browser, ".jp-CodeCell")

    def ready(page: webdriver.Chrome) -> bool:
        words = [page.find_element(By.CSS_SELECTOR, css).get_attribute("textContent") for css in (
            ".jp-KernelName", ".jp-Notebook-ExecutionIndicator-tooltip")]
        return "Python" in words[0] and "Idle" in words[1]

    WebDriverWait(browser, START_S, 0.2, [StaleElementReferenceException]).until(ready, "no idle Python kernel")


def click_menu(browser: webdriver.Chrome, menu: str, command: str) -> None:
    """Open a menu of the menu bar and choose the entry that runs a command."""
    browser.find_element(By.XPATH, f"//*[contains(@class, 'lm-MenuBar-itemLabel') and text()='{menu}']").click()
    wait_until(browser, f".lm-Menu-item[data-command='{command}']")
    browser.find_element(By.CSS_SELECTOR, f".lm-Menu-item[data-command='{command}']").click()


def run_and_save(browser: webdriver.Chrome, chapter: Path) -> list[dict]:
    """Run all cells by the Run menu, save by the File menu, and return the code cells that hold code, as saved."""
    saved = chapter.stat().st_mtime_ns
    click_menu(browser, "Run", "runmenu:run-all")

    def ended(page: webdriver.Chrome) -> bool:
        prompts = [box.text for box in page.find_elements(By.CSS_SELECTOR, ".jp-CodeCell .jp-InputPrompt")]
        idle = page.find_elements(By.CSS_SELECTOR, ".jp-Notebook-ExecutionIndicator[data-status='idle']")
        return bool(idle) and any("1" in text for text in prompts) and not any("*" in text for text in prompts)

    WebDriverWait(browser, RUN_S, 0.3, [StaleElementReferenceException]).until(ended, f"the cells still run after {RUN_S} s")
    click_menu(browser, "File", "docmanager:save")
    WebDriverWait(browser, START_S, 0.2).until(lambda _: chapter.stat().st_mtime_ns > saved, "not saved")
    return [cell for cell in json.loads(chapter.read_text())["cells"] if cell["cell_type"] == "code" and cell["source"]]


def pictures(browser: webdriver.Chrome) -> set[str]:
    """The pictures in the page's outputs, as data addresses."""
    found = browser.find_elements(By.CSS_SELECTOR, PICTURES)
    return {image.get_attribute("src") for image in found}


def move_slider(browser: webdriver.Chrome) -> None:
    """Press the right arrow, or the left one at the end of the range, on the first slider."""
    handle = browser.find_element(By.CSS_SELECTOR, ".widget-slider .noUi-handle")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus();", handle)
    at_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
    handle.send_keys(Keys.ARROW_LEFT if at_end else Keys.ARROW_RIGHT)


def test_a_chapter_runs_in_jupyterlab_and_its_slider_redraws(lab: tuple[str, Path], browser: webdriver.Chrome) -> None:
    """Every cell runs without an error, a picture is shown, and a slider changes what is shown."""
    address, chapter = lab
    open_chapter(browser, address)
    cells = run_and_save(browser, chapter)
    errors = ["\n".join(output["traceback"]) for cell in cells for output in cell["outputs"]
              if output["output_type"] == "error"]
    assert not errors, f"{CHAPTER}: {errors[0]}"
    assert all(cell["execution_count"] for cell in cells), f"{CHAPTER}: a cell was not run"
    wait_until(browser, PICTURES, DRAW_S)
    before = pictures(browser)
    if browser.find_elements(By.CSS_SELECTOR, ".widget-slider"):
        move_slider(browser)
        WebDriverWait(browser, DRAW_S, 0.2, [StaleElementReferenceException]).until(
            lambda page: pictures(page) - before, f"{CHAPTER}: the slider moved and no picture changed")
