"""What a run is writing and has not put in place yet, noted in its file `.unfinished`.

The process that goes on after a killed one removes what is noted there, and nothing else: a name that only looks like
a temporary one may be somebody's own, or another process may be writing it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path, PurePosixPath

from vdit_cli.artifacts.lock import run_held_here
from vdit_cli.errors import EvditError, brief, quoted

FILE, KIND = ".unfinished", "list of unfinished files"
TEMPORARY = ".evdit-"
"""How a temporary name begins; eight hexadecimal digits follow."""
ASIDE = ".old"
"""How the temporary name of a folder ends that stepped aside."""
NAME = re.compile(re.escape(TEMPORARY) + r"[0-9a-f]{8}(\.[^/]*)?")


def note(temporary: Path, place: Path) -> None:
    """Note that `temporary` is about to be made for `place`, if both are in a run that this process holds.

    A line is a JSON list of the two, relative to the run's folder.
    """
    run = run_held_here(temporary)
    if run is None or run not in place.absolute().parents:
        return
    names = [path.absolute().relative_to(run).as_posix() for path in (temporary, place)]
    with (run / FILE).open("a", encoding="ascii") as file:
        file.write(json.dumps(names) + "\n")
        file.flush()
        os.fsync(file.fileno())


def noted(run: Path) -> list[tuple[Path, Path]]:
    """The temporary paths that the run's processes noted, each with its place, in order.

    A last line that was cut short is left out, and so is one whose paths leave the folder or whose name is none of
    ours. Raises EvditError (exit 2) for a file that holds something else, which is somebody's.
    """
    path, found = run / FILE, []
    if not os.path.lexists(path):
        return []
    from vdit_cli.reader import advising, read_text  # help, which is to be quick, never comes here

    with advising([f"mv -n {quoted(path)} {quoted(run / f'{FILE[1:]}.aside')}  (it is somebody's)"]):
        lines = read_text(path, KIND).split("\n")
        for number, line in enumerate(lines, 1):
            names = names_in(line)
            if names is None and number < len(lines):
                raise EvditError(f"{path} is no {KIND}: {brief(line)} names none", where=f"{path}:{number}")
            pure = [PurePosixPath(name) for name in names or ()]
            inside = pure and not any(name.is_absolute() or ".." in name.parts for name in pure)
            if inside and NAME.fullmatch(pure[0].name):
                found.append((run / pure[0], run / pure[1]))
    return found


def names_in(line: str) -> tuple[str, str] | None:
    """The two names of a note, None where the line is no note."""
    try:
        names = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_note = isinstance(names, list) and len(names) == 2 and all(isinstance(name, str) for name in names)
    return (names[0], names[1]) if is_note else None


def clear(run: Path) -> None:
    """Remove what a killed process left unfinished in a run, and the notes of it; the caller holds the run's lock.

    A folder that had stepped aside, and whose successor never came, is put back. Raises EvditError as `noted` does.
    """
    for temporary, place in noted(run):
        if temporary.suffix == ASIDE and temporary.is_dir() and not place.exists():
            os.replace(temporary, place)
        elif temporary.is_dir() and not temporary.is_symlink():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
    (run / FILE).unlink(missing_ok=True)
