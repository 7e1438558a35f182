"""A model folder as a candidate: loaded by plain transformers, in a process of its own.

Nothing of imprint's rendering, tokenising or running is used here: the saved tokenizer renders by its
saved template, transformers' own model answers by the saved generation settings, as for any user.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from typing import Any

from imprint.errors import ModelError
from imprint.export.golden import Example, Golden, read_golden
from imprint.export.parity import TOKENIZER, Asked, Parity, Reply, bar_for, parity_of, replay
from imprint.model.devices import check_device

PACKAGE = Path(__file__).parents[2]  # where the interpreter of the other process finds imprint


class FolderCandidate:
    """A folder of transformers: a whole model, or a PEFT adapter whose base lies where its config says.

    It computes in `precision`, that of the golden file: what is compared is the weights, not their noise.
    """

    def __init__(
        self,
        folder: Path,
        now: str,
        device: str = "cpu",
        precision: str = "float32",
        trust_remote_code: bool = False,
    ):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        self.name = str(folder)
        self.folder, self.now = folder, datetime.fromisoformat(now)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        adapter = (folder / "adapter_config.json").is_file()
        if adapter:
            self.model: Any = load_adapter(folder, getattr(torch, precision), trust_remote_code)
        else:
            self.model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, precision), trust_remote_code=trust_remote_code
            )
        self.model = self.model.to(device).eval()
        self.generation: Any = None
        with suppress(OSError):
            self.generation = GenerationConfig.from_pretrained(folder)
        if self.generation is None and adapter:  # then the base's stops end its replies
            self.generation = self.model.generation_config

    def stops(self) -> Mapping[str, Sequence[int]]:
        found: dict[str, Sequence[int]] = {TOKENIZER: _ids(self.tokenizer.eos_token_id)}
        if self.generation is not None:
            found["generation_config.json"] = _ids(self.generation.eos_token_id)
        if (self.folder / "config.json").is_file():
            found["config.json"] = _ids(self.model.config.get_text_config().eos_token_id)
        return found

    def bos(self) -> int | None:
        number = self.tokenizer.bos_token_id
        ids = self.tokenizer("a").input_ids
        return 0 if number is None else next((n for n, i in enumerate(ids) if i != number), len(ids))

    def prompt(self, example: Example) -> Asked:
        template = str(self.tokenizer.chat_template)
        given: dict[str, Any] = {"tools": list(example.tools) or None, "add_generation_prompt": True}
        if "strftime_now" in template:  # the date of the run, not of today
            given["strftime_now"] = self.now.strftime
        messages = [dict(message) for message in example.messages]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, **given)
            ids = self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **given)
        except Exception as error:  # whatever a changed template does wrong is what is to be told
            return Asked([], f"(the template refuses it: {type(error).__name__}: {error})"[:200])
        return Asked([int(i) for i in ids], text)

    def logprobs(
        self, prompt: Sequence[int], continuation: Sequence[int], wanted: Sequence[Sequence[int]]
    ) -> Sequence[Mapping[int, float]]:
        import torch

        ids = torch.tensor([[*prompt, *continuation[:-1]]], device=self.model.device)
        if int(ids.max()) >= self.model.get_input_embeddings().weight.shape[0]:
            return [dict.fromkeys(some, float("nan")) for some in wanted]
        with torch.no_grad():
            logits = self.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :]
        rows = logits.log_softmax(dim=-1).cpu()
        return [
            {i: float(row[i]) if i < len(row) else float("nan") for i in some}
            for row, some in zip(rows, wanted, strict=True)
        ]

    def greedy(self, example: Example) -> Reply:
        import torch

        asked = self.prompt(example).ids
        if not asked or max(asked) >= self.model.get_input_embeddings().weight.shape[0]:
            return Reply([], "", False)
        ids = torch.tensor([list(asked)], device=self.model.device)
        settings = deepcopy(self.generation or self.model.generation_config)
        settings.update(max_new_tokens=example.limit, do_sample=False)
        with torch.no_grad():
            out = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
            )
        reply = out[0, len(asked) :].tolist()
        stops = set(self.stops().get("generation_config.json") or _ids(self.model.config.eos_token_id))
        stopped = bool(reply) and reply[-1] in stops
        reply = reply[:-1] if stopped else reply
        return Reply(reply, self.tokenizer.decode(reply, skip_special_tokens=True), stopped)

    def token(self, number: int) -> str:
        return str(self.tokenizer.decode([number]))


def load_adapter(folder: Path, dtype: Any, trust_remote_code: bool = False) -> Any:
    """An adapter on its base, as PEFT loads it; on the values that four bits hold, where it was trained on those."""
    from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel

    from imprint.model.load import read_weights
    from imprint.model.quantize import read_quantized, unpack_layers

    quantized = read_quantized(folder)
    with warnings.catch_warnings():  # peft 0.21 asks transformers 5 by a name that is going away
        warnings.simplefilter("ignore", FutureWarning)
        if quantized is None:
            return AutoPeftModelForCausalLM.from_pretrained(
                folder, dtype=dtype, trust_remote_code=trust_remote_code
            )
        base = Path(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path)
        model = read_weights(base, 0.0, False, quantized)
        unpack_layers(model)
        model.quantization_method, model.is_quantized, model.is_loaded_in_4bit = None, False, False
        return PeftModel.from_pretrained(model.to(dtype), folder).to(dtype)


def _ids(given: int | Sequence[int] | None) -> list[int]:
    if given is None:
        return []
    return [int(i) for i in given] if isinstance(given, Sequence) else [int(given)]


def kind_of(folder: Path) -> str:
    """The narrowest floating type among the tensors: what its numbers are rounded to. ModelError: they are damaged."""
    from safetensors import SafetensorError, safe_open

    names = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    found = set()
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="np") as weights:
                found |= {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ModelError(
                "these weights are damaged",
                where=str(file),
                found=str(error),
                expected="a whole file of safetensors",
                fix="put it back from a copy; or export it anew",
            ) from error
    order = ("bfloat16", "float16", "float32")
    return next((kind for kind in order if kind in {names.get(str(name)) for name in found}), "float32")


def replay_folder(
    golden: Path, folder: Path, kind: str = "", device: str = "cpu", trust_remote_code: bool = False
) -> Parity:
    """Load a model folder or an adapter in a fresh process and compare it with the golden file `golden`.

    `kind` (see `parity.BARS`) is that of its tensors by default. ModelError where it cannot be loaded.
    """
    read_golden(golden)  # so that what is wrong with that is not taken for a fault of the folder
    check_device(device)
    check_base(folder)
    options = ["--kind", kind or kind_of(folder), "--device", device]
    options += ["--trust-remote-code"] if trust_remote_code else []
    done, why = in_fresh_process("imprint.export.folder", golden, folder, options)
    if done is None:
        raise ModelError(
            "the folder cannot be loaded by transformers",
            where=str(folder),
            found=why,
            fix="see that it is a whole export, as it was made; else export it anew",
        )
    return parity_of(done)


def in_fresh_process(module: str, golden: Path, target: Path, options: Sequence[str]) -> tuple[Any, str]:
    """What `python -m MODULE GOLDEN TARGET OUT …` writes as JSON, and nothing; None, and why, where it wrote none."""
    with tempfile.TemporaryDirectory() as nowhere:
        out = Path(nowhere) / "parity.json"
        paths = [str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]
        done = subprocess.run(
            [sys.executable, "-m", module, str(golden), str(target), str(out), *options],
            stdin=subprocess.DEVNULL,  # transformers would ask whether code is to be trusted
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        if out.is_file():
            return json.loads(out.read_text(encoding="utf-8")), ""
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return None, lines[-1][:300]


def check_base(folder: Path) -> None:
    """ModelError where the base of an adapter is a folder that is not there."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        return
    base = str(json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path"))
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise ModelError(
            "the base model of this adapter is not there",
            where=f"{path}: base_model_name_or_path",
            found=base,
            expected="the folder of the model that the adapter was trained on",
            fix="put it back, or export with --base FOLDER and compare that",
        )


def compare(
    golden: Golden, folder: Path, kind: str, device: str = "cpu", trust_remote_code: bool = False
) -> Parity:
    """As `replay_folder`, in this process."""
    candidate = FolderCandidate(folder, golden.now, device, golden.precision, trust_remote_code)
    return replay(golden, candidate, kind, bar_for(kind, golden, golden.precision))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m imprint.export.folder")
    parser.add_argument("golden", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--trust-remote-code", action="store_true")
    given = parser.parse_args(arguments)
    found = compare(
        read_golden(given.golden), given.folder, given.kind, given.device, given.trust_remote_code
    )
    given.out.write_text(json.dumps(found.to_json()), encoding="utf-8")


if __name__ == "__main__":
    main()
