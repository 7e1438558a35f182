"""Well-known open sets for supervised fine-tuning, and the short names that stand for them.

What the table says was looked up in the sets' pages on the hub, in the summaries of the Data Provenance
Initiative (github.com/Data-Provenance-Initiative/Data-Provenance-Collection) and in a curated list
(github.com/mlabonne/llm-datasets). Where these say nothing sure, the table says unsure. It is a help
to choose, no legal advice.
"""

from __future__ import annotations

from typing import NamedTuple

from imprint.errors import DataError, RecipeError, nearest
from imprint.recipe import DataSource


class OpenSet(NamedTuple):
    """One set: where it lies, how large it is, who wrote its replies, and what its licence asks for.

    `rows` are those of the split that is named. `catch` is what a reader of the licence alone would
    miss. `format` is imprint's; `note` is what must be said to read it.
    """

    name: str
    hub: str
    rows: str
    origin: str
    languages: str
    licence: str
    catch: str
    good_for: str
    format: str
    split: str = "train"
    config: str | None = None
    note: str = ""


OPENAI = "written by OpenAI's models, whose terms restrict training models that compete with them"
_NC = "not for commercial use"
TREES = "a row is a message: they are gathered into trees"

SETS = (
    OpenSet(
        "airoboros", "jondurbin/airoboros-3.2", "59k", "synthetic: GPT-4, ChatGPT", "en, code", "several",
        f"no one licence; {OPENAI}", "many small skills: roleplay, riddles, code, functions", "sharegpt",
    ),
    OpenSet(
        "alpaca", "tatsu-lab/alpaca", "52k", "synthetic: text-davinci-003", "en", "CC BY-NC 4.0",
        f"{_NC}; {OPENAI}", "the classic; a quick first run, not a good last one", "alpaca",
    ),
    OpenSet(
        "alpaca-cleaned", "yahma/alpaca-cleaned", "52k", "synthetic: text-davinci-003, corrected by hand", "en",
        "CC BY 4.0", f"the Alpaca that it corrects is CC BY-NC 4.0; {OPENAI}", "Alpaca without its worst rows",
        "alpaca",
    ),
    OpenSet(
        "alpaca-gpt4", "teknium/GPT4-LLM-Cleaned", "55k", "synthetic: GPT-4", "en", "CC BY-NC 4.0",
        f"{_NC}; {OPENAI}", "Alpaca's prompts with better replies", "alpaca",
    ),
    OpenSet(
        "apigen-mt", "Salesforce/APIGen-MT-5k", "5k", "synthetic, verified", "en", "CC BY-NC 4.0",
        _NC, "calling tools over several turns", "sharegpt",
    ),
    OpenSet(
        "aya", "CohereForAI/aya_dataset", "204k", "crowd: native speakers", "about 70", "Apache-2.0", "",
        "many languages, written by people", "inputs_targets",
    ),
    OpenSet(
        "capybara", "LDJnr/Capybara", "16k", "synthetic: GPT-4", "en", "Apache-2.0",
        f"parts come from CC BY-NC sets; {OPENAI}", "long conversations of several turns", "conversation",
    ),
    OpenSet(
        "code-alpaca", "sahil2801/CodeAlpaca-20k", "20k", "synthetic: OpenAI", "en, code", "CC BY-NC 4.0",
        f"{_NC}; {OPENAI}", "short programming tasks", "alpaca",
    ),
    OpenSet(
        "codefeedback", "m-a-p/CodeFeedback-Filtered-Instruction", "157k", "synthetic: four sets, filtered",
        "en, code", "Apache-2.0", OPENAI, "harder programming questions", "query_answer",
    ),
    OpenSet(
        "coig-cqia", "m-a-p/COIG-CQIA", "45k", "a collection, annotated by people", "zh", "several",
        "each part has its own licence", "Chinese", "alpaca", note="several configurations: name one with config=",
    ),
    OpenSet(
        "deita", "hkust-nlp/deita-10k-v0", "10k", "synthetic: ChatGPT and users of ShareGPT", "en", "Apache-2.0",
        f"a part comes from a CC BY-NC set; {OPENAI}", "few conversations, chosen with care", "sharegpt",
    ),
    OpenSet(
        "dolci", "allenai/Dolci-Instruct-SFT", "2.2M", "a mixture, more than half of it new and synthetic",
        "more than 70", "unsure", "a list says CC BY-NC 4.0, sets made from its parts say ODC-BY: read its card",
        "a whole general recipe", "messages",
    ),
    OpenSet(
        "dolly", "databricks/databricks-dolly-15k", "15k", "human: employees of Databricks", "en", "CC BY-SA 3.0",
        "what is built on the text is shared alike", "human writing that may be used in products", "dolly",
    ),
    OpenSet(
        "glaive-code", "glaiveai/glaive-code-assistant", "136k", "synthetic: Glaive's own model", "en, code",
        "Apache-2.0", "", "programming questions as people ask them", "question_answer",
    ),
    OpenSet(
        "gsm8k", "openai/gsm8k", "7.5k", "human", "en", "MIT", "its test split is a benchmark: train on train alone",
        "school mathematics, worked out step by step", "question_answer", config="main",
    ),
    OpenSet(
        "guanaco", "timdettmers/openassistant-guanaco", "10k", "crowd: the best branches of oasst1", "many",
        "Apache-2.0", "", "a small multilingual chat set", "text",
    ),
    OpenSet(
        "helpsteer", "nvidia/HelpSteer", "35k", "synthetic, rated by people", "en", "CC BY 4.0",
        "weak replies are in it too: filter by its ratings", "replies with human ratings", "prompt_response",
    ),
    OpenSet(
        "hermes-fc", "NousResearch/hermes-function-calling-v1", "12k", "synthetic", "en", "Apache-2.0", "",
        "calling tools, answering in JSON", "sharegpt", note="several configurations: name one with config=",
    ),
    OpenSet(
        "hh-rlhf", "Anthropic/hh-rlhf", "161k", "Anthropic's models, chosen between by people", "en", "MIT",
        "made for preferences: the chosen reply alone is trained, and may still be poor", "helpful and harmless tone",
        "chosen",
    ),
    OpenSet(
        "lima", "GAIR/lima", "1k", "human: forums, and the authors", "en", "CC BY-NC-SA 4.0",
        f"{_NC}; stricter where its source was", "showing how far a thousand good rows go", "sharegpt",
    ),
    OpenSet(
        "lmsys-chat", "lmsys/lmsys-chat-1m", "1M", "25 models, asked by the public", "many", "its own",
        "its licence must be accepted on the hub first; replies of weak models and unsafe prompts are in it",
        "what people really ask", "conversation",
    ),
    OpenSet(
        "longalign", "THUDM/LongAlign-10k", "9.9k", "synthetic: Claude 2.1", "en", "Apache-2.0",
        "written by Claude, whose maker has terms of its own", "long contexts", "messages",
    ),
    OpenSet(
        "magicoder", "ise-uiuc/Magicoder-OSS-Instruct-75K", "75k", "synthetic: GPT-3.5, from open code", "en, code",
        "MIT", OPENAI, "programming tasks inspired by real code", "problem_solution",
    ),
    OpenSet(
        "magpie-pro", "Magpie-Align/Magpie-Pro-300K-Filtered", "300k", "synthetic: Llama 3 70B Instruct", "en",
        "Llama 3", "Llama's licence goes with it; its makers' paper and page differ on CC BY-NC", "general chat",
        "sharegpt",
    ),
    OpenSet(
        "mathinstruct", "TIGER-Lab/MathInstruct", "262k", "a mixture, in part GPT-4", "en", "MIT",
        f"one of its parts is CC BY-NC; {OPENAI}", "mathematics in words and as programs", "instruction_output",
    ),
    OpenSet(
        "medical-flashcards", "medalpaca/medical_meadow_medical_flashcards", "34k", "synthetic: GPT-3.5", "en",
        "unsure", f"its discussion on the hub says non-commercial; {OPENAI}", "medical facts", "alpaca",
    ),
    OpenSet(
        "megascience", "MegaScience/MegaScience", "1.25M", "a mixture, in part synthetic", "en", "CC BY-NC-SA 4.0",
        _NC, "science questions that need reasons", "question_answer",
    ),
    OpenSet(
        "metamath", "meta-math/MetaMathQA", "395k", "synthetic: GPT-3.5, from GSM8K and MATH", "en", "MIT", OPENAI,
        "school mathematics, asked in many ways", "query_response",
    ),
    OpenSet(
        "no-robots", "HuggingFaceH4/no_robots", "9.5k", "human: paid annotators", "en", "CC BY-NC 4.0", _NC,
        "good human writing in ten categories", "messages",
    ),
    OpenSet(
        "numina-cot", "AI-MO/NuminaMath-CoT", "859k", "competition problems, solved step by step",
        "en", "Apache-2.0", "it was CC BY-NC 4.0 when it appeared", "competition mathematics, step by step",
        "messages",
    ),
    OpenSet(
        "oasst1", "OpenAssistant/oasst1", "84k", "crowd: volunteers", "35", "Apache-2.0", "",
        "chat by people, in trees with ranks", "oasst_messages", note=TREES,
    ),
    OpenSet(
        "oasst2", "OpenAssistant/oasst2", "135k", "crowd: volunteers", "35", "Apache-2.0", "",
        "the larger oasst1", "oasst_messages", note=TREES,
    ),
    OpenSet(
        "openhermes", "teknium/OpenHermes-2.5", "1M", "a compilation, mostly GPT-4", "en", "none as a whole",
        f"each part has its own licence, some CC BY-NC; {OPENAI}", "general chat and code at scale", "sharegpt",
    ),
    OpenSet(
        "openmath", "nvidia/OpenMathInstruct-1", "7.3M", "synthetic: Mixtral 8x7B", "en", "NVIDIA's own",
        "read its LICENSE before use", "mathematics with code that is run", "question_answer",
        note="map its columns: fields.question=question fields.answer=generated_solution",
    ),
    OpenSet(
        "openorca", "Open-Orca/OpenOrca", "4.2M", "synthetic: GPT-4 and GPT-3.5 on FLAN", "en", "MIT",
        f"FLAN's own parts keep their licences; {OPENAI}", "explained answers to NLP tasks", "question_response",
    ),
    OpenSet(
        "openthoughts", "open-thoughts/OpenThoughts-114k", "114k", "synthetic: DeepSeek-R1", "en", "Apache-2.0", "",
        "long reasoning: mathematics, code, science, puzzles", "sharegpt",
    ),
    OpenSet(
        "orca-math", "microsoft/orca-math-word-problems-200k", "200k", "synthetic: GPT-4 Turbo", "en", "MIT",
        f"some of the problems that it grew from are CC BY-NC; {OPENAI}", "word problems for small models",
        "question_answer",
    ),
    OpenSet(
        "platypus", "garage-bAInd/Open-Platypus", "25k", "a mixture, in part GPT-4", "en, code", "several",
        f"one of its parts is CC BY-NC 4.0; {OPENAI}", "science and logic, deduplicated", "alpaca",
    ),
    OpenSet(
        "pure-dove", "LDJnr/Pure-Dove", "3.9k", "synthetic: GPT-4, asked by people", "en", "Apache-2.0", OPENAI,
        "conversations of several turns", "conversation",
    ),
    OpenSet(
        "slimorca", "Open-Orca/SlimOrca", "518k", "synthetic: GPT-4 on FLAN, wrong ones removed by GPT-4", "en",
        "MIT", f"FLAN's own parts keep their licences; {OPENAI}", "OpenOrca at an eighth of its size", "sharegpt",
    ),
    OpenSet(
        "smoltalk", "HuggingFaceTB/smoltalk", "1.1M", "a mixture, mostly synthetic", "en", "Apache-2.0",
        "it includes parts of OpenHermes, NuminaMath and others, which have their own", "small chat models",
        "messages", config="all",
    ),
    OpenSet(
        "tulu2", "allenai/tulu-v2-sft-mixture", "326k", "a mixture of published sets", "en", "ODC-BY",
        "each part has its own licence: see its page", "a general recipe that was measured well",
        "messages",
    ),
    OpenSet(
        "tulu3", "allenai/tulu-3-sft-mixture", "939k", "a mixture: human and synthetic, with personas", "many",
        "ODC-BY", "some rows are non-commercial: see its column source", "a whole general recipe, published",
        "messages",
    ),
    OpenSet(
        "ultrachat", "HuggingFaceH4/ultrachat_200k", "208k", "synthetic: ChatGPT talking to itself", "en", "MIT",
        f"the data that it filters is CC BY-NC 4.0 by its makers' page; {OPENAI}", "polite chat of several turns",
        "messages", split="train_sft",
    ),
    OpenSet(
        "ultrachat-full", "stingning/ultrachat", "1.5M", "synthetic: ChatGPT talking to itself", "en",
        "MIT or CC BY-NC 4.0", f"its pages disagree; {OPENAI}", "ultrachat unfiltered", "data",
    ),
    OpenSet(
        "ultrafeedback", "HuggingFaceH4/ultrafeedback_binarized", "61k", "many models, the best by GPT-4's judgement",
        "en", "MIT", OPENAI, "replies that a judge liked", "messages", split="train_sft",
    ),
    OpenSet(
        "wildchat", "allenai/WildChat-1M", "838k", "GPT-3.5 and GPT-4, asked by the public", "many", "ODC-BY",
        f"real people's words; {OPENAI}", "what people really ask", "conversation",
    ),
    OpenSet(
        "wizardlm", "WizardLMTeam/WizardLM_evol_instruct_70k", "70k", "synthetic: ChatGPT", "en",
        "academic research only", f"so its repository says; {OPENAI}", "instructions made harder step by step",
        "instruction_output",
    ),
    OpenSet(
        "xlam", "Salesforce/xlam-function-calling-60k", "60k", "synthetic, verified", "en", "CC BY 4.0",
        "", "calling tools in one turn", "xlam",
    ),
)  # fmt: skip
BY_NAME = {one.name: one for one in SETS}


