"""Layer evaluation: rows that can fail, subjects from disk, a court made by hand (test_cli types the whole command)."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.io import imsave

from medsynth.core.paths import BadRequest
from medsynth.core.runs import Run
from medsynth.data.batches import parse_data
from medsynth.data.phantom import phantom_cohort
from medsynth.evaluation import pictures, quality, reading, rows, sets, subjects
from medsynth.evaluation.catalogue import Request, artefact_key, facts
from medsynth.evaluation.subjects import Subject
from medsynth.metrics.intervals import Estimate
from medsynth.metrics.lesion import overlap
from medsynth.nets.readers import FeatureNet
from medsynth.nets.unet import UNet
from medsynth.structure.slices import Slices
from medsynth.training.processors import read_labels
from medsynth.training.tasks import load_slices

MODALITIES = ("T1", "T2", "T1c", "Flair")


class Threshold(torch.nn.Module):
    """A lesion judge that calls class 1 whatever is brighter than a level."""

    def __init__(self, level: float = 0.8):
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(level))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return two logits per pixel."""
        return torch.cat([torch.zeros_like(x), x - self.level], 1)


class ByMean(torch.nn.Module):
    """A modality judge: images whose mean is about 0.1, 0.2, 0.3, 0.4 are modality 0, 1, 2, 3."""

    def __init__(self):
        super().__init__()
        self.means = torch.nn.Parameter(torch.tensor([0.1, 0.2, 0.3, 0.4]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a logit per modality."""
        return -100 * (x.mean((1, 2, 3))[:, None] - self.means).abs()


def painted(n: int, seed: int) -> dict[str, torch.Tensor]:
    """Paint cases on 24x24: modality i has mean about 0.1 (i + 1); a square organ, a lesion of 4x4 at 1.0 inside."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 4, 24, 24, generator=g) * 0.1
    m, label = torch.ones(n, 1, 24, 24), torch.zeros(n, 1, 24, 24)
    m[:, :, 4:20, 4:20] = 0
    for j in range(n):
        top, left = (5 + torch.randint(9, (2,), generator=g)).tolist()
        label[j, :, top : top + 4, left : left + 4] = 1
    x = torch.where(label > 0, 1.0, x)
    mean = torch.tensor([0.1, 0.2, 0.3, 0.4])
    for i in range(4):
        rest = (label == 0)[:, 0]
        lift = (mean[i] * 576 - x[:, i].sum((1, 2))) / rest.sum((1, 2))
        x[:, i] = torch.where(rest, (x[:, i] + lift[:, None, None]).clamp(0, 0.75), x[:, i])
    ring = torch.zeros(n, 1, 24, 24)
    ring[:, :, 4:20, [4, 19]], ring[:, :, [4, 19], 4:20] = 1, 1
    return {"x": x, "m": m, "label": label, "s": ring}


@pytest.fixture(scope="module")
def court() -> rows.Court:
    """Six training and four test patients of five slices each, judged by hand-made judges."""
    def side(seed: int, patients: int) -> Slices:
        c = painted(5 * patients, seed)
        tensors = {"x": c["x"], "s": c["s"], "m": c["m"], "l": c["label"], "patient": torch.arange(patients).repeat_interleave(5)}
        return Slices("made up", False, MODALITIES, 2, "-", (), {}, tensors)

    torch.manual_seed(0)
    return rows.Court(side(1, 6), side(2, 4), [Threshold() for _ in range(4)], ByMean(), FeatureNet(1, {"modality": 4}),
                      MODALITIES, {"modality": 1.0}, {})


def subject(cases: dict[str, torch.Tensor], name: str = "made up") -> Subject:
    """Make a subject of one seed."""
    return Subject(name, MODALITIES, [cases], [], 1.0)


@pytest.mark.long
def test_modalities_right_and_wrong(court: rows.Court) -> None:
    """Right images reach the goal; with two modalities swapped half of them are wrong."""
    cases = painted(20, 3)
    assert rows.modality_row(court, subject(cases)).value.value == 1
    swapped = cases | {"x": cases["x"][:, [1, 0, 2, 3]]}
    row = rows.modality_row(court, subject(swapped))
    assert row.value.value == 0.5 and row.verdict == "missed" and row.scores.max() < 0


@pytest.mark.long
def test_lesions_elsewhere_are_found_out(court: rows.Court) -> None:
    """Dice over Dice is 1 where labels are obeyed, and falls apart from a control that ignores them."""
    cases = painted(20, 3)
    ignoring = cases | {"label": cases["label"].roll(1, 0)}
    row = reading.lesion_row(court, subject(cases), {"no label input": subject(ignoring)})
    assert row.value.value == 1 and row.verdict == "reached" and ", apart" in row.beside and row.value.n == 4
    row = reading.lesion_row(court, subject(ignoring), {"no label input": subject(cases)})
    assert row.value.value < 0.5 and row.verdict == "missed"
    several = Subject("two seeds", MODALITIES, [cases, painted(20, 4)], [])
    row = reading.lesion_row(court, several, {"no label input": subject(ignoring)})
    assert row.verdict == "reached" and "apart (one model seed)" in row.beside, "ours of the control's seed is compared with it"


@pytest.mark.long
def test_a_weak_judge_gives_no_verdict(court: rows.Court) -> None:
    """A judge that reads nothing on real images says so."""
    blind = rows.Court(**(court.__dict__ | {"lesion": [Threshold(2.0) for _ in range(4)]}))
    row = reading.lesion_row(blind, subject(painted(20, 3)), {})
    assert row.verdict == "judge weak" and "no judge reaches Dice 0.6" in row.note
    inside = reading.inside_row(blind, subject(painted(20, 3)), {})
    assert inside.verdict == "not measured" and "read no lesion" in inside.note
    poor = rows.Court(**(court.__dict__ | {"lesion": [Threshold(0.0) for _ in range(4)]}))
    inside = reading.inside_row(poor, subject(painted(20, 3)), {})
    assert inside.verdict == "judge weak" and "no verdict" in inside.note


@pytest.mark.long
def test_the_other_measures_agree_with_the_library(court: rows.Court) -> None:
    """IoU, sensitivity and accuracy of pooled pixels are `overlap`'s, which are torchmetrics'."""
    cases = painted(12, 3)
    net = Threshold(0.5)
    moved = cases["label"].roll(1, 3)
    told = reading.judge_reads(net, cases["x"][:, :1], moved)
    expected = overlap(read_labels(net, cases["x"][:, :1]), moved)
    ours = {n: reading.share_of(told, np.arange(12), n) for n in ("IoU", "sensitivity", "accuracy")}
    assert ours == pytest.approx({"IoU": expected["iou"], "sensitivity": expected["sensitivity"],
                                  "accuracy": expected["accuracy"]}, abs=1e-6)
    row = reading.measures_row(court, subject(cases))
    assert row.value.value == 1 and "mAP at 0.5 1.000" in row.note and "plane MSE" in row.note


def test_a_run_of_another_profile_is_refused() -> None:
    """Cases of one size are not judged by judges of another."""
    run = Run(Path("some-run"), {"profile": "demo", "stage": "synthesis", "seed": 0})
    with pytest.raises(BadRequest, match="Give --profile demo"):
        subjects.slices_of_run(run, REQUEST)
    same = Run(Path("some-run"), {"profile": "smoke", "stage": "synthesis", "seed": 1000})
    with pytest.raises(BadRequest, match="Give another --seed"):
        subjects.slices_of_run(same, REQUEST)


def test_lesions_outside_the_organ_by_hand(court: rows.Court) -> None:
    """One of four columns of the lesion lies outside: a quarter of what is read."""
    cases = painted(8, 3)
    cases["x"][:, :, 10:14, 18:22], cases["x"][:, :, :, :18] = 1.0, 0.2
    cases["x"][:, :, :10, 18:], cases["x"][:, :, 14:, 18:] = 0.2, 0.2
    row = reading.inside_row(court, subject(cases), {})
    assert row.value.value == 0.5 and row.verdict == "missed", "two columns of four are outside (20 and 21)"
    assert reading.inside_row(court, subject(painted(8, 3)), {"no Alg. 4": subject(cases)}).verdict == "reached"
    few = painted(8, 3)
    few["x"][:3], few["label"][:3] = cases["x"][:3], cases["label"][:3]
    row = reading.inside_row(court, subject(painted(8, 3)), {"no Alg. 4": subject(few)})
    assert row.verdict in ("missed", "undecided") and "without Alg. 4 in 3 of 8" in row.note


@pytest.fixture(scope="module")
def brains() -> torch.Tensor:
    """Six slices of one phantom patient, (6, 4, 96, 80)."""
    cohort = phantom_cohort(1, 1, 6, (96, 80))
    return torch.from_numpy(np.stack([cohort.patients[0].images[m] for m in MODALITIES], 1))


def test_a_moved_modality_is_measured(court: rows.Court, brains: torch.Tensor) -> None:
    """T2 moved by 3 px: a shift of 3 px, and the goal is missed."""
    moved = brains.clone()
    moved[:, 1] = brains[:, 1].roll(3, 2)
    assert rows.shifts_of(subject({"x": brains}))[0].max() < 0.5
    row = rows.shift_row(court, subject({"x": moved}), {})
    assert abs(row.value.value - 3) < 0.25 and row.verdict == "missed"


@pytest.mark.long
def test_registration_must_help_a_misregistered_cohort(court: rows.Court, brains: torch.Tensor) -> None:
    """With L_reg 0 px and without 3 px, the goal is reached; swapped it is missed, whatever the chain itself does."""
    moved = brains.clone()
    moved[:, 1] = brains[:, 1].roll(3, 2)
    good, bad = subject({"x": brains}), subject({"x": moved})
    row = rows.shift_row(court, good, {"misregistered, L_reg": good, "misregistered, no L_reg": bad})
    assert row.verdict == "reached" and "one model seed" in row.beside
    swapped = rows.shift_row(court, good, {"misregistered, L_reg": bad, "misregistered, no L_reg": good})
    assert swapped.verdict == "missed" and "lower by -" in swapped.beside


def smooth_cohort(seed: int, patients: int) -> Slices:
    """Draw patients of five slices each: smooth random images, each patient with a shape of its own, and their level lines."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(patients, 1, 4, 6, 6, generator=g) + 0.5 * torch.randn(patients, 5, 4, 6, 6, generator=g)
    x = torch.nn.functional.interpolate(coarse.flatten(0, 1), (24, 24), mode="bicubic").sigmoid()
    s = ((x[:, :1] - 0.5).abs() < 0.05).float()
    tensors = {"x": x, "s": s, "m": 0 * s, "l": 0 * s, "patient": torch.arange(patients).repeat_interleave(5)}
    return Slices("made up", False, MODALITIES, 2, "-", (), {}, tensors)


@pytest.mark.long
def test_planted_copies_fail() -> None:
    """New patients pass; with 5% copies of training images among them they fail, and so do 5% copies of maps."""
    train, test, new = (smooth_cohort(seed, 100) for seed in (0, 1, 2))
    court = rows.Court(train, test, [], ByMean(), ByMean(), MODALITIES, {}, {})
    for key in ("x", "s"):
        honest = sets.memory_row(court, subject({key: new.tensors[key]}), key)
        assert honest.value.value <= 0.02 and honest.verdict.startswith("reached"), (key, honest.value.text)
        copied = new.tensors[key].clone()
        copied[::20] = train.tensors[key][:25]
        caught = sets.memory_row(court, subject({key: copied}), key)
        assert caught.value.value >= 0.05 and caught.verdict == "missed" and caught.scores.min() == 0


@pytest.mark.long
def test_the_yardstick_must_be_apart(court: rows.Court) -> None:
    """Cases like the real ones are nearer than noise, apart; noise judged against them is not."""
    good, noise = subject(painted(20, 3)), subject({"x": torch.rand(20, 4, 24, 24, generator=torch.Generator().manual_seed(0))})
    better = sets.distance_row(court, good, sets.one_pass(court, good, noise), noise)
    assert better.verdict == "reached" and better.value.low >= 0 and "unbiased" in better.note
    assert sets.distance_row(court, noise, sets.one_pass(court, noise, good), good).verdict == "missed"
    alone = sets.one_pass(court, good, None)
    assert sets.distance_row(court, good, alone, None).verdict == "not run: GAN#"


@pytest.mark.long
def test_every_seed_of_ours_stands_beside_the_yardstick(court: rows.Court) -> None:
    """A chain whose second seed paints noise is not nearer than GAN#, however good its first is."""
    good, noise = painted(20, 3)["x"], torch.rand(20, 4, 24, 24, generator=torch.Generator().manual_seed(0))
    both, gan = Subject("ours", MODALITIES, [{"x": good}, {"x": noise}], ["-"], 1.0), subject({"x": 0.4 * good + 0.6 * noise})
    row = sets.distance_row(court, both, sets.one_pass(court, both, gan), gan)
    assert row.verdict == "missed"


@pytest.mark.long
def test_a_yardstick_trained_shorter_gives_no_verdict(court: rows.Court) -> None:
    """GAN# with less than nine tenths of our minutes was not given the same time."""
    ours, theirs = subject(painted(20, 3)), subject({"x": torch.rand(20, 4, 24, 24)})
    hurried = Subject(**(theirs.__dict__ | {"minutes": 0.5}))
    assert sets.distance_row(court, ours, sets.one_pass(court, ours, hurried), hurried).verdict == "unequal time"


def test_manifold_shares_equal_prdc() -> None:
    """Over all images, they are the prdc package's numbers."""
    from medsynth.metrics.distribution import prdc
    g = torch.Generator().manual_seed(0)
    real, fake = torch.randn(60, 3, generator=g).double(), 0.5 + torch.randn(50, 3, generator=g).double()
    balls, every = sets.manifold_balls(real, fake), (np.arange(60), np.arange(50))
    ours = {n: sets.manifold_share(balls, n, *every) for n in ("precision", "recall", "density", "coverage")}
    assert ours == pytest.approx(prdc(real, fake), abs=1e-9)


def test_one_test_patient_has_no_interval(court: rows.Court) -> None:
    """Every row that rests on the test patient's slices says n = 1, also those over pairs and neighbours."""
    keep = court.test.patient == 0
    one = Slices(**(court.test.__dict__ | {"tensors": {k: v[keep] for k, v in court.test.tensors.items()}}))
    alone, whole = rows.Court(**(court.__dict__ | {"test": one})), subject(painted(9, 3))
    passed = sets.one_pass(alone, whole, None)
    for row in (reading.lesion_row(alone, whole, {}), sets.whole_row(alone, whole), sets.variety_row(alone, whole),
                sets.memory_row(alone, whole, "x"), sets.distance_row(alone, whole, passed, None),
                sets.manifold_row(alone, passed), sets.likeness_row(alone, whole)):
        assert row.value.low is None and "n = 1 patient, no interval" in row.value.text, row.name
        assert "[" not in row.beside, (row.name, row.beside)


def test_labels_without_a_lesion_are_not_read_back(court: rows.Court) -> None:
    """Nothing to find is not found rightly; a judge that never met a lesion is not fit."""
    cases = painted(20, 3)
    bare = subject(cases | {"label": 0 * cases["label"], "x": cases["x"].clamp(max=0.7)})
    for row in (reading.lesion_row(court, bare, {}), reading.measures_row(court, bare)):
        assert row.verdict == "not measured" and row.note == "no label holds a lesion"
    healthy = Slices(**(court.test.__dict__ | {"tensors": court.test.tensors | {"l": 0 * court.test.l}}))
    blind = rows.Court(**(court.__dict__ | {"test": healthy, "lesion": [Threshold(2.0) for _ in range(4)]}))
    assert not reading.open_reading(blind).passes


def test_copies_are_found_where_held_out_maps_equal_training_ones() -> None:
    """Blank maps on both sides put the threshold at 0; a set of copies fails all the same."""
    train, test = smooth_cohort(0, 20), smooth_cohort(1, 20)
    for side, n in ((train, 10), (test, 5)):
        side.tensors["s"][:n] = 0
    court = rows.Court(train, test, [], ByMean(), ByMean(), MODALITIES, {}, {})
    row = sets.memory_row(court, subject({"s": train.tensors["s"]}), "s")
    assert row.value.value == 1 and row.verdict == "missed"


def test_a_goal_met_by_chance_says_so() -> None:
    """The number meets the goal, the end of its interval does not."""
    value = Estimate(0.016, 0.006, 0.034, 12, "patients")
    assert rows.verdict_of(**rows.within(value, high=0.02)) == "reached; its interval crosses the goal"
    assert rows.verdict_of(**rows.within(value, high=0.01)) == "missed"
    assert rows.verdict_of(True, Estimate(-0.1, None, None, 1, "patients")) == "undecided"


def test_patients_of_few_slices_do_not_stop_the_table(court: rows.Court) -> None:
    """Test patients of five and of one slice, one modality: draws of too few images are left out."""
    keep = torch.tensor([0, 1, 2, 3, 4, 5])
    few = Slices(**(court.test.__dict__ | {"modalities": ("T1",), "tensors": {
        k: (v[keep][:, :1] if k == "x" else v[keep]) for k, v in court.test.tensors.items()}}))
    alone, ours = rows.Court(**(court.__dict__ | {"test": few})), Subject("T1", ("T1",), [{"x": painted(9, 3)["x"][:, :1]}], [])
    row = sets.distance_row(alone, ours, sets.one_pass(alone, ours, None), None)
    assert row.value.value >= 0


def test_pairs_follow_the_patients_that_are_drawn() -> None:
    """Patients 0, 0, 2 drawn: a pair of 0 and 2 counts twice, of 0 and 1 never, of 0 and 0 twice."""
    weights = sets.pair_weights(np.array([0, 0, 0]), np.array([2, 1, 0]), np.array([0, 0, 2]))
    assert weights.tolist() == [2, 0, 2]


def test_seeds_enter_the_interval(court: rows.Court) -> None:
    """Two seeds, one right and one wrong: half, between 0.5 and 1 in the draws."""
    right, wrong = painted(20, 3), painted(20, 4)
    wrong["x"] = wrong["x"][:, [1, 0, 2, 3]]
    value = rows.modality_row(court, Subject("two", MODALITIES, [right, wrong], [])).value
    assert (value.value, value.low, value.high) == (0.75, 0.5, 1.0)


def test_rows_without_what_they_need_say_so(court: rows.Court) -> None:
    """Loose images have no labels, masks or maps."""
    bare = subject({"x": painted(9, 3)["x"]})
    for row in (reading.lesion_row(court, bare, {}), reading.inside_row(court, bare, {}), sets.whole_row(court, bare),
                sets.variety_row(court, bare), sets.memory_row(court, bare, "s")):
        assert row.verdict == "not measured" and row.note.startswith("needs") and quality.plain(row)["value"] is None


def test_too_few_images_for_neighbours(court: rows.Court) -> None:
    """One case of four images: precision is not measured, and says why."""
    one = subject(painted(1, 3))
    passed = sets.one_pass(court, one, None)
    assert "at least 7 images" in sets.manifold_row(court, passed).note
    assert "at least two" in sets.variety_row(court, one).note and sets.likeness_row(court, one).value.value > 0
    assert "unbiased" not in sets.distance_row(court, one, passed, None).note


@pytest.mark.long
def test_every_row_with_cases_has_a_picture(court: rows.Court) -> None:
    """Worst, median and best."""
    whole = subject(painted(12, 3))
    passed = sets.one_pass(court, whole, None)
    translator = UNet(1, 1, 4, 4)
    for row in (rows.modality_row(court, whole), reading.lesion_row(court, whole, {}), reading.inside_row(court, whole, {}),
                reading.measures_row(court, whole), rows.shift_row(court, whole, {}),
                rows.translation_row(court, ([translator], translator)), sets.whole_row(court, whole),
                sets.variety_row(court, whole), sets.memory_row(court, whole, "x"), sets.memory_row(court, whole, "s"),
                sets.distance_row(court, whole, passed, None), sets.manifold_row(court, passed), sets.likeness_row(court, whole)):
        assert pictures.draw_row(row, court, whole, None) is not None, row.name


REQUEST = Request(parse_data("phantom"), "smoke")


def test_loose_images_are_read_by_their_declared_range(tmp_path: Path) -> None:
    """16-bit PNG and float TIFF of one modality give the same subject; float files without a range are refused."""
    slices = load_slices(REQUEST.data, "smoke")
    flair = slices.side("test").x[:6, 3].numpy()
    for kind in ("png", "tif"):
        (tmp_path / kind).mkdir()
        for i, image in enumerate(flair):
            imsave(tmp_path / kind / f"{i}.{kind}", (image * 65535).round().astype(np.uint16) if kind == "png" else image,
                   check_contrast=False)
    png = subjects.folder_subject(tmp_path / "png", slices, "Flair")
    tif = subjects.folder_subject(tmp_path / "tif", slices, "Flair", (0.0, 1.0))
    assert png.modalities == ("Flair",) and torch.allclose(png.sets[0]["x"], tif.sets[0]["x"], atol=1 / 65535)
    with pytest.raises(BadRequest, match="range"):
        subjects.folder_subject(tmp_path / "tif", slices, "Flair")
    with pytest.raises(BadRequest, match="--modality"):
        subjects.folder_subject(tmp_path / "png", slices)
    with pytest.raises(BadRequest, match="modalities of"):
        subjects.folder_subject(tmp_path / "png", slices, "PET")


def test_another_size_is_refused(tmp_path: Path) -> None:
    """Images of another shape than the real ones are not compared."""
    for i in range(3):
        imsave(tmp_path / f"{i}.png", np.random.default_rng(i).integers(0, 65535, (32, 32), np.uint16), check_contrast=False)
    with pytest.raises(BadRequest, match="32"):
        subjects.folder_subject(tmp_path, load_slices(REQUEST.data, "smoke"), "T1")


def test_a_target_that_is_nothing_says_what_there_is() -> None:
    """No task, no folder, no run."""
    with pytest.raises(BadRequest, match="a task .brain, fundus, .*., a folder of images, or a run"):
        subjects.open_target("liver", REQUEST, 1, None, None)


def test_rows_are_plain_values() -> None:
    """JSON takes them."""
    row = rows.Row("a", "b", "c", "d", None, "not measured", scores=np.zeros(3), shown=lambda cases: ([], []))
    assert json.loads(json.dumps(quality.plain(row)))["verdict"] == "not measured"


def test_a_figure_of_real_sets_is_made_anew_when_they_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fig. 8's key and provenance follow what lies under $MEDSYNTH_DATA, to the byte; no other figure's does."""
    monkeypatch.delenv("MEDSYNTH_DATA", raising=False)
    request = Request(parse_data("phantom"))

    def keys() -> tuple[str, str]:
        return artefact_key("fig_08", request), artefact_key("fig_06", request)
    without = keys()
    assert set(facts("fig_08", request, 0, True)["real_sets"].values()) == {"none"}
    assert "real_sets" not in facts("fig_06", request, 0, True)
    image = tmp_path / "DRIVE" / "test" / "images" / "01_test.tif"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"one")
    monkeypatch.setenv("MEDSYNTH_DATA", str(tmp_path))
    found = keys()
    said = facts("fig_08", request, 0, True)["real_sets"]
    assert said["brain_ms"] == "none" and len(said["drive"]) == 12
    image.write_bytes(b"two")
    changed = keys()
    assert len({without[0], found[0], changed[0]}) == 3 and without[1] == found[1] == changed[1]
    monkeypatch.delenv("MEDSYNTH_DATA")
    assert keys() == without
