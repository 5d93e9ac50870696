"""What the measures' fingerprints are taken of: seeded images, judges made by hand, courts; nothing read, nothing trained.

What is imported from the package is imported where it is used: a commit that lacks it fails in that one place.
"""
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from medsynth.evaluation.rows import Court
    from medsynth.evaluation.subjects import Subject
    from medsynth.structure.slices import Slices

SIZE = (48, 40)
MODALITIES = ("T1", "T2", "Flair")
ORGAN, LESION = torch.tensor([0.2, 0.3, 0.35]), torch.tensor([0.05, 0.35, 0.45])  # brightness, a modality
Cases = dict[str, Tensor]  # x (N, C, H, W) in [0, 1]; s, m, label (N, 1, H, W)


def seeded(seed: int) -> torch.Generator:
    """Make a generator of torch's."""
    return torch.Generator().manual_seed(seed)


def untrained(make: type[nn.Module], *args: object, seed: int = 0, **kwargs: object) -> nn.Module:
    """Make a network with the weights of a seed, in evaluation mode; torch's own generator is left as it was."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return make(*args, **kwargs).eval()


def smooth(n: int, channels: int, g: torch.Generator) -> Tensor:  # (n, channels, H, W) about N(0, 1)
    """Draw soft noise."""
    return F.interpolate(torch.randn(n, channels, 12, 10, generator=g), SIZE, mode="bilinear", align_corners=False)


def discs(y: Tensor, x: Tensor, height: Tensor, width: Tensor) -> Tensor:  # (N,) each to (N, 1, H, W) of 0 and 1
    """Draw an ellipse by its centre and half axes, in px."""
    rows, columns = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    y, x, height, width = (v.view(-1, 1, 1, 1) for v in (y, x, height, width))
    return (((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < 1).float()


def organs(n: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:  # organ, s, lesion
    """Draw an organ, its lines (the rim, in a fifth with a gap, and curves inside) and, in three of five, a lesion."""
    u = torch.rand(7, n, generator=g)
    y, x, height, width = 23.5 + 4 * (u[0] - 0.5), 19.5 + 4 * (u[1] - 0.5), 18 + 3 * u[2], 14 + 3 * u[3]
    organ = discs(y, x, height, width)
    lines = torch.maximum(F.max_pool2d(organ, 3, 1, 1) - organ, (smooth(n, 1, g).abs() < 0.1) * organ)
    lines[::5, :, :12] = 0
    turn, out = 6.283 * u[4], 0.3 + 0.55 * u[5]
    lesion = discs(y + out * height * turn.sin(), x + out * width * turn.cos(), 2.5 + 2 * u[6], 3.5 + 1.5 * u[5]) * organ
    lesion[[i for i in range(n) if i % 5 in (1, 3)]] = 0
    return organ, lines * (1 - lesion), lesion


def cases(n: int, seed: int, specks: int = 4) -> Cases:
    """Paint three modalities: lesions that stand out by degrees, a bright speck outside the organ in one of `specks`."""
    g = seeded(seed)
    organ, s, lesion = organs(n, g)
    gain = 0.6 + 0.6 * torch.rand(n, 1, 1, 1, generator=g)
    inside = ORGAN.view(1, 3, 1, 1) + 0.06 * smooth(n, 3, g) + gain * LESION.view(1, 3, 1, 1) * lesion - 0.08 * s
    x = organ * inside + 0.05 * torch.rand(n, 3, *SIZE, generator=g)
    x[::specks, :, 1:4, 2:5] = 0.95
    x[::3, 1] = x[::3, 1].roll(1, -1)
    x[1::3, 2] = x[1::3, 2].roll(2, -2)
    return {"x": x.clamp(0, 1), "s": s, "m": 1 - organ, "label": lesion}


def eyes(n: int, seed: int) -> Cases:
    """Paint photographs that are darker on most lines; the label is the vessels drawn by hand, most lines and some more."""
    g = seeded(seed)
    organ, _, _ = organs(n, g)
    s, drawn = ((smooth(n, 1, g).abs() < 0.12).float() * organ for _ in range(2))
    truth = torch.maximum(s * (torch.rand(n, 1, *SIZE, generator=g) < 0.8), drawn * (smooth(n, 1, g) > 0.8))
    x = organ * (torch.tensor([0.6, 0.4, 0.2]).view(1, 3, 1, 1) + 0.08 * smooth(n, 3, g) - 0.1 * truth)
    return {"x": (x + 0.03 * torch.rand(n, 3, *SIZE, generator=g)).clamp(0, 1), "s": s, "m": 1 - organ, "label": truth}


def films(n: int, seed: int) -> Cases:
    """Paint films of three classes in turn, brighter by class on average; the label is the class on the organ."""
    g = seeded(seed)
    organ, s, _ = organs(n, g)
    c = (torch.arange(n) % 3).view(-1, 1, 1, 1).float()
    x = organ * (0.3 + 0.15 * c + 0.05 * torch.randn(n, 1, 1, 1, generator=g) + 0.06 * smooth(n, 1, g))
    return {"x": (x + 0.05 * torch.rand(n, 1, *SIZE, generator=g)).clamp(0, 1), "s": s, "m": 1 - organ, "label": c * organ}


def windows(n: int, seed: int) -> Cases:
    """Paint three neighbouring slices with one to three bright boxes, some faint, some moved against their label."""
    g = seeded(seed)
    x, label = 0.3 + 0.06 * smooth(n, 3, g), torch.zeros(n, 1, *SIZE)
    for i in range(n):
        for j in range(1 + i % 3):
            top, left, side = (int(v) for v in torch.randint(2, 8, (3,), generator=g))
            top, left, away = top + 14 * j, left + 9 * (i % 3), int(i % 4 == j)
            label[i, :, top : top + side + 2, left : left + side + 3] = 1
            x[i, :, top + away : top + side + 2 + 2 * away, left + away : left + side + 3] += 0.15 + 0.1 * ((i + j) % 5)
    return {"x": x.clamp(0, 1), "s": (smooth(n, 1, g).abs() < 0.1).float(), "m": torch.zeros(n, 1, *SIZE), "label": label}


class Level(nn.Module):
    """A segmenter that sees a lesion where a channel is brighter than a level, or darker where the slope is negative."""

    def __init__(self, level: float, channel: int = 0, slope: float = 12.0):
        super().__init__()
        self.level, self.channel, self.slope = nn.Parameter(torch.tensor(level)), channel, slope

    def forward(self, x: Tensor) -> Tensor:
        """Return two logits a pixel."""
        seen = self.slope * (x[:, self.channel, None] - self.level)
        return torch.cat([torch.zeros_like(seen), seen], 1)


class ByMean(nn.Module):
    """A classifier that says the answer whose mean brightness is nearest."""

    def __init__(self, means: tuple[float, ...]):
        super().__init__()
        self.means = nn.Parameter(torch.tensor(means))

    def forward(self, x: Tensor) -> Tensor:
        """Return a logit an answer."""
        return -60 * (x.mean((1, 2, 3))[:, None] - self.means).abs()


class BrightBoxes(nn.Module):
    """A detector whose default boxes answer for how bright they are inside."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (B, A, 2), no moves (B, A, 4), default boxes (A, 4)."""
        logits, boxes = [], []
        for side in (6, 8, 10):
            mean = F.avg_pool2d(x[:, 1, None], side, 2)
            top, left = torch.meshgrid(*(2.0 * torch.arange(n) for n in mean.shape[2:]), indexing="ij")
            boxes.append(torch.stack([left, top, left + side, top + side], -1).view(-1, 4))
            logits.append(60 * (mean.flatten(1) - 0.5))
        seen, boxes = torch.cat(logits, 1), torch.cat(boxes)
        return torch.stack([torch.zeros_like(seen), seen], 2), torch.zeros(*seen.shape, 4), boxes


