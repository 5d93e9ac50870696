"""Layer structure: parity with scipy, the variants of Algorithm 1, Algorithm 4, noise fusion."""
import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage

from medsynth.core.paths import BadRequest
from medsynth.core.random import generator
from medsynth.data import batches
from medsynth.data.batches import parse_data
from medsynth.data.phantom import phantom_cohort
from medsynth.structure import edges, extraction, fusion, lesions, mask, pool, slices, whole


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """Two smooth random images."""
    noise = np.random.default_rng(0).random((2, 40, 32))
    return torch.tensor(ndimage.gaussian_filter(noise, (0, 2, 2)), dtype=torch.float32)[:, None]


def test_sobel_equals_scipy(image: torch.Tensor) -> None:
    """Signed, both axes, borders replicated."""
    vertical, horizontal = edges.sobel(image)
    for i in range(2):
        x = image[i, 0].numpy()
        assert np.allclose(vertical[i, 0], ndimage.sobel(x, 0, mode="nearest"), atol=1e-5)
        assert np.allclose(horizontal[i, 0], ndimage.sobel(x, 1, mode="nearest"), atol=1e-5)


@pytest.mark.parametrize(("kernel", "size"), [("3x3", 3), ("flattened", 9)])
def test_blur_equals_scipy(image: torch.Tensor, kernel: str, size: int) -> None:
    """The true kernel, and the public code's flattened one as row and column filter (D2)."""
    taps = edges.gaussian_taps(0.4).numpy()
    taps = np.outer(taps, taps).ravel() if kernel == "flattened" else taps
    assert len(taps) == size
    expected = ndimage.correlate1d(ndimage.correlate1d(image[0, 0].numpy(), taps, 0, mode="nearest"), taps, 1, mode="nearest")
    assert np.allclose(edges.blur(image, 0.4, kernel)[0, 0], expected, atol=1e-6)
    with pytest.raises(ValueError, match="kernel"):
        edges.blur(image, 0.4, "5x5")


def test_the_literal_line_makes_the_second_blur_useless(image: torch.Tensor) -> None:
    """D1: thresholding the sum, the second blur's width changes nothing; thresholding the blurred map, it does."""
    m = torch.zeros_like(image)
    def of(on: str, sigma2: float) -> torch.Tensor:
        return edges.structure_map(image, m, 0.05, 0.05, 0.4, sigma2, 1, threshold_on=on)

    assert torch.equal(of("sum", 0.3), of("sum", 0.9)) and not torch.equal(of("blurred", 0.3), of("blurred", 0.9))


def test_gamma_and_mask_confine_lines(image: torch.Tensor) -> None:
    """D4: either no line where m = 1, or none where x <= gamma."""
    m = (image > image.median()).float()
    kept = edges.structure_map(image, m, 0.05, 0.05, 0.4, 0.3)
    assert (kept * m).sum() == 0 and kept.sum() > 0
    gamma = float(image.median())
    assert (edges.structure_map(image, m, 0.05, 0.05, 0.4, 0.3, gamma=gamma) * (image <= gamma)).sum() == 0


def test_fill_holes_equals_scipy() -> None:
    """On random masks, grown as on a GPU, and as a CPU does it for large images."""
    m = (torch.rand(6, 1, 20, 24, generator=torch.Generator().manual_seed(1)) > 0.6).float()
    for filled in (mask.fill_holes(m), mask.filled(m)):
        assert filled.dtype == m.dtype
        for a, b in zip(m, filled, strict=True):
            assert np.array_equal(1 - b[0].numpy(), ndimage.binary_fill_holes(1 - a[0].numpy()).astype(np.float32))


def test_fusion_by_hand() -> None:
    """Line 1, organ z', background 0 (eq. 12)."""
    s, m, z = (torch.tensor(v).view(1, 1, 1, 3) for v in ([1.0, 0, 0], [0.0, 0, 1], [0.52, 0.57, 0.58]))
    assert torch.allclose(fusion.fuse_noise(s, m, z).flatten(), torch.tensor([1.0, 0.57, 0.0]))


