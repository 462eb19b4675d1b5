"""Keys: their file, whom they belong to, and what a wrong one learns."""

import hmac
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from service.api_keys import ApiKeys, is_key, new_key, read_keys, sha256_of
from service.caller import Caller
from service.refusals import CredentialsError
from service.watched_files import FilesError

SHOP = Caller(name="shop")
LIMITED = Caller(
    name="ops:1",
    weight=2.5,
    is_admin=True,
    models=frozenset({"b", 'a "quoted"'}),
    max_calls=3,
    segments_per_second=10.0,
    tokens_per_second=0.5,
)


def write(path: Path, *entries: str) -> Path:
    renewed = path.with_suffix(".new")
    renewed.write_text("\n".join(entries), encoding="utf-8")
    renewed.replace(path)
    return path


def entry(**changed: Any) -> str:
    """An entry of the file, with some lines changed (None: left out)."""
    lines = {"id": '"0123456789ab"', "sha256": f'"{"0" * 63}1"', "name": '"shop"'} | changed
    return "[[keys]]\n" + "".join(f"{name} = {value}\n" for name, value in lines.items() if value is not None)


def refused(keys: ApiKeys, key: str) -> str:
    with pytest.raises(CredentialsError) as caught:
        keys.caller_of(key)
    assert caught.value.reason == "CREDENTIALS_INVALID"
    return str(caught.value)


@pytest.mark.parametrize("caller", [SHOP, LIMITED])
def test_a_new_key_opens_for_its_caller(tmp_path: Path, caller: Caller) -> None:
    key, made = new_key(caller)
    assert is_key(key)
    assert key not in made.to_toml()
    assert key.rpartition("_")[2] not in made.to_toml()
    keys = ApiKeys(str(write(tmp_path / "keys.toml", made.to_toml())))
    assert keys.caller_of(key) == caller


def test_keys_are_never_the_same() -> None:
    keys = {new_key(SHOP)[0] for _ in range(100)}
    assert (
        len(keys) == len({key.split("_", 2)[1] for key in keys}) == len({key.split("_", 2)[2] for key in keys}) == 100
    )


def test_a_wrong_key_learns_nothing(tmp_path: Path) -> None:
    """Neither from what is said nor from what is done: hashed and compared once, whatever is wrong."""
    key, made = new_key(SHOP)
    other, _ = new_key(SHOP)
    keys = ApiKeys(str(write(tmp_path / "keys.toml", made.to_toml())))
    prefix, key_id, secret = key.split("_", 2)
    nearly = "A" if secret[-1] != "A" else "B"
    wrong = [
        f"{prefix}_{key_id}_{other.split('_', 2)[2]}",
        key[:-1] + nearly,
        other,
        key[:-1],
        key + "A",
        key.upper(),
        f"{prefix}_{key_id}_",
        f"{prefix}_{key_id}_{made.sha256}",
        made.sha256,
        "ключ",
        "x" * 5000,
    ]
    said = set()
    for token in [*wrong, key]:
        with mock.patch.object(hmac, "compare_digest", wraps=hmac.compare_digest) as compared:
            if token == key:
                keys.caller_of(token)
            else:
                said.add(refused(keys, token))
        (call,) = compared.call_args_list
        assert call.args[0] == sha256_of(token)
        assert len(call.args[1]) == 64
    assert len(said) == 1
    assert not any(token in said.pop() for token in [key_id, secret] if said)


def test_a_hash_that_is_all_noughts_opens_for_nobody(tmp_path: Path) -> None:
    """What unknown ids are compared with is no key's hash, even when hashing said so."""
    keys = ApiKeys(str(write(tmp_path / "keys.toml", "")))
    with mock.patch("service.api_keys.sha256_of", return_value="0" * 64):
        refused(keys, new_key(SHOP)[0])


