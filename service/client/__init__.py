"""A typed client: `Client("127.0.0.1:50051").translate(["Hello."])`, and `AsyncClient` for asyncio.

Calls that a server refuses for the moment (its queue is full, it starts or stops) are tried again after the delay it
asks for, within the call's timeout. Every other refusal is raised as an exception with what the server said.
"""

from service.client.calls import DEFAULT_ADDRESS, AsyncClient, Client, Priority
from service.client.errors import (
    CredentialsError,
    DeadlineExceededError,
    InvalidRequestError,
    NotAllowedError,
    NotServedError,
    OverloadedError,
    ServerError,
    TranslationError,
    TryAgainError,
    UnavailableError,
    Violation,
)
from service.client.options import DecodingOptions, Sampling
from service.client.results import (
    Alignment,
    CallMetadata,
    FinishReason,
    Hypothesis,
    Segment,
    SegmentFlag,
    TextPiece,
    TextScore,
    Translation,
    WordPair,
)
from service.client.streams import AsyncTranslationStream, TranslationStream

__all__ = [
    "DEFAULT_ADDRESS",
    "Alignment",
    "AsyncClient",
    "AsyncTranslationStream",
    "CallMetadata",
    "Client",
    "CredentialsError",
    "DeadlineExceededError",
    "DecodingOptions",
    "FinishReason",
    "Hypothesis",
    "InvalidRequestError",
    "NotAllowedError",
    "NotServedError",
    "OverloadedError",
    "Priority",
    "Sampling",
    "Segment",
    "SegmentFlag",
    "ServerError",
    "TextPiece",
    "TextScore",
    "Translation",
    "TranslationError",
    "TranslationStream",
    "TryAgainError",
    "UnavailableError",
    "Violation",
    "WordPair",
]
