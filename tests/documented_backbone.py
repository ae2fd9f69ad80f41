"""The package of docs/adding-a-backbone.md, taken out of the page and installed as another package would be."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "adding-a-backbone.md"
BLOCK = re.compile(r"^```(?:toml|python)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WRITE_WEIGHTS = """
import sys, torch
from safetensors.torch import save_file
from video_clouds.model import Network
torch.manual_seed(0)
save_file(Network().state_dict(), sys.argv[1])
print(sum(parameter.numel() for parameter in Network().parameters()))
"""


def install(folder: Path) -> None:
    """Write the page's files below `folder` with the metadata that an installer makes of its pyproject.toml."""
    files = dict(BLOCK.findall(PAGE.read_text(encoding="utf-8")))
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    project = tomllib.loads(files["pyproject.toml"])["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    )
    (info / "entry_points.txt").write_text(points, encoding="utf-8")


def write_weights(package: Path, file: Path) -> int:
    """Random weights of the page's network in `file`; returns how many numbers they are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", WRITE_WEIGHTS, str(file)],
        cwd=package,
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    return int(done.stdout)
