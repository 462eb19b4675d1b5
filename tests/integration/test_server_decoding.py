"""Every decoding option through a real server process, over a bundle that copies its source."""

import asyncio
import io
import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.bundle import load_bundle
from service.cli import main
from service.client import (
    AsyncClient,
    Client,
    DecodingOptions,
    InvalidRequestError,
    Sampling,
    Segment,
    Translation,
    calls,
)
from service.tokenizer import EOS_ID
from tests.integration.serving import ServerProcess, server_process
from tests.synthetic.bundle import sentences

TEXT = "Bado gimu nara 12?"


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that the tests of this module share."""
    with server_process(models, tmp_path_factory.mktemp("server"), "--log-requests", "--log-level", "debug") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as made:
        yield made


def one(client: Client, text: str = TEXT, **options: object) -> Segment:
    """The only segment of a text."""
    (translation,) = client.translate([text], options=DecodingOptions(**options))  # type: ignore[arg-type]
    (segment,) = translation.segments
    return segment


def test_tokens_and_scores(client: Client) -> None:
    segment = one(client)
    assert "".join(segment.target_tokens[:-1]).replace("▁", " ").strip() == TEXT
    assert segment.target_tokens[-1] == "</s>"
    assert len(segment.target_tokens) == segment.num_target_tokens == len(segment.token_log_probabilities)
    assert segment.score == pytest.approx(math.fsum(segment.token_log_probabilities), abs=1e-5)
    assert segment.normalized_score == pytest.approx(segment.score / segment.num_target_tokens, abs=1e-5)
    assert (segment.alignment, segment.hypotheses) == (None, ())


def test_the_server_tells_what_holds_for_options_left_out(client: Client) -> None:
    info = client.info()
    defaults = info.models[0].default_decoding_options
    assert (defaults.beam_size, defaults.length_penalty, defaults.guards_repetition) == (1, 1.0, True)
    assert info.limits.max_beam_size == 16
    assert one(client, beam_size=defaults.beam_size, length_penalty=defaults.length_penalty) == one(client)


@pytest.mark.parametrize("num_hypotheses", [1, 3, 4])
def test_n_best(client: Client, num_hypotheses: int) -> None:
    segment = one(client, beam_size=4, num_hypotheses=num_hypotheses, length_penalty=0.6)
    assert segment.translated_text == TEXT
    if num_hypotheses == 1:
        assert segment.hypotheses == ()
        return
    assert len(segment.hypotheses) == num_hypotheses
    first = segment.hypotheses[0]
    assert (first.text, first.score, first.target_tokens) == (TEXT, segment.score, segment.target_tokens)
    ranked = [hypothesis.normalized_score for hypothesis in segment.hypotheses]
    assert ranked == sorted(ranked, reverse=True)
    assert len({hypothesis.target_tokens for hypothesis in segment.hypotheses}) == num_hypotheses
    for hypothesis in segment.hypotheses:
        length = len(hypothesis.target_tokens)
        assert hypothesis.normalized_score == pytest.approx(hypothesis.score / length**0.6, abs=1e-4)


def test_alignment(client: Client) -> None:
    segment = one(client, beam_size=2, num_hypotheses=2, with_alignment=True)
    for alignment in (segment.alignment, segment.hypotheses[0].alignment):
        assert alignment is not None
        assert len(alignment.weights) == segment.num_target_tokens
        assert all(len(row) == segment.num_source_tokens == len(alignment.source_tokens) for row in alignment.weights)
        assert all(sum(row) == pytest.approx(1, abs=1e-4) for row in alignment.weights)
        best = [max(range(len(row)), key=row.__getitem__) for row in alignment.weights]
        assert best == list(range(segment.num_source_tokens))  # it copies
        assert alignment.source_words == alignment.target_words == ("Bado", "gimu", "nara", "12", "?")
        assert [(p.source_word, p.target_word) for p in alignment.word_pairs] == [(i, i) for i in range(5)]


def test_a_sample_depends_on_its_seed_alone(client: Client) -> None:
    def sample(seed: int, *company: str) -> Segment:
        options = DecodingOptions(sampling=Sampling(temperature=20.0, seed=seed))
        return client.translate([TEXT, *company], options=options)[0].segments[0]

    samples = [sample(seed) for seed in range(4)]
    assert len({segment.target_tokens for segment in samples}) == 4
    assert [sample(seed, *sentences(20)) for seed in range(4)] == samples
    assert one(client, sampling=Sampling(top_k=1, temperature=20.0, seed=3)).translated_text == TEXT
    assert one(client, sampling=Sampling(top_p=1e-9, temperature=20.0)).translated_text == TEXT
    several = one(client, sampling=Sampling(temperature=20.0), num_hypotheses=3)
    assert len({hypothesis.target_tokens for hypothesis in several.hypotheses}) == 3


def test_lengths(client: Client) -> None:
    most = one(client).num_target_tokens
    cut = one(client, max_target_tokens=3)
    assert (cut.num_target_tokens, cut.finish_reason, cut.flags) == (3, "LENGTH", ("TRUNCATED",))
    assert one(client, max_target_ratio=0.5).num_target_tokens == math.ceil(0.5 * most)
    assert one(client, min_target_tokens=most + 4, guards_repetition=False).num_target_tokens >= most + 4
    long = one(client, min_target_ratio=1.5, guards_repetition=False)
    assert long.num_target_tokens >= math.floor(1.5 * most)


def test_what_is_kept_out(client: Client) -> None:
    plain = one(client)
    assert "nara" in plain.translated_text
    assert "nara" not in one(client, suppressed_texts=["nara"]).translated_text
    token = plain.target_tokens[1]
    assert token not in one(client, suppressed_tokens=[token]).target_tokens
    assert one(client, no_unknown=True) == plain
    loop = "bado gimu " * 6
    assert one(client, loop.strip(), guards_repetition=False).translated_text.split().count("gimu") >= 4
    tokens = one(client, loop.strip(), no_repeat_ngram_size=2, guards_repetition=False).target_tokens
    pairs = list(itertools.pairwise(tokens))
    assert len(set(pairs)) == len(pairs)
    assert one(client, loop.strip(), repetition_penalty=10.0, guards_repetition=False).target_tokens != tokens


def test_prefixes_belong_to_the_first_segment_with_text(client: Client) -> None:
    texts = ["\n Bado gimu. Nara tesi.", "Lopu."]
    options = DecodingOptions(target_prefixes=["gimu gimu", ""])
    first, second = client.translate(texts, options=options)
    assert first.segments[1].translated_text.strip().startswith("gimu gimu")
    assert first.segments[2].translated_text == "Nara tesi."
    assert second.text == "Lopu."
    biased = client.translate(texts, options=replace(options, prefix_bias=1e-6))[0]
    assert biased.text == texts[0]  # the model is too sure to follow
    bent = client.translate(texts, options=replace(options, prefix_bias=0.999999))[0]
    assert bent.segments[1].translated_text.strip().startswith("gimu gimu")


def test_alternatives_begin_differently(client: Client) -> None:
    prefix = "Bado"
    segment = one(client, with_alternatives=True, num_hypotheses=5, target_prefixes=[prefix])
    assert len(segment.hypotheses) == 5
    assert all(hypothesis.text.startswith(prefix) for hypothesis in segment.hypotheses)
    num_prefix = next(
        i
        for i, tokens in enumerate(zip(*(h.target_tokens for h in segment.hypotheses), strict=False))
        if len(set(tokens)) > 1
    )
    assert len({hypothesis.target_tokens[num_prefix] for hypothesis in segment.hypotheses}) == 5


def test_a_loop_is_decoded_again_and_flagged_either_way(client: Client, models: Path) -> None:
    """With one token to choose from, and a length to reach, the model can do nothing but repeat itself."""
    tokenizer = load_bundle(models / "synthetic").tokenizer
    allowed = [*tokenizer.encode_target("a")[-1:], EOS_ID]
    pieces = tokenizer.target_pieces(i for i in range(tokenizer.target_vocab_size) if i not in allowed)
    options = {"suppressed_tokens": pieces, "min_target_tokens": 30, "max_target_tokens": 40}
    raw = one(client, guards_repetition=False, **options)
    assert len(set(raw.target_tokens[:30])) == 1
    assert "REPETITION" in raw.flags
    guarded = one(client, **options)
    assert "REPETITION" in guarded.flags
    assert guarded.num_target_tokens < 10  # no three of the same a second time: it could only end


def test_every_bad_option_is_named(client: Client) -> None:
    options = DecodingOptions(
        beam_size=17, patience=0.0, prefix_bias=0.5, suppressed_tokens=["nothing"], sampling=Sampling(top_p=7.0)
    )
    with pytest.raises(InvalidRequestError) as caught:
        client.translate(["a"], options=options)
    with pytest.raises(InvalidRequestError) as streamed:
        list(client.stream(["a"], options=options))
    assert streamed.value.violations == caught.value.violations
    assert {violation.field.removeprefix("decoding_options.") for violation in caught.value.violations} == {
        "suppressed_tokens[0]",
        "beam_size",
        "patience",
        "prefix_bias",
        "target_prefixes",
        "sampling.top_p",
    }


OPTIONS = [
    DecodingOptions(),
    DecodingOptions(beam_size=4, num_hypotheses=2, with_alignment=True),
    DecodingOptions(beam_size=3, no_repeat_ngram_size=2, early_stopping=False),
    DecodingOptions(sampling=Sampling(temperature=10.0, seed=5)),
    DecodingOptions(max_target_tokens=4),
    DecodingOptions(with_alternatives=True, num_hypotheses=3),
    DecodingOptions(repetition_penalty=3.0, guards_repetition=False),
]


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
def test_a_stream_joined_is_the_answer_to_a_call(client: Client, options: DecodingOptions) -> None:
    texts = [*sentences(5, seed=7), " \n", "", "Bado gimu. Nara {x}?\n\n🙂 e\u0301 这。是。 Lopu. ", "bado gimu " * 20]
    expected = client.translate(texts, options=options)
    with client.stream(texts, options=options) as stream:
        by_segment = [[""] * len(translation.segments) for translation in expected]
        reasons = [["" for _ in translation.segments] for translation in expected]
        for piece in stream:
            assert reasons[piece.text_index][piece.segment_index] == ""  # none after the last
            by_segment[piece.text_index][piece.segment_index] += piece.text
            reasons[piece.text_index][piece.segment_index] = piece.finish_reason or ""
    assert stream.texts == [translation.text for translation in expected]
    assert by_segment == [[segment.translated_text for segment in made.segments] for made in expected]
    assert reasons == [[segment.finish_reason for segment in translation.segments] for translation in expected]
    assert without_cost(stream.translations) == without_cost(expected)


def without_cost(translations: list[Translation]) -> list[object]:
    return [(translation.text, translation.model, translation.segments) for translation in translations]


async def test_an_asyncio_stream_is_the_same(server: ServerProcess) -> None:
    async with AsyncClient(server.address) as client:
        text = "".join([piece.text async for piece in client.stream([TEXT])])
        assert text == TEXT


def test_scores_are_those_of_a_search_to_the_bit(client: Client) -> None:
    texts = [*sentences(10, seed=8), TEXT]
    options = DecodingOptions(length_penalty=0.6, coverage_penalty=0.3, with_alignment=True)
    for search in (options, replace(options, beam_size=4)):
        found = [translation.segments[0] for translation in client.translate(texts, options=search)]
        scores = client.score(texts, [segment.translated_text for segment in found], options=options)
        for segment, score in zip(found, scores, strict=True):
            assert score.target_tokens == segment.target_tokens
            assert score.token_log_probabilities == segment.token_log_probabilities
            assert (score.score, score.normalized_score) == (segment.score, segment.normalized_score)
            assert score.alignment == segment.alignment
            assert score.num_source_tokens == segment.num_source_tokens


def test_a_worse_translation_has_a_worse_score(client: Client) -> None:
    good, bad, empty = client.score([TEXT] * 3, [TEXT, "Nara gimu.", ""])
    assert good.score > empty.score
    assert good.score > bad.score
    assert (empty.target_tokens, empty.normalized_score) == (("</s>",), empty.score)
    assert good.metadata.num_target_tokens == sum(len(score.target_tokens) for score in (good, bad, empty))


def test_what_cannot_be_scored(client: Client) -> None:
    limit = client.info().limits.max_source_tokens_per_segment
    with pytest.raises(InvalidRequestError) as caught:
        client.score(["bado " * limit, " ", "a"], ["x", "y", "bado " * 300], options=DecodingOptions(beam_size=2))
    assert [violation.field for violation in caught.value.violations] == [
        "contents[1]",
        "contents[0]",
        "translated_texts[2]",
        "decoding_options.beam_size",
    ]


async def test_any_options_beside_any_others_change_nothing(server: ServerProcess) -> None:
    """Calls with all kinds of options at once, in random order, are answered as alone."""
    texts = sentences(6, seed=9)
    cases = [(text, options) for text in texts for options in OPTIONS]
    async with AsyncClient(server.address) as client:

        async def segments(text: str, options: DecodingOptions) -> tuple[Segment, ...]:
            return (await client.translate([text], options=options))[0].segments

        alone = [await segments(*case) for case in cases]
        order = random.Random(3).sample(range(len(cases)), len(cases))
        together = await asyncio.gather(*(segments(*cases[i]) for i in order))
    assert together == [alone[i] for i in order]


def test_no_text_of_options_or_scores_in_logs_or_metrics(server: ServerProcess, client: Client) -> None:
    options = DecodingOptions(target_prefixes=["quetzal"], suppressed_texts=["geheim"])
    assert client.translate(["Bado."], options=options)[0].text.startswith("quetzal")
    client.score(["Xylophon"], ["quetzal"])
    list(client.stream(["Xylophon quetzal"]))
    with pytest.raises(InvalidRequestError) as caught:
        client.translate(
            ["a"], options=DecodingOptions(suppressed_tokens=["geheim"], suppressed_texts=["Xylophon" * 9])
        )
    for written in (server.errors(), server.metrics_text(), str(caught.value), str(caught.value.violations)):
        for word in ("Xylophon", "quetzal", "geheim"):
            assert word not in written


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(server: ServerProcess, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs a command of the command line: its exit code and what it printed."""

    def run(name: str, *arguments: str, text: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        exit_code = main([name, "--address", server.address, *arguments])
        printed = capsys.readouterr()
        return exit_code, printed.out, printed.err

    return run


def test_the_command_line_streams_the_same_text(cli: Cli) -> None:
    text = "Bado gimu. Nara?\n\nLopu."
    plain = cli("translate", text)
    assert plain == (0, text + "\n", "")
    assert cli("translate", "--stream", text) == plain
    assert cli("translate", "--stream", text=text + "\n") == plain


def test_the_command_line_asks_for_bulk_and_for_nothing_else(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for name in ("build_request", "build_score_request"):
        build = getattr(calls, name)

        def noting(*texts: Any, build: Callable[..., Any] = build, **fields: Any) -> Any:
            asked.append(fields["priority"])
            return build(*texts, **fields)

        monkeypatch.setattr(calls, name, noting)
    plain = cli("translate", "Bado gimu.")
    assert cli("translate", "Bado gimu.", "--priority", "bulk") == plain
    assert cli("translate", "Bado gimu.", "--priority", "bulk", "--stream") == plain
    assert cli("score", "Bado.", "Bado.", "--priority", "bulk") == cli("score", "Bado.", "Bado.")
    assert asked == ["interactive", "bulk", "bulk", "bulk", "interactive"]


def test_the_command_line_prints_results_and_alignments(cli: Cli, tmp_path: Path) -> None:
    picture = tmp_path / "picture.svg"
    flags = ("--beam-size", "3", "--n-best", "3", "--alignment", "--alignment-plot", str(picture), "-v")
    exit_code, printed, errors = cli("translate", "Bado gimu. Nara?", *flags)
    assert (exit_code, errors) == (0, "")
    lines = printed.splitlines()
    assert lines[0] == "Bado gimu. Nara?"
    assert lines.count("[1] 'Bado gimu.'") == lines.count("[2] 'Nara?'") == 2  # results and alignments
    assert sum("←" in line for line in lines) == 5
    assert any("normalized" in line for line in lines)
    assert "source tokens" in picture.read_text(encoding="utf-8")
    exit_code, _, errors = cli("translate", "Bado.", "--alignment-plot", str(tmp_path / "no" / "where.svg"))
    assert (exit_code, "cannot be" in errors) == (1, True)


def test_the_command_line_scores(cli: Cli, client: Client) -> None:
    pairs = [("Bado gimu.", "Bado gimu."), ("Nara?", "Lopu.")]
    expected = client.score(*zip(*pairs, strict=True))
    lines = [f"{score.score:.4f}\t{score.normalized_score:.4f}\n" for score in expected]
    assert cli("score", *pairs[0]) == (0, lines[0], "")
    assert cli("score", text="".join("\t".join(pair) + "\n" for pair in pairs)) == (0, "".join(lines), "")
    exit_code, printed, _ = cli("score", *pairs[0], "-v", "--alignment", "--length-penalty", "0")
    assert exit_code == 0
    assert printed.startswith(f"{expected[0].score:.4f}\t{expected[0].score:.4f}\n")
    assert "</s>" in printed
    assert "←" in printed
    assert cli("score", "only one")[0] == 2
    assert cli("score", text="no tab\n") == (2, "", "Each line must have one tab, but line 1 has not.\n")
    exit_code, _, errors = cli("score", "Bado.", " bado" * 300)
    assert exit_code == 1
    assert "translated_texts[0]: It must have at most" in errors


def test_the_command_line_names_every_bad_option(cli: Cli) -> None:
    exit_code, printed, errors = cli("translate", "Bado.", "--beam-size", "99", "--patience", "0", "--top-k", "-1")
    assert (exit_code, printed) == (1, "")
    for field in ("beam_size", "patience", "sampling.top_k"):
        assert f"\n  decoding_options.{field}: It must be" in errors


def test_the_command_line_tells_a_models_defaults(cli: Cli) -> None:
    assert "decoding: min_target_tokens 0, min_target_ratio 0.0, beam_size 1," in cli("models")[1]
