"""Settings from a file, the environment and flags."""

import argparse
import dataclasses
from pathlib import Path

import pytest

from service.config import Config, ConfigError, add_flags, load_config, settings


def problems_of(**arguments: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(**arguments)  # type: ignore[arg-type]
    for problem in caught.value.problems:
        assert problem in str(caught.value)
    return caught.value.problems


def write(directory: Path, text: str) -> Path:
    path = directory / "service.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_said_gives_the_defaults() -> None:
    assert load_config() == Config()


def test_every_setting_has_one_name_and_a_docstring() -> None:
    fields = [entry for section in dataclasses.fields(Config) for entry in dataclasses.fields(section.type)]  # type: ignore[arg-type]
    assert [entry.name for entry in fields] == list(settings())
    assert all(setting.help.endswith(".") for setting in settings().values())


def test_every_default_is_allowed() -> None:
    for setting in settings().values():
        assert setting.problem(setting.default, "default") is None


def test_flags_override_the_environment_and_that_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "[engine]\nmax_rows = 1\nnum_threads = 1\nallow_spinning = true\n")
    environment = {"DRAGOMAN_MAX_ROWS": "2", "DRAGOMAN_NUM_THREADS": "2", "HOME": "elsewhere"}
    config = load_config(file=file, environment=environment, flags={"max_rows": "3", "text": "not a setting"})
    assert (config.engine.max_rows, config.engine.num_threads, config.engine.allow_spinning) == (3, 2, True)


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "[server]\nmodels = 'elsewhere'\n")
    assert load_config(environment={"DRAGOMAN_CONFIG": str(file)}).server.models == "elsewhere"


def test_what_is_printed_can_be_read_back(tmp_path: Path) -> None:
    config = load_config(flags={"models": 'a "quoted" \\ 路径', "max_rows": "7", "reflection": False})
    assert load_config(file=write(tmp_path, config.to_toml())) == config


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    file = write(tmp_path, "[engine]\nmax_rows = 0\nrows = 3\n[motor]\nx = 1\n[limits]\nmax_contents = '5'\n")
    environment = {"DRAGOMAN_DRAIN_SECONDS": "soon", "DRAGOMAN_SPEED": "9"}
    found = problems_of(file=file, environment=environment, flags={"address": "nowhere", "log_format": "xml"})
    assert found == [
        f"`engine.rows` in {file} must be a known setting, but is not.",
        f"`motor` in {file} must be one of the tables access, engine, limits, logs, server, shutdown, swap, "
        "tls, but is not.",
        "DRAGOMAN_SPEED in the environment must be a known setting, but is not.",
        f"`max_rows` ({file}) must be at least 1, but is 0.",
        f"`max_contents` ({file}) must be a whole number, but is '5'.",
        "`drain_seconds` (DRAGOMAN_DRAIN_SECONDS) must be a number, but is 'soon'.",
        "`address` (--address) must be host:port, but is 'nowhere'.",
        "`log_format` (--log-format) must be one of json, text, but is 'xml'.",
    ]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1"])
def test_numbers_must_be_sound(value: str) -> None:
    (problem,) = problems_of(flags={"drain_seconds": value})
    assert problem.startswith("`drain_seconds` (--drain-seconds) must be ")


@pytest.mark.parametrize("value", ["1", "7", "-1"])
def test_source_tokens_must_hold_any_one_character(value: str) -> None:
    (problem,) = problems_of(flags={"max_source_tokens": value})
    assert problem == f"`max_source_tokens` (--max-source-tokens) must be 0 or at least 8, but is {value}."


@pytest.mark.parametrize("value", [0, 8, 128])
def test_source_tokens_that_do_or_that_the_model_chooses(value: int) -> None:
    assert load_config(flags={"max_source_tokens": str(value)}).engine.max_source_tokens == value


@pytest.mark.parametrize("value", ["localhost", ":50051", "localhost:", "localhost:-1", "localhost:65536", "a:b", ""])
def test_addresses_must_have_a_host_and_a_port(value: str) -> None:
    (problem,) = problems_of(flags={"address": value})
    assert "must be host:port" in problem


@pytest.mark.parametrize("value", ["127.0.0.1:0", "[::]:50051", "0.0.0.0:65535"])
def test_good_addresses(value: str) -> None:
    assert load_config(flags={"address": value}).server.address == value


def test_the_metrics_page_can_be_switched_off() -> None:
    assert load_config(flags={"metrics_address": ""}).server.metrics_address == ""


@pytest.mark.parametrize(("text", "value"), [("1", True), ("true", True), ("Yes", True), ("0", False), ("off", False)])
def test_truth_in_the_environment(text: str, value: bool) -> None:
    assert load_config(environment={"DRAGOMAN_LOG_REQUESTS": text}).logs.log_requests is value


def test_a_truth_that_is_none() -> None:
    (problem,) = problems_of(environment={"DRAGOMAN_LOG_REQUESTS": "maybe"})
    assert problem == "`log_requests` (DRAGOMAN_LOG_REQUESTS) must be true or false, but is 'maybe'."


def test_true_is_no_number(tmp_path: Path) -> None:
    (problem,) = problems_of(file=write(tmp_path, "[engine]\nmax_rows = true\n"))
    assert "must be a whole number" in problem


def test_variables_that_kubernetes_adds_for_a_service_called_dragoman_are_not_ours() -> None:
    environment = {
        "DRAGOMAN_SERVICE_HOST": "10.0.0.1",
        "DRAGOMAN_SERVICE_PORT": "50051",
        "DRAGOMAN_SERVICE_PORT_GRPC": "50051",
        "DRAGOMAN_PORT": "tcp://10.0.0.1:50051",
        "DRAGOMAN_PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "DRAGOMAN_PORT_50051_TCP_ADDR": "10.0.0.1",
        "DRAGOMAN_HEADLESS_SERVICE_HOST": "None",
    }
    assert load_config(environment=environment) == Config()
    assert not any(setting.variable in environment for setting in settings().values())


def test_a_file_that_is_none(tmp_path: Path) -> None:
    assert "must be a readable TOML file" in problems_of(file=tmp_path / "missing.toml")[0]
    assert "must be a readable TOML file" in problems_of(file=write(tmp_path, "[engine"))[0]


def test_flags_that_are_left_out_say_nothing() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    assert vars(parser.parse_args([])) == {"config": None}
    given = vars(parser.parse_args(["--max-rows", "5", "--no-reflection"]))
    assert load_config(flags=given) == load_config(flags={"max_rows": "5", "reflection": False})
    help_text = " ".join(parser.format_help().split())
    assert all(setting.flag in help_text for setting in settings().values())
