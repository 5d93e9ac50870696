"""Every measure has a fingerprint, every fingerprint runs its measure, and a measure that is 1% off is noticed."""
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from importlib import import_module

import numpy as np
import pytest
import torch

import medsynth
from fingerprints.measures import MEASURES, values
from medsynth.core import versions


def declared() -> set[str]:
    """The measures that the package declares."""
    return {name for name in versions.declared() if name.startswith("measure/")}


@pytest.fixture(scope="module")
def taken() -> tuple[dict[str, list[float] | str], set[str]]:
    """All fingerprints, and the entries that ran the measure that they are named after."""
    made, own = {}, set()
    for name in MEASURES:
        versions._USED.clear()
        made |= values([name])
        own |= {name} & versions.used().keys()
    return made, own


def test_every_measure_has_a_fingerprint_and_every_fingerprint_a_measure() -> None:
    """Names agree, both ways."""
    lacking, gone = declared() - MEASURES.keys(), MEASURES.keys() - declared()
    assert not lacking, f"declared without an entry in tests/fingerprints/measures.py: {sorted(lacking)}"
    assert not gone, f"entries of measures that nobody declares: {sorted(gone)}"


def test_a_fingerprint_runs_its_measure(taken: tuple[dict, set[str]]) -> None:
    """An entry that computes something else under the name would guard nothing."""
    assert not (strangers := MEASURES.keys() - taken[1]), f"these entries never call their measure: {sorted(strangers)}"


def test_a_fingerprint_is_a_list_of_numbers(taken: tuple[dict, set[str]]) -> None:
    """No error, nothing infinite, nothing that is not a number, and not all alike where there are several."""
    faults = {name: v for name, v in taken[0].items() if isinstance(v, str) or not v or not np.isfinite(v).all()}
    assert not faults
    assert not (flat := [name for name, v in taken[0].items() if len(v) > 1 and len(set(v)) == 1]), flat


def test_the_same_numbers_come_again(taken: tuple[dict, set[str]]) -> None:
    """A quarter of the entries once more, after all others and in another state of torch's generator."""
    torch.manual_seed(123)
    again = values(list(MEASURES)[::4])
    assert again == {name: taken[0][name] for name in again}


def functions() -> dict[str, tuple[object, str]]:
    """Where each measure is: name -> module, attribute."""
    found = {}
    for path in [m.name for m in pkgutil.walk_packages(medsynth.__path__, "medsynth.") if not m.name.endswith("__main__")]:
        module = import_module(path)
        for attribute, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == path and hasattr(value, "__wrapped__"):
                if name := inspect.getclosurevars(value).nonlocals.get("name"):
                    found[name] = module, attribute
    return found


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


def noticed(before: list[float], after: list[float] | str) -> bool:
    """Whether two fingerprints differ by more than one in a thousand."""
    return isinstance(after, str) or len(before) != len(after) or not np.allclose(before, after, rtol=1e-3, atol=0)


def test_a_metric_that_is_off_is_noticed(taken: tuple[dict, set[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each measure that is not a row or a number of a table, which take longer."""
    where, missed = functions(), []
    for name in (n for n in MEASURES if not n.startswith(("measure/row_", "measure/table_"))):
        module, attribute = where[name]
        with monkeypatch.context() as m:
            m.setattr(module, attribute, off(getattr(module, attribute)))
            missed += [] if noticed(taken[0][name], values([name])[name]) else [name]
    assert not missed


@pytest.mark.parametrize(("module", "attribute", "name"), [
    ("sets", "score_auc", "row_memorised"), ("sets", "ms_ssim", "row_variety"), ("sets", "mismatch", "row_whole"),
    ("sets", "manifold_share", "row_manifold"), ("sets", "frechet", "table_distance"), ("rows", "ssim", "row_translation"),
    ("truths", "line_auc", "row_vessels"), ("protocols", "ms_ssim", "table_likeness"), ("protocols", "outside_counts", None),
    ("usefulness", "difference", "table_gains")])
def test_what_a_row_is_made_of_is_noticed(
    module: str, attribute: str, name: str | None, taken: tuple[dict, set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that is off shows in what is made of it, also where only the row's words hold it; in shares it cancels."""
    place = import_module(f"medsynth.evaluation.{module}")
    monkeypatch.setattr(place, attribute, off(getattr(place, attribute)))
    asked = f"measure/{name or 'table_outside'}"
    assert noticed(taken[0][asked], values([asked])[asked]) == bool(name)
