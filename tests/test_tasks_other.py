"""The four tasks beside the brain: the same chain, other labels; each trains, draws, and says what it refuses."""
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medsynth.cli import main
from medsynth.core.paths import BadRequest
from medsynth.data.batches import parse_data
from medsynth.evaluation.request import task_asked
from medsynth.losses.reconstruction import pretraining_loss
from medsynth.nets.unet import UNet
from medsynth.structure import extraction, mask
from medsynth.structure.slices import Slices
from medsynth.synthesis import dataset, pipeline, stream
from medsynth.training import classifier, painting, profiles, tasks
from medsynth.training.engine import open_fabric

OTHERS = tuple(t for t in profiles.TASKS if t != "brain")
CHANNELS = {"fundus": 3, "lung_ct": 1, "chest_xray": 1, "low_dose_ct": 3}
pytestmark = pytest.mark.long


def slices_of(task: str) -> Slices:
    """The phantom of a task at smoke."""
    return tasks.load_slices(parse_data("phantom", task), "smoke")


@pytest.mark.parametrize("task", OTHERS)
def test_slices_are_split_by_patient(task: str) -> None:
    """No patient is on both sides; maps and masks fit; the label set holds training labels alone (D12, D35)."""
    s = slices_of(task)
    train, test = s.side("train"), s.side("test")
    assert not set(train.patient.tolist()) & set(test.patient.tolist()) and len(test.x) and len(train.x)
    assert s.x.shape[1:] == (CHANNELS[task], 48, 48) and s.channels == CHANNELS[task] and not s.real
    assert 0 <= s.x.min() and s.x.max() <= 1 and (s.s * s.m).sum() == 0 and s.s.sum() > 0
    assert torch.equal(s.labels, extraction.label_set(train.l, s.label_kind)), "of training patients, all of them"
    assert s.n_classes == {"none": 1, "class": 3, "boxes": 2}[s.label_kind]


def test_the_maps_of_sick_children_are_not_learnt_from() -> None:
    """D34: the VAE sees NORMAL alone; G and D see every class."""
    s = slices_of("chest_xray")
    assert set(extraction.class_of(s.side("maps").l).tolist()) == {0}
    assert set(extraction.class_of(s.side("train").l).tolist()) == {0, 1, 2}
    assert len(s.side("maps").x) < len(s.side("train").x) and len(slices_of("fundus").side("maps").x) == 4


def test_windows_hold_boxes_that_can_be_found() -> None:
    """Every window holds a box; none is under LEAST_BOX_PX unless the window cuts it."""
    s = slices_of("low_dose_ct")
    for plane in s.l[:, 0].numpy():
        rows, columns = np.nonzero(plane)
        assert len(rows) and max(np.ptp(rows), np.ptp(columns)) + 1 >= extraction.LEAST_BOX_PX


def test_a_window_keeps_its_box_in_its_middle_half() -> None:
    """By hand: a box at (100, 60) of a 200 x 200 slice; window of 40; at the border the window stays inside."""
    box, g = np.array([0, 95, 55, 105, 65, 1]), torch.Generator().manual_seed(0)
    for _ in range(20):
        top, left = extraction.window_at(box, (200, 200), (40, 40), g)
        assert 10 <= 100 - top <= 30 and 10 <= 60 - left <= 30
    assert extraction.window_at(np.array([0, 0, 0, 4, 4, 1]), (200, 200), (40, 40), g) == (0, 0)
    whole = {"x": torch.arange(64.0).view(1, 1, 8, 8), "label": torch.zeros(1, 1, 8, 8)}
    cut = extraction.windowed(whole, np.array([[0, 2, 2, 4, 4, 1]]), (4, 4), "p")
    assert cut["x"].shape == (1, 1, 4, 4) and (cut["x"][0, 0, 1] - cut["x"][0, 0, 0] == 8).all()


def test_dark_inside() -> None:
    """A body with a lung and a nodule in it: the lung with its nodule is the organ, the outside and the body are not."""
    m = torch.ones(1, 1, 20, 20)
    m[..., 2:18, 2:18] = 0  # the body
    m[..., 6:14, 6:14] = 1  # a lung
    m[..., 9:11, 9:11] = 0  # a nodule
    organ = 1 - mask.dark_inside(m, rim_px=0)
    assert organ.sum() == 64 and organ[..., 6:14, 6:14].all()
    assert (1 - mask.dark_inside(m, rim_px=1)).sum() == 100


