"""The ablation and Table 3's crops: what each row changes, orders and verdicts by hand, what the texts report."""
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from medsynth.core.paths import BadRequest
from medsynth.data.batches import DataRef, parse_data
from medsynth.evaluation import ablation, crops, protocols
from medsynth.evaluation.ablation_tables import number_rows, shown_record, step_gaps, step_rows
from medsynth.evaluation.catalogue import Request, n_seeds_of, plans_of, reproduce_plan
from medsynth.evaluation.protocols import Number, estimate_of, gap_of
from medsynth.evaluation.reading import Reading
from medsynth.evaluation.rows import Court
from medsynth.evaluation.subjects import Subject
from medsynth.metrics.images import ms_ssim, pairs_between
from medsynth.metrics.intervals import Estimate
from medsynth.structure.slices import Slices
from medsynth.training.tasks import unfold

REQUEST = Request(parse_data("phantom"), "smoke")
MODALITIES = ("T1", "T2")


def number(values: list[list[float]], unit: str = "cases") -> Number:
    """The mean of cases, a list a model seed."""
    rows = [np.array(v, float) for v in values]
    return Number(lambda s, r: float(rows[s][r[unit]].mean()), {unit: len(rows[0])}, unit, len(rows))


def test_rows_are_those_of_icann() -> None:
    """Each row differs from the one before in what it adds, by the arguments of chapter 54 (D13)."""
    rows = {row: {"synthesis.source": "fused", "synthesis.label_filter": True} | c for row, c in ablation.ABLATION.items()}
    def turned(step: str) -> dict:
        early, late = (rows[row] for row in step)
        return {n.removeprefix("synthesis."): late.get(n, "default") for n in early | late if early.get(n) != late.get(n)}
    assert {s: turned(s) for s in ("AB", "BC", "CD", "DE", "EF")} == {
        "AB": {"source": "map"}, "BC": {"source": "fused"}, "CD": {"registration": "default"},
        "DE": {"label_input": "default", "lesion": "default", "contrast": "default"}, "EF": {"label_filter": True}}
    assert rows["A"]["synthesis.source"] == "noise" and all(c["synthesis.anchor"] == 0 for c in rows.values())
    unlabelled = {row for row, c in rows.items() if c.get("synthesis.contrast") == c.get("synthesis.lesion") == 0}
    assert unlabelled == {row for row, c in rows.items() if c.get("synthesis.label_input") is False} == set("ABCD")
    assert {s: ablation.added(s) for s in ("AB", "BC", "CD", "DE", "EF", "AC", "DF")} == {
        "AB": "structure map", "BC": "noise", "CD": "L_reg", "DE": "label and L_les", "EF": "label filter",
        "AC": "structure map, noise", "DF": "label and L_les, label filter"}


def test_the_draft_is_told_apart() -> None:
    """Its B has L_les and an unfiltered label, its C to E filtered labels and no L_les; F is everything in both."""
    assert ablation.draft_says("A") == "A: none" and ablation.draft_says("E") == "B: structure map, label and L_les"
    assert ablation.draft_says("D") == "E: structure map, noise, L_reg, label filter"
    assert ablation.draft_says("F") == f"F: {', '.join(ablation.SWITCHES)}"


def test_profiles_train_what_the_budget_has() -> None:
    """Demo: 150 steps, three seeds of A, C, D, F; smoke: A, C, F; one seed of real data at demo and of recipe thesis."""
    demo, smoke, gpu = (ablation.ablation_at(p, 3) for p in ("demo", "smoke", "gpu"))
    assert {row: n for row, (_, n) in demo.items()} == {"A": 3, "B": 1, "C": 3, "D": 3, "E": 1, "F": 3}
    assert all(c["synthesis.steps"] == 150 for c, _ in demo.values()) and list(smoke) == ["A", "C", "F"]
    assert not any("synthesis.steps" in c for c, _ in [*smoke.values(), *gpu.values()])
    asked = ("smoke", "mended"), ("demo", "mended"), ("demo", "thesis"), ("gpu", "mended")
    assert [n_seeds_of(Request(parse_data("phantom"), *words)) for words in asked] == [1, 3, 1, 3]
    assert n_seeds_of(Request(DataRef("brain_ms", Path("there")), "demo")) == 1


