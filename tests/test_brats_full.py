"""BRATS2015 and BraTS 2018 to 2023: phantoms in the official layouts, round trips, splits, and every kind of bad file."""
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medsynth.cli import main
from medsynth.core.paths import BadRecord, BadRequest
from medsynth.core.runs import list_runs
from medsynth.data import brats_full
from medsynth.data.batches import parse_data, read_cohort
from medsynth.data.samples import Cohort, Patient, facts_of, split_patients
from medsynth.training.tasks import load_slices, plan, unfold

HALF_A_STEP = 0.5 / brats_full.PEAK + 1e-6
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def brats2015(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Patient]]:
    """Three phantoms in the layout of 2015: where they are, and what they are."""
    out = tmp_path_factory.mktemp("brats2015")
    return out, brats_full.write_brats2015(out, 3, seed=1)


@pytest.fixture(scope="module")
def nifti(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Patient]]:
    """Three phantoms in the layout of 2023: where they are, and what they are."""
    out = tmp_path_factory.mktemp("brats2023")
    return out, brats_full.write_brats_nifti(out, 3, seed=1)


def copied(layout: tuple[Path, list[Patient]], to: Path) -> tuple[Path, list[Path]]:
    """Copy a layout without its third patient: its root, and the patients' folders."""
    shutil.copytree(layout[0], to, dirs_exist_ok=True)
    for folder in to.rglob("brats_phantom_pat0003_1"):
        shutil.rmtree(folder)
    return to, sorted(p for p in to.rglob("*") if p.name in {q.name for q in layout[1]})


def file_of(folder: Path, part: str) -> Path:
    """Find a patient's file by a part of its name."""
    return next(p for p in sorted(folder.rglob(f"*{part}*")) if p.is_file())


def assert_round_trip(cohort: Cohort, truth: list[Patient]) -> None:
    """Labels exactly, intensities to half a step of the file, the same way up."""
    known = {p.name: p for p in truth}
    assert {f.name for f in facts_of(cohort.patients)} == known.keys() and not cohort.set_aside
    assert cohort.modalities == ("T1", "T2", "T1c", "Flair") and cohort.n_classes == 5 and cohort.real
    for p in cohort.patients:
        assert p.label.shape == (50, 184, 144) and p.label.dtype == np.uint8 and np.array_equal(p.label, known[p.name].label)
        for m in cohort.modalities:
            assert p.images[m].dtype == np.float32 and np.abs(p.images[m] - known[p.name].images[m]).max() <= HALF_A_STEP


def test_brats2015_from_its_folder_or_its_parent(brats2015: tuple[Path, list[Patient]]) -> None:
    """The download as it comes, HGG and LGG, nobody on both sides."""
    out, truth = brats2015
    cohort = read_cohort(parse_data(f"brats2015={out}"))
    assert_round_trip(cohort, truth)
    assert {p.name for p in (out / "BRATS2015_Training" / "LGG").iterdir()} == {"brats_phantom_pat0002_1"}
    sides = {s: {f.name for f in facts_of(ps)} for s, ps in split_patients(cohort).items()}
    assert len(sides["test"]) == 1 and len(sides["train"]) == 2 and not sides["test"] & sides["train"]
    again = brats_full.read_brats2015(out / "BRATS2015_Training")
    assert again.test == cohort.test and [f.name for f in facts_of(again.patients)] == [f.name for f in facts_of(cohort.patients)]
    assert sum(brats_full.N_PATIENTS.values()) == 274


def test_brats_of_2023(nifti: tuple[Path, list[Patient]]) -> None:
    """Class 3 becomes 4, there is no class 3 left."""
    cohort = read_cohort(parse_data(f"brats_nifti={nifti[0]}"))
    assert_round_trip(cohort, nifti[1])
    written = nib.load(file_of(nifti[0] / nifti[1][0].name, "-seg")).get_fdata()
    assert set(np.unique(written)) == {0, 1, 2, 3} and set(np.unique(cohort.patients[0].label)) == {0, 1, 2, 4}


