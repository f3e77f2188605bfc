"""From a caption to a text embedding: the char-CNN-RNN of Reed et al. and what judges it."""
