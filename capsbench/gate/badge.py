"""A badge of a check: a small picture for the top of a README."""

import xml.etree.ElementTree as ET

from capsbench.colours import CAPTION

_NAME = "capsbench"
_GREEN, _RED = "#1a7f37", "#b42318"
_HEIGHT, _SIZE, _PER_CHARACTER, _MARGIN = 20, 11, 6.5, 12
"""Pixels: of the badge, of its letters, of a letter's width, and around a text."""


def badge_of(regressions: int) -> str:
    """The badge of a check as SVG, which needs no service: green with `no growth`, or red with the number of regressions.

    Args:
        regressions: number of regressions that the check found.
    """
    message = f"{regressions} regression{'s' * (regressions != 1)}" if regressions else "no growth"
    texts = {_NAME: CAPTION, message: _RED if regressions else _GREEN}
    widths = [round(len(text) * _PER_CHARACTER + _MARGIN) for text in texts]
    root = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "width": str(sum(widths)),
            "height": str(_HEIGHT),
            "role": "img",
            "aria-label": f"{_NAME}: {message}",
        },
    )
    ET.SubElement(root, "title").text = f"{_NAME}: {message}"
    left = 0
    for (text, colour), width in zip(texts.items(), widths, strict=True):
        ET.SubElement(root, "rect", {"x": str(left), "width": str(width), "height": str(_HEIGHT), "fill": colour})
        place = {"x": f"{left + width / 2:g}", "y": "14", "text-anchor": "middle", "textLength": str(width - _MARGIN)}
        font = {"fill": "#ffffff", "font-family": "Verdana, DejaVu Sans, sans-serif", "font-size": str(_SIZE)}
        ET.SubElement(root, "text", place | font).text = text
        left += width
    return ET.tostring(root, encoding="unicode") + "\n"
