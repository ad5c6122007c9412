"""Resource names, parsed: past the edge of a server a name cannot be wrong.

The grammar is that of the protos: `tenants/{t}`, `tenants/{t}/models/{m}`, and below those
`versions/{n}`, `aliases/{a}`; `tenants/{t}/datasets/{d}`, `…/trainingJobs/{j}`, `…/studies/{s}`,
`…/apiKeys/{k}`, `…/identities/{i}`.
"""

import re
from dataclasses import dataclass
from typing import ClassVar, Final, Self

from servery_rpc.errors import FieldInvalidError

TENANT: Final = r"[a-z][a-z0-9-]{0,30}"
MODEL: Final = r"[a-z][a-z0-9-]{0,62}"
ALIAS: Final = r"[a-z][a-z0-9-]{0,62}"
DEFAULT_TENANT: Final = "default"
PRODUCTION: Final = "production"


class ResourceName:
    """A name of one form; the parts it is made of are the fields of its class."""

    __slots__ = ()

    _pattern: ClassVar[re.Pattern[str]]

    @classmethod
    def parse(cls, text: str, field: str = "name") -> Self:
        """Parse a resource name found in the request field `field`.

        Raises:
            FieldInvalidError: `text` is not of this form.
        """
        match = cls._pattern.fullmatch(text)
        if match is None:
            raise FieldInvalidError(field, text, f"match {cls._pattern.pattern}")
        return cls._of(*match.groups())

    @classmethod
    def _of(cls, *parts: str) -> Self:
        return cls(*parts)


@dataclass(frozen=True, slots=True, order=True)
class TenantName(ResourceName):
    """`tenants/{tenant}`."""

    tenant: str

    _pattern: ClassVar = re.compile(rf"tenants/({TENANT})")

    def __str__(self) -> str:
        return f"tenants/{self.tenant}"


@dataclass(frozen=True, slots=True, order=True)
class ModelName(ResourceName):
    """`tenants/{tenant}/models/{model}`."""

    tenant: str
    model: str

    _pattern: ClassVar = re.compile(rf"tenants/({TENANT})/models/({MODEL})")

    @property
    def wire_name(self) -> str:
        """The name on the inference wire: `{model}`, or `{tenant}.{model}` off the default one."""
        return self.model if self.tenant == DEFAULT_TENANT else f"{self.tenant}.{self.model}"

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/models/{self.model}"


@dataclass(frozen=True, slots=True, order=True)
class VersionName(ResourceName):
    """`tenants/{tenant}/models/{model}/versions/{number}`."""

    model: ModelName
    number: int

    _pattern: ClassVar = re.compile(
        rf"tenants/({TENANT})/models/({MODEL})/versions/([1-9][0-9]{{0,17}})"
    )

    @classmethod
    def _of(cls, *parts: str) -> Self:
        tenant, model, number = parts
        return cls(ModelName(tenant, model), int(number))

    def __str__(self) -> str:
        return f"{self.model}/versions/{self.number}"


@dataclass(frozen=True, slots=True, order=True)
class AliasName(ResourceName):
    """`tenants/{tenant}/models/{model}/aliases/{alias}`."""

    model: ModelName
    alias: str

    _pattern: ClassVar = re.compile(rf"tenants/({TENANT})/models/({MODEL})/aliases/({ALIAS})")

    @classmethod
    def _of(cls, *parts: str) -> Self:
        tenant, model, alias = parts
        return cls(ModelName(tenant, model), alias)

    def __str__(self) -> str:
        return f"{self.model}/aliases/{self.alias}"


@dataclass(frozen=True, slots=True, order=True)
class DatasetName(ResourceName):
    """`tenants/{tenant}/datasets/{sha256}`."""

    tenant: str
    sha256: str

    _pattern: ClassVar = re.compile(rf"tenants/({TENANT})/datasets/([0-9a-f]{{64}})")

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/datasets/{self.sha256}"


@dataclass(frozen=True, slots=True, order=True)
class UploadName(ResourceName):
    """`tenants/{tenant}/uploads/{sha256}`."""

    tenant: str
    sha256: str

    _pattern: ClassVar = re.compile(rf"tenants/({TENANT})/uploads/([0-9a-f]{{64}})")

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/uploads/{self.sha256}"


@dataclass(frozen=True, slots=True, order=True)
class TrainingJobName(ResourceName):
    """`tenants/{tenant}/trainingJobs/{job}`."""

    tenant: str
    job: str

    _pattern: ClassVar = re.compile(rf"tenants/({TENANT})/trainingJobs/([a-z0-9][a-z0-9-]{{0,62}})")

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/trainingJobs/{self.job}"


@dataclass(frozen=True, slots=True, order=True)
class StudyName(ResourceName):
    """`tenants/{tenant}/studies/{study}`."""

    tenant: str
    study: str

    _pattern: ClassVar = re.compile(rf"tenants/({TENANT})/studies/([a-z0-9][a-z0-9-]{{0,62}})")

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/studies/{self.study}"


@dataclass(frozen=True, slots=True, order=True)
class ApiKeyName(ResourceName):
    """`tenants/{tenant}/apiKeys/{key}`."""

    tenant: str
    key: str

    _pattern: ClassVar = re.compile(rf"tenants/({TENANT})/apiKeys/([a-z0-9]{{1,32}})")

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/apiKeys/{self.key}"


@dataclass(frozen=True, slots=True, order=True)
class IdentityName(ResourceName):
    """`tenants/{tenant}/identities/{identity}`: who calls without an API key."""

    tenant: str
    identity: str

    _pattern: ClassVar = re.compile(rf"tenants/({TENANT})/identities/([A-Za-z0-9._~@:%-]{{1,700}})")

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/identities/{self.identity}"
