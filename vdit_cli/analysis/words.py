"""Numbers and layers as the analysis says them: ".28", "2.2", "4-7 and 9"."""

from __future__ import annotations

import math
from collections.abc import Sequence

NONE = "-"
"""What stands for a number that there is none of."""


def share(value: float | None) -> str:
    """A share or correlation without its leading zero: ".28", "1.00", "-.12"; two digits below .1: ".042"."""
    if value is None:
        return NONE
    if value == 0:
        return "0"
    if 0.995 <= abs(value) < 1:
        text = f"{math.floor(abs(value) * 1000) / 1000:.3f}"  # a share below 1 never reads as 1
    elif abs(value) >= 0.0995:
        text = f"{abs(value):.2f}"
    else:
        text = f"{abs(value):.{min(6, 1 - math.floor(math.log10(abs(value))))}f}"
    return ("-" if value < 0 else "") + (text[1:] if text.startswith("0.") else text)


def times(value: float) -> str:
    """How many times as much: "2.2", "0.66", "14"; "more than 9999" past that."""
    if value > 9999:
        return "more than 9999"
    if value >= 9.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 0.995 else f"{value:.2f}"


def chance_of(frames: int) -> str:
    """The mass of a tile under uniform attention over F `frames`: "1/8"."""
    return f"1/{frames}"


def runs(numbers: Sequence[int]) -> list[str]:
    """Ascending whole numbers as words, runs of three and more joined: ["0", "4-7", "9"]."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return [word for part in parts for word in ([f"{part[0]}-{part[-1]}"] if len(part) > 2 else map(str, part))]


def listed(words: Sequence[str]) -> str:
    """Words as a list in a sentence: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def layers_named(numbers: Sequence[int]) -> str:
    """ "layer 4", "layers 4-7 and 9"."""
    return f"layer{'' if len(numbers) == 1 else 's'} {listed(runs(numbers)) or 'none'}"


def counted(count: int, word: str) -> str:
    """ "1 prompt", "3 prompts"."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def capital(sentence: str) -> str:
    """The sentence with a capital first letter, the rest as it is."""
    return sentence[:1].upper() + sentence[1:]
