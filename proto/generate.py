"""Writes the Python code of the interface: `python proto/generate.py [OUTPUT_ROOT]` (`make proto`).

protoc names a generated module after the path it was given. Mapping `service/pb` onto this folder gives the file the
path of its package, so that the generated code imports `service.pb.translation.v1` absolutely and no path is patched.
"""

import sys
from pathlib import Path

from grpc_tools import protoc

PROTO = Path(__file__).resolve().parent
PACKAGE = "service/pb"


def generate(output_root: Path) -> list[Path]:
    """Generates under `output_root`/service/pb and returns the files written.

    Raises:
        RuntimeError: if protoc fails; it has said why on stderr.
    """
    sources = sorted(PROTO.rglob("*.proto"))
    arguments = [
        "protoc",
        f"--proto_path={PACKAGE}={PROTO}",
        f"--python_out={output_root}",
        f"--pyi_out={output_root}",
        f"--grpc_python_out={output_root}",
        *(f"{PACKAGE}/{source.relative_to(PROTO).as_posix()}" for source in sources),
    ]
    output_root.mkdir(parents=True, exist_ok=True)
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc must end with exit code 0, but did not.")
    written = []
    for source in sources:
        stem = output_root / PACKAGE / source.relative_to(PROTO).parent / source.stem
        written += [stem.with_name(stem.name + end) for end in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")]
    return written


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else PROTO.parent
    for path in generate(root):
        print(path.relative_to(root))
