"""Reports on stored datasets: `validation` of their files, which jobs use without a store."""

import asyncio
from typing import Final

from servery.trainer.v1 import dataset_pb2 as pb
from servery_trainer.dataset_store import DatasetStore
from servery_trainer.validation import Validation, validate

_CHECKS_AT_ONCE: Final = 2  # Each holds a whole dataset in memory.


class Validator:
    """Reports on the datasets of a store, few at a time."""

    def __init__(self, datasets: DatasetStore) -> None:
        self._datasets = datasets
        self._checks = asyncio.Semaphore(_CHECKS_AT_ONCE)

    async def report(self, asked: Validation) -> pb.ValidateDatasetResponse:
        """Return what was found, the worst first.

        Raises:
            DatasetNotFoundError: There is no such dataset.
            FieldInvalidError: Something is asked of arrays that only tables have.
            DatasetInvalidError: A column or array is not there, or rows cannot be divided as asked.
        """
        dataset = await asyncio.to_thread(self._datasets.get, asked.name)
        async with self._checks:
            return await asyncio.to_thread(
                validate, asked, dataset.format, self._datasets.path(asked.name)
            )
