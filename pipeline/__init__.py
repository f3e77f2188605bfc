"""StackGAN: from a sentence to a 256x256 picture, as a pipeline that can be rerun, compared and trusted."""
