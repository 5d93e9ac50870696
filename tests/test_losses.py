"""Layer losses: a number worked out by hand for each, and gradients checked against differences."""
import inspect

import pytest
import torch

from medsynth.losses import adversarial, lesion, reconstruction
from medsynth.training import structure, synthesis, translator


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


def test_the_equations_by_name_have_their_published_weights() -> None:
    """Eqs. 6 to 11: D's answers are all wrong by 1, so each is its weights added up."""
    wrong, right, y, x, m = tensor(0, 0), tensor(1, 1), tensor(0.5, 0.5), tensor(0, 1), tensor(1, 0)
    assert adversarial.code_critic_loss(wrong, right).item() == 2 * 10
    assert adversarial.code_adversary_loss(wrong).item() == 0.001
    assert adversarial.map_critic_loss(wrong, right).item() == 2 * 25
    assert reconstruction.mask_loss(y, x).item() == 15 * 0.25
    assert reconstruction.map_reconstruction_loss(x, y, m).item() == 25 * 0.25 + 10 * 0.5 + 0.125
    assert reconstruction.map_reconstruction_loss(x, y, m, 1, 0).item() == 0.25 + 0.125
    assert reconstruction.map_adversary_loss(wrong, y, m).item() == 0.1 + 0.125


def test_moments_see_the_whole_code_and_kl_each_unit() -> None:
    """Codes 3, 5 have mean 4 and deviation 1; units of spread 0 and 2^0.5 pass as one, and not apart (D27)."""
    assert abs(adversarial.code_moments_loss(tensor(3, 5)).item() - 0.001 * 16) < 1e-12
    collapsed = torch.tensor([[0.0, 2**0.5], [0.0, -(2**0.5)]])
    assert adversarial.code_moments_loss(collapsed, 1.0).item() < 1e-12
    logvar = torch.tensor([[-10.0, 0.6931]])
    assert abs(adversarial.code_kl_loss(torch.zeros(1, 2), logvar).item() - (0.5 * (9 + 0.000045) + 0.5 * (1 - 0.6931))) < 1e-3


def test_images_by_name() -> None:
    """Eqs. 13, 14, 20, 21: d wrong by 1, c wrong by 1 on real and by 2 on fake images; D7 leaves the fakes' out."""
    zero, one, two = tensor(0.0), tensor(1.0), torch.tensor([2])
    assert adversarial.image_critic_loss(zero, one, one, two).item() == 5 + 3 + 5
    assert adversarial.image_critic_loss(zero, one, one, two, c_fake=zero).item() == 5 + 3 + 5 * (1 + 4)
    assert adversarial.image_critic_loss(zero, one, one, two, zero, (1, 1, 1)).item() == 7
    assert adversarial.image_adversary_loss(zero, zero, two).item() == 3 + 5 * 4
    assert adversarial.translation_critic_loss(zero, one, one, two).item() == 13
    assert adversarial.translation_adversary_loss(zero, zero, two).item() == 23


def test_the_class_term_as_cross_entropy() -> None:
    """D9: log 4 for a critic with no idea, at every cell; within (13) it is weighed by 5."""
    c, i = torch.zeros(2, 4, 3, 3), torch.tensor([0, 3])
    assert abs(adversarial.modality_cross_entropy_loss(c, i).item() - 1.386294) < 1e-5
    d = torch.ones(1)
    whole = adversarial.image_critic_loss(d, 0 * d, c, i, class_loss=adversarial.modality_cross_entropy_loss)
    assert abs(whole.item() - 5 * 1.386294) < 1e-4
    c[0, 0], c[1, 3] = 50, 50
    assert adversarial.modality_cross_entropy_loss(c, i).item() < 1e-6, "right everywhere"


