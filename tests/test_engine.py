"""Layer training, several processes: two agree with one, by torchrun and by Fabric's own launcher; stops and full disks."""
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medsynth.core.paths import BadRequest
from medsynth.core.random import own_rows
from medsynth.core.runs import Run, checkpoint_step, run_of
from medsynth.data.batches import DataRef
from medsynth.show import Picture, curves
from medsynth.structure.pool import map_pool
from medsynth.training.engine import Stopped, close_processes, open_fabric
from medsynth.training.loop import descend, train
from medsynth.training.synthesis import Pretraining
from medsynth.training.tasks import batches_of, plan

STAGES = ("pretraining", "processor", "translator", "density", "lines", "synthesis")
N_STEPS = 20


def toy_slices() -> object:
    """Four phantom patients in the default dtype, 48x40."""
    from medsynth.data.phantom import phantom_cohort
    from medsynth.structure.slices import Slices, reduced_cohort

    cohort = phantom_cohort(4, 1, 8, (96, 80))
    tensors = reduced_cohort(cohort, (48, 40), 2)
    tensors["x"] = tensors["x"].to(torch.get_default_dtype())
    return Slices("phantom", False, cohort.modalities, 5, "-", (), {}, tensors)


def toy_stages(fabric: object) -> dict[str, object]:
    """Every stage that processes share, width 4, the later ones on what the earlier ones made."""
    from medsynth.training import processors, structure, synthesis, tasks, translator

    slices, nets = toy_slices(), {}
    kinds = {"pretraining": synthesis.Pretraining, "processor": processors.Processor, "translator": translator.Translator}
    stages = {n: kind(slices, 0, {}, fabric, width=4, batch=4) for n, kind in kinds.items()}
    stages["density"] = structure.Density(slices, 0, {}, fabric, batch=8, width=16, latent=4, n_moved=1)
    below = [stages["density"].nets]
    stages["lines"] = structure.Lines(slices, 0, tasks.networks_for("lines", below), fabric, batch=4, width=4, n_moved=1)
    below += [stages["lines"].nets, *[stages["processor"].nets] * 4, stages["translator"].nets, stages["pretraining"].nets]
    nets = tasks.networks_for("synthesis", below)
    stages["synthesis"] = synthesis.Synthesis(slices, 0, nets, fabric, width=4, batch=4, n_pairs=3)
    return stages


def train_all(out: str, dtype: torch.dtype) -> None:
    """Train every stage for N_STEPS from the same start; the first process writes weights and the last losses to OUT.STAGE."""
    from medsynth.core.random import key, processes
    from medsynth.training.engine import agree, close_processes, open_fabric

    torch.set_num_threads(1)
    torch.set_default_dtype(dtype)
    fabric = open_fabric()
    torch.manual_seed(0)
    for name, stage in toy_stages(fabric).items():
        for net in stage.nets.values():
            net.requires_grad_(True)
        for t in range(N_STEPS):
            torch.manual_seed(key(0, name, t))
            numbers, _ = agree(stage.step(t), False, fabric.device)
        weights = {f"{n}/{k}": v.detach() for n, net in stage.nets.items() for k, v in net.state_dict().items()}
        if processes()[0] == 0:
            save_file({k: v.contiguous() for k, v in weights.items()}, f"{out}.{name}")
            Path(f"{out}.json").write_text(json.dumps({"processes": processes()[1], "losses": numbers}))
    close_processes()


def compared(a: Path, b: Path, name: str) -> float:
    """The largest difference of two runs' weights, but for biases that the norm after them takes out again: Adam makes a
    step of 1e-9 out of a gradient that is 0 but for rounding."""
    a, b = (load_file(f"{p}.{name}") for p in (a, b))
    normed = {k.replace("norm.scale", "conv.bias") for k in a if k.endswith("norm.scale")}
    return max((a[k].double() - b[k].double()).abs().max().item() for k in a if k not in normed)


