"""Lung CT slices and the chest phantom: round trips, splits, duplicates, and every kind of bad file."""
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medsynth.core.paths import BadRequest
from medsynth.data import ct_scans, lung_ct
from medsynth.data.samples import Patient, split_patients

SIDE = (64, 64)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Patient]]:
    """Five phantoms in the layout of the data set: where they are, and what they are."""
    out = tmp_path_factory.mktemp("poumons été 肺")  # spaces and letters beyond ASCII
    return out, lung_ct.write_lung_ct(out, 5, 1, SIDE)


@pytest.fixture
def folder(layout: tuple[Path, list[Patient]], tmp_path: Path) -> Path:
    """A copy of the layout that a test may spoil."""
    shutil.copytree(layout[0], tmp_path / "copie été")
    return tmp_path / "copie été"


def image(folder: Path, name: str = "ID_0000_Z_0100.tif") -> Path:
    """The file of a slice."""
    return folder / lung_ct.FOLDER / name


def mask(folder: Path, name: str = "ID_0000_Z_0100.tif") -> Path:
    """The file of a slice's mask."""
    return folder / lung_ct.MASKS / name


def save(path: Path, x: np.ndarray) -> None:
    """Write a TIFF file."""
    lung_ct.save_picture(path, x, "TIFF")


def test_the_round_trip_is_exact(layout: tuple[Path, list[Patient]]) -> None:
    """Images and lungs come back as they were, patients with one and with two slices."""
    out, truth = layout
    cohort = lung_ct.read_lung_ct(out, shape=SIDE)
    assert [p.name for p in cohort.patients] == [p.name for p in truth] and not cohort.set_aside
    assert cohort.modalities == ("CT",) and cohort.n_classes == 1 and [len(p.label) for p in truth] == [1, 2, 1, 2, 1]
    for p, q in zip(cohort.patients, truth, strict=True):
        assert np.array_equal(p.images["CT"], q.images["CT"]) and p.images["CT"].dtype == np.float32
        assert np.array_equal(p.inside, q.inside) and not p.labelled and not p.label.any()
        assert all(x.min() == 0 and x.max() == 1 for x in p.images["CT"])


def test_the_same_seed_writes_the_same_bytes(layout: tuple[Path, list[Patient]], tmp_path: Path) -> None:
    """And patient 0 does not depend on how many others there are."""
    lung_ct.write_lung_ct(tmp_path / "again", 1, 1, SIDE)
    lung_ct.write_lung_ct(tmp_path / "other", 1, 2, SIDE)
    for of in (image, mask):
        assert of(tmp_path / "again").read_bytes() == of(layout[0]).read_bytes() != of(tmp_path / "other").read_bytes()


def test_nobody_and_no_image_is_on_both_sides(layout: tuple[Path, list[Patient]]) -> None:
    """D12: by patient, and by content."""
    cohort = lung_ct.read_lung_ct(layout[0], shape=SIDE)
    sides = split_patients(cohort)
    assert not {p.name for p in sides["train"]} & {p.name for p in sides["test"]} and len(sides["test"]) == 1
    content = [{x.tobytes() for p in sides[s] for x in p.images["CT"]} for s in ("train", "test")]
    assert not content[0] & content[1] and sum(map(len, content)) == 7
    assert any(lung_ct.read_lung_ct(layout[0], shape=SIDE, seed=s).test != cohort.test for s in range(1, 6))


def test_a_tenth_of_the_people_is_held_out() -> None:
    """9:1, one at least, whatever order they come in."""
    people = [f"ID_{i:04d}" for i in range(267)]
    held = lung_ct.held_out("lung_ct", people, 0)
    assert len(held) == 27 and held == lung_ct.held_out("lung_ct", people[::-1], 0)
    assert len(lung_ct.held_out("lung_ct", people[:2], 0)) == 1


def no_mask(folder: Path) -> None:
    """Remove a mask."""
    mask(folder).unlink()


