"""Numbers of every preparation: each data set's own phantom is written, read by its reader and reduced."""
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from fingerprints.drawn import summary

SIZE = {  # data set -> (H, W) of the slices, reduction, kind of label, images' side where they can be had of any
    "drive": ((48, 48), 2, "none", 96), "fire": ((48, 48), 2, "none", 96), "drive_fire": ((48, 48), 2, "none", 96),
    "lung_ct": ((64, 64), 2, "none", 128), "lidc_lungs": ((48, 48), 1, "boxes", 200), "tianchi": ((48, 48), 1, "boxes", 200),
    "chest_xray": ((48, 48), 2, "class", 96), "chest_xray_224": ((48, 48), 2, "class", 96)}
BRAIN = ((48, 40), 4, "map", 0)
PATIENTS = {"drive": 2, "fire": 2, "drive_fire": 2, "lung_ct": 3, "chest_xray": 4, "chest_xray_224": 4,
            "lidc_lungs": 2, "tianchi": 2}


def cohort_of(name: str, folder: Path) -> object:
    """Write and read a data set's phantom."""
    from medsynth.data import batches
    from medsynth.data.phantom import phantom_cohort

    if name == "phantom":
        return phantom_cohort(3, 1, 3, (96, 80), 0)
    side_px = SIZE.get(name, BRAIN)[3]
    reads, writes = ({}, {}) if not side_px else (batches.sized(argument, side_px) for argument in batches.SIZED[name])
    batches.SOURCES[name].write_phantom(folder, PATIENTS.get(name, 1), 0, **writes)
    cohort = batches.SOURCES[name].read(folder, **reads)
    return cohort if side_px else replace(cohort, patients=[thinned(p) for p in cohort.patients])


def thinned(p: object) -> object:
    """Keep every 16th slice of a patient with a whole brain."""
    return replace(p, images={m: v[::16] for m, v in p.images.items()}, label=p.label[::16])


def changed(cohort: object, tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """Move a modality, keep few patients, take registration away: the changes `data.*` that are made of what was read."""
    from medsynth.structure.slices import Slices, misregistered, of_few, unpaired

    slices = Slices("phantom", False, cohort.modalities, 5, "0", tuple(p.name for p in cohort.patients), {}, tensors)
    some = {"moved": misregistered(slices, 3), "few": of_few(slices, 1), "unpaired": unpaired(slices)}
    return {n: summary({k: s.tensors[k] for k in ("x", "labels")}) for n, s in some.items()}


def values(name: str) -> dict[str, dict[str, float]]:  # case -> numbers
    """Take the fingerprint of a data set's preparation."""
    from medsynth.structure.edges import AS_THESIS
    from medsynth.structure.slices import reduced_cohort

    (size, reduce, kind, _), painted = SIZE.get(name, BRAIN), name == "phantom"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cohort = cohort_of(name, Path(folder) / "p")
        tensors = reduced_cohort(cohort, size, 2 if painted else reduce, kind)
        numbers = {"as read": summary(tensors)}
        if painted:
            thesis = {"edges": AS_THESIS, "outline_px": 0, "fill": False, "own_maps": True}
            numbers["thesis"] = summary(reduced_cohort(cohort, size, 2, kind, **thesis))
            numbers |= changed(cohort, tensors)
        return numbers
