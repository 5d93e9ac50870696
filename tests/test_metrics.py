"""Layer metrics: hand numbers, and the rules that the thesis leaves unsaid (D21, D22, D31)."""
import hashlib
import struct
import sys
import types
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from skimage.io import imread, imsave
from skimage.metrics import structural_similarity
from torch import nn
from torchmetrics.image.kid import poly_mmd

from medsynth.core.paths import BadRecord, BadRequest
from medsynth.data.phantom import draw_patient
from medsynth.metrics import distribution, images, inputs, lesion


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Uniform noise in [0, 1)."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def gauss(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal doubles."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def test_scales_follow_the_size() -> None:
    """As many as the smaller side allows, said aloud."""
    assert [images.n_scales(*s) for s in ((11, 11), (22, 40), (48, 40), (96, 80), (184, 144), (176, 176))] == [1, 2, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="11 pixels"):
        images.n_scales(10, 100)
    for side in (11, 22, 44, 88, 96, 98, 99, 176):
        a = torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(side))
        assert torch.allclose(images.ms_ssim(a, a), torch.ones(2)), side


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


def test_psnr_and_ssim_by_hand() -> None:
    """0.4 against 0.6: 10 log10(1 / 0.04) dB, and SSIM is its luminance; equal images give inf and 1."""
    a, b = torch.full((2, 1, 24, 24), 0.4), torch.full((2, 1, 24, 24), 0.6)
    assert torch.allclose(images.psnr(a, b), torch.tensor(13.9794))
    luminance = (2 * 0.4 * 0.6 + 1e-4) / (0.4**2 + 0.6**2 + 1e-4)
    assert (images.ssim(a, b) - luminance).abs().max() < 5e-4
    x = noise(2, 3, 16, 16)
    assert images.psnr(x, x).isinf().all() and torch.allclose(images.ssim(x, x), torch.ones(2))
    with pytest.raises(ValueError, match="11 pixels"):
        images.ssim(x[..., :10], x[..., :10])
    with pytest.raises(ValueError, match="one shape"):
        images.psnr(x, x[:1])


def test_ssim_is_that_of_scikit_image() -> None:
    """Gaussian windows wholly inside, population covariance."""
    x = noise(3, 2, 40, 32)
    y = (x + 0.3 * noise(3, 2, 40, 32, seed=1)).clamp(0, 1)
    theirs = [structural_similarity(p.numpy(), q.numpy(), channel_axis=0, gaussian_weights=True, sigma=1.5,
                                    use_sample_covariance=False, data_range=1) for p, q in zip(x, y, strict=True)]
    assert (images.ssim(x, y) - torch.tensor(theirs)).abs().max() < 1e-4


@pytest.mark.parametrize("measure", [images.ms_ssim, images.ssim, images.psnr, images.mean_squared_error])
def test_a_batch_gives_what_its_pairs_give(measure) -> None:
    """Batched, in parts, or one pair at a time: the same to 1e-6; 40 x 4 x 24 x 24 is cut into parts."""
    x, y = noise(40, 4, 24, 24), noise(40, 4, 24, 24, seed=1)
    alone = torch.cat([measure(p[None], q[None]) for p, q in zip(x, y, strict=True)])
    assert alone.shape == (40,) and torch.allclose(measure(x, y), alone, rtol=1e-6, atol=1e-6)


def test_a_set_is_scaled_by_its_declared_range() -> None:
    """-1000, 0, 3000 in [-1000, 3000] are 0, 1/4, 1; images keep their contrast relative to each other."""
    x = torch.tensor([-1000.0, 0, 1000, 3000]).reshape(1, 1, 2, 2)
    assert inputs.checked(x, "ct", (-1000, 3000)).flatten().tolist() == [0, 0.25, 0.5, 1]
    two = torch.cat([noise(1, 1, 4, 4), noise(1, 1, 4, 4) / 2])
    assert torch.equal(inputs.checked(two, "faded"), two)
    assert inputs.checked(torch.tensor([0, 0.5, 1 + 5e-7, 1]).reshape(1, 1, 2, 2), "rounded").max() == 1


