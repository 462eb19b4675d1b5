"""The pinned dependencies are those that pyproject.toml wants, each with hashes and from nowhere in particular."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def wanted(*extras: str) -> dict[str, Requirement]:
    """What the package wants with some extras, those that these name included."""
    found = [Requirement(line) for line in PROJECT["dependencies"]]
    for extra in extras:
        for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
            found += wanted(*requirement.extras).values() if requirement.name == "dragoman" else [requirement]
    return {requirement.name.lower(): requirement for requirement in found}


def locked(name: str) -> dict[str, tuple[str, int]]:
    """Version and number of hashes by package."""
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    entries = [entry for entry in text.replace("\\\n", " ").splitlines() if entry and not entry.startswith("#")]
    found = {}
    for entry in entries:
        pin = re.match(r"([a-z0-9.-]+)(?:\[[a-z,]+\])?==(\S+)((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*$", entry)
        assert pin, entry[:100]
        found[pin[1]] = (pin[2], pin[3].count("--hash"))
    return found


@pytest.mark.parametrize(("name", "extra"), [("service.txt", "cpu"), ("dev.txt", "dev")])
def test_every_dependency_is_pinned_with_hashes(name: str, extra: str) -> None:
    pins = locked(name)
    for package, requirement in wanted(extra).items():
        if package == "torch":
            continue
        assert package in pins, "run `make lock`"
        assert requirement.specifier.contains(pins[package][0]), f"{package}: run `make lock`"
    assert "torch" not in pins
    assert not any(package.startswith("nvidia") for package in pins)


def test_serving_is_tested_with_what_it_is_served_with() -> None:
    """The smaller list is part of the larger."""
    assert locked("service.txt").items() <= locked("dev.txt").items()


@pytest.mark.parametrize("name", ["service.txt", "dev.txt"])
def test_no_list_says_where_packages_come_from(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"index|find-links|trusted-host", text)
