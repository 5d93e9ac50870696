"""What numbers hang on that no three steps show: defaults of signatures, and the constants that a function reaches."""
import dis
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType

PLAIN = (bool, int, float, str, type(None))
OTHER = object()  # a function, a network, a module: no constant
NAME = re.compile(r"_?[A-Z][A-Z0-9_]*")
LEFT_OUT = ("STAGES", "_DECLARED", "_USED",  # tables of all stages and measures, through which one would reach the others
            "CONSTANTS", "MASK_CONSTANTS", "LINE_SHARE", "LESION_MARGIN_PX", "OUTLINE_PX", "SOURCE_MODALITY", "SOURCE_CHANNEL",
            "KNOWN_AS")  # tables with a row a data set: a preparation has its own row


def plain(value: object) -> object:
    """Turn a constant into JSON's values, or OTHER."""
    if isinstance(value, slice):
        return [value.start, value.stop, value.step]
    if isinstance(value, re.Pattern):
        return value.pattern
    if isinstance(value, tuple | list | set | frozenset):
        parts = [plain(v) for v in (sorted(value) if isinstance(value, set | frozenset) else value)]
        return OTHER if OTHER in parts else parts
    if isinstance(value, dict):
        parts = {str(k): plain(v) for k, v in value.items()}
        return {k: v for k, v in parts.items() if v is not OTHER} or OTHER
    return value if isinstance(value, PLAIN) else OTHER


def functions_in(value: object) -> Iterator[Callable]:
    """Find the package's functions in a value: itself, those of a class, a partial, or a table."""
    value = inspect.unwrap(value) if callable(value) else value
    if isinstance(value, functools.partial):
        yield from functions_in(value.func)
    elif isinstance(value, FunctionType | type) and value.__module__.startswith("medsynth."):
        for v in (vars(value).values() if isinstance(value, type) else ()):
            held = v.fget if isinstance(v, property) else getattr(v, "func", v)
            yield from functions_in(held) if isinstance(held, FunctionType) else ()
        yield from (f for base in getattr(value, "__bases__", ()) for f in functions_in(base))
        if isinstance(value, FunctionType):
            yield value
    elif isinstance(value, dict | tuple | list):
        for v in value.values() if isinstance(value, dict) else value:
            yield from functions_in(v) if callable(v) else ()


def globals_of(code: CodeType) -> set[str]:
    """List the global names that code loads, that of functions inside it too."""
    own = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(globals_of(c) for c in code.co_consts if isinstance(c, CodeType)))


def constants_of(*things: object) -> dict[str, list]:  # name -> its values, one unless modules share a name
    """Gather the constants that some functions or classes reach, through whatever of the package they call."""
    todo, seen, found = [f for t in things for f in functions_in(t)], set(), {}
    while todo:
        function = todo.pop()
        if function in seen:
            continue
        seen.add(function)
        for name in (globals_of(function.__code__) & function.__globals__.keys()).difference(LEFT_OUT):
            value = function.__globals__[name]
            if NAME.fullmatch(name) and plain(value) is not OTHER and plain(value) not in found.setdefault(name, []):
                found[name] = sorted([*found[name], plain(value)], key=repr)
            todo += functions_in(value)
    return {n: v for n, v in sorted(found.items()) if v}


def agrees(old: object, new: object) -> bool:
    """Tell whether a constant is what it was, or more than that: another row of a table, another name to choose from."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(k in new and agrees(v, new[k]) for k, v in old.items())
    if isinstance(old, list) and isinstance(new, list) and all(isinstance(v, str) for v in [*old, *new]):
        return set(old) <= set(new)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(agrees, old, new))
    return old == new


def defaults_of(thing: Callable) -> dict[str, object]:  # argument -> plain value
    """List the defaults of a signature, and of a stage the weights of its losses."""
    takes = inspect.signature(inspect.unwrap(thing)).parameters.values()
    given = {p.name: p.default for p in takes if p.default is not p.empty} | getattr(thing, "default_weights", {})
    return {n: plain(v) for n, v in given.items() if plain(v) is not OTHER}
