"""The section [data] of a run file: the data sets, and how problems and prompts are made of their rows."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, JsonValue, Tag, model_validator

from cepo.answers.kinds import parse_kind
from cepo.errors import UserError
from cepo.messages.groups import Reward
from cepo.messages.hints import HINT, INSTRUCTION, PROMPT
from cepo.run.sections import Section

Condition = Annotated[str, Field(pattern=r"^[^=~]+[=~]")]
Environment = Annotated[str, Field(pattern=r"^$|^[\w.]+:[\w-]+$|^https?://[^\s,]+$")]
OWN_KEYS = (
    "question", "answer", "images", "solution", "answer_kind", "environment", "max_turns", "split", "where", "limit",
    "system", "instruction",
)  # fmt: skip
"""Keys of [data] that a source may have its own value of."""


class SourceConfig(Section):
    """One of several sources of training problems. A key that is left out has the value of [data]."""

    path: str = Field(min_length=1)
    """The data set, named like `data.train`."""
    name: str = Field(default="", pattern=r"^[A-Za-z0-9._+-]*$")
    """Name in metrics, as in `source/NAME/accuracy`. Empty: the last part of the path, without its extension."""
    share: float = Field(default=1.0, gt=0)
    """Weight of the source: with 3 and 1, three quarters of the prompts of every step are of the first."""
    question: str | None = None
    """Column of the question."""
    answer: str | None = None
    """Column of the reference answer."""
    images: str | None = None
    """Column of the images."""
    solution: str | None = None
    """Column of a worked solution."""
    answer_kind: str | None = None
    """How answers are compared."""
    environment: Environment | None = None
    """Environment of the problems. Empty: none."""
    max_turns: int | None = Field(default=None, ge=1)
    """Largest number of turns that the policy takes in the environment."""
    reward: Reward | None = None
    """What a response earns, in the keys of [reward]. Left out: as in [reward]."""
    split: str | None = None
    """Split of a Hugging Face data set."""
    where: tuple[Condition, ...] | None = Field(default=None, strict=False)
    """Conditions that a row must all meet."""
    limit: int | None = Field(default=None, ge=0)
    """Number of rows to use. 0: all."""
    system: str | None = None
    """System message put before every question."""
    instruction: str | None = None
    """Line added after the question."""

    @property
    def title(self) -> str:
        """The name, or the one that follows from the path. Example: "openai/gsm8k:main" -> "main"."""
        return self.name or PurePath(self.path.replace(":", "/")).stem

    @property
    def key(self) -> str:
        """How messages name the source. Example: `data.train[gsm8k]`."""
        return f"data.train[{self.title}]"


class DataConfig(Section):
    train: Annotated[
        Annotated[str, Field(min_length=1), Tag("one")]
        | Annotated[tuple[SourceConfig, ...], Field(min_length=1, strict=False), Tag("several")],
        Discriminator(lambda train: "several" if isinstance(train, list | tuple) else "one"),
    ]
    """Training problems: a JSONL, JSON, CSV or Parquet file, a folder of `datasets`, or a Hugging Face name with an
    optional subset, such as "openai/gsm8k:main". Files and folders start with `.`, `/` or `~`; relative ones are
    relative to the run file. Several sources are tables [[data.train]]."""
    source: Literal["files", "groups"] = "files"
    """Where training responses come from. "files": the run samples responses to the problems of `train`. "groups":
    groups of responses arrive at `POST /v1/groups` of the trainer; `train` then names the problems that their senders
    work on, which the checks read."""
    curriculum: Literal["", "pass_rate"] = ""
    """Which problems a step draws. "": each once per epoch. "pass_rate": those that the policy answers sometimes are
    drawn more often than those that it answers always or never, whose groups carry no credit."""
    eval: str = ""
    """Held-out problems, named like `train`. Empty: the run measures no held-out accuracy."""
    question: str = ""
    """Column of the question, a text or chat messages; dots reach into nested values, as in "prompt.0.content". Empty:
    recognised by name (`question`, `problem` or `prompt`)."""
    answer: str = ""
    """Column of the reference answer; dots reach into nested values, as in "reward_model.ground_truth". Empty:
    recognised by name (`answer`, `reward_model.ground_truth` or `solution`)."""
    images: str = ""
    """Column of a row's image or list of images: bytes, paths or data URIs. Empty: `images` or `image`, if the data
    set has such a column."""
    solution: str = ""
    """Column of a worked solution, for methods that show one to the teacher. Empty: none."""
    rejected: str = "rejected"
    """Column of the rejected response, for methods that learn from pairs (`dpo`, `ctdpo`); `answer` then names the
    column of the chosen response."""
    answer_kind: str = ""
    """How answers are compared, such as "choice" or "number tolerance=1%". Empty: inferred from each reference."""
    environment: Environment = ""
    """Environment of the training and held-out problems: `module:Class`, a URL that answers `POST /step`, or
    `verifiers:NAME`. Responses then have several turns. Empty: none."""
    max_turns: int = Field(default=8, ge=1)
    """Largest number of turns that the policy takes in an environment."""
    split: str = "train"
    """Split of a Hugging Face data set to train on."""
    eval_split: str = "test"
    """Split of a Hugging Face data set to evaluate on."""
    where: tuple[Condition, ...] = Field(default=(), strict=False)
    """Conditions that a training row must all meet: "column=value", or "column~value" for a text or list that contains
    the value. Example: ["level=5", "topic~algebra"]."""
    eval_where: tuple[Condition, ...] = Field(default=(), strict=False)
    """The same for held-out rows."""
    limit: int = Field(default=0, ge=0)
    """Number of training rows to use, drawn at random with `loop.seed`. 0: all."""
    template: dict[str, JsonValue] = Field(default={})
    """Arguments of the model's chat template, such as {enable_thinking = false}; a template that reads no such argument
    is an error. `chat_template` names one of a tokenizer's several templates, such as "tool_use"."""
    system: str = ""
    """System message put before every question. Empty: none."""
    instruction: str = INSTRUCTION
    """Line added after the question; with {question}, the whole turn, as in "{question} Be brief.". Empty: none, for
    data that holds its own instruction."""
    hint: str = HINT
    """Line that shows the teacher an answer; {answer} is replaced by the answer. With {prompt}, the whole turn, as in
    "{prompt}.\\nA sample answer: {answer}"."""
    placement: Literal["user", "assistant", "system"] = "user"
    """Where the hint stands: "user" is after the question and the instruction (the paper), "assistant" at the start of
    the answer (the paper's code), "system" in the system message."""
    on_bad_row: Literal["refuse", "drop"] = "refuse"
    """What happens to a row that cannot be used, because its prompt is too long, or its answer is missing or cannot be
    graded: "refuse" stops before the run begins and names the row, "drop" leaves the row out."""

    @model_validator(mode="after")
    def _hint_has_answer(self) -> Self:
        if "{answer}" not in self.hint:
            raise ValueError(f"data.hint={self.hint!r} must contain {{answer}}, or every context is the same")
        if PROMPT in self.hint and self.placement != "user":
            raise ValueError(
                f"data.hint={self.hint!r} contains {{prompt}}, the user's turn, so it needs "
                f'data.placement="user", not "{self.placement}"'
            )
        return self

    @model_validator(mode="after")
    def _known_kinds(self) -> Self:
        for key, kind in (
            ("data.answer_kind", self.answer_kind),
            *((f"{s.key}.answer_kind", s.answer_kind) for s in self.sources),
        ):
            try:
                parse_kind(kind or "")
            except UserError as error:
                raise ValueError(f"{key}: {error}") from error
        return self

    @model_validator(mode="after")
    def _sources_have_names(self) -> Self:
        names = [source.title for source in self.sources]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"data.train: two sources are named {twice!r}; give each its own name")
        return self

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """The sources of the training problems; empty if `train` names one data set."""
        return () if isinstance(self.train, str) else self.train

    @property
    def names(self) -> tuple[str, ...]:
        """The data set of each source."""
        return (self.train,) if isinstance(self.train, str) else tuple(source.path for source in self.train)

    @property
    def shares(self) -> tuple[float, ...]:
        """The weight of each source."""
        return tuple(source.share for source in self.sources) or (1.0,)

    def titled(self, title: str) -> SourceConfig | None:
        """The source with this title; None for the problems of a run with one data set, and for held-out problems."""
        return next((source for source in self.sources if source.title == title), None)

    def of(self, title: str) -> DataConfig:
        """This section as it holds for a source: with its data set and its keys. Without such a source: itself."""
        source = self.titled(title)
        if source is None:
            return self
        own = {key: value for key in OWN_KEYS if (value := getattr(source, key)) is not None}
        return self.model_copy(update={"train": source.path, **own})

    @property
    def environments(self) -> tuple[str, ...]:
        """Every environment that the run's tasks name."""
        named = [self.environment, *(source.environment or "" for source in self.sources)]
        return tuple(dict.fromkeys(filter(None, named)))
