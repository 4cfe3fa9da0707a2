"""Mutations of files, in their bytes and in their meaning, all drawn from one `random.Random`."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import tomllib
import zipfile
import zlib
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import tomli_w

WORDS = (
    *("", " ", "\0", "\n", "a\nb", "\x1b[31m", "\x9b31m", "\u202e", "\ud800", "é", "a" * 300, "x" * 20_000),
    *("../../evil", "/etc/passwd", "/dev/zero", "/", "C:\\evil", "evil.py", "evil", "os:system", "py:evil:Net"),
    *("py:os:system", "hf-hub:evil/net", "local-dir:/tmp", "https://127.0.0.1:9/evil", "torchvision:MNIST"),
    *("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{7*7}}", "[/]", "[red]", "%s%n", "$(id)"),
    *('training"), __import__("evil"), getattr(self, "b', "__import__('evil')", "__class__", "__reduce__"),
    *("nan", "inf", "-1", "9" * 5000, "true", "null", "cpu", "meta", "cuda:99", "generator", "vecmat", "interpkit:cnn"),
)
"""Strings that are harmful in some contexts. The reader's working folder contains a module ``evil``."""
NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 255, 256, 1_000, 65_536, 1_000_000, 10**7, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1),
    *(2**63, 2**64, -(2**63), 10**30, 10**400, 0.0, -0.0, 0.5, 1e-320, 1e30, 1e308, float("nan"), float("inf")),
    *(-float("inf"), True, False),
)
LENGTHS = (0, 1, 2, 7, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**32 - 1, 10**9, 10**12, 2**63 - 1, 2**64 - 1)
Files = dict[str, bytes]
"""The contents of files by their names in a folder."""


def files(original: Files, rng: random.Random) -> Files:
    """Return the files with one of them changed, removed, or replaced by the content of another."""
    changed = dict(original)
    name = rng.choice(sorted(original))
    if len(original) > 1 and rng.random() < 0.03:
        if rng.random() < 0.5:
            del changed[name]
        else:
            changed[name] = original[rng.choice(sorted(original))]
        return changed
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        changed[name] = content(name, changed[name], rng)
    return changed


def content(name: str, original: bytes, rng: random.Random) -> bytes:
    """Return a file's content with a change: one that suits the file's format, or one of its bytes."""
    structured = _by_name(PurePath(name))
    if structured is not None and rng.random() < 0.7:
        try:
            return structured(original, rng)
        except Exception:  # an earlier change broke the format; parsers raise many kinds
            return of_bytes(original, rng)
    return of_bytes(original, rng)


def _by_name(path: PurePath) -> Callable[[bytes, random.Random], bytes] | None:
    kinds = {
        ".json": of_json,
        ".jsonl": of_lines,
        ".toml": of_toml,
        ".safetensors": of_safetensors,
        ".npz": of_zip,
        ".npy": _npy,
        ".pt": of_zip,
        ".pth": of_zip,
        ".bin": of_zip,
        ".pt2": of_zip,
        ".png": of_png,
        ".onnx": of_onnx,
    }
    return of_zip if path.name == "checkpoint" else kinds.get(path.suffix.lower())


# ----------------------------------------------------------------------------------------------- bytes


def of_bytes(original: bytes, rng: random.Random) -> bytes:
    """Return the bytes with one to eight changes: flips, cuts, copies, inserts, lengths, numbers."""
    data = bytearray(original)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(len(data) + 1) if rng.random() < 0.6 else rng.randrange(min(len(data), 200) + 1)
        size = min(int(rng.expovariate(0.05)) + 1, 5000)
        match rng.randrange(9):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(data):
                data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                del data[at:]
            case 3:
                del data[at : at + size]
            case 4:
                data[at:at] = rng.randbytes(size)
            case 5:
                other = rng.randrange(len(data) + 1)
                data[at:at] = data[other : other + size]
            case 6:
                form = rng.choice(("<Q", "<I", ">I", "<H", ">H"))
                length = rng.choice(LENGTHS) % 2 ** (8 * struct.calcsize(form))
                data[at : at + struct.calcsize(form)] = struct.pack(form, length)
            case 7:
                data[at : at + size] = rng.choice(WORDS).encode("utf-8", "surrogatepass")
            case 8:
                data[at:at] = rng.choice((b"[", b"{", b'{"a":', b"\x80", b"(")) * rng.choice((1, 50, 3000, 100_000))
        if len(data) > 2_000_000:
            del data[2_000_000:]
    return bytes(data)


