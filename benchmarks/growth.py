"""What a token costs the server, and how much memory it holds, as its work grows in three ways.

    python -m benchmarks.growth --data ../shared/data                   # some three minutes
    python -m benchmarks.growth --data ../shared/data --most 100000     # some minutes more
    python -m benchmarks.growth --data ../shared/data --quick

More sentences one after another, 1,000 to --most; more callers at once, 1 to 512; longer sources, 10 to 500 tokens in
one segment. Cost is processor time of the server's process. docs/benchmarks-online.md defines it all. Writes
OUTPUT.json, OUTPUT.md and OUTPUT.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.growth_report import markdown, plot
from benchmarks.load import LoadResult, main_thread_seconds, measured
from benchmarks.machine import machine_facts, use_cores
from benchmarks.online_workload import SCENARIOS, Workload
from benchmarks.peers.environments import ROOT
from benchmarks.server_process import NO_REFUSAL, ServerProcess, memory_bytes, running_server
from service.pb.translation.v1 import translation_pb2 as pb
from service.segments import Encode, split_item
from service.tokenizer import Tokenizer

GROWTHS = ("sentences", "callers", "source tokens")
SENTENCES = (1_000, 10_000, 100_000)
ITEMS_A_CALL = 64
BULK_CALLERS = 8
CALLERS = (1, 4, 16, 64, 256, 512)
SOURCE_TOKENS = (10, 20, 50, 100, 200, 350, 500)
LONGEST = 512
"""Source and target tokens of the server for long sources."""
LENGTH_CALLERS = 32
MIN_LENGTH_CALLS = 64
FIRST_WORD = "the"
"""Of every long source: one token. (What the first word of a text takes can be less than what it takes inside.)"""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much to measure of each."""

    most_sentences: int
    """Steps of SENTENCES up to it."""
    caller_sentences: int
    """Sentences for each number of callers."""
    length_tokens: int
    """Target tokens for each length, at least."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a growth."""

    size: int
    """Sentences, callers, or source tokens."""
    calls: int
    """Calls that were answered."""
    num_source_tokens: int
    """Of all of them."""
    num_target_tokens: int
    """Of all of them."""
    wall_seconds: float
    """How long it took."""
    server_cpu_seconds: float
    """Processor time of the server, for all of it."""
    event_loop_cpu_seconds: float
    """Of that, its event loop's: texts, messages and gRPC. The rest is the engines' and gRPC's own threads."""
    client_cpu_seconds: float
    """Processor time of the load generator, for all of it."""
    p50_seconds: float
    """Latency of a call."""
    p95_seconds: float
    """Latency of a call."""
    encode_seconds: float
    """Time of the server's encoder runs, over all engines."""
    step_seconds: float
    """Time of its steps, encoder runs included, over all engines."""
    rows_a_step: float
    """Mean rows of a decoding step."""
    memory_bytes: dict[str, int]
    """Resident memory at the end, "now" and "peak"."""


def measured_step(server: ServerProcess, size: int, messages: Sequence[bytes], callers: int) -> Step:
    """Sends all messages from so many callers.

    Raises:
        RuntimeError: when a call failed: a growth is of work that was done.
    """
    before, loop_before = server.metrics(), main_thread_seconds(server.pid)
    result: LoadResult = measured(server.address, server.pid, messages, None, offered_per_second=0.0, callers=callers)
    after, loop_after = server.metrics(), main_thread_seconds(server.pid)
    if result.failures:
        raise RuntimeError(f"Every call must be answered, but of {result.calls} these failed: {result.failures}.")

    def grown(name: str) -> float:
        return after[f"dragoman_{name}"] - before[f"dragoman_{name}"]

    return Step(
        size=size,
        calls=result.calls,
        num_source_tokens=result.num_source_tokens,
        num_target_tokens=result.num_target_tokens,
        wall_seconds=result.wall_seconds,
        server_cpu_seconds=result.server_cpu_seconds * result.calls,
        event_loop_cpu_seconds=loop_after - loop_before,
        client_cpu_seconds=result.client_cpu_seconds * result.calls,
        p50_seconds=result.p50_seconds,
        p95_seconds=result.p95_seconds,
        encode_seconds=grown("encode_seconds_sum"),
        step_seconds=grown("step_seconds_sum"),
        rows_a_step=grown("rows_per_step_sum") / grown("rows_per_step_count"),
        memory_bytes=memory_bytes(server.pid),
    )


def training_sentences(data: Path, count: int) -> list[str]:
    """So many lines of the docs training set, each once, in random order.

    Raises:
        ValueError: when there are not as many.
    """
    with gzip.open(data / "docs-enzh" / "train.tsv.gz", "rt", encoding="utf-8") as lines:
        sources = list(dict.fromkeys(line.split("\t", 1)[0] for line in lines))
    if len(sources) < count:
        raise ValueError(f"There must be {count} sentences, but there are {len(sources)}.")
    return random.Random(1).sample(sources, count)


def more_sentences(server: ServerProcess, data: Path, effort: Effort) -> list[Step]:
    """One server translates ever more: eight callers with 64 items a call. No sentence comes twice."""
    sizes = [size for size in SENTENCES if size <= effort.most_sentences] or [effort.most_sentences]
    sentences = iter(training_sentences(data, sum(sizes)))
    steps = []
    for size in sizes:
        items = [next(sentences) for _ in range(size)]
        messages = [
            pb.TranslateTextRequest(contents=items[start : start + ITEMS_A_CALL]).SerializeToString()
            for start in range(0, size, ITEMS_A_CALL)
        ]
        steps.append(measured_step(server, size, messages, BULK_CALLERS))
    return steps


