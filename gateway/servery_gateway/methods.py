"""Every RPC of the platform and what its caller needs: the table the gateway authorizes by.

A method that is not here is refused, and so is one whose rule is `DENIED`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from google.protobuf.descriptor import FileDescriptor

from servery.gateway.v1 import (
    billing_pb2,
    gateway_pb2,
    identity_pb2,
    quota_pb2,
    route_pb2,
    usage_pb2,
)
from servery.inference.v1 import grpc_service_pb2
from servery.registry.v1 import registry_pb2
from servery.trainer.v1 import dataset_pb2, training_pb2, tuning_pb2
from servery_rpc.identity import Verb


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may call a method."""

    verbs: tuple[Verb, ...] = ()
    """One of these must be permitted. Empty: any valid token will do."""

    model_field: str = ""
    """Field of the first request message that names the model which the verb must be permitted
    for. Empty: the verb must be permitted for some model; the server behind knows the rest."""

    public: bool = False
    """Whether no token is needed."""

    denied: bool = False
    """Whether nobody may."""


PUBLIC: Final = Rule(public=True)
DENIED: Final = Rule(denied=True)
ANY_TOKEN: Final = Rule()

INFERENCE: Final = "inference"
REGISTRY: Final = "registry"
TRAINER: Final = "trainer"
GATEWAY: Final = "gateway"
INFERENCE_HTTP: Final = "inference-http"
"""The HTTP door of inference."""

