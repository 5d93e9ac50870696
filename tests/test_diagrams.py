"""The method's graph: one worked out by hand, every stage's networks and losses in it, and a figure that follows the code."""
from types import SimpleNamespace

import pytest
import torch

from medsynth.data.batches import parse_data
from medsynth.losses.adversarial import adversary_loss
from medsynth.losses.reconstruction import squared_error
from medsynth.structure.slices import Slices
from medsynth.synthesis.diagrams import (
    BETWEEN_IN,
    EQUATIONS,
    G_S,
    HOW_TO_READ,
    Panel,
    closing,
    columns_of,
    counted,
    diagram,
    maths,
    merged,
    panel_of,
    stack,
    stage_panel,
)
from medsynth.synthesis.graph import Graph, Loss, drawing_graph, open_untrained, record, step_graph, weights_of
from medsynth.training import synthesis
from medsynth.training.tasks import load_slices


@pytest.fixture(scope="module")
def phantom() -> Slices:
    """The phantom at smoke."""
    return load_slices(parse_data("phantom"), "smoke")


@pytest.fixture(scope="module")
def graphs(phantom: Slices) -> dict[str, Graph]:
    """The graph of every stage that has equations."""
    return {stage: step_graph(stage, phantom, "mended", "smoke") for stage in EQUATIONS}


def tiny_graph(weight: float = 2.0) -> Graph:
    """A generator of two layers, A then B, that descends weight |x_g - x|^2 + |C(x_g) - 1|^2 with C frozen."""
    a, b, c = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3), torch.nn.Linear(3, 3).requires_grad_(False)
    x, fabric = torch.ones(4, 3), SimpleNamespace()

    def step() -> None:
        x_g = b(torch.relu(a(x)))
        terms = {"fit": squared_error(x_g, x), "judge": adversary_loss(c(x_g))}
        fabric.backward(weight * terms["fit"] + terms["judge"], [*a.parameters(), *b.parameters()])

    return record(step, [("A", a), ("B", b), ("C", c)], {"x": x}, fabric, (__name__,))


def test_a_graph_worked_out_by_hand() -> None:
    """Edges, weights, and who is trained, as read off the six lines of its step."""
    graph = tiny_graph()
    assert graph.edges == {("x_i", "A"), ("A", "B"), ("B", "x_{g,i}"), ("x_{g,i}", "C"), ("x_{g,i}", "fit loss"),
                           ("x_i", "fit loss"), ("C", "judge loss")}
    assert graph.losses == {"fit loss": Loss("squared_error", 2.0, ("A", "B")),
                            "judge loss": Loss("adversary_loss", 1.0, ("A", "B"))}
    assert list(graph.nodes) == ["x_i", "A", "B", "x_{g,i}", "C", "fit loss", "judge loss"] and graph.trained == {"A", "B"}
    assert tiny_graph(0.0).losses.keys() == {"judge loss"}, "a term of weight 0 teaches nobody"


@pytest.mark.long
def test_recording_trains_nothing(phantom: Slices) -> None:
    """Weights before and after the steps are the same bits."""
    stage, _, fabric = open_untrained("pretraining", phantom, "mended", "smoke")
    before = [p.clone() for p in stage.nets["generator"].parameters()]
    record(lambda: stage.step(0), [("G", stage.nets["generator"])], {}, fabric)
    assert all(torch.equal(a, b) for a, b in zip(before, stage.nets["generator"].parameters(), strict=True))


def test_every_network_that_a_stage_trains_is_in_its_graph(graphs: dict[str, Graph], phantom: Slices) -> None:
    """Each optimiser's networks get a gradient from some loss of the graph; what a stage is given is frozen in it."""
    for stage, graph in graphs.items():
        own = set(weights_of(stage, phantom, "mended", "smoke", "smoke")) | ({"G"} if stage == "synthesis" else set())
        assert graph.trained == own <= graph.nets.keys(), stage
        assert all(loss.trains for loss in graph.losses.values()), stage
    assert {"G_t", "G_{l,i}", "G_m"} <= graphs["synthesis"].nets.keys() - graphs["synthesis"].trained


def test_every_equation_is_computed_by_some_step(graphs: dict[str, Graph], phantom: Slices) -> None:
    """The table of numbers names only losses that are there; the thesis's (22) is of the thesis's loss."""
    thesis = step_graph("processor", phantom, "mended", "smoke", loss="planes")
    for stage, numbered in EQUATIONS.items():
        there = graphs[stage].losses.keys() | (thesis.losses.keys() if stage == "processor" else set())
        assert not numbered.keys() - there, f"{stage}: no step computes {numbered.keys() - there}"


def test_fig_9_is_the_thesis_s(graphs: dict[str, Graph]) -> None:
    """z -> s_g -> m_g, the fused map, G told the modality, and D, G_l and G_t asked about x_g."""
    edges = merged(graphs["synthesis"], "G_s", G_S).edges
    assert {("z", "G_s"), ("G_s", "s_g"), ("s_g", "G_m"), ("G_m", "m_g"), ("m_g", "l"), ("s_g", "s'"), ("z'", "s'"), ("s'", "G"),
            ("l", "G"), ("one-hot i", "G"), ("G", "x_{g,i}"), ("x_{g,i}", "D"), ("x_i", "D"), ("x_{g,i}", "G_{l,i}"),
            ("x_{g,i}", "G_t"), ("G_t", "x_{gt,j,i}"), ("x_{gt,j,i}", "registration loss"), ("l", "lesion loss")} <= edges
    assert ("x_i", "G") not in edges, "real images reach the losses and D, never G"


