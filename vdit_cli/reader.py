"""The one reader of files from outside: regular ones of some size, strict JSON and YAML, types that are checked.

A file's form is a frozen dataclass, whose fields say the keys, their types and bounds. What does not fit is refused
with the file, the key and what it must be. No torch.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_args, get_type_hints

import yaml
from annotated_types import Ge, Le, MaxLen

from vdit_cli.errors import EvditError, as_json_has_it, brief, either, nearest, quoted

T = TypeVar("T")
MOST_BYTES = 64 << 20
"""Of a file that is no video and holds no weights."""
LONGEST_LINE = 1 << 20
"""Bytes of a line of a log."""
DEEPEST = 64
"""Levels of lists and objects inside one another."""
MOST, MOST_SIZE, MOST_SEED, MOST_TEXT = 10**6, 1 << 16, (1 << 63) - 1, 10**4
"""Upper bounds: of counts, of frames and pixels, of seeds, and of the signs of a text."""
MOST_LAYERS = 1000
"""Of a network, of its heads, or of steps inside one another [ours; ten times those of published ones]."""
Count = Annotated[int, Ge(1), Le(MOST)]
Index = Annotated[int, Ge(0), Le(MOST)]
Seed = Annotated[int, Ge(0), Le(MOST_SEED)]
Size = Annotated[int, Ge(1), Le(MOST_SIZE)]
Layers = Annotated[int, Ge(1), Le(MOST_LAYERS)]
Text = Annotated[str, MaxLen(MOST_TEXT)]
Amount = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
UNKNOWN = "unexpected_keyword_argument"
"""pydantic's error for a key that a form does not have."""
ORDER = {UNKNOWN: 0, "missing": 2}
"""What of several faults is told: a key that is missing may be one that is misspelt."""
RULES = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "string": "a text",
    "bool": "true or false",
    "none_required": "null",
    **dict.fromkeys(("tuple", "list"), "a list"),
    **dict.fromkeys(("dict", "mapping", "dataclass", "typed_dict"), "an object"),
}
"""What a value must be, by pydantic's error without its ending "_type"."""
JSON_WORDS = {"NoneType": "null", "list": "list", "str": "text", "bool": "truth value"}
"""What stands where an object belongs, by its type in Python; else it is a number."""


def read_bytes(file: Path, kind: str, where: str | None = None, last: int = MOST_BYTES) -> bytes:
    """The `last` bytes of `file`, which is to hold a `kind` ("plan"). Raises EvditError where it can't be read."""
    check_regular(file, kind, where)
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, os.fstat(opened.fileno()).st_size - last))
            return opened.read()
    except OSError as error:
        raise unreadable(file, error, where) from error


def check_regular(file: Path, kind: str, where: str | None = None) -> None:
    """Raise EvditError for a pipe or a device, which may have no end, and for a file of more than MOST_BYTES."""
    try:
        status = file.stat()
    except (OSError, ValueError) as error:  # a zero byte in the name is a ValueError
        raise unreadable(file, error, where) from error
    why = f"it has {status.st_size} bytes, and {MOST_BYTES} is the most" if status.st_size > MOST_BYTES else ""
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        why = "it is no regular file"
    if why:
        raise EvditError(f"{file} is no {kind}: {why}", where=where or str(file))


def unreadable(file: Path, error: OSError | ValueError, where: str | None = None) -> EvditError:
    """The error for a file that the system does not give, with how to see what is there and whose it is."""
    there = next(each for each in (file, *file.absolute().parents) if os.path.lexists(each))
    look = f"ls -ld {quoted(there)}  (whose it is, and who may open it)"
    if isinstance(error, IsADirectoryError):
        look = f"ls {quoted(file)}  (what is in it: a file is needed)"
    step = look if there == file or isinstance(error, PermissionError) else f"ls {quoted(there)}  (what is there)"
    why = getattr(error, "strerror", None) or error
    return EvditError(f"{file} can't be read: {why}", where=where or str(file), next_steps=[step])


def read_text(file: Path, kind: str, where: str | None = None) -> str:
    """The text of `file`, without a byte order mark. Raises EvditError where it can't be read as UTF-8."""
    try:
        return read_bytes(file, kind, where).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvditError(f"{file.name} is no {kind}: it is not UTF-8 text", where=where or str(file)) from error