def test_brats_of_2020_deep_in_folders_and_not_compressed(tmp_path: Path) -> None:
    """Names of 2018 to 2021, .nii in upper case, HGG and LGG above the patients, 4 stays enhancing."""
    truth = brats_full.write_brats_nifti(tmp_path / "Tráining dàta" / "HGG", 2, seed=3, year=2020)
    for path in list(tmp_path.rglob("*.nii.gz")):
        volume = nib.load(path)
        volume = nib.Nifti1Image(np.asarray(volume.dataobj), volume.affine)
        path.unlink()
        nib.save(volume, path.with_suffix(""))
        path.with_suffix("").rename(path.with_name(path.name.replace(".nii.gz", ".NII")))
    (tmp_path / "._BraTS20_Phantom_001_t1.nii").write_text("what a Mac leaves behind")
    assert_round_trip(brats_full.read_brats_nifti(tmp_path), truth)


def test_a_written_phantom_has_the_same_bytes_twice(brats2015: tuple[Path, list[Patient]], tmp_path: Path) -> None:
    """Same seed, same bytes; a patient does not depend on how many follow."""
    brats_full.write_brats2015(tmp_path, 1, seed=1)
    files = sorted(p for p in tmp_path.rglob("*.mha"))
    assert len(files) == 5
    assert all(p.read_bytes() == (brats2015[0] / p.relative_to(tmp_path)).read_bytes() for p in files)


def test_the_header_says_which_way_up(tmp_path: Path) -> None:
    """Identity: rows from front to back. A file whose header says the reverse of an axis gives the same voxels turned."""
    volume = np.zeros(brats_full.SHAPE, np.int16)
    volume[100, 50, 60], volume[48, 38, 55] = 7, 5
    brats_full.write_mha(tmp_path / "a.mha", volume)
    image = sitk.ReadImage(str(tmp_path / "a.mha"))
    assert image.GetDirection() == tuple(np.eye(3).ravel()) and image.GetOrigin() == (0, -239, 0)
    read, affine = brats_full.read_mha(tmp_path / "a.mha")
    assert np.array_equal(read, volume) and nib.aff2axcodes(affine) == ("L", "P", "S")
    assert np.allclose(affine, brats_full.AFFINE), "the affine of BraTS's NIfTI files"
    cut = brats_full.cut(read)
    assert cut[0, 0, 0] == 5 and cut[60 - 55, 50 - 38, 100 - 48] == 7
    for signs in ((-1, 1, 1), (1, -1, 1), (1, 1, -1), (-1, -1, -1)):
        turned = sitk.GetImageFromArray(volume[:: signs[0], :: signs[1], :: signs[2]].transpose())
        turned.SetDirection(np.diag(np.array(signs, float)).ravel().tolist())
        sitk.WriteImage(turned, str(tmp_path / "b.mha"), False)
        assert np.array_equal(brats_full.read_mha(tmp_path / "b.mha")[0], volume)
        some, _ = brats_full.read_mha(tmp_path / "b.mha", None, slice(55, 105))
        assert np.array_equal(some, volume[..., 55:105]), "slices are counted upwards"


def test_people_are_split_not_scans() -> None:
    """274 patients: 27 held out, by hash of the own name; several scans of one person stay together."""
    names = [f"brats_2013_pat{i:04d}_1" for i in range(274)]
    test = brats_full.draw_test(names, 0)
    assert len(test) == 27 and test == brats_full.draw_test(names[::-1], 0) and test != brats_full.draw_test(names, 1)
    people = {"brats_tcia_pat399_0417": "brats_tcia_pat399", "BraTS-GLI-00005-001": "BraTS-GLI-00005",
              "Brats18_TCIA02_135_1": "Brats18_TCIA02_135", "BraTS20_Training_001": "BraTS20_Training_001",
              "BraTS2021_00000": "BraTS2021_00000"}
    assert {n: brats_full.person_of(n) for n in people} == people
    scans = [f"BraTS-GLI-{i:05d}-{t:03d}" for i in range(50) for t in range(3)]
    test = brats_full.draw_test(scans, 0)
    assert len(test) == 15 and len({brats_full.person_of(n) for n in test}) == 5


def missing_modality(folder: Path) -> None:
    """Remove T2."""
    file_of(folder, "MR_T2").unlink()


def missing_label(folder: Path) -> None:
    """Remove the label."""
    file_of(folder, "OT").unlink()


