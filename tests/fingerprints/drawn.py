"""Numbers of every way of drawing, with networks that have not been trained, on slices made of formulas."""
from collections.abc import Callable
from functools import partial

import torch

from fingerprints.inputs import made_slices
from fingerprints.stages import CASES, built

RECORDS, SEED = [0, 1, 2], 5
CHAINS = {"map": "map", "class": "class", "boxes": "boxes", "colour": "colour", "thesis": "map"}  # case of synthesis -> slices


def summary(tensors: dict[str, torch.Tensor]) -> dict[str, float]:
    """Reduce each tensor to its mean, and to a mean that sees where values lie."""
    numbers = {}
    for name, v in tensors.items():
        flat = v.double().flatten()
        numbers |= {f"{name}.mean": flat.mean().item(), f"{name}.place": (flat * torch.linspace(0, 1, len(flat))).mean().item()}
    return {n: v for n, v in numbers.items() if v == v}  # no number where there is nothing, as the score of a healthy case


def chain_of(case: str) -> object:
    """Open a chain that has not been trained, ready to draw."""
    from medsynth.synthesis.pipeline import Painter
    from medsynth.training.drawing import training_delta
    from medsynth.training.loop import frozen

    slices, stage = made_slices(CHAINS[case]), built("synthesis", *CASES["synthesis"][case])
    nets = {n: frozen(net) for n, net in stage.nets.items()}
    return Painter(None, stage.maps, nets["generator"], nets["critic"], tuple(stage.readers["processors"]), stage.data.labels,
                   slices.modalities, slices.n_classes, slices.size, training_delta(slices), 2, stage.fed, slices.label_kind)


def cases_of(case: str, **how: object) -> dict[str, float]:
    """Draw cases of a chain; `given`: with a label of the user's."""
    from medsynth.synthesis.pipeline import draw_chunk

    painter = chain_of(case)
    if how.pop("given", False):
        how["own"] = (painter.labels[:1] > 0).float()
    return summary(draw_chunk(painter, SEED, RECORDS, **how)) | {"delta": painter.delta}


def of_cases() -> dict[str, Callable]:
    """Draw cases of a chain for each kind of label, without Algorithm 4, and with a label given."""
    more = {"as drawn": partial(cases_of, "map", fit_labels=False), "given label": partial(cases_of, "map", given=True)}
    return {case: partial(cases_of, case) for case in CHAINS} | more


def maps_of(case: str) -> dict[str, float]:
    """Draw maps of a chain."""
    from medsynth.training.drawing import draw_block

    return summary(draw_block(chain_of(case).maps, SEED, RECORDS, 1))


def of_maps() -> dict[str, Callable]:
    """Draw maps by each structure generator."""
    return {name: partial(maps_of, case) for name, case in {"two steps": "map", "one step": "thesis", "cells": "boxes"}.items()}


def of_gan() -> dict[str, dict[str, float]]:
    """Draw images of GAN#."""
    from medsynth.baselines.gan import draw_images

    net = built("gan", *CASES["gan"]["map"]).nets["generator"]
    return {"map": summary({"x": draw_images(net, SEED, RECORDS, (48, 40))})}


def of_learnt() -> dict[str, dict[str, float]]:
    """Label synthetic cases as a downstream model learns them."""
    from medsynth.synthesis.mixture import as_read

    numbers = {}
    for case in ("class", "boxes", "colour"):
        t, kind = made_slices(case).tensors, made_slices(case).label_kind
        numbers[case] = summary(as_read({"x": t["x"], "s": t["s"], "m": t["m"], "label": t["l"].float()}, kind))
    return numbers


DRAWN = {"cases": of_cases, "maps": of_maps, "gan": of_gan, "learnt": of_learnt}
