"""Layer synthesis: a data set on disk is the same bytes however it was asked for, and says how it came about."""
import csv
import gc
import json
import math
import resource
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from medsynth.core.paths import BadRequest, read_json
from medsynth.data.batches import parse_data
from medsynth.metrics.lesion import dice
from medsynth.synthesis import dataset, own_labels, pipeline, stream
from medsynth.training.tasks import STAGES


@pytest.fixture(scope="module")
def painter() -> pipeline.Painter:
    """The smoke chain (shared with the other tests of the session)."""
    return pipeline.open_painter("brain", parse_data("phantom"), "mended", "smoke", 0)


@pytest.fixture
def quick(painter: pipeline.Painter) -> pipeline.Painter:
    """The same with every map taken as it is drawn."""
    return replace(painter, whole_tries=1)


@pytest.fixture
def least(quick: pipeline.Painter) -> float:
    """A score that half of the first eight records pass, whatever this machine's chain learnt."""
    scores = [float(case["score"]) for _, case in pipeline.synthesise(quick, 0, list(range(8)))]
    return round(float(np.median(scores)), 4)


def numbers(out: Path) -> list[int]:
    """The records of a data set."""
    return list(dataset.case_paths(out))


def test_records_do_not_depend_on_what_was_asked_for(painter: pipeline.Painter) -> None:
    """Records 11 and 3 alone equal those among twelve."""
    every = pipeline.synthesise_all(painter, 0, 12)
    some = dict(pipeline.synthesise(painter, 0, [11, 3]))
    assert sorted(some) == [3, 11]
    assert all(torch.equal(some[r][n].nan_to_num(), every[n][r].nan_to_num()) for r in some for n in every)
    other = pipeline.synthesise_all(painter, 1, 1)
    assert not torch.equal(other["x"][0], every["x"][0])


def test_algorithm_3_draws_again_what_is_open(painter: pipeline.Painter) -> None:
    """Whole maps stay; of the others some become whole and none gets worse; delta 1 accepts all."""
    one, eight = (pipeline.draw_whole(replace(painter, whole_tries=n), 0, list(range(16))) for n in (1, 8))
    kept = one["map_accepted"]
    assert all(torch.equal(one[n][kept], eight[n][kept]) for n in ("z", "s", "m")) and (eight["map_tries"][kept] == 1).all()
    assert (eight["mismatch"] <= one["mismatch"]).all() and eight["map_accepted"].sum() > kept.sum()
    assert torch.equal(eight["map_accepted"], eight["mismatch"] <= painter.delta) and eight["map_tries"].max() <= 8
    lax = pipeline.draw_whole(replace(painter, delta=1.0), 0, list(range(16)))
    assert lax["map_accepted"].all() and torch.equal(lax["s"], one["s"])


