"""Tianchi's scans and lidc_lungs: round trips, splits, and every kind of bad scan, header and table."""
import csv
import shutil
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from conftest import real_folder
from medsynth.core.paths import BadRecord, BadRequest
from medsynth.data import ct_scans, lung_ct, nodules
from medsynth.data.samples import Cohort, Patient, split_patients

SIDE = (96, 96)
FIRST = "318818"


@pytest.fixture(scope="module")
def tianchi(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Patient]]:
    """Four phantoms in Tianchi's layout: where they are, and what they are."""
    out = tmp_path_factory.mktemp("天池 chest CT")  # spaces and letters beyond ASCII
    return out, nodules.write_tianchi(out, 4, 1, SIDE)


@pytest.fixture(scope="module")
def lidc(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Patient]]:
    """Three phantoms in the layout of lidc_lungs: where they are, and what they are."""
    out = tmp_path_factory.mktemp("lidc")
    return out, nodules.write_lidc_lungs(out, 3, 1, SIDE)


@pytest.fixture
def scans(tianchi: tuple[Path, list[Patient]], tmp_path: Path) -> Path:
    """A copy of Tianchi's layout that a test may spoil."""
    return shutil.copytree(tianchi[0], tmp_path / "scans")


@pytest.fixture
def slices(lidc: tuple[Path, list[Patient]], tmp_path: Path) -> Path:
    """A copy of the layout of lidc_lungs that a test may spoil."""
    return shutil.copytree(lidc[0], tmp_path / "slices")


def assert_round_trip(cohort: Cohort, truth: list[Patient], precision: float) -> None:
    """Boxes to the pixel, labels exactly, intensities to the file's precision."""
    assert [p.name for p in cohort.patients] == [p.name for p in truth] and not cohort.set_aside
    for p, q in zip(cohort.patients, truth, strict=True):
        assert len(q.boxes) and np.array_equal(p.boxes, q.boxes) and np.array_equal(p.label, q.label)
        assert p.images["CT"].dtype == np.float32 and np.abs(p.images["CT"] - q.images["CT"]).max() <= precision
    sides = split_patients(cohort)
    assert len(sides["test"]) == 1 and not {p.name for p in sides["train"]} & {p.name for p in sides["test"]}
    content = [{x.tobytes() for p in sides[s] for x in p.images["CT"]} for s in ("train", "test")]
    assert not content[0] & content[1]


def test_tianchi_comes_back(tianchi: tuple[Path, list[Patient]]) -> None:
    """Four scans in two parts, the third one stored turned round; three channels; millimetres from the header."""
    cohort = nodules.read_tianchi(tianchi[0], shape=SIDE)
    assert_round_trip(cohort, tianchi[1], 0)
    assert cohort.counts == {"scans": 4}
    assert cohort.n_classes == 2 and all(p.images["CT"].shape[1:] == (3, *SIDE) for p in cohort.patients)
    assert {p.parent.name for p in tianchi[0].rglob("*.mhd")} == {"train_part1", "train_part2"}
    for p in cohort.patients:
        path = next(tianchi[0].rglob(f"{p.name}.mhd"))
        image = sitk.ReadImage(str(path))
        assert np.allclose(p.spacing_mm, image.GetSpacing()[::-1]) and ("-1 0 0" in path.read_text()) == (p.name == "318832")
        hu = sitk.GetArrayFromImage(image)
        assert hu.shape == (7, *SIDE) and hu.min() == -1024


def test_a_box_lies_where_simpleitk_finds_the_centre(tianchi: tuple[Path, list[Patient]]) -> None:
    """The table's millimetres, by another reader's arithmetic."""
    found, bad = nodules.read_findings(tianchi[0] / nodules.TABLE)
    assert not bad and {f.kind for fs in found.values() for f in fs} == {1, 31}
    for series, findings in found.items():
        path = next(tianchi[0].rglob(f"{series}.mhd"))
        image, scan = sitk.ReadImage(str(path)), ct_scans.read_header(path)
        volume = sitk.GetArrayFromImage(image)
        for f in findings:
            _, z, (top, left, bottom, right) = nodules.box_of(series, scan, f)
            x, y, k = image.TransformPhysicalPointToIndex(f.centre_mm.tolist())
            column, row = (n - 1 - i if t else i for n, i, t in zip(scan.size, (x, y), scan.turned, strict=False))
            assert k == z and top <= row < bottom and left <= column < right
            assert volume[k, y, x] == ct_scans.read_plane(scan, z)[row, column]


