"""Evidence pages: sums and differences by hand, what a verdict needs, and plans that share what the departures leave alone."""
from pathlib import Path

import numpy as np
import pytest
import torch

from medsynth.core.paths import read_json
from medsynth.data.batches import parse_data
from medsynth.evaluation.catalogue import ARTEFACTS, Request, plans_of, reproduce_plan
from medsynth.evaluation.evidence import (
    EVIDENCE,
    Page,
    answers,
    between,
    by_unit,
    compare,
    dice_of_sums,
    draw_pages,
    edge_sums,
    evidence_plans,
    fooled,
    lesion_modality,
    mean_of,
    on_lines,
    painted,
    pixels,
    registration_seen,
)
from medsynth.losses.lesion import guidance_loss
from medsynth.nets.critics import Critic
from medsynth.nets.unet import UNet
from medsynth.training.tasks import load_slices, unfold


def request_at(profile: str = "smoke") -> Request:
    """The phantom."""
    return Request(parse_data("phantom"), profile)


def test_a_comparison_worked_out_by_hand() -> None:
    """Two patients of two slices each: pooled means, and a difference that is the same in both."""
    two = compare("D0", "mean", np.array([[1.0, 2], [3, 2]]), np.array([[4.0, 2], [6, 2]]), mean_of, -1, real=2.0)
    assert (two.thesis.value, two.mended.value, two.gap.value, two.gap.low, two.gap.high) == (1.0, 2.5, -1.5, -1.5, -1.5)
    assert two.verdict == "apart, as expected" and two.row["real"] == 2.0 and two.row["n"] == 2
    swapped = compare("D0", "mean", np.array([[4.0, 2], [6, 2]]), np.array([[1.0, 2], [3, 2]]), mean_of, -1)
    assert swapped.verdict == "apart, the other way" and swapped.gap.value == 1.5


def test_a_verdict_needs_an_interval_and_a_size() -> None:
    """One patient gives none; a difference of a thousandth is said to be one; where nothing is expected it is reported."""
    a, b = np.array([[1.001, 1], [2.002, 1]]), np.array([[1.0, 1], [2.0, 1]])
    assert compare("D0", "m", a, b, mean_of, 1).verdict == "apart, as expected, by under 1%"
    assert compare("D0", "m", a, b, mean_of, 0).verdict == "reported"
    assert compare("D0", "m", a[:1], b[:1], mean_of, 1).verdict == "no interval"
    assert compare("D0", "m", np.array([[1.0, 1], [0, 1]]), np.array([[0.0, 1], [1, 1]]), mean_of, 1).verdict == "not apart"


def test_sums_by_hand() -> None:
    """Patients' rows are added up; Dice is pooled; modalities lie as far apart as they were put."""
    assert by_unit(torch.tensor([[1.0], [2], [4]]), torch.tensor([7, 3, 7])).tolist() == [[2], [5]]
    x = torch.zeros(1, 2, 12, 12)
    x[:, 1] = 0.5
    assert between(x).item() == 0.5 and between(x[:, :1]).item() == 0
    truth, read = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    truth[0, 0, :2], read[0, 0, 1:3] = 1, 2
    assert pixels(read, truth).tolist() == [[4, 4, 4], [0, 0, 0]] and dice_of_sums(np.array([4.0, 4, 4])) == 0.5
    assert np.isnan(dice_of_sums(np.zeros(3))) and np.isnan(mean_of(np.zeros(2)))


def test_edges_on_and_off_the_map() -> None:
    """A step along the map's line is an edge on it; where the map lies elsewhere, it is not."""
    x, s = torch.zeros(1, 1, 16, 16), torch.zeros(2, 1, 16, 16)
    x[..., 8:] = 1
    s[0, ..., 7:9], s[1, ..., 2:4] = 1, 1
    here, away = (edge_sums(x, s[i : i + 1], torch.zeros(1, 1, 16, 16))[0].double().numpy() for i in (0, 1))
    assert here[2] == away[2] == 32 and here[3] == 224 and here[0] > 0 and away[0] == 0
    assert on_lines(here) > 1e3 > on_lines(away) == 0


@pytest.mark.parametrize("norm, least, most", [("instance", 0.0, 1e-3), ("spectral", 1e-3, 10.0)])
def test_what_a_critic_hears(norm: str, least: float, most: float) -> None:
    """Untrained already: instance norm divides half the contrast out, spectral norm does not (D27)."""
    torch.manual_seed(0)
    critic, x = Critic(1, 8, True, norm).requires_grad_(False), torch.rand(3, 2, 16, 16)
    change = (answers(critic, x) - answers(critic, 0.5 * x)).abs()
    assert change.shape == (3, 2) and least <= change.mean().item() < most


