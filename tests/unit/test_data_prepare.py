"""A preparation accounts for every line, saves all or nothing, and says what is wrong in words."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.synthetic.toy_language import sentence_pairs
from training.config import Config, CorpusConfig, DataConfig, FilterConfig, ModelConfig, TokenizerConfig, TrainConfig
from training.corpus import CorpusError
from training.data import PREPARED_NAME, PreparedData, Split, SplitWriter
from training.prepare import prepare
from training.prepare_report import PrepareReport
from training.train_tokenizer import reserved_symbols

TOKENIZER = TokenizerConfig(vocab_size=380, character_coverage=1.0)


def config_of(*corpora: CorpusConfig, filters: FilterConfig | None = None, max_positions: int = 1024) -> Config:
    return Config(
        name="prepared",
        data=DataConfig(
            source_language="en",
            target_language="zh",
            corpora=corpora,
            validation=(CorpusConfig(name="dev", tsv=("dev.tsv",)),),
            filters=filters or FilterConfig(drop_duplicates=False),
        ),
        tokenizer=TOKENIZER,
        model=ModelConfig(max_positions=max_positions),
        train=TrainConfig(max_updates=1),
    )


GOOD = CorpusConfig(
    name="good", tsv=("good.tsv",), weight=1.5, licence="CC0-1.0", attributions=("Made by this test", "for itself")
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, seed in (("good", 1), ("dev", 2)):
        lines = [f"{pair.source}\t{pair.target}\n" for pair in sentence_pairs(150, seed=seed)]
        (tmp_path / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
    return tmp_path


def run(config: Config, root: Path, *, force: bool = False) -> PrepareReport:
    return prepare(config, root / "run", root=root, force=force, say=lambda _: None)


def test_every_line_is_kept_or_accounted_for(root: Path) -> None:
    extra = [
        "no tab",
        "copied\tcopied",
        "a b c\t返回",
        "a b c\t返回",
        "\t返回",
        "x" * 300 + "\t返回",
        "1 " * 90 + "\t返回",
    ]
    (root / "extra.tsv").write_text("\n".join(extra) + "\n", encoding="utf-8")
    filters = FilterConfig(max_characters=200, max_tokens=150)
    good, report = run(config_of(GOOD, CorpusConfig(name="extra", tsv=("extra.tsv",)), filters=filters), root).corpora
    distinct = {(pair.source, pair.target) for pair in sentence_pairs(150, seed=1)}
    assert (good.num_kept, good.dropped) == (len(distinct), {"duplicate": 150 - len(distinct)})
    assert (report.num_lines, report.num_kept, report.num_malformed) == (7, 1, 1)
    assert report.dropped == {"empty": 1, "too_long": 1, "copied_source": 1, "duplicate": 1, "too_many_tokens": 1}
    assert report.malformed_examples[0].startswith(f"{root / 'extra.tsv'}:1: ")
    assert "1  malformed lines" in report.to_text()


def test_the_report_is_saved_and_counts_what_is_on_disk(root: Path) -> None:
    report = run(config_of(GOOD), root)
    data = PreparedData.open(root / "run")
    assert data.report == report
    assert PrepareReport.from_dict(report.to_dict()) == report
    batches = list(data.validation_batches("dev", 1000))
    assert sum(int(batch.source_lengths.sum()) for batch in batches) == report.validation[0].num_source_tokens
    assert sum(batch.num_target_tokens for batch in batches) == report.validation[0].num_target_tokens
    assert report.tokenizer_digest == data.tokenizer.digest
    assert data.num_train_pairs == report.corpora[0].num_kept == 150
    assert (report.corpora[0].licence, report.corpora[0].attributions) == (GOOD.licence, GOOD.attributions)


def test_reserved_symbols_reach_the_vocabulary(root: Path) -> None:
    run(config_of(GOOD), root)
    tokenizer = PreparedData.open(root / "run").tokenizer
    symbols = reserved_symbols(TOKENIZER)
    assert symbols[0] == "<ph0>"
    assert symbols[-1] == "<tag9>"
    assert [tokenizer.target_pieces([tokenizer.reserved_target_id(s)])[0] for s in symbols] == list(symbols)


def test_preparing_again_needs_force_and_gives_the_same(root: Path) -> None:
    first = run(config_of(GOOD), root)
    with pytest.raises(FileExistsError, match="--force"):
        run(config_of(GOOD), root)
    again = run(config_of(GOOD), root, force=True)
    assert dataclasses.replace(again, seconds=first.seconds) == first


def test_held_out_pairs_are_not_filtered_but_must_fit_the_model(root: Path) -> None:
    lines = ["copied\tcopied", "copied\tcopied", "返回 " * 40 + "\t返回"]
    (root / "dev.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    report = run(config_of(GOOD, filters=FilterConfig(max_tokens=30), max_positions=40), root)
    (held_out,) = report.validation
    assert (held_out.num_lines, held_out.num_kept, held_out.dropped) == (3, 2, {"too_many_tokens": 1})
    assert len(PreparedData.open(root / "run").validation_texts("dev")) == 3  # translated and scored they are all


def test_missing_files_are_all_named_before_anything_is_written(root: Path) -> None:
    (root / "dev.tsv").unlink()
    with pytest.raises(CorpusError) as caught:
        run(config_of(CorpusConfig(name="gone", tsv=("gone.tsv",))), root)
    assert "gone.tsv" in str(caught.value)
    assert "dev.tsv" in str(caught.value)
    assert not (root / "run").exists()


@pytest.mark.parametrize("text", ["", "same\tsame\n", "no tab\n"])
def test_a_corpus_that_leaves_nothing_is_refused_with_the_account(root: Path, text: str) -> None:
    (root / "empty.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(CorpusError, match=r"leave a pair to train on(.|\n)*empty: 0 pairs kept"):
        run(config_of(CorpusConfig(name="empty", tsv=("empty.tsv",))), root)
    assert not (root / "run" / PREPARED_NAME).exists()


def test_a_run_that_was_not_prepared_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run `python -m training prepare` first"):
        PreparedData.open(tmp_path)


@pytest.mark.parametrize(("vocab_size", "item_size"), [(65_536, 2), (65_537, 4)])
def test_ids_take_two_bytes_while_they_fit(tmp_path: Path, vocab_size: int, item_size: int) -> None:
    writer = SplitWriter(tmp_path / "split", vocab_size, vocab_size)
    pairs = [([vocab_size - 1, 5, 3], [7]), ([3], []), ([4, 3], [vocab_size - 1, 9])]
    for source, target in pairs:
        writer.add(source, target)
    writer.close()
    assert (tmp_path / "split" / "source.ids").stat().st_size == 6 * item_size
    split = Split(tmp_path / "split")
    assert [(split.source(i).tolist(), split.target(i).tolist()) for i in range(len(split))] == pairs
    assert split.target_lengths(np.arange(3)).tolist() == [2, 1, 3]


def test_ids_that_were_cut_off_are_refused(tmp_path: Path) -> None:
    writer = SplitWriter(tmp_path / "split", 100, 100)
    writer.add([4, 5, 3], [6])
    writer.close()
    path = tmp_path / "split" / "source.ids"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"must have 6 bytes, but has 4: run `prepare` again"):
        Split(tmp_path / "split")
