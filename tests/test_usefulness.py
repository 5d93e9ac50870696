"""What synthetic images add (Tables 6 to 8): training sets, readers, paired differences, and what is refused."""
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medsynth.core.paths import BadRequest
from medsynth.core.runs import open_run
from medsynth.data.batches import DataRef
from medsynth.evaluation import usefulness
from medsynth.evaluation.catalogue import Request
from medsynth.structure.slices import Slices
from medsynth.synthesis import mixture
from medsynth.training.engine import open_fabric
from medsynth.training.tasks import STAGE_SETTINGS, finish, load_slices

N_TRAIN, N_TEST = 12, 6
FILMS = DataRef("phantom", None, "chest_xray")


def planted(kind: str) -> Slices:
    """Grey images of 12 training and 6 test patients; of class 1, or with a dark vessel, where a bar crosses them."""
    g, n = torch.Generator().manual_seed(0), N_TRAIN + N_TEST
    x, bar = 0.6 + 0.05 * torch.randn(n, 1, 48, 48, generator=g), torch.zeros(n, 1, 48, 48)
    there = torch.arange(n) % 2 == 1 if kind == "class" else torch.ones(n, dtype=torch.bool)
    for i in there.nonzero()[:, 0].tolist():
        top, height = 14 + i // 2, 10 if kind == "class" else 4
        bar[i, :, top : top + height, 4:44] = 1
    x = (x - 0.4 * bar).clamp(0, 1)
    tensors = {"x": x, "l": there.view(-1, 1, 1, 1) * torch.ones_like(bar), "s": bar, "m": torch.zeros_like(bar),
               "patient": torch.arange(n), "test": torch.arange(n) >= N_TRAIN}
    if kind == "none":
        tensors |= {"x": x.repeat(1, 3, 1, 1), "truth": bar.to(torch.uint8)}
    tensors["l"] = tensors["l"].to(torch.uint8)
    return Slices("planted", False, ("X",), 2, "", (), {}, tensors, kind)


def wrong(label: torch.Tensor) -> torch.Tensor:
    """Say the opposite of a label of 0 and 1."""
    return 1 - label


def trained(
    stage: type, slices: Slices, trained_on: str, monkeypatch: pytest.MonkeyPatch, n_copies: int = 4, right: bool = True
) -> torch.nn.Module:
    """Train a reader; its synthetic images are copies of the real training ones, labelled rightly or wrongly."""
    real = mixture.readable(slices.side("train"))
    copies = {"x": real.x.repeat(n_copies, 1, 1, 1), "l": (real.l if right else wrong(real.l)).repeat(n_copies, 1, 1, 1)}
    monkeypatch.setattr(mixture, "synthetic_set", lambda chain, slices, n: copies)
    torch.manual_seed(0)
    steps = 50 if stage is mixture.ClassReader else 30
    made = stage(slices, 0, {}, open_fabric(), trained_on=trained_on, chain="planted", n_synthetic=len(copies["x"]), width=8,
                 steps=steps)
    for t in range(steps):
        torch.manual_seed(t)
        made.step(t)
    return made.nets["processor"].eval()


