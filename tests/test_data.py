"""Layer data: the phantom, each reader on files in its layout, every kind of bad record, and patients who lack a modality."""
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medsynth.core.paths import BadRecord, BadRequest
from medsynth.data import brain_ms, brats, phantom
from medsynth.data.batches import DataRef, parse_data, read_cohort
from medsynth.data.samples import Patient, check_patient, facts_of, min_max, read_volume, split_patients

AFFINE = np.diag([-1.0, 1.0, 1.0, 1.0])


def save(path: Path, volume: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    """Write a NIfTI file."""
    nib.save(nib.Nifti1Image(volume, affine), path)


def write_patient(root: Path, name: str, modalities: bool = True) -> Path:
    """Write one patient in the official layout: a bright block as brain, a small lesion in it."""
    folder = root / name
    folder.mkdir(parents=True)
    brain = np.zeros(brain_ms.SHAPE, np.uint8)
    brain[40:140, 50:170, 60:120] = 100
    brain[60:120, 80:140, 70:110] = 160
    label = np.zeros(brain_ms.SHAPE, np.uint8)
    label[80:90, 100:110, 80:90] = 1
    save(folder / "GOLD_STANDARD_x.nii.gz", label)
    for stem in ("T1_x", "T2_x", "T1POST_x", "FLAIR_x") if modalities else ():
        save(folder / f"{stem}.nii.gz", brain)
    return folder


@pytest.fixture(scope="module")
def cohort_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two imaged patients, one of them held out, and one with a label alone."""
    root = tmp_path_factory.mktemp("brain_ms")
    write_patient(root, "patient07")
    write_patient(root, "patient26")
    write_patient(root, "patient01", modalities=False)
    return root


@pytest.mark.long
def test_the_reader_on_its_layout(cohort_folder: Path) -> None:
    """Grid, range, orientation, split and the label set."""
    cohort = brain_ms.read_brain_ms(cohort_folder)
    p = cohort.patients[0]
    assert p.label.shape == (70, 192, 160) and p.label.sum() == 10 * 10 * 10
    assert all(x.min() == 0 and x.max() == 1 for x in p.images.values())
    assert {s: [q.name for q in ps] for s, ps in split_patients(cohort).items()} == {
        "train": ["patient07"], "test": ["patient26"]}
    assert cohort.extra_labels.shape == (10, 192, 160), "ten slices of the label-only patient hold a lesion"
    row = np.argwhere(p.label.any((0, 2)))[0, 0]
    assert row == 191 - (109 - 14), "the front of the head is at the top"


def nothing(folder: Path) -> None:
    """Remove a modality."""
    (folder / "T2_x.nii.gz").unlink()


def other_shape(folder: Path) -> None:
    """Write a modality on another grid."""
    save(folder / "T2_x.nii.gz", np.ones((10, 10, 10), np.uint8))


def other_affine(folder: Path) -> None:
    """Write a modality with another affine."""
    save(folder / "T2_x.nii.gz", np.ones(brain_ms.SHAPE, np.uint8), np.diag([-1.0, 1.0, 2.0, 1.0]))


def truncated(folder: Path) -> None:
    """Cut a file in half."""
    content = (folder / "FLAIR_x.nii.gz").read_bytes()
    (folder / "FLAIR_x.nii.gz").write_bytes(content[: len(content) // 2])


def no_nifti(folder: Path) -> None:
    """Write text in place of a volume."""
    (folder / "T1_x.nii.gz").write_text("not a volume")


def with_nan(folder: Path) -> None:
    """Put a NaN into a modality."""
    volume = np.ones(brain_ms.SHAPE, np.float32)
    volume[90, 100, 90] = np.nan
    save(folder / "T1POST_x.nii.gz", volume)


def constant(folder: Path) -> None:
    """Write a modality without contrast."""
    save(folder / "T2_x.nii.gz", np.zeros(brain_ms.SHAPE, np.uint8))


def unknown_class(folder: Path) -> None:
    """Label a voxel with a class nobody announced."""
    volume = np.zeros(brain_ms.SHAPE, np.uint8)
    volume[90, 100, 90] = 7
    save(folder / "GOLD_STANDARD_x.nii.gz", volume)


BAD = [(nothing, "T2_"), (other_shape, "shape"), (other_affine, "affine"), (truncated, "FLAIR"), (no_nifti, "readable"),
       (with_nan, "NaN"), (constant, "fill"), (unknown_class, r"\[0.0, 7.0\]")]


@pytest.mark.long
@pytest.mark.parametrize(("spoil", "says"), BAD, ids=[f.__name__ for f, _ in BAD])
def test_a_bad_record_is_named_and_the_rest_goes_on(tmp_path: Path, spoil: Callable, says: str) -> None:
    """One spoilt patient is set aside with its reason; the others are read."""
    write_patient(tmp_path, "patient26")
    spoil(write_patient(tmp_path, "patient07"))
    with pytest.warns(UserWarning, match="1 of 2 records set aside"):
        cohort = brain_ms.read_brain_ms(tmp_path)
    assert [f.name for f in facts_of(cohort.patients)] == ["patient26"] and list(cohort.set_aside) == ["patient07"]
    with pytest.raises(BadRequest, match=f"train split.*{says}"):
        split_patients(cohort)


def test_an_empty_folder_is_a_bad_request(tmp_path: Path) -> None:
    """So is one that does not exist."""
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BadRequest, match="--data brain_ms=PATH"):
            brain_ms.read_brain_ms(path)


def test_a_header_that_asks_for_too_much_is_refused(tmp_path: Path) -> None:
    """The size in the header is checked before memory is taken."""
    save(tmp_path / "small.nii", np.zeros((4, 4, 4), np.uint8))
    content = bytearray((tmp_path / "small.nii").read_bytes())
    content[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    (tmp_path / "huge.nii").write_bytes(content)
    with pytest.raises(BadRecord, match="voxels"):
        read_volume(tmp_path / "huge.nii")


@pytest.mark.long
def test_a_training_patient_may_lack_a_modality_and_a_held_out_one_may_not(tmp_path: Path) -> None:
    """With `needs`, patient 07 stays without T2 but not without T1; patient 26 is held out and stays only whole."""
    nothing(write_patient(tmp_path, "patient07"))
    nothing(write_patient(tmp_path, "patient26"))
    write_patient(tmp_path, "patient08")
    (write_patient(tmp_path, "patient09") / "T1_x.nii.gz").unlink()
    with pytest.warns(UserWarning, match="2 of 4 records set aside"):
        cohort = brain_ms.read_brain_ms(tmp_path, needs=("Flair", "T1"))
    assert [(p.name, sorted(p.images)) for p in cohort.patients] == [
        ("patient07", ["Flair", "T1", "T1c"]), ("patient08", ["Flair", "T1", "T1c", "T2"])]
    assert "T2" in cohort.set_aside["patient26"] and "T1_" in cohort.set_aside["patient09"]
    truncated(tmp_path / "patient07")
    with pytest.warns(UserWarning, match="3 of 4 records set aside"):
        cohort = brain_ms.read_brain_ms(tmp_path, needs=("Flair", "T1"))
    assert "readable" in cohort.set_aside["patient07"], "a file that is there and damaged is no lacking modality"


BRATS_AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])


def write_brats(root: Path, side: str, name: str) -> Path:
    """Write one patient of the BRATS subset: a block of brain, z-scored, air at the volume's minimum, a small tumour."""
    folder = root / side / name
    folder.mkdir(parents=True)
    brain, label = np.zeros(brats.SHAPE, np.float32), np.zeros(brats.SHAPE, np.float32)
    brain[60:180, 50:200, 40:120] = 1
    label[100, 70, 60], label[100, 80, 60:62], label[10, 10, 60] = 4, 2, 3  # the last one outside the brain
    image = np.where(brain > 0, 0.5, -3.0).astype(np.float32)
    image[100:120, 60, 60], image[60, 50, 40] = 2.0, -2.5
    save(folder / brats.BRAIN, brain * np.float32(0.9999999), BRATS_AFFINE)
    save(folder / brats.LABEL, label, BRATS_AFFINE)
    for file in brats.FILES.values():
        save(folder / file, image, BRATS_AFFINE)
    return folder


@pytest.mark.long
def test_the_brats_reader_on_its_layout(tmp_path: Path) -> None:
    """Sides, crop, orientation, range and classes, voxel by voxel."""
    for side, name in (("train", "a"), ("validation", "b"), ("test", "c")):
        write_brats(tmp_path, side, name)
    cohort = read_cohort(parse_data(f"brats2015_subset={tmp_path}"))
    assert {s: [p.name for p in ps] for s, ps in split_patients(cohort).items()} == {"train": ["a", "b"], "test": ["c"]}
    assert cohort.modalities == ("Flair", "T1c") and cohort.n_classes == 5 and cohort.real and cohort.extra_labels is None
    p = cohort.patients[0]
    assert p.label.shape == (50, 184, 144) and p.label.sum() == 4 + 2 + 2, "a label outside the brain is dropped"
    assert p.label[60 - 55, 70 - 38, 100 - 48] == 4 and p.label[61 - 55, 80 - 38, 100 - 48] == 2
    x = p.images["T1c"]
    assert x[0, 0, 0] == 0 and abs(x[5, 60 - 38, 100 - 48] - 1) < 1e-6, "air is 0, the bright row is cut at the top"
    assert abs(x[20, 100, 60] - (0.5 + 2.5) / (0.5 + 2.5)) < 1e-6, "the 99.9th percentile, 0.5, is 1; the minimum, -2.5, is 0"


def brats_class(folder: Path) -> None:
    """Label a voxel with half a class."""
    volume = np.zeros(brats.SHAPE, np.float32)
    volume[100, 100, 60] = 1.5
    save(folder / brats.LABEL, volume, BRATS_AFFINE)


def brats_axes(folder: Path) -> None:
    """Turn the mask's axes round."""
    save(folder / brats.BRAIN, np.ones(brats.SHAPE, np.float32), np.eye(4))


def brats_shape(folder: Path) -> None:
    """Write a modality on another grid."""
    save(folder / brats.FILES["Flair"], np.ones((10, 10, 10), np.float32), BRATS_AFFINE)


def brats_nothing(folder: Path) -> None:
    """Remove the mask."""
    (folder / brats.BRAIN).unlink()


def brats_empty(folder: Path) -> None:
    """Write a mask without a brain."""
    save(folder / brats.BRAIN, np.zeros(brats.SHAPE, np.float32), BRATS_AFFINE)


BAD_BRATS = [(brats_class, "classes 0 to 4"), (brats_axes, "axes"), (brats_shape, "shape"), (brats_nothing, "brainmask"),
             (brats_empty, "fill")]


@pytest.mark.long
@pytest.mark.parametrize(("spoil", "says"), BAD_BRATS, ids=[f.__name__ for f, _ in BAD_BRATS])
def test_a_bad_brats_record_is_named_and_the_rest_goes_on(tmp_path: Path, spoil: Callable, says: str) -> None:
    """One spoilt patient is set aside with its reason; the other is read."""
    spoil(write_brats(tmp_path, "train", "a"))
    write_brats(tmp_path, "test", "c")
    with pytest.warns(UserWarning, match="1 of 2 records set aside"):
        cohort = brats.read_brats2015_subset(tmp_path)
    assert [f.name for f in facts_of(cohort.patients)] == ["c"] and says in cohort.set_aside["a"]


def test_brats_folders_that_are_empty_or_share_a_patient_are_bad_requests(tmp_path: Path) -> None:
    """D12: nobody is on both sides."""
    with pytest.raises(BadRequest, match="--data brats2015_subset=PATH"):
        brats.read_brats2015_subset(tmp_path)
    for side in ("train", "test"):
        (tmp_path / side / "a").mkdir(parents=True)
    with pytest.raises(BadRequest, match="a in two"):
        brats.read_brats2015_subset(tmp_path)


def test_min_max_by_hand() -> None:
    """2, 4, 6 become 0, 0.5, 1; outside is 0."""
    assert min_max(np.array([2.0, 4.0, 6.0])).tolist() == [0, 0.5, 1]
    assert min_max(np.array([9.0, 2.0, 6.0]), np.array([False, True, True])).tolist() == [0, 0, 1]


def test_labels_and_modalities_are_checked() -> None:
    """A patient without a modality that was announced is a bad record."""
    p = Patient("a", {"T1": np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 2, 2)}, np.zeros((2, 2, 2), np.uint8))
    assert check_patient(p, ("T1",), 2) is p
    with pytest.raises(BadRecord, match="T2"):
        check_patient(p, ("T1", "T2"), 2)


