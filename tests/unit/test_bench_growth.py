"""What the growths are made of: texts of an exact length, and how a growth is judged."""

import gzip
import random
from pathlib import Path

import pytest

from benchmarks.growth import text_of, training_sentences, words_of
from benchmarks.growth_report import markdown, verdict


def encode(text: str) -> list[int]:
    """A token for every three letters begun, and the end of sentence; one less for a text's first word of many."""
    words = text.split()
    return [0] * (sum(-(-len(word) // 3) for word in words) - (len(words[0]) > 3) + 1)


def test_words_are_counted_as_they_are_inside_a_text() -> None:
    assert words_of(["The cat, slept! Well", "cat 42 naïve extraordinary"], encode) == [
        ("cat", 1),
        ("extraordinary", 5),
        ("the", 1),
        ("well", 2),
    ]


@pytest.mark.parametrize("length", [2, 3, 10, 57, 500])
def test_a_text_has_exactly_the_tokens_asked_for(length: int) -> None:
    words = words_of(["cat extraordinary well wonderful"], encode)
    texts = {text_of(length, words, random.Random(seed)) for seed in range(5)}
    assert all(len(encode(text)) == length for text in texts)
    assert all(text.replace(" ", "").isalpha() for text in texts)
    assert len(texts) > 1 or length < 10


def test_training_sentences_are_each_drawn_once(tmp_path: Path) -> None:
    (tmp_path / "docs-enzh").mkdir()
    with gzip.open(tmp_path / "docs-enzh" / "train.tsv.gz", "wt", encoding="utf-8") as file:
        file.writelines(f"sentence {number % 20}\tsatz\tsource\tHT\tMIT\n" for number in range(40))
    drawn = training_sentences(tmp_path, 20)
    assert sorted(drawn) == sorted(f"sentence {number}" for number in range(20))
    with pytest.raises(ValueError, match="There must be 21 sentences, but there are 20"):
        training_sentences(tmp_path, 21)


@pytest.mark.parametrize(
    ("values", "said"), [([2.0, 9.0, 2.2], "flat: 1.10"), ([2.0, 3.0], "grows: 1.50"), ([2.0, 1.0], "falls: 0.50")]
)
def test_a_growth_is_judged_by_its_ends(values: list[float], said: str) -> None:
    assert verdict(values).startswith(said)


def test_a_table_has_the_cost_of_a_token_and_the_memory() -> None:
    def step(size: int, cpu: float, memory: int) -> dict[str, object]:
        return {
            "size": size,
            "calls": 4,
            "num_target_tokens": 1000,
            "wall_seconds": 2.0,
            "server_cpu_seconds": cpu,
            "event_loop_cpu_seconds": cpu / 4,
            "encode_seconds": 0.5,
            "step_seconds": 2.0,
            "rows_a_step": 8.0,
            "p50_seconds": 0.5,
            "p95_seconds": 0.9,
            "memory_bytes": {"now": memory, "peak": memory + 1_000_000},
        }

    machine = {"cores_used": 2, "cpu": "x", "flags": [], "date": "today", "commit": "c"}
    steps = [step(1_000, 0.2, 100_000_000), step(10_000, 0.4, 101_000_000)]
    table = markdown({"machine": machine, "growths": {"sentences": steps}})
    assert "| 1,000 | 4 | 1,000 | 500 | 200 | 50 | 25% | 8.0 | 500 / 900 | 100, 101 |" in table
    assert "Cost grows: 2.00 times; resident memory flat: 1.01 times." in table
