"""How a distilled student is sampled: `sampler.json` beside its weights, so that the sampler travels with them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from vdit_cli.artifacts.atomic import write_json
from vdit_cli.artifacts.receipt import read_object
from vdit_cli.errors import EvditError

SCHEMA = "evdit.sampler/1"
FILE = "sampler.json"


@dataclass(frozen=True)
class Sampler:
    """A scheduler's name, its timesteps (noisiest first), and the guidance; 1 is without."""

    scheduler: str
    timesteps: tuple[int, ...]
    guidance: float

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
        if not path.is_file():
            return None
        content = read_object(path, SCHEMA)
        name, timesteps, guidance = (content.get(key) for key in ("scheduler", "timesteps", "guidance"))
        taken = timesteps if isinstance(timesteps, list) else []
        whole = bool(taken) and all(type(t) is int and t >= 0 for t in taken)
        falling = whole and all(a > b for a, b in pairwise(taken))
        if not (isinstance(name, str) and falling and isinstance(guidance, int | float)):
            raise EvditError(
                f"{path} is damaged: it must hold a scheduler, falling timesteps and a guidance", where=str(path)
            )
        return Sampler(name, tuple(taken), float(guidance))
