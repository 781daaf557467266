"""Questions about pictures: VQAv2's two files, and DocVQA's one."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from train.data.example import DataError, Example, contained


class Vqa:
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
        questions: str | Path,
        image_root: str | Path | None = None,
        annotations: str | Path | None = None,
        image_pattern: str = "",
    ):
        self.path = Path(questions)
        self.image_root = Path(image_root) if image_root else self.path.parent
        self.image_pattern = image_pattern
        content = _read(self.path)
        self._questions = content.get("questions") or content.get("data")
        if not isinstance(self._questions, list) or not self._questions:
            raise DataError(f"{self.path} holds neither `questions` nor `data`")
        self._answers: dict[Any, str] = {}
        if annotations is not None:
            for annotation in _read(Path(annotations)).get("annotations", []):
                answer = annotation.get("multiple_choice_answer") or _frequent(annotation)
                self._answers[annotation["question_id"]] = answer

    def __len__(self) -> int:
        return len(self._questions)

    def __getitem__(self, index: int) -> Example:
        question = self._questions[index]
        where = f"{self.path.name}:{question.get('question_id', index)}"
        answer = self._answers.get(question.get("question_id")) or _frequent(question)
        if not answer:
            raise DataError(f"{where} has no answer")
        return Example(
            id=where,
            image=contained(self.image_root, self._file(question, where), where),
            task=self.task,
            prompt=question["question"].strip(),
            answer=answer,
        )

    def _file(self, question: dict[str, Any], where: str) -> str:
        if self.image_pattern:
            return self.image_pattern.format(**question)
        name = question.get("image") or question.get("file_name")
        if not name:
            raise DataError(f"{where} names no image: set image_pattern")
        return name


class DocVqa(Vqa):
    """DocVQA's `data` of `question`, `image`, `answers`: `<DocVQA>question` -> the first answer."""

    task = "<DocVQA>"


def _frequent(question: dict[str, Any]) -> str:
    """The most frequent answer, the first of equals."""
    answers = question.get("answers") or []
    texts = [answer["answer"] if isinstance(answer, dict) else str(answer) for answer in answers]
    return Counter(texts).most_common(1)[0][0] if texts else ""


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is not an object with `questions` or `data`")
    return content
