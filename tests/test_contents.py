"""The data hash: of what readers open, by content, read once, on every source's phantom and on real folders."""
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import real_folder
from medsynth.cli import main
from medsynth.core.paths import home
from medsynth.data import batches, brain_ms, brats_full
from medsynth.data.batches import SOURCES, DataRef, changed_unseen, data_hash, files_opened, read_contents
from medsynth.data.chest_xray import film_folder

pytestmark = pytest.mark.long

OLD = 10**9  # seconds: a time in 2001, at which a content can be remembered
SMALL = {"SHAPE": (44, 52, 20), "HEIGHTS": slice(4, 14), "ROWS": slice(6, 46), "COLUMNS": slice(4, 36)}

# What is hashed is what is opened

CROPPED = {"SHAPE": (144, 184, 50), "HEIGHTS": slice(0, 50), "ROWS": slice(0, 184), "COLUMNS": slice(0, 144)}
WATCH = f"SMALL, CROPPED = {SMALL}, {CROPPED}" + """
import json, os, sys
from pathlib import Path
import SimpleITK
from medsynth.data import brain_ms, brats, brats_full
from medsynth.data.batches import SIZED, SOURCES, DataRef, files_opened, read_cohort, sized
opened = set()
sys.addaudithook(lambda event, words: opened.add(words[0]) if event == "open" else None)
named = SimpleITK.ImageFileReader.SetFileName  # SimpleITK opens files out of Python's sight: what it is told to open counts
SimpleITK.ImageFileReader.SetFileName = lambda reader, name: opened.add(name) or named(reader, name)

def look(name, folder, side):
    (read, write), real = (sized(word, side) if side else {} for word in SIZED.get(name, ("", ""))), folder.exists()
    if not real:  # brains are written without what is cut off
        vars(brain_ms).update(SMALL)
        [vars(module).update(CROPPED) for module in (brats, brats_full)]
        brats.cut.__defaults__, brats_full.read_mha.__defaults__ = (CROPPED["HEIGHTS"],), (None, CROPPED["HEIGHTS"])
        SOURCES[name].write_phantom(folder, 2, 0, **write)
    ref = DataRef(name, folder)
    opened.clear()
    hashed = list(files_opened(ref))
    assert not below(folder), "nothing is opened in order to say what would be"
    cohort = read_cohort(ref, **read)
    first = below(folder)
    assert real or len(list(cohort.patients)) == len(cohort.patients) > 1 and first == below(folder), cohort.set_aside
    return hashed, first

def below(folder):
    paths = [Path(os.fsdecode(p)) for p in opened if isinstance(p, (str, bytes, os.PathLike))]
    return sorted(p.relative_to(folder).as_posix() for p in paths if p.is_relative_to(folder))

print(json.dumps([look(name, Path(folder), side) for name, folder, side in json.loads(sys.argv[1])]))
"""


def watched(*sets: tuple[str, Path, int]) -> dict[str, tuple[list[str], list[str]]]:  # name -> files hashed, files opened
    """Read data sets in a process of its own, for an audit hook cannot be removed; phantoms are written where none is."""
    words = [sys.executable, "-W", "ignore", "-c", WATCH, json.dumps([(n, str(f), side) for n, f, side in sets])]
    said = subprocess.run(words, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    return dict(zip((n for n, _, _ in sets), json.loads(said.stdout), strict=True))


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[str], list[str]]]:
    """Every source's phantom, small where its reader allows it: the files hashed, and those opened."""
    out = tmp_path_factory.mktemp("phantoms")
    return watched(*((name, out / name, 96 if name in batches.SIZED else 0) for name in SOURCES))


@pytest.mark.parametrize("name", list(SOURCES))
def test_what_is_hashed_is_what_a_reader_opens(name: str, phantoms: dict) -> None:
    """On its phantom: no file more, none less; all patients are read, twice."""
    hashed, opened = phantoms[name]
    assert hashed == opened and len(hashed) > 1


