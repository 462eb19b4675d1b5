"""Who calls: a name of safe characters, or nobody in particular."""

import pytest

from service.caller import ANONYMOUS, CALLER_KEY, Caller, OpenAccess
from service.refusals import InvalidRequestError


async def caller_of(*names: str | bytes) -> Caller:
    metadata = [("user-agent", "x"), *((CALLER_KEY, name) for name in names)]
    return await OpenAccess().caller_of(metadata, {}, method="TranslateText")


async def test_without_a_name_a_caller_is_anonymous() -> None:
    assert await caller_of() == ANONYMOUS
    assert ANONYMOUS.name == ""


@pytest.mark.parametrize("name", ["a", "shop-7", "team:search.v2_x", "x" * 64])
async def test_a_name_is_taken_as_it_is(name: str) -> None:
    assert await caller_of(name) == Caller(name=name)


@pytest.mark.parametrize("name", ["", "x" * 65, "two words", "a\n", "é", "a/b", b"bytes"], ids=repr)
async def test_any_other_value_is_refused_and_not_repeated(name: str | bytes) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await caller_of(name)
    (violation,) = caught.value.violations
    assert violation.field == CALLER_KEY
    assert not name or str(name) not in violation.description or len(name) < 3


async def test_two_names_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="given 2 times"):
        await caller_of("a", "b")
