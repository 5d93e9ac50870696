"""Layer training: the same bits, kill -9 and resume, divergence, judges, requests that make no sense."""
import copy
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from medsynth.core.paths import BadRequest
from medsynth.core.random import normal
from medsynth.core.runs import load_checkpoint, run_of, save_checkpoint, start_run
from medsynth.data.batches import parse_data
from medsynth.losses.adversarial import slope_penalty
from medsynth.losses.lesion import PLANE_WEIGHTS
from medsynth.nets.blocks import feature_rank
from medsynth.nets.critics import Critic, draw_view
from medsynth.nets.unet import UNet, encode
from medsynth.nets.vae import DensityVAE, Flow, Refiner
from medsynth.show import Picture, curves
from medsynth.structure.lesions import dilate, one_hot
from medsynth.structure.slices import batch_of, present_in
from medsynth.structure.whole import redraw
from medsynth.synthesis.pipeline import open_painter, synthesise_all
from medsynth.training import loop, painting, processors, structure, synthesis, tasks, translator
from medsynth.training.drawing import draw_maps, draw_whole_maps, training_delta
from medsynth.training.engine import open_fabric
from medsynth.training.loop import Diverged, train
from medsynth.training.one_step import Cells, OneStep, cell_terms, one_step_terms
from medsynth.training.translator import translate, translator_terms

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
    runs = tasks.unfold(tasks.plan(*REQUEST))
    assert {r.params["stage"] for r in runs} == {"density", "lines", "pretraining", "translator", "processor", "synthesis"}
    for run in runs:
        lines = (run.path / "metrics.jsonl").read_text().splitlines()
        assert run.done and len(lines) == run.params["settings"]["steps"] and (run.path / "picture.png").exists()


@pytest.mark.long
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


class Stub:
    """A stage of one weight w = 3 that is pulled to 1 by (w - 1)^2 at a rate of 1/4, and D's answers as given."""

    def __init__(self, unsure_at: int = -1):
        net = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(net.weight, 3.0)
        self.nets, self.unsure_at = {"net": net}, unsure_at
        self.optimisers = {"net": torch.optim.SGD(net.parameters(), 0.25)}

    def step(self, t: int) -> dict[str, float]:
        net, one = self.nets["net"], torch.ones(1, 1)
        loss = (net(one) - 1).square().sum()
        loop.descend(open_fabric(), self.optimisers["net"], loss)
        (100 * net(one)).sum().backward()  # as another network's loss leaves its gradient behind
        return {"loss": loss.item(), "d_real": 0.5 if t == self.unsure_at else 0.95, "d_fake": 0.05}

    def picture(self) -> Picture:
        return curves({"none": [0.0]})


def stub_run(**more: object) -> object:
    """Name a run of the stub."""
    return run_of({"task": "brain", "data": "none", "stage": "stub", "recipe": "mended", "profile": "smoke", "seed": 0} | more)


def test_gradient_norms_are_those_of_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """d/dw (w - 1)^2 = 2 (w - 1): 4 at w = 3, then 2, 1, each half the one before; what is left over later does not count."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path))
    run = train(stub_run(), Stub(), 3, 0, open_fabric(), 10)
    assert loop.read_metrics(run)["grad_net"] == [4.0, 2.0, 1.0] and loop.read_metrics(run)["loss"] == [4.0, 1.0, 0.25]
    assert [ax.get_ylabel() for ax in loop.training_curves(run).axes] == ["losses", "D on real and fake", "gradient norms"]


@pytest.mark.long
def test_pictures_are_taken_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of 250 steps leaves its picture after 100 and 200 of them, and the last one at its end."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path))
    run = train(stub_run(), Stub(unsure_at=150), 250, 0, open_fabric(), 100)
    assert sorted(p.name for p in (run.path / "samples").iterdir()) == ["0000100.png", "0000200.png"]
    assert (run.path / "picture.png").exists() and loop.sample_every(600_000) == 120_000


def test_a_line_cut_short_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 may leave half a last line, even one that could be read: it is dropped."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path))
    run = train(stub_run(), Stub(), 3, 0, open_fabric(), 10)
    whole = (run.path / "metrics.jsonl").read_text()
    for cut in (20, 1):  # in the middle of a number, and the end of the line alone
        (run.path / "metrics.jsonl").write_text(whole[:-cut])
        assert loop.read_metrics(run)["step"] == [0, 1]


@pytest.mark.long
def test_a_saturated_critic_stops_the_run_and_a_resumed_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right for SATURATED_STEPS rows on end, counted from the last doubt; resumed, at the same step with the same words."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path))
    end = loop.SATURATED_STEPS + 17
    for n, steps in (("whole", (end + 20,)), ("in two pieces", (loop.SATURATED_STEPS - 40, end + 20))):
        with pytest.raises(Diverged, match=f"at step {end}: .*since step 18.*--set stub.critic_lr") as said:
            for s in steps:
                (stub_run(note=n).path / "done.json").unlink(missing_ok=True)
                train(stub_run(note=n), Stub(unsure_at=17), s, 0, open_fabric(), 50)
        assert "medsynth" not in str(said.value) and stub_run(note=n).state == "interrupted"


def test_only_a_critic_with_targets_saturates() -> None:
    """Far beyond its targets, as Wasserstein's, or without answers, no critic is called saturated; one doubt is enough."""
    def rows(d_real: float, d_fake: float) -> list[dict]:
        return [{"step": t, "d_real": d_real, "d_fake": d_fake} for t in range(loop.SATURATED_STEPS + 5)]

    assert loop.saturated_since(rows(0.95, 0.05)) == 5
    assert loop.saturated_since(rows(40.0, -30.0)) is None and loop.saturated_since([{"step": 0, "loss": 1.0}] * 300) is None
    assert loop.saturated_since(rows(0.95, 0.05)[:-6]) is None
    assert loop.saturated_since([*rows(0.95, 0.05)[:-1], {"step": 204, "d_real": 0.8, "d_fake": 0.0}]) is None