@pytest.mark.long
@pytest.mark.parametrize(("kind", "name"), [("class", "accuracy"), ("none", "auc")])
def test_right_copies_do_no_harm_and_wrong_ones_do(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of real images with their labels leave a reader as good; with the opposite labels, four to one, they spoil it."""
    slices, stage = planted(kind), {"class": mixture.ClassReader, "none": mixture.VesselReader}[kind]
    test = mixture.readable(slices.side("test"))
    nets = {row: trained(stage, slices, row, monkeypatch) for row in ("real", "both")}
    nets |= {"wrong": trained(stage, slices, "both", monkeypatch, right=False)}
    numbers = {row: usefulness.NUMBERS[kind]([net], test) for row, net in nets.items()}
    value = {row: usefulness.estimate_of(of[name]).value for row, of in numbers.items()}
    assert value["real"] > 0.9 and value["both"] > 0.9, value
    assert value["wrong"] < 0.6, value
    gains = usefulness.gains_of({"real": numbers["real"], "both": numbers["wrong"], "synthetic": numbers["both"]})
    assert gains["both"][name].apart and gains["both"][name].value < 0


@pytest.mark.parametrize("trained_on", mixture.TRAINED_ON)
@pytest.mark.parametrize("kind", ["class", "none"])
def test_no_test_patient_is_learnt_from(kind: str, trained_on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training sets hold training patients and patient -1; no image of theirs is a test image (D35)."""
    slices = planted(kind)
    made = {"x": 0.1 + torch.zeros(3, 1, 48, 48), "l": torch.ones(3, 1, 48, 48, dtype=torch.uint8)}
    monkeypatch.setattr(mixture, "synthetic_set", lambda chain, slices, n: made)
    data, test = mixture.learnt_from(slices, trained_on, "a chain", 3), mixture.readable(slices.side("test"))
    assert not set(data.patient.tolist()) & set(test.patient.tolist()) and not data.test.any() and len(test.x) == N_TEST
    assert not any(torch.equal(a, b) for a in data.x for b in test.x)
    n_real, n_made = int((data.patient >= 0).sum()), int((data.patient == -1).sum())
    assert (n_real, n_made) == {"real": (N_TRAIN, 0), "both": (N_TRAIN, 3), "synthetic": (0, 3)}[trained_on]
    assert data.l.dtype == torch.uint8 and data.n_classes == 2


def test_a_reader_of_real_images_draws_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of a chain are asked for by its run and in the number given, and only where they are learnt from."""
    asked = []
    made = {"x": torch.zeros(1, 1, 48, 48), "l": torch.zeros(1, 1, 48, 48, dtype=torch.uint8)}
    monkeypatch.setattr(mixture, "synthetic_set", lambda chain, slices, n: asked.append((chain, n)) or made)
    mixture.learnt_from(planted("class"), "real", "run", 7)
    mixture.learnt_from(planted("class"), "both", "run", 7)
    assert asked == [("run", 7)]


def test_eyes_are_read_in_green_with_the_vessels_drawn_by_hand() -> None:
    """Green is the second channel; an eye without drawn vessels is left out; without any it is refused."""
    slices = planted("none")
    slices.x[:, 1] *= 0.5
    slices.truth[0] = 0
    eyes = mixture.readable(slices)
    assert torch.equal(eyes.x[:, 0], slices.x[1:, 1]) and torch.equal(eyes.l, slices.truth[1:]) and eyes.n_classes == 2
    cases = {"x": slices.x[:2], "s": slices.s[:2], "m": slices.m[:2], "label": 0 * slices.s[:2]}
    assert mixture.as_read(cases, "none")["l"].sum() > 0, "lines are the label"
    slices.truth.zero_()
    with pytest.raises(BadRequest, match="drawn by hand"):
        mixture.readable(slices)


def test_what_cannot_be_learnt_from_is_refused() -> None:
    """An unknown kind of set, synthetic images without a chain, a task whose reader is another table's."""
    with pytest.raises(BadRequest, match="real, both, synthetic"):
        mixture.learnt_from(planted("class"), "fake", "", 0)
    with pytest.raises(BadRequest, match="the run of a chain"):
        mixture.learnt_from(planted("class"), "both", "", 0)
    with pytest.raises(BadRequest, match="table_4"):
        mixture.reader_plan("brain", DataRef("phantom", None), "mended", "smoke", 0)


@pytest.mark.long
def test_runs_are_found_again_and_steps_are_equal() -> None:
    """A reader is trained once; rows differ in what is learnt from alone; one of synthetic images names its chain."""
    words = ("chest_xray", FILMS, "mended", "smoke", 0)
    plans = {row: mixture.reader_plan(*words, row) for row in mixture.TRAINED_ON}
    run, below = plans["real"]
    finish(run, below, load_slices(FILMS, "smoke"))
    again, _ = mixture.reader_plan(*words, "real")
    assert again.done and again.id == run.id and open_run(run.id).params == run.params
    settings = {row: {k: v for k, v in r.params["settings"].items() if k not in ("trained_on", "chain", "n_synthetic")}
                for row, (r, _) in plans.items()}
    assert settings["real"] == settings["both"] == settings["synthetic"] and settings["real"]["steps"] > 0
    assert len({r.id for r, _ in plans.values()}) == 3
    for row in ("both", "synthetic"):
        r, ((chain, _),) = plans[row]
        assert r.params["builds_on"] == [chain.id] == [r.params["settings"]["chain"]] and chain.params["stage"] == "synthesis"
        assert r.params["settings"]["n_synthetic"] == mixture.SYNTHETIC["class"]["smoke"]
    assert mixture.reader_plan(*words[:-1], 1, "both")[0].params["builds_on"] != plans["both"][0].params["builds_on"]


def test_a_reader_starts_alike_whether_its_images_are_drawn_or_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes random numbers of its own: the first weights are those of the seed; the second time nothing is drawn."""
    slices, drawn = planted("class"), []
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path))

    def draw(*_: object) -> dict[str, torch.Tensor]:
        drawn.append(torch.rand(3))
        return {"x": slices.x[:2], "label": slices.l[:2].float()}

    for name, stand_in in (("synthesise_all", draw), ("painter_of", lambda *_: torch.rand(5)), ("plan_of", lambda run: (run, [])),
                           ("open_run", lambda chain: SimpleNamespace(id=chain))):
        monkeypatch.setattr(mixture, name, stand_in)
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        made = mixture.ClassReader(slices, 0, {}, open_fabric(), "both", "drawn-or-found", 2)
        weights.append(made.nets["processor"].last.weight.detach())
    assert len(drawn) == 1 and torch.equal(*weights) and len(made.data.x) == N_TRAIN + 2


def test_every_profile_says_steps_and_amounts() -> None:
    """One table of synthetic images, one of steps; `paper` has the thesis's amounts."""
    assert {k: v["paper"] for k, v in mixture.SYNTHETIC.items()} == {"none": 2000, "class": 2000, "boxes": 20000}
    assert all(stage in STAGE_SETTINGS[p] for stage in mixture.READER_OF.values() for p in STAGE_SETTINGS)


def test_a_detector_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two patients, a window each: one nodule found exactly, one missed; and no IoU where none is found."""
    label = torch.zeros(2, 1, 32, 32)
    label[0, :, 4:12, 4:12] = label[1, :, 10:20, 10:20] = 1
    slices = Slices("by hand", False, ("CT",), 2, "", (), {}, {"x": torch.zeros(2, 1, 32, 32), "l": label,
                                                              "patient": torch.tensor([3, 5])}, "boxes")
    sees = {"boxes": torch.tensor([[4.0, 4, 12, 12]]), "scores": torch.tensor([0.9]), "classes": torch.tensor([1])}
    none = {k: v[:0] for k, v in sees.items()}
    monkeypatch.setattr(usefulness, "detect", lambda net, x: net)
    first, second = usefulness.box_numbers([[sees, none]], slices), usefulness.box_numbers([[none, none]], slices)
    both = {"patients": np.array([0, 1])}
    assert first["sensitivity"].measure(0, both) == 0.5 and first["iou"].measure(0, both) == 1.0
    assert abs(first["map50"].measure(0, both) - 51 / 101) < 1e-6, "recall 0.5 of 101 levels, at precision 1"
    assert np.isnan(second["iou"].measure(0, both)) and second["map50"].measure(0, both) == 0
    gain = usefulness.gains_of({"real": second, "both": first, "synthetic": second})["both"]
    assert gain["sensitivity"].value == 0.5 and usefulness.signed(gain["iou"]) == "-"


def test_published_numbers_are_quoted_as_they_are() -> None:
    """Three texts of Table 6, four rows each; the draft's IoU and the later mAP never in one row."""
    eyes, films, boxes = (usefulness.quoted_rows(k, c) for k, c in (
        ("none", ["auc"]), ("class", ["accuracy"]), ("boxes", ["iou", "map50"])))
    assert len(eyes) == 12 and {r["auc"] for r in eyes if r["trained_on"] == "real + synthetic"} == {"0.9749"}
    assert {r["trained_on"] for r in eyes} == {"real", *("real + synthetic" + of for of in ("", " of SkrGAN", " of SkrGAN*"))}
    assert [r["accuracy"] for r in films] == ["0.804", "0.818"] * 2
    assert [(r["iou"], r["map50"]) for r in boxes] == [("0.712", ""), ("0.727", ""), *[("", "0.402"), ("", "0.41")] * 2]
    assert all("quoted" in r["source"] for r in (*eyes, *films, *boxes))


@pytest.mark.long
def test_the_claim_is_computed() -> None:
    """Higher with synthetic images: borne out; lower: contradicted; without an interval, or of a weak reader: undecided."""
    def number(*values: float) -> usefulness.Number:
        counts = {"patients": len(values)}
        return usefulness.Number(lambda s, r: float(np.array(values)[r["patients"]].mean()), counts, "patients", 1)

    request = Request(FILMS, "smoke", task="chest_xray")
    low, high, least = number(0.2, 0.4, 0.3), number(0.5, 0.7, 0.6), number(0.1, 0.1, 0.1)
    for real, both, floor, verdict in ((low, high, least, "borne out"), (high, low, least, "contradicted"),
                                       (low, high, high, "undecided"), (number(0.1), number(0.9), number(0.0), "undecided")):
        rows = {"real": real, "both": both, "synthetic": real, "untrained": floor}
        numbers = {n: {"accuracy": v} for n, v in rows.items()}
        said = usefulness.claim_said(request, numbers, usefulness.gains_of(numbers))
        assert f"({verdict})" in said and "one model seed" in said and "here 18 of them" in said
        assert ("weak readers" in said) == (floor is high)
