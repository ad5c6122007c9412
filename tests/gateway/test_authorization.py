"""Who may call what, through the real Envoy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest

from servery.inference.v1 import grpc_service_pb2 as oip
from servery_gateway.methods import Method, methods
from tests.gateway.backend import message_classes

if TYPE_CHECKING:
    from tests.gateway.conftest import Stack

pytestmark = pytest.mark.asyncio(loop_scope="session")

OIP = "/inference.GRPCInferenceService"
REGISTRY = "/servery.registry.v1.RegistryService"
TRAINING = "/servery.trainer.v1.TrainingService"
DATASETS = "/servery.trainer.v1.DatasetService"
GATEWAY = "/servery.gateway.v1"
DENIED = grpc.StatusCode.PERMISSION_DENIED


def infer(model: str) -> Any:
    return oip.ModelInferRequest(model_name=model)


def name(model: str) -> Any:
    return oip.ModelMetadataRequest(name=model)


async def test_a_key_with_every_permission_reaches_every_method_that_is_offered(
    stack: Stack,
) -> None:
    every = ("infer", "read", "train", "publish", "promote", "admin")
    token = await stack.token(**{verb: ["*"] for verb in every})
    for method in methods():
        if method.upstream == "gateway" or method.rule.public:
            continue
        request = named(method)
        if method.rule.denied:
            error = await stack.refusal(method.path, token, request)
            assert error.code is DENIED, method.path
            assert error.reason == "ERROR_REASON_PERMISSION_DENIED"
            assert error.metadata == {"verb": "call", "resource": method.path}
        else:
            await stack.call(method.path, token, request)
            assert method.path in stack.backends[method.upstream].metadata


def named(method: Method) -> Any:
    """A request for the model `digits`, if the method is about one."""
    if not method.rule.model_field:
        return None
    request = getattr(oip, f"{'ModelInfer' if 'Infer' in method.name else method.name}Request")
    return request(**{method.rule.model_field: "digits"})


@pytest.mark.parametrize(
    ("permissions", "path", "allowed"),
    [
        pytest.param({"read": ["*"]}, f"{REGISTRY}/GetModel", True, id="read reads the registry"),
        pytest.param({"read": ["x"]}, f"{REGISTRY}/WatchModels", True, id="and watches it"),
        pytest.param({"infer": ["*"]}, f"{REGISTRY}/GetModel", False, id="infer does not"),
        pytest.param({"publish": ["*"]}, f"{REGISTRY}/RegisterVersion", True, id="publish"),
        pytest.param({"promote": ["*"]}, f"{REGISTRY}/RegisterVersion", False, id="no publish"),
        pytest.param({"promote": ["*"]}, f"{REGISTRY}/SetAlias", True, id="promote sets"),
        pytest.param({"promote": ["*"]}, f"{REGISTRY}/DeleteAlias", True, id="promote deletes"),
        pytest.param({"publish": ["*"]}, f"{REGISTRY}/SetAlias", False, id="publish sets not"),
        pytest.param({"train": ["*"]}, f"{TRAINING}/CreateTrainingJob", True, id="train"),
        pytest.param({"read": ["*"]}, f"{TRAINING}/CreateTrainingJob", False, id="read"),
        pytest.param({"read": ["*"]}, f"{TRAINING}/CancelTrainingJob", False, id="cancel"),
        pytest.param({"read": ["*"]}, f"{TRAINING}/WatchTrainingJob", True, id="read watches"),
        pytest.param({"train": ["*"]}, f"{TRAINING}/WatchTrainingJob", True, id="so does train"),
        pytest.param({"train": ["*"]}, f"{DATASETS}/CreateDataset", True, id="upload"),
        pytest.param({"train": ["*"]}, f"{DATASETS}/GetDataset", True, id="train reads data"),
        pytest.param({"infer": ["*"]}, f"{DATASETS}/GetDataset", False, id="infer reads none"),
        pytest.param({"infer": ["x"]}, f"{OIP}/ServerReady", True, id="any token: server"),
        pytest.param({"train": ["x"]}, f"{OIP}/RepositoryIndex", True, id="any token: index"),
        pytest.param({"infer": ["*"]}, f"{GATEWAY}.ApiKeyService/CreateApiKey", False, id="admin"),
    ],
)
async def test_a_method_needs_its_verb(
    stack: Stack, permissions: dict[str, list[str]], path: str, allowed: bool
) -> None:
    token = await stack.token(**permissions)
    if allowed:
        await stack.call(path, token)
    else:
        error = await stack.refusal(path, token)
        assert error.code is DENIED
        assert error.reason == "ERROR_REASON_PERMISSION_DENIED"
        assert error.metadata["resource"] == "tenants/default"


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize(
    ("tenant", "patterns", "model", "allowed"),
    [
        pytest.param("default", ["digits"], "digits", True, id="exact"),
        pytest.param("default", ["cats", "dig*"], "digits", True, id="prefix"),
        pytest.param("default", ["*"], "digits", True, id="all"),
        pytest.param("default", ["digit"], "digits", False, id="no prefix without a star"),
        pytest.param("default", ["cats"], "digits", False, id="another model"),
        pytest.param("default", ["*"], "acme.digits", False, id="another tenant"),
        pytest.param("acme", ["*"], "acme.digits", True, id="own tenant"),
        pytest.param("acme", ["*"], "digits", False, id="the default tenant's"),
        pytest.param("acme", ["dig*"], "acme.cats", False, id="own tenant, another model"),
        pytest.param("acme", ["acme*"], "acme.digits", False, id="patterns hold no tenant"),
    ],
)
async def test_a_model_needs_a_pattern_of_its_tenant(
    stack: Stack, tenant: str, patterns: list[str], model: str, allowed: bool, stream: bool
) -> None:
    token = await stack.token(tenant, infer=patterns)
    path = f"{OIP}/ModelStreamInfer" if stream else f"{OIP}/ModelInfer"
    stack.backends["inference"].metadata.clear()
    if allowed:
        await stack.call(path, token, infer(model))
        assert stack.backends["inference"].metadata[path]["x-servery-model"] == model
    else:
        error = await stack.refusal(path, token, infer(model))
        assert error.code is DENIED
        owner, _, rest = model.rpartition(".")
        resource = f"tenants/{owner or 'default'}/models/{rest}"
        assert error.metadata == {"verb": "infer", "resource": resource}
        assert not stack.backends["inference"].metadata


@pytest.mark.parametrize("verb", ["infer", "read"])
@pytest.mark.parametrize(
    "method", ["ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"]
)
async def test_infer_and_read_both_inspect_their_models(
    stack: Stack, verb: str, method: str
) -> None:
    token = await stack.token(**{verb: ["digits"], "train": ["*"]})
    await stack.call(f"{OIP}/{method}", token, name("digits"))
    assert (await stack.refusal(f"{OIP}/{method}", token, name("cats"))).code is DENIED


@pytest.mark.parametrize(
    "model", ["", "Digits", "default.digits", "a.b.c", "x" * 64, "../digits", "digits\r\nx: y", "ä"]
)
async def test_a_name_that_is_no_model_is_the_callers_mistake(stack: Stack, model: str) -> None:
    token = await stack.token(infer=["*"])
    error = await stack.refusal(f"{OIP}/ModelInfer", token, infer(model))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "ERROR_REASON_FIELD_INVALID"
    assert error.metadata["field"] == "model_name"


async def test_statistics_of_all_models_at_once_are_not_offered(stack: Stack) -> None:
    token = await stack.token(read=["*"])
    error = await stack.refusal(f"{OIP}/ModelStatistics", token, name(""))
    assert error.reason == "ERROR_REASON_FIELD_INVALID"


async def test_a_request_that_is_no_protobuf_is_refused(stack: Stack) -> None:
    token = await stack.token(infer=["*"])
    call: Any = stack.channel.unary_unary(f"{OIP}/ModelInfer")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\x0a\xff", metadata=[("authorization", f"Bearer {token}")])
    assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, DENIED)


@pytest.mark.parametrize(
    "path",
    [
        "/grpc.health.v1.Health/Watch",
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
        "/no.Such/Method",
        f"{OIP}/modelInfer",
        f"{OIP}/ServerLive?x=1",
        f"/x/..{OIP}/RepositoryModelLoad",
    ],
)
async def test_what_is_not_listed_is_refused(stack: Stack, path: str) -> None:
    token = await stack.token(admin=["*"], infer=["*"])
    call: Any = stack.channel.unary_unary(path)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"", metadata=[("authorization", f"Bearer {token}")])
    assert caught.value.code() is DENIED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"")
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_mistake_in_the_script_that_decides_refuses(stack: Stack) -> None:
    """Envoy goes on after an error in a script; the filter behind it does not."""
    token = stack.forged(permissions=5)
    assert (await stack.refusal(f"{REGISTRY}/GetModel", token)).code is DENIED


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_describes_what_is_behind_the_gateway(stack: Stack, version: str) -> None:
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    token = await stack.token(infer=["digits"])

    async def ask(**request: str) -> Any:
        method = next(method for method in methods() if method.path == path)
        return await stack.call(path, token, message_classes(method)[0](**request))

    listed = await ask(list_services="*")
    services = {service.name for service in listed.list_services_response.service}
    assert services == {method.service for method in methods()}
    for symbol in (*services, "google.rpc.ErrorInfo"):
        described = await ask(file_containing_symbol=symbol)
        assert described.file_descriptor_response.file_descriptor_proto, symbol
    error = await stack.refusal(path)
    assert error.code is grpc.StatusCode.UNAUTHENTICATED