THESIS = ("brain", "synthesis", PHANTOM, "thesis", "smoke", 0)


def test_the_recipe_of_the_thesis_is_arguments_and_data() -> None:
    """Its runs share none with ours; planes, blur, instance norm, no ramp, no anchor; its maps are extracted literally."""
    runs = {r.params["stage"]: r for r in tasks.unfold(tasks.plan(*THESIS))}
    assert list(runs) == ["one_step", "processor", "translator", "pretraining", "synthesis"]
    assert not {r.id for r in runs.values()} & {r.id for r in tasks.unfold(tasks.plan(*REQUEST))}
    assert {r.params["data_hash"] for r in runs.values()} == {tasks.load_slices(PHANTOM, "smoke", "thesis").hash}
    wired = {"condition": "planes", "init": "blur"}
    assert all(wired.items() <= runs[s].params["settings"].items() for s in ("translator", "pretraining"))
    literal = {"critic_norm": "instance", "views": "none", "fake_classes": True, "registration_ramp": False, "anchor": 0.0,
               "contrast": 0.0, "structure": "one_step", "adversarial": 3.0}
    assert literal.items() <= runs["synthesis"].params["settings"].items()
    assert tasks.RECIPES["mended"] == {} and "recipe" in tasks.plan(*REQUEST)[0].params


def test_literal_maps_are_other_maps_of_the_same_images() -> None:
    """Algorithm 1's literal lines change maps, not images; each modality has its own map, Flair's the one that all share."""
    ours, theirs = (tasks.load_slices(PHANTOM, "smoke", recipe) for recipe in ("mended", "thesis"))
    assert torch.equal(ours.x, theirs.x) and torch.equal(ours.l, theirs.l) and not torch.equal(ours.s, theirs.s)
    assert "s_each" not in ours.tensors and theirs.s_each.shape == theirs.x.shape
    assert torch.equal(theirs.s_each[:, 3:], theirs.s) and not torch.equal(theirs.s_each[:, 0], theirs.s_each[:, 1])
    with pytest.raises(BadRequest, match="data.own_maps"):
        tasks.get_run("brain", "pretraining", PHANTOM, "mended", "smoke", 0, own_maps=True)


def test_slices_of_another_recipe_are_no_plan_of_this_run() -> None:
    """A run is never trained on slices that it was not planned for (seed 99: no other test has trained it)."""
    run, below = tasks.plan("brain", "pretraining", PHANTOM, "thesis", "smoke", 99)
    with pytest.raises(ValueError, match="planned for"):
        tasks.finish(run, below, tasks.load_slices(PHANTOM, "smoke"))


@pytest.mark.long
def test_the_thesis_trains_and_draws_at_smoke() -> None:
    """End to end: wired by planes, started from a blur that training has hardly left (D20, D26; chapter 31 has what it does)."""
    painter = open_painter("brain", PHANTOM, "thesis", "smoke", 0)
    x = synthesise_all(painter, 0, 2)["x"]
    assert x.shape == (2, 4, 48, 40) and x.isfinite().all() and float(x.std(1).mean()) > 0
    assert painter.generator.planes == 4 and painter.run.params["recipe"] == "thesis"
    assert feature_rank(encode(painter.generator, torch.rand(2, 5, 48, 40))[2]) < 4, "of 32 channels"


