"""Messages of registry.proto from values, and values from messages."""

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from servery.registry.v1 import registry_pb2 as pb
from servery_registry.upload import Upload
from servery_registry.version import Alias, File, Model, Version
from servery_registry.watch import Notice
from servery_rpc.names import ModelName


def parse_header(model: ModelName, header: pb.RegisterVersionRequest.Header, limit: int) -> Upload:
    """Read the header of an upload to `model`; see `Upload.parse` for what it refuses."""
    files = [
        File.parse(f.path, f.size_bytes, f.sha256, f"header.files[{index}]")
        for index, f in enumerate(header.files)
    ]
    return Upload.parse(model, files, header.metrics, header.request_id, limit)


def render_model(model: Model) -> pb.Model:
    """Render a model."""
    return pb.Model(
        name=str(model.name),
        create_time=_time(model.create_time),
        latest_version=model.latest_version,
        aliases=[render_alias(alias) for alias in model.aliases],
    )


def render_version(version: Version) -> pb.Version:
    """Render a version."""
    return pb.Version(
        name=str(version.name),
        files=[
            pb.File(path=f.path, size_bytes=f.size_bytes, sha256=f.sha256) for f in version.files
        ],
        digest=version.digest,
        create_time=_time(version.create_time),
        metrics=version.metrics,
    )


def render_alias(alias: Alias) -> pb.Alias:
    """Render an alias."""
    return pb.Alias(
        name=str(alias.name),
        version=str(alias.version),
        etag=alias.etag,
        update_time=_time(alias.update_time),
    )


def render_notice(notice: Notice) -> pb.WatchModelsResponse:
    """Render what a watcher is told."""
    response = pb.WatchModelsResponse(resume_token=notice.resume_token)
    match notice.subject:
        case None:
            response.snapshot_complete = True
        case Version() as version:
            response.version.CopyFrom(render_version(version))
        case Alias() as alias:
            response.alias.CopyFrom(render_alias(alias))
        case name:
            response.deleted_alias = str(name)
    return response


def _time(instant: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(instant)
    return timestamp
