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
from medsynth.evaluation import pictures, quality, rows, sets, subjects
from medsynth.evaluation.catalogue import Request
from medsynth.evaluation.subjects import Subject
from medsynth.nets.readers import FeatureNet
from medsynth.structure.slices import Slices, reduced_cohort
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


def test_modalities_right_and_wrong(court: rows.Court) -> None:
    """Right images reach the goal; with two modalities swapped half of them are wrong."""
    cases = painted(20, 3)
    assert rows.modality_row(court, subject(cases)).value.value == 1
    swapped = cases | {"x": cases["x"][:, [1, 0, 2, 3]]}
    row = rows.modality_row(court, subject(swapped))
    assert row.value.value == 0.5 and row.verdict == "missed" and row.scores.max() < 0


def test_lesions_elsewhere_are_found_out(court: rows.Court) -> None:
    """Dice over Dice is 1 where labels are obeyed, and falls apart from a control that ignores them."""
    cases = painted(20, 3)
    ignoring = cases | {"label": cases["label"].roll(1, 0)}
    row = rows.lesion_row(court, subject(cases), {"no label input": subject(ignoring)})
    assert row.value.value == 1 and row.verdict == "reached" and ", apart" in row.beside and row.value.n == 4
    row = rows.lesion_row(court, subject(ignoring), {"no label input": subject(cases)})
    assert row.value.value < 0.5 and row.verdict == "missed"


def test_a_weak_judge_gives_no_verdict(court: rows.Court) -> None:
    """A judge that reads nothing on real images says so."""
    blind = rows.Court(**(court.__dict__ | {"lesion": [Threshold(2.0) for _ in range(4)]}))
    row = rows.lesion_row(blind, subject(painted(20, 3)), {})
    assert row.verdict == "judge weak" and "no judge reaches Dice 0.6" in row.note
    inside = rows.inside_row(blind, subject(painted(20, 3)), {})
    assert inside.verdict == "judge weak" and "no verdict" in inside.note


def test_a_run_of_another_profile_is_refused() -> None:
    """Cases of one size are not judged by judges of another."""
    run = Run(Path("some-run"), {"profile": "demo", "stage": "synthesis"})
    with pytest.raises(BadRequest, match="Give --profile demo"):
        subjects.slices_of_run(run, REQUEST)


def test_lesions_outside_the_organ_by_hand(court: rows.Court) -> None:
    """One of four columns of the lesion lies outside: a quarter of what is read."""
    cases = painted(8, 3)
    cases["x"][:, :, 10:14, 18:22], cases["x"][:, :, :, :18] = 1.0, 0.2
    cases["x"][:, :, :10, 18:], cases["x"][:, :, 14:, 18:] = 0.2, 0.2
    row = rows.inside_row(court, subject(cases), {})
    assert row.value.value == 0.5 and row.verdict == "missed", "two columns of four are outside (20 and 21)"
    assert rows.inside_row(court, subject(painted(8, 3)), {"no Alg. 4": subject(cases)}).verdict == "reached"


def test_a_moved_modality_is_measured(court: rows.Court) -> None:
    """T2 moved by 3 px: 3 px, and the goal is missed."""
    cohort = phantom_cohort(1, 1, 6, (96, 80))
    x = torch.from_numpy(np.stack([cohort.patients[0].images[m] for m in MODALITIES], 1))
    moved = x.clone()
    moved[:, 1] = x[:, 1].roll(3, 2)
    assert rows.shifts_of(subject({"x": x}))[0].max() < 0.5
    assert abs(np.median(rows.shifts_of(subject({"x": moved}))[0]) - 3) < 0.25


def test_planted_copies_fail() -> None:
    """New phantom patients pass; with 5% copies of training images among them they fail, and so do 5% copies of maps."""
    cohort = phantom_cohort(30, 10, 6, (96, 80))
    tensors = reduced_cohort(cohort, (48, 40), 2)
    slices = Slices("phantom", False, MODALITIES, 5, "-", (), {}, tensors)
    court = rows.Court(slices.side("train"), slices.side("test"), [], ByMean(), ByMean(), MODALITIES, {}, {})
    other = reduced_cohort(phantom_cohort(20, 1, 6, (96, 80), seed=9), (48, 40), 2)
    cases = {k: other[k].clone().float() for k in ("x", "s")}
    for key in ("x", "s"):
        honest = sets.memory_row(court, subject(cases), key)
        copied = {key: cases[key].clone()}
        copied[key][::20] = court.train.tensors[key][: len(copied[key][::20])]
        caught = sets.memory_row(court, subject(copied), key)
        assert caught.value.value >= 0.05 > 0.02 and caught.verdict == "missed"
        assert honest.value.value < caught.value.value and caught.scores.min() == 0