def test_translations_by_name() -> None:
    """Eqs. 16, 18, 19, the supervised term, the agreement of translations to one target."""
    y, x, m = tensor(0.5, 0.5), tensor(0, 1), tensor(1, 0)
    assert reconstruction.self_supervised_loss(y, x, m).item() == 5 * (0.25 + 0.125)
    assert reconstruction.self_supervised_loss(y, x, m, masked=0.1).item() == 5 * 0.25 + 0.1 * 0.125
    assert reconstruction.consistency_loss(y, x, k=4).item() == 20 * 3 * 0.25
    assert reconstruction.cycle_loss(y, x).item() == reconstruction.supervised_translation_loss(y, x).item() == 0.25
    x_t = tensor(0, 1, 5, 3).view(4, 1, 1, 1)
    assert abs(reconstruction.agreement_loss(x_t, torch.tensor([2, 2, 3, 2])).item() - 5 * (1 + 9 + 4) / 3) < 1e-9
    assert reconstruction.agreement_loss(x_t, torch.tensor([0, 1, 2, 3])).item() == 0


def test_planes_for_any_number_of_classes() -> None:
    """Eqs. 15, 22: five published weights, two of them for one lesion class, the last repeated beyond; eq. 17 adds up."""
    assert lesion.plane_weights(5) == lesion.PLANE_WEIGHTS == (2.5, 25, 125, 125, 125)
    assert lesion.plane_weights(2) == (2.5, 25) and lesion.plane_weights(6)[4:] == (125, 125)
    for n in (2, 3, 5, 7):  # a label of background alone, read as any class alike
        hand = (2.5 * (1 - 1 / n) ** 2 + sum(lesion.plane_weights(n)[1:]) / n**2) / n
        for loss in (lesion.guidance_loss, lesion.processor_loss):
            assert abs(loss(torch.zeros(1, n, 2, 2), torch.zeros(1, 1, 2, 2)).item() - hand) < 1e-4
    assert lesion.generator_loss(torch.tensor(3.0), 2.0, 1.0).item() == 6 and lesion.generator_loss(tensor(3.0)).item() == 3


def test_the_table_of_chapter_42_has_the_weights_of_the_recipe() -> None:
    """The column `mended` of the table of losses is what the stages use."""
    assert {n: structure.LINE_WEIGHTS[n] for n in ("lines", "adversarial", "outside", "agreement")} == {
        "lines": 1, "adversarial": 0.15, "outside": 1, "agreement": 10}
    for chapter, said in ((translator, {"cycle": 10, "supervised": 20, "adversarial": 0.1, "modality": 0.1}),
                          (synthesis, {"adversarial": 0.3, "modality": 0.5, "registration": 20, "lesion": 1,
                                       "contrast": 50, "anchor": 50})):
        assert {n: chapter.WEIGHTS[n] for n in said} == said
    assert inspect.signature(lesion.segmentation_loss).parameters["lesion_weight"].default == 5


def planes(a: torch.Tensor) -> torch.Tensor:
    """Four numbers as logits of two classes on two pixels."""
    return a.view(1, 2, 1, 2)


GRADIENTS = {
    "code critic": adversarial.code_critic_loss, "code adversary": lambda a, b: adversarial.code_adversary_loss(a),
    "moments": lambda a, b: adversarial.code_moments_loss(a), "map critic": adversarial.map_critic_loss,
    "mask": reconstruction.mask_loss, "map": lambda a, b: reconstruction.map_reconstruction_loss(a, b, b),
    "map adversary": lambda a, b: reconstruction.map_adversary_loss(a, b, a),
    "image critic": lambda a, b: adversarial.image_critic_loss(a, b, a, torch.tensor([2]), b),
    "image adversary": lambda a, b: adversarial.image_adversary_loss(a, b, torch.tensor([2])),
    "cross-entropy": lambda a, b: adversarial.modality_cross_entropy_loss(planes(a), torch.tensor([1])),
    "self-supervised": lambda a, b: reconstruction.self_supervised_loss(a, b, b),
    "consistency": lambda a, b: reconstruction.consistency_loss(a, b, 4),
    "agreement": lambda a, b: reconstruction.agreement_loss(torch.cat([a, b]), torch.tensor([1, 1])),
    "registration": reconstruction.registration_loss,
    "read back": lambda a, b: lesion.read_back_loss(planes(a), tensor(1, 0)),
    "segmentation": lambda a, b: lesion.segmentation_loss(planes(a), tensor(1, 0)),
    "whole": lambda a, b: lesion.generator_loss(a.sum(), b.sum(), (a * b).sum()),
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
