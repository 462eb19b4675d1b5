"""docs/behaviour.md says what the code does: its tables are compared with it."""

import json
import re
from pathlib import Path

from service.config import settings
from service.errors import CHANGE_CODES, TABLE, failure_of
from service.flags import placeholders
from service.options_reader import built_in_defaults
from service.pb.translation.v1 import translation_pb2 as pb
from service.refusals import (
    ChangeRefusedError,
    ClientNotReadingError,
    CredentialsError,
    DeadlineError,
    FieldViolation,
    InvalidRequestError,
    MalformedMessageError,
    NotAllowedError,
    NotServedError,
    OverloadedError,
    UnavailableError,
    UnreachableDeadlineError,
)
from service.segments import split_item
from tests.contract.tables import metrics_rows, rewritten, settings_rows

PAGE = (Path(__file__).parents[2] / "docs" / "behaviour.md").read_text(encoding="utf-8")


def table(first_heading: str) -> list[list[str]]:
    """The rows of the table whose first column is called `first_heading`."""
    lines = PAGE.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split(" | ")])
    return rows


def test_every_setting_and_metric_with_its_default_and_meaning() -> None:
    """`python -m tests.contract.tables --write` writes both tables."""
    assert table("table") == [[cell.strip("`") for cell in row] for row in settings_rows()]
    assert table("metric") == [[cell.strip("`") for cell in row] for row in metrics_rows()]
    assert rewritten(PAGE) == PAGE


def test_writing_the_tables_repairs_them() -> None:
    damaged = PAGE.replace("| limits | `max_contents` | `1024` |", "| limits | `max_contents` | `7` |")
    damaged = damaged.replace("| `dragoman_running` | gauge |", "| `dragoman_walking` | gauge |")
    assert damaged != PAGE
    assert rewritten(damaged) == PAGE


def test_the_metrics_that_operators_were_promised() -> None:
    promised = {
        "dragoman_requests_total",
        "dragoman_segments_total",
        "dragoman_running",
        "dragoman_waiting",
        "dragoman_oldest_wait_seconds",
        "dragoman_queue_seconds",
        "dragoman_time_to_first_token_seconds",
        "dragoman_inter_token_seconds",
        "dragoman_encode_seconds",
        "dragoman_step_seconds",
        "dragoman_request_seconds",
        "dragoman_rows_per_step",
        "dragoman_slots_used",
        "dragoman_slots_capacity",
        "dragoman_padding_ratio",
        "dragoman_source_tokens_total",
        "dragoman_target_tokens_total",
        "dragoman_wasted_steps_total",
        "dragoman_model_info",
        "dragoman_same_bytes_probe",
    }
    assert promised <= {row[0] for row in table("metric")}


def test_every_code_and_reason() -> None:
    """The reachable ones; tests/integration reaches each through a server."""
    again = {"retry_seconds": 1.0}
    errors = [
        InvalidRequestError([FieldViolation(field="contents", description="It must.")]),
        MalformedMessageError("None."),
        CredentialsError("None.", reason="CREDENTIALS_MISSING"),
        CredentialsError("Wrong.", reason="CREDENTIALS_INVALID"),
        NotAllowedError("Not yours."),
        NotServedError(resource_type="model", resource_name="x", served=[]),
        NotServedError(resource_type="language pair", resource_name="x", served=[]),
        OverloadedError("Full.", reason="QUEUE_FULL", **again),
        OverloadedError("Full.", reason="TOO_MANY_CALLS", **again),
        OverloadedError("Full.", reason="TOO_MANY_CALLS_OF_CALLER", **again),
        OverloadedError("Full.", reason="STANDING_DELAY", **again),
        OverloadedError("Full.", reason="QUOTA_EXCEEDED", **again),
        UnavailableError("Not yet.", reason="STARTING", **again),
        UnavailableError("Stopping.", reason="DRAINING", **again),
        UnavailableError("Who?", reason="ACCESS_UNAVAILABLE", **again),
        DeadlineError("Late."),
        UnreachableDeadlineError("Late."),
        ClientNotReadingError("Reads nothing."),
        *(ChangeRefusedError(["Not."], reason=reason) for reason in CHANGE_CODES),
        RuntimeError("Ours."),
    ]
    assert {type(error) for error in errors} == {*TABLE, RuntimeError}
    failures = [failure_of(error, "id") for error in errors]
    assert [row[:2] for row in table("code")] == [[failure.code.name, failure.reason] for failure in failures]
    for failure, row in zip(failures, table("code"), strict=True):
        assert ("RetryInfo" in row[3]) is (failure.retry_seconds is not None)
        for detail in failure.details:
            assert type(detail).__name__ in row[3]


def test_the_reasons_that_the_code_uses_are_on_the_page() -> None:
    sources = (Path(__file__).parents[2] / "service").glob("*.py")
    used = {
        reason for path in sources for reason in re.findall(r'reason="([A-Z_]+)"', path.read_text(encoding="utf-8"))
    }
    used |= {"MODEL_NOT_FOUND", "LANGUAGE_PAIR_NOT_FOUND", *CHANGE_CODES}
    assert used == {row[1] for row in table("code")}


def test_finish_reasons_and_flags() -> None:
    reasons = [name.removeprefix("FINISH_REASON_") for name, number in pb.FinishReason.items() if number]
    assert [row[0] for row in table("finish reason")] == reasons
    flags = [name.removeprefix("SEGMENT_FLAG_") for name, number in pb.SegmentFlag.items() if number]
    assert [row[0] for row in table("flag")] == flags


def test_every_decoding_option_with_its_default() -> None:
    rows = table("option")
    assert [row[0] for row in rows] == [entry.name for entry in pb.DecodingOptions.DESCRIPTOR.fields]
    defaults = built_in_defaults()
    for name, _, left_out, _ in rows:
        if name.startswith("with_") or any(entry.name == name for entry, _ in defaults.ListFields()):
            value = getattr(defaults, name)
            assert left_out == (json.dumps(value) if isinstance(value, bool) else f"{value:g}"), name
        else:
            assert left_out == "none", name


def test_the_placeholders_named_are_found() -> None:
    (row,) = (row for row in table("flag") if row[0] == "PLACEHOLDER_LOST")
    named = re.findall(r"`([^`]+)`", row[1])
    assert len(named) == 9
    assert all(list(placeholders(text)) == [text] for text in named)


def test_the_longest_text_allowed_can_wait() -> None:
    """The worst texts for the queue: the most segments, and the most tokens (four bytes a character)."""
    longest = settings()["max_characters_per_item"].default
    assert isinstance(longest, int)
    for text in ("a\n" * (longest // 2), "𠀀" * longest):

        def encode(piece: str) -> list[int]:
            return [*piece.strip().encode(), 3]

        segments = [segment for segment in split_item(text, encode, 256) if segment.core]
        assert len(segments) <= settings()["max_waiting_segments"].default  # type: ignore[operator]
        num_tokens = sum(len(segment.source_ids) for segment in segments)
        assert num_tokens <= settings()["max_waiting_tokens"].default  # type: ignore[operator]
        assert longest <= settings()["max_message_bytes"].default / 4  # type: ignore[operator]
