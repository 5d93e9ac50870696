"""Numbers of every stage: three steps of each kind of label and recipe, on slices made of formulas, on one thread."""
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from safetensors import safe_open

from fingerprints.inputs import made_slices

SMALL = {  # arguments that only make a stage small, where it takes them
    "width": 8, "steps": 3, "batch": 3, "n_moved": 2, "n_cases": 4}
OF_STAGE = {"density": {"width": 64, "latent": 8}, "one_step": {"latent": 256}, "cells": {"channels": 4}}
PLANES = {"condition": "planes", "init": "blur"}
ADVERSARIES = {"critic_norm": "instance", "critic_init": "normal", "views": "none", "fake_classes": True, "critic_lr_ratio": 1.0,
               "n_pairs": 56}
GUIDE = {"norm": "instance", "loss": "planes", "output": "sigmoid", "init": "normal", "beta1": 0.5, "jittered": False}
CASES = {  # stage -> case -> kind of slices (see inputs.KINDS), arguments
    "processor": {"map": ("map", {"modality": 1}), "thesis": ("map", {"modality": 1, **GUIDE, "lr_decay": False}),
                  "public head": ("map", {"head_norm": "instance"})},
    "classifier": {"class": ("class", {}), "residual": ("class", {"net": "residual"})},
    "detector": {"boxes": ("boxes", {}), "published": ("boxes", {"defaults": "published", "jittered": False})},
    "detector_judge": {"boxes": ("boxes", {})},
    "density": {"map": ("map", {}), "none": ("none", {}), "class": ("class", {})},
    "lines": {"map": ("map", {}), "none": ("none", {})},
    "one_step": {"map": ("map", {}), "thesis": ("map", {"n_moved": 0, "lr_decay": False}),
                 "mended": ("map", {"norm": "spectral", "kl": "unit", "init": "kaiming"})},
    "cells": {"none": ("none", {}), "colour": ("colour", {"aperture": True})},
    "translator": {"map": ("map", {}), "r1": ("map", {"views": "diffaugment", "r1": 1.0, "class_loss": "cross-entropy"}),
                   "thesis": ("map", {**PLANES, **ADVERSARIES, "critic_weights": (5.0, 3.0, 5.0), "cycle": 20.0,
                                      "supervised": 20.0, "adversarial": 3.0, "modality": 5.0, "lr_decay": False})},
    "pretraining": {"map": ("map", {}), "class": ("class", {}), "boxes": ("boxes", {}), "colour": ("colour", {"toned": True}),
                    "thesis": ("map", {**PLANES, "focus": "mask", "own_maps": True, "lr_decay": False})},
    "synthesis": {"map": ("map", {}), "class": ("class", {"lesion": 0.5, "anchor": 5.0, "adversarial": 1.0}),
                  "boxes": ("boxes", {"structure": "cells", "anchor": 5.0, "adversarial": 1.0}),
                  "colour": ("colour", {"structure": "cells"}), "bare": ("map", {"source": "noise", "label_input": False}),
                  "r1": ("map", {"r1": 1.0, "class_loss": "cross-entropy", "agreement": 5.0}),
                  "thesis": ("map", {**ADVERSARIES, "structure": "one_step", "registration_ramp": False, "summed_pairs": True,
                                     "output": "sigmoid", "adversarial": 3.0, "modality": 5.0, "contrast": 0.0, "anchor": 0.0})},
    "lesion_judge": {"map": ("map", {"modality": 2})}, "modality_judge": {"map": ("map", {})},
    "features": {"map": ("map", {}), "class": ("class", {}), "none": ("none", {})},
    "translation_judge": {"map": ("map", {}), "real": ("map", {"trained_on": "real"})},
    "gan": {"map": ("map", {"modality": 1}), "colour": ("colour", {})},
    "vessel_reader": {"colour": ("colour", {})}, "class_reader": {"class": ("class", {})}, "box_reader": {"boxes": ("boxes", {})}}


def enter_all() -> None:
    """Import the modules that enter stages of their own (of an older package, those there are)."""
    for module in ("medsynth.baselines.rivals", "medsynth.synthesis.mixture"):
        with suppress(ModuleNotFoundError):
            import_module(module)


def built(stage: str, what: str, given: dict) -> object:
    """Build a stage on stages that have not been trained, as chapter 55 builds it on trained ones."""
    import inspect

    from medsynth.core.random import key
    from medsynth.training import tasks
    from medsynth.training.engine import open_fabric

    enter_all()
    slices, takes = made_slices(what), inspect.signature(tasks.STAGES[stage]).parameters
    settings = {n: v for n, v in (SMALL | OF_STAGE.get(stage, {})).items() if n in takes} | given
    needs = []
    for name, extra in tasks.builds_on(stage, len(slices.modalities), settings, slices.label_kind):
        passed = {"toned": True} if (name, what) == ("pretraining", "colour") else {}
        needs.append(built(name, what, extra | passed).nets)
    torch.manual_seed(key(0, "initial weights", stage))
    return tasks.STAGES[stage](slices, 0, tasks.networks_for(stage, needs), open_fabric("32"), **settings)


def outputs_of(nets: dict) -> tuple[dict[str, torch.Tensor], list]:
    """Keep the last output of each network, a list of hooks beside it."""
    last = {}

    def keep(name: str) -> object:
        def hook(net: torch.nn.Module, given: tuple, out: object) -> None:
            last[name] = out if torch.is_tensor(out) else out[0]
        return hook
    return last, [net.register_forward_hook(keep(n)) for n, net in nets.items()]


def steps_of(stage: str, what: str, given: dict) -> dict[str, float]:  # "step.name" -> number
    """Train three steps: losses of each, gradient norms of the first, mean and spread of the networks' last outputs."""
    from medsynth.core.random import key
    from medsynth.training.loop import gradient_norms

    made, numbers = built(stage, what, given), {}
    with gradient_norms(made.optimisers) as norms:
        for t in range(3):
            last, hooks = outputs_of(made.nets) if t == 2 else ({}, [])
            torch.manual_seed(key(0, stage, t))
            norms.clear()
            losses = made.step(t)
            numbers |= {f"{t}.{n}": v for n, v in (losses | (norms if t == 0 else {})).items()}
            for hook in hooks:
                hook.remove()
    for name, out in last.items():
        numbers |= {f"out.{name}.mean": out.float().mean().item(), f"out.{name}.std": out.float().std(correction=0).item()}
    return numbers


def loop_of() -> dict[str, float]:  # "step.name" -> number
    """Train four batches as the loop does, two a step, clipped and averaged: what all stages share, shown by one of them."""
    from medsynth.core.runs import Run
    from medsynth.training.engine import open_fabric
    from medsynth.training.loop import read_rows, train

    stage = built("modality_judge", "map", {"steps": 4})
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run", {"stage": "modality_judge"})
        train(run, stage, 4, 0, open_fabric("32"), accumulate=2, clip=0.5, ema=0.9)
        rows = read_rows(run)
        with safe_open(run.path / "last.safetensors", "pt") as f:
            weights = {n: f.get_tensor(n).float().norm().item() for n in f.keys() if n.startswith("net/")}
    numbers = {f"{r['step']}.{n}": v for r in rows for n, v in r.items() if n != "step"}
    return numbers | {"weights": sum(weights.values())}


def values(name: str) -> dict[str, Callable[[], dict[str, float]]]:  # case -> what takes its numbers
    """Prepare a stage's fingerprint."""
    looped = {"in the loop": loop_of} if name == "modality_judge" else {}
    return {case: partial(steps_of, name, what, given) for case, (what, given) in CASES[name].items()} | looped
