"""What a stranger computes with saved adapters: transformers and PEFT alone (`python fresh.py OUT FOLDER…`)."""

import json
import sys
import warnings
from pathlib import Path

import torch

warnings.simplefilter("ignore")
IDS = torch.arange(40)[None] * 7 % 500


def logits_of(folder: Path) -> torch.Tensor:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    options = {}
    if (folder / "quantized_base.json").is_file():
        held = json.loads((folder / "quantized_base.json").read_text())
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=held["type"],
            bnb_4bit_use_double_quant=held["double"],
            bnb_4bit_compute_dtype=torch.float32,
        )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **options)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # for inference in bfloat16; bitsandbytes 0.50 breaks off where a matrix is narrower than a block
            module.support_avx512bf16_for_cpu = False
    rows = len(AutoTokenizer.from_pretrained(folder))
    if rows > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows, mean_resizing=False)
    model = PeftModel.from_pretrained(model, folder).eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


if __name__ == "__main__":
    torch.save({folder: logits_of(Path(folder)) for folder in sys.argv[2:]}, sys.argv[1])
