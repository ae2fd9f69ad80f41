"""`evdit doctor`: whether this machine has what is needed, and the fix for what it lacks."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from vdit_cli.cli.console import Console
from vdit_cli.errors import DONE, ENVIRONMENT

EXAMPLE = """evdit doctor
evdit doctor --json"""


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Check Python, torch, GPUs, PyAV, attention kernels, memory, disk and packages; each problem comes with a fix.

    Exits with 3 if something without which nothing can be generated is missing.
    """
    from vdit_cli.bench.machine import examine

    findings = examine()
    console = Console()
    problems = [finding for finding in findings if finding.problem]
    if as_json:
        content = {"problems": len(problems), "findings": [asdict(finding) for finding in findings]}
        console.json("evdit.doctor/1", content)
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            console.data(f"{'!!' if finding.problem else 'ok'}  {finding.name.ljust(width)}  {finding.found}")
            if finding.problem:
                console.data(f"    {'':{width}}  {finding.problem}\n    {'':{width}}  fix: {finding.fix}")
        console.say("nothing to mend" if not problems else f"{len(problems)} to mend")
    raise typer.Exit(ENVIRONMENT if any(finding.is_essential for finding in problems) else DONE)
