"""Many callers for minutes: every answer is the pipeline's own, and memory stays flat.

    pytest -m slow tests/serving/test_load.py -s

takes eleven minutes; LOAD_SECONDS=60 before it makes that two.
"""

import asyncio
import itertools
import os
from pathlib import Path

import pytest

from florence_jax.inference.pipeline import Florence2Pipeline
from florence_jax.results.rows import result_to_json

pytest.importorskip("fastapi", reason='needs `pip install "florence-jax[serve]"`')

from florence_jax.cli.bench_serve import scene_crops
from florence_jax.cli.serve import warm_up_service
from florence_jax.serving.load import Asked, run_load
from tests.serving.running import serving, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.optimized]

SECONDS = float(os.environ.get("LOAD_SECONDS", "600"))
CALLERS, PARTS = 32, 4
REGION = "<loc_100><loc_100><loc_600><loc_600>"
PROMPTS = (
    *("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>", "<OCR>", "<OCR_WITH_REGION>"),
    *("<OD>", "<DENSE_REGION_CAPTION>", "<REGION_PROPOSAL>"),
    *("<CAPTION_TO_PHRASE_GROUNDING>A red circle.", "<OPEN_VOCABULARY_DETECTION>red circle"),
    *("<REFERRING_EXPRESSION_SEGMENTATION>red circle", f"<REGION_TO_SEGMENTATION>{REGION}"),
    *(f"<REGION_TO_CATEGORY>{REGION}", f"<REGION_TO_DESCRIPTION>{REGION}"),
    f"<REGION_TO_OCR>{REGION}",
)


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_thirty_two_callers():
    pipeline = Florence2Pipeline.from_pretrained("shapes")
    images = list(itertools.islice(scene_crops(), 24))
    good = [
        Asked(image=image, prompt=prompt, expected=result_to_json(result))
        for prompt in PROMPTS
        for image, result in zip(images, pipeline(images, prompt), strict=True)
    ]
    hundredth = len(good) // 98 + 1
    broken = [Asked(image=b"no image", prompt="<OD>", expected=None)] * hundredth
    leaving = [
        Asked(image=one.image, prompt=one.prompt, expected=one.expected, leaves=True)
        for one in good[:hundredth]
    ]
    memory = []
    with serving(pipeline, batch_size=8, cache_bytes=1 << 20, timeout=300) as (url, service, log):
        warm_up_service(service)
        one = asyncio.run(run_load(url, good, callers=1, seconds=SECONDS / 10))
        loads = []
        for part in range(PARTS):
            asked = good + broken + leaving
            loads.append(
                asyncio.run(
                    run_load(url, asked, callers=CALLERS, seconds=SECONDS / PARTS, seed=part)
                )
            )
            memory.append(resident_bytes())
            log.clear()
        wait_until(lambda: service.admission.under_way == 0)
    statuses = sum((load.statuses for load in loads[1:]), loads[0].statuses.copy())
    waited = sum(len(load.waited) for load in loads)
    seconds = sum(load.seconds for load in loads)
    times = ", ".join(
        f"p{share} {max(load.percentile(share / 100) for load in loads):.3f} s"
        for share in (50, 95, 99)
    )
    print(
        f"\n{waited} answers in {seconds:.0f} s: {waited / seconds:.1f} a second ({times}), and "
        f"{one.per_second:.1f} with one caller ({one.percentile(0.5):.3f} s); statuses "
        f"{dict(statuses)}; resident MiB after each part {[size >> 20 for size in memory]}"
    )
    assert [wrong for load in [one, *loads] for wrong in load.wrong] == []
    assert set(statuses) <= {200, 422, "left"}
    assert statuses[422] > 0
    assert statuses["left"] > 0
    assert memory[-1] < 1.1 * memory[0]
