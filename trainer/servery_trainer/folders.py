"""Archives with one folder per class: what is in which."""

from collections.abc import Iterator
from pathlib import Path

from servery_trainer.data_errors import DatasetInvalidError, Problem, shown
from servery_trainer.members import Member, read_members


def labelled(path: Path) -> Iterator[tuple[str, Member]]:
    """Yield the files of an archive with their classes, in its order.

    The class is the folder that a file lies in. Folders above that must be the same for all files.

    Raises:
        DatasetInvalidError: A file lies in no folder or deeper than the first one; or see
            `read_members`.
    """
    first: Member | None = None
    for member in read_members(path):
        if len(member.parts) < 2:
            raise _misplaced(member, "lies in no folder")
        first = first or member
        if member.parts[:-2] != first.parts[:-2]:
            raise _misplaced(member, f"does not lie beside the folder of {shown(first.name)!r}")
        yield member.parts[-2], member
    if first is None:
        raise DatasetInvalidError(Problem.EMPTY, "the archive holds no file")


def _misplaced(member: Member, what: str) -> DatasetInvalidError:
    return DatasetInvalidError(
        Problem.WRONG_LAYOUT,
        f"the file {shown(member.name)!r} {what}; pack one folder per class, all in one place",
        file=member.name,
    )