def test_a_set_that_cannot_be_compared_is_refused() -> None:
    """Each fault has its message, and names the images."""
    x = noise(3, 1, 8, 8)
    nan, inf, out, flat = (x.clone() for _ in range(4))
    nan[1, 0, 2, 2], inf[2, 0, 0, 0], out[0, 0, 0, 0], flat[2] = float("nan"), float("inf"), 1.01, 0.5
    cases = [(x[0], "four axes"), (x[:0], "at least one"), ((x * 255).byte(), "uint8"), (nan, r"NaN .* \(number 1\)"),
             (inf, r"infinite .* \(number 2\)"), (out, r"outside .* \(number 0\)"), (flat, r"one value .* \(number 2\)"),
             ((x > 0.5).float(), "truncated")]
    for bad, message in cases:
        with pytest.raises(BadRequest, match=message):
            inputs.checked(bad, "generated")
    for value_range in ((1, 0), (0, float("nan"))):
        with pytest.raises(BadRequest, match="LOW < HIGH"):
            inputs.checked(x, "generated", value_range)
    inputs.check_alike(x, x[:1], "sets")
    with pytest.raises(BadRequest, match="same"):
        inputs.check_alike(x, x[..., :4], "sets")


def write_png(path: Path, header: tuple[int, ...], rows: bytes) -> None:
    """Write a PNG with any header, promises that it does not keep included."""
    def part(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + part(b"IHDR", struct.pack(">IIBBBBB", *header))
                     + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b""))


def test_files_are_read_by_their_types_range(tmp_path: Path) -> None:
    """8 and 16 bits by their greatest value, float by the declared range; grey is (1, H, W), opacity is left out."""
    eight, sixteen = np.array([[0, 51], [102, 255]], np.uint8), np.array([[0, 13107], [2, 65535]], np.uint16)
    imsave(tmp_path / "8.png", eight, check_contrast=False)
    imsave(tmp_path / "16.png", sixteen, check_contrast=False)
    imsave(tmp_path / "16.tif", sixteen, check_contrast=False)
    imsave(tmp_path / "rgba.png", np.stack([eight, eight.T, eight, eight * 0 + 9], -1), check_contrast=False)
    np.save(tmp_path / "ct.npy", np.array([[-1000.0, 0], [1000, 3000]]))
    read = inputs.read_image
    assert np.allclose(read(tmp_path / "8.png"), [[[0, 0.2], [0.4, 1]]]) and read(tmp_path / "8.png").dtype == np.float32
    assert np.allclose(read(tmp_path / "16.png"), [[[0, 0.2], [2 / 65535, 1]]], atol=1e-7)
    assert np.array_equal(read(tmp_path / "16.png"), read(tmp_path / "16.tif"))
    assert read(tmp_path / "rgba.png").shape == (3, 2, 2)
    assert read(tmp_path / "ct.npy", (-1000, 3000)).tolist() == [[[0, 0.25], [0.5, 1]]]


