"""Training of image networks: classifiers and segmentation networks on a DaViT."""
