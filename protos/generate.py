"""Generate the Python stubs of every contract: `python protos/generate.py OUT`.

Run by `make protos` in the generator's own environment (requirements/protos.txt). Proto path and
Python path are the same, so protoc's imports work as they are.

The inference contract gets one change: its descriptors go into a pool of their own. Other clients
of the protocol (tritonclient) register the same symbols in the default pool, and protobuf refuses
the second one to come.
"""

import os
import sys
from importlib.resources import files
from pathlib import Path

from google.api import annotations_pb2
from grpc_tools import protoc

PROTOS = Path(__file__).parent
GOOGLE_APIS = Path(annotations_pb2.__file__).parents[2]
POOL = "_descriptor_pool.Default()"
PRIVATE_POOL = "_private_pool()"
PRIVATE_POOL_IMPORT = "from servery.inference.pool import pool as _private_pool\n"


def main(out: Path) -> int:
    """Write the stubs below `out`; return protoc's exit status."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    sources = [str(path) for path in sorted(PROTOS.glob("servery/**/*.proto"))]
    status: int = protoc.main(
        [
            "protoc",
            f"-I{PROTOS}",
            f"-I{files('grpc_tools') / '_proto'}",
            f"-I{GOOGLE_APIS}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            *sources,
        ]
    )
    for path in sorted(out.glob("servery/inference/v1/*_pb2.py")):
        code = path.read_text()
        if code.count(POOL) != 1:
            raise RuntimeError(f"protoc's output changed: {path.name} must name {POOL} once")
        marker = "# @@protoc_insertion_point(imports)\n"
        path.write_text(
            code.replace(POOL, PRIVATE_POOL).replace(marker, PRIVATE_POOL_IMPORT + marker)
        )
    for path in out.glob("servery/*/v1/*_pb2_grpc.py"):  # Files without a service.
        if "class " not in path.read_text():
            path.unlink()
            path.with_suffix(".pyi").unlink(missing_ok=True)
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
