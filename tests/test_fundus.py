"""Fundus photographs: the phantom, round trips in DRIVE's and FIRE's layouts, splits, hostile files, the real DRIVE."""
import hashlib
import shutil
import struct
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import real_folder
from medsynth.core.paths import BadRequest
from medsynth.data import fundus_phantom
from medsynth.data.fundus import SOURCES, field_of_view, group_eyes, read_drive, read_eyes, read_fire, to_square
from medsynth.data.fundus_phantom import draw_fundus, draw_vessels, grow_eye, turned, write_drive, write_fire
from medsynth.data.samples import Cohort, Patient, facts_of, split_patients

SIZE, SIDE = (58, 56), 58  # DRIVE's 584x565 at a tenth
EYES = 10
READERS = {"DRIVE": read_drive, "FIRE": read_fire}
drawn = cache(draw_fundus)  # the truth that files are compared with; that drawing twice gives the same is a test of its own


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms in both layouts: four DRIVE images, ten FIRE eyes."""
    root = tmp_path_factory.mktemp("fundus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fundus_phantom, "draw_fundus", drawn)
        write_drive(root / "DRIVE", 4, 7, SIZE)
        write_fire(root / "FIRE", EYES, 7, 48)
    return root


@pytest.fixture
def drive(written: Path, tmp_path: Path) -> Path:
    """A copy of the DRIVE phantom that a test may spoil, its name with a space and letters beyond ASCII."""
    return Path(shutil.copytree(written / "DRIVE", tmp_path / "DRIVE für Ärzte"))


@pytest.fixture
def fire(written: Path, tmp_path: Path) -> Path:
    """A copy of the FIRE phantom that a test may spoil."""
    return Path(shutil.copytree(written / "FIRE", tmp_path / "FIRE"))


def pixels(path: Path) -> np.ndarray:
    """The pixels of a picture, a palette looked up."""
    image = Image.open(path)
    return np.asarray(image.convert("L") if image.mode == "P" else image)


# The phantom


@pytest.mark.long
def test_the_same_seed_gives_the_same_bytes() -> None:
    """Another seed, eye or view gives others; an eye does not depend on the size of its picture."""
    first, again = draw_fundus(1, 2, SIZE), draw_fundus(1, 2, SIZE)
    assert first.images["RGB"].tobytes() == again.images["RGB"].tobytes() and (first.label == again.label).all()
    for other in (draw_fundus(2, 2, SIZE), draw_fundus(1, 3, SIZE), draw_fundus(1, 2, SIZE, view=1)):
        assert (other.label != first.label).any() and (other.images["RGB"] != first.images["RGB"]).any()
    small = to_square(draw_fundus(1, 2, (116, 112)).label[0], 58)[:, 1:57]  # every other pixel of the larger picture
    near = draw_vessels(np.concatenate([grow_eye(1, 2).veins, grow_eye(1, 2).arteries]) + [0, 0, 0.05] * 2, SIZE, 0.478 * 56)
    assert (near[0][small > 0] > 0).mean() > 0.98


@pytest.mark.long
def test_the_phantom_looks_like_a_fundus() -> None:
    """Red over green over blue, black outside, the disc brightest, the fovea darker than what surrounds it, vessels dark."""
    for number in range(3):
        p, eye = draw_fundus(0, number, (146, 141)), grow_eye(0, number)
        x, inside, vessel = p.images["RGB"][0], p.inside[0] > 0, p.label[0] > 0
        red, green, blue = (c[inside & ~vessel].mean() for c in x)
        assert red > green > blue and x[:, :8, :8].max() < 0.05 and 0 <= x.min() and x.max() <= 1
        column, row = (int(a) for a in np.round(eye.fovea * 0.478 * 141 + [70, 72.5]))
        assert x[1, row - 2:row + 3, column - 2:column + 3].mean() < 0.85 * green
        column, row = (int(a) for a in np.round(eye.disc * 0.478 * 141 + [70, 72.5]))
        disc = x[1, row - 8:row + 9, max(0, column - 8):column + 9]
        assert np.percentile(disc, 80) > 1.3 * green and x[1][vessel].mean() < 0.9 * green
        assert 0.08 < vessel.sum() / inside.sum() < 0.25


def test_a_vessel_is_drawn_to_the_pixel() -> None:
    """A piece 10 pixels long of radius 2 covers the pixels whose centres are nearer than 2 to it: by hand 5 rows less corners."""
    depth, width = draw_vessels(np.array([[-5.0, 0, 2.0, 5.0, 0, 2.0]]), (9, 21), 1.0)
    rows = [int((depth[r] > 0).sum()) for r in range(9)]
    assert rows == [0, 0, 0, 13, 13, 13, 0, 0, 0], "at a distance of 2 exactly the depth is 0"
    assert depth[4, 10] == 1 and abs(depth[3, 10] - np.sqrt(0.75)) < 1e-12 and width[4, 10] == 2


def test_a_turned_eye_keeps_its_shape() -> None:
    """Distances and radii stay."""
    eye, moved = grow_eye(0, 1), turned(grow_eye(0, 1), 0.3, np.array([0.1, -0.2]))
    assert np.isclose(np.hypot(*(eye.disc - eye.fovea)), np.hypot(*(moved.disc - moved.fovea)))
    assert np.array_equal(eye.veins[:, [2, 5]], moved.veins[:, [2, 5]])
    assert np.allclose(np.hypot(*(eye.veins[:, :2] - eye.disc).T), np.hypot(*(moved.veins[:, :2] - moved.disc).T))


# Round trips


@pytest.mark.long
def test_drive_round_trip(written: Path) -> None:
    """Labels and fields of view exactly, intensities to half a step of eight bits; DRIVE's own numbers and split."""
    cohort = read_drive(written / "DRIVE", side_px=SIDE)
    assert [f.name for f in facts_of(cohort.patients)] == ["01_test", "02_test", "03_training", "04_training"]
    assert cohort.test == {"01_test", "02_test"} and not cohort.set_aside and cohort.real and cohort.n_classes == 2
    for i, p in enumerate(cohort.patients):
        painted = drawn(7, i, SIZE)
        assert np.array_equal(p.label[..., 1:57], painted.label) and np.array_equal(p.inside[..., 1:57], painted.inside)
        assert p.label.dtype == p.inside.dtype == np.uint8 and p.labelled and p.label.sum() == painted.label.sum()
        assert p.images["RGB"].dtype == np.float32 and p.images["RGB"].shape == (1, 3, SIDE, SIDE)
        assert np.abs(p.images["RGB"][..., 1:57] - painted.images["RGB"]).max() <= 0.5 / 255 + 1e-6


