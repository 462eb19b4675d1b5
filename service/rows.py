"""What every row and lane of the running batch holds: one store of arrays, changed only here.

A *lane* is a sentence's place: its encoded source. A *row* is a hypothesis's place: its target so far. Rows 0..B-1 and
lanes 0..N-1 are in use without a gap whenever a step runs; who leaves makes gaps, newcomers fill them, and what is left
of them is closed by the last rows and lanes. The arrays that a step reads are views of the store: nothing is gathered.

Cached positions of a row carry the number of their making (a *cell*). Two rows with the same cell at a position hold
the same keys and values up to there, so that a hypothesis that moves to another row takes along only what differs.
Axes: R rows of the store, M target positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from service.runner import StepInputs


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
        self.tokens = np.zeros((max_rows, max_target_tokens), np.int32)
        """[R,M] target tokens."""
        self.log_probabilities = np.zeros((max_rows, max_target_tokens), np.float32)
        """[R,M] the model's own log-probability of each of them."""
        self.most_shared = np.zeros(max_rows, np.int32)
        """[R] the most rows that decoded beside each row, its own included."""
        self._cells = np.zeros((max_rows, max_target_tokens), np.int64)
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
            self.most_shared[row] = 0
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
        if self._lane_tenants[tenant.lane] is not tenant or any(self._row_tenants[row] is not tenant for row in rows):
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
            self.most_shared[gap] = self.most_shared[row]
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

    def note_step(self, *, may_branch: bool = True) -> None:
        """A step of rows 0..B-1 ran: each has cached one more position.

        Without `may_branch` no tenant has more than one row, and nobody will ask what rows have in common: a tenant
        that does so later fills all the positions it asks for itself.
        """
        rows = len(self._row_tenants)
        if may_branch:
            every = self._every_row[:rows]
            self._cells[every, self.lengths[:rows]] = every + self._num_cells
            self._num_cells += rows
        np.maximum(self.most_shared[:rows], rows, out=self.most_shared[:rows])

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

    def branch_all(self, source_rows: Sequence[int], target_rows: Sequence[int]) -> list[RowCopy]:
        """`branch` of several pairs at once; no row is both a source and a target, no target twice."""
        if not source_rows:
            return []
        sources, targets = np.array(source_rows), np.array(target_rows)
        lengths = self.lengths[sources]
        most = int(lengths.max()) + 1
        is_cached = np.arange(most) <= lengths[:, None]  # [N,M'] this step's position included
        theirs, own = self._cells[sources, :most], self._cells[targets, :most]
        differs = (theirs != own) | ~is_cached
        differs[np.arange(len(sources)), lengths] = True  # at this step's position at the latest
        starts = differs.argmax(axis=1)
        self._cells[targets, :most] = np.where(is_cached, theirs, own)
        self.tokens[targets, :most] = self.tokens[sources, :most]
        self.log_probabilities[targets, :most] = self.log_probabilities[sources, :most]
        self.lengths[targets] = lengths
        return [
            RowCopy(source, target, start, length + 1)
            for source, target, start, length in zip(
                source_rows, target_rows, starts.tolist(), lengths.tolist(), strict=True
            )
        ]

    def _take_over(self, source_row: int, target_row: int, stop: int) -> None:
        self.tokens[target_row, :stop] = self.tokens[source_row, :stop]
        self.log_probabilities[target_row, :stop] = self.log_probabilities[source_row, :stop]
        self._cells[target_row, :stop] = self._cells[source_row, :stop]

    def append(self, row: int, token_id: int, log_probability: float, score: float) -> None:
        """A row's hypothesis goes on with a token."""
        length = self.lengths[row]
        self.tokens[row, length] = token_id
        self.log_probabilities[row, length] = log_probability
        self.lengths[row] = length + 1
        self.last_ids[row] = token_id
        self.scores[row] = score

    def target_ids(self, row: int) -> list[int]:
        """A row's target tokens."""
        ids: list[int] = self.tokens[row, : self.lengths[row]].tolist()
        return ids

    def target_log_probabilities(self, row: int) -> list[float]:
        """The model's own log-probability of each of a row's target tokens."""
        values: list[float] = self.log_probabilities[row, : self.lengths[row]].tolist()
        return values
