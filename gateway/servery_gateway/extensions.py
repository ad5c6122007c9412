"""How Envoy's configuration names extensions, and what several parts of it share. Pure."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final

EXTENSIONS: Final = "type.googleapis.com/envoy.extensions"
HTTP_FILTERS: Final = f"{EXTENSIONS}.filters.http"
LUA: Final = f"{HTTP_FILTERS}.lua.v3.Lua"
RBAC: Final = f"{HTTP_FILTERS}.rbac.v3.RBAC"

ADS: Final = {"ads": {}, "resource_api_version": "V3"}

CONTROL_PLANE: Final = "ads"
"""The cluster of the control plane, which Envoy knows from its start."""

TENANT_HEADER: Final = "x-servery-tenant"
"""Id of the tenant of who calls, once that is verified."""

CALLER_HEADER: Final = "x-servery-caller"
"""Resource name of the key or identity of who calls, once that is verified."""

ALLOWED_HEADER: Final = "x-servery-allowed"
"""Resource name of the model or tenant that a call may be about, once that is decided."""

WEB_METADATA: Final = "servery.web"
"""Where the trailers of a gRPC-Web call are noted, which have become part of its body."""

DOOR_HEADER: Final = "x-servery-door"
"""The content type with which a call came in, while Envoy works on it."""


def typed(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return an extension with its configuration, whose `@type` says what it is."""
    return {"name": name, "typed_config": config}


def script(*names: str, before: str = "") -> Mapping[str, Any]:
    """Return a filter that runs Lua files of this package, behind a text."""
    texts = [files("servery_gateway").joinpath(name).read_text("utf-8") for name in names]
    return {
        "@type": LUA,
        "default_source_code": {"inline_string": "\n".join([before, *texts])},
    }
