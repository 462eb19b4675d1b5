"""What the command line prints about translations and scores."""

from collections.abc import Sequence

from service.client import Alignment, CallMetadata, Segment, TextScore, Translation


def print_hypotheses(segments: Sequence[Segment]) -> None:
    """All results of each segment, best first, with what they were ranked by."""
    for number, segment in enumerate(segments, start=1):
        if segment.hypotheses:
            print(f"\n[{number}] {segment.source_text.strip()!r}")
        for hypothesis in segment.hypotheses:
            print(f"  {hypothesis.normalized_score:8.4f}  {hypothesis.text}")


def print_alignments(segments: Sequence[Segment]) -> None:
    """The pairs of words of each segment."""
    for number, segment in enumerate(segments, start=1):
        if segment.alignment is not None:
            print(f"\n[{number}] {segment.source_text.strip()!r}")
            print_word_pairs(segment.alignment)


def print_word_pairs(alignment: Alignment) -> None:
    """A line for each target word."""
    for pair in alignment.word_pairs:
        source, target = alignment.source_words[pair.source_word], alignment.target_words[pair.target_word]
        print(f"  {pair.weight:5.2f}  {target}  ←  {source}")


def print_details(translation: Translation) -> None:
    """Segments, scores, tokens and timings."""
    for number, segment in enumerate(translation.segments, start=1):
        flags = f"  {' '.join(segment.flags)}" if segment.flags else ""
        print(
            f"\n[{number}] {segment.finish_reason}{flags}  score {segment.score:.4f}, normalized "
            f"{segment.normalized_score:.4f}, {segment.num_source_tokens} source tokens, "
            f"{segment.num_target_tokens} target tokens"
        )
        print(f"    {segment.source_text.strip()!r}\n    {segment.translated_text.strip()!r}")
        if segment.target_tokens:
            print("    " + tokens_with_scores(segment.target_tokens, segment.token_log_probabilities))
    print(f"\nmodel {translation.model} {translation.metadata.model_digest[:12]}")
    print_cost(translation.metadata)


def print_score(score: TextScore, *, is_verbose: bool) -> None:
    """A score on a line, its tokens and word pairs below it where they are wanted."""
    print(f"{score.score:.4f}\t{score.normalized_score:.4f}")
    if is_verbose:
        print("    " + tokens_with_scores(score.target_tokens, score.token_log_probabilities))
    if score.alignment is not None:
        print_word_pairs(score.alignment)


def print_cost(metadata: CallMetadata) -> None:
    """How a call's time was spent."""
    m = metadata
    print(f"request {m.request_id}")
    print(
        f"{m.total_seconds * 1e3:.1f} ms: tokenize {m.tokenize_seconds * 1e3:.1f}, queue {m.queue_seconds * 1e3:.1f}, "
        f"encode {m.encode_seconds * 1e3:.1f}, decode {m.decode_seconds * 1e3:.1f}; "
        f"{m.num_steps} steps, at most {m.max_rows_shared} rows in one"
    )


def tokens_with_scores(tokens: Sequence[str], log_probabilities: Sequence[float]) -> str:
    """Each token with its log-probability."""
    return " ".join(f"{token} {value:.3f}" for token, value in zip(tokens, log_probabilities, strict=True))
