"""Recipe: what one run is.

Every key has its type, its default and its meaning here and nowhere else; the help,
the documentation and the checks are made from this file. `auto` stands for a value
that is resolved once, when the run is created (see `auto.py`), and printed with the reason.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Auto = Literal["auto"]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, StringConstraints(min_length=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class Settings(BaseModel):
    """The base of every group: unknown keys are refused, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DataSource(Settings):
    """One source of demonstrations. A bare string in a recipe stands for `{path: …}`."""

    path: Text
    """A file (.json, .jsonl, .csv, .tsv, .txt, also .gz, .zst, .xz, .bz2; .parquet, .arrow), a folder of such
    files, a glob ('data/*.jsonl'), - for standard input, a Hugging Face hub id, or
    a short name for one (`imprint data sets`)."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """How much of the source is used: about this share of its rows, drawn by the seed and their places alone,
    so that rows added at the end change nothing, and a larger share takes all that a smaller one takes."""
    format: Text = "auto"
    """The format of the rows: auto recognises it row by row; otherwise a name that
    `imprint data formats` lists."""
    fields: dict[str, str] = {}
    """Which column plays which part, where the names are your own: {prompt: question_text, response: gold}."""
    branches: Literal["all", "best"] = "all"
    """Of a tree of replies (OpenAssistant): train every reply, or only the best-ranked one of each prompt."""
    split: Text = "train"
    """Split of a hub dataset, or of a folder of several that `datasets` saved."""
    config: Text | None = None
    """Configuration (subset) of a hub dataset."""
    revision: Text | None = None
    """Commit, tag or branch of a hub dataset."""


class Lora(Settings):
    """Low-rank adapters (only with method: lora or qlora)."""

    rank: Positive = 16
    """Rank of the update of each adapted matrix."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """Scale of the update, see lora.scaling."""
    scaling: Literal["alpha/rank", "rslora"] = "alpha/rank"
    """What the update is multiplied by: alpha / rank, or alpha / √rank, which keeps large ranks from learning
    slower (rank-stabilised LoRA, arXiv 2312.03732)."""
    dora: bool = False
    """Train the length of each output's weights apart from their direction (DoRA, arXiv 2402.09353): closer to
    full fine-tuning at small ranks, and slower."""
    init: Literal["zero", "pissa"] = "zero"
    """How adapters begin: as no change (zero), or as the strongest directions of the matrix that they adapt, whose
    rest is frozen (PiSSA, arXiv 2404.02948). Either is saved as an adapter of the original base; PiSSA's has twice
    the rank."""
    dropout: Share = 0.0
    """Dropout on the adapter's input. Above 0, prompts are no longer shared between turns."""
    targets: Literal["all-linear", "attention"] | list[Text] = "all-linear"
    """Which layers get an adapter: all linear layers but the head, those of attention, or a list of names."""
    train_tokens: list[Text] = []
    """Tokens whose vectors are trained beside the adapters, in the embedding and in an untied head: control tokens
    that the base model never learned, as ["<|im_start|>", "<|im_end|>"]. Tokens that a preset adds always are."""


class Quantization(Settings):
    """How the frozen base is held in four bits (only with method: qlora)."""

    type: Literal["nf4", "fp4"] = "nf4"
    """The sixteen values of a weight: made for normal distributions (nf4, arXiv 2305.14314), or a small float (fp4)."""
    double: bool = True
    """Quantise the scales of the blocks too: 0.37 bits less a weight."""
    skip: list[Text] = []
    """Linear layers that are not quantised, by the ends of their names: [down_proj]. The output matrix never is, nor
    are layers whose width is no multiple of 64, the size of a block."""


class Export(Settings):
    """One form in which the trained model is handed over. A bare word in a recipe stands for `{to: …}`."""

    to: Literal["hf", "gguf", "ollama"]
    """What is made: a folder for transformers, vLLM and SGLang; one file for llama.cpp; a Modelfile with that file."""
    folder: Name | None = None
    """Its folder in RUN/export, so that one form can be made twice. null: the form's own name, or adapter."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the merged weights. null: the base model's."""
    adapter_only: bool = False
    """The adapter by itself, not merged (with to: hf)."""
    options: dict[str, str] = {}
    """Settings of the form, those that `imprint export` takes as KEY=VALUE: {type: q4_k_m}. See docs/gguf.md,
    docs/ollama.md."""


