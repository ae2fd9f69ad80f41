"""What a knob is, and how the values of knobs are read from YAML, `--set` and flags, each with its origin. No torch.

A section is a frozen dataclass of knobs; `root` below is the section that holds all others (`recipe.Recipe`). A key
is the dotted path of a knob, `generate.steps`.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from fractions import Fraction
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from vdit_cli.errors import EvditError, brief, either, nearest, quoted, setting
from vdit_cli.reader import MOST, MOST_TEXT, RecipeLoader, check_tag, compose, read_text, walk, yaml_problem

SLOWEST, FASTEST = Fraction(1, 600), Fraction(1000)
"""Frames a second: a GIF shows no picture for longer than eleven minutes, a WebP none for less than a millisecond."""
LARGEST_PART = 10**6
"""Of a fraction, above or below its line: an mp4 counts time in whole numbers of 31 bits."""
SURROGATE = re.compile("[\0\ud800-\udfff]")
FRACTION = re.compile(r"[-+]?\d+(?:\.\d*)?|[-+]?\d+/0*[1-9]\d*", re.ASCII)


def knob(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    at_least: float | Fraction | None = None,
    at_most: float | Fraction = MOST,
    may_be_empty: bool = False,
    takes_numbers: bool = False,
    decides: bool = True,
) -> Any:
    """A field of a section: its default, its help, its flag if that is not `--<field>`, and the bounds of its value.

    A number, or each of a list, is at most MOST unless `at_most` says otherwise. Text must not be empty, as it is where
    a variable of a shell is not set, unless it `may_be_empty`. Text that `takes_numbers` is as good as a list of them:
    [800, 400] is "800,400". One that does not decide tells no runs apart: it says where and how they are computed, or
    names what they are known by otherwise.
    """
    notes = {"help": help, "flag": flag, "at_least": at_least, "at_most": at_most, "may_be_empty": may_be_empty}
    notes |= {"takes_numbers": takes_numbers, "decides": decides}
    return field(default=default, metadata=notes)


def section(kind: type, help: str) -> Any:
    """A field that is itself a section, of the dataclass `kind`."""
    return field(default_factory=kind, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Section:
    """The options of one stage; `origins` says where each value was set: words to paste, or file:line key."""

    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def where(self, key: str) -> str | None:
        """The origin of `key`, for the `from:` line of an error; None where it is the default."""
        return self.origins.get(key)

    def is_from_file(self, key: str) -> bool:
        """Whether a recipe file set `key`, and neither a flag, --set nor a program."""
        origin = self.where(key)
        return origin is not None and not origin.startswith("--")

    def values(self) -> dict[str, Any]:
        """Every knob's value by name as JSON has it, sections as nested dicts, without the origins."""
        own = {each.name: getattr(self, each.name) for each in knobs(type(self))}
        return {name: value.values() if isinstance(value, Section) else as_json(value) for name, value in own.items()}


SomeSection = TypeVar("SomeSection", bound=Section)


def knobs(kind: type[Section]) -> list[Any]:
    """The dataclass fields of a section that a recipe may set, in order."""
    return [each for each in fields(kind) if each.name != "origins"]


