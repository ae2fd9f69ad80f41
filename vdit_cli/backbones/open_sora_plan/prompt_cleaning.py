"""Prompts made like the captions that Open-Sora-Plan was trained on.

Source: the caption cleaning of DeepFloyd IF as Open-Sora-Plan v1.2.0 runs it (twice; CJK ideographs are kept). The
order of the rules, and what looks odd in them, is part of the model: captions passed through exactly these.
"""

from __future__ import annotations

import html
import re
from urllib.parse import unquote_plus

import ftfy
from bs4 import BeautifulSoup

DOMAINS = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b\/?(?!@)"
FILE_TYPES = r"(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
DASHES = (
    r"[\u002D\u058A\u05BE\u1400\u1806\u2010-\u2015\u2E17\u2E1A\u2E3A\u2E3B\u2E40\u301C\u3030\u30A0"
    r"\uFE31\uFE32\uFE58\uFE63\uFF0D]+"
)
ODD_PUNCTUATION = r"[#®•©™&@·º½¾¿¡§~)(\][}{|\\/*]+"

Rules = tuple[tuple[re.Pattern[str], str], ...]


def _rules(*pairs: tuple[str, str]) -> Rules:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


ADDRESSES = _rules(
    (r"<person>", "person"),
    (rf"\b((?:https?:(?:\/{{1,3}}|[a-zA-Z0-9%])|{DOMAINS}))", ""),
    (rf"\b((?:www:(?:\/{{1,3}}|[a-zA-Z0-9%])|{DOMAINS}))", ""),
)
CHARACTERS = _rules(
    (r"@[\w\d]+\b", ""),
    (r"[\u31c0-\u31ef]+", ""),
    (r"[\u31f0-\u31ff]+", ""),
    (r"[\u3200-\u32ff]+", ""),
    (r"[\u3300-\u33ff]+", ""),
    (r"[\u3400-\u4dbf]+", ""),
    (r"[\u4dc0-\u4dff]+", ""),
    (DASHES, "-"),
    (r"[`´«»“”¨]", '"'),
    (r"[‘’]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"[\S]+\.{FILE_TYPES}", ""),
    (r"[\"\']{2,}", '"'),
    (r"[\.]{2,}", " "),
    (ODD_PUNCTUATION, " "),
    (r"\s+\.\s+", " "),
)
JOINS = re.compile(r"[-_]")
MANY_JOINS = 3
LEFTOVERS = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{FILE_TYPES}(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),
    (r"\b\s+\:\s+", ": "),
    (r"(\D[,\./])\b", r"\1 "),
    (r"\s+", " "),
)
ENDS = _rules(
    (r"^[\"\']([\w\W]+)[\"\']$", r"\1"),
    (r"^[\'\_,\-\:;]", ""),
    (r"[\'\_,\-\:\-\+]$", ""),
    (r"^\.\S+$", ""),
)


def simple_prompt(prompt: str) -> str:
    """`prompt` in lower case without space around it: what upstream does where cleaning is off."""
    return prompt.lower().strip()


def clean_prompt(prompt: str) -> str:
    """`prompt` as the sampling pipeline reads it: addresses, file names, markup and odd signs are taken out."""
    return _once(_once(prompt))


def clean_caption(caption: str) -> str:
    """`caption` as training read it: like a prompt, but from the printed form of a one-element list."""
    return clean_prompt(str([caption]))


def _once(text: str) -> str:
    text = _applied(ADDRESSES, unquote_plus(text).strip().lower())
    text = _applied(CHARACTERS, BeautifulSoup(text, features="html.parser").text)
    if len(JOINS.findall(text)) > MANY_JOINS:
        text = JOINS.sub(" ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _applied(ENDS, _applied(LEFTOVERS, text)).strip()


def _applied(rules: Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text
