"""How a distilled student is sampled: `sampler.json` beside its weights, so that the sampler travels with them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from vdit_cli.artifacts.atomic import write_json
from vdit_cli.errors import EvditError, brief
from vdit_cli.reader import Amount, Index, read

SCHEMA = "evdit.sampler/1"
FILE = "sampler.json"


@dataclass(frozen=True)
class Sampler:
    """A scheduler's name, its timesteps (noisiest first), and the guidance; 1 is without."""

    scheduler: str
    timesteps: tuple[Index, ...]
    guidance: Amount

    @property
    def steps(self) -> int:
        """How often the student is asked."""
        return len(self.timesteps)

    def write(self, folder: Path) -> None:
        """Write the sampler into a student's folder, whole or not at all."""
        write_json(folder / FILE, {"schema": SCHEMA, **asdict(self)})

    @staticmethod
    def read(folder: Path) -> Sampler | None:
        """The sampler in a folder, None where there is none. Raises EvditError for a file that is damaged."""
        path = folder / FILE
        if not path.exists():
            return None
        found = read(Sampler, path, "sampler", SCHEMA)
        if not found.timesteps or any(a <= b for a, b in pairwise(found.timesteps)):
            rule = "they must fall, and be at least one"
            raise EvditError(f"a sampler's timesteps are {brief(list(found.timesteps))}: {rule}", where=str(path))
        return found
