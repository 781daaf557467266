"""Semantic segmentation: UperNet on a DaViT's feature maps."""
