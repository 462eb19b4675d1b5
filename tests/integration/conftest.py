"""One synthetic bundle for all tests that serve."""

from pathlib import Path

import pytest

from tests.synthetic.bundle import build_synthetic_bundle


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of bundles with one that copies its source. Not to be changed."""
    directory = tmp_path_factory.mktemp("models")
    build_synthetic_bundle(directory / "synthetic")
    return directory
