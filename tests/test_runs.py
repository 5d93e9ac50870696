"""Runs that are gone on with, and those that nobody asks for any more."""
import json
from pathlib import Path

import pytest
import torch

from medsynth.cli import main
from medsynth.core import runs
from medsynth.core.paths import BadRequest, home, read_json, write_json
from medsynth.core.random import key
from medsynth.data.batches import parse_data
from medsynth.evaluation import stale
from medsynth.structure.slices import misregistered
from medsynth.training import tasks

pytestmark = pytest.mark.long

PHANTOM = parse_data("phantom")
WORDS = ("brain", "modality_judge", PHANTOM, "mended", "smoke")


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own, which shares the session's prepared slices."""
    (tmp_path / "cache").symlink_to(home() / "cache") if (home() / "cache").is_dir() else None
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path))
    monkeypatch.setenv("MEDSYNTH_RESUME_ANYWAY", "0")
    return tmp_path


def interrupted(code: str, seed: int = 3) -> runs.Run:
    """A run of 40 steps that was stopped at 20, trained under source of another hash."""
    run, below = tasks.plan(*WORDS, seed, steps=40)
    half, _ = tasks.plan(*WORDS, seed, steps=20)
    tasks.finish(half, [], tasks.load_slices(PHANTOM, "smoke"))
    half.path.rename(run.path)
    (run.path / "done.json").unlink()
    write_json(run.path / "params.json", run.params | {"code": code})
    return run