def test_thesis_and_mended_differ_where_the_recipes_do(graphs: dict[str, Graph], phantom: Slices) -> None:
    """The thesis's chain has neither anchor nor contrast loss, and draws its maps in one step."""
    thesis = step_graph("synthesis", load_slices(parse_data("phantom"), "smoke", "thesis"), "thesis", "smoke")
    assert graphs["synthesis"].losses.keys() - thesis.losses.keys() == {"anchor loss", "contrast loss"}
    assert thesis.losses["adversarial loss"].weight == pytest.approx(3.0) and "G_s" in thesis.nets
    assert thesis.losses["registration loss"].weight == pytest.approx(60.0), "20 for each of three partners"
    own = step_graph("pretraining", load_slices(parse_data("phantom"), "smoke", "thesis"), "thesis", "smoke")
    assert ("s_i", "s'") in own.edges and "s" not in own.nodes, "each modality from its own map (D34)"


def test_a_loss_renamed_or_removed_changes_the_figure(
    graphs: dict[str, Graph], phantom: Slices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code is changed under the figure's feet, and the figure follows."""
    there = synthesis.generator_terms

    def renamed(*words: object) -> dict[str, torch.Tensor]:
        terms = there(*words)
        terms["sameness"] = terms.pop("registration")
        return {n: t for n, t in terms.items() if n != "lesion"}

    monkeypatch.setattr(synthesis, "generator_terms", renamed)
    monkeypatch.setattr(synthesis, "WEIGHTS", synthesis.WEIGHTS | {"sameness": 7.0})
    monkeypatch.setattr(synthesis, "ramp", lambda t, steps: 1.0)
    graph = step_graph("synthesis", phantom, "mended", "smoke")
    before = graphs["synthesis"].losses
    assert before.keys() ^ graph.losses.keys() == {"registration loss", "sameness loss", "lesion loss"}
    assert graph.losses["sameness loss"] == Loss("registration_loss", 7.0, ("G",))
    assert "G_{l,i}" not in graph.nets or not {e for e in graph.edges if e[0] == "G_{l,i}"}, "who is not asked has no say"


def test_the_data_set_is_drawn_without_training(phantom: Slices) -> None:
    """Fig. 11: Algorithm 3 sends the map back, nothing is descended, the readers only score."""
    graph = drawing_graph(phantom, "mended", "smoke")
    assert not graph.losses and {("Algorithm 3", "s_g"), ("L", "l"), ("x_{g,i}", "D"), ("x_{g,i}", "G_{l,i}")} <= graph.edges
    assert ("Algorithm 3", "s_g") in closing(graph) and "G_t" not in graph.nets


def test_counts_at_the_thesis_s_width(phantom: Slices) -> None:
    """A 3 x 3 U-net of 5 inputs at w = 64, with norms for 4 modalities, weight by weight."""
    w, k = 64, 4
    ins, outs = (5, w, 2 * w, 4 * w, 4 * w, 8 * w, 6 * w, 3 * w), (w, 2 * w, 4 * w, 4 * w, 4 * w, 4 * w, 2 * w, w)
    expected = sum(9 * a * b + b for a, b in zip(ins, outs, strict=True)) + 9 * w + 1
    expected += 2 * (w + 2 * w + 4 * w + 4 * w) + 2 * k * (4 * w + 4 * w + 2 * w + w)
    assert weights_of("pretraining", phantom, "mended", "smoke", "paper") == {"G": expected}


def test_layout_worked_out_by_hand() -> None:
    """Boxes that want one place share the push; a chain goes right; a circle is closed by its latest edge alone."""
    assert stack([0, 5], [1, 1]) == [0, 5]
    assert stack([2, 2], [1, 1]) == [2 - (1 + BETWEEN_IN) / 2, 2 + (1 + BETWEEN_IN) / 2]
    assert columns_of(list("abcd"), {("a", "b"), ("b", "c"), ("d", "c")}, set()) == {"a": 0, "b": 1, "c": 2, "d": 1}
    circle = Graph(dict.fromkeys("abc"), {("a", "b"), ("b", "c"), ("c", "a")})
    assert closing(circle) == {("c", "a")}
    assert closing(Graph(dict.fromkeys("abc"), {("a", "b"), ("c", "b")})) == set(), "later, but in no circle"
    assert [maths(n) for n in ("x_{g,i}", "G_s: flow", "z'", "fit loss")] == ["$x_{g,i}$", "$G_s$: flow", "$z'$", "fit loss"]
    assert [counted(n) for n in (3, 5000, 52_753, 9_992_259)] == ["0.1 k", "5.0 k", "53 k", "10.0 M"]


def test_no_box_lies_on_another(graphs: dict[str, Graph]) -> None:
    """Of the largest diagram; and every box of the graph is drawn, with its words."""
    panel = panel_of(graphs["synthesis"], "synthesis", EQUATIONS["synthesis"], {})
    axes = diagram([panel], "title", HOW_TO_READ).axes[0]
    frames = [p.get_path().get_extents(p.get_patch_transform()) for p in axes.patches if type(p).__name__ == "FancyBboxPatch"]
    assert len(frames) == len(panel.boxes) == len(graphs["synthesis"].nodes)
    for i, a in enumerate(frames):
        assert not any(a.overlaps(b) for b in frames[:i]), a
    assert {b.text for b in panel.boxes.values()} <= {t.get_text() for t in axes.texts}


def test_a_stage_without_equations_is_drawn(phantom: Slices) -> None:
    """It gets its figure with the losses it has, called ours; one that is written in place is a loss all the same."""
    panel, rows = stage_panel("modality_judge", phantom, "mended", "smoke")
    assert isinstance(panel, Panel) and [(r["loss"], r["equation"], r["trains"]) for r in rows] == [("loss", "ours", "judge")]
