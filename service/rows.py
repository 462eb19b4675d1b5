"""What every row and lane of the running batch holds: one store of arrays, changed only here.

A *lane* is a sentence's place: its encoded source. A *row* is a hypothesis's place: its target so far. Rows 0..B-1 and
lanes 0..N-1 are in use without a gap whenever a step runs; who leaves makes gaps, newcomers fill them, and what is left
of them is closed by the last rows and lanes. The arrays that a step reads are views of the store: nothing is gathered.

Cached positions of a row carry the number of their making (a *cell*). Two rows with the same cell at a position hold
the same keys and values up to there, so that a hypothesis that moves to another row takes along only what differs.
What is known of a position (token, log-probability, cell) lies side by side, so that a step touches one line of the
processor's cache for each row.
Axes: R rows of the store, M target positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from service.runner import StepInputs

_POSITION = np.dtype([("token", np.int32), ("log_probability", np.float32), ("cell", np.int64)])
"""What is known of a position of a row."""


class RowCopy(NamedTuple):
    """Target positions `start`..`stop`-1 of `source_row`'s cache belong onto `target_row`."""

    source_row: int
    target_row: int
    start: int
    stop: int


class LaneCopy(NamedTuple):
    """The encoded source of `source_lane` belongs onto `target_lane`."""

    source_lane: int
    target_lane: int
    source_length: int


class Tenant(Protocol):
    """Whoever owns a lane and rows; the store keeps its numbers up to date when they move."""

    lane: int
    """The lane it owns."""
    rows: list[int]
    """The rows it owns, by place."""
    source_length: int
    """Tokens of its source."""

    def renumber(self, old_row: int, new_row: int) -> None:
        """One of its rows has another number from now on."""
        ...


