"""How many rows at most decoded in the steps since a given one: the company a sequence had."""

from __future__ import annotations

from bisect import bisect_left


class Company:
    """Rows of the latest steps, as far as they can still be the most; steps are numbered in their order."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._rows: list[int] = []  # falls: a step with fewer rows than a later one is never the answer

    def note(self, step: int, num_rows: int) -> None:
        """Step number `step`, later than all before, had `num_rows` rows."""
        while self._rows and self._rows[-1] <= num_rows:
            self._rows.pop()
            self._steps.pop()
        self._steps.append(step)
        self._rows.append(num_rows)

    def most_since(self, step: int) -> int:
        """The most rows of a step since `step`, itself included; 0 when there was none."""
        place = bisect_left(self._steps, step)
        return self._rows[place] if place < len(self._rows) else 0