# ---------------------------------------------------------------------------------------------- values


def of_value(value: Any, rng: random.Random) -> Any:
    """Return a JSON value with one to three changes anywhere in it."""
    whole = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        places: list[tuple[Any, Any]] = [(whole, 0)]
        for parent, key in places:
            inner = parent[key]
            if isinstance(inner, dict):
                places += [(inner, k) for k in inner]
            elif isinstance(inner, list):
                places += [(inner, i) for i in range(min(len(inner), 50))]
        parent, key = places[0] if rng.random() < 0.02 else rng.choice(places)
        _change(parent, key, rng)
    return whole[0]


def _change(parent: Any, key: Any, rng: random.Random) -> None:
    old = parent[key]
    match rng.randrange(10):
        case 0 if isinstance(parent, dict):
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[rng.choice(WORDS)] = parent.pop(key) if rng.random() < 0.5 else old
        case 2 if isinstance(old, list):
            old += copy.deepcopy(old) * rng.choice((1, 1, 100))
            del old[10_000:]
        case 3:
            parent[key] = rng.choice((None, [], {}, [[]], [old], {"a": old}, str(old)[:100], [None], {"": {}}))
        case 4:
            for _ in range(rng.choice((3, 100, 5000))):
                parent[key] = [parent[key]] if rng.random() < 0.5 else {"a": parent[key]}
        case 5 if isinstance(old, int | float) and not isinstance(old, bool) and abs(old) < 1e18:
            parent[key] = rng.choice((old + 1, old - 1, -old, old * 10, old * 1000, old / 2, int(old) ^ 1, str(old)))
        case 6 | 7:
            parent[key] = rng.choice(WORDS)
        case _:
            parent[key] = rng.choice(NUMBERS)


def of_json(original: bytes, rng: random.Random) -> bytes:
    """Return JSON with changed values, sometimes with a duplicate key."""
    text = json.dumps(of_value(json.loads(original), rng))
    if rng.random() < 0.03 and text.startswith("{") and len(text) > 2:
        text = f"{text[:-1]}, {text[1:]}"
    return text.encode()


def of_lines(original: bytes, rng: random.Random) -> bytes:
    """Return lines of JSON with one of them changed, removed, or duplicated."""
    lines = original.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(rng.randrange(len(lines)), lines[at])
        case _:
            lines[at] = of_json(lines[at], rng) + b"\n"
    return b"".join(lines)


def of_toml(original: bytes, rng: random.Random) -> bytes:
    """Return TOML with changed values, sometimes with a key of very many parts."""
    if rng.random() < 0.03:
        return original + b"\n[a" + b".a" * rng.choice((10, 1000, 20_000)) + b"]\nb = 1\n"
    return tomli_w.dumps(_without_none(of_value(tomllib.loads(original.decode()), rng))).encode()


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value if item is not None] if isinstance(value, list) else value


# --------------------------------------------------------------------------------------------- formats


