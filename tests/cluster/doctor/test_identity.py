"""What a head knows of the file that its Ray was brought up with."""

from pathlib import Path

import pytest

from cluster.doctor.identity import read_cluster_name

GCS = "10.0.0.2:6379"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """Make processes: a shell, the autoscalers of two Rays, and one without a file."""
    for name in ("lab", "attic"):
        (tmp_path / f"{name}.yaml").write_text(f"cluster_name: {name}\nprovider: {{type: local}}\n")
    monitor = ["python", "-u", "monitor.py", "--logs-dir=/tmp"]
    commands = [
        ["bash", "-c", "echo --gcs-address=10.0.0.2:6379"],
        [*monitor, "--gcs-address=10.0.0.1:6379", f"--autoscaling-config={tmp_path}/attic.yaml"],
        [*monitor, f"--gcs-address={GCS}", f"--autoscaling-config={tmp_path}/lab.yaml"],
        [*monitor, "--gcs-address=10.0.0.3:6380"],
        [*monitor, "--gcs-address=10.0.0.4:6379", f"--autoscaling-config={tmp_path}/gone.yaml"],
    ]
    for number, words in enumerate(commands, 1):
        (tmp_path / "proc" / str(number)).mkdir(parents=True)
        (tmp_path / "proc" / str(number) / "cmdline").write_bytes("\0".join(words).encode())
    (tmp_path / "proc" / "self").mkdir()
    return tmp_path / "proc"


@pytest.mark.parametrize(
    ("gcs_address", "name"),
    [
        (GCS, "lab"),
        ("10.0.0.1:6379", "attic"),
        ("10.0.0.3:6380", None),
        ("10.0.0.4:6379", None),
        ("10.0.0.9:6379", None),
    ],
    ids=["of the file", "of another Ray here", "no file", "file is gone", "no such Ray"],
)
def test_the_name_is_that_of_the_file_of_this_ray(
    proc: Path, gcs_address: str, name: str | None
) -> None:
    assert read_cluster_name(gcs_address, proc) == name


def test_the_loopback_is_any_ray_of_its_port(proc: Path, tmp_path: Path) -> None:
    words = ["m", "--gcs-address=10.0.0.7:7777", f"--autoscaling-config={tmp_path}/lab.yaml"]
    (proc / "9").mkdir()
    (proc / "9" / "cmdline").write_bytes("\0".join(words).encode())
    assert read_cluster_name("127.0.0.1:7777", proc) == "lab"
    assert read_cluster_name("127.0.0.1:7778", proc) is None
