"""The table of methods is total."""

from servery_gateway.methods import RULES, methods


def test_every_method_of_the_contracts_has_a_rule_and_every_rule_a_method() -> None:
    described = {method.path for method in methods()} - {"/grpc.health.v1.Health/Check"}
    assert described == {f"/{s}/{m}" for s, rules in RULES.items() for m in rules}


def test_only_the_exchange_of_keys_and_health_need_no_token() -> None:
    assert {method.path for method in methods() if method.rule.public} == {
        "/grpc.health.v1.Health/Check",
        "/servery.gateway.v1.AuthService/ExchangeApiKey",
    }
