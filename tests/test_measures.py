"""Layer metrics, second half: intervals, registration, privacy; and Algorithm 3."""
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, binary_erosion, binary_fill_holes
from scipy.stats import bootstrap as scipy_bootstrap
from skimage.registration import phase_cross_correlation

from medsynth.core.paths import BadRequest
from medsynth.data.phantom import draw_patient
from medsynth.metrics import intervals, privacy, registration
from medsynth.structure import whole


def mean_of(x: np.ndarray) -> intervals.Measure:
    """The mean over drawn patients, whatever the seed."""
    return lambda s, rows: float(x[rows["patients"]].mean())


def cohort(seed: int, n: int, size: tuple[int, int] = (24, 20)) -> torch.Tensor:
    """Ten slices each of n phantom patients, (10 n, 4, *size)."""
    patients = [draw_patient(seed, i, size, 10) for i in range(n)]
    return torch.from_numpy(np.stack([np.concatenate([p.images[m] for p in patients]) for m in patients[0].images], 1))


def moved(x: torch.Tensor, dy: float, dx: float) -> torch.Tensor:
    """An image shifted down and right by any fraction of a pixel, through its Fourier transform."""
    phase = torch.fft.fftfreq(x.shape[-2])[:, None] * dy + torch.fft.fftfreq(x.shape[-1]) * dx
    return torch.fft.ifft2(torch.fft.fft2(x) * torch.exp(-2j * torch.pi * phase)).real


# Intervals


def test_an_estimate_words_itself() -> None:
    """Value, interval, count and unit; a single unit is singular and has no interval."""
    assert intervals.Estimate(0.8124, 0.79, 0.834, 12, "test patients").text == "0.812 [0.790, 0.834] (12 test patients)"
    assert intervals.Estimate(0.612, None, None, 1, "test patients").text == "0.612 (n = 1 test patient, no interval)"
    assert intervals.Estimate(0.612, None, None, 7, "cases").text == "0.612 (n = 7 cases, no interval)"


def test_apart_means_that_zero_is_outside() -> None:
    """Above, below, around, touching, and none."""
    limits = ((0.1, 0.3), (-0.3, -0.1), (-0.1, 0.1), (0.0, 0.1), (None, None))
    assert [intervals.Estimate(0.0, low, high, 3, "cases").apart for low, high in limits] == [True, True, False, False, None]