def test_own_maps_equal_one_shared_map_where_all_are_the_same() -> None:
    """Painting each modality from its own map is painting from one map when the maps are one."""
    torch.manual_seed(0)
    net, s, m = UNet(2, 1, 4, 3), torch.rand(2, 1, 16, 16).round(), torch.zeros(2, 1, 16, 16)
    label, noise = torch.zeros(2, 1, 16, 16), torch.full((2, 1, 16, 16), 0.55)
    own = synthesis.paint_own(net, s.repeat(1, 3, 1, 1), m, label, noise, 2)
    assert torch.allclose(own, painting.paint(net, s, m, label, noise, 2, 3), atol=1e-6)


def test_what_the_ablation_feeds_its_generator() -> None:
    """Row A sees noise alone, B the map alone, C their fusion (12); a run of a new source is another run, of the same start."""
    s, m, z = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5)
    s[..., 0, 0], m[..., 1, 1] = 1, 1
    by_hand = {"noise": [0.5, 0.5, 0.5, 0.5], "map": [1, 0, 0, 0], "fused": [1, 0.5, 0.5, 0]}
    assert {n: painting.INPUTS[n](s, m, z).flatten().tolist() for n in painting.INPUTS} == by_hand
    runs = {n: tasks.plan(*REQUEST, **{"synthesis.source": n, "synthesis.label_filter": n != "map"})
            for n in painting.INPUTS}
    assert len({run.id for run, _ in runs.values()}) == 3
    assert len({tuple(r.id for r, _ in below) for _, below in runs.values()}) == 1, "they share what comes before"


def test_class_heads_learn_from_fakes_only_when_asked() -> None:
    """D says 1, 0 and class 0 throughout: the class term is 5 (0 + 1 + 4 + 9) / 4 = 17.5 of real, as much again of painted."""
    def critic(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (x.mean((1, 2, 3), keepdim=True) > 0.5).float(), torch.zeros(len(x), 1, 1, 1)

    critic.n_in = 1
    x, x_g = torch.ones(2, 4, 8, 8), torch.zeros(2, 4, 8, 8)
    assert [float(synthesis.critic_terms(critic, x, x_g, [0] * 4, f)["critic"]) for f in (False, True)] == [17.5, 35.0]
    pairs = torch.tensor([(0, 2)])  # to class 2: 2^2 = 4, unweighted, as much again of translations
    x_t = torch.zeros(1, 2, 8, 8)
    assert [float(translator.critic_terms(critic, x, pairs, x_t, [0] * 4, f)["critic"]) for f in (False, True)] == [4.0, 8.0]


def test_edges_are_counted_on_the_map() -> None:
    """A step image is as sharp as itself, half as sharp at half contrast; its edges lie on its own line, not on another."""
    x, m = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    x[..., 4:] = 1
    on, off = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    on[..., 3:5], off[..., 0:2] = 1, 1
    assert synthesis.edge_numbers(x, x, on, m)["sharpness"] == 1.0
    assert synthesis.edge_numbers(0.5 * x, x, on, m)["sharpness"] == 0.5
    assert synthesis.edge_numbers(x, x, on, m)["edges_on_map"] > 100 and synthesis.edge_numbers(x, x, off, m)["edges_on_map"] == 0


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
        of_modality = {"processor": "modality"}  # in others it is the weight of a loss
        return {f"{r.params['stage']}{r.params['settings'].get(of_modality.get(r.params['stage']), '')}": r.id
                for r in tasks.unfold(tasks.plan(*REQUEST, **changes))}

    plain, changed = ids(), ids(**{"translator.condition": "planes"})
    assert {n for n in plain if plain[n] != changed[n]} == {"translator", "synthesis"}
    assert ids(**{"synthesis.anchor": 0}).keys() == plain.keys()
    for wrong in ("translator.conditon", "pretraining.anchor"):
        with pytest.raises(BadRequest, match=wrong.split(".")[1]):
            ids(**{wrong: "planes"})


@pytest.mark.parametrize("stage", ["lesion_judge", "modality_judge", "features", "translation_judge"])
def test_a_judge_learns_and_is_found_again(chain: Path, stage: str) -> None:
    """Every judge trains to a finished run with a picture; only the translator builds on the chain."""
    run = tasks.get_run("brain", stage, PHANTOM, "mended", "smoke", 1000 if stage != "translation_judge" else 0)
    assert run.done and (run.path / "picture.png").exists()
    of_chain = {r.id for r in tasks.unfold(tasks.plan(*REQUEST))}
    assert run.id not in of_chain and (stage == "translation_judge") == bool(run.params["builds_on"])
    losses = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    name = {"features": "modality", "translation_judge": "supervised"}.get(stage, "loss")
    values = [numbers[name] for numbers in losses]
    assert sum(values[-5:]) < sum(values[:5])


def test_the_judge_of_lesions_is_another_architecture(chain: Path) -> None:
    """No module of the judge is a U-net."""
    judge = tasks.get_nets("brain", "lesion_judge", PHANTOM, "mended", "smoke", 1000)["judge"]
    names = {type(m).__name__ for m in judge.modules()}
    assert "DilatedNet" in names and "UNet" not in names


def test_the_translation_judge_resumes_to_the_same_bits(chain: Path, tmp_path: Path) -> None:
    """Its synthetic cases are drawn when first asked for, in whatever step that is."""
    def stage_at(step: int) -> object:
        run, below = tasks.plan("brain", "translation_judge", PHANTOM, "mended", "smoke", 0)
        stage = tasks.build(run, below, tasks.load_slices(PHANTOM, "smoke"))
        if step:
            load_checkpoint(tmp_path / "half.safetensors", stage.nets, stage.optimisers)
        for t in range(step, 4):
            if t == 2 and not step:
                save_checkpoint(tmp_path / "half.safetensors", t, stage.nets, stage.optimisers)
            torch.manual_seed(t)
            stage.step(t)
        return stage.nets["translator"].state_dict()

    whole, resumed = stage_at(0), stage_at(2)
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)


