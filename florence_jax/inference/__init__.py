"""Images in, results out: the pipeline, its pictures and its exports."""
