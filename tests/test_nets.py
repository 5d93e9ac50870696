"""Layer nets: shapes, the condition (D20), the start (D26), critics that see contrast (D27)."""
import pytest
import torch

from medsynth.nets.blocks import ConditionalInstanceNorm, ConvBlock, feature_rank, initialise
from medsynth.nets.critics import Critic
from medsynth.nets.readers import DilatedClassifier, DilatedNet, FeatureNet
from medsynth.nets.unet import UNet, decode, decode_all, encode
from medsynth.nets.vae import (
    CellDecoder,
    CellEncoder,
    CodeImageCritic,
    DensityVAE,
    Flow,
    MapDecoder,
    MapEncoder,
    Refiner,
)
from medsynth.nets.vgg import vgg11


@pytest.mark.parametrize("size", [(16, 8), (48, 40), (24, 56)])
def test_any_size_divisible_by_8(size: tuple[int, int]) -> None:
    """U-net and critic take any such size; the critic's map is an eighth of it."""
    x = torch.rand(2, 1, *size)
    assert UNet(1, 3, 4)(x).shape == (2, 3, *size)
    d, c = Critic(1, 4, two_heads=True)(x)
    assert d.shape == c.shape == (2, 1, size[0] // 8, size[1] // 8)
    assert vgg11(1, 4, n_poolings=2)[0](x).shape == (2, 32, size[0] // 4, size[1] // 4)


def test_decoding_all_equals_decoding_each() -> None:
    """One batched call equals k calls, in both wirings."""
    torch.manual_seed(0)
    x = torch.rand(2, 2, 16, 24)
    for wiring in ("norm", "planes"):
        net = UNet(2, 1, 4, 3, condition=wiring)
        every = decode_all(net, encode(net, x), 3)
        for i in range(3):
            one = decode(net, encode(net, x), torch.full((2,), i))
            assert torch.allclose(every[:, i : i + 1], one, atol=1e-5)


def difference(wiring: str) -> float:
    """How much the interior of the output changes with the condition, at the same features."""
    torch.manual_seed(0)
    net = UNet(1, 1, 8, 2, condition=wiring)
    if wiring == "norm":
        torch.nn.init.normal_(net.bottleneck.norm.shift)
    out = decode_all(net, encode(net, torch.rand(1, 1, 96, 96)), 2)[0, :, 40:56, 40:56]
    return float((out[0] - out[1]).detach().abs().mean())


def test_instance_norm_cancels_constant_planes() -> None:
    """D20: far from the border the thesis's wiring hardly tells two modalities apart; ours does."""
    assert difference("norm") > 10 * difference("planes")


def test_conditional_norm_by_hand() -> None:
    """A channel of 0 and 2 is normalised to -1 and 1, then scaled by 3 and shifted by 5 for condition 1."""
    norm = ConditionalInstanceNorm(1, 2)
    norm.scale.data[1], norm.shift.data[1] = 3, 5
    x = torch.tensor([0.0, 2.0]).view(1, 1, 1, 2)
    assert torch.allclose(norm(x, torch.tensor([1])).flatten(), torch.tensor([2.0, 8.0]), atol=1e-4)
    assert torch.allclose(norm(x, torch.tensor([0])).flatten(), torch.tensor([-1.0, 1.0]), atol=1e-4)


def test_blur_start_has_rank_one() -> None:
    """D26: all channels of a blur-started U-net are one channel."""
    ranks = {}
    for how in ("kaiming", "blur"):
        torch.manual_seed(0)
        net = UNet(1, 1, 8, init=how)
        ranks[how] = feature_rank(encode(net, torch.rand(2, 1, 32, 32))[2])
    assert ranks["blur"] < 1.1 and ranks["kaiming"] > 5, ranks


def test_unknown_variants_are_refused() -> None:
    """With the names that exist."""
    with pytest.raises(ValueError, match="planes"):
        UNet(1, 1, 4, 2, condition="none")
    with pytest.raises(ValueError, match="spectral"):
        ConvBlock(1, 1, norm="batch")
    with pytest.raises(ValueError, match="kaiming"):
        initialise(UNet(1, 1, 4), "zeros")


def test_the_flow_is_invertible_and_the_refiner_fits_the_vae() -> None:
    """Codes come back; lines have four times the density's size."""
    torch.manual_seed(0)
    flow, vae, refiner = Flow(6), DensityVAE((6, 4), 6, 16), Refiner(4)
    for net in flow.nets:
        torch.nn.init.normal_(net[-1].weight, 0, 0.2)
    z = torch.randn(4, 6)
    assert torch.allclose(flow(flow.inverse(z))[0], z, atol=1e-4)
    assert refiner(vae.decode(z), torch.randn(4, 1, 24, 16)).shape == (4, 1, 24, 16)
    with pytest.raises(RuntimeError):
        UNet(1, 1, 4)(torch.rand(1, 1, 20, 20))


@pytest.mark.parametrize("size", [(48, 40), (184, 144), (56, 64)])
def test_judges_take_every_size(size: tuple[int, int]) -> None:
    """A logit per pixel from the dilated net, one per image from the classifier, 64 features from the feature net."""
    x = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0))
    assert DilatedNet(1, 5, 8)(x).shape == (2, 5, *size) and DilatedClassifier(1, 4, 8)(x).shape == (2, 4)
    assert FeatureNet(1, {"modality": 4})(x).shape == (2, 64)


