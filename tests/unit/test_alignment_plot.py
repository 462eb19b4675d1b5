"""The picture of an alignment."""

import struct
import sys
from pathlib import Path

import pytest

from service import alignment_plot
from service.alignment_plot import PlotError, draw_alignments
from service.client import Alignment, Segment

SOURCE, TARGET = ("▁The", "▁file", "$x$", "</s>"), ("Die", "▁Datei", "</s>")


def segment(target: tuple[str, ...] = TARGET, *, is_aligned: bool = True) -> Segment:
    rows = tuple(tuple(0.7 if i == j else 0.1 for i in range(len(SOURCE))) for j in range(len(target)))
    alignment = Alignment(source_tokens=SOURCE, weights=rows, source_words=(), target_words=(), word_pairs=())
    return Segment(
        source_text="",
        translated_text="",
        score=0.0,
        normalized_score=0.0,
        target_tokens=target,
        token_log_probabilities=(),
        finish_reason="STOP",
        flags=(),
        num_source_tokens=len(SOURCE),
        num_target_tokens=len(target),
        alignment=alignment if is_aligned else None,
        hypotheses=(),
    )


def test_an_svg_has_the_tokens_as_text(tmp_path: Path) -> None:
    path = tmp_path / "picture.svg"
    assert draw_alignments([segment(), segment(is_aligned=False)], path) == set()
    written = path.read_text(encoding="utf-8")
    for token in ("_The", "_file", "$x$", "Die", "_Datei", "&lt;/s&gt;", "source tokens", "target tokens"):
        assert token in written
    assert written.count("source tokens") == 1  # one panel


def test_a_png_grows_with_the_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def size(*segments: Segment) -> tuple[int, int]:
        draw_alignments(segments, tmp_path / "picture.png")
        data = (tmp_path / "picture.png").read_bytes()
        assert data.startswith(b"\x89PNG")
        return struct.unpack(">II", data[16:24])

    one, two = size(segment()), size(segment(), segment())
    assert two[0] == one[0]
    assert two[1] == pytest.approx(2 * one[1], abs=4)
    monkeypatch.setattr(alignment_plot, "MAX_PANELS", 2)
    assert size(*[segment()] * 3) == two


def test_characters_without_a_font_are_told(tmp_path: Path) -> None:
    private = "\U0010fffd"
    assert draw_alignments([segment((private, "a"))], tmp_path / "picture.png") == {private}


def test_why_there_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PlotError, match="there is none"):
        draw_alignments([segment(is_aligned=False)], tmp_path / "picture.png")
    with pytest.raises(PlotError, match="cannot be"):
        draw_alignments([segment()], tmp_path / "nowhere" / "picture.png")
    with pytest.raises(PlotError, match="cannot be"):
        draw_alignments([segment()], tmp_path / "picture.text")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PlotError, match=r"dragoman\[plot\]"):
        draw_alignments([segment()], tmp_path / "picture.png")