REAL = {  # data set -> its folder, what of it is read here (the rest is only listed), every which file, and all that is listed
    "brain_ms": ("brain_ms", ("patient26", "patient01", "LICENSE*"), 1, 42),
    "brats2015_subset": ("brats2015_subset", ("train/*",), 2, 24),
    "drive": ("DRIVE", ("test/*/*", "training/*/*"), 20, 120),
    "chest_xray_224": ("chest_xray", ("*/*/*",), 500, 5840),
    "lidc_lungs": ("lidc_lungs", ("images/*", "masks/*"), 20, 217)}


@pytest.fixture(scope="module")
def links(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[str], list[str]]]:
    """Links to a few files of each real data set that is there: the files hashed, and those opened."""
    out, sets = tmp_path_factory.mktemp("links"), []
    for name, (folder, parts, step, _) in REAL.items():
        real = Path(os.environ["MEDSYNTH_DATA"]).absolute() / folder
        for path in (p for part in parts for p in sorted(real.glob(part))[::step]):
            (out / name / path.relative_to(real)).parent.mkdir(parents=True, exist_ok=True)
            (out / name / path.relative_to(real)).symlink_to(path)
        if name == "lidc_lungs" and real.is_dir():  # the rows of the slices that are linked
            head, *rows = (real / "boxes.csv").read_text().splitlines()
            there = [r for r in rows if (out / name / "images" / f"{r.split(',')[0]}.png").exists()]
            (out / name / "boxes.csv").write_text("\n".join([head, *there]))
        sets += [(name, out / name, 96 if name == "drive" else 0)] if real.is_dir() else []
    return watched(*sets)


@pytest.mark.real_data
@pytest.mark.parametrize("name", list(REAL))
def test_what_is_hashed_of_real_files_is_what_a_reader_opens(name: str, request: pytest.FixtureRequest) -> None:
    """On links to a few of them, licences among them; of the whole set nothing but licences is left out."""
    real, n = real_folder(REAL[name][0]), REAL[name][3]
    hashed, opened = request.getfixturevalue("links")[name]
    assert hashed == opened and len(hashed) >= 4
    listed = files_opened(DataRef(name, real))
    rest = {p.name for p in real.rglob("*") if p.is_file()} - {p.name for p in listed.values()}
    assert len(listed) == n and all(r.lower().startswith("license") for r in rest)


def made(folder: Path, *names: str) -> None:
    """Write small files, each of its own content, old enough to be remembered."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 3)
        os.utime(folder / name, (OLD, OLD))


def test_patterns_fit_what_the_names_of_brats_fit(tmp_path: Path) -> None:
    """Globs cannot say all that a regular expression can; here they say the same, hidden folders and linked ones too."""
    ends = ("_t1.nii", "-t1n.nii.gz", "_T1CE.NII.gz", "_seg.nii", "-segm.nii.gz", "_t1gd.nii", "t1.nii", "_t2.nii.bz2")
    made(tmp_path / "n", *(f"{d}/x{e}" for d in ("a", ".b/c", "d/e/f") for e in ends), "a/.y_t1.nii", "z_flair.nii")
    (tmp_path / "n" / "link").symlink_to(tmp_path / "n" / "a")
    found = {p for d in tmp_path.rglob("*") for ps in brats_full.find_files(d, "*", brats_full.NIFTI).values() for p in ps}
    opened = set(files_opened(DataRef("brats_nifti", tmp_path / "n")).values())
    assert opened == {p for p in found if "link" not in p.parts} and len(opened) == 16
    ends = ("T1.mha", "MR_T1c.12.mha", "mr_flair.a.b.MHA", "OT.5.mha", "T1.mhax", "T1.xmha", "MR_DWI.1.mha", "T1.1.mhd")
    made(tmp_path / "m", *(f"{d}/y.{e}" for d in ("HGG/a/v", "LGG/b", "HGG/.c", "HGG", "XGG/d") for e in ends))
    for folder in (tmp_path / "m", tmp_path / "m" / "BRATS2015_Training"):  # without it, and with it: then nothing else counts
        opened = set(files_opened(DataRef("brats2015", tmp_path / "m")).values())
        found = {p for g in ("HGG/a", "LGG/b") for ps in brats_full.find_files(folder / g, "**/*", brats_full.MHA).values()
                 for p in ps}
        assert opened == found and len(opened) == 8
        shutil.copytree(tmp_path / "m", tmp_path / "m" / "BRATS2015_Training", dirs_exist_ok=True)


def test_of_a_folder_in_a_folder_one_counts(tmp_path: Path) -> None:
    """Kaggle's own download of chest films holds them twice, and a third time as macOS leaves them."""
    film = "train/NORMAL/IM-0115-0001.jpeg"
    made(tmp_path, film, "train/NORMAL/notes.jpeg", "train/PNEUMONIA/IM-0116-0001.jpeg", f"chest_xray/{film}", f"__MACOSX/{film}")
    assert list(files_opened(DataRef("chest_xray", tmp_path))) == [film] and film_folder(tmp_path) == tmp_path
    shutil.rmtree(tmp_path / "train")
    assert list(files_opened(DataRef("chest_xray", tmp_path))) == [f"chest_xray/{film}"]


