"""A version is raised when numbers change: each fingerprint is taken again and held against the one kept of its version."""
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fingerprints import store
from fingerprints.constants import agrees, constants_of, defaults_of
from medsynth.core import versions
from medsynth.core.versions import declared
from medsynth.data.batches import SOURCES
from medsynth.structure.mask import organ_mask
from medsynth.training.processors import Processor
from medsynth.training.tasks import STAGES

KEPT = store.read_kept(store.HERE)
ROOT = store.HERE.parents[1]


@pytest.mark.parametrize("name", KEPT)
def test_numbers_are_those_of_their_version(name: str) -> None:
    """Losses, gradients, outputs, defaults and constants; `make check` leaves out those whose source is the same."""
    if os.environ.get("FINGERPRINTS") == "changed" and store.unchanged(name):
        pytest.skip("its source is the one that its numbers were last taken of")
    if name not in store.entries():
        pytest.skip("there is nothing of that name any more; what was kept of it stays")
    versions._USED.clear()
    assert not (said := store.faults(name, KEPT)), "\n".join(said)
    assert name in versions.used() or name not in declared(), "its fingerprint never calls it"


def test_everything_with_a_version_has_a_fingerprint() -> None:
    """Stages say their version themselves, not by inheritance; so do data sets, ways of drawing and measures."""
    assert all("version" in vars(stage) for stage in STAGES.values())
    wanted = {f"stage/{n}" for n in STAGES} | {f"preparation/{n}" for n in ("phantom", *SOURCES)} | declared().keys()
    assert wanted == store.entries().keys()
    assert not (new := wanted - KEPT.keys()), f"nothing is kept of {sorted(new)}: run `make fingerprints`"


def git(*words: str) -> str:
    """What a git command says, in the clone."""
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True).stdout


def test_nothing_that_was_kept_has_changed() -> None:
    """Append-only: every commit that touched what is kept, and main, keep what is kept now or less."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git clone: nothing tells what was kept before")
    refs = [ref for ref in ("main", "origin/main") if git("rev-parse", "--verify", "--quiet", ref)]
    said = [s for ref in (*refs, *git("log", "--format=%H", "--", "tests/fingerprints").split())
            for s in store.changed_since(store.HERE, ref)]
    assert not said, "kept fingerprints were changed; restore them and raise the versions:\n" + "\n".join(said)


def test_a_changed_entry_is_found_against_a_commit(tmp_path: Path) -> None:
    """By hand: a number altered or a version removed is named; one more is not."""
    def commit(kept: dict) -> None:
        store.write_kept(tmp_path, kept)
        for words in (("add", "."), ("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "t")):
            subprocess.run(["git", "-C", str(tmp_path), *words], check=True)

    one = {"numbers": {"map": {"loss": 1.0}}, "defaults": {"lr": 0.1}, "constants": {}}
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    commit({"stage/a": {"1": one}})
    store.write_kept(tmp_path, {"stage/a": {"1": one, "2": one}, "stage/b": {"1": one}})
    assert not store.changed_since(tmp_path, "HEAD")
    store.write_kept(tmp_path, {"stage/a": {"1": one | {"numbers": {"map": {"loss": 1.1}}}}})
    assert store.changed_since(tmp_path, "HEAD") == [f"stage/a, version 1: numbers of {'HEAD'[:7]}"]
    store.write_kept(tmp_path, {"stage/a": {"2": one}})
    assert len(store.changed_since(tmp_path, "HEAD")) == 2, "numbers and defaults of a version that is gone"


def test_what_counts_as_a_difference() -> None:
    """A number beyond rounding, a default or a constant of the same name; not a name more, nor another option to choose."""
    old = {"numbers": {"map": {"loss": 1.0}}, "defaults": {"lr": 0.1}, "constants": {"W": [{"a": 1.0}]}}
    assert not store.differences(old, {"numbers": {"map": {"loss": 1.0005, "new": 2.0}}, "defaults": {"lr": 0.1, "r1": 0.0},
                                       "constants": {"W": [{"a": 1.0, "b": 2.0}], "V": [3]}})
    for change in ({"numbers": {"map": {"loss": 1.002}}}, {"numbers": {"map": {}}}, {"numbers": {}}, {"defaults": {"lr": 0.2}},
                   {"constants": {"W": [{"a": 1.1}]}}):
        assert len(store.differences(old, old | change)) == 1
    assert agrees(["a", "b"], ["a", "c", "b"]) and not agrees(["a"], ["b"]) and not agrees([1, 2], [1, 2, 3])


def test_constants_are_reached_through_what_is_called() -> None:
    """A stage's network and losses are followed; a plain function has its own defaults."""
    reached = constants_of(Processor)
    assert reached["CONVOLUTIONS"] and "LINE_WEIGHTS" not in reached
    assert defaults_of(organ_mask) == {"fill": False, "dark": False} and defaults_of(STAGES["synthesis"])["lesion"] == 1.0


def test_what_is_kept_can_be_read_as_a_diff() -> None:
    """Valid JSON, a line a case, none of them huge."""
    for kind in store.KINDS:
        text = (store.HERE / f"{kind}s.json").read_text(encoding="utf-8")
        assert json.loads(text) and max(map(len, text.splitlines())) < 12000


def test_everything_published_says_whether_it_stands() -> None:
    """With which versions it was made, or that it is stale and why."""
    for path in sorted((ROOT / "figures").rglob("*.json")):
        about = json.loads(path.read_text(encoding="utf-8"))
        assert ("versions" in about) != bool(about.get("stale")), path
        assert all(name.partition("/")[0] in store.KINDS for name in about.get("versions", {})), path
