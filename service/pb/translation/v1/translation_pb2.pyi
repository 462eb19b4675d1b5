from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_BLANK: _ClassVar[FinishReason]

class SegmentFlag(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEGMENT_FLAG_UNSPECIFIED: _ClassVar[SegmentFlag]
    SEGMENT_FLAG_TRUNCATED: _ClassVar[SegmentFlag]
    SEGMENT_FLAG_SOURCE_SPLIT: _ClassVar[SegmentFlag]
    SEGMENT_FLAG_REPETITION: _ClassVar[SegmentFlag]
    SEGMENT_FLAG_PLACEHOLDER_LOST: _ClassVar[SegmentFlag]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_BLANK: FinishReason
SEGMENT_FLAG_UNSPECIFIED: SegmentFlag
SEGMENT_FLAG_TRUNCATED: SegmentFlag
SEGMENT_FLAG_SOURCE_SPLIT: SegmentFlag
SEGMENT_FLAG_REPETITION: SegmentFlag
SEGMENT_FLAG_PLACEHOLDER_LOST: SegmentFlag

class TranslateTextRequest(_message.Message):
    __slots__ = ("contents", "mime_type", "source_language_code", "target_language_code", "model", "glossary_config", "decoding_options")
    CONTENTS_FIELD_NUMBER: _ClassVar[int]
    MIME_TYPE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    TARGET_LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    GLOSSARY_CONFIG_FIELD_NUMBER: _ClassVar[int]
    DECODING_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    contents: _containers.RepeatedScalarFieldContainer[str]
    mime_type: str
    source_language_code: str
    target_language_code: str
    model: str
    glossary_config: TranslateTextGlossaryConfig
    decoding_options: DecodingOptions
    def __init__(self, contents: _Optional[_Iterable[str]] = ..., mime_type: _Optional[str] = ..., source_language_code: _Optional[str] = ..., target_language_code: _Optional[str] = ..., model: _Optional[str] = ..., glossary_config: _Optional[_Union[TranslateTextGlossaryConfig, _Mapping]] = ..., decoding_options: _Optional[_Union[DecodingOptions, _Mapping]] = ...) -> None: ...

class TranslateTextGlossaryConfig(_message.Message):
    __slots__ = ("glossary", "ignore_case")
    GLOSSARY_FIELD_NUMBER: _ClassVar[int]
    IGNORE_CASE_FIELD_NUMBER: _ClassVar[int]
    glossary: str
    ignore_case: bool
    def __init__(self, glossary: _Optional[str] = ..., ignore_case: _Optional[bool] = ...) -> None: ...

class DecodingOptions(_message.Message):
    __slots__ = ("max_target_tokens",)
    MAX_TARGET_TOKENS_FIELD_NUMBER: _ClassVar[int]
    max_target_tokens: int
    def __init__(self, max_target_tokens: _Optional[int] = ...) -> None: ...

class TranslateTextResponse(_message.Message):
    __slots__ = ("translations", "metadata")
    TRANSLATIONS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    translations: _containers.RepeatedCompositeFieldContainer[Translation]
    metadata: ResponseMetadata
    def __init__(self, translations: _Optional[_Iterable[_Union[Translation, _Mapping]]] = ..., metadata: _Optional[_Union[ResponseMetadata, _Mapping]] = ...) -> None: ...

class Translation(_message.Message):
    __slots__ = ("translated_text", "model", "detected_language_code", "segments")
    TRANSLATED_TEXT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DETECTED_LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    translated_text: str
    model: str
    detected_language_code: str
    segments: _containers.RepeatedCompositeFieldContainer[Segment]
    def __init__(self, translated_text: _Optional[str] = ..., model: _Optional[str] = ..., detected_language_code: _Optional[str] = ..., segments: _Optional[_Iterable[_Union[Segment, _Mapping]]] = ...) -> None: ...

class Segment(_message.Message):
    __slots__ = ("source_text", "translated_text", "score", "token_log_probabilities", "finish_reason", "flags", "num_source_tokens", "num_target_tokens")
    SOURCE_TEXT_FIELD_NUMBER: _ClassVar[int]
    TRANSLATED_TEXT_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_LOG_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    NUM_SOURCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_TARGET_TOKENS_FIELD_NUMBER: _ClassVar[int]
    source_text: str
    translated_text: str
    score: float
    token_log_probabilities: _containers.RepeatedScalarFieldContainer[float]
    finish_reason: FinishReason
    flags: _containers.RepeatedScalarFieldContainer[SegmentFlag]
    num_source_tokens: int
    num_target_tokens: int
    def __init__(self, source_text: _Optional[str] = ..., translated_text: _Optional[str] = ..., score: _Optional[float] = ..., token_log_probabilities: _Optional[_Iterable[float]] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., flags: _Optional[_Iterable[_Union[SegmentFlag, str]]] = ..., num_source_tokens: _Optional[int] = ..., num_target_tokens: _Optional[int] = ...) -> None: ...

class ResponseMetadata(_message.Message):
    __slots__ = ("model_digest", "request_id", "num_source_tokens", "num_target_tokens", "tokenize_seconds", "queue_seconds", "encode_seconds", "decode_seconds", "total_seconds", "num_steps", "max_rows_shared")
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_SOURCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_TARGET_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENIZE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DECODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_SHARED_FIELD_NUMBER: _ClassVar[int]
    model_digest: str
    request_id: str
    num_source_tokens: int
    num_target_tokens: int
    tokenize_seconds: float
    queue_seconds: float
    encode_seconds: float
    decode_seconds: float
    total_seconds: float
    num_steps: int
    max_rows_shared: int
    def __init__(self, model_digest: _Optional[str] = ..., request_id: _Optional[str] = ..., num_source_tokens: _Optional[int] = ..., num_target_tokens: _Optional[int] = ..., tokenize_seconds: _Optional[float] = ..., queue_seconds: _Optional[float] = ..., encode_seconds: _Optional[float] = ..., decode_seconds: _Optional[float] = ..., total_seconds: _Optional[float] = ..., num_steps: _Optional[int] = ..., max_rows_shared: _Optional[int] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "models", "limits", "runtime_version", "provider", "num_threads")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    NUM_THREADS_FIELD_NUMBER: _ClassVar[int]
    version: str
    models: _containers.RepeatedCompositeFieldContainer[ModelInfo]
    limits: Limits
    runtime_version: str
    provider: str
    num_threads: int
    def __init__(self, version: _Optional[str] = ..., models: _Optional[_Iterable[_Union[ModelInfo, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., runtime_version: _Optional[str] = ..., provider: _Optional[str] = ..., num_threads: _Optional[int] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("name", "digest", "source_language_code", "target_language_code", "precision", "is_same_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SOURCE_LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    TARGET_LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    IS_SAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    source_language_code: str
    target_language_code: str
    precision: str
    is_same_bytes: bool
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., source_language_code: _Optional[str] = ..., target_language_code: _Optional[str] = ..., precision: _Optional[str] = ..., is_same_bytes: _Optional[bool] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_contents", "max_characters_per_item", "max_source_tokens_per_segment", "max_target_tokens_per_segment", "max_rows", "max_waiting_segments", "max_message_bytes", "max_waiting_tokens")
    MAX_CONTENTS_FIELD_NUMBER: _ClassVar[int]
    MAX_CHARACTERS_PER_ITEM_FIELD_NUMBER: _ClassVar[int]
    MAX_SOURCE_TOKENS_PER_SEGMENT_FIELD_NUMBER: _ClassVar[int]
    MAX_TARGET_TOKENS_PER_SEGMENT_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_WAITING_SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_WAITING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    max_contents: int
    max_characters_per_item: int
    max_source_tokens_per_segment: int
    max_target_tokens_per_segment: int
    max_rows: int
    max_waiting_segments: int
    max_message_bytes: int
    max_waiting_tokens: int
    def __init__(self, max_contents: _Optional[int] = ..., max_characters_per_item: _Optional[int] = ..., max_source_tokens_per_segment: _Optional[int] = ..., max_target_tokens_per_segment: _Optional[int] = ..., max_rows: _Optional[int] = ..., max_waiting_segments: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_waiting_tokens: _Optional[int] = ...) -> None: ...