def test_a_misregistered_cohort_is_another_data_set() -> None:
    """T2 moves 3 px to the right, all else stays; the run's id and parameters say so."""
    slices, moved = (tasks.slices_for(PHANTOM, "smoke", c) for c in ({}, {"data.moved_px": 3}))
    assert torch.equal(moved.x[:, 1, :, 3:], slices.x[:, 1, :, :-3]) and moved.x[:, 1, :, :3].max() == 0
    assert torch.equal(moved.x[:, [0, 2, 3]], slices.x[:, [0, 2, 3]]) and moved.hash != slices.hash
    run, below = tasks.plan(*REQUEST, **{"data.moved_px": 3})
    assert run.params["data_changes"] == {"data.moved_px": 3} and run.id != tasks.plan(*REQUEST)[0].id
    assert all(r.params["data_hash"] == moved.hash for r, _ in below)
    assert "data_changes" not in tasks.plan(*REQUEST)[0].params


def test_an_unpaired_cohort_keeps_one_modality_a_patient() -> None:
    """Three training patients, four modalities: the first keeps T1 and Flair, the others T2, T1c; the held-out one all."""
    slices, lacking = (tasks.slices_for(PHANTOM, "smoke", c) for c in ({}, {"data.unpaired": True}))
    kept = {int(p): present_in(lacking)[lacking.patient == p].float().mean(0).tolist() for p in lacking.patient.unique()}
    assert kept == {0: [1, 0, 0, 1], 1: [0, 1, 0, 0], 2: [0, 0, 1, 0], 3: [1, 1, 1, 1]}
    assert torch.equal(lacking.x, slices.x * present_in(lacking)[:, :, None, None]) and lacking.hash != slices.hash
    assert torch.equal(lacking.s, slices.s) and present_in(slices).all()


def test_few_patients() -> None:
    """Two of three training patients, their labels alone, all test patients; no patients is refused."""
    slices, few = (tasks.slices_for(PHANTOM, "smoke", c) for c in ({}, {"data.patients": 2}))
    assert few.patient[~few.test].unique().tolist() == [0, 1] and few.hash != slices.hash
    assert torch.equal(few.side("test").x, slices.side("test").x)
    own = {label.numpy().tobytes() for label in few.side("train").l[:, 0]}
    assert 0 < len(few.labels) < len(slices.labels) and all(label.numpy().tobytes() in own for label in few.labels)
    with pytest.raises(BadRequest, match="1 or more"):
        tasks.check_changes({"data.patients": 0})


