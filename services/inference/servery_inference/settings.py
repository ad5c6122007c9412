"""What the inference process can be told."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from servery_inference.cores import usable_cores
from servery_inference.directory import CONTROL_MODES, ControlMode
from servery_inference.options import PROVIDERS, EngineSettings
from servery_inference.rate_limit import MODES, OFF, RateLimiter
from servery_inference.run_resources import Provision
from servery_inference.sandbox import AdmissionLimits
from servery_inference.transport import TRANSPORTS
from servery_rpc.settings import ServerSettings, is_private, option

_STORE: Final = re.compile(r"(s3|gs|az|file):/+(.*)")
_MIN_ADMISSION_BYTES: Final = 1 << 30
_INT32_MAX: Final = (1 << 31) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceSettings(ServerSettings):
    """Serve ONNX models over the Open Inference Protocol, from a directory or a registry."""

    model_repository: Path | None = option(
        "directory to serve, as <model>/<version>/model.onnx, or s3://, gs:// or az:// and a"
        " bucket with an optional prefix; this or --registry",
        None,
    )
    model_control_mode: str = option(
        "none: serve every model, once; poll: look at the directory again and again; explicit:"
        " serve --load-model and what RepositoryModelLoad asks for",
        "none",
    )
    load_model: tuple[str, ...] = option(
        "names of the models to begin with in mode explicit; * for all", ()
    )
    repository_poll_secs: float = option("seconds between two looks in mode poll", 15.0)
    registry: str | None = option(
        "host:port or unix:/path of the registry to serve; this or --model-repository", None
    )
    cache_dir: Path | None = option(
        "directory for files that come from elsewhere, and for what was found out about graphs, so"
        " that they load sooner next time; needed with --registry and with a --model-repository in"
        " object storage",
        None,
    )
    grpc_port: int | None = option("short for --listen 127.0.0.1:PORT", None)
    transport: str = option(
        "fast: Servery's own HTTP/2 server; or grpcio, which costs up to ten times as much a call",
        "fast",
    )
    workers: int = option(
        "processes that answer calls, on the same port; each loads every model, and gets an even"
        " share of cores, memory limits and places in flight. Needs --transport fast",
        1,
    )
    http_port: int | None = option(
        "loopback port for the same service over HTTP; 0 picks a free one; unset: none", None
    )
    http_listen: str | None = option(
        "unix:/path or loopback host:port to serve HTTP on; this or --http-port", None
    )
    shared_memory: bool = option(
        "true lets clients on this machine keep tensors in POSIX shared memory; whoever reaches"
        " the server can then read and change objects there that this user may",
        default=False,
    )
    execution_provider: str = option("cpu or cuda; never another one silently", "cpu")
    intra_op_threads: int = option(
        "threads that share one run of a model; more shorten long runs and cost throughput",
        1,
    )
    auto_max_batch_size: int = option(
        "rows that a request to a model may have which can batch and whose configuration does not"
        " say; 0: such models do not batch",
        8192,
    )

    admission_wall_s: float = option(
        "seconds that a graph of --model-repository gets to open in a throw-away process, before"
        " this one opens it; 0: this one opens it at once",
        60.0,
    )
    admission_memory_bytes: int = option(
        "bytes of address space that the throw-away process gets", 16 << 30
    )
    max_waiting_requests: int = option(
        "requests that may wait for their turn, over all models; more are refused at once", 1000
    )
    rate_limit: str = option(
        "off, or execution_count: runs of models whose instances have a rate_limiter wait for its"
        " resources, by its priority",
        OFF,
    )
    rate_limit_resource: tuple[str, ...] = option(
        "name:count or name:count:device, for each resource there is; unset: of each as much as"
        " the instance needs that needs most",
        (),
    )
    response_cache_bytes: int = option(
        "bytes of memory for answers of models whose configuration has response_cache; 0: none", 0
    )
    model_memory_limit_bytes: int | None = option(
        "bytes of memory that all models together may be accounted with; unset: no limit", None
    )

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ValueError: A field is out of its range or contradicts another; the message names it.
        """
        if self.grpc_port is not None:
            if not 0 <= self.grpc_port <= 65535:
                raise ValueError(f"grpc_port must be 0 to 65535, not {self.grpc_port}")
            object.__setattr__(self, "listen", f"127.0.0.1:{self.grpc_port}")
        ServerSettings.__post_init__(self)  # super() does not know the class that slots made.
        if self.http_port is not None and not 0 <= self.http_port <= 65535:
            raise ValueError(f"http_port must be 0 to 65535, not {self.http_port}")
        if self.http_listen is not None:
            if self.http_port is not None:
                raise ValueError("give at most one of http_port and http_listen")
            if not is_private(self.http_listen):
                raise ValueError(
                    f"http_listen is {self.http_listen!r}, which others can reach; it has no TLS:"
                    " listen on a unix socket or 127.0.0.1, behind the gateway"
                )
        if (self.model_repository is None) == (self.registry is None):
            raise ValueError("give exactly one of model_repository and registry")
        if self.registry is not None and self.cache_dir is None:
            raise ValueError("registry needs cache_dir, where the files of its models are kept")
        if self.object_store is not None:
            if self.cache_dir is None:
                raise ValueError("a model_repository in object storage needs cache_dir")
        elif self.model_repository is not None and not self.model_repository.is_dir():
            raise ValueError(f"model_repository {str(self.model_repository)!r} is no directory")
        if self.max_waiting_requests < 1:
            raise ValueError(
                f"max_waiting_requests must be at least 1, not {self.max_waiting_requests}"
            )
        if self.rate_limit not in MODES:
            raise ValueError(f"rate_limit must be off or execution_count, not {self.rate_limit!r}")
        if self.rate_limit_resource and self.rate_limit == OFF:
            raise ValueError("rate_limit_resource needs rate_limit execution_count")
        for text in self.rate_limit_resource:
            Provision.parse(text)
        if self.response_cache_bytes < 0:
            raise ValueError(
                f"response_cache_bytes must be at least 0, not {self.response_cache_bytes}"
            )
        if self.model_control_mode not in CONTROL_MODES:
            raise ValueError(
                "model_control_mode must be none, poll or explicit, not"
                f" {self.model_control_mode!r}"
            )
        if self.model_control_mode != "none" and self.registry is not None:
            raise ValueError("model_control_mode is for model_repository; the registry decides")
        if self.load_model and self.model_control_mode != "explicit":
            raise ValueError("load_model needs model_control_mode explicit")
        if not self.repository_poll_secs > 0:
            raise ValueError(
                f"repository_poll_secs must be above 0, not {self.repository_poll_secs}"
            )
        if self.transport not in TRANSPORTS:
            raise ValueError(f"transport must be grpcio or fast, not {self.transport!r}")
        if self.execution_provider not in PROVIDERS:
            raise ValueError(
                f"execution_provider must be cpu or cuda, not {self.execution_provider!r}"
            )
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, not {self.workers}")
        if not 1 <= self.intra_op_threads <= self.cores:
            raise ValueError(
                f"intra_op_threads must be 1 to {self.cores}, the cores that each process may use,"
                f" not {self.intra_op_threads}"
            )
        if self.workers > 1 and self.transport != "fast":
            raise ValueError(f"{self.workers} workers need transport fast, not {self.transport}")
        if self.workers > 1 and self.rate_limit != OFF:
            raise ValueError(
                f"rate_limit {self.rate_limit} counts the runs of one process: it needs workers 1,"
                f" not {self.workers}"
            )

        if self.admission_wall_s < 0:
            raise ValueError(f"admission_wall_s must be at least 0, not {self.admission_wall_s}")
        if self.admission_memory_bytes < _MIN_ADMISSION_BYTES:
            raise ValueError(
                f"admission_memory_bytes must be at least {_MIN_ADMISSION_BYTES}, not"
                f" {self.admission_memory_bytes}"
            )
        if self.model_memory_limit_bytes is not None and self.model_memory_limit_bytes < 0:
            raise ValueError(
                f"model_memory_limit_bytes must be at least 0, not {self.model_memory_limit_bytes}"
            )
        if not 0 <= self.auto_max_batch_size <= _INT32_MAX:
            raise ValueError(
                f"auto_max_batch_size must be 0 to {_INT32_MAX}, not {self.auto_max_batch_size}"
            )

    @property
    def admission(self) -> AdmissionLimits | None:
        """What opening a graph of a directory first may cost; None to trust them."""
        if self.model_repository is None or not self.admission_wall_s:
            return None
        return AdmissionLimits(
            memory_bytes=self.admission_memory_bytes, wall_s=self.admission_wall_s
        )

    @property
    def limiter(self) -> RateLimiter | None:
        """What decides when runs begin; None for as soon as they can."""
        if self.rate_limit == OFF:
            return None
        return RateLimiter([Provision.parse(text) for text in self.rate_limit_resource])

    @property
    def object_store(self) -> str | None:
        """The URL of `model_repository`, if it is one."""
        match = _STORE.match(str(self.model_repository))
        if match is None:
            return None
        slashes = "///" if match[1] == "file" else "//"
        return f"{match[1]}:{slashes}{match[2]}"

    @property
    def control_mode(self) -> ControlMode:
        """Who decides what of the directory is served."""
        return cast("ControlMode", self.model_control_mode)

    @property
    def http_address(self) -> str | None:
        """Where to serve HTTP; None for nowhere."""
        return self.http_listen if self.http_port is None else f"127.0.0.1:{self.http_port}"

    @property
    def cores(self) -> int:
        """How many of them each process may use."""
        return max(1, usable_cores() // self.workers)

    def share(self, total: int) -> int:
        """Return the part that each process gets of what all may use together, rounded up."""
        return -(-total // self.workers)

    @property
    def engine(self) -> EngineSettings:
        """How sessions run."""
        return EngineSettings(
            "cuda" if self.execution_provider == "cuda" else "cpu",
            self.intra_op_threads,
            self.auto_max_batch_size,
            self.cores,
        )