class Features(nn.Module):
    """Eight features of an image: how strongly random filters answer, at two scales."""

    def __init__(self, n_in: int = 1):
        super().__init__()
        self.n_in, self.filters = n_in, nn.Conv2d(n_in, 4, 5, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, n_in, H, W) to (B, 8)."""
        return 10 * torch.cat([self.filters(v).relu().mean((2, 3)) for v in (x, F.avg_pool2d(x, 4))], 1)


def slices(made: Cases, n_patients: int, modalities: tuple[str, ...], kind: str, n_classes: int = 2) -> "Slices":
    """Give cases to patients in equal parts, the last third of them to test on."""
    from medsynth.structure.slices import Slices

    patient = torch.arange(n_patients).repeat_interleave(len(made["x"]) // n_patients)
    tensors = {n: made[n] for n in "xsm"} | {"l": made["label"].to(torch.uint8), "patient": patient}
    tensors |= {"test": patient >= 2 * n_patients // 3} | ({"truth": tensors["l"]} if kind == "none" else {})
    return Slices("made up", False, modalities, n_classes, "-", (), {}, tensors, kind)


def court_of(made: "Slices", test: "Slices", judges: list[nn.Module], modality: nn.Module | None) -> "Court":
    """Put judges before training and held-out slices."""
    from medsynth.evaluation.rows import Court

    features = untrained(Features, made.x.shape[1] // len(made.modalities))
    return Court(made, test, judges, modality, features, made.modalities, {"turn": 0.75}, {})


@cache
def brain_court() -> "Court":
    """Five training and six held-out patients of four slices; the judge of the first modality is unfit."""
    judges = [Level(level, slope=25.0) for level in (0.32, 0.48, 0.56)]
    return court_of(slices(cases(20, 11), 5, MODALITIES, "map"), slices(cases(24, 12), 6, MODALITIES, "map"), judges,
                    ByMean((0.117, 0.175, 0.204)))


@cache
def eye_court() -> "Court":
    """Four training and six held-out eyes."""
    return court_of(slices(eyes(8, 21), 4, ("RGB",), "none"), slices(eyes(12, 22), 6, ("RGB",), "none"), [], None)


@cache
def film_court() -> "Court":
    """Six training and six held-out patients of three films, one a class."""
    return court_of(slices(films(18, 31), 6, ("X",), "class", 3), slices(films(18, 32), 6, ("X",), "class", 3),
                    [ByMean((0.155, 0.21, 0.275))], None)


@cache
def window_court() -> "Court":
    """Four training patients of two windows, six held-out ones of one."""
    return court_of(slices(windows(8, 41), 4, ("CT",), "boxes"), slices(windows(6, 42), 6, ("CT",), "boxes"),
                    [Level(0.47, 1, 20.0)], None)


def subject(name: str, modalities: tuple[str, ...], *sets: Cases, minutes: float = 10.0) -> "Subject":
    """Call cases, a dict a model seed, by a name."""
    from medsynth.evaluation.subjects import Subject

    return Subject(name, modalities, list(sets), [], minutes)


def ours() -> "Subject":
    """Cases of two model seeds: darker than the real ones, a label astray, and a copy of a training case."""
    made, train = [cases(12, seed, 6) for seed in (13, 14)], brain_court().train
    for c in made:
        c["x"], c["label"][2] = 0.93 * c["x"], c["label"][2].roll(3, -1)
        c["x"][4], c["s"][4] = train.x[7], train.s[7]
    return subject("ours", MODALITIES, *made)


def gan() -> "Subject":
    """Images of a rival without maps, trained as long."""
    return subject("GAN#", MODALITIES, {"x": (0.35 + 0.15 * smooth(12, 3, seeded(15))).clamp(0, 1)}, minutes=9.5)


def controls() -> dict[str, "Subject"]:
    """Chains that lack one thing each: the label, its loss, the filter, registration."""
    c = cases(10, 16)
    near, far = (c | {"x": torch.stack([*c["x"][:, :2].unbind(1), c["x"][:, 2].roll(px, -1)], 1)} for px in (1, 3))
    made = {"no label input": c | {"label": c["label"].roll(1, 0)}, "no L_les": c | {"x": 0.85 * c["x"]},
            "misregistered, L_reg": near, "misregistered, no L_reg": far}
    unfiltered = subject("no Alg. 4", MODALITIES, cases(12, 17, 2), cases(12, 18, 2))
    return {name: subject(name, MODALITIES, of) for name, of in made.items()} | {"no Alg. 4": unfiltered}


def our_windows() -> "Subject":
    """Windows of two model seeds."""
    return subject("ours", ("CT",), windows(6, 43), windows(6, 44))


def of_two(court: "Court") -> "Court":
    """Keep the first two modalities of the held-out slices."""
    test = court.test
    return replace(court, test=replace(test, modalities=test.modalities[:2], tensors=test.tensors | {"x": test.x[:, :2]}))
