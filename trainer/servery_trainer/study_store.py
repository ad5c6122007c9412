"""Studies and their trials in the database.

Each method is one transaction. All block; any thread may call them.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, Engine, insert, select, update

from servery.trainer.v1 import training_pb2
from servery.trainer.v1 import tuning_pb2 as pb
from servery_rpc.database import reads
from servery_rpc.errors import RequestIdReusedError
from servery_rpc.names import StudyName
from servery_rpc.pages import Page
from servery_trainer.database import STUDY, STUDY_EVENT, TRIAL
from servery_trainer.event_log import Logged
from servery_trainer.job_rows import insert_job
from servery_trainer.store import JobStore, page_key
from servery_trainer.studies import FINAL, StudyEndedError, StudyNotFoundError, ranked

STUDIES: Final = Logged(
    STUDY,
    STUDY_EVENT,
    STUDY_EVENT.c.study_id,
    pb.WatchStudyResponse.FromString,
    lambda state: state in FINAL,
    StudyNotFoundError,
)

Curve = Mapping[int, float]
"""Value of the metric by epoch."""


@dataclass(slots=True)
class _Stored:
    """A study inside a transaction: what is changed here is written when it ends."""

    id: int
    study: pb.Study
    cancel_requested: bool
    connection: Connection


class StudyStore:
    """The studies of all tenants.

    Args:
        engine: The database.
        jobs: Where trials are queued.
        changed: Called with the name of a study after each commit that added to its events.
    """

    def __init__(self, engine: Engine, jobs: JobStore, changed: Callable[[str], None]) -> None:
        self._engine = engine
        self._reads = reads(engine)
        self._jobs = jobs
        self._changed = changed

    def create(self, study: pb.Study, request_id: str, digest: str, now: datetime) -> pb.Study:
        """Add a study, or return the one that the same request made before.

        Args:
            study: With its name, which follows from the id of the request if that has one.
            request_id: Empty or a UUID.
            digest: Of the request.
            now: The time.

        Raises:
            RequestIdReusedError: Another request has this id.
        """
        study.state = pb.STUDY_STATE_RUNNING
        study.create_time.FromDatetime(now.astimezone(UTC))
        with self._engine.begin() as connection:
            row = connection.execute(select(STUDY).where(STUDY.c.name == study.name)).one_or_none()
            if row is not None:
                if row.digest != digest:
                    raise RequestIdReusedError(request_id)
                return pb.Study.FromString(row.message)
            study_id = connection.execute(
                insert(STUDY)
                .values(
                    name=study.name,
                    tenant=StudyName.parse(study.name).tenant,
                    state=study.state,
                    cancel_requested=False,
                    digest=digest,
                    message=study.SerializeToString(),
                )
                .returning(STUDY.c.id)
            ).scalar_one()
            _tell_study(connection, study_id, study)
        self._changed(study.name)
        return study

    def get(self, name: StudyName) -> pb.Study:
        """Return a study.

        Raises:
            StudyNotFoundError: There is none.
        """
        with self._reads.begin() as connection:
            return _read(connection, name).study

    def list(self, tenant: str, page: Page) -> tuple[Sequence[pb.Study], str | None]:
        """Return one page of a tenant's studies, the newest first, and the key of the next page."""
        query = select(STUDY.c.id, STUDY.c.message).where(STUDY.c.tenant == tenant)
        if page.after is not None:
            query = query.where(STUDY.c.id < page_key(page.after))
        with self._reads.begin() as connection:
            rows = connection.execute(query.order_by(STUDY.c.id.desc()).limit(page.size + 1)).all()
        studies = [pb.Study.FromString(row.message) for row in rows[: page.size]]
        return studies, str(rows[page.size - 1].id) if len(rows) > page.size else None

    def trials(self, name: StudyName) -> Sequence[tuple[pb.Trial, Curve]]:
        """Return all trials of a study in order, each with what its epochs came to.

        Raises:
            StudyNotFoundError: There is no such study.
        """
        with self._reads.begin() as connection:
            rows = connection.execute(
                select(TRIAL.c.message, TRIAL.c.curve)
                .where(TRIAL.c.study_id == _read(connection, name).id)
                .order_by(TRIAL.c.number)
            ).all()
        return [(pb.Trial.FromString(row.message), _curve(row.curve)) for row in rows]

    def leaderboard(self, name: StudyName, page: Page) -> tuple[Sequence[pb.Trial], str | None]:
        """Return one page of trials in order, each with its rank, and the key of the next page.

        Raises:
            StudyNotFoundError: There is no such study.
        """
        study = self.get(name)
        trials = [trial for trial, _ in self.trials(name)]
        for rank, trial in enumerate(ranked(trials, metric=study.metric), start=1):
            trial.rank = rank
        start = page_key(page.after) if page.after is not None else 0
        end = start + page.size
        return trials[start:end], str(end) if end < len(trials) else None

    def unfinished(self) -> Sequence[StudyName]:
        """Return the studies that have not ended, the oldest first."""
        with self._reads.begin() as connection:
            names = connection.execute(
                select(STUDY.c.name).where(STUDY.c.state.not_in(FINAL)).order_by(STUDY.c.id)
            ).scalars()
            return [StudyName.parse(name) for name in names]

    def cancel_requested(self, name: StudyName) -> bool:
        """Tell whether a study was asked to stop."""
        with self._reads.begin() as connection:
            return _read(connection, name).cancel_requested

    def cancel(self, name: StudyName) -> pb.Study:
        """Note that a study is to stop.

        Raises:
            StudyNotFoundError: There is no such study.
            StudyEndedError: It has ended.
        """
        with self._change(name) as stored:
            if stored.study.state in FINAL:
                raise StudyEndedError(stored.study)
            stored.cancel_requested = True
        return stored.study

    def add_trial(
        self, name: StudyName, trial: pb.Trial, job: training_pb2.TrainingJob | None, now: datetime
    ) -> None:
        """Add a trial, and queue its job if it has one."""
        with self._change(name) as stored:
            if job:
                insert_job(stored.connection, job, now)
            stored.connection.execute(
                insert(TRIAL).values(
                    study_id=stored.id,
                    number=trial.number,
                    message=trial.SerializeToString(),
                    curve="{}",
                )
            )
            stored.study.trial_count += 1
            _tell_trial(stored, trial)
        if job:
            self._jobs.announce(job.name)

    def update_trial(self, name: StudyName, trial: pb.Trial, curve: Curve) -> None:
        """Write how a trial stands, and whether it is the best now."""
        with self._change(name) as stored:
            stored.connection.execute(
                update(TRIAL)
                .where(TRIAL.c.study_id == stored.id, TRIAL.c.number == trial.number)
                .values(message=trial.SerializeToString(), curve=json.dumps(dict(curve)))
            )
            _tell_trial(stored, trial)
            best = [stored.study.best_trial] if stored.study.HasField("best_trial") else []
            first = ranked([*best, trial], metric=stored.study.metric)[:1]
            if first and first != best:
                stored.study.best_trial.CopyFrom(first[0])
                stored.study.best_trial.rank = 1
                _tell_study(stored.connection, stored.id, stored.study)

    def publish(self, name: StudyName, job: training_pb2.TrainingJob, now: datetime) -> None:
        """Queue the job that publishes the best trial: the study is PUBLISHING from here on."""
        with self._change(name) as stored:
            insert_job(stored.connection, job, now)
            stored.study.state = pb.STUDY_STATE_PUBLISHING
            stored.study.publication_job = job.name
            _tell_study(stored.connection, stored.id, stored.study)
        self._jobs.announce(job.name)

    def end(
        self,
        name: StudyName,
        state: pb.StudyState.ValueType,
        now: datetime,
        *,
        version: str = "",
        error: training_pb2.JobError | None = None,
    ) -> None:
        """Bring a study to its end."""
        with self._change(name) as stored:
            stored.study.state = state
            stored.study.version = version
            if error:
                stored.study.error.CopyFrom(error)
            stored.study.end_time.FromDatetime(now.astimezone(UTC))
            _tell_study(stored.connection, stored.id, stored.study)

    @contextmanager
    def _change(self, name: StudyName) -> Iterator[_Stored]:
        with self._engine.begin() as connection:
            stored = _read(connection, name)
            yield stored
            connection.execute(
                update(STUDY)
                .where(STUDY.c.id == stored.id)
                .values(
                    state=stored.study.state,
                    cancel_requested=stored.cancel_requested,
                    message=stored.study.SerializeToString(),
                )
            )
        self._changed(str(name))


def _read(connection: Connection, name: StudyName) -> _Stored:
    row = connection.execute(select(STUDY).where(STUDY.c.name == str(name))).one_or_none()
    if row is None:
        raise StudyNotFoundError(name)
    return _Stored(row.id, pb.Study.FromString(row.message), row.cancel_requested, connection)


def _curve(text: str) -> Curve:
    values: dict[str, Any] = json.loads(text)
    return {int(epoch): value for epoch, value in values.items()}


def _tell_study(connection: Connection, study_id: int, study: pb.Study) -> None:
    event = pb.WatchStudyResponse(study=study).SerializeToString()
    STUDIES.replace(connection, study_id, f"study {study.state}", event)


def _tell_trial(stored: _Stored, trial: pb.Trial) -> None:
    event = pb.WatchStudyResponse(trial=trial).SerializeToString()
    STUDIES.replace(stored.connection, stored.id, f"trial {trial.number}", event)
