"""A picture of alignments: for each segment a field of source tokens by target tokens, darker for more attention.

Needs matplotlib (`pip install dragoman[plot]`), which is loaded only when a picture is asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from service.client import Segment

MAX_PANELS = 12
_INCHES_PER_TOKEN = 0.32
_MARGIN_INCHES = 1.6


class PlotError(RuntimeError):
    """The picture cannot be drawn; the message says why."""


def draw_alignments(segments: Sequence[Segment], path: str | Path) -> set[str]:
    """Draws the alignments of the first `MAX_PANELS` segments that have one, one below the other.

    Args:
        segments: their translations asked for with alignment.
        path: file to write; its ending says the format, as in `.png`, `.svg` or `.pdf`.

    Returns:
        The characters that no font of this machine has, and that the picture therefore shows as boxes; in an SVG they
        are text, and whoever opens it may have the font.

    Raises:
        PlotError: without matplotlib, without an alignment, or when the file cannot be written.
    """
    aligned = [segment for segment in segments if segment.alignment is not None][:MAX_PANELS]
    if not aligned:
        raise PlotError("A segment with an alignment must be there to be drawn, but there is none.")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError("matplotlib must be there to draw: pip install 'dragoman[plot]'") from error
    labels = [(_labels(s.alignment.source_tokens), _labels(s.target_tokens)) for s in aligned if s.alignment]
    families, missing = _fonts({character for pair in labels for side in pair for text in side for character in text})
    heights = [len(target) * _INCHES_PER_TOKEN + _MARGIN_INCHES for _, target in labels]
    width = max(len(source) for source, _ in labels) * _INCHES_PER_TOKEN + _MARGIN_INCHES + 1
    settings: Any = {"font.family": families, "svg.fonttype": "none", "svg.hashsalt": "alignment"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")  # the caller is told
        figure = Figure(figsize=(max(width, 4), sum(heights)), layout="constrained")
        panels = figure.subplots(len(aligned), 1, squeeze=False, height_ratios=heights)[:, 0]
        for panel, segment, (source, target) in zip(panels, aligned, labels, strict=True):
            assert segment.alignment is not None
            image = _draw_one(panel, segment.alignment.weights, source, target)
        figure.colorbar(image, ax=list(panels), label="attention", shrink=min(1, 3 / sum(heights)))
        try:
            figure.savefig(path, dpi=150, metadata={"Date": None} if str(path).endswith(".svg") else None)
        except (OSError, ValueError) as error:
            raise PlotError(f"The picture must be written to {path}, but cannot be: {error}") from error
    return missing


def _draw_one(panel: Any, weights: Sequence[Sequence[float]], source: Sequence[str], target: Sequence[str]) -> Any:
    """One field: source tokens along the top, target tokens down the side."""
    image = panel.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    panel.set_xticks(range(len(source)), source, rotation=60, ha="left", rotation_mode="anchor")
    panel.set_yticks(range(len(target)), target)
    panel.xaxis.tick_top()
    panel.xaxis.set_label_position("top")
    panel.set_xlabel("source tokens")
    panel.set_ylabel("target tokens")
    panel.tick_params(length=0)
    panel.set_xticks([i + 0.5 for i in range(len(source) - 1)], minor=True)
    panel.set_yticks([i + 0.5 for i in range(len(target) - 1)], minor=True)
    panel.grid(which="minor", color="0.9", linewidth=0.5)
    panel.tick_params(which="minor", length=0)
    return image


def _labels(tokens: Iterable[str]) -> list[str]:
    """Tokens as text that no plotting library takes for markup."""
    return [token.replace("\u2581", "_").replace("$", r"\$") for token in tokens]


def _fonts(characters: set[str]) -> tuple[list[str], set[str]]:
    """Font families that together have these characters, and the characters that none has."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    families = ["DejaVu Sans"]  # comes with matplotlib
    missing = characters - _characters_of(FT2Font(font_manager.findfont(families[0])))
    for font in font_manager.fontManager.ttflist:
        if not missing:
            break
        if "Last Resort" in font.name:  # has a box for every character
            continue
        try:
            found = missing & _characters_of(FT2Font(font.fname))
        except (OSError, RuntimeError):  # a file that is no font after all
            continue
        if found:
            families.append(font.name)
            missing -= found
    return families, missing


def _characters_of(font: Any) -> set[str]:
    return set(map(chr, font.get_charmap()))
