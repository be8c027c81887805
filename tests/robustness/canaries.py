"""Searches files for words and numbers in every form in which they could lie there."""

from __future__ import annotations

import base64
import json
import urllib.parse
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

_LEAST = 8  # bytes of a number's form by which it is searched for: shorter ones are found by chance
_ZLIB = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda", b"\x1f\x8b\x08")
_MOST_UNPACKED = 1 << 20


def forms_of_text(text: str) -> dict[str, bytes]:
    """Returns how a text can lie in a file: its codings, and what tools make of bytes."""
    forms = {coding: text.encode(coding) for coding in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le")}
    forms["json"] = json.dumps(text)[1:-1].encode()
    forms["quoted"] = urllib.parse.quote(text).encode()
    return forms | _of_bytes(forms["utf-8"])


def forms_of_profile(profile: Mapping[str, npt.NDArray[np.float32]], packed: bytes) -> dict[str, bytes]:
    """Returns how a profile can lie in a file: its rows as numbers, its bits, its packed form."""
    forms = {}
    for name, values in profile.items():
        own = values.reshape(-1)
        for kind in ("<f2", "<f4", "<f8", ">f4"):
            forms[f"{name} {kind}"] = own.astype(kind).tobytes()[:64]
        forms[f"{name} bits"] = np.packbits(own > 0).tobytes()
        forms[f"{name} json"] = json.dumps([float(value) for value in own[:3]])[1:-1].encode()
    values_only = packed[-min(len(packed) - 40, 64) :]
    forms["packed"] = values_only
    forms |= {f"packed {name}": form for name, form in _of_bytes(values_only).items()}
    return {name: form for name, form in forms.items() if len(form) >= _LEAST and len(set(form)) > 4}


def _of_bytes(data: bytes) -> dict[str, bytes]:
    """Returns bytes as hex, and as base64 from each of its three places to begin."""
    forms = {"hex": data.hex().encode(), "HEX": data.hex().upper().encode()}
    for shift in range(3):
        inner = base64.b64encode(bytes(shift) + data).rstrip(b"=")
        forms[f"base64 {shift}"] = inner[4:-4]
    return forms


def found_in(folders: Iterable[Path], forms: Mapping[str, bytes]) -> list[str]:
    """Returns each file and the form that was found in it; files within folders, packed streams unpacked."""
    found = []
    for folder in folders:
        for file in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
            if file.is_file():
                found += [f"{file.name}: {name}" for name in found_in_bytes(file.read_bytes(), forms)]
    return found


def found_in_bytes(data: bytes, forms: Mapping[str, bytes]) -> list[str]:
    """Returns the names of the forms that bytes hold, plainly or in a stream of zlib or gzip."""
    inner = b"\0".join([data, *_unpacked(data)])
    return [name for name, form in forms.items() if form in inner]


def _unpacked(data: bytes) -> list[bytes]:
    streams = []
    for mark in _ZLIB:
        at = data.find(mark)
        while at >= 0:
            with suppress(zlib.error):
                streams.append(zlib.decompressobj(47).decompress(data[at:], _MOST_UNPACKED))
            at = data.find(mark, at + 1)
    return [stream for stream in streams if len(stream) >= _LEAST]