def test_classes_choose_findings(tianchi: tuple[Path, list[Patient]]) -> None:
    """Class 31 alone becomes class 1; with nodules both have a number; an unknown class is a bad request."""
    spots = nodules.read_tianchi(tianchi[0], classes=(31,), shape=SIDE)
    assert all(len(p.boxes) == 1 and p.boxes[0, 5] == 1 for p in spots.patients) and spots.n_classes == 2
    both = nodules.read_tianchi(tianchi[0], classes=(31, 1), shape=SIDE)
    assert both.n_classes == 3 and {int(k) for p in both.patients for k in p.boxes[:, 5]} == {1, 2}
    for wrong in ((4,), (), (1, 1)):
        with pytest.raises(BadRequest, match="classes"):
            nodules.read_tianchi(tianchi[0], classes=wrong, shape=SIDE)


def test_the_same_seed_writes_the_same_bytes(tianchi: tuple[Path, list[Patient]], tmp_path: Path) -> None:
    """And the first scan does not depend on how many others there are."""
    nodules.write_tianchi(tmp_path, 1, 1, SIDE)
    for end in ("mhd", "raw"):
        name = f"train_part1/{FIRST}.{end}"
        assert (tmp_path / name).read_bytes() == (tianchi[0] / name).read_bytes()