def parse(text: str, origin: str, kind: str) -> dict[str, Any]:
    """The JSON object in `text`.

    Raises EvditError for other text, NaN and numbers that no float holds, keys named twice, text that UTF-8 can't
    write, and lists or objects in more than DEEPEST levels.
    """

    def refuse_number(literal: str) -> NoReturn:
        raise ValueError(f"{brief(literal, str)} is no JSON number")

    def finite(literal: str) -> float:
        return number if math.isfinite(number := float(literal)) else refuse_number(literal)

    def whole(literal: str) -> int:
        finite(literal)
        return int(literal)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key, value in pairs:
            if key in content:
                raise ValueError(f"the key {key!r} stands twice")
            content[key] = value
        return content

    too_deep = EvditError(f"not {a(kind)}: it is nested in more than {DEEPEST} levels", where=origin)
    if not text.strip():
        raise EvditError(f"{Path(origin).name} is empty: {a(kind)} is a JSON object", where=origin)
    try:
        document = json.loads(
            text, parse_constant=refuse_number, parse_float=finite, parse_int=whole, object_pairs_hook=once
        )
        json.dumps(document, ensure_ascii=False).encode("utf-8")  # a lone surrogate can be escaped, but not written
    except RecursionError as error:
        raise too_deep from error
    except ValueError as error:
        raise EvditError(f"not {a(kind)}: it is not JSON ({error})", where=origin) from error
    if not isinstance(document, dict):
        found = JSON_WORDS.get(type(document).__name__, "number")
        raise EvditError(f"not {a(kind)}: it is a JSON {found}, {a(kind)} is an object", where=origin)
    level: list[Any] = [document]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
        level = [each for each in level if isinstance(each, dict | list)]
    if level:
        raise too_deep
    return document


def check_schema(document: dict[str, Any], schema: str, origin: str, kind: str) -> None:
    """Raise EvditError (2) for a document of another schema, or of none."""
    if document.get("schema") != schema:
        raise EvditError(
            f"unknown schema {brief(document.get('schema'))}: {a(kind)} must have the schema {schema!r}",
            where=origin,
            next_steps=[f"{a(kind)} made by this version of evdit", "a newer evdit"],
        )


def shaped(form: type[T], document: Any, origin: str, kind: str, *, is_open: bool = False) -> T:
    """A parsed document in the form that it must have; an open one may have other keys, in each object of it.

    Raises EvditError for a key that is missing, unknown or unfit. What the form's own `__post_init__` raises as a
    ValueError is told at its place.
    """
    from pydantic import ValidationError

    try:
        return _adapter(form, is_open).validate_json(json.dumps([document]))[0]  # type: ignore[arg-type]
    except ValidationError as error:
        fault = min(error.errors(include_url=False), key=lambda each: ORDER.get(each["type"], 1))
    steps = fault["loc"][1:]
    place = (f"{origin} " + "".join(f".{s}" if isinstance(s, str) else f" {s}" for s in steps).lstrip(". ")).rstrip()
    fault_type, context = fault["type"], fault.get("ctx", {})
    above = f"{origin} " + place.removeprefix(origin).strip().rpartition(".")[0]
    if fault_type == UNKNOWN:
        known = list(get_type_hints(_form_at(form, steps[:-1])[0]))
        told = f"unknown key {steps[-1]!r}: it is none of {', '.join(known)}"
        raise EvditError(told, where=above.rstrip(), next_steps=nearest(str(steps[-1]), known, 1))
    if fault_type == "missing":
        raise EvditError(f"{steps[-1]} is missing: {a(kind)} needs it", where=above.rstrip())
    if fault_type == "value_error":
        raise EvditError(str(context["error"]), where=place)
    name = " ".join(map(str, steps[-2:] if steps and isinstance(steps[-1], int) else steps[-1:])) or f"the {kind}"
    value, rule = fault["input"], _rule(form, steps, fault)
    is_whole = fault_type == "int_type" and isinstance(value, float) and value.is_integer()
    fix = [f'"{steps[-1]}": {int(value)}' if isinstance(steps[-1], str) else f"{int(value)}"] if is_whole else []
    raise EvditError(f"{name} is {brief(value)}: it must be {rule}", where=place, next_steps=fix)


def read(form: type[T], file: Path, kind: str, schema: str | None = None) -> T:
    """A JSON file in the form that it must have, `schema` (where one is given) left out. Raises EvditError."""
    document = parse(read_text(file, kind), str(file), kind)
    if schema is not None:
        check_schema(document, schema, str(file), kind)
        del document["schema"]
    return shaped(form, document, str(file), kind)


def read_object(form: type, file: Path, kind: str, schema: str | None = None) -> dict[str, Any]:
    """The JSON object of a file, other keys than those of its open form among them. Raises EvditError."""
    document = parse(read_text(file, kind), str(file), kind)
    if schema is not None:
        check_schema(document, schema, str(file), kind)
    shaped(form, document, str(file), kind, is_open=True)
    return document


def read_lines(form: type, file: Path, kind: str) -> list[dict[str, Any]]:
    """The JSON objects of a log, one a line in its open form; a last line that was cut short is left out.

    There are none where the file is missing. Raises EvditError, naming the line.
    """
    with advising([_aside(file)]):
        lines = read_text(file, kind).split("\n")[:-1] if os.path.lexists(file) else []
        return [_read_line(form, line, f"{file}:{number}") for number, line in enumerate(lines, 1)]


def read_last(form: type, file: Path, kind: str) -> dict[str, Any] | None:
    """The last of `read_lines`, or None: no more than the end of the log is read."""
    with advising([_aside(file)]):
        end = read_bytes(file, kind, last=LONGEST_LINE) if os.path.lexists(file) else b""
        lines = end.split(b"\n")[:-1]
        return _read_line(form, lines[-1].decode("utf-8", "replace"), f"{file} last line") if lines else None


