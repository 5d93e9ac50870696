"""Layer synthesis: a data set on disk is the same bytes however it was asked for."""
from pathlib import Path

import numpy as np
import pytest
import torch

from medsynth.core.paths import BadRequest
from medsynth.data.batches import parse_data
from medsynth.synthesis import dataset, pipeline


@pytest.fixture(scope="module")
def painter() -> pipeline.Painter:
    """The smoke chain (shared with the other tests of the session)."""
    return pipeline.open_painter("brain", parse_data("phantom"), "mended", "smoke", 0)


def test_records_do_not_depend_on_what_was_asked_for(painter: pipeline.Painter) -> None:
    """Records 11 and 3 alone equal those among twelve."""
    every = pipeline.synthesise_all(painter, 0, 12)
    some = dict(pipeline.synthesise(painter, 0, [11, 3]))
    assert sorted(some) == [3, 11]
    assert all(torch.equal(some[r][n], every[n][r]) for r in some for n in every)
    other = pipeline.synthesise_all(painter, 1, 1)
    assert not torch.equal(other["x"][0], every["x"][0])


def test_a_case_holds_everything(painter: pipeline.Painter, tmp_path: Path) -> None:
    """Shapes, types, ranges; the label lies in the organ; modalities differ (D23)."""
    dataset.write_dataset(painter, 0, 3, tmp_path / "a")
    case = dataset.load_case(dataset.case_path(tmp_path / "a", 2))
    assert case["images"].shape == (4, 48, 40) and case["images"].dtype == np.float32
    assert 0 <= case["images"].min() and case["images"].max() <= 1
    assert (case["label"] * case["mask"]).sum() == 0 and set(np.unique(case["mask"])) <= {0, 1}
    assert all(not np.array_equal(case["images"][i], case["images"][j]) for i in range(4) for j in range(i))
    fused = case["fused"]
    assert ((fused == 0) == ((case["mask"] == 1) & (case["structure_map"] == 0))).all()


def test_interrupted_and_resumed_the_same_bytes(painter: pipeline.Painter, tmp_path: Path) -> None:
    """Ten at once, or three and then ten."""
    dataset.write_dataset(painter, 0, 10, tmp_path / "a")
    dataset.write_dataset(painter, 0, 3, tmp_path / "b")
    (tmp_path / "b" / ".case_000005.npz.half").write_bytes(b"left by a kill")
    counts = dataset.write_dataset(painter, 0, 10, tmp_path / "b")
    assert (counts["written"], counts["kept"]) == (7, 3)
    assert dataset.dataset_hash(tmp_path / "a") == dataset.dataset_hash(tmp_path / "b")


def test_sets_are_not_mixed(painter: pipeline.Painter, tmp_path: Path) -> None:
    """Another seed in the same folder, a folder of something else, a damaged case: each is a bad request."""
    dataset.write_dataset(painter, 0, 1, tmp_path / "a")
    with pytest.raises(BadRequest, match="seed = 1"):
        dataset.write_dataset(painter, 1, 1, tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("mine")
    with pytest.raises(BadRequest, match="no medsynth data set"):
        dataset.write_dataset(painter, 0, 1, tmp_path / "b")
    dataset.case_path(tmp_path / "a", 0).write_bytes(b"damaged")
    with pytest.raises(BadRequest, match="Delete it"):
        dataset.load_case(dataset.case_path(tmp_path / "a", 0))
