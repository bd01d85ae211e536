"""Released checkpoints off the disk: what is read, and that nothing in a file is ever run."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from operators import pickles
from operators.errors import CheckpointError
from operators.pickles import read_pickle, read_released

ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "float64, by columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "float16": np.array([0.5, 2], np.float16),
    "big-endian": np.array([1, 2], ">i4"),
    "unsigned": np.array([1, 65535], np.uint16),
    "truth": np.array([True, False]),
    "no dimension": np.array(7),
    "scalar": np.float32(1.5),
    "empty": np.zeros((0, 3), np.float32),
}


def written(folder: Path, content: object, how: str) -> Path:
    """`content` as one of the ways that released files come in."""
    if how.startswith("pickle"):
        path = folder / "weights.pkl"
        path.write_bytes(pickle.dumps(content, protocol=int(how[-1])))
    else:
        path = folder / "weights.pth"
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch zip")
    return path


PICKLES = [f"pickle protocol {i}" for i in range(6)]
TORCH = ["torch zip", "torch before 1.6"]


# --------------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("how", PICKLES + TORCH)
def test_arrays(tmp_path, how):
    file = read_released(written(tmp_path, {"model": ARRAYS, "__author__": "x", "matching_heuristics": True}, how))
    assert file.container == "model" and file.others == {"__author__": "'x'", "matching_heuristics": "True"}
    assert file.state.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert file.state[name].shape == array.shape and file.state[name].tolist() == array.tolist(), name
    assert file.state["float32"].dtype == torch.float32 and file.state["float16"].dtype == torch.float16
    assert file.state["unsigned"].dtype == torch.int64 and file.state["truth"].dtype == torch.bool


@pytest.mark.parametrize("how", TORCH)
@pytest.mark.parametrize("content, container", [
    pytest.param({"a": torch.ones(2), "b": torch.tensor(3)}, "", id="bare"),
    pytest.param({"model": {"a": torch.ones(2), "b": torch.tensor(3)}, "iteration": 5}, "model", id="model"),
    pytest.param({"state_dict": OrderedDict(a=torch.ones(2), b=torch.tensor(3)), "meta": {}}, "state_dict", id="mm"),
    pytest.param({"model": {"a": torch.nn.Parameter(torch.ones(2)), "b": torch.tensor(3)}}, "model", id="parameters"),
])
def test_tensors_in_every_container(tmp_path, content, container, how):
    file = read_released(written(tmp_path, content, how))
    assert file.container == container and file.state.keys() == {"a", "b"}
    assert file.state["a"].tolist() == [1, 1] and not file.state["a"].requires_grad
    assert set(file.others) == {key for key in content if key not in (container, "a", "b")}


def test_a_pickle_of_python_2(tmp_path):
    """Opcode by opcode, as cPickle's protocol 2 has it: names and bytes are strings, modules are numpy.core's."""
    raw = np.array([1.5, -2], "<f4").tobytes()

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value                               # SHORT_BINSTRING

    dtype = (b"cnumpy\ndtype\n" + text(b"f4") + b"K\x00K\x01\x87R"              # dtype('f4', 0, 1)
             + b"(K\x03" + text(b"<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")
    values = (b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
              + b"(K\x01K\x02\x85" + dtype + b"\x89" + text(raw) + b"tb")        # (1, (2,), dtype, False, raw)
    path = tmp_path / "R-50.pkl"
    path.write_bytes(b"\x80\x02}" + text(b"model") + b"}" + text(b"res2_0_branch2a_w") + values + b"ss.")
    file = read_released(path)
    assert file.container == "model" and file.state["res2_0_branch2a_w"].tolist() == [1.5, -2.0]


def test_what_is_no_tensor_of_numbers_is_told_and_left_out(tmp_path):
    content = {
        "a": torch.ones(2),
        "epoch": 3,
        "name": "x" * 90,
        "nothing": None,
        "more": {"b": torch.ones(1)},
        "sparse": torch.eye(2).to_sparse(),
        "imaginary": torch.ones(1, dtype=torch.complex64),
        "escape \x1b[2J": torch.ones(1),
        7: torch.ones(1),
    }
    file = read_released(written(tmp_path, content, "torch zip"))
    assert file.state.keys() == {"a"} and len(file.others) == len(content) - 1
    assert file.others["epoch"] == "3" and file.others["more"] == "a dict of 1"
    assert all(text.isprintable() and len(text) < 100 for pair in file.others.items() for text in pair)


def test_safetensors(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors", metadata={"format": "pt"})
    assert read_released(tmp_path / "w.safetensors").state["a"].tolist() == [1, 1]


@pytest.mark.parametrize("how, value", [("torch before 1.6", torch.ones(1)), ("pickle protocol 2", np.ones(1))])
def test_an_ordered_dict_with_attributes_is_read_as_a_dict(tmp_path, how, value):
    """A state dict carries `_metadata`; a pickle may as well give it an `items` of its own."""
    content = OrderedDict(a=value)
    content._metadata, content.iteMs = OrderedDict(version=1), 5
    path = written(tmp_path, content, how)
    path.write_bytes(path.read_bytes().replace(b"iteMs", b"items"))
    assert read_released(path).state.keys() == {"a"}


# ------------------------------------------------------------------------------------------------------ what is refused


class Calls:
    """Pickled, it asks for a call: of `function` with `arguments`."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Plain:
    """An object of a class that exists here."""


