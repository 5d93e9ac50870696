"""Boxes, the SSD detector, its loss, its stages and judges, and the vessels' measures."""
import importlib.util
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import real_folder
from medsynth.data.ct_scans import draw_findings, place_nodule
from medsynth.data.fundus import read_photograph
from medsynth.data.lung_ct import fill_boxes
from medsynth.evaluation.truths import class_hits, class_row, lowest_accuracy
from medsynth.losses.guidance import (
    class_guidance_loss,
    detector_loss,
    hardest,
    multibox_loss,
    patch_class_loss,
)
from medsynth.metrics.boxes import pair_boxes, read_boxes
from medsynth.metrics.lesion import mean_average_precision
from medsynth.metrics.vessels import coarse_vessels, darkness, inside_of, line_auc, vessel_scores
from medsynth.nets.ssd import SSD, cell_sizes, decode, default_boxes, detect, encode, match, published_sizes
from medsynth.structure.boxes import box_iou, boxes_of, label_of, nms, upright
from medsynth.structure.edges import CONSTANTS, structure_map
from medsynth.structure.mask import MASK_CONSTANTS, organ_mask
from medsynth.structure.slices import Slices
from medsynth.training.detector import Detector, DetectorJudge, boxes_in, judged_boxes
from medsynth.training.engine import open_fabric
from medsynth.training.loop import frozen


def boxes(*corners: tuple[float, ...], scores: tuple[float, ...] | None = None, classes: int = 1) -> dict[str, torch.Tensor]:
    """Boxes of one class in an image."""
    out = {"boxes": torch.tensor(corners, dtype=torch.float32).view(-1, 4), "classes": torch.full((len(corners),), classes)}
    return out if scores is None else out | {"scores": torch.tensor(scores, dtype=torch.float32)}


def random_boxes(n: int, seed: int, size: float = 64.0) -> torch.Tensor:
    """Boxes of 2 to 24 px somewhere in a square."""
    g = torch.Generator().manual_seed(seed)
    side = 2 + 22 * torch.rand(n, 2, generator=g)
    corner = torch.rand(n, 2, generator=g) * (size - side)
    return torch.cat([corner, corner + side], 1)


def test_overlap_is_that_of_painted_pixels() -> None:
    """IoU of whole-pixel boxes equals counting their pixels; batches in front do not change it."""
    a, b = random_boxes(7, 0).round(), random_boxes(9, 1).round()
    iou = box_iou(a, b)
    for i, p in enumerate(a):
        for j, q in enumerate(b):
            first, second = (label_of([boxes(tuple(r.tolist()))], (64, 64)) > 0 for r in (p, q))
            assert abs(iou[i, j] - (first & second).sum() / (first | second).sum()) < 1e-6
    assert torch.equal(box_iou(a.expand(2, 3, 7, 4), b.expand(2, 3, 9, 4))[1, 2], iou)


def test_a_label_to_boxes_and_back() -> None:
    """Filled boxes come back to the pixel; a turned box becomes upright; touching ones of two classes stay two."""
    label = torch.zeros(2, 1, 32, 40)
    label[0, 0, 3:9, 5:20], label[0, 0, 9:12, 5:8], label[1, 0, 20:32, 30:40] = 1, 2, 1
    found = boxes_of(label)
    assert found[0]["boxes"].tolist() == [[5, 3, 20, 9], [5, 9, 8, 12]] and found[0]["classes"].tolist() == [1, 2]
    assert found[1]["boxes"].tolist() == [[30, 20, 40, 32]] and torch.equal(label_of(found, (32, 40)).float(), label)
    assert [len(b["boxes"]) for b in boxes_of(label, smallest_px=4)] == [1, 1]
    diamond = torch.zeros(1, 1, 9, 9)
    for k in range(-3, 4):
        diamond[0, 0, 4 + k, 4 - (3 - abs(k)):5 + (3 - abs(k))] = 1
    assert upright(diamond).sum() == 49 and upright(diamond).dtype == diamond.dtype
    assert label_of([boxes((-5, -5, 3, 3))], (8, 8)).sum() == 9, "cut at the border"


