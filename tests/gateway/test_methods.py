"""The table of methods is total."""

from google.api import annotations_pb2

from servery_gateway.methods import INFERENCE, RULES, contracts, methods


def test_every_method_of_the_contracts_has_a_rule_and_every_rule_a_method() -> None:
    described = {m.path for m in methods() if not m.service.startswith("grpc.")}
    assert described == {f"/{s}/{m}" for s, rules in RULES.items() for m in rules}


def test_only_the_exchange_of_keys_and_health_need_no_token() -> None:
    assert {method.path for method in methods() if method.rule.public} == {
        "/grpc.health.v1.Health/Check",
        "/servery.gateway.v1.AuthService/ExchangeApiKey",
    }


def with_json_form(*, inference: bool) -> dict[str, bool]:
    """Method to whether its contract says how it is called over HTTP."""
    return {
        f"{service.name}/{method.name}": method.GetOptions().HasExtension(annotations_pb2.http)
        for upstream, file in contracts()
        if (upstream == INFERENCE) is inference
        for service in file.services_by_name.values()
        for method in service.methods
    }


def test_inference_has_no_json_form() -> None:
    """Envoy would drop tensors that come as the specification writes them."""
    assert set(with_json_form(inference=True).values()) == {False}


def test_every_method_of_ours_has_a_json_form_but_those_that_stream_up_or_send_files() -> None:
    found = with_json_form(inference=False)
    assert {method for method, has_form in found.items() if not has_form} == {
        "DatasetService/AppendUpload",
        "DatasetService/CreateDataset",
        "RegistryService/ReadFile",
        "RegistryService/RegisterVersion",
        "UsageService/ExportUsage",
    }
