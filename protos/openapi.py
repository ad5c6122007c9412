"""Write what the contracts are over HTTP as an OpenAPI document: `python protos/openapi.py OUT`.

Run by `make openapi` in the generator's own environment (requirements/protos.txt), with the plugin
protoc-gen-openapi of github.com/google/gnostic on PATH.
"""

import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from google.api import annotations_pb2
from grpc_tools import protoc

PROTOS = Path(__file__).parent
GOOGLE_APIS = Path(annotations_pb2.__file__).parents[2]
SCHEMAS = "components:\n    schemas:\n"
SECURITY = """\
security:
    - token: []
components:
    securitySchemes:
        token:
            type: http
            scheme: bearer
            description: From `POST /v1/apiKeys:exchange`, the only call that needs none.
    schemas:
"""


def main(out: Path) -> int:
    """Write the document to `out`; return protoc's exit status."""
    sources = [
        path.relative_to(PROTOS)
        for path in sorted(PROTOS.glob("servery/**/*.proto"))
        if "inference" not in path.parts  # Never JSON: its own REST form is another matter.
    ]
    options = [
        "title=Servery",
        "version=v1",
        "naming=json",
        "enum_type=string",
        *(f"M{path}=servery/{path.parent}" for path in sources),  # The plugin is one for Go.
    ]
    with tempfile.TemporaryDirectory() as directory:
        status: int = protoc.main(
            [
                "protoc",
                f"-I{PROTOS}",
                f"-I{files('grpc_tools') / '_proto'}",
                f"-I{GOOGLE_APIS}",
                f"--openapi_out={directory}",
                f"--openapi_opt={','.join(options)}",
                *(str(path) for path in sources),
            ]
        )
        if status == 0:
            text = Path(directory, "openapi.yaml").read_text()
            if text.count(SCHEMAS) != 1:
                raise RuntimeError(f"the plugin's output changed: {SCHEMAS!r} must come once")
            out.write_text(text.replace(SCHEMAS, SECURITY))
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
