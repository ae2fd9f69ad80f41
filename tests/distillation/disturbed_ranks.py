"""`evdit distill-mlcd` with a mishap on rank 1: `python -m tests.distillation.disturbed_ranks EVENT WORD...`.

Event kill: the rank kills itself at iteration 3. Event nan: its gradient is not finite there.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from torch import Tensor, nn

from vdit_cli.cli.app import main
from vdit_cli.distillation import distill_mlcd
from vdit_cli.distillation.samples import Samples

ITERATION = 3


def disturbed(event: str, words: Sequence[str]) -> int:
    """The command's exit code, where there is one. It can't be run twice in a process."""
    of, trained_parameters = distill_mlcd.Lesson.of, distill_mlcd.trained_parameters
    is_here, now = os.environ["RANK"] == "1", 0

    def killed(self: distill_mlcd.Lesson, samples: Samples) -> object:
        nonlocal now
        now = samples.iteration
        if event == "kill" and is_here and now == ITERATION:
            os.kill(os.getpid(), signal.SIGKILL)
        return of(self, samples)

    def broken(gradient: Tensor) -> Tensor | None:
        return gradient * float("nan") if event == "nan" and is_here and now == ITERATION else None

    def hooked(student: nn.Module) -> dict[str, nn.Parameter]:
        parameters = trained_parameters(student)
        list(parameters.values())[2].register_hook(broken)
        return parameters

    distill_mlcd.Lesson.of = killed
    distill_mlcd.trained_parameters = hooked
    return main(words)


if __name__ == "__main__":
    sys.exit(disturbed(sys.argv[1], sys.argv[2:]))