@pytest.mark.long
def test_fire_round_trip(written: Path) -> None:
    """Both photographs of an eye, to what a JPEG leaves; no label; the field of view found again; one eye in ten held out."""
    cohort = read_fire(written / "FIRE", side_px=48)
    assert len(cohort.patients) == EYES and len(cohort.test) == 1 and not cohort.set_aside
    names = [f"{'SPA'[i % 3]}{i // 3 + 1:02d}" for i in range(EYES)]
    assert [f.name for f in facts_of(cohort.patients)] == sorted(names)
    for p in cohort.patients:
        painted = [drawn(7, names.index(p.name), (48, 48), view) for view in (0, 1)]
        x, inside = (np.concatenate(a) for a in ([q.images["RGB"] for q in painted], [q.inside for q in painted]))
        assert p.images["RGB"].shape == (2, 3, 48, 48) and not p.labelled and not p.label.any()
        assert np.abs(p.images["RGB"] - x).mean() < 0.02
        assert 2 * (p.inside * inside).sum() / (p.inside.sum() + inside.sum()) > 0.96


def test_both_are_read_as_one(written: Path, drive: Path, tmp_path: Path) -> None:
    """DRIVE's test side is held out, all else trains, with the same pixels; bad records of both are named; both must be there."""
    both, apart = read_eyes(written, side_px=48), [read(written / name, side_px=48) for name, read in READERS.items()]
    assert both.name == "drive_fire" and both.test == apart[0].test == {"01_test", "02_test"} and not both.set_aside
    assert [f.name for f in facts_of(both.patients)] == [f.name for c in apart for f in facts_of(c.patients)]
    for p, q in zip(both.patients, [p for c in apart for p in c.patients], strict=True):
        assert np.array_equal(p.images["RGB"], q.images["RGB"]) and p.labelled == q.labelled
    (tmp_path / "DRIVE").symlink_to(drive)
    with pytest.raises(BadRequest, match="found no FIRE.*--data drive_fire=PATH"):
        read_eyes(tmp_path)
    shutil.copytree(written / "FIRE", tmp_path / "FIRE")
    for spoilt in (image_of(drive), tmp_path / "FIRE" / "Images" / "S01_1.jpg"):
        spoilt.write_bytes(b"")
    with pytest.warns(UserWarning, match="set aside"):
        assert list(read_eyes(tmp_path, side_px=48).set_aside) == [image_of(drive).stem, "S01_1"]