def test_other_source_is_refused_unless_told_to(own_home: Path, capsys: pytest.CaptureFixture) -> None:
    """The command ends with exit 2 and says how to go on; told to, it goes on, and the run says so for ever."""
    run = interrupted("0123456789ab")
    words = ["train", "brain", "modality_judge", "--seed", "3", "--set", "modality_judge.steps=40"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert run.id in said and "0123456789ab" in said and "--resume-anyway" in said and run.state == "interrupted"
    assert main([*words, "--resume-anyway"]) == 0 and run.done
    began, done = (read_json(run.path / f"{name}.json") for name in ("params", "done"))
    assert began["code"] == "0123456789ab" and began["resumed_under"] == done["resumed_under"] == [run.params["code"]]
    assert main(["runs", "show", run.id]) == 0 and "resumed_under" in capsys.readouterr().out


def test_the_same_source_goes_on(own_home: Path) -> None:
    """An interrupted run of today's source needs no leave, and keeps no mark; before its first checkpoint nothing is refused."""
    run = interrupted(tasks.plan(*WORDS, 3)[0].params["code"])
    tasks.get_run(*WORDS, 3, steps=40)
    assert run.done and "resumed_under" not in read_json(run.path / "params.json")
    fresh, _ = tasks.plan(*WORDS, 4, steps=40)
    write_json(fresh.path / "params.json", fresh.params | {"code": "0123456789ab"})
    assert read_json(runs.start_run(fresh).path / "params.json")["code"] == fresh.params["code"]


def test_resumed_runs_are_named_in_what_is_made_of_them(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An artefact's provenance lists them."""
    from medsynth.evaluation.catalogue import made_with

    run = interrupted("0123456789ab")
    with pytest.raises(BadRequest, match="--resume-anyway"):
        tasks.get_run(*WORDS, 3, steps=40)
    monkeypatch.setenv("MEDSYNTH_RESUME_ANYWAY", "1")
    tasks.get_run(*WORDS, 3, steps=40)
    slices = tasks.load_slices(PHANTOM, "smoke")
    facts = made_with([run], [slices])
    assert facts["resumed_under_other_source"] == {run.id: [run.params["code"]]}
    assert facts["versions"]["stage/modality_judge"] == 1 and facts["versions"]["preparation/phantom"] == "1.1"


def test_defaults_are_part_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings are written out; a default given by hand names the same run, another number another; the source names none."""
    plain, _ = tasks.plan(*WORDS, 0)
    assert tasks.default_settings("modality_judge").keys() <= plain.params["settings"].keys()
    assert tasks.plan(*WORDS, 0, lr=2e-3)[0].id == plain.id != tasks.plan(*WORDS, 0, lr=1e-3)[0].id
    monkeypatch.setattr(tasks, "code_hash", lambda source: "0123456789ab")
    assert tasks.plan(*WORDS, 0)[0].id == plain.id
    monkeypatch.setattr(tasks.STAGES["modality_judge"], "version", 2)
    assert tasks.plan(*WORDS, 0)[0].id != plain.id


def test_initial_weights_are_those_they_always_were() -> None:
    """Of a modality its own; a loss weight called modality counts where it was changed, and nowhere else."""
    for recipe, stage, changes, name in (
            ("mended", "translator", {}, "translator"), ("thesis", "translator", {}, "translator5.0"),
            ("mended", "synthesis", {"modality": 5.0}, "synthesis5.0"), ("mended", "processor", {"modality": 2}, "processor2"),
            ("mended", "lines", {}, "lines")):
        tasks.seed_weights(stage, 7, tasks.stage_settings(stage, recipe, "smoke", changes))
        assert torch.initial_seed() == key(7, "initial weights", name)


@pytest.mark.parametrize("changes", [{}, {"data.moved_px": 3}, {"data.patients": 2, "data.unpaired": True},
                                     {"data.outline_px": 1}])
def test_a_hash_is_known_before_data_is_prepared(changes: dict) -> None:
    """What prepared_hashes says is what slices_for returns."""
    slices = tasks.slices_for(PHANTOM, "smoke", changes)
    assert tasks.prepared_hashes(PHANTOM, "smoke", changes)[0] == slices.hash
    assert misregistered(slices, 2).hash != slices.hash


def aged(run: runs.Run, **changes: object) -> runs.Run:
    """A run's folder under other parameters."""
    other = runs.run_of(run.params | changes)
    write_json(other.path / "params.json", other.params)
    (other.path / "last.safetensors").write_bytes(b"0" * 2_000_000)
    return other


def test_what_no_request_names_is_listed_and_removed(own_home: Path, capsys: pytest.CaptureFixture) -> None:
    """An older version's run, what builds on it, its drawn set; slices of another hash. A current run, its set, its data stay."""
    current = tasks.get_run(*WORDS, 0, steps=2)
    old = aged(current, version=0)
    above = aged(current, builds_on=[old.id], stage="features", settings=tasks.default_settings("features"))
    elsewhere = aged(current, data="brats2015", data_hash="0" * 12)  # not at hand: nobody knows
    (own_home / "cache").unlink()
    kept, gone = ((own_home / "cache" / f"cases-{r.id}-v1.1-7000-2-fitted.safetensors") for r in (current, old))
    slices = [own_home / "cache" / f"phantom-48x40-{digest}" for digest in (current.params["data_hash"], "0" * 12)]
    for path in (kept, gone):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"0" * 1_000_000)
    for path in slices:
        write_json(path / "about.json", {"name": "phantom", "hash": path.name[-12:]})
    assert main(["runs", "--stale"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in (old.id, above.id, gone.name, slices[1].name)) and "2.0 MB" in said and "5.0 MB" in said
    assert "version 0 of stage modality_judge, which is at 1" in said and f"builds on {old.id}" in said
    assert not any(f"{name}:" in said for name in (current.id, elsewhere.id, kept.name, slices[0].name))
    assert main(["runs", "prune"]) == 2 and old.path.exists(), "nobody there to answer"
    assert main(["runs", "prune", "--yes"]) == 0 and not stale.all_stale()
    assert not any(p.exists() for p in (old.path, above.path, gone, slices[1]))
    assert all(p.exists() for p in (current.path, elsewhere.path, kept, slices[0]))


@pytest.mark.parametrize(("answer", "left"), [("n", True), ("", True), ("y", False)])
def test_prune_asks(own_home: Path, monkeypatch: pytest.MonkeyPatch, answer: str, left: bool) -> None:
    """No is the answer of whoever only presses enter."""
    old = aged(tasks.plan(*WORDS, 0)[0], version=0)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda said: answer)
    assert main(["runs", "prune"]) == 0 and old.path.exists() == left


def test_runs_named_by_their_source_are_stale(own_home: Path) -> None:
    """A run from before versions."""
    params = {k: v for k, v in tasks.plan(*WORDS, 0)[0].params.items() if k != "version"}
    write_json(own_home / "runs" / "brain-phantom-modality_judge-mended-smoke-s0-0000000000" / "params.json", params)
    assert [s.why for s in stale.all_stale()] == ["named by its source, as runs were before they had versions"]


def test_a_folder_of_the_older_format_goes_on_where_its_cases_come_out_the_same(own_home: Path, tmp_path: Path) -> None:
    """By its first case, drawn again: the same bits, and it is completed and brought up to date; others, and it is refused."""
    words = ["synthesise", "brain", "--n", "2", "--whole-tries", "1", "--no-scores", "--set", "pretraining.steps=2", "--set",
             "synthesis.steps=1", "--set", "translator.steps=1", "--set", "processor.steps=1", "--set", "lines.steps=1", "--set",
             "density.steps=1", "--out"]
    assert main([*words, str(tmp_path / "out")]) == 0
    path = tmp_path / "out" / "dataset.json"
    about = read_json(path)
    older = about | {"format": "medsynth-cases-2", "run": "another", "data_hash": "0" * 12}
    del older["drawn_as"]
    path.write_text(json.dumps(older))
    more = [*words[:3], "3", *words[4:]]
    assert main([*more, str(tmp_path / "out")]) == 0 and len(list((tmp_path / "out").glob("case_*"))) == 3
    assert {k: v for k, v in read_json(path).items() if k in ("format", "run", "data_hash", "drawn_as")} == {
        k: v for k, v in about.items() if k in ("format", "run", "data_hash", "drawn_as")}
    path.write_text(json.dumps(older))
    case = tmp_path / "out" / "case_000000.npz"
    case.write_bytes((tmp_path / "out" / "case_000001.npz").read_bytes())
    assert main([*more, str(tmp_path / "out")]) == 2 and read_json(path)["run"] == "another"
    path.write_text(json.dumps(older | {"format": "medsynth-cases-1"}))
    assert main([*more, str(tmp_path / "out")]) == 2