def flat(options: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value as JSON has it) of every knob, nested sections opened."""
    for each in knobs(type(options)):
        value = getattr(options, each.name)
        if isinstance(value, Section):
            yield from flat(value, f"{prefix}{each.name}.")
        else:
            yield prefix + each.name, as_json(value)


def deciding(options: Section) -> dict[str, Any]:
    """The values by dotted key, as JSON has them, of the knobs by which runs are told apart."""
    return {key: value for key, value in flat(options) if find_knob(type(options), key, key)[1].metadata["decides"]}


def option_line(key: str, value: Any, origin: str) -> str:
    """A value with its origin, as a person is told it: `generate.steps: 20  # --steps 20`."""
    return f"{key}: {json.dumps(value, ensure_ascii=False)}  # {origin}"


def read(root: type[SomeSection], path: Path | None, sets: Iterable[str], flags: Mapping[str, Any]) -> SomeSection:
    """The values of a recipe file, of `section.key=value` settings and of flags by dotted key (None = not given).

    Raises EvditError (exit 2), with file and line, for an unknown key, a key set twice, a wrong type or a number out
    of its bounds, and for a file that can't be read as UTF-8 YAML.
    """
    given: dict[str, tuple[Any, str]] = {}
    if path is not None:
        given.update(read_file(root, path))
    for told in sets:
        key, equals, text = told.partition("=")
        origin = f"--set {quoted(told)}"
        if not equals or not key.strip():
            rule = f"{told!r} sets nothing: it must be section.key=value"
            section = next(iter(flags), "").rpartition(".")[0]
            fitting = (setting(each, value) for each, value in flat(root()) if isinstance(value, str))
            step = next(step for step in fitting if step.startswith(f"--set {section}"))
            raise EvditError(rule, where=origin, next_steps=[step])
        given.update(entries(root, compose(text, origin), key.strip(), origin, None))
    for key, value in flags.items():
        if value is not None:
            origin = flag_text(root, key, value)
            given[key] = (checked(root, value, key, origin), origin)
    return built(root, given)


def built(kind: type[SomeSection], given: Mapping[str, tuple[Any, str]]) -> SomeSection:
    """The section `kind` from (value, origin) by key, dotted where the key is of a section inside."""
    values: dict[str, Any] = {}
    for each in knobs(kind):
        inner = {
            key.removeprefix(each.name + "."): pair for key, pair in given.items() if key.startswith(each.name + ".")
        }
        if each.name in given:
            values[each.name] = given[each.name][0]
        elif inner:
            values[each.name] = built(get_type_hints(kind)[each.name], inner)
    return kind(**values, origins={key: origin for key, (_, origin) in given.items()})


def find_knob(root: type[Section], key: str, where: str) -> tuple[Any, Any]:
    """(type, dataclass field) of a dotted key; the type of "" is `root`. Raises EvditError for an unknown key."""
    kind, found = root, None
    for name in key.split(".") if key else []:
        known = {each.name: each for each in knobs(kind)} if is_section(kind) else {}
        if name not in known:
            every = [known_key for known_key, _ in flat(root())]
            sections = [each.name for each in knobs(root)]
            close = get_close_matches(key.lower(), [*every, *sections], 1, 0.5 if kind is root else 0)
            close = close or [f"a section: {', '.join(sections)}"]
            raise EvditError(f"unknown key {key!r}: no stage has it", where=where, next_steps=close)
        kind, found = get_type_hints(kind)[name], known[name]
    return kind, found


def is_section(kind: Any) -> bool:
    """Whether a type is one of the section dataclasses of this file."""
    return isinstance(kind, type) and issubclass(kind, Section)


def read_file(root: type[Section], path: Path) -> dict[str, tuple[Any, str]]:
    """(value, origin) by dotted key of a recipe file; an empty file sets nothing. Raises EvditError (exit 2)."""
    node = compose(read_text(path, "recipe"), str(path))
    found: dict[str, tuple[Any, str]] = {}
    for key, (value, where) in [] if node is None else entries(root, node, "", str(path), path):
        if key in found:
            raise EvditError(f"{key!r} stands twice: in {found[key][1]} too", where=where)
        found[key] = value, where
    return found


def entries(
    root: type[Section], node: yaml.Node | None, key: str, origin: str, path: Path | None
) -> Iterator[tuple[str, tuple[Any, str]]]:
    """(dotted key, (value, origin)) of every leaf under a node that stands at `key`. Raises EvditError."""
    where = f"{path}:{node.start_mark.line + 1} {key}".rstrip() if path and node else origin
    kind, _ = find_knob(root, key, where)
    if not is_section(kind):
        yield key, (checked(root, plain(node, kind, where), key, where), where)
        return
    if node is None or node.tag == "tag:yaml.org,2002:null":
        if path is None:
            raise EvditError(f"{origin!r} sets nothing: {key} is a section", where=origin)
        return
    for name, child in mapping_items(node, key or "a recipe", where, path):
        yield from entries(root, child, f"{key}.{name}".lstrip("."), origin, path)


def mapping_items(node: yaml.Node, what: str, where: str, path: Path | None) -> Iterator[tuple[str, yaml.Node]]:
    """(name, node) of a mapping's entries. Raises EvditError for another node and for a key that stands twice."""
    check_tag(node, where)
    if not isinstance(node, yaml.MappingNode):
        raise EvditError(
            f"{what} must be a mapping of keys to values", where=where, next_steps=["generate:\\n  steps: 20"]
        )
    seen: set[str] = set()
    for name, child in node.value:
        line = f"{path}:{name.start_mark.line + 1}" if path else where
        if not isinstance(name, yaml.ScalarNode) or name.value in seen:
            text = name.value if isinstance(name, yaml.ScalarNode) else "a list or mapping"
            why = "stands twice" if text in seen else "is no key"
            raise EvditError(f"{text!r} {why} in {what}", where=line)
        if name.value == "<<":
            raise EvditError("'<<' merges nothing here: write out the keys that it stands for", where=line)
        seen.add(name.value)
        yield name.value, child


