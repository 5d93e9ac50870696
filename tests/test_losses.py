"""Layer losses: a number worked out by hand for each, and gradients checked against differences."""
import pytest
import torch

from medsynth.losses import adversarial, lesion, reconstruction


def tensor(*values: float) -> torch.Tensor:
    """A (1, 1, 1, n) tensor in double precision."""
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


def test_adversarial_by_hand() -> None:
    """Eqs. 8 to 11, 13, 14, 20, 21."""
    assert adversarial.critic_loss(tensor(1, 0), tensor(0.5, 0.5)).item() == 0.75
    assert adversarial.critic_loss(tensor(0.0), tensor(1.0), 5, 3).item() == 8
    assert adversarial.adversary_loss(tensor(0, 2)).item() == 1
    assert adversarial.modality_loss(torch.zeros(2, 1, 1, 1), torch.tensor([1, 3])).item() == 5
    assert adversarial.code_kl_loss(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)).item() == 12.5
    assert adversarial.flow_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([2.0])).item() == 10.5


def test_reconstruction_by_hand() -> None:
    """Eqs. 6, 7, 16, 18, 19."""
    assert reconstruction.squared_error(tensor(0, 1), tensor(0.5, 0.5)).item() == 0.25
    assert reconstruction.outside_loss(tensor(0.5, 0.5), tensor(1, 0)).item() == 0.125
    assert reconstruction.pretraining_loss(tensor(0.5, 0.5), tensor(0, 1), tensor(2, 0)).item() == 0.75
    assert reconstruction.registration_loss(tensor(0, 2), tensor(0, 1)).item() == 0.5
    assert [reconstruction.ramp(t, 8) for t in (0, 2, 4, 7)] == [0, 0.5, 1, 1]


def test_lesion_by_hand() -> None:
    """Eqs. 15 and 22, contrast (D29)."""
    label = tensor(1, 0)
    even = torch.zeros(1, 2, 1, 2)
    assert abs(lesion.read_back_loss(even, label).item() - (2.5 + 25) * 0.25 / 2) < 1e-6
    assert abs(lesion.segmentation_loss(even, label).item() - 0.693147) < 1e-5
    contrast = lesion.lesion_contrast(tensor(0.9, 0.5, 0.3, 0), tensor(1, 0, 0, 0), tensor(0, 0, 0, 1))
    assert abs(contrast.item() - 0.5) < 1e-12
    two = torch.cat([tensor(0.9, 0.5, 0.3, 0), torch.zeros(1, 1, 1, 4)])  # the second image is lacking
    there = [lesion.lesion_contrast(two, tensor(1, 0, 0, 0).repeat(2, 1, 1, 1), tensor(0, 0, 0, 1).repeat(2, 1, 1, 1), p).item()
             for p in (None, torch.tensor([[1.0], [0]]))]
    assert abs(there[0] - 0.25) < 1e-12 and abs(there[1] - 0.5) < 1e-12, "zeros count, or they do not"


def test_a_right_reading_costs_nothing() -> None:
    """A segmenter sure of the truth has no read-back loss; sure of the opposite, the most there is."""
    label = tensor(1, 0)
    sure = 50 * torch.tensor([[0.0, 1], [1, 0]]).view(1, 2, 1, 2)
    assert lesion.read_back_loss(sure, label).item() < 1e-9
    assert abs(lesion.read_back_loss(-sure, label).item() - (2.5 + 25) / 2) < 1e-6


GRADIENTS = {
    "critic": lambda a, b: adversarial.critic_loss(a, b, 5, 3), "adversary": lambda a, b: adversarial.adversary_loss(a),
    "modality": lambda a, b: adversarial.modality_loss(a, torch.tensor([2])), "squared": reconstruction.squared_error,
    "outside": reconstruction.outside_loss, "pretraining": lambda a, b: reconstruction.pretraining_loss(a, b, b),
    "kl": lambda a, b: adversarial.code_kl_loss(a.view(1, -1), b.view(1, -1)),
    "flow": lambda a, b: adversarial.flow_loss(a.view(1, -1), b.view(-1)[:1]),
    "contrast": lambda a, b: lesion.contrast_loss(a, tensor(1, 0, 0, 0), tensor(0, 0, 0, 1), torch.zeros(1)),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name: str) -> None:
    """Autograd agrees with finite differences."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.rand(1, 1, 1, 4, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(GRADIENTS[name], (a, b))