class RowStore:
    """Rows and lanes of one engine. Used by one thread at a time."""

    def __init__(self, *, max_rows: int, max_target_tokens: int, bos_id: int) -> None:
        self.max_rows = max_rows
        self.max_target_tokens = max_target_tokens
        self._bos_id = bos_id
        self.last_ids = np.full(max_rows, bos_id, np.int64)
        """[R] each row's last token."""
        self.lengths = np.zeros(max_rows, np.int32)
        """[R] target tokens of each row, which is also the number of its cached positions before a step."""
        self.limits = np.zeros(max_rows, np.int32)
        """[R] target tokens at which a row is cut."""
        self.scores = np.zeros(max_rows, np.float64)
        """[R] search score: sum of the adjusted log-probabilities."""
        self.looks = np.zeros(max_rows, np.int32)
        """[R] target tokens from which greedy search has to look at a row (`service.greedy_arrays`)."""
        self._positions = np.zeros((max_rows, max_target_tokens), _POSITION)
        self.tokens: npt.NDArray[np.int32] = self._positions["token"]
        """[R,M] target tokens."""
        self.log_probabilities: npt.NDArray[np.float32] = self._positions["log_probability"]
        """[R,M] the model's own log-probability of each of them."""
        self._cells: npt.NDArray[np.int64] = self._positions["cell"]
        # The same as what NumPy moves at once, and as flat arrays [R*M], because one index is quicker than two.
        self._whole = self._positions.view(np.complex128)  # [R,M] to be copied, never to be computed with
        self._flat_tokens = self.tokens.reshape(-1)
        self._flat_log_probabilities = self.log_probabilities.reshape(-1)
        self._flat_cells = self._cells.reshape(-1)
        self._starts = np.arange(max_rows) * max_target_tokens  # [R]
        self._num_cells = 0
        self._lanes = np.zeros(max_rows, np.int64)  # [R]
        self._places = np.zeros(max_rows, np.int64)  # [R]
        self._source_lengths = np.ones(max_rows, np.int32)  # [R]
        self._rows_per_lane = np.ones(max_rows, np.int32)  # [R]
        self._row_tenants: list[Tenant | None] = []
        self._lane_tenants: list[Tenant | None] = []
        self._num_free_within = 0
        self._every_row = np.arange(max_rows)

    @property
    def num_rows(self) -> int:
        """B: rows up to the last one in use; gaps count until `compact`."""
        return len(self._row_tenants)

    @property
    def num_used_rows(self) -> int:
        """Rows that have an owner."""
        return len(self._row_tenants) - self._num_free_within

    @property
    def num_lanes(self) -> int:
        """N: lanes up to the last one in use."""
        return len(self._lane_tenants)

    def tenants(self) -> list[Tenant | None]:
        """The owner of each lane; None is a gap."""
        return list(self._lane_tenants)

    def row_tenant(self, row: int) -> Tenant | None:
        """The owner of a row; None is a gap."""
        return self._row_tenants[row]

    def enter(self, tenant: Tenant, num_rows: int, limit: int) -> None:
        """Gives `tenant` a lane and rows, gaps first; each row is fresh.

        Raises:
            RuntimeError: when there is not enough room: a bug.
        """
        if self.num_used_rows + num_rows > self.max_rows:
            raise RuntimeError(f"At most {self.max_rows} rows may be in use, but {num_rows} more were asked for.")
        lane = self._free_place(self._lane_tenants)
        self._lane_tenants[lane] = tenant
        tenant.lane = lane
        tenant.rows = []
        self._source_lengths[lane] = tenant.source_length
        self._rows_per_lane[lane] = num_rows
        for place in range(num_rows):
            if self._num_free_within:
                row = self._row_tenants.index(None)
                self._num_free_within -= 1
            else:
                row = len(self._row_tenants)
                self._row_tenants.append(None)
            self._row_tenants[row] = tenant
            tenant.rows.append(row)
            self._lanes[row] = lane
            self._places[row] = place
            self.limits[row] = limit
            self.reset(row)

    @staticmethod
    def _free_place(tenants: list[Tenant | None]) -> int:
        try:
            return tenants.index(None)
        except ValueError:
            tenants.append(None)
            return len(tenants) - 1

    def reset(self, row: int) -> None:
        """Makes a row's target empty again: it decodes from the begin of sentence."""
        self.last_ids[row] = self._bos_id
        self.lengths[row] = 0
        self.scores[row] = 0.0

    def leave(self, tenant: Tenant) -> None:
        """Takes a tenant's lane and rows back; what they hold is garbage from now on.

        Raises:
            RuntimeError: when it does not own what it names: a bug.
        """
        rows = tenant.rows
        owns_lane = tenant.lane < len(self._lane_tenants) and self._lane_tenants[tenant.lane] is tenant
        if not owns_lane or [self._row_tenants[row] for row in rows] != [tenant] * len(rows):
            raise RuntimeError(f"Lane {tenant.lane} and rows {rows} must belong to who leaves them, but do not.")
        self._lane_tenants[tenant.lane] = None
        for row in rows:
            self._row_tenants[row] = None
        self._num_free_within += len(rows)
        self._trim()

    def _trim(self) -> None:
        """Gaps at the end are none."""
        while self._row_tenants and self._row_tenants[-1] is None:
            self._row_tenants.pop()
            self._num_free_within -= 1
        while self._lane_tenants and self._lane_tenants[-1] is None:
            self._lane_tenants.pop()

    def clear(self) -> None:
        """Takes everything back."""
        self._row_tenants.clear()
        self._lane_tenants.clear()
        self._num_free_within = 0

    def compact(self) -> Iterator[RowCopy | LaneCopy]:
        """Closes the gaps with the last rows and lanes, one at a time: each copy is to be carried out when it comes.

        The store is sound whenever a copy comes, so that everybody can be let go of where it fails.
        """
        while self._num_free_within:
            gap = self._row_tenants.index(None)
            tenant = self._row_tenants.pop()
            row = len(self._row_tenants)
            assert tenant is not None
            self._num_free_within -= 1
            self._row_tenants[gap] = tenant
            length = int(self.lengths[row])
            self._take_over(row, gap, length)
            self._lanes[gap] = self._lanes[row]
            self._places[gap] = self._places[row]
            self.limits[gap] = self.limits[row]
            self.looks[gap] = self.looks[row]
            self.lengths[gap] = length
            self.last_ids[gap] = self.last_ids[row]
            self.scores[gap] = self.scores[row]
            tenant.rows[tenant.rows.index(row)] = gap
            tenant.renumber(row, gap)
            self._trim()
            yield RowCopy(row, gap, 0, length)
        while None in self._lane_tenants:
            gap = self._lane_tenants.index(None)
            owner = self._lane_tenants.pop()
            assert owner is not None
            lane = len(self._lane_tenants)
            self._lane_tenants[gap] = owner
            self._source_lengths[gap] = self._source_lengths[lane]
            self._rows_per_lane[gap] = self._rows_per_lane[lane]
            owner.lane = gap
            for row in owner.rows:
                self._lanes[row] = gap
            self._trim()
            yield LaneCopy(lane, gap, owner.source_length)

    def inputs(self, *, num_candidates: int, with_attention: bool) -> StepInputs:
        """What the next step reads: views of the store."""
        rows, lanes = len(self._row_tenants), len(self._lane_tenants)
        return StepInputs(
            target_ids=self.last_ids[:rows],
            past_lengths=self.lengths[:rows],
            row_lanes=self._lanes[:rows],
            row_places=self._places[:rows],
            source_lengths=self._source_lengths[:lanes],
            rows_per_lane=self._rows_per_lane[:lanes],
            num_candidates=num_candidates,
            with_attention=with_attention,
        )

    @property
    def num_cells(self) -> int:
        """Cells made so far, which is the number of the next."""
        return self._num_cells

    def cells(self, row: int, stop: int) -> npt.NDArray[np.int64]:
        """The cells [stop] of the first `stop` positions of a row."""
        return self._cells[row, :stop]

    def note_step(self, *, may_branch: bool = True) -> int:
        """A step of rows 0..B-1 ran: each has cached one more position.

        Without `may_branch` no tenant has more than one row, and nobody will ask what rows have in common: a tenant
        that does so later fills all the positions it asks for itself.

        Returns:
            The number of row 0's cell; row r's is the r-th after it.
        """
        rows = len(self._row_tenants)
        first = self._num_cells
        if may_branch:
            self._flat_cells[self._starts[:rows] + self.lengths[:rows]] = self._every_row[:rows] + first
            self._num_cells += rows
        return first

    def branch(self, source_row: int, target_row: int) -> RowCopy:
        """`target_row` becomes what `source_row` is after a step (`note_step`): history, scores and cached positions.

        Returns:
            What the runner has to copy: only what differs.
        """
        length = int(self.lengths[source_row])
        stop = length + 1  # the step has cached the position of the last token
        differs = self._cells[source_row, :stop] != self._cells[target_row, :stop]
        start = int(differs.argmax()) if differs.any() else stop
        self._take_over(source_row, target_row, stop)
        self.lengths[target_row] = length
        return RowCopy(source_row, target_row, start, stop)

    def branch_all(
        self, sources: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]
    ) -> list[tuple[int, int, int, int]]:
        """`branch` of pairs of rows [N], at least one; no row is both a source and a target, and no target twice."""
        lengths = self.lengths[sources]
        most = int(lengths.max()) + 1
        theirs = self._whole[sources, :most]  # [N,M'] what lies after a row's length is never read
        differs = theirs.view(_POSITION)["cell"] != self._cells[targets, :most]
        differs[self._every_row[: len(sources)], lengths] = True  # at this step's position at the latest
        self._whole[targets, :most] = theirs
        self.lengths[targets] = lengths
        starts = differs.argmax(axis=1)
        return list(zip(sources.tolist(), targets.tolist(), starts.tolist(), (lengths + 1).tolist(), strict=True))

    def _take_over(self, source_row: int, target_row: int, stop: int) -> None:
        self._whole[target_row, :stop] = self._whole[source_row, :stop]

    def append(self, row: int, token_id: int, log_probability: float, score: float) -> None:
        """A row's hypothesis goes on with a token."""
        length = self.lengths[row]
        self.tokens[row, length] = token_id
        self.log_probabilities[row, length] = log_probability
        self.lengths[row] = length + 1
        self.last_ids[row] = token_id
        self.scores[row] = score

    def append_all(
        self,
        rows: npt.NDArray[np.int64],
        token_ids: npt.NDArray[np.int64],
        log_probabilities: npt.NDArray[np.float32],
        scores: npt.NDArray[np.float64],
    ) -> None:
        """`append` of several rows at once; all of one shape."""
        lengths = self.lengths[rows]
        where = self._starts[rows] + lengths
        self._flat_tokens[where] = token_ids
        self._flat_log_probabilities[where] = log_probabilities
        self.lengths[rows] = lengths + 1
        self.last_ids[rows] = token_ids
        self.scores[rows] = scores

    def append_each(
        self, rows: slice | npt.NDArray[np.int64], token_ids: npt.NDArray[np.int64], values: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.int32]:
        """Every one of these rows goes on with a token and its log-probability; scores are left alone.

        Returns:
            How many tokens each has now.
        """
        lengths = self.lengths[rows]
        where = self._starts[rows] + lengths
        self._flat_tokens[where] = token_ids
        self._flat_log_probabilities[where] = values
        self.last_ids[rows] = token_ids
        lengths = lengths + 1
        self.lengths[rows] = lengths
        return lengths

    def append_steps(
        self, token_ids: npt.NDArray[np.int64], values: npt.NDArray[np.float32], counts: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int32]:
        """Rows 0..B-1 go on with the first `counts` [B] of their tokens [B,T] and log-probabilities [B,T].

        Returns:
            How many tokens each has now.
        """
        rows, steps = token_ids.shape
        lengths = self.lengths[:rows]
        taken = np.arange(steps) < counts[:, None]  # [B,T]
        where = (self._starts[:rows, None] + lengths[:, None] + np.arange(steps))[taken]
        self._flat_tokens[where] = token_ids[taken]
        self._flat_log_probabilities[where] = values[taken]
        some = counts.nonzero()[0]
        self.last_ids[some] = token_ids[some, counts[some] - 1]
        lengths = (lengths + counts).astype(np.int32)
        self.lengths[:rows] = lengths
        return lengths

    def target_ids(self, row: int) -> list[int]:
        """A row's target tokens."""
        ids: list[int] = self.tokens[row, : self.lengths[row]].tolist()
        return ids

    def target_log_probabilities(self, row: int) -> list[float]:
        """The model's own log-probability of each of a row's target tokens."""
        values: list[float] = self.log_probabilities[row, : self.lengths[row]].tolist()
        return values