@pytest.mark.long
def test_rows_share_what_comes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows build on the same runs of their seed; only the adversarial stage is another."""
    monkeypatch.setattr("medsynth.evaluation.catalogue.n_seeds_of", lambda request: 2)
    chains = [p for p in plans_of("table_1", REQUEST) if p[0].params["stage"] == "synthesis"]
    assert [run.params["seed"] for run, _ in chains] == [0, 1, 0, 1, 0, 1] and len({run.id for run, _ in chains}) == 6
    below = [{r.id for r in unfold(p)} - {p[0].id} for p in chains]
    assert below[0] == below[2] == below[4] and below[1] == below[3] == below[5] and not below[0] & below[1]
    assert [run.params["settings"]["source"] for run, _ in chains[:2]] == ["noise"] * 2
    alone = [p[0].id for p in plans_of("fig_12", REQUEST)]
    assert alone == [run.id for run, _ in chains[::2]], "the picture needs one seed, and no judge"
    of_brain = [p for p in plans_of("table_3", REQUEST) if p[0].params["task"] == "brain"]
    assert len(of_brain) == 2 + len(plans_of("table_1", REQUEST)) - 6
    assert {"run", "steps", "state", "minutes"} == set(reproduce_plan(["table_1"], REQUEST)[0])


def test_published_numbers_are_read() -> None:
    """ICANN's six MS-SSIM; Table 3 of three texts; a table that is not there is refused."""
    assert ablation.icann_ms_ssim() == {"A": 0.504, "B": 0.654, "C": 0.671, "D": 0.674, "E": 0.673, "F": 0.686}
    rows = {(r["source"].split(" ")[0], r["looked_at"]): (r["ms_ssim"], r["fid"]) for r in crops.quoted_crop_rows()}
    assert len(rows) == 12 and rows["thesis-2020-05", "whole image"] == ("0.727", "22.27")
    assert rows["icann-2020", crops.QUOTED_ROWS["ours_plus"]] == ("0.692", "20.15")
    assert all("quoted" in r["source"] and r["distance"] == "" for r in crops.quoted_crop_rows()), "FID is no distance of ours"
    with pytest.raises(BadRequest, match="one of .*ablation"):
        ablation.published("table9")


def test_orders_by_hand() -> None:
    """Fifteen pairs: a swap costs one, a tie agrees with nothing; lower may be better; of fewer rows, their pairs."""
    quoted = ablation.icann_ms_ssim()
    verdict = partial(ablation.order_verdict, theirs=quoted)
    assert verdict(quoted) == "F > D > E > C > B > A: the same order, 15 of 15 pairs alike"
    swapped = quoted | {"D": 0.6735, "E": 0.6745}
    assert verdict(swapped) == "F > E > D > C > B > A: another order, 14 of 15 pairs alike"
    assert verdict(quoted | {"D": 0.673}) == "F > D = E > C > B > A: another order, 14 of 15 pairs alike"
    assert verdict({row: -v for row, v in quoted.items()}, better="lower").startswith("F > D > E > C > B > A: the same order")
    assert verdict({"A": 0.4, "C": 0.6, "F": 0.5}) == "C > F > A: another order, 2 of 3 pairs alike"
    nothing = float("nan")
    assert verdict({"A": nothing, "C": 0.6, "F": 0.7}) == "F > C: the same order, 1 of 1 pairs alike"
    assert verdict({"A": nothing, "C": 0.6}) == "not measured"


def test_apart_or_not_by_hand() -> None:
    """Above 0 the later row is better, whichever end is; pairing finds what rows alone do not show."""
    spread = np.random.default_rng(0).normal(0, 5, (3, 60))
    early, late = number(spread.tolist()), number((spread - 1).tolist())
    gap = gap_of("shift_px", early, late)
    assert gap.value == pytest.approx(1) and gap.low == pytest.approx(1) and gap.apart
    own = [estimate_of(n) for n in (early, late)]
    assert own[1].high > own[0].low, "their own intervals overlap"
    assert gap_of("ms_ssim", early, late).value == pytest.approx(-1)
    noise = number((spread + np.random.default_rng(1).normal(0, 5, (3, 60))).tolist())
    assert gap_of("shift_px", early, noise).apart is False
    verdicts = [ablation.claim_verdict(gap_of(name, early, n), 3) for name, n in
                (("shift_px", late), ("ms_ssim", late), ("shift_px", noise))]
    assert verdicts == ["borne out (3 model seeds)", "contradicted (3 model seeds)", "not apart (3 model seeds)"]
    assert ablation.claim_verdict(gap, 1) == "borne out (one model seed)"
    assert ablation.claim_verdict(gap, 3, sure=False) == "undecided"
    assert ablation.claim_verdict(Estimate(1, None, None, 1, "patients"), 3) == "undecided", "no interval"


def test_rows_of_other_seeds_and_cases_are_compared_on_what_both_have() -> None:
    """Three seeds against one: the first; the interval of the three seeds alone is wider."""
    three, one = number([[0.0] * 8, [6.0] * 8, [0.0] * 8]), number([[1.0] * 5])
    gap = gap_of("shift_px", three, one)
    assert (gap.value, gap.n) == (-1, 5)
    assert (estimate_of(three).value, estimate_of(three).low, estimate_of(three).high) == (2, 0, 6)


