"""Continuous batching at work: one caller against many, and the rows of the running batch over time.

    python -m benchmarks.continuous_batching --data ../shared/data --plot build/rows.png

Each caller sends one sentence a call and waits for the answer before it sends the next. One caller and `--callers` take
turns in one interleaved run on the same sentences; the throughput ratio is the median over the rounds. While many call,
the metrics page is read every 20 ms: sentences that join and leave while others decode show as a batch that stays full
although `dragoman_segments_total` keeps growing.
"""

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import grpc.aio

from benchmarks.server_process import NO_REFUSAL, ServerProcess, running_server, write_json
from benchmarks.test_sets import english_chinese
from service.pb.translation.v1 import translation_pb2 as pb

METHOD = "/translation.v1.TranslationService/TranslateText"
CALL_SECONDS = 120.0
MANY_TIMES = 4
"""How often over the many callers translate the sentences: both sides then take about as long, and the last sentences,
which decode almost alone, weigh little."""
SAMPLE_SECONDS = 0.02


async def closed_loop(address: str, sentences: Sequence[str], callers: int) -> float:
    """Seconds that `callers` callers need for all sentences, each with one call in flight."""
    waiting = iter([pb.TranslateTextRequest(contents=[sentence]).SerializeToString() for sentence in sentences])

    async with grpc.aio.insecure_channel(address) as channel:
        translate = channel.unary_unary(METHOD)  # bytes in, bytes out: the load shares the server's cores

        async def caller() -> None:
            for message in waiting:  # shared: each sentence is taken once
                await translate(message, timeout=CALL_SECONDS)

        await translate(pb.TranslateTextRequest(contents=["Ready?"]).SerializeToString(), timeout=CALL_SECONDS)
        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        return time.perf_counter() - started


async def sampled(server: ServerProcess, sentences: Sequence[str], callers: int) -> list[dict[str, float]]:
    """Running segments, ended segments and steps over time while `callers` call."""
    samples: list[dict[str, float]] = []
    started = time.perf_counter()
    load = asyncio.create_task(closed_loop(server.address, sentences, callers))
    while not load.done():  # bounded: the load ends when its sentences do
        page = await asyncio.to_thread(server.metrics)
        samples.append(
            {
                "seconds": round(time.perf_counter() - started, 4),
                "running": page["dragoman_running"],
                "ended": sum(value for name, value in page.items() if name.startswith("dragoman_segments_total")),
                "steps": page["dragoman_rows_per_step_count"],
            }
        )
        await asyncio.wait([load], timeout=SAMPLE_SECONDS)
    await load
    return samples


def plot_samples(samples: Sequence[dict[str, float]], callers: int, path: Path) -> None:
    """A picture of rows in use and of ended segments over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(figsize=(9, 4))
    seconds = [sample["seconds"] for sample in samples]
    rows.step(seconds, [sample["running"] for sample in samples], where="post", color="tab:blue")
    rows.set(xlabel="seconds", ylabel="rows decoding", title=f"{callers} callers, one sentence a call", ylim=(0, None))
    ended = rows.twinx()
    ended.plot(seconds, [sample["ended"] - samples[0]["ended"] for sample in samples], color="tab:orange")
    ended.set(ylabel="sentences ended", ylim=(0, None))
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with docs-enzh, tatoeba-enzh, flores-enzh")
    parser.add_argument("--models", type=Path, default=Path("models"), help="bundles to serve (default: models)")
    parser.add_argument("--callers", type=int, default=64, help="concurrent callers (default: 64)")
    parser.add_argument("--sentences", type=int, default=400, help="sentences a round (default: 400)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--plot", type=Path, help="write a picture of the rows over time here")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()

    pool = [sentence for test_set in english_chinese(arguments.data) for sentence in test_set.sources]
    sentences = random.Random(1).sample(pool, arguments.sentences)
    one: list[float] = []
    many: list[float] = []
    with running_server(arguments.models, *NO_REFUSAL) as server:
        for _ in range(arguments.rounds):
            one.append(len(sentences) / asyncio.run(closed_loop(server.address, sentences, 1)))
            seconds = asyncio.run(closed_loop(server.address, sentences * MANY_TIMES, arguments.callers))
            many.append(MANY_TIMES * len(sentences) / seconds)
        before = server.metrics()
        samples = asyncio.run(sampled(server, sentences * MANY_TIMES, arguments.callers))
        after = server.metrics()
    steps = after["dragoman_rows_per_step_count"] - before["dragoman_rows_per_step_count"]
    rows = after["dragoman_rows_per_step_sum"] - before["dragoman_rows_per_step_sum"]
    ratios = [fast / slow for slow, fast in zip(one, many, strict=True)]
    result = {
        "ready_line": server.ready_line,
        "sentences_per_round": len(sentences),
        "callers": arguments.callers,
        "sentences_per_second_one_caller": [round(value, 1) for value in one],
        "sentences_per_second_many_callers": [round(value, 1) for value in many],
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_min_max": [round(min(ratios), 2), round(max(ratios), 2)],
        "mean_rows_per_step": round(rows / steps, 1),
        "steps_while_sampled": int(steps),
        "samples": samples[:: max(1, len(samples) // 40)],
    }
    write_json(result, arguments.output)
    if arguments.plot is not None:
        plot_samples(samples, arguments.callers, arguments.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