def test_phantom_patients_are_reproducible_and_independent() -> None:
    """The same seed gives the same bits, and patient 1 does not depend on how many others there are."""
    few, many = phantom.phantom_cohort(2, 1, 3, (48, 40)), phantom.phantom_cohort(4, 1, 3, (48, 40))
    for m in few.modalities:
        assert np.array_equal(few.patients[1].images[m], many.patients[1].images[m])
    other = phantom.phantom_cohort(2, 1, 3, (48, 40), seed=1)
    assert not np.array_equal(few.patients[1].images["T1"], other.patients[1].images["T1"])


def test_signal_by_hand() -> None:
    """White matter in T1: 0.72 (1 - e^(-500/600)) e^(-15/75)."""
    assert abs(phantom.signal("white", "T1") - 0.72 * (1 - np.exp(-5 / 6)) * np.exp(-0.2)) < 1e-12


@pytest.mark.long
@pytest.mark.real_data
def test_the_real_cohort(brain_ms: Path) -> None:  # noqa: F811
    """Three imaged patients, 26 held out, 27 labels alone, no record set aside, one grid."""
    from medsynth.data.brain_ms import read_brain_ms

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cohort = read_brain_ms(brain_ms)
    assert [f.name for f in facts_of(cohort.patients)] == ["patient07", "patient19", "patient26"]
    assert {s: len(ps) for s, ps in split_patients(cohort).items()} == {"train": 2, "test": 1}
    assert len(cohort.extra_labels) > 27 and not cohort.set_aside
    assert all(p.label.any() and p.images["T1"].shape == (70, 192, 160) for p in cohort.patients)


@pytest.mark.long
@pytest.mark.real_data
def test_the_real_brats_subset(brats2015_subset: Path) -> None:
    """Six patients, two held out, none set aside, all in [0, 1], tumours of every patient inside its images."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cohort = read_cohort(DataRef("brats2015_subset", brats2015_subset))
    sides = {s: [p.name[-6:] for p in ps] for s, ps in split_patients(cohort).items()}
    assert sides == {"train": ["0005_1", "0006_1", "0003_1", "0004_1"], "test": ["0001_1", "0002_1"]}
    for p in cohort.patients:
        brain = p.images["Flair"] > 0
        assert set(np.unique(p.label)) == {0, 1, 2, 3, 4} and p.images["T1c"].shape == (50, 184, 144)
        assert (p.label[~brain] > 0).sum() < 0.002 * (p.label > 0).sum(), "voxels at the brain's minimum alone"
