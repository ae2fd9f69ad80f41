"""What weights say of their own past: the weights that they were trained from, and the plan that they wore.

It stands in the metadata of their safetensors files, so that a student keeps it when it is copied or shipped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vdit_cli.artifacts.tensors import damaged, opened
from vdit_cli.errors import EvditError, quoted
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.tiles.plan_json import PLAN_FILE

WEIGHTS, PLAN = "evdit.lineage", "evdit.plan"
"""Keys of the metadata."""


@dataclass(frozen=True)
class Lineage:
    """Digests: of the `weights` that these were trained from, nearest first, and of the `plan` that they wore.

    `plan` is None for weights trained with full attention, and for those that say nothing.
    """

    weights: tuple[str, ...] = ()
    plan: str | None = None

    def metadata(self) -> dict[str, str]:
        """The lineage as metadata of a safetensors file."""
        worn = {} if self.plan is None else {PLAN: self.plan}
        return {WEIGHTS: json.dumps(self.weights), **worn}

    @classmethod
    def read(cls, file: Path) -> Lineage:
        """What a safetensors file says, nothing where it does not. Raises EvditError (3) for a damaged file."""
        try:
            with opened(file) as tensors:
                metadata = tensors.metadata() or {}
            weights = json.loads(metadata.get(WEIGHTS, "[]"))
            if not isinstance(weights, list) or not all(isinstance(digest, str) for digest in weights):
                raise ValueError(f"{WEIGHTS} is no list of digests")
        except (ValueError, RecursionError) as error:
            raise damaged(file, str(error)) from error
        return cls(tuple(weights), metadata.get(PLAN))

    def worn(self, folders: Sequence[Path]) -> MaskPlan | None:
        """The plan.json in the first of `folders` that has one: the plan that the weights wore, where they name one.

        Raises EvditError (2) where they name one and it is not there, or another is.
        """
        file = next((folder / PLAN_FILE for folder in folders if (folder / PLAN_FILE).is_file()), None)
        plan = MaskPlan.read(file) if file else None
        if plan is not None and plan.digest == self.plan:
            return replace(plan, is_worn=True)
        if self.plan is None:
            return plan
        found = f"{file} is another one, {plan.digest[:12]}" if plan else f"no {PLAN_FILE} lies beside them"
        raise EvditError(
            f"the weights were trained under the plan {self.plan[:12]}, and {found}",
            where=str(folders[0]),
            next_steps=[f"bring {quoted(folders[0] / PLAN_FILE)}", "--masks PLAN", "--masks none"],
        )
