"""The commands as a user types them, in processes of their own: results, exit codes, what is said, nothing half-written."""
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import nbformat
import numpy as np
import pytest
from skimage.io import imsave

from medsynth.cli import main
from medsynth.core.artefacts import REDISTRIBUTABLE, save_artefact
from medsynth.core.paths import home, read_json
from medsynth.core.runs import list_runs
from medsynth.data.batches import SOURCES, parse_data
from medsynth.evaluation.catalogue import ARTEFACTS, variants_at
from medsynth.evaluation.subjects import dataset_cases
from medsynth.show import grid
from medsynth.training.tasks import load_slices

MEDSYNTH = Path(sys.executable).parent / "medsynth"


def typed(*words: object, **env: str) -> subprocess.CompletedProcess:
    """Run `medsynth WORDS`, where no real images lie about."""
    words, env = [MEDSYNTH, *map(str, words)], os.environ | {"MEDSYNTH_DATA": ""} | env
    return subprocess.run(words, capture_output=True, text=True, env=env, timeout=2400)


def asked(*words: object, **env: str) -> subprocess.CompletedProcess:
    """The same without its seconds of imports, in this process: where another test types that command."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, value in ({"MEDSYNTH_DATA": ""} | env).items():
            patch.setenv(name, value)
        code = main([*map(str, words)])
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def reproduced() -> subprocess.CompletedProcess:
    """`medsynth reproduce` at smoke on the phantom, in the session's home."""
    return typed("reproduce")


def test_reproduce_makes_every_artefact(reproduced: subprocess.CompletedProcess) -> None:
    """Every experiment ran by papermill without an exception, and wrote its file and a complete provenance."""
    assert reproduced.returncode == 0, reproduced.stderr
    folder = home() / "artefacts" / "phantom" / "smoke"
    assert str(folder) in reproduced.stdout.splitlines()[-1]
    for name in ARTEFACTS:
        facts = json.loads((folder / f"{name}.json").read_text())
        assert facts["phantom"] and facts["profile"] == "smoke" and len(facts["data_hash"]) == 12
        assert {"seed", "minutes", "runs", "recipe", "environment", "size"} <= facts.keys()
        assert (folder / f"{name}.png").exists() or (folder / f"{name}.csv").exists()
        executed = nbformat.read(home() / "notebooks" / "phantom" / "smoke" / f"{name}.ipynb", 4)
        assert executed.metadata.papermill.exception is None and executed.metadata.papermill.end_time


