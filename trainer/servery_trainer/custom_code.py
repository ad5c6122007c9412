"""Who may have code of their own run, and what is said of code that fails.

The code itself is loaded by `custom_module`, in the process of a job, and nowhere else.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from servery.errors.v1 import error_reason_pb2 as reasons
from servery.trainer.v1 import training_pb2
from servery_rpc.errors import ServeryError
from servery_trainer.networks import Custom

Problem = Literal["RAISED", "NO_BUILD", "WRONG_RESULT", "NOT_CONVERTIBLE", "WROTE_FILES", "SLOW"]
"""See error_reason.proto."""


class CustomCodeForbiddenError(ServeryError):
    """Code of a tenant's own is not run here."""

    reason = reasons.ERROR_REASON_CUSTOM_CODE_FORBIDDEN

    def __init__(self, tenant: str, *, enabled: bool) -> None:
        why = (
            "this machine cannot shut it in, which takes Linux 6.2 or later on x86-64 with Landlock"
            if enabled
            else f"tenants/{tenant} is not among the tenants whose code it runs; ask its operator"
        )
        super().__init__(
            f"the trainer does not run this module: {why}",
            tenant=tenant,
            problem="NO_SANDBOX" if enabled else "NOT_ENABLED",
        )


class CustomCodeError(ServeryError):
    """The module of a caller failed.

    Args:
        problem: In what way.
        what: The same for people, who wrote the module.
        line: Of the module, from 1; 0 if no line is to blame.
    """

    reason = reasons.ERROR_REASON_CUSTOM_CODE_FAILED

    def __init__(self, problem: Problem, what: str, line: int = 0) -> None:
        where = f"line {line} of the module" if line else "the module"
        super().__init__(f"{where}: {what}", problem=problem, line=str(line))


def is_custom(spec: training_pb2.TrainingSpec) -> bool:
    """Tell whether a job runs code of its tenant's own."""
    return spec.WhichOneof("family") == Custom.name


@dataclass(frozen=True, slots=True)
class CustomCodePolicy:
    """Whose code a trainer runs."""

    tenants: Collection[str] = ()
    """Ids of those who may."""

    has_sandbox: bool = False
    """Whether jobs can be shut in here."""

    def require(self, tenant: str, spec: training_pb2.TrainingSpec) -> None:
        """Refuse a job with code of its own unless its tenant may have it run.

        Raises:
            CustomCodeForbiddenError: It may not, or nobody may here.
        """
        if not is_custom(spec):
            return
        enabled = tenant in self.tenants
        if not (enabled and self.has_sandbox):
            raise CustomCodeForbiddenError(tenant, enabled=enabled)
