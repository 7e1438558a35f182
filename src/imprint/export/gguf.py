"""A merged model folder written as one GGUF file, the format of llama.cpp and of what is built on it.

The folder is read tensor by tensor, so the size of a model does not matter. Types: floating point and the
quantisations that the `gguf` package makes; finer ones (Q4_K_M, …) by the user's own `llama-quantize`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imprint.errors import RecipeError, RunFailed, UserError, nearest
from imprint.export import gguf_tensors
from imprint.export.gguf_config import Shape, read_shape
from imprint.export.gguf_tokens import Vocabulary, read_vocabulary
from imprint.export.targets import Made, Proof, Target

K_QUANTS = (
    "q2_k", "q2_k_s", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k",
    "iq4_nl", "iq4_xs", "iq3_m", "iq3_s",
)  # fmt: skip
TYPES = (*gguf_tensors.TYPES, *K_QUANTS)
_FILE_TYPES = {"f32": "ALL_F32"}  # others: MOSTLY_…
_LLAMA_CPP = "https://github.com/ggml-org/llama.cpp/releases"


@dataclass(frozen=True)
class Written:
    """A GGUF file, and what a user of it should know."""

    path: Path
    type: str
    architecture: str
    tensors: int
    bytes: int
    notes: tuple[str, ...]


def write_gguf(
    folder: Path,
    path: Path,
    type: str = "q8_0",
    *,
    pre: str | None = None,
    name: str | None = None,
    licence: str | None = None,
) -> Written:
    """Write the model of a Hugging Face folder (merged, safetensors) as one GGUF file.

    `pre` overrules the recognised pre-tokenizer, `name` and `licence` are written into the file. The file
    appears under its name only when it is whole. Raises ModelError for models and tokenizers that
    llama.cpp would compute otherwise, RecipeError for an unknown type, UserError for a missing tool.
    """
    type = check_type(type)
    quantizer = find_quantizer(type) if type in K_QUANTS else None
    shape = read_shape(folder)
    vocabulary = read_vocabulary(folder, shape.vocabulary, pre)
    partial = path.with_name(path.name + ".partial")
    plain = ("bf16" if _is_bfloat16(folder) else "f32") if quantizer else type
    planned, notes = gguf_tensors.plan(folder, shape, plain)
    try:
        _write(partial, planned, shape, vocabulary, plain, _safe_name(name or folder.name), licence)
        if quantizer:
            notes = (*notes, *_quantize(quantizer, partial, path, type))
            partial.unlink()
        else:
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    notes = (*shape.notes, *vocabulary.notes, *notes)
    return Written(path, type, shape.architecture, len(planned), path.stat().st_size, notes)


def check_type(type: str) -> str:
    """The type in the spelling of TYPES. Raises RecipeError for one that does not exist."""
    known = type.lower().replace("-", "_")
    if known in TYPES:
        return known
    raise RecipeError(
        f"there is no GGUF type {type!r}",
        where="type",
        found=type,
        expected=", ".join(TYPES),
        fix=f"write type={nearest(known, TYPES) or 'q8_0'}",
    )


def find_quantizer(type: str) -> str:
    """The path of llama-quantize. Raises UserError where it is not on PATH."""
    found = shutil.which("llama-quantize")
    if found:
        return found
    raise UserError(
        f"{type} needs llama-quantize, which comes with llama.cpp",
        where="type",
        found="no llama-quantize on PATH",
        expected="llama-quantize on PATH",
        fix=f"install llama.cpp (brew install llama.cpp, or a build from {_LLAMA_CPP}), "
        f"or take a type that needs no tool: {', '.join(gguf_tensors.TYPES)}",
    )


def _write(
    path: Path,
    planned: list[gguf_tensors.Planned],
    shape: Shape,
    vocabulary: Vocabulary,
    type: str,
    name: str,
    licence: str | None,
) -> None:
    writer = _gguf().GGUFWriter(path, shape.architecture)
    try:
        writer.add_type("model")
        writer.add_name(name)
        if licence:
            writer.add_license(licence)
        writer.add_file_type(_gguf().LlamaFileType[_FILE_TYPES.get(type, f"MOSTLY_{type.upper()}")])
        if type in gguf_tensors.QUANTISED:
            writer.add_quantization_version(_gguf().GGML_QUANT_VERSION)
        for key, value in shape.keys.items():
            _add(writer, f"{shape.architecture}.{key}", value)
        _add_vocabulary(writer, vocabulary)
        gguf_tensors.write(writer, planned)
    finally:
        writer.close()


def _add(writer: Any, key: str, value: int | float | str) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list([text.encode("utf-8") for text in vocabulary.tokens])
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges or [""])
    for key, id in vocabulary.ids.items():
        getattr(writer, f"add_{key}_token_id")(id)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if vocabulary.add_space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    if vocabulary.template:
        writer.add_chat_template(vocabulary.template)


def _quantize(tool: str, source: Path, path: Path, type: str) -> tuple[str, ...]:
    target = path.with_name(path.name + ".quantised")
    done = subprocess.run(
        [tool, str(source), str(target), type.upper(), str(os.cpu_count() or 1)],
        capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode or not target.is_file():
        target.unlink(missing_ok=True)
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it said nothing"]
        raise RunFailed(
            "llama-quantize failed",
            where=tool,
            found=last[0],
            fix=f"take type=q8_0, or run {tool} yourself on a file of type=f16",
        )
    target.replace(path)
    fell_back = len(re.findall(r"fallback quantization", done.stderr + done.stdout))
    return (f"llama-quantize took another type for {fell_back} tensors",) if fell_back else ()


def _safe_name(name: str) -> str:
    """A name that llama.cpp draws no conclusion from: "phi-3" in it changes how it treats special tokens."""
    return re.sub(r"phi-?3", "phi 3", name, flags=re.IGNORECASE)


def _is_bfloat16(folder: Path) -> bool:
    from safetensors import safe_open

    name, (file, _) = next(iter(gguf_tensors.sources(folder).items()))
    with safe_open(file, framework="pt") as tensors:
        return str(tensors.get_slice(name).get_dtype()) == "BF16"


def _gguf() -> Any:
    """The gguf package. Raises UserError where the extra is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise UserError(
            "writing GGUF needs the gguf package",
            found=str(error),
            fix="pip install 'imprint-sft[gguf]'",
        ) from error
    return gguf