def two_files(folder: Path) -> None:
    """Put a second T1 beside the first."""
    path = file_of(folder, "MR_T1.")
    shutil.copy(path, path.with_name(path.name.replace("MR_T1.", "MR_T1.9")))


def truncated(folder: Path) -> None:
    """Cut a volume in half."""
    path = file_of(folder, "MR_Flair")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero_bytes(folder: Path) -> None:
    """Leave nothing of a volume."""
    file_of(folder, "MR_T1c").write_bytes(b"")


def wrong_magic(folder: Path) -> None:
    """Write text in place of the label."""
    file_of(folder, "OT").write_text("not a volume")


def absurd_size(folder: Path) -> None:
    """Claim a million voxels a side."""
    path = file_of(folder, "MR_T1c")
    path.write_bytes(path.read_bytes().replace(b"240 240 155", b"1000000 1000000 1000000"))


def absurd_data_size(folder: Path) -> None:
    """Claim a petabyte of compressed data."""
    path = file_of(folder, "MR_T1c")
    head, _, rest = path.read_bytes().partition(b"CompressedDataSize = ")
    path.write_bytes(head + b"CompressedDataSize = 999999999999999\n" + rest.partition(b"\n")[2])


def vectors(folder: Path) -> None:
    """Claim three values a voxel."""
    path = file_of(folder, "MR_T1c")
    path.write_bytes(path.read_bytes().replace(b"ElementType", b"ElementNumberOfChannels = 3\nElementType"))


def other_shape(folder: Path) -> None:
    """Write a modality on another grid."""
    brats_full.write_mha(file_of(folder, "MR_T1c"), np.ones((10, 10, 10), np.int16))


def other_spacing(folder: Path) -> None:
    """Stretch the slices of one modality."""
    path = file_of(folder, "MR_T2")
    path.write_bytes(path.read_bytes().replace(b"ElementSpacing = 1 1 1", b"ElementSpacing = 1 1 2"))


def oblique(folder: Path) -> None:
    """Lay all modalities on their side."""
    for path in folder.rglob("*.mha"):
        path.write_bytes(path.read_bytes().replace(b"1 0 0 0 1 0 0 0 1", b"1 0 0 0 0 1 0 1 0"))


def wrong_class(folder: Path) -> None:
    """Label a voxel with a class nobody announced."""
    volume = np.zeros(brats_full.SHAPE, np.int16)
    volume[100, 100, 60] = 7
    brats_full.write_mha(file_of(folder, "OT"), volume)


def constant(folder: Path) -> None:
    """Write a modality without contrast."""
    brats_full.write_mha(file_of(folder, "MR_T1."), np.zeros(brats_full.SHAPE, np.int16))


def z_scored(folder: Path) -> None:
    """Subtract the mean of a modality."""
    path = file_of(folder, "MR_T1.")
    volume = brats_full.read_mha(path)[0]
    brats_full.write_mha(path, volume - volume[volume > 0].mean().astype(np.int16) * (volume > 0))


def with_nan(folder: Path) -> None:
    """Put a NaN into a modality."""
    path = file_of(folder, "MR_T1c")
    volume = brats_full.read_mha(path)[0].astype(np.float32)
    volume[100, 100, 60] = np.nan
    brats_full.write_mha(path, volume)


BAD = [(missing_modality, "T2: expected one file, found none"), (missing_label, "label: expected one file"),
       (two_files, "T1: expected one file, found VSD"), (truncated, "readable .mha"), (zero_bytes, "readable .mha"),
       (wrong_magic, "readable .mha"), (absurd_size, "(1000000, 1000000, 1000000)"), (absurd_data_size, "readable .mha"),
       (vectors, "one value a voxel"), (other_shape, "(10, 10, 10)"), (other_spacing, "spacing"), (oblique, "Reorient"),
       (wrong_class, "[0, 7]"), (constant, "fill"), (z_scored, "not normalised"), (with_nan, "1 NaN")]


