"""Chest X-rays: the phantom's truth, the round trip through Kaggle's layout, persons and pictures on one side, and bad files."""
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import real_folder
from medsynth.core.paths import BadRecord, BadRequest
from medsynth.data.chest_phantom import draw_chest
from medsynth.data.chest_xray import (
    MAX_PIXELS,
    SOURCES,
    parse_name,
    phantom_films,
    read_chest_xray,
    read_film,
    survey,
    write_chest_xray,
)
from medsynth.data.samples import Cohort, facts_of, split_patients

SIZE = (64, 64)
VICTIM = "train/PNEUMONIA/person1_bacteria_1.jpeg"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine phantom persons in the official layout; read only."""
    root = tmp_path_factory.mktemp("films") / "chest_xray"
    write_chest_xray(root, 9, 0, SIZE)
    return root


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy of the phantom's folder, under a name with a space and letters beyond ASCII."""
    return Path(shutil.copytree(written, tmp_path / "Röntgen 胸 片" / "chest_xray"))


def read(path: Path, size: tuple[int, int] = SIZE) -> Cohort:
    """Read a folder small."""
    return read_chest_xray(path, size=size)


def quietly(path: Path) -> Cohort:
    """Read a folder of which warnings are expected."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read(path)


@pytest.mark.long
def test_what_is_written_is_read(written: Path) -> None:
    """Pixels to JPEG's precision; class, person and side exactly; no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cohort = read(written.parent)
    patients, seen = {p.name: p for p in cohort.patients}, Counter()
    assert cohort.modalities == ("X-ray",) and cohort.n_classes == 3 and not cohort.set_aside
    for name, film in phantom_films(9, 0, SIZE):
        person, kind, _ = parse_name(Path(name).stem)
        p, i = patients[person], seen[person]
        seen[person] += 1
        assert kind == film.kind == p.classes[i] and (person in cohort.test) == name.startswith("test")
        error = np.abs(p.images["X-ray"][i] - film.image)
        assert error.mean() < 0.01 and error.max() < 0.15
        assert not p.label.any() and not p.labelled and p.images["X-ray"].dtype == np.float32
    assert {n: len(p.classes) for n, p in patients.items()} == seen and sum(seen.values()) == 12
    assert {s: len(ps) for s, ps in split_patients(cohort).items()} == {"train": 6, "test": 3}


def test_the_thesis_and_the_repackaged_size(written: Path) -> None:
    """512x512 by default and 224x224 by the second source."""
    assert read_chest_xray(written).patients[0].images["X-ray"].shape[1:] == (512, 512)
    assert [s.name for s in SOURCES] == ["chest_xray", "chest_xray_224"]
    cohort = SOURCES[1].read(written)
    assert sum(cohort.counts.values()) == sum(f.n_images for f in facts_of(cohort.patients)), "films, as was published"
    assert cohort.counts["test"] == sum(f.n_images for f in facts_of(cohort.patients) if f.name in cohort.test) > 0
    assert cohort.name == "chest_xray_224" and cohort.patients[0].images["X-ray"].shape[1:] == (224, 224)


@pytest.mark.long
def test_phantoms_are_reproducible_and_their_disease_is_where_it_belongs(tmp_path: Path) -> None:
    """The same seed gives the same bytes; none, one or both lungs are ill; the same person is drawn at any size."""
    for out in ("a", "b"):
        write_chest_xray(tmp_path / out, 3, 5, SIZE)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.jpeg"))
    assert len(files) == 3 and all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    normal, focal, diffuse = (draw_chest(3, 1, kind, (96, 96)) for kind in range(3))
    halves = [[bool(f.opacity[:, :48].any()), bool(f.opacity[:, 48:].any())] for f in (normal, focal, diffuse)]
    assert halves[0] == [False, False] and sum(halves[1]) == 1 and halves[2] == [True, True]
    ill = focal.opacity > 0
    assert (focal.image - normal.image)[ill].mean() > 0.08 and abs((focal.image - normal.image)[~ill].mean()) < 0.02
    large = draw_chest(3, 1, 1, (192, 192)).opacity.reshape(96, 2, 96, 2).mean((1, 3)) > 0.5
    assert (large & ill).sum() * 2 > 0.95 * (large.sum() + ill.sum())
    assert draw_chest(3, 1, 2, (72, 104)).image.shape == (72, 104)


