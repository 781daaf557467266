"""Questions about images: VQAv2's two files, and DocVQA's one."""

from collections import Counter
from typing import Any

from florence_jax.training.data.example import DataError, Example, Source
from florence_jax.training.data.storage import (
    Place,
    as_path,
    read_object,
    read_value,
    resolve_inside,
)


class Vqa(Source):
    """VQAv2, TextVQA and VizWiz questions as `<VQA>question` -> the most frequent answer.

    Args:
        questions: VQAv2's questions file; its annotations file where `annotations` is given, else
            a file whose questions carry their `answers`.
        image_pattern: file name below `image_root`, with `{image_id}`; by default the question's
            `image` or `file_name`. For VQAv2: "COCO_train2014_{image_id:012d}.jpg".
    """

    task = "<VQA>"

    def __init__(
        self,
        questions: str | Place,
        image_root: str | Place | None = None,
        annotations: str | Place | None = None,
        image_pattern: str = "",
    ):
        self.path = as_path(questions)
        self.image_root = as_path(image_root) if image_root else self.path.parent
        self.image_pattern = image_pattern
        content = read_value(self.path)
        # VizWiz's file is the list itself.
        found = content
        if isinstance(content, dict):
            found = content.get("questions") or content.get("data")
        if not isinstance(found, list) or not found:
            has = ", ".join(list(content)[:8]) if isinstance(content, dict) else repr(content)[:80]
            raise DataError(
                f"{self.path} has no list of `questions` (VQAv2, TextVQA) or `data` (DocVQA), and "
                f"is none (VizWiz); it has {has or 'nothing'}"
            )
        self._questions: list[Any] = found
        self._answers: dict[Any, str] = {}
        if annotations is not None:
            path = as_path(annotations)
            found = read_object(path, all_of=("annotations",))["annotations"]
            if not isinstance(found, list):
                raise DataError(f"{path}: `annotations` is {found!r:.80}, expected a list")
            for number, one in enumerate(found):
                where = f"{path}: annotation {number}"
                if not isinstance(one, dict) or "question_id" not in one:
                    raise DataError(f"{where} has no question_id: {one!r:.80}")
                self._answers[_key(one["question_id"], where)] = _frequent(one, where)

    def __len__(self) -> int:
        return len(self._questions)

    def __getitem__(self, index: int) -> Example:
        question = self._questions[index]
        where = f"{self.path}:{index}"
        if not isinstance(question, dict) or not isinstance(question.get("question"), str):
            raise DataError(f"{where} has no text as its `question`: {question!r:.80}")
        number = question.get("question_id")
        labels = "" if number is None else self._answers.get(_key(number, where), "")
        labels = labels or _frequent(question, where)
        if not labels:
            raise DataError(f"{where} has no answer")
        return Example(
            id=where,
            image=resolve_inside(self.image_root, self._file(question, where), where),
            task=self.task,
            prompt=question["question"].strip(),
            labels=labels,
        )

    def _file(self, question: dict[str, Any], where: str) -> str:
        if self.image_pattern:
            try:
                return self.image_pattern.format(**question)
            except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
                raise DataError(
                    f"{where}: image_pattern {self.image_pattern!r} does not fit ({error!r}); the "
                    f"question has {', '.join(question)}"
                ) from None
        name = question.get("image") or question.get("file_name")
        if not name:
            raise DataError(f"{where} names no image: set image_pattern")
        if not isinstance(name, str):
            raise DataError(f"{where}: its image is {name!r:.80}, expected a file name")
        return name


class DocVqa(Vqa):
    """DocVQA's `data` of `question`, `image`, `answers`, the most frequent of which is learnt."""

    task = "<DocVQA>"


def _key(number: Any, where: str) -> str:
    """A question's number as text: one file may have 7 where the other has "7"."""
    if not isinstance(number, int | str):
        raise DataError(f"{where}: its question_id is {number!r:.80}, expected a number or a text")
    return str(number)


def _frequent(question: dict[str, Any], where: str) -> str:
    """VQAv2's choice, or the most frequent answer, the first of equals; "" where there is none."""
    chosen = question.get("multiple_choice_answer")
    if isinstance(chosen, str) and chosen:
        return chosen
    answers = question.get("answers") or []
    if not isinstance(answers, list):
        raise DataError(f"{where}: its answers are {answers!r:.80}, expected a list")
    texts = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    for text in texts:
        if not isinstance(text, str | int | float) or isinstance(text, bool):
            raise DataError(f"{where}: one of its answers is {text!r:.80}, expected a text")
    return Counter(map(str, texts)).most_common(1)[0][0] if texts else ""