@pytest.mark.parametrize(("spoil", "says"), BAD, ids=[f.__name__ for f, _ in BAD])
def test_a_bad_patient_of_2015_is_named_and_the_rest_goes_on(
    brats2015: tuple[Path, list[Patient]], tmp_path: Path, spoil: Callable, says: str
) -> None:
    """One spoilt patient is set aside with its reason; the other is read."""
    root, folders = copied(brats2015, tmp_path / "d")
    spoil(folders[0])
    with pytest.warns(UserWarning, match="1 of 2 records set aside"):
        cohort = brats_full.read_brats2015(root)
    assert [f.name for f in facts_of(cohort.patients)] == [folders[1].name] and says in cohort.set_aside[folders[0].name]


def swap(folder: Path, part: str, volume: np.ndarray, affine: np.ndarray = brats_full.AFFINE) -> None:
    """Replace one NIfTI file of a patient."""
    nib.save(nib.Nifti1Image(volume, affine), file_of(folder, part))


def of_2024(folder: Path) -> None:
    """Label a voxel with 2024's resection cavity."""
    volume = np.zeros(brats_full.SHAPE, np.int16)
    volume[100, 100, 60:62] = 3, 4
    swap(folder, "-seg", volume)


BAD_NIFTI = [
    (of_2024, "classes 0 to 3"), (lambda f: swap(f, "-t1c", np.ones((9, 9, 9), np.int16)), "(9, 9, 9)"),
    (lambda f: swap(f, "-t2w", np.ones(brats_full.SHAPE, np.int16), np.eye(4)), "affine"),
    (lambda f: file_of(f, "-t2f").write_bytes(file_of(f, "-t2f").read_bytes()[:20000]), "readable NIfTI"),
    (lambda f: file_of(f, "-t1n").write_bytes(b""), "readable NIfTI"),
    (lambda f: file_of(f, "-t2w").unlink(), "T2: expected one file"),
    (lambda f: shutil.copy(file_of(f, "-t2w"), f / "other_t2.nii.gz"), "T2: expected one file")]


@pytest.mark.parametrize(("spoil", "says"), BAD_NIFTI, ids=[says for _, says in BAD_NIFTI])
def test_a_bad_patient_in_nifti_is_named_and_the_rest_goes_on(
    nifti: tuple[Path, list[Patient]], tmp_path: Path, spoil: Callable, says: str
) -> None:
    """One spoilt patient of three is set aside with its reason; a modality that one lacks stays with the others."""
    root, folders = copied(nifti, tmp_path / "d")
    spoil(folders[0])
    with pytest.warns(UserWarning, match="1 of 3 records set aside"):
        cohort = brats_full.read_brats_nifti(root)
    assert [f.name for f in facts_of(cohort.patients)] == [f.name for f in folders[1:]] and len(cohort.modalities) == 4
    assert says in cohort.set_aside[folders[0].name]


def test_a_modality_that_most_lack_is_not_of_the_data_set(nifti: tuple[Path, list[Patient]], tmp_path: Path) -> None:
    """Without T1c anywhere three modalities are read; without Flair nothing is."""
    root, folders = copied(nifti, tmp_path / "d")
    for folder in folders:
        file_of(folder, "-t1c").unlink()
    cohort = brats_full.read_brats_nifti(root)
    assert cohort.modalities == ("T1", "T2", "Flair") and len(cohort.patients) == 3
    for folder in folders:
        file_of(folder, "-t2f").unlink()
    with pytest.raises(BadRequest, match="Flair among them"):
        brats_full.read_brats_nifti(root)


def test_a_training_patient_may_lack_a_modality_and_a_held_out_one_may_not(
    brats2015: tuple[Path, list[Patient]], tmp_path: Path
) -> None:
    """With `needs`, who is held out must have all."""
    root, folders = copied(brats2015, tmp_path / "d")
    for folder in folders:
        missing_modality(folder)
    with pytest.warns(UserWarning, match="1 of 2 records set aside"):
        cohort = brats_full.read_brats2015(root, needs=("Flair",))
    assert cohort.set_aside.keys() == cohort.test and sorted(cohort.patients[0].images) == ["Flair", "T1", "T1c"]