@pytest.mark.parametrize("how", ["pickle protocol 0", "pickle protocol 2", "pickle protocol 5", *TORCH])
@pytest.mark.parametrize("make, named", [
    pytest.param(lambda mark: Calls(os.system, f"touch {mark}"), "posix.system", id="os.system"),
    pytest.param(lambda mark: Calls(eval, f"open({str(mark)!r}, 'w')"), "eval", id="eval"),
    pytest.param(lambda mark: Calls(Path.touch, mark), "", id="a method"),
    pytest.param(lambda mark: Calls(getattr, mark, "touch"), "getattr", id="getattr"),
    pytest.param(lambda mark: Calls(torch.load, str(mark)), "torch.serialization.load", id="torch.load itself"),
    pytest.param(lambda mark: Calls(np.save, str(mark), 1), "numpy.save", id="numpy.save"),
    pytest.param(lambda mark: Plain(), "", id="an object"),
    pytest.param(lambda mark: np.array([Plain()]), "", id="an array of objects"),
    pytest.param(lambda mark: np.array([None]), "dtype 'O8'", id="an array of None"),
    pytest.param(lambda mark: np.array(["text"]), "dtype 'U4'", id="an array of texts"),
    pytest.param(lambda mark: np.zeros(1, [("a", "f4")]), "dtype 'V4'", id="an array of records"),
])
def test_nothing_is_called(tmp_path, make, named, how):
    mark = tmp_path / "mark"
    path = written(tmp_path, {"model": {"a": make(mark)}}, how)
    with pytest.raises(CheckpointError) as error:
        read_released(path)
    message = str(error.value)
    assert message.startswith(f"{path}: refused, nothing of it was run: it wants ") and "\n" not in message
    assert named in message and "weights_only" not in message
    assert not mark.exists()


def array(state: bytes) -> bytes:
    """A protocol-2 pickle of {'a': array} whose state is given as opcodes, DTYPE standing for dtype('f4')."""
    head = b"\x80\x02}X\x01\x00\x00\x00acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    return head + b"(K\x01" + state.replace(b"DTYPE", b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R") + b"tbs."


HUGE = struct.pack("<q", 1 << 40)


