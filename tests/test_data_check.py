"""`medsynth data`: every source written, read and checked; partial, broken and hostile folders; the cache under two processes."""
import argparse
import gzip
import os
import shutil
import subprocess
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from medsynth.cli import main
from medsynth.core import arrays
from medsynth.core.paths import BadRecord, BadRequest, home, read_json
from medsynth.data import batches, brain_ms, brats, phantom
from medsynth.data.batches import SOURCES, DataRef, data_hash, parse_data, read_cohort
from medsynth.data.samples import Cohort, Patient, facts_of, gather, split_patients
from medsynth.evaluation import data_check
from medsynth.metrics.registration import case_shift
from medsynth.structure import preparation, slices

SMALL = {"SHAPE": (44, 52, 20), "HEIGHTS": slice(4, 14), "ROWS": slice(6, 46), "COLUMNS": slice(4, 36)}
WIDE = ((40, 32), 1)  # size and reduction that the small brains fit
pytestmark = pytest.mark.long


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let brain_ms have small volumes, so that many folders can be spoilt in little time."""
    for name, value in SMALL.items():
        monkeypatch.setattr(brain_ms, name, value)


@pytest.fixture
def folder(small: None, tmp_path: Path) -> Path:
    """Three small phantoms in the layout of brain_ms, in a folder whose name has a space and letters beyond ASCII."""
    out = tmp_path / "dàta 数据"
    brain_ms.write_brain_ms(out, 3)
    return out


def check(*words: object) -> int:
    """Run `medsynth data WORDS` in this process."""
    return main(["data", *map(str, words)])


def file_of(folder: Path, name: str) -> Path:
    """Find a file of patient01 by the start of its name."""
    return next((folder / "patient01").glob(f"{name}_*"))


def files_under(folder: Path) -> list[Path]:
    """List the files below a folder in the order of their names."""
    return sorted(p for p in folder.rglob("*") if p.is_file())


def save(path: Path, volume: np.ndarray, affine: np.ndarray = brain_ms.AFFINE) -> None:
    """Write a NIfTI file."""
    nib.save(nib.Nifti1Image(volume, affine), path)


# Every source in the table


def shrink(patch: pytest.MonkeyPatch, name: str) -> None:
    """Let a source's phantom be small where its own size costs seconds; the chapters' tests have each at its own size."""
    for key, value in SMALL.items() if name == "brain_ms" else ():
        patch.setattr(brain_ms, key, value)
    if name in ("lung_ct", "tianchi", "lidc_lungs"):
        s = SOURCES[name]
        small = {"shape": (96, 96)}
        patch.setitem(SOURCES, name, replace(s, read=partial(s.read, **small), write_phantom=partial(s.write_phantom, **small)))


@pytest.fixture(scope="module", params=list(SOURCES))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A data set's phantom, written by the command: its name and folder."""
    out = tmp_path_factory.mktemp("phantoms") / request.param
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch, request.param)
        assert check("phantom", request.param, out, "--patients", 2) == 0
        yield request.param, out


def test_a_phantom_of_every_source_is_written_and_checks(written: tuple[str, Path], capsys: pytest.CaptureFixture) -> None:
    """Exit 0, with --strict too; the table names what was found; the sheet is drawn."""
    name, out = written
    assert check("check", f"{name}={out}", "--strict") == 0
    said = capsys.readouterr().out
    assert "set aside" in said and f"{name}: {out}  (PHANTOM)" in said and SOURCES[name].licence not in said
    assert (home() / "checks" / name / "contact_sheet.png").stat().st_size > 1000


def test_no_patient_and_no_image_is_on_both_sides(written: tuple[str, Path]) -> None:
    """D12, by name and by content, for every reader."""
    cohort = read_cohort(DataRef(*written))
    seen, _ = data_check.walk(cohort)
    sides = {s: {f.name for f in facts_of(ps)} for s, ps in split_patients(cohort).items()}
    assert cohort.name == written[0] and sides["train"] and sides["test"] and not sides["train"] & sides["test"]
    names = [f.name for f in facts_of(cohort.patients)]
    assert len(names) == len(set(names)) and not data_check.shared_images(seen, cohort.test)["across"]
    assert sum(seen.depths) and seen.owners and not seen.lost and not cohort.set_aside


