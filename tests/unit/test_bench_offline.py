"""The offline benchmark: its cases, whose speed counts, and what rounds come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.offline_cases import FAST, RANDOM, TRAINED, Case, Peer, Setting, full_cases, quick_cases, settings
from benchmarks.offline_checks import Outcome, check
from benchmarks.offline_report import Entry, Measurement, Results, plot, ratios, table

PEERS = (Peer.DRAGOMAN, Peer.CTRANSLATE2, Peer.PYTORCH)


def case_of(num_sentences: int = 4, *, model: str = TRAINED, batch_size: int = 16, beam_size: int = 1) -> Case:
    return Case(
        model=model, beam_size=beam_size, batch_size=batch_size, num_sentences=num_sentences, peers=PEERS
    )  # fmt: skip


def judged(case: Case, peer: Peer, targets: list[list[int]], plain: list[list[int]], **bleu: float | None) -> Outcome:
    return check(case, peer, targets, plain=plain, **{"bleu": None, "fp32_bleu": None, **bleu})


@pytest.mark.parametrize("cases", [full_cases(2000), quick_cases(2000), full_cases(5)])
def test_every_case_can_be_named_and_compared(cases: list[Case]) -> None:
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert {Peer.DRAGOMAN, Peer.CTRANSLATE2, Peer.CTRANSLATE2_FP32} <= set(case.peers)
        assert case.num_sentences >= 1


def test_the_full_run_has_every_search_and_batch_that_is_promised() -> None:
    found = {(case.model, case.beam_size, case.batch_size) for case in full_cases(2000)}
    assert {(TRAINED, beam, batch) for beam in (1, 4) for batch in (1, 16, 64)} <= found
    assert {(RANDOM, 1, 1), (RANDOM, 1, 16), (RANDOM, 1, 64), (RANDOM, 4, 16)} <= found
    assert {case.num_sentences for case in full_cases(2000) if case.peers == FAST} == {2000}


def test_all_settings_use_no_more_cores_than_there_are() -> None:
    for case in full_cases(2000):
        for peer in case.peers:
            for cores in (1, 2, 4):
                for setting in settings(peer, case, cores):
                    assert setting.workers * setting.threads <= cores
                    assert case.batch_size > 1 or setting.workers == 1


def test_dragoman_and_ctranslate2_choose_among_the_same_settings() -> None:
    for case in full_cases(2000):
        assert settings(Peer.DRAGOMAN, case, 2) == settings(Peer.CTRANSLATE2, case, 2)


def test_an_fp32_peer_must_give_pytorchs_tokens() -> None:
    case = case_of(200)
    plain = [[index, index] for index in range(200)]
    two_differ = [[0], [1], *plain[2:]]
    three_differ = [[0], [1], [2], *plain[3:]]
    assert judged(case, Peer.PYTORCH, plain, plain) == Outcome(same=1.0, bleu=None, problems=())
    assert not judged(case, Peer.CTRANSLATE2_FP32, two_differ, plain).problems
    assert "197" in judged(case, Peer.CTRANSLATE2_FP32, three_differ, plain).problems[0]
    assert not judged(case, Peer.CTRANSLATE2, three_differ, plain).problems  # int8 is judged by BLEU


def test_one_of_few_sentences_may_differ() -> None:
    plain = [[1], [2], [3], [4]]
    assert not judged(case_of(4), Peer.OPTIMUM, [[9], [2], [3], [4]], plain).problems
    assert judged(case_of(4), Peer.OPTIMUM, [[9], [9], [3], [4]], plain).problems


def test_bleu_is_held_to_fp32s_the_closer_the_more_sentences() -> None:
    for count, allowed, refused in ((2000, 0.29, 0.31), (200, 1.4, 1.6)):
        case, targets = case_of(count), [[1]] * count
        assert not judged(case, Peer.DRAGOMAN, targets, [], bleu=48.0 - allowed, fp32_bleu=48.0).problems
        assert judged(case, Peer.DRAGOMAN, targets, [], bleu=48.0 + refused, fp32_bleu=48.0).problems
    assert not judged(case_of(10), Peer.DRAGOMAN, [[1]] * 10, [], bleu=1.0, fp32_bleu=48.0).problems


def test_missing_translations_and_lengths_that_are_not_the_forced_one() -> None:
    assert judged(case_of(3), Peer.DRAGOMAN, [[1]] * 2, []).problems
    case = case_of(2, model=RANDOM)
    assert case.forced_tokens is not None
    whole = [[5] * case.forced_tokens] * 2
    assert not judged(case, Peer.DRAGOMAN, whole, []).problems
    assert judged(case, Peer.DRAGOMAN, [whole[0], whole[1][:-1]], []).problems


def results(problems: tuple[str, ...] = ()) -> Results:
    """Two rounds on a machine that slows down: Dragoman twice and then three times as fast as CTranslate2."""
    case = case_of()
    seconds = {Peer.DRAGOMAN: (1.0, 2.0), Peer.CTRANSLATE2: (2.0, 6.0), Peer.PYTORCH: (10.0, 20.0)}
    outcome = {Peer.DRAGOMAN: problems}
    return Results(
        [
            Measurement(round=number + 1, case=case, peer=peer, seconds=of_peer[number], tokens=120)
            for number in range(2)
            for peer, of_peer in seconds.items()
        ],
        {
            (case, peer): Entry(
                setting=Setting(workers=2, threads=1),
                trials={Setting(workers=2, threads=1): 1.0, Setting(workers=1, threads=2): 4.5},
                peak_bytes=10**8,
                outcome=Outcome(same=1.0, bleu=48.0, problems=outcome.get(peer, ())),
            )
            for peer in seconds
        },
    )


def test_ratios_are_taken_round_by_round() -> None:
    found = results()
    ratio = found.ratio(found.cases[0], Peer.DRAGOMAN, Peer.CTRANSLATE2)
    assert ratio is not None
    assert (ratio.least, ratio.median, ratio.most) == (2.0, 2.5, 3.0)
    rate = found.rate(found.cases[0], Peer.DRAGOMAN)
    assert rate is not None
    assert (rate.least, rate.median, rate.most) == (60.0, 90.0, 120.0)


def test_who_translates_otherwise_has_no_speed() -> None:
    found = results(problems=("BLEU is gone.",))
    case = found.cases[0]
    assert found.rate(case, Peer.DRAGOMAN) is None
    assert found.ratio(case, Peer.PYTORCH, Peer.DRAGOMAN) is None
    assert found.ratio(case, Peer.PYTORCH, Peer.CTRANSLATE2) is not None
    assert found.problems() == [f"{case.name}: Dragoman int8: BLEU is gone."]
    assert "does not count" in table(found)
    assert "cannot be compared" in ratios(found)
    (first, *_) = found.to_dict()["cases"]
    assert first["tokens_per_second"] is None
    assert first["problems"] == ["BLEU is gone."]


def test_the_table_has_every_peer_and_the_raw_rounds_are_kept() -> None:
    found = results()
    text = table(found)
    assert [peer.value in text for peer in PEERS] == [True] * 3
    assert "2.50 (2.00–3.00)" in text
    assert "| 2x1 | 1x2: 4.5 × the time |" in text
    assert "2.50 (2.00–3.00) × CTranslate2 int8; 10.00 (10.00–10.00) × PyTorch fp32" in ratios(found)
    written = found.to_dict()
    assert len(written["rounds"]) == 6
    assert written["cases"][0]["ratio_to_ctranslate2_int8"] == {"median": 2.5, "least": 2.0, "most": 3.0}


def test_a_plot_is_written(tmp_path: Path) -> None:
    plot(results(), tmp_path / "deep" / "plot.png")
    assert (tmp_path / "deep" / "plot.png").read_bytes().startswith(b"\x89PNG")