def _read_line(form: type, line: str, where: str) -> dict[str, Any]:
    """The JSON object of a line of a log."""
    found = parse(line, where, "line")
    shaped(form, found, where, "line", is_open=True)
    return found


def _aside(file: Path) -> str:
    """What puts a damaged log aside."""
    return f"mv -n {quoted(file)} {quoted(file.with_name(file.name + '.damaged'))}  (it goes on without this log)"


def kept(form: type[T], file: Path, kind: str, schema: str | None = None) -> T | None:
    """As `read`; None where the file is missing or damaged, for what can be had again."""
    try:
        return read(form, file, kind, schema)
    except EvditError:
        return None


@contextmanager
def advising(next_steps: Sequence[str], exit_code: int | None = None) -> Iterator[None]:
    """Let a refusal inside advise this too, and end the process with `exit_code`, where one is given."""
    try:
        yield
    except EvditError as error:
        error.next_steps = (*error.next_steps, *next_steps)
        error.exit_code = error.exit_code if exit_code is None else exit_code
        raise


class RecipeLoader(yaml.SafeLoader):
    """Safe YAML whose plain scalars are those of YAML 1.2: 1e-4 is a number; 1:7, no and 010 are text."""

    yaml_implicit_resolvers: dict[str, Any] = {}


for name, pattern, starts in (
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", "[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    RecipeLoader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(f"^(?:{pattern})$"), starts)


TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}
"""What a node of a recipe may be: what plain YAML resolves to."""


def compose(text: str, where: str) -> yaml.Node | None:
    """The node tree of YAML text, with its line marks. Raises EvditError for text that is not one YAML document."""
    try:
        return yaml.compose(text, RecipeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        raise EvditError(f"not YAML: {yaml_problem(error)}", where=place) from error


def yaml_problem(error: Exception) -> str:
    """What is wrong with YAML, as it is told."""
    too_deep = isinstance(error, RecursionError)
    return "it is nested too deep" if too_deep else getattr(error, "problem", None) or str(error)


def check_tag(node: yaml.Node, where: str) -> None:
    """Raise EvditError for a node with a tag of its own: what it asks for would not be done."""
    if node.tag not in TAGS:
        raise EvditError(f"the tag {node.tag!r} can't be read: write the value without it", where=where)


def walk(node: yaml.Node, where: str) -> Iterator[yaml.Node]:
    """A node and all the nodes inside it. Raises EvditError for an alias: a few lines of them say a billion values."""
    seen, waiting = set(), [node]
    while waiting:
        at = waiting.pop()
        if id(at) in seen:
            raise EvditError("an alias stands inside this value: write out what it stands for", where=where)
        seen.add(id(at))
        yield at
        if isinstance(at, yaml.SequenceNode):
            waiting += at.value
        elif isinstance(at, yaml.MappingNode):
            waiting += [inner for pair in at.value for inner in pair]


def a(kind: str) -> str:
    """A kind of file with its article."""
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


@cache
def _adapter(form: Any, is_open: bool) -> Any:
    """pydantic's checker of a list of one form: dataclasses inside take its strictness, others can't be given it.

    Loaded when the first file is read: it costs a fifth of the time that `--help` takes.
    """
    from pydantic import ConfigDict, TypeAdapter

    config = ConfigDict(strict=True, extra="ignore" if is_open else "forbid", allow_inf_nan=False)
    return TypeAdapter(list[form], config=config)


def _form_at(form: Any, steps: Sequence[int | str]) -> tuple[Any, bool]:
    """The type that stands at a place of a form, and whether it may be null."""
    may_be_null = False
    for step in (*steps, None):
        while get_args(form) and (hasattr(form, "__metadata__") or type(None) in get_args(form)):
            may_be_null = may_be_null or type(None) in get_args(form)
            form = next(each for each in get_args(form) if each is not type(None))
        if step is None:
            return form, may_be_null
        may_be_null = False
        hints = get_type_hints(form, include_extras=True) if not get_args(form) and isinstance(form, type) else {}
        form = hints.get(str(step)) or ([each for each in get_args(form) if each is not ...] or [Any])[-1]
    raise AssertionError("the last step returns")


def _rule(form: Any, steps: Sequence[int | str], fault: Any) -> str:
    """What the value at a place must be, in words."""
    context = fault.get("ctx", {})
    kind = fault["type"].removesuffix("_type")
    own, may_be_null = _form_at(form, steps)
    number = RULES["int"] if own is int else RULES["float"]
    rules = {
        "greater_than_equal": number + (" above 0" if context.get("ge") == 1 else f" of at least {context.get('ge')}"),
        "less_than_equal": f"{number} of at most {context.get('le')}",
        "greater_than": f"{number} above {context.get('gt', 0):g}",
        "less_than": f"{number} below {context.get('lt', 0):g}",
        "literal_error": either(map(as_json_has_it, get_args(own))),
        "string_too_long": f"a text of at most {context.get('max_length')} signs",
    }
    rule = rules.get(kind) or RULES.get(kind) or fault["msg"][:1].lower() + fault["msg"][1:]
    return rule + (" or null" if may_be_null else "")
