"""What is translated together, what stands between, and that no character is lost."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.joining import join_translations
from service.segments import Encode, Segment, split_item

MANY = 10_000


def encode(text: str) -> list[int]:
    """A tokenizer that is easy to count with: a token for each character but white space, and one for the end."""
    return [ord(character) for character in text if not character.isspace()] + [3]


def encode_spaces_too(text: str) -> list[int]:
    """One that makes more tokens of a text than of its pieces: white space inside counts."""
    return [ord(character) for character in text.strip()] + [3]


def cores(text: str, max_source_tokens: int = MANY) -> list[str]:
    return [segment.core for segment in split_item(text, encode, max_source_tokens)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("See e.g. this and i.e. that. Next.", ["See e.g. this and i.e. that.", "Next."]),
        ("Ask Mr. Smith or Dr. Jones. They know.", ["Ask Mr. Smith or Dr. Jones.", "They know."]),
        ("Use v1.2 of file.name at https://a.b/c.d?e=f. It works.",
         ["Use v1.2 of file.name at https://a.b/c.d?e=f.", "It works."]),
        ("Wait... then go. Wait... Then go.", ["Wait... then go.", "Wait...", "Then go."]),
        ('He said "Stop." She did.', ['He said "Stop."', "She did."]),
        ('"What?" he asked. "Why?" She left.', ['"What?" he asked.', '"Why?"', "She left."]),
        ("(It ended.) Another began.", ["(It ended.)", "Another began."]),
        ("See No. 5 and Fig. 2. Done.", ["See No. 5 and Fig. 2.", "Done."]),
        ("No. Fig. trees. Done.", ["No.", "Fig. trees.", "Done."]),
        ("J. R. Tolkien wrote it. I read.", ["J. R. Tolkien wrote it.", "I read."]),
        ("So do I. Then we agree.", ["So do I.", "Then we agree."]),
        ("The U.S. Army base. In the U.S. The end.", ["The U.S. Army base.", "In the U.S.", "The end."]),
        ("Tea, coffee, etc. Then cake.", ["Tea, coffee, etc.", "Then cake."]),
        ("1. Install it. 2. Run it.", ["1. Install it.", "2. Run it."]),
        ("Version 2. Next.", ["Version 2.", "Next."]),
        ("Really?! Yes.", ["Really?!", "Yes."]),
        ("你好。再见！真的吗？是", ["你好。", "再见！", "真的吗？", "是"]),
        ("他说：“走。”她走了。", ["他说：“走。”", "她走了。"]),
        ("यह है। वह है।", ["यह है।", "वह है।"]),
        ("ما هذا؟ هذا كتاب.", ["ما هذا؟", "هذا كتاب."]),
        ("no stop at all", ["no stop at all"]),
        ("", []),
        ("a\nb", ["a", "b"]),
        ("first part\nof a sentence. Rest", ["first part", "of a sentence.", "Rest"]),
        ("a\n\n \nb", ["a", "", "b"]),
        ("  \t ", [""]),
        ("\u2028x\x85y\x0bz", ["", "x", "y", "z"]),
    ],
)  # fmt: skip
def test_sentences(text: str, expected: list[str]) -> None:
    assert cores(text) == expected


def test_white_space_stays_beside_the_text() -> None:
    segments = split_item("  One.  Two.\r\n\tThree \n", encode, MANY)
    assert [(s.leading, s.core, s.trailing) for s in segments] == [
        ("  ", "One.", "  "),
        ("", "Two.", "\r\n"),
        ("\t", "Three", " \n"),
    ]
    assert not any(segment.is_split for segment in segments)


def test_source_ids_are_those_of_the_core() -> None:
    for segment in split_item(" One. Two, three. ", encode, 6):
        assert list(segment.source_ids) == encode(segment.core)


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("aa bb, cc dd, ee ff", 9, ["aa bb,", "cc dd,", "ee ff"]),  # at clauses
        ("aa bb, cc dd, ee ff", 11, ["aa bb, cc dd,", "ee ff"]),  # as many clauses as fit
        ("aa bb cc dd", 5, ["aa bb", "cc dd"]),  # a clause too long: at white space
        ("aaaaaaaaaa", 5, ["aaaa", "aaaa", "aa"]),  # a word too long: anywhere
        ("x aaaaaaaaaa y", 5, ["x", "aaaa", "aaaa", "aa", "y"]),
        ("一二，三四，五六", 7, ["一二，三四，", "五六"]),
        ("aaaa", 5, ["aaaa"]),
    ],
)
def test_long_sentences_are_split_at_the_best_place(text: str, limit: int, expected: list[str]) -> None:
    segments = split_item(text, encode, limit)
    assert [segment.core for segment in segments] == expected
    assert all(segment.is_split == (len(expected) > 1) for segment in segments)


def test_a_word_is_not_cut_before_a_mark_that_belongs_to_its_letter() -> None:
    parts = cores("e\u0301" * 8, 6)  # limit: five characters a part
    assert all(part.startswith("e") for part in parts)
    assert "".join(parts) == "e\u0301" * 8


@pytest.mark.parametrize(
    ("source", "target_language", "translations", "expected"),
    [
        ("One. Two.", "zh", ["一。", "二。"], "一。二。"),
        ("One. Two.", "zh-TW", ["一。", "二。"], "一。二。"),
        ("One.  Two.", "ja", ["一。", "二。"], "一。  二。"),  # layout, not a word space
        ("One.\nTwo.", "zh", ["一。", "二。"], "一。\n二。"),
        ("One. OK.", "zh", ["One.", "OK."], "One. OK."),  # two Latin ends would run together
        ("One. Two.", "de", ["Eins.", "Zwei."], "Eins. Zwei."),
        ("一。二。", "en", ["One.", "Two."], "One. Two."),
        ("一。二。\n", "zh", ["一。", "二。"], "一。二。\n"),
        (" One. ", "zh", ["一。"], " 一。 "),
        ("One.\n\n \nTwo.", "zh", ["一。", "", "二。"], "一。\n\n \n二。"),
    ],
)
def test_rejoining(source: str, target_language: str, translations: list[str], expected: str) -> None:
    segments = split_item(source, encode, MANY)
    joined = join_translations(segments, translations, target_language)
    assert "".join(joined) == expected


# Texts that come near the rules: stops, closers, white space of every kind, marks, more rarely anything else.
_PIECES = st.sampled_from(
    [*".!?…。！？,;，、 \t\n\r\x0b\x1c\x85\u2028\u3000\xa0\"')”」", "Mr", "e.g.", "U.S.", "1", "No", "word", "长词",
     "\u0301", "\u200d", "👩‍👩‍👧", "\ud800", "\x00", "\ufeff", "مرحبا", "X"]
)  # fmt: skip
_TEXTS = st.lists(st.one_of(_PIECES, st.text(max_size=3)), max_size=60).map("".join)


@settings(max_examples=400, deadline=None)
@given(text=_TEXTS, limit=st.integers(2, 40), encode=st.sampled_from([encode, encode_spaces_too]))
@example(text="\n" * 50, limit=2, encode=encode)
@example(text="." * 50, limit=3, encode=encode)
@example(text="aa" + " " * 40 + "b", limit=2, encode=encode)
@example(text="aa bb cc dd", limit=5, encode=encode_spaces_too)
def test_every_character_belongs_to_exactly_one_segment(text: str, limit: int, encode: Encode) -> None:
    segments = split_item(text, encode, limit)
    assert "".join(segment.source_text for segment in segments) == text
    for segment in segments:
        assert segment.core == segment.core.strip()
        assert len(segment.core.splitlines()) <= 1  # a line break ends a segment
        assert not segment.leading.strip()
        assert not segment.trailing.strip()
        assert len(segment.source_ids) <= limit
        assert list(segment.source_ids) == (encode(segment.core) if segment.core else [])


@settings(max_examples=200, deadline=None)
@given(text=_TEXTS, target_language=st.sampled_from(["zh", "en"]))
def test_rejoining_the_sources_gives_the_text_up_to_single_spaces(text: str, target_language: str) -> None:
    segments = split_item(text, encode, MANY)
    joined = "".join(join_translations(segments, [segment.core for segment in segments], target_language))
    assert joined.replace(" ", "") == text.replace(" ", "")
    assert [line.strip() == "" for line in joined.splitlines()] == [line.strip() == "" for line in text.splitlines()]


@pytest.mark.parametrize(
    "text",
    [
        "." * 100_000,
        ".\"" * 50_000,
        "a. " * 33_333,
        "mr. " * 25_000,
        "a" * 100_000,
        "。" * 100_000,
        "a\n" * 50_000,
        "\n" * 100_000,
        " " * 100_000,
        "\u0301" * 100_000,
        ", " * 50_000,
        "一，" * 50_000,
        "{" * 100_000,
    ],
    ids=lambda text: repr(text[:4]),
)  # fmt: skip
def test_time_is_linear_in_the_length(text: str) -> None:
    """A hundred thousand characters of the worst kind take half a second of processor time; something quadratic takes
    five and more."""
    started = time.process_time()
    segments = split_item(text, encode, 256)
    assert time.process_time() - started < 3
    assert "".join(segment.source_text for segment in segments) == text


def test_a_blank_segment_has_no_text() -> None:
    (segment,) = split_item(" \n ", encode, MANY)
    assert segment == Segment(leading=" \n ", core="", trailing="", source_ids=())
