"""DaViT alone as a backbone: classification, feature maps and image embeddings."""
