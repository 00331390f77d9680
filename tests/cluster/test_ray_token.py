"""The token file: whole, of this user alone, and never one that somebody else has laid there."""

import os
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster import ray_token
from cluster.private_files import UnsafePathError

ANOTHER_USER = 12345
OLD = "0" * 64
root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to others")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a token, and Ray's variables unset."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def path(home: Path) -> Path:
    """Where a token as Ray writes it lies: open to all."""
    directory = home / ".ray"
    directory.mkdir()
    directory.chmod(0o755)
    (directory / "auth_token").write_text(OLD)
    (directory / "auth_token").chmod(0o644)
    return directory / "auth_token"


def test_a_new_token_is_closed_whatever_the_umask(home: Path) -> None:
    before = os.umask(0)
    try:
        assert ray_token.ensure_token_file()
    finally:
        os.umask(before)
    path = ray_token.token_path()
    assert path == home / ".ray" / "auth_token"
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert len(bytes.fromhex(path.read_text())) == 32
    assert [each.name for each in path.parent.iterdir()] == ["auth_token"]


def test_an_open_token_is_closed_and_kept(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not ray_token.ensure_token_file()
    assert (mode(path), mode(path.parent), path.read_text()) == (0o600, 0o700, OLD)
    assert OLD not in "".join(capsys.readouterr())


@pytest.mark.parametrize(("bits", "warned"), [(0o755, True), (0o700, False)])
def test_it_warns_where_others_could_have_got_to_the_token(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bits: int,
    warned: bool,
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:  # that of pytest is closed
        monkeypatch.setenv("HOME", directory)
        os.chmod(directory, bits)
        ray_token.ensure_token_file()
        path = ray_token.token_path()
        path.chmod(0o644)
        path.parent.chmod(0o755)
        ray_token.ensure_token_file()
        said = capsys.readouterr().err
        assert (f"warning: {path} was open to other users" in said) == warned
        assert mode(path) == 0o600


def test_a_blank_file_is_no_token(path: Path) -> None:
    path.write_text(" \n")
    assert ray_token.ensure_token_file()
    assert len(path.read_text()) == 64 and mode(path) == 0o600


def test_many_processes_at_once_make_one_token(home: Path) -> None:
    def ensure(_: int) -> tuple[bool, str]:
        return ray_token.ensure_token_file(), ray_token.token_path().read_text()

    with ThreadPoolExecutor(16) as threads:
        made, tokens = zip(*threads.map(ensure, range(64)), strict=True)
    assert sum(made) == 1
    assert len(set(tokens)) == 1 and len(tokens[0]) == 64


@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_a_link_is_refused_and_nothing_is_written_through_it(home: Path, target: str) -> None:
    (home / ".ray").mkdir(mode=0o700)
    (home / "elsewhere").write_text(OLD)
    (home / ".ray/auth_token").symlink_to(home / target)
    with pytest.raises(UnsafePathError, match=r"auth_token: is a link, or no file; remove it$"):
        ray_token.ensure_token_file()
    assert (home / "elsewhere").read_text() == OLD and not (home / "nowhere").exists()


def test_a_directory_that_others_may_write_to_is_refused(path: Path) -> None:
    path.parent.chmod(0o777)
    with pytest.raises(
        UnsafePathError, match=r"others may write to it; .* or name a token file of yours"
    ):
        ray_token.ensure_token()


@root_only
def test_a_token_of_another_user_is_refused_with_both_ways_out(path: Path) -> None:
    os.chown(path, ANOTHER_USER, ANOTHER_USER)
    with pytest.raises(
        UnsafePathError,
        match=f"auth_token: belongs to user {ANOTHER_USER}, who knows the token; remove it; or "
        "name a token file of yours in RAY_AUTH_TOKEN_PATH$",
    ):
        ray_token.ensure_token()


@pytest.mark.parametrize(
    ("name", "value"),
    [("RAY_AUTH_TOKEN", OLD), ("RAY_AUTH_TOKEN_PATH", "/a/file"), ("RAY_AUTH_MODE", "Disabled")],
)
def test_where_the_user_gives_ray_another_token_none_is_made(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    ray_token.ensure_token()
    assert not (home / ".ray").exists()


def test_a_blank_variable_gives_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.setenv("RAY_AUTH_MODE", "TOKEN")
    ray_token.ensure_token()
    assert len(ray_token.token_path().read_text()) == 64


def test_before_a_ray_is_joined_its_token_is_closed_and_none_is_made(path: Path) -> None:
    ray_token.close_token_file()
    assert (mode(path), path.read_text()) == (0o600, OLD)
    path.unlink()
    ray_token.close_token_file()
    assert not path.exists()


@root_only
def test_the_token_of_a_cluster_that_another_user_wrote_is_left_to_it(path: Path) -> None:
    os.chown(path, ANOTHER_USER, ANOTHER_USER)
    ray_token.close_token_file()
    assert mode(path) == 0o644
