"""The most rows since a step, against looking at every step."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.company import Company


@given(rows=st.lists(st.integers(1, 9), max_size=30), since=st.integers(0, 35))
def test_the_most_rows_since_a_step(rows: list[int], since: int) -> None:
    company = Company()
    for step, num_rows in enumerate(rows):
        company.note(step, num_rows)
    assert company.most_since(since) == max(rows[since:], default=0)