def test_bootstrap_agrees_with_scipy() -> None:
    """The mean of 20 numbers: value exact, limits to Monte Carlo error, same seed same bits, another seed others."""
    x = np.random.default_rng(0).normal(0.8, 0.05, 20)
    ours = intervals.bootstrap(mean_of(x), {"patients": 20}, draws=4000)
    theirs = scipy_bootstrap((x,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    near = 0.06 * (theirs.high - theirs.low)
    assert ours.value == x.mean() and abs(ours.low - theirs.low) < near and abs(ours.high - theirs.high) < near
    few = [intervals.bootstrap(mean_of(x), {"patients": 20}, draws=50, seed=s) for s in (3, 3, 4)]
    assert few[0] == few[1] != few[2]


def test_seeds_share_their_patients_and_are_measured_once_a_draw() -> None:
    """Every unit is drawn once a draw, with replacement; a seed that is drawn twice is measured once."""
    seen: list[tuple[int, bytes, bytes]] = []

    def measure(s: int, rows: dict[str, np.ndarray]) -> float:
        seen.append((s, rows["patients"].tobytes(), rows["cases"].tobytes()))
        return float(s)
    found = intervals.bootstrap(measure, {"patients": 12, "cases": 30}, n_seeds=3, draws=40)
    assert found.value == 1 and (found.n, found.unit) == (12, "patients") and found.low < 1 < found.high
    first = [(s, np.frombuffer(p, np.int64).tolist()) for s, p, _ in seen[:3]]
    assert first == [(s, list(range(12))) for s in range(3)], "the value itself is of all rows"
    assert len(seen) == len(set(seen)) and len({(p, c) for _, p, c in seen}) == 41


def test_draws_of_a_unit_do_not_depend_on_other_units() -> None:
    """Counting cases too leaves the draws of patients as they were."""
    x = np.random.default_rng(0).normal(size=9)
    alone, beside = ({"patients": 9}, {"cases": 50, "patients": 9})
    assert intervals.bootstrap(mean_of(x), alone, draws=60) == intervals.bootstrap(mean_of(x), beside, draws=60)


def test_one_patient_gives_no_interval() -> None:
    """Whatever else is counted, and however many seeds there are."""
    found = intervals.bootstrap(lambda s, rows: s / 4, {"patients": 1, "cases": 500}, n_seeds=5)
    assert found == intervals.Estimate(0.5, None, None, 1, "patients")


def test_undefined_draws_are_left_out() -> None:
    """A few nan draws do not matter; more than one in ten, and there is no interval."""
    x = np.arange(12.0)

    def absent(gone: int) -> intervals.Measure:
        return lambda s, rows: float("nan") if np.sum(rows["patients"] == 0) >= gone else float(x[rows["patients"]].mean())
    rare, common = (intervals.bootstrap(absent(n), {"patients": 12}, draws=300) for n in (4, 2))
    assert rare.low is not None and common.low is None and common.n == 12


def test_impossible_counts_are_refused() -> None:
    """No patient, an unknown unit, no seed."""
    for counts, n_seeds in (({"patients": 0}, 1), ({"cases": 5}, 1), ({"patients": 5}, 0)):
        with pytest.raises(BadRequest, match="at least one"):
            intervals.bootstrap(lambda s, rows: 0.0, counts, n_seeds)


def test_a_paired_difference_is_sharper() -> None:
    """Methods whose intervals overlap are apart where the same patients are hard for both."""
    rng = np.random.default_rng(1)
    hard = rng.normal(0.7, 0.1, 12)
    a, b = mean_of(hard + rng.normal(0.02, 0.01, 12)), mean_of(hard)
    one, two = (intervals.bootstrap(f, {"patients": 12}, draws=300) for f in (a, b))
    gap = intervals.difference(a, b, {"patients": 12}, draws=300)
    assert one.low < two.high and gap.apart and gap.low < 0.02 < gap.high
    assert intervals.difference(a, a, {"patients": 12}, draws=30) == intervals.Estimate(0.0, 0.0, 0.0, 12, "patients")


@pytest.mark.long
def test_intervals_cover_the_truth() -> None:
    """About 95 of 100 intervals contain it."""
    hits = [intervals.bootstrap(mean_of(np.random.default_rng(i).normal(size=25)), {"patients": 25}, draws=150, seed=i).apart
            for i in range(100)]
    assert hits.count(False) > 85


# Registration


def test_edges_by_hand() -> None:
    """A vertical step of 1: Sobel answers 4 on both sides of it, a slope of 1 both ways sqrt(8^2 + 8^2)."""
    step = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 1, 4, 4)
    assert torch.equal(registration.edge_map(step)[0, 0, 1], torch.tensor([0.0, 4.0, 4.0, 0.0]))
    slope = (torch.arange(5.0)[:, None] + torch.arange(5.0))[None, None]
    assert abs(registration.edge_map(slope)[0, 0, 2, 2].item() - 128**0.5) < 1e-5


def test_registered_modalities_are_found_so() -> None:
    """The modalities of a phantom slice lie on each other."""
    assert registration.case_shift(cohort(0, 1, (96, 80))).max() < 0.1


def test_known_shifts_are_read_back_across_contrasts() -> None:
    """Down and right are positive; whole and sub-pixel, 0.3 to 3 px, between any two modalities."""
    x = cohort(0, 1, (96, 80))[1:9:2]
    y, z = registration.shift_between(x[1, 0], x[1, 3].roll((2, -3), (0, 1)))
    assert abs(y - 2) < 0.1 and abs(z + 3) < 0.1
    errors = []
    for dy, dx in ((0.3, 0.0), (-0.7, 0.45), (1.0, -1.5), (-2.1, 2.1)):
        for case in x:
            y, z = registration.shift_between(case[0], moved(case[3], dy, dx))
            errors.append(float(np.hypot(y - dy, z - dx)))
    assert np.median(errors) < 0.1 and max(errors) < 0.25


def test_a_pair_equals_the_library() -> None:
    """Every pair is scikit-image's answer on the edge maps, less the sign."""
    x = cohort(0, 1, (96, 80))[3:5]
    x[:, 2] = moved(x[:, 2], 0.5, -1.25)
    edges = registration.edge_map(x).numpy()
    theirs = []
    for e in edges - edges.mean((2, 3), keepdims=True):
        back = [phase_cross_correlation(e[i], e[j], upsample_factor=20, normalization=None)[0]
                for i in range(4) for j in range(i + 1, 4)]
        theirs.append([np.hypot(*shift) for shift in back])
    assert torch.allclose(registration.pair_shifts(x), torch.tensor(theirs, dtype=torch.float32))


def test_one_misplaced_modality_makes_the_case_misplaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand on four modalities: the last 3 px off is seen, one odd pair is not; two modalities have one pair."""
    pairs = torch.tensor([[0.0, 0, 3, 0, 3, 3], [9.0, 0, 0, 0, 0, 0], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]])  # 01 02 03 12 13 23
    monkeypatch.setattr(registration, "pair_shifts", lambda x: pairs[:, : x.shape[1] * (x.shape[1] - 1) // 2])
    assert torch.allclose(registration.case_shift(torch.zeros(3, 4, 1, 1)), torch.tensor([3.0, 0.0, 0.5]))
    assert torch.allclose(registration.case_shift(torch.zeros(3, 2, 1, 1)), torch.tensor([0.0, 9.0, 0.1]))


def test_a_blank_modality_has_no_place() -> None:
    """Its pairs and its case are nan, other cases are not; no case gives no number; one modality is refused."""
    x = cohort(0, 1, (48, 40))[3:5]
    x[0, 1] = 0.5
    assert registration.pair_shifts(x).isnan().tolist() == [[True, False, False, True, True, False], [False] * 6]
    assert registration.case_shift(x).isnan().tolist() == [True, False]
    assert registration.case_shift(x[:0]).shape == (0,)
    with pytest.raises(BadRequest, match="two modalities"):
        registration.case_shift(x[:, :1])


# Privacy


def test_nearest_by_hand() -> None:
    """(3, 4) is sqrt(25 / 2) from the origin; a copy is at exactly 0; of two copies the first is found."""
    a = torch.tensor([[3.0, 4.0], [10.0, 10.0]])
    distance, index = privacy.nearest(a, torch.tensor([[0.0, 0.0], [10.0, 10.0], [-9.0, 0.0], [10.0, 10.0]]))
    assert index.tolist() == [0, 1] and distance[1] == 0 and abs(distance[0].item() - 12.5**0.5) < 1e-6
    with pytest.raises(ValueError, match="at least one"):
        privacy.nearest(a, a[:0])


def test_nearest_agrees_with_all_distances() -> None:
    """In chunks, against the full table in double; nearly equal bright images, where squares cancel."""
    g = torch.Generator().manual_seed(0)
    a, b = (0.9 + 0.01 * torch.rand(n, 4, 24, 20, generator=g) for n in (70, 90))
    a[13], a[69] = b[89], b[0]
    table = (a[:, None].double() - b[None].double()).square().mean((2, 3, 4)).sqrt()
    distance, index = privacy.nearest(a, b, chunk=32)
    assert torch.equal(index, table.argmin(1)) and torch.allclose(distance.double(), table.amin(1), rtol=1e-4)
    assert (distance == 0).nonzero().flatten().tolist() == [13, 69]
    assert privacy.nearest(a[:0], b)[0].shape == (0,)


@pytest.mark.long
def test_copies_are_found_and_new_patients_pass() -> None:
    """New patients stay within the goal of 2%; a twentieth of copies, or of noisy copies, does not."""
    train, held_out, new = cohort(1, 40), cohort(2, 40), cohort(3, 40)
    share, threshold = privacy.memorised_share(new, train, held_out)
    assert share <= 0.02 and 0.05 < threshold < 0.1
    noise = 0.01 * torch.randn(20, 4, 24, 20, generator=torch.Generator().manual_seed(0))
    for copies in (train[::20], train[::20] + noise):
        assert privacy.memorised_share(torch.cat([new[20:], copies]), train, held_out)[0] > 0.04
    assert abs(privacy.memorised_share(held_out, train, held_out)[0] - 0.01) < 1e-6, "4 of 400 by construction"


def test_auc_by_hand() -> None:
    """2.5 of 4 pairs; order alone counts, scores far below 0 or a hair apart too; ties are a half."""
    inside, outside = torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0])
    for change in (lambda x: x, lambda x: x - 1000, lambda x: x * 1e-9 - 1e-8):
        assert privacy.score_auc(change(inside), change(outside)) == 0.625
    assert privacy.score_auc(torch.zeros(3), torch.zeros(5)) == 0.5
    assert privacy.score_auc(torch.tensor([1.0]), torch.tensor([0.0])) == 1


def test_membership_is_told_by_copies() -> None:
    """Copies give every training image away; by hand, one copy of three against distances of 1 and 2."""
    train, held_out = torch.tensor([[0.0], [5.0], [9.0]]), torch.tensor([[1.0], [7.0]])
    assert privacy.membership_auc(train, held_out, train) == 1
    assert privacy.membership_scores(train, train[:1]).tolist() == [0, -5, -9]
    assert abs(privacy.membership_auc(train, held_out, train[:1]) - 3 / 6) < 1e-6, "0 wins twice, 5 once, 9 never"


def test_soft_lines_are_near() -> None:
    """A line a pixel off is as far as any line, until both are softened."""
    line = torch.zeros(1, 1, 16, 16)
    line[..., 5, :] = 1
    near, far = line.roll(1, 2), line.roll(8, 2)
    assert privacy.nearest(line, near)[0] == privacy.nearest(line, far)[0]
    soft = privacy.soften(line)
    assert soft.shape == (1, 1, 4, 4) and torch.equal(soft[0, 0, :, 0], torch.tensor([0, 0.25, 0, 0]))
    assert privacy.nearest(soft, privacy.soften(near))[0] == 0 and privacy.nearest(soft, privacy.soften(far))[0] > 0.1


# Algorithm 3


def ring_and_mask() -> tuple[torch.Tensor, torch.Tensor]:
    """A square ring of side 8 on a 12 x 12 grid, and its mask."""
    ring, m = torch.zeros(1, 1, 12, 12), torch.ones(1, 1, 12, 12)
    ring[..., 2:10, 2:10], m[..., 2:10, 2:10] = 1, 0
    ring[..., 3:9, 3:9] = 0
    return ring, m


def test_a_ring_is_whole_until_it_is_cut() -> None:
    """A gap of 2 px closes; through 3 px the inside runs empty and 25 pixels of line are left."""
    ring, m = ring_and_mask()
    gap2, gap3 = ring.clone(), ring.clone()
    gap2[..., 2, 5:7], gap3[..., 2, 5:8] = 0, 0
    assert torch.equal(whole.filled_mask(ring), m) and torch.equal(whole.filled_mask(gap2), m)
    found = whole.mismatch(torch.cat([ring, gap3]), torch.cat([m, m]))
    assert torch.allclose(found, torch.tensor([0, 39 / 144]))
    assert whole.whole(torch.cat([ring, gap3]), torch.cat([m, m]), 0.1).tolist() == [True, False], "not as printed"


def test_lines_count_as_organ_and_do_not_grow() -> None:
    """An empty map is all background; a lone line is itself; a diagonal ring is closed."""
    assert whole.filled_mask(torch.zeros(1, 1, 9, 9)).min() == 1
    line = torch.zeros(1, 1, 9, 9)
    line[..., 4, 2:7] = 1
    assert torch.equal(whole.filled_mask(line), 1 - line)
    y, x = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    away = (y - 4).abs() + (x - 4).abs()
    assert torch.equal(whole.filled_mask((away == 3).float()[None, None], 0)[0, 0], (away > 3).float())


def test_filling_equals_scipy() -> None:
    """Random scribbles: binary_fill_holes between a dilation and an erosion."""
    scribbles = (torch.rand(20, 1, 40, 32, generator=torch.Generator().manual_seed(0)) < 0.12).float()
    for px in (0, 1, 2):
        box = np.ones((2 * px + 1, 2 * px + 1))
        for one, ours in zip(scribbles[:, 0].numpy() > 0, whole.filled_mask(scribbles, px), strict=True):
            theirs = binary_erosion(binary_fill_holes(binary_dilation(one, box)), box, border_value=1)
            assert np.array_equal(ours[0].numpy() == 0, theirs)


def test_delta_accepts_the_share_asked_for() -> None:
    """Of 20 maps with mismatches of 0, 1, ... 19 pixels, 95% are the first 20 x 0.95, and no fewer."""
    ring, m = ring_and_mask()
    s, masks = ring.repeat(20, 1, 1, 1), m.repeat(20, 1, 1, 1)
    for i in range(20):
        masks[i].view(-1)[:i] = 0
    for share, kept in ((0.95, 20), (0.5, 11), (0.0, 1), (1.0, 20)):
        delta = whole.delta_for(s, masks, share)
        assert whole.whole(s, masks, delta).sum() == kept and abs(delta - (kept - 1) / 144) < 1e-6