def test_to_square_keeps_circles_and_means() -> None:
    """Padding is even, a shrunken circle stays one, a nearest label has the old values, the mean brightness stays."""
    y, x = np.mgrid[:584, :565]
    circle = (np.hypot(x - 282, y - 291.5) < 200).astype(np.uint8)
    small = to_square(circle, 512)
    rows, columns = (np.flatnonzero(small.any(axis)) for axis in (1, 0))
    assert small.shape == (512, 512) and set(np.unique(small)) == {0, 1} and small.dtype == np.uint8
    assert abs(len(rows) - len(columns)) <= 1 and abs(len(rows) - 400 * 512 / 584) < 2
    assert abs(columns.mean() - 255.5) < 1.5, "the image stays in the middle"
    grey = np.repeat((200 * circle)[..., None], 3, 2).astype(np.uint8)
    assert abs(to_square(grey, 100).mean() - to_square(grey, 584).mean()) < 2e-3, "4 pixels to 1, by way of halves"


@pytest.mark.long
def test_the_writers_are_seeded_and_refuse_one_patient(tmp_path: Path) -> None:
    """The same seed, the same files; a set with one side only is a bad request."""
    for name in ("a", "b"):
        write_drive(tmp_path / name, 2, 1, (30, 28))
        write_fire(tmp_path / name, 2, 1, 24)
    files = {n: {f.relative_to(tmp_path / n).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()
                 for f in (tmp_path / n).rglob("*.*")} for n in ("a", "b")}
    assert files["a"] == files["b"] and len(files["a"]) == 6 + 4
    for source in SOURCES:
        with pytest.raises(BadRequest, match="2 or more"):
            source.write_phantom(tmp_path / "c", 1, 0)


# Splits


def digests(patients: list[Patient]) -> set[str]:
    """Digests of every image."""
    return {hashlib.sha256(x.tobytes()).hexdigest() for p in patients for x in p.images["RGB"]}


def disjoint(cohort: Cohort) -> bool:
    """Whether the sides share no image and no pair."""
    sides = split_patients(cohort)
    pairs = [{pair for p in side for pair in p.name.split("+")} for side in sides.values()]
    return not digests(sides["train"]) & digests(sides["test"]) and not pairs[0] & pairs[1]


def test_no_eye_and_no_image_is_on_both_sides(written: Path, fire: Path) -> None:
    """D12, D35: for many seeds, and when pairs share images as FIRE's do."""
    assert disjoint(read_drive(written / "DRIVE", side_px=SIDE))
    images = fire / "Images"
    for new, old in (("S09_1", "S01_2"), ("S09_2", "P02_1"), ("A08_1", "P02_2"), ("A08_2", "A08_2x")):
        if (images / f"{old}.jpg").exists():
            shutil.copy(images / f"{old}.jpg", images / f"{new}.jpg")
    held_out = set()
    for seed in range(12):
        cohort = read_fire(fire, side_px=16, seed=seed)
        assert disjoint(cohort) and len(cohort.patients) == EYES - 1 and not cohort.set_aside
        held_out |= cohort.test
    assert len(held_out) > 3, "the seed decides who is held out"
    eye = next(p for p in cohort.patients if "+" in p.name)
    assert eye.name == "A08+P02+S01+S09" and len(eye.images["RGB"]) == 4, "each image once"
    assert read_fire(fire, side_px=16, seed=3).test == read_fire(fire, side_px=16, seed=3).test


