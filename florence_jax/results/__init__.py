"""Results as files that other tools read: JSON lines, CSV, COCO, YOLO, VOC, text, Parquet.

One *row* says everything about one image, in `predict --output` and `predict --output-dir` alike:

    {"id": "photos/a.jpg",              # the path, or the id of a row of data
     "image": "a.jpg",                  # only where the image's name is not the id
     "width": 640, "height": 480,       # pixels of the upright image
     "answers": [{"prompt": "<OD>",     # and "text", "region" or "labels" where they were given
                  "result": {"<OD>": {"bboxes": [[x0, y0, x1, y1]], "labels": ["cat"],
                                      "scores": [0.31]}}}]}
    {"id": "photos/broken.jpg", "error": "why there are no answers"}

An answer that failed has "error" instead of "result"; a row all of whose answers failed has an
"error" too. Rows of data files keep their other columns.
"""
