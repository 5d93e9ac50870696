"""Layer core: seeds, atomic files, code hashes, checkpoints, publishing."""
from pathlib import Path

import pytest
import torch

from medsynth.core import artefacts, paths, random, runs


def test_a_record_does_not_depend_on_its_batch() -> None:
    """Record 7 alone is record 7 among ten, and every address has draws of its own."""
    many = random.normal(3, "z", list(range(10)), (5,))
    assert torch.equal(many[7], random.normal(3, "z", [7], (5,))[0])
    seeds = {random.key(s, n, r) for s in range(3) for n in ("z", "label") for r in range(3)}
    assert len(seeds) == 18


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in the middle of a write raises, leaves the old file whole and no temporary one behind."""
    path = paths.write_bytes(tmp_path / "a.bin", b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paths.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        paths.write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_home_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MEDSYNTH_HOME wins; a file in its place is a bad request that says what to do."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path / "here"))
    assert paths.home() == tmp_path / "here"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path / "file"))
    with pytest.raises(paths.BadRequest, match="MEDSYNTH_HOME"):
        paths.home()


def test_code_hash_sees_code_alone() -> None:
    """Comments and docstrings do not count; code and imported modules do."""
    assert runs.code_hash('def f():\n    """A."""\n    return 1') == runs.code_hash("def f():  # b\n    return 1")
    assert runs.code_hash("def f(): return 1") != runs.code_hash("def f(): return 2")
    assert runs.code_hash("from medsynth.nets import unet") != runs.code_hash("from medsynth.nets import vgg")


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x00" * 200])
def test_a_damaged_checkpoint_is_a_bad_request(tmp_path: Path, content: bytes) -> None:
    """It names the file and says what to do."""
    (tmp_path / "last.safetensors").write_bytes(content)
    with pytest.raises(paths.BadRequest, match="last.safetensors.*train it anew"):
        runs.load_checkpoint(tmp_path / "last.safetensors", {"net": torch.nn.Linear(1, 1)})


def test_a_checkpoint_of_other_networks_is_refused(tmp_path: Path) -> None:
    """A shape that does not fit is an error, not a partial load."""
    path = runs.save_checkpoint(tmp_path / "a.safetensors", 3, {"net": torch.nn.Linear(2, 2)}, {})
    with pytest.raises(paths.BadRequest):
        runs.load_checkpoint(path, {"net": torch.nn.Linear(3, 2)})


def facts(**changes: object) -> dict:
    """Provenance of a test artefact."""
    return {"data": "phantom", "data_hash": "0", "profile": "demo", "seed": 0, "minutes": 0.1, "key": "k"} | changes


def test_provenance_must_be_complete() -> None:
    """An artefact that does not say its data is not written."""
    with pytest.raises(ValueError, match="data_hash"):
        artefacts.save_artefact("fig_0", {"data": "phantom"})


def test_real_pixels_stay_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures with real images of a data set that may not be redistributed are never published, forced or not."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path / "home"))
    artefacts.save_artefact("fig_0", facts(data="chest_xray", shows_real_images=True), rows=[{"a": 1}])
    for force in (False, True):
        written, held = artefacts.publish("chest_xray", "demo", tmp_path / "figures", force=force)
        assert not written and "licence" in held["fig_0"]
    artefacts.save_artefact("fig_0", facts(data="brain_ms", shows_real_images=True), rows=[{"a": 1}])
    assert artefacts.publish("brain_ms", "demo", tmp_path / "figures")[0]
    artefacts.save_artefact("fig_0", facts(data="brain_ms", recipe="thesis"), rows=[{"a": 1}])
    written, _ = artefacts.publish("brain_ms", "demo", tmp_path / "figures", recipe="thesis")
    assert {p.parent.name for p in written} == {"brain_ms-thesis"}, "another recipe never replaces mended"
    with pytest.raises(paths.BadRequest, match="fig_9"):
        artefacts.publish("brain_ms", "demo", tmp_path / "figures", ["fig_9"])


def test_code_hash_follows_relative_imports() -> None:
    """A stage's hash covers what its imports import; drawing and writing files do not count."""
    used = runs.modules_used("from medsynth.training.processors import Processor")
    assert {"medsynth.nets.blocks", "medsynth.losses.lesion", "medsynth.structure.edges", "medsynth.core.random"} <= used
    assert not used & runs.NEUTRAL and "medsynth.training.translator" not in used


def test_a_run_is_opened_by_its_start_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start of one id opens it; a folder that is no run, an absolute path or a pattern say what there is."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path))
    for name in ("brain-a1", "brain-b2"):
        paths.write_json(tmp_path / "runs" / name / "params.json", {"name": name})
    assert runs.open_run("brain-a").params == {"name": "brain-a1"}
    assert runs.open_run(str(tmp_path / "runs" / "brain-b2")).id == "brain-b2"
    for name in (str(tmp_path), "brain", "*-a1", "/"):
        with pytest.raises(paths.BadRequest, match="brain-a1"):
            runs.open_run(name)
