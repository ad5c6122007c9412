"""The trainer does not start on settings that cannot work."""

from pathlib import Path

import pytest

from servery_rpc.settings import load
from servery_trainer.settings import TrainerSettings


def read(*argv: str) -> TrainerSettings:
    return load(TrainerSettings, "SERVERY_TRAINER", argv, {})


def test_a_directory_and_a_registry_are_enough() -> None:
    settings = read("--data-dir", "d", "--registry", "unix:/r.sock")
    assert (settings.data_dir, settings.registry) == (Path("d"), "unix:/r.sock")
    assert settings.parallel_jobs == 1


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        pytest.param(["--registry", "r:1"], "--data-dir", id="no directory"),
        pytest.param(["--data-dir", "d"], "--registry", id="no registry"),
        pytest.param(["--data-dir", "d", "--registry", ""], "registry", id="empty registry"),
        *(
            pytest.param(["--data-dir", "d", "--registry", "r:1", flag, value], field, id=field)
            for flag, value, field in (
                ("--parallel-jobs", "0", "parallel_jobs"),
                ("--job-memory-bytes", "-1", "job_memory_bytes"),
                ("--cores", "-1", "cores"),
                ("--memory-bytes", "-1", "memory_bytes"),
                ("--max-dataset-bytes", "0", "max_dataset_bytes"),
                ("--max-uploads", "0", "max_uploads"),
                ("--upload-stall-s", "0", "upload_stall_s"),
                ("--upload-keep-s", "-1", "upload_keep_s"),
                ("--spare-disk-bytes", "-1", "spare_disk_bytes"),
                ("--drain-s", "-1", "drain_s"),
                ("--custom-code-tenants", "Acme", "custom_code_tenants"),
            )
        ),
    ],
)
def test_a_bad_value_is_named(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        read(*argv)
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]
