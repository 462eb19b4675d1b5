"""Which query slot of which lane each row is, against the description of the graph's inputs."""

from __future__ import annotations

import random

import numpy as np
import pytest

from service.graph_signature import LEAST_SLOTS, MASKED_SCORE, SPARE_POSITIONS
from service.lane_layout import LaneLayout
from service.runner import StepInputs

MAX_ROWS = 40
SLOT_LENGTH = 20 + SPARE_POSITIONS


def step_inputs(rows: list[tuple[int, int]], source_lengths: list[int]) -> StepInputs:
    """Rows by (lane, place)."""
    lanes = np.array([lane for lane, _ in rows], np.int64)
    return StepInputs(
        target_ids=np.zeros(len(rows), np.int64),
        past_lengths=np.zeros(len(rows), np.int32),
        row_lanes=lanes,
        row_places=np.array([place for _, place in rows], np.int64),
        source_lengths=np.array(source_lengths, np.int32),
        rows_per_lane=np.bincount(lanes, minlength=len(source_lengths)).astype(np.int32),
        num_candidates=1,
        with_attention=False,
    )


def random_inputs(chance: random.Random) -> StepInputs:
    sizes = [chance.choice([1, 1, 2, 4, 16]) for _ in range(chance.randint(1, 5))]
    rows = [(lane, place) for lane, size in enumerate(sizes) for place in range(size)][:MAX_ROWS]
    chance.shuffle(rows)
    num_lanes = 1 + max(lane for lane, _ in rows)
    return step_inputs(rows, [chance.randint(1, 20) for _ in range(num_lanes)])


def new_layout() -> LaneLayout:
    return LaneLayout(max_rows=MAX_ROWS, slot_length=SLOT_LENGTH)


def arranged(layout: LaneLayout, inputs: StepInputs) -> dict[str, np.ndarray]:
    layout.arrange(inputs)
    return {name: view.copy() for name, view in layout.inputs()}


def check(found: dict[str, np.ndarray], inputs: StepInputs) -> None:
    """What `LANE_INPUTS` says of each."""
    num_lanes = len(inputs.source_lengths)
    slots = max(LEAST_SLOTS, int(inputs.rows_per_lane.max()))
    (num_positions,) = found["num_positions"]
    assert found["slot_rows"].shape == (num_lanes, slots, 2)
    assert (found["slot_rows"][:, :, 1] == 0).all()
    for row, (lane, slot) in enumerate(found["row_slots"][:, 0].tolist()):
        assert (lane, slot) == (inputs.row_lanes[row], inputs.row_places[row])
        assert found["slot_rows"][lane, slot, 0] == row
    for lane in range(num_lanes):
        length, size = int(inputs.source_lengths[lane]), int(inputs.rows_per_lane[lane])
        spare = found["slot_rows"][lane, size:, 0]
        assert (inputs.row_lanes[spare] == lane).all()  # slots to spare hold another row of their lane
        assert found["queries_per_lane"][lane] == size
        assert found["last_positions"][lane] == length + size - 1
        bias = found["source_bias"][lane, 0]
        assert bias.shape == (slots, num_positions)
        assert (bias[:, :length] == 0).all()
        assert (bias[:, length:] == np.float32(MASKED_SCORE)).all()
    assert num_positions > found["last_positions"].max()
    assert num_positions <= SLOT_LENGTH


def test_every_row_is_told_its_lane_and_sees_its_own_source_alone() -> None:
    chance = random.Random(1)
    for _ in range(200):
        inputs = random_inputs(chance)
        check(arranged(new_layout(), inputs), inputs)


def test_what_was_before_is_no_matter() -> None:
    chance = random.Random(2)
    layout = new_layout()
    for _ in range(300):
        inputs = random_inputs(chance)
        check(arranged(layout, inputs), inputs)
        if chance.random() < 0.5:
            check(arranged(layout, inputs), inputs)


def test_two_lanes_that_change_places_are_noticed() -> None:
    """Nothing else of the inputs tells it."""
    layout = new_layout()
    for rows in ([(0, 0), (1, 0)], [(1, 0), (0, 0)], [(0, 0), (1, 0)]):
        inputs = step_inputs(rows, [7, 7])
        check(arranged(layout, inputs), inputs)


@pytest.mark.parametrize("size", [0, SPARE_POSITIONS + 1])
def test_a_lane_without_rows_or_with_too_many_is_refused(size: int) -> None:
    layout = new_layout()
    rows = [(0, 0), *((1, place) for place in range(size))]
    with pytest.raises(ValueError, match=f"must have between 1 and {SPARE_POSITIONS} rows"):
        layout.arrange(step_inputs(rows, [7, 7]))
    sound = step_inputs([(0, 0)], [5])
    check(arranged(layout, sound), sound)
