"""A folder of safetensors files, read one tensor at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ...shared.errors import ModelError
from .config_section import ConfigSection

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class _Stored:
    dtype: torch.dtype
    shape: tuple[int, ...]


class Checkpoint:
    """Knows in which file each tensor lives and which have been read.

    A file is mapped anew for each tensor (0.2 ms), so that the pages of those already converted
    are not counted as the process's memory until the end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = _find_tensors(folder)
        self._unread = set(self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    @property
    def num_bytes(self) -> int:
        """Of all the files."""
        return sum(file.stat().st_size for file in set(self._files.values()))

    def stored_dtype(self, name: str) -> torch.dtype:
        file = self._file_of(name)
        with _opened(file) as tensors:
            return _describe(tensors, name, file).dtype

    def read(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A converted copy; raises ModelError unless the tensor is there and of this shape."""
        return self.mapped(name, shape).to(dtype, copy=True)

    def read_into(self, target: torch.Tensor, name: str) -> None:
        """Copies the tensor over `target`, converted to its dtype."""
        target.copy_(self.mapped(name, target.shape))

    def mapped(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """The tensor as the file has it, read as it is used, for whoever needs no copy; raises
        ModelError unless it is there and of this shape."""
        file = self._file_of(name)
        with _opened(file) as tensors:
            found = _describe(tensors, name, file).shape
            if found != tuple(shape):
                raise ModelError(
                    f"{file}: tensor {name} has shape {list(found)}, but config.json asks for "
                    f"{list(shape)}"
                )
            tensor: torch.Tensor = tensors.get_tensor(name)
        self._unread.discard(name)
        return tensor

    def unread(self) -> list[str]:
        """The names of the tensors that nobody has read."""
        return sorted(self._unread)

    def _file_of(self, name: str) -> Path:
        if name not in self._files:
            raise ModelError(f"{self.folder} has no tensor {name}, which config.json asks for")
        return self._files[name]


def _find_tensors(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder; give a checkpoint's folder or a model's name")
    index = folder / INDEX_FILE
    if index.exists():
        return _read_index(index)
    single = folder / SINGLE_FILE
    if single.exists():
        with _opened(single) as tensors:
            return dict.fromkeys(tensors.keys(), single)
    if any(folder.glob("*.bin")):
        raise ModelError(
            f"{folder} holds only .bin weights; convert them to safetensors "
            "(load with transformers, then save_pretrained)"
        )
    raise ModelError(f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}")


def _read_index(index: Path) -> dict[str, Path]:
    """Trusts the files, not the index, on which tensors there are."""
    weight_map = ConfigSection.read(index).section("weight_map")
    if weight_map is None:
        raise ModelError(f"{index} lacks the key weight_map")
    found: dict[str, Path] = {}
    for file_name in sorted({weight_map.text(name) for name in weight_map}):
        file = index.parent / file_name
        if file.parent != index.parent or not file.is_file():
            raise ModelError(f"{index} names {file_name}, which is not in the folder")
        with _opened(file) as tensors:
            found |= dict.fromkeys(tensors.keys(), file)
    return found


def _opened(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{file} can't be read, it is damaged or was not downloaded to the end: {error}"
        ) from error


def _describe(tensors: safe_open, name: str, file: Path) -> _Stored:
    header = tensors.get_slice(name)  # type: ignore[no-untyped-call]  # safetensors' own
    stored = header.get_dtype()
    if stored not in _DTYPES:
        raise ModelError(
            f"{file}: tensor {name} is stored as {stored}; {', '.join(_DTYPES)} can be read"
        )
    return _Stored(_DTYPES[stored], tuple(header.get_shape()))
