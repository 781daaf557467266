"""Sources of items: directories and lists of images, JSON Lines, Parquet, WebDataset."""