def more_callers(server: ServerProcess, workload: Workload, effort: Effort) -> list[Step]:
    """Ever more callers with a sentence a call, each waiting for its answers; the same sentences each time."""
    steps = []
    for callers in CALLERS:
        messages = workload.messages(SCENARIOS[0], max(effort.caller_sentences, 4 * callers), seed=1)
        steps.append(measured_step(server, callers, messages, callers))
    return steps


def text_of(length: int, words: Sequence[tuple[str, int]], chance: random.Random) -> str:
    """Words without punctuation that have `length` tokens together, the end of sentence included.

    Args:
        length: at least 2.
        words: each with its number of tokens, as `words_of` counts them.
        chance: draws the words.
    """
    single = [word for word, tokens in words if tokens == 1]
    taken = [FIRST_WORD]
    left = length - 2
    while left > 0:
        word, tokens = chance.choice(words)
        if tokens > left:
            word, tokens = chance.choice(single), 1
        taken.append(word)
        left -= tokens
    return " ".join(taken)


def words_of(sentences: Sequence[str], encode: Encode) -> list[tuple[str, int]]:
    """The words of letters alone in sentences, in lower case, with the tokens each adds to what stands before it."""
    found = {word.lower() for sentence in sentences for word in sentence.split() if word.isascii() and word.isalpha()}
    before = len(encode(FIRST_WORD))
    return [(word, len(encode(f"{FIRST_WORD} {word}")) - before) for word in sorted(found)]


def longer_sources(server: ServerProcess, workload: Workload, encode: Encode, effort: Effort) -> list[Step]:
    """Ever longer sources of one segment, with as many target tokens, which are forced; 32 callers.

    Raises:
        RuntimeError: when a text is not the one segment it must be.
    """
    words = words_of(workload.sentences, encode)
    steps = []
    for length in SOURCE_TOKENS:
        chance = random.Random(length)
        options = pb.DecodingOptions(max_target_tokens=length, min_target_tokens=length - 1, guards_repetition=False)
        messages = []
        for _ in range(max(MIN_LENGTH_CALLS, effort.length_tokens // length)):
            text = text_of(length, words, chance)
            found = [len(segment.source_ids) for segment in split_item(text, encode, LONGEST)]
            if found != [length]:
                raise RuntimeError(f"A text must be one segment of {length} tokens, but has {found}.")
            messages.append(pb.TranslateTextRequest(contents=[text], decoding_options=options).SerializeToString())
        step = measured_step(server, length, messages, LENGTH_CALLERS)
        if step.num_target_tokens != length * step.calls:
            raise RuntimeError(f"{step.calls} answers of {length} tokens must come, but {step.num_target_tokens} did.")
        steps.append(step)
    return steps


def warm(server: ServerProcess, workload: Workload) -> None:
    """A few calls of every length, so that what is made once has been made."""
    measured_step(server, 0, workload.messages(SCENARIOS[0], 128, seed=2), BULK_CALLERS)


def arguments_of(command_line: Sequence[str]) -> argparse.Namespace:
    """The command line, read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with docs-enzh, tatoeba-enzh, flores-enzh")
    parser.add_argument("--models", type=Path, default=Path("models"), help="bundles to serve (default: models)")
    parser.add_argument("--bundle", default="en-zh", help="the one that is measured (default: en-zh)")
    parser.add_argument("--most", type=int, default=10_000, help="sentences one after another (default: 10000)")
    parser.add_argument("--growth", choices=GROWTHS, action="append", help="only this (repeatable)")
    parser.add_argument("--quick", action="store_true", help="1,000 sentences, and less of the others")
    parser.add_argument("--cores", type=int, default=2, help="for the server and the load generator (default: 2)")
    parser.add_argument("--output", type=Path, default=Path("build/bench/growth"), help="files, less their suffix")
    return parser.parse_args(command_line)


def main() -> int:
    arguments = arguments_of(sys.argv[1:])
    use_cores(arguments.cores)
    os.environ.pop("OMP_NUM_THREADS", None)  # the server sets its own threads
    effort = Effort(most_sentences=arguments.most, caller_sentences=1024, length_tokens=24_000)
    if arguments.quick:
        effort = Effort(most_sentences=1_000, caller_sentences=384, length_tokens=6_000)
    bundle = arguments.models / arguments.bundle
    workload = Workload(arguments.data, bundle)
    encode = Tokenizer.load(bundle / "tokenizer").encode_source
    long_sources = ("--max-source-tokens", str(LONGEST), "--max-target-tokens", str(LONGEST))
    growths = {}
    for name in arguments.growth or GROWTHS:
        with running_server(
            arguments.models, *NO_REFUSAL, *(long_sources if name == "source tokens" else ())
        ) as server:
            warm(server, workload)
            if name == "sentences":
                growths[name] = more_sentences(server, arguments.data, effort)
            elif name == "callers":
                growths[name] = more_callers(server, workload, effort)
            else:
                growths[name] = longer_sources(server, workload, encode, effort)
    result: dict[str, Any] = {
        "machine": machine_facts(ROOT),
        "effort": dataclasses.asdict(effort),
        "growths": {name: [dataclasses.asdict(step) for step in steps] for name, steps in growths.items()},
    }
    table = markdown(result)
    output: Path = arguments.output
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(table, encoding="utf-8")
    plot(result, output.with_suffix(".png"))
    print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