def test_group_eyes_joins_in_any_order() -> None:
    """Pairs a-b and c-d, then b-c: one eye, though its parts were met before they were joined."""
    rng = np.random.default_rng(0)
    x = {k: rng.random((1, 3, 4, 4), dtype=np.float32) for k in "abcde"}
    none = np.zeros((1, 4, 4), np.uint8)
    named = {"S01_1": "a", "S01_2": "b", "S02_1": "c", "S02_2": "d", "S03_1": "b", "S03_2": "c", "S04_1": "e"}
    eyes = group_eyes([Patient(n, {"RGB": x[k]}, none, inside=none) for n, k in named.items()])
    assert [(p.name, len(p.images["RGB"])) for p in eyes] == [("S01+S02+S03", 4), ("S04", 1)]


def test_an_image_on_both_sides_of_drive_is_kept_in_test(drive: Path) -> None:
    """A twin is found by its pixels, whatever its file's compression; the training side loses it."""
    twin = drive / "training" / "images" / "03_training.tif"
    Image.open(drive / "test" / "images" / "01_test.tif").save(twin, compression="raw")
    with pytest.warns(UserWarning, match="1 of 4 records set aside"):
        cohort = read_drive(drive, side_px=SIDE)
    assert "01_test" in cohort.set_aside["03_training"] and disjoint(cohort)


# Hostile files: each spoils 03_training of DRIVE, and the reason must say so


def image_of(root: Path) -> Path:
    """The image that is spoilt."""
    return root / "training" / "images" / "03_training.tif"


def label_of(root: Path) -> Path:
    """Its label."""
    return root / "training" / "1st_manual" / "03_manual1.gif"


def cut(path: Path) -> None:
    """Keep the first half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def huge_tiff(root: Path) -> None:
    """Write a header that promises a million by a million pixels."""
    tags = [(256, 4, 10**6), (257, 4, 10**6), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (279, 4, 16)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    image_of(root).write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4))


def large_tiff(root: Path) -> None:
    """Promise 9000 by 9000: under Pillow's own limit, over ours."""
    huge_tiff(root)
    content = image_of(root).read_bytes().replace(struct.pack("<I", 10**6), struct.pack("<I", 9000))
    image_of(root).write_bytes(content)


def grey_as_rgb(root: Path) -> None:
    """Store a grey photograph in three channels."""
    Image.open(image_of(root)).convert("L").convert("RGB").save(image_of(root))


def grey_16_bit(root: Path) -> None:
    """Write a 16-bit grey photograph."""
    Image.fromarray(pixels(image_of(root))[..., 1].astype(np.uint16) * 257).save(image_of(root))


def constant(root: Path) -> None:
    """Write one colour."""
    Image.new("RGB", SIZE[::-1], (90, 40, 20)).save(image_of(root))


def two_pages(root: Path) -> None:
    """Write two pictures into one file."""
    image = Image.open(image_of(root)).copy()
    image.save(image_of(root), save_all=True, append_images=[image])


def grey_label(root: Path) -> None:
    """Draw the label in three greys."""
    values = pixels(label_of(root)).copy()
    values[0, :3] = 7, 90, 200
    Image.fromarray(values).save(label_of(root))


def other_size(root: Path) -> None:
    """Give the label another size."""
    Image.new("L", (20, 20), 255).save(label_of(root))


def outside(root: Path) -> None:
    """Draw all vessels outside the field of view."""
    values = np.zeros(SIZE, np.uint8)
    values[:4, :4] = 255
    Image.fromarray(values).save(label_of(root))


def loop(root: Path) -> None:
    """Let the image be a link to itself."""
    image_of(root).unlink()
    image_of(root).symlink_to(image_of(root))


def gone(root: Path) -> None:
    """Let the image be a link to nothing, as a file that vanished after it was listed."""
    image_of(root).unlink()
    image_of(root).symlink_to(root / "absent")


