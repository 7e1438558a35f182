"""What a data file is by its first bytes, whatever its name: its compression, its kind, or why it is refused.

Nothing that could run code when it is loaded is ever loaded.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from imprint.data.layout import holds_rows
from imprint.data.parse_table import looks_like_table
from imprint.data.text import BOM, CHUNK, refuse_foreign
from imprint.errors import DataError

KINDS = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".txt": "txt",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
PACKED = {".gz": "gzip", ".zst": "zstd", ".xz": "xz", ".bz2": "bzip2"}
ACCEPTED = ".json, .jsonl, .ndjson, .csv, .tsv, .txt (each also .gz, .zst, .xz, .bz2), .parquet, .arrow"
PIPED = ".piped"  # of the file that holds standard input: what it is, its text alone tells
DAMAGE = (OSError, EOFError, lzma.LZMAError, zlib.error)  # what reading or unpacking a damaged file raises

_CODECS = (
    (re.compile(rb"\x1f\x8b"), "gzip"),
    (re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", re.DOTALL), "zstd"),
    (re.compile(rb"\xfd7zXZ\0"), "xz"),
    (re.compile(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)"), "bzip2"),
)
PIECE = 1 << 16  # bytes unpacked at a time: where a file is damaged, so many before are not seen
_OPENERS: dict[str, Callable[..., Any]] = {"gzip": gzip.open, "xz": lzma.open, "bzip2": bz2.open}
_PICKLE = "it may hold code that runs when it is loaded, so imprint never opens it"
# first bytes → what the file is, and what to do
_REFUSED = (
    (rb"\x80[\x02-\x05]", "a Python pickle", f"{_PICKLE}; where you trust it, write its rows as JSON lines"),
    (rb"SQLite format 3\0", "an SQLite database", "write a table: sqlite3 -json FILE 'SELECT * FROM T' > rows.json"),
    (
        rb"version https://git-lfs",
        "a Git LFS pointer, not the data that it points to",
        "fetch the data: git lfs pull",
    ),
    (
        rb"\s*<(!doctype\s+html|html|head|body)\b",
        "a web page",
        "the download saved a page (a login, an error): log in, or take the file's own link",
    ),
    (rb"\s*<\?xml", "XML", "if it is an error of the server, download it again; else convert it to JSON lines"),
    (rb"\xd0\xcf\x11\xe0", "an old Excel or Office file", "open it and save it as CSV (UTF-8)"),
    (rb"%PDF-", "a PDF", "extract its text first: pdftotext FILE out.txt"),
    (rb".{257}ustar", "a tar archive", "unpack it: tar xf FILE, and name the files in it"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it: 7z x FILE"),
    (rb"Rar!\x1a\x07", "a RAR archive", "unpack it: unrar x FILE"),
    (rb"\x04\x22\x4d\x18", "lz4", "unpack it: lz4 -d FILE"),
    (rb"\x1f[\x9d\xa0]", "packed by compress", "unpack it: uncompress FILE"),
    (rb"\x93NUMPY", "a NumPy array", "write its rows as JSON lines"),
    (rb"\x89HDF\r\n", "an HDF5 file", "write its rows as JSON lines"),
    (rb"FEA1\0", "a Feather file of version 1", "write it anew: pyarrow.feather.write_feather(table, FILE)"),
    (rb"Obj\x01", "an Avro file", "convert it to Parquet"),
    (rb"GGUF[\1-\3]\0\0\0", "a GGUF model", "name the demonstrations, not the model"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|RIFF.{4}(WAVE|AVI |WEBP)", "a picture or sound", "name the demonstrations"),
    (rb"\x7fELF|MZ\x90", "a program", "name a file of demonstrations"),
)  # fmt: skip
_REFUSED_NAMES = {
    (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".bin", ".npy", ".npz"): _PICKLE + "; write JSON lines",
    (".safetensors", ".gguf"): "that is a model; name the demonstrations",
    (".yaml", ".yml"): "if this is a recipe, it is no data: imprint show RECIPE looks at what it trains;"
    " else convert it to JSON lines",
    (".xlsx", ".xls", ".ods"): "open it and save it as CSV (UTF-8)",
    (".md", ".rst", ".html"): "name it .txt, if it is a document to learn",
    (".py", ".sh"): "name the file that it writes",
    (".orc", ".avro"): "convert it to Parquet",
    (".zip", ".tar", ".tgz", ".7z"): "unpack it, and name the files in it",
}  # fmt: skip


class Look(NamedTuple):
    """What a file holds (a value of KINDS), how it is packed ("" for not at all), and its first bytes, unpacked."""

    kind: str
    codec: str
    head: bytes


def stem_suffix(name: str) -> str:
    """The suffix that tells the kind of a file, in lower case and without that of its packing."""
    path = Path(name)
    return Path(path.stem if path.suffix.lower() in PACKED else path.name).suffix.lower()


def look(path: Path, name: str) -> Look:
    """What the file at `path` is; DataError where imprint does not read it. `name` is what errors show."""
    try:
        with path.open("rb") as file:
            head = file.read(CHUNK)
        codec = next((codec for magic, codec in _CODECS if magic.match(head)), "")
        if codec:
            with unpacked(path, codec) as stream:
                head = _head(stream)
    except OSError as error:
        raise damaged(name, error, "", "") from error
    kind = _kind(path, name, head)
    if codec and kind in ("parquet", "arrow"):
        raise _refused(name, f"{kind.title()} packed by {codec}", "unpack it; such files are packed inside")
    if kind in ("json", "jsonl", "csv", "tsv", "txt"):
        refuse_foreign(head, name)
    if kind in ("csv", "tsv", "txt") and _holds_json_rows(head):
        kind = "json"
    return Look(_of_json(kind, head), codec, head)


def _head(stream: BinaryIO) -> bytes:
    """The first bytes of a packed file; where it is damaged, those before: whoever reads on will see it."""
    found = b""
    try:
        while len(found) < CHUNK and (block := cast(io.BufferedReader, stream).read1(PIECE)):
            found += block
    except DAMAGE:
        return found
    return found


def damaged(name: str, error: Exception, codec: str, behind: str) -> DataError:
    """What is said where reading breaks off; `behind` is the last place that was read."""
    where = f", behind {behind}" if behind else ""
    return DataError(
        "the file cannot be read",
        where=name,
        found=f"{str(error) or type(error).__name__}{where}",
        expected=f"a whole {codec} file" if codec else "a file that you may read",
        fix="fetch or write the file again" if codec else "check its permissions and its disk",
    )


def unpacked(path: Path, codec: str) -> BinaryIO:
    """The file's bytes, unpacked while they are read; closing it closes the file."""
    if not codec:
        return path.open("rb", CHUNK)
    if codec == "zstd":
        import pyarrow

        made = pyarrow.input_stream(str(path), compression="zstd")
    else:
        made = _OPENERS[codec](path, "rb")
    return cast(BinaryIO, io.BufferedReader(made, PIECE))


