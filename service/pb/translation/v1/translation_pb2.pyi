from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_INTERACTIVE: _ClassVar[Priority]
    PRIORITY_BULK: _ClassVar[Priority]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_BLANK: _ClassVar[FinishReason]
    FINISH_REASON_CANCELLED: _ClassVar[FinishReason]
    FINISH_REASON_REPETITION: _ClassVar[FinishReason]

class SegmentFlag(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEGMENT_FLAG_UNSPECIFIED: _ClassVar[SegmentFlag]
    SEGMENT_FLAG_TRUNCATED: _ClassVar[SegmentFlag]
    SEGMENT_FLAG_SOURCE_SPLIT: _ClassVar[SegmentFlag]
    SEGMENT_FLAG_REPETITION: _ClassVar[SegmentFlag]
    SEGMENT_FLAG_PLACEHOLDER_LOST: _ClassVar[SegmentFlag]
PRIORITY_UNSPECIFIED: Priority
PRIORITY_INTERACTIVE: Priority
PRIORITY_BULK: Priority
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_BLANK: FinishReason
FINISH_REASON_CANCELLED: FinishReason
FINISH_REASON_REPETITION: FinishReason
SEGMENT_FLAG_UNSPECIFIED: SegmentFlag
SEGMENT_FLAG_TRUNCATED: SegmentFlag
SEGMENT_FLAG_SOURCE_SPLIT: SegmentFlag
SEGMENT_FLAG_REPETITION: SegmentFlag
SEGMENT_FLAG_PLACEHOLDER_LOST: SegmentFlag

class TranslateTextRequest(_message.Message):
    __slots__ = ("contents", "mime_type", "source_language_code", "target_language_code", "model", "glossary_config", "decoding_options", "priority")
    CONTENTS_FIELD_NUMBER: _ClassVar[int]
    MIME_TYPE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    TARGET_LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    GLOSSARY_CONFIG_FIELD_NUMBER: _ClassVar[int]
    DECODING_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    contents: _containers.RepeatedScalarFieldContainer[str]
    mime_type: str
    source_language_code: str
    target_language_code: str
    model: str
    glossary_config: TranslateTextGlossaryConfig
    decoding_options: DecodingOptions
    priority: Priority
    def __init__(self, contents: _Optional[_Iterable[str]] = ..., mime_type: _Optional[str] = ..., source_language_code: _Optional[str] = ..., target_language_code: _Optional[str] = ..., model: _Optional[str] = ..., glossary_config: _Optional[_Union[TranslateTextGlossaryConfig, _Mapping]] = ..., decoding_options: _Optional[_Union[DecodingOptions, _Mapping]] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class TranslateTextGlossaryConfig(_message.Message):
    __slots__ = ("glossary", "ignore_case")
    GLOSSARY_FIELD_NUMBER: _ClassVar[int]
    IGNORE_CASE_FIELD_NUMBER: _ClassVar[int]
    glossary: str
    ignore_case: bool
    def __init__(self, glossary: _Optional[str] = ..., ignore_case: _Optional[bool] = ...) -> None: ...

class DecodingOptions(_message.Message):
    __slots__ = ("max_target_tokens", "min_target_tokens", "max_target_ratio", "min_target_ratio", "beam_size", "num_hypotheses", "length_penalty", "coverage_penalty", "early_stopping", "patience", "repetition_penalty", "no_repeat_ngram_size", "suppressed_tokens", "suppressed_texts", "no_unknown", "sampling", "target_prefixes", "prefix_bias", "with_alternatives", "with_alignment", "guards_repetition")
    MAX_TARGET_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TARGET_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TARGET_RATIO_FIELD_NUMBER: _ClassVar[int]
    MIN_TARGET_RATIO_FIELD_NUMBER: _ClassVar[int]
    BEAM_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_HYPOTHESES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_PENALTY_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    EARLY_STOPPING_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    NO_REPEAT_NGRAM_SIZE_FIELD_NUMBER: _ClassVar[int]
    SUPPRESSED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SUPPRESSED_TEXTS_FIELD_NUMBER: _ClassVar[int]
    NO_UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    TARGET_PREFIXES_FIELD_NUMBER: _ClassVar[int]
    PREFIX_BIAS_FIELD_NUMBER: _ClassVar[int]
    WITH_ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    WITH_ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    GUARDS_REPETITION_FIELD_NUMBER: _ClassVar[int]
    max_target_tokens: int
    min_target_tokens: int
    max_target_ratio: float
    min_target_ratio: float
    beam_size: int
    num_hypotheses: int
    length_penalty: float
    coverage_penalty: float
    early_stopping: bool
    patience: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    suppressed_tokens: _containers.RepeatedScalarFieldContainer[str]
    suppressed_texts: _containers.RepeatedScalarFieldContainer[str]
    no_unknown: bool
    sampling: Sampling
    target_prefixes: _containers.RepeatedScalarFieldContainer[str]
    prefix_bias: float
    with_alternatives: bool
    with_alignment: bool
    guards_repetition: bool
    def __init__(self, max_target_tokens: _Optional[int] = ..., min_target_tokens: _Optional[int] = ..., max_target_ratio: _Optional[float] = ..., min_target_ratio: _Optional[float] = ..., beam_size: _Optional[int] = ..., num_hypotheses: _Optional[int] = ..., length_penalty: _Optional[float] = ..., coverage_penalty: _Optional[float] = ..., early_stopping: _Optional[bool] = ..., patience: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., no_repeat_ngram_size: _Optional[int] = ..., suppressed_tokens: _Optional[_Iterable[str]] = ..., suppressed_texts: _Optional[_Iterable[str]] = ..., no_unknown: _Optional[bool] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., target_prefixes: _Optional[_Iterable[str]] = ..., prefix_bias: _Optional[float] = ..., with_alternatives: _Optional[bool] = ..., with_alignment: _Optional[bool] = ..., guards_repetition: _Optional[bool] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("top_k", "top_p", "temperature", "seed")
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    top_k: int
    top_p: float
    temperature: float
    seed: int
    def __init__(self, top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., temperature: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class TranslateTextResponse(_message.Message):
    __slots__ = ("translations", "metadata")
    TRANSLATIONS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    translations: _containers.RepeatedCompositeFieldContainer[Translation]
    metadata: ResponseMetadata
    def __init__(self, translations: _Optional[_Iterable[_Union[Translation, _Mapping]]] = ..., metadata: _Optional[_Union[ResponseMetadata, _Mapping]] = ...) -> None: ...

class StreamTranslateTextResponse(_message.Message):
    __slots__ = ("piece", "result")
    PIECE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    piece: TextPiece
    result: TranslateTextResponse
    def __init__(self, piece: _Optional[_Union[TextPiece, _Mapping]] = ..., result: _Optional[_Union[TranslateTextResponse, _Mapping]] = ...) -> None: ...

class TextPiece(_message.Message):
    __slots__ = ("contents_index", "segment_index", "text", "finish_reason")
    CONTENTS_INDEX_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    contents_index: int
    segment_index: int
    text: str
    finish_reason: FinishReason
    def __init__(self, contents_index: _Optional[int] = ..., segment_index: _Optional[int] = ..., text: _Optional[str] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ...) -> None: ...

class ScoreTextRequest(_message.Message):
    __slots__ = ("contents", "translated_texts", "source_language_code", "target_language_code", "model", "decoding_options", "priority")
    CONTENTS_FIELD_NUMBER: _ClassVar[int]
    TRANSLATED_TEXTS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    TARGET_LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DECODING_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    contents: _containers.RepeatedScalarFieldContainer[str]
    translated_texts: _containers.RepeatedScalarFieldContainer[str]
    source_language_code: str
    target_language_code: str
    model: str
    decoding_options: DecodingOptions
    priority: Priority
    def __init__(self, contents: _Optional[_Iterable[str]] = ..., translated_texts: _Optional[_Iterable[str]] = ..., source_language_code: _Optional[str] = ..., target_language_code: _Optional[str] = ..., model: _Optional[str] = ..., decoding_options: _Optional[_Union[DecodingOptions, _Mapping]] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class ScoreTextResponse(_message.Message):
    __slots__ = ("scores", "metadata")
    SCORES_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    scores: _containers.RepeatedCompositeFieldContainer[TextScore]
    metadata: ResponseMetadata
    def __init__(self, scores: _Optional[_Iterable[_Union[TextScore, _Mapping]]] = ..., metadata: _Optional[_Union[ResponseMetadata, _Mapping]] = ...) -> None: ...

class TextScore(_message.Message):
    __slots__ = ("score", "normalized_score", "target_tokens", "token_log_probabilities", "alignment", "model", "num_source_tokens")
    SCORE_FIELD_NUMBER: _ClassVar[int]
    NORMALIZED_SCORE_FIELD_NUMBER: _ClassVar[int]
    TARGET_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_LOG_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NUM_SOURCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    score: float
    normalized_score: float
    target_tokens: _containers.RepeatedScalarFieldContainer[str]
    token_log_probabilities: _containers.RepeatedScalarFieldContainer[float]
    alignment: Alignment
    model: str
    num_source_tokens: int
    def __init__(self, score: _Optional[float] = ..., normalized_score: _Optional[float] = ..., target_tokens: _Optional[_Iterable[str]] = ..., token_log_probabilities: _Optional[_Iterable[float]] = ..., alignment: _Optional[_Union[Alignment, _Mapping]] = ..., model: _Optional[str] = ..., num_source_tokens: _Optional[int] = ...) -> None: ...

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
    __slots__ = ("source_text", "translated_text", "score", "token_log_probabilities", "finish_reason", "flags", "num_source_tokens", "num_target_tokens", "normalized_score", "target_tokens", "alignment", "hypotheses")
    SOURCE_TEXT_FIELD_NUMBER: _ClassVar[int]
    TRANSLATED_TEXT_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_LOG_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    NUM_SOURCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_TARGET_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZED_SCORE_FIELD_NUMBER: _ClassVar[int]
    TARGET_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    HYPOTHESES_FIELD_NUMBER: _ClassVar[int]
    source_text: str
    translated_text: str
    score: float
    token_log_probabilities: _containers.RepeatedScalarFieldContainer[float]
    finish_reason: FinishReason
    flags: _containers.RepeatedScalarFieldContainer[SegmentFlag]
    num_source_tokens: int
    num_target_tokens: int
    normalized_score: float
    target_tokens: _containers.RepeatedScalarFieldContainer[str]
    alignment: Alignment
    hypotheses: _containers.RepeatedCompositeFieldContainer[Hypothesis]
    def __init__(self, source_text: _Optional[str] = ..., translated_text: _Optional[str] = ..., score: _Optional[float] = ..., token_log_probabilities: _Optional[_Iterable[float]] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., flags: _Optional[_Iterable[_Union[SegmentFlag, str]]] = ..., num_source_tokens: _Optional[int] = ..., num_target_tokens: _Optional[int] = ..., normalized_score: _Optional[float] = ..., target_tokens: _Optional[_Iterable[str]] = ..., alignment: _Optional[_Union[Alignment, _Mapping]] = ..., hypotheses: _Optional[_Iterable[_Union[Hypothesis, _Mapping]]] = ...) -> None: ...

class Hypothesis(_message.Message):
    __slots__ = ("text", "score", "normalized_score", "target_tokens", "token_log_probabilities", "finish_reason", "alignment")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    NORMALIZED_SCORE_FIELD_NUMBER: _ClassVar[int]
    TARGET_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_LOG_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    text: str
    score: float
    normalized_score: float
    target_tokens: _containers.RepeatedScalarFieldContainer[str]
    token_log_probabilities: _containers.RepeatedScalarFieldContainer[float]
    finish_reason: FinishReason
    alignment: Alignment
    def __init__(self, text: _Optional[str] = ..., score: _Optional[float] = ..., normalized_score: _Optional[float] = ..., target_tokens: _Optional[_Iterable[str]] = ..., token_log_probabilities: _Optional[_Iterable[float]] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., alignment: _Optional[_Union[Alignment, _Mapping]] = ...) -> None: ...

class Alignment(_message.Message):
    __slots__ = ("source_tokens", "weights", "source_words", "target_words", "word_pairs")
    SOURCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_WORDS_FIELD_NUMBER: _ClassVar[int]
    TARGET_WORDS_FIELD_NUMBER: _ClassVar[int]
    WORD_PAIRS_FIELD_NUMBER: _ClassVar[int]
    source_tokens: _containers.RepeatedScalarFieldContainer[str]
    weights: _containers.RepeatedScalarFieldContainer[float]
    source_words: _containers.RepeatedScalarFieldContainer[str]
    target_words: _containers.RepeatedScalarFieldContainer[str]
    word_pairs: _containers.RepeatedCompositeFieldContainer[WordPair]
    def __init__(self, source_tokens: _Optional[_Iterable[str]] = ..., weights: _Optional[_Iterable[float]] = ..., source_words: _Optional[_Iterable[str]] = ..., target_words: _Optional[_Iterable[str]] = ..., word_pairs: _Optional[_Iterable[_Union[WordPair, _Mapping]]] = ...) -> None: ...

class WordPair(_message.Message):
    __slots__ = ("source_word", "target_word", "weight")
    SOURCE_WORD_FIELD_NUMBER: _ClassVar[int]
    TARGET_WORD_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    source_word: int
    target_word: int
    weight: float
    def __init__(self, source_word: _Optional[int] = ..., target_word: _Optional[int] = ..., weight: _Optional[float] = ...) -> None: ...

class ResponseMetadata(_message.Message):
    __slots__ = ("model_digest", "request_id", "num_source_tokens", "num_target_tokens", "tokenize_seconds", "queue_seconds", "encode_seconds", "decode_seconds", "total_seconds", "num_steps", "max_rows_shared", "num_preemptions")
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
    NUM_PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
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
    num_preemptions: int
    def __init__(self, model_digest: _Optional[str] = ..., request_id: _Optional[str] = ..., num_source_tokens: _Optional[int] = ..., num_target_tokens: _Optional[int] = ..., tokenize_seconds: _Optional[float] = ..., queue_seconds: _Optional[float] = ..., encode_seconds: _Optional[float] = ..., decode_seconds: _Optional[float] = ..., total_seconds: _Optional[float] = ..., num_steps: _Optional[int] = ..., max_rows_shared: _Optional[int] = ..., num_preemptions: _Optional[int] = ...) -> None: ...

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
    __slots__ = ("name", "digest", "source_language_code", "target_language_code", "precision", "is_same_bytes", "default_decoding_options", "is_default")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SOURCE_LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    TARGET_LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    IS_SAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_DECODING_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    source_language_code: str
    target_language_code: str
    precision: str
    is_same_bytes: bool
    default_decoding_options: DecodingOptions
    is_default: bool
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., source_language_code: _Optional[str] = ..., target_language_code: _Optional[str] = ..., precision: _Optional[str] = ..., is_same_bytes: _Optional[bool] = ..., default_decoding_options: _Optional[_Union[DecodingOptions, _Mapping]] = ..., is_default: _Optional[bool] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_contents", "max_characters_per_item", "max_source_tokens_per_segment", "max_target_tokens_per_segment", "max_rows", "max_waiting_segments", "max_message_bytes", "max_waiting_tokens", "max_beam_size")
    MAX_CONTENTS_FIELD_NUMBER: _ClassVar[int]
    MAX_CHARACTERS_PER_ITEM_FIELD_NUMBER: _ClassVar[int]
    MAX_SOURCE_TOKENS_PER_SEGMENT_FIELD_NUMBER: _ClassVar[int]
    MAX_TARGET_TOKENS_PER_SEGMENT_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_WAITING_SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_WAITING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_BEAM_SIZE_FIELD_NUMBER: _ClassVar[int]
    max_contents: int
    max_characters_per_item: int
    max_source_tokens_per_segment: int
    max_target_tokens_per_segment: int
    max_rows: int
    max_waiting_segments: int
    max_message_bytes: int
    max_waiting_tokens: int
    max_beam_size: int
    def __init__(self, max_contents: _Optional[int] = ..., max_characters_per_item: _Optional[int] = ..., max_source_tokens_per_segment: _Optional[int] = ..., max_target_tokens_per_segment: _Optional[int] = ..., max_rows: _Optional[int] = ..., max_waiting_segments: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_waiting_tokens: _Optional[int] = ..., max_beam_size: _Optional[int] = ...) -> None: ...