def truncated(folder: Path) -> None:
    """Cut a file in half."""
    content = image(folder).read_bytes()
    image(folder).write_bytes(content[: len(content) // 2])


def zero_bytes(folder: Path) -> None:
    """Empty a file."""
    image(folder).write_bytes(b"")


def wrong_magic(folder: Path) -> None:
    """Write a PNG file under the name of a TIFF."""
    lung_ct.save_picture(image(folder), np.zeros(SIDE, np.uint8), "PNG")


def huge_header(folder: Path) -> None:
    """Claim a million pixels a side: TIFF tags 256 and 257."""
    content = bytearray(image(folder).read_bytes())
    for tag in (256, 257):
        at = content.index(np.array([tag, 4], "<u2").tobytes() + np.array([1], "<u4").tobytes())
        content[at + 8 : at + 12] = np.array([10**6], "<u4").tobytes()
    image(folder).write_bytes(content)


def colours(folder: Path) -> None:
    """Write a colour picture."""
    save(image(folder), np.random.default_rng(0).integers(0, 255, (*SIDE, 3), np.uint8))


def with_nan(folder: Path) -> None:
    """Put NaN into a slice of real numbers."""
    x = np.random.default_rng(0).normal(size=SIDE).astype(np.float32)
    x[3, 4] = np.nan
    save(image(folder), x)


def with_infinity(folder: Path) -> None:
    """Put infinity into a slice of real numbers."""
    x = np.random.default_rng(0).normal(size=SIDE).astype(np.float32)
    x[3, 4] = np.inf
    save(image(folder), x)


def constant(folder: Path) -> None:
    """Write a slice without contrast."""
    save(image(folder), np.full(SIDE, 7, np.int32))


def other_size(folder: Path) -> None:
    """Write a slice of another size."""
    save(image(folder), np.eye(50, dtype=np.int32))


def other_mask_size(folder: Path) -> None:
    """Write a mask of another size."""
    save(mask(folder), np.eye(50, dtype=np.uint8))


def grey_mask(folder: Path) -> None:
    """Write a mask with a value between."""
    x = np.zeros(SIDE, np.uint8)
    x[3, 4], x[3, 5] = 255, 100
    save(mask(folder), x)


def nan_mask(folder: Path) -> None:
    """Write a mask of 0 and NaN."""
    x = np.zeros(SIDE, np.float32)
    x[3, 4] = np.nan
    save(mask(folder), x)


def another_name(folder: Path) -> None:
    """Rename a slice as nobody expects."""
    image(folder).rename(image(folder, "Kopie von ID_0000.tif"))


def a_folder(folder: Path) -> None:
    """Put a folder where a file was."""
    image(folder).unlink()
    image(folder).mkdir()


def a_loop(folder: Path) -> None:
    """Link a file to itself."""
    image(folder).unlink()
    image(folder).symlink_to(image(folder))


def a_twin(folder: Path) -> None:
    """Give a patient another one's slice."""
    shutil.copy(image(folder, "ID_0004_Z_0100.tif"), image(folder, "ID_0009_Z_0100.tif"))
    shutil.copy(mask(folder), mask(folder, "ID_0009_Z_0100.tif"))
    image(folder).unlink()


BAD = [(no_mask, "a mask ID_0000_Z_0100.tif"), (truncated, "readable TIFF"), (zero_bytes, "readable TIFF"),
       (wrong_magic, "readable TIFF"), (huge_header, "1000000000000 pixels"), (colours, "colours"), (with_nan, "NaN or infinite"),
       (with_infinity, "NaN or infinite"), (constant, "one value, 7"), (other_size, "50x50"), (other_mask_size, "50x50"),
       (grey_mask, "0 and 255"), (nan_mask, "0 and 255"), (another_name, "a name such as"), (a_folder, "readable TIFF"),
       (a_loop, "readable TIFF"), (a_twin, "that of ID_0004_Z_0100.tif")]


@pytest.mark.parametrize(("spoil", "says"), BAD, ids=[f.__name__ for f, _ in BAD])
def test_a_bad_slice_is_named_and_the_rest_goes_on(folder: Path, spoil: Callable, says: str) -> None:
    """One spoilt slice is set aside with its reason; four patients are read."""
    spoil(folder)
    with pytest.warns(UserWarning, match="1 of 7 records set aside"):
        cohort = lung_ct.read_lung_ct(folder, shape=SIDE)
    assert [p.name for p in cohort.patients] == [f"ID_000{i}" for i in range(1, 5)]
    (reason,) = cohort.set_aside.values()
    assert says in reason and len(reason) < 500


def test_a_patient_goes_on_without_a_bad_slice(folder: Path) -> None:
    """Patient 1 has two slices; one is emptied."""
    image(folder, "ID_0001_Z_0100.tif").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 of 7"):
        cohort = lung_ct.read_lung_ct(folder, shape=SIDE)
    assert [len(p.label) for p in cohort.patients] == [1, 1, 1, 2, 1]


def test_upper_case_grey_as_rgb_and_sixteen_bits_are_read(folder: Path, layout: tuple[Path, list[Patient]]) -> None:
    """What repackagers do to files without harm."""
    image(folder).rename(image(folder, "id_0000_z_0100.TIF"))
    x = lung_ct.read_grey(image(folder, "ID_0002_Z_0100.tif"), "TIFF", SIDE)
    save(image(folder, "ID_0002_Z_0100.tif"), (x + 1024).astype(np.uint16))
    eight = np.random.default_rng(0).integers(0, 255, SIDE, np.uint8)
    save(image(folder, "ID_0004_Z_0100.tif"), np.stack([eight] * 3, -1))
    (folder / lung_ct.FOLDER / "._ID_0004_Z_0100.tif").write_bytes(b"left by another system")
    patients = lung_ct.read_lung_ct(folder, shape=SIDE).patients
    assert len(patients) == 5 and np.array_equal(patients[0].images["CT"], layout[1][0].images["CT"])
    assert np.allclose(patients[2].images["CT"], layout[1][2].images["CT"], atol=1e-6)
    assert np.allclose(patients[4].images["CT"][0], (eight - eight.min()) / np.ptp(eight.astype(float)), atol=1e-6)


def test_a_folder_without_slices_is_a_bad_request(tmp_path: Path) -> None:
    """So is one whose slices are all bad, or that leaves one side of the split empty."""
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BadRequest, match="--data lung_ct=PATH"):
            lung_ct.read_lung_ct(path)
    image(tmp_path).parent.mkdir()
    image(tmp_path).write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="1 of 1"), pytest.raises(BadRequest, match="train split.*readable TIFF"):
        split_patients(lung_ct.read_lung_ct(tmp_path))