def on_hub(source: DataSource) -> DataSource:
    """The source with the hub id, configuration and split that a short name stands for; others as they are.

    What the source itself says goes before what the table says.
    """
    known = BY_NAME.get(source.path)
    if known is None:
        return source
    split = known.split if source.split == "train" else source.split
    return source.model_copy(
        update={"path": known.hub, "config": source.config or known.config, "split": split}
    )


def explained(error: DataError, source: DataSource) -> DataError:
    """The error of a dataset that could not be loaded, with what helps where its name is, or is like, a short one."""
    known = BY_NAME.get(source.path)
    if known is not None:
        what, fix = f"{known.name} stands for {known.hub} on the hub, which cannot be loaded", _remedy(known)
    elif "/" not in source.path and (like := nearest(source.path, BY_NAME)):
        what, fix = error.what, f"write data={like}, if you meant {BY_NAME[like].hub}; or {error.fix}"
    else:
        return error
    return DataError(what, where=error.where, found=error.found, expected=error.expected, fix=fix)


def download(hub: str, folder: str, revision: str | None = None) -> str:
    """How a dataset gets to a machine without a network."""
    pinned = f" --revision {revision}" if revision else ""
    return (
        f"where there is a network: hf download --repo-type dataset {hub}{pinned} --local-dir {folder}\n"
        f"then, where there is none, give that folder: data={folder}/ (its training files alone)"
    )


def _remedy(known: OpenSet) -> str:
    lines = [download(known.hub, known.name)]
    return "\n".join([*lines, known.note] if known.note else lines)


def named(name: str) -> OpenSet:
    """The set of this short name or hub id; RecipeError where there is none."""
    for one in SETS:
        if name.lower() in (one.name, one.hub.lower()):
            return one
    like = nearest(name, [*BY_NAME, *(one.hub for one in SETS)])
    raise RecipeError(
        "no set of this name is known here",
        where=name,
        expected="a name that `imprint data sets` lists",
        fix=f"write {like}" if like else "any dataset of the hub can be given by its id, known here or not",
    )