def test_only_the_slices_needed_are_read(tmp_path: Path) -> None:
    """A scan of 400 MB with one nodule costs a few slices of memory."""
    n, side = 800, 512
    with (tmp_path / "a.raw").open("wb") as f:
        f.seek(n * side * side * 2 - 1)
        f.write(b"\0")  # a hole in the file, nothing on the disk
        f.seek(400 * side * side * 2)
        f.write(np.arange(side * side, dtype="<i2").tobytes())
    (tmp_path / "a.mhd").write_text(f"NDims = 3\nDimSize = {side} {side} {n}\nElementType = MET_SHORT\n"
                                    "ElementSpacing = 1 1 1\nElementDataFile = a.raw\n")
    finding = nodules.Annotation(2, np.array([100.0, 50, 400]), np.array([9.0, 7, 5]), 1)
    tracemalloc.start()
    p = nodules.read_scan(tmp_path / "a.mhd", [finding], (1,), (side, side), {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert p.boxes.tolist() == [[0, 47, 96, 54, 105, 1]] and p.label.sum() == 7 * 9 and peak < 40e6


def test_boxes_by_hand(tmp_path: Path) -> None:
    """A centre between two pixels, a box over the border, a neighbour that reaches in, a row that is there twice."""
    rng = np.random.default_rng(0)
    volume = rng.integers(-1000, 400, (5, 20, 30))
    ct_scans.write_mhd(tmp_path / "a.mhd", volume, np.array([0.5, 0.5, 2.0]), np.array([10.0, 20, 30]))
    rows = [((10 + 0.5 * 9.5, 20 + 0.5 * 6, 34.0), (2.0, 1.5, 6.0)), ((10.0, 20.0, 36.0), (3.0, 2.0, 2.0))]
    findings = [nodules.Annotation(i, np.array(c), np.array(d), 1) for i, (c, d) in enumerate([*rows, rows[0]])]
    p = nodules.read_scan(tmp_path / "a.mhd", findings, (1,), (20, 30), {})
    assert p.boxes.tolist() == [[0, 5, 8, 8, 12, 1], [1, 5, 8, 8, 12, 1], [1, 0, 0, 3, 4, 1]]
    assert np.allclose(p.affine @ [0, 0, 0, 1], [-10, -20, 30, 1]) and p.spacing_mm == (2.0, 0.5, 0.5)
    top = nodules.Annotation(1, np.array([15.0, 25, 38]), np.ones(3), 1)
    last = nodules.read_scan(tmp_path / "a.mhd", [top], (1,), (20, 30), {})
    assert np.array_equal(last.images["CT"][0, 1], last.images["CT"][0, 2]), "the last slice stands for the one above it"


def header(root: Path) -> Path:
    """The header of the first scan."""
    return next(root.rglob(f"{FIRST}.mhd"))


def raw(root: Path) -> Path:
    """The voxels of the first scan."""
    return next(root.rglob(f"{FIRST}.raw"))


def say(root: Path, key: str, value: str) -> None:
    """Change a line of the first header."""
    lines = header(root).read_text().splitlines()
    header(root).write_text("\n".join(f"{key} = {value}" if line.startswith(f"{key} ") else line for line in lines) + "\n")


def no_raw(root: Path) -> None:
    """Remove the voxels."""
    raw(root).unlink()


def truncated_raw(root: Path) -> None:
    """Cut the voxels in half."""
    content = raw(root).read_bytes()
    raw(root).write_bytes(content[: len(content) // 2])


def huge(root: Path) -> None:
    """Claim a million voxels a side."""
    say(root, "DimSize", "1000000 1000000 1000000")


def elsewhere(root: Path) -> None:
    """Name a file outside the folder."""
    shutil.copy(raw(root), root / "secret.raw")
    say(root, "ElementDataFile", "../secret.raw")


def absolute(root: Path) -> None:
    """Name a file by its full path."""
    shutil.copy(raw(root), root / "secret.raw")
    say(root, "ElementDataFile", str(root / "secret.raw"))


def linked(root: Path) -> None:
    """Link the voxels to a file outside the folder."""
    shutil.move(raw(root), root / "secret.raw")
    (header(root).parent / f"{FIRST}.raw").symlink_to(root / "secret.raw")


def local(root: Path) -> None:
    """Say that the voxels follow in the same file."""
    say(root, "ElementDataFile", "LOCAL")


def otherwise_called(root: Path) -> None:
    """Give the voxels a name that no official file has, and that is in no hash of the data set."""
    raw(root).rename(raw(root).with_suffix(".bin"))
    say(root, "ElementDataFile", f"{FIRST}.bin")


def no_header(root: Path) -> None:
    """Write something else in place of a header."""
    header(root).write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))


def zero_bytes(root: Path) -> None:
    """Empty the header."""
    header(root).write_bytes(b"")


def spacing_nan(root: Path) -> None:
    """Give a spacing that is no number."""
    say(root, "ElementSpacing", "nan 0.7 1.0")


def spacing_zero(root: Path) -> None:
    """Give a spacing of zero."""
    say(root, "ElementSpacing", "0 0.7 1.0")


def two_sizes(root: Path) -> None:
    """Give two sizes for three axes."""
    say(root, "DimSize", "96 96")


def negative(root: Path) -> None:
    """Give negative sizes whose product is right."""
    say(root, "DimSize", "-96 -96 7")


def oblique(root: Path) -> None:
    """Turn the scan about its long axis."""
    say(root, "TransformMatrix", "0.8 0.6 0 -0.6 0.8 0 0 0 1")


def compressed(root: Path) -> None:
    """Say that the voxels are compressed."""
    say(root, "CompressedData", "True")


def unknown_type(root: Path) -> None:
    """Give a type that no one knows."""
    say(root, "ElementType", "MET_COMPLEX")


def constant(root: Path) -> None:
    """Write voxels of one value."""
    raw(root).write_bytes(bytes(raw(root).stat().st_size))


def real_nan(root: Path) -> None:
    """Write real numbers that are none."""
    say(root, "ElementType", "MET_FLOAT")
    raw(root).write_bytes(np.full(7 * 96 * 96, np.nan, "<f4").tobytes())


def a_twin(root: Path) -> None:
    """Give the first scan the voxels and the table of the fourth, which comes later."""
    rows = table(root)
    fourth = [row for row in rows if row["seriesuid"] == "318839"]
    for end in ("mhd", "raw"):
        shutil.copy(next(root.rglob(f"318839.{end}")), header(root).with_suffix(f".{end}"))
    say(root, "ElementDataFile", raw(root).name)
    rest = [row for row in rows if row["seriesuid"] not in (FIRST, "318839")]
    put(root, fourth + rest + [row | {"seriesuid": FIRST} for row in fourth])


def twice(root: Path) -> None:
    """Put the first scan into both parts."""
    shutil.copy(header(root), root / "train_part2" / header(root).name)


def vanished(root: Path) -> None:
    """Remove the header: the table names a series that is not there."""
    header(root).unlink()


def table(root: Path) -> list[dict[str, str]]:
    """The rows of the table."""
    with (root / nodules.TABLE).open(newline="") as f:
        return list(csv.DictReader(f))


def put(root: Path, rows: list[dict[str, str]]) -> None:
    """Write the rows of the table."""
    with (root / nodules.TABLE).open("w", newline="") as f:
        writer = csv.DictWriter(f, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def cut_header(root: Path) -> None:
    """Keep the first half of the header."""
    header(root).write_bytes(header(root).read_bytes()[: header(root).stat().st_size // 2])


def cut_table(root: Path) -> None:
    """Let the table end within a row of the first scan."""
    rows = table(root)
    put(root, sorted(rows, key=lambda row: row["seriesuid"] == FIRST))
    (root / nodules.TABLE).write_bytes((root / nodules.TABLE).read_bytes()[:-40])


def first_row(column: str, value: str) -> Callable[[Path], None]:
    """Change one field of the first row, a nodule of the first scan."""
    def spoil(root: Path) -> None:
        rows = table(root)
        assert rows[0]["seriesuid"] == FIRST and rows[0]["label"] == "1"
        rows[0][column] = value
        put(root, rows)

    spoil.__name__ = f"{column}_{value}"
    return spoil


BAD = [(no_raw, f"a file {FIRST}.raw beside it"), (truncated_raw, "bytes, as its header says"),
       (huge, "bytes, as its header says"), (cut_header, "a .mhd header"), (cut_table, "a finite number"),
       (elsewhere, "a file of the same folder"), (absolute, "a file of the same folder"), (linked, "a file of the same folder"),
       (local, "a file of the same folder"), (otherwise_called, "of the same folder, *.raw"), (no_header, "a .mhd header"),
       (zero_bytes, "a .mhd header with"),
       (spacing_nan, "3 finite numbers"), (spacing_zero, "above 0"), (two_sizes, "3 finite numbers"), (negative, "above 0"),
       (oblique, "axes along the body's"), (compressed, "uncompressed"), (unknown_type, "MET_COMPLEX"), (constant, "one value"),
       (real_nan, "NaN or infinity"), (a_twin, "that of 318839"), (twice, "train_part1/318818.mhd, train_part2/318818.mhd"),
       (vanished, "one .mhd file"), (first_row("coordX", "abc"), "'abc'"), (first_row("coordZ", "nan"), "'nan'"),
       (first_row("diameterY", "inf"), "'inf'"), (first_row("diameterX", "-3"), "diameters above 0"),
       (first_row("diameterX", ""), "a finite number"), (first_row("label", "7"), "a class of"),
       (first_row("label", "1.5"), "a class of"), (first_row("coordX", "5000"), "a centre inside")]


@pytest.mark.parametrize(("spoil", "says"), BAD, ids=[f.__name__ for f, _ in BAD])
def test_a_bad_scan_is_named_and_the_rest_goes_on(scans: Path, spoil: Callable, says: str) -> None:
    """One spoilt scan is set aside with its reason; three are read, as they were."""
    spoil(scans)
    with pytest.warns(UserWarning, match="tianchi: 1 of"):
        cohort = nodules.read_tianchi(scans, shape=SIDE)
    assert len(cohort.patients) == 3 and list(cohort.set_aside) == [FIRST] and says in cohort.set_aside[FIRST]
    assert FIRST not in {p.name for p in cohort.patients} and len(split_patients(cohort)["test"]) == 1


def test_a_file_that_shrinks_while_it_is_read(scans: Path) -> None:
    """The header was good, then the voxels went."""
    scan = ct_scans.read_header(header(scans))
    truncated_raw(scans)
    ct_scans.read_plane(scan, 0)
    with pytest.raises(BadRecord, match="slice 6"):
        ct_scans.read_plane(scan, 6)
    no_raw(scans)
    with pytest.raises(BadRecord, match="FileNotFoundError"):
        ct_scans.read_plane(scan, 0)


def test_unknown_series_are_counted_in_one_short_warning(scans: Path) -> None:
    """Part of the download: a thousand series of the table have no scan here."""
    rows = table(scans)
    put(scans, rows + [rows[0] | {"seriesuid": f"9{i:05d}"} for i in range(1000)])
    with pytest.warns(UserWarning, match="tianchi: 1000 of 1004 series set aside") as said:
        cohort = nodules.read_tianchi(scans, shape=SIDE)
    assert len(cohort.patients) == 4 and len(cohort.set_aside) == 1000 and len(str(said[0].message)) < 3000


def test_upper_case_extensions_and_windows_lines(scans: Path, tianchi: tuple[Path, list[Patient]]) -> None:
    """The header as .MHD with CRLF, a table with a byte-order mark, files of other systems, series without nodules."""
    header(scans).write_bytes(header(scans).read_bytes().replace(b"\n", b"\r\n"))
    header(scans).rename(header(scans).with_suffix(".MHD"))
    (scans / "train_part1" / "._318818.mhd").write_bytes(b"left by another system")
    (scans / "train_part1" / "999999.mhd").write_bytes(b"not in the table, never opened")
    (scans / nodules.TABLE).write_bytes(b"\xef\xbb\xbf" + (scans / nodules.TABLE).read_bytes())
    assert_round_trip(nodules.read_tianchi(scans, shape=SIDE), tianchi[1], 0)


def no_column(root: Path) -> None:
    """Remove a column."""
    put(root, [{k: v for k, v in row.items() if k != "coordZ"} for row in table(root)])


def no_table(root: Path) -> None:
    """Remove the table."""
    (root / nodules.TABLE).unlink()


def not_text(root: Path) -> None:
    """Write bytes that are no text in place of the table."""
    (root / nodules.TABLE).write_bytes(b"\xff\xfe\x00\x80" * 50)


def empty_table(root: Path) -> None:
    """Empty the table."""
    (root / nodules.TABLE).write_bytes(b"")


def no_scans(root: Path) -> None:
    """Remove all the scans."""
    for part in root.glob("train_part*"):
        shutil.rmtree(part)


@pytest.mark.parametrize(("spoil", "says"), [(no_column, "none called coordZ"), (no_table, "FileNotFoundError"),
                                             (not_text, "UnicodeDecodeError"), (empty_table, "none called seriesuid"),
                                             (no_scans, "one .mhd file")])
def test_a_table_that_cannot_be_read_is_a_bad_request(scans: Path, spoil: Callable, says: str) -> None:
    """One paragraph that says what to do."""
    spoil(scans)
    with pytest.raises(BadRequest, match=says):
        nodules.read_tianchi(scans, shape=SIDE)


def test_slices_of_another_size_are_set_aside(tianchi: tuple[Path, list[Patient]]) -> None:
    """512x512 is what the data set has."""
    with pytest.warns(UserWarning, match="tianchi: 4 of 4"), pytest.raises(BadRequest, match="slices of 512x512"):
        split_patients(nodules.read_tianchi(tianchi[0]))


def test_lidc_lungs_comes_back(lidc: tuple[Path, list[Patient]]) -> None:
    """One channel, black outside the lungs, filled boxes or the masks themselves."""
    cohort = nodules.read_lidc_lungs(lidc[0], shape=SIDE)
    assert_round_trip(cohort, lidc[1], 5e-5)
    for p in cohort.patients:
        assert p.images["CT"].shape == p.label.shape == p.inside.shape and not p.images["CT"][p.inside == 0].any()
    exact = nodules.read_lidc_lungs(lidc[0], shape=SIDE, filled=False)
    for p, q in zip(exact.patients, cohort.patients, strict=True):
        stems = sorted(f.stem for f in (lidc[0] / "masks").glob(f"{p.name}_*"))
        masks = np.stack([lung_ct.read_grey(lidc[0] / "masks" / f"{s}.png", "PNG", SIDE) > 0 for s in stems])
        assert np.array_equal(p.label > 0, masks) and (q.label >= p.label).all()


def test_the_held_out_have_a_nodule_that_windows_keep(
        lidc: tuple[Path, list[Patient]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the largest nodule alone is large its patient is held out; where none is, anybody."""
    sides = {p.name: np.ptp(p.boxes[:, 1:5].reshape(-1, 2, 2), 1).max() for p in lidc[1]}
    monkeypatch.setattr(nodules, "LARGE_PX", max(sides.values()))
    assert sides[next(iter(nodules.read_lidc_lungs(lidc[0], shape=SIDE).test))] == max(sides.values())
    monkeypatch.setattr(nodules, "LARGE_PX", 1000)
    assert len(nodules.read_lidc_lungs(lidc[0], shape=SIDE).test) == 1


def lidc_rows(root: Path) -> list[dict[str, str]]:
    """The rows of boxes.csv."""
    with (root / nodules.LIDC_TABLE).open(newline="") as f:
        return list(csv.DictReader(f))


def lidc_put(root: Path, rows: list[dict[str, str]]) -> None:
    """Write the rows of boxes.csv."""
    with (root / nodules.LIDC_TABLE).open("w", newline="") as f:
        writer = csv.DictWriter(f, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def lidc_row(**changes: str) -> Callable[[Path], None]:
    """Change fields of the first row."""
    def spoil(root: Path) -> None:
        rows = lidc_rows(root)
        lidc_put(root, [rows[0] | changes, *rows[1:]])

    spoil.__name__ = "_".join(f"{k}_{v}" for k, v in changes.items())
    return spoil


def lidc_picture(of: str, x: np.ndarray | bytes) -> Callable[[Path], None]:
    """Replace the first slice's image or mask."""
    def spoil(root: Path) -> None:
        path = root / of / f"{lidc_rows(root)[0]['slice']}.png"
        if isinstance(x, bytes):
            path.write_bytes(x)
        else:
            lung_ct.save_picture(path, x, "PNG")

    spoil.__name__ = f"{of}_{len(x)}_{getattr(x, 'ndim', 0)}"
    return spoil


def lidc_gone(root: Path) -> None:
    """Remove the first slice's image."""
    (root / "images" / f"{lidc_rows(root)[0]['slice']}.png").unlink()


def lidc_cut(root: Path) -> None:
    """Keep the first half of the first slice's image."""
    path = root / "images" / f"{lidc_rows(root)[0]['slice']}.png"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lidc_huge(root: Path) -> None:
    """Claim a million pixels a side, with a checksum that is right."""
    path = root / "images" / f"{lidc_rows(root)[0]['slice']}.png"
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 10**6, 10**6)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


BAD_LIDC = [(lidc_cut, "readable PNG"), (lidc_huge, "1000000000000 pixels"),
            (lidc_row(x0="-5"), "a box in"), (lidc_row(x1="4000"), "a box in"),
            (lidc_row(x0="1", y0="1", x1="3", y1="3"), "a box in"),
            (lidc_row(y0="2.5"), "whole pixels"), (lidc_row(y1="x"), "'x'"), (lidc_row(value_at_0="nan"), "'nan'"),
            (lidc_row(value_at_65535="-9"), "two values in order"), (lidc_gone, "readable PNG"),
            (lidc_picture("images", b""), "readable PNG"), (lidc_picture("images", np.zeros(SIDE, np.uint16)), "one value"),
            (lidc_picture("images", np.eye(50, dtype=np.uint16)), "50x50"),
            (lidc_picture("masks", np.zeros(SIDE, np.uint8)), "a box in"),
            (lidc_picture("masks", np.full(SIDE, 255, np.uint8)), "0 and 255"),
            (lidc_picture("masks", np.random.default_rng(0).integers(0, 255, (*SIDE, 3), np.uint8)), "colours")]


@pytest.mark.parametrize(("spoil", "says"), BAD_LIDC, ids=[f"{i}_{f.__name__}" for i, (f, _) in enumerate(BAD_LIDC)])
def test_a_bad_lidc_slice_is_named_and_the_rest_goes_on(
        slices: Path, lidc: tuple[Path, list[Patient]], spoil: Callable, says: str) -> None:
    """One spoilt slice is set aside with its reason; its patient goes on with the others."""
    spoil(slices)
    with pytest.warns(UserWarning, match="lidc_lungs: 1 of"):
        cohort = nodules.read_lidc_lungs(slices, shape=SIDE)
    (reason,) = cohort.set_aside.values()
    assert says in reason and [len(p.label) for p in cohort.patients][1:] == [len(p.label) for p in lidc[1]][1:]
    assert len(cohort.patients[0].label) == len(lidc[1][0].label) - 1


def test_a_slice_with_two_nodules_in_two_files_is_one(slices: Path, lidc: tuple[Path, list[Patient]]) -> None:
    """Each file has one of the nodules; the slice has both. Another patient's equal slice is refused."""
    rows, truth = lidc_rows(slices), lidc[1][0]
    names = [r["slice"] for r in rows if r["patient"] == "0001"]
    two = next(s for s in names if names.count(s) > 1)
    mine = [r for r in rows if r["slice"] == two]
    path, mask = slices / "images" / f"{two}.png", slices / "masks" / f"{two}.png"
    whole = lung_ct.read_grey(mask, "PNG", SIDE)
    for number, part in enumerate((mine[:1], mine[1:])):
        piece = np.zeros_like(whole)
        for r in part:
            here = np.s_[int(r["y0"]) : int(r["y1"]), int(r["x0"]) : int(r["x1"])]
            piece[here] = whole[here]
        lung_ct.save_picture(mask.with_name(f"{two}{number}.png"), piece, "PNG")
        shutil.copy(path, path.with_name(f"{two}{number}.png"))
    split = [r | {"slice": f"{two}{number}"} for number, part in enumerate((mine[:1], mine[1:])) for r in part]
    others = [r for r in rows if r["slice"] != two]
    lidc_put(slices, others + split)
    p = nodules.read_lidc_lungs(slices, shape=SIDE).patients[0]
    assert len(p.label) == len(truth.label)
    assert sorted(b[1:] for b in p.boxes.tolist()) == sorted(b[1:] for b in truth.boxes.tolist())
    lidc_put(slices, others + [r | {"patient": "0003"} if r["slice"].endswith("1") and r in split else r for r in split])
    with pytest.warns(UserWarning, match="that of 0001"):
        nodules.read_lidc_lungs(slices, shape=SIDE)


def test_lidc_without_table_or_images_is_a_bad_request(slices: Path) -> None:
    """One paragraph that says what to do."""
    shutil.rmtree(slices / "images")
    with pytest.raises(BadRequest, match="--data lidc_lungs=PATH"):
        nodules.read_lidc_lungs(slices)
    lidc_put(slices, [{k: v for k, v in r.items() if k != "x0"} for r in lidc_rows(slices)])
    with pytest.raises(BadRequest, match="none called x0"):
        nodules.read_lidc_lungs(slices)
    with pytest.raises(BadRequest, match="FileNotFoundError"):
        nodules.read_lidc_lungs(slices / "absent")


@pytest.mark.long
@pytest.mark.real_data
def test_the_real_slices() -> None:
    """Eight patients, 105 images out of 108 files, 109 nodules out of 120 boxes, none set aside, one patient held out."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cohort = nodules.read_lidc_lungs(real_folder("lidc_lungs"))
    assert [len(p.label) for p in cohort.patients] == [8, 28, 21, 4, 7, 9, 24, 4] and not cohort.set_aside
    assert sum(len(p.boxes) for p in cohort.patients) == 109 and len(split_patients(cohort)["test"]) == 1
    for p in cohort.patients:
        height, width = p.boxes[:, 3] - p.boxes[:, 1], p.boxes[:, 4] - p.boxes[:, 2]
        assert min(height.min(), width.min()) >= 3 and max(height.max(), width.max()) <= 45
        assert 0.1 < (p.inside > 0).mean() < 0.35 and not p.images["CT"][p.inside == 0].any()