def test_table_4_holds_ours_and_the_published(reproduced: subprocess.CompletedProcess) -> None:
    """Four modalities and their mean, on real and synthetic; three texts, marked quoted."""
    with (home() / "artefacts" / "phantom" / "smoke" / "table_4.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert len([r for r in rows if r["source"] == "ours"]) == 10
    quoted = [r for r in rows if "quoted" in r["source"]]
    assert len(quoted) == 6 and {r["dice_lesion"] for r in quoted} == {"0.915", "0.838"}
    assert all(0 <= float(r["dice_lesion"]) <= 1 and float(r["mse"]) > 0 for r in rows)


def test_a_second_call_makes_nothing_anew(reproduced: subprocess.CompletedProcess) -> None:
    """Everything is current."""
    again = typed("reproduce")
    assert again.returncode == 0 and again.stdout.count("current") == len(ARTEFACTS)
    assert "training brain" not in again.stdout and "running" not in again.stdout
    picture = home() / "artefacts" / "phantom" / "smoke" / "fig_06.png"
    picture.unlink()
    assert "made" in asked("reproduce", "fig_06").stdout and picture.exists(), "a picture that was deleted is made again"


@pytest.mark.long
def test_dry_run_trains_nothing(tmp_path: Path) -> None:
    """It prints runs, steps and minutes, and makes no run."""
    said = asked("reproduce", "table_1", "fig_16", "--dry-run", MEDSYNTH_HOME=str(tmp_path))
    assert said.returncode == 0 and "synthesis" in said.stdout and "minutes" in said.stdout
    assert not (tmp_path / "runs").exists()


def test_synthesise_twice(reproduced: subprocess.CompletedProcess, tmp_path: Path) -> None:
    """A data set is written, then completed, with a picture of it; rejection rates are said."""
    out = tmp_path / "cases"
    first, second = (call("synthesise", "brain", "--n", n, "--out", out) for call, n in ((typed, 2), (asked, 5)))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "3 cases written, 2 were there" in second.stdout and (out / "contact_sheet.png").exists()
    assert "Algorithm 3 rejected" in second.stdout and "Algorithm 4 rejected" in second.stdout
    assert len(list(out.glob("case_*.npz"))) == 5


def test_synthesise_filtered_with_a_label(reproduced: subprocess.CompletedProcess, tmp_path: Path) -> None:
    """Killed outright and repeated: as if never killed; quality reads the NIfTI set; dataset.json tells all."""
    label = np.zeros((48, 40), np.uint8)
    label[22:27, 16:22] = 1
    imsave(tmp_path / "label.png", label, check_contrast=False)
    words = ["synthesise", "brain", "--n", "12", "--label", tmp_path / "label.png", "--filter", "score>=0.0", "--format", "nifti",
             "--batch", "8", "--whole-tries", "3", "--out"]
    child = subprocess.Popen([str(w) for w in (MEDSYNTH, *words, tmp_path / "killed")], stderr=subprocess.DEVNULL)
    deadline = time.time() + 300
    while not list((tmp_path / "killed").glob("case_*")) and time.time() < deadline and child.poll() is None:
        time.sleep(0.01)
    child.kill()
    child.wait()
    again, whole = (typed(*words, tmp_path / name) for name in ("killed", "whole"))
    assert again.returncode == whole.returncode == 0, again.stderr + whole.stderr
    assert "label given: 0 records cut it" in whole.stdout and "score>=0.0 rejected 0.0%" in whole.stdout
    listed = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert len([n for n in listed if n.endswith("_Flair.nii.gz")]) == 12
    assert listed == sorted(p.name for p in (tmp_path / "killed").iterdir() if not p.name.startswith("."))
    assert all((tmp_path / "whole" / n).read_bytes() == (tmp_path / "killed" / n).read_bytes() for n in listed)
    about = json.loads((tmp_path / "whole" / "dataset.json").read_text())
    cases, modalities = dataset_cases(tmp_path / "whole", load_slices(parse_data("phantom"), "smoke"))
    assert cases["x"].shape == (12, 4, 48, 40) and list(modalities) == about["modalities"]
    assert about["label"]["file"] == "label.png" and about["filters"] == ["score>=0.0"] and about["counts"]["kept"] == 12


def test_runs_are_listed_and_shown(reproduced: subprocess.CompletedProcess) -> None:
    """By the start of an id; an id that fits several says so."""
    listed = typed("runs")
    assert listed.returncode == 0 and listed.stdout.count("brain-phantom") >= 9
    assert all(" steps/s " in line for line in listed.stdout.splitlines() if line.startswith("done"))
    density = next(word for word in listed.stdout.split() if word.startswith("brain-phantom-density"))
    shown = asked("runs", "show", density[:-3])
    assert shown.returncode == 0 and Path(shown.stdout.split("losses: ")[1].splitlines()[0]).exists()
    assert list(Path(shown.stdout.split("on the way: ")[1].splitlines()[0]).glob("*.png")), "pictures of a run on its way"
    assert asked("runs", "show", "brain-phantom-processor").returncode == 2


def test_publish(reproduced: subprocess.CompletedProcess, tmp_path: Path) -> None:
    """Picture and provenance go together."""
    said = typed("publish", "fig_16", "--figures", tmp_path)
    assert said.returncode == 0
    assert sorted(p.name for p in (tmp_path / "phantom").iterdir()) == ["fig_16.json", "fig_16.png"]
    assert asked("publish", "fig_16", "--figures", tmp_path, "--recipe", "thesis").returncode == 2, "none was made of that recipe"


@pytest.mark.parametrize("data", ["real_images", *(n for n in ("phantom", *SOURCES) if n not in REDISTRIBUTABLE)])
def test_publish_refuses_real_images(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A picture that shows them, or does not say, stays at home whatever is typed; a phantom's beside it is published."""
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path))
    facts = {"data": data, "data_hash": "0", "profile": "demo", "seed": 0, "minutes": 0.1, "key": "k"}
    picture = grid([[np.zeros((8, 8))]])
    save_artefact("fig_08", facts | {"shows_real_images": True}, picture)
    save_artefact("unsaid", facts, picture)
    save_artefact("synthetic", facts | {"shows_real_images": False}, picture)
    save_artefact("fig_08", facts | {"data": "phantom", "shows_real_images": False}, picture)
    words = ["--profile", "demo", "--figures", str(tmp_path / "figures")]
    for more in ([], ["fig_08", "unsaid", "--force"]):
        assert main(["publish", *more, "--data", data, *words]) == 0
        said = capsys.readouterr().err
        assert all(f"{name}: not published" in said for name in ("fig_08", "unsaid")) and "licence" in said
    assert main(["publish", "fig_08", *words]) == 0
    assert sorted(str(p.relative_to(tmp_path / "figures")) for p in (tmp_path / "figures").rglob("*.png")) == sorted(
        ["phantom/fig_08.png", f"{data}/synthetic.png"])