@pytest.mark.parametrize("name", ["brain_ms", "brats2015_subset"])
def test_the_same_seed_gives_the_same_bytes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A patient does not depend on how many follow; another seed gives other bytes."""
    for key, value in SMALL.items():
        monkeypatch.setattr(brain_ms if name == "brain_ms" else brats, key, value)
    for folder, n, seed in (("a", 2, 0), ("b", 3, 0), ("c", 2, 1)):
        SOURCES[name].write_phantom(tmp_path / folder, n, seed)
    first = [p for p in files_under(tmp_path / "a") if "patient10" not in str(p)]
    other = [tmp_path / "b" / p.relative_to(tmp_path / "a") for p in first]
    assert len(first) >= 8 and all(p.read_bytes() == q.read_bytes() for p, q in zip(first, other, strict=True))
    assert any(p.read_bytes() != (tmp_path / "c" / p.relative_to(tmp_path / "a")).read_bytes() for p in first)


@pytest.mark.parametrize(("name", "every"), [("brain_ms", 14), ("brats2015_subset", 10)])
def test_a_written_patient_is_read_back(name: str, every: int, tmp_path: Path) -> None:
    """Label exactly and in place; intensities but for a scale, to the file's precision; one volume at its full size."""
    painted = {p.name: p for p in SOURCES[name].write_phantom(tmp_path, 2, 3)}
    cohort = read_cohort(DataRef(name, tmp_path))
    assert {f.name for f in facts_of(cohort.patients)} == painted.keys() and not cohort.set_aside
    for p in cohort.patients:
        truth = painted[p.name]
        brain = truth.images["T1c"] > 0
        assert np.array_equal(p.label[::every], truth.label * brain if name != "brain_ms" else truth.label)
        for m in cohort.modalities:
            a, b = truth.images[m], p.images[m][::every]
            inner = brain & (b < 1)
            assert np.abs(np.polyval(np.polyfit(a[inner], b[inner], 1), a[inner]) - b[inner]).max() < 1e-3
            assert b[~brain].max() == 0


def test_misregister_is_read_by_the_metric() -> None:
    """A shift of 3 mm at a spacing of 1 mm, and at 2 mm, is 3 px and 1.5 px; a turn about the middle is seen too."""
    p = phantom.draw_patient(0, 0, (96, 80), 3)
    def shift(q: Patient) -> float:
        return float(case_shift(torch.from_numpy(np.stack(list(q.images.values()), 1))).median())
    moved = [phantom.misregister(p, "T2", shift_mm=mm) for mm in ((3, 0), (0, -4), (3, 4))]
    assert shift(p) < 0.3 and np.allclose([shift(q) for q in moved], [3, 4, 5], atol=0.3)
    coarse = replace(p, spacing_mm=(1.0, 2.0, 2.0))
    assert abs(shift(phantom.misregister(coarse, "T2", shift_mm=(3, 0))) - 1.5) < 0.3
    assert np.array_equal(moved[0].label, p.label) and moved[0].images["T1"] is p.images["T1"]


def sheet_says(data: str, patch: pytest.MonkeyPatch) -> str:
    """Check a data set and give all that is written in its contact sheet, a line a text."""
    draw, drawn = data_check.data_sheet, []
    patch.setattr(data_check, "data_sheet", lambda *words: drawn.append(draw(*words)) or drawn[0])
    assert check("check", data) == 0
    return "\n".join(" ".join(t.get_text().split()) for t in drawn[0].findobj(Text))


