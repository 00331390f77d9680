"""Private directories: made closed, closed if they are this user's, refused if they are not."""

import os
import stat
from pathlib import Path

import pytest

from cluster.private_files import UnsafePathError, private_directory

ANOTHER_USER = 12345
root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to others")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestPrivateDirectory:
    def test_it_is_made_closed_whatever_the_umask(self, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            made = private_directory(tmp_path / "new")
        finally:
            os.umask(before)
        assert made == tmp_path / "new" and mode(made) == 0o700

    def test_what_others_could_read_is_closed_and_kept(self, tmp_path: Path) -> None:
        (tmp_path / "old").mkdir()
        (tmp_path / "old").chmod(0o755)
        (tmp_path / "old" / "file").write_text("kept")
        assert mode(private_directory(tmp_path / "old")) == 0o700
        assert (tmp_path / "old" / "file").read_text() == "kept"

    @pytest.mark.parametrize("bits", [0o720, 0o702, 0o777, 0o1777])
    def test_what_others_could_write_to_is_refused(self, tmp_path: Path, bits: int) -> None:
        (tmp_path / "open").mkdir()
        (tmp_path / "open").chmod(bits)
        with pytest.raises(UnsafePathError, match="others may write to it; remove it"):
            private_directory(tmp_path / "open")

    def test_a_link_is_refused_even_to_a_private_directory(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(private_directory(tmp_path / "own"))
        with pytest.raises(UnsafePathError, match="link: is no directory; remove it"):
            private_directory(tmp_path / "link")

    @pytest.mark.parametrize("kind", ["file", "dangling link"])
    def test_no_directory_is_refused(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "taken"
        path.write_text("") if kind == "file" else path.symlink_to(tmp_path / "nowhere")
        with pytest.raises(UnsafePathError, match="taken: cannot be created: File exists"):
            private_directory(path)
        assert not (tmp_path / "nowhere").exists()

    @root_only
    def test_one_of_another_user_is_refused_though_it_is_closed(self, tmp_path: Path) -> None:
        (tmp_path / "theirs").mkdir(mode=0o700)
        os.chown(tmp_path / "theirs", ANOTHER_USER, ANOTHER_USER)
        with pytest.raises(UnsafePathError, match=f"belongs to user {ANOTHER_USER}"):
            private_directory(tmp_path / "theirs")

    @root_only
    def test_one_below_another_users_directory_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "theirs").mkdir(mode=0o755)
        os.chown(tmp_path / "theirs", ANOTHER_USER, ANOTHER_USER)
        with pytest.raises(UnsafePathError, match=f"theirs belongs to user {ANOTHER_USER}"):
            private_directory(tmp_path / "theirs" / "own")

    def test_below_what_everybody_writes_to_it_needs_the_sticky_bit(self, tmp_path: Path) -> None:
        (tmp_path / "all").mkdir()
        (tmp_path / "all").chmod(0o777)
        with pytest.raises(UnsafePathError, match=r"chmod o-w .*all$"):
            private_directory(tmp_path / "all" / "own")
        (tmp_path / "all").chmod(0o1777)
        assert private_directory(tmp_path / "all" / "own").is_dir()
