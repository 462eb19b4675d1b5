"""Who is next: priorities, fair shares of callers, and nobody held up for ever."""

from __future__ import annotations

import itertools
import random

import pytest

from service.options import DecodingOptions
from service.request import Priority, Sequence
from service.waiting_queue import FairQueue, WaitingQueue


def cost(sequence: Sequence) -> float:
    return float(len(sequence.source_ids) * sequence.options.num_rows)


class Maker:
    """Makes sequences that come one after the other."""

    def __init__(self) -> None:
        self.arrivals = itertools.count()

    def __call__(
        self,
        caller: str = "",
        *,
        length: int = 8,
        num_rows: int = 1,
        weight: float = 1.0,
        priority: Priority = Priority.INTERACTIVE,
    ) -> Sequence:
        sequence = Sequence(
            source_ids=(7,) * (length - 1) + (3,),
            options=DecodingOptions(beam_size=num_rows),
            caller=caller,
            weight=weight,
            priority=priority,
        )
        sequence.arrival = next(self.arrivals)
        sequence.submitted_at = float(sequence.arrival)
        return sequence


@pytest.fixture
def make() -> Maker:
    return Maker()


def queue_of(*sequences: Sequence) -> FairQueue:
    queue = FairQueue(cost)
    for sequence in sequences:
        queue.add(sequence)
    return queue


def serve(queue: FairQueue, most: int = 10**6) -> list[Sequence]:
    """Takes who is next, one after the other."""
    taken: list[Sequence] = []
    while len(queue) and len(taken) < most:
        taken.append(next(queue.in_order()))
        queue.take(taken[-1])
    return taken


def back(queue: FairQueue, sequence: Sequence) -> None:
    sequence.start_over()
    queue.put_back(sequence)


def test_one_caller_meets_a_plain_queue(make: Maker) -> None:
    sequences = [make(length=length) for length in (9, 1, 30, 2, 2)]
    assert serve(queue_of(*sequences)) == sequences


def test_callers_take_turns_however_much_they_ask_for(make: Maker) -> None:
    many = [make("ada") for _ in range(6)]
    few = [make("bob") for _ in range(2)]
    queue = queue_of(*many, *few)
    assert serve(queue) == [many[0], few[0], many[1], few[1], *many[2:]]
    assert list(queue.in_order()) == []


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_within_a_sentence_of_the_weights(seed: int) -> None:
    chance, make = random.Random(seed), Maker()
    weights = {name: chance.choice([0.25, 1.0, 2.0, 5.0]) for name in ("ada", "bob", "cid")}
    queue = FairQueue(cost)
    given = dict.fromkeys(weights, 0.0)
    waiting = dict.fromkeys(weights, 0)
    for name in chance.choices(list(weights), k=400):
        queue.add(make(name, length=chance.randint(1, 40), num_rows=chance.randint(1, 4), weight=weights[name]))
        waiting[name] += 1
    while all(waiting.values()):  # all ask for more than they get
        (taken,) = serve(queue, 1)
        waiting[taken.caller] -= 1
        given[taken.caller] += cost(taken)
        for one, other in itertools.permutations(weights, 2):
            apart = given[one] / weights[one] - given[other] / weights[other]
            assert apart <= 160 / weights[one] + 1e-6, "a caller got more than a sentence above its share"
    assert min(given.values()) > 0


@pytest.mark.parametrize("seed", range(20))
def test_the_order_that_is_told_is_the_order_that_is_kept(seed: int) -> None:
    chance, make = random.Random(seed), Maker()
    names = ["ada", "bob", "cid", "dan"]
    queue = queue_of(*(make(chance.choice(names), length=chance.choice([8, 8, 8, 20])) for _ in range(40)))
    serve(queue, 10)
    for sequence in chance.sample(list(queue), 5):
        queue.remove(sequence)
    left_out = set(chance.sample(list(queue), 8))
    told = list(queue.in_order(left_out))
    assert list(queue.in_order(left_out)) == told  # looking changes nothing
    for sequence in left_out:
        queue.remove(sequence)
    assert list(queue.in_order()) == told
    assert serve(queue) == told
    assert (len(told), queue.num_rows, queue.num_tokens) == (17, 0, 0)