def test_departures_are_taken_back_one_by_one(reproduced: subprocess.CompletedProcess) -> None:
    """A row for mended and for each departure that smoke takes back, of one stage each; what comes before is shared."""
    with (home() / "artefacts" / "phantom" / "smoke" / "departures.csv").open() as f:
        rows = {r["variant"]: r for r in csv.DictReader(f)}
    assert list(rows) == ["mended", "no Alg. 4", *list(variants_at("departures", "smoke"))[1:]] and len(rows) == 3
    trained = [r["distance"] for name, r in rows.items() if name != "no Alg. 4"]  # which may reject no label of a few cases
    assert len(set(trained)) == len(trained), "each draws other images"
    assert all(0 < float(r["sharpness"]) < 3 and float(r["shift_px"]) >= 0 for r in rows.values())


def test_little_data_is_few_patients(reproduced: subprocess.CompletedProcess) -> None:
    """The chain of few patients and one remedy, which paints otherwise."""
    folder = home() / "artefacts" / "phantom" / "smoke"
    with (folder / "small_data.csv").open() as f:
        plain, helped = csv.DictReader(f)
    assert [plain["variant"], helped["variant"]] == list(variants_at("small_data", "smoke"))
    assert plain["distance"] != helped["distance"] and "24 slices of 3 patients" in read_json(folder / "small_data.json")["note"]


def test_the_ablation_is_tabled(reproduced: subprocess.CompletedProcess) -> None:
    """Rows A, C, F at smoke, each paints otherwise; the published beside them, quoted; one test patient decides nothing."""
    folder = home() / "artefacts" / "phantom" / "smoke"
    with (folder / "table_1.csv").open() as f, (folder / "table_1_steps.csv").open() as g:
        rows, steps = ({r[0]: r for r in csv.reader(file)} for file in (f, g))
    assert list(rows) == ["row", "A", "C", "F", "real"] and list(steps) == ["step", "A to C", "C to F"]
    assert steps["A to C"][1] == "structure map, noise" and steps["C to F"][1] == "L_reg, label and L_les, label filter"
    column = rows["row"].index("distance")
    assert len({rows[row][column] for row in "ACF"}) == 3 and "0.504" in rows["A"] and "undecided" in steps["A to C"]
    said = read_json(folder / "table_1.json")
    assert said["numbers"]["A"]["distance"]["low"] is None and "PHANTOM" in said["note"]
    assert "of 3 pairs" in said["orders"]["ms_ssim"]


