"""Layer baselines: GAN# is alive, for every kind of image a task has."""
import pytest
import torch
import torch.nn.functional as F

from medsynth.baselines.gan import BasicGAN, draw_images
from medsynth.baselines.rivals import YARDSTICK
from medsynth.data.batches import parse_data
from medsynth.data.phantom import phantom_cohort
from medsynth.metrics.distribution import frechet_distance
from medsynth.structure.slices import Slices, reduced_cohort
from medsynth.training.engine import open_fabric
from medsynth.training.tasks import plan


@pytest.fixture(scope="module")
def slices() -> Slices:
    """Four phantom patients, one held out, 32x24."""
    cohort = phantom_cohort(4, 1, 8, (64, 48))
    return Slices("phantom", False, cohort.modalities, 5, "-", (), {}, reduced_cohort(cohort, (32, 24), 2))


def trained_gan(slices: Slices, steps: int, **settings: object) -> tuple[BasicGAN, dict]:
    """Train a GAN# for some steps; returns the stage, and its generator's weights as they were before."""
    torch.manual_seed(0)
    stage = BasicGAN(slices, 0, {}, open_fabric(), width=8, **settings)
    before = {n: v.clone() for n, v in stage.nets["generator"].state_dict().items()}
    for t in range(steps):
        torch.manual_seed(t)
        stage.step(t)
    return stage, before


def drawn(stage: BasicGAN, weights: dict | None = None, n: int = 64) -> torch.Tensor:
    """Draw images with the trained generator, or with other weights."""
    kept = {k: v.clone() for k, v in stage.nets["generator"].state_dict().items()}
    stage.nets["generator"].load_state_dict(weights or kept)
    x = draw_images(stage.nets["generator"], 1, list(range(n)), stage.data.size)
    stage.nets["generator"].load_state_dict(kept)
    return x


@pytest.mark.long
def test_it_overfits_one_batch(slices: Slices) -> None:
    """On four slices alone, its images have less than half of the squared error to the nearest of any uniform grey image."""
    four = Slices(**(slices.__dict__ | {"tensors": {k: v if k == "labels" else v[2:6] for k, v in slices.tensors.items()}}))
    stage, before = trained_gan(four, 500, modality=3, batch=4)

    def error(x: torch.Tensor) -> float:
        return torch.cdist(x.flatten(1), four.x[:, 3].flatten(1)).square().amin(1).mean().item()

    grey = min(error(torch.full((1, 1, 32, 24), level / 50)) for level in range(51))
    assert error(drawn(stage)) < 0.5 * grey < 0.5 * error(drawn(stage, before))


@pytest.mark.long
def test_it_beats_its_own_initial_distance(slices: Slices) -> None:
    """Frechet distance of images averaged to 8x8 to held-out slices: below half of the untrained one's and of any grey card's."""
    stage, before = trained_gan(slices, 400, modality=3)
    real = slices.side("test").x[:, 3, None]

    def distance(x: torch.Tensor) -> float:
        return frechet_distance(*(F.adaptive_avg_pool2d(v, 8).flatten(1).double() for v in (x, real)))

    with pytest.warns(UserWarning, match="few"):
        noise = 0.02 * torch.randn(64, 1, 32, 24, generator=torch.Generator().manual_seed(0))
        grey = min(distance((level / 30 + noise).clamp(0, 1)) for level in range(31))
        assert distance(drawn(stage)) < 0.5 * min(grey, distance(drawn(stage, before)))


@pytest.mark.parametrize(("channels", "size"), [(1, (48, 40)), (3, (48, 48)), (1, (184, 144)), (3, (56, 64))])
def test_it_takes_every_shape(channels: int, size: tuple[int, int]) -> None:
    """Grey or RGB, any sides divisible by 8: a step trains, images have the shape of the data and differ by record."""
    n, g = 4, torch.Generator().manual_seed(0)
    tensors = {"x": torch.rand(n, channels, *size, generator=g), **{k: torch.zeros(n, 1, *size) for k in "sml"},
               "patient": torch.zeros(n), "test": torch.zeros(n, dtype=torch.bool), "labels": torch.zeros(1, *size)}
    slices = Slices("made up", False, ("RGB",), 2, "-", (), {}, tensors)
    stage = BasicGAN(slices, 0, {}, open_fabric(), width=4, batch=2)
    assert all(abs(v) < 1e6 for v in stage.step(0).values())
    x = draw_images(stage.nets["generator"], 0, [0, 1], size)
    assert x.shape == (2, channels, *size) and not torch.equal(x[0], x[1])
    assert stage.picture() is not None


@pytest.mark.long
@pytest.mark.parametrize("task", ["brain", "fundus"])
def test_it_has_one_name(task: str) -> None:
    """Asked for without a modality it is the run of the first one, which `quality` and the figures ask for."""
    words = (task, YARDSTICK, parse_data("phantom", task), "mended", "smoke", 0)
    assert plan(*words)[0].id == plan(*words, modality=0)[0].id
    assert task != "brain" or plan(*words)[0].id != plan(*words, modality=1)[0].id
