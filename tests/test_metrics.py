"""Layer metrics: hand numbers, and the rules that the thesis leaves unsaid (D21, D31)."""
import pytest
import torch

from medsynth.metrics import images, lesion


def test_scales_follow_the_size() -> None:
    """As many as the smaller side allows, said aloud."""
    assert [images.n_scales(*s) for s in ((11, 11), (22, 40), (48, 40), (96, 80), (184, 144), (176, 176))] == [1, 2, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="11 pixels"):
        images.n_scales(10, 100)


def test_ms_ssim_by_hand() -> None:
    """Constant images of 0.4 and 0.6: only the luminance of the last scale differs."""
    a, b = torch.full((1, 1, 22, 22), 0.4), torch.full((1, 1, 22, 22), 0.6)
    luminance = (2 * 0.4 * 0.6 + 1e-4) / (0.4**2 + 0.6**2 + 1e-4)
    weight = 0.2856 / (0.0448 + 0.2856)
    assert abs(images.ms_ssim(a, b).item() - luminance**weight) < 1e-3
    x = torch.rand(3, 2, 48, 40, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(images.ms_ssim(x, x), torch.ones(3))


def test_pairs_are_seeded_and_one_to_one() -> None:
    """The same seed gives the same pairs; an image is used once."""
    x = torch.rand(7, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(images.ms_ssim_between(x, x.flip(0), 1), images.ms_ssim_between(x, x.flip(0), 1))
    assert len(images.ms_ssim_between(x, x[:4], 0)) == 4 and len(images.ms_ssim_within(x, 0)) == 3


def test_squared_error_by_hand() -> None:
    """0.2 apart everywhere: 0.04."""
    assert torch.allclose(images.mean_squared_error(torch.zeros(2, 1, 3, 3), torch.full((2, 1, 3, 3), 0.2)), torch.tensor(0.04))


def test_dice_by_hand() -> None:
    """One pixel in common of two and two: 0.5; both empty: 1; a region is a set of classes."""
    truth, read = torch.tensor([1, 2, 0, 0]), torch.tensor([0, 2, 2, 0])
    assert lesion.dice(read, truth) == 0.5
    assert abs(lesion.dice(read, truth, (2,)) - 2 / 3) < 1e-6
    assert lesion.dice(torch.zeros(3), torch.zeros(3)) == 1 and lesion.dice(torch.ones(3), torch.zeros(3)) == 0


def test_the_published_dice_hides_a_wrong_class() -> None:
    """D31: every 4 called a 3 scores 0.96 on a set of fours; Dice of class 4 is 0."""
    fours = torch.full((25,), 4)
    assert abs(lesion.published_dice(fours - 1, fours) - 0.96) < 1e-9
    assert lesion.dice(fours - 1, fours, (4,)) == 0