@pytest.mark.long
def test_a_fooled_guide_stays_within_its_bound() -> None:
    """The change is at most 0.05 and inside the organ, it lowers what is descended, and twice is the same bits."""
    torch.manual_seed(0)
    guide = UNet(1, 3, 4, norm="none").requires_grad_(False)
    canvas, m, wanted = torch.rand(2, 1, 16, 16), torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 16, 16)
    m[..., :4], wanted[..., 8:12, 8:12] = 1, 2
    led = fooled(guide, canvas, m, wanted, steps=10)
    assert 0.001 < (led - canvas).abs().max() <= 0.05 and (led - canvas)[..., :4].abs().max() == 0
    assert guidance_loss(guide(led), wanted) < guidance_loss(guide(canvas), wanted)
    assert torch.equal(led, fooled(guide, canvas, m, wanted, steps=10))


def test_painting_and_translating_with_untrained_networks() -> None:
    """Shapes, ranges, and (16) of what nobody changed is 1."""
    slices = load_slices(parse_data("phantom"), "smoke").side("test")
    torch.manual_seed(0)
    x_g, ranks = painted(UNet(slices.n_classes, 1, 4, 4).requires_grad_(False), slices)
    assert x_g.shape == slices.x.shape and 0 <= x_g.min() and x_g.max() <= 1 and 1 <= ranks.min() and ranks.max() <= 16
    _, blurred = painted(UNet(slices.n_classes, 1, 4, 4, init="blur").requires_grad_(False), slices)
    assert blurred.max() < 1.1 < ranks.min(), "a network of one channel (D26)"
    seen = registration_seen(UNet(1, 1, 4, 4).requires_grad_(False), slices.x)
    assert seen["as they are"] == 1 and len(seen) == 4


@pytest.mark.long
def test_plans_share_what_a_departure_leaves_alone() -> None:
    """Each pair differs by its own stage alone, is in the dry run, and is read whatever recipe is asked for."""
    plans, request = evidence_plans(request_at()), request_at()
    assert plans.keys() == EVIDENCE.keys()
    for departure, sides in plans.items():
        thesis, mended = (unfold(sides[side]) for side in ("thesis", "mended"))
        apart = {r.params["stage"] for r in thesis} if not mended[:-1] else {r.params["stage"] for r in set_apart(thesis, mended)}
        assert apart == {EVIDENCE[departure][0]}, departure
    listed = {row["run"] for row in reproduce_plan(["evidence"], request)}
    assert {r.id for sides in plans.values() for p in sides.values() for r in unfold(p)} == listed
    assert {p[0].id for p in plans_of("evidence", Request(request.data, "smoke", "thesis"))} <= listed
    assert "evidence" in ARTEFACTS and lesion_modality(load_slices(request.data, "smoke")) == 3


def test_the_index_gives_every_departure_its_effect() -> None:
    """Whatever has a number in the list of departures has a row in the table of effects, or is said not to be measured."""
    cells = read_json(Path(__file__).parents[1] / "nbs" / "index.ipynb")["cells"]
    listed, effects = ("".join(c["source"]) for title in ("## Departures", "## What each departure does") for c in cells
                       if "".join(c["source"]).startswith(title))

    def ids(text: str) -> set[str]:
        heads = {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| D")}
        return {one for head in heads for one in numbered(head)}

    assert len(ids(listed)) > 20 and not ids(listed) - ids(effects)


def numbered(head: str) -> set[str]:
    """Read "D1-D5" or "D15, D22" as single numbers."""
    first, dash, last = head.partition("-")
    return {f"D{i}" for i in range(int(first[1:]), int(last[1:]) + 1)} if dash else set(head.split(", "))


def set_apart(a: list, b: list) -> list:
    """Runs of a that are not in b."""
    there = {r.id for r in b}
    return [r for r in a if r.id not in there]


def test_pages_are_drawn_side_by_side() -> None:
    """Every panel is there, with the words under it."""
    image = np.full((12, 10), 0.5)
    page = Page("D0", [("one", image), ("two", image)], [("three", image)], "Numbers.", "public code")
    figure = draw_pages([page, page], "caption")
    assert [ax.get_title() for ax in figure.axes] == ["one", "two", "three"] * 2
    assert [t.get_text() for t in figure.texts] == ["D0: public code", "mended", "Numbers."] * 2 + ["caption"]
