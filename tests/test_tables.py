"""Tables 2 and 3 of the tasks beside the brain, Figs. 18 to 20, and which tasks an artefact is of."""
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medsynth.core.paths import BadRequest
from medsynth.data.batches import DataRef, parse_data
from medsynth.evaluation import catalogue, contents, crops, protocols
from medsynth.evaluation.catalogue import Request, requests_of
from medsynth.evaluation.rows import Court
from medsynth.evaluation.subjects import Subject
from medsynth.structure.slices import Slices

THERE = Path("there")


def asked(name: str, data: str) -> list[tuple[str, str]]:
    """The tasks that an artefact of some data is split into, and what the data is opened for."""
    found = requests_of(name, Request(DataRef(data, None if data == "phantom" else THERE), seed=3))
    assert all(r.seed == 3 and r.data.path == (None if data == "phantom" else THERE) for r in found)
    return [(r.task, r.data.task) for r in found]


def test_an_artefact_is_of_its_tasks() -> None:
    """All of them on the phantom; on real images those that train on them; two of the same images where both do."""
    assert asked("fig_16", "phantom") == [("brain", "brain")] == asked("table_3", "brain_ms")
    assert asked("table_2", "phantom") == [("chest_xray", "chest_xray"), ("lung_ct", "lung_ct")]
    assert asked("table_3", "drive") == [("fundus", "fundus")] == asked("fig_18", "fire")
    assert asked("table_2", "lidc_lungs") == [("lung_ct", "lung_ct")]
    assert asked("table_3", "lidc_lungs") == [("low_dose_ct", "low_dose_ct")]
    assert [t for t, _ in asked("fig_20", "lidc_lungs")] == ["lung_ct", "low_dose_ct"]
    with pytest.raises(BadRequest, match="fig_18 --data brain_ms: expected data of fundus: phantom, drive, fire, drive_fire"):
        asked("fig_18", "brain_ms")


def test_without_names_what_is_of_the_data() -> None:
    """Everything on the phantom; every data set has something; a name that does not exist is refused whatever the data."""
    assert catalogue.check_names([]) == list(contents.ARTEFACTS) and contents.TASKS_OF.keys() <= contents.ARTEFACTS.keys()
    assert set(catalogue.check_names([], "drive")) >= {"table_3", "fig_18"}
    assert not {"fig_16", "table_1", "fig_19"} & set(catalogue.check_names([], "drive"))
    assert {"fig_16", "table_3"} <= set(catalogue.check_names([], "brain_ms"))
    assert all(catalogue.check_names([], data) for row in catalogue.TASKS.values() for data in row["data"])
    with pytest.raises(BadRequest, match="no such artefact"):
        catalogue.check_names(["fig_99"], "drive")


@pytest.mark.long
def test_runs_of_two_tasks_are_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains of each seed, one GAN# and the features of each task; the same GAN# in the figure; provenance and key of both."""
    monkeypatch.setattr(catalogue, "n_seeds_of", lambda request: 2)
    request = Request(parse_data("phantom"))
    planned = [(r.params["task"], r.params["stage"], r.params["seed"]) for r, _ in catalogue.plans_of("table_2", request)]
    assert planned == [(t, *of) for t in ("chest_xray", "lung_ct")
                       for of in (("synthesis", 0), ("synthesis", 1), ("gan", 0), ("features", 1000))]
    of = {name: {r.id for r, _ in catalogue.plans_of(name, request)} for name in ("table_2", "fig_19", "fig_20")}
    assert of["fig_19"] < of["table_2"] and len(of["fig_20"] & of["table_2"]) == 2
    alone, both = (catalogue.slices_of(name, request) for name in ("fig_19", "table_2"))
    assert catalogue.joint_hash(alone) == alone["chest_xray"].hash != catalogue.joint_hash(both)
    assert catalogue.of_tasks({"a": 1}) == 1 and catalogue.of_tasks({"a": 1, "b": 2}) == {"a": 1, "b": 2}
    gan = catalogue.plans_of("fig_20", request)[-1][0]
    assert catalogue.slices_of_plan(gan, request).hash == gan.params["data_hash"] and gan.params["task"] == "low_dose_ct"


