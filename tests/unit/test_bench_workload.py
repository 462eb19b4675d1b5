"""Sentences drawn for a load: every draw has the pool's mix of lengths."""

import statistics

import pytest

from benchmarks.online_workload import SCENARIOS, spread_draw
from service.pb.translation.v1 import translation_pb2 as pb


@pytest.mark.parametrize(("size", "count"), [(1000, 37), (1000, 1000), (37, 1000), (3, 1)])
def test_a_draw_is_spread_over_the_pool(size: int, count: int) -> None:
    for seed in range(5):
        drawn = spread_draw(size, count, seed)
        assert len(drawn) == count
        assert all(0 <= index < size for index in drawn)
        gaps = [after - before for before, after in zip(sorted(drawn), sorted(drawn)[1:], strict=False)]
        assert all(gap <= size / count + 1 for gap in gaps)


def test_a_draw_is_in_random_order_and_its_seeds_own() -> None:
    drawn = spread_draw(1000, 200, seed=1)
    assert drawn == spread_draw(1000, 200, seed=1)
    assert sorted(drawn) != sorted(spread_draw(1000, 200, seed=2))
    assert abs(statistics.correlation(range(200), drawn)) < 0.2


def test_a_beam_is_told_what_the_peer_does_by_default() -> None:
    greedy, beam = (pb.TranslateTextRequest.FromString(one.message("Hello.")) for one in SCENARIOS)
    assert greedy == pb.TranslateTextRequest(contents=["Hello."])
    assert (beam.decoding_options.beam_size, beam.decoding_options.length_penalty) == (4, 1.0)
    assert (beam.decoding_options.early_stopping, beam.decoding_options.patience) == (True, 1.0)