@pytest.mark.long
def test_remedies_for_little_data() -> None:
    """R1 adds its weight times D's slope to (13) and (20), and makes it smaller; augmented images pass gradients."""
    torch.manual_seed(0)
    x, pairs, losses = torch.rand(4, 2, 16, 16), torch.tensor([[0, 1]]), {}
    for r1 in (0.0, 2.0):
        critic = Critic(1, 8, two_heads=True, norm="none").eval()
        critic.load_state_dict(losses.setdefault("start", copy.deepcopy(critic.state_dict())))
        optimiser = torch.optim.Adam(critic.parameters(), 1e-3)
        for _ in range(30):
            terms = synthesis.critic_terms(critic, x, 1 - x, [0] * 4, r1=r1)
            losses.setdefault(r1, terms["critic"].item())
            optimiser.zero_grad()
            terms["critic"].backward()
            optimiser.step()
        real = x.flatten(0, 1)[:, None].requires_grad_()
        losses[f"slope {r1}"] = slope_penalty(critic(real)[0], real).item()
    assert losses["slope 2.0"] < losses["slope 0.0"]
    critic.load_state_dict(losses["start"])
    real = x.flatten(0, 1)[:, None].requires_grad_()
    assert losses[2.0] == pytest.approx(losses[0.0] + 2 * slope_penalty(critic(real)[0], real).item(), rel=1e-5)
    x_t, view = x[:, :1].movedim(0, 1).clone().requires_grad_(), draw_view(x, "diffaugment")
    terms = (translator.critic_terms(critic, x, pairs, x_t, view, r1=r) for r in (0.0, 2.0))
    assert len({t["critic"].item() for t in terms}) == 2 and view.shape == (4, 6)
    translator.looked_at(x_t, view).square().sum().backward()
    assert x_t.grad.abs().sum() > 0 and not torch.equal(translator.looked_at(x_t, view), x_t.flatten(0, 1)[:, None])
    with pytest.raises(ValueError, match="diffaugment"):
        draw_view(x, "mirrored")


def test_terms_that_compare_leave_out_what_is_lacking() -> None:
    """Pair (0, 1) of two slices, the second without modality 1: the supervised term is that of the first, halved."""
    torch.manual_seed(0)
    nets = {"translator": UNet(1, 1, 8, 2), "critic": Critic(1, 8, two_heads=True).eval()}
    x, pairs, view = torch.rand(2, 2, 16, 16), torch.tensor([[0, 1]]), draw_view(torch.rand(2))
    x_t = translate(nets["translator"], x, pairs)
    half, all_there = (translator_terms(nets, x, pairs, x_t, view, torch.tensor([[1.0, 1], [1, p]])) for p in (0, 1))
    first = (x_t[0, 0] - x[0, 1]).square().mean() / 2
    assert torch.allclose(half["supervised"], first) and all_there["supervised"] > half["supervised"]
    assert all(torch.equal(half[n], all_there[n]) for n in ("cycle", "adversarial", "modality")), "they compare nothing"


@pytest.mark.slow
def test_the_chain_on_an_unpaired_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage trains, and what was lacking is painted; a judge by the supervised term alone is refused real pairs."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path))
    nets = tasks.get_nets(*REQUEST, **{"data.unpaired": True})
    assert "generator" in nets
    with pytest.raises(BadRequest, match="every modality"):
        tasks.get_run("brain", "translation_judge", *REQUEST[2:], trained_on="real", **{"data.unpaired": True})


def test_a_plan_is_read_back_from_the_ids_on_disk(chain: Path) -> None:
    """`plan_of` finds the same tree that the request gave."""
    run, below = tasks.plan(*REQUEST)
    again = tasks.plan_of(run)
    assert [r.id for r in tasks.unfold(again)] == [r.id for r in tasks.unfold((run, below))]


def test_a_change_of_an_unknown_stage_is_refused() -> None:
    """`--set lesions.lr=1` names no stage; it used to be ignored."""
    with pytest.raises(BadRequest, match="STAGE of"):
        tasks.plan(*REQUEST, **{"lesions.lr": 1})


