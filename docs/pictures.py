"""Draw docs/masks.svg: what a tile mask keeps of the attention between frames. `python docs/build.py` writes it."""

from __future__ import annotations

from vdit_cli.tiles.mask import TileMask

FRAMES = 8
NAMES = ("8:0", "4:4", "2:6", "1:7")
TILE, GAP, TOP, BOTTOM = 18, 44, 30, 34
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f; text-anchor: middle; }
  .small { font-size: 11px; fill: #57606a; }
  .skipped { fill: #eaeef2; } .own { fill: #2da44e; } .global { fill: #0969da; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .small { fill: #9198a1; } .skipped { fill: #21262d; } .own { fill: #3fb950; }
    .global { fill: #4493f8; }
  }
"""


def masks_svg() -> str:
    """Four masks over eight latent frames, a square a tile: global rows and columns, own frames, what is skipped."""
    side = FRAMES * TILE
    width, height = len(NAMES) * (side + GAP) + GAP, TOP + side + BOTTOM
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">']
    parts += [f"<title>Tile masks {', '.join(NAMES)} over {FRAMES} latent frames</title>", f"<style>{STYLE}</style>"]
    for place, name in enumerate(NAMES):
        mask = TileMask.parse(name, frames=FRAMES)
        left = GAP + place * (side + GAP)
        parts.append(f'<text x="{left + side / 2}" y="18">{"dense" if mask.is_dense else name}</text>')
        parts += [
            f'<rect class="{kind(mask, i, j)}" x="{left + j * TILE}" y="{TOP + i * TILE}" '
            f'width="{TILE - 2}" height="{TILE - 2}" rx="2"/>'
            for i in range(FRAMES)
            for j in range(FRAMES)
        ]
        shares = f"kept {mask.kept_share:.2f}, skipped {mask.skipped_share:.2f}"
        parts.append(f'<text class="small" x="{left + side / 2}" y="{TOP + side + 18}">{shares}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def kind(mask: TileMask, query_frame: int, key_frame: int) -> str:
    """What a tile is under a mask: "skipped", "global" (seen by or seeing a global frame) or "own"."""
    if not mask.keeps(query_frame, key_frame):
        return "skipped"
    is_global = query_frame in mask.global_frames or key_frame in mask.global_frames
    return "global" if is_global else "own"
