"""The RPCs that change what the server tells about itself: its log, and its traces."""

from typing import Any, Final

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.access import VISIBLE, Context, authorize, require_operator
from servery_inference.log_switch import FORMATS, LogSwitch
from servery_inference.repository import Repository
from servery_inference.request import shown
from servery_inference.rpcs import Handlers
from servery_inference.trace_settings import TraceSettings
from servery_rpc.errors import FieldInvalidError, UnsupportedError

_LOG_KINDS: Final = {
    "log_info": "bool_param",
    "log_warning": "bool_param",
    "log_error": "bool_param",
    "log_verbose_level": "uint32_param",
    "log_format": "string_param",
}


class DiagnosisServicer:
    """Reads and changes settings. To change those of the server takes its operator.

    Args:
        repository: The models that may have trace settings.
        log: What is logged.
        traces: Which requests are traced.
    """

    def __init__(self, repository: Repository, log: LogSwitch, traces: TraceSettings) -> None:
        self._repository = repository
        self._log = log
        self._traces = traces

    def handlers(self) -> Handlers:
        """Return the methods by their names in the contract."""
        return {"TraceSetting": self.TraceSetting, "LogSettings": self.LogSettings}

    async def TraceSetting(
        self, request: pb.TraceSettingRequest, context: Context
    ) -> pb.TraceSettingResponse:
        """See grpc_service.proto."""
        model = request.model_name
        if model:
            authorize(context, ("admin",) if request.settings else VISIBLE, model)
            self._repository.find(model, "")
        else:
            require_operator(context)
        if request.settings:
            changes = {key: tuple(setting.value) for key, setting in request.settings.items()}
            self._traces.update(model, changes)
        response = pb.TraceSettingResponse()
        for key, values in self._traces.of(model).items():
            response.settings[key].value.extend(values)
        return response

    async def LogSettings(
        self, request: pb.LogSettingsRequest, context: Context
    ) -> pb.LogSettingsResponse:
        """See grpc_service.proto."""
        require_operator(context)
        changes = {
            key.removeprefix("log_"): _log_value(key, setting)
            for key, setting in request.settings.items()
        }
        if changes:
            self._log.apply(**changes)
        settings = self._log.settings
        response = pb.LogSettingsResponse()
        response.settings["log_file"].string_param = ""
        response.settings["log_info"].bool_param = settings.info
        response.settings["log_warning"].bool_param = settings.warning
        response.settings["log_error"].bool_param = settings.error
        response.settings["log_verbose_level"].uint32_param = settings.verbose_level
        response.settings["log_format"].string_param = settings.format
        return response


def _log_value(key: str, setting: pb.LogSettingsRequest.SettingValue) -> Any:
    """Read one setting.

    Raises:
        UnsupportedError: It is where the log goes, which is the operator's choice.
        FieldInvalidError: It is unknown, of the wrong kind, or another format.
    """
    if key == "log_file":
        raise UnsupportedError("log_file")
    if key not in _LOG_KINDS:
        raise FieldInvalidError("settings", shown(key), f"be one of {', '.join(_LOG_KINDS)}")
    kind = setting.WhichOneof("parameter_choice")
    if kind != _LOG_KINDS[key]:
        raise FieldInvalidError(f"settings.{key}", kind, f"be a {_LOG_KINDS[key]}")
    value = getattr(setting, kind)
    if key == "log_format" and value not in FORMATS:
        raise FieldInvalidError(f"settings.{key}", value, f"be one of {', '.join(FORMATS)}")
    return value
