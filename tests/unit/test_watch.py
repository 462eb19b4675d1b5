"""What comes, changes and goes in a directory of models is seen, when it has settled."""

import json
import os
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.bundle import MAX_MANIFEST_BYTES
from service.refusals import ChangeRefusedError
from service.watch import FoundBundle, Watch, find


@dataclass(frozen=True)
class Model:
    name: str
    digest: str
    directory: Path


class Server:
    """Catalog and swap in one, which believe what a directory says of itself."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.models: list[Model] = []
        self.changes: list[str] = []
        self.refuses = ""

    async def load(self, directory: str) -> None:
        self.changes.append(f"load {directory}")
        if self.refuses:
            raise ChangeRefusedError(["No."], reason=self.refuses)
        name, digest = (self.root / directory / "manifest.sha256").read_text().split()[0].split(":")
        self.models = [model for model in self.models if model.name != name]
        self.models.append(Model(name, f"{name}:{digest}", self.root / directory))

    async def unload(self, name: str, *, digest: str) -> None:
        self.changes.append(f"unload {name}")
        (model,) = [model for model in self.models if model.name == name]
        assert model.digest == digest
        self.models.remove(model)

    def said(self) -> list[str]:
        """The changes since the last time."""
        changes, self.changes = self.changes, []
        return changes


def put(directory: Path, name: str, digest: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "manifest.json").write_text(json.dumps({"name": name}))
    (directory / "manifest.sha256").write_text(f"{name}:{digest}  manifest.json\n")


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


@pytest.fixture
async def watch(server: Server) -> Watch:
    made: Any = server
    put(server.root / "a", "m", "1")
    watch = Watch(server.root, made, made)
    await watch.look()
    assert server.said() == []
    await watch.look()
    assert server.said() == ["load a"]
    return watch


async def test_what_is_served_is_left_alone(server: Server, watch: Watch) -> None:
    put(server.root / ".hidden", "n", "1")
    (server.root / "notes").mkdir()
    for _ in range(3):
        await watch.look()
    assert server.said() == []


async def test_what_cannot_be_read_keeps_no_other_bundle_out(server: Server, watch: Watch) -> None:
    for name in ("deep", "pipe", "huge", "list"):
        put(server.root / name, name, "1")
    (server.root / "deep" / "manifest.json").write_text("[" * 100_000)
    (server.root / "list" / "manifest.json").write_text("[]")
    (server.root / "pipe" / "manifest.json").unlink()
    os.mkfifo(server.root / "pipe" / "manifest.json")
    with (server.root / "huge" / "manifest.sha256").open("wb") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    put(server.root / "b", "n", "1")
    for _ in range(2):
        await watch.look()
    assert server.said() == ["load b"]


async def test_a_bundle_in_anothers_place_is_loaded_when_it_has_settled(server: Server, watch: Watch) -> None:
    put(server.root / ".new", "m", "2")
    (server.root / "a").rename(server.root / ".old")
    (server.root / ".new").rename(server.root / "a")
    await watch.look()
    assert server.said() == []
    (server.root / "a" / "encoder.onnx").write_bytes(b"is being copied")
    await watch.look()
    assert server.said() == []
    await watch.look()
    assert server.said() == ["load a"]
    await watch.look()
    assert server.said() == []


async def test_what_was_refused_is_tried_again_when_it_has_changed(server: Server, watch: Watch) -> None:
    server.refuses = "BUNDLE_REFUSED"
    put(server.root / "b", "n", "1")
    for _ in range(4):
        await watch.look()
    assert server.said() == ["load b"]
    server.refuses = "SWAP_IN_PROGRESS"
    (server.root / "b" / "encoder.onnx").write_bytes(b"the rest")
    for _ in range(3):
        await watch.look()
    assert server.said() == ["load b", "load b"]
    server.refuses = ""
    await watch.look()
    await watch.look()
    assert server.said() == ["load b"]


async def test_what_is_gone_twice_is_unloaded_but_never_the_last(server: Server, watch: Watch) -> None:
    put(server.root / "b", "n", "1")
    for _ in range(2):
        await watch.look()
    assert server.said() == ["load b"]
    shutil.rmtree(server.root / "b")
    await watch.look()
    put(server.root / "b", "n", "1")  # back in time
    await watch.look()
    assert server.said() == []
    shutil.rmtree(server.root / "b")
    await watch.look()
    assert server.said() == []
    await watch.look()
    assert server.said() == ["unload n"]
    shutil.rmtree(server.root / "a")
    for _ in range(3):
        await watch.look()
    assert server.said() == []


async def test_a_directory_of_another_name_is_the_same_bundle(server: Server, watch: Watch) -> None:
    put(server.root / "b", "n", "1")
    for _ in range(2):
        await watch.look()
    (server.root / "a").rename(server.root / "c")
    for _ in range(4):
        await watch.look()
    assert server.said() == ["load b"]


async def test_two_bundles_of_one_name_do_not_take_turns(server: Server, watch: Watch) -> None:
    put(server.root / "b", "m", "2")
    for _ in range(4):
        await watch.look()
    assert server.said() == []
    assert [model.digest for model in server.models] == ["m:1"]


async def test_a_directory_that_cannot_be_read_is_not_empty(server: Server, watch: Watch) -> None:
    put(server.root / "b", "n", "1")
    for _ in range(2):
        await watch.look()
    server.said()
    server.root.rename(server.root.with_name("away"))
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            await watch.look()
    server.root.with_name("away").rename(server.root)
    await watch.look()
    assert server.said() == []


async def test_a_file_system_that_hangs_does_not_keep_the_process_from_ending(
    server: Server, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def find_here(root: Path) -> dict[str, FoundBundle]:
        threads.append(threading.current_thread())
        return find(root)

    monkeypatch.setattr("service.watch.find", find_here)
    await watch.look()
    assert [thread.daemon for thread in threads] == [True]
    assert server.said() == []
