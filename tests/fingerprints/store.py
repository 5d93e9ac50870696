"""The fingerprints that are kept, and how today's are held against them. To look: `python tests/fingerprints/store.py`; to add
new ones: `--write`, which never changes what is there."""
import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)] * (str(HERE.parent) not in sys.path)
RELATIVE, LEAST = 1e-3, 1e-6  # of a number; below LEAST a difference is rounding
KINDS = ("stage", "preparation", "drawing", "measure")  # a file each


@dataclass(frozen=True)
class Entry:
    """Something with a version: where the version is raised, what it hangs on, and how its numbers are taken."""

    version: int | str
    where: str
    things: tuple[object, ...]  # functions or classes, for defaults (of the first) and constants
    values: Callable[[], dict[str, dict[str, float] | Callable[[], dict[str, float]]]]
    known: dict  # constants that belong to it by name


def stage_entries() -> dict[str, Entry]:
    """Every stage: its class says the version."""
    from fingerprints import stages
    from medsynth.training.tasks import STAGES

    stages.enter_all()
    return {f"stage/{n}": Entry(getattr(s, "version", 0), f"`version` of class {s.__name__} in {s.__module__}", (s,),
                                lambda n=n: stages.values(n), {}) for n, s in STAGES.items()}


def preparation_entries() -> dict[str, Entry]:
    """Every data set: PREPARATION and its Source (of the phantom: VERSION beside what paints it) say the version."""
    from fingerprints import prepared
    from medsynth.data import phantom
    from medsynth.data.batches import SOURCES
    from medsynth.structure import slices

    made = {}
    for name in ("phantom", *SOURCES):
        things = (phantom.phantom_cohort,) if name == "phantom" else (SOURCES[name].read, SOURCES[name].write_phantom)
        where = "PREPARATION in medsynth.structure.preparation, or `version` of its Source (VERSION in medsynth.data.phantom)"
        made[f"preparation/{name}"] = Entry(version_of_preparation(name), where, (*things, slices.reduced_cohort),
                                            lambda n=name: prepared.values(n), constants_of_source(name))
    return made


def version_of_preparation(name: str) -> str:
    """The two versions behind prepared slices; none in a package older than versions."""
    try:
        from medsynth.structure.preparation import version_of
    except ImportError:
        return "0"
    return version_of(name)


def constants_of_source(name: str) -> dict:
    """What extraction is told about a data set; nothing in an older package."""
    try:
        from medsynth.structure.extraction import constants_of
    except ImportError:
        return {}
    return json.loads(json.dumps(constants_of(name)))


def drawing_entries() -> dict[str, Entry]:
    """Every way of drawing that declares a version."""
    from fingerprints.drawn import DRAWN

    return {f"drawing/{n}": declared_entry(f"drawing/{n}", take) for n, take in DRAWN.items()}


def measure_entries() -> dict[str, Entry]:
    """Every measure that declares a version."""
    from fingerprints.measures import MEASURES

    def take(name: str) -> dict[str, dict[str, float]]:
        return {"value": {str(i): v for i, v in enumerate(MEASURES[name]())}}
    return {n: declared_entry(n, lambda n=n: take(n)) for n in MEASURES}


def declared_entry(name: str, values: Callable) -> Entry:
    """An entry of a function that `versioned` stands above; without version in an older package."""
    try:
        from medsynth.core.versions import declared
    except ImportError:
        return Entry(0, "", (), values, {})
    function = declared()[name]
    return Entry(function.version, f"`versioned` above {function.__name__} in {function.__module__}", (function,), values, {})


@cache
def entries() -> dict[str, Entry]:
    """All that has a version."""
    return stage_entries() | preparation_entries() | drawing_entries() | measure_entries()


def taken(entry: Entry) -> dict:
    """Take an entry's fingerprint, on one thread: numbers, defaults and constants."""
    import torch

    from fingerprints.constants import constants_of, defaults_of

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        numbers = {case: of() if callable(of) else of for case, of in entry.values().items()}
    finally:
        torch.set_num_threads(threads)
    numbers = {case: {n: float(f"{v:.7g}") for n, v in of.items()} for case, of in numbers.items()}
    constants = constants_of(*entry.things) | {k: [v] for k, v in entry.known.items()}
    return {"numbers": numbers, "defaults": defaults_of(entry.things[0]) if entry.things else {}, "constants": constants}


def source_of(name: str) -> str:  # 12 hex digits
    """Hash the source that an entry's numbers come from: its modules and all they import, and these files."""
    from medsynth.core.runs import code_hash

    lines = [f"from {f.__module__} import {f.__name__}" for f in (getattr(t, "func", t) for t in entries()[name].things)]
    here = "".join(p.read_text(encoding="utf-8") for p in sorted(HERE.glob("*.py")) if p.stem != "published")
    return hashlib.sha256((code_hash("\n".join(lines)) + here).encode()).hexdigest()[:12]


def unchanged(name: str, folder: Path = HERE) -> bool:
    """Tell whether an entry's source is that of which its numbers were last taken, so that they need not be taken again."""
    path = folder / "sources.json"
    return path.exists() and json.loads(path.read_text(encoding="utf-8")).get(name) == source_of(name)


def note_sources(folder: Path, names: list[str]) -> None:
    """Note of what source some entries' numbers were taken."""
    path = folder / "sources.json"
    there = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    noted = {n: s for n, s in (there | {n: source_of(n) for n in names}).items() if n in entries()}
    path.write_text(json.dumps(dict(sorted(noted.items())), indent=1) + "\n", encoding="utf-8")


def close(a: float, b: float) -> bool:
    """Tell whether two numbers are the same but for rounding."""
    return math.isclose(a, b, rel_tol=RELATIVE, abs_tol=LEAST)


