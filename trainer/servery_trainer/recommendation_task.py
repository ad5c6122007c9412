"""The task of recommending items to users, parsed."""

from dataclasses import dataclass
from typing import ClassVar, Self

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer import sources
from servery_trainer.fields import count, finite, known


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendationTask:
    """Learn from who took what which items to recommend to whom."""

    user: str
    item: str
    rating: str
    """Empty: every row is an interaction."""
    min_rating: float | None
    """Rows with a lower one are none; None: there are no ratings."""
    time: str
    """Empty: there is none."""
    k: int
    """Items in an answer."""
    repeat_items: bool
    """Recommend what a user took already, too."""
    duplicates: pb.DuplicatePolicy.ValueType

    name: ClassVar = "recommendation"
    dataset_formats: ClassVar = sources.FORMATS
    slice_columns: ClassVar = ()
    batch_size: ClassVar = 256
    """By default: each row is told from all others of its batch."""

    @classmethod
    def parse(cls, task: pb.Recommendation, path: str) -> Self:
        """Parse the message at `path`.

        Raises:
            FieldInvalidError: A field is malformed or out of its range.
        """
        named: dict[str, str] = {}
        for field in ("user", "item", "rating", "time"):
            column = getattr(task, field)
            if not column and field in ("user", "item"):
                raise FieldInvalidError(f"{path}.{field}", "", f"name the column with the {field}")
            if column in named:
                rule = f"be another column than the {named[column]}"
                raise FieldInvalidError(f"{path}.{field}", column, rule)
            if column:
                named[column] = field
        rated = task.HasField("min_rating")
        if rated != bool(task.rating):
            rule = "be unset: there is no rating" if rated else "say which rating counts"
            raise FieldInvalidError(f"{path}.min_rating", task.min_rating if rated else "", rule)
        duplicates = known(task.duplicates, pb.DuplicatePolicy, f"{path}.duplicates")
        if duplicates == pb.DUPLICATE_POLICY_KEEP and not task.repeat_items:
            rule = "be REFUSE or DROP, or repeat_items be set: who took an item is not asked again"
            raise FieldInvalidError(f"{path}.duplicates", "DUPLICATE_POLICY_KEEP", rule)
        return cls(
            user=task.user,
            item=task.item,
            rating=task.rating,
            min_rating=finite(task.min_rating, f"{path}.min_rating") if rated else None,
            time=task.time,
            k=count(task.k, 10, 1000, f"{path}.k"),
            repeat_items=task.repeat_items,
            duplicates=pb.DuplicatePolicy.ValueType(duplicates),
        )

    def to_proto(self) -> pb.Recommendation:
        """Render it; `parse` gives an equal value back."""
        return pb.Recommendation(
            user=self.user,
            item=self.item,
            rating=self.rating,
            min_rating=self.min_rating,
            time=self.time,
            k=self.k,
            repeat_items=self.repeat_items,
            duplicates=self.duplicates,
        )
