"""The published figures: looked up by checkpoint, printed as tables, in step with the data sets."""

import pytest

from florence_jax.evaluation.paper_results import (
    TABLES,
    figures,
    format_tables,
    published_score,
    published_variants,
)
from florence_jax.evaluation.registry import BENCHMARKS, benchmark_named


@pytest.mark.parametrize(
    ("model", "column", "value"),
    [
        ("microsoft/Florence-2-base", "COCO captions Karpathy test CIDEr", 133.0),
        ("microsoft/Florence-2-large-ft", "COCO captions Karpathy test CIDEr", 143.3),
        ("florence-community/Florence-2-large-ft", "VizWiz test-dev accuracy", 72.6),
        ("checkpoints/Florence-2-base-ft/", "RefCOCO segmentation val mIoU", 78.0),
        ("Florence-2-large", "Flickr30k test R@1", 84.4),
        ("Florence-2-base-ft", "RefCOCOg test accuracy", 82.2),
    ],
)
def test_figures_are_found_by_checkpoint(model, column, value):
    figure = published_score(model, column)
    assert figure.value == value
    assert "2311.06242, table" in figure.source


@pytest.mark.parametrize(
    ("model", "value"),
    [("davit_tiny", 82.8), ("timm/davit_small.msft_in1k", 84.2), ("davit_base.msft_in1k", 84.6)],
)
def test_figures_of_classifiers_are_found_by_timms_name(model, value):
    figure = published_score(model, "ImageNet val top-1")
    assert (figure.value, figure.source) == (value, "arXiv:2204.03645, abstract")


def test_models_and_columns_without_a_figure():
    assert published_score("my-fine-tune", "Flickr30k test R@1") is None
    assert published_score("microsoft/Florence-2-base", "VQAv2 test-dev accuracy") is None


def test_weights_that_took_a_name_over():
    column = "COCO detection val2017 mAP"
    (variant,) = published_variants("microsoft/Florence-2-large", column)
    assert (variant.value, variant.source) == (39.8, "model card of microsoft/Florence-2-large")
    assert published_score("microsoft/Florence-2-large", column).value == 37.5
    assert published_variants("microsoft/Florence-2-base", column) == []


def test_every_column_of_a_data_set_is_published():
    columns = {figure.column for figure in figures()}
    for name, benchmark in BENCHMARKS.items():
        assert set(benchmark.columns) <= set(benchmark.splits), name
        assert set(benchmark.columns.values()) <= columns, name
    asked = {column for one in BENCHMARKS.values() for column in one.columns.values()}
    for model in ("Florence-2-base", "Florence-2-large", "Florence-2-base-ft"):
        assert {f.column for f in figures() if f.model == model} <= asked


def test_the_tables_are_whole():
    for table in TABLES:
        assert all(len(values) == len(table.columns) for _, values in table.rows), table.title
    text = format_tables()
    assert text.count("133.0") == 1
    assert "RefCOCO+ testB accuracy" in text


def test_an_unknown_data_set_is_named():
    with pytest.raises(ValueError, match="'cifar' is no data set; there are own, coco-captions"):
        benchmark_named("cifar")