JWKS_PATH: Final = "/.well-known/jwks.json"
"""Where the keys that tokens are verified with are published."""


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC."""

    service: str
    """Full name, such as `servery.registry.v1.RegistryService`."""

    name: str
    """Such as `GetModel`."""

    upstream: str
    """Which process answers it."""

    rule: Rule

    client_streaming: bool = False
    server_streaming: bool = False

    @property
    def path(self) -> str:
        """The HTTP path."""
        return f"/{self.service}/{self.name}"


def _holding(*verbs: Verb) -> Rule:
    return Rule(verbs=verbs)


_INSPECT: Final = Rule(verbs=("infer", "read"), model_field="name")
_INFER: Final = Rule(verbs=("infer",), model_field="model_name")

RULES: Final[Mapping[str, Mapping[str, Rule]]] = MappingProxyType(
    {
        "inference.GRPCInferenceService": {
            "ServerLive": ANY_TOKEN,
            "ServerReady": ANY_TOKEN,
            "ServerMetadata": ANY_TOKEN,
            "RepositoryIndex": ANY_TOKEN,
            "ModelReady": _INSPECT,
            "ModelMetadata": _INSPECT,
            "ModelConfig": _INSPECT,
            "ModelStatistics": _INSPECT,
            "ModelInfer": _INFER,
            "ModelStreamInfer": _INFER,
            # The registry decides what is loaded, and clients share no memory with the server.
            "RepositoryModelLoad": DENIED,
            "RepositoryModelUnload": DENIED,
            "SystemSharedMemoryStatus": DENIED,
            "SystemSharedMemoryRegister": DENIED,
            "SystemSharedMemoryUnregister": DENIED,
            "CudaSharedMemoryStatus": DENIED,
            "CudaSharedMemoryRegister": DENIED,
            "CudaSharedMemoryUnregister": DENIED,
            "TraceSetting": DENIED,
            "LogSettings": DENIED,
        },
        "servery.registry.v1.RegistryService": {
            "RegisterVersion": _holding("publish"),
            "GetModel": _holding("read"),
            "ListModels": _holding("read"),
            "GetVersion": _holding("read"),
            "ListVersions": _holding("read"),
            "ReadFile": _holding("read"),
            "GetAlias": _holding("read"),
            "SetAlias": _holding("promote"),
            "DeleteAlias": _holding("promote"),
            "WatchModels": _holding("read"),
        },
        "servery.trainer.v1.DatasetService": {
            "CreateDataset": _holding("train"),
            "GetDataset": _holding("read", "train"),
            "ListDatasets": _holding("read", "train"),
            "ValidateDataset": _holding("read", "train"),
            "CreateUpload": _holding("train"),
            "GetUpload": _holding("train"),
            "AppendUpload": _holding("train"),
            "CompleteUpload": _holding("train"),
            "DeleteUpload": _holding("train"),
        },
        "servery.trainer.v1.TrainingService": {
            "CreateTrainingJob": _holding("train"),
            "GetTrainingJob": _holding("read", "train"),
            "ListTrainingJobs": _holding("read", "train"),
            "CancelTrainingJob": _holding("train"),
            "WatchTrainingJob": _holding("read", "train"),
            "StreamTrainingJobLogs": _holding("read", "train"),
        },
        "servery.trainer.v1.TuningService": {
            "CreateStudy": _holding("train"),
            "GetStudy": _holding("read", "train"),
            "ListStudies": _holding("read", "train"),
            "CancelStudy": _holding("train"),
            "ListTrials": _holding("read", "train"),
            "WatchStudy": _holding("read", "train"),
        },
        "servery.gateway.v1.AuthService": {"ExchangeApiKey": PUBLIC},
        "servery.gateway.v1.TenantService": {
            "CreateTenant": _holding("admin"),
            "GetTenant": _holding("admin"),
            "ListTenants": _holding("admin"),
        },
        "servery.gateway.v1.ApiKeyService": {
            "CreateApiKey": _holding("admin"),
            "ListApiKeys": _holding("admin"),
            "RevokeApiKey": _holding("admin"),
        },
        "servery.gateway.v1.IdentityService": {
            "RevokeIdentity": _holding("admin"),
            "RestoreIdentity": _holding("admin"),
            "ListRevokedIdentities": _holding("admin"),
        },
        "servery.gateway.v1.QuotaService": {
            "SetQuota": _holding("admin"),
            "GetQuota": _holding("admin"),
        },
        "servery.gateway.v1.RouteService": {
            "SetRoute": _holding("admin"),
            "GetRoute": _holding("admin"),
            "ListRoutes": _holding("admin"),
        },
        "servery.gateway.v1.BillingService": {
            "SetPrices": _holding("admin"),
            "GetPrices": _holding("admin"),
            "SetBudget": _holding("admin"),
            "GetBudget": _holding("admin"),
        },
        "servery.gateway.v1.UsageService": {
            "QueryUsage": _holding("admin"),
            "ExportUsage": _holding("admin"),
        },
    }
)
"""Service, then method, to its rule."""

_FILES: Final[tuple[tuple[str, FileDescriptor], ...]] = (
    (INFERENCE, grpc_service_pb2.DESCRIPTOR),
    (REGISTRY, registry_pb2.DESCRIPTOR),
    (TRAINER, dataset_pb2.DESCRIPTOR),
    (TRAINER, training_pb2.DESCRIPTOR),
    (TRAINER, tuning_pb2.DESCRIPTOR),
    (GATEWAY, billing_pb2.DESCRIPTOR),
    (GATEWAY, gateway_pb2.DESCRIPTOR),
    (GATEWAY, identity_pb2.DESCRIPTOR),
    (GATEWAY, quota_pb2.DESCRIPTOR),
    (GATEWAY, route_pb2.DESCRIPTOR),
    (GATEWAY, usage_pb2.DESCRIPTOR),
)


def contracts() -> tuple[tuple[str, FileDescriptor], ...]:
    """Return the files that describe all RPCs, each with the process that answers them."""
    return _FILES


def public_paths(table: Iterable[Method]) -> list[str]:
    """Return the HTTP paths that need no token."""
    return [JWKS_PATH, *(method.path for method in table if method.rule.public)]


def methods() -> tuple[Method, ...]:
    """Return every RPC that reaches a process of the platform, by path.

    A method of our contracts without a rule is `DENIED`.
    """
    found = [
        Method(
            service.full_name,
            method.name,
            upstream,
            RULES.get(service.full_name, {}).get(method.name, DENIED),
            client_streaming=method.client_streaming,
            server_streaming=method.server_streaming,
        )
        for upstream, file in contracts()
        for service in file.services_by_name.values()
        for method in service.methods
    ]
    # What a client wants to know before it has a token is whether inference is there.
    found.append(Method("grpc.health.v1.Health", "Check", INFERENCE, PUBLIC))
    # The control plane describes them all, so that tools need no files.
    for version in ("v1", "v1alpha"):
        service = f"grpc.reflection.{version}.ServerReflection"
        found.append(
            Method(
                service,
                "ServerReflectionInfo",
                GATEWAY,
                ANY_TOKEN,
                client_streaming=True,
                server_streaming=True,
            )
        )
    return tuple(sorted(found, key=lambda method: method.path))
