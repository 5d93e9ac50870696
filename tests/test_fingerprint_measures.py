"""A measure that is 1% off is noticed by its fingerprint, and by those of the rows and tables that it is a part of."""
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from importlib import import_module

import numpy as np
import pytest
import torch

from fingerprints import store
from fingerprints.measures import MEASURES, values
from medsynth.core.versions import declared

pytestmark = pytest.mark.long

KEPT = store.read_kept(store.HERE)


def more(value: object) -> object:
    """The same result with every number 1% larger."""
    if isinstance(value, torch.Tensor | np.ndarray | float | int):
        return value * 1.01
    if isinstance(value, dict):
        return {key: more(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(more, value))
    return replace(value, **{f.name: more(getattr(value, f.name)) for f in fields(value)}) if is_dataclass(value) else value


def off(function: Callable) -> Callable:
    """A function whose results are 1% larger."""
    return lambda *args, **kwargs: more(function(*args, **kwargs))


def noticed(name: str) -> bool:
    """Whether an entry's numbers are not those kept, or cannot be taken."""
    now, kept = values([name])[name], KEPT[name][str(declared()[name].version)]["numbers"]["value"]
    return isinstance(now, str) or len(now) != len(kept) or not all(map(store.close, kept.values(), now))


@pytest.mark.parametrize("name", [n for n in MEASURES if not n.startswith(("measure/row_", "measure/table_"))])
def test_a_metric_that_is_off_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each measure but rows and tables, which take longer and are tried by their parts."""
    function = declared()[name]
    place = import_module(function.__module__)
    monkeypatch.setattr(place, function.__name__, off(getattr(place, function.__name__)))
    assert noticed(name)


@pytest.mark.parametrize(("module", "attribute", "name"), [
    ("sets", "score_auc", "row_memorised"), ("sets", "ms_ssim", "row_variety"), ("sets", "mismatch", "row_whole"),
    ("sets", "manifold_share", "row_manifold"), ("sets", "frechet", "table_distance"), ("rows", "ssim", "row_translation"),
    ("truths", "line_auc", "row_vessels"), ("protocols", "ms_ssim", "table_likeness"),
    ("usefulness", "difference", "table_gains")])
def test_what_a_row_is_made_of_is_noticed(module: str, attribute: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is off shows in what is made of it, also where only the row's words hold it."""
    place = import_module(f"medsynth.evaluation.{module}")
    monkeypatch.setattr(place, attribute, off(getattr(place, attribute)))
    assert noticed(f"measure/{name}")


def test_a_share_of_what_is_off_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: pixels outside and pixels read both 1% more are the same share."""
    place = import_module("medsynth.evaluation.protocols")
    monkeypatch.setattr(place, "outside_counts", off(place.outside_counts))
    assert not noticed("measure/table_outside")