class Recipe(Settings):
    """What one run is."""

    version: Literal[1] = 1
    """Version of this schema."""

    # what is trained
    model: Text
    """The base model: a folder (config, safetensors, tokenizer) or a Hugging Face hub id."""
    revision: Text | None = None
    """Commit of a hub model; required where trust_remote_code is on."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Refused unless revision pins a hub model to a commit."""

    # on what
    data: list[DataSource] = Field(min_length=1)
    """The demonstrations: a file, a hub id, or a list of sources."""
    validation: Share | DataSource = 0.05
    """Share of the conversations held out, split by a hash of the prompt; or a source of its own; 0 for none."""
    bad_rows: Literal["stop", "leave_out"] = "stop"
    """A row that cannot be used: stop before training, or leave it out and count it in the ledger."""

    replay: list[DataSource] = []
    """General text mixed in, so that what the base model knows is not forgotten: plain text, books, or
    conversations; one source or a list. A part is not trained: its loss, before and after, tells what is forgotten."""
    replay_share: Share = 0.1
    """How much of a step comes from replay. 0 trains none of it, and measures what is forgotten without it."""
    replay_share_of: Literal["conversations", "weight"] = "conversations"
    """What replay_share is a share of: the conversations of a step (batch_size counts both kinds), or the weight
    of its loss (replay's weights are scaled; at least one place of each full step is then replay's)."""
    replay_length: Annotated[int, Field(ge=2)] | Auto = "auto"
    """Documents of replay are cut into pieces of this many tokens, of which each counts as one conversation.
    auto: max_length, and at most 1,024."""

    # as which tokens
    template: Text = "auto"
    """Chat template: auto (the tokenizer's own), a .jinja file, or a preset: chatml, llama2, llama3,
    mistral, gemma, vicuna, zephyr, alpaca, plain; or the name of one, where the tokenizer has several."""
    template_options: dict[str, Any] = {}
    """Variables given to the template, at training and as the serving default: {enable_thinking: false}."""
    train_on: Literal["replies", "last_reply", "everything"] = "replies"
    """Where loss is taken: every reply, each conversation's last reply, or every token."""
    max_length: Positive | Auto = "auto"
    """Longest prompt + completion, in tokens. auto: the context of the model."""
    too_long: Literal["leave_out", "truncate", "error"] = "leave_out"
    """A turn beyond max_length: leave it out, cut the end of its reply (its stop is then untrained), or stop."""
    consecutive_replies: Literal["merge", "leave_out"] = "merge"
    """Two assistant messages in a row: merge them into one reply, or leave the conversation out."""
    unfaithful: Literal["leave_out", "error", "keep"] = "leave_out"
    """A reply that the template swallows in part or changes, or whose context it does: leave it out, stop, or
    train it as rendered. (Where a template has no rendering for it at all, keep leaves it out too.)"""
    control_tokens: Literal["leave_out", "escape", "keep"] = "leave_out"
    """A control token (<|im_end|>, </s>) in the data's own text: leave out the replies behind it, put a space
    into it so that it is ordinary text, or keep it as the tokenizer reads it."""

    # how
    method: Literal["full", "lora", "qlora"] = "full"
    """Train every weight, low-rank adapters, or low-rank adapters on a base that is held in four bits (needs
    imprint-sft[qlora]; the adapter belongs to the quantised base)."""
    lora: Lora = Lora()
    """Settings of methods lora and qlora."""
    quantization: Quantization = Quantization()
    """Settings of method: qlora."""
    freeze: list[Text] = []
    """Parameters that method: full leaves as they are, by patterns over their names: ["model.embed_tokens.*",
    "model.layers.[0-7].*"]. imprint names parameters that are near where a pattern fits none."""
    train_only: list[Text] = []
    """Patterns of the only parameters that method: full trains; freeze takes from these."""
    loss: Literal["nll", "dft"] = "nll"
    """What training minimises: the negative log-likelihood, or that of each token times its own probability (Dynamic
    Fine-Tuning, arXiv 2508.05629). Validation always measures the plain one; a training loss of another kind does
    not compare with it."""
    label_smoothing: Share = 0.0
    """How much of the training loss is spread over all tokens of the vocabulary alike."""
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Adds this times the square of the logarithm of the softmax's denominator to each token's training loss (PaLM
    used 1e-4); it keeps logits from drifting."""
    dropout: Share = 0.0
    """Dropout in the model, whatever its config says. Above 0, prompts are no longer shared between turns."""
    neftune_alpha: Annotated[float, Field(ge=0)] = 0.0
    """Noise on the embeddings while training, uniform within alpha / √(tokens of the turn · width) (NEFTune, arXiv
    2310.05914 used 5, 10 and 15). Above 0, prompts are no longer shared between turns."""
    batch_size: Positive = 32
    """Conversations in one step (one update of the weights), over all devices; pieces of replay count too."""
    keep_together: Literal["prompt"] | None = None
    """With prompt, conversations with the same messages before their first trained reply, and those of one tree,
    are drawn into the same step, so that several answers share one prompt; what a step has no place for goes on
    in the next. null: each is drawn for itself."""
    epochs: Annotated[float, Field(gt=0)] = 3
    """Passes over the training conversations."""
    max_steps: Positive | None = None
    """Stop after this many steps, if that is earlier."""
    learning_rate: Annotated[float, Field(gt=0)] | Auto = "auto"
    """Peak learning rate. auto: the model folder's preset, else by width and method."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """How the learning rate falls after warm-up: to 0 in a line, to 0 along a cosine, or not at all."""
    optimizer: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    """adamw; adamw with its moments in eight bits (needs imprint-sft[qlora]); or muon for matrices, which makes each
    update orthogonal, at adamw's size (arXiv 2502.16982), and adamw for embeddings, the output matrix and vectors."""
    warmup: Share | Positive = 0.03
    """Rising part of the schedule: a share of all steps, or a number of steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay, on matrices only."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decay of AdamW's two moments."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's epsilon."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient; null for no clipping."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """Where the loss or a gradient is not finite: stop before the update, with the rows of the batch named; or leave
    the update out and go on. After five in a row, skip stops too."""
    balance_loss: Annotated[float, Field(ge=0)] = 0.0
    """Mixtures of experts: coefficient of the routers' load-balancing loss, taken over the whole step. 0: none,
    whatever the model's config says. Above 0, each step takes one more forward pass."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the order of the data, of adapters and of dropout."""

    # with which means
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train. auto: cuda, else mps, else cpu."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the matrix products; weights and optimizer stay float32. float16 is trained with a scaled loss; where
    it overflows, the update is made again with half the scale. auto: bfloat16 where the processor has it, float16
    on CUDA devices without it."""
    threads: Positive | Auto = "auto"
    """CPU threads. Part of what makes a resumed run equal to the uninterrupted one."""
    layout: Literal["auto", "shared", "packed", "separate"] = "auto"
    """Rows: shared (common prompts computed once), packed, or one turn each. auto: the first that the model passes."""
    attention: Literal["auto", "tiles", "flex", "varlen", "reference"] = "auto"
    """How attention is computed: only what someone sees, in tiles (any device), by FlexAttention (flex, on cuda),
    or as sequences where no prompt is shared and by flex elsewhere (varlen, on cuda); or in the obvious dense way."""
    row_tokens: Positive | Auto = "auto"
    """Most tokens in one row. Never changes the update, only memory and speed. auto: measured on the model when
    the run is made. Where memory runs out, rows become shorter and the run goes on."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    rehearse: bool | Auto = "auto"
    """Do everything once before the first step, and undo it: the heaviest row, an update, a validation, an answer,
    a checkpoint, the model, the exports. What will not fit later fails there. auto: where the run is forecast to take
    two minutes or more; it takes about a minute, and as long as the exports do."""

    # watched and kept
    validate_every: Positive | Auto = "auto"
    """Steps between validations. auto: about ten in a run, and one at its end."""
    patience: Positive | None = None
    """Stop early after this many validations without a better loss; null for never."""
    min_improvement: Annotated[float, Field(ge=0)] = 0.0
    """How much lower, in nats per token, a validation loss must be to count as better."""
    save_every: Positive | Auto = "auto"
    """Steps between checkpoints. auto: at each validation."""
    final: Literal["best", "last"] = "best"
    """Which weights become the run's model: those of the best validation (see min_improvement), or the last."""
    samples: Annotated[int, Field(ge=0)] = 4
    """Fixed prompts answered at each validation."""
    sample_tokens: Positive = 64
    """Longest of those answers, in tokens."""
    golden: Annotated[int, Field(ge=0)] = 16
    """Prompts of the data whose log-probabilities and greedy replies are frozen at the end of the run, in
    golden.json: what every export is compared with. 0 for none."""
    track: Tracker | list[Tracker] = []
    """Who else follows the run (needs imprint-sft[trackers]): one of them, or a list. None stops or slows it; secrets
    are taken out of what they get. `imprint track RUN --to NAME` sends the same afterwards. See docs/trackers.md."""
    export: list[Export] = []
    """What is made of the model when the run has ended, each proven with golden.json: [hf, gguf], or {to: gguf,
    options: {type: q4_k_m}}. One that fails costs the run nothing, and can be made afterwards. See docs/export.md."""
    output: Text | Auto = "auto"
    """The run folder. It must not exist. auto: runs/MODEL-DATA, with a number if that is taken."""