def test_phantom_boxes_and_lungs_are_exact() -> None:
    """Each box is the smallest around its finding's middle slice; nodules lie in lungs, in HU; the same seed, the same bits."""
    c, again = (ct_scans.draw_chest(5, (128, 160), 5, 3, spot=True, height=0.0) for _ in range(2))
    assert np.array_equal(c.hu, again.hu) and c.hu.dtype == np.int16 and c.hu.shape == (5, 128, 160)
    assert c.hu.min() == -1024 and np.median(c.hu[c.lungs > 0]) < -700 and (c.boxes[:, 5] == 1).any()
    assert len(c.boxes) == c.label.max() and c.boxes[-1, 5] == ct_scans.CALCIFIED
    for n, (i, top, left, bottom, right, kind) in enumerate(c.boxes.tolist(), start=1):
        rows, columns = np.nonzero(c.label[i] == n)
        assert (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1) == (top, left, bottom, right)
        there = np.flatnonzero((c.label == n).any((1, 2)))
        assert len(there) <= c.n_slices[n - 1] and abs(there - i).max() <= c.n_slices[n - 1] // 2
        assert kind == ct_scans.CALCIFIED or c.lungs[c.label == n].all()
    bones = c.hu[:, :, 60:100].max()
    assert 300 < bones < 1200, "a vertebra"
