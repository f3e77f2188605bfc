"""The two GANs of StackGAN: networks, losses, training, checkpoints, sampling."""
