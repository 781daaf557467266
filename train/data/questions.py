"""Questions about pictures: VQAv2's two files, and DocVQA's one."""

from collections import Counter
from typing import Any

from train.data.example import DataError, Example
from train.data.json_file import read_object, read_value
from train.data.place import Place, contained, place


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
        questions: str | Place,
        image_root: str | Place | None = None,
        annotations: str | Place | None = None,
        image_pattern: str = "",
    ):
        self.path = place(questions)
        self.image_root = place(image_root) if image_root else self.path.parent
        self.image_pattern = image_pattern
        content = read_value(self.path)
        # VizWiz's file is the list itself.
        self._questions = content
        if isinstance(content, dict):
            self._questions = content.get("questions") or content.get("data")
        if not isinstance(self._questions, list) or not self._questions:
            has = ", ".join(list(content)[:8]) if isinstance(content, dict) else repr(content)[:80]
            raise DataError(
                f"{self.path} has no list of `questions` (VQAv2, TextVQA) or `data` (DocVQA), and "
                f"is none (VizWiz); it has {has or 'nothing'}"
            )
        self._answers: dict[Any, str] = {}
        if annotations is not None:
            path = place(annotations)
            for number, found in enumerate(
                read_object(path, all_of=("annotations",))["annotations"]
            ):
                if not isinstance(found, dict) or "question_id" not in found:
                    raise DataError(
                        f"{path}: annotation {number} has no question_id: {found!r:.80}"
                    )
                answer = found.get("multiple_choice_answer") or _frequent(found)
                self._answers[found["question_id"]] = answer

    def __len__(self) -> int:
        return len(self._questions)

    def __getitem__(self, index: int) -> Example:
        question = self._questions[index]
        where = f"{self.path}:{index}"
        if not isinstance(question, dict) or not isinstance(question.get("question"), str):
            raise DataError(f"{where} has no text as its `question`: {question!r:.80}")
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
            try:
                return self.image_pattern.format(**question)
            except (KeyError, IndexError, ValueError) as error:
                raise DataError(
                    f"{where}: image_pattern {self.image_pattern!r} does not fit ({error!r}); the "
                    f"question has {', '.join(question)}"
                ) from None
        name = question.get("image") or question.get("file_name")
        if not name:
            raise DataError(f"{where} names no image: set image_pattern")
        return name


class DocVqa(Vqa):
    """DocVQA's `data` of `question`, `image`, `answers`, the most frequent of which is learnt."""

    task = "<DocVQA>"


def _frequent(question: dict[str, Any]) -> str:
    """The most frequent answer, the first of equals."""
    answers = question.get("answers") or []
    texts = [answer["answer"] if isinstance(answer, dict) else str(answer) for answer in answers]
    return Counter(texts).most_common(1)[0][0] if texts else ""