def court_of(kind: str, channels: int = 1) -> Court:
    """Four held-out patients of three images each, with a filled box on all of them where labels are boxes."""
    x = torch.rand(12, channels, 24, 24, generator=torch.Generator().manual_seed(0))
    blank = torch.zeros(12, 1, 24, 24)
    label = blank.clone()
    label[:, :, 6:14, 8:18] = float(kind == "boxes")
    tensors = {"x": x, "l": label, "m": blank, "s": blank, "patient": torch.arange(12) // 3}
    slices = Slices("made up", False, ("CT",), 2, "-", (), {}, tensors, kind)
    features = torch.nn.Sequential(torch.nn.Flatten(2), torch.nn.AdaptiveAvgPool1d(4), torch.nn.Flatten())
    features.n_in = channels
    return Court(slices, slices, [], None, features, ("CT",), {}, {})


def sides(court: Court, ours: torch.Tensor, gan: torch.Tensor) -> tuple[Subject, Subject, Subject]:
    """Two seeds of ours, one of GAN#, and training images."""
    label = court.test.l
    return (Subject("ours", ("CT",), [{"x": ours, "label": label}] * 2, [], 1.0),
            Subject("GAN#", ("CT",), [{"x": gan}], [], 1.0), protocols.real_subject(court, 99))


@pytest.mark.long
@pytest.mark.parametrize(("kind", "channels"), [("none", 3), ("boxes", 3), ("class", 1)])
def test_ours_beside_gan_by_hand(kind: str, channels: int) -> None:
    """Ours are the held-out images, GAN#'s are black: nearer, surely; of boxes the crops are measured too; time decides."""
    court = court_of(kind, channels)
    x = court.test.x
    numbers = crops.set_numbers(court, *sides(court, x, 0 * x))
    exact = crops.exact_numbers(numbers)
    assert list(numbers["synthetic"]) == ["whole image", "whole image, GAN#"] + ["box crop"] * (kind == "boxes")
    assert exact["synthetic"]["whole image"]["distance"]["value"] == pytest.approx(0, abs=1e-9)
    assert exact["real"]["whole image"] == exact["synthetic"]["whole image"], "the same images"
    said = crops.against_gan(numbers, (1.0, 1.0))
    assert said["verdict"].endswith("distance: borne out (one model seed)") and float(said["distance_below_gan"].split()[0]) > 0
    swapped = crops.against_gan(crops.set_numbers(court, *sides(court, 0 * x, x)), (1.0, 0.95))
    assert swapped["verdict"].endswith("distance: contradicted (one model seed)")
    assert crops.against_gan(numbers, (1.0, 0.89))["verdict"] == "MS-SSIM: unequal time; distance: unequal time"
    ours, gan, real = sides(court, x, 0 * x)
    worse = replace(ours, sets=[ours.sets[0], {**ours.sets[0], "x": 0 * x}, {**ours.sets[0], "x": 0 * x}])
    gap = float(crops.against_gan(crops.set_numbers(court, worse, gan, real), (1.0, 1.0))["distance_below_gan"].split()[0])
    assert gap < float(said["distance_below_gan"].split()[0]), "seeds that are worse than the first count too"
    numbers["real"]["whole image"]["ms_ssim"] = protocols.likeness(court, [1 - x])
    assert crops.against_gan(numbers, (1.0, 1.0))["verdict"].startswith("MS-SSIM: undecided"), "not even real pairs are alike"
    rows = [crops.filled(r, task="t", data="d") for r in crops.crop_rows(numbers, crops.scales_of(court))]
    assert [r["images"] for r in rows].count("real") == 1 + (kind == "boxes") and {tuple(r) for r in rows} == {crops.COLUMNS}
    assert rows[0]["model_seeds"] == 2 and rows[1]["model_seeds"] == 1 and {r["fid"] for r in rows} == {""}
    if kind == "boxes":
        assert "box crop: MS-SSIM short of real by 0.000 [0.000, 0.000], less than whole" in crops.crop_verdict(numbers)


def test_what_was_published_is_quoted() -> None:
    """Six columns of Table 2, five of them others', three of Table 3; texts that differ keep a row each; no distance."""
    table_2 = {t: {r["looked_at"]: r for r in crops.quoted_rows(t)} for t in ("chest_xray", "lung_ct")}
    assert [len(v) for v in table_2.values()] == [6, 6]
    assert table_2["lung_ct"]["whole image, PGGAN"]["ms_ssim"] == "0.328"
    assert table_2["chest_xray"]["whole image"]["fid"] == "102.5"
    from_skrgan = {n for v in table_2.values() for n, r in v.items() if "from the SkrGAN paper" in r["source"]}
    assert from_skrgan == set(crops.OTHERS.values())
    rows = crops.quoted_rows("low_dose_ct")
    gan = {r["source"]: r["fid"] for r in rows if r["looked_at"] == crops.RIVAL}
    assert gan == {"thesis-2020-05 (quoted)": "93.65", "icann-2020, thesis-final (quoted)": "113.65"}
    assert {r["looked_at"] for r in crops.quoted_rows("fundus")} == {"whole image", "whole image, SkrGAN*", crops.RIVAL}
    every = [r for task in crops.REPORTED for r in crops.quoted_rows(task)]
    assert all("quoted" in r["source"] and "distance" not in r for r in every)


def test_what_is_seen() -> None:
    """Colours as colours, one channel as grey, of three neighbouring slices the middle one; lines within the organ alone."""
    x = torch.arange(3.0).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert [v.shape for v in crops.seen(x, "none")] == [(4, 4, 3)] * 2 and (crops.seen(x, "boxes")[1] == 1).all()
    assert crops.seen(x[:, :1], "class")[0].shape == (4, 4)
    s, m = torch.ones(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)
    m[..., 2:], s[..., 0] = 1, 0
    assert crops.line_share(s, m) == 0.5