def made_up(values: dict[str, list[float]], events: int | None = None) -> dict[str, dict[str, Number]]:
    """Rows whose numbers are all the same mean of cases."""
    def of(v: list[float]) -> Number:
        return Number(**(number([v]).__dict__ | {"n_events": events}))
    names = ("ms_ssim", "dice_over_real", "outside", "shift_px")
    return {row: {name: of(v) for name in names} for row, v in values.items()}


def test_the_table_of_steps() -> None:
    """Neighbours, then those that skip a row; weak judges and rare events decide nothing."""
    ours = made_up({"D": [3.0, 3.2] * 9, "E": [2.0, 2.2] * 9, "F": [1.0, 1.2] * 9}, events=9)
    gaps = step_gaps(ours)
    rows = {r["step"]: r for r in step_rows(ours, gaps, True)}
    assert list(rows) == ["D to E", "E to F", "D to F"]
    assert rows["E to F"]["verdict"] == "borne out (one model seed)" and rows["E to F"]["claim"] == "outside"
    assert rows["D to E"]["verdict"] == "contradicted (one model seed)", "Dice fell"
    assert rows["D to E"]["shift_px"].startswith("1.000 [") and rows["D to E"]["shift_px"].endswith(", apart")
    weak = {r["step"]: r["verdict"] for r in step_rows(ours, gaps, False)}
    assert weak["D to E"] == weak["E to F"] == "undecided"
    rare = made_up({"E": [2.0], "F": [1.0]}, events=5)
    assert step_rows(rare, {"EF": gaps["EF"]}, True)[0]["verdict"] == "undecided"
    skipped = step_rows(made_up({"C": [2.0], "F": [1.0]}), {"CF": gaps["EF"]}, True)[0]
    assert (skipped["claim"], skipped["verdict"]) == ("none", "")


def test_the_table_of_rows() -> None:
    """Switches, intervals, what was published; nothing to measure is a dash, not a number."""
    ours = {"A": dict.fromkeys(ablation.METRICS, Estimate(0.5, 0.4, 0.6, 9, "cases")),
            "F": dict.fromkeys(ablation.METRICS, Estimate(float("nan"), None, None, 9, "cases"))}
    subjects = {row: Subject(row, MODALITIES, [{"x": torch.zeros(4, 2, 8, 8)}] * 2, [], 1.0) for row in ours}
    beside = dict.fromkeys(ablation.METRICS, 0.7) | {"outside": float("nan")}
    first, last, real = number_rows(ours, beside, subjects)
    assert (first["structure map"], first["distance"], first["icann_ms_ssim_quoted"]) == ("no", "0.500 [0.400, 0.600]", 0.504)
    assert (last["label filter"], last["distance"], last["model_seeds"]) == ("yes", "-", 2)
    assert (real["row"], real["distance"], real["outside"], real["icann_ms_ssim_quoted"]) == ("real", "0.700", "-", "")
    assert real.keys() == first.keys()


def test_which_record_is_shown() -> None:
    """The first of a fitting size that leaves the organ; else of that size; else the first."""
    label, m = torch.zeros(4, 1, 10, 10), torch.zeros(4, 1, 10, 10)
    label[1, :, :5], label[2:, :, 4:6, 4:6], m[3, :, 5:] = 1, 1, 1
    assert shown_record({"label": label, "m": m}) == (3, True)
    assert shown_record({"label": label[:3], "m": m[:3]}) == (2, False)
    assert shown_record({"label": label[:2], "m": m[:2]}) == (0, False)