def greedy(corners: torch.Tensor, limit: float) -> list[bool]:
    """Non-maximum suppression, word for word."""
    kept = []
    for i in range(len(corners)):
        kept.append(all(box_iou(corners[i : i + 1], corners[j : j + 1]).item() <= limit for j in range(i) if kept[j]))
    return kept


def test_batched_nms_is_the_greedy_one() -> None:
    """A batch of images and classes, against boxes taken one by one."""
    many = torch.stack([random_boxes(40, seed) for seed in range(6)]).view(2, 3, 40, 4)
    keep = nms(many, 0.3)
    assert keep.shape == (2, 3, 40) and 0.2 < keep.float().mean() < 0.95
    assert [k.tolist() for k in keep.flatten(0, 1)] == [greedy(b, 0.3) for b in many.flatten(0, 1)]
    assert nms(torch.zeros(3, 0, 4)).shape == (3, 0) and nms(many[0, 0, :1]).tolist() == [True]


def test_matching_by_hand() -> None:
    """A default box answers for the truth it overlaps most, from IoU 0.5 on; each truth takes its best one too."""
    defaults = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20], [30, 30, 50, 50], [90, 90, 99, 99]])
    truth = boxes((0, 0, 10, 9), (30, 30, 36, 36))
    classes, goals = match(truth, defaults)
    assert classes.tolist() == [1, 0, 1, 0], "IoU 0.9; 0.45; the best of 0.09; nothing"
    assert goals[0].tolist() == [0, 0, 10, 9] and goals[2].tolist() == [30, 30, 36, 36]
    assert match(truth, defaults, take_best=False)[0].tolist() == [1, 0, 0, 0]
    assert match(truth, defaults, iou_at=0.95, take_best=False)[0].sum() == 0
    assert match(boxes(), defaults)[0].tolist() == [0] * 4


