"""The batching in front of the peer: nobody is lost or starved, workers are never idle while somebody waits in vain."""

import asyncio
import threading

import pytest

from benchmarks.peers.batcher import Batcher

MOMENT = 0.05


class Translator:
    """Answers with the tokens reversed, once told to; remembers its batches. Made inside an event loop."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[list[str]], int]] = []
        self.go = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._begun: asyncio.Queue[None] = asyncio.Queue()

    def __call__(self, sources: list[list[str]], beam_size: int) -> list[list[str]]:
        self.batches.append((sources, beam_size))
        self._loop.call_soon_threadsafe(self._begun.put_nowait, None)
        assert self.go.wait(10)
        return [source[::-1] for source in sources]

    async def begun(self, count: int) -> None:
        """Returns when so many more batches have been begun."""
        async with asyncio.timeout(10):
            for _ in range(count):
                await self._begun.get()

    @property
    def sizes(self) -> list[int]:
        """Sentences of each batch."""
        return [len(sources) for sources, _ in self.batches]


def sentence(name: str, length: int) -> list[str]:
    """Tokens that say whose they are."""
    return [f"{name}{position}" for position in range(length)]


async def begun(batcher: Batcher, *sources: list[str], beam_size: int = 1) -> list["asyncio.Task[list[str]]"]:
    """Calls that have come to the queue."""
    tasks = [asyncio.create_task(batcher.translate(source, beam_size)) for source in sources]
    await asyncio.sleep(0)
    return tasks


async def test_each_caller_gets_its_own_answer() -> None:
    translator = Translator()
    translator.go.set()
    batcher = Batcher(translator, max_batch=3, max_wait_seconds=0.0, workers=2)
    sources = [sentence(f"s{number}_", 1 + number % 7) for number in range(50)]
    answers = await asyncio.gather(
        *(batcher.translate(source, 1 + number % 2) for number, source in enumerate(sources))
    )
    assert answers == [source[::-1] for source in sources]
    assert max(translator.sizes) <= 3
    assert all(
        len({name.split("_")[0] for name in source}) == 1 for sources, _ in translator.batches for source in sources
    )


async def test_a_free_worker_takes_at_once_and_what_waits_goes_together() -> None:
    translator = Translator()
    batcher = Batcher(translator, max_batch=8, max_wait_seconds=0.0, workers=1)
    tasks = await begun(batcher, *(sentence(name, 3) for name in "abcd"))
    await translator.begun(1)
    assert translator.sizes == [1]
    translator.go.set()
    await asyncio.gather(*tasks)
    assert translator.sizes == [1, 3]


async def test_free_workers_share_what_waits() -> None:
    translator = Translator()
    batcher = Batcher(translator, max_batch=8, max_wait_seconds=MOMENT, workers=2)
    tasks = await begun(batcher, *(sentence(name, 3) for name in "abcdef"))
    await translator.begun(2)
    assert translator.sizes == [3, 3]
    translator.go.set()
    await asyncio.gather(*tasks)


async def test_the_oldest_goes_with_those_nearest_to_it_in_length() -> None:
    translator = Translator()
    batcher = Batcher(translator, max_batch=2, max_wait_seconds=0.0, workers=1)
    tasks = await begun(
        batcher, sentence("x", 1), sentence("a", 9), sentence("b", 2), sentence("c", 8), sentence("d", 3)
    )
    translator.go.set()
    await asyncio.gather(*tasks)
    names = [sorted(source[0][0] for source in sources) for sources, _ in translator.batches]
    assert names == [["x"], ["a", "c"], ["b", "d"]]


async def test_searches_are_not_mixed_in_a_batch() -> None:
    translator = Translator()
    batcher = Batcher(translator, max_batch=8, max_wait_seconds=0.0, workers=1)
    first = await begun(batcher, sentence("x", 1))
    greedy = await begun(batcher, sentence("a", 2), sentence("b", 2))
    beams = await begun(batcher, sentence("c", 2), sentence("d", 2), beam_size=4)
    translator.go.set()
    await asyncio.gather(*first, *greedy, *beams)
    assert [(len(sources), beam_size) for sources, beam_size in translator.batches] == [(1, 1), (2, 1), (2, 4)]


async def test_a_full_batch_does_not_wait_and_a_small_one_waits_its_time() -> None:
    translator = Translator()
    translator.go.set()
    batcher = Batcher(translator, max_batch=2, max_wait_seconds=30.0, workers=1)
    async with asyncio.timeout(10):
        await asyncio.gather(*await begun(batcher, sentence("a", 1), sentence("b", 1)))
    batcher = Batcher(translator, max_batch=2, max_wait_seconds=MOMENT, workers=1)
    began = asyncio.get_running_loop().time()
    await batcher.translate(sentence("c", 1), 1)
    assert asyncio.get_running_loop().time() - began >= MOMENT


async def test_a_batch_that_fails_fails_its_own_callers_and_no_others() -> None:
    translator = Translator()
    translator.go.set()

    def fails_on_a(sources: list[list[str]], beam_size: int) -> list[list[str]]:
        if sources[0][0].startswith("a"):
            raise ValueError("broken")
        return translator(sources, beam_size)

    batcher = Batcher(fails_on_a, max_batch=1, max_wait_seconds=0.0, workers=1)
    failing, other = await begun(batcher, sentence("a", 1), sentence("b", 1))
    with pytest.raises(ValueError, match="broken"):
        await failing
    assert await other == ["b0"]


async def test_a_caller_that_gave_up_harms_nobody() -> None:
    translator = Translator()
    batcher = Batcher(translator, max_batch=8, max_wait_seconds=0.0, workers=1)
    first, given_up, last = await begun(batcher, sentence("a", 1), sentence("b", 1), sentence("c", 1))
    given_up.cancel()
    await asyncio.sleep(0)
    translator.go.set()
    assert [await first, await last] == [["a0"], ["c0"]]