def test_other_data_sets_are_tabled(reproduced: subprocess.CompletedProcess) -> None:
    """Tables 2 and 3: ours with a verdict against GAN#, training images beside, crops of lesions; the rest quoted."""
    folder, looked = home() / "artefacts" / "phantom" / "smoke", {}
    for name in ("table_2", "table_3"):
        with (folder / f"{name}.csv").open() as f:
            rows = list(csv.DictReader(f))
        for r in rows:
            of = looked.setdefault(r["task"], {"ours": [], "quoted": 0})
            of["quoted"] += "quoted" in r["source"]
            of["ours"] += [(r["images"], r["looked_at"])] if r["source"] == "ours" else []
            assert (r["fid"] == "") == (r["source"] == "ours") and (r["distance"] == "") == ("quoted" in r["source"])
        measured = [r for r in rows if r["verdict"]]
        assert all("one model seed" in r["verdict"] or "not apart" in r["verdict"] or "undecided" in r["verdict"]
                   or "unequal time" in r["verdict"] for r in measured) and len(measured) == 2
        said = read_json(folder / f"{name}.json")
        assert said["note"].startswith("PHANTOM") and said["size"].keys() == said["tasks"].keys() == said["steps"].keys()
    whole = [("synthetic", "whole image"), ("synthetic", "whole image, GAN#"), ("real", "whole image")]
    assert looked["fundus"]["ours"] == looked["chest_xray"]["ours"] == looked["lung_ct"]["ours"] == whole
    assert looked["low_dose_ct"]["ours"] == [*whole[:2], ("synthetic", "box crop"), whole[2], ("real", "box crop")]
    assert len(looked["brain"]["ours"]) == 6 and looked["brain"]["quoted"] == 12
    assert [looked[t]["quoted"] for t in ("chest_xray", "lung_ct", "fundus", "low_dose_ct")] == [6, 6, 3, 4]
    galleries = [read_json(folder / f"fig_{n}.json") for n in (18, 19, 20)]
    assert [list(g["line_share"]) for g in galleries] == [["fundus"], ["chest_xray"], ["lung_ct", "low_dose_ct"]]
    assert not any(g["shows_real_images"] for g in galleries)


def test_evidence_is_measured(reproduced: subprocess.CompletedProcess) -> None:
    """A row a measure, both sides and what they were asked at; what holds at any size is seen at this one."""
    folder = home() / "artefacts" / "phantom" / "smoke"
    with (folder / "evidence.csv").open() as f:
        rows = {(r["departure"], r["measure"]): r for r in csv.DictReader(f)}
    both = {key: (float(r["thesis"]), float(r["mended"])) for key, r in rows.items()}
    assert {d for d, _ in rows} == {"D20", "D26", "D27", "D28", "D29", "D30"}
    assert all("profile smoke, 48 x 40, test patients: 1" in r["scale"] for r in rows.values())
    blind, sees = both["D27", "change of D's answer where contrast is halved"]
    assert blind < 1e-3 < sees, "instance norm divides contrast out"
    one, many = both["D26", "effective rank of the encoder's third features"]
    assert one < 1.5 < 5 < many, "a network of one channel"
    alarms, quiet = both["D28", "lesion-free slices with an alarm"]
    assert alarms > quiet, "no lesion cannot be said"
    dark, said = both["D29", "Dice at 0.3 of the brightness"]
    assert dark > said, "the guide does not notice"
    assert not read_json(folder / "evidence.json")["shows_real_images"]


@pytest.mark.parametrize(("name", "columns"), [("table_6", ("sensitivity", "accuracy", "auc")),
                                               ("table_7", ("accuracy", "normal", "bacterial", "viral")),
                                               ("table_8", ("iou", "map50", "sensitivity"))])