def box_and_mask(gap: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A 10 x 10 ring with a gap of some px on 16 x 16, and the mask of the closed one."""
    s, m = torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)
    s[..., 3:13, 3:13], m[..., 3:13, 3:13] = 1, 0
    s[..., 4:12, 4:12] = 0
    s[..., 3, 5 : 5 + gap] = 0
    return s, m


def test_what_is_not_whole_is_drawn_again() -> None:
    """Gaps by record and try: the first try that closes is taken, later and worse ones are not; then the best is kept."""
    gaps = [[0, 5, 3], [5, 0, 5], [5, 0, 4]]  # try -> record
    asked = []

    def draw(t: int) -> dict[str, torch.Tensor]:
        asked.append(t)
        s, m = zip(*(box_and_mask(g) for g in gaps[t]), strict=True)
        return {"s": torch.cat(s), "m": torch.cat(m), "gap": torch.tensor(gaps[t])}

    found = redraw(draw, 0.0, 3)
    assert asked == [0, 1, 2] and found["gap"].tolist() == [0, 0, 3] and found["tries"].tolist() == [1, 2, 3]
    open_ring = (36 - 3) / 256  # of the 100 organ pixels the ring's own 36 - 3 are found
    assert found["mismatch"].tolist() == pytest.approx([0, 0, 100 / 256 - open_ring])
    asked.clear()
    assert redraw(draw, 1.0, 3)["gap"].tolist() == gaps[0] and asked == [0], "delta 1 accepts every map"


@pytest.fixture(scope="module")
def toy_nets() -> dict:
    """Untrained networks of the coarse-to-fine structure generator."""
    torch.manual_seed(0)
    return {"vae": DensityVAE((12, 10), 8, 32), "flow": Flow(8), "refiner": Refiner(4), "G_m": UNet(1, 1, 4, norm="none")}


@pytest.mark.long
def test_a_map_has_the_same_bytes_in_any_company(toy_nets: dict) -> None:
    """Records alone, in another order and in a long list agree to the bit; unfiltered ones are the plain drawing's."""
    delta = draw_whole_maps(toy_nets, 3, list(range(16)), 1.0)["mismatch"].median().item()
    many = draw_whole_maps(toy_nets, 3, list(range(16)), delta, 4)
    assert 1 < many["tries"].max() <= 4
    for records in ([5], [12, 3], list(range(7, 16))):
        few = draw_whole_maps(toy_nets, 3, records, delta, 4)
        assert all(torch.equal(few[n], many[n][records]) for n in many)
    plain = draw_whole_maps(toy_nets, 3, list(range(8)), 1.0)
    first = many["tries"][:8] == 1
    assert torch.equal(plain["z"][first], many["z"][:8][first]) and not torch.equal(plain["z"], many["z"][:8])
    assert torch.equal(draw_maps(toy_nets, plain["z"], normal(3, "refiner", list(range(8)), (1, 48, 40)))[0], plain["s"])


def test_delta_is_of_training_maps_with_a_closed_outline() -> None:
    """Neither a test map nor one with a lesion at the rim moves delta."""
    slices = tasks.load_slices(PHANTOM, "smoke")
    twice = {n: torch.cat([v, v]) for n, v in slices.tensors.items()}
    spoilt = twice["test"] | (F.max_pool2d((twice["l"] > 0).float(), 7, 1, 3) * twice["m"] > 0).flatten(1).any(1)
    assert (~spoilt).sum() >= 10 and (spoilt & ~twice["test"]).any()
    broken = twice | {"s": torch.where(spoilt.view(-1, 1, 1, 1), 0 * twice["s"], twice["s"])}
    whole, half = (training_delta(type(slices)(**(slices.__dict__ | {"tensors": v}))) for v in (twice, broken))
    assert whole == half > 0


@pytest.fixture(scope="module")
def toy_one_step() -> OneStep:
    """The one-step stage, untrained."""
    torch.manual_seed(0)
    return OneStep(tasks.load_slices(PHANTOM, "smoke"), 0, {}, open_fabric(), batch=2, steps=4, width=2, n_moved=0)


def test_losses_of_the_one_step_generator(toy_one_step: OneStep) -> None:
    """A G_s that draws no line at all: |s - 0|^2 and |s - 0| are both the share of lines, and nothing lies outside."""
    nets = dict(toy_one_step.nets) | {"G_s": lambda z: torch.full((len(z), 1, 48, 40), -40.0),
                                      "D_s": lambda a: (torch.ones(1), None)}
    s = torch.zeros(2, 1, 48, 40)
    s[:, :, 10:20, 10:22] = 1
    terms, f, s_g = one_step_terms(nets, s, "overall")
    assert terms["reconstruction"].item() == pytest.approx((25 + 10) * 120 / 1920), "the published weights of (7)"
    assert terms["adversarial"] < 1e-6 and f.shape == (2, 256) and s_g.max() < 1e-6
    nets["G_s"] = lambda z: torch.full((len(z), 1, 48, 40), 40.0)  # lines everywhere
    nets["G_m"] = lambda a: torch.where(torch.arange(40) < 10, 40.0, -40.0).expand(len(a), 1, 48, 40)  # a quarter is background
    terms, _, _ = one_step_terms(nets, s, "unit")
    assert terms["reconstruction"].item() == pytest.approx(35 * (1 - 120 / 1920) + 0.25), "(7)"
    assert terms["adversarial"].item() == pytest.approx(0.25), "(11) with a D_s that believes everything"


def test_d_s_does_not_stop_the_lines() -> None:
    """A D_s that is always right is logged by names that the rule of a saturated D does not read: (7) still teaches."""
    slices, fabric = tasks.load_slices(PHANTOM, "smoke"), open_fabric()
    below = structure.Density(slices, 0, {}, fabric, batch=2, width=8, latent=4, n_moved=0)
    numbers = structure.Lines(slices, 0, below.nets, fabric, batch=4, width=2, n_moved=0).step(0)
    rows = [{"step": t, **numbers, "d_s_real": 1.0, "d_s_fake": 0.0} for t in range(loop.SATURATED_STEPS)]
    assert {"d_s_real", "d_s_fake"} < set(numbers) and loop.saturated_since(rows) is None
    assert not {"d_real", "d_fake"} & set(numbers)


def test_the_mask_network_is_not_moved_by_eq_11(toy_one_step: OneStep) -> None:
    """The optimiser that descends (7), (9), (11) holds E_s and G_s alone; in one step every network learns."""
    nets, optimisers = toy_one_step.nets, toy_one_step.optimisers
    held = {id(p) for group in optimisers["made"].param_groups for p in group["params"]}
    assert held == {id(p) for n in ("E_s", "G_s") for p in nets[n].parameters()}
    before = {n: [p.clone() for p in net.parameters()] for n, net in nets.items()}
    numbers = toy_one_step.step(0)
    terms = {"reconstruction", "adversarial", "code_adversarial", "code", "D_z", "D_s", "G_m"}
    assert terms | {"d_s_real", "d_s_fake"} < set(numbers)
    assert not {"d_real", "d_fake"} & set(numbers), "a D_s that is always right would stop the run, though (7) still teaches"
    assert all(any(not torch.equal(a, b) for a, b in zip(before[n], net.parameters(), strict=True)) for n, net in nets.items())
    with pytest.raises(ValueError, match="overall or unit"):
        OneStep(toy_one_step.data, 0, {}, open_fabric(), kl="none")


def test_one_step_maps_are_left_as_they_come() -> None:
    """As printed: a line outside the mask stays, and a hole in it too; the two-step generator mends both."""
    ring = torch.full((1, 1, 16, 16), -40.0)
    ring[..., 4:12, 4:12], ring[..., 7:9, 7:9] = 40.0, -40.0  # organ where -40 of a mask would be: a hole in the middle
    G_s = torch.nn.Module()
    G_s.threshold, G_s.size, G_s.forward = torch.tensor(0.5), (16, 16), lambda z: torch.full((1, 1, 16, 16), 40.0)
    s, m = draw_maps({"G_s": G_s, "G_m": lambda s: -ring}, torch.zeros(1, 4))
    assert s.all() and m[0, 0, 0, 0] == 1 and m[0, 0, 5, 5] == 0 and m[0, 0, 7, 7] == 1


def test_losses_of_codes_of_cells() -> None:
    """A G_s that is unsure everywhere: ln 2 nats a pixel; codes of N(0, 1) under a prior of mean 1: half a nat a number."""
    prior = lambda f: (torch.ones_like(f), torch.zeros_like(f))  # noqa: E731
    nets = {"E_s": lambda s: (torch.zeros(2, 3, 6, 5), torch.zeros(2, 3, 6, 5)),
            "G_s": SimpleNamespace(decode=lambda f: torch.zeros(2, 1, 48, 40), prior=prior)}
    terms, logits = cell_terms(nets, torch.ones(2, 1, 48, 40))
    assert terms["fit"].item() == pytest.approx(48 * 40 * math.log(2)) and not logits.any()
    assert terms["kl"].item() == pytest.approx(0.5 * 3 * 6 * 5) and 0 < terms["code"] < 0.2


@pytest.mark.long
def test_codes_of_cells_learn_maps_and_draw_them() -> None:
    """In thirty steps the fit falls by a fifth, every network learns, and maps drawn are mended; z alone decides them."""
    slices = tasks.load_slices(PHANTOM, "smoke")
    torch.manual_seed(0)
    stage = Cells(slices, 0, {}, open_fabric(), batch=4, steps=30, channels=2, width=8, n_moved=0)
    before = {n: [p.clone() for p in net.parameters()] for n, net in stage.nets.items()}
    numbers = [stage.step(t) for t in range(30)]
    assert numbers[-1]["fit"] < 0.8 * numbers[0]["fit"] and {"kl", "code", "threshold", "mask"} <= set(numbers[0])
    for name, old in before.items():
        assert any(not torch.equal(a, b) for a, b in zip(old, stage.nets[name].parameters(), strict=True))
    z = torch.randn(8, stage.nets["G_s"].latent)
    (s, m), (again, _) = (draw_maps(stage.nets, z) for _ in range(2))
    assert torch.equal(s, again) and s.shape == (8, 1, 48, 40) and not (s * m).any() and 0 < s.mean() < 0.9
    with torch.no_grad():
        assert torch.allclose(stage.nets["G_s"](z[2:3]), stage.nets["G_s"](z)[2:3], atol=1e-4)
    stage.nets["G_s"].aperture.fill_(True)
    closed, same = draw_maps(stage.nets, z)
    ring = dilate(m, 1) * (1 - m)
    assert torch.equal(same, m) and ring.any() and torch.equal(closed, torch.maximum(s, ring))


def test_learning_rates_by_hand() -> None:
    """A cosine from lr to a tenth of it, or lr throughout."""
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    for t, decay, lr in ((0, True, 0.2), (50, True, 0.11), (100, True, 0.02), (0, False, 0.2), (100, False, 0.2)):
        loop.set_lr(optimiser, 0.2, t, 100, decay)
        assert optimiser.param_groups[0]["lr"] == pytest.approx(lr)


def test_recipe_thesis_keeps_none_of_our_habits() -> None:
    """No moved images or maps, constant rates, every pair, D as fast as G; the class term may be a cross-entropy (D9)."""
    thesis = {s: tasks.stage_settings(s, "thesis", "smoke", {}) for s in ("one_step", "processor", "translator", "pretraining",
                                                                         "synthesis")}
    assert thesis["one_step"]["n_moved"] == 0 and not thesis["processor"]["jittered"]
    assert not any(thesis[s]["lr_decay"] for s in ("one_step", "processor", "translator", "pretraining"))
    assert all(thesis[s]["n_pairs"] >= 12 and thesis[s]["critic_lr_ratio"] == 1 for s in ("translator", "synthesis"))
    slices = tasks.load_slices(PHANTOM, "smoke", "thesis")
    stage = translator.Translator(slices, 0, {}, open_fabric(), width=4, class_loss="cross-entropy")
    assert stage.nets["critic"].modality.out_channels == 4
    assert all(abs(v) < float("inf") for v in stage.step(0).values())
    raw = processors.Processor(slices, 0, {}, open_fabric(), width=4, loss="planes", output="sigmoid", jittered=False)
    b = batch_of(raw.data, 4, 0, "processor0", 0)
    with torch.no_grad():
        read = raw.nets["processor"](b["x"][:, :1]).sigmoid()
        error = (read - one_hot(b["l"], 5)).square().mean((0, 2, 3))
    by_hand = float((error * torch.tensor(PLANE_WEIGHTS)).mean())
    assert raw.step(0)["loss"] == pytest.approx(by_hand, rel=1e-5), "images as they are, planes by sigmoid"


def test_either_structure_generator_draws_for_synthesis(toy_one_step: OneStep) -> None:
    """By name: the plan builds on the one-step run, and its networks draw whole maps as the two-step ones do."""
    for one in ("cells", "one_step"):
        run, below = tasks.plan(*REQUEST, structure=one)
        stages = [r.params["stage"] for r, _ in below]
        assert stages[:2] == [one, "processor"] and not {"density", "lines"} & set(stages)
        assert run.id != tasks.plan(*REQUEST)[0].id
    others = [{"processor": torch.nn.Identity()}, {"translator": torch.nn.Identity()}, {"generator": torch.nn.Identity()}]
    maps = tasks.networks_for("synthesis", [dict(toy_one_step.nets), *others])["maps"]
    assert set(maps) == {"G_s", "G_m"}
    drawn = draw_whole_maps(maps, 0, [3, 1], 0.0, 2)
    assert drawn["s"].shape == drawn["m"].shape == (2, 1, 48, 40) and drawn["z"].shape == (2, 256)
    assert drawn["tries"].tolist() == [2, 2] or (drawn["mismatch"] == 0).any()