# What changes the hash, and what does not

NAMES = [f"patient{i:02d}/{n}_x.nii.gz" for i in (1, 2, 26) for n in ("T1", "T2", "T1POST", "FLAIR", "GOLD_STANDARD")]


@pytest.fixture
def ref(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataRef:
    """Fifteen small files in the layout of brain_ms, and a home of its own."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path / "home"))
    made(tmp_path / "data", *NAMES)
    return DataRef("brain_ms", tmp_path / "data")


@pytest.fixture
def opened(ref: DataRef, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The data set's files that are opened, as they are opened."""
    real, said = Path.open, []

    def note(path: Path, *words: object, **more: object) -> object:
        if path.is_relative_to(ref.path):
            said.append(path.relative_to(ref.path).as_posix())
        return real(path, *words, **more)
    monkeypatch.setattr(Path, "open", note)
    return said


def memory() -> Path:
    """The one file in which contents are remembered."""
    return next((home() / "contents").iterdir())


def in_place(path: Path, at: int = 4) -> None:
    """Change a byte, and set the time back: the same size, time, name and inode. In a gzip file byte 4 is of its date alone."""
    before = path.stat()
    with path.open("r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns)


def test_a_second_hash_opens_no_file(ref: DataRef, opened: list[str]) -> None:
    """Each is opened once, in order; then none, nor is the memory written; then the one that has another time."""
    first = data_hash(ref, {})
    assert opened == sorted(NAMES)
    written = memory().stat()
    assert data_hash(ref, {}) == first != data_hash(ref, {"a": 1}) and len(opened) == 15
    assert memory().stat().st_ino == written.st_ino and memory().name.startswith("brain_ms-")
    os.utime(ref.path / NAMES[3])
    assert data_hash(ref, {}) == first and opened[15:] == [NAMES[3]], "a date is in no hash"


def test_what_no_reader_opens_is_in_no_hash(ref: DataRef, opened: list[str]) -> None:
    """At the root and in a patient's folder: what computers leave there, a licence, a file of nobody's; it is not read either."""
    first = data_hash(ref, {})
    for name in (".DS_Store", "Thumbs.db", "._T1_x.nii.gz", "LICENSE.txt", "notes/T1_x.nii.gz", "T1_x.nii.gz"):
        made(ref.path, name, f"patient01/{name}" if name[:2] != "T1" else name)
    (ref.path / "patient01" / "T2_y.nii.gz").mkdir()
    (ref.path / "patient01" / "T2_z.nii.gz").symlink_to("absent")
    (ref.path / "patient01" / "again").symlink_to(ref.path)
    opened.clear()
    assert data_hash(ref, {}) == first and not opened


def test_a_copy_elsewhere_has_the_same_hash(ref: DataRef, tmp_path: Path) -> None:
    """Other inodes and times, and a link to where a patient really is; a memory of its own."""
    shutil.copytree(ref.path, tmp_path / "copy", copy_function=shutil.copyfile)
    (tmp_path / "copy" / "patient01").rename(tmp_path / "elsewhere")
    (tmp_path / "copy" / "patient01").symlink_to(tmp_path / "elsewhere")
    made(tmp_path / "copy", NAMES[-1])
    assert data_hash(DataRef("brain_ms", tmp_path / "copy"), {}) == data_hash(ref, {})
    assert len(list((home() / "contents").iterdir())) == 2


def new_content(folder: Path) -> None:
    """Write other bytes of the same number, now."""
    (folder / NAMES[0]).write_bytes((folder / NAMES[0]).read_bytes().swapcase())


def replaced(folder: Path) -> None:
    """Put another file in a file's place, of the same size and time."""
    made(folder, "new")
    (folder / "new").write_bytes((folder / NAMES[0]).read_bytes().swapcase())
    os.utime(folder / "new", (OLD, OLD))
    (folder / "new").replace(folder / NAMES[0])


def renamed(folder: Path) -> None:
    """Call a patient otherwise."""
    (folder / "patient02").rename(folder / "patient03")


def gone(folder: Path) -> None:
    """Remove a file."""
    (folder / NAMES[0]).unlink()


def swapped(folder: Path) -> None:
    """Let two files change places."""
    for old, new in ((NAMES[0], "x"), (NAMES[1], NAMES[0]), ("x", NAMES[1])):
        (folder / old).rename(folder / new)


def marked(folder: Path) -> None:
    """Say that they are phantoms."""
    made(folder, batches.MARK)


@pytest.mark.parametrize("change", [new_content, replaced, renamed, gone, swapped, marked], ids=lambda f: f.__name__)
def test_another_content_or_name_is_another_hash(ref: DataRef, change: Callable) -> None:
    """And what is remembered is what is there, nothing else."""
    first = data_hash(ref, {})
    change(ref.path)
    assert data_hash(ref, {}) != first
    os.utime(ref.path / NAMES[-1], (OLD + 1, OLD + 1))
    data_hash(ref, {})
    assert json.loads(memory().read_bytes()).keys() == files_opened(ref).keys() - ({NAMES[0]} if change == new_content else set())


# What is remembered


@pytest.mark.parametrize("garbage", [b"", b"{", b"\xff\xfe", b"[1]", b"3", b"[" * 10**5, b'{"patient01/T1_x.nii.gz": 5}', None])
def test_a_damaged_memory_is_made_anew(ref: DataRef, garbage: bytes | None) -> None:
    """Nothing, half a file, another file: the hash is what it was; None: each entry lacks its end."""
    first, whole = data_hash(ref, {}), json.loads(memory().read_bytes())
    memory().write_bytes(json.dumps({f: e[:3] for f, e in whole.items()}).encode() if garbage is None else garbage)
    assert data_hash(ref, {}) == first and json.loads(memory().read_bytes()) == whole


def test_what_changed_just_now_is_not_remembered(ref: DataRef, opened: list[str]) -> None:
    """Within two seconds, to either side, it is read each time; so is a file that changed while it was read."""
    path, now = ref.path / NAMES[0], time.time()
    for seconds, remembered in ((0, False), (1, False), (-1, False), (-60, True), (3600, True)):
        os.utime(path, (now + seconds, now + seconds))
        data_hash(ref, {})
        assert (NAMES[0] in json.loads(memory().read_bytes())) == remembered
    assert opened.count(NAMES[0]) == 5 and opened.count(NAMES[1]) == 1
    busy = SimpleNamespace(update=lambda n: os.utime(path, (OLD, OLD)))
    assert not batches._hashed(path, busy)[1] and batches._hashed(path, busy)[1]


def test_who_is_interrupted_has_not_read_in_vain(ref: DataRef, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at the fourth file: three are remembered, and not opened again."""
    real = batches._hashed

    def read(path: Path, bar: object) -> tuple[list, bool]:
        if len(opened) == 3:
            raise KeyboardInterrupt
        return real(path, bar)
    monkeypatch.setattr(batches, "_hashed", read)
    with pytest.raises(KeyboardInterrupt):
        data_hash(ref, {})
    monkeypatch.undo()
    monkeypatch.setenv("MEDSYNTH_HOME", str(ref.path.parent / "home"))
    assert list(json.loads(memory().read_bytes())) == sorted(NAMES)[:3] == opened


def test_two_at_once_do_no_harm(ref: DataRef, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight hash at once; and what a check corrects while another one reads stays corrected."""
    with ThreadPoolExecutor(8) as pool:
        hashes = set(pool.map(lambda _: data_hash(ref, {}), range(8)))
    assert len(hashes) == 1 and json.loads(memory().read_bytes()).keys() == set(NAMES)
    in_place(ref.path / NAMES[1])
    made(ref.path, NAMES[0])
    os.utime(ref.path / NAMES[0], (OLD + 5, OLD + 5))
    real, said = batches._hashed, []

    def read(path: Path, bar: object) -> tuple[list, bool]:
        if not said:
            said.append(None)
            said.append(read_contents(ref, again=True)[1])
        return real(path, bar)
    monkeypatch.setattr(batches, "_hashed", read)
    late = data_hash(ref, {})  # began to read before the check, and took the old content for what is there
    assert late in hashes and list(said[1]) == [NAMES[1]] and data_hash(ref, {}) not in hashes


# `medsynth data check`


def test_a_check_names_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """A byte changed in place, the time set back: the hash does not see it, the check does, once; then the hash is another."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path / "home"))
    for name, value in SMALL.items():
        monkeypatch.setattr(brain_ms, name, value)
    brain_ms.write_brain_ms(tmp_path / "data", 2)
    for file in tmp_path.rglob("*.nii.gz"):
        os.utime(file, (OLD, OLD))
    brains = DataRef("brain_ms", tmp_path / "data")
    path = brains.path / "patient01" / "T1_phantom.nii.gz"
    data, old = f"brain_ms={brains.path}", sha256(path.read_bytes()).hexdigest()[:12]
    first = data_hash(brains, {})
    in_place(path)
    assert data_hash(brains, {}) == first, "the limit that a memory by size, time, name and inode has"
    assert main(["data", "check", data, "--strict"]) == 2
    said, new = capsys.readouterr(), sha256(path.read_bytes()).hexdigest()[:12]
    lines = [row for row in said.out.splitlines() if row.startswith("warning: ") and "phantom.nii.gz" in row]
    assert len(lines) == 1 and f"{path}: expected" in lines[0] and old in lines[0] and f"found {new}" in lines[0]
    assert lines[0].endswith("What was prepared from it before is not used again.")
    assert str(path) in said.err and "0, 0 and 1" in said.err
    second = data_hash(brains, {})
    assert second != first and main(["data", "check", data, "--strict"]) == 0 and data_hash(brains, {}) == second
    in_place(path)
    assert len(changed_unseen(brains)) == 1 and data_hash(brains, {}) == first


def test_a_check_is_not_alarmed_by_what_can_be_seen(ref: DataRef) -> None:
    """Nothing remembered yet, a new date, another content with another time, a file less: none of them changed unseen."""
    paths = [ref.path / n for n in NAMES]
    for change in (lambda: None, paths[0].touch, lambda: paths[1].write_bytes(b"other"), paths[2].unlink,
                   lambda: (in_place(paths[3]), os.utime(paths[3], (OLD + 1, OLD + 1)))):
        change()
        assert not changed_unseen(ref)
    in_place(paths[4])
    assert len(changed_unseen(ref)) == 1 and not changed_unseen(DataRef("phantom", None))


def test_a_file_that_cannot_be_read_is_left_to_the_reader(ref: DataRef, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check goes on with the others; a hash of what cannot be read there is none."""
    real = Path.open

    def refuse(path: Path, *words: object, **more: object) -> object:
        if path == ref.path / NAMES[0]:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *words, **more)
    monkeypatch.setattr(Path, "open", refuse)
    assert read_contents(ref, again=True)[0].keys() == set(NAMES[1:])
    with pytest.raises(PermissionError, match="T1_x"):
        data_hash(ref, {})
