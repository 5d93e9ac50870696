"""Slices made of formulas, for fingerprints: they do not change when a phantom is repainted or extraction mended."""
import torch

from medsynth.structure.slices import Slices

N, PER_PATIENT = 16, 4
KINDS = {  # what a fingerprint is taken of -> kind of label, modalities, channels of each, classes
    "map": ("map", ("T1", "T2", "T1c", "Flair"), 1, 5), "class": ("class", ("X-ray",), 1, 3),
    "boxes": ("boxes", ("CT",), 1, 2), "none": ("none", ("CT",), 1, 1), "colour": ("none", ("RGB",), 3, 1)}


def axes_of(size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:  # (H, 1), (1, W) in [-1, 1]
    """Rows and columns of an image."""
    return torch.linspace(-1, 1, size[0])[:, None], torch.linspace(-1, 1, size[1])[None]


def organs(size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:  # s, m (N, 1, H, W) of 0 and 1
    """Draw an ellipse with two rings of lines, another one in every slice; 1 in the mask is background."""
    (y, x), rows = axes_of(size), torch.arange(N)[:, None, None]
    radius = ((y / (0.75 + 0.01 * rows)) ** 2 + (x / (0.7 - 0.01 * rows)) ** 2).sqrt()
    m = (radius > 1).float()
    rings = ((radius - 0.92).abs() < 0.06) | ((radius - 0.45 - 0.05 * torch.sin(5 * torch.atan2(y, x) + rows)).abs() < 0.06)
    return (rings * (1 - m))[:, None], m[:, None]


def lesions(kind: str, n_classes: int, m: torch.Tensor) -> torch.Tensor:  # (N, 1, H, W) uint8
    """Mark a lesion in two of three slices; a class over the whole organ; a box; or nothing."""
    (y, x), rows = axes_of(m.shape[2:]), torch.arange(N)[:, None, None]
    near = ((y - 0.2 + 0.02 * rows) ** 2 + (x + 0.3 - 0.04 * rows) ** 2).sqrt()
    there = (rows % 3 > 0).long()
    if kind == "class":
        return ((rows % n_classes)[:, None] * (1 - m)).to(torch.uint8)
    if kind == "boxes":
        return (((y - 0.1).abs() < 0.25) * ((x - 0.02 * rows).abs() < 0.2) * there)[:, None].to(torch.uint8)
    rim = 1 + (near < 0.2).long() * (1 + rows % 3)
    return ((near < 0.33) * rim * there * (n_classes > 1))[:, None].to(torch.uint8)


def images(s: torch.Tensor, m: torch.Tensor, label: torch.Tensor, n_planes: int) -> torch.Tensor:  # (N, planes, H, W) in [0, 1]
    """Shade the organ, its lines darker and its lesion brighter, another way in every plane."""
    (y, x), planes = axes_of(m.shape[2:]), torch.arange(n_planes)[None, :, None, None]
    base = 0.45 + 0.1 * planes + 0.15 * torch.sin(3 * y + planes) * torch.cos(4 * x - planes)
    grain = 0.05 * torch.randn(N, n_planes, *m.shape[2:], generator=torch.Generator().manual_seed(0))
    shade = base - 0.2 * s + 0.1 * label.clamp(max=2) * (1 + planes % 2) + grain
    return (shade * (1 - m)).clamp(0, 1)


def made_slices(what: str) -> Slices:
    """Make prepared slices of one of KINDS: sixteen of four patients, the last one held out."""
    kind, modalities, channels, n_classes = KINDS[what]
    s, m = organs((48, 40) if kind == "map" else (48, 48))
    label = lesions(kind, n_classes, m)
    x = images(s, m, label.float(), channels * len(modalities))
    patient = torch.arange(N) // PER_PATIENT
    test, some = patient == N // PER_PATIENT - 1, (label > 0).flatten(1).any(1)
    labels = label[~test].flatten(1).amax(1).view(-1, 1, 1) if kind == "class" else label[some & ~test, 0]
    tensors = {"x": x, "s": s, "m": m, "l": label, "labels": labels, "patient": patient, "test": test,
               "present": torch.ones(N, len(modalities), dtype=torch.bool)}
    tensors |= {f"{n}_full": tensors[n].repeat_interleave(2, 2).repeat_interleave(2, 3).to(torch.uint8) for n in "sm"}
    tensors |= {"truth": (s * (1 - m)).to(torch.uint8)} if kind == "none" else {}
    tensors |= {"s_each": torch.cat([s.roll(i, 3) * (1 - m) for i in range(len(modalities))], 1)} if kind == "map" else {}
    names = tuple(f"p{i}" for i in range(N // PER_PATIENT))
    of_kind = {} if kind == "map" else {"label_kind": kind}  # an older package knows maps alone
    return Slices("made", False, modalities, n_classes, "0" * 12, names, {}, tensors, **of_kind)
