"""The tiny tokenizer: byte-level BPE with 512 tokens, in which each digit is a token.

All 256 bytes are in the vocabulary, so any text encodes and decodes unchanged. The merges are learned from the task's
prompts and a paragraph of prose, so that each word of the instruction and of the hint is one token.
"""

from collections.abc import Sequence
from itertools import islice

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from cepo.messages.hints import HINT, INSTRUCTION
from cepo.tiny.task import problems

VOCABULARY_SIZE = 512
MAX_TOKENS = 1024
PAD, START, END = SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PAD_ID, START_ID, END_ID = range(3)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
PROSE = """
You are a helpful assistant. The user asks a question and you give the answer, one step at a time.
A baker makes 12 loaves in the morning and 30 in the afternoon. She sells half of them for 2 dollars each.
How many are left at the end of the day, and how much money does she have in total? There were 21 apples in the
basket; each of the 3 children took 4, so there are 9 left. What is the sum of all the numbers that are more than 10?
He had twice as many books as his sister, who read one every week for a year. If a train goes 60 miles in an hour,
how far will it go in 5 hours? First find the number of hours, then multiply. Therefore the final answer is correct.
"""


def corpus() -> list[str]:
    """The texts that the merges are learned from."""
    turns = ["system\n", "user\n", "assistant\n", INSTRUCTION, HINT.format(answer=51)]
    questions = [problem.question + "\n" for problem in islice(problems(0, held_out=False), 100)]
    return [PROSE, *questions, *turns * 50]


def build(texts: Sequence[str] | None = None) -> PreTrainedTokenizerFast:
    """Trains the tokenizer; the result is deterministic.

    Args:
        texts: the texts that the merges are learned from; default: `corpus()`.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus() if texts is None else texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )
