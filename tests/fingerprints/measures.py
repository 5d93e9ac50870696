"""One entry a measure: a few of its numbers on made-up inputs, so that no measure changes unnoticed.

An entry knows only the measure itself, which it imports when it runs: the file also runs on commits that have no versions.
`cd tests && python -m fingerprints.measures [name ...]` prints the values as JSON.
"""
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass, replace

import numpy as np
import torch

from fingerprints import made_up as u

MEASURES: dict[str, Callable[[], list[float]]] = {}  # name as it is declared -> its numbers
VERDICTS = ("missed", "undecided", "reached", "reported", "judge weak", "unequal time", "not run", "not measured")


def of(name: str) -> Callable:
    """Enter a function as the fingerprint of a measure."""
    def entered(function: Callable[[], object]) -> Callable:
        MEASURES[f"measure/{name}"] = lambda: numbers_in(function())
        return function
    return entered


def numbers_in(value: object) -> list[float]:
    """List the numbers in a result; of many, their mean, their spread, the first and a sum that knows their order."""
    if isinstance(value, torch.Tensor | np.ndarray):
        flat = np.asarray(value, float).ravel()
        order = np.arange(1, 1 + len(flat)) / max(len(flat), 1)
        return flat.tolist() if len(flat) <= 6 else [flat.mean(), flat.std(), flat[0], float((flat * order).mean())]
    if isinstance(value, str):
        return [float(n) for n in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.]*\w)", value)]
    if value is None or callable(value):
        return []
    if isinstance(value, dict):
        return numbers_in(list(value.values()))
    if is_dataclass(value):
        return numbers_in([getattr(value, f.name) for f in fields(value)])
    if isinstance(value, Iterable):
        return [n for part in value for n in numbers_in(part)]
    return [float(value)]


def row(made: object) -> list:
    """Take of a row its estimate, its verdict, the numbers in its words, and its cases' scores."""
    verdict = next((i for i, said in enumerate(VERDICTS) if made.verdict.startswith(said)), -1)
    scores = [] if made.scores is None else [made.scores]
    return [made.value, verdict, made.measured, made.goal, made.beside, made.note, *scores]


def estimates(numbers: object) -> list:
    """Estimate a table's numbers with their intervals, as the tables do."""
    from medsynth.evaluation.protocols import estimate_of

    if isinstance(numbers, dict):
        return [estimates(v) for v in numbers.values()]
    return [estimate_of(numbers), numbers.n_seeds, numbers.n_events]


def values(names: list[str] | None = None) -> dict[str, list[float] | str]:
    """Compute the fingerprints of some measures, or of all; "error: ..." of one that cannot be computed."""
    made = {}
    for name in MEASURES if names is None else names:
        with torch.random.fork_rng([]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            try:
                made[name] = MEASURES[name]()
            except Exception as e:  # an old commit may lack anything
                made[name] = f"error: {type(e).__name__}: {e}"
    return made


# Images


def two_sets() -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of nine cases."""
    return u.cases(9, 1)["x"], u.cases(9, 2)["x"]


@of("mean_squared_error")
def mean_squared_error() -> object:
    """Squared error of pairs of images."""
    from medsynth.metrics import images

    return images.mean_squared_error(*two_sets())


@of("psnr")
def psnr() -> object:
    """PSNR of pairs of images."""
    from medsynth.metrics import images

    return images.psnr(*two_sets())


@of("ms_ssim_scales")
def ms_ssim_scales() -> object:
    """Scales by size, at the sizes where they change."""
    from medsynth.metrics import images

    return [images.n_scales(side, side + 8) for side in (11, 21, 22, 43, 44, 98, 99, 175, 176, 512)]


@of("ssim")
def ssim() -> object:
    """SSIM of pairs of images."""
    from medsynth.metrics import images

    return images.ssim(*two_sets())


@of("ms_ssim")
def ms_ssim() -> object:
    """MS-SSIM of pairs of images at two scales, and at three."""
    from medsynth.metrics import images

    a, b = two_sets()
    return images.ms_ssim(a, b), images.ms_ssim(*(v.repeat(1, 1, 2, 2)[:2] for v in (a, b)))


@of("ms_ssim_between")
def ms_ssim_between() -> object:
    """MS-SSIM of drawn pairs of two sets."""
    from medsynth.metrics import images

    a, b = two_sets()
    return images.ms_ssim_between(a, b[:7], 3), images.ms_ssim_between(a, b, 4, 5)


@of("ms_ssim_within")
def ms_ssim_within() -> object:
    """MS-SSIM of drawn pairs of one set."""
    from medsynth.metrics import images

    return images.ms_ssim_within(u.cases(17, 3)["x"], 3), images.ms_ssim_within(u.cases(17, 3)["x"], 4, 5)


# Distributions of features


def features(n_a: int = 60, n_b: int = 72) -> tuple[torch.Tensor, torch.Tensor]:  # (n_a, 5), (n_b, 5)
    """Two clouds of different place, spread and shape."""
    g = u.seeded(5)
    a, b = (torch.randn(n, 5, generator=g) for n in (n_a, n_b))
    return a, 0.4 + b @ (torch.eye(5) + 0.3 * torch.randn(5, 5, generator=g))


@of("frechet")
def frechet() -> object:
    """Frechet distance of Gaussians, of full rank and of less."""
    from medsynth.metrics import distribution

    a, b = features()
    pairs = [(distribution.moments(p), distribution.moments(q)) for p, q in ((a, b), (a[:4], b[:4]), (b[:4], a))]
    return [distribution.frechet(*p, *q) for p, q in pairs]


@of("frechet_of_features")
def frechet_of_features() -> object:
    """Frechet distance of features."""
    from medsynth.metrics import distribution

    return distribution.frechet_distance(*features())


@of("frechet_unbiased")
def frechet_unbiased() -> object:
    """Frechet distance extrapolated, as it comes and with other sizes."""
    from medsynth.metrics import distribution

    return distribution.frechet_unbiased(*features()), distribution.frechet_unbiased(*features(), seed=1, n_sizes=4)


@of("kid")
def kid() -> object:
    """Kernel distance of features."""
    from medsynth.metrics import distribution

    return distribution.kid(*features())


@of("precision_recall_density_coverage")
def precision_recall_density_coverage() -> object:
    """The four of them, at five neighbours and at two."""
    from medsynth.metrics import distribution

    return distribution.prdc(*features()), distribution.prdc(*features(), k=2)


# Intervals


def drawn_measures() -> tuple[Callable, Callable]:
    """Two measures of three model seeds, eight patients and ten cases."""
    scores = torch.rand(2, 3, 8, 10, generator=u.seeded(6)).numpy()
    return tuple(lambda s, r, v=v: float(np.median(v[s][np.ix_(r["patients"], r["cases"])])) for v in scores)


SIZES = {"patients": 8, "cases": 10}


@of("bootstrap")
def bootstrap() -> object:
    """Estimates as they come, of one seed over cases, and with all that can be asked for."""
    from medsynth.metrics import intervals

    a, _ = drawn_measures()
    return [intervals.bootstrap(a, SIZES, 3), intervals.bootstrap(a, SIZES, unit="cases", draws=200, seed=2),
            intervals.bootstrap(a, SIZES, 3, draws=200, recentre=True, least=0.48, most=0.5)]


@of("paired_difference")
def paired_difference() -> object:
    """A difference as it comes, and recentred."""
    from medsynth.metrics import intervals

    a, b = drawn_measures()
    return intervals.difference(a, b, SIZES, 3), intervals.difference(a, b, SIZES, 2, "cases", 200, 1, True)


# Lesions


def two_labels() -> tuple[torch.Tensor, torch.Tensor]:  # (6, 1, H, W) of classes 0 to 4
    """Labels of five classes that overlap in part."""
    field = u.smooth(6, 1, u.seeded(7))
    return tuple((2.2 * (field + moved)).clamp(0, 4).round() for moved in (0.0, 0.3 * u.smooth(6, 1, u.seeded(8))))


@of("dice")
def dice() -> object:
    """Dice of all classes, of the core, and of nothing."""
    from medsynth.metrics import lesion

    a, b = two_labels()
    return lesion.dice(a, b), lesion.dice(a, b, (1, 3, 4)), lesion.dice(0 * a, 0 * b)


@of("published_dice")
def published_dice() -> object:
    """The public code's Dice."""
    from medsynth.metrics import lesion

    return lesion.published_dice(*two_labels())


@of("overlap")
def overlap() -> object:
    """Dice, IoU, sensitivity and accuracy."""
    from medsynth.metrics import lesion

    return lesion.overlap(*two_labels()), lesion.overlap(*two_labels(), (4,))


@of("auc")
def auc() -> object:
    """AUC of a score that tells something."""
    from medsynth.metrics import lesion

    a, b = two_labels()
    return lesion.auc(((a + 0.1 * u.smooth(6, 1, u.seeded(9))) / 5).clamp(0, 1), b > 1)


@of("plane_mse")
def plane_mse() -> object:
    """Squared error of class planes."""
    from medsynth.metrics import lesion

    a, b = two_labels()
    return lesion.plane_mse((-(a - torch.arange(5).view(1, 5, 1, 1)).abs()).softmax(1), b)


def found_and_true() -> tuple[list[dict], list[dict]]:
    """Boxes of two classes: true ones, and what was found of them, moved, missed and made up."""
    g, found, true = u.seeded(10), [], []
    for i in range(8):
        n = 1 + i % 3
        corner, side = 24 * torch.rand(n, 2, generator=g), 6 + 8 * torch.rand(n, 2, generator=g)
        boxes = torch.cat([corner, corner + side], 1)
        there, classes = torch.rand(n, generator=g) < 0.8, 1 + torch.arange(n) % 2
        extra = torch.tensor([[1.0, 30.0, 9.0, 40.0]])[: i % 2]
        moved = torch.cat([boxes[there] + 3 * (torch.rand(int(there.sum()), 1, generator=g) - 0.3), extra])
        true.append({"boxes": boxes, "classes": classes})
        found.append({"boxes": moved, "classes": torch.cat([classes[there], torch.ones(len(extra), dtype=torch.long)]),
                      "scores": 0.3 + 0.7 * torch.rand(len(moved), generator=g)})
    return found, true


@of("mean_average_precision")
def mean_average_precision() -> object:
    """AP at IoU 0.5, mean of two classes."""
    from medsynth.metrics import lesion

    return lesion.mean_average_precision(*found_and_true())


@of("box_scores")
def box_scores() -> object:
    """AP, IoU, sensitivity and false boxes, with the sure ones and with more."""
    from medsynth.metrics import boxes

    return boxes.read_boxes(*found_and_true()), boxes.read_boxes(*found_and_true(), sure_at=0.4)


# Memory, registration, vessels


def three_sets() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # synthetic, train, held out
    """Synthetic images between training and held-out ones, some of them near to the first."""
    g = u.seeded(11)
    train, held_out = torch.rand(30, 1, 6, 5, generator=g), torch.rand(60, 1, 6, 5, generator=g)
    near = torch.tensor([0.1, 0.8, 1.1]).repeat(8)[:, None, None, None]
    return train[:24] + near * (torch.rand(24, 1, 6, 5, generator=g) - 0.5), train, held_out


@of("nearest_distance")
def nearest_distance() -> object:
    """Distance and number of the nearest."""
    from medsynth.metrics import privacy

    synthetic, train, _ = three_sets()
    return privacy.nearest(synthetic, train), privacy.nearest(train, synthetic, 7)


@of("memorised_share")
def memorised_share() -> object:
    """Share nearer than a percentile, the first and the fifth, and the threshold."""
    from medsynth.metrics import privacy

    return privacy.memorised_share(*three_sets()), privacy.memorised_share(*three_sets(), 5.0)


@of("membership_scores")
def membership_scores() -> object:
    """Scores of held-out images."""
    from medsynth.metrics import privacy

    synthetic, _, held_out = three_sets()
    return privacy.membership_scores(held_out, synthetic)


@of("score_auc")
def score_auc() -> object:
    """AUC of scores with ties."""
    from medsynth.metrics import privacy

    inside, outside = (torch.randn(n, generator=u.seeded(n)).round(decimals=1) for n in (40, 50))
    return privacy.score_auc(inside + 0.4, outside)


@of("membership_auc")
def membership_auc() -> object:
    """AUC of membership."""
    from medsynth.metrics import privacy

    synthetic, train, held_out = three_sets()
    return privacy.membership_auc(train, held_out, synthetic)


def displaced() -> torch.Tensor:  # (8, 3, H, W)
    """Cases whose third modality lies off by up to five pixels, parts of pixels among them."""
    x = u.cases(8, 4)["x"]
    for i in range(8):
        whole, part = x[i, 2].roll((i // 2, -(i // 3)), (0, 1)), i / 16
        x[i, 2] = (1 - part) * whole + part * whole.roll(1, 0)
    return x


@of("shift_of_two")
def shift_of_two() -> object:
    """Shifts down and right, at twenty steps a pixel and at four."""
    from medsynth.metrics import registration

    return [registration.shift_between(c[0], c[2], n) for c, n in zip(displaced(), (20, 4) * 4, strict=True)]


@of("pair_shifts")
def pair_shifts() -> object:
    """Lengths of the shifts of all pairs."""
    from medsynth.metrics import registration

    return list(registration.pair_shifts(displaced()))


@of("case_shift")
def case_shift() -> object:
    """Misplacement of cases of three modalities, and of two."""
    from medsynth.metrics import registration

    return registration.case_shift(displaced()), registration.case_shift(displaced()[:, 1:])


@of("coarse_vessels")
def coarse_vessels() -> object:
    """Lines inside a mask shrunken as it comes and by two pixels."""
    from medsynth.metrics import vessels

    e = u.eyes(4, 5)
    return [vessels.coarse_vessels(e["s"], e["m"], *px).sum((1, 2, 3)) for px in ((), (2,))]


@of("vessel_scores")
def vessel_scores() -> object:
    """Sensitivity, accuracy and AUC of a dark level of green."""
    from medsynth.metrics import vessels

    e = u.eyes(4, 5)
    return vessels.vessel_scores(torch.sigmoid(20 * (0.36 - e["x"][:, 1:2])), e["label"], 1 - e["m"])


@of("line_auc")
def line_auc() -> object:
    """AUC of darkness on lines, exactly on them and a pixel beside."""
    from medsynth.metrics import vessels

    e = u.eyes(4, 5)
    return [vessels.line_auc(e["x"], e["s"], e["m"], *px) for px in ((), (1,))]


# Rows of the quality table


@of("row_modality")
def row_modality() -> object:
    """Modalities recognised."""
    from medsynth.evaluation import rows

    return row(rows.modality_row(u.brain_court(), u.ours()))


@of("row_registration")
def row_registration() -> object:
    """Shift between modalities, with a misregistered cohort."""
    from medsynth.evaluation import rows

    return row(rows.shift_row(u.brain_court(), u.ours(), u.controls()))


@of("row_translation")
def row_translation() -> object:
    """Translators that learnt from synthetic and from real images; two modalities."""
    from medsynth.evaluation import rows
    from medsynth.nets.unet import UNet

    nets = [u.untrained(UNet, 1, 1, 4, 2, seed=seed) for seed in (1, 2, 3)]
    return row(rows.translation_row(u.of_two(u.brain_court()), (nets[:2], nets[2])))


@of("row_lesion")
def row_lesion() -> object:
    """Lesions where the label says, with chains that ignore it."""
    from medsynth.evaluation import reading

    return row(reading.lesion_row(u.brain_court(), u.ours(), u.controls()))


@of("row_inside")
def row_inside() -> object:
    """Lesions inside the organ, with labels that were not filtered."""
    from medsynth.evaluation import reading

    return row(reading.inside_row(u.brain_court(), u.ours(), u.controls()))


def one_seed() -> object:
    """Our cases of the first model seed."""
    return replace(u.ours(), sets=u.ours().sets[:1])


@of("row_lesion_measures")
def row_lesion_measures() -> object:
    """Lesions by IoU, sensitivity, accuracy, AUC, plane MSE and AP."""
    from medsynth.evaluation import reading

    return row(reading.measures_row(u.brain_court(), one_seed()))


@of("row_whole")
def row_whole() -> object:
    """Maps that Algorithm 3 accepts."""
    from medsynth.evaluation import sets

    return row(sets.whole_row(u.brain_court(), u.ours()))


@of("row_variety")
def row_variety() -> object:
    """Likeness within maps."""
    from medsynth.evaluation import sets

    return row(sets.variety_row(u.brain_court(), u.ours()))


@of("row_memorised")
def row_memorised() -> object:
    """Images and maps that are near to training ones."""
    from medsynth.evaluation import sets

    return [row(sets.memory_row(u.brain_court(), u.ours(), key)) for key in "xs"]


@of("row_distance")
def row_distance() -> object:
    """Frechet distance with training images and GAN#."""
    from medsynth.evaluation import sets

    court, ours, gan = u.brain_court(), u.ours(), u.gan()
    return row(sets.distance_row(court, ours, sets.one_pass(court, ours, gan), gan))


@of("row_manifold")
def row_manifold() -> object:
    """Precision, recall, density and coverage."""
    from medsynth.evaluation import sets

    return row(sets.manifold_row(u.brain_court(), sets.one_pass(u.brain_court(), u.ours(), None)))


@of("row_likeness")
def row_likeness() -> object:
    """MS-SSIM, SSIM, PSNR and MSE to held-out images."""
    from medsynth.evaluation import sets

    return row(sets.likeness_row(u.brain_court(), u.ours()))


@of("row_fid")
def row_fid() -> object:
    """FID, by features that stand in for Inception's."""
    from medsynth.evaluation import sets

    return row(sets.fid_row(u.brain_court(), u.ours(), u.untrained(u.Features, seed=3)))


@of("row_class")
def row_class() -> object:
    """Classes read back."""
    from medsynth.evaluation import truths

    return row(truths.class_row(u.film_court(), u.subject("ours", ("X",), u.films(12, 33), u.films(12, 34))))


@of("row_vessels")
def row_vessels() -> object:
    """Vessels on the map's lines."""
    from medsynth.evaluation import truths

    return row(truths.vessel_row(u.eye_court(), u.subject("ours", ("RGB",), u.eyes(9, 23), u.eyes(9, 24))))


@of("row_boxes")
def row_boxes() -> object:
    """Boxes found over boxes found in real windows."""
    from medsynth.evaluation import truths

    return row(truths.box_row(u.window_court(), u.our_windows()))


# Numbers of tables


@of("table_estimate")
def table_estimate() -> object:
    """Estimate a number that rests on cases, with few draws and a floor."""
    from medsynth.evaluation import protocols

    number = protocols.Number(drawn_measures()[0], SIZES, "cases", 3, {"draws": 100, "recentre": True}, 0.49)
    return protocols.estimate_of(number)


@of("table_gap")
def table_gap() -> object:
    """How much better the later of two numbers is, where more is better and where less is."""
    from medsynth.evaluation import protocols

    a, b = drawn_measures()
    early = protocols.Number(a, SIZES, "patients", 3, {"draws": 200})
    late = protocols.Number(b, SIZES | {"cases": 9}, "patients", 2, {"draws": 200})
    return [protocols.gap_of(name, early, late) for name in ("ms_ssim", "distance")]


def our_x() -> list[torch.Tensor]:
    """Our images, a tensor a seed."""
    return [c["x"] for c in u.ours().sets]


@of("table_likeness")
def table_likeness() -> object:
    """MS-SSIM to held-out images."""
    from medsynth.evaluation import protocols

    return estimates(protocols.likeness(u.brain_court(), our_x()))


@of("table_within_set")
def table_within_set() -> object:
    """MS-SSIM within a set."""
    from medsynth.evaluation import protocols

    return estimates(protocols.within_set(u.brain_court(), our_x()))


@of("table_distance")
def table_distance() -> object:
    """Frechet distance to held-out images."""
    from medsynth.evaluation import protocols

    return estimates(protocols.nearness(u.brain_court(), our_x()))


@of("table_modality_right")
def table_modality_right() -> object:
    """Modalities recognised."""
    from medsynth.evaluation import protocols

    return estimates(protocols.recognised(u.brain_court(), our_x()))


@of("table_lesion_dice")
def table_lesion_dice() -> object:
    """Dice over Dice of real images, on the first cases."""
    from medsynth.evaluation import protocols, reading

    return estimates(protocols.read_back(u.brain_court(), u.ours(), reading.open_reading(u.brain_court()), 10))


@of("table_outside")
def table_outside() -> object:
    """Lesion pixels outside the organ."""
    from medsynth.evaluation import protocols, reading

    return estimates(protocols.beyond(u.brain_court(), u.ours(), reading.open_reading(u.brain_court())))


@of("table_shift")
def table_shift() -> object:
    """Median shift between modalities."""
    from medsynth.evaluation import protocols

    return estimates(protocols.shift_of(u.ours()))


@of("pairs_agreeing")
def pairs_agreeing() -> object:
    """Pairs of rows that two lists order alike, with ties."""
    from medsynth.evaluation import ablation

    ours, theirs = dict(zip("ABCD", (0.1, 0.4, 0.4, 0.3), strict=True)), dict(zip("ABCD", (0.2, 0.5, 0.1, 0.3), strict=True))
    return [ablation.pairs_agreeing(ours, theirs, better) for better in ("higher", "lower")]


@of("table_crops")
def table_crops() -> object:
    """Whole images, lesions cut out, and their boxes."""
    from medsynth.evaluation import crops

    return estimates(crops.crop_numbers(u.brain_court(), one_seed()))


@of("table_crops_short_of_real")
def table_crops_short_of_real() -> object:
    """How far whole images and boxes fall short of real ones."""
    from medsynth.evaluation import crops, protocols

    court, sides = u.brain_court(), {"synthetic": u.ours(), "real": protocols.real_subject(u.brain_court(), 15)}
    looked = ("whole image", "box crop")
    return crops.crop_verdict({images: crops.crop_numbers(court, of, looked) for images, of in sides.items()})


def of_windows(n_seeds: int) -> dict:
    """Table 2 and 3's numbers of windows: ours, a rival's, training images'."""
    from medsynth.evaluation import crops, protocols

    court, rival = u.window_court(), 0.9 * u.windows(6, 45)["x"]
    ours = replace(u.our_windows(), sets=u.our_windows().sets[:n_seeds])
    return crops.set_numbers(court, ours, u.subject("GAN#", ("CT",), {"x": rival}), protocols.real_subject(court, 6))


@of("table_sets")
def table_sets() -> object:
    """Ours, a rival's and training images, whole and in the boxes."""
    return [estimates(looked) for looked in of_windows(1).values()]


@of("table_above_gan")
def table_above_gan() -> object:
    """How much better ours are than a rival's."""
    from medsynth.evaluation import crops

    return crops.against_gan(of_windows(2), (10.0, 9.5))


@of("line_share")
def line_share() -> object:
    """How much of the organ is line."""
    from medsynth.evaluation import crops

    c = u.cases(9, 1)
    return crops.line_share(c["s"], c["m"])


# Readers with and without synthetic images


@of("table_vessels_by_eye")
def table_vessels_by_eye() -> object:
    """Vessels read in each eye, by two readers."""
    from medsynth.evaluation import usefulness

    test = u.eye_court().test
    return estimates(usefulness.numbers_by_eye([torch.sigmoid(20 * (level - test.x[:, 1:2])) for level in (0.33, 0.36)], test))


@of("table_vessel_readers")
def table_vessel_readers() -> object:
    """A segmenter of vessels."""
    from medsynth.evaluation import usefulness

    return estimates(usefulness.vessel_numbers([u.Level(0.37, 1, -20.0)], u.eye_court().test))


@of("table_classes_by_film")
def table_classes_by_film() -> object:
    """Films told rightly, by two readers."""
    from medsynth.evaluation import usefulness

    test = u.film_court().test
    right = [(torch.rand(len(test.x), generator=u.seeded(seed)) < 0.7).numpy() for seed in (1, 2)]
    return estimates(usefulness.numbers_by_film(right, test))


@of("table_class_readers")
def table_class_readers() -> object:
    """A classifier of films."""
    from medsynth.evaluation import usefulness

    return estimates(usefulness.class_numbers([u.ByMean((0.17, 0.23, 0.25))], u.film_court().test))


@of("table_box_readers")
def table_box_readers() -> object:
    """A detector of boxes."""
    from medsynth.evaluation import usefulness

    return estimates(usefulness.box_numbers([u.BrightBoxes()], u.window_court().test))


@of("table_untrained")
def table_untrained() -> object:
    """What can be said of vessels and of films without training."""
    from medsynth.evaluation import usefulness

    kinds = u.slices(u.eyes(12, 24), 6, ("RGB",), "none"), u.slices(u.films(18, 35), 6, ("X",), "class", 3)
    return [estimates(usefulness.untrained_numbers(made)) for made in kinds]


@of("table_gains")
def table_gains() -> object:
    """What synthetic images add, and what they give alone."""
    from medsynth.evaluation import protocols, usefulness

    a, b = drawn_measures()
    rows = {"real": a, "both": b, "synthetic": lambda s, r: a(s, r) * b(s, r)}
    number = {n: protocols.Number(m, SIZES, "patients", 3, {"draws": 200}) for n, m in rows.items()}
    return usefulness.gains_of({n: {"auc": of} for n, of in number.items()})


# Departures and evidence


@of("table_variant")
def table_variant() -> object:
    """A row of a chain that differs in one thing."""
    from medsynth.evaluation import variants

    return {k: v for k, v in variants.variant_row("ours", u.brain_court(), one_seed()).items() if k != "variant"}


@of("compared_departure")
def compared_departure() -> object:
    """A number of both sides and their difference."""
    from medsynth.evaluation import evidence

    sums = [evidence.by_unit(torch.rand(20, 2, generator=u.seeded(seed)), torch.arange(20) // 4) for seed in (1, 2)]
    made = evidence.compare("D0", "made up", *sums, lambda v: float(v[0] / v[1]), 1, real=0.7)
    return made, [n for n in made.row.values() if isinstance(n, float)]


@of("mean_of_sums")
def mean_of_sums() -> object:
    """A sum over a count."""
    from medsynth.evaluation import evidence

    return evidence.mean_of(np.array([3.7, 5.0]))


@of("painted_by_generator")
def painted_by_generator() -> object:
    """Images and ranks of features of a generator that is not trained."""
    from medsynth.evaluation import evidence
    from medsynth.nets.unet import UNet

    return evidence.painted(u.untrained(UNet, 2, 1, 8, 3), u.slices(u.cases(6, 6), 6, u.MODALITIES, "map"))


@of("between_modalities")
def between_modalities() -> object:
    """How far the modalities of an image are apart."""
    from medsynth.evaluation import evidence

    return evidence.between(u.cases(6, 6)["x"])


@of("critic_answers")
def critic_answers() -> object:
    """Answers of a critic that is not trained."""
    from medsynth.evaluation import evidence
    from medsynth.nets.critics import Critic

    return evidence.answers(u.untrained(Critic, 1, 4, True), u.cases(6, 6)["x"])


@of("lesion_pixels")
def lesion_pixels() -> object:
    """True positive, false positive and false negative pixels."""
    from medsynth.evaluation import evidence

    return list(evidence.pixels(*two_labels()))


@of("dice_of_sums")
def dice_of_sums() -> object:
    """Dice of counts."""
    from medsynth.evaluation import evidence

    return evidence.dice_of_sums(np.array([7.0, 2.0, 5.0]))


@of("guide_fooled")
def guide_fooled() -> object:
    """Images that a guide that is not trained was led by."""
    from medsynth.evaluation import evidence
    from medsynth.nets.unet import UNet

    c, guide = u.cases(1, 7), u.untrained(UNet, 1, 2, 2, norm="none").requires_grad_(False)
    led = evidence.fooled(guide, c["x"][:, 2:], c["m"], c["label"].roll(4, 2))
    return led, (led - c["x"][:, 2:]).abs()


@of("registration_seen")
def registration_seen() -> object:
    """(16) of real images that were blurred and moved."""
    from medsynth.evaluation import evidence
    from medsynth.nets.unet import UNet

    return evidence.registration_seen(u.untrained(UNet, 1, 1, 4, 3), u.cases(6, 6)["x"])


@of("edge_sums")
def edge_sums() -> object:
    """Edges on and off the lines."""
    from medsynth.evaluation import evidence

    c = u.cases(3, 6)
    return list(evidence.edge_sums(c["x"], c["s"], c["m"]))


@of("edges_on_lines")
def edges_on_lines() -> object:
    """The mean edge on the lines over that elsewhere."""
    from medsynth.evaluation import evidence

    return evidence.on_lines(np.array([31.0, 52.0, 110.0, 640.0, 0.05]))


@of("right_answers")
def right_answers() -> object:
    """Questions answered rightly by features that are not trained: of modalities, and of films."""
    from medsynth.nets.readers import FeatureNet
    from medsynth.training import judges

    brain, film = (u.untrained(FeatureNet, 1, n) for n in ({"modality": 3, "position": 5}, {"turn": 4, "spoilt": 4, "class": 3}))
    films = {n: v[..., :40, :] if v.ndim == 4 else v for n, v in u.film_court().test.tensors.items()}  # square: they are turned
    test = replace(u.film_court().test, tensors=films)
    return judges.right_answers(brain, u.brain_court().test), judges.right_answers(film, test)


@of("edge_numbers")
def edge_numbers() -> object:
    """Sharpness, and edges on the map's lines."""
    from medsynth.training import synthesis

    c = u.cases(9, 1)
    return synthesis.edge_numbers(c["x"], u.cases(9, 2)["x"], c["s"], c["m"])


if __name__ == "__main__":
    print(json.dumps(values(sys.argv[1:] or None), indent=1))