def test_files_that_mislead_are_refused(tmp_path: Path) -> None:
    """Bare floats, truncated floats, flat, broken, huge, and kinds of pixels that would be read wrongly."""
    x = noise(6, 6).numpy()
    broken = x.copy()
    broken[0, 0] = np.nan
    arrays = {"bare": (x, "--range LOW,HIGH"), "cast": (x > 0.5, "8 or 16 bit"), "long": ((x * 9).astype(int), "8 or 16 bit"),
              "stack": (np.zeros((6, 6, 6)), "one image a file"), "object": (np.array([[{}]]), "Python objects"),
              "zero": ((x > 0.5).astype(np.uint8), "truncated"), "flat": (np.full((6, 6), 7, np.uint8), "one value")}
    for name, (array, message) in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(BadRecord, match=message):
            inputs.read_image(tmp_path / f"{name}.npy")
    for name, array, message in (("nan", broken, "NaN"), ("out", x + 1, "outside"), ("flatf", x * 0 + 0.3, "one value")):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(BadRecord, match=message):
            inputs.read_image(tmp_path / f"{name}.npy", (0, 1))
    write_png(tmp_path / "huge.png", (20000, 20000, 8, 0, 0, 0, 0), b"")
    write_png(tmp_path / "deep.png", (1, 1, 16, 2, 0, 0, 0), bytes(7))
    Image.fromarray((x * 255).astype(np.uint8)).convert("CMYK").save(tmp_path / "ink.jpg")
    (tmp_path / "half.png").write_bytes((tmp_path / "deep.png").read_bytes()[:40])
    (tmp_path / "text.tif").write_text("no image")
    for name, message in (("huge.png", "400000000 pixels"), ("deep.png", "cut to 8 bits"), ("ink.jpg", "CMYK"),
                          ("half.png", "readable"), ("text.tif", "not a TIFF"), ("absent.png", "No such file")):
        with pytest.raises(BadRecord, match=message):
            inputs.read_image(tmp_path / name)


