"""The three importable names are this distribution's alone, and its version is the one the package states."""

from importlib import metadata

import pytest


@pytest.mark.parametrize("package", ["service", "training", "export"])
def test_package_belongs_to_this_distribution_alone(package: str) -> None:
    owners = set(metadata.packages_distributions().get(package, []))
    assert owners == {"dragoman"}


def test_serving_needs_neither_torch_nor_onnx() -> None:
    serving = [text for text in metadata.requires("dragoman") or [] if "extra ==" not in text or '"cpu"' in text]
    names = {text.split(";")[0].split("=")[0].split(">")[0].split("<")[0].split("[")[0].strip() for text in serving}
    assert "onnxruntime" in names
    assert not names & {"torch", "onnx", "onnxscript", "sacrebleu"}
