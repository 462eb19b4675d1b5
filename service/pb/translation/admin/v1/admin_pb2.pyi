from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "digest", "source_language_code", "target_language_code", "precision", "directory", "is_default", "is_served", "num_running", "num_waiting")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SOURCE_LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    TARGET_LANGUAGE_CODE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    IS_SERVED_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    source_language_code: str
    target_language_code: str
    precision: str
    directory: str
    is_default: bool
    is_served: bool
    num_running: int
    num_waiting: int
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., source_language_code: _Optional[str] = ..., target_language_code: _Optional[str] = ..., precision: _Optional[str] = ..., directory: _Optional[str] = ..., is_default: _Optional[bool] = ..., is_served: _Optional[bool] = ..., num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("directory", "canary_texts", "min_similarity", "dry_run")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    CANARY_TEXTS_FIELD_NUMBER: _ClassVar[int]
    MIN_SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    directory: str
    canary_texts: _containers.RepeatedScalarFieldContainer[str]
    min_similarity: float
    dry_run: bool
    def __init__(self, directory: _Optional[str] = ..., canary_texts: _Optional[_Iterable[str]] = ..., min_similarity: _Optional[float] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("name", "digest", "replaced_digest", "has_changed", "canary")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    REPLACED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    HAS_CHANGED_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    replaced_digest: str
    has_changed: bool
    canary: CanaryReport
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., replaced_digest: _Optional[str] = ..., has_changed: _Optional[bool] = ..., canary: _Optional[_Union[CanaryReport, _Mapping]] = ...) -> None: ...

class CanaryReport(_message.Message):
    __slots__ = ("num_texts", "num_compared", "num_equal", "mean_similarity", "num_cut_before", "num_cut_after")
    NUM_TEXTS_FIELD_NUMBER: _ClassVar[int]
    NUM_COMPARED_FIELD_NUMBER: _ClassVar[int]
    NUM_EQUAL_FIELD_NUMBER: _ClassVar[int]
    MEAN_SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    NUM_CUT_BEFORE_FIELD_NUMBER: _ClassVar[int]
    NUM_CUT_AFTER_FIELD_NUMBER: _ClassVar[int]
    num_texts: int
    num_compared: int
    num_equal: int
    mean_similarity: float
    num_cut_before: int
    num_cut_after: int
    def __init__(self, num_texts: _Optional[int] = ..., num_compared: _Optional[int] = ..., num_equal: _Optional[int] = ..., mean_similarity: _Optional[float] = ..., num_cut_before: _Optional[int] = ..., num_cut_after: _Optional[int] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("name", "digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class SetDefaultModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class SetDefaultModelResponse(_message.Message):
    __slots__ = ("previous_name",)
    PREVIOUS_NAME_FIELD_NUMBER: _ClassVar[int]
    previous_name: str
    def __init__(self, previous_name: _Optional[str] = ...) -> None: ...
