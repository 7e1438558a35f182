"""A `llama-server` from PyPI: llama.cpp as the package xllamacpp carries it, with the arguments that imprint gives.

    python -m venv ~/llama && ~/llama/bin/pip install --no-deps xllamacpp
    export IMPRINT_LLAMA_SERVER="$HOME/llama/bin/python $PWD/tools/llama_server.py"

In an environment of its own: imprint talks to it over HTTP alone.
"""

import argparse
import signal

import xllamacpp

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--model", required=True)
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--port", type=int, default=8080)
parser.add_argument("--ctx-size", type=int, default=0)
parser.add_argument("--parallel", type=int, default=1)
parser.add_argument("--cache-type-k", default="f16")
parser.add_argument("--cache-type-v", default="f16")
parser.add_argument("--flash-attn", choices=["on", "off", "auto"], default="auto")
parser.add_argument("--no-warmup", action="store_true")
parser.add_argument("--jinja", action="store_true")
given = parser.parse_args()

params = xllamacpp.CommonParams()
params.model.path = given.model
params.hostnames = [given.host]
params.port = given.port
params.n_ctx = given.ctx_size
params.n_parallel = given.parallel
params.cache_type_k = xllamacpp.ggml_type[f"GGML_TYPE_{given.cache_type_k.upper()}"]
params.cache_type_v = xllamacpp.ggml_type[f"GGML_TYPE_{given.cache_type_v.upper()}"]
flash = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}[given.flash_attn]
params.flash_attn_type = xllamacpp.llama_flash_attn_type[f"LLAMA_FLASH_ATTN_TYPE_{flash}"]
params.warmup = not given.no_warmup
params.use_jinja = given.jinja

server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
signal.pause()