def run_as(folder: Path, name: str, dtype: str, words: list[str], devices: int) -> Path:
    """Train all stages as a program started in this way; returns where its weights begin."""
    me = str(Path(__file__).absolute())
    said = subprocess.run([sys.executable, *words, me, dtype, str(folder / name)], capture_output=True, text=True,
                          timeout=500, env=os.environ | {"MEDSYNTH_DEVICES": str(devices), "OMP_NUM_THREADS": "1"})
    assert said.returncode == 0, said.stderr[-3000:]
    n = json.loads((folder / f"{name}.json").read_text())["processes"]
    assert n == (2 if words else devices)
    return folder / name


TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The steps in float64 by one process."""
    return run_as(tmp_path_factory.mktemp("processes"), "one", "float64", [], 1)


@pytest.mark.long
def test_two_processes_agree_with_one(one: Path) -> None:
    """20 steps in float64 of every shared stage, on the same global batch: to 1e-9, by Fabric's launcher."""
    two = run_as(one.parent, "fabric", "float64", [], 2)
    assert {name: d for name in STAGES if (d := compared(one, two, name)) >= 1e-9} == {}


@pytest.mark.slow
def test_torchrun_agrees_and_the_drift_of_float32_is_said(one: Path) -> None:
    """The same by torchrun; in float32 rounding grows, here for 20 steps: it is printed."""
    by_torchrun = run_as(one.parent, "torchrun", "float64", TORCHRUN, 1)
    assert {name: d for name in STAGES if (d := compared(one, by_torchrun, name)) >= 1e-9} == {}
    alone, two = run_as(one.parent, "one32", "float32", [], 1), run_as(one.parent, "two32", "float32", [], 2)
    drift = {name: compared(alone, two, name) for name in STAGES}
    print("largest difference of a weight in float32 after 20 steps:", {n: f"{d:.1e}" for n, d in drift.items()})
    assert max(drift.values()) < 0.1


