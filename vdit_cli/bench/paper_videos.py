"""The speed-ups of whole videos that the paper printed, to stand beside those measured here. No torch."""

from __future__ import annotations

BASE_STEPS, STUDENT_STEPS = 100, 20

PAPER_SPEEDUPS: dict[tuple[str, int], float] = {
    ("dense", BASE_STEPS): 1.00,
    ("dense", STUDENT_STEPS): 5.00,
    ("r=.025", STUDENT_STEPS): 5.85,
    ("r=.05", STUDENT_STEPS): 6.60,
    ("r=.1", STUDENT_STEPS): 7.05,
    ("r=.2", STUDENT_STEPS): 7.50,
    ("r=.4", STUDENT_STEPS): 7.80,
    ("4:4", BASE_STEPS): 1.16,
    ("3:5", BASE_STEPS): 1.26,
    ("2:6", BASE_STEPS): 1.45,
    ("1:7", BASE_STEPS): 1.77,
    ("4:4", STUDENT_STEPS): 5.80,
    ("3:5", STUDENT_STEPS): 6.30,
    ("2:6", STUDENT_STEPS): 7.25,
    ("1:7", STUDENT_STEPS): 8.85,
}
"""Speed-up over the base by plan and steps, 29 frames of 720p, guidance kept: Table 2 (dense, r), Table 7 (masks, 100
steps) and Table 9 (masks, 20 steps) of arXiv 2502.06155."""
PAPER_FRAMES = 8
"""Latent frames of those tables."""