def differences(old: dict, new: dict) -> list[str]:
    """Say in which numbers, defaults and constants a fingerprint differs from the one kept; more of them is no difference."""
    from fingerprints.constants import agrees

    said = []
    for case, numbers in old["numbers"].items():
        now = new["numbers"].get(case, {})
        said += [f"{case}: {n} was {v:g}, is {now[n]:g}" if n in now else f"{case}: {n} is gone"
                 for n, v in numbers.items() if n not in now or not close(v, now[n])]
    for what in ("defaults", "constants"):
        said += [f"{what[:-1]} {n} was {v}, is {new[what][n]}" for n, v in old[what].items()
                 if n in new[what] and not agrees(v, new[what][n])]
    return said


def read_kept(folder: Path) -> dict[str, dict[str, dict]]:  # name -> version -> fingerprint
    """Read what is kept."""
    kept = {}
    for kind in KINDS:
        path = folder / f"{kind}s.json"
        kept |= json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return kept


def write_kept(folder: Path, kept: dict[str, dict[str, dict]]) -> None:
    """Write what is kept, a line a case, so that a diff can be read."""
    for kind in KINDS:
        lines = []
        for name, versions in sorted(kept.items()):
            if name.startswith(f"{kind}/"):
                of = ",\n".join(f'  "{v}": {{\n   ' + ",\n   ".join(parts_of(print_)) + "}" for v, print_ in versions.items())
                lines.append(f' "{name}": {{\n{of}}}')
        (folder / f"{kind}s.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def parts_of(fingerprint: dict) -> list[str]:
    """Word the parts of a fingerprint as JSON, a line each and a line a case."""
    cases = ",\n     ".join(f"{json.dumps(c)}: {json.dumps(n)}" for c, n in fingerprint["numbers"].items())
    return [f'"numbers": {{\n     {cases}}}', *(f'"{p}": {json.dumps(fingerprint[p])}' for p in ("defaults", "constants"))]


def faults(name: str, kept: dict[str, dict[str, dict]]) -> list[str]:
    """Hold one entry against what is kept of its version."""
    entry = entries()[name]
    there = kept.get(name, {}).get(str(entry.version))
    if there is None:
        return [f"{name}: nothing is kept of version {entry.version}: run `make fingerprints`, and commit what it adds"]
    new = taken(entry)
    said = differences(there, new)
    lacking = [c for c in new["numbers"] if c not in there["numbers"]]
    if said:
        shown = "; ".join(said[:6]) + (f"; and {len(said) - 6} more" if len(said) > 6 else "")
        return [f"{name}, version {entry.version}: {shown}. If that is meant, raise the version ({entry.where}), "
                "then run `make fingerprints`."]
    return [f"{name}: nothing is kept of the case {c!r}: run `make fingerprints`" for c in lacking]


def added(name: str, kept: dict[str, dict[str, dict]]) -> list[str]:
    """Add an entry's fingerprint where its version has none, and cases that it lacks; what is there stays. Returns refusals."""
    entry = entries()[name]
    versions, new = kept.setdefault(name, {}), taken(entry)
    there = versions.setdefault(str(entry.version), {"numbers": {}, "defaults": {}, "constants": {}})
    if said := differences(there, new):
        return [f"{name}, version {entry.version}: kept as it was, though {said[0]}. Raise the version first ({entry.where})."]
    for part in there:
        there[part] |= {k: v for k, v in new[part].items() if k not in there[part]}
    return []


def changed_since(folder: Path, ref: str) -> list[str]:
    """Name what a commit keeps otherwise than the folder, or what is gone: nothing that was kept may change."""
    now, said = read_kept(folder), []
    for kind in KINDS:
        shown = subprocess.run(["git", "-C", str(folder), "show", f"{ref}:./{kind}s.json"], capture_output=True, text=True)
        for name, versions in (json.loads(shown.stdout) if shown.returncode == 0 else {}).items():
            for version, old in versions.items():
                there = now.get(name, {}).get(version, {})
                said += [f"{name}, version {version}: {part} of {ref[:7]}" for part, values in old.items()
                         if any(there.get(part, {}).get(k) != v for k, v in values.items())]
    return said


def main() -> int:
    """Compare, or add what is new; 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="such as stage/density (default: all)")
    parser.add_argument("--write", action="store_true", help="add what is new; what is there is never changed")
    parser.add_argument("--values", metavar="FILE", help="write today's numbers there, whatever is kept")
    parser.add_argument("--folder", type=Path, default=HERE, help="where they are kept (default: beside this file)")
    args = parser.parse_args()
    os.environ.setdefault("MEDSYNTH_HOME", tempfile.mkdtemp(prefix="fingerprints-"))
    names, kept, said = args.names or list(entries()), read_kept(args.folder), []
    if args.values:
        Path(args.values).write_text(json.dumps({n: attempt(n) for n in names}))
        return 0
    for name in names:
        said += (added if args.write else faults)(name, kept)
    if args.write:
        write_kept(args.folder, kept)
        note_sources(args.folder, [n for n in names if not any(s.startswith(f"{n},") for s in said)])
    print("\n".join(said) or f"{len(names)} fingerprints are as they are kept")
    return 1 if said else 0


def attempt(name: str) -> dict:
    """Take an entry's numbers, or say why they, or those of a case, cannot be taken (of an older package)."""
    def tried(take: Callable[[], dict]) -> dict:
        try:
            return take()
        except Exception as e:
            return {"error": f"{type(e).__name__}: {e}"}

    return {case: tried(of) if callable(of) else of for case, of in tried(lambda: entries()[name].values()).items()}


if __name__ == "__main__":
    sys.exit(main())
