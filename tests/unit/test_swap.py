"""What is served changes while calls go on; a change that fails leaves everything as it was, and nothing behind."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import service.engine_loop as engine_loop_module
import service.models as models_module
import service.swap as swap_module
from export.bundle_writer import seal
from service.bundle import ENCODER_NAME, load_bundle
from service.catalog import Catalog, CatalogView, Lease
from service.config import Config, EngineConfig, ServerConfig, SwapConfig
from service.engine_loop import EngineLoop
from service.loop_group import LoopGroup
from service.model_runner import OnnxModelRunner
from service.models import load_models
from service.pb.translation.v1 import translation_pb2 as pb
from service.refusals import ChangeRefusedError, InvalidRequestError, NotServedError
from service.request import Delivery, FinishReason
from service.same_bytes import ProbeResult
from service.scheduler_limits import QueueFullError
from service.served_model import ServedModel
from service.swap import Swap
from service.tokenizer import Tokenizer
from tests.synthetic.bundle import SyntheticOptions, sentences
from tests.synthetic.fixtures import COPY, REVERSE, synthetic_bundle

OTHER = SyntheticOptions(name="other", layers=1)
TEXTS = tuple(sentences(4, seed=5))


@dataclass
class World:
    """A catalog, what changes it, and how calls use both."""

    root: Path
    catalog: Catalog
    swap: Swap
    loads: list[weakref.ref[LoopGroup]] = field(default_factory=list)
    """Of every model that was loaded."""

    @property
    def digests(self) -> dict[str, str]:
        return {model.name: model.digest for model in self.catalog.models}

    async def call(self, text: str, lease: Lease, name: str = "") -> tuple[str, bytes]:
        """A call by the servicer's way: the digest that answered and the answer's bytes."""
        request = pb.TranslateTextRequest(contents=[text], model=name)
        checked = lease.view.translator.check(request, [text])
        self.catalog.keep(lease, checked.model)
        await asyncio.sleep(0)  # as when texts are cut elsewhere: the model may go out of service meanwhile
        ended = asyncio.Event()
        job = lease.view.translator.prepare([text], checked, deadline=None, on_done=lambda _: ended.set())
        checked.model.loop.submit(job.sequences)
        await ended.wait()
        assert job.error is None
        return checked.model.digest, b"".join(each.SerializeToString() for each in job.result())

    async def translate(self, text: str, name: str = "") -> tuple[str, bytes]:
        with self.catalog.lease() as lease:
            return await self.call(text, lease, name)

    async def refusal(self, change: Any) -> ChangeRefusedError:
        with pytest.raises(ChangeRefusedError) as caught:
            await change
        return caught.value


def engine_threads() -> set[str]:
    """Names of the engines' threads, when those that loaded or stopped them have ended."""
    for thread in threading.enumerate():
        if thread.name in ("load", "retire"):
            thread.join()
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("engine")}