OPTIONS = {
    "type": f"how weights are kept: {', '.join(TYPES[:8])}, or one that llama-quantize makes, such as q4_k_m "
    "(q8_0 by default)",
    "name": "the model's name in the file",
    "pre": "llama.cpp's name of the pre-tokenizer, where imprint does not recognise it",
}


def check(options: Mapping[str, str]) -> None:
    """The type, the name, the package and the tool; RecipeError or UserError where one cannot be or is not there."""
    if not _file_name(options.get("name", "model")):
        raise RecipeError(
            "a file needs a name",
            where=f"name={options['name']}",
            found="no letter and no digit in it",
            fix="name=mine",
        )
    type = check_type(options.get("type", "q8_0"))
    _gguf()
    if type in K_QUANTS:
        find_quantizer(type)


def foresee(folder: Path, options: Mapping[str, str]) -> None:
    """ModelError for an architecture or a tokenizer that llama.cpp would compute otherwise."""
    read_vocabulary(folder, read_shape(folder).vocabulary, options.get("pre"))


def make(merged: Path, out: Path, options: Mapping[str, str]) -> Made:
    """--to gguf: one file in `out`, named by the model and its type."""
    name, type = options.get("name", "model"), check_type(options.get("type", "q8_0"))
    path = out / f"{_file_name(name)}-{type.upper()}.gguf"
    written = write_gguf(merged, path, type, pre=options.get("pre"), name=name, licence=_licence(merged))
    return Made(path, written.notes)


def _file_name(name: str) -> str:
    """A name as a file's: one that begins with - is an option to a command, one with . is hidden."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")


def _licence(folder: Path) -> str | None:
    """The licence that the head of a folder's model card names."""
    card = folder / "README.md"
    found = card.is_file() and re.match(
        r"---\n(?:.*\n)*?license: *([^\s]+)\s*\n(?:.*\n)*?---", card.read_text(encoding="utf-8")
    )
    return found[1] if found else None


def prove(golden: Path, made: Made) -> Proof:
    """Replay the run's golden file in transformers and in llama.cpp."""
    from imprint.export import gguf_proof

    return gguf_proof.prove(golden, made)


TARGET = Target("gguf", make, prove, OPTIONS, check, foresee)
