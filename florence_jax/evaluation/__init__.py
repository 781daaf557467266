"""The published tables: data sets, metrics, figures, and how far a model is from them."""
