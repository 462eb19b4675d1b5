"""From a folder of bundles to models that decode: verify, open, prove, and give each its engine."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.bundle import CHECKSUM_NAME, DECODER_NAME, ENCODER_NAME, MANIFEST_NAME, Bundle, BundleError, load_bundle
from service.config import MIN_SOURCE_TOKENS, Config, EngineConfig, LimitsConfig
from service.cpu import cpu_budget
from service.engine import Engine
from service.engine_loop import EngineLoop
from service.footprint import model_bytes
from service.forecast import Forecast
from service.graphs import Graphs, ModelRunnerError, open_graphs
from service.loop_group import LoopGroup
from service.model_runner import OnnxModelRunner
from service.options import MAX_BEAM_SIZE
from service.options_reader import model_defaults
from service.pb.translation.v1 import translation_pb2 as pb
from service.request import Delivery
from service.same_bytes import ProbeResult, probe_same_bytes
from service.served_model import ServedModel
from service.step_report import StepReport

MAX_DEFAULT_WORKERS = 4
"""On a machine of many cores each engine gets more threads instead, and with them its own copy of the weights."""

_BUNDLE_FILES = (MANIFEST_NAME, CHECKSUM_NAME, ENCODER_NAME, DECODER_NAME)


class ModelsError(RuntimeError):
    """Models that cannot be served; `problems` lists every reason."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A bundle whose graphs are open and were probed."""

    bundle: Bundle
    """Its verified files."""
    runners: tuple[OnnxModelRunner, ...]
    """One for each engine."""
    probe: ProbeResult
    """Whether a sentence's bytes depend on its company on this machine."""
    num_threads: int
    """Threads of each engine's graphs."""
    max_beam_size: int
    """Hypotheses of one segment that every engine can decode."""
    default_options: pb.DecodingOptions
    """What holds for options that a call leaves out."""


def choose_workers(config: EngineConfig, num_cores: int) -> tuple[int, int]:
    """How many engines a model gets, and the threads of each: what is configured, or the cores shared out.

    Never more engines than rows.
    """
    num_workers = config.num_workers or min(num_cores, MAX_DEFAULT_WORKERS)
    num_workers = min(num_workers, config.max_rows)
    return num_workers, config.num_threads or max(1, num_cores // num_workers)


def find_bundles(directory: str | Path) -> list[Path]:
    """The sub-directories of `directory` with any file of a bundle, by name: one that lacks its manifest is to be
    refused, not passed over. A name that begins with a dot is a bundle being written, or left by an export that broke.

    Raises:
        ModelsError: when there is none, or `directory` cannot be read.
    """
    root = Path(directory)
    try:
        found = sorted(
            path
            for path in root.iterdir()
            if not path.name.startswith(".") and any((path / name).is_file() for name in _BUNDLE_FILES)
        )
    except OSError as error:
        raise ModelsError([f"`models` must be a directory of bundles, but {root} is not: {error.strerror}."]) from error
    if not found:
        raise ModelsError([f"`models` must be a directory of bundles, but {root} has no sub-directory that is one."])
    return found


def open_model(
    directory: str | Path, config: EngineConfig, *, admit: Callable[[Bundle], None] = lambda _: None
) -> OpenedModel:
    """Verifies a bundle, opens its graphs and probes them. `admit` may raise when it was read, before it is opened.

    Raises:
        BundleError: listing every problem of the files.
        ModelsError: when the graphs cannot be run as configured, or sources could not be split short enough for them.
    """
    bundle = load_bundle(directory)
    admit(bundle)
    num_workers, num_threads = choose_workers(config, cpu_budget().num_threads)
    most = bundle.architecture.max_positions
    if most < MIN_SOURCE_TOKENS:
        raise ModelsError(
            [f"{bundle.directory}: `max_positions` must be at least {MIN_SOURCE_TOKENS}, but is {most}: not every text "
             "can be split into segments that short."]
        )  # fmt: skip
    try:
        shared = _open_graphs(bundle, config, num_threads)
        runners = tuple(
            OnnxModelRunner(
                bundle,
                max_rows=(config.max_rows + worker) // num_workers,  # the shares differ by one at most
                max_source_tokens=min(config.max_source_tokens or most, most),
                max_target_tokens=min(config.max_target_tokens or most, most),
                # Those who share graphs share their threads too: none, where each engine's own is the only one.
                graphs=shared if worker == 0 or num_threads == 1 else _open_graphs(bundle, config, num_threads),
            )
            for worker in range(num_workers)
        )
    except ModelRunnerError as error:
        raise ModelsError([f"{bundle.directory}: {error}"]) from error
    max_beam_size = min(MAX_BEAM_SIZE, *(runner.max_rows for runner in runners))
    try:
        defaults = model_defaults(
            bundle.manifest.decoding,
            limit=runners[0].max_target_tokens,
            max_beam_size=max_beam_size,
        )
    except ValueError as error:
        raise ModelsError([f"{bundle.directory}: the manifest's {line}" for line in str(error).splitlines()]) from error
    # The last has most rows; the others have the same graphs and threads.
    probe = probe_same_bytes(runners[-1])
    return OpenedModel(
        bundle=bundle,
        runners=runners,
        probe=probe,
        num_threads=num_threads,
        max_beam_size=max_beam_size,
        default_options=defaults,
    )


def _open_graphs(bundle: Bundle, config: EngineConfig, num_threads: int) -> Graphs:
    return open_graphs(bundle, num_threads=num_threads, provider=config.provider, allow_spinning=config.allow_spinning)


def bytes_of(bundle: Bundle, config: EngineConfig) -> int:
    """The most memory that a bundle's model takes on this machine; see `model_bytes`."""
    num_workers, num_threads = choose_workers(config, cpu_budget().num_threads)
    return model_bytes(bundle, config, num_workers=num_workers, num_threads=num_threads)


def memory_problem(config: Config, bundle: Bundle, others: Iterable[ServedModel]) -> str | None:
    """Why a bundle's model must not be opened beside these models, or None."""
    limit = config.swap.max_memory_bytes
    own = bytes_of(bundle, config.engine)
    num_bytes = own + sum(model.num_bytes for model in others)
    if not limit or num_bytes <= limit:
        return None
    name = bundle.manifest.name
    return f"All models must take at most {limit} bytes, but {name} takes {own}, and with those beside it {num_bytes}."


def load_model(
    directory: str | Path,
    config: Config,
    *,
    deliver: Callable[[list[Delivery]], None],
    observe: Callable[[StepReport], None],
    admit: Callable[[Bundle], None] = lambda _: None,
) -> ServedModel:
    """The model of one bundle, its engine loop not yet started. Takes a second or more.

    Raises:
        BundleError, ModelsError: as `open_model`, or when it fails the same-bytes probe: with an error, or with
            differences where the configuration does not let them pass.
        Exception: what `admit` raises.
    """
    model = open_model(directory, config.engine, admit=admit)
    if model.probe.error is not None:
        raise ModelsError([f"{directory}: {model.probe.summary()}"])
    if config.engine.require_same_bytes and not model.probe.is_same_bytes:
        raise ModelsError([f"{directory}: {same_bytes_problem(model.probe)}"])
    return _serve(model, config.limits, config.engine, deliver, observe)


def load_models(
    config: Config, *, deliver: Callable[[list[Delivery]], None], observe: Callable[[StepReport], None]
) -> list[ServedModel]:
    """Every model of the configured directory, its engine loop not yet started. Takes seconds.

    Raises:
        ModelsError: listing the problems of every bundle, that two models have one name, or that a default is none of
            them.
    """
    problems: list[str] = []
    models: list[ServedModel] = []

    def admit(bundle: Bundle) -> None:
        if problem := memory_problem(config, bundle, models):
            raise ModelsError([problem])

    for directory in find_bundles(config.server.models):
        try:
            models.append(load_model(directory, config, deliver=deliver, observe=observe, admit=admit))
        except (BundleError, ModelsError) as error:
            problems.append(str(error))
    names = [model.name for model in models]
    problems += [f"Models must have names of their own, but {name} is there twice." for name in sorted({
        name for name in names if names.count(name) > 1
    })]  # fmt: skip
    if not problems:
        try:
            problems += _default_problems(default_models(config), models)
        except ModelsError as error:
            problems += error.problems
    if problems:
        raise ModelsError(problems)
    return models


def default_models(config: Config) -> dict[str, str]:
    """The names of the models that `default_models` takes for language pairs.

    Raises:
        ModelsError: when that is not what it must be.
    """
    defaults: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in config.server.default_models.split(","))):
        pair, _, name = (part.strip() for part in entry.partition("="))
        if not pair or not name or pair in defaults:
            raise ModelsError([f"`default_models` must be PAIR=NAME,... with each pair once, but has {entry!r}."])
        defaults[pair] = name
    return defaults


