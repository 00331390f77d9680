"""`up` and `down`: the commands that they run, in which environment, and what they leave."""

import os
import shlex
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster import __main__, spec
from cluster.launch import aws, iam, launcher, spot_fallback
from cluster.launch.aws import AwsAccount
from cluster.launch.launcher import AUTOSCALER_V2, LaunchError
from cluster.settings import SettingsError, read_yaml
from cluster.yaml_schema import dump_yaml
from tests.support.emulated_aws import FakeServices, emulated_aws
from tests.support.paths import ROOT

AMAZON_LINUX = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"


class Runs:
    """Runs nothing, and keeps what it should have run."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.commands: list[list[str]] = []
        self.environments: list[Mapping[str, str]] = []

    def __call__(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        self.commands.append(list(command))
        self.environments.append(environment)
        return self.status


@pytest.fixture
def onprem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """onprem.yaml filled in, in a directory and a home of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/id_ed25519").write_text("a key")
    settings = read_yaml(spec.SHIPPED_DIR / "onprem.yaml")
    settings["provider"] |= {"head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2", "10.0.0.3"]}
    path = tmp_path / "mine.yaml"
    path.write_text(dump_yaml(settings))
    return path


def test_own_machines_are_raised_with_the_autoscaler_that_starts_all(
    onprem: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs()
    assert launcher.bring_up(str(onprem), yes=True, run=runs) == onprem
    (command,) = runs.commands
    assert command[1:] == ["up", str(onprem), "--yes", "--no-config-cache"]
    assert Path(command[0]).name == "ray"
    assert runs.environments[0][AUTOSCALER_V2] == "0"
    said = capsys.readouterr().out
    assert f"$ {AUTOSCALER_V2}=0 ray up {onprem} --yes" in said
    assert f"ray dashboard {onprem}" in said and "bertha down mine.yaml" in said


def test_the_token_is_made_once_and_only_its_user_reads_it(
    onprem: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher.bring_up(str(onprem), True, Runs())
    path = onprem.parent / ".ray/auth_token"
    token = path.read_text()
    assert len(token) == 64 and stat.S_IMODE(path.stat().st_mode) == 0o600
    launcher.bring_up(str(onprem), True, Runs())
    assert path.read_text() == token
    assert token not in capsys.readouterr().out


def test_down_ends_the_workers_too(onprem: Path) -> None:
    runs = Runs()
    launcher.tear_down(str(onprem), yes=True, run=runs)
    down, *workers = runs.commands
    assert down[1:] == ["down", str(onprem), "--yes"]
    assert [command[-2] for command in workers] == ["ubuntu@10.0.0.2", "ubuntu@10.0.0.3"]
    for command in workers:
        assert command[0] == "ssh" and command[command.index("-i") + 1] == "~/.ssh/id_ed25519"
        assert r"10\.0\.0\.1" in command[-1]


def test_a_worker_that_is_not_reached_is_named(
    onprem: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Unreachable(Runs):
        def __call__(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
            super().__call__(command, environment)
            return 255 if "ubuntu@10.0.0.2" in command else 0

    runs = Unreachable()
    launcher.tear_down(str(onprem), True, runs)
    assert len(runs.commands) == 3
    assert "10.0.0.2: not reached" in capsys.readouterr().err


def test_a_dry_run_shows_and_does_nothing(onprem: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["up", str(onprem), "--dry-run"]) == 0
    assert __main__.main(["down", str(onprem), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "ray up" in said and "ray down" in said and "ubuntu@10.0.0.3" in said
    assert not (onprem.parent / ".ray").exists()


def test_ray_without_success_is_told(onprem: Path) -> None:
    with pytest.raises(LaunchError, match=r"`ray up .*mine.yaml.*` ended with status 1"):
        launcher.bring_up(str(onprem), True, Runs(status=1))


def test_a_file_with_a_mistake_is_not_raised(onprem: Path) -> None:
    runs = Runs()
    with pytest.raises(SettingsError, match="fill in"):
        launcher.bring_up("onprem", True, runs)
    assert runs.commands == []


@pytest.mark.parametrize(
    ("name", "said"), [("local", "this machine alone"), ("no-such", "no cluster")]
)
def test_what_cannot_be_raised_says_so(
    capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    assert __main__.main(["up", name]) == 2
    assert said in capsys.readouterr().err


def test_another_provider_is_left_to_ray(onprem: Path) -> None:
    settings = read_yaml(onprem)
    settings["provider"] = {"type": "gcp", "region": "us-central1"}
    onprem.write_text(dump_yaml(settings))
    with pytest.raises(SettingsError, match="use `ray up` for others"):
        launcher.bring_up(str(onprem), True, Runs())


def pretence(address: str) -> subprocess.Popen[bytes]:
    """A process with a head's address on its command line, and a child that does not name it."""
    words = f'sleep 60 & exec -a "raylet --gcs-address={address}" sleep 60'
    return subprocess.Popen(["bash", "-c", words])


def children(process: subprocess.Popen[bytes]) -> list[int]:
    told = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(each) for each in told.split()]


def is_running(pid: int) -> bool:
    """Whether a process is there, and no zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_only_what_this_head_started_is_ended() -> None:
    mine, other = pretence("10.9.8.7:6379"), pretence("10.9.8.7:63790")
    another = pretence("110.9.8.7:6379")
    try:
        # Until `exec` has happened, the name is not theirs.
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and any(
            b"raylet" not in Path(f"/proc/{each.pid}/cmdline").read_bytes()[:7]
            for each in (mine, other, another)
        ):
            time.sleep(0.02)
        (agent,) = children(mine)
        ending = launcher.stop_command("10.9.8.7", 6379)
        done = subprocess.run(["bash", "-c", ending], timeout=60)
        assert done.returncode == 0
        assert mine.wait(timeout=10) == -15
        give_up = time.monotonic() + 10  # a kill takes a moment on a busy machine
        while is_running(agent) and time.monotonic() < give_up:
            time.sleep(0.02)
        assert not is_running(agent)
        assert other.poll() is None and another.poll() is None
        assert is_running(*children(other)) and is_running(*children(another))
    finally:
        for pid in (*children(other), *children(another)):
            os.kill(pid, signal.SIGKILL)
        for each in (mine, other, another):
            each.kill()
            each.wait()


def test_the_heads_port_is_the_files(onprem: Path) -> None:
    settings = read_yaml(onprem)
    start = settings["head_start_ray_commands"]
    start[1] = start[1].replace("--port=6379", "--port=7000")
    assert all(":7000" in command[-1] for _, command in launcher.worker_stop_commands(settings))
    del settings["head_start_ray_commands"]
    assert all(":6379" in command[-1] for _, command in launcher.worker_stop_commands(settings))


def gpu(**changes: int) -> dict[str, Any]:
    """aws-gpu.yaml in the emulation: its images and our address."""
    settings = read_yaml(spec.SHIPPED_DIR / "aws-gpu.yaml")
    for kind in settings["available_node_types"].values():
        kind["node_config"]["ImageId"] = f"resolve:ssm:{AMAZON_LINUX}"
    settings["metadata"]["ssh_from"] = "203.0.113.7/32"
    return settings | changes


def test_what_is_short_of_spot_is_asked_for_on_demand() -> None:
    kinds = spot_fallback.move_to_on_demand(gpu(), {"g6e-spot": 1})["available_node_types"]
    assert (kinds["g6e-spot"]["min_workers"], kinds["g6e"]["min_workers"]) == (1, 1)
    settings = gpu()
    settings["available_node_types"]["g6e"]["max_workers"] = 1
    kinds = spot_fallback.move_to_on_demand(settings, {"g6e-spot": 2})["available_node_types"]
    assert (kinds["g6e-spot"]["min_workers"], kinds["g6e"]["min_workers"]) == (1, 1)
    del settings["available_node_types"]["g6e"]
    assert spot_fallback.move_to_on_demand(settings, {"g6e-spot": 2}) == settings


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServices]:
    with emulated_aws(str(tmp_path_factory.mktemp("home"))) as lacking:
        yield lacking


class Launches(Runs):
    """In place of `ray up`: launches so many of the workers that the file asks for."""

    def __init__(self, spot: int) -> None:
        super().__init__()
        self.spot = spot

    def __call__(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        super().__call__(command, environment)
        settings = read_yaml(Path(command[2]))
        client = AwsAccount(settings["provider"]["region"]).client("ec2")
        if command[1] == "down":
            there = aws.running_instances(
                AwsAccount(settings["provider"]["region"]), settings["cluster_name"]
            )
            client.terminate_instances(InstanceIds=[each.instance_id for each in there])
            return 0
        for kind, node in settings["available_node_types"].items():
            market = node["node_config"].get("InstanceMarketOptions")
            for _ in range(
                min(node["min_workers"], self.spot) if market else node.get("min_workers", 0)
            ):
                tags = {aws.CLUSTER_TAG: settings["cluster_name"], aws.NODE_TYPE_TAG: kind}
                client.run_instances(
                    ImageId=node["node_config"]["ImageId"], MinCount=1, MaxCount=1,
                    InstanceType=node["node_config"]["InstanceType"],
                    TagSpecifications=[{"ResourceType": "instance", "Tags": [
                        {"Key": name, "Value": value} for name, value in tags.items()]}],
                    **({"InstanceMarketOptions": market} if market else {}),
                )  # fmt: skip
        return 0


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """IAM and spot take no time here."""
    monkeypatch.setattr(iam, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(spot_fallback, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(spot_fallback, "TIMEOUT_SECONDS", -1.0)


def head_counts(runs: Runs) -> list[list[str]]:
    return [[Path(command[0]).name, *command[1:]] for command in runs.commands]


@pytest.mark.ray
def test_rented_machines_are_raised_from_the_ids_that_were_found(
    cloud: FakeServices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hurried: None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "mine.yaml"
    source.write_text(dump_yaml(gpu(cluster_name="all-come")))
    runs = Launches(spot=2)
    kept = launcher.bring_up(str(source), True, runs)
    assert kept == tmp_path / "all-come.up.yaml"
    assert head_counts(runs) == [["ray", "up", str(kept), "--yes", "--no-config-cache"]]
    assert runs.environments[0][AUTOSCALER_V2] == "1"
    made = read_yaml(kept)
    node = made["available_node_types"]["g6e-spot"]["node_config"]
    assert node["ImageId"].startswith("ami-") and node["NetworkInterfaces"][0]["SubnetId"]
    assert made["metadata"]["bucket"] == "bertha-123456789012-us-east-1"
    assert made["metadata"]["storage"] == "s3://bertha-123456789012-us-east-1/runs"
    assert spec.load_cluster_spec(kept).num_workers == 8
    said = capsys.readouterr().out
    assert "2 of 2 machines have come" in said and "SSH from 203.0.113.7/32" in said
    assert "a-secret-that-must-not-be-seen" not in said + kept.read_text()
    launcher.tear_down(str(source), True, runs)
    assert head_counts(runs)[-1] == ["ray", "down", str(kept), "--yes"]
    assert "nothing of all-come runs" in capsys.readouterr().out
    assert not kept.exists() and source.exists()
    client = AwsAccount("us-east-1").client("iam")
    for role in ("bertha-head", "bertha-worker"):
        assert "all-come" not in client.list_role_policies(RoleName=role)["PolicyNames"]


@pytest.mark.ray
def test_spot_that_does_not_come_is_replaced(
    cloud: FakeServices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hurried: None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "mine.yaml"
    source.write_text(dump_yaml(gpu(cluster_name="one-comes")))
    runs = Launches(spot=1)
    kept = launcher.bring_up(str(source), True, runs)
    assert head_counts(runs)[1] == [
        "ray", "up", str(kept), "--yes", "--no-config-cache", "--no-restart",
    ]  # fmt: skip
    kinds = read_yaml(kept)["available_node_types"]
    assert (kinds["g6e-spot"]["min_workers"], kinds["g6e"]["min_workers"]) == (1, 1)
    assert spec.load_cluster_spec(kept).num_workers == 8
    assert "on demand instead: 1 x g6e-spot" in capsys.readouterr().out


@pytest.mark.ray
def test_a_newer_image_does_not_end_the_head(
    cloud: FakeServices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hurried: None
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "mine.yaml"
    source.write_text(dump_yaml(gpu(cluster_name="twice")))
    kept = launcher.bring_up(str(source), True, Launches(spot=2))
    older = kept.read_text().replace("ami-", "ami-0")
    kept.write_text(older)
    launcher.bring_up(str(source), True, Launches(spot=2))
    assert kept.read_text() == older


@pytest.mark.ray
def test_what_still_runs_after_down_is_named(
    cloud: FakeServices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hurried: None
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "mine.yaml"
    source.write_text(dump_yaml(gpu(cluster_name="stays")))
    launcher.bring_up(str(source), True, Launches(spot=2))
    with pytest.raises(LaunchError, match=r"still running, and costing: i-.* \(g6e.12xlarge\)"):
        launcher.tear_down(str(source), True, Runs())


def test_a_command_is_shown_as_a_shell_reads_it(
    onprem: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher.tear_down(str(onprem), True, Runs())
    shown = [line[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("$ ssh")]
    assert len(shown) == 2 and all(shlex.split(line)[0] == "ssh" for line in shown)


def test_the_documented_path_names_commands_that_are_there() -> None:
    text = (ROOT / "docs/clusters.md").read_text()
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("bertha ")]
    commands = [words for words in commands if words[0] not in ("train", "tune", "serve")]
    assert len(commands) >= 12
    for words in commands:
        options = __main__.parse_arguments(words, "bertha")
        assert words[0] == "plan" or callable(options.run)
    assert {words[0] for words in commands} >= {"plan", "check", "up", "down", "offers", "spent"}