@asynccontextmanager
async def world(root: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Serves `a`, which copies; `.b` reverses under the same name, `.c` has another name."""
    for name, options in (("a", COPY), (".b", REVERSE), (".c", OTHER)):
        shutil.copytree(synthetic_bundle(options).directory, root / name)
    event_loop = asyncio.get_running_loop()
    config = Config(
        server=ServerConfig(models=str(root)), engine=EngineConfig(num_workers=1, num_threads=1, max_rows=8)
    )

    def make(deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            delivery.make()

    def deliver(deliveries: list[Delivery]) -> None:
        event_loop.call_soon_threadsafe(make, deliveries)

    catalog = Catalog()
    swap = Swap(config, catalog, deliver=deliver, observe=lambda _: None, clock=event_loop.time)
    made = World(root, catalog, swap)
    load_model = models_module.load_model

    def watched(*arguments: Any, **named: Any) -> ServedModel:
        model = load_model(*arguments, **named)
        made.loads.append(weakref.ref(model.loop))
        return model

    monkeypatch.setattr(swap_module, "load_model", watched)
    first = load_models(config, deliver=deliver, observe=lambda _: None)
    for model in first:
        model.loop.start()
    catalog.replace(CatalogView.of(first, config, clock=event_loop.time))
    del first, model
    try:
        yield made
    finally:
        await swap.close()
        for model in catalog.in_use:
            model.loop.stop()


async def expected(made: World) -> dict[str, list[bytes]]:
    """The answers to `TEXTS` by digest, of `a` and `.b`."""
    answers = {}
    for directory in (".b", "a"):
        await made.swap.load(directory, min_similarity=0)
        found = [await made.translate(text) for text in TEXTS]
        (digest,) = {digest for digest, _ in found}
        answers[digest] = [answer for _, answer in found]
    assert len(answers) == 2
    return answers


async def test_a_new_model_takes_the_old_ones_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path, monkeypatch) as made:
        old = weakref.ref(made.catalog.models[0].loop)
        before = made.digests["synthetic"]
        report = await made.swap.load(".b", min_similarity=0)
        wanted = load_bundle(tmp_path / ".b").digest
        assert (report.name, report.digest, report.replaced_digest) == ("synthetic", wanted, before)
        assert report.has_changed
        assert made.digests == {"synthetic": wanted}
        await made.swap.wait_retired()
        assert engine_threads() == {"engine synthetic 0"}
        assert old() is None
        digest, answer = await made.translate("bako dite.")
        assert digest == wanted
        assert answer != (await made.translate("dite bako."))[1]


def damage(made: World, _: pytest.MonkeyPatch) -> None:
    path = made.root / ".b" / ENCODER_NAME
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def no_graph(made: World, _: pytest.MonkeyPatch) -> None:
    (made.root / ".b" / ENCODER_NAME).write_bytes(b"no graph")
    seal(made.root / ".b", synthetic_bundle(REVERSE).manifest)


def no_probe(_: World, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = ProbeResult(num_sentences=1, ways=(), differences=(), error=RuntimeError("broken"), seconds=0.0)
    monkeypatch.setattr(models_module, "probe_same_bytes", lambda _: failed)


def no_start(_: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: EngineLoop) -> None:
        raise MemoryError("no thread")

    monkeypatch.setattr(EngineLoop, "start", fail)


def no_steps(_: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # by type: `isinstance` asks every object there is for its class, and some of torch warn when asked
    running = {id(runner) for runner in gc.get_objects() if type(runner) is OnnxModelRunner}
    step = OnnxModelRunner._take

    def fail(self: OnnxModelRunner, inputs: Any) -> None:
        if id(self) not in running and threading.current_thread().name.startswith("engine"):
            raise RuntimeError("broken")
        step(self, inputs)

    monkeypatch.setattr(OnnxModelRunner, "_take", fail)
    # What is logged is kept by the test, and errors keep the frames that they passed.
    monkeypatch.setattr(engine_loop_module.logger, "error", lambda *_: None)


def no_view(_: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> CatalogView:
        raise MemoryError("no view")

    monkeypatch.setattr(swap_module.CatalogView, "of", fail)


def nothing(_: World, __: pytest.MonkeyPatch) -> None:
    """It is the similarity that is wrong."""


@pytest.mark.parametrize(
    ("break_it", "min_similarity", "reason", "why"),
    [
        (damage, 0.0, "BUNDLE_REFUSED", "SHA-256 of encoder.onnx must be"),
        (no_graph, 0.0, "BUNDLE_REFUSED", "encoder.onnx must be a graph that ONNX Runtime can load"),
        (no_probe, 0.0, "BUNDLE_REFUSED", "same-bytes probe failed"),
        (no_steps, 0.0, "CANARY_FAILED", "must translate the canary texts, but the new model failed with RuntimeError"),
        (nothing, 0.99, "CANARY_FAILED", "must have a mean similarity of at least 0.99"),
        (no_start, 0.0, "", "no thread"),
        (no_view, 0.0, "", "no view"),
    ],
)
async def test_a_stage_that_fails_leaves_everything_as_it_was(  # noqa: PLR0917  # cases
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[[World, pytest.MonkeyPatch], None],
    min_similarity: float,
    reason: str,
    why: str,
) -> None:
    async with world(tmp_path, monkeypatch) as made:
        before = made.catalog.view
        wanted = await made.translate(TEXTS[0])
        with monkeypatch.context() as broken:
            break_it(made, broken)
            with pytest.raises((ChangeRefusedError, MemoryError), match=why) as caught:
                await made.swap.load(".b", canary_texts=TEXTS, min_similarity=min_similarity)
            assert getattr(caught.value, "reason", "") == reason
            assert made.catalog.view is before
            assert await made.translate(TEXTS[0]) == wanted
            assert engine_threads() == {"engine synthetic 0"}
            del caught
            gc.collect()
            assert [load() for load in made.loads] == [None] * len(made.loads)
        if break_it not in (damage, no_graph):
            assert (await made.swap.load(".b", min_similarity=0)).has_changed


async def test_each_call_during_many_swaps_gets_one_models_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, monkeypatch) as made:
        answers = await expected(made)
        is_over = False
        counts: dict[str, int] = dict.fromkeys(answers, 0)

        async def calls(number: int) -> None:
            for i in range(number, 10**6):
                if is_over:
                    return
                index = i % len(TEXTS)
                digest, answer = await made.translate(TEXTS[index])
                assert answer == answers[digest][index]
                counts[digest] += 1

        callers = [asyncio.create_task(calls(number)) for number in range(6)]
        for _ in range(3):
            for directory in (".b", "a"):
                assert (await made.swap.load(directory, min_similarity=0)).has_changed
        is_over = True
        await asyncio.gather(*callers)
        assert min(counts.values()) > 10
        await made.swap.wait_retired()
        assert engine_threads() == {"engine synthetic 0"}
        gc.collect()
        assert sum(load() is not None for load in made.loads) == 1


async def test_a_call_keeps_its_model_over_a_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path, monkeypatch) as made:
        before = made.digests["synthetic"]
        with made.catalog.lease() as lease:
            await made.swap.load(".b", min_similarity=0)
            digest, _ = await made.call(TEXTS[0], lease)
            assert digest == before
            assert len(made.catalog.in_use) == 2
        await made.swap.wait_retired()
        assert len(made.catalog.in_use) == 1


async def test_one_change_at_a_time_and_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path, monkeypatch) as made:
        first = asyncio.create_task(made.swap.load(".b", min_similarity=0))
        await asyncio.sleep(0)
        for change in (made.swap.load(".c"), made.swap.unload("synthetic"), made.swap.set_default("synthetic")):
            assert (await made.refusal(change)).reason == "SWAP_IN_PROGRESS"
        first.cancel()  # whoever asked is gone
        before = made.digests
        while made.digests == before:
            await asyncio.sleep(0)
        await made.swap.wait_retired()
        assert (await made.swap.load("a", min_similarity=0)).has_changed


async def test_a_swap_that_is_closed_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path, monkeypatch) as made:
        before = made.catalog.view
        change = asyncio.create_task(made.swap.load(".b", min_similarity=0))
        await asyncio.sleep(0)
        await made.swap.close()
        assert (await made.refusal(change)).reason == "SWAP_IN_PROGRESS"
        assert (await made.refusal(made.swap.load(".b"))).reason == "SWAP_IN_PROGRESS"
        assert made.catalog.view is before


async def test_a_dry_run_and_what_is_served_already_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, monkeypatch) as made:
        before = made.catalog.view
        (tmp_path / "canaries").mkdir()
        (tmp_path / "canaries" / "en-zh.txt").write_text("bako\n\n  \nbak ba\n", encoding="utf-8")
        tried = await made.swap.load(".b", dry_run=True, min_similarity=0)
        assert (tried.canary.num_texts, tried.canary.num_compared, tried.has_changed) == (2, 2, False)
        assert tried.canary.num_equal < 2
        again = await made.swap.load("a")
        assert (again.canary.num_equal, again.canary.mean_similarity, again.has_changed) == (2, 1.0, False)
        assert made.catalog.view is before
        assert engine_threads() == {"engine synthetic 0"}


async def test_a_bundle_damaged_while_it_is_loaded_is_served_as_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, monkeypatch) as made:
        answers = await expected(made)
        verified = Tokenizer.from_files

        def damage_first(files: Any, *, where: Path) -> Tokenizer:
            for path in (tmp_path / ".b").rglob("*.*"):
                path.write_bytes(b"damaged")
            return verified(files, where=where)

        monkeypatch.setattr(Tokenizer, "from_files", damage_first)
        report = await made.swap.load(".b", min_similarity=0)
        found = [await made.translate(text) for text in TEXTS]
        assert found == [(report.digest, answer) for answer in answers[report.digest]]


async def test_models_come_and_go_and_are_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path, monkeypatch) as made:
        assert (await made.refusal(made.swap.unload("synthetic"))).reason == "LAST_MODEL"
        report = await made.swap.load(".c")
        assert (report.name, report.replaced_digest, report.has_changed) == ("other", "", True)
        assert (await made.translate(TEXTS[0]))[0] == report.digest  # the first by name
        assert await made.swap.set_default("synthetic") == "other"
        assert (await made.translate(TEXTS[0]))[0] == made.digests["synthetic"]
        await made.swap.load(".b", min_similarity=0)  # a default stays one
        assert (await made.translate(TEXTS[0]))[0] == made.digests["synthetic"]
        defaults = {model.name: model.is_default for model in made.catalog.view.info.models}
        assert defaults == {"other": False, "synthetic": True}
        for change in (
            made.swap.unload("other", digest="00"),
            made.swap.unload("nobody"),
            made.swap.set_default("nobody"),
        ):
            with pytest.raises(NotServedError):
                await change
        assert await made.swap.unload("synthetic", digest=made.digests["synthetic"][:12])
        await made.swap.wait_retired()
        assert engine_threads() == {"engine other 0"}
        assert (await made.translate(TEXTS[0]))[0] == report.digest


@pytest.mark.parametrize("directory", ["", "/etc", "../a", "a/../../a", "missing", "a\0"])
async def test_only_bundles_below_the_models_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str
) -> None:
    async with world(tmp_path, monkeypatch) as made:
        assert (await made.refusal(made.swap.load(directory))).reason == "BUNDLE_REFUSED"


@pytest.mark.parametrize("is_broken", [True, False])
async def test_an_old_model_that_is_broken_can_be_replaced_but_not_unseen_while_it_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_broken: bool
) -> None:
    async with world(tmp_path, monkeypatch) as made:
        (old,) = made.catalog.models

        def submit(sequences: Any) -> None:
            if not is_broken:
                raise QueueFullError("full", num_waiting_sequences=1, num_waiting_tokens=1)
            for sequence in sequences:
                sequence.finish_reason = FinishReason.FAILED
                sequence.on_finished(sequence)

        monkeypatch.setattr(old.loop, "submit", submit)
        load = made.swap.load(".b", canary_texts=TEXTS, min_similarity=1.0)
        if is_broken:
            canary = (await load).canary
            assert (canary.num_texts, canary.num_compared) == (len(TEXTS), 0)
        else:
            assert "the old model could not begin: its queue is full" in str(await made.refusal(load))
            assert made.catalog.models == (old,)


async def test_the_new_model_must_fit_beside_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path, monkeypatch) as made:
        (old,) = made.catalog.models
        for num_bytes, fits in ((2 * old.num_bytes - 4096, False), (2 * old.num_bytes + 4096, True)):
            config = replace(made.swap._config, swap=SwapConfig(max_memory_bytes=num_bytes))
            monkeypatch.setattr(made.swap, "_config", config)
            if fits:
                assert (await made.swap.load(".b", min_similarity=0)).has_changed
            else:
                assert (await made.refusal(made.swap.load(".b", min_similarity=0))).reason == "MEMORY_LIMIT"
                assert made.loads == []


async def test_canary_texts_must_be_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path, monkeypatch) as made:
        with pytest.raises(InvalidRequestError):
            await made.swap.load(".b", canary_texts=["x" * 100_001])
        assert engine_threads() == {"engine synthetic 0"}
        (tmp_path / "canaries").mkdir()
        (tmp_path / "canaries" / "en-zh.txt").write_bytes(b"\xff")
        assert (await made.refusal(made.swap.load(".b"))).reason == "CANARY_FAILED"