def test_read_back_dice_is_dice(painter: pipeline.Painter) -> None:
    """As metrics.lesion measures it, image by image; without lesion not a number."""
    x = torch.rand(3, 4, 48, 40, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(3, 1, 48, 40)
    label[0, 0, 20:28, 10:20] = label[1, 0, 5:9, 5:9] = 1
    found = pipeline.read_back_dice(painter.readers, x, label)
    with torch.no_grad():
        read = [net(x[:, i : i + 1]).argmax(1, keepdim=True) for i, net in enumerate(painter.readers)]
    for row in (0, 1):
        assert found[row].tolist() == pytest.approx([dice(r[row], label[row]) for r in read])
    assert found[2].isnan().all()


def test_a_case_holds_everything(painter: pipeline.Painter, tmp_path: Path) -> None:
    """Shapes, types, ranges; the label lies in the organ; modalities differ (D23); seeds and scores are there."""
    stream.write_dataset(painter, 5, 3, tmp_path / "a")
    case = dataset.load_case(dataset.case_path(tmp_path / "a", 2))
    assert list(case) == list(dataset.ARRAYS)
    assert case["images"].shape == (4, 48, 40) and case["images"].dtype == np.float32
    assert 0 <= case["images"].min() and case["images"].max() <= 1
    assert (case["label"] * case["mask"]).sum() == 0 and set(np.unique(case["mask"])) <= {0, 1}
    assert all(not np.array_equal(case["images"][i], case["images"][j]) for i in range(4) for j in range(i))
    fused = case["fused"]
    assert ((fused == 0) == ((case["mask"] == 1) & (case["structure_map"] == 0))).all()
    assert (case["seed"], case["record"]) == (5, 2) and 1 <= case["map_tries"] <= 8 and 1 <= case["label_tries"] <= 12
    assert case["scores"].shape == case["dices"].shape == (4,) and case["score"] == pytest.approx(case["scores"].mean())
    assert math.isnan(case["dice"]) == (case["label"].sum() == 0)


def test_interrupted_and_resumed_the_same_bytes(quick: pipeline.Painter, tmp_path: Path) -> None:
    """Ten at once, or three, a kill that leaves half a file and half a line, and then ten."""
    stream.write_dataset(quick, 0, 10, tmp_path / "a")
    stream.write_dataset(quick, 0, 3, tmp_path / "b")
    (tmp_path / "b" / ".case_000005.npz.half").write_bytes(b"left by a kill")
    with (tmp_path / "b" / "cases.csv").open("a") as f:
        f.write("3,1,1,1")
    counts = stream.write_dataset(quick, 0, 10, tmp_path / "b")
    assert (counts["written"], counts["there"]) == (7, 3)
    assert dataset.dataset_hash(tmp_path / "a") == dataset.dataset_hash(tmp_path / "b")
    for name in ("cases.csv", "dataset.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_kill_while_the_first_file_is_written_leaves_nothing_in_the_way(quick: pipeline.Painter, tmp_path: Path) -> None:
    """Half-written files are hidden ones; the repeated call clears them and goes on."""
    (tmp_path / ".dataset.json.x1").write_text("{")
    (tmp_path / ".case_000000.npz.x2").write_bytes(b"half")
    stream.write_dataset(quick, 0, 2, tmp_path)
    assert numbers(tmp_path) == [0, 1] and not list(tmp_path.glob(".*"))


def test_giving_up_does_not_depend_on_the_batch() -> None:
    """Asked after whole chunks alone, from 400 records on, below one in a hundred."""
    assert stream.scarce(400, 3) and not stream.scarce(400, 4)
    assert not stream.scarce(392, 0) and not stream.scarce(404, 0) and stream.scarce(408, 4)


def test_the_index_is_rebuilt(quick: pipeline.Painter, least: float, tmp_path: Path) -> None:
    """Without it, or without a file that it names, the same call restores both."""
    wanted = [f"score>={least}"]
    stream.write_dataset(quick, 0, 6, tmp_path, wanted)
    index, digest = (tmp_path / "cases.csv").read_bytes(), dataset.dataset_hash(tmp_path)
    (tmp_path / "cases.csv").unlink()
    dataset.case_path(tmp_path, numbers(tmp_path)[2]).unlink()
    counts = stream.write_dataset(quick, 0, 6, tmp_path, wanted)
    assert counts["written"] == 1 and (tmp_path / "cases.csv").read_bytes() == index and dataset.dataset_hash(tmp_path) == digest


@pytest.mark.parametrize("filtered", [False, True])
def test_any_batch_gives_the_same_bytes(quick: pipeline.Painter, least: float, tmp_path: Path, filtered: bool) -> None:
    """Batches of 8, 16 and 24 records, 19 cases; a batch that is no multiple of 8 is refused."""
    filters = [f"score>={least}"] if filtered else []
    for batch in (8, 16, 24):
        stream.write_dataset(quick, 0, 19, tmp_path / str(batch), filters, batch=batch)
        assert len(numbers(tmp_path / str(batch))) == 19
    assert len({dataset.dataset_hash(tmp_path / str(b)) for b in (8, 16, 24)}) == 1
    assert len({(tmp_path / str(b) / "cases.csv").read_bytes() for b in (8, 16, 24)}) == 1
    with pytest.raises(BadRequest, match="multiple of 8"):
        stream.write_dataset(quick, 0, 1, tmp_path / "c", batch=12)


@pytest.mark.parametrize("filtered", [False, True])
def test_processes_with_a_range_each_write_what_one_does(
    quick: pipeline.Painter, least: float, tmp_path: Path, filtered: bool
) -> None:
    """Records 0 to 15 and 16 to 20, a folder each: the same files; in one folder nothing is written anew, the index is one's."""
    filters = [f"score>={least}"] if filtered else []
    shares = [stream.write_dataset(quick, 0, 99, tmp_path / str(r.start), filters, records=r) for r in (range(16), range(16, 21))]
    assert [c["records"] for c in shares] == [16, 5] and all(c["kept"] == 16 or filtered for c in shares[:1])
    n = sum(c["kept"] for c in shares)
    stream.write_dataset(quick, 0, n, tmp_path / "one", filters)
    (tmp_path / "all").mkdir()
    for name in ("dataset.json", *(p.name for share in ("0", "16") for p in dataset.case_paths(tmp_path / share).values())):
        shutil.copy2(next(p for p in (tmp_path / "16" / name, tmp_path / "0" / name) if p.exists()), tmp_path / "all" / name)
    assert dataset.dataset_hash(tmp_path / "all") == dataset.dataset_hash(tmp_path / "one")
    assert stream.write_dataset(quick, 0, n, tmp_path / "all", filters)["written"] == 0
    assert (tmp_path / "all" / "cases.csv").read_bytes() == (tmp_path / "one" / "cases.csv").read_bytes()


def test_filters_keep_n_and_leave_gaps(quick: pipeline.Painter, least: float, tmp_path: Path) -> None:
    """N cases are kept ones, each with its own number; rates by hand from the index; an impossible filter ends."""
    counts = stream.write_dataset(quick, 0, 8, tmp_path / "a", [f"score>={least}"])
    with (tmp_path / "a" / "cases.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [int(r["record"]) for r in rows] == list(range(counts["records"])) and counts["records"] > counts["kept"] == 8
    assert numbers(tmp_path / "a") == [int(r["record"]) for r in rows if float(r["score"]) >= least]
    assert counts["filters"] == {f"score>={least}": round(1 - 8 / len(rows), 4)}
    assert read_json(tmp_path / "a" / "dataset.json")["counts"]["kept"] == 8
    plain = dict(pipeline.synthesise(quick, 0, numbers(tmp_path / "a")[:1]))
    first, case = next(iter(plain.items()))
    assert np.array_equal(dataset.load_case(dataset.case_path(tmp_path / "a", first))["images"], case["x"].numpy())
    with pytest.raises(BadRequest, match="0 of 400"):
        stream.write_dataset(quick, 0, 1, tmp_path / "b", ["score>=5"])


def test_filters_are_parsed_and_never_judge() -> None:
    """Unknown names, words and NaN are bad requests; quality asks other stages than those that filter."""
    assert stream.parse_filter(" dice >= .5 ") == ("dice", ">=", 0.5) and stream.parse_filter("score<=1e-1")[1:] == ("<=", 0.1)
    for text in ("fid>=1", "score>0.4", "score>=high", "dice>=nan", "dice>=", "score>=--1"):
        with pytest.raises(BadRequest, match="NAME>=NUMBER"):
            stream.parse_filter(text)
    assert not stream.passes({"dice": math.nan}, ["dice>=0"]) and stream.passes({"dice": math.nan}, [])
    assert STAGES["lesion_judge"] is not STAGES["processor"]


def test_memory_is_flat(quick: pipeline.Painter, tmp_path: Path) -> None:
    """160 cases take as much as 48: Python's peak within 10% but for 3 KB a line of the index, the process within 5%."""
    peaks, grown = {}, {}
    stream.write_dataset(quick, 0, 16, tmp_path / "warm", batch=16)
    for n in (48, 160):
        gc.collect()
        tracemalloc.start()
        stream.write_dataset(quick, 0, n, tmp_path / str(n), batch=16)
        peaks[n] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        grown[n] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peaks[160] < 1.1 * peaks[48] + 112 * 3072, peaks
    assert grown[160] < 1.05 * grown[48], grown


def test_nifti_holds_the_range_and_the_place(quick: pipeline.Painter, tmp_path: Path) -> None:
    """nibabel reads [0, 1] to half of 1/65535, mm and directions; the set resumes, and reads as the npz one does."""
    stream.write_dataset(quick, 0, 2, tmp_path / "n", files="nifti")
    stream.write_dataset(quick, 0, 3, tmp_path / "n", files="nifti")
    stream.write_dataset(quick, 0, 3, tmp_path / "z")
    about = read_json(tmp_path / "n" / "dataset.json")
    a, b = (dataset.load_case(dataset.case_path(tmp_path / d, 2, f)) for d, f in (("n", "nifti"), ("z", "npz")))
    for i, modality in enumerate(about["modalities"]):
        volume = nib.load(tmp_path / "n" / f"case_000002_{modality}.nii.gz")
        assert volume.shape == (40, 48, 1) and volume.header.get_zooms()[:2] == (2.0, 2.0)
        assert volume.dataobj.slope == np.float32(1 / 65535) and np.allclose(volume.affine, about["affine"])
        assert np.abs(volume.get_fdata()[:, :, 0].T - b["images"][i]).max() <= 0.5001 / 65535
    for name in dataset.ARRAYS:
        atol = 0.5001 / 65535 if name in ("images", "fused") else 0
        assert a[name].shape == b[name].shape and np.allclose(a[name], b[name], atol=atol, rtol=0, equal_nan=True), name
    side = json.loads((tmp_path / "n" / "case_000002.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    assert side["seed"] == 0 and side["record"] == 2 and len(side["scores"]) == 4


def test_a_label_of_ones_own(painter: pipeline.Painter, tmp_path: Path) -> None:
    """Record r holds plane r modulo 2, whole; one too large for any organ is cut, and counted."""
    planes = torch.zeros(2, 48, 40)
    planes[0, 20:26, 14:20] = planes[1, 26:30, 22:28] = 1
    counts = stream.write_dataset(painter, 0, 5, tmp_path / "a", own=planes, label={"file": "x"})
    for record, path in dataset.case_paths(tmp_path / "a").items():
        case = dataset.load_case(path)
        assert case["accepted"] and case["cut_px"] == 0 and np.array_equal(case["label"], planes[record % 2].numpy())
        assert (case["structure_map"] * case["label"]).sum() == 0
    assert counts["pixels_cut"] == 0
    with pytest.raises(BadRequest, match="label = None"):
        stream.write_dataset(painter, 0, 5, tmp_path / "a", label=None)
    huge = stream.write_dataset(painter, 0, 2, tmp_path / "b", own=torch.ones(1, 48, 40))
    cases = [dataset.load_case(p) for p in dataset.case_paths(tmp_path / "b").values()]
    assert huge["pixels_cut"] == sum(int(c["mask"].sum()) for c in cases) > 0 and not any(c["accepted"] for c in cases)


def test_a_map_is_drawn_until_it_holds_the_label(painter: pipeline.Painter) -> None:
    """A label at the rim, which some organs hold and others do not: redrawing lets more of them hold it."""
    m = pipeline.draw_whole(replace(painter, whole_tries=1), 0, list(range(16)))["m"]
    often = (1 - m).mean(0, keepdim=True)
    own = ((often > 0.4) & (often < 0.6)).float().repeat(16, 1, 1, 1)
    assert own.sum() > 0, "organs differ at the rim"
    one, many = (pipeline.draw_whole(replace(painter, whole_tries=n), 0, list(range(16)), own) for n in (1, 12))
    assert many["cut_px"].sum() < one["cut_px"].sum() and (many["cut_px"] <= one["cut_px"]).all()


def test_label_files_are_read_and_checked(tmp_path: Path) -> None:
    """Each kind gives the same label; what is wrong is said in one sentence."""
    painted = np.zeros((48, 40), np.uint8)
    painted[10:20, 8:30] = 1
    palette = Image.fromarray(painted, "P")
    palette.putpalette([0, 0, 0, 255, 0, 0] + [0] * 762)
    palette.save(tmp_path / "palette.png")
    Image.fromarray(painted > 0).save(tmp_path / "bit.png")
    tifffile.imwrite(tmp_path / "planes.tif", np.stack([painted, 0 * painted, painted[::-1]]), photometric="minisblack")
    np.save(tmp_path / "float.npy", painted.astype(np.float64))
    nib.save(nib.Nifti1Image(painted[::-1].T[::-1, :, None], np.eye(4)), tmp_path / "ras.nii")  # from the left, the back
    with pytest.warns(UserWarning, match="1 of 3 planes"):
        planes, about = own_labels.own_labels(tmp_path / "planes.tif", 2, (48, 40))
    assert planes.shape == (2, 48, 40) and about["planes"] == [0, 2]
    for name in ("palette.png", "bit.png", "float.npy", "ras.nii"):
        assert torch.equal(own_labels.own_labels(tmp_path / name, 2, (48, 40))[0][0], torch.from_numpy(painted).float()), name
    with pytest.warns(UserWarning, match="48 x 40 to 96 x 80"):
        assert own_labels.own_labels(tmp_path / "float.npy", 2, (96, 80))[0].sum() == 4 * painted.sum()
    Image.fromarray(np.stack([255 * painted] * 3, 2)).save(tmp_path / "colour.png")
    np.save(tmp_path / "half.npy", painted / 2)
    np.save(tmp_path / "three.npy", 3 * painted)
    np.save(tmp_path / "mask.npy", 255 * painted)
    np.save(tmp_path / "empty.npy", 0 * painted)
    (tmp_path / "broken.nii.gz").write_bytes(b"not gzip")
    says = {"colour.png": "colours", "half.npy": "whole numbers", "three.npy": "classes 0 to 1", "mask.npy": "Divide by 255",
            "empty.npy": "0 everywhere", "broken.nii.gz": "a label as PNG", "absent.png": "no such file", "x.txt": "a label as"}
    for name, words in says.items():
        with pytest.raises(BadRequest, match=words):
            own_labels.own_labels(tmp_path / name, 2, (48, 40))


def test_sets_are_not_mixed(quick: pipeline.Painter, tmp_path: Path) -> None:
    """Another seed or filter in the same folder, a folder of something else, a damaged case: each is a bad request."""
    stream.write_dataset(quick, 0, 1, tmp_path / "a")
    for seed, filters, says in ((1, [], "seed = 1"), (0, ["score>=0"], "filters = ")):
        with pytest.raises(BadRequest, match=says):
            stream.write_dataset(quick, seed, 1, tmp_path / "a", filters)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("mine")
    with pytest.raises(BadRequest, match="no medsynth data set"):
        stream.write_dataset(quick, 0, 1, tmp_path / "b")
    dataset.case_path(tmp_path / "a", 0).write_bytes(b"damaged")
    with pytest.raises(BadRequest, match="Delete it"):
        dataset.load_case(dataset.case_path(tmp_path / "a", 0))


@pytest.mark.parametrize("files", ["npz", "nifti"])
def test_a_set_without_scores_holds_the_same_cases(files: str, quick: pipeline.Painter, tmp_path: Path) -> None:
    """Neither D nor a processor is there to be asked: scores are NaN, the rest is the same bits, and the folder says so."""
    stream.write_dataset(quick, 0, 2, tmp_path / "a", files=files)
    bare = replace(quick, scored=False, critic=SimpleNamespace(n_in=1), readers=())
    stream.write_dataset(bare, 0, 2, tmp_path / "b", files=files)
    assert [read_json(tmp_path / d / "dataset.json")["scored"] for d in "ab"] == [True, False]
    a, b = (dataset.load_case(dataset.case_path(tmp_path / d, 1, files)) for d in "ab")
    for name in dataset.ARRAYS:
        if name in ("score", "scores", "dice", "dices"):
            assert np.isnan(b[name]).all() and b[name].shape == a[name].shape and not np.isnan(a["scores"]).any(), name
        else:
            assert np.array_equal(a[name], b[name]), name
    with pytest.raises(BadRequest, match="scored"):
        stream.write_dataset(quick, 0, 3, tmp_path / "b", files=files)