@pytest.mark.parametrize("task", OTHERS)
def test_a_chain_trains_and_draws_the_same_bits(task: str, tmp_path: Path) -> None:
    """A case has the task's channels and a label of its kind; asked for again, or alone, it is the same."""
    painter = pipeline.open_painter(task, parse_data("phantom", task), "mended", "smoke", 0, 1)
    every, some = pipeline.synthesise_all(painter, 0, 4), dict(pipeline.synthesise(painter, 0, [3]))
    assert all(torch.equal(some[3][n].nan_to_num(), every[n][3].nan_to_num()) for n in every)
    assert every["x"].shape == (4, CHANNELS[task], 48, 48) and not torch.equal(every["x"][0], every["x"][1])
    kind, label, m = painter.label_kind, every["label"], every["m"]
    assert (label * m).sum() == 0 and (kind != "none" or label.sum() == 0) and (kind != "boxes" or label.sum() > 0)
    if kind == "class":
        assert all(set(one[inside].tolist()) == {int(one.max())} for one, inside in zip(label, m == 0, strict=True))
        assert every["s"].sum() > 0, "a class removes no lines"
    assert every["dice"].isnan().all() == (kind in ("none", "boxes"))
    for files in dataset.FORMATS:
        stream.write_dataset(painter, 0, 2, tmp_path / files, files=files)
        case = dataset.load_case(dataset.case_paths(tmp_path / files)[1])
        assert np.allclose(case["images"], every["x"][1].numpy(), atol=1e-5)
    assert main(["synthesise", task, "--n", "2", "--out", str(tmp_path / "npz"), "--whole-tries", "1"]) == 0, "as it was"


def test_the_class_reaches_the_image() -> None:
    """D20: three classes of one map that differ in brightness; conditional norms and planes times (1 - m) tell them apart."""
    m = torch.ones(3, 1, 24, 24)
    m[..., 4:20, 4:20] = 0
    level = torch.tensor([0.3, 0.5, 0.7]).view(-1, 1, 1, 1)
    label, s, organ = torch.arange(3).view(-1, 1, 1, 1) * (1 - m), torch.zeros_like(m), 1 - m
    torch.manual_seed(0)
    net = UNet(3, 1, 8, 3)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(120):
        x_g = painting.paint(net, s, m, label, painting.noise_like(s), 3, 1, by_class=True)
        loss = pretraining_loss(x_g, level * organ, organ)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        x_g = painting.paint(net, s, m, label, painting.noise_like(s), 3, 1, by_class=True)
        blind = painting.paint(net, s, m, label, painting.noise_like(s), 3, 1, label_input=False, by_class=True)
    found, unseen = ((v * organ).sum((1, 2, 3)) / organ.sum((1, 2, 3)) for v in (x_g, blind))
    assert torch.allclose(found, level.flatten(), atol=0.05), found
    assert unseen.max() - unseen.min() < 0.05, "without the label nothing tells them apart"


def test_the_tone_reaches_the_image() -> None:
    """Photographs of one map, each of its own colour: a G that is told the tone paints them, and without it their mean."""
    organ = torch.zeros(8, 1, 24, 24)
    organ[..., 4:20, 4:20] = 1
    torch.manual_seed(0)
    colours = 0.3 + 0.4 * torch.rand(8, 3)
    x, s, m, none = colours[:, :, None, None] * organ, torch.zeros_like(organ), 1 - organ, torch.zeros_like(organ)
    eyes = Slices("by hand", False, ("RGB",), 1, "", (), {}, {"x": x, "m": m}, "none")
    codes, far = painting.tone_codes(eyes)(x, m), []
    alone = Slices("by hand", False, ("RGB",), 1, "", (), {}, {"x": x[:1], "m": m[:1]}, "none")
    assert torch.equal(painting.tone_codes(alone)(x[:1], m[:1]), torch.zeros(1, 3)), "one photograph has no spread"
    for toned in (True, False):
        torch.manual_seed(0)
        net, tone = painting.generator_net(eyes, 8, toned=toned), codes if toned else None
        optimiser = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(150):
            loss = pretraining_loss(painting.paint(net, s, m, none, painting.noise_like(s), 1, 1, tone=tone), x, organ)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        far.append((painting.mean_colours(painting.paint(net, s, m, none, painting.noise_like(s), 1, 1, tone=tone), m)
                    - colours).abs().mean().item())
    assert far[0] < 0.03 < 0.07 < far[1], far