def test_a_key_is_revoked_and_another_given_without_a_restart(tmp_path: Path) -> None:
    old, old_entry = new_key(SHOP)
    new, new_entry = new_key(SHOP)
    path = write(tmp_path / "keys.toml", old_entry.to_toml())
    keys = ApiKeys(str(path))
    refused(keys, new)
    write(path, old_entry.to_toml(), new_entry.to_toml())
    assert keys.caller_of(old) == keys.caller_of(new) == SHOP
    write(path, new_entry.to_toml())
    refused(keys, old)
    assert keys.caller_of(new) == SHOP
    write(path, "")
    refused(keys, new)


def test_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    key, made = new_key(SHOP)
    failures: list[int] = []
    path = write(tmp_path / "keys.toml", made.to_toml())
    keys = ApiKeys(str(path), on_failure=lambda: failures.append(1))
    for bad in ("[[keys]", entry(id='"short"')):
        write(path, bad)
        assert keys.caller_of(key) == SHOP
    path.unlink()
    assert keys.caller_of(key) == SHOP
    assert len(failures) == 3


SECRET = "drg_0123456789ab_" + "s" * 43


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("x = 1", ["{path} must have tables called [[keys]] and nothing else, but has."]),
        ("keys = 7", ["{path} must have tables called [[keys]] and nothing else, but has."]),
        ("keys = [7]", ["{path} must have tables called [[keys]] and nothing else, but has."]),
        (f'[[keys]]\nid = "{SECRET}\nname = 1', ["{path} must be a TOML file, but is not at line 2."]),
        (f"keys = {'[' * 100_000}", ["{path} must be a TOML file, but is not."]),
        (f"keys = {'1' * 5_000}", ["{path} must be a TOML file, but is not."]),
        (entry(sha256=f'"{SECRET}"'), ["Key 1 of {path}: `sha256` must be 64 hexadecimal digits, but is not."]),
        (entry(**{SECRET: 1}), ["Key 1 of {path}: every setting must be a known one, but one is not."]),
        (
            entry(id=7, sha256=None, name='"two words"'),
            [
                "Key 1 of {path}: `id` must be 12 hexadecimal digits, but is not.",
                "Key 1 of {path}: `name` must be 1 to 64 letters, digits and ._:-, but is not.",
                "Key 1 of {path}: `sha256` must be 64 hexadecimal digits, but is missing.",
            ],
        ),
        (entry() + entry(), ["Key 2 of {path}: `id` must be no other key's, but is."]),
        (
            entry() + entry(id='"ba9876543210"', max_calls=1),
            ["Key 2 of {path}: all but `id` and `sha256` must be the same for all keys of one name, but is not."],
        ),
        (entry(weight=0), ["Key 1 of {path}: `weight` must be a number above 0, but is not."]),
        (entry(weight="nan"), ["Key 1 of {path}: `weight` must be a number above 0, but is not."]),
        (entry(max_calls="true"), ["Key 1 of {path}: `max_calls` must be a whole number, 0 or more, but is not."]),
        (entry(max_calls=1.5), ["Key 1 of {path}: `max_calls` must be a whole number, 0 or more, but is not."]),
        (
            entry(segments_per_second=-1, tokens_per_second="inf"),
            [
                "Key 1 of {path}: `segments_per_second` must be a number, 0 or more, but is not.",
                "Key 1 of {path}: `tokens_per_second` must be a number, 0 or more, but is not.",
            ],
        ),
        (entry(models='"a"'), ["Key 1 of {path}: `models` must be a list of names, one at least, but is not."]),
        (entry(models="[]"), ["Key 1 of {path}: `models` must be a list of names, one at least, but is not."]),
        (entry(admin=1), ["Key 1 of {path}: `admin` must be true or false, but is not."]),
    ],
)
def test_what_is_wrong_with_a_file_is_said_without_what_is_in_it(
    tmp_path: Path, text: str, problems: list[str]
) -> None:
    path = write(tmp_path / "keys.toml", text)
    with pytest.raises(FilesError) as caught:
        read_keys(str(path))
    assert caught.value.problems == [problem.format(path=path) for problem in problems]


def test_an_empty_file_has_no_keys(tmp_path: Path) -> None:
    assert read_keys(str(write(tmp_path / "keys.toml", "# none yet\n"))) == {}
