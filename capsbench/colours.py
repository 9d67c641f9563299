"""Colours of figures, pages and badges. Nothing is imported here, so that whatever draws can take its colours from one place."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which suits every kind of colour vision; shapes distinguish the rest, also in grey."""

DARK_COLOURS = ("#56A8E8", "#F08A4B", "#2EC4A0", "#E3A3C6", "#F0B840", "#8CCBF5", "#D8DCE2")
"""Lighter tones of these hues, for a dark page."""

PALE = "#888888"
"""Colour of lines that are drawn for comparison."""

CAPTION = "#555555"
"""Colour of captions and other small text."""

PURPOSES = {
    "state": COLOURS[0],
    "gradient": COLOURS[4],
    "optimizer": COLOURS[5],
    "batch": COLOURS[6],
    "retained": COLOURS[1],
    "communication": COLOURS[3],
    "temporary": "#F0E442",  # the palette's yellow, which is too light for a line
    "other": "#999999",
}
"""Colour of each purpose of memory in a step; neighbours in a stack of them differ in lightness."""
