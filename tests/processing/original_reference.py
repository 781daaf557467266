"""The model card's post-processor (revision 00d2f15), as overrides of transformers'.

Written from reading it, with plain regular expressions, as an oracle that shares nothing with the
library's one-pass grammar. Only what differs from transformers is here.
"""

import math
import re

import torch
from transformers.models.florence2.processing_florence2 import Florence2PostProcessor

BOX = re.compile(r"<loc_(\d+)>" * 4)
QUAD = re.compile(r"(.+?)" + r"<loc_(\d+)>" * 8)
BEFORE_LOCATION = re.compile(r"^\s*(.*?)(?=<loc_)")
UNIT = r"(?:<loc_\d+>|<sep>|<poly>|</poly>)"


class OriginalPostProcessor(Florence2PostProcessor):
    scores = None
    spans = None

    def dequantize(self, locations, size):
        """No truncation: float32 pixels."""
        per_bin = [size[i % 2] / 1000 for i in range(locations.shape[-1])]
        columns = [(locations[..., i] + 0.5) * per_bin[i] for i in range(len(per_bin))]
        return torch.stack(columns, dim=-1)

    def parse_ocr_from_text_and_spans(self, text, pattern, image_size, area_threshold=0.0):
        """Only ``<s>`` is removed and labels are not stripped."""
        found = []
        for label, *bins in QUAD.findall(text.replace("<s>", "")):
            points = torch.tensor([int(b) for b in bins]).reshape(-1, 2)
            quad = self.dequantize(points, image_size).flatten().tolist()
            found.append({"quad_box": quad, "text": label})
        return found

    def parse_description_with_bboxes_from_text_and_spans(
        self, text, image_size, allow_empty_phrase=False
    ):
        """Boxes carry scores where tokens came with any."""
        found = super().parse_description_with_bboxes_from_text_and_spans(
            text, image_size, allow_empty_phrase
        )
        if self.scores is None or allow_empty_phrase or not self.scored:
            return found
        position = 3 if text.startswith("<s>") else 0
        clean = text.replace("<s>", "").replace("</s>", "").replace("<pad>", "")
        scores = []
        for phrase in re.findall(r"[^<]+(?:<loc_\d+>){4,}", clean):
            if BEFORE_LOCATION.search(phrase):
                for box in BOX.finditer(phrase):
                    span = (box.start() + position, box.end() + position)
                    tokens = self._find_matched_token_indices(span, self.spans)
                    values = [self.scores[token] for token in tokens]
                    scores.append(math.exp(sum(values) / len(values)))
            position += len(phrase)
        return [{**box, "score": score} for box, score in zip(found, scores, strict=True)]

    def parse_description_with_polygons_from_text_and_spans(
        self, text, image_size, allow_empty_phrase=False
    ):
        """``loc_N>`` is cut from the front of a phrase, not ``<loc_N>``."""
        clean = text.replace("<s>", "").replace("</s>", "").replace("<pad>", "")
        label_part = "" if allow_empty_phrase else "[^<]+"
        found = []
        for phrase in re.findall(rf"{label_part}{UNIT}{{4,}}", clean):
            label = re.search(
                r"^\s*(.*?)(?=<loc_|<poly>)", re.sub(r"^loc_\d+>", "", phrase, count=1)
            )
            if label is None:
                continue
            instances = [phrase]
            if "<poly>" in phrase and "</poly>" in phrase:
                instances = re.findall(r"<poly>(.*?)</poly>", phrase)
            for instance in instances:
                polygons = []
                for run in re.findall(r"((?:<loc_\d+>)+)(?:<sep>|$)", instance):
                    bins = [int(b) for b in re.findall(r"<loc_(\d+)>", run)]
                    points = torch.tensor(bins[: len(bins) // 2 * 2]).reshape(-1, 2)
                    polygons.append(self.dequantize(points, image_size).flatten().tolist())
                if polygons:
                    found.append({"cat_name": label.group().strip(), "polygons": polygons})
        return found


class OriginalProcessor:
    """``post_process_generation`` of the model card's processor; takes over ``native``."""

    def __init__(self, native):
        self.types = native.tasks_answer_post_processing_type
        self.parser = OriginalPostProcessor(native.post_processor_config, native.tokenizer)
        native.post_processor = self.parser
        self.native = native

    def post_process_generation(
        self, text=None, sequence=None, transition_beam_score=None, task=None, image_size=None
    ):
        parser = self.parser
        parser.scores = None
        if sequence is not None:
            text, parser.spans = parser.decode_with_spans(sequence[1:])
            parser.scores = transition_beam_score
        kind = self.types.get(task, "pure_text")
        parser.scored = kind == "description_with_bboxes"
        if kind == "pure_text":
            return {task: text.replace("<s>", "").replace("</s>", "")}
        return self.native.post_process_generation(text=text, task=task, image_size=image_size)