def test_names_say_person_and_class() -> None:
    """Kinds count their persons apart; films of one person belong together."""
    assert parse_name("person12_virus_7_2") == ("person12_virus", 2, (7, 2))
    assert parse_name("NORMAL2-IM-0246-0001-0002") == ("NORMAL2-IM-0246", 0, (1, 2))
    assert len({parse_name(n)[0] for n in ("person1_bacteria_1", "person1_virus_6", "person01_bacteria_2", "IM-0001-0001")}) == 3
    for odd in ("person1_fungus_2", "person_bacteria_2", "IM-0115", "person1_bacteria_2 (copy)", "person1_bacteria_²"):
        with pytest.raises(BadRecord, match="person1_bacteria_2"):
            parse_name(odd)


def sides(path: Path) -> dict[str, set[str]]:
    """Which persons and which pictures (hashes of the files) are served on each side."""
    out = {"train": set(), "test": set()}
    for person, shots in survey(path).persons.items():
        assert len({s.side for s in shots}) == 1, person
        for s in shots:
            out[s.side] |= {s.person, s.digest}
    return out


def test_nobody_and_no_picture_is_on_both_sides(folder: Path) -> None:
    """D12: a person of both folders, and a picture of two persons in both, stay on the test side; all are named."""
    target = next((folder / "test/PNEUMONIA").glob("*bacteria*"))
    tested = parse_name(target.stem)[0]
    write = folder / "train/PNEUMONIA" / f"{tested}_999.jpeg"
    shutil.copy(folder / VICTIM, write)  # a name of the test side in train, and a picture of person1
    shutil.copy(target, folder / "train/PNEUMONIA/person2_virus_77.jpeg")
    before = len(list(folder.rglob("*.jpeg")))
    with pytest.warns(UserWarning) as said:
        cohort = read(folder)
    text = " ".join(str(w.message) for w in said)
    assert "person2_virus_77.jpeg" in text and target.name in text and "pictures under several names" in text
    both = sides(folder)
    assert not both["train"] & both["test"]
    assert {"train/PNEUMONIA/person2_virus_77.jpeg", VICTIM, f"train/PNEUMONIA/{write.name}"} <= set(cohort.set_aside)
    assert any(n.startswith("train/PNEUMONIA/person2_virus_") and "77" not in n for n in cohort.set_aside), "the whole person"
    assert sum(len(p.classes) for p in cohort.patients) + len(cohort.set_aside) == before
    assert sum(len(p.classes) for p in cohort.patients if p.name in cohort.test) == 3, "the test side is whole"


def test_a_picture_repeated_on_one_side_stays_and_makes_one_person(folder: Path) -> None:
    """A picture stored anew, as RGB with another header, is the same picture."""
    with Image.open(folder / VICTIM) as picture:
        picture.load()
        picture.save(folder / VICTIM.replace("person1_bacteria_1", "person50_bacteria_50").replace("jpeg", "png"))
    with pytest.warns(UserWarning, match="1 pictures under several names.*person50_bacteria_50.png"):
        cohort = read(folder)
    assert not cohort.set_aside and "person50_bacteria" not in [f.name for f in facts_of(cohort.patients)]
    assert len(next(p for p in cohort.patients if p.name == "person1_bacteria").classes) == 2


def put(content: bytes) -> Callable[[Path], object]:
    """Write bytes in place of a film."""
    return lambda path: path.write_bytes(content)


