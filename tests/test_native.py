"""The native functions give what their references in Python give, and read nothing outside."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dolmen import metadata, native
from dolmen.http.head import recognize
from dolmen.names import CHECKSUM_SIZE
from dolmen.record import CHECKSUM_AT, HEADER_SIZE, Kind, block_sums, encode_head
from dolmen.stores.records import sound_records
from dolmen.stores.volume.disk import read_cached, read_record
from dolmen.stores.volume.entry import key_of

SOURCE = Path(__file__).parents[1] / "src/dolmen/native.c"
COMPILER = shlex.split(os.environ.get("CC", "cc"))

EXAMPLES = int(os.environ.get("DOLMEN_TEST_NATIVE_EXAMPLES", "500"))

LINES = [b"Host: a", b"Content-Length: 5", b"A: b\r", b"A:\x00", b"", b"\xff", b"Range: bytes=0-"]
BLOCKS = st.lists(st.sampled_from(LINES), max_size=4).map(
    lambda lines: b"".join(b"\r\n" + line for line in lines) + b"\r\n\r\n"
)
TARGETS = st.one_of(
    st.sampled_from([b"/blob/a", b"/", b"", b"*", b"/a b", b"/a#b", b"/\x7f", b"/\x80", b"a/"]),
    st.binary(max_size=8).map(lambda rest: b"/" + rest),
)
METHODS = st.sampled_from([b"GET", b"HEAD", b"PUT", b"POST", b"DELETE", b"get", b"PATCH", b""])
VERSIONS = st.sampled_from(
    [b" HTTP/1.1", b" HTTP/1.0", b"HTTP/1.1", b" HTTP/1.1 ", b" HTTP/1.", b""]
)
HEX = "0123456789abcdef"
NAMES = st.one_of(
    st.text(HEX, min_size=64, max_size=64),
    st.text(HEX, min_size=40, max_size=40),
    st.text(HEX, min_size=64, max_size=64).map(lambda digits: "chunk" + digits),
    st.text("0123456789abcdefABCDEF \xe9", min_size=38, max_size=70),
    st.text(max_size=80),
    st.text(st.characters(codec=None), max_size=8),
)


def outcome(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 - which one it is, is what is compared
        return type(error)


def same(function: Any, *arguments: Any) -> Any:
    """What both forms give."""
    reference = native.REFERENCES[function.__name__]
    expected = outcome(reference, *arguments)
    assert outcome(function, *arguments) == expected
    return expected


@settings(max_examples=EXAMPLES)
@given(METHODS, TARGETS, VERSIONS, BLOCKS, st.binary(max_size=6), st.integers(0, 80), st.booleans())
@example(b"GET", b"/blob/a", b" HTTP/1.1", b"\r\nHost: a\r\n\r\n", b"", 80, True)
def test_a_head_is_recognized_the_same(
    method: bytes, target: bytes, version: bytes, block: bytes, body: bytes, cut: int, known: bool
) -> None:
    data = (method + b" " + target + version + block + body)[: cut if cut < 80 else None]
    same(recognize, data, block if known else b"?")
    same(recognize, data, data[len(data) // 2 :])


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"PUT", b"POST", b"DELETE"])
def test_a_plain_request_cut_anywhere_is_recognized_the_same(method: bytes) -> None:
    block = b"\r\nHost: a\r\n\r\n"
    data = method + b" /blob/x HTTP/1.1" + block
    assert same(recognize, data + b"body", block) == (method.decode(), b"/blob/x", len(data))
    for cut in range(len(data)):
        assert same(recognize, data[:cut], block) is None
        same(recognize, data, data[cut:])


@settings(max_examples=EXAMPLES)
@given(NAMES)
@example("\ud800")
@example("f" * 64)
@example("F" * 64)
@example("chunk" + "0" * 64)
@example("")
def test_a_name_has_the_same_key(name: str) -> None:
    same(key_of, name)


LENGTHS = st.one_of(
    st.integers(0, 70),
    st.sampled_from([1_023, 4_079, 4_080, 4_081, 12_240, 65_535, 65_536, 65_537, 262_144]),
)


@pytest.fixture(scope="module")
def record_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """An open file whose cached bytes can be asked for."""
    with (tmp_path_factory.mktemp("native") / "record").open("w+b", buffering=0) as file:
        file.write(b"some")
        if read_cached(file.fileno(), bytearray(4), 0) is None:
            pytest.skip("the file system of the temporary folder knows no RWF_NOWAIT")
        yield file.fileno()


@settings(max_examples=EXAMPLES)
@given(LENGTHS, NAMES, st.integers(0, 200), st.integers(0, 300), st.integers(0, 10**9), st.data())
def test_a_record_is_read_and_checked_the_same(
    record_file: int,
    length: int,
    name: str,
    inner: int,
    at: int,
    seed: int,
    data: st.DataObject,
) -> None:
    encoded = name.encode(errors="replace")[:128]
    content = (seed.to_bytes(4) * (length // 4 + 1))[:length]
    checksum = bytes(range(16))
    record = bytearray(at)
    record += encode_head(Kind.BLOB, encoded, bytes(inner), length, 1, checksum)
    record += content + block_sums(content)
    os.ftruncate(record_file, 0)
    os.pwrite(record_file, record, 0)
    right = (record_file, at, encoded, inner, length, checksum)
    assert same(read_record, *right) == content
    flipped = data.draw(st.integers(at, len(record) - 1))
    os.pwrite(record_file, bytes([record[flipped] ^ 1]), flipped)
    assert same(read_record, *right) == (
        content if is_not_looked_at(flipped - at, encoded, inner) else False
    )
    os.ftruncate(record_file, data.draw(st.integers(0, len(record) - 1)))
    assert same(read_record, *right) is None


def is_not_looked_at(place: int, name: bytes, inner: int) -> bool:
    """Whether a byte of a record is none that reading its data looks at."""
    fixed = CHECKSUM_AT <= place < CHECKSUM_AT + CHECKSUM_SIZE
    named = HEADER_SIZE <= place < HEADER_SIZE + len(name)
    return place < HEADER_SIZE + len(name) + inner and not fixed and not named


PARTS = st.lists(st.sampled_from([b"", b"a", b"b", b"aa", b"B", b"\xff"]), max_size=3)
METADATA = st.one_of(
    st.binary(max_size=12),
    PARTS.map(lambda names: b"".join(bytes((len(name), 1, 0)) + name + b"v" for name in names)),
)


@settings(max_examples=EXAMPLES)
@given(
    st.lists(
        st.tuples(st.integers(0, 8), NAMES, METADATA, LENGTHS.filter(lambda size: size < 13_000)),
        max_size=4,
    ),
    st.sampled_from([bytes(16), bytes(range(16))]),
    st.booleans(),
    st.data(),
)
def test_the_same_records_are_found_sound(
    wanted: list[tuple[int, str, bytes, int]], owner: bytes, whole: bool, data: st.DataObject
) -> None:
    stream = bytearray(b"x")
    for kind, name, meta, length in wanted:
        content = (name.encode(errors="replace") * length)[:length] if whole else b""
        encoded = name.encode("ascii", "replace")[:128]
        length = len(content) if whole else length
        head = encode_head(kind, encoded, meta, length, 7, bytes(range(16)), arrived=9, owner=owner)
        stream += head + content + block_sums(content)
    same(sound_records, bytes(stream), 1, owner, whole)
    same(sound_records, bytes(stream), 1, bytes(16), whole)
    same(sound_records, bytes(stream), 0, owner, whole)
    same(sound_records, bytes(stream[: data.draw(st.integers(0, len(stream)))]), 1, owner, whole)
    flipped = data.draw(st.integers(0, len(stream) - 1))
    stream[flipped] ^= 1 << data.draw(st.integers(0, 7))
    same(sound_records, bytes(stream), 1, owner, whole)


def test_sound_records_are_found_up_to_what_needs_a_look() -> None:
    meta = metadata.encode([(b"a", b"1"), (b"b", b"2")])
    head = encode_head(Kind.BLOB, b"n", meta, 3, 7, bytes(16), arrived=9)
    record = head + b"abc" + block_sums(b"abc")
    refused = encode_head(Kind.REFUSED, b"n", b"why", 0, 0, bytes(16))
    found = same(sound_records, record + record + refused + record, 0, bytes(16), True)
    fields = ("n", 3, Kind.BLOB, 7, bytes(16), meta, 9)
    expected = [(fields, b"abc", block_sums(b"abc"), len(record) * many) for many in (1, 2)]
    assert found == expected


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *(("recognize", args) for args in [(), (b"",), ("a", b""), (b"", None)]),
        *(("key_of", args) for args in [(b"a",), (None,)]),
        *(("read_record", args) for args in [(), (0,), (None, 0, b"", 0, 0, b"")]),
        *(("sound_records", args) for args in [(), (b"",), (b"", None, b"", True)]),
        ("read_record", (0, 0, "", 0, 0, b"")),
        ("read_record", (0, 0, b"", 0, 0, bytearray(16))),
    ],
)
def test_what_is_no_argument_is_refused(name: str, arguments: tuple[Any, ...]) -> None:
    function = getattr(native.MODULE, name, native.REFERENCES[name])
    with pytest.raises((TypeError, AttributeError)):
        function(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        (0, 0, b"", 0, 1 << 60, bytes(16)),
        (0, 0, b"", 1 << 60, 1, bytes(16)),
        (0, 0, bytes(20_000), 0, 1, bytes(16)),
        (0, 0, b"", 0, -1, bytes(16)),
        (0, 0, b"", -1, 1, bytes(16)),
        (0, 0, b"", 0, 1, bytes(15)),
        (0, -1, b"", 0, 1, bytes(16)),
        (1 << 40, 0, b"", 0, 1, bytes(16)),
    ],
)
def test_no_record_is_read_that_can_be_none(arguments: tuple[Any, ...]) -> None:
    read = getattr(native.MODULE, "read_record", None)
    assert read is None or read(*arguments) is None


def test_the_native_module_is_there_when_it_could_be_built() -> None:
    """Without it every comparison above would be one of a function with itself."""
    if native.MODULE is None:
        pytest.skip(native.DESCRIPTION)
    assert set(native.REFERENCES) >= {"recognize", "key_of", "read_record", "sound_records"}
    for name in set(native.REFERENCES) & set(dir(native.MODULE)):
        assert getattr(native.MODULE, name) is not native.REFERENCES[name]
    assert recognize is native.MODULE.recognize
    assert key_of is native.MODULE.key_of


UNDER_SANITIZERS = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("dolmen._native", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules["dolmen._native"] = module
import pytest
chosen = "same or refused or none or needs"
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", chosen, sys.argv[2]]))
"""


def test_it_reads_nothing_outside_under_the_address_sanitizer(tmp_path: Path) -> None:
    if native.MODULE is None:
        pytest.skip(native.DESCRIPTION)
    built = tmp_path / "_native.so"
    sanitize = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    include = f"-I{sysconfig.get_path('include')}"
    subprocess.run(
        [
            *COMPILER, *sanitize, "-shared", "-fPIC", "-D_GNU_SOURCE", "-Wall", "-Wextra",
            "-DPy_LIMITED_API=0x030b0000", include, str(SOURCE), "-o", str(built),
        ],
        check=True,
    )  # fmt: skip
    libraries = [
        subprocess.run(
            [*COMPILER, f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    asan = {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",  # so that every object has its own guarded bytes
        "DOLMEN_TEST_NATIVE_EXAMPLES": "100",
    }
    ended = subprocess.run(
        [sys.executable, "-c", UNDER_SANITIZERS, str(built), __file__],
        env={**os.environ, **asan},
        cwd=SOURCE.parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert "passed" in ended.stdout