def test_a_header_is_believed_before_memory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit nothing is decoded, whatever the format."""
    monkeypatch.setattr(inputs, "MOST_PIXELS", 35)
    monkeypatch.setattr(inputs, "imread", None)
    eight = (noise(6, 6).numpy() * 255).astype(np.uint8)
    np.save(tmp_path / "a.npy", eight)
    for name in ("a.png", "a.tif", "a.jpg"):
        imsave(tmp_path / name, eight, check_contrast=False)
    for path in tmp_path.iterdir():
        with pytest.raises(BadRecord, match="declares 36"):
            inputs.read_image(path)


def test_a_folder_goes_on_without_its_bad_files(tmp_path: Path) -> None:
    """Bad files and odd shapes are named and counted; a folder without any good file is refused."""
    for i in range(3):
        imsave(tmp_path / f"{i}.png", (noise(6, 5, seed=i).numpy() * 255).astype(np.uint8), check_contrast=False)
    imsave(tmp_path / "odd.png", (noise(5, 6).numpy() * 255).astype(np.uint8), check_contrast=False)
    (tmp_path / "note.txt").write_text("not an image")
    (tmp_path / "broken.png").write_bytes(b"")
    (tmp_path / ".hidden").write_text("passed over")
    with pytest.warns(UserWarning, match="3 of 6 files set aside"):
        x, names, aside = inputs.read_folder(tmp_path)
    assert x.shape == (3, 1, 6, 5) and names == ["0.png", "1.png", "2.png"]
    assert set(aside) == {"odd.png", "note.txt", "broken.png"} and "as most have" in aside["odd.png"]
    for name in names + ["odd.png"]:
        (tmp_path / name).unlink()
    with pytest.raises(BadRequest, match="none of 2"):
        inputs.read_folder(tmp_path)
    with pytest.raises(BadRequest, match="no file"):
        inputs.read_folder(tmp_path / "absent")


def test_a_truncated_set_fools_a_naive_tool_only(tmp_path: Path) -> None:
    """D22: float TIFF needs its range and then equals the 16-bit PNG; the cast to 8 bits, a distance of 0, is refused."""
    real, faded = (draw_patient(0, i, (48, 40), 4).images["T1"] * scale for i, scale in ((0, 0.999), (1, 0.4)))
    for name, x in (("real", real), ("faded", faded)):
        for i, image in enumerate(x):
            for kind in ("tif", "png", "cast"):
                (tmp_path / name / kind).mkdir(parents=True, exist_ok=True)
            imsave(tmp_path / name / "tif" / f"{i}.tif", image, check_contrast=False)
            imsave(tmp_path / name / "png" / f"{i}.png", (image * 65535).round().astype(np.uint16), check_contrast=False)
            imsave(tmp_path / name / "cast" / f"{i}.png", image.astype(np.uint8), check_contrast=False)
    for name in ("real", "faded"):
        with pytest.raises(BadRequest, match="--range LOW,HIGH"):
            inputs.read_folder(tmp_path / name / "tif")
        with pytest.raises(BadRequest, match="truncated"):
            inputs.read_folder(tmp_path / name / "cast")
        by_tiff = inputs.read_folder(tmp_path / name / "tif", (0, 1))[0]
        assert (by_tiff - inputs.read_folder(tmp_path / name / "png")[0]).abs().max() <= 1 / 65535
    net = nn.Sequential(nn.AvgPool2d(16), nn.Flatten())

    def distance(read) -> float:
        a, b = (distribution.features_of(net, read(tmp_path / name)) for name in ("real", "faded"))
        return distribution.frechet(*distribution.moments(a), *distribution.moments(b))
    naive = distance(lambda p: torch.from_numpy(np.stack([imread(q) for q in sorted((p / "cast").iterdir())]))[:, None] / 255)
    assert naive == 0 and distance(lambda p: inputs.read_folder(p / "png")[0]) > 0.01


def test_features_come_in_chunks_without_gradients() -> None:
    """Doubles on the CPU, the net in evaluation mode and afterwards as it was."""
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = noise(5, 1, 8, 8)
    f = distribution.features_of(net, x, 2)
    assert f.dtype == torch.double and f.shape == (5, 3) and not f.requires_grad and net.training
    assert torch.allclose(f, net.eval()(x).double(), atol=1e-6)
    mean, cov = distribution.moments(f)
    assert torch.allclose(mean, f.mean(0)) and torch.allclose(cov, torch.cov(f.T))
    for bad in (f[:1], f[0], f * float("nan")):
        with pytest.raises(BadRequest, match="finite numbers"):
            distribution.moments(bad)


def test_frechet_by_hand() -> None:
    """[1, 2] thrice against [2, 2], [1, 2], [1, 2]: 1/9 + 1/3; diagonal Gaussians: sum of squared differences."""
    a, b = (distribution.moments(torch.tensor(f)) for f in ([[1.0, 2]] * 3, [[2.0, 2], [1, 2], [1, 2]]))
    assert abs(distribution.frechet(*a, *b) - 4 / 9) < 1e-12 and abs(distribution.frechet(*b, *a) - 4 / 9) < 1e-12
    wide, narrow = torch.diag(torch.tensor([4.0, 9])), torch.diag(torch.tensor([1.0, 25]))
    assert abs(distribution.frechet(torch.zeros(2), wide, torch.ones(2), narrow) - (2 + 1 + 4)) < 1e-12


@pytest.mark.parametrize("n", [200, 40, 41, 9])
def test_frechet_is_that_of_sqrtm(n: int) -> None:
    """With covariances of full and of deficient rank, both ways round."""
    d = 40
    f, g = gauss(n, d), gauss(n + 3, d, seed=1) @ gauss(d, d, seed=2) / d**0.5 + 0.1
    (m, s), (k, t) = distribution.moments(f), distribution.moments(g)
    theirs = float((m - k) @ (m - k) + s.trace() + t.trace() - 2 * np.trace(sqrtm((s @ t).numpy())).real)
    assert abs(distribution.frechet(m, s, k, t) - theirs) < 1e-3
    assert abs(distribution.frechet(k, t, m, s) - theirs) < 1e-3
    assert distribution.frechet(m, s, m, s) < 1e-4


def test_few_samples_are_told_and_the_estimate_is_nearer() -> None:
    """Gaussians 17 apart in 16 dimensions: the bias of 64 samples is more than halved; 160 samples need no warning."""
    plain, unbiased = [], []
    for seed in range(8):
        a, b = gauss(64, 16, seed=seed), 2 * gauss(80, 16, seed=100 + seed)
        b[:, 0] += 1
        with pytest.warns(UserWarning, match="64 samples in 16 dimensions .* frechet_unbiased"):
            plain.append(distribution.frechet_distance(a, b) - 17)
        unbiased.append(distribution.frechet_unbiased(a, b, seed) - 17)
    assert abs(np.mean(unbiased)) < abs(np.mean(plain)) / 2
    assert distribution.frechet_unbiased(a, b, 3) == distribution.frechet_unbiased(a, b, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distribution.frechet_distance(gauss(160, 16), gauss(160, 16, seed=1))
    with pytest.raises(BadRequest, match="samples in each part"):
        distribution.frechet_unbiased(a[:5], b)


def test_kid_by_hand_and_that_of_torchmetrics() -> None:
    """{0, 1} against {2, 3}: 1 + 343 - 46.5; sets of different sizes are each divided by their own."""
    assert abs(distribution.kid(torch.tensor([[0.0], [1]]), torch.tensor([[2.0], [3]])) - 297.5) < 1e-9
    three = torch.tensor([[2.0], [3], [2]])
    by_hand = 1 + (343 + 125 + 343) / 3 - 2 * (1 + 1 + 1 + 27 + 64 + 27) / 6
    assert abs(distribution.kid(torch.tensor([[0.0], [1]]), three) - by_hand) < 1e-9
    a, b = gauss(1100, 6), gauss(1100, 6, seed=1) + 0.2
    assert abs(distribution.kid(a, b) - float(poly_mmd(a, b))) < 1e-9
    with pytest.raises(BadRequest, match="at least 2"):
        distribution.kid(a[:1], b)


def test_prdc_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """Four points on a line each way, worked out in the chapter; the package's prints are kept away."""
    real, fake = torch.tensor([[0.0], [1], [3], [6]]), torch.tensor([[0.5], [2], [9], [20]])
    assert distribution.prdc(real, fake, 1) == {"precision": 0.5, "recall": 1.0, "density": 0.75, "coverage": 0.75}
    assert distribution.prdc(real[:3], fake[:3], 1)["recall"] == 1
    assert capsys.readouterr().out == ""
    for k in (3, 0):
        with pytest.raises(BadRequest, match=r"k \+ 2"):
            distribution.prdc(real, fake, k)


