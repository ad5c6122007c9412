"""Names are parsed at the edge, and come out as they went in."""

import pytest

from servery_rpc.errors import FieldInvalidError
from servery_rpc.names import (
    AliasName,
    ApiKeyName,
    DatasetName,
    ModelName,
    ResourceName,
    TenantName,
    TrainingJobName,
    VersionName,
)

GOOD = [
    (TenantName, "tenants/acme"),
    (ModelName, "tenants/acme/models/digits-2"),
    (VersionName, "tenants/acme/models/digits/versions/17"),
    (AliasName, "tenants/acme/models/digits/aliases/production"),
    (DatasetName, f"tenants/acme/datasets/{'0a' * 32}"),
    (TrainingJobName, "tenants/acme/trainingJobs/7f3"),
    (ApiKeyName, "tenants/acme/apiKeys/0f"),
]


@pytest.mark.parametrize(("kind", "text"), GOOD)
def test_a_name_comes_out_as_it_went_in(kind: type[ResourceName], text: str) -> None:
    assert str(kind.parse(text)) == text


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((kind, text + "/") for kind, text in GOOD),
        *((kind, text.replace("acme", "../x")) for kind, text in GOOD),
        *((kind, text + "\n") for kind, text in GOOD),
        (VersionName, "tenants/acme/models/digits/versions/0"),
        (VersionName, "tenants/acme/models/digits/versions/01"),
        (ModelName, "tenants/acme/models/Digits"),
        (ModelName, f"tenants/acme/models/{'m' * 64}"),
        (TenantName, "tenants/-"),
    ],
)
def test_anything_else_is_refused_with_its_field(kind: type[ResourceName], text: str) -> None:
    with pytest.raises(FieldInvalidError) as caught:
        kind.parse(text, "the.field")
    assert caught.value.metadata["field"] == "the.field"


def test_only_the_default_tenant_goes_without_its_name_on_the_wire() -> None:
    assert ModelName("default", "digits").wire_name == "digits"
    assert ModelName("acme", "digits").wire_name == "acme.digits"