def test_what_synthetic_images_add(name: str, columns: tuple[str, ...], reproduced: subprocess.CompletedProcess) -> None:
    """Readers of real, of both, of synthetic images; what they add, paired, with its verdict; the published beside, quoted."""
    folder = home() / "artefacts" / "phantom" / "smoke"
    with (folder / f"{name}.csv").open() as f:
        rows = list(csv.DictReader(f))
    ours, said = {r["trained_on"]: r for r in rows if r["source"] == "ours"}, read_json(folder / f"{name}.json")
    assert list(ours)[:3] == ["real", "real + synthetic", "synthetic"] and set(columns) <= ours["real"].keys()
    assert int(ours["real"]["synthetic_images"]) == 0 == int(ours["synthetic"]["real_images"])
    gain = ours["real + synthetic, less real"]
    assert all(gain[c].rpartition(", ")[2] in ("apart", "not apart", "undecided") for c in columns)
    assert len(said["steps"]) == {"table_6": 4, "table_7": 6, "table_8": 5}[name]
    assert "PHANTOM. The thesis's claim" in said["note"]
    assert "weak readers" not in said["note"] or not any(v in said["note"] for v in ("(borne out)", "(contradicted)"))
    assert sum("quoted" in r["source"] for r in rows) == {"table_6": 12, "table_7": 4, "table_8": 6}[name]
    assert not said["shows_real_images"] and (folder / f"{name}.png").exists()


def test_runs_for_tensorboard(reproduced: subprocess.CompletedProcess, capsys: pytest.CaptureFixture) -> None:
    """A folder of event files a run, or exit 2 that names the extra where it is not installed."""
    code, run = main(["runs", "tensorboard"]), list_runs()[0]
    if find_spec("tensorboard"):
        assert code == 0 and list((home() / "tensorboard" / run.id).glob("events.*"))
    else:
        assert code == 2 and "medsynth[board]" in capsys.readouterr().err