def plain(node: yaml.Node | None, kind: Any, where: str) -> Any:
    """The Python value of a leaf; a scalar for a knob of text is taken as it is written (1:7 stays "1:7")."""
    if node is None:
        return None
    for inner in walk(node, where):
        check_tag(inner, where)
    if isinstance(node, yaml.ScalarNode):
        takes_text = any(member is str or isinstance(member, str) for member in members(kind))
        if takes_text and node.tag != "tag:yaml.org,2002:null":
            return node.value
    try:
        return RecipeLoader("").construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise EvditError(f"this value can't be read: {yaml_problem(error)}", where=where) from error


def members(kind: Any) -> tuple[Any, ...]:
    """The types of a union, the values of a Literal, else the type itself."""
    return get_args(kind) if get_origin(kind) in (UnionType, Union, Literal) else (kind,)


def checked(root: type[Section], value: Any, key: str, where: str) -> Any:
    """`value` in the type of the knob `key`. Raises EvditError for another type, for NaN, infinity, or too little."""
    kind, found = find_knob(root, key, where)
    if "" in items(value) and not found.metadata.get("may_be_empty"):
        name = where.partition(" ")[0] if where.startswith(flag_name(root, key)) else key
        name = f"--set {key}" if where.startswith("--set ") else name
        raise EvditError(f"{key} is empty: it must say something", where=where, next_steps=[f"no {name}"])
    if found.metadata.get("takes_numbers") and value and fit(value, tuple[int, ...])[0]:
        value = ",".join(map(str, value))
    if any(isinstance(each, str) and (len(each) > MOST_TEXT or SURROGATE.search(each)) for each in items(value)):
        rule = f"text of at most {MOST_TEXT} signs that UTF-8 can write, none of them zero"
        raise EvditError(f"{key} is {brief(value)}: it must be {rule}", where=where)
    least, most = found.metadata["at_least"], found.metadata["at_most"]
    for member in members(kind):
        fits, cast = fit(value, member)
        if fits and is_within(cast, least, most):
            return cast
    likely: list[Any] = nearest(str(value), [each for each in members(kind) if isinstance(each, str)], 1)
    likely += [cast for member in members(kind) for cast in meant(value, member) if is_within(cast, least, most)]
    steps = [given_as(root, key, each, where) for each in likely[:1]]
    raise EvditError(f"{key} is {brief(value)}: it must be {rule_of(kind, found)}", where=where, next_steps=steps)


