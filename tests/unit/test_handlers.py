"""Bytes to requests."""

import pytest

from service.handlers import SERVICE_NAME, parse
from service.pb.translation.v1 import translation_pb2 as pb
from service.refusals import MalformedMessageError


def test_a_request_comes_back() -> None:
    request = pb.TranslateTextRequest(contents=["a", ""], model="m")
    assert parse(pb.TranslateTextRequest, request.SerializeToString()) == request
    assert parse(pb.TranslateTextRequest, b"") == pb.TranslateTextRequest()


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff",
        b"\x0a\x05ab",  # shorter than it says
        b"\x0a\x02\xff\xfe",  # no UTF-8
        b"\x0a\x03\xed\xa0\x80",  # half a surrogate pair
        b"\x0a\xff\xff\xff\xff\x7f",  # longer than any message
        b"\x08" + b"\xff" * 11,  # a number that does not end
        b"\x0c",  # the end of a group that was not begun
    ],
    ids=repr,
)
def test_what_is_none_is_refused_without_being_quoted(data: bytes) -> None:
    with pytest.raises(MalformedMessageError) as caught:
        parse(pb.TranslateTextRequest, data)
    assert str(caught.value) == (
        f"The message must be a translation.v1.TranslateTextRequest, but its {len(data)} bytes are none."
    )


def test_the_name_of_the_service() -> None:
    assert SERVICE_NAME == "translation.v1.TranslationService"