def test_algorithm_4_keeps_lesions_in_the_organ() -> None:
    """Accepted labels lie inside untouched; what is not accepted is cut, and said."""
    labels = torch.zeros(1, 40, 40)
    labels[0, 16:24, 16:24] = 1
    m = torch.ones(8, 1, 40, 40)
    m[:4, :, 4:36, 4:36] = 0
    m[4:, :, 18:20, 18:20] = 0
    chosen, accepted = lesions.choose_labels(labels, m, 0, list(range(8)))
    assert ((chosen > 0) * m).sum() == 0
    assert accepted[:4].all() and not accepted[4:].any() and (chosen[:4] > 0).flatten(1).sum(1).min() > 20


def printed_loop(labels: torch.Tensor, m: torch.Tensor, records: list[int], n_tries: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Algorithm 4 try by try, every record's tries drawn to the end: what the two batched warps must equal."""
    generators = [generator(0, "label", r) for r in records]
    best, fewest = torch.zeros_like(m), torch.full((len(records),), float("inf"))
    for _ in range(n_tries):
        indices = [int(torch.randint(len(labels), (), generator=g)) for g in generators]
        matrices = torch.stack([lesions.draw_augmentation(g, m.shape[2:]) for g in generators])
        candidate = lesions.warp(labels[indices][:, None].to(m), matrices)
        outside = ((candidate > 0) * m).sum((1, 2, 3)) + 1e9 * ((candidate > 0).sum((1, 2, 3)) == 0)
        better = (outside < fewest)[:, None, None, None]
        best, fewest = torch.where(better, candidate, best), torch.minimum(outside, fewest)
    return best * (1 - m), fewest == 0


@pytest.mark.parametrize("n_tries", [1, 4, 12])
def test_batched_algorithm_4_chooses_what_the_loop_chooses(n_tries: int) -> None:
    """Bit for bit, in organs where most draws are rejected and in one without room; the try counts from 1."""
    yy, xx = torch.meshgrid(torch.arange(48.0), torch.arange(40.0), indexing="ij")
    radius = (((yy - 23.5) / 20) ** 2 + ((xx - 19.5) / 15) ** 2).sqrt()
    m = torch.stack([radius > 1 - i / 16 for i in range(16)])[:, None].float()
    labels = torch.zeros(3, 48, 40)
    labels[0, 16:24, 16:20] = labels[1, 8:12, 20:24] = 1
    labels[2, 26:40, 10:20] = 2
    chosen, tries = lesions.choose_labels(labels, m, 0, list(range(16)), n_tries)
    expected, accepted = printed_loop(labels, m, list(range(16)), n_tries)
    assert torch.equal(chosen, expected) and torch.equal(tries > 0, accepted) and accepted.any() and not accepted.all()
    assert tries.max() <= n_tries and (n_tries == 1 or tries.max() > 1)


def test_augmented_labels_keep_their_classes() -> None:
    """Nearest neighbour: no class in between appears."""
    label = torch.zeros(1, 1, 48, 40)
    label[0, 0, 20:26, 15:25] = 4
    for i in range(20):
        matrix = lesions.draw_augmentation(torch.Generator().manual_seed(i), (48, 40))
        assert set(lesions.warp(label, matrix[None]).unique().tolist()) <= {0.0, 4.0}


def test_prepared_slices_are_cached_and_split_by_patient() -> None:
    """The second call reads the same bits; no patient is on both sides (D12); the label set holds no test patient (D35)."""
    small = {"n_patients": 3, "n_test": 1, "n_slices": 4}
    a = slices.prepare(parse_data("phantom"), (48, 40), 2, small)
    b = slices.prepare(parse_data("phantom"), (48, 40), 2, small)
    assert a.hash == b.hash and all(torch.equal(v, b.tensors[n]) for n, v in a.tensors.items())
    train, test = a.side("train"), a.side("test")
    assert set(train.patient.tolist()).isdisjoint(test.patient.tolist()) and len(train.x) + len(test.x) == 12
    assert len(a.labels) == int((train.l > 0).flatten(1).any(1).sum())
    assert slices.prepare(parse_data("phantom"), (48, 40), 2, small | {"seed": 1}).hash != a.hash


def test_an_outline_outlives_the_lesion_that_touches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disc whose tumour reaches its border: with 0 px its map is open, with 2 px it is closed, and only lines near it stay."""
    yy, xx = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    disc = 0.6 * (((yy - 32) ** 2 + (xx - 32) ** 2).sqrt() < 22).float()[None, None]
    tumour = torch.zeros_like(disc)
    tumour[..., 24:40, :32] = 1
    maps = {}
    for px in (0, 2):
        monkeypatch.setitem(extraction.OUTLINE_PX, "brats2015_subset", px)
        maps[px] = slices.extract("brats2015_subset", {"Flair": disc}, tumour)
    m = maps[0]["m"]
    assert torch.equal(maps[0]["s_free"], lesions.remove_lesion(maps[0]["s"], tumour, 2)), "0 px: the thesis's removal"
    assert whole.mismatch(maps[0]["s_free"], m) > 0.2 and whole.mismatch(maps[2]["s_free"], m) < 0.01
    more = maps[2]["s_free"] - maps[0]["s_free"]
    assert more.sum() > 0 and (more * (1 - lesions.dilate(m, 2))).sum() == 0


def half_empty() -> slices.Slices:
    """Six slices of two modalities filled with 1..6 and 11..16; slices 1 and 4 lack the second one."""
    x = torch.stack([torch.arange(1.0, 7), torch.arange(11.0, 17)], 1)[:, :, None, None].expand(6, 2, 4, 4).clone()
    present = torch.ones(6, 2, dtype=torch.bool)
    present[[1, 4], 1], x[[1, 4], 1] = False, 0
    empty = torch.zeros(6, 1, 4, 4)
    tensors = {"x": x, "present": present, "s": empty, "m": empty, "l": empty, "labels": empty[:, 0],
               "patient": torch.arange(6), "test": torch.zeros(6, dtype=torch.bool)}
    return slices.Slices("toy", False, ("a", "b"), 2, "0", tuple("abcdef"), {}, tensors)


def test_stand_ins_by_hand() -> None:
    """Of slices 0, 2, 3, 5, who have it, row 1 gets number 1 % 4 = 1, which is slice 2; row 4 gets 4 % 4 = 0, slice 0."""
    data = half_empty()
    got = slices.stand_ins(data, torch.tensor([0, 1, 4]))[:, :, 0, 0]
    assert got.tolist() == [[1, 11], [2, 13], [5, 11]]
    assert data.x[1, 1].max() == 0, "the slices themselves are left alone"
    assert slices.having(data, 1).patient.tolist() == slices.having(data).patient.tolist() == [0, 2, 3, 5]
    assert len(slices.having(data, 0).x) == 6
    b = slices.batch_of(data, 6, 0, "toy", 0)
    assert torch.equal(b["present"][:, 1] == 0, b["x"][:, 1].amax((1, 2)) == 0) and b["x_any"].amin() >= 1


def test_slices_with_every_modality_stand_for_themselves() -> None:
    """Without `present`, or with it all true, x_any is x and every slice is kept."""
    data = half_empty()
    complete = slices.Slices(**(data.__dict__ | {"tensors": {k: v for k, v in data.tensors.items() if k != "present"}}))
    b = slices.batch_of(complete, 4, 0, "toy", 1)
    assert torch.equal(b["x"], b["x_any"]) and b["present"].min() == 1 and len(slices.having(complete).x) == 6


def test_a_training_patient_without_a_modality_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """`incomplete` keeps it with x 0 and present False there; without any T2 left in training it is a bad request."""
    def lacking(names: tuple[str, ...]) -> None:
        cohort = phantom_cohort(3, 1, 2, (48, 40))
        patients = [dataclasses.replace(p, images={k: v for k, v in p.images.items() if k != "T2" or p.name not in names})
                    for p in cohort.patients]
        monkeypatch.setattr(batches, "read_cohort", lambda *_: dataclasses.replace(cohort, patients=patients))

    lacking(("phantom000",))
    data = slices.prepare(parse_data("phantom"), (48, 40), 1, {"seed": 77}, incomplete=True)
    absent = ~data.present
    assert absent.sum() == 2 and absent[:2, data.modalities.index("T2")].all() and data.x[absent].max() == 0
    lacking(("phantom000", "phantom001"))
    with pytest.raises(BadRequest, match="modality T2"):
        slices.prepare(parse_data("phantom"), (48, 40), 1, {"seed": 78}, incomplete=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_the_same_map_on_a_gpu(image: torch.Tensor) -> None:
    """Algorithm 1 on a GPU equals the CPU's, but for ties of rounding."""
    m = torch.zeros_like(image)
    here = edges.structure_map(image, m, 0.05, 0.05, 0.4, 0.3)
    there = edges.structure_map(image.cuda(), m.cuda(), 0.05, 0.05, 0.4, 0.3).cpu()
    assert (here == there).float().mean() > 0.999


def printed_map(x: torch.Tensor, c: dict) -> torch.Tensor:
    """Algorithm 1 as printed, step by step and in whole filters, with scipy; x (H, W), no background."""
    taps = edges.gaussian_taps(c["sigma1"]).numpy(), edges.gaussian_taps(c["sigma2"]).numpy()
    taps = [np.outer(t, t).ravel() if c.get("kernel") == "flattened" else t for t in taps]

    def blur(a: np.ndarray, t: np.ndarray) -> np.ndarray:
        return ndimage.correlate1d(ndimage.correlate1d(a, t, 0, mode="nearest"), t, 1, mode="nearest")

    responses = [ndimage.sobel(x.numpy(), axis, mode="nearest") for axis in (0, 1)]
    s1, s2 = (blur((s - s.min()) / np.ptp(s), taps[0]) for s in (np.minimum(*responses), np.maximum(*responses)))
    line = (s1.mean() - s1 > c["alpha"]) | (s2 - s2.mean() > c["alpha"])
    blurred = blur(line.astype(np.float32), taps[1]) > c["beta"]
    return torch.from_numpy(ndimage.median_filter(blurred.astype(np.float32), c["median_px"], mode="nearest"))


@pytest.mark.parametrize("name", ["brats2015", "fundus", "lung_ct", "chest_xray", "phantom"])
def test_fast_maps_are_algorithm_1(image: torch.Tensor, name: str) -> None:
    """Additions in pieces give what whole filters do, but for ties; an image alone gives what it gives in a batch."""
    c, n_cores = edges.CONSTANTS[name], torch.get_num_threads()
    x = torch.nn.functional.interpolate(image, scale_factor=8, mode="bicubic").clamp(0, 1)
    maps = edges.structure_map(x, torch.zeros_like(x), **c)
    expected = torch.stack([printed_map(a[0], c) for a in x])[:, None]
    assert (maps != expected).float().mean() < 0.001 and 0 < expected.mean() < 1
    many = edges.structure_map(x.repeat(8, 1, 1, 1), torch.zeros(16, *x.shape[1:]), **c)
    assert torch.equal(many, maps.repeat(8, 1, 1, 1)) and torch.get_num_threads() == n_cores


def test_median_of_any_box(image: torch.Tensor) -> None:
    """Counts are bytes up to 15 x 15 and whole numbers above."""
    binary = (image > image.median()).float()
    for size in (1, 3, 9, 15, 17, 31):
        expected = ndimage.median_filter(binary[0, 0].numpy(), size, mode="nearest")
        assert np.array_equal(edges.median(binary, size)[0, 0].numpy(), expected), size


@pytest.mark.long
def test_an_aperture_stays_where_it_is_and_what_it_shows_moves() -> None:
    """Copies of a disc keep their outline to a pixel and their spokes touch it; an organ's outline moves, a turn moves both."""
    y, x = torch.meshgrid(torch.arange(96.0) - 47.5, torch.arange(96.0) - 47.5, indexing="ij")
    m = (x.hypot(y) > 42).float().expand(16, 1, -1, -1)
    spokes = ((y.abs() < 2) | ((x - y).abs() < 3)).float() * (1 - m)
    torch.manual_seed(0)
    s, held = pool.move_maps(spokes, m, turn=0.0, aperture=True)
    assert (held != m).float().mean() < 0.005 and (s != spokes).float().mean() > 0.01 and not (s * held).any()
    outermost = s * (x.hypot(y) > 40.5)  # two bars, four ends
    assert all(n >= 4 for n in (ndimage.label(one[0].numpy())[1] for one in outermost))
    torch.manual_seed(0)
    assert (pool.move_maps(spokes, m, turn=0.0)[1] != m).float().mean() > 0.03
    assert pool.move_maps(spokes.to("meta"), m.to("meta"), aperture=True)[0].is_meta  # as on a GPU, which holds the maps
