"""Headers of safetensors: a bomb is refused for what it says, before a tensor is read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support.hostile import refused_cheaply, write_tensors
from trainers.untrusted.bounded_json import UntrustedFileError, parse_json, read_json
from trainers.untrusted.tensor_header import MAX_HEADER_BYTES, TensorEntry, read_tensor_header

PLENTY = 2**50


def tensor(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_a_true_header_is_read(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(0, 4), "c": torch.tensor(True)}
    save_file(tensors, tmp_path / "a", {"format": "pt"})
    entries = read_tensor_header(tmp_path / "a", PLENTY)
    assert {name: entry.shape for name, entry in entries.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    assert entries["a"] == TensorEntry((2, 3), entries["a"].start, entries["a"].start + 24)


@pytest.mark.parametrize(
    ("header", "size", "message"),
    [
        ({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, 12, "'b': overlaps another at byte 4"),
        ({"a": tensor([2], 0, 8), "b": tensor([2], 0, 8)}, 8, "'b': overlaps another at byte 0"),
        ({"a": tensor([2], 0, 8), "b": tensor([2], 12, 20)}, 20, "'b': leaves a gap before it"),
        ({"a": tensor([10**9], 0, 4 * 10**9)}, 8, "take 4000000000 bytes, but 8 follow"),
        ({"a": tensor([2], 0, 8)}, 2**40, "take 8 bytes, but 1099511627776 follow"),
        ({"a": tensor([10**9], 0, 8)}, 8, r"\[1000000000\] F32 takes 4000000000 bytes, but .* 8;"),
        ({"a": tensor([-2, -1], 0, 8)}, 8, "are no sizes"),
        ({"a": tensor([2**62, 8, 2**62], 0, 8)}, 8, "F32 takes .* bytes, but its data_offsets"),
        ({"a": tensor([2], 8, 0)}, 8, r"F32 takes 8 bytes, but its data_offsets \[8, 0\] hold -8"),
        ({"a": tensor([True], 0, 4)}, 4, "are no sizes"),
        ({"a": tensor([1], 0, 4, "object")}, 4, "of dtype 'object'; there is F64"),
        ({"a": {"shape": [1]}}, 4, "no dtype, shape and data_offsets"),
        ({"a": 7}, 4, "no dtype, shape and data_offsets"),
    ],
)
def test_tensors_fill_the_file_each_once(
    tmp_path: Path, header: dict[str, Any], size: int, message: str
) -> None:
    write_tensors(tmp_path / "a", header, size)
    with refused_cheaply(), pytest.raises(UntrustedFileError, match=rf"^{tmp_path}/a: .*{message}"):
        read_tensor_header(tmp_path / "a", PLENTY)


@pytest.mark.parametrize(
    ("length", "size", "message"),
    [
        (2**33, 100, r"is said to have 8 GiB, and the file has 100 bytes; fetch"),
        (2**64 - 1, 2**42, "is said to have 1.678e.07 TiB, and the file has 4 TiB"),
        (2**33, 2**34, "its header has 8 GiB, and at most 4 MiB are read"),
        (MAX_HEADER_BYTES + 1, 2**40, "at most 4 MiB are read"),
        (0, 8, "its header is not JSON"),
        (0, 4, "the file has 4 bytes"),
    ],
)
def test_a_length_that_is_not_true_or_too_long(
    tmp_path: Path, length: int, size: int, message: str
) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(size)
    with refused_cheaply(), pytest.raises(UntrustedFileError, match=message):
        read_tensor_header(tmp_path / "a", PLENTY)


def test_a_file_of_terabytes_is_refused_by_its_size(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"a": tensor([2**40], 0, 2**42)}, 2**42)
    with refused_cheaply(), pytest.raises(UntrustedFileError, match=r"holds 4 TiB, and at most 1 "):
        read_tensor_header(tmp_path / "a", 2**40)


class TestJson:
    """Documents that cost more than their size, or mean two things."""

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b'{"a":' * 200_000, "is nested too deeply"),
            (b"[" * 1_100_000, "has 1100000 lists and objects, and at most 1000000 are read"),
            (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' is written twice"),
            (b'{"x": {"a": 1, "a": 3}}', "the key 'a' is written twice"),
            (b"[1]", "holds a list, not a JSON object"),
            (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
            (b"\xff\xfe", "is not JSON"),
            (b" " * (2**21 + 1), "holds 2 MiB, and at most 2 MiB"),
        ],
    )
    def test_what_is_no_plain_object(self, tmp_path: Path, data: bytes, message: str) -> None:
        (tmp_path / "a.json").write_bytes(data)
        with refused_cheaply():
            with pytest.raises(UntrustedFileError, match=rf"a.json:? .*{message}"):
                read_json(tmp_path / "a.json", 2**21)
            with pytest.raises(UntrustedFileError, match=rf"^here:? .*{message}"):
                parse_json(data, 2**21, "here")

    def test_files_that_are_none(self, tmp_path: Path) -> None:
        with pytest.raises(UntrustedFileError, match="absent: cannot be read: No such file"):
            read_json(tmp_path / "absent", 10)
        with pytest.raises(UntrustedFileError, match="is no regular file"):
            read_json(Path("/dev/zero"), 10)
        (tmp_path / "a").write_text(json.dumps({"a": [1]}))
        assert read_json(tmp_path / "a", 10) == {"a": [1]}