def test_a_batch_that_cannot_be_shared_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rows for three processes."""
    monkeypatch.setattr("medsynth.core.random.processes", lambda: (0, 3))
    with pytest.raises(BadRequest, match="multiple of 3"):
        own_rows([1, 2, 3, 4])


class Slow:
    """A stage of one weight that takes its time, or meets a full disk."""

    def __init__(self, at: int = 0):
        torch.manual_seed(0)
        self.nets, self.at = {"net": torch.nn.Linear(2, 1)}, at
        self.optimisers = {"net": torch.optim.Adam(self.nets["net"].parameters(), 0.05)}

    def step(self, t: int) -> dict[str, float]:
        """Learn a line; at one step ask for the end, as a cluster does."""
        x = torch.randn(8, 2).to(self.nets["net"].weight.device)
        loss = (self.nets["net"](x)[:, 0] - x[:, 0]).square().mean()
        descend(open_fabric(), self.optimisers["net"], loss)
        if t == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": loss.item()}

    def picture(self) -> Picture:
        """A curve of nothing."""
        return curves({"nothing": [0.0, 1.0]})


def toy_run(note: int) -> Run:
    """A run of no task."""
    return run_of({"task": "t", "data": "d", "stage": "slow", "recipe": "r", "profile": "p", "seed": note})


@pytest.mark.parametrize(("settings", "kept"), [({}, (10, 18)), ({"accumulate": 4, "clip": 0.1, "ema": 0.9}, (0, 20))],
                         ids=["plain", "every setting"])
def test_sigterm_finishes_the_step_saves_and_resumes_to_the_same_bits(
    settings: dict, kept: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to stop at batch 17, of 40, a checkpoint every 10: one at 18 (a step of four ends at 20), one before beside it."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path / "whole"))
    whole = train(toy_run(0), Slow(at=-1), 40, 0, open_fabric(), 10, **settings)
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path / "stopped"))
    with pytest.raises(Stopped, match=f"at step {kept[1]} of 40"):
        train(toy_run(0), Slow(at=17), 40, 0, open_fabric(), 10, **settings)
    run = toy_run(0)
    assert checkpoint_step(run.path / "last.safetensors") == kept[1]
    assert (run.path / f"step_{kept[0]:07d}.safetensors").exists() == (kept[0] > 0)
    train(run, Slow(at=-1), 40, 0, open_fabric(), 10, **settings)
    for name in ("last.safetensors", "metrics.jsonl"):
        same = (run.path / name).read_bytes() == (whole.path / name).read_bytes()
        assert same, name
    assert not list(run.path.glob("step_*")), "a finished run keeps its last checkpoint alone"


def test_on_a_cpu_no_optimiser_is_fused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused Adam rounds otherwise, and a CPU gains nothing by it."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path))
    stage = Slow(at=-1)
    train(toy_run(0), stage, 2, 0, open_fabric())
    assert not stage.optimisers["net"].param_groups[0]["fused"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_on_a_gpu_optimisers_are_fused_and_resume_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of a fused Adam is loaded by a fused one."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path))
    for steps in (2, 4):
        stage = Slow(at=-1)
        stage.nets["net"].to("cuda")  # in place: the optimiser keeps its weights
        train(toy_run(0), stage, steps, 0, open_fabric(), 2)
    assert stage.optimisers["net"].param_groups[0]["fused"]


class Given:
    """A stage of one weight w, whose loss is w times a number given for each batch, so that its gradient is that number."""

    def __init__(self, numbers: tuple[float, ...]):
        self.nets, self.numbers = {"net": torch.nn.Linear(1, 1, bias=False)}, numbers
        torch.nn.init.zeros_(self.nets["net"].weight)
        self.optimisers = {"net": torch.optim.SGD(self.nets["net"].parameters(), 1.0)}

    def step(self, t: int) -> dict[str, float]:
        """Step against the gradient of batch t."""
        loss = self.nets["net"].weight.sum() * self.numbers[t]
        descend(open_fabric(), self.optimisers["net"], loss)
        return {"loss": loss.item()}

    picture = Slow.picture


@pytest.mark.parametrize(("settings", "weight"), [
    ({}, -10.0),  # 1 + 3 + 2 + 4
    ({"accumulate": 2}, -5.0),  # (1 + 3) / 2 + (2 + 4) / 2
    ({"clip": 2.0}, -7.0),  # 1 + 2 + 2 + 2
    ({"accumulate": 2, "clip": 2.5}, -4.5),  # 2 + 2.5
    ({"ema": 0.5}, -7.125),  # of -1, -4, -6, -10, the first as it is: -1, -2.5, -4.25, -7.125
])
def test_settings_of_every_stage_by_hand(settings: dict, weight: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that goes down by what is given: 1, 3, 2, 4."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path))
    stage = Given((1.0, 3.0, 2.0, 4.0))
    train(toy_run(3), stage, 4, 0, open_fabric(), 10, **settings)
    assert stage.nets["net"].weight.item() == pytest.approx(weight)


def test_settings_name_a_run_and_what_cannot_be_is_refused() -> None:
    """For the stage asked for, or one that it builds on by name; steps of 3 batches cost 3 times as much."""
    words = ("brain", "synthesis", DataRef("phantom", None), "mended", "smoke", 0)
    plain, (run, below) = plan(*words), plan(*words, **{"accumulate": 3, "pretraining.ema": 0.9})
    start = next(r for r, _ in below if r.params["stage"] == "pretraining")
    assert start.params["settings"]["ema"] == 0.9 and "ema" not in run.params["settings"] and run.id != plain[0].id
    assert batches_of(run) == 3 * batches_of(plain[0])
    for name, value in (("accumulate", 0), ("clip", -1.0), ("ema", 1.0)):
        with pytest.raises(BadRequest, match=f"--set {name}={value}"):
            plan(*words, **{f"synthesis.{name}": value})


def test_a_full_disk_names_the_file_and_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No space left while the second checkpoint is written: the first is whole, and the run goes on from it."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path))
    run, written, fsync = toy_run(1), [], os.fsync

    def full(handle: int) -> None:
        if (run.path / "last.safetensors").exists() and os.fstat(handle).st_size > 600:
            written.append(handle)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left.*last.safetensors"):
        train(run, Slow(at=-1), 40, 0, open_fabric(), 10)
    monkeypatch.setattr(os, "fsync", fsync)
    assert written and checkpoint_step(run.path / "last.safetensors") == 10 and not list(run.path.glob(".*"))
    assert train(run, Slow(at=-1), 40, 0, open_fabric(), 10).done


def test_a_pool_of_moved_maps_leaves_the_steps_own_numbers_alone() -> None:
    """A resumed step draws what it would have drawn: making the pool does not move torch's generator."""
    slices = toy_slices()
    torch.manual_seed(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    map_pool(slices, 0, 1)
    assert torch.equal(torch.rand(3), drawn)


KILLED_STEPS = 130


def train_killable() -> None:
    """Pre-train for KILLED_STEPS, a checkpoint every second step, in this program's MEDSYNTH_HOME."""
    torch.set_num_threads(1)
    fabric = open_fabric()
    torch.manual_seed(0)
    stage = Pretraining(toy_slices(), 0, {}, fabric, width=8, batch=4, steps=KILLED_STEPS)
    train(toy_run(2), stage, KILLED_STEPS, 0, fabric, 2)
    close_processes()


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "n_kills"), [(1, 14), (2, 6)])
def test_kill_9_at_random_moments(tmp_path: Path, devices: int, n_kills: int) -> None:
    """Killed at any moment, during a save too (one every second step), one process or two end in the bits of a run left alone."""
    command, folder = [sys.executable, str(Path(__file__).absolute()), "killable"], toy_run(2).path.name
    moments, log = random.Random(devices), []

    def start(home: Path) -> subprocess.Popen:
        env = os.environ | {"MEDSYNTH_HOME": str(home), "MEDSYNTH_DEVICES": str(devices), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, start_new_session=True)

    assert start(tmp_path / "whole").wait(300) == 0
    run = tmp_path / "killed" / "runs" / folder
    for _ in range(n_kills):
        process, began = start(tmp_path / "killed"), time.time_ns()
        last = run / "last.safetensors"
        while (not last.exists() or last.stat().st_mtime_ns < began) and process.poll() is None:
            time.sleep(0.001)  # until it has saved once
        time.sleep(moments.uniform(0, 0.5))
        assert process.poll() is None, "it was killed while it trained"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.append((rows_of(run), len(list(run.glob(".*")))))
    assert start(tmp_path / "killed").wait(300) == 0
    print(f"{devices} processes: (rows logged, half-written files left) at each kill: {log}")
    for name in ("last.safetensors", "metrics.jsonl"):
        same = (run / name).read_bytes() == (tmp_path / "whole" / "runs" / folder / name).read_bytes()
        assert same, name


