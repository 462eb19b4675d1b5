"""Attention over the source of the latest steps, kept once for all rows and found by the cells of a row.

What a hypothesis attended to follows from its cached positions (`service.rows`): each was made by one row in one step.
So nothing has to be kept a row, or copied when one hypothesis branches off another.
Axes: B rows, S source positions, T target positions.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import numpy.typing as npt


class AttentionLog:
    """The attention of the steps that somebody may still ask for."""

    def __init__(self) -> None:
        self._first_cells: list[int] = []
        self._weights: list[npt.NDArray[np.float32]] = []

    def __len__(self) -> int:
        """Steps that are kept."""
        return len(self._weights)

    def add(self, first_cell: int, weights: npt.NDArray[np.float32]) -> None:
        """Keeps a step.

        Args:
            first_cell: number of the cell that row 0 made in it; row r made the r-th after it.
            weights: [B,S'] of each row; not to be changed by anybody.
        """
        self._first_cells.append(first_cell)
        self._weights.append(weights)

    def of(self, cells: npt.NDArray[np.int64], source_length: int) -> npt.NDArray[np.float32]:
        """The attention at positions that successive steps made, over a source of `source_length` tokens.

        Args:
            cells: [T] of the positions, at least one.

        Returns:
            [T,S].
        """
        first = bisect_right(self._first_cells, int(cells[0])) - 1
        steps = slice(first, first + len(cells))
        rows = (cells - self._first_cells[steps]).tolist()
        weights = [of_step[row, :source_length] for of_step, row in zip(self._weights[steps], rows, strict=True)]
        return np.array(weights)  # [T,S]

    def forget_before(self, cell: int) -> None:
        """Lets go of the steps all of whose cells are older than `cell`, which begins a step."""
        num_old = 0
        while num_old < len(self._first_cells) and self._first_cells[num_old] < cell:
            num_old += 1
        del self._first_cells[:num_old], self._weights[:num_old]

    def clear(self) -> None:
        """Lets go of everything."""
        self._first_cells.clear()
        self._weights.clear()
