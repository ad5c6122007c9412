"""The RPCs about the repository: what is in it, what a model is told to be, load, unload."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from servery.errors.v1 import error_reason_pb2 as reasons
from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.access import VISIBLE, Context, authorize, caller, may
from servery_inference.directory import DirectorySource, Overrides
from servery_inference.engine import LoadFailedError
from servery_inference.layout import is_safe_path
from servery_inference.model_config import GivenConfig
from servery_inference.repository import IndexEntry, Repository
from servery_inference.request import shown
from servery_rpc.errors import ServeryError, UnsupportedError

_CONFIG: Final = "config"
_FILE: Final = "file:"
_UNLOAD_DEPENDENTS: Final = "unload_dependents"
_SHOWN_CHARACTERS: Final = 300


class ModelLoadFailedError(ServeryError):
    """A model could not be loaded; what served before still serves."""

    reason = reasons.ERROR_REASON_MODEL_LOAD_FAILED

    def __init__(self, model: str, problem: str) -> None:
        super().__init__(problem, model=shown(model), problem=problem[:_SHOWN_CHARACTERS])


class ModelControlDisabledError(ServeryError):
    """The server decides by itself what it serves."""

    reason = reasons.ERROR_REASON_MODEL_CONTROL_DISABLED

    def __init__(self, mode: str) -> None:
        super().__init__(
            "explicit model load / unload is not allowed if polling is enabled", mode=mode
        )


class ControlParameterInvalidError(ServeryError):
    """A parameter of a load or unload is unknown or malformed."""

    reason = reasons.ERROR_REASON_FIELD_INVALID

    def __init__(self, message: str, key: str, rule: str) -> None:
        super().__init__(message, field=f"parameters.{shown(key)}", value=shown(key), rule=rule)


class RepositoryControl:
    """Shows and steers a repository.

    Args:
        repository: The models.
        source: The directory they come from; None if something else decides.
    """

    def __init__(self, repository: Repository, source: DirectorySource | None) -> None:
        self._repository = repository
        self._source = source

    def handlers(self) -> dict[str, Any]:
        """Return the methods by their names in the contract."""
        return {
            "ModelConfig": self.ModelConfig,
            "RepositoryIndex": self.RepositoryIndex,
            "RepositoryModelLoad": self.RepositoryModelLoad,
            "RepositoryModelUnload": self.RepositoryModelUnload,
        }

    async def ModelConfig(
        self, request: pb.ModelConfigRequest, context: Context
    ) -> pb.ModelConfigResponse:
        """See grpc_service.proto."""
        authorize(context, VISIBLE, request.name)
        servable = self._repository.find(request.name, request.version)
        return pb.ModelConfigResponse(config=servable.config)

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        """See grpc_service.proto."""
        if request.repository_name:
            raise UnsupportedError("RepositoryIndex with a repository_name")
        known = await self._source.names() if self._source else []
        who = caller(context)
        return pb.RepositoryIndexResponse(
            models=[
                _entry_to_proto(entry)
                for entry in _with_names(self._repository.index(), known)
                if may(who, VISIBLE, entry.model) and (entry.state == "READY" or not request.ready)
            ]
        )

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """See grpc_service.proto."""
        model = _model_of(request.repository_name, request.model_name, "RepositoryModelLoad")
        authorize(context, ("admin",), model)
        source = self._controlled()
        problem = await source.load(model, _overrides(model, request.parameters))
        if problem:
            raise ModelLoadFailedError(model, problem)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """See grpc_service.proto."""
        model = _model_of(request.repository_name, request.model_name, "RepositoryModelUnload")
        authorize(context, ("admin",), model)
        source = self._controlled()
        dependents = False
        for key, parameter in request.parameters.items():
            if key != _UNLOAD_DEPENDENTS:
                raise ControlParameterInvalidError(
                    f"unrecognized unload parameter '{shown(key)}'.", key, "be unload_dependents"
                )
            _require_kind(key, parameter, "bool_param")
            dependents = parameter.bool_param
        source.unload(model, dependents=dependents)
        return pb.RepositoryModelUnloadResponse()

    def _controlled(self) -> DirectorySource:
        if self._source is None:
            raise ModelControlDisabledError("registry")
        if self._source.mode != "explicit":
            raise ModelControlDisabledError(self._source.mode)
        return self._source


def _model_of(repository: str, model: str, method: str) -> str:
    """The model a request names: clients of KServe put it where others put the repository."""
    if repository and model:
        raise UnsupportedError(f"{method} with a repository_name")
    return model or repository


def _overrides(model: str, parameters: Mapping[str, pb.ModelRepositoryParameter]) -> Overrides:
    config: GivenConfig | None = None
    files: dict[str, bytes] = {}
    for key, parameter in parameters.items():
        if key == _CONFIG:
            _require_kind(key, parameter, "string_param")
            try:
                config = GivenConfig.from_json(parameter.string_param)
            except LoadFailedError as error:
                raise ModelLoadFailedError(
                    model, f"failed to load '{shown(model)}', {error}"
                ) from None
        elif key.startswith(_FILE):
            _require_kind(key, parameter, "bytes_param")
            path = key.removeprefix(_FILE)
            if not is_safe_path(path):
                raise ControlParameterInvalidError(
                    f"load parameter '{shown(key)}' names no file of a model; write"
                    " 'file:<version>/<file>'",
                    key,
                    "be file:<version>/<file>",
                )
            files[path] = parameter.bytes_param
        else:
            raise ControlParameterInvalidError(
                f"unrecognized load parameter '{shown(key)}'.", key, "be config or file:<path>"
            )
    if files and config is None:
        raise ControlParameterInvalidError(
            "load parameter 'config' must be given together with files", _CONFIG, "be given"
        )
    return Overrides(config, files)


def _require_kind(key: str, parameter: pb.ModelRepositoryParameter, kind: str) -> None:
    if parameter.WhichOneof("parameter_choice") != kind:
        raise ControlParameterInvalidError(
            f"invalid value type for '{shown(key)}' parameter, expected {kind}.",
            key,
            f"be a {kind}",
        )


def _with_names(entries: Iterable[IndexEntry], known: Iterable[str]) -> list[IndexEntry]:
    """Add models that are there and were never loaded, by name alone."""
    listed = list(entries)
    names = {entry.model for entry in listed}
    listed += [IndexEntry(name, None) for name in known if name not in names]
    return sorted(listed, key=lambda entry: (entry.model, entry.version or 0))


def _entry_to_proto(entry: IndexEntry) -> pb.RepositoryIndexResponse.ModelIndex:
    version = "" if entry.version is None else str(entry.version)
    return pb.RepositoryIndexResponse.ModelIndex(
        name=entry.model, version=version, state=entry.state, reason=entry.reason
    )