def test_a_judge_sees_contrast() -> None:
    """Without norm, half the contrast is another answer (D27, D28); a U-net with instance norm hardly notices."""
    torch.manual_seed(0)
    x = torch.rand(1, 1, 48, 40)
    change = {type(net).__name__: ((net(0.5 * x) - net(x)).abs().mean() / net(x).abs().mean()).item()
              for net in (DilatedNet(1, 2), UNet(1, 2, 8))}
    assert change["DilatedNet"] > 0.2 > 0.05 > change["UNet"]


@pytest.mark.parametrize("size", [(48, 40), (184, 144)])
@pytest.mark.parametrize("norm", ["instance", "none"])
def test_the_one_step_generator_takes_every_size(size: tuple[int, int], norm: str) -> None:
    """A map goes to a code and a code to a map of the same size."""
    encoder, decoder = MapEncoder(size, 256, 2, norm), MapDecoder(size, 256, 2, norm)
    mean, logvar = encoder(torch.rand(2, 1, *size))
    assert mean.shape == logvar.shape == (2, 256) and decoder(mean).shape == (2, 1, *size)
    assert (decoder.size, decoder.latent) == (size, 256)


@pytest.mark.parametrize("size", [(48, 40), (184, 144)])
def test_codes_of_cells_take_every_size(size: tuple[int, int]) -> None:
    """A map goes to a code a cell of 8 x 8 and back, and z ~ N(0, 1) to a map."""
    encoder, decoder = CellEncoder(3, 4), CellDecoder(size, 3, 4)
    mean, logvar = encoder(torch.rand(2, 1, *size))
    assert mean.shape == logvar.shape == (2, 3, size[0] // 8, size[1] // 8) and decoder.decode(mean).shape == (2, 1, *size)
    assert (decoder.size, decoder.latent) == (size, mean[0].numel()) and decoder(mean.flatten(1)).shape == (2, 1, *size)


def test_a_code_that_is_no_image_is_refused() -> None:
    """D_z on VGG11 wants a square of 16, 24, ...; it reads the code row by row."""
    for latent in (64, 200, 289):
        with pytest.raises(ValueError, match="square"):
            CodeImageCritic(latent, 2)
    assert CodeImageCritic(576, 2, "none")(torch.rand(2, 576)).shape == (2, 1, 3, 3)


def test_instance_norm_hides_the_spread_of_a_code() -> None:
    """D27: with it D_z answers alike for a code ten times as wide, without it, it does not."""
    for norm, seen in (("instance", False), ("none", True)):
        torch.manual_seed(0)
        critic, code = CodeImageCritic(256, 4, norm, "kaiming"), torch.randn(8, 256)
        with torch.no_grad():
            change = ((critic(10 * code) - critic(code)).std() / critic(code).std()).item()
        assert (change > 1) == seen, (norm, change)
def weights(net: torch.nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(p.numel() for p in net.parameters())


def test_parameter_counts_by_hand() -> None:
    """At w = 64: 9ab + b for a convolution from a to b channels, 2b for a norm."""
    convolutions = (640, 73_856, 295_168, 590_080, 590_080, 1_179_904, 442_496, 110_656, 577)  # stem, 3 down, middle, 3 up, head
    assert weights(UNet(1, 1, 64, norm="none")) == sum(convolutions) == 3_283_457
    norms = 2 * (64 + 128 + 256 + 256 + 256 + 256 + 128 + 64)
    assert weights(UNet(1, 1, 64)) == 3_283_457 + norms
    assert weights(UNet(1, 1, 64, 4, condition="planes")) == 3_283_457 + norms + 9 * 4 * 256
    eight = 640 + 73_856 + 295_168 + 590_080 + 1_180_160 + 3 * 2_359_808
    strided = 36_928 + 147_584 + 590_080
    assert eight == 9_219_328, "VGG11's convolutions on one channel"
    assert weights(vgg11(1, 64, norm="none")[0]) == eight + strided
    assert weights(Critic(1, 64, two_heads=True, norm="none")) == eight + strided + 2 * (9 * 512 + 1)


def test_default_networks_start_from_the_same_bits() -> None:
    """New arguments draw nothing: the last convolution of each starts where it always has, from seed 0."""
    def last(net: torch.nn.Module) -> float:
        return [p for p in net.parameters() if p.dim() == 4][-1].detach().flatten()[0].item()
    starts = ((lambda: UNet(2, 1, 8, 4), 0.146617), (lambda: UNet(1, 5, 8, norm="none"), -0.146469),
              (lambda: Critic(1, 8, True), -0.013042), (lambda: Critic(1, 8, norm="instance"), 0.004327))
    for build, first in starts:
        torch.manual_seed(0)
        assert abs(last(build()) - first) < 1e-5


def test_a_norm_before_the_output_fixes_its_mean_and_spread() -> None:
    """D20, D28: whatever the image, logits of mean 0 and deviation 1; without it the image decides."""
    torch.manual_seed(0)
    x = torch.rand(3, 1, 32, 32) * torch.tensor([0.1, 0.5, 1.0])[:, None, None, None]
    out = UNet(1, 1, 8, norm="none", head_norm="instance")(x).flatten(1)
    assert torch.allclose(out.mean(1), torch.zeros(3), atol=1e-5) and torch.allclose(out.std(1), torch.ones(3), atol=1e-2)
    assert UNet(1, 1, 8, norm="none")(x).flatten(1).std(1).std() > 0.05
    with pytest.raises(ValueError, match="instance"):
        UNet(1, 1, 4, head_norm="batch")


def test_the_bare_third_convolution_is_linear() -> None:
    """The public code's detail: the deepest features are not normalised, and reach below the leak."""
    torch.manual_seed(0)
    x = torch.rand(2, 1, 32, 32)
    bare, usual = (encode(UNet(1, 1, 8, bare_third=b), x)[3].detach() for b in (True, False))
    lowest = [float(-f.min() / f.max()) for f in (bare, usual)]
    assert lowest[0] > 0.5 > lowest[1], lowest
    assert UNet(1, 1, 8, bare_third=True)(x).shape == x.shape


def test_critic_variants() -> None:
    """The thesis's start has deviation 0.02; with n_classes a head of logits; both leave the defaults alone."""
    torch.manual_seed(0)
    thesis = Critic(1, 16, two_heads=True, norm="instance", init="normal", n_classes=4)
    assert thesis(torch.rand(2, 1, 16, 16))[1].shape == (2, 4, 2, 2)
    assert abs(thesis.features[-1].conv.weight.std().item() - 0.02) < 0.001