def test_the_yardstick_must_be_apart(court: rows.Court) -> None:
    """Cases like the real ones are nearer than noise, apart; noise judged against them is not."""
    good, noise = subject(painted(20, 3)), subject({"x": torch.rand(20, 4, 24, 24, generator=torch.Generator().manual_seed(0))})
    features = [sets.features_by_case(court, s.sets[0]["x"]) for s in (good, noise)]
    assert sets.distance_row(court, good, features[:1], noise).verdict == "reached"
    assert sets.distance_row(court, noise, features[1:], good).verdict == "missed"
    assert sets.distance_row(court, good, features[:1], None).verdict == "not run: GAN#"


def test_manifold_hits_equal_prdc() -> None:
    """The means of the per-image answers are the prdc package's numbers."""
    from medsynth.metrics.distribution import prdc
    g = torch.Generator().manual_seed(0)
    real, fake = torch.randn(60, 3, generator=g).double(), 0.5 + torch.randn(50, 3, generator=g).double()
    ours = {n: v.mean() for n, v in sets.manifold_hits(real, fake).items()}
    assert ours == pytest.approx(prdc(real, fake), abs=1e-9)


def test_one_test_patient_has_no_interval(court: rows.Court) -> None:
    """The row says n = 1."""
    keep = court.test.patient == 0
    one = Slices(**(court.test.__dict__ | {"tensors": {k: v[keep] for k, v in court.test.tensors.items()}}))
    row = rows.lesion_row(rows.Court(**(court.__dict__ | {"test": one})), subject(painted(9, 3)), {})
    assert row.value.low is None and "n = 1 patient, no interval" in row.value.text


def test_seeds_enter_the_interval(court: rows.Court) -> None:
    """Two seeds, one right and one wrong: half, between 0.5 and 1 in the draws."""
    right, wrong = painted(20, 3), painted(20, 4)
    wrong["x"] = wrong["x"][:, [1, 0, 2, 3]]
    value = rows.modality_row(court, Subject("two", MODALITIES, [right, wrong], [])).value
    assert (value.value, value.low, value.high) == (0.75, 0.5, 1.0)


def test_rows_without_what_they_need_say_so(court: rows.Court) -> None:
    """Loose images have no labels, masks or maps."""
    bare = subject({"x": painted(9, 3)["x"]})
    for row in (rows.lesion_row(court, bare, {}), rows.inside_row(court, bare, {}), sets.whole_row(court, bare),
                sets.variety_row(court, bare), sets.memory_row(court, bare, "s")):
        assert row.verdict == "not measured" and row.note.startswith("needs") and quality.plain(row)["value"] is None


def test_too_few_images_for_neighbours(court: rows.Court) -> None:
    """One case of four images: precision is not measured, and says why."""
    one = [sets.features_by_case(court, painted(1, 3)["x"])]
    assert "at least 7 images" in sets.manifold_row(court, one).note


def test_every_row_with_cases_has_a_picture(court: rows.Court) -> None:
    """Worst, median and best."""
    whole = subject(painted(12, 3))
    for row in (rows.modality_row(court, whole), rows.lesion_row(court, whole, {}), rows.inside_row(court, whole, {}),
                rows.shift_row(court, whole, {}), sets.whole_row(court, whole), sets.memory_row(court, whole, "x"),
                sets.memory_row(court, whole, "s")):
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
    with pytest.raises(BadRequest, match="a task .brain., a folder of images, or a run"):
        subjects.open_target("liver", REQUEST, 1, None, None)


def test_rows_are_plain_values() -> None:
    """JSON takes them."""
    row = rows.Row("a", "b", "c", "d", None, "not measured")
    assert json.loads(json.dumps(quality.plain(row)))["verdict"] == "not measured"