def test_only_a_g_that_takes_a_tone_draws_one() -> None:
    """Eyes' G takes three numbers, in the print's recipe none, and the brain's draws nothing more than it did."""
    slices = {name: SimpleNamespace(n_classes=n, channels=c, label_kind="none", modalities=("a",))
              for name, n, c in (("fundus", 1, 3), ("lung_ct", 1, 1))}
    told = {recipe: tasks.stage_settings("pretraining", recipe, "smoke", {}, "fundus").get("toned", False)
            for recipe in ("mended", "thesis")}
    assert told == {"mended": True, "thesis": False}
    s, before = torch.zeros(2, 1, 8, 8), torch.get_rng_state()
    assert painting.tone_like(painting.generator_net(slices["lung_ct"], 4), s, 1) is None
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    painting.generator_net(slices["lung_ct"], 4)
    assert torch.equal(torch.get_rng_state(), after)
    assert painting.tone_like(painting.generator_net(slices["fundus"], 4, toned=True), s, 1).shape == (2, 3)


def test_class_weights_by_hand() -> None:
    """Three of class 1, one of class 0: each class has a say of one half; a class that nobody has, none."""
    assert classifier.class_weights(torch.tensor([1, 0, 1, 1]), 3).tolist() == pytest.approx([2, 2 / 3, 0])


def test_a_classifier_learns_the_same_bits() -> None:
    """Two trainings of one seed are equal; the judge is another network."""
    s, losses = slices_of("chest_xray"), []
    for net in ("vgg11", "vgg11", "residual"):
        torch.manual_seed(0)
        stage = classifier.Classifier(s, 0, {}, open_fabric(), net, batch=2, steps=2)
        torch.manual_seed(1)
        losses.append([stage.step(t)["loss"] for t in range(2)])
    assert losses[0] == losses[1] != losses[2]


REFUSED = {
    "no such task": (["train", "heart"], "heart"),
    "data of another task": (["train", "fundus", "--data", "phantom", "--set", "data.moved_px=2"], "two modalities"),
    "a stage for other labels": (["train", "fundus", "processor"], "its label"),
    "a classifier without classes": (["train", "lung_ct", "classifier"], "its label"),
    "a translator of one modality": (["train", "chest_xray", "translator"], "its label"),
    "a label where there is none": (["synthesise", "fundus", "--n", "1", "--out", "x", "--label", "l.png"], "--label"),
    "a class where there is none": (["synthesise", "fundus", "--n", "1", "--out", "x", "--set", "synthesis.net=1"], "net"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_requests_end_with_2_and_one_paragraph(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One paragraph on stderr, no traceback."""
    words, said = REFUSED[name]
    assert main([*words]) == 2
    text = capsys.readouterr().err.strip()
    assert said in text and "Traceback" not in text and len(text.splitlines()) == 1


def test_data_is_opened_for_its_task() -> None:
    """The brain's phantom is no fundus."""
    with pytest.raises(BadRequest, match="opened for fundus"):
        tasks.plan("fundus", "synthesis", parse_data("phantom"), "mended", "smoke", 0)


@pytest.mark.parametrize("words", [{"task": "fundus"}, {"target": "fundus"}, {"target": "made"}, {}])
def test_the_task_is_that_of_what_is_judged(words: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named, or read from the data set that is judged; the brain where nothing says."""
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "dataset.json").write_text('{"task": "fundus"}')
    monkeypatch.chdir(tmp_path)
    assert task_asked(Namespace(data="phantom", **words)) == ("fundus" if words else "brain")
    assert task_asked(Namespace(data="phantom", target="nothing")) == "brain"


def test_two_sets_train_one_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """DRIVE and FIRE as one, as the thesis has it, from the command line: FIRE's eyes train, phantoms in files are called so."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path / "home"))
    assert main(["data", "phantom", "drive_fire", str(tmp_path / "eyes"), "--patients", "4"]) == 0
    data = f"drive_fire={tmp_path / 'eyes'}"
    assert main(["quality", "fundus", "--data", data, "--profile", "smoke", "--no-controls"]) == 0
    said = capsys.readouterr().out
    assert "vessels on the map's lines" in said and "\nPHANTOM, profile smoke" in said
    slices = tasks.load_slices(parse_data(data, "fundus"), "smoke")
    assert (len(slices.side("train").x), len(slices.side("test").x)) == (10, 2), "two photographs of DRIVE and eight of FIRE"
