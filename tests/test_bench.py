"""Layer bench: the rivals do the same work, and every row is measured and told."""
import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from medsynth.bench import rivals, run
from medsynth.cli import main
from medsynth.nets.unet import decode_all, encode
from medsynth.structure.edges import CONSTANTS, structure_map

TINY = run.SCALES["tiny"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny work is not shared between cores, which would wait for each other."""
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """New tensors are float64, those that are turned to float too."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def in_double(stage: object) -> object:
    """Turn a stage's networks and images to float64; critics stop the power iteration, which counts calls."""
    readers = getattr(stage, "readers", {})
    maps = getattr(stage, "maps", {}).values()
    for net in (*stage.nets.values(), *readers.get("processors", ()), *([readers["translator"]] if readers else []), *maps):
        net.double()
    stage.nets["critic"].eval()
    stage.data.tensors.update({n: v.double() for n, v in stage.data.tensors.items() if v.is_floating_point()})
    return stage


def outcome(stage: object, step: Callable) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Take a step with a given seed: its losses, and every network's gradients."""
    torch.manual_seed(7)
    said = step()
    return said, {f"{n}.{p}": v.grad for n, net in stage.nets.items() for p, v in net.named_parameters() if v.grad is not None}


STEPS = {"translator": (run.translator_stage, rivals.published_translator_step),
         "synthesis": (run.synthesis_stage, rivals.published_synthesis_step)}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("norm", ["spectral", "instance"])
@pytest.mark.parametrize(("stage", "n_pairs"), [("translator", 12), ("translator", 4), ("synthesis", 12), ("synthesis", 4)])
def test_the_published_schedule_learns_the_same(stage: str, n_pairs: int, norm: str) -> None:
    """Losses and gradients of one call a modality and one a pair equal ours to 1e-5, in float64, some images absent."""
    make, published = STEPS[stage]
    settings = {"n_pairs": n_pairs, "critic_norm": norm, "fake_classes": norm == "instance"}
    ours, theirs = (in_double(make(TINY, **settings)) for _ in range(2))
    for s in (ours, theirs):
        s.data.tensors["present"] = (torch.arange(64).view(16, 4) % 7 != 0)
    a, b = outcome(ours, lambda: ours.step(1)), outcome(theirs, lambda: published(theirs, 1))
    assert len(b[0]) >= 5 and all(a[0][n] == pytest.approx(b[0][n], rel=1e-5, abs=1e-9) for n in b[0])
    assert a[1].keys() == b[1].keys() and len(a[1]) > 40
    for name, grad in b[1].items():
        assert torch.allclose(a[1][name], grad, rtol=1e-5, atol=1e-5 * float(grad.abs().max()) + 1e-12), name


@pytest.mark.parametrize("name", ["fundus", "lung_ct", "chest_xray"])
def test_rivals_draw_the_same_maps(name: str) -> None:
    """At least 99.9% of the pixels."""
    x = torch.nn.functional.interpolate(torch.rand(2, 1, 20, 16), scale_factor=8, mode="bicubic").clamp(0, 1)
    m = (x > 0.9).float()
    ours = structure_map(x, m, **CONSTANTS[name])[:, 0].numpy() > 0
    pairs = [(a[0].numpy(), (255 * (1 - b[0])).to(torch.uint8).numpy()) for a, b in zip(x, m, strict=True)]
    for one in (rivals.scipy_map, rivals.opencv_map):
        assert (np.stack([one(*pair, CONSTANTS[name]) > 0 for pair in pairs]) == ours).mean() >= 0.999


@pytest.mark.skipif(not rivals.installed("monai"), reason="medsynth[bench] is not installed")
def test_monai_works_as_hard() -> None:
    """Within 5% of our U-net's MACs at the sizes of both scales."""
    for scale in run.SCALES.values():
        x = torch.zeros(1, 1, *scale["size"])
        macs = rivals.count_macs(rivals.as_written(run.UNet(1, 5, 16)), x)
        assert rivals.count_macs(rivals.monai_unet(macs, 1, 5, scale["size"]), x) == pytest.approx(macs, rel=0.05)


@pytest.mark.long
def test_every_row_is_told(capsys: pytest.CaptureFixture) -> None:
    """JSON is well formed, no row is left out, and every contest has its numbers or says why not."""
    assert main(["bench", "--json", "--scale", "tiny"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert list(dict.fromkeys(r["row"] for r in rows)) == list(run.ROWS)
    for r in rows:
        assert {"row", "device", "ours", "rival", "rival_name", "ratio", "goal", "unit", "peak_mb"} <= r.keys()
        assert "not_run" in r or (r["ratio"] > 0 and r["ours"] > 0 and r["spread"]["ours"]["q1"] <= r["ours"])
        assert run.describe_bench(r).startswith(r["row"])
    assert next(r for r in rows if r["row"] == "synthesis_step")["projected_days"] > 0


def test_what_is_not_installed_is_not_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """A rival without its package is in the table, with how to install it; a row that does not exist is refused."""
    monkeypatch.setattr(rivals, "installed", lambda module: False)
    assert main(["bench", "unet_step", "frechet_2048", "--scale", "tiny"]) == 0
    said = capsys.readouterr().out
    assert said.count("not run") == 1 and "medsynth[bench]" in said and "scipy.linalg.sqrtm" in said
    assert main(["bench", "speed"]) == 2


@pytest.mark.parametrize("wiring", [{}, {"condition": "planes"}, {"head_norm": "instance"}], ids=str)
def test_layers_as_written_are_ours(wiring: dict) -> None:
    """A conditioned U-net computed layer by layer answers as ours, in float64: called, and decoded for several at once."""
    net = run.UNet(2, 1, 4, 3, **wiring).double()
    x, condition = torch.rand(3, 2, 32, 24, dtype=torch.float64), torch.tensor([2, 0, 1])
    ours = [net(x, condition), decode_all(net, encode(net, x), 3)]
    rivals.as_written(net)
    written = [net(x, condition), decode_all(net, encode(net, x), 3)]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(ours, written, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(ours, written, strict=True)), "another order of sums"
