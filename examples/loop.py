"""Supervised fine-tuning, flat: what `imprint train` does, on the objects that it is made of.

python examples/loop.py MODEL_FOLDER DATA_FILE OUTPUT_FOLDER
"""

import sys
from datetime import datetime
from pathlib import Path

import torch

import imprint

model_folder, data_file, output = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
batch_size, epochs, learning_rate, row_tokens, max_length, seed = 16, 3, 5e-4, 4096, 512, 0

# 1. Demonstrations. Every row is accounted for.
ledger = imprint.Ledger()
loaded = imprint.load_data(
    [imprint.DataSource(path=data_file)],
    validation=0.05,
    bad_rows="leave_out",
    consecutive_replies="merge",
    seed=seed,
    ledger=ledger,
)

# 2. Turns: each reply in the context in which a server would ask for it.
tokenizer = imprint.load_tokenizer(str(model_folder))
rendering = imprint.prepare_rendering(
    tokenizer,
    template="auto" if tokenizer.chat_template else "chatml",
    now=datetime.now(),
    reasoning=loaded.reasoning,
)


def turns_of(conversations):
    turns = [[] for _ in conversations]
    for item in imprint.render_turns(
        conversations,
        rendering.template,
        rendering.encoder,
        max_length=max_length,
        stop_ids=rendering.stop_ids,
    ):
        if isinstance(item, imprint.Turn):
            turns[item.conversation].append(item)
        else:
            print(f"{item.source}: {item.reason if isinstance(item, imprint.LeftOut) else item.warning}")
    return [found for found in turns if found]


train, validation = turns_of(loaded.train), turns_of(loaded.validation)
first = train[0][0]
print(f"context  {rendering.encoder.decode(first.prompt)!r}")
print(f"trained  {rendering.encoder.decode(first.completion)!r}")

# 3. The model. Preset tokens that it lacks are added; two checks say in which rows it trains exactly.
largest = max(int(turn.ids.max()) for turns in train + validation for turn in turns)
model = imprint.RowModel(
    imprint.load_model(
        model_folder, num_tokens=max(largest, *rendering.stop_ids) + 1, grow=bool(rendering.added)
    )
)
longest = max(len(turn) for turns in train + validation for turn in turns)
layout, findings = imprint.choose_layout(model, "auto", longest, vocab=model.base.config.vocab_size)
for finding in findings:
    print(f"check    {finding.name}: {finding.detail}")

# 4. Which conversations make up a step depends on data, seed and epoch alone; rows only carry them.
plan = imprint.Plan(len(train), batch_size, epochs, seed, loaded.fingerprint)
state = imprint.TrainState(
    model=model,
    optimizer=imprint.adamw(model, weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-8),
    learning_rate=imprint.Schedule(learning_rate, plan.total_steps, "cosine", warmup=0.03),
    mesh=imprint.start_mesh("cpu"),
)
held_out = imprint.build_rows([turn for turns in validation for turn in turns], row_tokens, layout)

torch.manual_seed(seed)
while state.step < plan.total_steps:
    turns = [turn for index in plan.conversations(state.step) for turn in train[index]]
    rows = imprint.share_out(turns, row_tokens, state.mesh.size, layout)[state.mesh.rank]
    stats = imprint.train_step(state, rows)
    if state.step % 10 == 0 or state.step == plan.total_steps:
        loss, _ = imprint.validate(state, held_out)
        print(f"step {state.step}/{plan.total_steps}  loss {stats.loss:.4f}  validation {loss:.4f}")

# 5. What came of it: an answer, and a folder to serve.
[(reply, stopped)] = imprint.answer(model, [first.prompt], stop_ids=rendering.stop_ids, max_new_tokens=64)
print(f"answer   {rendering.encoder.decode(reply)!r} ({'stopped' if stopped else 'cut'})")
imprint.set_stops(model.base, rendering.stop_ids, tokenizer.pad_token_id)
imprint.save_model(model, rendering, output, model_folder, state.mesh)
print(f"model    {output}")
