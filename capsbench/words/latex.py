"""Texts as LaTeX prints them."""

import re

LATEX_SIGNS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "–": "--",
    "γ": r"$\gamma$", "µ": r"\textmu{}", "√": r"$\surd$", "²": r"$^2$", "≈": r"$\approx$",
}  # fmt: skip
"""Signs that LaTeX reads as commands, or lacks."""


def latex_text(text: str) -> str:
    """The text with each sign of `LATEX_SIGNS` written so that LaTeX prints it."""
    return re.sub("|".join(map(re.escape, LATEX_SIGNS)), lambda sign: LATEX_SIGNS[sign[0]], text)