def meant(value: Any, kind: Any) -> list[Any]:
    """What a value of another type was most likely meant as, if anything: 8.0 and 0x10 as numbers, 2,5 as a list."""
    if get_origin(kind) is tuple:
        each = value.split(",") if isinstance(value, str) else items(value)
        casts = [(meant(item, get_args(kind)[0]) or [None])[0] for item in each]
        return [casts] if casts and None not in casts else []
    if kind in (int, float) and isinstance(value, str):
        value = as_number(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    fits, cast = fit(value, kind)
    return [cast] if fits and value is not None else []


def as_number(text: str) -> int | float | None:
    """The number that a text is in Python or with a comma for its point, None where it is none."""
    for read_as in (lambda digits: int(digits, 0), float):
        try:
            return read_as(text.strip().replace(",", "."))
        except ValueError:
            continue
    return None


def rule_of(kind: Any, found: Any) -> str:
    """What the value of a knob must be, in words."""
    least, most = found.metadata["at_least"], found.metadata["at_most"]
    rule = describe(kind)
    if "number" not in rule:
        return rule
    return rule + ("" if least is None else f", at least {least}") + f", at most {most}"


def given_as(root: type[Section], key: str, value: Any, where: str) -> str:
    """What to type for a knob of the origin `where`: its flag, a setting, or a recipe's line."""
    if where.startswith("--set "):
        return setting(key, value)
    return flag_text(root, key, value) if where.startswith("--") else f"{key.rpartition('.')[2]}: {value}"


def items(value: Any) -> Sequence[Any]:
    """The items of a list, or the one value."""
    return value if isinstance(value, list | tuple) else (value,)


def is_within(value: Any, least: Any, most: Any) -> bool:
    """Whether each number of a value is within its bounds; lists are as short as texts."""
    numbers = [each for each in items(value) if isinstance(each, int | float | Fraction) and not isinstance(each, bool)]
    return len(numbers) <= MOST_TEXT and all(each <= most and (least is None or each >= least) for each in numbers)


def fit(value: Any, kind: Any) -> tuple[bool, Any]:
    """Whether a value is of one plain type (or is that one value of a Literal), and the value in it."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if kind is float:
        return number, float(value) if number else value
    if kind is int:
        return number and isinstance(value, int), value
    if kind is Fraction:
        fraction = to_fraction(value)
        return fraction is not None, fraction
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        inside = [fit(each, item) for each in value] if isinstance(value, list | tuple) else [(False, None)]
        return all(fits for fits, _ in inside), tuple(cast for _, cast in inside)
    if isinstance(kind, type):
        return isinstance(value, kind), value
    return value == kind, value


def to_fraction(value: Any) -> Fraction | None:
    """A whole number, a decimal as it is written (23.976) or a fraction ("24000/1001"), exactly; None for another.

    What has more than LARGEST_PART above or below its line is none either.
    """
    text = value.strip() if isinstance(value, str) else str(value)
    if isinstance(value, bool) or len(text) > 40 or not FRACTION.fullmatch(text):
        return None
    fraction = Fraction(text)
    return fraction if max(abs(fraction.numerator), fraction.denominator) <= LARGEST_PART else None


def as_json(value: Any) -> Any:
    """A value as JSON has it: a fraction is a number where it is whole, else text such as "24000/1001"."""
    if isinstance(value, Fraction):
        return value.numerator if value.denominator == 1 else str(value)
    return value


def describe(kind: Any) -> str:
    """A type in words: "a whole number or null"."""
    words = {
        Fraction: "a number or a fraction such as 24000/1001",
        int: "a whole number",
        float: "a finite number",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    if get_origin(kind) is tuple:
        return f"a list, each item {describe(get_args(kind)[0])}"
    return either(words.get(member, str(member)) for member in members(kind))


def flag_name(root: type[Section], key: str) -> str:
    """The flag of a knob by its dotted key: `--frames` of `generate.video_frames`."""
    _, found = find_knob(root, key, key)
    return found.metadata.get("flag") or "--" + found.name.replace("_", "-")


def flag_text(root: type[Section], key: str, value: Any) -> str:
    """The flag of a knob as it was typed: `--frames 31`, `--no-strict`, `--lora a --lora b`."""
    name = flag_name(root, key)
    if isinstance(value, bool):
        return name if value else f"--no-{name[2:]}"
    typed = value if isinstance(value, list | tuple) else [value]
    return " ".join(f"{name} {shlex.quote(str(each))}" for each in typed)


@contextmanager
def origins_told(options: Section) -> Iterator[None]:
    """Let an error inside that tells of a flag tell instead where its value was set: in a recipe or by `--set`.

    What checks a value far below knows it as its flag, and not every knob of every command has one.
    """
    try:
        yield
    except EvditError as error:
        flag = (error.where or "").partition(" ")[0]
        origins = {flag_name(type(options), key): origin for key, origin in options.origins.items()}
        if not origins.get(flag, flag).startswith(flag):
            error.where = origins[flag]
        raise
