"""How nodes start and who may reach them: what is right, and problems at the edges."""

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from cluster.validation.start_commands import check_access, check_commands

HEAD = "RAY_AUTH_MODE=token ray start --head --autoscaling-config=~/ray_bootstrap_config.yaml"
WORKER = "RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP:6379"
TOKEN = {"~/.ray/auth_token": "~/.ray/auth_token"}


def commands(head: str = HEAD, worker: str = WORKER, **settings: Any) -> list[str]:
    whole = {
        "head_start_ray_commands": ["ray stop", head],
        "worker_start_ray_commands": ["ray stop", worker],
        "file_mounts": TOKEN,
        **settings,
    }
    return [str(problem) for problem in check_commands(whole)]


def access(**settings: Any) -> list[str]:
    return [str(problem) for problem in check_access({"auth": {"ssh_user": "ubuntu"}, **settings})]


@pytest.mark.parametrize("host", ["=0.0.0.0", " 0.0.0.0", "=::"])
def test_an_open_dashboard_needs_the_token(host: str) -> None:
    opened = f"{HEAD} --dashboard-host{host}"
    assert commands(head=opened) == []
    without = commands(head=opened.removeprefix("RAY_AUTH_MODE=token "))
    assert any("opens the dashboard to the network without a token" in each for each in without)
    assert any("set --dashboard-host=127.0.0.1" in each for each in without)


def test_commands_on_one_side_alone_are_told_once() -> None:
    (problem,) = commands(worker_start_ray_commands=None)
    assert problem.startswith("worker_start_ray_commands: missing; Ray's defaults require no token")


def test_the_token_must_be_mounted_only_where_it_is_asked_for() -> None:
    (mount,) = commands(file_mounts={"~/.ray/auth": "~/x"})
    assert mount.endswith('add "~/.ray/auth_token": "~/.ray/auth_token"')
    bare = commands(HEAD.removeprefix("RAY_AUTH_MODE=token "), file_mounts={})
    (problem,) = bare
    assert problem.startswith("head_start_ray_commands: no RAY_AUTH_MODE=token")


@pytest.mark.parametrize("field", ["setup_commands", "head_setup_commands"])
def test_a_pinned_version_must_be_the_one_here(field: str) -> None:
    here = metadata.version("ray")
    assert commands(**{field: [f"pip install ray[default,train]=={here} xray==1.0"]}) == []
    (problem,) = commands(**{field: ["pip install 'ray[train]==1.0'"]})
    assert problem == (
        f"{field} = 'ray==1.0': ray {here} is on this machine; all nodes must have the same"
    )


def test_a_build_of_torch_for_one_device_is_the_same_version() -> None:
    here = metadata.version("torch").split("+")[0]
    assert commands(setup_commands=[f"pip install torch=={here}+cu130 torchvision==9.9"]) == []


def test_a_mounted_file_must_be_here_but_for_the_token(tmp_path: Path) -> None:
    there = str(tmp_path)
    assert access(file_mounts={"/data": there, "~/.ray/auth_token": "/no/.ray/auth_token"}) == []
    (problem,) = access(file_mounts={"/data": f"{there}/absent"})
    assert problem == f"file_mounts./data = '{there}/absent': no such file on this machine"


@pytest.mark.parametrize(
    "secret", ["AKIAABCDEFGHIJKLMNOP", "HF_TOKEN=hf_x", "AWS_SECRET_ACCESS_KEY = x"]
)
def test_a_secret_is_found_anywhere_and_never_shown(secret: str) -> None:
    (problem,) = access(available_node_types={"gpu": {"node_config": {"UserData": [secret]}}})
    assert problem.startswith("available_node_types.gpu.node_config.UserData: contains a secret")
    assert secret not in problem and "revoke it" in problem


def test_a_variable_that_holds_a_secret_is_none() -> None:
    assert access(setup_commands=["export HF_TOKEN=$HF_TOKEN; echo AKIA of ours"]) == []
