"""Layer training: the same bits, kill -9 and resume, divergence, requests that make no sense."""
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from medsynth.core.paths import BadRequest
from medsynth.core.runs import list_runs, run_of, start_run
from medsynth.data.batches import parse_data
from medsynth.training import tasks
from medsynth.training.loop import Diverged, open_fabric, train

PHANTOM = parse_data("phantom")
REQUEST = ("brain", "synthesis", PHANTOM, "mended", "smoke", 0)


@pytest.fixture(scope="module")
def chain() -> Path:
    """The smoke chain, trained once in the session's home."""
    return tasks.get_run(*REQUEST).path


def test_the_chain_is_found_again(chain: Path) -> None:
    """Asked for again, nothing is trained: no file changes."""
    before = {p: p.stat().st_mtime_ns for p in chain.parent.rglob("*")}
    assert tasks.get_run(*REQUEST).path == chain
    assert {p: p.stat().st_mtime_ns for p in chain.parent.rglob("*")} == before


def test_every_stage_learnt_and_drew(chain: Path) -> None:
    """Every run is done, has finite losses for every step and a picture."""
    runs = list_runs()
    assert {r.params["stage"] for r in runs} == set(tasks.STAGES)
    for run in runs:
        lines = (run.path / "metrics.jsonl").read_text().splitlines()
        assert run.done and len(lines) == run.params["settings"]["steps"] and (run.path / "picture.png").exists()


def test_same_seed_same_bits(chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage trained in another home has the same checkpoint; with another seed it has not."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path))
    stage = ("brain", "pretraining", PHANTOM, "mended", "smoke")
    here = tasks.get_run(*stage, 0)
    there = chain.parent / here.id
    same = (here.path / "last.safetensors").read_bytes() == (there / "last.safetensors").read_bytes()
    assert same
    other = tasks.get_run(*stage, 1)
    same = (other.path / "last.safetensors").read_bytes() == (there / "last.safetensors").read_bytes()
    assert not same


def test_sums_have_a_fixed_order_on_several_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of an indexed tensor is the same bits every time once a run has started."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path))
    start_run(run_of({"task": "t", "data": "d", "stage": "s", "recipe": "r", "profile": "p", "seed": 0}))
    g, rows = torch.Generator().manual_seed(0), torch.zeros(12, dtype=torch.long)
    weights = torch.randn(12, 64, 64, 16, generator=g)

    def gradient() -> torch.Tensor:
        x = torch.zeros(2, 64, 64, 16, requires_grad=True)
        (x[rows] * weights).sum().backward()
        return x.grad

    first = gradient()
    assert all(torch.equal(first, gradient()) for _ in range(20))


def steps_done(run: Path) -> int:
    """Count the steps a run has logged."""
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_kill_9_and_resume_to_the_same_bits(chain: Path, tmp_path: Path) -> None:
    """Killed at three moments, between and right after checkpoints, synthesis ends in the bits of an uninterrupted run."""
    home = tmp_path / "home"
    shutil.copytree(chain.parent.parent, home)
    run = home / "runs" / chain.name
    shutil.rmtree(run)
    command = [sys.executable, "-m", "medsynth", "train", "brain", "synthesis"]
    env = os.environ | {"MEDSYNTH_HOME": str(home)}
    for moment in (4, 10, 23):
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.time() + 120
        while steps_done(run) < moment and process.poll() is None and time.time() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert steps_done(run) >= moment and not (run / "done.json").exists(), "it was killed while it trained"
    subprocess.run(command, env=env, check=True, capture_output=True)
    for name in ("last.safetensors", "metrics.jsonl"):
        same = (run / name).read_bytes() == (chain / name).read_bytes()
        assert same, name  # without the bytes, whose difference pytest would take minutes to draw


def test_a_diverging_run_stops_and_says_what_to_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is not finite ends training; the checkpoint before it is kept."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path))

    class Exploding:
        nets = {"net": torch.nn.Linear(1, 1)}
        optimisers: dict = {}

        def step(self, t: int) -> dict[str, float]:
            return {"loss": float("nan") if t == 15 else 1.0}

    about = {"task": "brain", "data": "none", "stage": "x", "recipe": "mended", "profile": "smoke", "seed": 0}
    with pytest.raises(Diverged, match="step 15.*learning rate"):
        train(run_of(about), Exploding(), 30, 0, open_fabric(), 10)
    assert run_of(about).state == "interrupted"


@pytest.mark.parametrize(("change", "says"), [
    ({"task": "heart"}, "brain"), ({"stage": "paint"}, "synthesis"), ({"recipe": "best"}, "mended"),
    ({"profile": "huge"}, "demo")])
def test_requests_that_make_no_sense(change: dict, says: str) -> None:
    """They name what there is."""
    words = {"task": "brain", "stage": "synthesis", "recipe": "mended", "profile": "smoke"} | change
    with pytest.raises(BadRequest, match=says):
        tasks.check_request(words["task"], words["stage"], PHANTOM, words["recipe"], words["profile"])


def test_changes_reach_their_stage_alone() -> None:
    """A change of one stage names another run for it and what builds on it, and for nothing else."""
    def ids(**changes: object) -> dict[str, str]:
        return {f"{r.params['stage']}{r.params['settings'].get('modality', '')}": r.id
                for r in tasks.unfold(tasks.plan(*REQUEST, **changes))}

    plain, changed = ids(), ids(**{"translator.condition": "planes"})
    assert {n for n in plain if plain[n] != changed[n]} == {"translator", "synthesis"}
    assert ids(**{"synthesis.anchor": 0}).keys() == plain.keys()
    for wrong in ("translator.conditon", "pretraining.anchor"):
        with pytest.raises(BadRequest, match=wrong.split(".")[1]):
            ids(**{wrong: "planes"})