def rows_of(run: Path) -> int:
    """Count the rows a run has logged."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


if __name__ == "__main__":  # a process of a group: DTYPE OUT, or killable
    train_killable() if sys.argv[1] == "killable" else train_all(sys.argv[2], getattr(torch, sys.argv[1]))


@pytest.mark.long
@pytest.mark.parametrize("name", ["pretraining", "processor", "translator", "synthesis"])
def test_bf16_learns_as_float32_does(name: str) -> None:
    """Ten steps by autocast: weights stay float32, losses are finite and within a tenth of float32's."""
    losses = {}
    for precision in ("32", "bf16"):
        torch.manual_seed(0)
        fabric = open_fabric(precision)
        stage = toy_stages(fabric)[name]
        for net in stage.nets.values():  # some were frozen for the stages after theirs
            net.requires_grad_(True)
        for t in range(10):
            torch.manual_seed(t)
            with fabric.autocast():
                losses[precision] = stage.step(t)
        assert all(p.dtype == torch.float32 for net in stage.nets.values() for p in net.parameters())
    assert all(abs(v) < float("inf") for v in losses["bf16"].values())
    total = {k: sum(abs(v) for v in said.values()) for k, said in losses.items()}
    assert total["bf16"] == pytest.approx(total["32"], rel=0.1) and losses["bf16"] != losses["32"]
