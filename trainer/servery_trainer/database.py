"""The database of the trainer: its tables, and an engine brought up to date.

A row keeps its resource as the serialized message and, beside it, what is searched for. So a field
added to a contract needs no migration.
"""

from pathlib import Path
from typing import Final

from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
    func,
    select,
)

from servery_rpc import database

METADATA: Final = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

DATASET: Final = Table(
    "dataset",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("tenant", String(31), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("message", LargeBinary, nullable=False, comment="servery.trainer.v1.Dataset"),
    UniqueConstraint("tenant", "sha256"),
    sqlite_autoincrement=True,
)

TRAINING_JOB: Final = Table(
    "training_job",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False),
    Column("tenant", String(31), nullable=False),
    Column("state", Integer, nullable=False, comment="servery.trainer.v1.TrainingJobState"),
    Column("cancel_requested", Boolean, nullable=False),
    Column("committing", Boolean, nullable=False, comment="the registry may hold the version"),
    Column("message", LargeBinary, nullable=False, comment="servery.trainer.v1.TrainingJob"),
    Column("priority", Integer, nullable=False),
    Column("cores", Integer, nullable=False, comment="0: it starts no process"),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("create_time_s", Float, nullable=False, comment="Unix time"),
    Column("not_before_s", Float, nullable=False, comment="Unix time of the next attempt"),
    Column("run_since_s", Float, nullable=False, comment="Unix time of the last attempt"),
    Column("crashes", Integer, nullable=False, comment="attempts that ended without saying how"),
    UniqueConstraint("name"),
    Index(None, "state", "id"),
    Index(None, "tenant", "id"),
    sqlite_autoincrement=True,
)

JOB_EVENT: Final = Table(
    "job_event",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("job_id", ForeignKey("training_job.id"), nullable=False),
    Column("subject", String(200), nullable=False, comment="newer progress replaces older of it"),
    Column("message", LargeBinary, nullable=False, comment="WatchTrainingJobResponse"),
    Index(None, "job_id", "id"),
    sqlite_autoincrement=True,
)

CREATE_REQUEST: Final = Table(
    "create_request",
    METADATA,
    Column("tenant", String(31), primary_key=True),
    Column("request_id", String(36), primary_key=True),
    Column("digest", String(64), nullable=False, comment="SHA-256 of the request"),
    Column("job_id", ForeignKey("training_job.id"), nullable=False),
    Column("create_time_s", BigInteger, nullable=False, comment="Unix time"),
)

TENANT_USAGE: Final = Table(
    "tenant_usage",
    METADATA,
    Column("tenant", String(31), primary_key=True),
    Column("machine_s", Float, nullable=False, comment="seconds of the whole machine, decayed"),
    Column("at_s", Float, nullable=False, comment="Unix time up to which it is decayed"),
)

STUDY: Final = Table(
    "study",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False),
    Column("tenant", String(31), nullable=False),
    Column("state", Integer, nullable=False, comment="servery.trainer.v1.StudyState"),
    Column("cancel_requested", Boolean, nullable=False),
    Column("digest", String(64), nullable=False, comment="SHA-256 of the request"),
    Column("message", LargeBinary, nullable=False, comment="servery.trainer.v1.Study"),
    UniqueConstraint("name"),
    Index(None, "tenant", "id"),
    sqlite_autoincrement=True,
)

TRIAL: Final = Table(
    "trial",
    METADATA,
    Column("study_id", ForeignKey("study.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("message", LargeBinary, nullable=False, comment="servery.trainer.v1.Trial"),
    Column("curve", Text, nullable=False, comment="JSON: value of the metric by epoch"),
)

STUDY_EVENT: Final = Table(
    "study_event",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("study_id", ForeignKey("study.id"), nullable=False),
    Column("subject", String(200), nullable=False, comment="newer events replace older ones of it"),
    Column("message", LargeBinary, nullable=False, comment="WatchStudyResponse"),
    Index(None, "study_id", "id"),
    sqlite_autoincrement=True,
)

_WRITING: Final = 0x54726169
"""The lock of who writes, on PostgreSQL."""


def open_database(where: Path | URL) -> Engine:
    """Open the SQLite file or the PostgreSQL database `where`, with the tables above.

    A transaction takes the write lock when it begins, so that what it read still holds when it
    writes, and the order of ids is that of commits; `reads` gives an engine for those that only
    read.

    Raises:
        OSError: The file cannot be opened.
        RuntimeError: The database cannot be used.
    """
    engine = database.open_database(where, "servery_trainer")
    if engine.dialect.name == "postgresql":
        event.listen(engine, "begin", _lock)
    return engine


def _lock(connection: Connection) -> None:
    if not connection.get_execution_options().get("postgresql_readonly", False):
        connection.execute(select(func.pg_advisory_xact_lock(_WRITING)))
