"""The flags of each task's data; light, so that a misspelt one is said at once."""

from collections.abc import Sequence
from dataclasses import dataclass

from obert_modifiers.tasks._arguments import (
    DataArguments,
    DataSetArguments,
    check,
    check_positive,
    flag,
    parse,
)


@dataclass
class QuestionAnsweringArguments(DataSetArguments):
    """Which questions are read, and how their answers are found."""

    version_2_with_negative: bool = flag(
        False, "Questions may have no answer, as in SQuAD v2."
    )
    doc_stride: int = flag(
        128, "Tokens that the windows of a long context share with the next one."
    )
    max_answer_length: int = flag(30, "The most tokens of an answer.")
    n_best_size: int = flag(20, "Candidates that are kept for each question.")
    null_score_diff_threshold: float = flag(
        0.0, "No answer is given where its score is higher by more than this."
    )

    def check(self) -> None:
        """Check each value, and those that exclude each other.

        Raises:
            ValueError: If a value breaks its rule.
        """
        super().check()
        check_positive("max_answer_length", self.max_answer_length)
        check_positive("n_best_size", self.n_best_size)
        if self.doc_stride < 0:
            raise ValueError(
                f"--doc_stride={self.doc_stride} is negative; expected 0 or more; use "
                "128"
            )
        if self.null_score_diff_threshold and not self.version_2_with_negative:
            raise ValueError(
                f"--null_score_diff_threshold={self.null_score_diff_threshold} is for "
                "questions without an answer; expected --version_2_with_negative beside"
                " it; add it"
            )
        files = (self.train_file, self.validation_file, self.test_file)
        if self.dataset_name is None and not any(files):
            raise ValueError(
                "--dataset_name is missing, and no question comes with the package; "
                "expected it or --train_file and --validation_file; give a folder "
                "with SQuAD's files"
            )


@dataclass
class TokenArguments(DataSetArguments):
    """The flags of token classification's data."""

    text_column_name: str | None = flag(
        None, "The column of the words, a list in each row; else tokens or words."
    )
    label_column_name: str | None = flag(
        None, "The column of the words' labels; else ner_tags, tags or labels."
    )
    label_names: str | None = flag(
        None, "What the label numbers 0, 1, ... mean, with commas: O,B-PER,I-PER."
    )


@dataclass
class MaskedArguments(DataSetArguments):
    """The flags of masked language modelling's data."""

    text_column_name: str | None = flag(
        None, "The column of the text; else text or sentence. A .txt file has lines."
    )
    line_by_line: bool = flag(
        False, "A sample is a row, cut to max_seq_length; else rows are joined and cut."
    )
    mlm_probability: float = flag(0.15, "The share of the tokens to be predicted.")

    def check(self) -> None:
        """Check each value, and those that exclude each other.

        Raises:
            ValueError: If a value breaks its rule.
        """
        super().check()
        if not 0 < self.mlm_probability < 1:
            raise ValueError(
                f"--mlm_probability={self.mlm_probability} is outside (0, 1); expected "
                "a share of the tokens; use 0.15"
            )


FLAGS: dict[str, type[DataSetArguments]] = {
    "question_answering": QuestionAnsweringArguments,
    "text_classification": DataArguments,
    "token_classification": TokenArguments,
    "masked_language_modeling": MaskedArguments,
}


def check_words(task: str, argv: Sequence[str]) -> None:
    """Check the words of a command line before anything heavy is imported.

    Args:
        task: Name of the task.
        argv: The words after ``obert train TASK``; ``--help`` prints the flags and
            ends the process.

    Raises:
        ValueError: If a flag is unknown or its value breaks its rule.
    """  # noqa: DOC502  raised by what is called
    check(parse(list(argv), f"obert train {task}", FLAGS[task]))
