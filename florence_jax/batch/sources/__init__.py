"""Where items come from: directories and lists of pictures, JSON lines, Parquet, WebDataset."""