def test_published_boxes_miss_what_is_under_88_px() -> None:
    """D25: no box of the public code answers for a nodule; ours do, for each."""
    cells = [(512 // 2**k,) * 2 for k in range(2, 8)]
    theirs, ours = default_boxes(cells, (512, 512), published_sizes()), default_boxes(cells[:3], (512, 512), cell_sizes())
    for side in (4.0, 20.0, 45.0, 80.0, 88.0):
        lesion = boxes((200.3, 100.7, 200.3 + side, 100.7 + side))
        assert match(lesion, theirs, 0.6, take_best=False)[0].sum() == 0 and match(lesion, ours)[0].sum() > 0, side
    assert match(boxes((200, 100, 320, 220)), theirs, 0.6, take_best=False)[0].sum() > 0


@pytest.mark.parametrize("size", [(96, 96), (48, 40), (16, 24), (72, 104)])
@pytest.mark.parametrize("n_in", [1, 3])
def test_any_size_and_one_or_three_channels(size: tuple[int, int], n_in: int) -> None:
    """One answer per default box; each box lies about its cell; found boxes lie in the image, best first."""
    torch.manual_seed(0)
    net = SSD(n_in, 3, 4, cell_sizes(0.06))
    logits, moves, defaults = net(torch.rand(2, n_in, *size))
    assert logits.shape == (2, len(defaults), 3) and moves.shape == (2, len(defaults), 4)
    centre = (defaults[:, :2] + defaults[:, 2:]) / 2
    assert (centre > 0).all() and (centre < torch.tensor([size[1], size[0]])).all()
    for b in detect(net, torch.rand(2, n_in, *size), n_most=30):
        assert b["boxes"].min() >= 0 and (b["boxes"].amax(0)[2:] <= torch.tensor([size[1], size[0]])).all()
        assert {1, 2} == set(b["classes"].tolist()) and all((b["scores"][b["classes"] == c].diff() <= 0).all() for c in (1, 2))


def test_sizes_that_do_not_divide_are_refused() -> None:
    """Not divisible by 8, or under 16."""
    for size in ((20, 16), (8, 16)):
        with pytest.raises(ValueError, match="divisible by 8"):
            SSD(1, 2, 4)(torch.rand(1, 1, *size))


def test_moves_are_undone() -> None:
    """decode is the inverse of encode; too large a growth is bounded."""
    defaults, goals = random_boxes(50, 2), random_boxes(50, 3)
    assert torch.allclose(decode(encode(goals, defaults), defaults), goals, atol=1e-3)
    huge = decode(torch.full((1, 4), 1e4), defaults[:1])
    assert huge.isfinite().all()


def test_the_detector_has_no_norm() -> None:
    """D29: no instance norm, nor any other; twice as bright an image is another image to it."""
    torch.manual_seed(0)
    net, x = SSD(1, 2, 8), torch.rand(1, 1, 32, 32)
    assert not [m for m in net.modules() if "Norm" in type(m).__name__]
    a, b = net(x)[0], net(0.3 * x)[0]
    assert (a - b).abs().mean() > 0.3 * a.abs().mean()


def test_multibox_loss_by_hand() -> None:
    """Two images: 1.5 of smooth L1, ln 2 for each counted box, three negatives for the one positive, three for none."""
    logits, moves, wanted = torch.zeros(2, 9, 2), torch.zeros(2, 9, 4), torch.zeros(2, 9, 4)
    classes = torch.zeros(2, 9, dtype=torch.long)
    classes[0, 4], moves[0, 4, 1], moves[1] = 1, 2.0, 7.0
    assert abs(multibox_loss(logits, moves, classes, wanted).item() - (1.5 + 7 * math.log(2))) < 1e-5
    classes[0, 5] = 1
    assert abs(multibox_loss(logits, moves, classes, wanted).item() - (1.5 + 11 * math.log(2)) / 2) < 1e-5
    assert hardest(torch.rand(1, 9), torch.ones(1, 9, dtype=torch.bool)).sum() == 0, "no negative is left"


def test_class_guidance_by_hand() -> None:
    """Cross-entropy, and the public code's averaged map."""
    sure = torch.tensor([[0.0, math.log(3)]])
    assert abs(class_guidance_loss(lambda x: sure, torch.zeros(1, 1, 2, 2), torch.tensor([1])).item() - math.log(4 / 3)) < 1e-6
    assert patch_class_loss(torch.tensor([0.0, 1, 2, 3]).view(1, 1, 2, 2), torch.tensor([2])).item() == 0.25


def test_gradients_of_the_detector_loss() -> None:
    """Against differences, in double precision: into the image through a frozen detector, and into logits and moves."""
    torch.manual_seed(0)
    net = SSD(1, 2, 2, (((0.3, 0.3),),) * 3).double().requires_grad_(False)
    x = torch.rand(2, 1, 16, 16, dtype=torch.float64, requires_grad=True)
    truth = [{k: v.double() if k == "boxes" else v for k, v in b.items()} for b in (boxes((2, 3, 8, 9)), boxes())]
    assert torch.autograd.gradcheck(lambda x: detector_loss(net, x, truth), x, eps=1e-7, atol=1e-4, fast_mode=True)
    assert all(p.grad is None for p in net.parameters())
    logits = torch.randn(2, 7, 2, dtype=torch.float64, requires_grad=True)
    moves = 3 * torch.randn(2, 7, 4, dtype=torch.float64)
    classes = torch.tensor([[1, 0, 0, 1, 0, 0, 0], [0] * 7])
    moves.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: multibox_loss(a, b, classes, torch.zeros_like(b)), (logits, moves))


def second_ap(found: list[dict], truth: list[dict]) -> float:
    """AP at IoU 0.5 a second way: which boxes are finds, scikit-learn's curve, its best precision from each recall on."""
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    hit, score, n_true = [], [], sum(len(b["boxes"]) for b in truth)
    for f, t in zip(found, truth, strict=True):
        paired = {p[0] for p in pair_boxes(f, t)}
        hit += [i in paired for i in range(len(f["boxes"]))]
        score += f["scores"].tolist()
    precision, recall, _ = metrics.precision_recall_curve(hit, score)
    recall = recall * sum(hit) / n_true
    return sum(max((p for p, r in zip(precision[:-1], recall[:-1], strict=True) if r >= k / 100 - 1e-9), default=0.0)
               for k in range(101)) / 101


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_average_precision_a_second_way(seed: int) -> None:
    """pycocotools against scikit-learn and our own pairing, with misses, doubles and false finds."""
    g, found = torch.Generator().manual_seed(seed), []
    truth = [boxes(*((20 * k, 0, 20 * k + 12, 12) for k in range(3))) for _ in range(20)]
    for i, t in enumerate(truth):
        moved = t["boxes"].repeat(2, 1) + 4 * torch.rand(6, 1, generator=g)
        corners = torch.cat([moved[: 3 + i % 4], random_boxes(4, i) + 500])
        score = torch.rand(len(corners), generator=g) + 0.4 * (corners[:, 0] < 400)
        found.append({"boxes": corners, "classes": torch.ones(len(corners), dtype=torch.long), "scores": score})
    ap = mean_average_precision(found, truth)
    assert 0.2 < ap < 0.9 and abs(ap - second_ap(found, truth)) < 1e-3


def test_found_boxes_by_hand() -> None:
    """A truth is found once, by the surest; classes are kept apart; the unsure count for AP alone."""
    truth = [boxes((0, 0, 10, 10)), boxes((0, 0, 10, 10))]
    found = [boxes((0, 0, 10, 8), (0, 0, 10, 10), scores=(0.9, 0.8)), boxes((0, 0, 10, 10), scores=(0.4,))]
    numbers = read_boxes(found, truth)
    assert [p[:2] for p in pair_boxes(found[0], truth[0])] == [(0, 0)]
    assert abs(numbers["iou"] - 0.8) < 1e-6 and numbers["sensitivity"] == 0.5 and numbers["false_per_image"] == 0.5
    assert abs(numbers["ap"] - (51 + 50 * 2 / 3) / 101) < 1e-6
    other = [f | {"classes": f["classes"] + 1} for f in found]
    assert read_boxes(other, truth)["ap"] == 0


needs_torchvision = pytest.mark.skipif(importlib.util.find_spec("torchvision") is None,
                                       reason="parity with torchvision: it is not installed")


@needs_torchvision
def test_parity_with_torchvision() -> None:
    """Where torchvision is: its VGG11 and its SSD head, by name; default boxes, moves, overlap and suppression."""
    from torchvision.models import vgg11
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.ssd import SSDHead
    from torchvision.ops import box_iou as their_iou
    torch.manual_seed(0)
    net, x = SSD(3, 2, 64, cell_sizes(0.06)).eval(), torch.rand(2, 3, 64, 64)
    whole = vgg11(weights=None).eval()
    ours = {k: v for k, v in net.state_dict().items() if k.startswith("backbone.features.")}
    assert {k[9:] for k in ours} == set(whole.state_dict()) & {k[9:] for k in ours}
    net.load_state_dict({f"backbone.{k}": v for k, v in whole.state_dict().items() if f"backbone.{k}" in ours}, strict=False)
    maps = net.maps(x)
    assert torch.allclose(maps[-1], whole.features[:20](x), atol=1e-5)
    head = SSDHead([256, 512, 512], [9, 6, 6], 2)
    head.load_state_dict({k[5:]: v for k, v in net.state_dict().items() if k.startswith("head.")})
    theirs, (logits, moves, defaults) = head(maps), net(x)
    assert torch.allclose(theirs["cls_logits"], logits, atol=1e-5) and torch.allclose(theirs["bbox_regression"], moves, atol=1e-5)
    places = DefaultBoxGenerator([[]] * 3, scales=[0.1] * 4, clip=False)
    places._wh_pairs = [torch.tensor(s) for s in net.sizes]
    assert torch.allclose(places(ImageList(x, [(64, 64)] * 2), maps)[0], defaults, atol=1e-4)
    a, b, coder = random_boxes(9, 1), random_boxes(9, 2), BoxCoder((10.0, 10.0, 5.0, 5.0))
    assert torch.allclose(coder.encode_single(b, a), encode(b, a), atol=1e-4)
    assert torch.allclose(coder.decode_single(moves[0], defaults), decode(moves[0], defaults), atol=1e-3)
    assert torch.allclose(their_iou(a, b), box_iou(a, b), atol=1e-6)


@needs_torchvision
def test_suppression_as_torchvision_s() -> None:
    """Where torchvision and its compiled operators are: the same boxes stay."""
    from torchvision.ops import nms as their_nms
    many, score = random_boxes(60, 4), torch.arange(60, 0, -1.0)
    try:
        stays = their_nms(many, score, 0.45)
    except (NotImplementedError, RuntimeError) as e:
        pytest.skip(f"torchvision's compiled operators do not run: {str(e)[:60]}")
    assert nms(many, 0.45).nonzero()[:, 0].tolist() == sorted(stays.tolist())


def test_the_rim_is_left_out() -> None:
    """A square organ shrinks from all sides, by 1/32 of the smaller side unless told otherwise."""
    m = torch.ones(1, 1, 64, 96)
    m[..., 10:50, 20:60] = 0
    assert inside_of(m).sum() == 36**2 and inside_of(m, 5).sum() == 30**2 and inside_of(m, 0).sum() == 40**2
    s = torch.zeros_like(m)
    s[..., 30, :] = 1
    assert coarse_vessels(s, m).sum() == 36 and coarse_vessels(s, m, 0).sum() == 40


def test_darkness_by_hand() -> None:
    """One pixel darker by 0.9 in a bright organ: the local mean is over the organ alone, and of the middle channel."""
    x, m = torch.zeros(1, 3, 64, 64), torch.ones(1, 1, 64, 64)
    m[..., :32], x[:, 1] = 0, 1.0
    x[:, 1, 40, 20], x[:, 1, :, 32:] = 0.1, 0.0
    dark = darkness(x, m)
    assert abs(dark[0, 0, 40, 20] - (24 + 0.1) / 25 + 0.1) < 1e-6, "the box has 5 x 5 pixels"
    assert abs(dark[0, 0, 10, 31]) < 1e-6, "what lies outside the organ darkens nothing"


def test_lines_on_vessels_and_off() -> None:
    """Lines that run on the vessels or a pixel beside score 1, their absence in the image one half, bright ones near 0."""
    x, m, s = torch.full((3, 1, 64, 64), 0.5), torch.zeros(3, 1, 64, 64), torch.zeros(3, 1, 64, 64)
    s[..., 30, :] = 1
    x[0, :, 30], x[1, :, 31], x[2, :, 30] = 0.2, 0.2, 0.8
    on, beside, bright = line_auc(x, s, m, 1).tolist()
    assert on > 0.96 and beside > 0.96 and bright < 0.1
    assert line_auc(x, s, m, near_px=0).tolist()[1] < 0.5 and line_auc(torch.full_like(x, 0.5), s, m).tolist() == [0.5] * 3


def test_vessel_scores_by_hand() -> None:
    """Pixels outside the field of view do not count; probabilities are cut at one half for all but the AUC."""
    read, truth, view = (torch.tensor(v, dtype=torch.float32).view(1, 1, 1, -1) for v in
                         ((0.9, 0.4, 0.6, 0.1, 0.0), (1, 1, 0, 0, 1), (1, 1, 1, 1, 0)))
    assert vessel_scores(read, truth, view) == {"sensitivity": 0.5, "accuracy": 0.5, "auc": 0.75}


@pytest.mark.long
@pytest.mark.real_data
def test_coarse_vessels_of_drive() -> None:
    """Real photographs: the lines of green find more than half of the hand-drawn vessels, more than those of red do."""
    files = sorted((real_folder("DRIVE") / "training" / "images").glob("*.tif"))[:4]
    photos = [read_photograph(f, {}) for f in files]
    x, truth, view = (torch.cat([torch.from_numpy(a) for a in part]).float() for part in
                      zip(*((p.images["RGB"], p.label, p.inside) for p in photos), strict=True))
    m = organ_mask(x[:, :1], **MASK_CONSTANTS["fundus"])
    green, red = (structure_map(x[:, c, None], m, **CONSTANTS["fundus"]) for c in (1, 0))
    scores = [vessel_scores(coarse_vessels(s, m), truth[:, None], view[:, None]) for s in (green, red)]
    assert scores[0]["sensitivity"] > 0.5 and scores[0]["accuracy"] > 0.85 and scores[0]["auc"] > scores[1]["auc"]
    assert line_auc(x, green, m).min() > 0.65 > 0.6 > line_auc(x, green.roll(1, 0), m).max()


def windows(n: int, seed: int = 0, channels: int = 1, size: tuple[int, int] = (96, 96)) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy lung with the phantom's nodules of 7 to 24 px in it, and their filled boxes."""
    rng, (h, w) = np.random.default_rng(seed), size
    hu = np.full((n, h, w), -860.0)
    depth, label = np.zeros(size), []
    depth[8:-8, 8:-8] = 1.0
    for image in hu:
        found = []
        while len(found) < 2:
            f = place_nodule(rng, depth, 0, found, 0.011)
            found += [replace(f, radii_px=tuple(rng.uniform(3.5, 12, 2)))] if f else []
        label.append(fill_boxes((1, h, w), draw_findings(found, image[None])[1]))
    x = np.clip((hu + rng.normal(0, 25, hu.shape) + 1000) / 1400, 0, 1)[:, None].repeat(channels, 1)
    return torch.from_numpy(x).float(), torch.from_numpy(np.stack(label)).float()


def slices_of(x: torch.Tensor, label: torch.Tensor) -> Slices:
    """Windows as a stage takes them, none held out."""
    zero = torch.zeros(len(x), dtype=torch.bool)
    tensors = {"x": x, "l": label, "s": 0 * label, "m": 0 * label, "labels": label[:, 0], "patient": zero, "test": zero}
    return Slices("phantom", False, ("CT",), 2, "-", (), {}, tensors)


def learnt(kind: type, slices: Slices, steps: int, **changes: object) -> tuple[object, list[float]]:
    """A stage after some steps, seeded as the loop does, and its losses."""
    torch.manual_seed(0)
    stage, losses = kind(slices, 0, {}, open_fabric(), steps=steps, **changes), []
    for t in range(steps):
        torch.manual_seed(t)
        losses.append(stage.step(t)["loss"])
    return stage, losses


@pytest.mark.long
def test_the_detector_learns_a_batch_by_heart() -> None:
    """Six windows of 96 x 96, eighty steps: every nodule is found, none is invented; then, frozen, it guides."""
    x, label = windows(6)
    stage, losses = learnt(Detector, slices_of(x, label), 80, batch=6, lr=3e-3, jittered=False)
    net = frozen(stage.nets["processor"])
    numbers = read_boxes(detect(net, x), boxes_of(label))
    assert numbers["ap"] > 0.99 and numbers["iou"] > 0.8 and losses[-1] < 0.1 * losses[0], (numbers, losses[-1])
    assert stage.picture()._repr_png_()[:4] == b"\x89PNG"
    nothing = x.new_full(x.shape, 0.1).requires_grad_()
    lacking = detector_loss(net, nothing, boxes_of(label))
    lacking.backward()
    assert lacking > 5 * detector_loss(net, x, boxes_of(label)), "a lesion that is asked for and not there costs"
    inside = dilated(label) > 0
    assert nothing.grad[inside].abs().mean() > 5 * nothing.grad[~inside].abs().mean(), "and the loss says where it lacks"
    invented = detector_loss(net, x, boxes_of(0 * label))
    assert invented > 5 * detector_loss(net, 0 * x + 0.1, boxes_of(0 * label)), "so does one that nobody asked for"


def dilated(label: torch.Tensor) -> torch.Tensor:
    """The surroundings of boxes, as far as the finest map sees."""
    return torch.nn.functional.max_pool2d(label, 17, 1, 8)


@pytest.mark.parametrize("kind", [Detector, DetectorJudge])
def test_the_same_seed_gives_the_same_bits(kind: type) -> None:
    """Three channels, windows that are not square, moved at random; twice the same."""
    slices = slices_of(*windows(4, 1, 3, (48, 64)))
    (a, first), (b, second) = (learnt(kind, slices, 2, batch=2) for _ in range(2))
    (name,) = a.nets
    states = zip(a.nets[name].state_dict().values(), b.nets[name].state_dict().values(), strict=True)
    assert first == second and all(torch.equal(p, q) for p, q in states)


def test_the_published_default_boxes_learn_nothing_of_small_lesions() -> None:
    """D25: its boxes are never matched, so moves are not learnt, and all that is learnt is to say background."""
    x, label = windows(4)
    stage, _ = learnt(Detector, slices_of(x, label), 2, batch=4, defaults="published", jittered=False)
    net, small = stage.nets["processor"], [boxes((30, 30, 40, 40))] * 4
    defaults = net(x)[2]
    assert len(net.sizes) == 6 and match(small[0], defaults, **stage.rule)[0].sum() == 0
    net.zero_grad()
    detector_loss(net, x, small, **stage.rule).backward()
    assert all(p.grad is None or not p.grad.any() for p in net.head["regression_head"].parameters())


def test_the_judge_reads_regions() -> None:
    """A region above the level is a box, as wide as it is; its score is its mean; too small a region is none."""
    p = torch.zeros(2, 3, 24, 24)
    p[0, 1, 3:9, 4:10], p[0, 2, 12:20, 12:16], p[1, 1, 0:2, 0:9], p[1, 1, 10:20, 10:20] = 0.9, 0.6, 0.9, 0.4
    first, second = boxes_in(p)
    assert first["boxes"].tolist() == [[4, 3, 10, 9], [12, 12, 16, 20]] and first["classes"].tolist() == [1, 2]
    assert torch.allclose(first["scores"], torch.tensor([0.9, 0.6])) and not len(second["boxes"])


class Seer(torch.nn.Module):
    """A judge that calls lesion what is bright."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of background and lesion."""
        return torch.cat([torch.zeros_like(x), 40 * (x - 0.4)], 1)


def test_box_read_back_by_hand() -> None:
    """Synthetic windows of which half have their lesion where the label says it: half of the real AP."""
    label = torch.zeros(4, 1, 32, 32)
    label[:, :, 8:20, 6:18] = 1
    real = 0.1 + 0.8 * label
    synthetic = torch.cat([real[:2], 0 * real[2:] + 0.1])
    of_real, of_drawn = (read_boxes(judged_boxes(Seer(), x), boxes_of(label)) for x in (real, synthetic))
    assert of_real["ap"] == of_real["iou"] == of_drawn["iou"] == 1 and of_drawn["sensitivity"] == 0.5
    assert abs(of_drawn["ap"] - 51 / 101) < 1e-6, "precision 1 up to recall one half: 51 of 101 levels"
    with pytest.raises(ValueError, match="mAP"):
        read_boxes(judged_boxes(Seer(), 0 * real), boxes_of(0 * label))


def test_class_hits_by_hand() -> None:
    """Class 1 is told rightly once in four, class 0 always: the worst class counts; without one of them, nothing does."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 3, bias=False))
    torch.nn.init.eye_(net[1].weight)
    x = torch.tensor([[3.0, 0, 0], [0, 3, 0], [3, 0, 0], [3, 0, 0], [3, 0, 0]]).view(5, 3, 1, 1)
    hits = class_hits(net, x, torch.tensor([0, 1, 1, 1, 1]))
    assert lowest_accuracy(hits, (0, 1)) == 0.25 and lowest_accuracy(hits, (0,)) == 1 and np.isnan(lowest_accuracy(hits, (0, 2)))


@pytest.mark.long
def test_a_class_that_the_judge_does_not_know_has_no_say() -> None:
    """Real films of class 2 are told in half the cases, so that synthetic ones need not be; without a known class, no verdict."""
    film = torch.eye(3).view(3, 3, 1, 1)
    test = SimpleNamespace(n_classes=3, x=film[[0, 1, 2, 0]], l=torch.tensor([0, 1, 2, 2]).view(4, 1, 1, 1))
    court = SimpleNamespace(lesion=[torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 3, bias=False))], test=test,
                            patients=[np.array([i]) for i in range(4)])
    torch.nn.init.eye_(court.lesion[0][1].weight)
    drawn = {"x": film[[0, 1, 0]], "label": torch.tensor([0, 1, 2]).view(3, 1, 1, 1)}
    subject = SimpleNamespace(sets=[drawn], has=lambda *_: True)
    row = class_row(court, subject)
    assert row.value.value == 1 and "reached" in row.verdict and "class 2 0.00 / 0.50, judge weak" in row.note
    test.x = film[[1, 0, 0, 0]]
    assert class_row(court, subject).verdict == "judge weak"