def folder(root: Path) -> None:
    """Put a folder in the image's place."""
    image_of(root).unlink()
    image_of(root).mkdir()


HOSTILE = {
    "truncated image": (lambda r: cut(image_of(r)), "03_training.tif: expected a readable TIFF"),
    "zero bytes": (lambda r: image_of(r).write_bytes(b""), "03_training.tif: expected a readable TIFF"),
    "text as image": (lambda r: image_of(r).write_text("no image"), "03_training.tif: expected a readable TIFF"),
    "PNG named tif": (lambda r: Image.open(image_of(r)).save(image_of(r), "PNG"), "03_training.tif: expected a readable TIFF"),
    "a million squared": (huge_tiff, "03_training.tif: expected"),
    "9000 squared": (large_tiff, "9000x9000"),
    "grey as RGB": (grey_as_rgb, "three equal channels"),
    "16-bit grey": (grey_16_bit, "1 of type I;16"),
    "constant": (constant, r"\[90, 40, 20\] everywhere"),
    "two pages": (two_pages, "found 2 of type RGB"),
    "truncated label": (lambda r: cut(label_of(r)), "03_manual1.gif: expected a readable GIF"),
    "text as label": (lambda r: label_of(r).write_text("GIF89a"), "03_manual1.gif: expected a readable GIF"),
    "no label": (lambda r: label_of(r).unlink(), "a file 03_manual1.gif"),
    "unknown classes": (grey_label, "the values 0 and 255"),
    "empty label": (lambda r: Image.new("L", SIZE[::-1]).save(label_of(r)), "some of them 255"),
    "label of another size": (other_size, "58 rows and 56 columns"),
    "label outside the field": (outside, "vessels inside the field of view"),
    "no mask": (lambda r: shutil.rmtree(r / "training" / "mask"), "a file 0[34]_training_mask.gif"),
    "a link to itself": (loop, "03_training.tif"),
    "a file that vanished": (gone, "03_training.tif: expected a readable TIFF"),
    "a folder": (folder, "03_training.tif: expected a readable TIFF"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_named_and_the_rest_is_read(drive: Path, case: str) -> None:
    """One image is set aside with a reason that names it; the others are read."""
    spoil, says = HOSTILE[case]
    spoil(drive)
    with pytest.warns(UserWarning, match=f"of 4 records set aside.*({says})"):
        cohort = read_drive(drive, side_px=SIDE)
    lost = 2 if case == "no mask" else 1
    assert "03_training" in cohort.set_aside and len(cohort.set_aside) == lost and len(cohort.patients) == 4 - lost


def whole(root: Path) -> Cohort:
    """Read DRIVE into memory and expect no complaint."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cohort = read_drive(root, side_px=SIDE)
    assert len(cohort.patients) == 4 and not cohort.set_aside
    return replace(cohort, patients=list(cohort.patients))


def upper_case(root: Path) -> None:
    """Write every suffix in capitals."""
    for f in [f for f in root.rglob("*.*") if f.is_file()]:
        f.rename(f.with_suffix(f.suffix.upper()))


def palettes(root: Path) -> None:
    """Store labels with a palette in which the first entry is white.."""
    for f in sorted(root.rglob("*_manual1.gif")):
        image = Image.new("P", SIZE[::-1])
        image.putpalette([255, 255, 255, 0, 0, 0])
        image.putdata([int(v == 0) for v in pixels(f).ravel()])
        image.save(f)


def ones(root: Path) -> None:
    """Store labels as 0 and 1."""
    for f in root.rglob("*_manual1.gif"):
        Image.fromarray(pixels(f) // 255).save(f)


def strangers(root: Path) -> None:
    """Leave files about that are no images, and a folder that links to its parent."""
    (root / "training" / "images" / "Thumbs.db").write_bytes(b"x")
    (root / "training" / "images" / "._03_training.tif").write_bytes(b"x")
    (root / "training" / "again").symlink_to(root, target_is_directory=True)


@pytest.mark.parametrize("change", [upper_case, palettes, ones, strangers], ids=lambda f: f.__name__)
def test_odd_files_that_say_what_they_mean_are_read(drive: Path, change: Callable) -> None:
    """Capitals, palettes, 0 and 1, strangers: the cohort is the same."""
    before = whole(drive)
    change(drive)
    for p, q in zip(before.patients, whole(drive).patients, strict=True):
        assert np.array_equal(p.images["RGB"], q.images["RGB"]) and np.array_equal(p.label, q.label)


def test_16_bit_colour_keeps_its_upper_bits(drive: Path) -> None:
    """Sixteen bits a channel are read to 1 / 255."""
    import tifffile

    before = whole(drive)
    tifffile.imwrite(image_of(drive), pixels(image_of(drive)).astype(np.uint16) * 257, photometric="rgb")
    assert np.abs(whole(drive).patients[2].images["RGB"] - before.patients[2].images["RGB"]).max() <= 1 / 255


def test_a_side_without_labels_is_read_unlabelled(drive: Path) -> None:
    """As DRIVE's test side is given out today."""
    shutil.rmtree(drive / "test" / "1st_manual")
    assert [p.labelled for p in whole(drive).patients] == [False, False, True, True]


HOSTILE_FIRE = {
    "truncated": lambda f: cut(f),
    "zero bytes": lambda f: f.write_bytes(b""),
    "PNG named jpg": lambda f: Image.open(f).save(f, "PNG"),
    "grey": lambda f: Image.open(f).convert("L").save(f),
    "CMYK": lambda f: Image.open(f).convert("CMYK").save(f),
    "black": lambda f: Image.fromarray(np.eye(48, dtype=np.uint8)[..., None] * np.array([3, 0, 0], np.uint8)).save(f),
    "no pair in its name": lambda f: f.rename(f.with_name("eye.jpg")),
}


@pytest.mark.parametrize("case", HOSTILE_FIRE)
def test_a_hostile_fire_image_is_named_and_its_twin_stays(fire: Path, case: str) -> None:
    """The eye keeps its other photograph."""
    HOSTILE_FIRE[case](fire / "Images" / "S01_1.jpg")
    with pytest.warns(UserWarning, match="1 of 20 records set aside"):
        cohort = read_fire(fire, side_px=48)
    assert list(cohort.set_aside) == ["eye" if case == "no pair in its name" else "S01_1"]
    assert next(p for p in cohort.patients if p.name == "S01").images["RGB"].shape == (1, 3, 48, 48)


def test_bad_requests(drive: Path, tmp_path: Path) -> None:
    """An empty or absent folder, a file in its place, an image twice, a side left empty."""
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "absent", tmp_path / "file", tmp_path):
        for read, name in ((read_drive, "drive"), (read_fire, "fire")):
            with pytest.raises(BadRequest, match=f"--data {name}=PATH"):
                read(path)
    shutil.copy(image_of(drive), image_of(drive).with_suffix(".TIFF"))
    with pytest.raises(BadRequest, match="03_training twice"):
        read_drive(drive, side_px=SIDE)
    shutil.rmtree(drive / "training")
    with pytest.raises(BadRequest, match="train split"):
        split_patients(read_drive(drive, side_px=SIDE))


# Real images


@pytest.mark.long
@pytest.mark.real_data
def test_the_real_drive() -> None:
    """20 and 20 images, none set aside, no image twice; every label has vessels in the field of view, which is found again."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cohort = read_drive(real_folder("DRIVE"))
    assert {s: len(ps) for s, ps in split_patients(cohort).items()} == {"train": 20, "test": 20}
    assert not cohort.set_aside and disjoint(cohort) and len(digests(cohort.patients)) == 40
    for p in cohort.patients:
        assert p.images["RGB"].shape == (1, 3, 512, 512) and p.labelled and not (p.label * (1 - p.inside)).any()
        assert 0.05 < p.label.sum() / p.inside.sum() < 0.20 and 0.6 < p.inside.mean() < 0.72
        found = field_of_view(p.images["RGB"][0].transpose(1, 2, 0))
        assert 2 * (found * p.inside[0]).sum() / (found.sum() + p.inside.sum()) > 0.98