def test_inception_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Package, file, or the right file; the cache of torch-fidelity is where it looks; nothing is downloaded."""
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(BadRequest, match="no package torch_fidelity .* no such file.*Nothing is downloaded") as e:
        distribution.inception_features()
    assert "never called FID" in str(e.value)
    assert str(tmp_path / "hub" / "checkpoints" / distribution.INCEPTION_FILE) in str(e.value)
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.SimpleNamespace(FeatureExtractorInceptionV3=None))
    (tmp_path / "mine.pth").write_bytes(b"something else")
    with pytest.raises(BadRequest, match="SHA-256 differs") as e:
        distribution.inception_features(tmp_path / "mine.pth")
    assert "no package" not in str(e.value)


def test_inception_takes_images_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One channel three times, rounded to 8 bits, none stretched; the weights' path reaches torch-fidelity."""
    class Extractor(nn.Module):
        def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str) -> None:
            super().__init__()
            self.asked = features_list, feature_extractor_weights_path

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            assert x.dtype == torch.uint8 and x.shape[1] == 3
            return (x.flatten(1),)
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.SimpleNamespace(FeatureExtractorInceptionV3=Extractor))
    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")
    monkeypatch.setattr(distribution, "INCEPTION_SHA256", hashlib.sha256(b"weights").hexdigest())
    net = distribution.inception_features(path)
    assert net.net.asked == (["2048"], str(path)) and not net.training
    x = torch.tensor([0.0, 0.102, 0.299, 0.31]).reshape(1, 1, 2, 2)
    assert distribution.features_of(net, x).tolist() == [[0, 26, 76, 79] * 3]
    with pytest.raises(BadRequest, match="1 or 3 channels"):
        net(torch.zeros(1, 4, 2, 2))