def truncated(path: Path) -> None:
    """Cut a file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def absurd(path: Path) -> None:
    """Claim 65,535 x 65,535 pixels in the header."""
    content = bytearray(path.read_bytes())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)


def above_our_limit(path: Path) -> None:
    """Claim 9,000 x 9,000 pixels, which Pillow alone would decode."""
    content = bytearray(path.read_bytes())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = (9000).to_bytes(2, "big") * 2
    path.write_bytes(content)
    assert MAX_PIXELS < 9000**2


def constant(path: Path) -> None:
    """Write a film without contrast."""
    Image.new("L", SIZE, 90).save(path)


def coloured(path: Path) -> None:
    """Write a photograph."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)


def another_format(path: Path) -> None:
    """Write a GIF under a JPEG's name."""
    Image.new("L", SIZE, 90).save(path, "GIF")


def unknown_name(path: Path) -> None:
    """Give a film a name that says nothing."""
    path.rename(path.with_name("scan é 7.jpeg"))


def wrong_folder(path: Path) -> None:
    """Put a pneumonia among the healthy."""
    path.rename(path.parent.parent / "NORMAL" / path.name)


def a_folder(path: Path) -> None:
    """Put a folder where a film should be."""
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    """Put a link to itself where a film should be."""
    path.unlink()
    path.symlink_to(path)


def gone(path: Path) -> None:
    """Put a link to nothing where a film should be."""
    path.unlink()
    path.symlink_to(path.parent / "absent.jpeg")


BAD = [(truncated, "truncated"), (put(b"no film"), "cannot identify"), (put(b"\xff\xd8\xff"), "readable"), (absurd, "pixels"),
       (above_our_limit, "9000x9000"), (constant, "everywhere"), (coloured, "grey film"), (another_format, "cannot identify"),
       (unknown_name, "scan é 7"), (wrong_folder, "folder NORMAL"), (a_folder, "directory"), (loop, "symbolic links"),
       (gone, "No such file")]


@pytest.mark.parametrize(("spoil", "says"), BAD, ids=[f"{i}-{f.__name__}" for i, (f, _) in enumerate(BAD)])
def test_a_bad_file_is_named_and_the_rest_goes_on(folder: Path, spoil: Callable, says: str) -> None:
    """One spoilt film is set aside with its reason; everybody else is read."""
    spoil(folder / VICTIM)
    with pytest.warns(UserWarning, match="1 of 12 records set aside"):
        cohort = read(folder)
    (reason,) = cohort.set_aside.values()
    assert says in reason and len(cohort.patients) == 8 and "person1_bacteria" not in [f.name for f in facts_of(cohort.patients)]


def test_an_empty_file_is_named(folder: Path) -> None:
    """Zero bytes; only that film of its person is lost."""
    (folder / "train/PNEUMONIA/person2_virus_2.jpeg").write_bytes(b"")
    cohort = quietly(folder)
    assert list(cohort.set_aside) == ["train/PNEUMONIA/person2_virus_2.jpeg"] and len(cohort.patients) == 9


def test_a_file_that_cannot_be_opened_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file without permission, also where the tests run as root."""
    whole = Image.open

    def refuse(path: Path, *args: object, **more: object) -> Image.Image:
        if Path(path).name == Path(VICTIM).name:
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path, *args, **more)

    monkeypatch.setattr(Image, "open", refuse)
    assert "Permission denied" in quietly(folder).set_aside[VICTIM]


def test_a_file_that_vanishes_while_reading_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was there when the folder was surveyed."""
    from medsynth.data import chest_xray

    def and_remove(root: Path) -> chest_xray.Survey:
        found = survey(root)
        (folder / VICTIM).unlink()
        return found

    monkeypatch.setattr(chest_xray, "survey", and_remove)
    cohort = quietly(folder)
    assert "No such file" in cohort.set_aside["person1_bacteria"] and len(cohort.patients) == 8