def test_what_was_had_while_nobody_else_waited_is_not_held_against_a_caller(make: Maker) -> None:
    queue = queue_of(*(make("ada") for _ in range(60)))
    serve(queue, 50)
    for _ in range(10):
        queue.add(make("bob"))
    assert [each.caller for each in serve(queue, 6)].count("ada") == 3


def test_a_caller_that_comes_back_at_once_is_not_new(make: Maker) -> None:
    queue = queue_of(*(make("ada", length=2) for _ in range(100)))
    served = []
    for _ in range(60):
        if not queue.has_caller("bob"):
            queue.add(make("bob", length=20))
        served += serve(queue, 1)
    costs = {name: sum(cost(each) for each in served if each.caller == name) for name in ("ada", "bob")}
    assert abs(costs["ada"] - costs["bob"]) <= 20


def test_an_endless_row_of_new_callers_holds_nobody_up(make: Maker) -> None:
    there = [make("ada", weight=0.5) for _ in range(10)]
    queue = queue_of(*there)
    for number in range(200):
        queue.add(make(f"new-{number}"))
        serve(queue, 1)
        if not queue.has_caller("ada"):
            return
    raise AssertionError("who was there waits for ever")


def test_callers_that_are_gone_are_forgotten(make: Maker) -> None:
    queue = queue_of(*(make("ada", length=40) for _ in range(4000)))
    for number in range(4000):
        queue.add(make(f"new-{number}"))
        serve(queue, 2)
    assert len(queue._debts) < 500
    serve(queue)
    assert not queue._debts


def test_what_is_put_back_comes_first_and_is_paid_back(make: Maker) -> None:
    ada, bob = [make("ada") for _ in range(3)], [make("bob") for _ in range(3)]
    queue = queue_of(*ada, *bob)
    taken = serve(queue, 4)
    assert taken == [ada[0], bob[0], ada[1], bob[1]]
    for sequence in reversed(taken[1:]):  # the latest first
        back(queue, sequence)
    assert queue.oldest_since() == ada[1].submitted_at
    assert serve(queue) == [bob[0], ada[1], bob[1], ada[2], bob[2]]
    assert queue.oldest_since() is None


def test_what_is_put_back_by_a_caller_long_gone_comes_first(make: Maker) -> None:
    gone, others = make("ada"), [make("bob") for _ in range(8)]
    queue = queue_of(gone, *others)
    assert gone in serve(queue, 7)
    back(queue, gone)
    queue.add(make("cid"))
    assert serve(queue, 1) == [gone]


def test_who_waits_for_nothing_any_more_pays_nothing(make: Maker) -> None:
    ada, bob = [make("ada") for _ in range(4)], [make("bob") for _ in range(2)]
    queue = queue_of(*ada, *bob)
    queue.remove(ada[0])
    queue.remove(ada[2])
    assert list(queue) == [ada[1], ada[3], *bob]
    assert serve(queue) == [ada[1], bob[0], ada[3], bob[1]]


def test_weights_may_be_as_unlike_as_they_like(make: Maker) -> None:
    light, heavy = [make("ada", weight=1e-20) for _ in range(2)], make("bob", weight=1e3)
    queue = queue_of(heavy, *light)
    assert serve(queue) == [light[0], heavy, light[1]]


def test_interactive_before_bulk_and_one_of_bulk_before_all_on_demand(make: Maker) -> None:
    queue = WaitingQueue(cost)
    bulk = [make(priority=Priority.BULK) for _ in range(2)]
    interactive = [make(num_rows=2) for _ in range(2)]
    for sequence in [*bulk, *interactive]:
        queue.of(sequence.priority).add(sequence)
    assert list(queue.in_order()) == [*interactive, *bulk]
    assert list(queue.in_order(bulk_first=True)) == [bulk[0], *interactive, bulk[1]]
    assert list(queue.in_order({bulk[0], interactive[1]}, bulk_first=True)) == [bulk[1], interactive[0]]
    assert (len(queue), queue.num_tokens, queue.num_rows, queue.oldest_since()) == (4, 32, 6, 0.0)
    assert set(queue) == {*bulk, *interactive}
    queue.bulk.take(bulk[0])
    assert (queue.oldest_since(), queue.bulk.oldest_since(), bulk[0] in queue) == (1.0, 1.0, False)
    queue.clear()
    assert (len(queue), queue.num_rows, queue.oldest_since(), list(queue.in_order())) == (0, 0, None, [])