@pytest.mark.parametrize("content, message", [
    pytest.param(array(b"K\x02\x85DTYPE\x89C\x04abcd"), r"shape \(2,\) and float32 out of 4 bytes", id="few bytes"),
    pytest.param(array(b"\x8a\x06" + bytes(5) + b"\x01\x85DTYPE\x89C\x04abcd"), "out of 4 bytes", id="a huge shape"),
    pytest.param(array(b"J\xff\xff\xff\xff\x85DTYPE\x89C\x04abcd"), "shape", id="a side of -1"),
    pytest.param(array(b"K\x01\x85DTYPE\x89]"), "not made of plain bytes", id="a list for bytes"),
    pytest.param(array(b"K\x01\x85K\x05\x89C\x04abcd"), "not made of plain bytes", id="a number for a dtype"),
    pytest.param(b"\x80\x02c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R.", "bytes with arguments", id="2 GiB of zeros"),
    pytest.param(b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85C\x01b\x87R.",
                 "a class that is not numpy.ndarray", id="another class than an array"),
    pytest.param(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.", "encode to 'rot13'",
                 id="another encoding"),
    pytest.param(b"\x80\x02c_codecs\nencode\n}X\x08\x00\x00\x00__call__K\x05sb.", "holds a function", id="a function"),
    pytest.param(b"\x80\x02ccollections\nOrderedDict\nNb0.", "not a readable", id="a class is given a state"),
    pytest.param(b"\x80\x02(K\x01Q.", "not a readable", id="a persistent id"),
    pytest.param(b"\x82\x01.", "not a readable", id="an extension code"),
    pytest.param(b"\x80\x04\x8e" + HUGE + b".", "not a readable", id="a terabyte announced"),
    pytest.param(b"\x80\x05K\x01.", "holds 1, expected a dict of tensors", id="a number"),
    pytest.param(b"\x80\x02].", "holds a list of 0, expected a dict of tensors", id="a list"),
    pytest.param(b"\x80\x02}.", "no tensors at its top or under .*It holds: nothing", id="an empty dict"),
    pytest.param(b"\x80\x02}X\x01\x00\x00\x00aK\x01s.", "no tensors at its top .*It holds: a", id="no tensor"),
    pytest.param(b"", "not a readable checkpoint, damaged or cut: EOFError", id="empty"),
    pytest.param(b"text that is no pickle", "not a readable checkpoint", id="text"),
    pytest.param(b"(" * 100_000 + b".", "not a readable checkpoint", id="marks without end"),
])  # fmt: skip
def test_pickles_that_are_no_checkpoints(tmp_path, content, message):
    path = tmp_path / "R-50.pkl"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        read_released(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("how", ["pickle protocol 2", "pickle protocol 5", *TORCH])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_cut_files(tmp_path, how, share):
    tensor = np.arange(3000.0) if how.startswith("pickle") else torch.arange(3000.0)
    path = written(tmp_path, {"model": {"a": tensor}}, how)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match="not a readable checkpoint, damaged or cut") as error:
        read_released(path)
    assert "\n" not in str(error.value)


def test_stand_ins_do_not_stay_in_torch(tmp_path):
    before = torch.serialization.get_safe_globals()
    read_released(written(tmp_path, {"a": np.ones(1)}, "torch zip"))
    with pytest.raises(CheckpointError):
        read_released(written(tmp_path, {"a": np.array([None])}, "torch zip"))
    assert torch.serialization.get_safe_globals() == before


def test_large_files_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_BYTES", 10_000)
    path = tmp_path / "large.pkl"
    path.write_bytes(b"\x80" * 10_001)
    with pytest.raises(CheckpointError, match="10001 bytes, more than 10000 are refused"):
        read_released(path)
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1_000_000))
    assert packed.stat().st_size < 10_000
    with pytest.raises(CheckpointError, match="1000000 bytes, more than 10000 are refused"):
        read_released(packed)


@pytest.mark.parametrize("name, message", [
    pytest.param("absent.pth", "no such file of weights", id="absent"),
    pytest.param("folder.pth", "is a folder, but a file of weights is expected", id="a folder"),
    pytest.param("weights.onnx", "ends in .pth, .pt, .bin, .pkl, .safetensors; this one in '.onnx'", id="another kind"),
    pytest.param("ours.safetensors", "Maskstream's own weights already", id="ours"),
    pytest.param("text.safetensors", "not a readable safetensors file", id="damaged"),
])
def test_files_of_another_kind(tmp_path, name, message):
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "weights.onnx").write_bytes(b"x")
    (tmp_path / "text.safetensors").write_bytes(b"no tensors")
    save_file({"a": torch.ones(1)}, tmp_path / "ours.safetensors", metadata={"maskstream": "1"})
    with pytest.raises(CheckpointError, match=message):
        read_released(tmp_path / name)


def test_a_pickle_that_was_saved_by_torch_is_read_by_torch(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pkl")
    assert read_released(tmp_path / "a.pkl").state.keys() == {"a"}


def test_reading_a_pickle_gives_plain_containers(tmp_path):
    content = {"numbers": (1, 2.5, 1 << 70), "text": "a", "bytes": b"\x00\xff", "list": [None, True]}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=2))
    assert read_pickle(tmp_path / "a.pkl") == content