def test_grey_in_other_clothes(folder: Path, tmp_path: Path) -> None:
    """RGB, RGBA, palette, 16-bit, an upper-case extension and a file far from square are films all the same."""
    with Image.open(folder / VICTIM) as picture:
        grey = np.asarray(picture.convert("L"))
    want = grey.astype(np.float32) / 255
    palette = Image.fromarray(grey, "L").convert("P")
    palette.putpalette([i for g in range(256) for i in (g, g, g)])
    clothes = {"rgb": Image.fromarray(grey).convert("RGB"), "rgba": Image.fromarray(grey).convert("RGBA"), "palette": palette,
               "deep": Image.fromarray(grey.astype(np.uint16) * 257)}
    for name, picture in clothes.items():
        picture.save(tmp_path / f"{name}.png")
        assert np.allclose(read_film(tmp_path / f"{name}.png"), want, atol=1e-6), name
    Image.fromarray(grey).convert("RGB").resize((300, 80)).save((folder / VICTIM).with_suffix(".JPG"))
    (folder / VICTIM).unlink()
    for junk in (".DS_Store", "._person9_virus_9.jpeg", "Thumbs.db"):
        (folder / "train/PNEUMONIA" / junk).write_bytes(b"junk")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cohort = read(folder)
    x = next(p for p in cohort.patients if p.name == "person1_bacteria").images["X-ray"]
    assert x.shape == (1, *SIZE) and 0 <= x.min() < x.max() <= 1


def test_bad_requests(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder, an empty one, one that links to itself, all films bad, no test side; and where nothing can be written."""
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "train").symlink_to(tmp_path / "loop" / "train")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    for path in (tmp_path / "absent", tmp_path / "empty", tmp_path / "loop", folder / VICTIM):
        with pytest.raises(BadRequest, match="--data chest_xray=PATH"):
            read(path)
    shutil.rmtree(folder / "test")
    with pytest.raises(BadRequest, match="test split"):
        split_patients(quietly(folder))
    for file in folder.rglob("*.jpeg"):
        file.write_bytes(b"")
    with pytest.raises(BadRequest, match="cannot identify"):
        read(folder)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(BadRequest, match="folder of yours"):
        write_chest_xray(tmp_path / "file", 2, 0, (16, 16))
    with pytest.raises(BadRequest, match="at least 2"):
        write_chest_xray(tmp_path / "one", 1, 0)


@pytest.mark.real_data
def test_the_names_of_the_real_films() -> None:
    """Counts of every folder; by name alone nobody is on both sides."""
    root, people, counts = real_folder("chest_xray"), {"train": set(), "test": set()}, Counter()
    for path in root.rglob("*.jpeg"):
        side, diagnosis = path.parts[-3:-1]
        counts[side, diagnosis] += 1
        person, kind, _ = parse_name(path.stem)
        people[side].add(person)
        assert (kind == 0) == (diagnosis == "NORMAL")
    assert list(counts[k] for k in [("train", "NORMAL"), ("train", "PNEUMONIA"), ("test", "NORMAL"), ("test", "PNEUMONIA")]) == [
        1341, 3875, 234, 390] and not people["train"] & people["test"]


@pytest.mark.slow
@pytest.mark.real_data
def test_the_real_films() -> None:
    """Every file opens; 30 pictures lie there under 62 names, none of them on both sides; two names are one person."""
    root = real_folder("chest_xray")
    found = survey(root)
    assert not found.set_aside and sum(map(len, found.persons.values())) == 5840
    assert len(found.repeats) == 30 and sum(map(len, found.repeats)) == 62
    assert len(found.persons) == SOURCES[1].expected["patients"] == 4081
    kinds = Counter((s.side, s.kind) for shots in found.persons.values() for s in shots)
    assert [[kinds[side, kind] for kind in range(3)] for side in ("train", "test")] == [[1341, 2530, 1345], [234, 242, 148]]
    one = [s.person for s in found.persons["NORMAL2-IM-0095"]]
    assert set(one) == {"NORMAL2-IM-0095", "NORMAL2-IM-0096"}