def test_a_phantom_s_sheet_says_so_and_credits_nobody(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command marks the folder, with the same bytes for the same seed; the sheet has PHANTOM as its title."""
    for name in ("a", "b"):
        assert check("phantom", "brain_ms", tmp_path / name, "--patients", 2, "--seed", 5) == 0
    first, other = (files_under(tmp_path / name) for name in ("a", "b"))
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in other]
    assert read_json(tmp_path / "a" / "phantom.json") == {"phantom": "brain_ms", "patients": 2, "seed": 5}
    said = sheet_says(f"brain_ms={tmp_path / 'a'}", monkeypatch)
    assert not read_cohort(DataRef("brain_ms", tmp_path / "a")).real, "what is trained on it is marked phantom too"
    assert "PHANTOM in the layout of brain_ms" in said and SOURCES["brain_ms"].attribution not in said and "CC BY" not in said


def test_a_real_set_s_sheet_credits_its_makers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without the mark is taken for what it says it is."""
    said = sheet_says(f"brain_ms={folder}", monkeypatch)
    assert SOURCES["brain_ms"].attribution in said and "PHANTOM" not in said


def test_a_sheet_has_no_empty_column_and_nothing_is_cut_off() -> None:
    """One image a patient: a column a modality and one of the label; two where one has two; text stays inside."""
    x = np.linspace(0, 1, 48, dtype=np.float32).reshape(1, 1, 6, 8).repeat(3, 1)
    one = Patient("name of one patient", {"RGB": x}, np.ones((1, 6, 8), np.uint8))
    two = replace(one, images={"RGB": x.repeat(2, 0)}, label=np.ones((2, 6, 8), np.uint8))
    cohort = Cohort("drive", ("RGB",), 2, True, [one, one], frozenset(), {})
    for shown, labelled, columns in (([one, one], True, 2), ([one, two], True, 4), ([one, one], False, 1)):
        shown = [replace(p, labelled=labelled) for p in shown]
        sheet = data_check.data_sheet(cohort, shown, "PHANTOM in the layout of brats2015_subset", "a long credit, " * 12)
        assert len(sheet.axes) == len(shown) * columns
        canvas = FigureCanvasAgg(sheet)
        canvas.draw()
        renderer = canvas.get_renderer()
        boxes = {t.get_text(): t.get_window_extent(renderer) for t in sheet.findobj(Text) if t.get_text().strip()}
        cut = [t for t, b in boxes.items() if b.x0 < 0 or b.y0 < 0 or b.x1 > sheet.bbox.x1 or b.y1 > sheet.bbox.y1]
        assert not cut and "a long credit" in "".join(boxes)
        panels = [a.get_window_extent(renderer) for a in sheet.axes]
        for text in sheet.texts:
            assert not any(text.get_window_extent(renderer).overlaps(b) for b in panels), "no text over an image"


# What a user's folder may be like


def test_list_says_where_data_is(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Every source with its licence; found where its folder is under $MEDSYNTH_DATA."""
    folder.rename(folder.parent / "brain_ms")
    monkeypatch.setenv("MEDSYNTH_DATA", str(folder.parent))
    assert check("list") == 0
    said = capsys.readouterr().out
    assert all(name in said and s.licence in said for name, s in SOURCES.items())
    assert f"brain_ms\n    {folder.parent / 'brain_ms'}\n    3 patients, 27 labels" in said and "not found; as BRATS2015" in said


def test_a_partial_set_is_a_warning(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """Two of three patients and no label alone: exit 0, and --strict too, for no record is bad."""
    for name in ("patient02", "patient1001", "patient1002", "patient1003"):
        shutil.rmtree(folder / name)
    assert check("check", f"brain_ms={folder}") == check("check", f"brain_ms={folder}", "--strict") == 0
    said = capsys.readouterr().out
    assert "a part of the data set: 2 patients of 3" in said and "0 labels of 27" in said
    assert "train                1" in said and "test                 1" in said and "contact sheet: " in said


def only_label(folder: Path) -> None:
    """Leave labels alone."""
    for p in folder.rglob("*phantom.nii.gz"):
        if "GOLD" not in p.name:
            p.unlink()


def all_zero(folder: Path) -> None:
    """Leave files of no bytes."""
    for p in folder.rglob("*.nii.gz"):
        p.write_bytes(b"")


def nobody_held_out(folder: Path) -> None:
    """Remove the test patient."""
    shutil.rmtree(folder / "patient26")


def nobody_trains(folder: Path) -> None:
    """Remove the training patients."""
    for name in ("patient01", "patient02"):
        shutil.rmtree(folder / name)


def emptied(folder: Path) -> None:
    """Remove everything."""
    for p in folder.iterdir():
        shutil.rmtree(p)


def a_file(folder: Path) -> None:
    """Put a file where the folder was."""
    shutil.rmtree(folder)
    folder.write_text("no folder")


def a_loop(folder: Path) -> None:
    """Put a link to itself where the folder was."""
    shutil.rmtree(folder)
    folder.symlink_to(folder)


@pytest.mark.parametrize("spoil", [only_label, all_zero, nobody_held_out, nobody_trains, emptied, a_file, a_loop],
                         ids=lambda f: f.__name__)
def test_a_broken_set_ends_with_exit_2(folder: Path, spoil: Callable, capsys: pytest.CaptureFixture) -> None:
    """One paragraph that says the file, what was expected, what was found, what to do; no traceback."""
    spoil(folder)
    assert check("check", f"brain_ms={folder}") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("medsynth data: ") and "expected" in said and "found" in said and "Traceback" not in said


def lacking(folder: Path) -> None:
    """Remove a modality."""
    file_of(folder, "T2").unlink()


def zero_bytes(folder: Path) -> None:
    """Leave no byte of a file."""
    file_of(folder, "T1").write_bytes(b"")


def truncated(folder: Path) -> None:
    """Leave half of a file."""
    path = file_of(folder, "FLAIR")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def wrong_magic(folder: Path) -> None:
    """Write text into a file."""
    file_of(folder, "T1POST").write_text("not a volume")


def huge(folder: Path) -> None:
    """Let a header promise more than any memory holds."""
    path = file_of(folder, "T1")
    path.unlink()
    save(path.with_suffix(""), np.zeros((4, 4, 4), np.uint8))
    content = bytearray(path.with_suffix("").read_bytes())
    content[42:48] = np.array([30000] * 3, "<i2").tobytes()
    path.with_suffix("").unlink()
    path.write_bytes(gzip.compress(bytes(content)))


def not_finite(value: float) -> Callable[[Path], None]:
    """Put a NaN or an infinity into a modality."""
    def spoil(folder: Path) -> None:
        volume = np.ones(brain_ms.SHAPE, np.float32)
        volume[20, 20, 8] = value
        save(file_of(folder, "T2"), volume)
    spoil.__name__ = f"not_finite_{value}"
    return spoil


def constant(folder: Path) -> None:
    """Write a modality of one value."""
    save(file_of(folder, "T2"), np.full(brain_ms.SHAPE, 5, np.int16))


def other_affine(folder: Path) -> None:
    """Write a modality as if it lay elsewhere."""
    save(file_of(folder, "FLAIR"), np.arange(np.prod(brain_ms.SHAPE), dtype=np.int32).reshape(brain_ms.SHAPE), np.eye(4))


def other_shape(folder: Path) -> None:
    """Write a modality on another grid."""
    save(file_of(folder, "FLAIR"), np.ones((10, 10, 10), np.uint8))


def unknown_class(folder: Path) -> None:
    """Label a voxel with a class nobody announced."""
    volume = np.zeros(brain_ms.SHAPE, np.uint8)
    volume[20, 20, 8] = 7
    save(file_of(folder, "GOLD"), volume)


def linked_to_itself(folder: Path) -> None:
    """Put a link to itself in a file's place."""
    path = file_of(folder, "T1")
    path.unlink()
    path.symlink_to(path.name)


def linked_to_nothing(folder: Path) -> None:
    """Put a link to a file that is not there."""
    path = file_of(folder, "T2")
    path.unlink()
    path.symlink_to("absent.nii.gz")


def a_folder_for_a_file(folder: Path) -> None:
    """Put a folder in a file's place."""
    path = file_of(folder, "T1")
    path.unlink()
    path.mkdir()


def unlabelled(folder: Path) -> None:
    """Remove the label."""
    file_of(folder, "GOLD").unlink()


HOSTILE = [(lacking, "T2_"), (zero_bytes, "T1_phantom"), (truncated, "FLAIR_phantom"), (wrong_magic, "T1POST_phantom"),
           (huge, "voxels"), (not_finite(np.nan), "NaN"), (not_finite(np.inf), "infinite"), (constant, "T2"),
           (other_affine, "affine"), (other_shape, "shape"), (unknown_class, "[0.0, 7.0]"), (linked_to_itself, "T1_phantom"),
           (linked_to_nothing, "T2_phantom"), (a_folder_for_a_file, "T1_phantom"), (unlabelled, "GOLD")]


@pytest.mark.parametrize(("spoil", "says"), HOSTILE, ids=[f.__name__ for f, _ in HOSTILE])
def test_a_bad_record_is_set_aside_and_named(folder: Path, spoil: Callable, says: str, capsys: pytest.CaptureFixture) -> None:
    """The rest is served with exit 0; --strict ends with exit 2 and the reason."""
    spoil(folder)
    assert check("check", f"brain_ms={folder}") == 0
    said = capsys.readouterr().out
    line = next(row for row in said.splitlines() if row.startswith("warning: set aside: patient01"))
    assert says in line and "expected" in line and "patients             2" in said
    assert check("check", f"brain_ms={folder}", "--strict") == 2
    assert says in capsys.readouterr().err


def upper_case(folder: Path) -> None:
    """Rename a patient's files in upper case, as an old disk does."""
    for p in list((folder / "patient01").iterdir()):
        p.rename(p.with_name(p.name.upper()))


def linked_round(folder: Path) -> None:
    """Put a link to the data set into a patient's folder."""
    (folder / "patient01" / "again").symlink_to(folder)


def linked_patient(folder: Path) -> None:
    """Let a patient's folder be a link to where it really is."""
    (folder / "patient01").rename(folder.parent / "elsewhere")
    (folder / "patient01").symlink_to(folder.parent / "elsewhere")


def others_beside(folder: Path) -> None:
    """Leave what computers leave behind."""
    (folder / ".DS_Store").write_bytes(b"0")
    (folder / "patient01" / "._T1_phantom.nii.gz").write_bytes(b"0")
    (folder / "Thumbs.db").write_bytes(b"0")


@pytest.mark.parametrize("change", [upper_case, linked_round, linked_patient, others_beside], ids=lambda f: f.__name__)
def test_what_is_odd_and_harmless_is_read(folder: Path, change: Callable, capsys: pytest.CaptureFixture) -> None:
    """No record is bad, and the hash sees a change behind a link."""
    change(folder)
    assert check("check", f"brain_ms={folder}", "--strict") == 0 and "patients             3" in capsys.readouterr().out
    ref = DataRef("brain_ms", folder)
    before = data_hash(ref, {})
    next(p for p in (folder / "patient01").iterdir() if p.name.upper().startswith("T2")).write_bytes(b"changed")
    assert data_hash(ref, {}) != before


def test_an_image_that_is_there_twice_is_named(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """Within a side a warning; across the split a warning, and with --strict exit 2."""
    shutil.copy(file_of(folder, "T2"), folder / "patient02")
    os.replace(folder / "patient02" / file_of(folder, "T2").name, next((folder / "patient02").glob("T2_*")))
    assert check("check", f"brain_ms={folder}", "--strict") == 0
    assert "identical images within sides: patient01 T2 = patient02 T2" in capsys.readouterr().out
    shutil.copy(file_of(folder, "T1"), next((folder / "patient26").glob("T1_*")))
    assert check("check", f"brain_ms={folder}") == 0
    assert "identical images across sides: patient01 T1 = patient26 T1" in capsys.readouterr().out
    assert check("check", f"brain_ms={folder}", "--strict") == 2


@pytest.mark.parametrize("when", [1, 2])
def test_a_file_that_vanishes(folder: Path, when: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """In the first reading, or between the two: the patient is set aside, the file is named, the others stay."""
    path, real, calls = file_of(folder, "T1"), brain_ms.read_on_grid, []

    def read(file: Path, *rest: object) -> tuple[np.ndarray, np.ndarray]:
        calls.append(file)
        if file == path and calls.count(path) == when:
            path.unlink()
        return real(file, *rest)
    monkeypatch.setattr(brain_ms, "read_on_grid", read)
    assert check("check", f"brain_ms={folder}") == 0
    said = next(s for s in capsys.readouterr().out.splitlines() if s.startswith("warning: set aside: patient01"))
    assert path.name in said


def test_all_files_vanish(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Between the two readings nothing is left: exit 2, and not a picture of nothing."""
    walk = data_check.walk
    monkeypatch.setattr(data_check, "walk", lambda cohort: shutil.rmtree(folder) or walk(cohort))
    assert check("check", f"brain_ms={folder}") == 2 and "train split" in capsys.readouterr().err

# The command that writes phantoms


def test_a_phantom_is_written_whole_or_not_at_all(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be is refused with exit 2 and nothing is left; an empty folder may be there."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("no folder")
    for words in (("phantom", tmp_path / "a"), ("nobody", tmp_path / "a"), ("brain_ms", tmp_path / "a", "--patients", 1),
                  ("brain_ms", tmp_path / "a", "--seed", -1), ("brain_ms", tmp_path / "full"), ("brain_ms", tmp_path / "file"),
                  ("brain_ms", tmp_path / "file" / "below"), ("brain_ms", "/proc/nothing/is/made")):
        assert check("phantom", *words) == 2
    (tmp_path / "empty").mkdir()
    assert check("phantom", "brain_ms", tmp_path / "empty", "--patients", 2) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file", "full"]

    def write(out: Path, n: int, seed: int) -> None:
        (out / "half").mkdir()
        raise KeyboardInterrupt
    monkeypatch.setitem(SOURCES, "brain_ms", replace(SOURCES["brain_ms"], write_phantom=write))
    assert check("phantom", "brain_ms", tmp_path / "cut") == 130
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file", "full"]


def test_a_read_only_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As OUT or above it; a superuser, who may write anywhere, becomes nobody for this test."""
    os.chmod(tmp_path, 0o755)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "closed" / "out").mkdir(parents=True)
    for p in (tmp_path / "closed" / "out", tmp_path / "closed"):
        os.chmod(p, 0o555)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        for out in ("closed/out", "closed/new"):
            with pytest.raises(BadRequest, match="expected a"):
                data_check.run_phantom(argparse.Namespace(name="brain_ms", out=out, patients=2, seed=0))
    finally:
        os.seteuid(user)
    assert not list((tmp_path / "closed" / "out").iterdir())
    os.chmod(tmp_path / "closed", 0o755)


# The cache


def counted(monkeypatch: pytest.MonkeyPatch) -> list[DataRef]:
    """Note each time that a data set is read in order to be prepared."""
    read, calls = batches.read_cohort, []
    monkeypatch.setattr(batches, "read_cohort", lambda ref, *rest: calls.append(ref) or read(ref, *rest))
    return calls


def test_the_cache_is_made_anew_when_anything_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte of a file, a file more, an option, the code; not a new date, and not a second call."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(folder.parent / "home"))
    calls, ref = counted(monkeypatch), DataRef("brain_ms", folder)

    def hashes(**options: object) -> tuple[str, int]:
        return slices.prepare(ref, *WIDE, **options).hash, len(calls)
    first = hashes()
    os.utime(file_of(folder, "T1"))
    assert hashes() == first == (first[0], 1)
    shutil.copy(next((folder / "patient02").glob("T1_*")), file_of(folder, "T1"))
    changed = hashes()
    assert changed[1] == 2 and changed[0] != first[0]
    (folder / "patient03").mkdir()
    shutil.copy(next((folder / "patient02").glob("GOLD*")), folder / "patient03")
    assert hashes()[1] == 3 and hashes(outline_px=1)[1] == 4
    monkeypatch.setattr(preparation, "PREPARATION", 2)
    assert hashes()[1] == 5


def test_a_file_that_vanishes_while_data_is_prepared_is_a_bad_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is named, and nothing half-made is in the cache."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(folder.parent / "home"))
    read, path = batches.read_cohort, file_of(folder, "T2")

    def read_and_lose(*words: object) -> Cohort:
        cohort = read(*words)
        path.unlink()
        return cohort
    monkeypatch.setattr(batches, "read_cohort", read_and_lose)
    with pytest.raises(BadRequest, match="patient01.*T2_.*run again"):
        slices.prepare(DataRef("brain_ms", folder), *WIDE)
    assert not list((home() / "cache").iterdir())


def test_one_patient_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading, checking and preparing ten patients never holds two; the cache is a map of files, and a copy when written to."""
    alive, most = [], []

    def read(i: int) -> Patient:
        x = phantom.draw_patient(0, 0, (48, 40), 2)
        p = replace(x, name=f"p{i}", images={m: np.roll(v, i, 2) for m, v in x.images.items()})
        alive.append(i)
        weakref.finalize(p, alive.remove, i)
        most.append(len(alive))
        return p
    readers = {f"p{i}": (lambda i=i: read(i)) for i in range(5)}
    patients, bad = gather("phantom", readers, tuple(phantom.SEQUENCES), 5)
    cohort = Cohort("phantom", tuple(phantom.SEQUENCES), 5, False, patients, frozenset({"p4"}), bad)
    monkeypatch.setattr(batches, "read_cohort", lambda *_: cohort)
    data = slices.prepare(parse_data("phantom"), (48, 40), 1, {"seed": 7001})
    assert len(most) == 10 and max(most) == 1 and not alive and data.patients == tuple(readers)
    whole = slices.reduced_cohort(replace(cohort, patients=list(patients)), (48, 40), 1)
    assert data.tensors.keys() == whole.keys() and all(torch.equal(v, whole[n]) for n, v in data.tensors.items())
    data.x[0] = 5
    assert torch.equal(slices.prepare(parse_data("phantom"), (48, 40), 1, {"seed": 7001}).x, whole["x"])


BUILD = """
import sys, time
from pathlib import Path
from medsynth.data.batches import parse_data
from medsynth.structure import slices
write, signs, mine = slices.write_reduced, Path(sys.argv[1]), sys.argv[2]
def slow(cohort, folder, *words, **more):
    write(cohort, folder, *words, **more)
    (signs / mine).write_text("built")
    deadline = time.time() + 300
    while len(list(signs.iterdir())) < 2 and time.time() < deadline:
        time.sleep(0.02)
slices.write_reduced = slow
data = slices.prepare(parse_data("phantom"), (48, 40), 1, {"n_patients": 2, "n_test": 1, "n_slices": 2, "seed": 7002})
print(data.hash, float(data.x.double().sum()), float(data.s.sum()))
"""
TINY = ((48, 40), 1, {"n_patients": 2, "n_test": 1, "n_slices": 2, "seed": 7002})


def builder(signs: Path, name: str, own_home: Path) -> subprocess.Popen:
    """Start a process that prepares a tiny phantom and waits, its folder full, until two signs are there."""
    signs.mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, "-c", BUILD, str(signs), name], stdout=subprocess.PIPE, text=True,
                            env=os.environ | {"MEDSYNTH_HOME": str(own_home)})


def test_two_processes_build_the_cache_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have a full folder when either is renamed; both end well with the same numbers, and one folder is there."""
    children = [builder(tmp_path / "signs", name, tmp_path / "home") for name in ("a", "b")]
    said = [c.communicate(timeout=600)[0] for c in children]
    assert [c.returncode for c in children] == [0, 0] and said[0] == said[1] and said[0]
    assert len(list((tmp_path / "home" / "cache").iterdir())) == 1
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path / "home"))
    calls = counted(monkeypatch)
    data = slices.prepare(parse_data("phantom"), *TINY)
    assert said[0].split() == [data.hash, str(float(data.x.double().sum())), str(float(data.s.sum()))] and not calls


def test_a_process_killed_while_it_builds_leaves_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9: no cache is there, the next call makes it; the hidden folder is removed when it is old."""
    child = builder(tmp_path / "signs", "a", tmp_path / "home")
    deadline = time.time() + 300
    while not (tmp_path / "signs" / "a").exists() and time.time() < deadline and child.poll() is None:
        time.sleep(0.02)
    child.kill()
    assert child.wait() == -9
    left = list((tmp_path / "home" / "cache").iterdir())
    assert len(left) == 1 and left[0].name.startswith(".phantom") and (left[0] / "x.npy").exists()
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path / "home"))
    data = slices.prepare(parse_data("phantom"), *TINY)
    whole = slices.reduced_cohort(phantom.phantom_cohort(2, 1, 2, (48, 40), 7002), (48, 40), 1)
    assert all(torch.equal(v, data.tensors[n]) for n, v in whole.items())
    path = home() / "cache" / f"phantom-48x40-{data.hash}"
    arrays.remove_leftovers(path)
    assert left[0].is_dir(), "it may be another process's at work"
    arrays.remove_leftovers(path, 0)
    assert list((tmp_path / "home" / "cache").iterdir()) == [path]
    (path / "x.npy").write_bytes((path / "x.npy").read_bytes()[:-9])
    with pytest.raises(BadRequest, match="Delete the folder"):
        slices.prepare(parse_data("phantom"), *TINY)


RECORDED = {  # sums of the prepared tensors before the cache became a folder of arrays (commit 15eb460)
    "phantom": {"x": 23604.3048, "s": 6631, "m": 11219, "l": 841, "labels": 602, "s_full": 20344, "m_full": 45523, "test": 4},
    "brain_ms": {"x": 1234656.103, "s": 192474, "m": 925182, "l": 16257, "labels": 133693, "s_full": 531160, "m_full": 3723648,
                 "test": 70},
    "brats2015_subset": {"x": 988991.2534, "s": 281119, "m": 1122500, "l": 342634, "labels": 266257, "s_full": 823803,
                         "m_full": 4532340, "test": 100}}


def assert_recorded(data: slices.Slices) -> None:
    """Every sum is what it was; a part in ten thousand is left to other processors' arithmetic."""
    for name, value in RECORDED[data.name].items():
        assert float(data.tensors[name].double().sum()) == pytest.approx(value, rel=1e-4), name


def test_the_phantom_is_prepared_as_before() -> None:
    """The numbers of the commit before, bit for bit when they were made."""
    assert_recorded(slices.prepare(parse_data("phantom"), (48, 40), 2, {"n_patients": 3, "n_test": 1, "n_slices": 4}))


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["brain_ms", "brats2015_subset"])
def test_real_data_is_prepared_as_before(name: str, request: pytest.FixtureRequest) -> None:
    """The numbers of the commit before, at the size of demo."""
    assert_recorded(slices.prepare(DataRef(name, request.getfixturevalue(name)), (96, 80), 2))


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["brain_ms", "brats2015_subset"])
def test_real_data_checks(name: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture) -> None:
    """Complete, nothing set aside, no image twice: not one warning, with --strict."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check("check", f"{name}={request.getfixturevalue(name)}", "--strict") == 0
    said = capsys.readouterr().out
    assert "warning" not in said and "0 within, 0 across sides" in said


def test_a_patient_on_disk_who_changed_is_a_bad_record(folder: Path) -> None:
    """Between two readings a modality is removed: asked for again, the patient is refused and the file named."""
    cohort = brain_ms.read_brain_ms(folder, needs=("T1", "Flair"))
    assert [f.name for f in facts_of(cohort.patients)] == ["patient01", "patient02", "patient26"]
    assert cohort.patients[-1].name == "patient26" and cohort.patients[1:][0].name == "patient02"
    lacking(folder)
    with pytest.raises(BadRecord, match="patient01: expected 10 images of Flair, T1, T1c, T2"):
        cohort.patients[0]
    assert [p.name for p in split_patients(cohort)["test"]] == ["patient26"], "who is not asked for is not read"