def test_a_twin_is_set_aside(brats2015: tuple[Path, list[Patient]], tmp_path: Path) -> None:
    """The same image under two names would be on both sides."""
    root, folders = copied(brats2015, tmp_path / "d")
    shutil.copy(file_of(folders[0], "MR_T2"), file_of(folders[1], "MR_T2"))
    with pytest.warns(UserWarning, match="1 of 2 records set aside"):
        cohort = brats_full.read_brats2015(root)
    assert f"T2: expected an image of its own, found that of {folders[0].name}" in cohort.set_aside[folders[1].name]


def test_bad_requests(brats2015: tuple[Path, list[Patient]], tmp_path: Path) -> None:
    """An empty folder, the other layout, and a name that is there twice."""
    for name, read in (("brats2015", brats_full.read_brats2015), ("brats_nifti", brats_full.read_brats_nifti)):
        with pytest.raises(BadRequest, match=f"--data {name}=PATH"):
            read(tmp_path)
    with pytest.raises(BadRequest, match="--data brats_nifti=PATH"):
        brats_full.read_brats_nifti(brats2015[0])
    for grade in ("HGG", "LGG"):
        (tmp_path / grade / "brats_tcia_pat100_0001").mkdir(parents=True)
    with pytest.raises(BadRequest, match="pat100_0001 in two"):
        brats_full.read_brats2015(tmp_path)


def test_odd_names(brats2015: tuple[Path, list[Patient]], tmp_path: Path) -> None:
    """Spaces, letters beyond ASCII and an upper-case extension."""
    root, folders = copied(brats2015, tmp_path / "Größe 1")
    for path in list(folders[0].rglob("*.mha")):
        path.rename(path.with_name(path.name.replace("VSD.Brain", "VSD.Bräin 1").replace(".mha", ".MHA")))
    folders[0].rename(folders[0].with_name("Müller, Zoë 日本"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cohort = brats_full.read_brats2015(root)
    assert {f.name for f in facts_of(cohort.patients)} == {"Müller, Zoë 日本", folders[1].name}


def test_a_loop_of_links_ends(brats2015: tuple[Path, list[Patient]], tmp_path: Path) -> None:
    """A link to the folder above is not followed."""
    root, folders = copied(brats2015, tmp_path / "d")
    (folders[0] / "loop").symlink_to(root)
    (root / "loop").symlink_to(root)
    assert len(brats_full.read_brats2015(root).patients) == 2
    with pytest.raises(BadRequest):
        brats_full.read_brats_nifti(root)


def test_a_huge_header_takes_no_memory(tmp_path: Path) -> None:
    """10^18 voxels are refused by the header alone, in a file of some bytes."""
    (tmp_path / "a.mha").write_bytes(
        b"ObjectType = Image\nNDims = 3\nDimSize = 1000000 1000000 1000000\nElementType = MET_SHORT\nElementDataFile = LOCAL\n")
    with pytest.raises(BadRecord, match="shape"):
        brats_full.read_mha(tmp_path / "a.mha")


def test_a_stage_trains_on_it(
    brats2015: tuple[Path, list[Patient]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`medsynth train brain density` at smoke, from the folder as it comes to a finished run."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path / "home"))
    root, _ = copied(brats2015, tmp_path / "data")
    words = ["train", "brain", "density", "--data", f"brats2015={root}", "--profile", "smoke"]
    assert main([*words, "--set", "density.steps=60"]) == 0
    (run,) = list_runs()
    assert run.done and run.params["data"] == "brats2015"


def test_a_chain_is_planned_on_it(nifti: tuple[Path, list[Patient]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole chain at smoke on the later layout: prepared slices with maps and masks, and every stage below synthesis."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path / "home"))
    shutil.copytree(nifti[0], tmp_path / "data", ignore=shutil.ignore_patterns(nifti[1][2].name))
    data = parse_data(f"brats_nifti={tmp_path / 'data'}")
    stages = [run.params["stage"] for run in unfold(plan("brain", "synthesis", data, "mended", "smoke", 0))]
    assert stages.count("processor") == 4 and stages[-1] == "synthesis"
    slices = load_slices(data, "smoke")
    assert slices.size == (48, 40) and len(slices.x) == 100 and slices.test.sum() == 50 and len(slices.labels)
    organ = (1 - slices.m).mean().item()
    assert 0.2 < organ < 0.8 and 0.05 < (slices.s.sum() / (1 - slices.m).sum()).item() < 0.5, "lines in a brain"