def _kind(path: Path, name: str, head: bytes) -> str:
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    for magic, what, fix in _REFUSED:
        if re.match(magic, head.removeprefix(BOM)[:1000], re.DOTALL | re.IGNORECASE):
            raise _refused(name, what, fix.replace("FILE", path.name))
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        raise _zip(path, name)
    suffix = stem_suffix(path.name)
    kind = KINDS.get(suffix)
    if kind in ("parquet", "arrow"):
        if not head:
            return kind
        raise _refused(name, f"no {kind.title()} file: it does not begin as one", "fetch or write it again")
    if suffix == PIPED:
        return _piped(head, name)
    if kind is None and head.removeprefix(BOM).lstrip()[:1] in (b"{", b"["):
        return "json"
    if kind is None:
        refuse_foreign(head, name)
        raise _unknown(path, name, suffix)
    return kind


def _piped(head: bytes, name: str) -> str:
    """What standard input holds: JSON lines or a table; DataError for other texts."""
    refuse_foreign(head, name)
    text = head.removeprefix(BOM).lstrip()
    if not text or text[:1] in (b"{", b"["):
        return "jsonl"
    if delimiter := looks_like_table(head):
        return "tsv" if delimiter == "\t" else "csv"
    first = str(text.partition(b"\n")[0].strip(), "utf-8", "replace")
    raise DataError(
        "what comes in is neither JSON lines nor a table",
        where=name,
        found=f"a first line {first if len(first) <= 60 else first[:60] + '…'}",
        expected="JSON lines, a JSON list, or a CSV or TSV of several rows (each also packed)",
        fix="save it in a file whose name says what it is, and name that: COMMAND > data.txt",
    )


def _holds_json_rows(head: bytes) -> bool:
    """Whether what a table or a text would be taken for is rows of JSON: nobody means to train on their braces."""
    text = head.removeprefix(BOM).lstrip()
    if re.match(rb'\[\s*\{\s*"[^"\n]*"\s*:', text):
        return True
    return text.startswith(b'{"') and _parses(text.partition(b"\n")[0])


def _of_json(kind: str, head: bytes) -> str:
    """JSON lines or one JSON document: what its first line shows, whatever the name says."""
    first, _, rest = head.removeprefix(BOM).lstrip().partition(b"\n")
    if kind == "jsonl":
        alone = first.strip() in (b"[", b"{") or (not rest.strip() and _begins_with_row(first))
        return "json" if alone else kind
    if kind == "json" and rest and not rest.isspace() and _parses(first):
        return "jsonl"
    if kind == "json" and b"\n" not in head and b"\r" in head:
        first, _, rest = head.removeprefix(BOM).lstrip().partition(b"\r")
        return "jsonl" if rest and not rest.isspace() and _parses(first) else kind
    return kind


def _begins_with_row(line: bytes) -> bool:
    """Whether a line that is all that is seen of a file is a list of rows: the list of one row's messages is not."""
    if not line.startswith(b"["):
        return False
    try:
        first, _ = json.JSONDecoder().raw_decode(str(line[1:], "utf-8", "replace").lstrip())
    except (ValueError, RecursionError):
        return False
    return holds_rows([first])


def _parses(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _zip(path: Path, name: str) -> DataError:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        names = []
    if any(inner.startswith("xl/") for inner in names):
        return _refused(name, "an Excel workbook", "open it and save it as CSV (UTF-8)")
    if any(inner.endswith("data.pkl") for inner in names):
        return _refused(name, "a PyTorch file", f"{_PICKLE}; write its rows as JSON lines")
    inside = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return _refused(
        name,
        "a zip archive" + (f" of {inside}" if inside else ""),
        f"unpack it: unzip {path.name}, and name the files in it",
    )


def _refused(name: str, what: str, fix: str) -> DataError:
    return DataError(
        "imprint does not read this kind of file",
        where=name,
        found=f"by its first bytes it is {what}" if not what.startswith("no ") else what,
        expected=ACCEPTED,
        fix=fix,
    )


def _unknown(path: Path, name: str, suffix: str) -> DataError:
    fix = next((fix for names, fix in _REFUSED_NAMES.items() if suffix in names), "")
    return DataError(
        "imprint does not read this kind of file",
        where=name,
        found="".join(path.suffixes[-2:] if path.suffix.lower() in PACKED else path.suffixes[-1:])
        or "no suffix",
        expected=ACCEPTED,
        fix=fix or "convert it; or, if it is one of these, give it the suffix",
    )
