"""Generate the gRPC code of `protos/` into `weir/_proto` when the project is built or installed."""

import re
import sys
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # `python infra/build/hatch_build.py` needs no hatchling
    BuildHookInterface = object  # type: ignore[assignment, misc]


def generate(root: Path) -> list[Path]:
    """Write `*_pb2.py`, `*_pb2.pyi` and `*_pb2_grpc.py` of every contract; returns the files written."""
    from grpc_tools import protoc

    out = root / "weir" / "_proto"
    out.mkdir(parents=True, exist_ok=True)
    protos = sorted((root / "protos").rglob("*.proto"))
    arguments = [
        "protoc",
        f"-I{root / 'protos'}",
        f"--python_out={out}",
        f"--pyi_out={out}",
        f"--grpc_python_out={out}",
    ]
    if protoc.main([*arguments, *map(str, protos)]):
        raise SystemExit("protoc refused a contract in protos/: its message stands above.")
    written = [path for path in out.rglob("*_pb2*.py*") if "__pycache__" not in path.parts]
    for path in written:
        # protoc imports by the contract's path; the code lives one package deeper.
        text = path.read_text()
        path.write_text(re.sub(r"^from weir\.(?!_proto)", "from weir._proto.weir.", text, flags=re.MULTILINE))
        for folder in path.relative_to(out).parents:
            (out / folder / "__init__.py").touch()
    return written


class ProtoBuildHook(BuildHookInterface):  # type: ignore[type-arg]  # not generic without hatchling
    """Runs `generate` before hatchling collects files."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate into the source tree, where an editable install reads it."""
        generate(Path(self.root))


if __name__ == "__main__":
    generate(Path(__file__).resolve().parents[2])
    sys.exit(0)