class Bright(torch.nn.Module):
    """A lesion judge that calls class 1 whatever is brighter than 0.8."""

    def __init__(self):
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(0.8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return two logits per pixel."""
        return torch.cat([torch.zeros_like(x), x - self.level], 1)


@pytest.fixture(scope="module")
def court() -> Court:
    """Three test patients of four slices, a lesion of 4x6 pixels on all but the last; judges made by hand."""
    g = torch.Generator().manual_seed(0)
    x, label = 0.7 * torch.rand(12, 2, 24, 24, generator=g), torch.zeros(12, 1, 24, 24)
    label[:-1, :, 4:8, 10:16] = 1
    tensors = {"x": torch.where(label > 0, 1.0, x), "l": label, "m": torch.zeros_like(label), "s": torch.zeros_like(label),
               "patient": torch.tensor([3, 5, 8]).repeat_interleave(4)}
    slices = Slices("made up", False, MODALITIES, 2, "-", (), {}, tensors)
    features = torch.nn.Sequential(torch.nn.Flatten(2), torch.nn.AdaptiveAvgPool1d(4), torch.nn.Flatten())
    return Court(slices, slices, [Bright(), Bright()], Bright(), features, MODALITIES, {}, {})


def test_numbers_by_hand(court: Court) -> None:
    """The held-out images themselves: distance 0, Dice over Dice 1; lesions outside are counted; pairs are chapter 45's."""
    t = court.test.tensors
    cases = {"x": t["x"], "label": t["l"], "m": t["l"]}  # all lesion is background
    twice = Subject("twice", MODALITIES, [cases, cases | {"m": t["m"]}], [])
    reading = Reading([np.array([[96.0, 0, 0]] * 3)] * 2, [0, 1], True)
    names = ["ms_ssim", "ms_ssim_within", "distance", "dice_over_real", "outside", "shift_px"]
    made = protocols.numbers_of(court, twice, reading, 12, names)
    said = {name: estimate_of(n) for name, n in made.items()}
    assert said["distance"].value == pytest.approx(0, abs=1e-9) and said["dice_over_real"].value == 1
    assert (said["outside"].value, said["outside"].low, said["outside"].high) == (0.5, 0, 1), "all, in one seed of two"
    assert made["outside"].n_events == 11 and said["ms_ssim"].unit == "patients" and said["ms_ssim"].n == 3
    i, j = pairs_between(12, 12, 0)
    assert said["ms_ssim"].value == pytest.approx(float(ms_ssim(t["x"][i], t["x"][j]).mean()), abs=1e-6)
    blank = Subject("blank", MODALITIES, [{"x": 0 * t["x"], "label": t["l"], "m": t["m"]}], [])
    assert np.isnan(estimate_of(protocols.beyond(court, blank, reading)).value), "no lesion was read: no share"


def test_boxes_by_hand() -> None:
    """At least so many pixels a side, inside the image, whole lesions in; an empty label has no box."""
    label = torch.zeros(3, 1, 8, 10)
    label[0, 0, 0, 9], label[1, 0, 2:7, 1:3], label[2] = 1, 1, 1
    assert crops.lesion_boxes(label, 4).tolist() == [[0, 6, 4, 10], [2, 0, 7, 4], [0, 0, 8, 10]]
    assert crops.lesion_boxes(label, 1).tolist() == [[0, 9, 1, 10], [2, 1, 7, 3], [0, 0, 8, 10]]
    with pytest.raises(ValueError, match="lesion"):
        crops.lesion_boxes(0 * label, 4)
    ramp = torch.arange(64.0).view(1, 1, 1, 64).expand(1, 1, 64, 64) / 64
    lesion = torch.zeros(1, 1, 64, 64)
    lesion[..., 16:48, 16:48] = 1
    assert torch.equal(crops.box_crops(ramp, lesion), ramp[..., 16:48, 16:48]), "32 pixels a side stay as they are"


@pytest.mark.long
def test_crops_of_the_same_images(court: Court) -> None:
    """Slices without a lesion are left out on both sides; masked crops of unlike lesions are alike, whole images are not."""
    t = court.test.tensors
    g = torch.Generator().manual_seed(1)
    other = {"x": torch.rand(t["x"].shape, generator=g), "label": t["l"], "m": t["m"]}
    made = crops.crop_numbers(court, Subject("other", MODALITIES, [other], []))
    assert list(made) == list(crops.CROPS) and made["whole image"]["distance"].counts == {"cases": 11, "patients": 3}
    values = {name: estimate_of(of["ms_ssim"]).value for name, of in made.items()}
    assert values["masked crop"] > 0.6 > 0.3 > max(values["whole image"], values["box crop"])
    assert crops.scales_of(court) == {"whole image": 2, "masked crop": 2, "box crop": 2}
    both = {"synthetic": made, "real": made}
    said = crops.crop_verdict(both)
    assert said.count("short of real by 0.000 [0.000, 0.000]") == 3, "the same images on both sides"
    assert said.count("less than whole images by 0.000 [0.000, 0.000], not apart") == 2
    far = {images: {name: {"ms_ssim": number([[v] * 3], "patients")} for name, v in zip(crops.CROPS, values, strict=True)}
           for images, values in {"synthetic": (0.2, 0.8, 0.4), "real": (0.7, 0.9, 0.8)}.items()}
    said = crops.crop_verdict(far)
    assert "masked crop: MS-SSIM short of real by 0.100" in said
    assert "less than whole images by 0.400 [0.400, 0.400], apart" in said
    ours = crops.crop_rows(both, crops.scales_of(court))
    assert len(ours) == 6 and all(r.keys() == crops.quoted_crop_rows()[0].keys() and r["fid"] == "" for r in ours)
