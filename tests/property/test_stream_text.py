"""However tokens come in, the pieces of a stream joined are the translation that a call without a stream gives."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.joining import join_translations
from service.segments import Segment
from service.stream import CertainTokensError, ItemStream, SegmentStream
from service.tokenizer import EOS_ID, Tokenizer
from tests.synthetic.toy_language import make_tokenizer

TOKENS = st.integers(0, 379)
SPACES = st.sampled_from(["", " ", "  ", "\n", "\t \n\n"])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(Path(tmp_path_factory.mktemp("tokenizer")) / "tokenizer")


def spelled(tokenizer: Tokenizer, *parts: str | bytes) -> list[int]:
    """Ids of texts and of single bytes."""
    pieces = {piece: i for i, piece in enumerate(tokenizer.target_pieces(range(tokenizer.target_vocab_size)))}
    ids: list[int] = []
    for part in parts:
        if isinstance(part, bytes):
            ids += [pieces[f"<0x{value:02X}>"] for value in part]
        else:
            ids += [pieces[part]] if part in pieces else tokenizer.encode_target(part)
    return ids


@given(ids=st.lists(TOKENS, max_size=40), cuts=st.lists(st.integers(0, 40), max_size=6))
def test_text_that_grows_is_the_text_of_all_ids(tokenizer: Tokenizer, ids: list[int], cuts: list[int]) -> None:
    growing = tokenizer.growing_target()
    whole = tokenizer.decode_target(ids)
    text = ""
    start = 0
    for end in [*sorted(min(cut, len(ids)) for cut in cuts), len(ids)]:
        text += growing.add(ids[start:end])
        assert whole.startswith(text)
        start = end
    assert text + growing.end() == whole


@pytest.mark.parametrize(
    "parts",
    [
        ("指针".encode(), "▁"),
        (b"\xe6\x8c",),  # cut off in the middle
        (b"\xe6\x8c", "▁", b"\x87"),
        (b"\xff\xfe\xe6\x8c\x87\x80",),
        (b"  a  ", b" ", "。", b" "),
        ("▁", b"\x20", "</s>"),
        ("👩‍👩‍👧".encode(), b"\xf0\x9f"),
        ("<unk>", "<pad>", b"\xe6", "<s>", b"\x8c\x87"),
    ],
    ids=repr,
)
def test_one_id_at_a_time(tokenizer: Tokenizer, parts: tuple[str | bytes, ...]) -> None:
    ids = spelled(tokenizer, *parts)
    growing = tokenizer.growing_target()
    assert "".join([*(growing.add([i]) for i in ids), growing.end()]) == tokenizer.decode_target(ids)


def test_a_character_comes_with_its_last_byte(tokenizer: Tokenizer) -> None:
    growing = tokenizer.growing_target()
    assert [growing.add([i]) for i in spelled(tokenizer, "指".encode())] == ["", "", "指"]


SEGMENTS = st.lists(
    st.tuples(SPACES, st.sampled_from(["", "x", "x。", "x."]), SPACES, st.lists(TOKENS, max_size=12)), max_size=5
)


@given(parts=SEGMENTS, language=st.sampled_from(["zh", "de"]), seed=st.integers(0, 2**32))
@example(parts=[("", "x.", " ", []), ("", "x.", " ", []), ("", "x", "", [])], language="zh", seed=0)
@example(parts=[("", "x.", " ", [40]), ("", "", "\n", []), ("", "x", "", [])], language="zh", seed=0)
def test_pieces_joined_are_the_translation(
    tokenizer: Tokenizer, parts: list[tuple[str, str, str, list[int]]], language: str, seed: int
) -> None:
    segments = [Segment(leading=a, core=b, trailing=c, source_ids=(9, EOS_ID) if b else ()) for a, b, c, _ in parts]
    targets = [ids if segment.core else [] for segment, (_, _, _, ids) in zip(segments, parts, strict=True)]
    expected = join_translations(segments, [tokenizer.decode_target(ids) for ids in targets], language)
    stream = ItemStream(segments, tokenizer, language)
    generator = random.Random(seed)
    given_out = [0] * len(segments)
    is_complete = [not segment.core for segment in segments]
    texts = [""] * len(segments)
    has_ended = [False] * len(segments)
    order: list[int] = []

    def take() -> None:
        for piece in stream.take():
            assert not has_ended[piece.segment_index]
            assert piece.text or piece.is_last
            has_ended[piece.segment_index] = piece.is_last
            texts[piece.segment_index] += piece.text
            order.append(piece.segment_index)

    take()
    while not all(is_complete):
        index = generator.choice([i for i, done in enumerate(is_complete) if not done])
        ids = targets[index]
        if generator.random() < 0.3:
            stream.complete(index, ids)
            is_complete[index] = True
        else:
            end = generator.randint(given_out[index], len(ids))
            stream.add(index, ids[given_out[index] : end])
            given_out[index] = end
        if generator.random() < 0.7:
            take()
        assert all(whole.startswith(text) for whole, text in zip(expected, texts, strict=True))
    take()
    assert texts == expected
    assert all(has_ended)
    assert order == sorted(order)
    assert stream.unfinished == []


def test_text_comes_as_soon_as_it_is_certain(tokenizer: Tokenizer) -> None:
    segments = [
        Segment(leading=" ", core="x.", trailing=" ", source_ids=(9, EOS_ID)),
        Segment(leading="", core="x.", trailing="\n", source_ids=(9, EOS_ID)),
        Segment(leading="", core="x.", trailing="", source_ids=(9, EOS_ID)),
    ]
    stream = ItemStream(segments, tokenizer, "zh")

    def taken() -> list[tuple[int, str, bool]]:
        return [(piece.segment_index, piece.text, piece.is_last) for piece in stream.take()]

    def ids(text: str) -> list[int]:
        return spelled(tokenizer, text)

    assert taken() == [(0, " ", False)]
    stream.add(0, ids("指针"))
    assert taken() == [(0, "指针", False)]
    stream.add(2, ids("三"))
    assert taken() == []  # the second comes first
    stream.complete(0, ids("指针"))
    assert taken() == [(0, "", True)]  # after Chinese the space falls away, whatever follows
    stream.complete(1, ids("integer"))
    assert taken() == [(1, "integer\n", True), (2, "三", False)]
    assert stream.unfinished == [2]
    stream.complete(2, ids("三"))
    assert taken() == [(2, "", True)]
    assert taken() == []


@pytest.mark.parametrize(
    ("first", "second", "space"),
    [
        ("integer", "指针", ""),
        ("integer", "integer", " "),
        ("指针integer", "integer", " "),  # it is the last character that counts
        ("指针integer", "指针", ""),
        ("integer", "integer指针", " "),  # and the first
    ],
)
def test_a_space_that_depends_on_what_follows_waits_for_it(
    tokenizer: Tokenizer, first: str, second: str, space: str
) -> None:
    segments = [Segment(leading="", core="x.", trailing=" ", source_ids=(9, EOS_ID)) for _ in range(2)]
    stream = ItemStream(segments, tokenizer, "zh")
    stream.add(0, spelled(tokenizer, first)[:1])
    stream.complete(0, spelled(tokenizer, first))
    assert [(piece.text, piece.is_last) for piece in stream.take()] == [(first, False)]
    stream.complete(1, spelled(tokenizer, second))
    assert [piece.text for piece in stream.take()] == [space, second + " "]


def test_no_space_follows_a_character_that_is_not_ascii(tokenizer: Tokenizer) -> None:
    segments = [Segment(leading="", core="x.", trailing=" ", source_ids=(9, EOS_ID)) for _ in range(2)]
    stream = ItemStream(segments, tokenizer, "zh")
    stream.add(0, spelled(tokenizer, "integer指针")[:1])
    stream.complete(0, spelled(tokenizer, "integer指针"))
    assert [(piece.text, piece.is_last) for piece in stream.take()] == [("integer指针", True)]


def test_a_result_that_contradicts_what_was_certain_is_an_error(tokenizer: Tokenizer) -> None:
    stream = SegmentStream(tokenizer, is_blank=False)
    stream.add([50, 51])
    with pytest.raises(CertainTokensError, match="2 tokens"):
        stream.complete([50, 52, 53])
