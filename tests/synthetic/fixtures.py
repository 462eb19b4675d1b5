"""What the tests of the service share: synthetic bundles, built once, and runners over them."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from service.bundle import Bundle, load_bundle
from service.model_runner import OnnxModelRunner
from tests.synthetic.bundle import SyntheticOptions, build_synthetic_bundle

COPY = SyntheticOptions()
REVERSE = SyntheticOptions(reverse=True)


@functools.cache
def synthetic_bundle(options: SyntheticOptions) -> Bundle:
    """A synthetic bundle, built at the first call; it lies in a temporary directory until the process ends."""
    keeper = Path(tempfile.mkdtemp(prefix="synthetic-"))
    atexit.register(shutil.rmtree, keeper, ignore_errors=True)
    return load_bundle(build_synthetic_bundle(keeper / "bundle", options))


def synthetic_runner(
    options: SyntheticOptions,
    *,
    max_rows: int = 8,
    max_source_tokens: int = 64,
    max_target_tokens: int = 64,
    num_threads: int = 1,
) -> OnnxModelRunner:
    """A runner over a synthetic bundle."""
    return OnnxModelRunner(
        synthetic_bundle(options),
        max_rows=max_rows,
        max_source_tokens=max_source_tokens,
        max_target_tokens=max_target_tokens,
        num_threads=num_threads,
    )