def of_safetensors(original: bytes, rng: random.Random) -> bytes:
    """Return a safetensors file with a changed header: names, types, shapes, offsets, or the JSON in its metadata."""
    (length,) = struct.unpack_from("<Q", original)
    header, data = json.loads(original[8 : 8 + length]), original[8 + length :]
    metadata = header.get("__metadata__", {})
    if metadata and rng.random() < 0.6:
        key = rng.choice(sorted(metadata))
        try:
            metadata[key] = json.dumps(of_value(json.loads(metadata[key]), rng))
        except ValueError:
            metadata[key] = rng.choice(WORDS)
    elif rng.random() < 0.3:  # another type or shape with as many bytes, so that the file is still valid
        entry = header[rng.choice(sorted(set(header) - {"__metadata__"}))]
        first, last = entry["data_offsets"]
        kinds = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "U8": 1, "BOOL": 1}
        kinds |= {"F8_E4M3": 1, "F8_E5M2": 1, "C64": 8, "I8": 1}
        kind = rng.choice(sorted(kinds))
        count = (last - first) // kinds[kind]
        entry |= {"dtype": kind, "shape": rng.choice(([count], [1, count], [count, 1], [count, 1, 1, 1], [0, 5]))}
        if rng.random() < 0.3:
            data = rng.randbytes(last - first).ljust(len(data), rng.choice((b"\0", b"\x7f", b"\xff")))
    else:
        header = of_value(header, rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def of_zip(original: bytes, rng: random.Random) -> bytes:
    """Return an archive with a changed member: its bytes, its array's header, its name, how it is packed."""
    with zipfile.ZipFile(io.BytesIO(original)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = rng.randrange(len(members)) if rng.random() < 0.5 else 0
    name, data = members[at]
    packed = zipfile.ZIP_STORED
    match rng.randrange(8):
        case 0:
            del members[at]
        case 1:
            members.append((name, of_bytes(data, rng)))
        case 2:
            prefix = name.partition("/")[0]
            members[at] = (rng.choice((*WORDS[3:20], f"{prefix}/{rng.choice(WORDS[3:])}"))[:1000], data)
        case 3:
            packed = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        case _ if data.startswith(b"\x93NUMPY"):
            members[at] = (name, _npy(data, rng))
        case _:
            members[at] = (name, of_bytes(data, rng))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packed) as archive:
        for number, (name, data) in enumerate(members):
            if name not in [other for other, _ in members[:number]]:  # zipfile warns about duplicates
                archive.writestr(name.encode("utf-8", "replace").decode(), data)
    return buffer.getvalue()


def _npy(data: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack_from("<H", data, 8)
    header, body = data[10 : 10 + length], data[10 + length :]
    kinds = (b"'|O'", b"'<f8'", b"'<i8'", b"'|V10000'", b"'<M8[s]'", b"'<U3'", b"'<c8'", b"'>u1'", b"'|b1'", b"'<f2'")
    match rng.randrange(3):
        case 0:
            first, colon, rest = header.partition(b"'descr': ")
            header = first + colon + rng.choice(kinds) + b"," + rest.partition(b",")[2]
        case 1:
            shape = ", ".join(str(rng.choice((*LENGTHS, 3, 10, 12, -1))) for _ in range(rng.randrange(5)))
            header = header.partition(b"(")[0] + f"({shape},)".encode() + header.partition(b")")[2]
        case 2:
            return data[:10] + of_bytes(header, rng) + body
    return data[:8] + struct.pack("<H", len(header)) + header + body


def of_png(original: bytes, rng: random.Random) -> bytes:
    """Return a PNG with a changed chunk and a correct checksum."""
    chunks, at = [], 8
    while at < len(original):
        (length,) = struct.unpack_from(">I", original, at)
        chunks.append((original[at + 4 : at + 8], original[at + 8 : at + 8 + length]))
        at += 12 + length
    place = rng.randrange(len(chunks))
    kind, data = chunks[place]
    match rng.randrange(4):
        case 0:
            new = rng.choice((b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"tRNS", b"PLTE", b"acTL", b"fcTL", b"fdAT", b"eXIf"))
            bomb = b"k\0\0" + zlib.compress(b"a" * 2_000_000)
            chunks.insert(place, (new, rng.choice((bomb, rng.randbytes(20), data))))
        case 1:
            chunks[place] = (kind, b"".join((data[:4], struct.pack(">I", rng.choice(LENGTHS) % 2**32), data[8:])))
        case 2:
            del chunks[place]
        case _:
            chunks[place] = (kind, of_bytes(data, rng))
    parts = [original[:8]]
    for kind, data in chunks:
        parts.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)


def of_onnx(original: bytes, rng: random.Random) -> bytes:
    """Return an ONNX graph with a changed field in one of its messages."""
    import onnx

    graph = onnx.load_model_from_string(original)
    messages = [graph]
    for message in messages:
        for field, value in message.ListFields():
            if field.message_type is not None:
                messages += list(value) if field.is_repeated else [value]
    message = rng.choice(messages)
    known = [field for field in message.DESCRIPTOR.fields if field.message_type is None]
    said = [field for field, _ in message.ListFields() if field.message_type is None]
    field = rng.choice(said if said and rng.random() < 0.8 else known)
    if rng.random() < 0.1:
        message.ClearField(field.name)
        return bytes(graph.SerializeToString())
    texts = {field.TYPE_STRING: str, field.TYPE_BYTES: bytes}
    if field.type in texts:
        word: Any = rng.choice(WORDS).encode("utf-8", "replace")
        word = word.decode() if texts[field.type] is str else word
    else:
        whole = field.type not in (field.TYPE_FLOAT, field.TYPE_DOUBLE)
        word = rng.choice((0, 1, -1, 2, 5, 255, 10**6, 2**31 - 1)) if whole else rng.choice(NUMBERS[-12:])
    if not field.is_repeated:
        setattr(message, field.name, word)
    else:
        values = getattr(message, field.name)
        if len(values) and rng.random() < 0.8:
            values[rng.randrange(len(values))] = word
        else:
            values.append(word)
    return bytes(graph.SerializeToString())