def _default_problems(defaults: Mapping[str, str], models: Sequence[ServedModel]) -> list[str]:
    served = {model.name: model.language_pair for model in models}
    return [
        f"`default_models` must name a model of {pair}, but {name} is {served.get(name, 'none that is served')}."
        for pair, name in defaults.items()
        if served.get(name) != pair
    ]


def same_bytes_problem(result: ProbeResult) -> str:
    """What a failed probe means, for people."""
    return (
        "On this machine a translation must not depend on what is translated beside it, but it does: "
        f"{result.summary()}. (`require_same_bytes = false` serves it all the same.)"
    )


def _serve(
    model: OpenedModel,
    limits: LimitsConfig,
    config: EngineConfig,
    deliver: Callable[[list[Delivery]], None],
    observe: Callable[[StepReport], None],
) -> ServedModel:
    manifest = model.bundle.manifest
    engines = [
        Engine.over(
            runner,
            max_waiting_sequences=limits.max_waiting_segments,
            max_waiting_tokens=limits.max_waiting_tokens,
            max_encode_tokens_per_step=config.max_encode_tokens,
            reserved_share=limits.reserved_share,
            bulk_patience_seconds=limits.bulk_patience_seconds,
        )
        for runner in model.runners
    ]
    first = model.runners[0]
    forecast = Forecast()

    def observe_both(report: StepReport) -> None:
        forecast.observe_step(report)
        observe(report)

    return ServedModel(
        name=manifest.name,
        digest=model.bundle.digest,
        directory=model.bundle.directory,
        num_bytes=bytes_of(model.bundle, config),
        precision=manifest.precision,
        source_language=manifest.source_language,
        target_language=manifest.target_language,
        tokenizer=model.bundle.tokenizer,
        loop=LoopGroup(
            [
                EngineLoop(
                    engine,
                    deliver=deliver,
                    observe=observe_both,
                    name=f"engine {manifest.name} {worker}",
                    niceness=config.niceness,
                )
                for worker, engine in enumerate(engines)
            ]
        ),
        max_source_tokens=first.max_source_tokens,
        max_target_tokens=first.max_target_tokens,
        max_rows=sum(runner.max_rows for runner in model.runners),
        max_beam_size=model.max_beam_size,
        default_options=model.default_options,
        is_same_bytes=model.probe.is_same_bytes,
        provider=config.provider,
        num_threads=model.num_threads * len(model.runners),
        forecast=forecast,
    )
