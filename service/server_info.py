"""What does the server say about itself?"""

from collections.abc import Mapping, Sequence
from importlib import metadata

from service.config import Config
from service.graphs import runtime_version
from service.pb.translation.v1 import translation_pb2 as pb
from service.served_model import ServedModel


def server_info(
    config: Config, models: Sequence[ServedModel], *, defaults: Mapping[str, ServedModel]
) -> pb.GetServerInfoResponse:
    """What GetServerInfo answers. `defaults` has the model that is taken for each language pair."""
    return pb.GetServerInfoResponse(
        version=distribution_version(),
        models=[
            pb.ModelInfo(
                name=model.name,
                digest=model.digest,
                source_language_code=model.source_language,
                target_language_code=model.target_language,
                precision=model.precision,
                is_same_bytes=model.is_same_bytes,
                default_decoding_options=model.default_options,
                is_default=defaults[model.language_pair] is model,
            )
            for model in models
        ],
        limits=pb.Limits(
            max_contents=config.limits.max_contents,
            max_characters_per_item=config.limits.max_characters_per_item,
            max_source_tokens_per_segment=min(model.max_source_tokens for model in models),
            max_target_tokens_per_segment=min(model.max_target_tokens for model in models),
            max_rows=config.engine.max_rows,
            max_waiting_segments=config.limits.max_waiting_segments,
            max_waiting_tokens=config.limits.max_waiting_tokens,
            max_message_bytes=config.server.max_message_bytes,
            max_beam_size=min(model.max_beam_size for model in models),
        ),
        runtime_version=runtime_version(),
        provider=models[0].provider,
        num_threads=models[0].num_threads,
    )


def distribution_version() -> str:
    """The version that is installed; "unknown" when run from a folder that is not."""
    try:
        return metadata.version("dragoman")
    except metadata.PackageNotFoundError:
        return "unknown"