@pytest.fixture(scope="module")
def judged(reproduced: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    """`medsynth quality brain` at smoke on the phantom: GAN#, judges and controls are trained beside the chain."""
    return typed("quality", "brain", "--json")


def test_quality_judges_a_task(judged: subprocess.CompletedProcess) -> None:
    """Every row of the table is there with its number, controls and yardstick beside; pictures and provenance are written."""
    assert judged.returncode == 0, judged.stderr
    said = json.loads(judged.stdout)
    by_name = {r["name"]: r for r in said["rows"]}
    assert list(by_name) == ["modalities", "lesion", "read back", "inside", "registered", "teaches registration", "maps whole",
                             "maps varied", "memorised images", "memorised maps", "distance", "precision", "ms-ssim", "fid"]
    assert all(r["value"] is not None and r["verdict"] for n, r in by_name.items() if n not in ("fid", "inside"))
    assert by_name["inside"]["value"] is not None or "read no lesion" in by_name["inside"]["note"]
    assert "no label input" in by_name["lesion"]["beside"] and "no L_les" in by_name["lesion"]["beside"]
    assert "misregistered" in by_name["registered"]["beside"] and "(2 scales)" in by_name["ms-ssim"]["measured"]
    assert "GAN#" in by_name["distance"]["beside"] and "unbiased" in by_name["distance"]["note"]
    folder = home() / "artefacts" / "phantom" / "smoke"
    for name in (n.replace(" ", "_") for n, row in by_name.items() if row["value"] is not None):
        assert (folder / f"quality_{name}.png").exists() and (folder / f"quality_{name}.json").exists()
    assert len(said["provenance"]["feature_net"]["weights"]) == 12
    lesion = {f"lesion, {m}" for m in ("T1", "T2", "T1c", "Flair")}
    assert said["provenance"]["judges"].keys() == {"features", "modality", *lesion}
    assert (folder / "quality.csv").exists()


@pytest.mark.long
def test_quality_says_beforehand_what_it_trains(tmp_path: Path) -> None:
    """Chain, judges, GAN#, controls; nothing is trained."""
    said = asked("quality", "brain", "--dry-run", MEDSYNTH_HOME=str(tmp_path))
    assert said.returncode == 0 and "runs to train: about" in said.stderr and not (tmp_path / "runs").exists()
    assert all(f"-{s}-" in said.stdout for s in ("lesion_judge", "modality_judge", "features", "translation_judge", "gan"))
    assert "gan" not in asked("quality", "brain", "--dry-run", "--no-controls", MEDSYNTH_HOME=str(tmp_path)).stdout


def test_quality_judges_a_run_and_a_folder(judged: subprocess.CompletedProcess, tmp_path: Path) -> None:
    """The run that the task named gives the same numbers; a data set on disk is judged too."""
    run = json.loads((home() / "artefacts" / "phantom" / "smoke" / "quality.json").read_text())["runs"][0]
    of_run = typed("quality", run, "--json")
    assert of_run.returncode == 0, of_run.stderr
    task, alone = ({r["name"]: r for r in json.loads(s.stdout)["rows"]} for s in (judged, of_run))
    assert all(task[n]["value"] == alone[n]["value"] for n in task if n not in ("teaches registration", "fid"))
    assert alone["distance"]["verdict"] == "not run: GAN#"
    assert asked("synthesise", "brain", "--n", "8", "--out", tmp_path / "cases").returncode == 0
    of_folder = asked("quality", tmp_path / "cases")
    assert of_folder.returncode == 0, of_folder.stderr
    assert "(8 cases)" in of_folder.stdout and "PHANTOM" in of_folder.stdout


def test_quality_judges_loose_images(judged: subprocess.CompletedProcess, tmp_path: Path) -> None:
    """16-bit PNGs of one modality: a broken file is set aside and the rest is judged; without --modality it is a bad request."""
    flair = load_slices(parse_data("phantom"), "smoke").side("test").x[:, 3].numpy()
    for i, image in enumerate(flair):
        imsave(tmp_path / f"{i}.png", (image * 65535).round().astype("uint16"), check_contrast=False)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    said = typed("quality", tmp_path, "--modality", "Flair", "--json")
    assert said.returncode == 0 and "broken.png" in said.stderr, said.stderr
    distance = next(r["value"] for r in json.loads(said.stdout)["rows"] if r["name"] == "distance")
    assert abs(distance) < 1e-3, "the held-out images themselves"
    assert list(json.loads(said.stdout)["provenance"]["files_set_aside"]) == ["broken.png"]
    assert asked("quality", tmp_path).returncode == 2
    strict = asked("quality", tmp_path, "--modality", "Flair", "--strict")
    assert strict.returncode == 2 and "broken.png" in strict.stderr
    none = asked("quality", tmp_path, "--modality", "Flair", "--inception", tmp_path / "absent.pth")
    assert none.returncode == 2 and "absent.pth" in none.stderr


@pytest.mark.parametrize("command", ["reproduce", "train", "runs", "synthesise", "quality", "publish"])
def test_help_teaches(command: str, capsys: pytest.CaptureFixture) -> None:
    """Each command's help ends with an example."""
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"Example: medsynth {command}" in " ".join(capsys.readouterr().out.split())


BAD_REQUESTS = [
    (["reproduce", "--profile", "huge"], "one of smoke, demo"), (["reproduce", "--data", "brats"], "one of phantom, brain_ms"),
    (["reproduce", "fig_99"], "one of fig_06"), (["reproduce", "--data", "brain_ms=absent"], "a folder"),
    (["train", "brain", "density", "--devices", "0"], "at least 1 of each"),
    (["train", "brain", "paint"], "one of processor"), (["train", "brain", "--set", "lr"], "NAME=VALUE"),
    (["train", "heart"], "one of brain"), (["synthesise", "brain", "--n", "0", "--out", "x"], "above 0"),
    (["synthesise", "brain", "--out", "x", "--filter", "fid>=1"], "of score, dice"),
    (["synthesise", "brain", "--out", "x", "--label", "absent.png"], "no such file"),
    (["synthesise", "brain", "--out", "x", "--no-scores", "--filter", "dice>=0.5"], "no --filter, which needs them"),
    (["synthesise", "brain", "--out", "x", "--batch", "4"], "a multiple of 8"),
    (["synthesise", "brain", "--out", "x", "--batch", "12"], "a multiple of 8"),
    (["synthesise", "brain", "--out", "x", "--records", "4:8"], "A below B"),
    (["synthesise", "brain", "--out", "x", "--whole-tries", "0"], "above 0"),
    (["quality", "liver"], "a task (brain, fundus"), (["quality", "brain", "--seeds", "0"], "above 0"),
    (["quality", "brain", "--range", "1"], "LOW,HIGH"), (["train", "brain", "--set", "lesions.lr=1"], "STAGE of"),
    (["train", "brain", "density", "--set", "data.typo=1"], "data.moved_px"),
    (["train", "brain", "density", "--set", "data.moved_px=-3"], "0 or more"),
    (["train", "brain", "density", "--set", "data.edges=AS_THESIS"], "a dict of arguments"),
    (["train", "brain", "density", "--set", "synthesis.views=mirrored"], "diffaugment"),
    (["train", "brain", "pretraining", "--set", "focus=nothing"], "one of lesion, mask"),
    (["runs", "show", "nothing"], "medsynth runs"), (["publish", "--profile", "paper"], "medsynth reproduce"),
    (["publish", "--data", "brain_ms"], "medsynth reproduce --data brain_ms"),  # needs artefacts, not the data
]


@pytest.mark.parametrize(("words", "says"), BAD_REQUESTS, ids=[" ".join(w) for w, _ in BAD_REQUESTS])
def test_bad_requests_return_2(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """One paragraph, no traceback, nothing half-written."""
    for name, value in (("HOME", tmp_path), ("DEVICES", 1), ("NODES", 1)):  # train sets the last two
        monkeypatch.setenv(f"MEDSYNTH_{name}", str(value))
    assert main(words) == 2
    said = capsys.readouterr().err
    assert says in said and "Traceback" not in said
    assert not (tmp_path / "runs").exists() and not (tmp_path / "artefacts").exists()


@pytest.mark.long
def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    """In a process of its own: exit 2 either way, the traceback only when asked for."""
    for words in ([], ["--debug"]):
        said = typed("reproduce", "--profile", "huge", *words, MEDSYNTH_HOME=str(tmp_path))
        assert said.returncode == 2 and ("Traceback" in said.stderr) == bool(words)


def test_an_empty_folder_is_a_bad_request(tmp_path: Path) -> None:
    """And leaves nothing behind."""
    (tmp_path / "data").mkdir()
    said = asked("reproduce", "--data", f"brain_ms={tmp_path / 'data'}", MEDSYNTH_HOME=str(tmp_path / "home"))
    assert said.returncode == 2 and "patient01" in said.stderr and not list((tmp_path / "home").rglob("*.safetensors"))


@pytest.mark.long
@pytest.mark.real_data
def test_real_brain_mri_with_a_spoilt_file(brain_ms: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure of a folder with one bad file: its patient is set aside and the rest goes on; --strict stops."""
    shutil.copytree(brain_ms, tmp_path / "data")
    spoilt = next((tmp_path / "data" / "patient07").glob("T2_*"))
    spoilt.write_bytes(spoilt.read_bytes()[:5000])
    words = ("reproduce", "fig_06", "--data", f"brain_ms={tmp_path / 'data'}")
    said = typed(*words, MEDSYNTH_HOME=str(tmp_path / "home"))
    assert said.returncode == 0 and "patient07" in said.stderr and "set aside" in said.stderr, said.stderr
    facts = json.loads((tmp_path / "home" / "artefacts" / "brain_ms" / "smoke" / "fig_06.json").read_text())
    assert facts["shows_real_images"] and not facts["phantom"] and list(facts["records_set_aside"]) == ["patient07"]
    monkeypatch.setenv("MEDSYNTH_HOME", str(tmp_path / "home"))
    assert main([*words, "--strict"]) == 2 and "patient07" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.real_data
def test_the_two_modality_brats_subset_at_smoke(brats2015_subset: Path, tmp_path: Path) -> None:
    """Train the whole chain on Flair and T1c with five classes, then write cases; figures with real pixels stay at home."""
    home = str(tmp_path / "home")
    data = f"brats2015_subset={brats2015_subset}"
    words = ("brain", "--data", data, "--profile", "smoke")
    steps = {"density": 60, "lines": 20, "processor": 20, "translator": 10, "pretraining": 20, "synthesis": 10}
    fewer = [w for stage, n in steps.items() for w in ("--set", f"{stage}.steps={n}")]
    made = typed("synthesise", *words, *fewer, "--n", "3", "--out", str(tmp_path / "cases"), MEDSYNTH_HOME=home)
    assert made.returncode == 0, made.stderr
    about = json.loads((tmp_path / "cases" / "dataset.json").read_text())
    assert about["modalities"] == ["Flair", "T1c"] and about["n_classes"] == 5
    figure = asked("reproduce", "fig_06", *words[1:], MEDSYNTH_HOME=home)
    assert figure.returncode == 0, figure.stderr
    facts = json.loads((tmp_path / "home" / "artefacts" / "brats2015_subset" / "smoke" / "fig_06.json").read_text())
    assert facts["shows_real_images"] and "brats2015_subset" not in REDISTRIBUTABLE, "its licence keeps it out of figures/"


@pytest.mark.long
def test_data_is_listed_imitated_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A phantom in a data set's layout, whose folder has a space; a file spoilt, then strict; help with an example."""
    def said(code: int, *words: object) -> tuple[str, str]:
        try:
            got = main(["data", *map(str, words)])
        except SystemExit as e:  # argparse's own way
            got = e.code
        assert got == code
        return tuple(capsys.readouterr())

    out = tmp_path / "my data"
    assert "BRATS2015_Training" in said(0, "list")[0]
    assert f'medsynth data check "brats2015_subset={out}"' in said(0, "phantom", "brats2015_subset", out, "--patients", 2)[0]
    whole = typed("data", "check", f"brats2015_subset={out}", "--strict")
    assert whole.returncode == 0 and "warning: a part of the data set: 2 patients of 6" in whole.stdout, whole.stderr
    assert Path(whole.stdout.split("contact sheet: ")[1].strip()).exists()
    next((out / "train").rglob("T1c*")).write_bytes(b"")
    table, reason = said(2, "check", f"brats2015_subset={out}")
    assert "train split" in reason and "Traceback" not in reason
    assert "T1c_subtrMeanDivStd.nii.gz" in table, "the table comes first, with the reason"
    for words in ((), ("check",), ("check", "nobody"), ("phantom", "drive"), ("cache", "phantom", "--profile", "huge")):
        said(2, *words)
    assert "Example: medsynth data phantom" in typed("data", "phantom", "--help").stdout


@pytest.mark.long
def test_data_is_cached() -> None:
    """The phantom at smoke, by the command: what is there and where; the second call finds it."""
    first, second = typed("data", "cache", "phantom"), asked("data", "cache", "phantom")
    assert first.returncode == second.returncode == 0 and first.stdout == second.stdout, first.stderr
    folder = Path(first.stdout.split("cache: ")[1].strip())
    assert (folder / "x.npy").exists() and (folder / "about.json").exists() and "24 train, 8 test" in first.stdout
